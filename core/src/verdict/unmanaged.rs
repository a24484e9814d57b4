//! The Secrets that seem to be meant and are not managed, as a report tells of them: bounded, and of each namespace some.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::secret::SecretRef;
use crate::secret::stray::Stray;

/// Most that are named.
const NAMED: usize = 100;
/// Most bytes of their texts.
const MOST: usize = 64 * 1024;

/// The Secrets that seem to be meant and are not managed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmanaged {
    /// Their number.
    pub count: usize,
    /// The first of them.
    pub named: Vec<NotManaged>,
}

/// A Secret that seems to be meant and is not managed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotManaged {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Why, as the metric has it.
    pub why: Box<str>,
    /// What to tell its owner.
    pub text: Box<str>,
}

impl Unmanaged {
    /// Of these Secrets, in their order: the first of each namespace, then the second, and so on.
    #[must_use]
    pub fn of<'a>(strays: impl Iterator<Item = (&'a SecretRef, &'a Stray)>) -> Self {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        let mut all = Vec::new();
        for (key, stray) in strays {
            let turn = seen.entry(&key.namespace).or_default();
            *turn += 1;
            all.push((*turn, key, stray));
        }
        all.sort_by_key(|(turn, ..)| *turn);
        let mut bytes = 0;
        let fits = |(_, _, stray): &&(usize, &SecretRef, &Stray)| {
            bytes += stray.text.len();
            bytes <= MOST
        };
        let first = all.iter().take(NAMED).take_while(fits);
        let mut named: Vec<NotManaged> = { first }
            .map(|(_, key, stray)| NotManaged {
                namespace: (*key.namespace).into(),
                name: (*key.name).into(),
                why: stray.why.as_str().into(),
                text: (*stray.text).into(),
            })
            .collect();
        named.sort_by(|one, other| {
            (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name))
        });
        Self {
            count: all.len(),
            named,
        }
    }

    /// What is told of one Secret.
    #[must_use]
    pub fn text_of(&self, namespace: &str, name: &str) -> Option<&str> {
        let is = |it: &&NotManaged| *it.namespace == *namespace && *it.name == *name;
        Some(&self.named.iter().find(is)?.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::stray::StrayReason;

    #[test]
    fn one_namespace_hides_none_of_another() {
        let stray = |text: &str| Stray {
            why: StrayReason::NoIssuer,
            text: text.into(),
        };
        let key = |namespace: &str, number: usize| SecretRef {
            namespace: namespace.into(),
            name: format!("tls-{number:03}").into(),
        };
        let hostile = (0..100).map(|number| (key("aaa", number), stray(&"x".repeat(900))));
        let all: Vec<_> = hostile.chain([(key("shop", 1), stray("meant"))]).collect();
        let found = Unmanaged::of(all.iter().map(|(key, stray)| (key, stray)));
        assert_eq!(found.count, 101);
        assert_eq!(found.text_of("shop", "tls-001"), Some("meant"));
        assert_eq!(found.text_of("shop", "tls-002"), None);
        let bytes: usize = found.named.iter().map(|it| it.text.len()).sum();
        assert!(bytes <= MOST && found.named.len() > 60, "{bytes}");
    }
}

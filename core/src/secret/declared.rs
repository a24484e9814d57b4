//! The mark and the record on a Secret whose settings come from other objects: labelled ConfigMaps, and Ingresses.
//!
//! The mark is an annotation that a user may set too, to hand a Secret over. The record says which objects declare the
//! Secret and what they have set, so that a setting is taken back when they no longer have it, and so that a look at a
//! Secret and at what declares it shows whether anything is to be written. A record of another Secret, copied with its
//! annotations, counts as absent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SecretRef;
use super::keys;
use super::object::head::Head;
use crate::text::hash::hash;
use crate::time::UnixTime;

/// Longest record that is read, in bytes: one with all settings and as many objects as count is a quarter of it.
const MOST_BYTES: usize = 64 * 1024;
/// Longest name of an object.
const LONGEST_NAME: usize = 253;

/// Which objects declare a Secret, and what they have set: the value of [`keys::DECLARATION`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeclaredMark {
    /// The objects, as `ConfigMap/shop-tls`, the oldest first.
    pub by: Vec<String>,
    /// Digest of all that they declared.
    pub of: u64,
    /// Digest of the value of each setting that they have given, by annotation.
    pub given: BTreeMap<String, u64>,
    /// Since when none of them declares the Secret.
    pub gone: Option<UnixTime>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    secret: String,
    by: Vec<String>,
    of: String,
    given: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gone: Option<String>,
}

impl DeclaredMark {
    /// The record on a Secret; `None` if there is none, or it is another Secret's.
    #[must_use]
    pub fn read(key: &SecretRef, head: &Head) -> Option<Self> {
        Self::parse(key, head.annotation(keys::DECLARATION)?)
    }

    /// Reads the annotation, which anybody may have written; `None` if it is no record, or another Secret's.
    #[must_use]
    pub fn parse(key: &SecretRef, text: &str) -> Option<Self> {
        let read = |text: &str| serde_json::from_str::<Written>(text).ok();
        let written = Some(text)
            .filter(|it| it.len() <= MOST_BYTES)
            .and_then(read)?;
        if written.secret != key.to_string() {
            return None;
        }
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let given = { written.given.into_iter() }
            .map(|(key, value)| Some((key, number(&value)?)))
            .collect::<Option<_>>()?;
        let gone = match written.gone {
            Some(at) => Some(at.parse().ok()?),
            None => None,
        };
        Some(Self {
            by: written.by,
            of: number(&written.of)?,
            given,
            gone,
        })
    }

    /// The annotation for this Secret.
    #[must_use]
    pub fn written_for(&self, key: &SecretRef) -> String {
        let number = |number: &u64| format!("{number:016x}");
        let written = Written {
            secret: key.to_string(),
            by: self.by.clone(),
            of: number(&self.of),
            given: { self.given.iter() }
                .map(|(key, value)| (key.clone(), number(value)))
                .collect(),
            gone: self.gone.map(|at| at.to_string()),
        };
        serde_json::to_string(&written).unwrap_or_default()
    }

    /// Whether the Secret still has what was given, so that nothing is to be put back. What asks for something once is
    /// left out: the same may be asked for on the Secret itself.
    #[must_use]
    pub fn is_intact(&self, head: &Head) -> bool {
        let mut given = { self.given.iter() }.filter(|(key, _)| !is_asked_once(key));
        given.all(|(key, value)| head.annotation(key).map(hash) == Some(*value))
    }
}

/// Most objects that are named as those that declare a Secret.
const NAMED: usize = 3;

/// The kind of an Ingress, as kubectl takes it.
pub const INGRESS: &str = "ingress";

/// What declares a Secret, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredBy {
    /// The first objects, as kubectl takes them, the oldest first.
    pub objects: Box<[Box<str>]>,
    /// Whether one of them pauses it.
    pub pauses: bool,
}

impl DeclaredBy {
    /// What declares this Secret; `None` if nothing does, or not any more.
    #[must_use]
    pub fn read(key: &SecretRef, head: &Head) -> Option<Self> {
        let record =
            DeclaredMark::read(key, head).filter(|it| is_marked(head) && it.gone.is_none())?;
        let named = { record.by.iter() }.filter_map(|text| {
            // Anybody who may edit the Secret can write anything here, and it becomes part of a command.
            let (kind, name) = text.split_once('/')?;
            let kind = match kind {
                "ConfigMap" => "configmap",
                "Ingress" => INGRESS,
                _ => return None,
            };
            is_object_name(name).then(|| format!("{kind}/{name}").into())
        });
        let objects: Box<[_]> = named.take(NAMED).collect();
        (!objects.is_empty()).then(|| Self {
            objects,
            pauses: record.given.contains_key(keys::PAUSED),
        })
    }
}

/// Whether an object can have this name: a DNS subdomain, of which the API server lets each part be as long as the whole.
#[must_use]
pub fn is_object_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(inner)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    (1..=LONGEST_NAME).contains(&text.len()) && text.split('.').all(is_part)
}

/// Whether a setting asks for something once, rather than saying how it should be.
#[must_use]
pub fn is_asked_once(key: &str) -> bool {
    [keys::RENEW_NOW, keys::REVOKED].contains(&key)
}

/// Whether the settings of a Secret come from what declares it.
#[must_use]
pub fn is_marked(head: &Head) -> bool {
    head.annotation(keys::DECLARED).map(str::trim) == Some("true")
}

/// Whether nothing declares a Secret any more whose settings come from there.
#[must_use]
pub fn is_undeclared(key: &SecretRef, head: &Head) -> bool {
    is_marked(head) && DeclaredMark::read(key, head).is_some_and(|it| it.gone.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(annotations: &[(&str, &str)]) -> Head {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Head::of("shop", "tls", "u", "1").annotated(annotations.iter().map(owned).collect())
    }

    #[test]
    fn what_declares_a_secret_is_named_as_kubectl_takes_it_and_nothing_else() {
        let key = SecretRef::new("shop", "tls");
        let by = |by: &[&str], given: &[&str], gone: bool, mark: &str| {
            let record = DeclaredMark {
                by: by.iter().map(|it| (*it).to_owned()).collect(),
                of: 7,
                given: { given.iter() }.map(|key| ((*key).to_owned(), 1)).collect(),
                gone: gone.then_some(UnixTime(1_800_000_000)),
            };
            let written = record.written_for(&key);
            DeclaredBy::read(
                &key,
                &head(&[(keys::DECLARATION, &written), (keys::DECLARED, mark)]),
            )
        };
        let one = by(&["ConfigMap/tls"], &[keys::PAUSED], false, "true").unwrap();
        assert_eq!((&*one.objects[0], one.pauses), ("configmap/tls", true));
        let forged = [
            "ConfigMap/x; rm -rf /",
            "Pod/a",
            "ConfigMap/b",
            "Ingress/$x",
            "Ingress/c",
        ];
        let forged = by(&forged, &[], false, "true").unwrap();
        assert_eq!(*forged.objects, ["configmap/b".into(), "ingress/c".into()]);
        assert_eq!(by(&["ConfigMap/tls"], &[], true, "true"), None, "gone");
        assert_eq!(by(&["ConfigMap/tls"], &[], false, "false"), None);
    }

    #[test]
    fn the_parts_of_the_name_of_an_object_may_be_longer_than_labels() {
        let long = "a".repeat(LONGEST_NAME);
        let longer = format!("{long}a");
        for (name, is_one) in [
            ("tls", true),
            ("a.b-1", true),
            (long.as_str(), true),
            (longer.as_str(), false),
            ("", false),
            ("a..b", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a/b", false),
            ("../a", false),
        ] {
            assert_eq!(is_object_name(name), is_one, "{name}");
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_only_on_its_own_secret() {
        let key = SecretRef::new("shop", "tls");
        let record = DeclaredMark {
            by: vec!["ConfigMap/tls".into()],
            of: 7,
            given: BTreeMap::from([
                (keys::ISSUER.to_owned(), hash("le")),
                (keys::RENEW_NOW.to_owned(), hash("1")),
            ]),
            gone: Some(UnixTime(1_800_000_000)),
        };
        let written = record.written_for(&key);
        let on_secret = head(&[(keys::DECLARATION, &written)]);
        assert_eq!(DeclaredMark::read(&key, &on_secret), Some(record.clone()));
        let copy = SecretRef::new("other", "tls");
        assert_eq!(DeclaredMark::read(&copy, &on_secret), None);
        assert!(!is_undeclared(&key, &on_secret), "without the mark");
        let marked = head(&[(keys::DECLARATION, &written), (keys::DECLARED, "true")]);
        assert!(is_undeclared(&key, &marked));
        for odd in [
            "",
            "{}",
            "[]",
            "\u{1}",
            r#"{"secret":"shop/tls","by":[],"of":"x","given":{}}"#,
        ] {
            assert_eq!(
                DeclaredMark::read(&key, &head(&[(keys::DECLARATION, odd)])),
                None,
                "{odd}"
            );
        }
        for (value, intact) in [("le", true), ("other", false)] {
            assert_eq!(record.is_intact(&head(&[(keys::ISSUER, value)])), intact);
        }
    }
}

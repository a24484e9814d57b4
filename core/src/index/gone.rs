//! The records of deleted Secrets, so that one that comes back with another certificate is rolled out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::secret::SecretRef;
use crate::secret::state::RolledOut;

/// Most deleted Secrets that are remembered. The namespace with the most loses its oldest.
const REMEMBERED: usize = 10_000;

/// The records of deleted Secrets.
#[derive(Debug, Default)]
pub(super) struct Gone {
    had: HashMap<SecretRef, (u64, RolledOut)>,
    /// The names of each namespace, oldest first.
    order: HashMap<Arc<str>, BTreeMap<u64, Arc<str>>>,
    turns: u64,
}

impl Gone {
    /// Keeps the record of a deleted Secret.
    pub(super) fn remember(&mut self, key: &SecretRef, had: RolledOut) {
        self.take(key);
        self.turns += 1;
        self.had.insert(key.clone(), (self.turns, had));
        let order = self.order.entry(Arc::clone(&key.namespace)).or_default();
        order.insert(self.turns, Arc::clone(&key.name));
        if self.had.len() > REMEMBERED {
            self.forget_one();
        }
    }

    /// Takes the record of a Secret that is back.
    pub(super) fn take(&mut self, key: &SecretRef) -> Option<RolledOut> {
        let (turn, had) = self.had.remove(key)?;
        if let Some(order) = self.order.get_mut(&key.namespace) {
            order.remove(&turn);
            if order.is_empty() {
                self.order.remove(&key.namespace);
            }
        }
        Some(had)
    }

    fn forget_one(&mut self) {
        let most = self.order.iter().max_by_key(|(_, order)| order.len());
        let oldest = most.and_then(|(namespace, order)| {
            let (_, name) = order.first_key_value()?;
            let (namespace, name) = (Arc::clone(namespace), Arc::clone(name));
            Some(SecretRef { namespace, name })
        });
        if let Some(oldest) = oldest {
            self.take(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: usize) -> SecretRef {
        SecretRef {
            namespace: namespace.into(),
            name: name.to_string().into(),
        }
    }

    #[test]
    fn who_deletes_many_secrets_pushes_out_their_own() {
        let mut gone = Gone::default();
        let had = RolledOut::None;
        gone.remember(&key("shop", 0), had);
        for name in 0..REMEMBERED * 2 {
            gone.remember(&key("many", name), had);
        }
        assert_eq!(gone.had.len(), REMEMBERED);
        assert_eq!(gone.take(&key("shop", 0)), Some(had));
        assert_eq!(gone.take(&key("shop", 0)), None);
        assert_eq!(gone.take(&key("many", REMEMBERED)), None);
        assert_eq!(gone.take(&key("many", REMEMBERED + 1)), Some(had));
    }

    #[test]
    fn what_comes_and_goes_counts_once() {
        let mut gone = Gone::default();
        for _ in 0..REMEMBERED * 3 {
            gone.remember(&key("shop", 0), RolledOut::None);
        }
        assert_eq!((gone.had.len(), gone.order["shop"].len()), (1, 1));
        gone.take(&key("shop", 0));
        assert!(gone.had.is_empty() && gone.order.is_empty());
    }
}

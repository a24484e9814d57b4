//! What is kept of a Secret for people only: names, workloads, account and chain of those that the status page has room
//! for, and the texts of problems.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::room::Shares;
use super::table::Id;
use super::{Index, Row};
use crate::certificate::above::Above;
use crate::secret::SecretRef;
use crate::secret::declared::DeclaredBy;

/// Most Secrets whose names and workloads are kept, of each namespace its share: more than the status page shows at a
/// time.
const NAMED: usize = 10_000;
/// Most accounts that are kept once; users who write more into annotations take memory for each.
const ACCOUNTS: usize = 64;
/// Most chains that are kept, each once; of what has another one, none is shown.
const CHAINS: usize = 64;
/// Most of them that one namespace brings: anybody who may edit Secrets can make any number.
const CHAINS_OF_NAMESPACE: usize = CHAINS / 4;

/// A chain, and the namespace whose Secret had it first.
#[derive(Debug)]
pub(super) struct Chain {
    chain: Arc<Above>,
    of: Arc<str>,
}

/// What is shown of the Secrets that have a place.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Boxed: a hash table of this size has room for half as many again.
    shown: HashMap<Id, Box<Shown>>,
    /// How many each namespace has, and which.
    shares: Shares,
    ids: HashMap<Arc<str>, BTreeSet<Id>>,
}

impl Named {
    /// Shows nothing of a Secret any more.
    pub(super) fn forget(&mut self, id: Id, namespace: &Arc<str>) {
        if self.shown.remove(&id).is_none() {
            return;
        }
        let had = self.shares.of(namespace);
        self.shares.set(namespace, had - 1);
        if let Some(ids) = self.ids.get_mut(namespace) {
            ids.remove(&id);
            if ids.is_empty() {
                self.ids.remove(namespace);
            }
        }
    }

    /// Whether a Secret has a place, or gets one if another namespace gives it up.
    fn has_place(&self, id: Id, namespace: &Arc<str>) -> bool {
        let larger = self.shares.more_than(self.shares.of(namespace) + 1);
        self.shown.len() < NAMED || larger.is_some() || self.shown.contains_key(&id)
    }

    fn insert(&mut self, id: Id, namespace: &Arc<str>, shown: Shown) {
        let had = self.shares.of(namespace);
        self.shares.set(namespace, had + 1);
        { self.ids.entry(Arc::clone(namespace)).or_default() }.insert(id);
        self.shown.insert(id, Box::new(shown));
    }
}

/// The part of a Secret that only the status page needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Names in the certificate, comma-separated.
    pub names: Box<str>,
    /// A [`crate::secret::used_by::UsedBy`] in its written form.
    pub used_by: Option<Box<str>>,
    /// URL of the CA account that ordered the certificate.
    pub account: Option<Arc<str>>,
    /// Since when it is in its state, as it stands on the Secret; of those that are well there is none.
    pub since: Option<Box<str>>,
    /// What is above its certificate.
    pub chain: Option<Arc<Above>>,
    /// What declares it.
    pub declared: Option<Box<DeclaredBy>>,
}

impl Index {
    /// Keeps what the status page shows of a Secret, if there is room: the namespace that has most gives way.
    pub fn show(&mut self, key: &SecretRef, mut shown: Shown) {
        let Some(id) = self.table.find(key) else {
            return;
        };
        let of = &key.namespace;
        if !self.named.has_place(id, of) {
            return;
        }
        // What it had may be the last of its kind.
        self.named.forget(id, of);
        self.make_place(of);
        shown.account = shown.account.map(|account| self.shared(account));
        shown.chain = { shown.chain }.and_then(|chain| self.shared_chain(of, chain));
        self.named.insert(id, of, shown);
    }

    /// Shows nothing any more of a Secret of the namespace that has most, if there is no place for one of another.
    fn make_place(&mut self, of: &Arc<str>) {
        let Named { shown, shares, ids } = &self.named;
        if shown.len() < NAMED {
            return;
        }
        let Some(largest) = shares.more_than(shares.of(of) + 1).cloned() else {
            return;
        };
        if let Some(id) = { ids.get(&largest) }.and_then(|ids| ids.last().copied()) {
            self.named.forget(id, &largest);
        }
    }

    /// Whether there is room for what the status page shows of a Secret.
    #[must_use]
    pub fn has_room(&self, key: &SecretRef) -> bool {
        let id = self.table.find(key);
        id.is_some_and(|id| self.named.has_place(id, &key.namespace))
    }

    /// The one allocation of a chain; none if there are too many, of all or of its namespace.
    fn shared_chain(&mut self, of: &Arc<str>, chain: Arc<Above>) -> Option<Arc<Above>> {
        if let Some(known) = self.chains.iter().find(|it| it.chain == chain) {
            return Some(Arc::clone(&known.chain));
        }
        let is_full = |all: &[Chain]| {
            let brought = all.iter().filter(|it| it.of == *of).count();
            all.len() >= CHAINS || brought >= CHAINS_OF_NAMESPACE
        };
        if is_full(&self.chains) {
            self.chains.retain(|it| Arc::strong_count(&it.chain) > 1);
        }
        (!is_full(&self.chains)).then(|| {
            let of = Arc::clone(of);
            let brought = Arc::clone(&chain);
            self.chains.push(Chain { chain: brought, of });
            chain
        })
    }

    /// The one allocation of an account's URL.
    fn shared(&mut self, account: Arc<str>) -> Arc<str> {
        if let Some(known) = self.accounts.iter().find(|it| **it == account) {
            return Arc::clone(known);
        }
        if self.accounts.len() < ACCOUNTS {
            self.accounts.push(Arc::clone(&account));
        }
        account
    }

    /// Keeps the texts of a Secret's problems, if there is room; of none, if there are none.
    pub fn tell_problems(&mut self, key: &SecretRef, texts: &[String]) {
        if let Some(id) = self.table.find(key) {
            self.problems.set(id, &key.namespace, texts);
        }
    }

    /// Keeps the problems of a Secret that a look at other objects has found; they count with its own.
    pub fn found_problems(&mut self, key: &SecretRef, texts: &[String]) {
        if let Some(id) = self.table.find(key) {
            self.problems.find(id, &key.namespace, texts);
        }
    }

    /// The problems of a Secret, one a line, if it has some and they are kept.
    #[must_use]
    pub fn problems(&self, row: Row) -> Option<Cow<'_, str>> {
        self.problems.get(row.0)
    }

    /// The number of its problems that were looked up, beside those of its entry.
    #[must_use]
    pub fn looked_up(&self, row: Row) -> u16 {
        self.problems.found(row.0)
    }

    /// What the status page shows of a Secret.
    #[must_use]
    pub fn shown(&self, row: Row) -> Option<&Shown> {
        self.named.shown.get(&row.0).map(|it| &**it)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certificate::above::above;
    use crate::index::Source;
    use crate::testing::entries::{NOW, healthy};
    use crate::testing::forge;

    #[test]
    fn a_namespace_with_very_many_chains_hides_none_of_others() {
        let mut index = Index::default();
        let mut is_kept = |namespace: &str, number: usize| {
            let key = index.key(namespace, &format!("tls-{number}"));
            index.apply(NOW, &key, healthy(), Source(0), Duration::ZERO, None);
            let signer = format!("{namespace} {number}");
            let forged = forge::Forged {
                issuer: forge::common_name(0x0c, signer.as_bytes()),
                ..forge::Forged::default()
            };
            let chain = above(forged.pem().as_bytes()).map(Arc::new);
            assert!(chain.is_some());
            let shown = Shown {
                chain,
                ..Shown::default()
            };
            index.show(&key, shown);
            let row = index.row_of(&key).unwrap();
            index.shown(row).unwrap().chain.is_some()
        };
        let kept = (0..2 * CHAINS).filter(|number| is_kept("aaa", *number));
        assert_eq!(kept.count(), CHAINS_OF_NAMESPACE);
        assert!(is_kept("shop", 0));
    }

    #[test]
    fn a_namespace_with_very_many_secrets_hides_no_names_of_others() {
        let mut index = Index::default();
        let mut add = |namespace: &str, number: usize| {
            let key = index.key(namespace, &format!("tls-{number}"));
            index.apply(NOW, &key, healthy(), Source(0), Duration::ZERO, None);
            let has_room = index.has_room(&key);
            let shown = Shown {
                names: "a.example".into(),
                ..Shown::default()
            };
            index.show(&key, shown);
            let row = index.row_of(&key).unwrap();
            assert_eq!(index.shown(row).is_some(), has_room);
            has_room
        };
        let first = (0..NAMED + 100).filter(|number| add("aaa", *number));
        assert_eq!(first.count(), NAMED);
        assert!((0..40).all(|number| add("shop", number)));
        assert_eq!(index.named.shown.len(), NAMED);
        for number in 0..40 {
            index.remove(&SecretRef::new("shop", format!("tls-{number}")));
        }
        assert_eq!(index.named.shown.len(), NAMED - 40);
        let key = index.key("aaa", &format!("tls-{}", NAMED + 1));
        assert!(index.has_room(&key), "what is free is nobody's");
    }
}

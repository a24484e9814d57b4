//! The next Secret to renew: due renewals that wait for one of the places, with a share for each namespace and issuer.
//!
//! A renewal may hold its place for minutes, if a DNS server or a CA answers late. No namespace and no issuer may hold
//! all of them, so that there is always one for the others. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cert_renew_core::secret::SecretRef;
use cert_renew_core::time::UnixTime;

/// Divisor of the places that one namespace may hold: a quarter, so that four would have to be slow at the same time.
const OF_A_NAMESPACE: usize = 4;
/// Least number of places that a namespace may hold, even where there are few.
const LEAST: usize = 2;

/// Namespace and issuer.
type Group = (Arc<str>, Arc<str>);

/// Due renewals that wait for a place, and those that have one.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Ordered by the number of failures, then by expiry.
    waiting: HashMap<Group, BTreeSet<(u32, UnixTime, SecretRef)>>,
    /// Where each of them waits: its issuer, and what it is ordered by.
    order: HashMap<SecretRef, (Arc<str>, u32, UnixTime)>,
    held: HashMap<SecretRef, Group>,
    of_namespace: HashMap<Arc<str>, usize>,
    of_issuer: HashMap<Arc<str>, usize>,
}

impl Places {
    /// Adds a due renewal.
    pub(super) fn wait(
        &mut self,
        (failures, expires): (u32, UnixTime),
        key: SecretRef,
        issuer: Arc<str>,
    ) {
        let group = (Arc::clone(&key.namespace), Arc::clone(&issuer));
        let waiting = self.waiting.entry(group).or_default();
        waiting.insert((failures, expires, key.clone()));
        self.order.insert(key, (issuer, failures, expires));
    }

    /// Takes out a renewal that waits for a place; false if it does not.
    pub(super) fn leave(&mut self, key: &SecretRef) -> bool {
        let Some((issuer, failures, expires)) = self.order.remove(key) else {
            return false;
        };
        let group = (Arc::clone(&key.namespace), issuer);
        if let Some(waiting) = self.waiting.get_mut(&group) {
            waiting.remove(&(failures, expires, key.clone()));
            if waiting.is_empty() {
                self.waiting.remove(&group);
            }
        }
        true
    }

    /// Number of renewals that wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let waiting = self.waiting.values().map(BTreeSet::len).sum();
        assert_eq!(self.order.len(), waiting);
        waiting
    }

    /// Takes the next renewal, which holds one of `places` from now on.
    pub(super) fn next(&mut self, places: usize) -> Option<SecretRef> {
        if self.held.len() >= places {
            return None;
        }
        let namespace_most = (places / OF_A_NAMESPACE).max(LEAST);
        let issuer_most = (places - places / OF_A_NAMESPACE).max(LEAST);
        let may = |(namespace, issuer): &Group| {
            let of_namespace = self.of_namespace.get(namespace).copied().unwrap_or(0);
            let of_issuer = self.of_issuer.get(issuer).copied().unwrap_or(0);
            of_namespace < namespace_most && of_issuer < issuer_most
        };
        let groups = self.waiting.iter().filter(|(group, _)| may(group));
        let first = groups.filter_map(|(group, waiting)| Some((waiting.first()?, group)));
        let (_, group) = first.min()?;
        let group = group.clone();
        let waiting = self.waiting.get_mut(&group)?;
        let (_, _, key) = waiting.pop_first()?;
        if waiting.is_empty() {
            self.waiting.remove(&group);
        }
        self.order.remove(&key);
        *self.of_namespace.entry(Arc::clone(&group.0)).or_default() += 1;
        *self.of_issuer.entry(Arc::clone(&group.1)).or_default() += 1;
        self.held.insert(key.clone(), group);
        Some(key)
    }

    /// Frees the place of a renewal that has ended.
    pub(super) fn free(&mut self, key: &SecretRef) {
        let Some((namespace, issuer)) = self.held.remove(key) else {
            return;
        };
        for (counts, of) in [
            (&mut self.of_namespace, namespace),
            (&mut self.of_issuer, issuer),
        ] {
            if let Some(count) = counts.get_mut(&of) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&of);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: u32) -> SecretRef {
        SecretRef {
            namespace: namespace.into(),
            name: name.to_string().into(),
        }
    }

    fn wait(places: &mut Places, namespace: &str, name: u32, issuer: &str) {
        places.wait(
            (0, UnixTime(name.into())),
            key(namespace, name),
            issuer.into(),
        );
    }

    fn all(places: &mut Places, most: usize) -> Vec<SecretRef> {
        std::iter::from_fn(|| places.next(most)).collect()
    }

    #[test]
    fn no_namespace_holds_more_than_a_quarter_and_each_place_that_is_free_is_taken_again() {
        let mut places = Places::default();
        for name in 0..100 {
            wait(&mut places, "greedy", name, "le");
        }
        let held = all(&mut places, 64);
        assert_eq!(held.len(), 16);
        wait(&mut places, "modest", 1_000, "le");
        assert_eq!(places.next(64), Some(key("modest", 1_000)));
        places.free(&held[3]);
        assert_eq!(
            all(&mut places, 64),
            [key("greedy", 16)],
            "the nearest expiry"
        );
        // A renewal without a place frees none.
        places.free(&key("greedy", 99));
        assert_eq!(places.next(64), None);
        for held in held {
            places.free(&held);
        }
        assert_eq!(all(&mut places, 64).len(), 15);
    }

    #[test]
    fn an_issuer_that_hangs_leaves_places_to_the_others() {
        let mut places = Places::default();
        for name in 0..80 {
            wait(&mut places, &format!("n{name}"), name, "hangs");
        }
        assert_eq!(all(&mut places, 64).len(), 48);
        for name in 0..80 {
            wait(&mut places, &format!("n{name}"), 100 + name, "works");
        }
        let rest = all(&mut places, 64);
        assert_eq!(rest.len(), 16);
        assert!(
            rest.iter()
                .all(|key| key.name.parse::<u32>().unwrap() >= 100)
        );
    }

    #[test]
    fn those_that_failed_wait_behind_those_that_did_not() {
        let mut places = Places::default();
        for (failures, name) in [(3, 1), (0, 2), (1, 3)] {
            let key = key(&format!("n{name}"), name);
            places.wait((failures, UnixTime(0)), key, "le".into());
        }
        let order: Vec<String> = all(&mut places, 64)
            .iter()
            .map(|key| key.name.to_string())
            .collect();
        assert_eq!(order, ["2", "3", "1"]);
        let mut few = Places::default();
        for name in 0..5 {
            wait(&mut few, "shop", name, "le");
        }
        assert_eq!(all(&mut few, 2).len(), 2);
    }
}

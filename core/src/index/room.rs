//! Bounded room for what is kept of Secrets, shared by namespaces: the one that takes most gives way to those that take
//! less. It is measured in bytes of text, or in places of one each.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::table::Id;

/// How much each namespace has of something.
#[derive(Debug, Default)]
pub(super) struct Shares {
    of: HashMap<Arc<str>, usize>,
    /// The same, the most last.
    order: BTreeSet<(usize, Arc<str>)>,
}

impl Shares {
    /// How much a namespace has, in the unit of the room.
    pub(super) fn of(&self, namespace: &str) -> usize {
        self.of.get(namespace).copied().unwrap_or(0)
    }

    /// The namespace that has most, if one has more than so much.
    pub(super) fn more_than(&self, much: usize) -> Option<&Arc<str>> {
        let largest = self.order.last().filter(|(most, _)| *most > much);
        largest.map(|(_, namespace)| namespace)
    }

    /// Gives a namespace so much.
    pub(super) fn set(&mut self, namespace: &Arc<str>, much: usize) {
        let namespace = Arc::clone(namespace);
        if let Some(had) = self.of.remove(&namespace) {
            self.order.remove(&(had, Arc::clone(&namespace)));
        }
        if much > 0 {
            self.of.insert(Arc::clone(&namespace), much);
            self.order.insert((much, namespace));
        }
    }
}

/// The room, and who takes how much of it.
#[derive(Debug)]
pub(super) struct Room {
    left: usize,
    taken: HashMap<Id, (Arc<str>, usize)>,
    shares: Shares,
    /// Who takes something, by namespace.
    ids: HashMap<Arc<str>, BTreeSet<Id>>,
}

impl Room {
    /// Room for this number of bytes.
    pub(super) fn of(most: usize) -> Self {
        Self {
            left: most,
            taken: HashMap::new(),
            shares: Shares::default(),
            ids: HashMap::new(),
        }
    }

    /// Takes room for a text of a Secret, in place of what it had: whether there is room, and the Secrets whose texts
    /// have to go for it.
    pub(super) fn take(&mut self, id: Id, namespace: &Arc<str>, bytes: usize) -> (bool, Vec<Id>) {
        self.free(id);
        let mut gone = Vec::new();
        while self.left < bytes {
            let own = self.shares.of(namespace);
            let larger = self.shares.more_than(own + bytes);
            let larger = larger.and_then(|namespace| self.ids.get(namespace));
            let Some(last) = larger.and_then(|ids| ids.last().copied()) else {
                return (false, gone);
            };
            self.free(last);
            gone.push(last);
        }
        self.left -= bytes;
        let own = self.shares.of(namespace);
        self.shares.set(namespace, own + bytes);
        let ids = self.ids.entry(Arc::clone(namespace)).or_default();
        ids.insert(id);
        self.taken.insert(id, (Arc::clone(namespace), bytes));
        (true, gone)
    }

    /// Leaves a Secret so much of what it takes.
    pub(super) fn reduce(&mut self, id: Id, bytes: usize) {
        let Some((namespace, taken)) = self.taken.get(&id) else {
            return;
        };
        let (namespace, bytes) = (Arc::clone(namespace), bytes.min(*taken));
        self.free(id);
        if bytes > 0 {
            self.take(id, &namespace, bytes);
        }
    }

    /// Gives back what a Secret takes.
    pub(super) fn free(&mut self, id: Id) {
        let Some((namespace, bytes)) = self.taken.remove(&id) else {
            return;
        };
        self.left += bytes;
        let own = self.shares.of(&namespace);
        self.shares.set(&namespace, own - bytes);
        if let Some(ids) = self.ids.get_mut(&namespace) {
            ids.remove(&id);
            if ids.is_empty() {
                self.ids.remove(&namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_that_takes_most_gives_way() {
        let (hostile, shop): (Arc<str>, Arc<str>) = ("aaa".into(), "shop".into());
        let mut room = Room::of(1_000);
        for id in 0..10 {
            assert_eq!(room.take(id, &hostile, 100), (true, vec![]));
        }
        assert_eq!(room.take(10, &hostile, 100), (false, vec![]));
        for (id, goes) in (20..24).zip([9, 8, 7, 6]) {
            assert_eq!(room.take(id, &shop, 100), (true, vec![goes]));
        }
        room.take(24, &shop, 100);
        assert_eq!(room.take(25, &shop, 100), (false, vec![]), "half each");
        room.free(20);
        assert_eq!(
            room.take(20, &shop, 50),
            (true, vec![]),
            "what is free is nobody's"
        );
    }

    #[test]
    fn what_is_given_back_is_free() {
        let shop: Arc<str> = "shop".into();
        let mut room = Room::of(100);
        room.take(1, &shop, 60);
        room.take(1, &shop, 100);
        assert_eq!(room.left, 0);
        room.free(1);
        room.free(1);
        assert_eq!((room.left, room.ids.len(), room.taken.len()), (100, 0, 0));
        assert!(room.shares.order.is_empty() && room.shares.of.is_empty());
        room.take(1, &shop, 60);
        room.reduce(1, 70);
        assert_eq!(room.left, 40);
        room.reduce(1, 10);
        room.reduce(2, 10);
        assert_eq!((room.left, room.shares.of(&shop)), (90, 10));
        room.reduce(1, 0);
        assert_eq!((room.left, room.shares.of(&shop)), (100, 0));
    }
}

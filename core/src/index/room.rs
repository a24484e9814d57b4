//! Bounded room for texts of Secrets, shared by namespaces: the one that takes most gives way to those that take less.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::table::Id;

/// The room, and who takes how much of it.
#[derive(Debug)]
pub(super) struct Room {
    left: usize,
    taken: HashMap<Id, (Arc<str>, usize)>,
    spaces: HashMap<Arc<str>, Space>,
}

/// What one namespace takes.
#[derive(Debug, Default)]
struct Space {
    bytes: usize,
    ids: BTreeSet<Id>,
}

impl Room {
    /// Room for this number of bytes.
    pub(super) fn of(most: usize) -> Self {
        Self {
            left: most,
            taken: HashMap::new(),
            spaces: HashMap::new(),
        }
    }

    /// Takes room for a text of a Secret, in place of what it had: whether there is room, and the Secrets whose texts
    /// have to go for it.
    pub(super) fn take(&mut self, id: Id, namespace: &Arc<str>, bytes: usize) -> (bool, Vec<Id>) {
        self.free(id);
        let mut gone = Vec::new();
        while self.left < bytes {
            let own = self.spaces.get(namespace).map_or(0, |space| space.bytes);
            let largest = self.spaces.values().max_by_key(|space| space.bytes);
            let larger = largest.filter(|space| space.bytes > own + bytes);
            let Some(last) = larger.and_then(|space| space.ids.last().copied()) else {
                return (false, gone);
            };
            self.free(last);
            gone.push(last);
        }
        self.left -= bytes;
        let space = self.spaces.entry(Arc::clone(namespace)).or_default();
        space.bytes += bytes;
        space.ids.insert(id);
        self.taken.insert(id, (Arc::clone(namespace), bytes));
        (true, gone)
    }

    /// Gives back what a Secret takes.
    pub(super) fn free(&mut self, id: Id) {
        let Some((namespace, bytes)) = self.taken.remove(&id) else {
            return;
        };
        self.left += bytes;
        if let Some(space) = self.spaces.get_mut(&namespace) {
            space.bytes -= bytes;
            space.ids.remove(&id);
            if space.ids.is_empty() {
                self.spaces.remove(&namespace);
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
        assert_eq!(
            (room.left, room.spaces.len(), room.taken.len()),
            (100, 0, 0)
        );
    }
}

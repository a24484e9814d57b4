//! The texts of problems, of the few Secrets that have some: bounded by their bytes. Those that a Secret shows by itself
//! come with the watch; those that were looked up in the cluster come later, and are counted here too. The namespaces share the room.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::room::Room;
use super::table::Id;

/// Most bytes of all texts: some thousand Secrets. What finds no room is counted on the entry, and an Event names it.
const MOST: usize = 1024 * 1024;
/// Most Secrets whose looked-up problems are counted: of each namespace its share.
const MOST_FOUND: usize = 10_000;

/// The texts by Secret.
#[derive(Debug)]
pub(super) struct Problems {
    texts: HashMap<Id, Box<str>>,
    /// Those that were looked up.
    found: HashMap<Id, Found>,
    room: Room,
    /// Places in `found`.
    places: Room,
}

/// The problems of a Secret that were looked up.
#[derive(Debug)]
struct Found {
    count: u16,
    /// Empty if there was no room.
    text: Box<str>,
}

impl Default for Problems {
    fn default() -> Self {
        Self {
            texts: HashMap::new(),
            found: HashMap::new(),
            room: Room::of(MOST),
            places: Room::of(MOST_FOUND),
        }
    }
}

impl Problems {
    /// Replaces the problems of a Secret; each is one line, as foreign text is quoted in it.
    pub(super) fn set(&mut self, id: Id, namespace: &Arc<str>, texts: &[String]) {
        self.texts.remove(&id);
        let text = texts.join("\n");
        let found = self.found.get(&id).map_or(0, |found| found.text.len());
        if self.takes(id, namespace, text.len() + found) && !text.is_empty() {
            self.texts.insert(id, text.into());
        }
    }

    /// Replaces the problems of a Secret that were looked up.
    pub(super) fn find(&mut self, id: Id, namespace: &Arc<str>, texts: &[String]) {
        self.found.remove(&id);
        self.places.free(id);
        let count = u16::try_from(texts.len()).unwrap_or(u16::MAX);
        let has_place = count > 0 && self.takes_place(id, namespace);
        let text = if has_place {
            texts.join("\n")
        } else {
            String::new()
        };
        let own = self.texts.get(&id).map_or(0, |text| text.len());
        let fits = self.takes(id, namespace, own + text.len());
        if has_place {
            let text: Box<str> = if fits { text.into() } else { "".into() };
            self.found.insert(id, Found { count, text });
        }
    }

    /// Takes a place among those whose looked-up problems are counted: whether there is one.
    fn takes_place(&mut self, id: Id, namespace: &Arc<str>) -> bool {
        let (has_place, gone) = self.places.take(id, namespace, 1);
        for other in gone {
            self.found.remove(&other);
            let own = self.texts.get(&other).map_or(0, |text| text.len());
            self.room.reduce(other, own);
        }
        has_place
    }

    /// Takes the room for the texts of a Secret: whether there is any. If not, it has none left.
    fn takes(&mut self, id: Id, namespace: &Arc<str>, bytes: usize) -> bool {
        if bytes == 0 {
            self.room.free(id);
            return true;
        }
        let (fits, mut gone) = self.room.take(id, namespace, bytes);
        if !fits {
            gone.push(id);
        }
        for other in gone {
            self.texts.remove(&other);
            if let Some(found) = self.found.get_mut(&other) {
                found.text = "".into();
            }
        }
        fits
    }

    /// Drops the problems of a Secret.
    pub(super) fn forget(&mut self, id: Id) {
        self.texts.remove(&id);
        self.found.remove(&id);
        self.room.free(id);
        self.places.free(id);
    }

    /// The number of those that were looked up.
    pub(super) fn found(&self, id: Id) -> u16 {
        self.found.get(&id).map_or(0, |found| found.count)
    }

    /// All texts that are kept, one a line.
    pub(super) fn get(&self, id: Id) -> Option<Cow<'_, str>> {
        let own = self.texts.get(&id).map(|text| &**text);
        let found = self.found.get(&id).map(|found| &*found.text);
        match (own, found.filter(|text| !text.is_empty())) {
            (Some(own), Some(found)) => Some(format!("{own}\n{found}").into()),
            (own, found) => own.or(found).map(Cow::Borrowed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_up_to_their_bytes_and_make_room_when_they_go() {
        let mut problems = Problems::default();
        let shop: Arc<str> = "shop".into();
        let long = ["x".repeat(MOST / 2)];
        let short = ["one".to_owned(), "two".to_owned()];
        problems.set(1, &shop, &long);
        problems.set(2, &shop, &long);
        problems.set(3, &shop, &short);
        assert_eq!(problems.get(3), None, "no room");
        problems.set(1, &shop, &[]);
        assert_eq!(problems.get(1), None);
        problems.set(3, &shop, &short);
        assert_eq!(problems.get(3).as_deref(), Some("one\ntwo"));
        problems.find(3, &shop, &["three".to_owned()]);
        assert_eq!(problems.get(3).as_deref(), Some("one\ntwo\nthree"));
        problems.set(3, &shop, &[]);
        assert_eq!(
            (problems.get(3).as_deref(), problems.found(3)),
            (Some("three"), 1)
        );
        problems.find(4, &shop, &long);
        assert_eq!(
            (problems.get(4), problems.found(4)),
            (None, 1),
            "counted without room"
        );
        for id in 1..5 {
            problems.forget(id);
        }
        problems.set(5, &shop, &["x".repeat(MOST)]);
        assert_eq!(problems.get(5).map(|text| text.len()), Some(MOST));
    }

    #[test]
    fn a_namespace_that_was_first_leaves_room_for_others() {
        let mut problems = Problems::default();
        let (hostile, shop): (Arc<str>, Arc<str>) = ("aaa".into(), "shop".into());
        let text = ["x".repeat(1_024)];
        for id in 0..2_000 {
            problems.set(id, &hostile, &text);
        }
        for id in 2_000..2_300 {
            problems.set(id, &shop, &text);
        }
        let kept = (2_000..2_300).filter(|id| problems.get(*id).is_some());
        assert_eq!(kept.count(), 300);
        let bytes: usize = problems.texts.values().map(|text| text.len()).sum();
        assert!(bytes <= MOST, "{bytes}");
    }

    #[test]
    fn a_namespace_with_very_many_problems_hides_none_that_were_looked_up_for_others() {
        let mut problems = Problems::default();
        let (hostile, shop): (Arc<str>, Arc<str>) = ("aaa".into(), "shop".into());
        let text = ["no such Service".to_owned()];
        let (most, others) = (u32::try_from(MOST_FOUND).unwrap(), 40);
        for id in 0..most + 100 {
            problems.find(id, &hostile, &text);
        }
        for id in 2 * most..2 * most + others {
            problems.find(id, &shop, &text);
        }
        let counted = |ids: std::ops::Range<u32>| ids.filter(|id| problems.found(*id) == 1).count();
        assert_eq!(counted(2 * most..2 * most + others), 40);
        assert_eq!(counted(0..2 * most), MOST_FOUND - 40);
        let bytes: usize = problems.found.values().map(|found| found.text.len()).sum();
        assert_eq!(bytes, MOST_FOUND * text[0].len());
        for id in 0..3 * most {
            problems.forget(id);
        }
        assert!(problems.found.is_empty());
        assert!(problems.room.take(1, &shop, MOST).0, "all is given back");
    }
}

//! The texts of problems, of the few Secrets that have some: bounded by their bytes. Those that a Secret shows by itself
//! come with the watch; those that were looked up in the cluster come later, and are counted here too.

use std::borrow::Cow;
use std::collections::HashMap;

use super::table::Id;

/// Most bytes of all texts: some thousand Secrets. What finds no room is counted on the entry, and an Event names it.
const MOST: usize = 1024 * 1024;
/// Most Secrets whose looked-up problems are counted.
const MOST_FOUND: usize = 10_000;

/// The texts by Secret.
#[derive(Debug, Default)]
pub(super) struct Problems {
    texts: HashMap<Id, Box<str>>,
    /// Those that were looked up.
    found: HashMap<Id, Found>,
    bytes: usize,
}

/// The problems of a Secret that were looked up.
#[derive(Debug)]
struct Found {
    count: u16,
    /// Empty if there was no room.
    text: Box<str>,
}

impl Problems {
    /// Replaces the problems of a Secret; each is one line, as foreign text is quoted in it.
    pub(super) fn set(&mut self, id: Id, texts: &[String]) {
        if let Some(former) = self.texts.remove(&id) {
            self.bytes -= former.len();
        }
        let text = texts.join("\n");
        if text.is_empty() || self.bytes + text.len() > MOST {
            return;
        }
        self.bytes += text.len();
        self.texts.insert(id, text.into());
    }

    /// Replaces the problems of a Secret that were looked up.
    pub(super) fn find(&mut self, id: Id, texts: &[String]) {
        if let Some(former) = self.found.remove(&id) {
            self.bytes -= former.text.len();
        }
        let Some(count) = u16::try_from(texts.len()).ok().filter(|count| *count > 0) else {
            return;
        };
        if self.found.len() >= MOST_FOUND {
            return;
        }
        let text = texts.join("\n");
        let has_room = self.bytes + text.len() <= MOST;
        let text: Box<str> = if has_room { text.into() } else { "".into() };
        self.bytes += text.len();
        self.found.insert(id, Found { count, text });
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
        let long = ["x".repeat(MOST / 2)];
        problems.set(1, &long);
        problems.set(2, &long);
        problems.set(3, &["one".to_owned(), "two".to_owned()]);
        assert_eq!(problems.get(3), None, "no room");
        problems.set(1, &[]);
        assert_eq!((problems.get(1), problems.bytes), (None, MOST / 2));
        problems.set(3, &["one".to_owned(), "two".to_owned()]);
        assert_eq!(problems.get(3).as_deref(), Some("one\ntwo"));
        problems.find(3, &["three".to_owned()]);
        assert_eq!(problems.get(3).as_deref(), Some("one\ntwo\nthree"));
        problems.set(3, &[]);
        assert_eq!(
            (problems.get(3).as_deref(), problems.found(3)),
            (Some("three"), 1)
        );
        problems.find(4, &long);
        problems.find(5, &long);
        assert_eq!(
            (problems.get(5), problems.found(5)),
            (None, 1),
            "counted without room"
        );
        for id in 2..6 {
            problems.set(id, &[]);
            problems.find(id, &[]);
        }
        assert_eq!((problems.bytes, problems.found(3)), (0, 0));
    }
}

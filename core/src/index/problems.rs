//! The texts of problems, of the few Secrets that have some: bounded by their bytes.

use std::collections::HashMap;

use super::table::Id;

/// Most bytes of all texts: some thousand Secrets. What finds no room is counted on the entry, and an Event names it.
const MOST: usize = 1024 * 1024;

/// The texts by Secret.
#[derive(Debug, Default)]
pub(super) struct Problems {
    texts: HashMap<Id, Box<str>>,
    bytes: usize,
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

    pub(super) fn get(&self, id: Id) -> Option<&str> {
        self.texts.get(&id).map(|text| &**text)
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
        assert_eq!(problems.get(3), Some("one\ntwo"));
    }
}

//! What is remembered of single Secrets in memory: bounded in all, and where that is full, the namespace that has most makes
//! room, so that none takes what another is told.

use std::collections::{HashMap, VecDeque};

/// Namespace and name.
pub type Place = (Box<str>, Box<str>);

/// Items of Secrets, in the order in which they came.
#[derive(Debug)]
pub struct Fair<T> {
    items: VecDeque<(Place, T)>,
    /// How many each namespace has.
    counts: HashMap<Box<str>, usize>,
    most: usize,
}

impl<T> Fair<T> {
    /// Nothing yet, and never more than `most`.
    #[must_use]
    pub fn of_at_most(most: usize) -> Self {
        Self {
            items: VecDeque::new(),
            counts: HashMap::new(),
            most,
        }
    }

    /// Adds an item of a Secret.
    pub fn add(&mut self, (namespace, name): (&str, &str), item: T) {
        if self.items.len() >= self.most {
            self.make_room();
        }
        *self.counts.entry(namespace.into()).or_default() += 1;
        self.items
            .push_back(((namespace.into(), name.into()), item));
    }

    /// Adds an item of a Secret in place of those that it has.
    pub fn set(&mut self, place: (&str, &str), item: T) {
        self.forget(place);
        self.add(place, item);
    }

    /// Drops the items of a Secret.
    pub fn forget(&mut self, place: (&str, &str)) {
        while let Some(at) = self.items.iter().position(|(it, _)| is(it, place)) {
            self.remove(at);
        }
    }

    /// Takes all items, each with namespace and name of its Secret, in the order in which they came.
    pub fn take(&mut self) -> impl Iterator<Item = (Place, T)> + use<T> {
        self.counts.clear();
        std::mem::take(&mut self.items).into_iter()
    }

    /// The items of a Secret, the latest first.
    pub fn of<'a>(&'a self, place: (&'a str, &'a str)) -> impl Iterator<Item = &'a T> {
        let items = self.items.iter().rev();
        items.filter_map(move |(it, item)| is(it, place).then_some(item))
    }

    /// The number of items of all Secrets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Drops the oldest of the namespace that has most.
    fn make_room(&mut self) {
        let counts = self.counts.iter();
        let Some((most, _)) = counts.max_by_key(|(_, count)| **count) else {
            return;
        };
        if let Some(at) = self.items.iter().position(|((it, _), _)| it == most) {
            self.remove(at);
        }
    }

    fn remove(&mut self, at: usize) {
        let Some(((namespace, _), _)) = self.items.remove(at) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&namespace) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&namespace);
            }
        }
    }
}

fn is(place: &Place, (namespace, name): (&str, &str)) -> bool {
    *place.0 == *namespace && *place.1 == *name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_that_has_most_makes_room() {
        let mut fair = Fair::of_at_most(3);
        fair.add(("shop", "a"), 1);
        for item in 2..9 {
            fair.add(("loud", "a"), item);
        }
        assert_eq!(fair.of(("shop", "a")).collect::<Vec<_>>(), [&1]);
        assert_eq!(fair.of(("loud", "a")).collect::<Vec<_>>(), [&8, &7]);
        fair.set(("loud", "a"), 9);
        assert_eq!(fair.of(("loud", "a")).collect::<Vec<_>>(), [&9]);
        assert_eq!((fair.len(), fair.counts["loud"]), (2, 1));
        fair.set(("shop", "b"), 10);
        assert_eq!((fair.len(), fair.counts["shop"]), (3, 2));
        fair.forget(("shop", "a"));
        let taken: Vec<(Place, i32)> = fair.take().collect();
        let place = |namespace: &str, name: &str| -> Place { (namespace.into(), name.into()) };
        assert_eq!(taken, [(place("loud", "a"), 9), (place("shop", "b"), 10)]);
        assert!(fair.is_empty() && fair.counts.is_empty());
    }
}

//! The queue of what falls due, in ten bytes a task: nearly each of a hundred thousand Secrets has one.

use std::collections::BTreeSet;

use super::entry::Task;
use super::table::Id;
use crate::secret::object::compact::Instant;
use crate::time::UnixTime;

/// The tasks that wait for their instant, in the order of these.
#[derive(Debug, Default)]
pub(super) struct Queue(BTreeSet<Place>);

/// Instant, task and number of the entry: the order of the bytes is that of the queue.
type Place = [u8; 10];

impl Queue {
    /// Number of tasks.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The earliest task.
    pub(super) fn first(&self) -> Option<(UnixTime, Task, Id)> {
        let [a, b, c, d, e, task, id @ ..] = *self.0.first()?;
        let at = Instant::from_order([a, b, c, d, e]);
        let task = if task == Task::Renew as u8 {
            Task::Renew
        } else {
            Task::Roll
        };
        Some((at.into(), task, Id::from_be_bytes(id)))
    }

    /// A task waits for its instant.
    pub(super) fn insert(&mut self, at: UnixTime, task: Task, id: Id) {
        self.0.insert(place(at, task, id));
    }

    /// A task waits no more; does nothing if it did not.
    pub(super) fn remove(&mut self, at: UnixTime, task: Task, id: Id) {
        self.0.remove(&place(at, task, id));
    }

    /// No task waits any more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

fn place(at: UnixTime, task: Task, id: Id) -> Place {
    let [a, b, c, d, e] = Instant::from(at).in_order();
    let [f, g, h, i] = id.to_be_bytes();
    [a, b, c, d, e, task as u8, f, g, h, i]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_as_it_was() {
        let instants = [
            -62_135_596_800,
            -256,
            -1,
            0,
            1,
            255,
            256,
            1_764_000_000,
            253_402_300_799,
        ];
        let mut all = Vec::new();
        for at in instants {
            for task in [Task::Renew, Task::Roll] {
                for id in [0, 1, 255, 256, Id::MAX] {
                    all.push((UnixTime(at), task, id));
                }
            }
        }
        let mut queue = Queue::default();
        for (at, task, id) in all.iter().rev() {
            queue.insert(*at, *task, *id);
        }
        assert_eq!(queue.len(), all.len());
        for (at, task, id) in all {
            assert_eq!(queue.first(), Some((at, task, id)));
            queue.remove(at, task, id);
        }
        assert_eq!(queue.first(), None);
    }

    /// An entry holds its instants as they are held here, so that one in a far future is found again.
    #[test]
    fn what_is_as_far_as_an_entry_can_hold_is_found_again() {
        let mut queue = Queue::default();
        let far = UnixTime(i64::MAX - 1);
        queue.insert(far, Task::Roll, 7);
        queue.remove(Instant::from(far).into(), Task::Roll, 7);
        queue.remove(UnixTime::NEVER, Task::Roll, 7);
        assert_eq!(queue.first(), None);
    }
}

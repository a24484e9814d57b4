//! What the attack has really done: a part of it that fails without a word would prove nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Counts of what happens in the scene.
#[derive(Clone, Default)]
pub(super) struct Tally(Arc<Mutex<Vec<Counted>>>);

/// What is counted, what is expected of it, and how often it has happened.
type Counted = (&'static str, Expected, Count);

/// How often one thing has happened.
#[derive(Clone, Default)]
pub(super) struct Count(Arc<AtomicU64>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Once at least.
    Once,
    /// It may, since the operator owes the tenant nothing.
    Perhaps,
    Never,
}

impl Tally {
    /// Begins to count what the attack does, which has to happen once at least.
    pub(super) fn of(&self, what: &'static str) -> Count {
        self.add(what, Expected::Once)
    }

    /// Begins to count how far the operator comes with the tenant's own.
    pub(super) fn perhaps(&self, what: &'static str) -> Count {
        self.add(what, Expected::Perhaps)
    }

    /// Begins to count what must not happen.
    pub(super) fn never(&self, what: &'static str) -> Count {
        self.add(what, Expected::Never)
    }

    fn add(&self, what: &'static str, expected: Expected) -> Count {
        let count = Count::default();
        self.0.lock().push((what, expected, count.clone()));
        count
    }

    /// Prints all counts; what has happened and must not, and in a scene that was long enough also what has not happened.
    pub(super) fn faults(&self, is_long: bool) -> Vec<&'static str> {
        let all = self.0.lock();
        let mut faults = Vec::new();
        for (what, expected, count) in all.iter() {
            let times = count.get();
            eprintln!("hostile: {what}: {times}");
            let is_fault = match expected {
                Expected::Once => times == 0 && is_long,
                Expected::Perhaps => false,
                Expected::Never => times > 0,
            };
            if is_fault {
                faults.push(*what);
            }
        }
        faults
    }
}

impl Count {
    /// Counts one, if it has happened.
    pub(super) fn add_if(&self, happened: bool) {
        self.0.fetch_add(u64::from(happened), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

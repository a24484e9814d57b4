//! Clocks of a simulation, in place of the machine's, for the thread that sets them. Compiled for tests only.

use std::cell::Cell;
use std::time::Duration;

/// What the two clocks show.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// The wall clock, unix seconds.
    pub wall: i64,
    /// The time since boot.
    pub boot: Duration,
}

thread_local! {
    static SOURCE: Cell<Option<fn() -> Clocks>> = const { Cell::new(None) };
}

/// Takes the clocks of this thread from `source` from now on.
pub fn set(source: fn() -> Clocks) {
    SOURCE.set(Some(source));
}

/// The simulated clocks, if this thread has any.
pub(super) fn now() -> Option<Clocks> {
    SOURCE.get().map(|source| source())
}

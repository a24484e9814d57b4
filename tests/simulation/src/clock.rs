//! The time of a run: tokio's paused clock, which moves to the next timer whenever nothing else is to be done.

use std::cell::Cell;
use std::time::Duration;

use cert_renew_core::time::simulated::{self, Clocks};
use tokio::time::Instant;

/// When every run begins: 2026-12-01T00:00:00Z.
const BEGINNING: i64 = 1_796_083_200;
/// Time since boot at that instant.
const BOOTED: Duration = Duration::from_secs(1_000);

thread_local! {
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
    static SET_BY: Cell<i64> = const { Cell::new(0) };
}

/// Begins the time of this thread's run.
pub fn begin() {
    BEGUN.set(Some(Instant::now()));
    SET_BY.set(0);
    simulated::set(read);
}

/// Time since the beginning.
#[must_use]
pub fn passed() -> Duration {
    BEGUN.get().map_or(Duration::ZERO, |begun| begun.elapsed())
}

/// Seconds of the world's wall clock, which is right.
#[must_use]
pub fn now() -> i64 {
    BEGINNING + i64::try_from(passed().as_secs()).unwrap_or(i64::MAX)
}

/// Sets the wall clock of the operator's machine by this many seconds.
pub fn jump(seconds: i64) {
    SET_BY.set(SET_BY.get() + seconds);
}

/// The clocks of the operator's machine.
fn read() -> Clocks {
    Clocks {
        wall: now() + SET_BY.get(),
        boot: BOOTED + passed(),
    }
}

/// `12d 03:04:05.678`, since the beginning.
#[must_use]
pub fn stamp() -> String {
    let passed = passed();
    let seconds = passed.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    let thousandths = passed.subsec_millis();
    format!("{days:>4}d {hours:02}:{minutes:02}:{rest:02}.{thousandths:03}")
}

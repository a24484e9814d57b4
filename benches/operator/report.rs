//! Progress and percentiles; the figures themselves are the bench's [`Report`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(crate) use test_bench::report::Report;

/// How often a line tells how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// The part of sorted `values` that lies at `share`, in milliseconds.
pub(crate) fn percentile(values: &mut [Duration], share: f64) -> f64 {
    values.sort_unstable();
    let at = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values
        .get(at)
        .map_or(f64::NAN, |value| value.as_secs_f64() * 1e3)
}

/// Says now and then how many of how many are done.
pub(crate) struct Progress {
    what: String,
    total: usize,
    done: AtomicUsize,
    began: Instant,
    told: AtomicUsize,
}

impl Progress {
    /// Nothing is done yet.
    pub(crate) fn new(what: impl Into<String>, total: usize) -> Self {
        Self {
            what: what.into(),
            total,
            done: AtomicUsize::new(0),
            began: Instant::now(),
            told: AtomicUsize::new(0),
        }
    }

    /// The next number to work on, until all are taken.
    pub(crate) fn next(&self) -> Option<usize> {
        let next = self.done.fetch_add(1, Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs();
        let turn = usize::try_from(seconds / PROGRESS.as_secs()).unwrap_or_default();
        if self.told.fetch_max(turn, Ordering::Relaxed) < turn {
            eprintln!(
                "  {}: {next} of {} after {seconds} s",
                self.what, self.total
            );
        }
        (next < self.total).then_some(next)
    }
}

/// A step begins.
pub(crate) fn say(what: &str) {
    eprintln!("bench: {what}");
}

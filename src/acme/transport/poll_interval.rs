//! Delay before the first poll of a CA: learned from the time it has recently needed.
//!
//! A poll that comes too early costs a request, one that comes too late costs time. The delay grows by an eighth if the
//! first poll was too early and shrinks by a thirty-second if not, so that about one in five is too early: there the
//! two costs balance, as the second poll comes soon. A Retry-After of the CA is obeyed, and nothing is learned from it.
//! The only state is one interval, shared by all orders of an issuer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Shortest delay: enough for a CA without validation delay, and Pebble deadlocks when polled faster.
pub(in crate::acme) const SHORTEST: Duration = Duration::from_millis(100);
/// Longest delay: a validation from several places takes some seconds.
pub(in crate::acme) const LONGEST: Duration = Duration::from_secs(5);
/// Time from the first poll to the second; each further interval is twice the one before it, up to [`LONGEST`].
pub(in crate::acme) const SECOND: Duration = Duration::from_millis(200);

/// The learned delay, in microseconds.
#[derive(Debug)]
pub(in crate::acme) struct PollInterval(AtomicU64);

impl Default for PollInterval {
    fn default() -> Self {
        Self(AtomicU64::new(micros(SHORTEST)))
    }
}

impl PollInterval {
    /// Delay before the first poll, from [`SHORTEST`] to [`LONGEST`].
    pub(in crate::acme) fn first(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    /// Records that the CA was done at the first poll.
    pub(in crate::acme) fn in_time(&self) {
        self.change(|pause| pause - pause / 32);
    }

    /// Records that the CA was done not at the first poll, but at most this long after the wait began.
    pub(in crate::acme) fn too_early(&self, done_by: Duration) {
        let done_by = micros(done_by);
        self.change(|pause| (pause + pause / 8).max(done_by / 4).min(done_by));
    }

    fn change(&self, change: impl Fn(u64) -> u64) {
        let bounded = |pause| Some(change(pause).clamp(micros(SHORTEST), micros(LONGEST)));
        // Never fails: the function always returns a value.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, bounded);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of polls, and time lost after the CA was done, for an order that takes this long.
    fn order(pace: &PollInterval, takes: Duration) -> (u32, Duration) {
        let (mut at, mut polls, mut pause) = (pace.first(), 1, SECOND);
        while at < takes {
            at += pause;
            pause = (pause * 2).min(LONGEST);
            polls += 1;
        }
        match polls {
            1 => pace.in_time(),
            _ => pace.too_early(at),
        }
        (polls, at - takes)
    }

    /// The mean of both over a thousand orders, after learning; each takes between `least` and `most`.
    fn learned(least: u64, most: u64) -> (f64, Duration) {
        let (pace, mut polls, mut lost) = (PollInterval::default(), 0, Duration::ZERO);
        for number in 0..1_100_u64 {
            // Evenly distributed, and not in order.
            let takes = least + (most - least) * (number * 37 % 100) / 100;
            let (asked, late) = order(&pace, Duration::from_millis(takes));
            if number >= 100 {
                polls += asked;
                lost += late;
            }
        }
        (f64::from(polls) / 1_000.0, lost / 1_000)
    }

    #[test]
    fn a_quick_ca_is_polled_once_and_not_later_than_ever() {
        let (polls, lost) = learned(10, 90);
        assert!(polls < 1.001 && lost < SHORTEST, "{polls} {lost:?}");
        // One in ten is late: the delay does not grow for it.
        let pace = PollInterval::default();
        for number in 0..200 {
            let takes = if number % 10 == 0 { 150 } else { 50 };
            order(&pace, Duration::from_millis(takes));
            assert!(
                pace.first() < Duration::from_millis(120),
                "{:?}",
                pace.first()
            );
        }
    }

    #[test]
    fn a_slower_ca_is_asked_seldom_too_early_and_hardly_later_for_it() {
        for (least, most) in [(110, 200), (150, 400), (1_000, 3_000)] {
            let (polls, lost) = learned(least, most);
            let fixed = PollInterval::default();
            let (mut fixed_polls, mut fixed_lost) = (0, Duration::ZERO);
            for number in 0..100_u64 {
                let takes = least + (most - least) * number / 100;
                let (asked, late) = order(&fixed, Duration::from_millis(takes));
                (fixed_polls, fixed_lost) = (fixed_polls + asked, fixed_lost + late);
                fixed.0.store(micros(SHORTEST), Ordering::Relaxed);
            }
            let fixed_polls = f64::from(fixed_polls) / 100.0;
            assert!(
                polls < 1.4 && polls < fixed_polls,
                "{polls} of {fixed_polls}"
            );
            let fixed_lost = fixed_lost / 100;
            assert!(
                lost < fixed_lost * 6 / 5,
                "{lost:?} instead of {fixed_lost:?}"
            );
        }
    }
}

//! A rate limiter for one host: spaces requests by the interval of the config.
//!
//! Each request waits for its slot; slots are given in the order of the calls. It refuses nothing and has no deadline:
//! the caller bounds the wait. Unused slots are not saved, so after a quiet hour no more requests go out in a second
//! than in any other.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// The slots of one host; clones share them, each with its own interval. The default has none: no request waits.
#[derive(Clone, Debug, Default)]
pub struct RateLimiter {
    /// The first free slot.
    next: Arc<Mutex<Option<Instant>>>,
    apart: Duration,
}

impl RateLimiter {
    /// The same slots with this number of requests a second; 0 is unlimited.
    #[must_use]
    pub fn per_second(&self, requests: u32) -> Self {
        let apart = Duration::from_secs(1).checked_div(requests);
        Self {
            next: Arc::clone(&self.next),
            apart: apart.unwrap_or_default(),
        }
    }

    /// The minimum time for this number of requests.
    pub(in crate::acme) fn taken_by(&self, requests: usize) -> Duration {
        self.apart * u32::try_from(requests).unwrap_or(u32::MAX)
    }

    /// Returns when the request may be sent. The slot of a dropped wait stays unused.
    pub(in crate::acme) async fn wait(&self) {
        let now = Instant::now();
        let at = {
            let mut next = self.next.lock();
            let at = next.map_or(now, |next| next.max(now));
            *next = Some(at + self.apart);
            at
        };
        // A timer that is already due would cost a millisecond.
        if at > now {
            sleep_until(at).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_that_come_together_go_one_after_the_other_and_none_is_saved_up() {
        let ten = RateLimiter::default().per_second(10);
        let two = ten.per_second(2);
        let began = Instant::now();
        let mut sent = Vec::new();
        for _ in 0..3 {
            ten.wait().await;
            sent.push(began.elapsed().as_millis());
        }
        // Another issuer of the same host shares the slots.
        for _ in 0..2 {
            two.wait().await;
            sent.push(began.elapsed().as_millis());
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let quiet = Instant::now();
        let together = futures::future::join_all((0..11).map(|_| ten.wait()));
        together.await;
        assert_eq!(sent, [0, 100, 200, 300, 800]);
        assert_eq!(quiet.elapsed().as_millis(), 1_000);
        // Without a limit nothing waits.
        let any = RateLimiter::default();
        for _ in 0..1_000 {
            any.wait().await;
        }
        assert_eq!(quiet.elapsed().as_millis(), 1_000);
        assert_eq!(ten.taken_by(25), Duration::from_millis(2_500));
    }
}

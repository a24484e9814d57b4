//! Limits what one namespace, or one address, may cause, so that it cannot fill the log and the Events of all.
//!
//! A token bucket: a burst, then one at a time, by default one a second. For messages the burst is large enough for one
//! per Secret of a full namespace. Pure; the clock is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Time until one token comes back, where nothing else is said.
const EACH: Duration = Duration::from_secs(1);

/// Most keys that are remembered before those with a full bucket are forgotten.
const FORGET: usize = 1_024;

/// A token bucket for each key: a namespace, or an address.
#[derive(Debug)]
pub struct TokenBucket {
    at_once: u32,
    /// Time until one token comes back.
    each: Duration,
    buckets: HashMap<Box<str>, Spent>,
}

#[derive(Debug)]
struct Spent {
    /// When the bucket is full again.
    until: Instant,
    left_out: u64,
}

impl TokenBucket {
    /// Buckets of this size, into which one token a second comes back.
    #[must_use]
    pub fn new(at_once: u32) -> Self {
        Self::every(at_once, EACH)
    }

    /// Buckets of this size, into which one token comes back in each such time.
    #[must_use]
    pub fn every(at_once: u32, each: Duration) -> Self {
        Self {
            at_once,
            each,
            buckets: HashMap::new(),
        }
    }

    /// Whether one more is allowed.
    pub fn take(&mut self, now: Instant, key: &str) -> bool {
        let most = now + self.each * self.at_once;
        let Some(spent) = self.buckets.get_mut(key) else {
            if self.buckets.len() % FORGET == FORGET - 1 {
                self.buckets.retain(|_, spent| spent.until > now);
            }
            let spent = Spent {
                until: now + self.each,
                left_out: 0,
            };
            self.buckets.insert(key.into(), spent);
            return true;
        };
        let until = spent.until.max(now) + self.each;
        let may = until <= most;
        if may {
            spent.until = until;
        } else {
            spent.left_out += 1;
        }
        may
    }

    /// How many were not allowed since the last call, by key. Forgets keys with a full bucket.
    pub fn left_out(&mut self, now: Instant) -> Vec<(Box<str>, u64)> {
        let mut found = Vec::new();
        self.buckets.retain(|key, spent| {
            if spent.left_out > 0 {
                found.push((key.clone(), std::mem::take(&mut spent.left_out)));
            }
            spent.until > now
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespace_uses_up_its_own_allowance_only() {
        let start = Instant::now();
        let mut allowance = TokenBucket::new(3);
        let said = |allowance: &mut TokenBucket, after: u64, namespace: &str| {
            let now = start + Duration::from_secs(after);
            (0..10).filter(|_| allowance.take(now, namespace)).count()
        };
        assert_eq!(said(&mut allowance, 0, "loud"), 3);
        assert_eq!(said(&mut allowance, 0, "quiet"), 3);
        assert_eq!(said(&mut allowance, 1, "loud"), 1);
        assert_eq!(said(&mut allowance, 100, "loud"), 3);
        let mut left_out = allowance.left_out(start + Duration::from_secs(100));
        left_out.sort_unstable();
        assert_eq!(left_out, [("loud".into(), 23), ("quiet".into(), 7)]);
        assert_eq!(allowance.left_out(start + Duration::from_secs(200)), []);
        assert!(allowance.buckets.is_empty(), "nothing is kept for ever");
        let mut faster = TokenBucket::every(3, Duration::from_millis(100));
        assert_eq!(said(&mut faster, 0, "loud"), 3);
        assert_eq!(said(&mut faster, 1, "loud"), 3);
        for number in 0..10 * FORGET {
            let now = start + Duration::from_secs(300 + u64::try_from(number).unwrap());
            assert!(allowance.take(now, &format!("namespace-{number}")));
        }
        assert!(allowance.buckets.len() <= FORGET, "nor without being asked");
    }
}

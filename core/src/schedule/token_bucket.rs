//! Limits messages by namespace, so that a user of one namespace cannot fill the log and the Events of all.
//!
//! A token bucket: a burst, then one message a second. The burst is large enough for one message per Secret of a full
//! namespace. Pure; the clock is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Time until one token comes back.
const EACH: Duration = Duration::from_secs(1);

/// Most namespaces that are remembered before those with a full bucket are forgotten.
const FORGET: usize = 1_024;

/// A token bucket for each namespace.
#[derive(Debug)]
pub struct TokenBucket {
    at_once: u32,
    namespaces: HashMap<Box<str>, Spent>,
}

#[derive(Debug)]
struct Spent {
    /// When the bucket is full again.
    until: Instant,
    left_out: u64,
}

impl TokenBucket {
    /// Buckets of this size.
    #[must_use]
    pub fn new(at_once: u32) -> Self {
        Self {
            at_once,
            namespaces: HashMap::new(),
        }
    }

    /// Whether one more message is allowed.
    pub fn take(&mut self, now: Instant, namespace: &str) -> bool {
        let most = now + EACH * self.at_once;
        let Some(spent) = self.namespaces.get_mut(namespace) else {
            if self.namespaces.len() % FORGET == FORGET - 1 {
                self.namespaces.retain(|_, spent| spent.until > now);
            }
            let spent = Spent {
                until: now + EACH,
                left_out: 0,
            };
            self.namespaces.insert(namespace.into(), spent);
            return true;
        };
        let until = spent.until.max(now) + EACH;
        let may = until <= most;
        if may {
            spent.until = until;
        } else {
            spent.left_out += 1;
        }
        may
    }

    /// Messages suppressed since the last call, by namespace. Forgets namespaces with a full bucket.
    pub fn left_out(&mut self, now: Instant) -> Vec<(Box<str>, u64)> {
        let mut found = Vec::new();
        self.namespaces.retain(|namespace, spent| {
            if spent.left_out > 0 {
                found.push((namespace.clone(), std::mem::take(&mut spent.left_out)));
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
        assert!(allowance.namespaces.is_empty(), "nothing is kept for ever");
        for number in 0..10 * FORGET {
            let now = start + Duration::from_secs(300 + u64::try_from(number).unwrap());
            assert!(allowance.take(now, &format!("namespace-{number}")));
        }
        assert!(
            allowance.namespaces.len() <= FORGET,
            "nor without being asked"
        );
    }
}

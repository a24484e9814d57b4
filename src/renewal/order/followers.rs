//! Secrets that wait for the order of another one that holds the same certificate.

use std::collections::HashMap;
use std::time::Duration;

use cert_renew_core::certificate::Fingerprint;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::time::UnixTime;
use parking_lot::Mutex;

/// Since when Secrets wait for another one's order, each with the leaf that it had then.
///
/// Nothing proves that the other one has the key, or a place: it waits for each leaf as long as an order takes, and
/// then orders for itself.
#[derive(Debug, Default)]
pub struct Followers(Mutex<HashMap<SecretRef, (Fingerprint, UnixTime)>>);

impl Followers {
    /// Whether a Secret with this leaf may wait for another one's order at `now`.
    pub fn may_wait(
        &self,
        now: UnixTime,
        key: &SecretRef,
        leaf: Fingerprint,
        longest: Duration,
    ) -> bool {
        let mut all = self.0.lock();
        let (of, since) = all.entry(key.clone()).or_insert((leaf, now));
        // The clock may have been ahead.
        if *of != leaf || *since > now {
            (*of, *since) = (leaf, now);
        }
        now < *since + longest
    }

    /// Forgets a Secret that is gone.
    pub fn forget(&self, key: &SecretRef) {
        self.0.lock().remove(key);
    }

    /// Forgets all of a former term.
    pub fn forget_all(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a Secret waits for another one's order, in seconds, when it looks each time that it is to.
    fn waits(followers: &Followers, from: i64, leaf: u8, short: impl Fn(i64) -> bool) -> i64 {
        let key = SecretRef::new("shop", "tls");
        let looks = (0..10_000).map(|look| from + look * 30);
        let mut ends = looks.filter(|now| {
            let leaf = Fingerprint([leaf; 32]);
            let longest = if short(*now) { 120 } else { 900 };
            !followers.may_wait(UnixTime(*now), &key, leaf, Duration::from_secs(longest))
        });
        ends.next().unwrap() - from
    }

    #[test]
    fn a_copy_waits_for_another_order_no_longer_than_one_takes() {
        let followers = Followers::default();
        assert_eq!(waits(&followers, 1_000, 1, |_| false), 900);
        assert_eq!(waits(&followers, 5_000, 1, |_| false), 0, "once");
        assert_eq!(waits(&followers, 10_000, 2, |_| false), 900, "the next one");
        assert_eq!(waits(&followers, 20_000, 3, |_| true), 120);
        // It runs short while it waits.
        assert_eq!(waits(&followers, 30_000, 4, |now| now >= 30_300), 300);
        assert_eq!(waits(&followers, 500, 4, |_| false), 900, "another clock");
        assert_eq!(followers.0.lock().len(), 1);
        followers.forget(&SecretRef::new("shop", "tls"));
        assert!(followers.0.lock().is_empty());
    }
}

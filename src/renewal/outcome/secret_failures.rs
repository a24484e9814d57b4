//! Failures that one Secret causes by itself: its namespace is not allowed, its settings cannot be met, or it cannot be
//! written.
//!
//! They delay only that Secret, not others that ask for the same names, so they never reach the ledger. They are kept
//! in memory only: the CA is not asked, and a restart costs one more try each.

use std::collections::HashMap;

use cert_renew_core::schedule::rate_limits::{Backoff, Failed, IssuanceHistory};
use cert_renew_core::secret::object::compact::Uid;
use cert_renew_core::time::UnixTime;
use parking_lot::Mutex;

/// The failures and back-off of each Secret.
#[derive(Debug, Default)]
pub struct SecretFailures(Mutex<HashMap<Uid, IssuanceHistory>>);

impl SecretFailures {
    /// Number of failures in a row of a Secret.
    #[must_use]
    pub fn count(&self, uid: &Uid) -> u32 {
        self.0.lock().get(uid).map_or(0, |account| account.failures)
    }

    /// Earliest instant of the next try; see [`IssuanceHistory::retry_at`].
    #[must_use]
    pub fn retry_at(&self, now: UnixTime, uid: &Uid, wish: Option<u64>) -> Option<UnixTime> {
        self.0.lock().get(uid)?.retry_at(now, wish)
    }

    /// Counts a failure and returns when to try again.
    pub(in crate::renewal) fn failed(
        &self,
        uid: &str,
        now: UnixTime,
        backoff: &Backoff,
        failed: Failed<'_>,
    ) -> UnixTime {
        let mut all = self.0.lock();
        all.entry(uid.into())
            .or_default()
            .failed(now, backoff, failed)
    }

    /// Forgets the back-off of a Secret whose annotations have changed; `settings` returns their current hash.
    pub fn mend_by_settings(&self, uid: &Uid, settings: impl FnOnce() -> u64) {
        if let Some(account) = self.0.lock().get_mut(uid) {
            let settings = settings();
            account.mend(|tried| tried.settings != settings);
        }
    }

    /// Forgets a Secret that was renewed, or is gone.
    pub fn forget(&self, uid: &Uid) {
        self.0.lock().remove(uid);
    }

    /// Forgets all failures: the config, the clock or the leader has changed, so each Secret is tried again.
    pub fn forget_all(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_fails_by_itself_waits_longer_and_longer_and_no_other_does() {
        let (failures, backoff) = (SecretFailures::default(), Backoff::default());
        let now = UnixTime(1_800_000_000);
        let failed = |wish| Failed {
            wish,
            ..Failed::default()
        };
        let first = failures.failed("a", now, &backoff, failed(None));
        let second = failures.failed("a", now, &backoff, failed(Some(7)));
        assert!(now < first && first < second);
        let (a, b) = (Uid::from("a"), Uid::from("b"));
        assert_eq!((failures.count(&a), failures.count(&b)), (2, 0));
        assert_eq!(failures.retry_at(now, &b, None), None);
        // The wish with which it failed resets nothing: our own write of the error brings the same one again.
        assert_eq!(failures.retry_at(now, &a, Some(7)), Some(second));
        assert_eq!(failures.retry_at(now, &a, Some(8)), None);
        failures.forget(&a);
        assert_eq!(failures.count(&a), 0);
    }
}

//! Secrets whose pair must be checked: added by the watch and by rollouts, checked by [`crate::leader::pairs`].

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cert_renew_core::secret::SecretRef;
use tokio::sync::Notify;

/// Most Secrets that wait for a check; another one is checked when it changes again.
const QUEUE: usize = 4_096;
/// Delay of a check: enough for a writer that sends certificate and key in two requests.
const SETTLE: Duration = Duration::from_secs(5);

/// Secrets that wait for a check.
#[derive(Debug, Default)]
pub struct Doubts {
    waiting: Mutex<HashSet<SecretRef>>,
    told: Notify,
}

impl Doubts {
    /// Adds a Secret, to be checked after the delay.
    pub fn add(&self, key: &SecretRef) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < QUEUE {
            waiting.insert(key.clone());
            self.told.notify_one();
        }
    }

    /// Waits until there are some, and takes all of them.
    pub async fn next(&self) -> HashSet<SecretRef> {
        self.told.notified().await;
        tokio::time::sleep(SETTLE).await;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting)
    }
}

//! Secrets that wait for a look of their own: at the pair, by [`crate::leader::pairs`], or at what is written on them for
//! people, by [`crate::leader::notes`].

use std::collections::HashSet;
use std::time::Duration;

use cert_renew_core::secret::SecretRef;
use parking_lot::Mutex;
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
        let mut waiting = self.waiting.lock();
        if waiting.len() < QUEUE {
            waiting.insert(key.clone());
            self.told.notify_one();
        }
    }

    /// Removes a Secret that needs no check any more.
    pub fn remove(&self, key: &SecretRef) {
        self.waiting.lock().remove(key);
    }

    /// Waits until there are some, and takes all of them. May be dropped at any time.
    pub async fn next(&self) -> HashSet<SecretRef> {
        while self.waiting.lock().is_empty() {
            self.told.notified().await;
        }
        tokio::time::sleep(SETTLE).await;
        std::mem::take(&mut *self.waiting.lock())
    }
}

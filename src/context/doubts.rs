//! Secrets whose pair is to be looked at: told by the watch and by rollouts, looked at by [`crate::leader::pairs`].

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cert_renew_core::secret::SecretRef;
use tokio::sync::Notify;

/// Secrets that wait to be looked at; one more is looked at when it changes again.
const QUEUE: usize = 4_096;
/// A writer that sends certificate and key by two requests is done after this.
const SETTLE: Duration = Duration::from_secs(5);

/// Secrets that are to be looked at.
#[derive(Debug, Default)]
pub struct Doubts {
    waiting: Mutex<HashSet<SecretRef>>,
    told: Notify,
}

impl Doubts {
    /// This one is to be looked at, a moment later.
    pub fn add(&self, key: &SecretRef) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < QUEUE {
            waiting.insert(key.clone());
            self.told.notify_one();
        }
    }

    /// Waits for some, and takes them all.
    pub async fn next(&self) -> HashSet<SecretRef> {
        self.told.notified().await;
        tokio::time::sleep(SETTLE).await;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting)
    }
}

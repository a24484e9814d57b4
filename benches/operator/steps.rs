//! A changed Secret on its way to its workload.

use std::time::{Duration, Instant};

/// A change of one Secret.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) namespace: String,
    pub(crate) secret: String,
    /// One of the Deployments that use it.
    pub(crate) deployment: String,
    /// When it was asked for.
    pub(crate) began: Instant,
    /// When the API server had answered.
    pub(crate) answered: Instant,
    /// When the last of the Deployments was seen patched.
    pub(crate) seen: Instant,
}

impl Change {
    /// From the answer until the new template was seen.
    pub(crate) fn took(&self) -> Duration {
        self.seen.saturating_duration_since(self.answered)
    }
}

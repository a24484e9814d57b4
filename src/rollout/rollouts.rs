//! What all rollouts hold together.

use std::collections::BTreeSet;
use std::sync::Arc;

use cert_renew_core::config::RolloutConfig;
use parking_lot::{Mutex, RwLock};

use crate::context::Shared;
use crate::renewal::info::RenewalInfo;
use crate::rollout::Roller;

/// What all rollouts hold together.
pub struct Rollouts {
    /// What rollouts share with renewals and the controller.
    pub shared: Arc<Shared>,
    /// When the CAs want their certificates renewed: a Secret that is due is not rolled out before.
    pub(super) renewal_info: Arc<RenewalInfo>,
    /// Namespaces whose Secrets were compared with the record of their workloads, once after the start.
    pub(super) compared: Mutex<BTreeSet<Arc<str>>>,
    /// Concurrency, and what was rolled a short while ago.
    roller: RwLock<Arc<Roller>>,
}

impl Rollouts {
    /// Nothing is rolled yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, renewal_info: Arc<RenewalInfo>) -> Self {
        let roller = Roller::new(shared.client.clone(), &shared.config().rollout);
        Self {
            shared,
            renewal_info,
            compared: Mutex::default(),
            roller: RwLock::new(Arc::new(roller)),
        }
    }

    /// The state that rollouts share under the present config.
    #[must_use]
    pub fn roller(&self) -> Arc<Roller> {
        let roller = self.roller.read();
        Arc::clone(&roller)
    }

    /// Applies a changed config, between two sets of tasks.
    pub fn apply(&self, config: &RolloutConfig) {
        let roller = Arc::new(self.roller().under(config));
        *self.roller.write() = roller;
    }
}

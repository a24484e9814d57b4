//! What all rollouts hold together.

use std::collections::BTreeSet;
use std::sync::Arc;

use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::users_of;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::verdict::detail::Pods;
use parking_lot::{Mutex, RwLock};
use tokio::time::{Duration, timeout};

use crate::context::Shared;
use crate::process::fair::Fair;
use crate::renewal::info::RenewalInfo;
use crate::rollout::Roller;
use crate::rollout::batch::bystanders::Bystanders;
use crate::rollout::batch::room::Room;

/// Longest wait for the workloads of a namespace where only a text depends on them.
const LIST: Duration = Duration::from_secs(5);
/// Most Secrets of which it is remembered what their pods served: some two kilobytes each.
const ASKED: usize = 500;

/// What all rollouts hold together.
pub struct Rollouts {
    /// What rollouts share with renewals and the controller.
    pub shared: Arc<Shared>,
    /// When the CAs want their certificates renewed: a Secret that is due is not rolled out before.
    pub(super) renewal_info: Arc<RenewalInfo>,
    /// Namespaces whose Secrets were compared with the record of their workloads, once after the start.
    pub(super) compared: Mutex<BTreeSet<Arc<str>>>,
    /// What the pods of each Secret served when they were asked last, for people.
    asked: Mutex<Fair<Pods>>,
    /// What the batches hold together.
    pub(super) room: Room,
    /// The looks for the pods and Jobs that nothing restarts.
    pub(super) bystanders: Bystanders,
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
            asked: Mutex::new(Fair::of_at_most(ASKED)),
            room: Room::default(),
            bystanders: Bystanders::default(),
            roller: RwLock::new(Arc::new(roller)),
        }
    }

    /// The state that rollouts share under the present config.
    #[must_use]
    pub fn roller(&self) -> Arc<Roller> {
        let roller = self.roller.read();
        Arc::clone(&roller)
    }

    /// What the pods of a Secret served when they were asked last, if any were since the process started.
    #[must_use]
    pub fn asked(&self, key: &SecretRef) -> Option<Pods> {
        let asked = self.asked.lock();
        asked.of((&key.namespace, &key.name)).next().cloned()
    }

    /// Remembers what the pods of a Secret serve.
    pub(super) fn note_asked(&self, key: &SecretRef, pods: Pods) {
        self.asked.lock().set((&key.namespace, &key.name), pods);
    }

    /// The workloads that use a Secret, or that it names, in words; none where that cannot be told soon.
    pub async fn users(&self, key: &SecretRef, named: &[WorkloadRef]) -> Option<Vec<String>> {
        let roller = self.roller();
        let listed = timeout(LIST, roller.list(&key.namespace)).await.ok()?;
        let workloads = listed
            .inspect_err(|error| {
                tracing::debug!(secret = %key, error = error_chain(error), "its workloads are not looked up");
            })
            .ok()?;
        let users = users_of(&key.name, named, &workloads);
        Some(users.iter().map(ToString::to_string).collect())
    }

    /// Applies a changed config, between two sets of tasks.
    pub fn apply(&self, config: &RolloutConfig) {
        let roller = Arc::new(self.roller().under(config));
        *self.roller.write() = roller;
    }
}

//! What the controller and the tasks of a term work with.

use std::sync::Arc;

use cert_renew_core::index::Observed;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::detail::{LastStep, Remembered};
use futures::future::BoxFuture;

use crate::context::Shared;
use crate::context::doubts::Doubts;
use crate::declared::Declared;
use crate::renewal::Renewals;
use crate::rollout::Rollouts;

/// What the controller and the tasks of a term work with.
#[derive(Clone)]
pub struct Handles {
    /// What renewals and rollouts share.
    pub shared: Arc<Shared>,
    /// What renewals hold.
    pub renewals: Arc<Renewals>,
    /// What rollouts hold.
    pub rollouts: Arc<Rollouts>,
    /// Certificates that other objects declare.
    pub declared: Arc<Declared>,
    /// Secrets on which the line for people may be outdated, or whose annotations are to be checked in the cluster.
    pub(super) notes: Arc<Doubts>,
}

impl Handles {
    /// Nothing is renewed or rolled yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        let renewals = Renewals::new(Arc::clone(&shared));
        let rollouts = Rollouts::new(Arc::clone(&shared), Arc::clone(&renewals.info));
        let rollouts = Arc::new(rollouts);
        let users = {
            let rollouts = Arc::clone(&rollouts);
            move |key: SecretRef, named: Vec<WorkloadRef>| -> BoxFuture<'static, _> {
                let rollouts = Arc::clone(&rollouts);
                Box::pin(async move { rollouts.users(&key, &named).await })
            }
        };
        Self {
            declared: Arc::new(Declared::new(Arc::clone(&shared))),
            shared,
            renewals: Arc::new(renewals.knowing(Arc::new(users))),
            rollouts,
            notes: Arc::default(),
        }
    }

    /// What the process remembers of a Secret beside the index: most of it only where this replica leads, as only a leader
    /// sends Events, counts orders and asks pods.
    #[must_use]
    pub fn remembered(
        &self,
        step: Option<LastStep>,
        key: &SecretRef,
        observed: &Observed,
        names: &[Name],
    ) -> Remembered {
        if !self.shared.gate.is_open() {
            return Remembered {
                step,
                ..Remembered::default()
            };
        }
        Remembered {
            step,
            events: Some(self.shared.events.of(key)),
            limits: Some(self.renewals.limits(UnixTime::now(), observed, names)),
            pods: self.rollouts.asked(key),
            past: self.renewals.past(observed),
        }
    }
}

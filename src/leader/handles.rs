//! What the controller and the tasks of a term work with.

use std::sync::Arc;

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
        Self {
            declared: Arc::new(Declared::new(Arc::clone(&shared))),
            shared,
            renewals: Arc::new(renewals),
            rollouts: Arc::new(rollouts),
            notes: Arc::default(),
        }
    }
}

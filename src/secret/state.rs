//! Stand-in until the state annotations land: what a rollout is told.

use crate::certificate::Fingerprint;
use crate::time::UnixTime;

/// What the workloads of a Secret have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RolledOut {
    /// No certificate yet, so that the first one is rolled.
    None,
    /// This leaf.
    Leaf {
        /// Which one.
        fingerprint: Fingerprint,
        /// When it ends.
        not_after: UnixTime,
    },
}

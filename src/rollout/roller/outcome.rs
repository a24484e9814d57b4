//! How steps and rollouts end, and what is reported on the way.

use std::time::Duration;

use cert_renew_core::rollout::types::Step;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::time::UnixTime;

use super::looks::Withdrawal;

/// How the rollout of one Secret ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Every workload has the leaf: no pod of an older template is left.
    Done,
    /// All workloads have the leaf except these, in words: they were not well before, or hold pods back. To be looked
    /// at again, soon.
    Incomplete(Vec<(WorkloadRef, String)>),
    /// A workload failed; those that had not begun keep their pods.
    Halted(WorkloadRef, String),
    /// Something is paused: to be planned again, later.
    Deferred(String),
    /// The API server did not report a state: to be planned again, soon.
    Interrupted(String),
    /// A look withdrew it; nothing has begun since.
    Withdrawn(Withdrawal),
    /// A workload was not begun because of another Secret that it uses too: to be planned again, soon.
    Beside(String),
}

/// A state of a step, for logs, Events and metrics.
#[derive(Debug)]
pub enum Happening<'a> {
    /// It has the leaf and is available.
    Rolled(&'a Step, Duration),
    /// This many of its pods were asked to reload, and all did.
    Reloaded(&'a Step, usize),
    /// All pods have the leaf, but it is unavailable as it was before, in words.
    Unavailable(&'a Step, &'a str),
    /// Some pods lack the leaf, which is no failure of the certificate, in words.
    Incomplete(&'a Step, &'a str),
    /// It had it already, or is gone.
    Unchanged(&'a Step),
    /// It did not become available.
    Failed(&'a Step, &'a str),
    /// It waits for its turn.
    Waits(&'a Step, Turn),
}

/// What a step waits for before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// This instant: its workload was rolled a short time ago.
    At(UnixTime),
    /// A place: as many workloads roll as the config allows.
    Place,
}

/// How a step ended.
#[derive(Debug)]
pub(in crate::rollout) enum Ended {
    Rolled(Duration),
    Reloaded(usize),
    Unchanged,
    /// All pods have the leaf, but it is unavailable as it was before.
    Unavailable(String),
    /// Some pods lack the leaf, but not because of it: the workload was not well before, or holds pods back.
    Incomplete(String),
    /// It did not become available, and the consequence of that.
    Failed(String, Consequence),
    /// It is paused.
    Deferred(String),
    /// It was not begun: one of its Secrets was stopped while it waited for its turn.
    Skipped,
    /// It ended early: this Secret was withdrawn.
    Withdrawn(Box<str>, Withdrawal),
}

/// What a workload's failure means for the Secrets that it was rolled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rollout) enum Consequence {
    /// The Secret is halted in the end, but the failure says nothing about the certificate: the others go on.
    Alone,
    /// The Secret is halted at once.
    Stops,
}

impl Ended {
    /// What is reported of a step that ended so, if anything.
    pub(super) fn happening<'a>(&'a self, step: &'a Step) -> Option<Happening<'a>> {
        Some(match self {
            Self::Rolled(took) => Happening::Rolled(step, *took),
            Self::Reloaded(pods) => Happening::Reloaded(step, *pods),
            Self::Unchanged => Happening::Unchanged(step),
            Self::Unavailable(why) => Happening::Unavailable(step, why),
            Self::Incomplete(why) => Happening::Incomplete(step, why),
            Self::Failed(why, _) => Happening::Failed(step, why),
            Self::Deferred(_) | Self::Skipped | Self::Withdrawn(..) => return None,
        })
    }
}

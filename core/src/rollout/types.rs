//! The words of a plan: what is asked for, what is to be done, and why.

use std::fmt;

use super::references::{ChangedKeys, Reference};
use super::state::HaltNote;
use super::workload::Workload;
use crate::certificate::Fingerprint;
use crate::secret::parts::{self, ChainAndCa, Parts};
use crate::secret::state::RolledOut;
use crate::secret::workload::{Kind, RolloutMode, WorkloadRef};
use crate::time::UnixTime;

/// Ends the value of the one repeat that `verify` may ask for.
const REPEAT: &str = ".2";

/// A Secret for which a rollout is due, just read and its pair found good.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Name in the namespace of the batch.
    pub secret: Box<str>,
    /// The Secret's uid, for whoever writes about it afterwards.
    pub uid: Box<str>,
    /// The leaf that it holds.
    pub leaf: Fingerprint,
    /// What it holds beside that leaf, as far as it counts.
    pub with: ChainAndCa,
    /// When that leaf ends.
    pub not_after: UnixTime,
    /// What its workloads have, by its annotation.
    pub rolled_out: Option<RolledOut>,
    /// What they have, where the annotation was lost but the index remembers.
    pub remembered: Option<Fingerprint>,
    /// A halt that an earlier rollout ended in.
    pub halted: Option<HaltNote>,
    /// How its workloads take a new leaf up. Whoever cannot reload is restarted: nothing may be left behind.
    pub mode: RolloutMode,
    /// Workloads that it names.
    pub workloads: Vec<WorkloadRef>,
    /// What its workloads do not have, of the parts that they are restarted for.
    pub changed: Parts,
    /// The data keys that have changed: references to none of them do not count.
    pub keys: ChangedKeys,
    /// When its data was last written ([`crate::secret::full::FullSecret::written`]).
    pub written: Option<UnixTime>,
    /// Workloads that an earlier look at this rollout found not to have been well before.
    pub unwell: Vec<WorkloadRef>,
}

/// What is to be done for a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// For each request, in their order.
    pub verdicts: Vec<(Box<str>, Verdict)>,
    /// The workloads that use each, whatever is to be done to them.
    pub users: Vec<(Box<str>, Vec<WorkloadRef>)>,
    /// In the order in which they start.
    pub steps: Vec<Step>,
    /// What a user should hear of besides.
    pub remarks: Vec<Remark>,
}

/// What is to be done for one Secret.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Its workloads have its leaf, by its own annotation.
    UpToDate,
    /// Nothing is known to have another leaf: record the present one, restart nothing.
    FirstSight,
    /// No workload is to be restarted for it: record the leaf.
    NothingRefers,
    /// An earlier halt stands.
    Halted(HaltNote),
    /// The steps that serve it, all of them, then record the leaf. None left means that all were done before.
    Roll,
}

/// One workload to roll, for every due Secret that it uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// As it was listed.
    pub workload: Workload,
    /// What is done to it.
    pub how: How,
    /// When it starts.
    pub phase: Phase,
    /// Whether its failure stops what has not started yet of the Secrets that it serves.
    pub halts: bool,
    /// It was not available before and goes first all the same, since no other was: it stops the others only if none of its
    /// pods becomes available with the leaf.
    pub degraded: bool,
    /// An earlier look found that it was not well before: what has been told of it is not told again.
    pub unwell: bool,
    /// What it is rolled for: one patch carries all of it.
    pub leaves: Vec<Due>,
    /// The nearest end of a leaf that it still serves; never where that is unknown.
    pub urgency: UnixTime,
    /// Not patched before this instant: it was rolled a short while ago.
    pub not_before: UnixTime,
}

/// What is done to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Its pods are replaced.
    Restart,
    /// Its pods are asked to reload, by each of these.
    Reload(Vec<Ask>),
}

/// `POST http://<pod>:<port><path>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The pod's port.
    pub port: u16,
    /// Path with its leading slash.
    pub path: Box<str>,
}

/// The order of steps. A step starts when no step of an earlier phase that serves one of its Secrets is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The first for its Secrets, or one that an earlier run has already started.
    Canary,
    /// Once the canaries are available again.
    Rest,
    /// What was unavailable before, or is paused: it proves nothing and stops nobody.
    Last,
}

/// A leaf that a workload is to have.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    /// The Secret.
    pub secret: Box<str>,
    /// Its leaf.
    pub leaf: Fingerprint,
    /// What comes with the leaf.
    pub with: ChainAndCa,
    /// What the workload does not have of it.
    pub changed: Parts,
    /// When the Secret's data was written.
    pub written: Option<UnixTime>,
    /// Why the workload is concerned.
    pub why: Why,
    /// Its pods had it already, and one served an earlier one all the same: they are replaced once more.
    pub again: bool,
}

/// Why a workload is rolled for a Secret.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// Its template refers to the Secret, in these places.
    Refers(Vec<Reference>),
    /// The Secret names it.
    Named,
}

/// Something that is no step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// The Secret names a workload that does not exist.
    Missing {
        /// The Secret.
        secret: Box<str>,
        /// What it names.
        workload: WorkloadRef,
    },
    /// The workload is left out by its own annotation.
    OptedOut {
        /// The Secret.
        secret: Box<str>,
        /// The workload.
        workload: WorkloadRef,
    },
    /// The pods are replaced although the Secret says `post:`.
    Restarted {
        /// The Secret.
        secret: Box<str>,
        /// The workload.
        workload: WorkloadRef,
        /// Why they cannot reload.
        why: String,
    },
}

impl Step {
    /// Whether the template already says all of it, so that only the pods are still to come.
    #[must_use]
    pub fn is_carried_by(&self, workload: &Workload) -> bool {
        self.leaves.iter().all(|due| {
            workload
                .leaf_of(&due.secret)
                .is_some_and(|value| due.is_said_by(value))
        })
    }

    /// The pods of a workload replaced once more, because one of them serves an earlier leaf.
    #[must_use]
    pub fn again(workload: Workload, request: &Request, now: UnixTime) -> Self {
        Self {
            workload,
            how: How::Restart,
            phase: Phase::Rest,
            halts: true,
            degraded: false,
            unwell: false,
            leaves: vec![Due {
                secret: request.secret.clone(),
                why: Why::Named,
                again: true,
                ..Due::of(request)
            }],
            urgency: request.served_until(),
            not_before: now,
        }
    }

    /// What its workload does not have, of all its Secrets.
    #[must_use]
    pub fn changed(&self) -> Parts {
        let changed = self.leaves.iter().map(|due| due.changed);
        changed.fold(Parts::NONE, Parts::or)
    }

    /// Whether it serves this Secret.
    #[must_use]
    pub fn serves(&self, secret: &str) -> bool {
        self.leaves.iter().any(|due| &*due.secret == secret)
    }
}

impl Due {
    /// What a Secret's workloads are to have.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        Self {
            secret: request.secret.clone(),
            leaf: request.leaf,
            with: request.with,
            changed: request.changed,
            written: request.written,
            why: Why::Named,
            again: false,
        }
    }

    /// What the template says once the workload was rolled for it.
    #[must_use]
    pub fn value(&self) -> String {
        let repeat = if self.again { REPEAT } else { "" };
        format!("{}.{}{repeat}", self.leaf, self.with)
    }

    /// Whether an annotation's value says that the workload was rolled for it, as far as it uses it. Earlier versions said
    /// nothing of chain and CA: that is enough where the leaf is new.
    #[must_use]
    pub fn is_said_by(&self, value: &str) -> bool {
        let (first, repeated) = match value.strip_suffix(REPEAT) {
            Some(first) => (first, true),
            None => (value, false),
        };
        if self.again && !repeated {
            return false;
        }
        let Some((leaf, with)) = first.split_once('.') else {
            return self.changed.leaf && first == self.leaf.to_string();
        };
        let (uses, with) = (self.why.uses(), with.parse::<ChainAndCa>());
        let has = |with: ChainAndCa| {
            (!uses.leaf || leaf == self.leaf.to_string())
                && (!uses.chain || with.chain == self.with.chain)
                && (!uses.ca || with.ca == self.with.ca)
        };
        with.is_ok_and(has)
    }
}

impl Request {
    /// When what the workloads serve ends. Where there is no record of it, nobody knows that it is urgent: whoever may edit
    /// the Secret may take the record away.
    #[must_use]
    pub fn served_until(&self) -> UnixTime {
        match self.rolled_out {
            Some(RolledOut::Leaf { not_after, .. }) => not_after,
            Some(RolledOut::None) | None => UnixTime::NEVER,
        }
    }
}

impl Why {
    /// What it uses of the Secret, of that which has changed.
    #[must_use]
    pub fn uses(&self) -> Parts {
        let Self::Refers(references) = self else {
            return Parts::ALL;
        };
        let keys = references.iter().map(|it| it.keys.as_deref());
        let takes = |ca: bool| {
            let key = |key: &str| (key == parts::CA_KEY) == ca;
            { keys.clone() }.any(|keys| keys.is_none_or(|keys| keys.iter().any(|it| key(it))))
        };
        Parts {
            leaf: takes(false),
            chain: takes(false),
            ca: takes(true),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named => f.write_str("named by the Secret"),
            Self::Refers(references) => {
                let places: Vec<String> = references.iter().map(ToString::to_string).collect();
                f.write_str(&places.join(", "))
            }
        }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { workload, .. } => match workload.kind {
                Kind::ReplicaSet => write!(
                    f,
                    "{workload} does not exist, belongs to another workload, or may not be listed (rbac/addons/eviction.yaml)"
                ),
                Kind::Rollout => write!(
                    f,
                    "{workload} does not exist or may not be listed (rbac/addons/argo-rollouts.yaml)"
                ),
                _ => write!(f, "{workload} does not exist"),
            },
            Self::OptedOut { workload, .. } => write!(f, "{workload} has opted out of rollouts"),
            Self::Restarted { workload, why, .. } => {
                write!(f, "{workload} is restarted, not asked to reload: {why}")
            }
        }
    }
}

//! The types of a plan: what is requested, what to do, and why.

use std::fmt;

use super::references::{ChangedKeys, Reference};
use super::state::HaltNote;
use super::workload::Workload;
use crate::certificate::Fingerprint;
use crate::index::LeafFacts;
use crate::secret::parts::{self, ChainAndCa, Parts};
use crate::secret::state::RolledOut;
use crate::secret::workload::{Kind, RolloutMode, WorkloadRef};
use crate::time::UnixTime;

/// Suffix of the value for the one repeat that `verify` may cause.
const REPEAT: &str = ".2";

/// A Secret for which a rollout is due, just read, with a valid pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Name in the namespace of the batch.
    pub secret: Box<str>,
    /// The Secret's uid, for later writes.
    pub uid: Box<str>,
    /// The leaf that it holds.
    pub leaf: Fingerprint,
    /// The chain and CA beside that leaf, as far as they count.
    pub with: ChainAndCa,
    /// When that leaf expires.
    pub not_after: UnixTime,
    /// What its workloads have, according to its annotation.
    pub rolled_out: Option<RolledOut>,
    /// What they have according to the index, if the annotation was lost.
    pub remembered: Option<Fingerprint>,
    /// The halt in which an earlier rollout ended.
    pub halted: Option<HaltNote>,
    /// How its workloads take up a new leaf. A workload that cannot reload is restarted, so that none keeps the old
    /// leaf.
    pub mode: RolloutMode,
    /// Workloads that it names.
    pub workloads: Vec<WorkloadRef>,
    /// The parts that its workloads lack, of those that they are restarted for.
    pub changed: Parts,
    /// The data keys that have changed: references to other keys do not count.
    pub keys: ChangedKeys,
    /// When its data was last written ([`crate::secret::object::full::FullSecret::written`]).
    pub written: Option<UnixTime>,
    /// Workloads that an earlier look at this rollout found unhealthy before it.
    pub unwell: Vec<WorkloadRef>,
}

impl Request {
    /// Of a Secret that is seen for the first time, with what it holds, if anything.
    #[must_use]
    pub fn first_sight(secret: &str, uid: &str, leaf: Option<LeafFacts>) -> Self {
        Self {
            secret: secret.into(),
            uid: uid.into(),
            leaf: leaf.map_or_else(|| Fingerprint::of(&[]), |leaf| leaf.fingerprint),
            with: leaf.map_or(ChainAndCa::NONE, |leaf| leaf.with),
            not_after: leaf.map_or(UnixTime(0), |leaf| leaf.not_after),
            rolled_out: None,
            remembered: None,
            halted: None,
            mode: RolloutMode::Restart,
            workloads: Vec::new(),
            changed: Parts::ALL,
            keys: ChangedKeys::any(),
            written: None,
            unwell: Vec::new(),
        }
    }

    /// Bytes in memory, without the allocator's overhead.
    #[must_use]
    pub fn weight(&self) -> usize {
        let workloads = self.workloads.iter().chain(&self.unwell);
        let workloads = workloads.map(|it| size_of::<WorkloadRef>() + it.name.len());
        let path = match &self.mode {
            RolloutMode::Post { path, .. } => path.len(),
            RolloutMode::Restart | RolloutMode::None => 0,
        };
        let texts = self.secret.len() + self.uid.len() + path + self.keys.weight();
        size_of::<Self>() + texts + workloads.sum::<usize>()
    }
}

/// What to do for a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// For each request, in order.
    pub verdicts: Vec<(Box<str>, Decision)>,
    /// The workloads that use each, including those without a step.
    pub users: Vec<(Box<str>, Vec<WorkloadRef>)>,
    /// In the order in which they start.
    pub steps: Vec<Step>,
    /// Other things to report to the user.
    pub remarks: Vec<Remark>,
}

/// What to do for one Secret.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Its workloads have its leaf, according to its own annotation.
    UpToDate,
    /// No workload is known to have another leaf: record the present one, restart nothing.
    FirstSight,
    /// No workload needs a restart: record the leaf.
    NothingRefers,
    /// An earlier halt still holds.
    Halted(HaltNote),
    /// All steps that serve it, then record the leaf. Without steps, all were done before.
    Roll,
    /// There is no room for it beside those before it: it is planned later.
    PutOff,
}

/// One workload to roll, for every due Secret that it uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// As it was listed, without its references.
    pub workload: Workload,
    /// What is done to the workload.
    pub how: How,
    /// When the step starts.
    pub phase: Phase,
    /// Whether a failure stops the remaining steps of the Secrets that it serves.
    pub halts: bool,
    /// The workload was unavailable before and goes first only because no other was available. It stops the others only
    /// if none of its pods becomes available with the leaf.
    pub degraded: bool,
    /// An earlier look found the workload unhealthy before the rollout: that is not reported again.
    pub unwell: bool,
    /// The leaves that it is rolled for; one patch carries all of them.
    pub leaves: Vec<DueLeaf>,
    /// The earliest expiry of a leaf that it still serves; never if that is unknown.
    pub urgency: UnixTime,
    /// Not patched before this instant: it was rolled recently.
    pub not_before: UnixTime,
}

/// What is done to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Its pods are replaced.
    Restart,
    /// Each pod is asked to reload, by each of these requests.
    Reload(Vec<Ask>),
}

/// `POST http://<pod>:<port><path>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Was unavailable before, or is paused: it proves nothing and stops no others.
    Last,
}

/// A leaf that a workload should have.
#[derive(Clone, Debug, PartialEq)]
pub struct DueLeaf {
    /// The Secret.
    pub secret: Box<str>,
    /// Its leaf.
    pub leaf: Fingerprint,
    /// The chain and CA beside the leaf.
    pub with: ChainAndCa,
    /// The parts that the workload lacks.
    pub changed: Parts,
    /// When the Secret's data was written.
    pub written: Option<UnixTime>,
    /// Why the workload is affected.
    pub why: RolloutReason,
    /// Its pods had the leaf already, but one served an earlier one: they are replaced once more.
    pub again: bool,
}

/// Why a workload is rolled for a Secret.
#[derive(Clone, Debug, PartialEq)]
pub enum RolloutReason {
    /// Its template refers to the Secret, in these places.
    Refers(Vec<Reference>),
    /// The Secret names it.
    Named,
}

/// A remark on a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// The Secret names a workload that does not exist.
    Missing {
        /// The Secret.
        secret: Box<str>,
        /// The missing workload.
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

impl Remark {
    /// Bytes in memory, without the allocator's overhead.
    #[must_use]
    pub(super) fn weight(&self) -> usize {
        let (Self::Missing { secret, workload }
        | Self::OptedOut { secret, workload }
        | Self::Restarted {
            secret, workload, ..
        }) = self;
        let why = match self {
            Self::Restarted { why, .. } => why.len(),
            Self::Missing { .. } | Self::OptedOut { .. } => 0,
        };
        size_of::<Self>() + secret.len() + workload.name.len() + why
    }
}

impl Step {
    /// Whether the template already carries all of it, so that only the pods are missing.
    #[must_use]
    pub fn is_carried_by(&self, workload: &Workload) -> bool {
        self.leaves.iter().all(|due| {
            workload
                .leaf_of(&due.secret)
                .is_some_and(|value| due.is_said_by(value))
        })
    }

    /// Replaces the pods of a workload once more, because one of them serves an earlier leaf.
    #[must_use]
    pub fn again(workload: Workload, request: &Request, now: UnixTime) -> Self {
        Self {
            workload,
            how: How::Restart,
            phase: Phase::Rest,
            halts: true,
            degraded: false,
            unwell: false,
            leaves: vec![DueLeaf {
                secret: request.secret.clone(),
                why: RolloutReason::Named,
                again: true,
                ..DueLeaf::of(request)
            }],
            urgency: request.served_until(),
            not_before: now,
        }
    }

    /// The parts that the workload lacks, of all its Secrets.
    #[must_use]
    pub fn changed(&self) -> Parts {
        let changed = self.leaves.iter().map(|due| due.changed);
        changed.fold(Parts::NONE, Parts::or)
    }

    /// Bytes in memory while it waits, without the allocator's overhead.
    #[must_use]
    pub fn weight(&self) -> usize {
        let leaves = self.leaves.iter();
        let leaves = leaves.map(|due| DueLeaf::weight_of(&due.secret, &due.why));
        let asks = match &self.how {
            How::Reload(asks) => asks.iter().map(|ask| Self::of_ask(&ask.path)).sum(),
            How::Restart => 0,
        };
        Self::bare(&self.workload) + leaves.sum::<usize>() + asks
    }

    /// Bytes of a step of this workload that serves no Secret yet.
    #[must_use]
    pub(super) fn bare(workload: &Workload) -> usize {
        size_of::<Self>() + Self::WAITS + workload.weight_without_references()
    }

    /// Bytes of one request to reload.
    pub(super) fn of_ask(path: &str) -> usize {
        size_of::<Ask>() + path.len()
    }

    /// Bytes that a step takes beside itself while it waits: its task, its places in queues.
    pub const WAITS: usize = 2_048;

    /// Whether it serves this Secret.
    #[must_use]
    pub fn serves(&self, secret: &str) -> bool {
        self.leaves.iter().any(|due| &*due.secret == secret)
    }
}

impl DueLeaf {
    /// Bytes in memory of a leaf of this Secret, without the allocator's overhead.
    #[must_use]
    pub(super) fn weight_of(secret: &str, why: &RolloutReason) -> usize {
        let references = match why {
            RolloutReason::Refers(references) => references.iter().map(Reference::weight).sum(),
            RolloutReason::Named => 0,
        };
        // The queue has the name too.
        size_of::<Self>() + 2 * secret.len() + references
    }

    /// What the workloads of a Secret should have.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        Self {
            secret: request.secret.clone(),
            leaf: request.leaf,
            with: request.with,
            changed: request.changed,
            written: request.written,
            why: RolloutReason::Named,
            again: false,
        }
    }

    /// The template's value after the workload was rolled for it.
    #[must_use]
    pub fn value(&self) -> String {
        let repeat = if self.again { REPEAT } else { "" };
        format!("{}.{}{repeat}", self.leaf, self.with)
    }

    /// Whether an annotation's value says that the workload was rolled for it, as far as it uses it. Earlier versions
    /// recorded no chain and CA: if the leaf is new, that suffices.
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
    /// When what the workloads serve expires. Without a record there is no urgency: anybody who may edit the Secret may
    /// remove the record.
    #[must_use]
    pub fn served_until(&self) -> UnixTime {
        match self.rolled_out {
            Some(RolledOut::Leaf { not_after, .. }) => not_after,
            Some(RolledOut::None) | None => UnixTime::NEVER,
        }
    }
}

impl RolloutReason {
    /// The changed parts of the Secret that the workload uses.
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

impl fmt::Display for RolloutReason {
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

//! Who rolls for which Secret, in which order, and why.
//!
//! Inputs: the due Secrets of one namespace, its workloads, the clock. Output: a verdict for each Secret and the steps
//! that serve all of them. Pure; whether a pair is fit to be rolled onto was decided before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::progress::{Progress, numbers, progress};
use super::references::Reference;
use super::state::HaltNote;
use super::workload::{Strategy, Workload, says};
use crate::certificate::Fingerprint;
use crate::config::RolloutConfig;
use crate::secret::state::RolledOut;
use crate::secret::workload::{Kind, RolloutMode, WorkloadRef};
use crate::time::UnixTime;

/// A Secret for which a rollout is due, just read and its pair found good.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Name in the namespace of the batch.
    pub secret: Box<str>,
    /// The Secret's uid, for whoever writes about it afterwards.
    pub uid: Box<str>,
    /// The leaf that it holds.
    pub leaf: Fingerprint,
    /// When that leaf ends.
    pub not_after: UnixTime,
    /// What its workloads have, by its annotation.
    pub rolled_out: Option<RolledOut>,
    /// What they have, where the annotation was lost but the index remembers.
    pub remembered: Option<Fingerprint>,
    /// A halt that an earlier rollout ended in.
    pub halted: Option<HaltNote>,
    /// How its workloads take a new leaf up. `Post` is rolled like `Restart`: nothing may be left behind.
    pub mode: RolloutMode,
    /// Workloads that it names.
    pub workloads: Vec<WorkloadRef>,
    /// The data keys that change with the leaf: references to none of them do not count. Empty: any key may have.
    pub keys: Vec<Box<str>>,
    /// When its data was last written ([`crate::secret::full::FullSecret::written`]).
    pub written: Option<UnixTime>,
}

/// What is to be done for a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// For each request, in their order.
    pub verdicts: Vec<(Box<str>, Verdict)>,
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
    /// When it starts.
    pub phase: Phase,
    /// Whether its failure stops what has not started yet of the Secrets that it serves.
    pub halts: bool,
    /// What it is rolled for: one patch carries all of it.
    pub leaves: Vec<Due>,
    /// The nearest end of a leaf that it still serves; the earliest possible where that is unknown.
    pub urgency: UnixTime,
    /// Not patched before this instant: it was rolled a short while ago.
    pub not_before: UnixTime,
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
    /// When the Secret's data was written.
    pub written: Option<UnixTime>,
    /// Why the workload is concerned.
    pub why: Why,
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
    /// The workload was created after the Secret was written: its pods have never seen another leaf.
    Newer {
        /// The Secret.
        secret: Box<str>,
        /// The workload.
        workload: WorkloadRef,
    },
}

impl Step {
    /// Whether the template already says all of it, so that only the pods are still to come.
    #[must_use]
    pub fn is_carried_by(&self, workload: &Workload) -> bool {
        self.leaves
            .iter()
            .all(|due| workload.carries(&due.secret, due.leaf))
    }

    /// Whether it serves this Secret.
    #[must_use]
    pub fn serves(&self, secret: &str) -> bool {
        self.leaves.iter().any(|due| &*due.secret == secret)
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
            Self::Missing { workload, .. } => write!(f, "{workload} does not exist"),
            Self::OptedOut { workload, .. } => write!(f, "{workload} has opted out of rollouts"),
            Self::Newer { workload, .. } => write!(f, "{workload} is newer than the certificate"),
        }
    }
}

/// Plans a batch. `workloads` is the whole namespace, `now` the wall clock.
#[must_use]
pub fn plan(
    now: UnixTime,
    requests: &[Request],
    workloads: &[Workload],
    config: &RolloutConfig,
) -> Plan {
    let mut plan = Plan::default();
    let mut steps: BTreeMap<&WorkloadRef, Step> = BTreeMap::new();
    // How many canaries each Secret has already had: workloads that an earlier run rolled.
    let mut proven: BTreeMap<&str, usize> = BTreeMap::new();
    for request in requests {
        let concerned = concerned(request, workloads, &mut plan.remarks);
        let verdict = verdict(now, request, &concerned, workloads);
        plan.verdicts
            .push((request.secret.clone(), verdict.clone()));
        if verdict != Verdict::Roll {
            continue;
        }
        for (workload, why) in concerned {
            let carries = workload.carries(&request.secret, request.leaf);
            if carries {
                *proven.entry(&request.secret).or_default() += 1;
            }
            if carries
                && workload.strategy != Strategy::OnDelete
                && progress(workload, 0) == Progress::Done
            {
                continue;
            }
            let step = steps.entry(&workload.id).or_insert_with(|| Step {
                workload: workload.clone(),
                phase: Phase::Rest,
                halts: true,
                leaves: Vec::new(),
                urgency: UnixTime::NEVER,
                not_before: workload
                    .rolled_at
                    .map_or(now, |at| at + config.per_workload_min_interval),
            });
            step.urgency = step.urgency.min(served_until(request));
            // The earlier halt was overruled: what failed then may fail again, and stops nobody.
            let tolerated = request
                .halted
                .as_ref()
                .is_some_and(|note| note.workload == workload.id);
            let broken_before = if carries {
                let since = workload.status.unavailable_since;
                since.is_some_and(|since| request.written.is_some_and(|written| since < written))
            } else {
                !workload.is_available()
            };
            if tolerated || broken_before || workload.paused {
                step.phase = Phase::Last;
                step.halts = false;
            }
            step.leaves.push(Due {
                secret: request.secret.clone(),
                leaf: request.leaf,
                written: request.written,
                why,
            });
        }
    }
    plan.steps = steps.into_values().collect();
    choose_canaries(
        &mut plan.steps,
        proven,
        super::run::count(config.canary_workloads),
    );
    plan.steps.sort_by_key(|step| (step.phase, step.urgency));
    plan
}

/// The workloads that use a Secret, and why.
fn concerned<'a>(
    request: &Request,
    workloads: &'a [Workload],
    remarks: &mut Vec<Remark>,
) -> Vec<(&'a Workload, Why)> {
    let mut concerned = Vec::new();
    if request.mode == RolloutMode::None {
        return concerned;
    }
    let present = workloads.iter().filter(|workload| !workload.deleting);
    let mut named: BTreeSet<&WorkloadRef> = request.workloads.iter().collect();
    for workload in present {
        let mentions = workload
            .references
            .iter()
            .filter(|reference| reference.secret == request.secret);
        let references: Vec<Reference> = mentions
            .filter(|reference| reference.takes(&request.keys))
            .cloned()
            .collect();
        let why = match (named.remove(&workload.id), references.is_empty()) {
            (_, false) => Why::Refers(references),
            (true, true) => Why::Named,
            (false, true) => continue,
        };
        let (secret, id) = (request.secret.clone(), workload.id.clone());
        if workload.opted_out {
            remarks.push(Remark::OptedOut {
                secret,
                workload: id,
            });
        } else if is_newer(workload, request.written) {
            remarks.push(Remark::Newer {
                secret,
                workload: id,
            });
        } else {
            concerned.push((workload, why));
        }
    }
    let missing = named.into_iter().cloned();
    remarks.extend(missing.map(|workload| Remark::Missing {
        secret: request.secret.clone(),
        workload,
    }));
    concerned
}

/// Whether a workload was created after the Secret was written, so that none of its pods can have an older leaf.
///
/// A StatefulSet proves nothing by it: most of its fields can only be changed by deleting it with `--cascade=orphan`
/// and creating it anew, and then it adopts the old pods.
fn is_newer(workload: &Workload, written: Option<UnixTime>) -> bool {
    workload.id.kind != Kind::StatefulSet
        && written.is_some_and(|written| workload.created.is_some_and(|created| created > written))
}

fn verdict(
    now: UnixTime,
    request: &Request,
    concerned: &[(&Workload, Why)],
    all: &[Workload],
) -> Verdict {
    let others = |leaf: Fingerprint| leaf != request.leaf;
    let due = match request.rolled_out {
        Some(RolledOut::Leaf { fingerprint, .. }) if fingerprint == request.leaf => {
            return Verdict::UpToDate;
        }
        Some(_) => true,
        None => {
            let templates = concerned
                .iter()
                .filter_map(|(workload, _)| workload.leaf_of(&request.secret));
            request.remembered.is_some_and(others) || { templates }
                .any(|value| !says(value, request.leaf))
        }
    };
    if concerned.is_empty() {
        return Verdict::NothingRefers;
    }
    if !due {
        return Verdict::FirstSight;
    }
    match &request.halted {
        Some(note) if stands(now, request, note, all) => Verdict::Halted(note.clone()),
        _ => Verdict::Roll,
    }
}

/// A halt ends with a newer leaf, when it is resumed, when what the others serve has expired, and when the workload that
/// failed has recovered or is gone.
fn stands(now: UnixTime, request: &Request, note: &HaltNote, all: &[Workload]) -> bool {
    let recovered = match all.iter().find(|workload| workload.id == note.workload) {
        Some(failed) => {
            failed.carries(&request.secret, request.leaf) && progress(failed, 0) == Progress::Done
        }
        None => true,
    };
    note.leaf == request.leaf && !note.resumed && served_until(request) > now && !recovered
}

/// When what the workloads serve ends; what is unknown may have ended long ago, but halts nothing by that.
fn served_until(request: &Request) -> UnixTime {
    match request.rolled_out {
        Some(RolledOut::Leaf { not_after, .. }) => not_after,
        Some(RolledOut::None) | None => UnixTime(i64::MIN),
    }
}

/// Moves steps to the front until each Secret has as many canaries as it should: those that serve the most Secrets
/// first. A canary must be able to prove something: it has pods, was available, and its own controller rolls it.
fn choose_canaries(steps: &mut [Step], mut proven: BTreeMap<&str, usize>, wanted: usize) {
    let mut order: Vec<&mut Step> = steps
        .iter_mut()
        .filter(|step| step.phase == Phase::Rest)
        .collect();
    order.sort_by_key(|step| (std::cmp::Reverse(step.leaves.len()), step.urgency));
    let mut counts: BTreeMap<Box<str>, usize> = { std::mem::take(&mut proven) }
        .into_iter()
        .map(|(secret, count)| (secret.into(), count))
        .collect();
    for step in order {
        if step.is_carried_by(&step.workload) {
            step.phase = Phase::Canary;
            continue;
        }
        let proves =
            step.workload.strategy != Strategy::OnDelete && numbers(&step.workload).target > 0;
        let lacking = step
            .leaves
            .iter()
            .any(|due| counts.get(&due.secret).is_none_or(|count| *count < wanted));
        if proves && lacking {
            step.phase = Phase::Canary;
            for due in &step.leaves {
                *counts.entry(due.secret.clone()).or_default() += 1;
            }
        }
    }
}

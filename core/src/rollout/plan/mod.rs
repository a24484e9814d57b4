//! Which workload is rolled for which Secret, in which order, and why.
//!
//! Inputs: the due Secrets of one namespace, its workloads, the clock. Output: a verdict for each Secret and the steps
//! that serve all of them. Pure; the pairs were checked before.

pub mod allowance;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use self::allowance::{Allowance, Taken};
use super::progress::{Progress, numbers, progress};
use super::references::{ChangedKeys, Reference};
use super::state::HaltNote;
use super::types::{
    Ask, Decision, DueLeaf, How, Phase, Plan, Remark, Request, RolloutReason, Step,
};
use super::workload::{Strategy, Workload, says};
use crate::certificate::Fingerprint;
use crate::config::RolloutConfig;
use crate::secret::state::RolledOut;
use crate::secret::workload::{Kind, RolloutMode, WorkloadRef};
use crate::time::UnixTime;

/// Longest delay before the next restart of a workload that has no pod available with an earlier leaf: long enough that
/// frequent new leaves do not restart it all the time.
const UNPROVEN: Duration = Duration::from_secs(20);

/// Plans a batch. `workloads` are all of the namespace, `now` is the wall clock.
#[must_use]
pub fn plan(
    now: UnixTime,
    requests: &[Request],
    workloads: &[Workload],
    config: &RolloutConfig,
) -> Plan {
    plan_within(
        Allowance::UNBOUNDED,
        now,
        requests,
        &Lookup::of(workloads),
        config,
    )
}

/// The same within the bytes of an allowance: Secrets for which there is no room beside those before them are put off.
#[must_use]
pub fn plan_within(
    allowance: Allowance,
    now: UnixTime,
    requests: &[Request],
    workloads: &Lookup<'_>,
    config: &RolloutConfig,
) -> Plan {
    let mut taken = Taken::of(allowance);
    let mut plan = Plan::default();
    let mut steps: BTreeMap<&WorkloadRef, Step> = BTreeMap::new();
    let mut asks: HashMap<&WorkloadRef, HashSet<Ask>> = HashMap::new();
    // Canaries of each Secret so far: workloads that an earlier run rolled.
    let mut proven: BTreeMap<Box<str>, usize> = BTreeMap::new();
    // Until when the workloads rolled by an earlier run are observed before others follow.
    let mut baked: BTreeMap<Box<str>, UnixTime> = BTreeMap::new();
    for request in requests {
        let (users, mut remarks) = (users(request, workloads), Vec::new());
        let concerned = concerned(request, workloads, &mut remarks);
        let verdict = verdict(now, request, &concerned, workloads);
        let rolled = match verdict {
            Decision::Roll => &*concerned,
            _ => &[],
        };
        let is_new = |workload: &Workload| !steps.contains_key(&workload.id);
        let bytes = allowance::of_users(&users)
            + allowance::of_remarks(&remarks)
            + allowance::of_steps(request, rolled, is_new);
        let first = verdict == Decision::Roll && steps.is_empty();
        if !taken.take(bytes, first) {
            let put_off = (request.secret.clone(), Decision::PutOff);
            plan.verdicts.push(put_off);
            continue;
        }
        plan.users.push((request.secret.clone(), users));
        plan.remarks.append(&mut remarks);
        plan.verdicts
            .push((request.secret.clone(), verdict.clone()));
        if verdict != Decision::Roll {
            continue;
        }
        for (workload, why) in concerned {
            let how = how(request, workload, &why, &mut plan.remarks);
            let due = DueLeaf {
                why,
                ..DueLeaf::of(request)
            };
            let said = workload.leaf_of(&request.secret);
            let carries = said.is_some_and(|value| due.is_said_by(value));
            if carries {
                *proven.entry(request.secret.clone()).or_default() += 1;
            }
            if carries && let Some(at) = workload.rolled_at {
                let until = baked.entry(request.secret.clone()).or_insert(now);
                *until = (at.min(now) + config.canary_bake).max(*until);
            }
            let unwell = request.unwell.contains(&workload.id);
            if carries && workload.strategy != Strategy::OnDelete && is_over(workload, unwell) {
                continue;
            }
            let step = steps.entry(&workload.id).or_insert_with(|| Step {
                // Why it is restarted says which references count.
                workload: Workload {
                    references: Vec::new(),
                    ..workload.clone()
                },
                how: match how {
                    How::Reload(_) => How::Reload(Vec::new()),
                    How::Restart => How::Restart,
                },
                phase: Phase::Rest,
                halts: true,
                degraded: false,
                unwell: false,
                leaves: Vec::new(),
                urgency: UnixTime::NEVER,
                // The instant comes from managedFields, which users may write: a future one counts as now.
                not_before: workload
                    .rolled_at
                    .map_or(now, |at| at.min(now) + config.per_workload_min_interval),
            });
            if !carries {
                step.not_before = step.not_before.min(mends_at(now, request, workload));
            }
            join(&mut step.how, how, asks.entry(&workload.id).or_default());
            step.urgency = step.urgency.min(request.served_until());
            // The earlier halt was overruled: the same workload may fail again, and stops no others.
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
            let broken_before = broken_before || (carries && unwell);
            if tolerated || broken_before || workload.paused {
                step.phase = Phase::Last;
                step.halts = false;
            }
            step.unwell |= unwell;
            // A workload that was overruled, seen before or cannot be rolled proves nothing.
            step.degraded = broken_before && !tolerated && !unwell && !workload.paused;
            step.leaves.push(due);
        }
    }
    plan.steps = steps.into_values().collect();
    for step in &mut plan.steps {
        let until = step.leaves.iter().filter_map(|due| baked.get(&due.secret));
        step.not_before = until.fold(step.not_before, |latest, until| latest.max(*until));
    }
    choose_canaries(&mut plan.steps, proven, count(config.canary_workloads));
    plan.steps.sort_by_key(|step| (step.phase, step.urgency));
    plan
}

/// The workloads that use a Secret and have not opted out, without their references: they are held for as long as pods
/// are asked.
#[must_use]
pub fn using(request: &Request, workloads: &[Workload]) -> Vec<Workload> {
    let using = Lookup::of(workloads).using(request).into_iter();
    let bare = |workload: &Workload| Workload {
        references: Vec::new(),
        ..workload.clone()
    };
    using.map(bare).collect()
}

/// The workloads that use a Secret of this name, or that it names itself, whatever it holds.
#[must_use]
pub fn users_of(secret: &str, named: &[WorkloadRef], workloads: &[Workload]) -> Vec<WorkloadRef> {
    let request = Request {
        workloads: named.to_vec(),
        ..Request::first_sight(secret, "", None)
    };
    users(&request, &Lookup::of(workloads))
}

/// All workloads that use a Secret and have not opted out, whichever of its keys they take.
fn users(request: &Request, workloads: &Lookup<'_>) -> Vec<WorkloadRef> {
    let any = Request {
        keys: ChangedKeys::any(),
        ..request.clone()
    };
    let all = concerned(&any, workloads, &mut Vec::new());
    all.into_iter()
        .map(|(workload, _)| workload.id.clone())
        .collect()
}

/// Whether a workload that carries the leaf is finished: nothing left to do or to wait for. One that was unhealthy
/// before need not become healthy.
fn is_over(workload: &Workload, unwell: bool) -> bool {
    match progress(workload, 0) {
        Progress::Done => true,
        Progress::Moving(numbers) | Progress::Stuck(numbers) => {
            unwell && workload.status.observed && numbers.older == 0
        }
        Progress::Held(_) => false,
    }
}

/// Latest start for a workload that was rolled for an earlier leaf, whatever its minimum interval: the present leaf may
/// repair it.
fn mends_at(now: UnixTime, request: &Request, workload: &Workload) -> UnixTime {
    let Some(carried) = workload.leaf_of(&request.secret) else {
        return UnixTime::NEVER;
    };
    let failed = request.halted.as_ref();
    if failed.is_some_and(|note| note.workload == workload.id && says(carried, note.leaf)) {
        return now;
    }
    match (progress(workload, 0), workload.rolled_at) {
        (Progress::Moving(numbers) | Progress::Stuck(numbers), Some(at))
            if numbers.available <= numbers.older =>
        {
            at.min(now) + UNPROVEN
        }
        _ => UnixTime::NEVER,
    }
}

/// What to do to a workload for one Secret.
fn how(
    request: &Request,
    workload: &Workload,
    why: &RolloutReason,
    remarks: &mut Vec<Remark>,
) -> How {
    let RolloutMode::Post { port, path } = &request.mode else {
        return How::Restart;
    };
    let frozen = match why {
        RolloutReason::Refers(references) => references.iter().find(|reference| !reference.live),
        RolloutReason::Named => None,
    };
    let why = match frozen {
        _ if workload.host_network => "its pods are on the host's network".to_owned(),
        Some(reference) => format!("{reference} never changes in a running pod"),
        None => {
            return How::Reload(vec![Ask {
                port: *port,
                path: path.clone(),
            }]);
        }
    };
    remarks.push(Remark::Restarted {
        secret: request.secret.clone(),
        workload: workload.id.clone(),
        why,
    });
    How::Restart
}

/// Makes what is done to a workload serve one more Secret: a restart serves all; reloads are requested for each, but each
/// that is `known` once.
fn join(all: &mut How, one: How, known: &mut HashSet<Ask>) {
    match (all, one) {
        (How::Reload(all), How::Reload(more)) => {
            all.extend(more.into_iter().filter(|ask| known.insert(ask.clone())));
        }
        (all, _) => *all = How::Restart,
    }
}

/// The workloads of a namespace by name, and by the Secrets that they refer to. Each Secret looks up its own, so a
/// large namespace costs no more than the sum of its references.
pub struct Lookup<'a> {
    all: &'a [Workload],
    by_id: BTreeMap<&'a WorkloadRef, usize>,
    by_secret: HashMap<&'a str, BTreeMap<usize, Vec<&'a Reference>>>,
}

impl<'a> Lookup<'a> {
    /// These workloads.
    #[must_use]
    pub fn of(all: &'a [Workload]) -> Self {
        let mut by_secret: HashMap<&str, BTreeMap<usize, Vec<&Reference>>> = HashMap::new();
        for (at, workload) in all.iter().enumerate() {
            for reference in &workload.references {
                let of = by_secret.entry(&reference.secret).or_default();
                of.entry(at).or_default().push(reference);
            }
        }
        let by_id = all.iter().enumerate().map(|(at, it)| (&it.id, at));
        Self {
            all,
            by_id: by_id.collect(),
            by_secret,
        }
    }

    /// Those that use a Secret and have not opted out.
    #[must_use]
    pub fn using(&self, request: &Request) -> Vec<&'a Workload> {
        let concerned = concerned(request, self, &mut Vec::new());
        concerned
            .into_iter()
            .map(|(workload, _)| workload)
            .collect()
    }

    fn get(&self, id: &WorkloadRef) -> Option<&'a Workload> {
        self.all.get(*self.by_id.get(id)?)
    }

    /// The workloads that refer to the Secret or that it names, in their order, and their references to it.
    fn of_request(
        &self,
        request: &Request,
    ) -> impl Iterator<Item = (&'a Workload, &[&'a Reference])> {
        let named = request.workloads.iter();
        let named = named.filter_map(|id| self.by_id.get(id).copied());
        let mut at: BTreeSet<usize> = named.collect();
        let referring = self.by_secret.get(&*request.secret);
        at.extend(referring.into_iter().flat_map(BTreeMap::keys));
        let all = self.all;
        at.into_iter().filter_map(move |at| {
            let references = referring.and_then(|of| of.get(&at));
            Some((all.get(at)?, references.map_or(&[][..], Vec::as_slice)))
        })
    }
}

/// The workloads that use a Secret, and why.
fn concerned<'a>(
    request: &Request,
    workloads: &Lookup<'a>,
    remarks: &mut Vec<Remark>,
) -> Vec<(&'a Workload, RolloutReason)> {
    let mut concerned = Vec::new();
    if request.mode == RolloutMode::None || request.keys.is_none() {
        return concerned;
    }
    let present = workloads.of_request(request);
    let present = present.filter(|(workload, _)| !workload.deleting);
    let mut named: BTreeSet<&WorkloadRef> = request.workloads.iter().collect();
    for (workload, mentions) in present {
        let references: Vec<Reference> = { mentions.iter().copied() }
            .filter(|reference| reference.takes(&request.keys))
            .cloned()
            .collect();
        let why = match (named.remove(&workload.id), references.is_empty()) {
            (_, false) => RolloutReason::Refers(references),
            (true, true) => RolloutReason::Named,
            (false, true) => continue,
        };
        let (secret, id) = (request.secret.clone(), workload.id.clone());
        if workload.opted_out {
            remarks.push(Remark::OptedOut {
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

/// Whether a workload was created after one of its Secrets was written. Usually its pods have seen no other leaf, so it
/// proves nothing; but it may have adopted older pods, as after `--cascade=orphan`.
fn is_newer(step: &Step) -> bool {
    let created = step.workload.created;
    let later = |due: &DueLeaf| {
        created
            .zip(due.written)
            .is_some_and(|(at, written)| at.is_certainly_after(written))
    };
    step.leaves.iter().any(later)
}

fn verdict(
    now: UnixTime,
    request: &Request,
    concerned: &[(&Workload, RolloutReason)],
    all: &Lookup<'_>,
) -> Decision {
    let others = |leaf: Fingerprint| leaf != request.leaf;
    let due = match request.rolled_out {
        Some(had) if had.is(request.leaf, request.with) => return Decision::UpToDate,
        Some(_) => true,
        None => {
            let templates = concerned
                .iter()
                .filter(|(_, why)| why.uses().leaf)
                .filter_map(|(workload, _)| workload.leaf_of(&request.secret));
            request.remembered.is_some_and(others) || { templates }
                .any(|value| !says(value, request.leaf))
        }
    };
    if concerned.is_empty() {
        return Decision::NothingRefers;
    }
    if !due {
        return Decision::FirstSight;
    }
    match &request.halted {
        Some(note) if stands(now, request, note, all) => Decision::Halted(note.clone()),
        _ => Decision::Roll,
    }
}

/// Whether a halt still holds. It ends with a newer leaf, chain or CA, with a resume, when what the others serve has
/// expired, and when the failed workload has recovered or is gone. A ReplicationController or ReplicaSet does not show
/// recovery, as it does not know which pods are old.
fn stands(now: UnixTime, request: &Request, note: &HaltNote, all: &Lookup<'_>) -> bool {
    let recovered = match all.get(&note.workload) {
        Some(failed) => {
            !matches!(
                failed.id.kind,
                Kind::ReplicationController | Kind::ReplicaSet
            ) && { failed.leaf_of(&request.secret) }
                .is_some_and(|value| DueLeaf::of(request).is_said_by(value))
                && matches!(progress(failed, 0), Progress::Done | Progress::Held(_))
        }
        None => true,
    };
    let expired =
        matches!(request.rolled_out, Some(RolledOut::Leaf { not_after, .. }) if not_after <= now);
    let same = note.leaf == request.leaf && note.with.is_none_or(|with| with == request.with);
    same && !note.resumed && !expired && !recovered
}

/// Moves steps to the front until each Secret has had its number of canaries, those that serve the most Secrets first.
/// A canary must be able to prove something: it has pods, was available, and its own controller rolls it. If none was
/// available, as while nodes are drained, the first unavailable one goes first.
fn choose_canaries(steps: &mut [Step], mut proven: BTreeMap<Box<str>, usize>, wanted: usize) {
    for step in steps.iter_mut() {
        step.degraded &= proves(step);
    }
    let mut order: Vec<&mut Step> = steps
        .iter_mut()
        .filter(|step| step.phase == Phase::Rest)
        .collect();
    order.sort_by_key(|step| (Reverse(step.leaves.len()), step.urgency));
    for step in order {
        if step.is_carried_by(&step.workload) {
            step.phase = Phase::Canary;
            continue;
        }
        let lacking = step
            .leaves
            .iter()
            .any(|due| proven.get(&due.secret).is_none_or(|count| *count < wanted));
        if proves(step) && lacking {
            step.phase = Phase::Canary;
            for due in &step.leaves {
                *proven.entry(due.secret.clone()).or_default() += 1;
            }
        }
    }
    if wanted > 0 {
        choose_degraded(steps, &mut proven);
    }
}

/// Moves one step to the front for each Secret that has no other proof and has workloads that follow.
fn choose_degraded(steps: &mut [Step], proven: &mut BTreeMap<Box<str>, usize>) {
    let mut serving: HashMap<Box<str>, usize> = HashMap::new();
    for due in steps.iter().flat_map(|step| &step.leaves) {
        *serving.entry(due.secret.clone()).or_default() += 1;
    }
    for step in steps {
        let alone = |due: &DueLeaf| {
            let others = serving.get(&due.secret).is_some_and(|count| *count > 1);
            !proven.contains_key(&due.secret) && others
        };
        let first = step.degraded && step.leaves.iter().any(alone);
        step.degraded = first;
        if first {
            step.phase = Phase::Canary;
            for due in &step.leaves {
                *proven.entry(due.secret.clone()).or_default() += 1;
            }
        }
    }
}

/// Whether a step can show that a workload starts with its leaves.
fn proves(step: &Step) -> bool {
    !replaced_by_us(step) && !is_newer(step) && numbers(&step.workload).target > 0
}

/// Whether cert-renew evicts its pods one by one, however long that takes.
fn replaced_by_us(step: &Step) -> bool {
    step.how == How::Restart && step.workload.strategy == Strategy::OnDelete
}

/// A count from the config file.
#[must_use]
pub fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;

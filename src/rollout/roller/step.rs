//! Rolls one workload: waits for its turn, patches its template, waits for its pods.
//!
//! The only thing written is the `leaf.…` annotations of the pod template, of a Rollout its own with `spec.restartAt`,
//! by patches guarded with uid and resourceVersion. So a list from a moment ago is good enough to begin with: if the
//! workload was modified concurrently, the patch is refused, and the workload is read and judged again. The Secrets are
//! looked at again right before each patch, after the last wait; a patch takes the permit that only such a look gives.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use cert_renew_core::rollout::progress::{Numbers, is_rolling};
use cert_renew_core::rollout::types::{DueLeaf, How, Step};
use cert_renew_core::rollout::workload::{Strategy, Workload, leaf_annotation};
use cert_renew_core::secret::workload::Kind;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::evict;
use super::history::fought_over;
use super::wait::{self, GLANCE, Wait, Waited};
use super::{Batch, Consequence, Ended, Roller, Turn};
use crate::cluster::{self, Call};
use crate::process::budget::HeldPlace;
use crate::process::permit::Permit;
use crate::rollout::error::Error;
use crate::rollout::listing::api::{api, get};
use crate::rollout::listing::pods;
use crate::rollout::reload;

/// Most conflicts in a row before the step gives up: something changes the workload all the time.
const CONFLICTS: usize = 10;
/// Once: a repetition would be an effect of its own.
const PATCH: Call = Call::within(Duration::from_secs(15));
/// Most times that the annotation is put back when it is removed while the workload rolls: an apply that crossed ours
/// removes it once, a controller that insists does it always.
const REVERTS: usize = 3;

/// Most times that a workload is rolled again which is deleted and created again while it rolls.
const REMADE: usize = 3;
/// Delay before a workload is read again after a patch without an answer, or after its deletion.
const AGAIN: Duration = Duration::from_secs(1);

const REVERTED: &str = "somebody takes its annotation away whenever it is set";

/// How far the API server's clock may be ahead of ours.
const SKEW: Duration = Duration::from_secs(300);

/// Longest age of a listed workload that is patched; an older one has probably changed, and is read first.
const FRESH: Duration = Duration::from_secs(1);

/// The result of a patch.
enum Patched {
    Yes(Box<Workload>),
    Gone,
    /// The permit had become void.
    Late,
    /// The workload has changed, or may have.
    Raced(cluster::Error),
    /// Permanently, in words.
    Refused(String),
}

impl Roller {
    /// Rolls one workload, which may begin since `released`; the batch may withdraw it concurrently.
    ///
    /// Thousands of steps may wait at the same time: what a step needs once it has its place is allocated then
    /// ([`Step::WAITS`]).
    pub(super) async fn step(
        &self,
        batch: &Batch<'_>,
        step: &Arc<Step>,
        released: Instant,
    ) -> Result<Ended, Error> {
        let not_before = match &step.how {
            How::Reload(_) => reload::not_before(UnixTime::now(), step, self.reload_wait),
            How::Restart if step.is_carried_by(&step.workload) => UnixTime::now(),
            How::Restart => step.not_before,
        };
        let mut waited = released;
        let mut place = self.turn(batch, step, not_before, &mut waited).await;
        if batch.standings.is_stopped(step) {
            return Ok(Ended::Skipped);
        }
        match &step.how {
            How::Reload(asks) => Box::pin(self.reload(batch, step, asks, waited, &mut place)).await,
            How::Restart => Box::pin(self.restart(batch, step, waited, &mut place)).await,
        }
    }

    /// Replaces the pods of a workload that has its place.
    async fn restart(
        &self,
        batch: &Batch<'_>,
        step: &Step,
        mut waited: Instant,
        place: &mut HeldPlace,
    ) -> Result<Ended, Error> {
        let Batch {
            namespace, listed, ..
        } = *batch;
        let id = &step.workload.id;
        let started = Instant::now();
        let mut next = if listed.elapsed() < FRESH {
            Some(step.workload.clone())
        } else {
            get(&self.client, namespace, id).await?
        };
        let (mut halts, mut missing_before) = (step.halts, 0);
        let (mut conflicts, mut reverts, mut remade) = (0, 0, 0);
        while let Some(mut current) = next {
            if current.paused {
                return Ok(Ended::Deferred(format!("{id} is paused")));
            }
            if !step.is_carried_by(&current) {
                let settled = self.settle(namespace, step, current, place, &mut waited);
                let Some(settled) = settled.await? else {
                    break;
                };
                if settled.opted_out || self.is_left_alone(namespace, step, &settled).await {
                    break;
                }
                if reverts == 0 {
                    halts = step.halts && settled.is_available();
                    missing_before = missing(&settled);
                }
                let permit = match batch.looks.permit(step, waited).await {
                    Ok(permit) => permit,
                    Err((secret, withdrawal)) => {
                        return Ok(Ended::Withdrawn(secret, withdrawal));
                    }
                };
                if conflicts == 0 && !self.may_patch(namespace, step) {
                    return Ok(Ended::Failed(fought_over(), Consequence::Alone));
                }
                current = match self.patch(namespace, permit, &settled).await? {
                    Patched::Yes(patched) => *patched,
                    Patched::Gone => break,
                    Patched::Late => {
                        next = get(&self.client, namespace, id).await?;
                        continue;
                    }
                    Patched::Refused(why) => return Ok(Ended::Failed(why, Consequence::Alone)),
                    Patched::Raced(error) if conflicts < CONFLICTS => {
                        conflicts += 1;
                        if error.is_passing() {
                            tokio::time::sleep(AGAIN).await;
                            waited = Instant::now();
                        }
                        next = get(&self.client, namespace, id).await?;
                        continue;
                    }
                    // Possibly an admission policy.
                    Patched::Raced(error) if error.code() == Some(422) => {
                        return Ok(Ended::Failed(error_chain(&error), Consequence::Alone));
                    }
                    Patched::Raced(error) => return Err(error.into()),
                };
            }
            conflicts = 0;
            let mut wait = self.wait(namespace, &current, place);
            if !step.halts && step.is_carried_by(&step.workload) {
                wait.patience = wait.patience.min(GLANCE);
            }
            let came = match current.strategy {
                Strategy::Rolling { .. } => wait::available(wait, step, missing_before).await?,
                Strategy::OnDelete => evict::replace(wait, step, &batch.looks).await?,
            };
            match came {
                Waited::Done(0) => return Ok(Ended::Rolled(started.elapsed())),
                Waited::Done(short) if step.degraded && short >= current.status.wanted => {
                    let why = format!("{} not available", wait::pods(short));
                    return Ok(Ended::Failed(why, Consequence::Stops));
                }
                Waited::Done(short) => {
                    let pods = wait::pods(short);
                    let why = format!("{pods} not available, as before");
                    return Ok(Ended::Unavailable(why));
                }
                // A workload that is created again comes at once, and may adopt the existing pods.
                Waited::Gone if remade < REMADE => {
                    remade += 1;
                    tokio::time::sleep(AGAIN).await;
                }
                Waited::Gone => break,
                Waited::Held(short, why) => {
                    return Ok(match self.lacks(namespace, step, &current, why).await {
                        Ended::Unavailable(_) if short == 0 => Ended::Rolled(started.elapsed()),
                        ended => ended,
                    });
                }
                Waited::Forbidden(why) => return Ok(Ended::Failed(why, Consequence::Alone)),
                // A person may have replaced all of them by now.
                Waited::TooMany(why) => {
                    let ended = self.lacks(namespace, step, &current, why).await;
                    return Ok(not_evicted(ended, wait::short(&current), started.elapsed()));
                }
                Waited::Failed(_, why) if halts => {
                    return Ok(Ended::Failed(why, Consequence::Stops));
                }
                // None of its pods has proven the certificate, and no other workload has.
                Waited::Failed(numbers, why)
                    if step.degraded && numbers.available <= numbers.older =>
                {
                    return Ok(Ended::Failed(why, Consequence::Stops));
                }
                Waited::Failed(Numbers { older: 0, .. }, why) => {
                    return Ok(Ended::Unavailable(format!("{why}, as before")));
                }
                Waited::Failed(_, why) => {
                    return Ok(self.lacks(namespace, step, &current, why).await);
                }
                Waited::Withdrawn(secret, withdrawal) => {
                    return Ok(Ended::Withdrawn(secret, withdrawal));
                }
                Waited::Reverted if reverts < REVERTS => reverts += 1,
                Waited::Reverted => return Ok(Ended::Failed(REVERTED.into(), Consequence::Alone)),
            }
            waited = Instant::now();
            next = get(&self.client, namespace, id).await?;
        }
        Ok(Ended::Unchanged)
    }

    /// Waits until the step may begin and has a place. `waited` is set to the end of the last wait, if there was one.
    pub(in crate::rollout) async fn turn(
        &self,
        batch: &Batch<'_>,
        step: &Arc<Step>,
        not_before: UnixTime,
        waited: &mut Instant,
    ) -> HeldPlace {
        let pause = not_before.since(UnixTime::now());
        let waits = |turn| _ = batch.waits.send((Arc::clone(step), turn));
        if !pause.is_zero() {
            waits(Turn::At(not_before));
            tokio::time::sleep(pause).await;
            *waited = Instant::now();
        }
        let mut place = pin!(self.budget.place(batch.namespace, step.urgency));
        if let Poll::Ready(place) = futures::poll!(place.as_mut()) {
            return place;
        }
        waits(Turn::Place);
        let place = place.await;
        *waited = Instant::now();
        place
    }

    /// Waits for a rollout that somebody else has started, so that the pods are not replaced twice, and returns the
    /// workload after it. Does not wait for a workload that was broken already, nor for our own rollout of an earlier
    /// leaf: the present one may be what fixes it.
    async fn settle(
        &self,
        namespace: &str,
        step: &Step,
        current: Workload,
        place: &mut HeldPlace,
        waited: &mut Instant,
    ) -> Result<Option<Workload>, Error> {
        if !is_rolling(&current) || !current.is_available() || rolls_for_an_earlier(step, &current)
        {
            return Ok(Some(current));
        }
        wait::settled(self.wait(namespace, &current, place)).await?;
        *waited = Instant::now();
        get(&self.client, namespace, &current.id).await
    }

    /// Whether every pod was started after all of the step's Secrets were written, by the API server's clock: then it
    /// has seen no other leaf, and the cause of its restart does not matter. Pods may be listed only with
    /// rbac/addons/eviction.yaml; if anything is uncertain, the workload is rolled.
    async fn is_left_alone(&self, namespace: &str, step: &Step, current: &Workload) -> bool {
        // A workload that is rolled once more has young pods that serve an earlier leaf.
        if step.leaves.iter().any(|due| due.again) {
            return false;
        }
        let written: Option<Vec<UnixTime>> = step.leaves.iter().map(|due| due.written).collect();
        let Some(written) = written.and_then(|all| all.into_iter().max()) else {
            return false;
        };
        // An older template means older pods, or replacements of single ones: not worth a question.
        if current
            .template_touched
            .is_none_or(|touched| !touched.is_certainly_after(written))
            || current.status.wanted == 0
        {
            return false;
        }
        self.has_newer_pods(namespace, current, written).await
    }

    /// The end of a step that leaves pods of an older template: no failure, if all of them were started after the
    /// Secrets were written, as pods below a partition are when their node was drained.
    async fn lacks(&self, namespace: &str, step: &Step, current: &Workload, why: String) -> Ended {
        let written = step.leaves.iter().map(|due| due.written);
        let written: Option<Vec<UnixTime>> = written.collect();
        let again = step.leaves.iter().any(|due| due.again);
        if let Some(written) = written.and_then(|all| all.into_iter().max())
            && !again
            && self.has_newer_pods(namespace, current, written).await
        {
            return Ended::Unavailable(format!("{why}; all of them were started since"));
        }
        Ended::Incomplete(why)
    }

    /// Whether all its pods were created after that instant, by the API server's clock; false where that is not known.
    async fn has_newer_pods(&self, namespace: &str, current: &Workload, written: UnixTime) -> bool {
        let newer = pods::are_newer(&self.client, namespace, &current.selector, written);
        newer.await.unwrap_or(false)
    }

    /// Writes the leaves onto the template, or onto a Rollout.
    async fn patch(
        &self,
        namespace: &str,
        permit: Permit<&Step>,
        current: &Workload,
    ) -> Result<Patched, Error> {
        let Some(step) = permit.spend() else {
            return Ok(Patched::Late);
        };
        let id = &step.workload.id;
        let api = api(&self.client, namespace, id.kind);
        let params = PatchParams {
            field_manager: Some(self.field_manager.to_string()),
            ..PatchParams::default()
        };
        let body = Patch::Merge(body(step, current, UnixTime::now()));
        let what = || format!("patching {id} of namespace {namespace}");
        let patched = api.patch(&id.name, &params, &body);
        Ok(match PATCH.once(what, patched).await {
            Ok(object) => Patched::Yes(object.read(id.kind).into()),
            Err(error) => match error.code() {
                Some(404) => Patched::Gone,
                // Its controller writes the status all the time, and a recreated workload has another uid (422).
                Some(409 | 422) => Patched::Raced(error),
                // An admission policy, a webhook, a missing right: the next try would fail too.
                Some(400 | 403) => Patched::Refused(error_chain(&error)),
                // Unknown whether it was applied: the workload shows it.
                _ if error.is_passing() => Patched::Raced(error),
                _ => return Err(error.into()),
            },
        })
    }

    fn wait<'a>(
        &'a self,
        namespace: &'a str,
        workload: &'a Workload,
        place: &'a mut HeldPlace,
    ) -> Wait<'a> {
        Wait {
            client: &self.client,
            namespace,
            workload,
            patience: self.progress_timeout,
            place,
        }
    }
}

/// The end of a step for a workload with more pods than are evicted: `lacks` is what the age of its pods tells, and
/// `short` of them are not available.
fn not_evicted(lacks: Ended, short: i64, took: Duration) -> Ended {
    match lacks {
        Ended::Incomplete(why) => Ended::Failed(why, Consequence::Alone),
        Ended::Unavailable(_) if short == 0 => Ended::Rolled(took),
        Ended::Unavailable(_) => {
            let pods = wait::pods(short);
            Ended::Unavailable(format!("{pods} not available; all were started since"))
        }
        ended => ended,
    }
}

/// Whether the last change of the template was an earlier leaf of one of the step's Secrets.
fn rolls_for_an_earlier(step: &Step, current: &Workload) -> bool {
    let ours = current.rolled_at.is_some() && current.rolled_at >= current.template_touched;
    let earlier = |due: &DueLeaf| {
        let value = current.leaf_of(&due.secret);
        value.is_some_and(|value| !due.is_said_by(value))
    };
    ours && step.leaves.iter().any(earlier)
}

/// The patch that makes a workload's controller replace its pods.
fn body(step: &Step, current: &Workload, now: UnixTime) -> Value {
    let leaves = step.leaves.iter();
    let annotations: BTreeMap<String, String> = leaves
        .map(|due| (leaf_annotation(&due.secret), due.value()))
        .collect();
    let mut metadata = json!({"uid": &*current.uid, "resourceVersion": &*current.resource_version});
    if current.id.kind != Kind::Rollout {
        let template = json!({"metadata": {"annotations": annotations}});
        return json!({"metadata": metadata, "spec": {"template": template}});
    }
    // Pods older than this go, including those that are not certainly newer than the Secret's write (see
    // `UnixTime::is_certainly_after`). That time comes from an unknown clock, and users may write it: an instant far ahead
    // of ours is not believed.
    let written = step.leaves.iter().filter_map(|due| due.written);
    let written = written.filter(|written| *written <= now + SKEW).max();
    let later = written.map_or(now, |written| now.max(written + Duration::from_secs(2)));
    metadata["annotations"] = json!(annotations);
    json!({"metadata": metadata, "spec": {"restartAt": later.to_string()}})
}

/// Pods of a DaemonSet that were unavailable before: those of dead nodes, which cannot be replaced.
fn missing(workload: &Workload) -> i64 {
    if workload.id.kind == Kind::DaemonSet {
        (workload.status.wanted - workload.status.available).max(0)
    } else {
        0
    }
}

#[cfg(test)]
mod tests;

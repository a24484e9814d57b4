//! Replaces the pods of a workload whose controller does not: one at a time, by eviction.
//!
//! Used for ReplicationControllers, and for StatefulSets and DaemonSets with `OnDelete`. Old pods are recognised by
//! their own annotation, so the work may be cut off and resumed. It waits while a PodDisruptionBudget refuses. A pod
//! that was not ready before is replaced like the others, and the others do not wait for it. It needs the rights of
//! rbac/addons/eviction.yaml.

mod pods;

use std::collections::BTreeSet;
use std::time::Duration;

use cert_renew_core::rollout::progress::Numbers;
use cert_renew_core::rollout::types::Step;
use cert_renew_core::time::duration::human;
use futures::StreamExt as _;
use kube::api::{Api, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use serde_json::json;
use tokio::time::{Instant, timeout};

use self::pods::{MOST, Next, Pods, ThinPod};
use super::looks::Looks;
use super::wait::{Wait, Waited, stalled, wait_on};
use crate::cluster::{self, Call};
use crate::process::permit::Permit;
use crate::rollout::error::Error;
use crate::rollout::listing::api::get;

/// Time until an eviction is asked for again that a disruption budget refused, whatever the pods do. Our rights do not
/// allow to watch budgets, so only an eviction shows whether one permits it.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Time until an eviction is asked for again that found no pod: the watch is about to show the current pod.
const MISSED: Duration = Duration::from_secs(1);
/// Longest wait for the answer to one eviction. The client repeats a 429, with which a budget refuses, by itself for
/// minutes: no answer within this time counts as a refusal.
const EVICTION: Call = Call::within(Duration::from_secs(3));

/// Most evictions beyond the number of old pods at the beginning, for pods created from the old template just before
/// its controller saw the new one. More of them means that replacements always come without the annotation.
const SPARE: usize = 3;
/// Most pods of a page of the list: some 10 KB of JSON each.
const PAGE: u32 = 100;
/// Number of times that a workload may be scaled while its pods are replaced and still get more time for it.
const SCALED: usize = 3;

/// Text added to the state of a rollout while a budget refuses.
const REFUSED: &str = ", evictions are refused: a PodDisruptionBudget does not allow any";

/// The result of asking for an eviction.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// The pod is being deleted.
    Accepted,
    /// A disruption budget does not allow it now, or the API server cannot say.
    Refused,
    /// The pod no longer exists.
    Missed,
}

/// Evicts old pods one by one, and waits for each replacement.
///
/// # Errors
/// When the API server fails other than by forbidding it.
pub(super) async fn replace(
    wait: Wait<'_>,
    step: &Step,
    looks: &Looks<'_>,
) -> Result<Waited, Error> {
    let api: Api<ThinPod> = Api::namespaced(wait.client.clone(), wait.namespace);
    let config = watcher::Config::default()
        .labels(&wait.workload.selector)
        .page_size(PAGE);
    let mut events = std::pin::pin!(watcher(api.clone(), config).default_backoff());
    let now = Instant::now();
    let mut replacing = Replacing {
        wanted: wait.workload.status.wanted,
        wait,
        step,
        looks,
        api,
        pods: Pods::default(),
        listed: false,
        left: None,
        lost: None,
        evicted: BTreeSet::new(),
        refused: "",
        not_before: now,
        scaled: 0,
        last: now,
        best: (i64::MAX, 0),
    };
    loop {
        if let Some(ended) = replacing.evict_next().await? {
            return Ok(ended);
        }
        if let Some(ended) = replacing.judge_progress().await? {
            return Ok(ended);
        }
        if let Ok(Some(event)) = timeout(replacing.pause(), events.next()).await
            && let Some(ended) = replacing.on_event(event)
        {
            return Ok(ended);
        }
    }
}

/// The pods of one workload while they are replaced.
struct Replacing<'a> {
    wait: Wait<'a>,
    step: &'a Step,
    looks: &'a Looks<'a>,
    api: Api<ThinPod>,
    pods: Pods,
    /// Whether `pods` are all.
    listed: bool,
    wanted: i64,
    /// Evictions that are left, since the pods were first listed.
    left: Option<usize>,
    /// How many pods were missing when they were first listed.
    lost: Option<i64>,
    /// Pods whose eviction was accepted: the watch may be late to show that they leave.
    evicted: BTreeSet<Box<str>>,
    /// [`REFUSED`] while a budget refuses, else empty.
    refused: &'static str,
    /// No eviction is asked for before.
    not_before: Instant,
    /// How often the workload was scaled since.
    scaled: usize,
    /// When it last made progress, and how far it was then: old pods, and ready ones.
    last: Instant,
    best: (i64, i64),
}

impl Replacing<'_> {
    /// Asks for the next evictions, until one is not accepted or there is nothing to evict now.
    async fn evict_next(&mut self) -> Result<Option<Waited>, Error> {
        loop {
            if !self.listed {
                return Ok(None);
            }
            let left = *self.left.get_or_insert(self.pods.len() + SPARE);
            let lost = *self
                .lost
                .get_or_insert_with(|| self.wanted - self.pods.served());
            let ordered = self.wait.workload.ordered;
            let (name, uid) = match self.pods.next(self.wanted, self.wanted - lost, ordered) {
                Next::Done => return Ok(Some(Waited::Done(0))),
                Next::Evict(..) if left == 0 => return Ok(Some(Waited::Reverted)),
                Next::Evict(..) if Instant::now() < self.not_before => return Ok(None),
                Next::Evict(name, pod) => (name.to_owned(), pod.uid.clone()),
                Next::Wait => return Ok(None),
            };
            let permit = match self.looks.permit(self.step, Instant::now()).await {
                Ok(permit) => permit,
                Err((secret, withdrawal)) => {
                    return Ok(Some(Waited::Withdrawn(secret, withdrawal)));
                }
            };
            match evict(permit, &self.api, self.wait.namespace, &name, &uid).await {
                Ok(Asked::Accepted) => {
                    (self.refused, self.left) = ("", Some(left - 1));
                    self.pods.leaves(&name);
                    self.evicted.insert(uid);
                }
                Ok(Asked::Refused) => {
                    (self.refused, self.not_before) = (REFUSED, Instant::now() + ASK_AGAIN);
                    return Ok(None);
                }
                Ok(Asked::Missed) => {
                    self.not_before = Instant::now() + MISSED;
                    return Ok(None);
                }
                Err(error) if error.is_forbidden() => return Ok(Some(self.missing_right())),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether it has come further, or stands still for so long that it has failed.
    async fn judge_progress(&mut self) -> Result<Option<Waited>, Error> {
        let Wait {
            client,
            namespace,
            workload,
            patience,
            ..
        } = self.wait;
        let (old, ready) = (self.pods.old(), self.pods.serving());
        if self.listed && (old < self.best.0 || (old == self.best.0 && ready > self.best.1)) {
            tracing::debug!(namespace, workload = %workload.id, "{old} old pods left, {ready} ready");
            (self.last, self.best) = (Instant::now(), (old, ready));
        } else if self.last.elapsed() >= patience {
            match get(client, namespace, &workload.id).await? {
                None => return Ok(Some(Waited::Gone)),
                Some(now) if now.uid != workload.uid => return Ok(Some(Waited::Gone)),
                // The workload was scaled: the missing pods did not hold it up.
                Some(now) if now.status.wanted != self.wanted && self.scaled < SCALED => {
                    (self.wanted, self.last) = (now.status.wanted, Instant::now());
                    self.scaled += 1;
                }
                Some(_) => {
                    let numbers = Numbers {
                        target: self.wanted,
                        updated: self.pods.updated(),
                        available: ready,
                        older: old,
                    };
                    let (patience, refused) = (human(patience), self.refused);
                    let why = format!("no progress for {patience}: {numbers}{refused}");
                    return Ok(Some(Waited::Failed(numbers, why)));
                }
            }
        } else {
            let stalls = self.last.elapsed() >= stalled(patience);
            wait_on(self.wait.place, namespace, stalls)?;
        }
        Ok(None)
    }

    /// Longest wait for the next event.
    fn pause(&self) -> Duration {
        let pause = self.not_before.saturating_duration_since(Instant::now());
        let pause = if pause.is_zero() { ASK_AGAIN } else { pause };
        pause.min(self.wait.patience)
    }

    /// Applies what the watch on the pods says.
    fn on_event(&mut self, event: watcher::Result<watcher::Event<ThinPod>>) -> Option<Waited> {
        match event {
            Ok(watcher::Event::Init) => {
                self.pods = Pods::default();
                self.listed = false;
            }
            Ok(watcher::Event::InitDone) => self.listed = true,
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))
                if pod.belongs_to(self.wait.workload) =>
            {
                let mut seen = pod.see(self.step);
                seen.leaving |= self.evicted.contains(&seen.uid);
                if !self.pods.set(pod.name(), seen) {
                    let why = format!(
                        "it has more than {MOST} pods: none is evicted; replace them, then resume"
                    );
                    return Some(Waited::TooMany(why));
                }
            }
            Ok(
                watcher::Event::Apply(pod)
                | watcher::Event::InitApply(pod)
                | watcher::Event::Delete(pod),
            ) => _ = self.pods.remove(pod.name()),
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status)))
                if status.code == 403 =>
            {
                return Some(self.missing_right());
            }
            Err(_) => {}
        }
        None
    }

    fn missing_right(&self) -> Waited {
        let id = &self.wait.workload.id;
        Waited::Forbidden(format!(
            "the pods of {id} may not be replaced: kubectl apply -f rbac/addons/eviction.yaml"
        ))
    }
}

/// Asks for the eviction of exactly this pod, not of a later one of the same name.
async fn evict(
    permit: Permit<&Step>,
    api: &Api<ThinPod>,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Asked, Error> {
    if permit.spend().is_none() {
        return Ok(Asked::Missed);
    }
    // kube 5.0 writes `delete_options`, which the API server ignores, and with it the precondition.
    let body = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
        "deleteOptions": {"preconditions": {"uid": uid}},
    });
    let what = || format!("evicting pod {name} of namespace {namespace}");
    let params = PostParams::default();
    let asked = api.create_subresource::<_, serde_json::Value>("eviction", name, &params, &body);
    match EVICTION.once(what, asked).await {
        Ok(_) => Ok(Asked::Accepted),
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(Asked::Missed),
        Err(cluster::Error::Deadline { .. }) => Ok(Asked::Refused),
        // The API server answers 500 if several budgets cover one pod, 504 if a budget was modified concurrently.
        Err(error) if matches!(error.code(), Some(429 | 500 | 504)) => Ok(Asked::Refused),
        Err(error) => Err(error.into()),
    }
}

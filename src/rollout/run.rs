//! Carries a plan out: canaries first, then the rest, each workload awaited until it is really available.
//!
//! The only thing written is the `leaf.…` annotations of pod templates, by guarded patches. Everything may be cut off at
//! any instant: what was done stands on the templates, and the next plan goes on from there.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kube::Client;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Error, call};
use super::steps::Step;
use super::progress::is_rolling;
use super::workload::{Strategy, Workload, api, get, leaf_annotation};
use super::{evict, wait};
use crate::config::RolloutConfig;
use crate::secret::keys::FIELD_MANAGER;
use crate::secret::workload::WorkloadRef;
use crate::time::UnixTime;

/// Somebody who changes a workload faster than this many times in a row is not to be raced with.
const CONFLICTS: usize = 10;
/// A workload that has not moved for so long gives its place to others; it is awaited all the same.
const STALLED: Duration = Duration::from_secs(60);

/// What all rollouts of a process share.
pub struct Roller {
    client: Client,
    everywhere: Arc<Semaphore>,
    namespaces: Mutex<HashMap<Box<str>, Arc<Semaphore>>>,
    per_namespace: usize,
    progress_timeout: Duration,
}

/// How the rollout of one Secret ended.
#[derive(Debug)]
pub enum Outcome {
    /// Every workload has the leaf.
    Done,
    /// A workload failed; those that had not begun keep their pods.
    Halted(WorkloadRef, String),
    /// Something is paused or out of reach: to be planned again, later.
    Deferred(String),
}

/// What happens, for logs, Events and metrics.
#[derive(Debug)]
pub enum Happening<'a> {
    /// It has the leaf and is available.
    Rolled(&'a Step, Duration),
    /// It had it already.
    Unchanged(&'a Step),
    /// It did not become available.
    Failed(&'a Step, &'a str),
}

/// How a step ended.
enum Ended {
    Rolled(Duration),
    Unchanged,
    Failed(String),
    Deferred(String),
}

/// The places that a rolling workload takes: in its namespace until it ends, in the cluster while it moves.
pub(super) struct Places {
    everywhere: Option<OwnedSemaphorePermit>,
    _namespace: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// The workload does not move: others may.
    pub(super) fn stalled(&mut self) {
        self.everywhere = None;
    }
}

impl Roller {
    /// Nothing rolls yet.
    #[must_use]
    pub fn new(client: Client, config: &RolloutConfig) -> Self {
        Self {
            client,
            everywhere: Arc::new(Semaphore::new(count(config.concurrency))),
            namespaces: Mutex::default(),
            per_namespace: count(config.per_namespace),
            progress_timeout: config.progress_timeout,
        }
    }

    /// Rolls the steps of a plan for these Secrets, and says for each of them how it ended, as soon as it is known.
    pub async fn roll(
        &self,
        namespace: &str,
        secrets: &[Box<str>],
        steps: Vec<Step>,
        mut tell: impl FnMut(Happening<'_>),
        mut ended: impl FnMut(&str, Outcome),
    ) {
        let mut open: BTreeMap<Box<str>, Option<Outcome>> = secrets
            .iter()
            .map(|secret| (secret.clone(), None))
            .collect();
        let mut waiting = steps;
        let mut running: Vec<Step> = Vec::new();
        let mut futures = FuturesUnordered::new();
        loop {
            // A Secret that has failed starts nothing more.
            for step in &mut waiting {
                step.leaves
                    .retain(|due| open.get(&due.secret).is_some_and(Option::is_none));
            }
            waiting.retain(|step| !step.leaves.is_empty());
            let unfinished: Vec<Step> = waiting.iter().chain(&running).cloned().collect();
            let (held, ready): (Vec<Step>, Vec<Step>) =
                std::mem::take(&mut waiting).into_iter().partition(|step| {
                    unfinished
                        .iter()
                        .any(|other| other.phase < step.phase && shares(other, step))
                });
            waiting = held;
            for step in ready {
                running.push(step.clone());
                futures.push(async move {
                    let result = self.step(namespace, &step).await;
                    (step, result)
                });
            }
            let settled: Vec<Box<str>> = open
                .keys()
                .filter(|secret| {
                    !waiting
                        .iter()
                        .chain(&running)
                        .any(|step| step.serves(secret))
                })
                .cloned()
                .collect();
            for secret in settled {
                let outcome = open.remove(&secret).flatten().unwrap_or(Outcome::Done);
                ended(&secret, outcome);
            }
            let Some((step, result)) = futures.next().await else {
                return;
            };
            running.retain(|other| other.workload.id != step.workload.id);
            let verdict: Option<fn(&Step, String) -> Outcome> = match &result {
                Ok(Ended::Failed(_)) if step.halts => {
                    Some(|step, why| Outcome::Halted(step.workload.id.clone(), why))
                }
                Ok(Ended::Deferred(_)) | Err(_) => Some(|_, why| Outcome::Deferred(why)),
                _ => None,
            };
            let why = match &result {
                Ok(Ended::Failed(why)) => {
                    tell(Happening::Failed(&step, why));
                    why.clone()
                }
                Ok(Ended::Deferred(why)) => why.clone(),
                Ok(Ended::Rolled(took)) => {
                    tell(Happening::Rolled(&step, *took));
                    String::new()
                }
                Ok(Ended::Unchanged) => {
                    tell(Happening::Unchanged(&step));
                    String::new()
                }
                Err(error) => crate::cluster::chain(error),
            };
            if let Some(verdict) = verdict {
                for due in &step.leaves {
                    if let Some(outcome) = open.get_mut(&due.secret) {
                        outcome.get_or_insert_with(|| verdict(&step, why.clone()));
                    }
                }
            }
        }
    }

    async fn step(&self, namespace: &str, step: &Step) -> Result<Ended, Error> {
        let now = UnixTime::now();
        tokio::time::sleep(step.not_before.since(now)).await;
        let mut places = self.places(namespace).await;
        let Some(current) = get(&self.client, namespace, &step.workload.id).await? else {
            return Ok(Ended::Unchanged);
        };
        if current.paused {
            return Ok(Ended::Deferred(format!("{} is paused", current.id)));
        }
        let missing_before = missing(&current);
        // A rollout that somebody else has started is let finish, so that its pods are not replaced twice over.
        if !step.is_carried_by(&current) && is_rolling(&current) {
            let settled = wait::until(
                &self.client,
                namespace,
                &current,
                self.progress_timeout,
                &mut places,
                STALLED,
                |it| !is_rolling(it),
            );
            settled.await?;
        }
        let started = tokio::time::Instant::now();
        let Some(patched) = self.patch(namespace, step, current).await? else {
            return Ok(Ended::Unchanged);
        };
        let waited = match patched.strategy {
            Strategy::Rolling { .. } => {
                wait::available(
                    &self.client,
                    namespace,
                    &patched,
                    missing_before,
                    self.progress_timeout,
                    &mut places,
                    STALLED,
                )
                .await?
            }
            Strategy::OnDelete => {
                evict::replace(
                    &self.client,
                    namespace,
                    &patched,
                    step,
                    self.progress_timeout,
                    &mut places,
                    STALLED,
                )
                .await?
            }
        };
        Ok(match waited {
            wait::Waited::Done => Ended::Rolled(started.elapsed()),
            wait::Waited::Gone => Ended::Unchanged,
            wait::Waited::Failed(why) => Ended::Failed(why),
        })
    }

    /// Writes the leaves onto the template, unless they are there; None when the workload is gone.
    async fn patch(
        &self,
        namespace: &str,
        step: &Step,
        mut current: Workload,
    ) -> Result<Option<Workload>, Error> {
        let annotations: BTreeMap<String, String> = step
            .leaves
            .iter()
            .map(|due| (leaf_annotation(&due.secret), due.leaf.to_string()))
            .collect();
        let api = api(&self.client, namespace, current.id.kind);
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        for attempt in 1.. {
            if step.is_carried_by(&current) {
                return Ok(Some(current));
            }
            let body = Patch::Merge(json!({
                "metadata": {"uid": &*current.uid, "resourceVersion": &*current.resource_version},
                "spec": {"template": {"metadata": {"annotations": &annotations}}},
            }));
            let id = step.workload.id.clone();
            match call("patch", &id, namespace, || {
                api.patch(&id.name, &params, &body)
            })
            .await
            {
                Ok(object) => return Ok(Some(object.read(id.kind))),
                Err(error) if error.code() == Some(404) => return Ok(None),
                // Its controller writes the status all the time; what was read is looked at again.
                Err(error) if matches!(error.code(), Some(409 | 422)) && attempt < CONFLICTS => {}
                Err(error) => return Err(error),
            }
            match get(&self.client, namespace, &id).await? {
                Some(again) => current = again,
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    async fn places(&self, namespace: &str) -> Places {
        let own = {
            let mut namespaces = self
                .namespaces
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let own = namespaces
                .entry(namespace.into())
                .or_insert_with(|| Arc::new(Semaphore::new(self.per_namespace)));
            Arc::clone(own)
        };
        // The namespace's place first: who waits for it must hold no place that others could use.
        let namespace = own.acquire_owned().await.ok();
        let everywhere = Arc::clone(&self.everywhere).acquire_owned().await.ok();
        Places {
            everywhere,
            _namespace: namespace,
        }
    }
}

/// Pods of a DaemonSet that were unavailable before: those of dead nodes, which nobody can replace.
fn missing(workload: &Workload) -> i64 {
    (workload.status.wanted - workload.status.available).max(0)
}

fn shares(one: &Step, other: &Step) -> bool {
    one.leaves.iter().any(|due| other.serves(&due.secret))
}

/// A count from the config file.
pub(super) fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

//! Carries a plan out: canaries first, then the rest, each workload awaited until it is really available.
//!
//! What is done to one workload stands in `step.rs`; here is who starts when, and what a failure means for the others.
//! Everything may be cut off at any instant: what was done stands on the templates, and the next plan goes on from there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kube::Client;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::budget::Budget;
use super::error::Error;
use super::listing::Absent;
use super::steps::{Phase, Step};
use super::workload::get;
use crate::cluster::chain;
use crate::config::RolloutConfig;
use crate::secret::workload::WorkloadRef;

/// A workload that was patched so often within [`LOOP_WINDOW`] is fought over: somebody takes the annotation away again,
/// or two owners write the Secret in turn. With the default interval of five minutes between two rollouts no honest
/// renewal comes near it.
const LOOP_LIMIT: usize = 10;
const LOOP_WINDOW: Duration = Duration::from_secs(3_600);
/// Connections to pods at the same time, in the whole cluster.
const CONNECTIONS: usize = 64;

/// What all rollouts of a process share.
pub struct Roller {
    pub(super) client: Client,
    pub(super) budget: Arc<Budget>,
    pub(super) progress_timeout: Duration,
    pub(super) verify_grace: Duration,
    pub(super) reload_wait: Duration,
    pub(super) field_manager: Box<str>,
    /// Connections to pods: so many Secrets at once do not take all sockets.
    pub(super) connections: Arc<Semaphore>,
    /// What the cluster or our rights do not have.
    pub(super) absent: Absent,
    canary_bake: Duration,
    history: Arc<Mutex<History>>,
}

/// When each workload was patched, by namespace, within [`LOOP_WINDOW`].
type History = HashMap<(Box<str>, WorkloadRef), VecDeque<Instant>>;

/// How the rollout of one Secret ended.
#[derive(Debug)]
pub enum Outcome {
    /// Every workload has the leaf.
    Done,
    /// A workload failed; those that had not begun keep their pods.
    Halted(WorkloadRef, String),
    /// Something is paused: to be planned again, later.
    Deferred(String),
    /// The API server did not say how something stands: to be planned again, soon.
    Interrupted(String),
}

/// What happens, for logs, Events and metrics.
#[derive(Debug)]
pub enum Happening<'a> {
    /// It has the leaf and is available.
    Rolled(&'a Step, Duration),
    /// So many of its pods were asked to reload, and all did.
    Reloaded(&'a Step, usize),
    /// It had it already, or is gone.
    Unchanged(&'a Step),
    /// It did not become available.
    Failed(&'a Step, &'a str),
}

/// How a step ended.
#[derive(Debug)]
pub(super) enum Ended {
    Rolled(Duration),
    Reloaded(usize),
    Unchanged,
    /// It did not become available, and what that means.
    Failed(String, Weight),
    /// It is paused.
    Deferred(String),
    /// It was not begun: one of its Secrets was stopped while it waited for its turn.
    Skipped,
}

/// What a workload's failure means for the Secrets that it was rolled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// Nothing: it was unavailable before.
    None,
    /// The Secret is halted in the end, but the failure says nothing about the certificate: the others go on.
    Alone,
    /// The Secret is halted at once.
    Stops,
}

/// How it stands with the Secrets of a batch while their steps run.
pub(super) type Standings = Mutex<BTreeMap<Box<str>, Standing>>;

/// How it stands with one of them.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// What it will come to, unless it is `Done`.
    outcome: Option<Outcome>,
    /// No further step is started for it.
    stopped: bool,
}

impl Roller {
    /// Nothing rolls yet.
    #[must_use]
    pub fn new(client: Client, config: &RolloutConfig) -> Self {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        Self::with(client, config, connections, Arc::default())
    }

    /// The same under another config, for the time after all that rolls has ended: it remembers who fights over what.
    #[must_use]
    pub fn under(&self, config: &RolloutConfig) -> Self {
        let (connections, history) = (Arc::clone(&self.connections), Arc::clone(&self.history));
        Self::with(self.client.clone(), config, connections, history)
    }

    fn with(
        client: Client,
        config: &RolloutConfig,
        connections: Arc<Semaphore>,
        history: Arc<Mutex<History>>,
    ) -> Self {
        Self {
            client,
            budget: Arc::new(Budget::new(
                count(config.concurrency),
                count(config.per_namespace),
            )),
            progress_timeout: config.progress_timeout,
            verify_grace: config.verify_grace,
            reload_wait: config.reload_wait,
            field_manager: config.field_manager.clone(),
            connections,
            absent: Absent::default(),
            canary_bake: config.canary_bake,
            history,
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
        let standings: Standings = Mutex::new(
            secrets
                .iter()
                .map(|secret| (secret.clone(), Standing::default()))
                .collect(),
        );
        let standings = &standings;
        let listed = Instant::now();
        let mut waiting = steps;
        let mut running: Vec<Step> = Vec::new();
        let mut futures = FuturesUnordered::new();
        loop {
            waiting.retain(|step| !is_stopped(step, standings));
            let unfinished: Vec<Step> = waiting.iter().chain(&running).cloned().collect();
            let blocked = |step: &Step| {
                unfinished
                    .iter()
                    .any(|other| other.phase < step.phase && share(other, step))
            };
            for step in waiting.extract_if(.., |step| !blocked(step)) {
                running.push(step.clone());
                // Where nobody follows there is nobody to be spared.
                let bakes = step.phase == Phase::Canary
                    && unfinished
                        .iter()
                        .any(|other| other.phase > step.phase && share(other, &step));
                futures.push(async move {
                    let result = match self.step(namespace, &step, listed, standings).await {
                        Ok(Ended::Rolled(took)) if bakes => self.bake(namespace, &step, took).await,
                        result => result,
                    };
                    (step, result)
                });
            }
            lock(standings).retain(|secret, standing| {
                let open = waiting
                    .iter()
                    .chain(&running)
                    .any(|step| step.serves(secret));
                if !open {
                    ended(secret, standing.outcome.take().unwrap_or(Outcome::Done));
                }
                open
            });
            let Some((step, result)) = futures.next().await else {
                return;
            };
            running.retain(|other| other.workload.id != step.workload.id);
            match &result {
                Ok(Ended::Rolled(took)) => tell(Happening::Rolled(&step, *took)),
                Ok(Ended::Reloaded(pods)) => tell(Happening::Reloaded(&step, *pods)),
                Ok(Ended::Unchanged) => tell(Happening::Unchanged(&step)),
                Ok(Ended::Failed(why, _)) => tell(Happening::Failed(&step, why)),
                Ok(Ended::Deferred(_) | Ended::Skipped) | Err(_) => {}
            }
            conclude(&step, &result, standings);
        }
    }

    /// Watches a canary that has just come up: whoever fails a little later spares the others all the same.
    async fn bake(&self, namespace: &str, step: &Step, took: Duration) -> Result<Ended, Error> {
        if self.canary_bake.is_zero() {
            return Ok(Ended::Rolled(took));
        }
        tokio::time::sleep(self.canary_bake).await;
        let current = get(&self.client, namespace, &step.workload.id).await?;
        let well = current.is_none_or(|current| {
            !step.is_carried_by(&current) || !step.halts || current.is_available()
        });
        Ok(if well {
            Ended::Rolled(took)
        } else {
            let bake = crate::duration::human(self.canary_bake);
            let why = format!(
                "it came up with the new certificate, and {bake} later it is not available"
            );
            Ended::Failed(why, Weight::Stops)
        })
    }

    /// Notes that a workload is about to be patched; false where that has happened too often of late.
    pub(super) fn may_patch(&self, namespace: &str, workload: &WorkloadRef) -> bool {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        history.retain(|_, times| {
            while times
                .front()
                .is_some_and(|at| now.duration_since(*at) >= LOOP_WINDOW)
            {
                times.pop_front();
            }
            !times.is_empty()
        });
        let times = history
            .entry((namespace.into(), workload.clone()))
            .or_default();
        let may = times.len() < LOOP_LIMIT;
        if may {
            times.push_back(now);
        }
        may
    }
}

/// Why [`Roller::may_patch`] says no.
pub(super) fn fought_over() -> String {
    format!(
        "rolled {LOOP_LIMIT} times within {}: somebody takes its annotation away or writes the Secret again and again",
        crate::duration::human(LOOP_WINDOW)
    )
}

/// Whether a step may not start any more, because one of its Secrets is stopped. A restart would bring that Secret's leaf
/// too, so that the step's other Secrets stay without it as well, and end the same way.
pub(super) fn is_stopped(step: &Step, standings: &Standings) -> bool {
    let mut standing = lock(standings);
    let stopped = step
        .leaves
        .iter()
        .filter_map(|due| standing.get(&due.secret))
        .find(|it| it.stopped);
    let Some(outcome) = stopped.and_then(|it| it.outcome.as_ref()).map(again) else {
        return false;
    };
    for due in &step.leaves {
        if let Some(other) = standing.get_mut(&due.secret) {
            other.outcome.get_or_insert_with(|| again(&outcome));
        }
    }
    true
}

fn again(outcome: &Outcome) -> Outcome {
    match outcome {
        Outcome::Done => Outcome::Done,
        Outcome::Halted(workload, why) => Outcome::Halted(workload.clone(), why.clone()),
        Outcome::Deferred(why) => Outcome::Deferred(why.clone()),
        Outcome::Interrupted(why) => Outcome::Interrupted(why.clone()),
    }
}

/// What the end of a step means for its Secrets. A halt outweighs what is merely put off.
fn conclude(step: &Step, result: &Result<Ended, Error>, standings: &Standings) {
    let id = &step.workload.id;
    let (outcome, stops) = match result {
        Ok(
            Ended::Rolled(_)
            | Ended::Reloaded(_)
            | Ended::Unchanged
            | Ended::Skipped
            | Ended::Failed(_, Weight::None),
        ) => return,
        Ok(Ended::Failed(why, weight)) => (
            Outcome::Halted(id.clone(), why.clone()),
            *weight == Weight::Stops,
        ),
        Ok(Ended::Deferred(why)) => (Outcome::Deferred(why.clone()), false),
        // Nothing is known of the workload: as long as that is so, no other follows it.
        Err(error) => (
            Outcome::Interrupted(format!("{id}: {}", chain(error))),
            true,
        ),
    };
    let mut standing = lock(standings);
    for due in &step.leaves {
        let Some(it) = standing.get_mut(&due.secret) else {
            continue;
        };
        it.stopped |= stops;
        if !matches!(it.outcome, Some(Outcome::Halted(..))) {
            it.outcome = Some(again(&outcome));
        }
    }
}

fn lock(standings: &Standings) -> MutexGuard<'_, BTreeMap<Box<str>, Standing>> {
    standings.lock().unwrap_or_else(PoisonError::into_inner)
}

fn share(one: &Step, other: &Step) -> bool {
    one.leaves.iter().any(|due| other.serves(&due.secret))
}

/// A count from the config file.
pub(super) fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::certificate::Fingerprint;
    use crate::rollout::wire::tests::workload;
    use crate::rollout::{Due, How, Phase, Why};
    use crate::secret::workload::Kind;
    use crate::time::UnixTime;

    fn step(name: &str, secrets: &[&str]) -> Step {
        let due = |secret: &&str| Due {
            secret: (*secret).into(),
            leaf: Fingerprint([0; 32]),
            written: None,
            why: Why::Named,
            again: false,
        };
        Step {
            workload: workload(Kind::Deployment, json!({"metadata": {"name": name}})),
            how: How::Restart,
            phase: Phase::Rest,
            halts: true,
            leaves: secrets.iter().map(due).collect(),
            urgency: UnixTime(0),
            not_before: UnixTime(0),
        }
    }

    /// How it stands with Secrets a, b and c: `-` open, `h` halted, `d` put off, `i` interrupted; upper case when stopped.
    fn stands(standings: &Standings) -> String {
        let letter = |it: &Standing| {
            let letter = match it.outcome {
                None | Some(Outcome::Done) => '-',
                Some(Outcome::Halted(..)) => 'h',
                Some(Outcome::Deferred(_)) => 'd',
                Some(Outcome::Interrupted(_)) => 'i',
            };
            if it.stopped {
                letter.to_ascii_uppercase()
            } else {
                letter
            }
        };
        lock(standings).values().map(letter).collect()
    }

    fn standings() -> Standings {
        Mutex::new(
            ["a", "b", "c"]
                .map(|secret| (secret.into(), Standing::default()))
                .into(),
        )
    }

    #[test]
    fn a_failure_stops_the_secrets_that_it_concerns_and_no_others() {
        let why = || String::from("why");
        for (ended, expected) in [
            (Ok(Ended::Rolled(Duration::ZERO)), "---"),
            (Ok(Ended::Reloaded(2)), "---"),
            (Ok(Ended::Unchanged), "---"),
            (Ok(Ended::Failed(why(), Weight::None)), "---"),
            (Ok(Ended::Failed(why(), Weight::Alone)), "hh-"),
            (Ok(Ended::Failed(why(), Weight::Stops)), "HH-"),
            (Ok(Ended::Deferred(why())), "dd-"),
            (
                Err(Error::NoAnswer {
                    verb: "get",
                    what: why(),
                    namespace: "n".into(),
                    deadline: Duration::ZERO,
                }),
                "II-",
            ),
        ] {
            let standings = standings();
            conclude(&step("web", &["a", "b"]), &ended, &standings);
            assert_eq!(stands(&standings), expected, "{ended:?}");
        }
    }

    #[test]
    fn a_halt_outweighs_what_is_put_off() {
        let standings = standings();
        let halted = Ok(Ended::Failed("first".into(), Weight::Alone));
        conclude(
            &step("web", &["a"]),
            &Ok(Ended::Deferred("paused".into())),
            &standings,
        );
        conclude(&step("web", &["a"]), &halted, &standings);
        conclude(
            &step("web", &["a"]),
            &Ok(Ended::Deferred("paused".into())),
            &standings,
        );
        assert_eq!(stands(&standings), "h--");
    }

    #[test]
    fn a_workload_is_not_restarted_for_one_secret_while_another_of_its_is_stopped() {
        let standings = standings();
        conclude(
            &step("web", &["a"]),
            &Ok(Ended::Failed("why".into(), Weight::Stops)),
            &standings,
        );
        assert!(!is_stopped(&step("other", &["b", "c"]), &standings));
        assert!(is_stopped(&step("shared", &["a", "b"]), &standings));
        // b's other workloads may go on, yet it is not done.
        assert_eq!(stands(&standings), "Hh-");
        assert!(!is_stopped(&step("other", &["b"]), &standings));
    }
}

//! Carries out a plan: canaries first, then the rest. Waits for each workload until it is really available.
//!
//! `step.rs` rolls one workload; this file decides when each starts, and what a failure means for the others.
//! Everything may be cut off at any instant: the templates record what was done, and the next plan goes on from there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::Workload;
use cert_renew_core::rollout::answered::Answered;
use cert_renew_core::rollout::plan::count;
use cert_renew_core::rollout::queue::Queue;
use cert_renew_core::rollout::types::{Phase, Step};
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use futures::StreamExt as _;
use futures::future::{AbortHandle, abortable};
use futures::stream::{BoxStream, FuturesUnordered};
use kube::Client;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::api::get;
use super::concurrency::Budget;
use super::error::Error;
use super::history::History;
use super::listing::{self, Absent};
use super::looks::{Judge, Looks, Withdrawal};
use crate::rollout::permit::Look;

/// Most connections to pods at the same time, in the whole cluster and for one namespace: each pod that never answers
/// holds one for seconds, and the next free one goes to the namespace that has the fewest.
const CONNECTIONS: usize = 64;
const CONNECTIONS_PER_NAMESPACE: usize = 16;

/// What all rollouts of a process share.
pub struct Roller {
    pub(super) client: Client,
    pub(super) budget: Arc<Budget>,
    pub(super) progress_timeout: Duration,
    pub(super) verify_grace: Duration,
    pub(super) reload_wait: Duration,
    pub(super) field_manager: Box<str>,
    /// Limits connections to pods, so that many Secrets at once do not take all sockets.
    pub(super) connections: Arc<Budget>,
    /// What the cluster does not have, or our rights do not allow.
    pub(super) absent: Absent,
    /// Which pods have reloaded for which leaves.
    pub(super) answered: Arc<Answered>,
    canary_bake: Duration,
    /// The recent patches of each workload.
    history: Arc<Mutex<History>>,
}

/// How the rollout of one Secret ended.
#[derive(Debug)]
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

/// What is to be rolled.
pub struct Rollout<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The Secrets of the batch.
    pub secrets: &'a [Box<str>],
    /// The steps of their plan.
    pub steps: Vec<Step>,
    /// Judges a Secret of the batch again, before each effect.
    pub judge: &'a dyn Judge,
    /// The looks by which it was planned.
    pub looks: BTreeMap<Box<str>, Look>,
    /// When the first of them began.
    pub since: Instant,
    /// Secrets that may have changed: they are looked at without delay.
    pub hints: BoxStream<'a, Box<str>>,
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
pub(super) enum Ended {
    Rolled(Duration),
    Reloaded(usize),
    Unchanged,
    /// All pods have the leaf, but it is unavailable as it was before.
    Unavailable(String),
    /// Some pods lack the leaf, but not because of it: the workload was not well before, or holds pods back.
    Incomplete(String),
    /// It did not become available, and the consequence of that.
    Failed(String, Weight),
    /// It is paused.
    Deferred(String),
    /// It was not begun: one of its Secrets was stopped while it waited for its turn.
    Skipped,
    /// It ended early: this Secret was withdrawn.
    Withdrawn(Box<str>, Withdrawal),
}

/// What the steps of a batch share.
pub(super) struct Batch<'a> {
    pub(super) namespace: &'a str,
    pub(super) standings: Standings,
    pub(super) looks: Looks<'a>,
    /// When the workloads were listed, as far as a rollout knows.
    pub(super) listed: Instant,
    /// Steps that wait, and for what.
    pub(super) waits: mpsc::UnboundedSender<(Step, Turn)>,
}

/// What a workload's failure means for the Secrets that it was rolled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// The Secret is halted in the end, but the failure says nothing about the certificate: the others go on.
    Alone,
    /// The Secret is halted at once.
    Stops,
}

/// The progress of each Secret of a batch while their steps run.
pub(super) type Standings = Mutex<BTreeMap<Box<str>, Standing>>;

/// The progress of one Secret.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Its outcome so far, unless that is `Done`.
    outcome: Option<Outcome>,
    /// No further step is started for it.
    stopped: bool,
}

impl Roller {
    /// Creates it; nothing rolls yet.
    #[must_use]
    pub fn new(client: Client, config: &RolloutConfig) -> Self {
        let connections = Arc::new(Budget::new(CONNECTIONS, CONNECTIONS_PER_NAMESPACE));
        Self::with(client, config, connections, Arc::default(), Arc::default())
    }

    /// The same with another config, to use once no rollout runs. Keeps the patch history and which pods have reloaded.
    #[must_use]
    pub fn under(&self, config: &RolloutConfig) -> Self {
        let (connections, history) = (Arc::clone(&self.connections), Arc::clone(&self.history));
        let answered = Arc::clone(&self.answered);
        Self::with(self.client.clone(), config, connections, history, answered)
    }

    fn with(
        client: Client,
        config: &RolloutConfig,
        connections: Arc<Budget>,
        history: Arc<Mutex<History>>,
        answered: Arc<Answered>,
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
            answered,
            canary_bake: config.canary_bake,
            history,
        }
    }

    /// Rolls the steps of a plan, and reports for each Secret how it ended, as soon as that is known.
    pub async fn roll(
        &self,
        rollout: Rollout<'_>,
        mut tell: impl FnMut(Happening<'_>),
        mut ended: impl FnMut(&str, Outcome),
    ) {
        let Rollout {
            namespace,
            secrets,
            steps,
            judge,
            looks,
            since,
            mut hints,
        } = rollout;
        let (waits_for, mut waits) = mpsc::unbounded_channel();
        let standings = secrets.iter();
        let standings = standings.map(|secret| (secret.clone(), Standing::default()));
        let batch = Batch {
            namespace,
            standings: Mutex::new(standings.collect()),
            looks: Looks::new(judge, looks),
            listed: Instant::now(),
            waits: waits_for,
        };
        let batch = &batch;
        let mut queue = Queue::new(secrets, steps);
        let mut released = since;
        let mut running = FuturesUnordered::new();
        let mut handles: BTreeMap<usize, AbortHandle> = BTreeMap::new();
        let mut looking = FuturesUnordered::new();
        loop {
            for number in queue.begin() {
                let step = Arc::clone(queue.step(number));
                // No later phase: skip the bake.
                let bakes = step.phase == Phase::Canary && queue.is_followed(number);
                let (rolled, handle) = abortable(async move {
                    match self.step(batch, &step, released).await {
                        Ok(Ended::Rolled(took)) if bakes => self.bake(namespace, &step, took).await,
                        result => result,
                    }
                });
                handles.insert(number, handle);
                running.push(async move { (number, rolled.await) });
            }
            for secret in queue.take_closed() {
                let standing = lock(&batch.standings).remove(&secret);
                let outcome = standing.and_then(|it| it.outcome);
                ended(&secret, outcome.unwrap_or(Outcome::Done));
            }
            if running.is_empty() {
                return;
            }
            let stopped = tokio::select! {
                Some((number, result)) = running.next() => {
                    handles.remove(&number);
                    let step = Arc::clone(queue.step(number));
                    let stopped = match result {
                        Ok(result) => {
                            happened(&step, &result, &mut tell);
                            conclude(&step, &result, &batch.standings)
                        }
                        // Its Secrets are superseded.
                        Err(_) => Vec::new(),
                    };
                    queue.end(number);
                    stopped
                }
                Some((step, turn)) = waits.recv() => {
                    tell(Happening::Waits(&step, turn));
                    continue;
                }
                Some(secret) = hints.next() => {
                    looking.push(async move {
                        let looked = batch.looks.look(&secret).await;
                        (secret, looked)
                    });
                    continue;
                }
                Some((secret, looked)) = looking.next() => match looked {
                    Err(withdrawal) => {
                        let superseded = withdrawal.superseded;
                        withdraw(&secret, withdrawal, &batch.standings);
                        if superseded {
                            for number in queue.waiting_for(&secret) {
                                is_stopped(queue.step(number), &batch.standings);
                                queue.end(number);
                            }
                            for number in queue.close(&secret) {
                                if let Some(handle) = handles.remove(&number) {
                                    handle.abort();
                                }
                            }
                        }
                        vec![secret]
                    }
                    Ok(()) => continue,
                },
            };
            for secret in stopped {
                for number in queue.waiting_for(&secret) {
                    is_stopped(queue.step(number), &batch.standings);
                    queue.end(number);
                }
            }
            released = Instant::now();
        }
    }

    /// Watches a canary that has just become available: one that fails during the bake still stops the later phases.
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
            let bake = cert_renew_core::time::duration::human(self.canary_bake);
            let why = format!(
                "it came up with the new certificate, and {bake} later it is not available"
            );
            Ended::Failed(why, Weight::Stops)
        })
    }

    /// Notes that a workload is about to be patched for these leaves; false where it was recently patched for them too
    /// often.
    pub(super) fn may_patch(&self, namespace: &str, step: &Step) -> bool {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.may_patch(Instant::now(), namespace, step)
    }
}

/// Whether a step may no longer start because one of its Secrets is stopped. A restart would roll out that Secret's
/// leaf too, so the step's other Secrets stay without it as well, and end the same way.
pub(super) fn is_stopped(step: &Step, standings: &Standings) -> bool {
    let mut standing = lock(standings);
    let leaves = step.leaves.iter();
    let mut secrets = leaves.filter_map(|due| Some((&due.secret, standing.get(&due.secret)?)));
    let Some((secret, stopped)) = secrets.find(|(_, it)| it.stopped) else {
        return false;
    };
    let outcome = match &stopped.outcome {
        None => return false,
        Some(Outcome::Withdrawn(_)) => {
            let id = &step.workload.id;
            Outcome::Beside(format!("{id} uses Secret {secret} too, which has changed"))
        }
        Some(other) => again(other),
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
        Outcome::Incomplete(lacking) => Outcome::Incomplete(lacking.clone()),
        Outcome::Halted(workload, why) => Outcome::Halted(workload.clone(), why.clone()),
        Outcome::Deferred(why) => Outcome::Deferred(why.clone()),
        Outcome::Interrupted(why) => Outcome::Interrupted(why.clone()),
        Outcome::Withdrawn(withdrawal) => Outcome::Withdrawn(withdrawal.clone()),
        Outcome::Beside(why) => Outcome::Beside(why.clone()),
    }
}

fn happened(step: &Step, result: &Result<Ended, Error>, tell: &mut impl FnMut(Happening<'_>)) {
    match result {
        Ok(Ended::Rolled(took)) => tell(Happening::Rolled(step, *took)),
        Ok(Ended::Reloaded(pods)) => tell(Happening::Reloaded(step, *pods)),
        Ok(Ended::Unchanged) => tell(Happening::Unchanged(step)),
        Ok(Ended::Unavailable(why)) => tell(Happening::Unavailable(step, why)),
        Ok(Ended::Incomplete(why)) => tell(Happening::Incomplete(step, why)),
        Ok(Ended::Failed(why, _)) => tell(Happening::Failed(step, why)),
        Ok(Ended::Deferred(_) | Ended::Skipped | Ended::Withdrawn(..)) | Err(_) => {}
    }
}

/// Stops a Secret that was withdrawn. What it holds says more than how the rollout went.
fn withdraw(secret: &str, withdrawal: Withdrawal, standings: &Standings) {
    if let Some(it) = lock(standings).get_mut(secret) {
        it.stopped = true;
        it.outcome = Some(Outcome::Withdrawn(withdrawal));
    }
}

/// Applies the end of a step to its Secrets, and returns those that it stops. A halt outweighs a deferral, and that
/// outweighs pods that lack the leaf.
fn conclude(step: &Step, result: &Result<Ended, Error>, standings: &Standings) -> Vec<Box<str>> {
    let id = &step.workload.id;
    let (outcome, stops) = match result {
        Ok(
            Ended::Rolled(_)
            | Ended::Reloaded(_)
            | Ended::Unchanged
            | Ended::Unavailable(_)
            | Ended::Skipped,
        ) => return Vec::new(),
        Ok(Ended::Incomplete(why)) => (Outcome::Incomplete(vec![(id.clone(), why.clone())]), false),
        Ok(Ended::Failed(why, weight)) => (
            Outcome::Halted(id.clone(), why.clone()),
            *weight == Weight::Stops,
        ),
        Ok(Ended::Deferred(why)) => (Outcome::Deferred(why.clone()), false),
        Ok(Ended::Withdrawn(secret, withdrawal)) => {
            withdraw(secret, withdrawal.clone(), standings);
            is_stopped(step, standings);
            return vec![secret.clone()];
        }
        // The state of the workload is unknown: until it is known, no other follows it.
        Err(error) => (
            Outcome::Interrupted(format!("{id}: {}", error_chain(error))),
            true,
        ),
    };
    let (mut standing, mut stopped) = (lock(standings), Vec::new());
    for due in &step.leaves {
        let Some(it) = standing.get_mut(&due.secret) else {
            continue;
        };
        if stops {
            it.stopped = true;
            stopped.push(due.secret.clone());
        }
        match (&mut it.outcome, &outcome) {
            (Some(Outcome::Halted(..) | Outcome::Withdrawn(_)), _)
            | (
                Some(Outcome::Deferred(_) | Outcome::Interrupted(_) | Outcome::Beside(_)),
                Outcome::Incomplete(_),
            ) => {}
            (Some(Outcome::Incomplete(all)), Outcome::Incomplete(more)) => {
                all.extend(more.iter().cloned());
            }
            (it, _) => *it = Some(again(&outcome)),
        }
    }
    stopped
}

fn lock(standings: &Standings) -> MutexGuard<'_, BTreeMap<Box<str>, Standing>> {
    standings.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Roller {
    /// [`super::list`], without asking each time for what cannot be listed.
    ///
    /// # Errors
    /// As [`super::list`].
    pub async fn list(&self, namespace: &str) -> Result<Vec<Workload>, Error> {
        listing::all(&self.absent, &self.client, namespace).await
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::pending;

    use cert_renew_core::testing::of_secrets as step;
    use cert_renew_core::time::UnixTime;
    use futures::FutureExt as _;
    use http::{Request, Response};
    use kube::client::Body;
    use tower::service_fn;

    use super::*;

    /// The progress of Secrets a, b and c: `-` open, `h` halted, `d` deferred, `i` interrupted,
    /// else how many workloads lack the leaf; upper case when stopped.
    fn stands(standings: &Standings) -> String {
        let letter = |it: &Standing| {
            let letter = match &it.outcome {
                None | Some(Outcome::Done) => '-',
                Some(Outcome::Incomplete(lacking)) => {
                    char::from_digit(u32::try_from(lacking.len()).unwrap(), 10).unwrap()
                }
                Some(Outcome::Halted(..)) => 'h',
                Some(Outcome::Deferred(_)) => 'd',
                Some(Outcome::Interrupted(_)) => 'i',
                Some(Outcome::Withdrawn(_)) => 'w',
                Some(Outcome::Beside(_)) => 'b',
            };
            if it.stopped {
                letter.to_ascii_uppercase()
            } else {
                letter
            }
        };
        lock(standings).values().map(letter).collect()
    }

    #[tokio::test]
    async fn one_namespace_does_not_hold_all_connections_to_pods() {
        let silent = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
        let roller = Roller::new(Client::new(silent, "n"), &RolloutConfig::default());
        let place = |namespace| {
            let place = roller.connections.place(namespace, UnixTime::NEVER);
            place.now_or_never()
        };
        let held: Vec<_> = std::iter::from_fn(|| place("slow")).collect();
        assert_eq!(held.len(), CONNECTIONS / 4);
        assert!(place("other").is_some());
    }

    fn withdrawal() -> Withdrawal {
        Withdrawal {
            at: UnixTime(0),
            why: None,
            superseded: false,
            shut: false,
        }
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
            (Ok(Ended::Unavailable(why())), "---"),
            (Ok(Ended::Incomplete(why())), "11-"),
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
            (Ok(Ended::Withdrawn("a".into(), withdrawal())), "Wb-"),
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
    fn those_that_lack_the_leaf_are_gathered_and_outweighed_by_what_is_put_off() {
        let standings = standings();
        for name in ["web", "db"] {
            let lacks = Ok(Ended::Incomplete("1 pod".into()));
            conclude(&step(name, &["a", "b"]), &lacks, &standings);
        }
        assert_eq!(stands(&standings), "22-");
        for (ended, expected) in [
            (Ended::Deferred("paused".into()), "d2-"),
            (Ended::Incomplete("1 pod".into()), "d2-"),
            (Ended::Failed("why".into(), Weight::Alone), "h2-"),
            (Ended::Incomplete("1 pod".into()), "h2-"),
        ] {
            conclude(&step("other", &["a"]), &Ok(ended), &standings);
            assert_eq!(stands(&standings), expected);
        }
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
        // b's other workloads may go on, but b is not done.
        assert_eq!(stands(&standings), "Hh-");
        assert!(!is_stopped(&step("other", &["b"]), &standings));
    }
}

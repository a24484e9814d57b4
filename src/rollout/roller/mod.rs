//! Carries out a plan: canaries first, then the rest. Waits for each workload until it is really available.
//!
//! `step.rs` rolls one workload; this file decides when each starts, and what a failure means for the others.
//! Everything may be cut off at any instant: the templates record what was done, and the next plan goes on from there.

mod evict;
mod history;
pub(super) mod looks;
mod outcome;
mod standings;
mod step;
pub(super) mod wait;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::Workload;
use cert_renew_core::rollout::answered::Answered;
use cert_renew_core::rollout::plan::count;
use cert_renew_core::rollout::queue::Queue;
use cert_renew_core::rollout::types::{Phase, Step};
use cert_renew_core::time::UnixTime;
use futures::StreamExt as _;
use futures::future::{AbortHandle, abortable};
use futures::stream::{BoxStream, FuturesUnordered};
use kube::Client;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::history::History;
use self::looks::{Judge, Looks};
pub(super) use self::outcome::{Consequence, Ended};
pub use self::outcome::{Happening, Outcome, Turn};
use self::standings::Standings;
use crate::process::budget::{Budget, HeldPlace};
use crate::process::permit::Look;
use crate::rollout::error::Error;
use crate::rollout::listing::api::get;
use crate::rollout::listing::{self, Absent};

/// Most connections to pods at the same time, in the whole cluster and for one namespace: each pod that never answers
/// holds one for seconds, and the next free one goes to the namespace that has the fewest.
const CONNECTIONS: usize = 64;
const CONNECTIONS_PER_NAMESPACE: usize = 16;
/// Most requests of conclusions, and lists of pods that may be asked, at the same time, in the whole cluster and for one
/// namespace: an answer may be as large as a Secret, and the rollouts of thousands of Secrets may end at the same moment.
const REQUESTS: usize = 8;
const REQUESTS_PER_NAMESPACE: usize = 4;
/// Most lists of pods that are held while their pods are asked, in the whole cluster and for one namespace. Thousands of
/// Secrets may have the same pods, and pods that do not answer hold a list for long: each takes up to 5 s of 16 that are
/// asked at once what they serve, and up to 47 s of four that are asked to reload. So a hundred silent pods hold a list
/// for half a minute or for twenty, with free connections; it is passed on to others that wait after ten. It takes 16
/// namespaces of such pods to hold all lists.
const LISTS: usize = 32;
const LISTS_PER_NAMESPACE: usize = 2;

/// What all rollouts of a process share.
pub struct Roller {
    pub(super) client: Client,
    pub(super) budget: Arc<Budget>,
    /// Time without progress after which a rollout has failed (`rollout.progressTimeout`).
    pub(super) progress_timeout: Duration,
    /// How long a pod is asked again before it counts as one that serves the old leaf (`rollout.verifyGrace`).
    pub(super) verify_grace: Duration,
    /// Time from a write of the Secret until its pods have the files (`rollout.reloadWait`).
    pub(super) reload_wait: Duration,
    pub(super) field_manager: Box<str>,
    /// Limits connections to pods, so that many Secrets at once do not take all sockets.
    pub(super) connections: Arc<Budget>,
    /// Limits requests to the API server, for the same reason.
    requests: Arc<Budget>,
    /// Limits the lists of pods that are held, for the sake of memory.
    lists: Arc<Budget>,
    /// What the cluster does not have, or our rights do not allow.
    pub(super) absent: Absent,
    /// Which pods have reloaded for which leaves.
    pub(super) answered: Arc<Answered>,
    canary_bake: Duration,
    /// The recent patches of each workload.
    history: Arc<Mutex<History>>,
}

/// What is to be rolled.
pub struct Rollout<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The Secrets of the batch.
    pub secrets: &'a [Box<str>],
    /// The steps of their plan.
    pub steps: Vec<Arc<Step>>,
    /// Judges a Secret of the batch again, before each effect.
    pub judge: &'a dyn Judge,
    /// The looks by which it was planned.
    pub looks: BTreeMap<Box<str>, Look>,
    /// When the first of them began.
    pub since: Instant,
    /// Secrets that may have changed: they are looked at without delay.
    pub hints: BoxStream<'a, Box<str>>,
}

/// What the steps of a batch share.
pub(super) struct Batch<'a> {
    pub(super) namespace: &'a str,
    pub(super) standings: Standings,
    pub(super) looks: Looks<'a>,
    /// When the workloads were listed, as far as a rollout knows.
    pub(super) listed: Instant,
    /// Steps that wait, and for what.
    pub(super) waits: mpsc::UnboundedSender<(Arc<Step>, Turn)>,
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
        Self {
            requests: Arc::clone(&self.requests),
            lists: Arc::clone(&self.lists),
            ..Self::with(self.client.clone(), config, connections, history, answered)
        }
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
            requests: Arc::new(Budget::new(REQUESTS, REQUESTS_PER_NAMESPACE)),
            lists: Arc::new(Budget::new(LISTS, LISTS_PER_NAMESPACE)),
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
        let batch = Batch {
            namespace,
            standings: Standings::new(secrets),
            looks: Looks::new(judge, looks),
            listed: Instant::now(),
            waits: waits_for,
        };
        let batch = &batch;
        let mut queue = Queue::new(secrets, steps);
        let mut released = since;
        let mut running = FuturesUnordered::new();
        let mut handles: BTreeMap<usize, AbortHandle> = BTreeMap::new();
        let (mut hinted, mut looking) = (BTreeSet::<Box<str>>::new(), FuturesUnordered::new());
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
                let outcome = batch.standings.take(&secret);
                ended(&secret, outcome);
            }
            if running.is_empty() {
                return;
            }
            while looking.len() < looks::AT_ONCE
                && let Some(secret) = hinted.pop_first()
            {
                looking.push(async move {
                    let looked = batch.looks.look(&secret).await;
                    (secret, looked)
                });
            }
            let stopped = tokio::select! {
                Some((number, result)) = running.next() => {
                    handles.remove(&number);
                    let step = Arc::clone(queue.step(number));
                    let stopped = match result {
                        Ok(result) => {
                            if let Ok(ended) = &result
                                && let Some(happening) = ended.happening(&step)
                            {
                                tell(happening);
                            }
                            batch.standings.conclude(&step, &result)
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
                    hinted.insert(secret);
                    continue;
                }
                Some((secret, looked)) = looking.next() => match looked {
                    Err(withdrawal) => {
                        let superseded = withdrawal.superseded;
                        batch.standings.withdraw(&secret, withdrawal);
                        if superseded {
                            for number in queue.waiting_for(&secret) {
                                batch.standings.is_stopped(queue.step(number));
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
                    batch.standings.is_stopped(queue.step(number));
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
            Ended::Failed(why, Consequence::Stops)
        })
    }

    /// Notes that a workload is about to be patched for these leaves; false where it was recently patched for them too
    /// often.
    pub(super) fn may_patch(&self, namespace: &str, step: &Step) -> bool {
        let mut history = self.history.lock();
        history.may_patch(Instant::now(), namespace, step)
    }

    /// A place for one of the requests that thousands of conclusions may want to send at once. It is given back when it
    /// is dropped, and not held over waits for anything else.
    pub(super) async fn place_for_request(&self, namespace: &str) -> HeldPlace {
        self.requests.place(namespace, UnixTime::NEVER).await
    }

    /// A place for a list of pods, from before it is requested until the last of its pods has been asked.
    pub(super) async fn place_for_list(&self, namespace: &str) -> HeldPlace {
        self.lists.place(namespace, UnixTime::NEVER).await
    }

    /// [`listing::list`], without asking each time for what cannot be listed.
    ///
    /// # Errors
    /// As [`listing::list`].
    pub async fn list(&self, namespace: &str) -> Result<Vec<Workload>, Error> {
        listing::all(&self.absent, &self.client, namespace).await
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::BoxFuture;
    use futures::{FutureExt as _, stream};
    use http::{Request, Response};
    use kube::client::Body;
    use tower::service_fn;

    use super::*;

    struct Yes;

    impl Judge for Yes {
        fn judge<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), looks::Withdrawal>> {
            async { Ok(()) }.boxed()
        }
    }

    /// Counts the looks that run at the same time; none of them ends.
    #[derive(Default)]
    struct Never(AtomicUsize);

    impl Judge for Never {
        fn judge<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), looks::Withdrawal>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            pending().boxed()
        }
    }

    /// Each reads a whole Secret.
    #[tokio::test(start_paused = true)]
    async fn a_few_secrets_that_have_changed_are_looked_at_at_a_time() {
        let silent = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
        let roller = Roller::new(Client::new(silent, "n"), &RolloutConfig::default());
        let names: Vec<Box<str>> = (0..1_000).map(|it| format!("tls-{it}").into()).collect();
        let texts: Vec<&str> = names.iter().map(|it| &**it).collect();
        let judge = Never::default();
        let rollout = Rollout {
            namespace: "shop",
            secrets: &names,
            steps: vec![Arc::new(cert_renew_core::testing::of_secrets(
                "web", &texts,
            ))],
            judge: &judge,
            looks: BTreeMap::new(),
            since: Instant::now(),
            hints: stream::iter(names.clone()).chain(stream::pending()).boxed(),
        };
        let rolled = roller.roll(rollout, |_| {}, |_, _| {});
        let rolled = tokio::time::timeout(Duration::from_secs(5), rolled).await;
        assert!(rolled.is_err(), "it waits for ever");
        let running = judge.0.load(Ordering::Relaxed);
        // The step looks at its own, as many at a time.
        assert!(
            (looks::AT_ONCE..=2 * looks::AT_ONCE).contains(&running),
            "{running}"
        );
    }

    #[tokio::test]
    async fn a_step_that_waits_takes_no_more_than_it_is_weighed_with() {
        let silent = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
        let roller = Roller::new(Client::new(silent, "n"), &RolloutConfig::default());
        let step = Arc::new(cert_renew_core::testing::of_secrets("web", &["tls"]));
        let batch = Batch {
            namespace: "shop",
            standings: Standings::new(&[]),
            looks: Looks::new(&Yes, BTreeMap::new()),
            listed: Instant::now(),
            waits: mpsc::unbounded_channel().0,
        };
        let future = roller.step(&batch, &step, Instant::now());
        // Its place in the set of running steps, and in that of the waiting ones.
        const BESIDE: usize = 512;
        let bytes = size_of_val(&future) + BESIDE;
        assert!(bytes <= Step::WAITS, "{bytes}");
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
}

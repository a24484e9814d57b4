//! From a changed Secret to its patched workload, as a client sees both: it writes the one and watches the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, Reference, workload};
use test_bench::{Bench, Operator, Options, Result, ensure, eventually};
use tokio::task::JoinHandle;

use crate::data::{Maker, Set, in_parallel};
use crate::process::usage;
use crate::report::{Report, percentile, say};
use crate::steps::{self, Change};
use crate::{audit, options};

/// Secrets, each with one Deployment.
pub(crate) const COUNT: usize = 200;
pub(crate) const NAMESPACES: usize = 20;
/// A node takes 110 pods, and while they roll there are two of each.
const NODES: usize = 8;
/// Five changes a second, each Secret once.
const PACE: Duration = Duration::from_millis(200);
/// Nothing of this takes longer on a machine that works at all.
const DEADLINE: Duration = Duration::from_secs(300);
/// A needless restart would have come by then.
pub(crate) const QUIET: Duration = Duration::from_secs(3);
/// Time between two looks at all Deployments.
const LOOK: Duration = Duration::from_secs(1);
/// Label edits, and as many certificates that are written in another way.
const EDITS: usize = 50;
/// Secrets that change while nobody looks.
const MISSED: usize = 20;

/// Rolls at once and all at once: what is measured is the operator, not its caution.
pub(crate) const CONFIG: &str = "rollout: {settle: 0s, perWorkloadMinInterval: 0s, concurrency: 1000, perNamespace: 1000, canaryWorkloads: 0}\n";

/// When each Deployment was last seen with a new template, and how often.
type Seen = Arc<Mutex<HashMap<String, (i64, Instant)>>>;

/// See the module's documentation.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let with = Options {
        nodes: NODES,
        ..Options::default()
    };
    let bench = Bench::start(with).await?;
    let mut wanted = options();
    wanted.config = CONFIG.into();
    let mut operator = Operator::install(&bench, wanted).await?;
    let scale = Scale {
        secrets: COUNT,
        namespaces: NAMESPACES,
        workloads: 1,
        replicas: 1,
    };
    let (world, follower) = World::lay(&bench, "roll", operator.namespace(), scale).await?;
    settled(&world.client).await?;
    operator.run().await?;

    say("five changes a second");
    let before = usage(operator.process()?.id())?;
    let mark = audit::mark(&bench)?;
    let changes = world.change_in_turn(2).await?;
    let after = usage(operator.process()?.id())?;
    let mut took: Vec<Duration> = changes.iter().map(Change::took).collect();
    let since = |it: &Change| it.seen.saturating_duration_since(it.began);
    let mut from_request: Vec<Duration> = changes.iter().map(since).collect();
    report.add("propagation.p50_ms", percentile(&mut took, 0.5), "ms");
    report.add("propagation.p99_ms", percentile(&mut took, 0.99), "ms");
    report.add(
        "propagation.from_request_p50_ms",
        percentile(&mut from_request, 0.5),
        "ms",
    );
    report.add(
        "propagation.cpu_ms_per_change",
        (after.cpu - before.cpu) * 1e3 / COUNT as f64,
        "ms",
    );
    let requests = audit::requests(&bench, &mark)?;
    steps::add(report, &requests, &audit::user(&operator), &changes)?;
    settled(&world.client).await?;
    tokio::time::sleep(QUIET).await;

    say("all at once");
    let mark = audit::mark(&bench)?;
    let (changed, burst) = world.change_all(3).await?;
    report.add("propagation.burst_200_seconds", burst.as_secs_f64(), "s");
    report.add(
        "propagation.burst_200_written_seconds",
        changed.as_secs_f64(),
        "s",
    );
    if let Err(error) = settled(&world.client).await {
        // The figures so far hold; what comes next only waits for no restart.
        eprintln!("  after the burst: {error:#}");
    }
    tokio::time::sleep(QUIET).await;
    let counts = audit::since(&bench, &operator, &mark)?;
    let each = |count: usize| count as f64 / COUNT as f64;
    report.add(
        "propagation.lists_per_change.burst_200",
        each(counts.lists),
        "requests",
    );
    report.add(
        "propagation.requests_per_change.burst_200",
        each(counts.requests),
        "requests",
    );

    say("nothing that matters changes");
    let generations = world.generations();
    for number in 0..EDITS {
        let label = json!({"metadata": {"labels": {"edited": "yes"}}});
        world.patch(number, label).await?;
        let current = world.secrets(number).get(&Set::name(number)).await?;
        let text = current
            .data
            .and_then(|data| data.get("tls.crt").cloned())
            .unwrap_or_default();
        let text = String::from_utf8(text.0)?.replace('\n', "\r\n");
        world
            .patch(number, json!({"stringData": {"tls.crt": text}}))
            .await?;
    }
    tokio::time::sleep(QUIET).await;
    let needless: i64 = world.generations() - generations;
    report.add("propagation.needless_restarts", needless as f64, "restarts");

    say("changes while it is down");
    operator.kill();
    for number in 0..MISSED {
        world.change(number).await?;
    }
    operator.run().await?;
    // A Secret that is not caught up by then never will be.
    let _ = world.rolled(0..MISSED, 4).await;
    let caught = (0..MISSED)
        .filter(|number| world.generation(*number) >= 4)
        .count();
    report.add("propagation.caught_up_of_20", caught as f64, "Secrets");
    follower.abort();
    Ok(())
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) secrets: usize,
    pub(crate) namespaces: usize,
    /// Deployments of each Secret, and the pods of each of these.
    pub(crate) workloads: usize,
    pub(crate) replicas: i64,
}

/// Secrets, the Deployments that use them, and what was seen of these.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) client: Client,
    set: Arc<Set>,
    maker: Arc<Maker>,
    seen: Seen,
    scale: Scale,
}

impl World {
    /// Makes all of it, in namespaces that begin with `prefix` and for the operator of this class, and follows all
    /// Deployments until the task is aborted.
    pub(crate) async fn lay(
        bench: &Bench,
        prefix: &'static str,
        class: &str,
        scale: Scale,
    ) -> Result<(Self, JoinHandle<()>)> {
        let seen = Seen::default();
        let follower = tokio::spawn(follow(bench.client()?, Arc::clone(&seen)));
        let world = Self::make(bench, prefix, class, (scale, seen)).await?;
        Ok((world, follower))
    }

    /// As much again, whose Deployments are followed already.
    pub(crate) async fn beside(
        &self,
        bench: &Bench,
        prefix: &'static str,
        class: &str,
    ) -> Result<Self> {
        let shared = (self.scale, Arc::clone(&self.seen));
        Self::make(bench, prefix, class, shared).await
    }

    async fn make(
        bench: &Bench,
        prefix: &'static str,
        class: &str,
        (scale, seen): (Scale, Seen),
    ) -> Result<Self> {
        let set = Arc::new(Set {
            prefix,
            count: scale.secrets,
            namespaces: scale.namespaces,
            class: class.to_owned(),
            issuer: "external",
            annotated: 1,
            settled: true,
            used: false,
            age: None,
        });
        let maker = Arc::new(Maker::new()?);
        set.fill(bench, &maker).await?;
        let client = bench.client()?;
        let owned = Arc::clone(&set);
        let made = move |client, number: usize| {
            let (secret, workload_of) = (number / scale.workloads, number % scale.workloads);
            let api: Api<Deployment> = Api::namespaced(client, &owned.namespace(secret));
            async move {
                let (name, secret) = (name(secret, workload_of), Set::name(secret));
                let body = workload(
                    "Deployment",
                    &name,
                    scale.replicas,
                    Reference::Volume,
                    &secret,
                );
                api.create(&PostParams::default(), &serde_json::from_value(body)?)
                    .await?;
                Ok(())
            }
        };
        let count = scale.secrets * scale.workloads;
        in_parallel("making Deployments", count, &client, made).await?;
        Ok(Self {
            client,
            set,
            maker,
            seen,
            scale,
        })
    }

    /// Changes each Secret, five a second, until all Deployments were seen with this generation.
    pub(crate) async fn change_in_turn(&self, generation: i64) -> Result<Vec<Change>> {
        let mut written = Vec::new();
        let mut turn = tokio::time::interval(PACE);
        for number in 0..self.scale.secrets {
            turn.tick().await;
            written.push(self.change(number).await?);
        }
        self.rolled(0..self.scale.secrets, generation).await?;
        let change = |(number, (began, answered))| Change {
            namespace: self.set.namespace(number),
            secret: Set::name(number),
            deployment: name(number, 0),
            began,
            answered,
            seen: self.seen_at(number),
        };
        Ok(written.into_iter().enumerate().map(change).collect())
    }

    /// Changes all Secrets as fast as it goes; says how long that took, and how long until all Deployments were patched.
    pub(crate) async fn change_all(&self, generation: i64) -> Result<(Duration, Duration)> {
        self.burst(generation, false).await
    }

    /// The same, and this client patches the Deployments itself: it knows them, looks at nothing and waits for nothing.
    pub(crate) async fn change_and_patch_all(
        &self,
        generation: i64,
    ) -> Result<(Duration, Duration)> {
        self.burst(generation, true).await
    }

    async fn burst(&self, generation: i64, patches: bool) -> Result<(Duration, Duration)> {
        let (all, began) = (self.clone(), Instant::now());
        in_parallel(
            "changing",
            self.scale.secrets,
            &self.client,
            move |_, number| {
                let world = all.clone();
                async move {
                    world.change(number).await?;
                    if patches {
                        world.patch_deployments(number, generation).await?;
                    }
                    Ok(())
                }
            },
        )
        .await?;
        let changed = began.elapsed();
        self.rolled(0..self.scale.secrets, generation).await?;
        let last = (0..self.scale.secrets)
            .map(|number| self.seen_at(number))
            .max();
        let patched = last.map_or(Duration::ZERO, |last| last.duration_since(began));
        Ok((changed, patched))
    }

    fn secrets(&self, number: usize) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.set.namespace(number))
    }

    async fn patch(&self, number: usize, patch: Value) -> Result<()> {
        self.secrets(number)
            .patch_metadata(
                &Set::name(number),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await?;
        Ok(())
    }

    /// As the operator patches the Deployments of a Secret, all at once.
    async fn patch_deployments(&self, number: usize, generation: i64) -> Result<()> {
        let api: Api<Deployment> =
            Api::namespaced(self.client.clone(), &self.set.namespace(number));
        let patch = Patch::Merge(template(&Set::name(number), &generation.to_string()));
        let names: Vec<String> = (0..self.scale.workloads)
            .map(|it| name(number, it))
            .collect();
        let params = PatchParams::default();
        let mut patches = Vec::new();
        for name in &names {
            patches.push(api.patch(name, &params, &patch));
        }
        try_join_all(patches).await?;
        Ok(())
    }

    /// Puts another certificate in; says when that was asked for and when it was answered.
    async fn change(&self, number: usize) -> Result<(Instant, Instant)> {
        let pair = self.maker.pair(&self.set.host(number), number, FRESH)?;
        let data = json!({"stringData": {"tls.crt": pair.certificate, "tls.key": pair.key}});
        let began = Instant::now();
        self.patch(number, data).await?;
        Ok((began, Instant::now()))
    }

    /// Generation of the Deployments of a Secret, the lowest, and when the last of them came there.
    fn last(&self, number: usize) -> Option<(i64, Instant)> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let namespace = self.set.namespace(number);
        let each = (0..self.scale.workloads).map(|it| format!("{namespace}/{}", name(number, it)));
        let each: Option<Vec<_>> = each.map(|key| seen.get(&key).copied()).collect();
        let each = each?;
        let lowest = each.iter().map(|(generation, _)| *generation).min()?;
        let latest = each.iter().map(|(_, at)| *at).max()?;
        Some((lowest, latest))
    }

    fn generation(&self, number: usize) -> i64 {
        self.last(number).map_or(0, |(generation, _)| generation)
    }

    fn generations(&self) -> i64 {
        (0..self.scale.secrets)
            .map(|number| self.generation(number))
            .sum()
    }

    fn seen_at(&self, number: usize) -> Instant {
        self.last(number).map_or_else(Instant::now, |(_, at)| at)
    }

    async fn rolled(&self, numbers: std::ops::Range<usize>, generation: i64) -> Result<()> {
        eventually(DEADLINE, "every workload is patched", async || {
            for number in numbers.clone() {
                let at = self.generation(number);
                ensure!(at >= generation, "{} is at {at}", Set::name(number));
            }
            Ok(())
        })
        .await
    }
}

/// A patch of a pod template as the operator makes it: one annotation that names the Secret.
pub(crate) fn template(secret: &str, value: &str) -> Value {
    let annotations = json!({format!("state.cert-renew.io/leaf.{secret}"): value});
    json!({"spec": {"template": {"metadata": {"annotations": annotations}}}})
}

/// Of a Deployment of a Secret.
fn name(secret: usize, workload: usize) -> String {
    format!("{}-{workload}", Set::name(secret))
}

/// Every pod is there, so that nothing of an earlier step still runs.
pub(crate) async fn settled(client: &Client) -> Result<()> {
    let api: Api<Deployment> = Api::all(client.clone());
    eventually(DEADLINE, "every Deployment is available", async || {
        for deployment in api.list(&ListParams::default()).await? {
            let status = deployment.status.unwrap_or_default();
            let at_rest = status.observed_generation == deployment.metadata.generation
                && status.updated_replicas == Some(1)
                && status.available_replicas == Some(1)
                && status.replicas == Some(1);
            ensure!(at_rest, "{:?} is not", deployment.metadata.name);
        }
        Ok(())
    })
    .await
}

/// The controllers have seen every Deployment as it is, where none has pods.
pub(crate) async fn at_rest(client: &Client) -> Result<()> {
    let api: Api<Deployment> = Api::all(client.clone());
    eventually(DEADLINE, "every Deployment is observed", async || {
        // Such a list may be long.
        tokio::time::sleep(LOOK).await;
        for deployment in api.list(&ListParams::default()).await? {
            let observed = deployment.status.and_then(|it| it.observed_generation);
            let metadata = deployment.metadata;
            ensure!(
                observed == metadata.generation,
                "{:?} is not",
                metadata.name
            );
        }
        Ok(())
    })
    .await
}

async fn follow(client: Client, seen: Seen) {
    let config = watcher::Config::default();
    let mut events = std::pin::pin!(watcher(Api::<Deployment>::all(client), config));
    while let Some(event) = events.next().await {
        let Ok(Event::Apply(deployment) | Event::InitApply(deployment)) = event else {
            continue;
        };
        let now = Instant::now();
        let metadata = deployment.metadata;
        let key = format!(
            "{}/{}",
            metadata.namespace.unwrap_or_default(),
            metadata.name.unwrap_or_default()
        );
        let generation = metadata.generation.unwrap_or_default();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.entry(key).or_insert((0, now));
        if known.0 != generation {
            *known = (generation, now);
        }
    }
}

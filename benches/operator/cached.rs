//! The operator beside a tool that caches, on one API server: in turn, the one, the other, and once more, so that what
//! wears off on the way wears off for both.
//!
//! The other tool is what such tools are at their heart, and does less: `tests/control-plane/cached` keeps every Secret and
//! every workload, and patches at once. Its requests are not throttled. In the same run, changes are followed by a client
//! that keeps nothing too ([`bare_rollout`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use test_bench::{Bench, CachedClient, Operator, Options, Result, ensure, eventually};

use crate::data::{Maker, Set};
use crate::process::{Usage, usage};
use crate::propagation::{CONFIG, COUNT, NAMESPACES, QUIET, Scale, World};
use crate::report::{Report, percentile, say};
use crate::{audit, bare_rollout, options};

/// How often each is measured, in turn.
const ROUNDS: i64 = 2;
/// After the start: what was needed for it only has been given back by then.
const CALM: Duration = Duration::from_secs(10);
/// Nothing of this takes longer on a machine that works at all.
const DEADLINE: Duration = Duration::from_secs(60);

/// Changes, and starts with 10,000 and with 100,000 Secrets.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    changes(report).await?;
    starts(report, 10).await?;
    starts(report, 100).await
}

/// What one of them took.
#[derive(Default)]
struct Took {
    /// Five changes a second.
    single: Vec<Duration>,
    /// All at once, until the last Deployment was seen patched.
    bursts: Duration,
    /// Requests of the single changes, and of the bursts.
    requests: [usize; 2],
}

impl Took {
    /// One round, while it runs: each Secret changes in turn, then all at once.
    async fn measure(
        &mut self,
        bench: &Bench,
        world: &World,
        user: &str,
        round: i64,
    ) -> Result<()> {
        tokio::time::sleep(QUIET).await;
        let mark = audit::mark(bench)?;
        let changes = world.change_in_turn(2 * round + 2).await?;
        self.single.extend(changes.iter().map(|it| it.took()));
        tokio::time::sleep(QUIET).await;
        self.requests[0] += audit::since_by(bench, user, &mark)?.requests;
        let mark = audit::mark(bench)?;
        let (_, burst) = world.change_all(2 * round + 3).await?;
        self.bursts += burst;
        tokio::time::sleep(QUIET).await;
        self.requests[1] += audit::since_by(bench, user, &mark)?.requests;
        Ok(())
    }

    /// Its own figures, under its name; median and 99th percentile.
    fn add(&mut self, report: &mut Report, name: &str) -> (f64, f64) {
        let p50 = percentile(&mut self.single, 0.5);
        let p99 = percentile(&mut self.single, 0.99);
        report.add(format!("{name}.p50_ms"), p50, "ms");
        report.add(format!("{name}.p99_ms"), p99, "ms");
        let burst = self.bursts.as_secs_f64() / ROUNDS as f64;
        report.add(format!("{name}.burst_200_seconds"), burst, "s");
        let each = |requests: usize| requests as f64 / (ROUNDS as f64 * COUNT as f64);
        let [single, bursts] = self.requests.map(each);
        report.add(format!("{name}.requests_per_change"), single, "requests");
        report.add(
            format!("{name}.requests_per_change.burst_200"),
            bursts,
            "requests",
        );
        (p50, p99)
    }
}

/// Each has Secrets and Deployments of its own, without pods, and only one of them runs at a time.
pub(crate) async fn changes(report: &mut Report) -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let mut wanted = options();
    wanted.config = CONFIG.into();
    let mut operator = Operator::install(&bench, wanted).await?;
    let mut cached = CachedClient::install(&bench).await?;
    let scale = Scale {
        secrets: COUNT,
        namespaces: NAMESPACES,
        workloads: 1,
        replicas: 0,
    };
    let (world, follower) = World::lay(&bench, "roll", operator.namespace(), scale).await?;
    let of_cached = world.beside(&bench, "cached", "nobody").await?;
    let of_bare = world.beside(&bench, "bare", "nobody").await?;
    let user = audit::user(&operator);
    let [mut ours, mut theirs, mut bare] = [Took::default(), Took::default(), Took::default()];
    for round in 0..ROUNDS {
        say(&format!("the operator, round {}", round + 1));
        operator.run().await?;
        leads(&operator).await?;
        ours.measure(&bench, &world, &user, round).await?;
        operator.terminate().await?;

        say(&format!("the cached client, round {}", round + 1));
        cached.run().await?;
        let other = cached.user();
        theirs.measure(&bench, &of_cached, &other, round).await?;
        cached.stop();

        say(&format!("the bare client, round {}", round + 1));
        let task = bare_rollout::start(&operator).await?;
        bare.measure(&bench, &of_bare, &user, round).await?;
        task.abort();
    }
    follower.abort();
    let (p50, p99) = ours.add(report, "propagation.beside_cached_client");
    let (cached_p50, cached_p99) = theirs.add(report, "propagation.cached_client");
    let (bare_p50, _) = bare.add(report, "propagation.bare_patch");
    let burst = ours.bursts.as_secs_f64() / theirs.bursts.as_secs_f64();
    for (name, ratio) in [
        ("p50_ratio_to_cached_client", p50 / cached_p50),
        ("p99_ratio_to_cached_client", p99 / cached_p99),
        ("burst_200_ratio_to_cached_client", burst),
        ("p50_ratio_to_bare_patch", p50 / bare_p50),
    ] {
        report.add(format!("propagation.{name}"), ratio, "ratio");
    }
    Ok(())
}

/// From exec to ready with so many thousand Secrets, and the memory that is held then.
pub(crate) async fn starts(report: &mut Report, thousands: usize) -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let mut operator = Operator::install(&bench, options()).await?;
    let mut cached = CachedClient::install(&bench).await?;
    let set = Arc::new(Set::known(
        "shop",
        thousands * 1_000,
        if thousands < 100 { 100 } else { 500 },
        operator.namespace(),
        1,
    ));
    set.fill(&bench, &Arc::new(Maker::new()?)).await?;
    let [mut ours, mut theirs] = [Start::default(), Start::default()];
    for round in 0..ROUNDS {
        say(&format!("the operator, round {}", round + 1));
        let began = Instant::now();
        operator.run().await?;
        ours.measure(began.elapsed(), operator.process()?.id())
            .await?;
        operator.terminate().await?;

        say(&format!("the cached client, round {}", round + 1));
        let began = Instant::now();
        cached.run().await?;
        theirs
            .measure(began.elapsed(), cached.process()?.id())
            .await?;
        cached.stop();
    }
    let case = format!("{thousands}k");
    ours.add(report, "beside_cached_client", &case);
    theirs.add(report, "cached_client", &case);
    for (name, ratio) in [
        ("memory.rss", ours.rss / theirs.rss),
        ("start.ready", ours.ready / theirs.ready),
        ("start.cpu", ours.cpu / theirs.cpu),
    ] {
        report.add(
            format!("{name}_ratio_to_cached_client.{case}"),
            ratio,
            "ratio",
        );
    }
    Ok(())
}

/// Sums over the rounds.
#[derive(Default)]
struct Start {
    ready: f64,
    cpu: f64,
    rss: f64,
}

impl Start {
    /// Takes up one start, after which its process had `ready` taken.
    async fn measure(&mut self, ready: Duration, process: u32) -> Result<()> {
        self.ready += ready.as_secs_f64();
        self.cpu += usage(process)?.cpu;
        tokio::time::sleep(CALM).await;
        let Usage { rss, .. } = usage(process)?;
        self.rss += rss;
        Ok(())
    }

    fn add(&self, report: &mut Report, name: &str, case: &str) {
        let mean = |sum: f64| sum / ROUNDS as f64;
        for (figure, sum, unit) in [
            ("start.ready_seconds", self.ready, "s"),
            ("start.cpu_seconds", self.cpu, "s"),
            ("memory.rss_steady_bytes", self.rss, "bytes"),
        ] {
            report.add(format!("{figure}_{name}.{case}"), mean(sum), unit);
        }
    }
}

/// One that does not lead yet follows no change.
async fn leads(operator: &Operator<'_>) -> Result<()> {
    eventually(DEADLINE, "the operator leads", async || {
        ensure!(operator.leads().await?, "it does not");
        Ok(())
    })
    .await
}

//! A hostile tenant: one namespace does everything at once that a user of one namespace can do, while fifty others renew
//! and roll certificates of minutes under the memory limit that ships.
//!
//! `make chaos` runs it for ten minutes; `HOSTILE_SECONDS` says otherwise, and `CERT_RENEW_PROGRAM` names another build of
//! the program: a debug build is many times slower than what ships. The figures go to `target/bench/hostile.json`, the
//! operator's log and its last metrics beside them. Every twenty seconds a line says how late the others were since the
//! line before, how long the slowest read of a Secret took, and who used the cores: late because the machine was busy is
//! told from late because the operator was. At the end it says how often the parts of the attack that are counted were
//! done, and fails where one was not: it would prove nothing. It runs in a network of its own, where pods have addresses.

mod attack;
mod changes;
mod container;
mod copies;
mod deleted;
mod endless;
mod many;
mod pods;
mod tally;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use test_bench::objects::{Reference, Space};
use test_bench::report::Report;
use test_bench::{
    Bench, Operator, Options, PebbleOptions, Result, ensure, eventually,
    ran_where_pods_have_addresses,
};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::renewal::{annotation, leaf, options};
use container::{Container, Load};
use tally::Tally;

/// Namespaces that want nothing but their certificates.
const OTHERS: u32 = 50;
/// Lifetime of theirs: each is renewed and rolled every minute and a half.
const LIFETIME: Duration = Duration::from_secs(180);
/// One of this number has its pods asked to reload instead.
const RELOADED: u32 = 5;
/// How often each of them is renewed in this scene beside once every half of the lifetime: first certificates, the time in
/// which the attack is prepared, and what is renewed early.
const MORE: u64 = 5;
/// What ships: deploy/deployment.yaml.
const MEMORY: u64 = 128 << 20;
/// None of theirs may be late by more.
const LATE: Duration = Duration::from_secs(60);
/// The kubelet's probe of liveness, as it ships.
const PROBE: Duration = Duration::from_secs(20);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_FAILURES: usize = 3;
/// Between two looks at the others.
const LOOK: Duration = Duration::from_secs(2);

/// The others, as somebody sees them who reads their Secrets.
#[derive(Default)]
struct Seen {
    /// By namespace: the leaf, and since when its workload does not have it.
    pending: BTreeMap<String, (String, Instant)>,
    leaves: u32,
    /// Whose workload did not have the leaf at the last look.
    waiting: usize,
    late: Lateness,
    /// Since the last line of the scene.
    lately: Lateness,
    /// The longest that one read took, since that line.
    slowest_read: Duration,
}

/// The most that one of them was late, and in what.
#[derive(Clone, Default)]
struct Lateness(Duration, String);

impl Lateness {
    fn note(&mut self, by: Duration, what: &str) {
        if by > self.0 {
            *self = Self(by, what.to_owned());
        }
    }
}

impl Seen {
    fn late(&mut self, by: Duration, what: &str) {
        self.late.note(by, what);
        self.lately.note(by, what);
    }

    async fn look(&mut self, others: &[Space]) -> Result<()> {
        let reads = others.iter().map(|space| async move {
            let began = Instant::now();
            let secret = space.secrets().get("tls").await?;
            Ok::<_, test_bench::Error>((space, secret, began.elapsed()))
        });
        let read: Vec<_> = futures::stream::iter(reads)
            .buffer_unordered(8)
            .try_collect()
            .await?;
        let now = cert_renew_core::time::UnixTime::now();
        self.waiting = 0;
        for (space, secret, took) in read {
            self.slowest_read = self.slowest_read.max(took);
            let Ok(leaf) = leaf(&secret) else { continue };
            let fingerprint = leaf.fingerprint.to_string();
            let rolled = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or_default();
            let known = self.pending.get(&space.name);
            if known.is_none_or(|(known, _)| *known != fingerprint) {
                self.leaves += 1;
                self.pending
                    .insert(space.name.clone(), (fingerprint.clone(), Instant::now()));
            }
            let since = self.pending[&space.name].1;
            if rolled.starts_with(&fingerprint) {
                // What was late to roll is measured until it was rolled.
                self.pending
                    .insert(space.name.clone(), (fingerprint, Instant::now()));
            } else {
                self.waiting += 1;
                self.late(since.elapsed(), &format!("{}: rolled late", space.name));
            }
            // Renewed with half of the lifetime left, or earlier where the CA says so.
            let half = LIFETIME.as_secs() / 2;
            let due = leaf.not_after - Duration::from_secs(half);
            if now > due {
                self.late(now.since(due), &format!("{}: renewed late", space.name));
            }
        }
        Ok(())
    }
}

/// The operator in its container, as the kubelet would treat it.
struct Pod<'a> {
    operator: Operator<'a>,
    http: reqwest::Client,
    probed: Instant,
    failures: usize,
    restarts: u32,
    /// What it has at the last look, in bytes.
    memory: u64,
    /// The most memory that any of its processes had, in bytes.
    peak: u64,
}

impl<'a> Pod<'a> {
    async fn start(operator: Operator<'a>) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(PROBE_TIMEOUT)
            .build()?;
        let mut pod = Self {
            operator,
            http,
            probed: Instant::now(),
            failures: 0,
            restarts: 0,
            memory: 0,
            peak: 0,
        };
        pod.operator.run().await?;
        Ok(pod)
    }

    /// Measures its memory, probes it when that is due, and starts it again when it has died or does not answer; true
    /// where it was probed.
    async fn look(&mut self) -> Result<bool> {
        let (now, peak) = container::resident(&self.operator).unwrap_or_default();
        (self.memory, self.peak) = (now, self.peak.max(peak));
        let probe = self.probed.elapsed() >= PROBE;
        if probe {
            self.probed = Instant::now();
            let url = format!("http://{}/healthz", self.operator.metrics_address());
            match self.http.get(url).send().await {
                Ok(answer) if answer.status().is_success() => self.failures = 0,
                _ => self.failures += 1,
            }
        }
        let dead = self.operator.process()?.exited();
        if dead.is_some() || self.failures >= PROBE_FAILURES {
            eprintln!(
                "hostile: restarted after {} failed probes; it ended with {dead:?}",
                self.failures
            );
            (self.restarts, self.failures) = (self.restarts + 1, 0);
            self.operator.kill();
            self.operator.spawn()?;
        }
        Ok(probe)
    }

    /// Keeps what tells why, as the bench's own files go with it; says how often the lease was lost.
    async fn keep(&self) -> Result<usize> {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        fs::create_dir_all(&kept)?;
        let log = self.operator.log()?;
        fs::write(kept.join("hostile.log"), &log)?;
        if let Ok(metrics) = self.operator.metrics().await {
            fs::write(kept.join("hostile.metrics"), metrics)?;
        }
        Ok(log.matches("no longer leading").count())
    }
}

/// Namespaces whose certificates are renewed and rolled all the time, some by asking pods at this port to reload; each has
/// its first one when this returns.
async fn begin_others(bench: &Bench, class: &str, port: u16) -> Result<Vec<Space>> {
    let namespaces: Api<Namespace> = Api::all(bench.client()?);
    // Who may have which names is not known before the labels of a namespace are read.
    let labels = Patch::Merge(json!({"metadata": {"labels": {"tenant": "good"}}}));
    let reload = format!("post:{port}/reload");
    let mut others = Vec::new();
    for number in 0..OTHERS {
        let space = Space::new(bench.client()?, "good", class).await?;
        let params = PatchParams::default();
        namespaces.patch(&space.name, &params, &labels).await?;
        let host = host(number);
        let rollout = if number.is_multiple_of(RELOADED) {
            &*reload
        } else {
            "restart"
        };
        let annotations = [
            ("issuer", "pebble"),
            ("names", &*host),
            ("profile", "brief"),
            // Pebble's renewal information is about days, whatever the lifetime.
            ("renew-before", "50%"),
            ("rollout", rollout),
        ];
        space.tls_secret("tls", None, &annotations).await?;
        space
            .workload("Deployment", "web", Reference::Volume, "tls")
            .await?;
        others.push(space);
    }
    let wait = Duration::from_secs(180);
    eventually(
        wait,
        "the others have their first certificates",
        async || {
            let mut seen = Seen::default();
            seen.look(&others).await?;
            let Seen {
                leaves, waiting, ..
            } = seen;
            ensure!(leaves == OTHERS, "{leaves} of {OTHERS}");
            ensure!(waiting == 0, "{waiting} wait for their workload");
            Ok(())
        },
    )
    .await?;
    Ok(others)
}

/// The name that one of them has a certificate for.
fn host(number: u32) -> String {
    format!("n{number}.good.example")
}

/// New orders that the issuer takes: what the others need, as many as the attack makes, and the quarter that one namespace
/// gets while others wait. It may have more than that while nobody waits; a tenant who got more than the attack makes, by
/// whatever it does, would make the others late. The default of 250 in three hours is for certificates of days.
fn orders(lasts: Duration) -> u64 {
    let renewals = lasts.as_secs() / (LIFETIME.as_secs() / 2) + MORE;
    (renewals * u64::from(OTHERS) + attack::orders(lasts)) * 4 / 3
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make chaos runs it"]
async fn one_hostile_tenant_makes_nobody_else_late() -> Result<()> {
    // Some of its pods are asked to reload, and some of the others'.
    let test = "hostile::one_hostile_tenant_makes_nobody_else_late";
    if ran_where_pods_have_addresses(test).await? {
        return Ok(());
    }
    let seconds = env::var("HOSTILE_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(600);
    let lasts = Duration::from_secs(seconds);
    // Declared before what it contains, and so removed after it.
    let container = Container::new(MEMORY);
    let mut pebble = PebbleOptions {
        // So that the operator asks DNS before each order.
        caa_identities: vec!["ca.bench.example".into()],
        ..PebbleOptions::default()
    };
    pebble.profiles.insert("brief".into(), LIFETIME);
    // Of its own: nobody else is to read all that, and it goes when the scene fails.
    let bench = Bench::start(Options {
        pebble,
        ..Options::default()
    })
    .await?;
    let mut servers = JoinSet::new();
    let mut options = options();
    if let Ok(program) = env::var("CERT_RENEW_PROGRAM") {
        options.program = fs::canonicalize(program)?;
    }
    options.program = container.wrap(&options.program, bench.directory().join("contained"))?;
    // The times that ship, not those of the tests.
    options = options.lease(["15s", "10s", "2s"]);
    options.log_level = "info".into();
    options.allow = format!(
        "[{{namespaceSelector: {{matchLabels: {{tenant: good}}}}, names: [\"**.good.example\"]}}, \
         {{namespaces: [\"{}-*\"], names: [{}]}}]",
        attack::NAMESPACE,
        attack::ALLOWED
    );
    let addons = ["verify", "namespace-labels"];
    options.addons = addons.map(|it| format!("rbac/addons/{it}.yaml")).into();
    options.issuer = format!("    ordersPer3h: {}\n", orders(lasts));
    options.config = format!(
        "{}rollout: {{settle: 0s, perWorkloadMinInterval: 0s, reloadWait: 1s, reloadAgain: 1s}}\n\
         dns: {{nameservers: [\"{}\"]}}\n",
        endless::SOLVERS,
        attack::slow_dns(&mut servers).await?
    );
    let mut pod = Pod::start(Operator::install(&bench, options).await?).await?;
    let class = pod.operator.namespace().to_owned();
    let port = pods::well(&mut servers).await?;
    let others = begin_others(&bench, &class, port).await?;
    pod.look().await?;
    eprintln!("hostile: peak of {} MiB before the attack", pod.peak >> 20);

    let hostile = Space::new(bench.client()?, attack::NAMESPACE, &class).await?;
    let ports = [
        pod.operator.metrics_address(),
        pod.operator.challenge_address(),
    ];
    let tally = Tally::default();
    let mut attack = pin!(attack::begin(&hostile, &others, ports, &tally));
    let mut attacking: Option<JoinSet<()>> = None;
    let (mut seen, mut load) = (Seen::default(), Load::new());
    let began = Instant::now();
    let mut complete = began;
    while attacking.is_none() || complete.elapsed() < lasts {
        if attacking.is_none() {
            // What it does begins while it is still being prepared.
            tokio::select! {
                begun = &mut attack => (attacking, complete) = (Some(begun?), Instant::now()),
                () = sleep(LOOK) => {}
            }
        } else {
            sleep(LOOK).await;
        }
        seen.look(&others).await?;
        if pod.look().await? {
            let Lateness(late, what) = std::mem::take(&mut seen.lately);
            let slowest = std::mem::take(&mut seen.slowest_read);
            eprintln!(
                "hostile: {:>4} s, {} leaves, late {late:.1?} ({what}), a read took {slowest:.1?}, {} MiB, {} at most, {} probes failed; \
                 cores: {}",
                began.elapsed().as_secs(),
                seen.leaves,
                pod.memory >> 20,
                pod.peak >> 20,
                pod.failures,
                load.look()
            );
        }
    }
    pod.look().await?;
    drop(attacking);
    let faults = tally.faults(lasts >= LIFETIME);
    let [unrouted, unrecorded] = endless::open(bench.client()?, &class, &hostile.name).await?;
    eprintln!("hostile: {unrouted} open orders wait for a route, {unrecorded} for records");
    let lost = pod.keep().await?;
    let leases: Api<Lease> = Api::namespaced(bench.client()?, &class);
    let lease = leases.get("cert-renew").await?.spec.unwrap_or_default();
    let taken = lease.lease_transitions.unwrap_or_default();

    let Seen { leaves, late, .. } = seen;
    let Lateness(late, what) = late;
    let mut report = Report::new("hostile", "make chaos");
    let seconds = late.as_secs_f64();
    report.add("hostile.others_late_seconds_max", seconds, "s");
    let unanswered = bench.edge().hits().into_iter();
    let unanswered =
        unanswered.filter(|hit| hit.host.ends_with("good.example") && !hit.status.is_success());
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let unanswered = unanswered.count() as f64;
    report.add("hostile.others_challenges_lost", unanswered, "challenges");
    let restarts = f64::from(pod.restarts);
    report.add("hostile.operator_restarts", restarts, "restarts");
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    for (figure, bytes) in [
        ("rss_peak_bytes", pod.peak),
        // 0: the machine has none, and the operator could have taken more than it may where it ships.
        ("memory_limit_bytes", container.limit()),
    ] {
        report.add(format!("hostile.{figure}"), bytes as f64, "bytes");
    }
    eprint!("{}", report.finish()?);
    let pressed = container.pressed();
    eprintln!(
        "hostile: {leaves} leaves of the others, worst {what}, lease lost {lost} times and taken {taken}, memory of the \
         container {}",
        pressed.as_deref().unwrap_or("is not limited here")
    );
    ensure!(
        faults.is_empty(),
        "never happened, or must never happen: {}",
        faults.join("; ")
    );
    ensure!(
        (unrouted > 0 && unrecorded > 0) || lasts < LIFETIME,
        "no order waits without end"
    );
    ensure!(restarts == 0.0, "the operator was restarted");
    ensure!(pod.peak <= MEMORY, "{} bytes of memory", pod.peak);
    ensure!(lost == 0, "the lease was lost {lost} times");
    ensure!(taken == 0, "the lease was taken {taken} times");
    ensure!(late <= LATE, "{what} by {late:?}");
    ensure!(
        leaves >= OTHERS * 2 || lasts < LIFETIME,
        "only {leaves} leaves"
    );
    Ok(())
}

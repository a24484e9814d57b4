//! A hostile tenant: one namespace does everything at once that a user of one namespace can do, while fifty others renew
//! and roll certificates of minutes under the memory limit that ships.
//!
//! `make chaos` runs it for ten minutes; `HOSTILE_SECONDS` says otherwise, and `CERT_RENEW_PROGRAM` names another build of
//! the program: a debug build is many times slower than what ships. The figures go to `target/bench/hostile.json`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde_json::json;
use test_bench::certificates::{DAY, Template};
use test_bench::objects::{FRESH, OLD, Pair, Reference, Space, pair, workload};
use test_bench::report::Report;
use test_bench::{Bench, Context as _, Operator, PebbleOptions, Result, ensure, eventually};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::renewal::{annotation, leaf, options};

/// Namespaces that want nothing but their certificates.
const OTHERS: usize = 50;
/// Lifetime of theirs: each is renewed and rolled every minute and a half.
const LIFETIME: Duration = Duration::from_secs(180);
/// What ships: deploy/deployment.yaml.
const MEMORY: u64 = 128 << 20;
/// None of theirs may be late by more.
const LATE: Duration = Duration::from_secs(60);
/// The kubelet's probe of liveness, as it ships.
const PROBE: Duration = Duration::from_secs(20);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_FAILURES: usize = 3;
/// A server of a tenant's own zone answers as slowly as the operator's patience lets it.
const SLOW: Duration = Duration::from_secs(2);

/// A memory limit of a container; gone with the test. Where the machine has no such thing, the memory is only measured.
struct Container(Option<PathBuf>);

impl Container {
    fn new() -> Self {
        let directory = format!(
            "/sys/fs/cgroup/memory/cert-renew-hostile-{}",
            std::process::id()
        );
        let directory = PathBuf::from(directory);
        let limited = fs::create_dir(&directory)
            .and_then(|()| fs::write(directory.join("memory.limit_in_bytes"), MEMORY.to_string()));
        match limited {
            Ok(()) => Self(Some(directory)),
            Err(error) => {
                eprintln!("no memory limit here, it is only measured: {error}");
                Self(None)
            }
        }
    }

    fn put(&self, operator: &Operator<'_>) -> Result<()> {
        match &self.0 {
            Some(directory) => {
                let id = operator.process()?.id().to_string();
                fs::write(directory.join("cgroup.procs"), id).context("limiting its memory")
            }
            None => Ok(()),
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(directory) = &self.0 {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Peak of the resident memory.
fn peak(operator: &Operator<'_>) -> Option<u64> {
    let status =
        fs::read_to_string(format!("/proc/{}/status", operator.process().ok()?.id())).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// Answers that there is nothing, of a name under `slow.` after a while.
async fn slow_dns() -> Result<SocketAddr> {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    let address = socket.local_addr()?;
    tokio::spawn(async move {
        let mut buffer = [0; 1_500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            // The header, and one question: labels until an empty one, then type and class.
            let mut end = 12;
            while end < length && buffer[end] != 0 {
                end += 1 + usize::from(buffer[end]);
            }
            if end + 5 > length {
                continue;
            }
            let mut answer = buffer[..end + 5].to_vec();
            // A response, recursion available, no error, and nothing but the question.
            (answer[2], answer[3]) = (answer[2] | 0x80, 0x80);
            answer[6..12].fill(0);
            let slow = answer.windows(6).any(|it| it == b"\x04slow\x01");
            let socket = Arc::clone(&socket);
            tokio::spawn(async move {
                if slow {
                    tokio::time::sleep(SLOW).await;
                }
                let _ = socket.send_to(&answer, from).await;
            });
        }
    });
    Ok(address)
}

/// All that a user of one namespace can do, for as long as the set lives.
async fn attack(space: &Space, metrics: SocketAddr, challenges: SocketAddr) -> Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    let copy = || Space {
        client: space.client.clone(),
        name: space.name.clone(),
        class: space.class.clone(),
    };
    let patch = PatchParams::default;

    // Deployments of a megabyte each, that nobody runs; a Secret that makes the operator list them.
    let bulk = "x".repeat(1_200_000);
    let huge = futures::stream::iter(0..100).map(|number| {
        let mut object = workload(
            "Deployment",
            &format!("huge-{number}"),
            0,
            Reference::Volume,
            "bulk",
        );
        object["spec"]["template"]["spec"]["containers"][0]["env"] =
            json!([{"name": "BULK", "value": bulk}]);
        async move {
            let object: DynamicObject = serde_json::from_value(object)?;
            let deployments = space.workloads("Deployment");
            deployments.create(&PostParams::default(), &object).await?;
            Ok::<_, test_bench::Error>(())
        }
    });
    huge.buffer_unordered(2).try_collect::<()>().await?;
    let fresh = pair(&["bulk.h.example"], FRESH)?;
    space
        .tls_secret("bulk", Some(&fresh), &[("issuer", "external")])
        .await?;
    eprintln!("hostile: huge Deployments");

    // Leaves of as many names as a Secret holds.
    let names: Vec<String> = (0..38_000)
        .map(|number| format!("{number:05}.h.example"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let many = Template::new(&names)
        .between(-80 * DAY, 10 * DAY)
        .self_signed()?;
    for number in 0..4 {
        let renew = [("issuer", "pebble"), ("renew-now", "1")];
        space
            .tls_secret(&format!("many-{number}"), Some(&many), &renew)
            .await?;
    }
    eprintln!("hostile: {} bytes of names", many.certificate.len());

    // Text that a reader of PEM could go through over and over.
    for (name, text) in [
        ("pem-dashes", "x".to_owned() + &"-----BEGIN ".repeat(60_000)),
        ("pem-blocks", "-----BEGIN \u{1}-----".repeat(40_000)),
        ("pem-lines", "-----BEGIN CERTIFICATE-----\n".repeat(25_000)),
    ] {
        let odd = Pair {
            certificate: text,
            key: fresh.key.clone(),
        };
        space
            .tls_secret(name, Some(&odd), &[("issuer", "external")])
            .await?;
    }

    // Names whose DNS is slow, with as many labels as a name holds.
    let deep = |number: usize| format!("n{number}.{}slow.h.example", "a.".repeat(50));
    for secret in 0..64 {
        let names: Vec<String> = (0..100).map(|number| deep(secret * 100 + number)).collect();
        let annotations = [("issuer", "pebble"), ("names", &*names.join(","))];
        space
            .tls_secret(&format!("slow-{secret}"), None, &annotations)
            .await?;
    }

    // Rollouts that move for as long as they can, said to be urgent.
    for number in 0..8 {
        let name = format!("urgent-{number}");
        let mut object = workload("Deployment", &name, 5, Reference::Volume, &name);
        object["spec"]["minReadySeconds"] = json!(30);
        object["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        let object: DynamicObject = serde_json::from_value(object)?;
        { space.workloads("Deployment") }
            .create(&PostParams::default(), &object)
            .await?;
        let annotations = [
            ("issuer", "external"),
            ("state.cert-renew.io/rolled-out", "none"),
        ];
        space.tls_secret(&name, Some(&fresh), &annotations).await?;
    }
    eprintln!("hostile: all objects are made");

    // Forged state that is another one each time, and wishes without end.
    let old = pair(&["forged.h.example"], OLD)?;
    space
        .tls_secret("forged", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    space
        .tls_secret("wishes", Some(&old), &[("issuer", "pebble")])
        .await?;
    let forger = copy();
    tasks.spawn(async move {
        for number in 0_u64.. {
            let issuer = format!("{number}{}", "i".repeat(200_000));
            let issued_by = json!({"issuer": issuer, "names": []}).to_string();
            let notes = json!({"state.cert-renew.io/issued-by": issued_by, "state.cert-renew.io/rolled-out": "none"});
            let forged = json!({"metadata": {"annotations": notes}});
            let _ = forger.secrets().patch("forged", &patch(), &Patch::Merge(forged)).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let wisher = copy();
    tasks.spawn(async move {
        for number in 0_u64.. {
            for name in ["wishes", "many-0", "many-1", "slow-0"] {
                let wish = json!({"metadata": {"annotations": {"cert-renew.io/renew-now": number.to_string()}}});
                let _ = wisher.secrets().patch(name, &patch(), &Patch::Merge(wish)).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });

    // Connections that say nothing, to both ports, as many as there are places and more; page loads that are given up.
    for address in [metrics, challenges] {
        for _ in 0..700 {
            tasks.spawn(async move {
                loop {
                    if let Ok(mut stream) = TcpStream::connect(address).await {
                        let _ = stream.write_all(b"G").await;
                        tokio::time::sleep(Duration::from_secs(20)).await;
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        }
    }
    for _ in 0..8 {
        tasks.spawn(async move {
            loop {
                if let Ok(mut stream) = TcpStream::connect(metrics).await {
                    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    Ok(tasks)
}

/// The others, as somebody sees them who reads their Secrets.
#[derive(Default)]
struct Seen {
    /// By namespace: the leaf, and since when its workload does not have it.
    pending: BTreeMap<String, (String, Instant)>,
    leaves: usize,
    /// Whose workload did not have the leaf at the last look.
    waiting: usize,
    late: Duration,
    worst: String,
}

impl Seen {
    fn late(&mut self, by: Duration, why: impl FnOnce() -> String) {
        if by > self.late {
            (self.late, self.worst) = (by, why());
        }
    }

    async fn look(&mut self, others: &[Space]) -> Result<()> {
        let reads = others.iter().map(|space| async move {
            Ok::<_, test_bench::Error>((space, space.secrets().get("tls").await?))
        });
        let read: Vec<_> = futures::stream::iter(reads)
            .buffer_unordered(8)
            .try_collect()
            .await?;
        let now = cert_renew::time::UnixTime::now();
        self.waiting = 0;
        for (space, secret) in read {
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
                self.late(since.elapsed(), || format!("{}: rolled late", space.name));
            }
            // Renewed with half of the lifetime left, or earlier where the CA says so.
            let half = LIFETIME.as_secs() / 2;
            let due = leaf.not_after - Duration::from_secs(half);
            if now > due {
                self.late(now.since(due), || format!("{}: renewed late", space.name));
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make chaos runs it"]
async fn one_hostile_tenant_makes_nobody_else_late() -> Result<()> {
    let seconds = env::var("HOSTILE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let lasts = Duration::from_secs(seconds.unwrap_or(600));
    let bench = Bench::shared().await?;
    let mut profiles = PebbleOptions::default().profiles;
    profiles.insert("brief".into(), LIFETIME);
    let pebble = PebbleOptions {
        name: "pebble-hostile".into(),
        profiles,
        // So that the operator asks DNS before each order.
        caa_identities: vec!["ca.bench.example".into()],
        ..PebbleOptions::default()
    };
    let pebble = bench.start_pebble(&pebble).await?;
    let mut options = options();
    if let Ok(program) = env::var("CERT_RENEW_PROGRAM") {
        options.program = program.into();
    }
    options.directory = Some(pebble.directory().to_owned());
    // The times that ship, not those of the tests.
    options = options.lease(["15s", "10s", "2s"]);
    options.log_level = "info".into();
    options.allow = "[{namespaces: [\"good-*\"], names: [\"**.good.example\"]}, {namespaces: [\"hostile-*\"], names: [\"**.h.example\"]}]".into();
    options.config = format!(
        "rollout: {{settle: 0s, perWorkloadMinInterval: 0s}}\ndns: {{nameservers: [\"{}\"]}}\n",
        slow_dns().await?
    );
    let mut operator = Operator::install(bench, options).await?;
    let container = Container::new();
    operator.spawn()?;
    container.put(&operator)?;
    operator.wait_ready().await?;

    let mut others = Vec::new();
    for number in 0..OTHERS {
        let space = Space::new(bench.client()?, "good", operator.namespace()).await?;
        let host = format!("n{number}.good.example");
        let annotations = [
            ("issuer", "pebble"),
            ("names", &*host),
            ("profile", "brief"),
            // Pebble's renewal information is about days, whatever the lifetime.
            ("renew-before", "50%"),
        ];
        space.tls_secret("tls", None, &annotations).await?;
        space
            .workload("Deployment", "web", Reference::Volume, "tls")
            .await?;
        others.push(space);
    }
    eventually(
        Duration::from_secs(180),
        "the others have their first certificates",
        async || {
            let mut seen = Seen::default();
            seen.look(&others).await?;
            ensure!(seen.leaves == OTHERS, "{} of {OTHERS}", seen.leaves);
            ensure!(
                seen.waiting == 0,
                "{} wait for their workload",
                seen.waiting
            );
            Ok(())
        },
    )
    .await?;
    let quiet = peak(&operator).unwrap_or_default();

    let hostile = Space::new(bench.client()?, "hostile", operator.namespace()).await?;
    let attackers = attack(
        &hostile,
        operator.metrics_address(),
        operator.challenge_address(),
    );
    let mut attackers = std::pin::pin!(attackers);
    let mut attacking: Option<JoinSet<()>> = None;
    let (mut seen, mut highest, mut restarts, mut failures) = (Seen::default(), quiet, 0, 0);
    let mut probed = Instant::now();
    let began = Instant::now();
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(PROBE_TIMEOUT)
        .build()?;
    let health = format!("http://{}/healthz", operator.metrics_address());
    let mut complete = began;
    while attacking.is_none() || complete.elapsed() < lasts {
        if attacking.is_none() {
            // What it does begins while it is still being prepared.
            tokio::select! {
                begun = &mut attackers => (attacking, complete) = (Some(begun?), Instant::now()),
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
            }
        } else {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        seen.look(&others).await?;
        highest = highest.max(peak(&operator).unwrap_or_default());
        if probed.elapsed() >= PROBE {
            probed = Instant::now();
            match http.get(&health).send().await {
                Ok(answer) if answer.status().is_success() => failures = 0,
                _ => failures += 1,
            }
            eprintln!(
                "hostile: {:>4} s, {} leaves, late {:?} ({}), {} MiB, probes failed {failures}",
                began.elapsed().as_secs(),
                seen.leaves,
                seen.late,
                seen.worst,
                highest >> 20
            );
        }
        let dead = operator.process()?.exited().is_some();
        if dead || failures >= PROBE_FAILURES {
            eprintln!(
                "hostile: restarted, as it {}",
                if dead {
                    "was killed"
                } else {
                    "did not answer the probes"
                }
            );
            (restarts, failures) = (restarts + 1, 0);
            operator.kill();
            operator.spawn()?;
            container.put(&operator)?;
        }
    }
    drop(attacking);
    let log = operator.log()?;
    // The bench's own files go with it.
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench");
    fs::create_dir_all(kept)?;
    fs::write(format!("{kept}/hostile.log"), &log)?;
    let lost = log.matches("no longer leading").count();

    let mut report = Report::new("hostile", "make chaos");
    report.add(
        "hostile.others_late_seconds_max",
        seen.late.as_secs_f64(),
        "s",
    );
    report.add("hostile.operator_restarts", f64::from(restarts), "restarts");
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    report.add("hostile.rss_peak_bytes", highest as f64, "bytes");
    eprint!("{}", report.finish()?);
    eprintln!(
        "hostile: {} leaves of the others, worst {}, lease lost {lost} times",
        seen.leaves, seen.worst
    );
    ensure!(restarts == 0, "the operator was restarted {restarts} times");
    ensure!(lost == 0, "the lease was lost {lost} times");
    ensure!(seen.late <= LATE, "{} by {:?}", seen.worst, seen.late);
    ensure!(
        seen.leaves >= OTHERS * 2 || lasts < LIFETIME,
        "only {} leaves",
        seen.leaves
    );
    Ok(())
}

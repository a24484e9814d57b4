//! Everything at once, at random: kills, stops, cuts and errors of two replicas while certificates of minutes are renewed and rolled.
//! Then peace, and somebody who has watched all the time compares Secrets, workloads and the CA.
//!
//! `CHAOS_SEED` repeats a run's choices; how the machine interleaves them is another matter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;
use test_bench::objects::{Reference, Space};
use test_bench::{
    Bench, Checker, Context as _, Fault, Operator, Passed, Proxies, Result, Server, Watcher,
    ensure, eventually,
};

use crate::renewal::{annotation, leaf, options};
use crate::scene::{answered, records};

/// After failures it waits at most twenty seconds: peace is longer than that.
const CONFIG: &str = "rollout: {settle: 0s, perWorkloadMinInterval: 0s, perNamespace: 4}\nretry: {base: 2s, factor: 2, max: 20s}\n";
/// Short, so that it changes hands often.
const LEASE: [&str; 3] = ["2s", "1500ms", "500ms"];
/// One request in this number fails.
const FAILING: u64 = 25;
/// From the end of the chaos until all is as it should be.
const PEACE: Duration = Duration::from_secs(180);

/// How large a run is.
struct Size {
    secrets: usize,
    chaos: Duration,
    profile: &'static str,
}

#[tokio::test]
async fn after_chaos_everything_is_as_it_should_be() -> Result<()> {
    let size = Size {
        secrets: 8,
        chaos: Duration::from_secs(40),
        profile: "minute",
    };
    run(size).await
}

/// Ten minutes.
#[tokio::test]
#[ignore = "make chaos runs it"]
async fn after_long_chaos_everything_is_as_it_should_be() -> Result<()> {
    let size = Size {
        secrets: 50,
        chaos: Duration::from_secs(600),
        profile: "minutes",
    };
    run(size).await
}

/// Random numbers that come again with the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What becomes of a request while there is chaos.
fn fault(seed: u64, passed: &Passed) -> Fault {
    let chance = mixed(seed ^ u64::try_from(passed.number).unwrap_or_default());
    if !chance.is_multiple_of(FAILING) {
        return Fault::Pass;
    }
    match (passed.server, chance / FAILING % 6) {
        (_, 0) => Fault::Cut,
        (_, 1) => Fault::Refuse,
        (_, 2) => Fault::too_many(1),
        (Server::Api, 3) if passed.method == "PATCH" => Fault::status(409, "Conflict"),
        (Server::Api, 4) if passed.method == "GET" => Fault::Hang,
        (Server::Api, _) => Fault::status(500, "InternalError"),
        (Server::Ca, _) => Fault::html(),
    }
}

/// What somebody sees who only watches: the leaves that each Secret has held.
type Seen = Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>;

async fn follow(secrets: Api<Secret>, seen: Seen) {
    let mut events = std::pin::pin!(watcher(secrets, watcher::Config::default()));
    while let Some(event) = events.next().await {
        if let Ok(Event::Apply(secret) | Event::InitApply(secret)) = event
            && let Ok(leaf) = leaf(&secret)
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let held = seen.entry(secret.name_any()).or_default();
            held.insert(leaf.fingerprint.to_string());
        }
    }
}

async fn run(size: Size) -> Result<()> {
    let seed = std::env::var("CHAOS_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_261_125);
    eprintln!("chaos: CHAOS_SEED={seed}");
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let mut options = options().lease(LEASE);
    options.config = CONFIG.into();
    options.api_server = Some(proxies.api_server());
    options.directory = Some(proxies.directory());
    let operator = Operator::start(bench, options.clone()).await?;
    let mut second = operator.replica(options).await?;
    second.run().await?;
    let space = Space::new(bench.client()?, "chaos", operator.namespace()).await?;
    let names: Vec<String> = (0..size.secrets)
        .map(|number| format!("tls-{number}"))
        .collect();
    let seen = Seen::default();
    let follower = tokio::spawn(follow(space.secrets(), Arc::clone(&seen)));
    for name in &names {
        let host = format!("{name}.{}.example", space.name);
        let annotations = [
            ("issuer", "pebble"),
            ("names", &*host),
            ("profile", size.profile),
        ];
        space.tls_secret(name, None, &annotations).await?;
        space
            .workload("Deployment", name, Reference::Volume, name)
            .await?;
    }

    // It asks the API server itself, not through the proxies.
    let checker = Checker::default().watch(bench.client()?, vec![space.name.clone()]);
    proxies.rule(move |passed| fault(seed, passed));
    let mut operators = vec![operator, second];
    let mut random = Random(seed);
    let mut done: BTreeMap<&str, usize> = BTreeMap::new();
    let began = Instant::now();
    while began.elapsed() < size.chaos {
        tokio::time::sleep(random.millis(200, 1_500)).await;
        let what = disturb(&mut random, &mut operators, &proxies, &space, &names).await?;
        *done.entry(what).or_default() += 1;
    }
    proxies.rule(|_| Fault::Pass);
    eprintln!("chaos: {done:?}, {} requests", proxies.passed().len());

    let ended = eventually(PEACE, "all is as it should be", async || {
        let open = records(bench, &operators[0]).await?;
        let held = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        compare(&space, &names, &held).await?;
        let leaves: usize = held.values().map(BTreeSet::len).sum();
        let issued = answered(&proxies, "/finalize-order/", 200);
        ensure!(
            (leaves..=leaves + open).contains(&issued),
            "the CA has issued {issued} certificates, the Secrets have held {leaves}, {open} orders are open"
        );
        Ok(format!("{issued} certificates issued, {leaves} written"))
    })
    .await;
    follower.abort();
    let stale = checker.found();
    ensure!(
        stale.is_empty(),
        "{} pods had an earlier certificate although their Secret was done: {:?}",
        stale.len(),
        stale.first()
    );
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => return Err(error.context(space.situation().await)),
    };
    let compared = compared(&checker).await?;
    eprintln!("chaos: {ended}, each rolled at most once, {compared} pods compared");
    Ok(())
}

/// How often the checker has compared a pod with what its Secret says; one that has compared none is not believed.
pub(crate) async fn compared(checker: &Watcher) -> Result<usize> {
    eventually(PEACE, "the checker has compared a pod", async || {
        let compared = checker.compared();
        ensure!(compared > 0, "it has not");
        Ok(compared)
    })
    .await
}

/// Does one bad thing, and undoes it.
async fn disturb(
    random: &mut Random,
    operators: &mut [Operator<'_>],
    proxies: &Proxies,
    space: &Space,
    names: &[String],
) -> Result<&'static str> {
    let whose = usize::try_from(random.below(operators.len() as u64))?;
    let operator = &mut operators[whose];
    let name = &names[usize::try_from(random.below(names.len() as u64))?];
    Ok(match random.below(6) {
        0 => {
            operator.kill();
            tokio::time::sleep(random.millis(0, 1_000)).await;
            operator.spawn()?;
            "killed"
        }
        1 => {
            operator.freeze(true)?;
            tokio::time::sleep(random.millis(500, 4_000)).await;
            operator.freeze(false)?;
            "stopped"
        }
        2 => {
            proxies.cut();
            "cut"
        }
        3 => {
            proxies.gone(true);
            tokio::time::sleep(random.millis(500, 3_000)).await;
            proxies.gone(false);
            "API server away"
        }
        4 => {
            let label = json!({"metadata": {"labels": {"somebody": random.next().to_string()}}});
            let params = PatchParams::default();
            space
                .secrets()
                .patch(name, &params, &Patch::Merge(label))
                .await?;
            "Secret edited"
        }
        _ => {
            let label = json!({"metadata": {"labels": {"somebody": random.next().to_string()}}});
            let params = PatchParams::default();
            let workloads = space.workloads("Deployment");
            workloads.patch(name, &params, &Patch::Merge(label)).await?;
            "workload edited"
        }
    })
}

/// Whether each Secret holds a valid pair that its workload has, and no workload was rolled more often than there were
/// leaves.
async fn compare(
    space: &Space,
    names: &[String],
    held: &BTreeMap<String, BTreeSet<String>>,
) -> Result<()> {
    let now = cert_renew_core::time::UnixTime::now();
    let deployments: Api<Deployment> = Api::namespaced(space.client.clone(), &space.name);
    for name in names {
        let secret = space.secrets().get(name).await?;
        let found = leaf(&secret).with_context(|| format!("{name}: no certificate"))?;
        ensure!(found.is_valid_at(now), "{name} has expired");
        let fingerprint = found.fingerprint.to_string();
        let rolled_out = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or("nothing");
        ensure!(
            rolled_out.starts_with(&fingerprint),
            "{name}: rolled-out says {rolled_out}, the leaf is {fingerprint}"
        );
        let deployment = deployments.get(name).await?;
        let rolled = deployment.metadata.generation.unwrap_or_default() - 1;
        let leaves = held.get(name).map_or(0, BTreeSet::len);
        ensure!(
            usize::try_from(rolled)? <= leaves,
            "{name}: rolled {rolled} times for {leaves} leaves"
        );
        let has = space.leaf_of("Deployment", name, name).await?;
        ensure!(
            has.as_ref() == Some(&fingerprint),
            "{name}: the workload has {has:?}, the Secret {fingerprint}"
        );
    }
    Ok(())
}

//! How long nobody acts when the leader changes, as a client sees it: from the leader's end to the other one's first
//! write on a Secret that nobody has seen before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{Bench, Operator, OperatorOptions, Options, Result, ensure, eventually};

use crate::options;
use crate::report::{Report, percentile, say};

/// Changes of hands of each kind.
const ROUNDS: usize = 9;
/// Far more than a lease.
const DEADLINE: Duration = Duration::from_secs(60);
/// A lease that may be waited for so often, in the proportions of the default.
const LEASE: Duration = Duration::from_secs(3);
const TIMES: [&str; 3] = ["3s", "2s", "400ms"];
const DEFAULT: [&str; 3] = ["15s", "10s", "2s"];

/// When each Secret was first seen with a word of the operator's.
type Seen = Arc<Mutex<HashMap<String, Instant>>>;

/// How the leader ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Orderly,
    Killed,
}

/// See the module's documentation.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    say("SIGTERM");
    let mut took = rounds(&bench, options().lease(DEFAULT), End::Orderly).await?;
    report.add("failover.sigterm_ms", percentile(&mut took, 0.5), "ms");
    report.add("failover.sigterm_max_ms", percentile(&mut took, 1.0), "ms");
    say("kill -9");
    let mut took = rounds(&bench, options().lease(TIMES), End::Killed).await?;
    let leases = |milliseconds: f64| milliseconds / (LEASE.as_secs_f64() * 1e3);
    let (median, longest) = (percentile(&mut took, 0.5), percentile(&mut took, 1.0));
    report.add("failover.kill_leases", leases(median), "leases");
    report.add("failover.kill_max_leases", leases(longest), "leases");
    Ok(())
}

async fn rounds(bench: &Bench, options: OperatorOptions, end: End) -> Result<Vec<Duration>> {
    let mut leader = Operator::start(bench, options.clone()).await?;
    let mut standby = leader.replica(options).await?;
    let space = Space::new(bench.client()?, "failover", leader.namespace()).await?;
    let pair = pair(&["failover.example"], FRESH)?;
    let seen = Seen::default();
    let follower = tokio::spawn(follow(space.secrets(), Arc::clone(&seen)));
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        standby.run().await?;
        ready(&leader, &standby).await?;
        let name = format!("round-{round}");
        let began = Instant::now();
        match end {
            End::Orderly => leader.process()?.signal("TERM")?,
            End::Killed => leader.kill(),
        }
        let annotations = [("issuer", "external")];
        space.tls_secret(&name, Some(&pair), &annotations).await?;
        let written = eventually(DEADLINE, "the other one writes", async || {
            let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let at = seen.get(&name).copied();
            ensure!(at.is_some(), "it has not");
            Ok(at)
        })
        .await?;
        took.extend(written.map(|at| at.saturating_duration_since(began)));
        if end == End::Orderly {
            leader.process()?.ended(DEADLINE).await?;
            leader.kill();
        }
        std::mem::swap(&mut leader, &mut standby);
    }
    follower.abort();
    Ok(took)
}

/// Waits until one leads and the other watches the lease.
async fn ready(leader: &Operator<'_>, standby: &Operator<'_>) -> Result<()> {
    eventually(DEADLINE, "one leads, the other waits", async || {
        let watches = "resource=\"leases\",status=\"200\",verb=\"watch\"";
        ensure!(leader.leads().await?, "none leads");
        ensure!(standby.metrics().await?.contains(watches), "none waits");
        Ok(())
    })
    .await
}

async fn follow(secrets: Api<Secret>, seen: Seen) {
    let mut events = std::pin::pin!(watcher(secrets, watcher::Config::default()));
    while let Some(event) = events.next().await {
        let Ok(Event::Apply(secret) | Event::InitApply(secret)) = event else {
            continue;
        };
        let annotations = secret.metadata.annotations.unwrap_or_default();
        if annotations.contains_key("state.cert-renew.io/rolled-out") {
            let name = secret.metadata.name.unwrap_or_default();
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.entry(name).or_insert_with(Instant::now);
        }
    }
}

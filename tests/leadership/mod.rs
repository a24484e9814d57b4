//! Several replicas: one acts, the others are ready to, and a change of hands loses and doubles nothing.

mod handover;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, OLD, Reference, Space, pair};
use test_bench::{
    Action, Bench, Context as _, Fault, Operator, OperatorOptions, Passed, Proxies, Result, Server,
    ensure, eventually, throughout,
};

use crate::renewal::{SOON, annotation, leaf, options, renewed, rolled_out};
use crate::scene::answered;

/// A lease that does not end while a test runs: a new leader was given it.
const LONG: [&str; 3] = ["600s", "400s", "1s"];
/// A lease whose end is waited for.
const SHORT: [&str; 3] = ["3s", "2s", "400ms"];
/// Secrets that are renewed when the leader is stopped.
const STOPPED: usize = 5;
/// Longer than a needless request takes to come.
const QUIET: Duration = Duration::from_secs(4);

/// A leader and a standby that is ready.
struct Two<'a> {
    leader: Operator<'a>,
    standby: Operator<'a>,
}

impl<'a> Two<'a> {
    async fn start(
        bench: &'a Bench,
        leads: OperatorOptions,
        stands_by: OperatorOptions,
    ) -> Result<Self> {
        let leader = Operator::start(bench, leads).await?;
        leading(&leader).await?;
        let mut standby = leader.replica(stands_by).await?;
        standby.run().await?;
        Ok(Self { leader, standby })
    }

    async fn alike(bench: &'a Bench, options: OperatorOptions) -> Result<Self> {
        Self::start(bench, options.clone(), options).await
    }
}

async fn leading(operator: &Operator<'_>) -> Result<()> {
    eventually(SOON, "it leads", async || {
        ensure!(operator.leads().await?, "it does not");
        Ok(())
    })
    .await
}

async fn standing_by(operator: &Operator<'_>) -> Result<()> {
    eventually(SOON, "it stands by", async || {
        ensure!(!operator.leads().await?, "it leads");
        Ok(())
    })
    .await
}

/// What it has asked the API server to change, by its own count; the lease aside, and the question what it may do, which
/// is a create by name only. Events not.
async fn changes(operator: &Operator<'_>) -> Result<Vec<String>> {
    let metrics = operator.metrics().await?;
    let changes = metrics.lines().filter(|line| {
        line.starts_with("cert_renew_api_requests_total{")
            && !line.contains("resource=\"leases\"")
            && !line.contains("resource=\"selfsubjectrulesreviews\"")
            && ["create", "patch", "update", "delete"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    });
    Ok(changes.map(ToOwned::to_owned).collect())
}

async fn lease(
    bench: &Bench,
    operator: &Operator<'_>,
) -> Result<k8s_openapi::api::coordination::v1::LeaseSpec> {
    let leases: Api<Lease> = Api::namespaced(bench.client()?, operator.namespace());
    leases
        .get("cert-renew")
        .await?
        .spec
        .context("an empty Lease")
}

/// Requests to the CA that change something.
fn posts(proxies: &Proxies) -> Vec<Passed> {
    let mut passed = proxies.passed();
    passed.retain(|it| it.server == Server::Ca && it.method == "POST");
    passed
}

/// Does `action` at the first request to the CA whose path contains `path`, before it is passed on.
fn once_at(proxies: &Proxies, path: &'static str, action: Action) {
    let done = AtomicBool::new(false);
    proxies.rule(move |passed| {
        let here = passed.server == Server::Ca && passed.path.contains(path);
        if here && !done.swap(true, Ordering::SeqCst) {
            return Fault::Meanwhile(Arc::clone(&action));
        }
        Fault::Pass
    });
}

#[tokio::test]
async fn a_standby_sees_and_answers_all_and_changes_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let Two { leader, standby } = Two::alike(bench, options().lease(LONG)).await?;
    let space = Space::new(bench.client()?, "standby", leader.namespace()).await?;
    // The CA reaches the standby only, as a Service may have it.
    bench.edge().remove(leader.challenge_address());
    let old = pair(&["standby.example"], OLD)?;
    let annotations = [
        ("issuer", "pebble"),
        ("unheard-of", "so that there is an Event"),
    ];
    space.tls_secret("web", Some(&old), &annotations).await?;
    renewed(&space, "web", &old.certificate).await?;
    rolled_out(&space, "web").await?;
    let hits = bench.edge().hits();
    let host = |hit: &&test_bench::Hit| hit.host == "standby.example" && hit.status == 200;
    ensure!(hits.iter().any(|hit| host(&hit)), "the CA was not answered");
    eventually(SOON, "the Event is there", async || {
        let events = space.events("web").await?;
        ensure!(
            events.iter().any(|it| it.starts_with("InvalidAnnotation")),
            "{events:?}"
        );
        Ok(())
    })
    .await?;
    let metrics = standby.metrics().await?;
    ensure!(
        metrics.contains("cert_renew_certificates{state=\"ok\"} 1"),
        "{metrics}"
    );
    ensure!(metrics.contains("cert_renew_leader 0"), "{metrics}");
    ensure!(
        metrics.contains("cert_renew_leader_terms_total 0"),
        "{metrics}"
    );
    let renewed = space.secrets().get("web").await?;
    let issued: Value = serde_json::from_str(
        annotation(&renewed, "state.cert-renew.io/issued-by").context("no issued-by")?,
    )?;
    let at: jiff::Timestamp = issued["at"].as_str().context("no instant")?.parse()?;
    let last_success = format!(
        "cert_renew_certificate_last_success_timestamp_seconds{{namespace=\"{}\",secret=\"web\",issuer=\"pebble\"}} {}\n",
        space.name,
        at.as_second()
    );
    ensure!(metrics.contains(&last_success), "{last_success}{metrics}");
    let changes = changes(&standby).await?;
    assert!(changes.is_empty(), "{changes:?}");
    assert!(leader.leads().await?);
    Ok(())
}

/// An alert that waits for hours is not to begin again with each leader.
#[tokio::test]
async fn that_a_renewal_fails_is_known_to_all_and_outlives_who_tried() -> Result<()> {
    let bench = Bench::shared().await?;
    let Two {
        mut leader,
        standby,
    } = Two::alike(bench, options().lease(LONG)).await?;
    let space = Space::new(bench.client()?, "failing", leader.namespace()).await?;
    let unheard_of = [
        ("issuer", "pebble"),
        ("names", "failing.example"),
        ("profile", "unheard-of"),
    ];
    space.tls_secret("web", None, &unheard_of).await?;
    let series = format!(
        "cert_renew_certificate_trouble{{namespace=\"{}\",secret=\"web\",issuer=\"pebble\",state=\"renewal_failing\"}} 1",
        space.name
    );
    let says = async |operator: &Operator<'_>| {
        ensure!(operator.metrics().await?.contains(&series), "not yet");
        Ok(())
    };
    eventually(SOON, "the standby says so", async || says(&standby).await).await?;
    let tried = standby.metrics().await?;
    let failed = |line: &str| {
        line.starts_with("cert_renew_renewals_total{") && line.contains("result=\"failed\"")
    };
    ensure!(!tried.lines().any(failed), "it tried: {tried}");
    leader.terminate().await?;
    leading(&standby).await?;
    throughout(QUIET, "the next one says so too", async || {
        says(&standby).await
    })
    .await
}

#[tokio::test]
async fn a_leader_that_is_killed_is_followed_when_its_lease_ends() -> Result<()> {
    let bench = Bench::shared().await?;
    let Two {
        mut leader,
        standby,
    } = Two::alike(bench, options().lease(SHORT)).await?;
    let space = Space::new(bench.client()?, "followed", leader.namespace()).await?;
    leader.kill();
    let old = pair(&["followed.example"], OLD)?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "web", &old.certificate).await?;
    assert!(standby.leads().await?);
    Ok(())
}

#[tokio::test]
async fn a_leader_that_was_stopped_starts_no_write_when_it_continues() -> Result<()> {
    let bench = Bench::shared().await?;
    // What would come next: writing the order down, and asking for other orders; finalizing it.
    for path in ["/order-plz", "/chalZ/"] {
        stopped_at(bench, path)
            .await
            .with_context(|| format!("stopped at {path}"))?;
    }
    Ok(())
}

/// Stops the leader while the CA answers a request for `path`, and lets it continue when another one has done all.
async fn stopped_at(bench: &Bench, path: &'static str) -> Result<()> {
    let proxies = Proxies::start(bench).await?;
    let mut options = options().lease(SHORT);
    options.directory = Some(proxies.directory());
    let Two { leader, standby } = Two::alike(bench, options).await?;
    let space = Space::new(bench.client()?, "stopped", leader.namespace()).await?;
    once_at(&proxies, path, leader.freezer()?);
    // Several, so that there is much to go on with at once.
    let names: Vec<String> = (0..STOPPED).map(|number| format!("web-{number}")).collect();
    let mut old = Vec::new();
    for name in &names {
        let pair = pair(&[&format!("{name}.{}.example", space.name)], OLD)?;
        space
            .workload("Deployment", name, Reference::Volume, name)
            .await?;
        space
            .tls_secret(name, Some(&pair), &[("issuer", "pebble")])
            .await?;
        old.push(pair);
    }
    let mut fingerprints = Vec::new();
    for (name, old) in names.iter().zip(&old) {
        renewed(&space, name, &old.certificate).await?;
        fingerprints.push(leaf(&rolled_out(&space, name).await?)?.fingerprint);
    }
    ensure!(standby.leads().await?, "the other one does not lead");

    // A request of which half was sent when it was stopped is ended by the API server, whenever: nothing comes of it.
    let writes = || -> Result<_> {
        let mut writes = leader.writes()?;
        writes.retain(|it| it.status < 300);
        Ok(writes)
    };
    let (before, asked) = (writes()?, posts(&proxies));
    leader.freeze(false)?;
    standing_by(&leader).await?;
    throughout(QUIET, "it writes nothing", async || {
        let now = writes()?;
        ensure!(now == before, "{:?}", &now[before.len()..]);
        let now = posts(&proxies);
        ensure!(now == asked, "{:?}", &now[asked.len()..]);
        Ok(())
    })
    .await?;
    let certificates = answered(&proxies, "/finalize-order/", 200);
    ensure!(
        certificates == STOPPED,
        "{certificates} certificates were issued"
    );
    for (name, fingerprint) in names.iter().zip(fingerprints) {
        let now = leaf(&space.secrets().get(name).await?)?.fingerprint;
        ensure!(now == fingerprint, "{name} has another certificate");
        let generation = space.generation("Deployment", name).await?;
        ensure!(
            generation == 2,
            "{name} was rolled {} times",
            generation - 1
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_leader_that_is_cut_off_stops_acting_and_nothing_is_issued_twice() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = Arc::new(Proxies::start(bench).await?);
    let mut direct = options().lease(SHORT);
    direct.directory = Some(proxies.directory());
    let mut proxied = direct.clone();
    proxied.api_server = Some(proxies.api_server());
    let Two { leader, standby } = Two::start(bench, proxied, direct).await?;
    let space = Space::new(bench.client()?, "cut", leader.namespace()).await?;
    let cut = Arc::downgrade(&proxies);
    let gone: Action = Arc::new(move || {
        if let Some(proxies) = cut.upgrade() {
            proxies.gone(true);
        }
    });
    once_at(&proxies, "/chalZ/", gone);
    let old = pair(&["cut.example"], OLD)?;
    space
        .workload("Deployment", "web", Reference::Volume, "web")
        .await?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "pebble")])
        .await?;
    standing_by(&leader).await?;
    renewed(&space, "web", &old.certificate).await?;
    rolled_out(&space, "web").await?;
    assert!(standby.leads().await?);

    let (before, asked) = (leader.writes()?, posts(&proxies));
    proxies.gone(false);
    eventually(SOON, "it sees the Secrets again", async || {
        let metrics = leader.metrics().await?;
        ensure!(metrics.contains("cert_renew_watch_up 1"), "it does not");
        Ok(())
    })
    .await?;
    throughout(QUIET, "it writes nothing", async || {
        let now = leader.writes()?;
        ensure!(now == before, "{:?}", &now[before.len()..]);
        let now = posts(&proxies);
        ensure!(now == asked, "{:?}", &now[asked.len()..]);
        Ok(())
    })
    .await?;
    assert_eq!(answered(&proxies, "/order-plz", 201), 1);
    assert_eq!(answered(&proxies, "/finalize-order/", 200), 1);
    assert_eq!(
        space.generation("Deployment", "web").await?,
        2,
        "rolled once"
    );
    Ok(())
}

#[tokio::test]
async fn a_leader_that_lost_the_lease_takes_over_again() -> Result<()> {
    let bench = Bench::shared().await?;
    let Two {
        leader,
        mut standby,
    } = Two::alike(bench, options().lease(SHORT)).await?;
    let space = Space::new(bench.client()?, "again", leader.namespace()).await?;
    leader.freeze(true)?;
    leading(&standby).await?;
    // What the other one does meanwhile is believed afterwards.
    let first = pair(&["first.again.example"], OLD)?;
    space
        .tls_secret("first", Some(&first), &[("issuer", "pebble")])
        .await?;
    let renewed_first = renewed(&space, "first", &first.certificate).await?;
    rolled_out(&space, "first").await?;
    leader.freeze(false)?;
    standing_by(&leader).await?;
    standby.terminate().await?;
    leading(&leader).await?;
    let second = pair(&["second.again.example"], OLD)?;
    space
        .tls_secret("second", Some(&second), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "second", &second.certificate).await?;
    rolled_out(&space, "second").await?;
    let now = space.secrets().get("first").await?;
    assert_eq!(leaf(&renewed_first)?.fingerprint, leaf(&now)?.fingerprint);
    let metrics = leader.metrics().await?;
    assert!(
        metrics.contains("cert_renew_leader_terms_total 2"),
        "{metrics}"
    );
    assert!(leader.process()?.exited().is_none(), "the process goes on");
    Ok(())
}

#[tokio::test]
async fn a_halted_rollout_stays_halted_when_another_one_leads() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options().lease(LONG);
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 0s, progressTimeout: 3s, perNamespace: 1}\n"
            .into();
    let Two {
        mut leader,
        standby,
    } = Two::alike(bench, options).await?;
    let space = Space::new(bench.client()?, "halted", leader.namespace()).await?;
    let fresh = pair(&["halted.example"], FRESH)?;
    space
        .tls_secret("web", Some(&fresh), &[("issuer", "external")])
        .await?;
    for name in ["a", "b"] {
        space
            .workload("Deployment", name, Reference::Volume, "web")
            .await?;
        space.available("Deployment", name).await?;
    }
    rolled_out(&space, "web").await?;
    // New pods cannot be made any more.
    let quotas: Api<ResourceQuota> = Api::namespaced(space.client.clone(), &space.name);
    let quota = json!({"metadata": {"name": "full"}, "spec": {"hard": {"pods": "0"}}});
    quotas
        .create(&PostParams::default(), &serde_json::from_value(quota)?)
        .await?;
    eventually(SOON, "the quota counts", async || {
        let status = quotas.get("full").await?.status;
        ensure!(status.and_then(|it| it.used).is_some(), "it does not");
        Ok(())
    })
    .await?;
    space.put("web", &pair(&["halted.example"], FRESH)?).await?;
    let halted = async || {
        let secret = space.secrets().get("web").await?;
        let note = annotation(&secret, "state.cert-renew.io/rollout-halted");
        Ok::<_, test_bench::Error>(note.context("it is not halted")?.to_owned())
    };
    let note = eventually(SOON, "the rollout is halted", halted).await?;
    leader.terminate().await?;
    leading(&standby).await?;
    let generations = async || {
        let (a, b) = (
            space.generation("Deployment", "a").await?,
            space.generation("Deployment", "b").await?,
        );
        Ok::<_, test_bench::Error>(a + b)
    };
    // The new leader has looked at it.
    eventually(SOON, "the workloads are listed", async || {
        let requests = standby.requests()?;
        let listed = requests
            .iter()
            .any(|it| it.verb == "list" && it.namespace == space.name);
        ensure!(listed, "they are not");
        Ok(())
    })
    .await?;
    throughout(QUIET, "nothing is rolled", async || {
        let sum = generations().await?;
        ensure!(sum == 3, "the generations sum up to {sum}");
        let now = halted().await?;
        ensure!(now == note, "{now}");
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn whoever_takes_the_lease_away_is_heeded_at_once() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options().lease(SHORT)).await?;
    leading(&operator).await?;
    let leases: Api<Lease> = Api::namespaced(bench.client()?, operator.namespace());
    let other = json!({"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 600}});
    leases
        .patch("cert-renew", &PatchParams::default(), &Patch::Merge(other))
        .await?;
    standing_by(&operator).await?;
    // A Lease that is deleted is made again.
    leases
        .delete("cert-renew", &kube::api::DeleteParams::default())
        .await?;
    leading(&operator).await
}

#[tokio::test]
async fn a_replica_that_needs_no_lease_takes_none() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.arguments = vec!["--leader-election=false".into()];
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "alone", operator.namespace()).await?;
    let old = pair(&["alone.example"], OLD)?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "web", &old.certificate).await?;
    assert!(operator.leads().await?);
    let leases: Api<Lease> = Api::namespaced(bench.client()?, operator.namespace());
    assert!(leases.get_opt("cert-renew").await?.is_none());
    operator.terminate().await
}

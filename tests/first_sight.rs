//! What the workloads have is known from the first sight on, whatever is shut, and believed only for its own Secret.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use test_bench::objects::{FRESH, OLD, Pair, Reference, Space, pair};
use test_bench::{Bench, Fault, Operator, Passed, Proxies, Result, ensure, eventually, throughout};

use crate::faults::action;
use crate::fresh_look::closed_window;
use crate::propagation::told;
use crate::renewal::{SOON, annotation, options, rolled_out};
use crate::rolling::{make, merge, ready};

/// Long enough for a restart that should not be to show itself: one takes less than a second.
const QUIET: Duration = Duration::from_secs(3);
const ROLLED_OUT: &str = "state.cert-renew.io/rolled-out";

fn fingerprint(pair: &Pair) -> Result<String> {
    let leaf = cert_renew_core::certificate::leaf(pair.certificate.as_bytes())?;
    Ok(leaf.fingerprint.to_string())
}

/// Waits until the Secret says that its workloads have this certificate.
async fn recorded(space: &Space, name: &str, pair: &Pair) -> Result<()> {
    let fingerprint = fingerprint(pair)?;
    eventually(SOON, &format!("{name} has its record"), async || {
        let secret = space.secrets().get(name).await?;
        let said = annotation(&secret, ROLLED_OUT).unwrap_or("nothing");
        ensure!(said.starts_with(&fingerprint), "{said}");
        Ok(())
    })
    .await
}

/// A Secret of somebody else's, and a Deployment of the same name that is ready with it.
async fn served(space: &Space, name: &str, pair: &Pair) -> Result<()> {
    space
        .workload("Deployment", name, Reference::Volume, name)
        .await?;
    ready(space, name, 2).await?;
    space
        .tls_secret(name, Some(pair), &[("issuer", "external")])
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_while_all_is_shut_is_rolled_when_the_way_opens() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "sight", operator.namespace()).await?;
    let window = closed_window();
    let hindrances = [
        ("window", "change-window", &*window),
        ("paused", "paused", "true"),
        ("unread", "workloads", "no workload"),
    ];
    let (first, second) = (
        pair(&["sight.example"], FRESH)?,
        pair(&["sight.example"], FRESH)?,
    );
    for (name, key, value) in hindrances {
        space
            .workload("Deployment", name, Reference::Volume, name)
            .await?;
        ready(&space, name, 2).await?;
        let annotations = [("issuer", "external"), (key, value)];
        space.tls_secret(name, Some(&first), &annotations).await?;
    }
    for (name, ..) in hindrances {
        recorded(&space, name, &first).await?;
    }
    // A writer that knows nothing of our annotations takes the record away, and it is put back.
    let secret = space.secrets().get("window").await?;
    let mut bare = secret.clone();
    let of_state = |key: &String| key.starts_with("state.cert-renew.io/");
    bare.metadata
        .annotations
        .get_or_insert_default()
        .retain(|key, _| !of_state(key));
    bare.data = None;
    bare.string_data = Some(
        [
            ("tls.crt".to_owned(), second.certificate.clone()),
            ("tls.key".to_owned(), second.key.clone()),
        ]
        .into(),
    );
    space
        .secrets()
        .replace("window", &PostParams::default(), &bare)
        .await?;
    told(&space, "window", "the rollout waits for the change window").await?;
    recorded(&space, "window", &first).await?;
    for name in ["paused", "unread"] {
        space.put(name, &second).await?;
    }
    operator.restart().await?;
    throughout(QUIET, "the way is shut", async || {
        for (name, ..) in hindrances {
            let generation = space.generation("Deployment", name).await?;
            ensure!(generation == 1, "{name}: {generation}");
        }
        Ok(())
    })
    .await?;
    for (name, key, _) in hindrances {
        recorded(&space, name, &first).await?;
        let key = format!("cert-renew.io/{key}");
        space
            .merge(name, json!({"metadata": {"annotations": {key: null}}}))
            .await?;
    }
    for (name, ..) in hindrances {
        rolled_out(&space, name).await?;
        assert_eq!(space.generation("Deployment", name).await?, 2, "{name}");
    }
    Ok(())
}

/// A renewal that is asked for and held for days holds neither the first sight nor a rollout up.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_renewal_holds_no_rollout_up() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "held-sight", operator.namespace()).await?;
    let make = || pair(&["held.sight.example"], FRESH);
    let (first, second) = (make()?, make()?);
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    ready(&space, "web", 2).await?;
    let asks = [("issuer", "pebble"), ("renew-now", "today")];
    space.tls_secret("tls", Some(&first), &asks).await?;
    recorded(&space, "tls", &first).await?;
    let adopted = told(
        &space,
        "tls",
        "a new certificate is asked for and held until 20",
    )
    .await?;
    ensure!(adopted.starts_with("Adopted"), "{adopted}");
    space.put("tls", &second).await?;
    rolled_out(&space, "tls").await?;
    recorded(&space, "tls", &second).await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_copied_or_restored_with_the_secret_stops_no_rollout() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "copied", operator.namespace()).await?;
    let (first, second) = (
        pair(&["copied.example"], FRESH)?,
        pair(&["copied.example"], FRESH)?,
    );
    let names = ["copied", "unbound", "restored"];
    for name in names {
        served(&space, name, &first).await?;
    }
    for name in names {
        recorded(&space, name, &first).await?;
    }
    // Certificate and record in one write: of another Secret, as former versions wrote it, and of this very Secret.
    let until = cert_renew_core::certificate::leaf(second.certificate.as_bytes())?.not_after;
    let said = format!("{} {until}", fingerprint(&second)?);
    let own = space
        .secrets()
        .get("restored")
        .await?
        .metadata
        .uid
        .unwrap_or_default();
    let another = "3f1c2a44-0000-4000-8000-000000000000";
    let copy = |record: String| {
        json!({
            "metadata": {"annotations": {ROLLED_OUT: record}},
            "stringData": {"tls.crt": second.certificate, "tls.key": second.key},
        })
    };
    space
        .merge("copied", copy(format!("{said} {another}")))
        .await?;
    space.merge("unbound", copy(said.clone())).await?;
    space
        .merge("restored", copy(format!("{said} {own}")))
        .await?;
    let once = async |generation: i64| {
        for name in names {
            eventually(SOON, &format!("{name} is restarted"), async || {
                let now = space.generation("Deployment", name).await?;
                ensure!(now == generation, "{now}");
                Ok(())
            })
            .await?;
            rolled_out(&space, name).await?;
        }
        Ok::<_, test_bench::Error>(())
    };
    once(2).await?;
    // A copier that insists is not fought with, and restarts nothing.
    let insists = json!({"metadata": {"annotations": {ROLLED_OUT: format!("{said} {another}")}}});
    space.merge("copied", insists).await?;
    throughout(QUIET, "the copy stays as it is", async || {
        let secret = space.secrets().get("copied").await?;
        let said = annotation(&secret, ROLLED_OUT).unwrap_or_default();
        ensure!(said.ends_with(another), "{said}");
        Ok(())
    })
    .await?;
    // Nobody remembers after a start, but the template says what the workload has.
    operator.kill();
    let third = pair(&["copied.example"], FRESH)?;
    let until = cert_renew_core::certificate::leaf(third.certificate.as_bytes())?.not_after;
    let said = format!("{} {until} {another}", fingerprint(&third)?);
    let late = json!({
        "metadata": {"annotations": {ROLLED_OUT: said}},
        "stringData": {"tls.crt": third.certificate, "tls.key": third.key},
    });
    for name in names {
        space.merge(name, late.clone()).await?;
    }
    operator.run().await?;
    once(3).await
}

/// A backup holds the certificate and the record that the workloads have it.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_a_restored_backup_that_is_older_than_what_runs_is_told_and_rolled()
-> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "backup", operator.namespace()).await?;
    let first = pair(&["backup.example"], OLD)?;
    // Restored while nobody looks, and while the operator runs.
    let names = ["asleep", "awake"];
    for name in names {
        served(&space, name, &first).await?;
    }
    let mut backups = Vec::new();
    for name in names {
        recorded(&space, name, &first).await?;
        let secret = space.secrets().get(name).await?;
        let record = annotation(&secret, ROLLED_OUT)
            .unwrap_or_default()
            .to_owned();
        backups.push(json!({
            "metadata": {"annotations": {ROLLED_OUT: record}},
            "stringData": {"tls.crt": first.certificate, "tls.key": first.key},
        }));
    }
    let second = pair(&["backup.example"], FRESH)?;
    for name in names {
        space.put(name, &second).await?;
    }
    for name in names {
        rolled_out(&space, name).await?;
    }
    space.merge("awake", backups[1].clone()).await?;
    told(
        &space,
        "awake",
        "EarlierCertificate: the Secret holds an earlier certificate",
    )
    .await?;
    recorded(&space, "awake", &first).await?;
    operator.kill();
    space.merge("asleep", backups[0].clone()).await?;
    operator.run().await?;
    let said = told(
        &space,
        "asleep",
        "EarlierCertificate: the Secret holds an earlier certificate",
    )
    .await?;
    let renew = format!(
        "cert-renew renew --force {}/asleep --operator-namespace {}",
        space.name,
        operator.namespace()
    );
    assert!(
        said.contains("deployment/asleep was restarted for another one") && said.contains(&renew),
        "{said}"
    );
    for name in names {
        eventually(SOON, &format!("{name} is restarted"), async || {
            let now = space.generation("Deployment", name).await?;
            ensure!(now == 3, "{now}");
            Ok(())
        })
        .await?;
        recorded(&space, name, &first).await?;
    }
    // Somebody who goes back to an earlier template after the Secret was written has pods with what it holds.
    let carried = json!({"metadata": {"annotations": {cert_renew_core::rollout::leaf_annotation("awake"): fingerprint(&second)?}}});
    merge(
        &space,
        "Deployment",
        "awake",
        json!({"spec": {"template": carried}}),
    )
    .await?;
    operator.kill();
    operator.run().await?;
    throughout(QUIET, "what was undone is left alone", async || {
        let now = space.generation("Deployment", "awake").await?;
        ensure!(now == 4, "{now}");
        Ok(())
    })
    .await?;
    recorded(&space, "awake", &first).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_secret_is_found_although_somebody_writes_it_and_looked_for_once() -> Result<()>
{
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let mut options = options();
    options.api_server = Some(proxies.api_server());
    let config = options.config.clone();
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "crossed", operator.namespace()).await?;
    let first = pair(&["crossed.example"], OLD)?;
    served(&space, "tls", &first).await?;
    recorded(&space, "tls", &first).await?;
    let annotations = space.secrets().get("tls").await?.metadata.annotations;
    let backup = json!({
        "metadata": {"annotations": annotations},
        "stringData": {"tls.crt": first.certificate, "tls.key": first.key},
    });
    space
        .put("tls", &pair(&["crossed.example"], FRESH)?)
        .await?;
    rolled_out(&space, "tls").await?;
    operator.kill();
    space.merge("tls", backup).await?;
    // Between its look and its write comes that of somebody else.
    let namespace = space.name.clone();
    let path = format!("/api/v1/namespaces/{namespace}/secrets/tls");
    let crosses = action(bench, async move |client| {
        let secrets: Api<Secret> = Api::namespaced(client, &namespace);
        let label = Patch::Merge(json!({"metadata": {"labels": {"somebody": "else"}}}));
        let params = PatchParams::default();
        secrets.patch("tls", &params, &label).await?;
        Ok(())
    });
    let writes = move |passed: &Passed| passed.method == "PATCH" && passed.path == path;
    let crossed = AtomicBool::new(false);
    proxies.rule({
        let writes = writes.clone();
        move |passed| match writes(passed) && !crossed.swap(true, Ordering::SeqCst) {
            true => Fault::Meanwhile(crosses.clone()),
            false => Fault::Pass,
        }
    });
    operator.run().await?;
    told(&space, "tls", "EarlierCertificate").await?;
    recorded(&space, "tls", &first).await?;
    assert_eq!(space.generation("Deployment", "tls").await?, 3);
    let refused = proxies
        .passed()
        .iter()
        .any(|it| writes(it) && it.status == Some(409));
    assert!(refused, "nothing came between");
    // Neither a changed config nor another term lists the workloads again.
    let path = format!("/apis/apps/v1/namespaces/{}/deployments", space.name);
    let lists = || {
        let passed = proxies.passed();
        passed.iter().filter(|it| it.path == path).count()
    };
    let before = lists();
    operator.configure(&(config + "metrics: {perCertificate: false}\n"))?;
    eventually(SOON, "the config is in force", async || {
        let said = operator.log()?.contains("a changed config is in force");
        ensure!(said, "it is not");
        Ok(())
    })
    .await?;
    throughout(QUIET, "the workloads are not listed", async || {
        ensure!(lists() == before, "{} times", lists() - before);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rollout_waits_for_is_told_and_ends_its_wait_soon() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "waits", operator.namespace()).await?;
    let none = json!({"cert-renew.io/rollout": "none"});
    let left_out = [("/spec/template/metadata/annotations", none)];
    make(&space, "Deployment", "left-out", "tls", &left_out).await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    ready(&space, "web", 2).await?;
    let first = pair(&["waits.example"], FRESH)?;
    space
        .tls_secret("tls", Some(&first), &[("issuer", "external")])
        .await?;
    recorded(&space, "tls", &first).await?;
    merge(
        &space,
        "Deployment",
        "web",
        json!({"spec": {"paused": true}}),
    )
    .await?;
    space.put("tls", &pair(&["waits.example"], FRESH)?).await?;
    told(
        &space,
        "tls",
        "RolloutWaits: the rollout waits: deployment/web is paused",
    )
    .await?;
    merge(
        &space,
        "Deployment",
        "web",
        json!({"spec": {"paused": false}}),
    )
    .await?;
    // Within a minute.
    rolled_out(&space, "tls").await?;
    assert!(space.leaf_of("Deployment", "web", "tls").await?.is_some());
    let generation = space.generation("Deployment", "left-out").await?;
    assert_eq!(generation, 1, "its template has opted out");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_was_rolled_a_short_while_ago_says_until_when_it_waits() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config = "rollout: {settle: 0s, perWorkloadMinInterval: 1h}\n".into();
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "interval", operator.namespace()).await?;
    make(&space, "Deployment", "often", "tls", &[]).await?;
    ready(&space, "often", 2).await?;
    let first = pair(&["interval.example"], FRESH)?;
    space
        .tls_secret("tls", Some(&first), &[("issuer", "external")])
        .await?;
    recorded(&space, "tls", &first).await?;
    space
        .put("tls", &pair(&["interval.example"], FRESH)?)
        .await?;
    rolled_out(&space, "tls").await?;
    space
        .put("tls", &pair(&["interval.example"], FRESH)?)
        .await?;
    told(&space, "often", "RolloutWaits: waits until ").await?;
    assert_eq!(space.generation("Deployment", "often").await?, 2);
    operator.configure("rollout: {settle: 0s, perWorkloadMinInterval: 0s}\n")?;
    rolled_out(&space, "tls").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_is_paused_in_the_middle_of_its_rollout_is_said_to_be_paused()
-> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 0s, progressTimeout: 15s}\n".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "midway", operator.namespace()).await?;
    // Longer than the patience: no new pod is available within it.
    let slow = [("/spec/minReadySeconds", json!(30))];
    make(&space, "Deployment", "slow", "tls", &slow).await?;
    space.available("Deployment", "slow").await?;
    let first = pair(&["midway.example"], FRESH)?;
    space
        .tls_secret("tls", Some(&first), &[("issuer", "external")])
        .await?;
    recorded(&space, "tls", &first).await?;
    space.put("tls", &pair(&["midway.example"], FRESH)?).await?;
    eventually(SOON, "its rollout has begun", async || {
        let has = space.leaf_of("Deployment", "slow", "tls").await?;
        ensure!(has.is_some(), "it has not");
        Ok(())
    })
    .await?;
    merge(
        &space,
        "Deployment",
        "slow",
        json!({"spec": {"paused": true}}),
    )
    .await?;
    told(&space, "tls", "it is paused; no progress for 15s").await?;
    Ok(())
}

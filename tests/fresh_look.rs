//! A rollout that waits looks again before it does anything: what is no longer as it was planned is not rolled.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use test_bench::objects::{EXPIRED, FRESH, OLD, Pair, Space, pair};
use test_bench::{Bench, Operator, Result, ensure, eventually, throughout};

use crate::propagation::told;
use crate::renewal::{SOON, annotation, leaf, options, renewed, rolled_out};
use crate::rolling::{counted, full, make, ready};

/// Long enough for a restart that should not be to show itself: one takes less than a second.
const QUIET: Duration = Duration::from_secs(3);

/// What is done to a Secret while its rollout waits.
type Deed = for<'a> fn(&'a Space, &'a str, &'a Pair) -> BoxFuture<'a, Result<()>>;

const EMPTY: &str = "an emptied one";

/// By name: what is done, `had` being the certificate that the workload has.
fn deeds() -> Vec<(&'static str, Deed)> {
    vec![
        ("foreign-key", |space, name, _| {
            async move {
                let other = pair(&["look.example"], FRESH)?;
                space
                    .merge(name, json!({"stringData": {"tls.key": other.key}}))
                    .await
            }
            .boxed()
        }),
        ("emptied", |space, name, _| {
            merge_boxed(space, name, json!({"data": {"tls.crt": "", "tls.key": ""}}))
        }),
        ("expired", |space, name, _| {
            async move {
                space.put(name, &pair(&["look.example"], EXPIRED)?).await?;
                Ok(())
            }
            .boxed()
        }),
        ("nonsense", |space, name, _| {
            merge_boxed(space, name, json!({"stringData": {"tls.crt": "nonsense"}}))
        }),
        ("put-back", |space, name, had| {
            async move {
                space.put(name, had).await?;
                Ok(())
            }
            .boxed()
        }),
        ("deleted", |space, name, _| {
            async move {
                let secrets = space.secrets();
                secrets.delete(name, &DeleteParams::default()).await?;
                Ok(())
            }
            .boxed()
        }),
        ("paused", |space, name, _| {
            space.annotate(name, "paused", "true").boxed()
        }),
        ("none", |space, name, _| {
            space.annotate(name, "rollout", "none").boxed()
        }),
        ("shut", |space, name, _| {
            let window = closed_window();
            async move { space.annotate(name, "change-window", window).await }.boxed()
        }),
        ("released", |space, name, _| {
            space.annotate(name, "issuer", Value::Null).boxed()
        }),
    ]
}

fn merge_boxed<'a>(space: &'a Space, name: &'a str, patch: Value) -> BoxFuture<'a, Result<()>> {
    space.merge(name, patch).boxed()
}

/// A window that opens in twelve hours.
pub(crate) fn closed_window() -> String {
    let now = cert_renew_core::time::UnixTime::now().0;
    let hour = (now / 3_600 + 12) % 24;
    let until = (hour + 1) % 24;
    format!("Mon-Sun {hour:02}:00-{until:02}:00 UTC")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_it_was_planned_is_not_rolled_after_a_wait() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.log_level = "info".into();
    // The interval makes the second rollout of each workload wait.
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 15s, concurrency: 32, perNamespace: 32}\n"
            .into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "looks", operator.namespace()).await?;
    let (first, second) = (
        pair(&["look.example"], FRESH)?,
        pair(&["look.example"], FRESH)?,
    );
    let third = pair(&["look.example"], FRESH)?;
    let deeds = deeds();
    let names: Vec<&str> = deeds
        .iter()
        .map(|(name, _)| *name)
        .chain(["untouched"])
        .collect();
    for name in &names {
        make(
            &space,
            "Deployment",
            name,
            name,
            &[("/spec/replicas", json!(1))],
        )
        .await?;
        let external = [("issuer", "external")];
        space.tls_secret(name, Some(&first), &external).await?;
    }
    for name in &names {
        rolled_out(&space, name).await?;
        space.available("Deployment", name).await?;
    }
    for name in &names {
        space.put(name, &second).await?;
    }
    for name in &names {
        rolled_out(&space, name).await?;
        assert_eq!(space.generation("Deployment", name).await?, 2, "{name}");
    }
    let planned = |log: &str, name: &str| {
        let line = |line: &&str| line.contains("rolling") && line.contains(&format!("/{name}\""));
        log.lines().filter(line).count()
    };
    for name in &names {
        space.put(name, &third).await?;
    }
    eventually(SOON, "all wait for the interval", async || {
        let log = operator.log()?;
        for name in &names {
            ensure!(planned(&log, name) == 2, "{name}: {}", planned(&log, name));
        }
        Ok(())
    })
    .await?;
    for name in &names {
        assert_eq!(
            space.generation("Deployment", name).await?,
            2,
            "{name} waits"
        );
    }
    for (name, deed) in &deeds {
        deed(&space, name, &second).await?;
    }
    // The one that nobody touched has waited as long as all others.
    rolled_out(&space, "untouched").await?;
    assert_eq!(space.generation("Deployment", "untouched").await?, 3);
    throughout(QUIET, "no other is restarted", async || {
        for (name, _) in &deeds {
            let generation = space.generation("Deployment", name).await?;
            ensure!(generation == 2, "{name} was: {generation}");
        }
        Ok(())
    })
    .await?;
    // None of them counts as rolled.
    let planned = cert_renew_core::certificate::leaf(third.certificate.as_bytes())?;
    for (name, _) in &deeds {
        let Some(secret) = space.secrets().get_opt(name).await? else {
            assert_eq!(*name, "deleted");
            continue;
        };
        let said = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or_default();
        // With `rollout: none` its owner looks after the workloads.
        let counted = said.starts_with(&planned.fingerprint.to_string());
        assert_eq!(counted, *name == "none", "{name}: {said}");
    }
    let events = space.events("foreign-key").await?;
    let why = "the private key is not the one of the certificate";
    assert!(events.iter().any(|it| it.contains(why)), "{events:?}");
    // What is mended goes on.
    space.put("emptied", &third).await?;
    space.annotate("paused", "paused", Value::Null).await?;
    space.annotate("shut", "change-window", Value::Null).await?;
    for name in ["emptied", "paused", "shut"] {
        rolled_out(&space, name).await?;
        assert_eq!(space.generation("Deployment", name).await?, 3, "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_after_the_canary_the_others_keep_what_they_have() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "canary", operator.namespace()).await?;
    let fresh = pair(&["canary.example"], FRESH)?;
    let names = ["a", "b", "c", "d"];
    for name in names {
        make(&space, "Deployment", name, "tls", &[]).await?;
    }
    space
        .tls_secret("tls", Some(&fresh), &[("issuer", "external")])
        .await?;
    for name in names {
        ready(&space, name, 2).await?;
    }
    counted(&space, &names).await?;
    rolled_out(&space, "tls").await?;
    // A canary that takes no less than this to become available.
    let slow = json!({"spec": {"minReadySeconds": 4}});
    for name in names {
        let api = space.workloads("Deployment");
        let params = PatchParams::default();
        api.patch(name, &params, &Patch::Merge(&slow)).await?;
        space.available("Deployment", name).await?;
    }
    space.put("tls", &pair(&["canary.example"], FRESH)?).await?;
    let rolled = async || {
        let mut rolled = Vec::new();
        for name in names {
            if space.leaf_of("Deployment", name, "tls").await?.is_some() {
                rolled.push(name);
            }
        }
        Ok::<_, test_bench::Error>(rolled)
    };
    eventually(SOON, "the canary is restarted", async || {
        let rolled = rolled().await?;
        ensure!(rolled.len() == 1, "{rolled:?}");
        Ok(())
    })
    .await?;
    let empty = json!({"data": {"tls.crt": "", "tls.key": ""}});
    space.merge("tls", empty).await?;
    let canary = rolled().await?;
    space.available("Deployment", canary[0]).await?;
    throughout(QUIET, EMPTY, async || {
        let rolled = rolled().await?;
        ensure!(rolled == canary, "{rolled:?}");
        Ok(())
    })
    .await?;
    let last = pair(&["canary.example"], FRESH)?;
    space.put("tls", &last).await?;
    rolled_out(&space, "tls").await?;
    Ok(())
}

/// Two Deployments `a` and `b`, the first of which is being restarted for a new certificate and takes seconds for it.
async fn in_the_middle(space: &Space, annotations: &[(&str, &str)]) -> Result<()> {
    let slow = [("/spec/minReadySeconds", json!(5))];
    for name in ["a", "b"] {
        make(space, "Deployment", name, "tls", &slow).await?;
    }
    for name in ["a", "b"] {
        space.available("Deployment", name).await?;
    }
    let make = || pair(&["middle.example"], OLD);
    space.tls_secret("tls", Some(&make()?), annotations).await?;
    rolled_out(space, "tls").await?;
    space.put("tls", &make()?).await?;
    eventually(SOON, "the canary is restarted", async || {
        let leaf = space.leaf_of("Deployment", "a", "tls").await?;
        ensure!(leaf.is_some(), "not yet");
        Ok(())
    })
    .await?;
    assert_eq!(space.generation("Deployment", "b").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_closes_in_the_middle_and_does_not_count_is_told() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "closes", operator.namespace()).await?;
    in_the_middle(&space, &[("issuer", "external")]).await?;
    // What is served ends before a tenth of the lifetime has passed: it is gone on with.
    space
        .annotate("tls", "change-window", closed_window())
        .await?;
    rolled_out(&space, "tls").await?;
    assert_eq!(space.generation("Deployment", "b").await?, 2);
    told(&space, "tls", "WindowOverruled").await?;
    Ok(())
}

/// A window that is open, and when it closes: at a full minute, a while from now.
fn closing_window() -> (String, cert_renew_core::time::UnixTime) {
    let closes = (cert_renew_core::time::UnixTime::now().0 + 20) / 60 + 1;
    let at = |minute: i64| {
        let minute = minute.rem_euclid(24 * 60);
        format!("{:02}:{:02}", minute / 60, minute % 60)
    };
    let window = format!("{}-{} UTC", at(closes - 30), at(closes));
    (window, cert_renew_core::time::UnixTime(closes * 60))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_closes_by_the_clock_in_the_middle_is_kept_to_and_told() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    // The second one waits for longer than the window is open.
    options.config = "rollout: {settle: 0s, perWorkloadMinInterval: 0s, canaryBake: 85s}\n".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "clock", operator.namespace()).await?;
    for name in ["a", "b"] {
        make(&space, "Deployment", name, "tls", &[]).await?;
        ready(&space, name, 2).await?;
    }
    counted(&space, &["a", "b"]).await?;
    let fresh = || pair(&["clock.example"], FRESH);
    space
        .tls_secret("tls", Some(&fresh()?), &[("issuer", "external")])
        .await?;
    rolled_out(&space, "tls").await?;
    let (window, closes) = closing_window();
    space.annotate("tls", "change-window", window).await?;
    space.put("tls", &fresh()?).await?;
    eventually(SOON, "the canary is restarted", async || {
        let leaf = space.leaf_of("Deployment", "a", "tls").await?;
        ensure!(leaf.is_some(), "not yet");
        Ok(())
    })
    .await?;
    eventually(2 * SOON, "the window has closed", async || {
        ensure!(cert_renew_core::time::UnixTime::now() >= closes, "not yet");
        Ok(())
    })
    .await?;
    let waits = "RolloutWaits: the rollout waits for the change window";
    eventually(3 * SOON, "an Event says for what it waits", async || {
        let events = space.events("tls").await?;
        ensure!(events.iter().any(|it| it.starts_with(waits)), "{events:?}");
        Ok(())
    })
    .await?;
    let series = format!(
        "cert_renew_rollout_pending{{namespace=\"{}\",secret=\"tls\"}} 0",
        space.name
    );
    eventually(SOON, "the metric says that it waits", async || {
        ensure!(operator.metrics().await?.contains(&series), "it does not");
        Ok(())
    })
    .await?;
    assert_eq!(space.generation("Deployment", "b").await?, 1);
    space.annotate("tls", "change-window", Value::Null).await?;
    rolled_out(&space, "tls").await?;
    assert_eq!(space.generation("Deployment", "b").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_that_are_named_by_now_are_rolled_and_no_others() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "named", operator.namespace()).await?;
    for name in ["former", "later"] {
        make(&space, "Deployment", name, "other", &[]).await?;
        ready(&space, name, 2).await?;
    }
    let annotations = [("issuer", "external"), ("workloads", "deployment/former")];
    in_the_middle(&space, &annotations).await?;
    space
        .annotate("tls", "workloads", "deployment/later")
        .await?;
    rolled_out(&space, "tls").await?;
    for (name, generation) in [("a", 2), ("b", 2), ("former", 1), ("later", 2)] {
        let now = space.generation("Deployment", name).await?;
        assert_eq!(now, generation, "{name}");
    }
    Ok(())
}

/// Two Deployments; the new pods of one are never made.
async fn stuck(space: &Space, issuer: &str, age: test_bench::objects::Age) -> Result<Pair> {
    make(space, "Deployment", "web", "tls", &[]).await?;
    ready(space, "web", 2).await?;
    counted(space, &["web"]).await?;
    full(space, 2).await?;
    let had = pair(&["stuck.example"], age)?;
    space
        .tls_secret("tls", Some(&had), &[("issuer", issuer)])
        .await?;
    Ok(had)
}

/// Waits until the Deployment is being rolled for what the Secret holds.
async fn begun(space: &Space) -> Result<()> {
    eventually(
        SOON,
        "web is rolled for what the Secret holds",
        async || {
            let secret = space.secrets().get("tls").await?;
            let holds = leaf(&secret)?.fingerprint.to_string();
            let has = space.leaf_of("Deployment", "web", "tls").await?;
            ensure!(has == Some(holds), "{has:?}");
            Ok(())
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_certificate_does_not_wait_for_the_rollout_of_the_one_before() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    // What the former one has not brought up need not rest.
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 1h, progressTimeout: 1h}\n".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "newer", operator.namespace()).await?;
    stuck(&space, "external", FRESH).await?;
    rolled_out(&space, "tls").await?;
    // Its pods cannot be made, and nothing gives up on it for an hour.
    space.put("tls", &pair(&["stuck.example"], FRESH)?).await?;
    begun(&space).await?;
    space.put("tls", &pair(&["stuck.example"], FRESH)?).await?;
    begun(&space).await?;
    assert_eq!(space.generation("Deployment", "web").await?, 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_that_mends_a_halted_rollout_goes_out_at_once() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 1h, progressTimeout: 10s}\n".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "mends", operator.namespace()).await?;
    stuck(&space, "external", FRESH).await?;
    rolled_out(&space, "tls").await?;
    space.put("tls", &pair(&["stuck.example"], FRESH)?).await?;
    told(&space, "tls", "RolloutHalted").await?;
    let quotas: Api<ResourceQuota> = Api::namespaced(space.client.clone(), &space.name);
    quotas.delete("full", &DeleteParams::default()).await?;
    space.put("tls", &pair(&["stuck.example"], FRESH)?).await?;
    rolled_out(&space, "tls").await?;
    assert_eq!(space.generation("Deployment", "web").await?, 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_while_a_rollout_runs_is_done_at_once() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 0s, progressTimeout: 1h}\n".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "asked", operator.namespace()).await?;
    let had = stuck(&space, "pebble", OLD).await?;
    let first = renewed(&space, "tls", &had.certificate).await?;
    begun(&space).await?;
    let revoked = leaf(&first)?.fingerprint.to_string();
    space.annotate("tls", "revoked", revoked).await?;
    let held = crate::renewal::data(&first, "tls.crt");
    renewed(&space, "tls", &held).await?;
    begun(&space).await?;
    Ok(())
}

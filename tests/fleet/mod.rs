//! Many workloads, and others who write them too: what must hold however many there are and however many others are at
//! work.

mod at_once;

use std::time::Duration;

use cert_renew::rollout::Roller;
use cert_renew_core::certificate::Fingerprint;
use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::Request;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::time::UnixTime;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use test_bench::certificates::{DAY, Template, TestCa};
use test_bench::objects::{FRESH, Reference, Space, pair, workload};
use test_bench::{Bench, Operator, Result, ensure, eventually, throughout};

use crate::install::kubectl;
use crate::propagation::told;
use crate::renewal::{annotation, leaf, options, rolled_out};
use crate::rolling::{SOON, config, counted, due, full, make, ready, roll_by, roll_with};

/// Long enough for what should not be to show itself.
const QUIET: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_daemon_set_that_is_slow_but_moves_is_no_failure() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "slow", "").await?;
    // Three nodes, one pod at a time, each available six seconds after it is ready: more than the patience in all.
    let slow = [("/spec/minReadySeconds", json!(6))];
    make(&space, "DaemonSet", "agent", "tls", &slow).await?;
    ready(&space, "agent", 3).await?;
    counted(&space, &["agent"]).await?;
    let config = RolloutConfig {
        progress_timeout: Duration::from_secs(15),
        ..config()
    };
    let client = space.client.clone();
    let started = std::time::Instant::now();
    let came = roll_with(client, &space.name, &config, &[due("tls", "new")]).await?;
    assert!(came.done("tls"), "{came:?}");
    assert_eq!(came.happened, ["rolled daemonset/agent"]);
    assert!(
        started.elapsed() > config.progress_timeout,
        "it was not slow"
    );
    Ok(())
}

#[tokio::test]
async fn a_namespace_of_broken_workloads_delays_no_other() -> Result<()> {
    let bench = Bench::shared().await?;
    let broken = Space::new(bench.client()?, "sick", "").await?;
    let well = Space::new(bench.client()?, "well", "").await?;
    let nowhere = [(
        "/spec/template/spec/nodeSelector",
        json!({"no-such": "node"}),
    )];
    let (sick, nowhere) = (&broken, &nowhere);
    let made = futures::stream::iter(0..100).map(|number| async move {
        make(sick, "Deployment", &format!("web-{number}"), "tls", nowhere).await
    });
    made.buffer_unordered(8).try_collect::<()>().await?;
    for number in 0..3 {
        let name = format!("web-{number}");
        make(&well, "Deployment", &name, "tls", &[]).await?;
        ready(&well, &name, 2).await?;
    }
    counted(&well, &["web-0", "web-1", "web-2"]).await?;
    let config = RolloutConfig {
        concurrency: 3,
        per_namespace: 2,
        ..config()
    };
    let roller = Roller::new(bench.client()?, &config);
    let requests = [due("tls", "new")];
    let roll = |space: &Space| {
        let (client, name) = (space.client.clone(), space.name.clone());
        let (roller, config, requests) = (&roller, &config, &requests);
        async move { roll_by(roller, client, &name, config, requests).await }
    };
    let sick = roll(&broken);
    tokio::pin!(sick);
    // The broken ones hold their places before the others come.
    tokio::select! {
        came = &mut sick => panic!("they cannot have come up: {came:?}"),
        begun = eventually(SOON, "the broken ones roll", async || {
            let begun = broken.leaf_of("Deployment", "web-0", "tls").await?;
            ensure!(begun.is_some(), "not yet");
            Ok(())
        }) => begun?,
    }
    tokio::select! {
        came = &mut sick => panic!("they kept the others waiting: {came:?}"),
        came = roll(&well) => assert!(came?.done("tls")),
    }
    Ok(())
}

#[tokio::test]
async fn what_stands_still_gives_its_place_to_others() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "still", "").await?;
    let nowhere = [(
        "/spec/template/spec/nodeSelector",
        json!({"no-such": "node"}),
    )];
    make(&space, "Deployment", "stuck", "a", &nowhere).await?;
    make(&space, "Deployment", "web", "b", &[]).await?;
    ready(&space, "web", 2).await?;
    counted(&space, &["web"]).await?;
    // One place for all, which the stuck one takes first: its certificate ends sooner.
    let config = RolloutConfig {
        concurrency: 1,
        per_namespace: 1,
        progress_timeout: Duration::from_secs(8),
        ..config()
    };
    let urgent = Request {
        rolled_out: Some(RolledOut::Leaf {
            fingerprint: Fingerprint::of(b"the old one"),
            not_after: UnixTime(UnixTime::now().0 + 60),
            with: None,
        }),
        ..due("a", "new")
    };
    let client = space.client.clone();
    let came = roll_with(client, &space.name, &config, &[urgent, due("b", "new")]).await?;
    assert_eq!(
        came.happened,
        ["rolled deployment/web", "incomplete deployment/stuck"]
    );
    assert!(came.done("b"), "{came:?}");
    assert!(came.lacking("a").contains_key("deployment/stuck"));
    Ok(())
}

#[tokio::test]
async fn a_canary_that_fails_while_it_bakes_halts_the_rest() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "bake", "").await?;
    for name in ["a", "b"] {
        make(&space, "Deployment", name, "tls", &[]).await?;
        ready(&space, name, 2).await?;
    }
    counted(&space, &["a", "b"]).await?;
    let config = RolloutConfig {
        canary_bake: Duration::from_secs(5),
        ..config()
    };
    // It comes up well, and its pods fail a moment later.
    let fail = async {
        eventually(SOON, "the canary is whole", async || {
            let canary = space.workloads("Deployment").get("a").await?;
            let status = &canary.data["status"];
            ensure!(
                canary.metadata.generation == Some(2)
                    && status["observedGeneration"] == 2
                    && status["updatedReplicas"] == 2
                    && status["replicas"] == 2
                    && status["availableReplicas"] == 2,
                "{status}"
            );
            Ok(())
        })
        .await?;
        // What the roller has not yet seen would not be a failure while it bakes.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let pods: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
        for pod in space.pods("a").await? {
            let status = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
            pods.patch_status(
                &pod.name_any(),
                &PatchParams::default(),
                &Patch::Strategic(status),
            )
            .await?;
        }
        Ok::<_, test_bench::Error>(())
    };
    let requests = [due("tls", "new")];
    let client = space.client.clone();
    let rolling = roll_with(client, &space.name, &config, &requests);
    let (came, failed) = tokio::join!(rolling, fail);
    failed?;
    let came = came?;
    let (workload, why) = came.halted("tls");
    assert_eq!(workload, "deployment/a");
    assert!(why.contains("5s later it is not available"), "{why}");
    assert_eq!(space.generation("Deployment", "b").await?, 1);
    Ok(())
}

#[tokio::test]
async fn who_applies_the_manifest_again_neither_reverts_nor_repeats_the_rollout() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 0s, fieldManager: flux-client-side-apply}\n"
            .into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "gitops", operator.namespace()).await?;
    let deployments = space.workloads("Deployment");
    // As Flux and Argo CD's server-side apply do.
    let flux = PatchParams::apply("kustomize-controller").force();
    let argo = PatchParams::apply("argocd-controller").force();
    let manifest = |name: &str| {
        let mut manifest = workload("Deployment", name, 2, Reference::Volume, "tls");
        manifest["metadata"]["labels"] = json!({"applied": "yes"});
        manifest["spec"]["template"]["metadata"]["annotations"] = json!({"team": "shop"});
        manifest
    };
    // As `kubectl apply` does, and Argo CD without server-side apply: by what was applied before, of which a copy is kept.
    let by_kubectl = |annotations: &serde_json::Value| {
        let mut manifest = manifest("kubectl");
        manifest["spec"]["template"]["metadata"]["annotations"] = annotations.clone();
        let arguments = format!("apply --namespace {} -f -", space.name);
        kubectl(bench, &arguments, &manifest.to_string())
    };
    let team = json!({"team": "shop"});
    by_kubectl(&team)?;
    let apply = async |name: &str, by: &PatchParams| {
        deployments
            .patch(name, by, &Patch::Apply(manifest(name)))
            .await
    };
    apply("flux", &flux).await?;
    apply("argo", &argo).await?;
    let old = pair(&["gitops.example"], FRESH)?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "external")])
        .await?;
    let all = ["flux", "argo", "kubectl"];
    for name in all {
        space.available("Deployment", name).await?;
    }
    rolled_out(&space, "tls").await?;
    space.put("tls", &pair(&["gitops.example"], FRESH)?).await?;
    let secret = rolled_out(&space, "tls").await?;
    let fingerprint = leaf(&secret)?.fingerprint.to_string();
    for (name, by) in [("flux", &flux), ("argo", &argo)] {
        let applied = apply(name, by).await?;
        let managers = applied.metadata.managed_fields.unwrap_or_default();
        assert!(
            managers
                .iter()
                .any(|it| it.manager.as_deref() == Some("flux-client-side-apply")),
            "{managers:?}"
        );
    }
    by_kubectl(&team)?;
    let applied = deployments.get("kubectl").await?;
    let copy = "kubectl.kubernetes.io/last-applied-configuration";
    assert!(applied.annotations().contains_key(copy), "{applied:?}");
    throughout(QUIET, "all stay as they were rolled", async || {
        for name in all {
            let leaf = space.leaf_of("Deployment", name, "tls").await?;
            let generation = space.generation("Deployment", name).await?;
            ensure!(
                leaf.as_ref() == Some(&fingerprint) && generation == 2,
                "{name}: {generation} {leaf:?}"
            );
        }
        Ok(())
    })
    .await?;
    // A new version of the manifest takes away what it had, and not what is ours.
    by_kubectl(&json!({"release": "2"}))?;
    let changed = deployments.get("kubectl").await?;
    let annotations = &changed.data["spec"]["template"]["metadata"]["annotations"];
    let expected = ["release", "state.cert-renew.io/leaf.tls"];
    let found = annotations.as_object().into_iter().flatten();
    assert!(found.map(|(key, _)| key).eq(expected), "{annotations}");
    throughout(QUIET, "nothing is rolled again", async || {
        let generation = space.generation("Deployment", "kubectl").await?;
        ensure!(generation == 3, "{generation}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn two_owners_of_a_secret_restart_its_workloads_so_often_and_no_more() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "owners", operator.namespace()).await?;
    let (one, other) = (
        pair(&["owners.example"], FRESH)?,
        pair(&["owners.example"], FRESH)?,
    );
    space
        .tls_secret("tls", Some(&one), &[("issuer", "external")])
        .await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    ready(&space, "web", 2).await?;
    rolled_out(&space, "tls").await?;
    let mut halted = None;
    for turn in 0..20 {
        space
            .put("tls", if turn % 2 == 0 { &other } else { &one })
            .await?;
        let what = "it is rolled or stopped";
        halted = eventually(2 * SOON, what, async || {
            let secret = space.secrets().get("tls").await?;
            let fingerprint = leaf(&secret)?.fingerprint.to_string();
            let says = |key: &str| annotation(&secret, key).unwrap_or_default().to_owned();
            let halt = says("state.cert-renew.io/rollout-halted");
            let rolled = says("state.cert-renew.io/rolled-out").starts_with(&fingerprint);
            ensure!(rolled || halt.contains(&fingerprint), "neither");
            Ok(Some(halt).filter(|halt| !halt.is_empty()))
        })
        .await?;
        if halted.is_some() {
            break;
        }
    }
    let halted = halted.unwrap_or_default();
    assert!(halted.starts_with("deployment/web "), "{halted}");
    eventually(SOON, "an Event says why", async || {
        let events = space.events("tls").await?;
        let named = |event: &String| event.contains("writes the Secret again and again");
        ensure!(events.iter().any(named), "{events:?}");
        Ok(())
    })
    .await?;
    // One for each certificate that is new to it, and ten repeats within an hour.
    assert_eq!(space.generation("Deployment", "web").await?, 13);
    Ok(())
}

#[tokio::test]
async fn a_halt_ends_with_what_the_others_serve() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 0s, progressTimeout: 2s}\n".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "ends", operator.namespace()).await?;
    let authority = TestCa::new("Ends soon")?;
    let ending = Template::new(&["ends.example"])
        .between(-90 * DAY, 25)
        .signed_by(&authority)?;
    for name in ["a", "b"] {
        make(&space, "Deployment", name, "tls", &[]).await?;
        ready(&space, name, 2).await?;
    }
    counted(&space, &["a", "b"]).await?;
    space
        .tls_secret("tls", Some(&ending), &[("issuer", "external")])
        .await?;
    rolled_out(&space, "tls").await?;
    // What is restarted from now on gets no pod.
    full(&space, 4).await?;
    space.put("tls", &pair(&["ends.example"], FRESH)?).await?;
    let touched = async || {
        let mut touched = 0;
        for name in ["a", "b"] {
            touched += space.generation("Deployment", name).await? - 1;
        }
        Ok::<_, test_bench::Error>(touched)
    };
    eventually(SOON, "it halts", async || {
        let secret = space.secrets().get("tls").await?;
        let halt = annotation(&secret, "state.cert-renew.io/rollout-halted");
        ensure!(halt.is_some(), "not yet");
        Ok(())
    })
    .await?;
    assert_eq!(touched().await?, 1, "the canary alone");
    let what = "the other one is rolled too, since what it serves has ended";
    eventually(2 * SOON, what, async || {
        let touched = touched().await?;
        ensure!(touched == 2, "{touched}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_window_is_waited_for_unless_what_is_served_would_end_before() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "window", operator.namespace()).await?;
    // Opens in two days at the soonest, by the clock of a zone that changes its time.
    let in_days = |days: i64| {
        let day = (UnixTime::now().0 / DAY + days + 3) % 7;
        ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"][usize::try_from(day).unwrap_or(0)]
    };
    let window = format!("{} 12:00-13:00 Europe/Berlin", in_days(3));
    let authority = TestCa::new("Windows")?;
    let old = |left: i64| {
        Template::new(&["window.example"])
            .between(left - 90 * DAY, left)
            .signed_by(&authority)
    };
    let annotations = [("issuer", "external"), ("change-window", &*window)];
    for (name, left) in [("lasts", 60 * DAY), ("ends", DAY)] {
        make(&space, "Deployment", name, name, &[]).await?;
        let had = old(left)?;
        let fingerprint =
            cert_renew_core::certificate::leaf(had.certificate.as_bytes())?.fingerprint;
        let had_until = UnixTime(UnixTime::now().0 + left);
        let rolled = format!("{fingerprint} {had_until}");
        let mut all = annotations.to_vec();
        all.push(("state.cert-renew.io/rolled-out", &rolled));
        space
            .tls_secret(name, Some(&pair(&["window.example"], FRESH)?), &all)
            .await?;
    }
    rolled_out(&space, "ends").await?;
    assert_eq!(space.generation("Deployment", "ends").await?, 2);
    told(&space, "ends", "WindowOverruled").await?;
    throughout(QUIET, "the other one waits", async || {
        let generation = space.generation("Deployment", "lasts").await?;
        ensure!(generation == 1, "{generation}");
        Ok(())
    })
    .await
}

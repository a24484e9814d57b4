//! Rollouts beside controllers and people: workloads that are broken, paused, restarted, made or deleted meanwhile.

use std::time::Duration;

use cert_renew::rollout::{Outcome, Roller};
use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::{Request, leaf_annotation};
use cert_renew_core::time::UnixTime;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use test_bench::objects::Space;
use test_bench::{Bench, Context as _, Result, ensure, eventually};

use crate::rolling::{
    SOON, config, counted, due, full, make, merge, pods_of, ready, roll, roll_by, roll_with,
};

#[tokio::test]
async fn what_was_broken_before_stops_nobody() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "broken", "").await?;
    let nowhere = json!({"no-such": "node"});
    make(
        &space,
        "Deployment",
        "a-broken",
        "tls",
        &[("/spec/template/spec/nodeSelector", nowhere)],
    )
    .await?;
    make(&space, "Deployment", "b", "tls", &[]).await?;
    make(
        &space,
        "Deployment",
        "c-none",
        "tls",
        &[("/spec/replicas", json!(0))],
    )
    .await?;
    make(&space, "StatefulSet", "d", "tls", &[]).await?;
    ready(&space, "b", 2).await?;
    ready(&space, "d", 2).await?;
    counted(&space, &["b", "d"]).await?;
    let config = RolloutConfig {
        progress_timeout: Duration::from_secs(3),
        ..config()
    };
    let came = roll_with(
        space.client.clone(),
        &space.name,
        &config,
        &[due("tls", "new")],
    )
    .await?;
    // Its pods have never begun, and have an older template: nobody can tell that they serve nothing.
    let lacking = came.lacking("tls");
    assert!(
        lacking.len() == 1 && lacking.contains_key("deployment/a-broken"),
        "{lacking:?}"
    );
    assert_eq!(
        came.happened.first().map(String::as_str),
        Some("rolled deployment/b"),
        "{came:?}"
    );
    assert_eq!(
        came.happened.last().map(String::as_str),
        Some("incomplete deployment/a-broken"),
        "{came:?}"
    );
    assert_eq!(came.happened.len(), 4, "{came:?}");
    Ok(())
}

#[tokio::test]
async fn a_paused_deployment_is_left_until_it_is_resumed() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "paused", "").await?;
    make(&space, "Deployment", "a", "tls", &[]).await?;
    make(&space, "Deployment", "b", "tls", &[]).await?;
    ready(&space, "a", 2).await?;
    ready(&space, "b", 2).await?;
    merge(&space, "Deployment", "a", json!({"spec": {"paused": true}})).await?;
    let came = roll(&space, due("tls", "new")).await?;
    assert!(
        matches!(&came.outcomes["tls"], Outcome::Deferred(why) if why == "deployment/a is paused"),
        "{came:?}"
    );
    assert_eq!(came.happened, ["rolled deployment/b"]);
    assert_eq!(space.leaf_of("Deployment", "a", "tls").await?, None);
    merge(
        &space,
        "Deployment",
        "a",
        json!({"spec": {"paused": false}}),
    )
    .await?;
    let came = roll(&space, due("tls", "new")).await?;
    assert!(came.done("tls"), "{came:?}");
    assert_eq!(came.happened, ["rolled deployment/a"]);
    Ok(())
}

#[tokio::test]
async fn a_daemon_set_does_not_wait_for_a_dead_node() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "dead-node", "").await?;
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}});
    make(
        &space,
        "DaemonSet",
        "agent",
        "tls",
        &[("/spec/updateStrategy", strategy)],
    )
    .await?;
    ready(&space, "agent", 3).await?;
    // A pod that is not ready and never goes away: so it looks when its node's kubelet is gone.
    let pods: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    let dead = pods_of(&space, "agent").await?.remove(0).name_any();
    let held = Patch::Merge(json!({"metadata": {"finalizers": ["test.cert-renew.io/dead-node"]}}));
    pods.patch(&dead, &PatchParams::default(), &held).await?;
    let unready =
        Patch::Strategic(json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}));
    pods.patch_status(&dead, &PatchParams::default(), &unready)
        .await?;
    eventually(SOON, "one pod is unavailable", async || {
        let status = space.workloads("DaemonSet").get("agent").await?.data["status"].clone();
        ensure!(status["numberAvailable"] == 2, "{status}");
        Ok(())
    })
    .await?;
    let started = std::time::Instant::now();
    let came = roll(&space, due("tls", "new")).await?;
    assert!(started.elapsed() < config().progress_timeout, "{came:?}");
    assert_eq!(came.happened, ["incomplete daemonset/agent"], "{came:?}");
    let lacking = came.lacking("tls");
    let why = lacking["daemonset/agent"];
    assert!(why.contains("1 with an earlier certificate"), "{why}");
    let freed = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    pods.patch(&dead, &PatchParams::default(), &freed).await?;
    let again = Request {
        unwell: vec!["daemonset/agent".parse()?],
        ..due("tls", "new")
    };
    let came = roll(&space, again).await?;
    assert!(came.done("tls"), "{came:?}");
    Ok(())
}

#[tokio::test]
async fn who_restarted_it_after_the_write_has_done_our_work() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "reloader", "").await?;
    for name in ["before", "after"] {
        make(&space, "Deployment", name, "tls", &[]).await?;
        ready(&space, name, 2).await?;
    }
    let restart = json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}}});
    merge(&space, "Deployment", "before", restart.clone()).await?;
    // Stamps have whole seconds, and clocks may differ by one: only what is two later is certainly after the write.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let written = UnixTime::now();
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    merge(&space, "Deployment", "after", restart).await?;
    let came = roll(
        &space,
        Request {
            written: Some(written),
            ..due("tls", "new")
        },
    )
    .await?;
    assert!(came.done("tls"), "{came:?}");
    let mut happened = came.happened.clone();
    happened.sort();
    assert_eq!(
        happened,
        ["rolled deployment/before", "unchanged deployment/after"]
    );
    assert_eq!(space.generation("Deployment", "after").await?, 2);
    assert_eq!(space.generation("Deployment", "before").await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_workload_that_was_made_after_the_write_is_not_restarted() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "newer", "").await?;
    make(&space, "Deployment", "before", "tls", &[]).await?;
    ready(&space, "before", 2).await?;
    // Stamps have whole seconds, and clocks may differ by one: only what is two later is certainly after the write.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let written = UnixTime::now();
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    make(&space, "Deployment", "after", "tls", &[]).await?;
    ready(&space, "after", 2).await?;
    let request = Request {
        written: Some(written),
        ..due("tls", "new")
    };
    let came = roll(&space, request).await?;
    assert!(came.done("tls"), "{came:?}");
    assert_eq!(
        came.happened,
        ["rolled deployment/before", "unchanged deployment/after"]
    );
    assert_eq!(space.generation("Deployment", "after").await?, 1);
    Ok(())
}

/// The clock of the API server that stamped the Secret may be a second behind that of the one that stamped the workload.
#[tokio::test]
async fn a_workload_that_was_made_within_a_second_of_the_write_is_restarted() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "skewed", "").await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    ready(&space, "web", 2).await?;
    let listed = cert_renew::rollout::list(&space.client, &space.name).await?;
    let web = { listed.iter() }.find(|it| &*it.id.name == "web");
    let made = web.and_then(|web| web.template_touched);
    let made = made.context("its managedFields do not say")?;
    let request = Request {
        written: Some(UnixTime(made.0 - 1)),
        ..due("tls", "new")
    };
    let came = roll(&space, request).await?;
    assert!(came.done("tls"), "{came:?}");
    assert_eq!(came.happened, ["rolled deployment/web"]);
    Ok(())
}

#[tokio::test]
async fn a_controller_that_takes_the_annotation_away_is_not_raced_with() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "revert", "").await?;
    make(&space, "Deployment", "owned", "tls", &[]).await?;
    // One pod goes before another comes, so that the quota lets it roll.
    let strategy =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}});
    let gives_way = [("/spec/strategy", strategy)];
    make(&space, "Deployment", "web", "tls", &gives_way).await?;
    ready(&space, "owned", 2).await?;
    ready(&space, "web", 2).await?;
    counted(&space, &["owned", "web"]).await?;
    // The other one needs a pod more, which it does not get: however late the annotation is taken away, the rollout has
    // not come to its end before.
    full(&space, 4).await?;
    let api: Api<Deployment> = Api::namespaced(space.client.clone(), &space.name);
    let key = leaf_annotation("tls");
    let revert = async {
        let config = watcher::Config::default().fields("metadata.name=owned");
        let mut events = std::pin::pin!(watcher(api.clone(), config));
        while let Some(event) = events.next().await {
            if let Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = event
                && object.spec.is_some_and(|spec| {
                    let annotations = spec
                        .template
                        .metadata
                        .and_then(|metadata| metadata.annotations);
                    annotations.is_some_and(|annotations| annotations.contains_key(&key))
                })
            {
                let away =
                    json!({"spec": {"template": {"metadata": {"annotations": {&key: null}}}}});
                let _ = api
                    .patch("owned", &PatchParams::default(), &Patch::Merge(away))
                    .await;
            }
        }
    };
    let roller = Roller::new(space.client.clone(), &config());
    let work = async {
        for attempt in 0..5 {
            let request = due("tls", &format!("leaf {attempt}"));
            let came = roll_by(
                &roller,
                space.client.clone(),
                &space.name,
                &config(),
                &[request],
            )
            .await?;
            let (workload, why) = came.halted("tls");
            assert_eq!(workload, "deployment/owned", "{came:?}");
            let expected = if attempt < 3 {
                "takes its annotation away"
            } else {
                "restarted 10 times within 1h"
            };
            assert!(why.contains(expected), "{attempt}: {why}");
            assert!(
                came.happened.contains(&"rolled deployment/web".to_owned()),
                "{came:?}"
            );
        }
        Ok::<_, test_bench::Error>(())
    };
    tokio::select! {
        () = revert => unreachable!("the watch does not end"),
        done = work => done?,
    }
    // Five by us for leaves that are new to it, ten repeats, and as many by the other side, whatever was tried.
    let generation = space.generation("Deployment", "owned").await?;
    assert!((30..=31).contains(&generation), "{generation}");
    Ok(())
}

#[tokio::test]
async fn a_workload_that_goes_is_not_waited_for() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "gone", "").await?;
    let nowhere = json!({"no-such": "node"});
    make(
        &space,
        "Deployment",
        "web",
        "tls",
        &[("/spec/template/spec/nodeSelector", nowhere)],
    )
    .await?;
    eventually(SOON, "its controller has seen it", async || {
        let object = space.workloads("Deployment").get("web").await?;
        ensure!(
            object.data["status"]["observedGeneration"] == 1,
            "{}",
            object.data["status"]
        );
        Ok(())
    })
    .await?;
    let delete = async {
        eventually(SOON, "it is patched", async || {
            ensure!(
                space.leaf_of("Deployment", "web", "tls").await?.is_some(),
                "not yet"
            );
            Ok(())
        })
        .await?;
        space
            .workloads("Deployment")
            .delete("web", &kube::api::DeleteParams::default())
            .await?;
        Ok::<_, test_bench::Error>(())
    };
    let started = std::time::Instant::now();
    let (came, deleted) = tokio::join!(roll(&space, due("tls", "new")), delete);
    deleted?;
    let came = came?;
    assert_eq!(came.happened, ["unchanged deployment/web"]);
    assert!(
        came.done("tls") && started.elapsed() < config().progress_timeout,
        "{came:?}"
    );
    Ok(())
}

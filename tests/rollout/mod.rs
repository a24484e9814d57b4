//! Rollouts by the library itself, against real controllers: what the operator's own tests cannot set up or see.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use cert_renew::rollout::{self, Outcome, Roller};
use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::{Request, leaf_annotation};
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::time::UnixTime;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config, ResourceExt as _};
use serde_json::{Value, json};
use test_bench::objects::Space;
use test_bench::{Bench, Result, ensure, eventually};

use crate::rolling::{
    SOON, config, counted, due, full, is_ready, make, merge, pods_of, ready, roll, roll_by,
    roll_with,
};

const KINDS: [&str; 4] = [
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicationController",
];

/// Ready workloads of every kind, as `kind` in lower case.
async fn one_of_each(space: &Space, secret: &str) -> Result<()> {
    for kind in KINDS {
        make(space, kind, &kind.to_lowercase(), secret, &[]).await?;
    }
    for kind in KINDS {
        ready(
            space,
            &kind.to_lowercase(),
            if kind == "DaemonSet" { 3 } else { 2 },
        )
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn repeated_it_changes_nothing() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "again", "").await?;
    one_of_each(&space, "tls").await?;
    let first = roll(&space, due("tls", "new")).await?;
    assert!(first.done("tls"), "{first:?}");
    // The ReplicationController's pods would be ours to replace: it is no canary and nobody waits for it.
    assert_eq!(
        first
            .happened
            .iter()
            .filter(|it| it.starts_with("rolled"))
            .count(),
        4,
        "{first:?}"
    );
    let mut pods = Vec::new();
    for kind in KINDS {
        pods.push(
            ready(
                &space,
                &kind.to_lowercase(),
                if kind == "DaemonSet" { 3 } else { 2 },
            )
            .await?,
        );
    }
    let second = roll(&space, due("tls", "new")).await?;
    assert!(second.done("tls"), "{second:?}");
    for (kind, pods) in KINDS.iter().zip(pods) {
        let name = kind.to_lowercase();
        assert_eq!(space.generation(kind, &name).await?, 2, "{kind}");
        assert_eq!(
            ready(&space, &name, pods.len()).await?,
            pods,
            "{kind} has kept its pods"
        );
    }
    Ok(())
}

#[tokio::test]
async fn one_restart_serves_two_secrets() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "both", "").await?;
    let volumes = json!([{"name": "a", "secret": {"secretName": "a"}}, {"name": "b", "secret": {"secretName": "b"}}]);
    make(
        &space,
        "Deployment",
        "web",
        "a",
        &[("/spec/template/spec/volumes", volumes)],
    )
    .await?;
    ready(&space, "web", 2).await?;
    let requests = [due("a", "new a"), due("b", "new b")];
    let came = roll_with(space.client.clone(), &space.name, &config(), &requests).await?;
    assert!(came.done("a") && came.done("b"), "{came:?}");
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    for request in &requests {
        let leaf = space.leaf_of("Deployment", "web", &request.secret).await?;
        assert_eq!(leaf, Some(request.leaf.to_string()));
    }
    Ok(())
}

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

/// A client that may do in this namespace what these rules say.
async fn restricted(bench: &Bench, space: &Space, rules: Value) -> Result<Client> {
    let metadata = json!({"name": "restricted"});
    let role: Role = serde_json::from_value(json!({"metadata": metadata, "rules": rules}))?;
    Api::namespaced(space.client.clone(), &space.name)
        .create(&PostParams::default(), &role)
        .await?;
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "restricted"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": space.name}]}))?;
    Api::namespaced(space.client.clone(), &space.name)
        .create(&PostParams::default(), &binding)
        .await?;
    let kubeconfig = Kubeconfig::read_from(bench.kubeconfig())?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.auth_info.impersonate = Some(space.name.clone());
    Ok(Client::try_from(config)?)
}

#[tokio::test]
async fn a_missing_right_is_named_and_keeps_nobody_waiting() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "rights", "").await?;
    one_of_each(&space, "tls").await?;
    // As rbac/clusterrole.yaml, but that DaemonSets may only be read.
    let client = restricted(bench, &space, json!([
        {"apiGroups": ["apps"], "resources": ["deployments", "statefulsets"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["replicationcontrollers"], "verbs": ["get", "list", "watch", "patch"]}]))
    .await?;
    let came = roll_with(client, &space.name, &config(), &[due("tls", "new")]).await?;
    let rolled: Vec<_> = came
        .happened
        .iter()
        .filter(|it| it.starts_with("rolled"))
        .collect();
    assert_eq!(rolled.len(), 2, "{came:?}");
    came.halted("tls");
    assert!(
        came.happened
            .contains(&"failed daemonset/daemonset".to_owned()),
        "{came:?}"
    );
    assert!(
        came.happened
            .contains(&"failed replicationcontroller/replicationcontroller".to_owned()),
        "{came:?}"
    );

    let space = Space::new(bench.client()?, "rights", "").await?;
    make(&space, "ReplicationController", "legacy", "tls", &[]).await?;
    ready(&space, "legacy", 2).await?;
    let rules = json!([
        {"apiGroups": ["apps"], "resources": ["*"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": [""], "resources": ["replicationcontrollers"], "verbs": ["get", "list", "watch", "patch"]}]);
    let client = restricted(bench, &space, rules).await?;
    let came = roll_with(client, &space.name, &config(), &[due("tls", "new")]).await?;
    assert!(
        came.halted("tls").1.contains("rbac/addons/eviction.yaml"),
        "{came:?}"
    );
    // One kind that cannot be listed is no list at all: a workload that is missed is a rollout that is lost.
    let space = Space::new(bench.client()?, "rights", "").await?;
    let rules = json!([{"apiGroups": ["apps"], "resources": ["*"], "verbs": ["list"]}]);
    let client = restricted(bench, &space, rules).await?;
    let error = rollout::list(&client, &space.name).await.unwrap_err();
    assert_eq!(error.reason(), "Forbidden");
    assert!(
        error.to_string().contains("list replicationcontrollers"),
        "{error}"
    );
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
    // The API server's clock has whole seconds: only a later one is certainly after the write.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let written = UnixTime::now();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
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
    // The API server's clock has whole seconds: only a later one is certainly after the write.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let written = UnixTime::now();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
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
                "rolled 10 times within 1h"
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
async fn the_concurrency_is_never_exceeded() -> Result<()> {
    const SPACES: usize = 3;
    const EACH: usize = 8;
    let bench = Bench::shared().await?;
    let mut spaces = Vec::new();
    for _ in 0..SPACES {
        let space = Space::new(bench.client()?, "many", "").await?;
        for number in 0..EACH {
            make(
                &space,
                "Deployment",
                &format!("web-{number}"),
                &format!("tls-{number}"),
                &[],
            )
            .await?;
        }
        spaces.push(space);
    }
    for space in &spaces {
        for number in 0..EACH {
            ready(space, &format!("web-{number}"), 2).await?;
        }
    }
    let config = RolloutConfig {
        concurrency: 3,
        per_namespace: 2,
        ..config()
    };
    let roller = Roller::new(bench.client()?, &config);
    // Seen from outside: who has the annotation and is not yet whole.
    let most = Mutex::new((0, 0));
    let watch = async {
        let api: Api<Deployment> = Api::all(bench.client()?);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
        let mut rolling: BTreeSet<(String, String)> = BTreeSet::new();
        while let Some(event) = events.next().await {
            let (watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = event? else {
                continue;
            };
            let namespace = object.namespace().unwrap_or_default();
            if !spaces.iter().any(|space| space.name == namespace) {
                continue;
            }
            let key = (namespace.clone(), object.name_any());
            if is_rolled(&object) && !is_whole(&object) {
                rolling.insert(key);
            } else {
                rolling.remove(&key);
            }
            let mut most = most.lock().unwrap();
            most.0 = rolling.len().max(most.0);
            most.1 = rolling
                .iter()
                .filter(|(of, _)| *of == namespace)
                .count()
                .max(most.1);
        }
        Ok::<_, test_bench::Error>(())
    };
    let work = async {
        // Let the watch begin.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let requests: Vec<Request> = (0..EACH)
            .map(|number| due(&format!("tls-{number}"), "new"))
            .collect();
        let all = spaces.iter().map(|space| {
            roll_by(
                &roller,
                space.client.clone(),
                &space.name,
                &config,
                &requests,
            )
        });
        futures::future::try_join_all(all).await
    };
    let all = tokio::select! {
        ended = watch => { ended?; unreachable!("the watch does not end") }
        all = work => all?,
    };
    for came in &all {
        assert_eq!(came.happened.len(), EACH, "{came:?}");
        assert!(
            came.outcomes
                .values()
                .all(|outcome| matches!(outcome, Outcome::Done)),
            "{came:?}"
        );
    }
    for space in &spaces {
        for number in 0..EACH {
            assert_eq!(
                space
                    .generation("Deployment", &format!("web-{number}"))
                    .await?,
                2
            );
        }
    }
    let (everywhere, in_one) = *most.lock().unwrap();
    assert!(
        everywhere <= 3 && in_one <= 2,
        "{everywhere} at once, {in_one} in one namespace"
    );
    Ok(())
}

fn is_rolled(object: &Deployment) -> bool {
    let template = object
        .spec
        .as_ref()
        .and_then(|spec| spec.template.metadata.as_ref());
    let annotations = template.and_then(|metadata| metadata.annotations.as_ref());
    annotations.is_some_and(|annotations| {
        annotations
            .keys()
            .any(|key| key.starts_with("state.cert-renew.io/leaf."))
    })
}

fn is_whole(object: &Deployment) -> bool {
    let status = object.status.clone().unwrap_or_default();
    status.observed_generation == object.metadata.generation
        && [
            status.replicas,
            status.updated_replicas,
            status.available_replicas,
        ] == [Some(2); 3]
}

#[tokio::test]
async fn a_named_workload_rolls_although_it_refers_to_nothing() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "named", "").await?;
    make(
        &space,
        "Deployment",
        "api-reader",
        "x",
        &[("/spec/template/spec/volumes", json!([]))],
    )
    .await?;
    ready(&space, "api-reader", 2).await?;
    let workloads: Vec<WorkloadRef> =
        vec!["deployment/api-reader".parse()?, "deployment/gone".parse()?];
    let came = roll(
        &space,
        Request {
            workloads,
            ..due("tls", "new")
        },
    )
    .await?;
    assert_eq!(came.happened, ["rolled deployment/api-reader"]);
    assert!(came.done("tls"), "{came:?}");
    Ok(())
}

#[tokio::test]
async fn cut_off_again_and_again_each_workload_rolls_once() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "cut-off", "").await?;
    one_of_each(&space, "tls").await?;
    for number in 0..4 {
        make(&space, "Deployment", &format!("web-{number}"), "tls", &[]).await?;
        ready(&space, &format!("web-{number}"), 2).await?;
    }
    let mut cuts = 0;
    let came = loop {
        // A little longer each time, so that it ends, and is cut off at many different points before.
        let patience = Duration::from_millis(40 + 30 * cuts);
        if let Ok(came) = tokio::time::timeout(patience, roll(&space, due("tls", "new"))).await {
            break came?;
        }
        cuts += 1;
    };
    assert!(came.done("tls") && cuts > 2, "after {cuts} cuts: {came:?}");
    let names = (0..4).map(|number| ("Deployment", format!("web-{number}")));
    for (kind, name) in names.chain(KINDS.map(|kind| (kind, kind.to_lowercase()))) {
        assert_eq!(space.generation(kind, &name).await?, 2, "{kind} {name}");
        for pod in pods_of(&space, &name).await? {
            assert!(
                is_ready(&pod) && pod.annotations().contains_key(&leaf_annotation("tls")),
                "{}",
                pod.name_any()
            );
        }
    }
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

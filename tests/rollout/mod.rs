//! Rollouts by the library itself, against real controllers: what the operator's own tests cannot set up or see.

mod others;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use cert_renew::rollout::{self, Outcome, Roller};
use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::{Request, leaf_annotation};
use cert_renew_core::secret::workload::WorkloadRef;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config, ResourceExt as _};
use serde_json::{Value, json};
use test_bench::objects::Space;
use test_bench::{Bench, Result, eventually};

use crate::renewal::SOON;
use crate::rolling::{config, due, is_ready, make, pods_of, ready, roll, roll_by, roll_with};

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
    let client = Client::try_from(config)?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &space.name);
    eventually(SOON, "the role is in force", async || {
        deployments.list(&ListParams::default()).await?;
        Ok(())
    })
    .await?;
    Ok(client)
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
        error.to_string().contains("listing replicationcontrollers"),
        "{error}"
    );
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

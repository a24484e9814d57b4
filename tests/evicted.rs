//! Pods that no controller replaces: evicted by us one at a time, or named where that is not ours to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cert_renew::rollout;
use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::leaf_annotation;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, Reference, Space, pair, workload};
use test_bench::{Bench, Context as _, Operator, Result, ensure, eventually, tally, throughout};

use crate::argo::Argo;
use crate::command::{cert_renew, said};
use crate::renewal::{options, rolled_out};
use crate::rolling::{
    SOON, config, counted, due, is_ready, make, merge, pods_of, ready, roll, roll_with,
};

/// Workloads whose pods nobody replaces, one of each kind.
const ALL: [&str; 4] = ["legacy", "db", "agent", "bare"];
/// Long enough for an Event that should not be to show itself.
const QUIET: Duration = Duration::from_secs(2);

#[tokio::test]
async fn pods_that_nobody_replaces_go_one_at_a_time() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "evict", "").await?;
    let on_delete = [("/spec/updateStrategy", json!({"type": "OnDelete"}))];
    make(
        &space,
        "ReplicationController",
        "legacy",
        "tls",
        &[("/spec/replicas", json!(3))],
    )
    .await?;
    make(&space, "ReplicaSet", "bare", "tls", &[]).await?;
    make(&space, "StatefulSet", "db", "tls", &on_delete).await?;
    make(&space, "DaemonSet", "agent", "tls", &on_delete).await?;
    let count = |name: &str| if ["db", "bare"].contains(&name) { 2 } else { 3 };
    for name in ALL {
        ready(&space, name, count(name)).await?;
    }
    let rolling = roll(&space, due("tls", "new"));
    tokio::pin!(rolling);
    let mut fewest: BTreeMap<&str, usize> = BTreeMap::new();
    let came = loop {
        tokio::select! {
            came = &mut rolling => break came?,
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        for name in ALL {
            let now = pods_of(&space, name)
                .await?
                .iter()
                .filter(|pod| is_ready(pod))
                .count();
            let fewest = fewest.entry(name).or_insert(now);
            *fewest = now.min(*fewest);
        }
    };
    assert!(came.done("tls"), "{came:?}");
    for name in ALL {
        for pod in pods_of(&space, name).await? {
            assert!(
                is_ready(&pod) && pod.annotations().contains_key(&leaf_annotation("tls")),
                "{}",
                pod.name_any()
            );
        }
        assert!(
            fewest
                .get(name)
                .is_none_or(|fewest| *fewest + 1 >= count(name)),
            "{name}: {fewest:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_disruption_budget_is_kept() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "budget", "").await?;
    let on_delete = [("/spec/updateStrategy", json!({"type": "OnDelete"}))];
    make(&space, "ReplicationController", "legacy", "tls", &[]).await?;
    make(&space, "ReplicaSet", "bare", "tls", &[]).await?;
    make(&space, "StatefulSet", "db", "tls", &on_delete).await?;
    make(&space, "DaemonSet", "agent", "tls", &on_delete).await?;
    let count = |name: &str| if name == "agent" { 3 } else { 2 };
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(space.client.clone(), &space.name);
    let mut before = BTreeMap::new();
    for name in ALL {
        before.insert(name, ready(&space, name, count(name)).await?);
        let selector = json!({"matchLabels": {"app": name}});
        let budget = json!({"metadata": {"name": name}, "spec": {"minAvailable": count(name), "selector": selector}});
        budgets
            .create(&PostParams::default(), &serde_json::from_value(budget)?)
            .await?;
    }
    for name in ALL {
        eventually(SOON, "the budget counts", async || {
            let status = budgets.get(name).await?.status.unwrap_or_default();
            ensure!(
                usize::try_from(status.current_healthy)? == count(name),
                "{status:?}"
            );
            Ok(())
        })
        .await?;
    }
    counted(&space, &ALL).await?;
    let config = RolloutConfig {
        progress_timeout: Duration::from_secs(5),
        ..config()
    };
    let requests = [due("tls", "new")];
    let came = roll_with(space.client.clone(), &space.name, &config, &requests).await?;
    let (_, why) = came.halted("tls");
    assert!(why.contains("PodDisruptionBudget"), "{why}");
    assert!(
        came.happened.iter().all(|it| it.starts_with("failed ")),
        "{came:?}"
    );
    for name in ALL {
        let now = ready(&space, name, count(name)).await?;
        assert_eq!(now, before[name], "no pod of {name} was taken away");
        let looser = Patch::Merge(json!({"spec": {"minAvailable": 1}}));
        budgets
            .patch(name, &PatchParams::default(), &looser)
            .await?;
    }
    // A pod that comes back under the name of an evicted one before the disruption controller has looked counts as
    // evicted for two minutes (`DeletionTimeout` in pkg/controller/disruption).
    let patient = RolloutConfig {
        progress_timeout: Duration::from_secs(180),
        ..config
    };
    let came = roll_with(space.client.clone(), &space.name, &patient, &requests).await?;
    assert!(came.done("tls"), "{came:?}");
    for name in ALL {
        let now = ready(&space, name, count(name)).await?;
        assert!(now.is_disjoint(&before[name]), "{name}");
    }
    Ok(())
}

/// A namespace where a Deployment, a bare pod and Jobs use a Secret, and a newer one is put into it.
async fn bystanders(bench: &Bench, operator: &Operator<'_>) -> Result<Space> {
    let space = Space::new(bench.client()?, "bystanders", operator.namespace()).await?;
    let old = pair(&["bystanders.example"], FRESH)?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "external")])
        .await?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    space.available("Deployment", "web").await?;
    let using = |secret: &str| {
        workload("Deployment", "x", 1, Reference::Env, secret)["spec"]["template"]["spec"].clone()
    };
    let pods: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    for (name, secret) in [("debug", "tls"), ("other", "x")] {
        let pod = json!({"metadata": {"name": name}, "spec": using(secret)});
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
        eventually(SOON, "the pod is ready", async || {
            ensure!(is_ready(&pods.get(name).await?), "{name} is not");
            Ok(())
        })
        .await?;
    }
    let job = |name: &str, owners: Value| {
        let mut spec = using("tls");
        spec["restartPolicy"] = json!("Never");
        // No node takes it, so that it does not end.
        spec["nodeSelector"] = json!({"no-such": "node"});
        let metadata = json!({"name": name, "ownerReferences": owners});
        json!({"metadata": metadata, "spec": {"template": {"spec": spec}}})
    };
    let mut nightly = job("nightly", json!([]));
    nightly["spec"] = json!({"schedule": "0 0 1 1 *", "jobTemplate": {"spec": nightly["spec"]}});
    let nightlies: Api<CronJob> = Api::namespaced(space.client.clone(), &space.name);
    let nightly = nightlies
        .create(&PostParams::default(), &serde_json::from_value(nightly)?)
        .await?;
    let owner = json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": nightly.uid(), "controller": true}]);
    let jobs: Api<Job> = Api::namespaced(space.client.clone(), &space.name);
    for (name, owners) in [("import", json!([])), ("nightly-1", owner)] {
        let job = serde_json::from_value(job(name, owners))?;
        jobs.create(&PostParams::default(), &job).await?;
    }
    rolled_out(&space, "tls").await?;
    space
        .put("tls", &pair(&["bystanders.example"], FRESH)?)
        .await?;
    rolled_out(&space, "tls").await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    Ok(space)
}

#[tokio::test]
async fn pods_and_jobs_that_nobody_restarts_are_named() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.addons.push("rbac/addons/eviction.yaml".into());
    let operator = Operator::start(bench, options).await?;
    let space = bystanders(bench, &operator).await?;
    let told = async || {
        let events = space.events("tls").await?;
        let mut of_it = events
            .into_iter()
            .filter(|it| it.starts_with("NobodyRestarts"));
        of_it.next().context("no Event")
    };
    let told = eventually(SOON, "they are named", told).await?;
    let names: BTreeSet<&str> = told
        .split([' ', ',', ':'])
        .filter(|word| word.contains('/'))
        .collect();
    assert_eq!(names, BTreeSet::from(["pod/debug", "job/import"]), "{told}");
    Ok(())
}

#[tokio::test]
async fn the_plan_names_whom_nobody_restarts() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = bystanders(bench, &operator).await?;
    let config = bench.directory().join("bystanders.yaml");
    let text = format!(
        "class: {}\nissuers: {{a: {{directory: \"https://ca.example/directory\", contact: ops@example.com}}}}\n",
        operator.namespace()
    );
    std::fs::write(&config, text)?;
    let config = config.display().to_string();
    let plan = ["plan", "--config", &config, "-n", &space.name];
    let planned = || -> Result<String> { Ok(said(&cert_renew(&plan, Some(bench.kubeconfig()))?)) };
    let printed = planned()?;
    let line = format!(
        "{}/tls: nobody restarts pod/debug, job/import\n",
        space.name
    );
    ensure!(printed.ends_with(&line), "{printed}");
    // Where nothing is to be rolled, nobody is left behind.
    let rollout = json!({"metadata": {"annotations": {"cert-renew.io/rollout": "none"}}});
    space.merge("tls", rollout).await?;
    let printed = planned()?;
    ensure!(!printed.contains("nobody restarts"), "{printed}");
    Ok(())
}

#[tokio::test]
async fn without_the_add_on_nobody_is_named_and_the_rollout_goes_on() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = bystanders(bench, &operator).await?;
    throughout(QUIET, "nobody is named", async || {
        let events = space.events("tls").await?;
        ensure!(
            !events.iter().any(|it| it.contains("NobodyRestarts")),
            "{events:?}"
        );
        Ok(())
    })
    .await?;
    // What may not be listed is asked for once, not at each rollout.
    space
        .put("tls", &pair(&["bystanders.example"], FRESH)?)
        .await?;
    rolled_out(&space, "tls").await?;
    let lists = operator.requests()?;
    let lists = tally(&lists);
    let asked = |resource: &str| {
        lists
            .get(&("list".to_owned(), resource.to_owned()))
            .copied()
    };
    let times = asked("deployments").unwrap_or_default();
    for resource in ["pods", "jobs", "replicasets", "rollouts"] {
        let refused = asked(resource).unwrap_or_default();
        assert!((1..times).contains(&refused), "{resource}: {lists:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_replica_sets_of_deployments_are_left_to_them() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "owned", "").await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    make(&space, "ReplicaSet", "bare", "tls", &[]).await?;
    // One that belongs to somebody else than a Deployment has no label that says so.
    make(&space, "ReplicaSet", "owned", "tls", &[]).await?;
    let secret = space.secret("x", "Opaque", BTreeMap::new(), &[]).await?;
    let owner = json!([{"apiVersion": "v1", "kind": "Secret", "name": "x", "uid": secret.uid(), "controller": true}]);
    let owned = json!({"metadata": {"ownerReferences": owner}});
    merge(&space, "ReplicaSet", "owned", owned).await?;
    ready(&space, "web", 2).await?;
    let listed = rollout::list(&space.client, &space.name).await?;
    let names: Vec<String> = listed.iter().map(|it| it.id.to_string()).collect();
    assert_eq!(names, ["deployment/web", "replicaset/bare"]);
    Ok(())
}

/// As an admission webhook adds a volume to pods whose template has none.
#[tokio::test]
async fn pods_that_use_what_their_template_does_not_name_are_told() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.addons.push("rbac/addons/eviction.yaml".into());
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "injected", operator.namespace()).await?;
    let argo = Argo::start(bench, &space, "other").await?;
    let uid = Argo::rollouts(&space).get("shop").await?.uid();
    let owner = json!([{"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "shop", "uid": uid, "controller": true}]);
    let spec = workload("Deployment", "x", 1, Reference::Volume, "tls")["spec"]["template"]["spec"]
        .clone();
    let pod = json!({"metadata": {"name": "injected", "ownerReferences": owner}, "spec": spec});
    let pods: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    eventually(SOON, "the pod is ready", async || {
        ensure!(is_ready(&pods.get("injected").await?), "it is not");
        Ok(())
    })
    .await?;
    let old = pair(&["injected.example"], FRESH)?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "external")])
        .await?;
    rolled_out(&space, "tls").await?;
    space
        .put("tls", &pair(&["injected.example"], FRESH)?)
        .await?;
    rolled_out(&space, "tls").await?;
    eventually(SOON, "its workload is named", async || {
        let events = space.events("tls").await?;
        let said = "NobodyRestarts: nobody restarts the pods of rollout/shop";
        ensure!(events.iter().any(|it| it.starts_with(said)), "{events:?}");
        Ok(())
    })
    .await?;
    drop(argo);
    Ok(())
}

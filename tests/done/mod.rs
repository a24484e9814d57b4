//! What is said to be done is done: a Secret says so when no pod with an earlier certificate is left, and until then it says
//! which workload lacks it, since when.

mod pods;

use std::collections::BTreeMap;
use std::time::Duration;

use cert_renew::rollout::Outcome;
use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::{Request, leaf_annotation};
use cert_renew_core::secret::used_by::UsedBy;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{Bench, Checker, Operator, Result, ensure, eventually, throughout};

use crate::chaos::compared;
use crate::propagation::told;
use crate::renewal::{annotation, leaf, options, rolled_out};
use crate::rolling::{
    Came, SOON, config, counted, due, full, make, merge, pods_of, ready, roll_with,
};

/// More than one look, for what should not be told twice.
const QUIET: Duration = Duration::from_secs(45);
/// Within a minute of getting well, and the time that it takes to get well.
const MINUTE: Duration = Duration::from_secs(90);
const UNSCHEDULED: &str = "/spec/template/spec/schedulingGates";

fn impatient() -> RolloutConfig {
    RolloutConfig {
        progress_timeout: Duration::from_secs(4),
        ..config()
    }
}

async fn roll(space: &Space, request: Request) -> Result<Came> {
    roll_with(space.client.clone(), &space.name, &impatient(), &[request]).await
}

/// The same rollout, looked at once more.
fn again(came: &Came) -> Request {
    let lacking = came.lacking("tls");
    Request {
        unwell: lacking
            .keys()
            .map(|name| name.parse().expect("a workload"))
            .collect(),
        ..due("tls", "new")
    }
}

/// Says that a pod is ready, or that it is not.
pub(crate) async fn mark(space: &Space, pod: &str, ready: bool) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    let status = if ready { "True" } else { "False" };
    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
    pods.patch_status(pod, &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    Ok(())
}

/// A pod that is not ready and never goes away, as one of a node whose kubelet is gone.
async fn strand(space: &Space, pod: &str, stranded: bool) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    let finalizers = stranded.then_some(["test.cert-renew.io/dead-node"]);
    let held = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    pods.patch(pod, &PatchParams::default(), &held).await?;
    if stranded {
        mark(space, pod, false).await?;
    }
    Ok(())
}

async fn available_is(
    space: &Space,
    kind: &str,
    name: &str,
    field: &str,
    count: i64,
) -> Result<()> {
    eventually(SOON, "its controller has counted", async || {
        let object = space.workloads(kind).get(name).await?;
        let status = &object.data["status"];
        ensure!(
            status[field].as_i64().unwrap_or_default() == count,
            "{status}"
        );
        Ok(())
    })
    .await
}

/// By name, whether a pod was made from a template with the leaf.
async fn carry(space: &Space, name: &str) -> Result<BTreeMap<String, bool>> {
    let has = |pod: &Pod| pod.annotations().contains_key(&leaf_annotation("tls"));
    let pods = pods_of(space, name).await?;
    Ok(pods.iter().map(|pod| (pod.name_any(), has(pod))).collect())
}

#[tokio::test]
async fn a_daemon_set_without_any_available_pod_is_not_called_available() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "crashing", "").await?;
    // No node takes its pods.
    let gates = [(UNSCHEDULED, json!([{"name": "test.cert-renew.io/never"}]))];
    make(&space, "DaemonSet", "agent", "tls", &gates).await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    ready(&space, "web", 2).await?;
    counted(&space, &["web"]).await?;
    available_is(&space, "DaemonSet", "agent", "updatedNumberScheduled", 3).await?;
    let came = roll(&space, due("tls", "new")).await?;
    assert_eq!(
        came.happened,
        ["rolled deployment/web", "unavailable daemonset/agent"]
    );
    // None of its pods has an earlier one: that it is not well is not the certificate's affair.
    assert!(came.done("tls"), "{came:?}");
    assert!(carry(&space, "agent").await?.into_values().all(|has| has));
    Ok(())
}

#[tokio::test]
async fn where_none_was_well_before_the_first_that_proves_nothing_halts_the_others() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "none-well", "").await?;
    let gates = [(UNSCHEDULED, json!([{"name": "test.cert-renew.io/never"}]))];
    for name in ["a", "b"] {
        make(&space, "Deployment", name, "tls", &gates).await?;
        available_is(&space, "Deployment", name, "observedGeneration", 1).await?;
    }
    let came = roll(&space, due("tls", "new")).await?;
    assert_eq!(came.halted("tls").0, "deployment/a");
    assert_eq!(space.generation("Deployment", "b").await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_crashed_before_is_told_once_and_done_within_a_minute_of_getting_well() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 0s, progressTimeout: 3s}\n".into();
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "crashed", operator.namespace()).await?;
    let old = pair(&["crashed.example"], FRESH)?;
    make(
        &space,
        "StatefulSet",
        "db",
        "tls",
        &[("/spec/replicas", json!(3))],
    )
    .await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    ready(&space, "db", 3).await?;
    ready(&space, "web", 2).await?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "external")])
        .await?;
    rolled_out(&space, "tls").await?;
    // The ordinal that crashes keeps the controller from the others (OrderedReady).
    mark(&space, "db-0", false).await?;
    available_is(&space, "StatefulSet", "db", "availableReplicas", 2).await?;
    let mut checker = Checker::default();
    checker.stale_after_done(&space.client, &space.name).await?;
    let checker = checker.watch(space.client.clone(), vec![space.name.clone()]);
    space
        .put("tls", &pair(&["crashed.example"], FRESH)?)
        .await?;
    let lacks = async || {
        let secret = space.secrets().get("tls").await?;
        let used_by = annotation(&secret, "state.cert-renew.io/used-by").unwrap_or_default();
        let used_by: UsedBy = used_by.parse()?;
        let since = used_by.lacks_since(&"statefulset/db".parse()?);
        let fingerprint = leaf(&secret)?.fingerprint.to_string();
        let said = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or_default();
        ensure!(since.is_some(), "{used_by}");
        ensure!(!said.starts_with(&fingerprint), "done");
        Ok((since, secret.metadata.resource_version))
    };
    let told = async || {
        let events = space.events("tls").await?;
        let of_it = events
            .iter()
            .filter(|it| it.starts_with("RolloutIncomplete"));
        ensure!(of_it.clone().count() == 1, "{events:?}");
        ensure!(
            of_it
                .clone()
                .all(|it| it.contains("statefulset/db since 2")),
            "{events:?}"
        );
        Ok(())
    };
    let first = eventually(SOON, "the Secret says which lacks it", lacks).await?;
    assert_eq!(
        space.generation("Deployment", "web").await?,
        2,
        "it halts nobody"
    );
    eventually(SOON, "an Event says so", told).await?;
    let series = format!(
        "cert_renew_rollout_incomplete_workloads{{namespace=\"{}\",secret=\"tls\"}} 1",
        space.name
    );
    eventually(SOON, "the metric says so", async || {
        let metrics = operator.metrics().await?;
        ensure!(metrics.contains(&series), "it does not");
        Ok(())
    })
    .await?;
    throughout(QUIET, "it is told and written once", async || {
        ensure!(lacks().await? == first, "it is written again");
        told().await
    })
    .await?;
    // Another leader knows it too: it halts nothing, and it tells nothing twice.
    operator.restart().await?;
    throughout(QUIET, "a restart changes nothing", async || {
        ensure!(lacks().await? == first, "it is written again");
        told().await
    })
    .await?;
    mark(&space, "db-0", true).await?;
    eventually(MINUTE, "it is done", async || {
        let secret = space.secrets().get("tls").await?;
        let fingerprint = leaf(&secret)?.fingerprint.to_string();
        let said = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or_default();
        ensure!(said.starts_with(&fingerprint), "{said}");
        Ok(())
    })
    .await?;
    assert!(carry(&space, "db").await?.into_values().all(|has| has));
    assert_eq!(space.generation("StatefulSet", "db").await?, 2, "once");
    compared(&checker).await?;
    let found = checker.found();
    assert!(found.is_empty(), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_done_and_not_available_is_named() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 0s, progressTimeout: 3s}\n".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "unwell", operator.namespace()).await?;
    let gates = [(UNSCHEDULED, json!([{"name": "test.cert-renew.io/never"}]))];
    make(&space, "DaemonSet", "agent", "tls", &gates).await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    ready(&space, "web", 2).await?;
    available_is(&space, "DaemonSet", "agent", "updatedNumberScheduled", 3).await?;
    let old = pair(&["unwell.example"], FRESH)?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "external")])
        .await?;
    rolled_out(&space, "tls").await?;
    space.put("tls", &pair(&["unwell.example"], FRESH)?).await?;
    let secret = rolled_out(&space, "tls").await?;
    let used_by = annotation(&secret, "state.cert-renew.io/used-by").unwrap_or_default();
    assert!(
        used_by.contains("daemonset/agent=unavailable deployment/web"),
        "{used_by}"
    );
    let said = told(&space, "tls", "RolledOut").await?;
    let ends = "; daemonset/agent is not available with it, nor before";
    assert!(said.ends_with(ends), "{said}");
    Ok(())
}

/// The checker is believed only if it finds what is wrong.
#[tokio::test]
async fn the_checker_finds_a_pod_with_an_earlier_certificate() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "checked", "").await?;
    make(&space, "Deployment", "web", "tls", &[]).await?;
    ready(&space, "web", 2).await?;
    space
        .tls_secret("tls", Some(&pair(&["checked.example"], FRESH)?), &[])
        .await?;
    let mut checker = Checker::default();
    let found = checker.stale_after_done(&space.client, &space.name).await?;
    assert!(found.is_empty(), "{found:?}");
    let secret = space
        .put("tls", &pair(&["checked.example"], FRESH)?)
        .await?;
    let fingerprint = leaf(&secret)?.fingerprint.to_string();
    let say =
        |leaf: &str| json!({"metadata": {"annotations": {"state.cert-renew.io/rolled-out": leaf}}});
    let lie = async |value: Value| space.merge("tls", value).await;
    lie(say(&fingerprint)).await?;
    let found = checker.stale_after_done(&space.client, &space.name).await?;
    assert_eq!(found.len(), 2, "{found:?}");
    let carried = json!({leaf_annotation("tls"): fingerprint});
    let template = json!({"spec": {"template": {"metadata": {"annotations": carried}}}});
    merge(&space, "Deployment", "web", template).await?;
    eventually(SOON, "the pods are replaced", async || {
        let found = checker.stale_after_done(&space.client, &space.name).await?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(())
    })
    .await?;
    space.available("Deployment", "web").await
}

/// A rollout of one that stays as it was is no reason to call the others done, nor not.
#[tokio::test]
async fn what_fails_although_it_was_well_still_halts() -> Result<()> {
    let space = Space::new(Bench::shared().await?.client()?, "halts", "").await?;
    for name in ["a", "b"] {
        make(&space, "Deployment", name, "tls", &[]).await?;
        ready(&space, name, 2).await?;
    }
    counted(&space, &["a", "b"]).await?;
    full(&space, 4).await?;
    let came = roll(&space, due("tls", "new")).await?;
    assert!(
        matches!(came.outcomes["tls"], Outcome::Halted(..)),
        "{came:?}"
    );
    assert_eq!(space.generation("Deployment", "b").await?, 1);
    Ok(())
}

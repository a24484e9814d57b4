//! Argo Rollouts: restarted by `spec.restartAt`, their template left alone.
//!
//! The real controller is not part of the bench. A stand-in does of it what matters here: it keeps a ReplicaSet, takes one
//! pod at a time that is older than `restartAt` while all are available, then says so in `status.restartedAt`.

use std::time::Duration;

use cert_renew::rollout;
use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::leaf_annotation;
use cert_renew_core::secret::workload::Kind;
use cert_renew_core::time::UnixTime;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, Reference, Space, pair, workload};
use test_bench::{Bench, Context as _, Operator, Result, bail, ensure, eventually, throughout};
use tokio::task::JoinHandle;

use crate::renewal::{leaf, options, rolled_out};
use crate::rolling::{SOON, config, due, pods_of, ready, roll_with};

/// Long enough for a restart that should not be to show itself.
const QUIET: Duration = Duration::from_secs(3);
/// How often the stand-in looks.
const LOOK: Duration = Duration::from_millis(50);

fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Rollout"))
}

/// A Rollout `shop` of two pods that uses a Secret, and who looks after it until this is dropped.
pub(crate) struct Argo {
    rollouts: Api<DynamicObject>,
    stand_in: JoinHandle<()>,
}

impl Drop for Argo {
    fn drop(&mut self) {
        self.stand_in.abort();
    }
}

impl Argo {
    pub(crate) async fn start(bench: &Bench, space: &Space, secret: &str) -> Result<Self> {
        bench.define(&resource(), None).await?;
        let rollouts = Self::rollouts(space);
        let mut shop = workload("Deployment", "shop", 2, Reference::Volume, secret);
        shop["apiVersion"] = json!("argoproj.io/v1alpha1");
        shop["kind"] = json!("Rollout");
        shop["spec"]["strategy"] = json!({"canary": {"steps": [{"pause": {}}]}});
        let shop: DynamicObject = serde_json::from_value(shop)?;
        let made = rollouts.create(&PostParams::default(), &shop).await?;
        let owner = json!([{"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "shop", "uid": made.uid(), "controller": true}]);
        let mut pods = workload("ReplicaSet", "shop", 2, Reference::Volume, secret);
        pods["metadata"]["ownerReferences"] = owner;
        for pointer in ["/metadata", "/spec/template/metadata"] {
            let metadata = pods.pointer_mut(pointer).context(pointer)?;
            metadata["labels"]["app"] = json!("shop");
            metadata["labels"]["rollouts-pod-template-hash"] = json!("6f9c");
        }
        let pods: DynamicObject = serde_json::from_value(pods)?;
        let sets = space.workloads("ReplicaSet");
        sets.create(&PostParams::default(), &pods).await?;
        let (rollouts_, space_) = (
            rollouts.clone(),
            Space {
                client: space.client.clone(),
                name: space.name.clone(),
                class: String::new(),
            },
        );
        let stand_in = tokio::spawn(async move {
            loop {
                // What crosses another write is looked at again.
                let _ = look_after(&space_, &rollouts_).await;
                tokio::time::sleep(LOOK).await;
            }
        });
        let argo = Self { rollouts, stand_in };
        ready(space, "shop", 2).await?;
        eventually(SOON, "the Rollout is available", async || {
            let status = &argo.get().await?.data["status"];
            ensure!(status["availableReplicas"] == 2, "{status}");
            Ok(())
        })
        .await?;
        Ok(argo)
    }

    /// The Rollouts of a namespace.
    pub(crate) fn rollouts(space: &Space) -> Api<DynamicObject> {
        Api::namespaced_with(space.client.clone(), &space.name, &resource())
    }

    async fn get(&self) -> Result<DynamicObject> {
        Ok(self.rollouts.get("shop").await?)
    }
}

async fn look_after(space: &Space, rollouts: &Api<DynamicObject>) -> Result<()> {
    let rollout = rollouts.get("shop").await?;
    let set = space.workloads("ReplicaSet").get("shop").await?;
    let count = |field: &str| set.data["status"][field].as_i64().unwrap_or_default();
    let (asked, mut done) = (
        rollout.data["spec"]["restartAt"].clone(),
        rollout.data["status"]["restartedAt"].clone(),
    );
    let at: Option<UnixTime> = asked.as_str().and_then(|at| at.parse().ok());
    let now = UnixTime::now();
    if let Some(at) = at.filter(|at| asked != done && *at < now && count("availableReplicas") == 2)
    {
        let pods = pods_of(space, "shop").await?;
        let older = |pod: &&Pod| {
            let created = pod.metadata.creation_timestamp.as_ref();
            created.is_some_and(|created| created.0.as_second() < at.0)
        };
        let api: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
        match pods.iter().find(older) {
            Some(pod) => drop(
                api.delete(&pod.name_any(), &DeleteParams::default())
                    .await?,
            ),
            None if pods.len() == 2 => done = asked,
            None => {}
        }
    }
    let status = json!({
        "observedGeneration": rollout.metadata.generation.unwrap_or_default().to_string(),
        "replicas": count("replicas"),
        "updatedReplicas": count("replicas"),
        "readyReplicas": count("readyReplicas"),
        "availableReplicas": count("availableReplicas"),
        "restartedAt": done,
    });
    if rollout.data["status"] != status {
        let patch = Patch::Merge(json!({"status": status}));
        rollouts
            .patch_status("shop", &PatchParams::default(), &patch)
            .await?;
    }
    Ok(())
}

/// The template of a Rollout.
fn template(rollout: &DynamicObject) -> &Value {
    &rollout.data["spec"]["template"]
}

#[tokio::test]
async fn a_rollout_is_restarted_once_and_keeps_its_template() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.addons.push("rbac/addons/argo-rollouts.yaml".into());
    options.config = "rollout: {settle: 0s, perWorkloadMinInterval: 0s}\n".into();
    let space = Space::new(bench.client()?, "argo", "").await?;
    let argo = Argo::start(bench, &space, "tls").await?;
    let before = argo.get().await?;
    let pods = ready(&space, "shop", 2).await?;
    let mut operator = Operator::start(bench, options).await?;
    let space = Space {
        class: operator.namespace().to_owned(),
        ..space
    };
    let old = pair(&["argo.example"], FRESH)?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "external")])
        .await?;
    rolled_out(&space, "tls").await?;
    assert!(argo.get().await?.data["spec"]["restartAt"].is_null());
    space.put("tls", &pair(&["argo.example"], FRESH)?).await?;
    let secret = rolled_out(&space, "tls").await?;
    let restarted = argo.get().await?;
    assert!(ready(&space, "shop", 2).await?.is_disjoint(&pods));
    assert_eq!(template(&restarted), template(&before), "a new version");
    let said = restarted.annotations().get(&leaf_annotation("tls"));
    let fingerprint = leaf(&secret)?.fingerprint.to_string();
    assert!(
        said.is_some_and(|it| it.starts_with(&fingerprint)),
        "{said:?}"
    );
    let restart_at = restarted.data["spec"]["restartAt"].clone();
    assert_eq!(restarted.data["status"]["restartedAt"], restart_at);
    let events = space.events("shop").await?;
    assert!(
        events.iter().any(|it| it.starts_with("RolledOut")),
        "{events:?}"
    );
    operator.restart().await?;
    throughout(QUIET, "it is not restarted again", async || {
        let now = argo.get().await?.data["spec"]["restartAt"].clone();
        ensure!(now == restart_at, "{now}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_rollout_that_is_not_restarted_halts_the_others() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "argo", "").await?;
    let argo = Argo::start(bench, &space, "tls").await?;
    argo.stand_in.abort();
    let config = RolloutConfig {
        progress_timeout: Duration::from_secs(3),
        ..config()
    };
    let requests = [due("tls", "new")];
    let came = roll_with(space.client.clone(), &space.name, &config, &requests).await?;
    let (workload, why) = came.halted("tls");
    assert_eq!(workload, "rollout/shop");
    assert!(why.contains("no progress"), "{why}");
    let listed = rollout::list(&space.client, &space.name).await?;
    let kinds: Vec<Kind> = listed.iter().map(|it| it.id.kind).collect();
    assert_eq!(kinds, [Kind::Rollout], "its ReplicaSet is its own affair");
    Ok(())
}

#[tokio::test]
async fn a_rollout_whose_pods_flap_is_without_progress() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "flaps", "").await?;
    let argo = Argo::start(bench, &space, "tls").await?;
    argo.stand_in.abort();
    let config = RolloutConfig {
        progress_timeout: Duration::from_secs(5),
        ..config()
    };
    let rollouts = Argo::rollouts(&space);
    let flap = async {
        eventually(SOON, "it is restarted", async || {
            let asked = rollouts.get("shop").await?.data["spec"]["restartAt"].clone();
            ensure!(asked.is_string(), "not yet");
            Ok(())
        })
        .await?;
        let mut available = 2;
        loop {
            available = 3 - available;
            let generation = rollouts.get("shop").await?.metadata.generation;
            let status = json!({"status": {
                "observedGeneration": generation.unwrap_or_default().to_string(), "availableReplicas": available}});
            rollouts
                .patch_status("shop", &PatchParams::default(), &Patch::Merge(status))
                .await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        #[expect(unreachable_code, reason = "it says what may fail")]
        Ok::<_, test_bench::Error>(())
    };
    let requests = [due("tls", "new")];
    let client = space.client.clone();
    let came = tokio::select! {
        ended = flap => { ended?; unreachable!("it does not end") }
        came = roll_with(client, &space.name, &config, &requests) => came?,
        () = tokio::time::sleep(SOON * 2) => bail!("it is waited for without end"),
    };
    let (workload, why) = came.halted("tls");
    assert_eq!(workload, "rollout/shop");
    assert!(why.contains("no progress"), "{why}");
    Ok(())
}

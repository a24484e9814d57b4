//! What the tests of rollouts share: due rollouts, workloads to be rolled, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cert_renew::rollout::{self, Happening, Judge, Outcome, Roller, Rollout, Withdrawal};
use cert_renew_core::certificate::Fingerprint;
use cert_renew_core::config::RolloutConfig;
use cert_renew_core::rollout::Request;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::time::UnixTime;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use test_bench::objects::{Reference, Space, workload};
use test_bench::{Result, ensure, eventually};
use tokio::time::Instant;

/// Far more than a rollout of some fake pods takes.
pub(crate) const SOON: Duration = Duration::from_secs(30);
pub(crate) fn config() -> RolloutConfig {
    RolloutConfig {
        concurrency: 8,
        per_namespace: 4,
        per_workload_min_interval: Duration::ZERO,
        settle: Duration::ZERO,
        canary_workloads: 1,
        progress_timeout: Duration::from_secs(20),
        ..RolloutConfig::default()
    }
}

/// A due rollout: the workloads have one leaf, the Secret holds another.
pub(crate) fn due(secret: &str, leaf: &str) -> Request {
    let not_after = UnixTime(UnixTime::now().0 + 86_400);
    Request {
        leaf: Fingerprint::of(leaf.as_bytes()),
        not_after,
        rolled_out: Some(RolledOut::Leaf {
            fingerprint: Fingerprint::of(b"the old one"),
            not_after,
            with: None,
        }),
        ..Request::first_sight(secret, "", None)
    }
}

/// What a rollout came to.
#[derive(Debug, Default)]
pub(crate) struct Came {
    pub(crate) outcomes: BTreeMap<String, Outcome>,
    /// In their order, as `rolled deployment/web`.
    pub(crate) happened: Vec<String>,
}

impl Came {
    pub(crate) fn done(&self, secret: &str) -> bool {
        matches!(self.outcomes[secret], Outcome::Done)
    }

    /// Which workloads lack the leaf, and why.
    pub(crate) fn lacking(&self, secret: &str) -> BTreeMap<String, &str> {
        match &self.outcomes[secret] {
            Outcome::Incomplete(lacking) => lacking
                .iter()
                .map(|(workload, why)| (workload.to_string(), &**why))
                .collect(),
            other => panic!("expected workloads that lack it, was {other:?}"),
        }
    }

    pub(crate) fn halted(&self, secret: &str) -> (String, &str) {
        match &self.outcomes[secret] {
            Outcome::Halted(workload, why) => (workload.to_string(), why),
            other => panic!("expected a halt, was {other:?}"),
        }
    }
}

/// What the operator itself judges by has its own tests.
struct Always;

impl Judge for Always {
    fn judge<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), Withdrawal>> {
        futures::future::ready(Ok(())).boxed()
    }
}

pub(crate) async fn roll_with(
    client: Client,
    namespace: &str,
    config: &RolloutConfig,
    requests: &[Request],
) -> Result<Came> {
    let roller = Roller::new(client.clone(), config);
    roll_by(&roller, client, namespace, config, requests).await
}

pub(crate) async fn roll_by(
    roller: &Roller,
    client: Client,
    namespace: &str,
    config: &RolloutConfig,
    requests: &[Request],
) -> Result<Came> {
    let workloads = rollout::list(&client, namespace).await?;
    let plan = cert_renew_core::rollout::plan(UnixTime::now(), requests, &workloads, config);
    let secrets: Vec<Box<str>> = requests
        .iter()
        .map(|request| request.secret.clone())
        .collect();
    let mut came = Came::default();
    let mut happened = Vec::new();
    let tell = |happening: Happening<'_>| {
        let (what, step) = match happening {
            Happening::Rolled(step, _) => ("rolled", step),
            Happening::Reloaded(step, _) => ("reloaded", step),
            Happening::Unchanged(step) => ("unchanged", step),
            Happening::Unavailable(step, _) => ("unavailable", step),
            Happening::Incomplete(step, _) => ("incomplete", step),
            Happening::Failed(step, _) => ("failed", step),
            Happening::Waits(..) => return,
        };
        happened.push(format!("{what} {}", step.workload.id));
    };
    let ended = |secret: &str, outcome: Outcome| {
        came.outcomes.insert(secret.to_owned(), outcome);
    };
    let rollout = Rollout {
        namespace,
        secrets: &secrets,
        steps: plan.steps.into_iter().map(Arc::new).collect(),
        judge: &Always,
        looks: BTreeMap::new(),
        since: Instant::now(),
        hints: futures::stream::pending().boxed(),
    };
    roller.roll(rollout, tell, ended).await;
    came.happened = happened;
    Ok(came)
}

pub(crate) async fn roll(space: &Space, request: Request) -> Result<Came> {
    roll_with(space.client.clone(), &space.name, &config(), &[request]).await
}

/// Makes a workload with changes at these JSON pointers.
pub(crate) async fn make(
    space: &Space,
    kind: &str,
    name: &str,
    secret: &str,
    changes: &[(&str, Value)],
) -> Result<()> {
    let mut object = workload(kind, name, 2, Reference::Volume, secret);
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
        object.pointer_mut(parent).expect("its parent")[key] = value.clone();
    }
    let object: DynamicObject = serde_json::from_value(object)?;
    space
        .workloads(kind)
        .create(&PostParams::default(), &object)
        .await?;
    Ok(())
}

pub(crate) async fn pods_of(space: &Space, name: &str) -> Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    let list = api
        .list(&ListParams::default().labels(&format!("app={name}")))
        .await?;
    Ok(list
        .items
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect())
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|it| it.type_ == "Ready" && it.status == "True")
}

pub(crate) async fn ready(space: &Space, name: &str, count: usize) -> Result<BTreeSet<String>> {
    eventually(
        SOON,
        &format!("{count} pods of {name} are ready"),
        async || {
            let pods = pods_of(space, name).await?;
            let ready: BTreeSet<String> = pods
                .iter()
                .filter(|pod| is_ready(pod))
                .filter_map(|pod| pod.uid())
                .collect();
            ensure!(
                ready.len() == count && pods.len() == count,
                "{} of {} are",
                ready.len(),
                pods.len()
            );
            Ok(ready)
        },
    )
    .await
}

/// Waits until the controllers have counted these workloads' pods as available, a moment after the pods are ready.
pub(crate) async fn counted(space: &Space, names: &[&str]) -> Result<()> {
    eventually(SOON, "the workloads are available", async || {
        let workloads = rollout::list(&space.client, &space.name).await?;
        for name in names {
            let found = workloads
                .iter()
                .find(|workload| &*workload.id.name == *name);
            ensure!(
                found.is_some_and(|workload| workload.is_available()),
                "{name} is not"
            );
        }
        Ok(())
    })
    .await
}

pub(crate) async fn merge(space: &Space, kind: &str, name: &str, patch: Value) -> Result<()> {
    space
        .workloads(kind)
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// Allows no more pods than there are.
pub(crate) async fn full(space: &Space, pods: usize) -> Result<()> {
    full_of(space, pods, &[]).await
}

/// Allows no more pods of these scopes of a quota than there are.
pub(crate) async fn full_of(space: &Space, pods: usize, scopes: &[&str]) -> Result<()> {
    let spec = json!({"hard": {"pods": pods.to_string()}, "scopes": scopes});
    let quota = json!({"metadata": {"name": "full"}, "spec": spec});
    let quotas: Api<ResourceQuota> = Api::namespaced(space.client.clone(), &space.name);
    quotas
        .create(&PostParams::default(), &serde_json::from_value(quota)?)
        .await?;
    eventually(SOON, "the quota counts", async || {
        let status = quotas.get("full").await?.status.unwrap_or_default();
        let used = status.used.unwrap_or_default();
        ensure!(
            used.get("pods")
                .is_some_and(|used| used.0 == pods.to_string()),
            "{used:?}"
        );
        Ok(())
    })
    .await
}

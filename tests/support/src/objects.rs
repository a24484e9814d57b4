//! Objects that tests create: namespaces, TLS Secrets with real certificates, workloads that refer to them.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};
use kube::api::{DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

pub use crate::certificates::Pair;
use crate::certificates::{DAY, Template, TestCa};
use crate::eventually;

/// Longest wait for a workload: controllers and kwok take a few hundred milliseconds, more beside a compiler.
const AVAILABLE_DEADLINE: Duration = Duration::from_secs(60);

/// A CA that no client trusts: the issuer of the first certificates in the tests.
static AUTHORITY: LazyLock<TestCa> =
    LazyLock::new(|| TestCa::new("Some other CA").expect("a CA signs itself"));

/// Age and remaining life of a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Age {
    /// Days since it became valid.
    pub since: i64,
    /// Days until it ends; negative when it has.
    pub left: i64,
}

/// Issued yesterday for 90 days.
pub const FRESH: Age = Age { since: 1, left: 89 };
/// Issued long ago; five of its 90 days are left.
pub const OLD: Age = Age { since: 85, left: 5 };
/// Ended yesterday.
pub const EXPIRED: Age = Age {
    since: 90,
    left: -1,
};

/// Makes a certificate for these names; [`Template`] makes others.
///
/// # Errors
/// When a name is invalid.
pub fn pair(names: &[&str], age: Age) -> Result<Pair> {
    Template::new(names)
        .between(-age.since * DAY, age.left * DAY)
        .signed_by(&AUTHORITY)
}

/// A namespace for one test.
#[derive(Clone)]
pub struct Space {
    /// A client with every right.
    pub client: Client,
    /// Its name.
    pub name: String,
    /// The operator's class.
    pub class: String,
}

impl Space {
    /// Creates a namespace whose Secrets are for the operator of `class`.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn new(client: Client, prefix: &str, class: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let api: Api<Namespace> = Api::all(client.clone());
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        };
        api.create(
            &PostParams::default(),
            &Namespace {
                metadata,
                ..Namespace::default()
            },
        )
        .await?;
        Ok(Self {
            client,
            name,
            class: class.to_owned(),
        })
    }

    /// Its Secrets.
    #[must_use]
    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates a TLS Secret with `cert-renew.io/<key>` annotations; the class is added if there are any.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn tls_secret(
        &self,
        name: &str,
        pair: Option<&Pair>,
        annotations: &[(&str, &str)],
    ) -> Result<Secret> {
        let bytes = |text: Option<&String>| {
            ByteString(
                text.map(|text| text.clone().into_bytes())
                    .unwrap_or_default(),
            )
        };
        let data = BTreeMap::from([
            (
                "tls.crt".to_owned(),
                bytes(pair.map(|pair| &pair.certificate)),
            ),
            ("tls.key".to_owned(), bytes(pair.map(|pair| &pair.key))),
        ]);
        self.secret(name, "kubernetes.io/tls", data, annotations)
            .await
    }

    /// Creates a Secret of any type.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn secret(
        &self,
        name: &str,
        kind: &str,
        data: BTreeMap<String, ByteString>,
        annotations: &[(&str, &str)],
    ) -> Result<Secret> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                annotations: Some(self.annotations(annotations)),
                ..ObjectMeta::default()
            },
            type_: Some(kind.to_owned()),
            data: Some(data),
            ..Secret::default()
        };
        self.secrets()
            .create(&PostParams::default(), &secret)
            .await
            .with_context(|| format!("making Secret {name}"))
    }

    /// The annotations of a Secret: ours with their prefix, and the class if there are any.
    #[must_use]
    pub fn annotations(&self, annotations: &[(&str, &str)]) -> BTreeMap<String, String> {
        let full = |key: &str| {
            if key.contains('/') {
                key.to_owned()
            } else {
                format!("cert-renew.io/{key}")
            }
        };
        let mut all: BTreeMap<String, String> = annotations
            .iter()
            .map(|(key, value)| (full(key), (*value).to_owned()))
            .collect();
        if !annotations.is_empty() {
            all.entry("cert-renew.io/class".into())
                .or_insert_with(|| self.class.clone());
        }
        all
    }

    /// Writes another pair into a Secret, as a foreign program would.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn put(&self, name: &str, pair: &Pair) -> Result<Secret> {
        let patch = json!({"stringData": {"tls.crt": pair.certificate, "tls.key": pair.key}});
        let params = PatchParams {
            field_manager: Some("somebody-else".into()),
            ..PatchParams::default()
        };
        Ok(self
            .secrets()
            .patch(name, &params, &Patch::Merge(patch))
            .await?)
    }

    /// Creates a workload that refers to a Secret.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn workload(
        &self,
        kind: &str,
        name: &str,
        reference: Reference,
        secret: &str,
    ) -> Result<()> {
        let object: DynamicObject =
            serde_json::from_value(workload(kind, name, 2, reference, secret))?;
        self.workloads(kind)
            .create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("making {kind} {name}"))?;
        Ok(())
    }

    /// Merges this into a Secret.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn merge(&self, secret: &str, patch: Value) -> Result<()> {
        let (secrets, params) = (self.secrets(), PatchParams::default());
        secrets.patch(secret, &params, &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Sets the annotation `cert-renew.io/<key>` of a Secret; null takes it away.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn annotate(&self, secret: &str, key: &str, value: impl Into<Value>) -> Result<()> {
        let value: Value = value.into();
        let annotations = json!({format!("cert-renew.io/{key}"): value});
        self.merge(secret, json!({"metadata": {"annotations": annotations}}))
            .await
    }

    /// Its workloads of one kind.
    #[must_use]
    pub fn workloads(&self, kind: &str) -> Api<DynamicObject> {
        let group = if kind == "ReplicationController" {
            ""
        } else {
            "apps"
        };
        let gvk = GroupVersionKind::gvk(group, "v1", kind);
        Api::namespaced_with(
            self.client.clone(),
            &self.name,
            &ApiResource::from_gvk(&gvk),
        )
    }

    /// Waits until every pod of a workload has its newest template and is available.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub async fn available(&self, kind: &str, name: &str) -> Result<()> {
        let what = format!("{kind} {}/{name} is available", self.name);
        eventually(AVAILABLE_DEADLINE, &what, async || {
            let workload = self.workloads(kind).get(name).await?;
            let generation = workload.metadata.generation.unwrap_or_default();
            let status = |field: &str| workload.data["status"][field].as_i64().unwrap_or_default();
            let (wanted, counts): (_, &[&str]) = match kind {
                "DaemonSet" => (
                    status("desiredNumberScheduled"),
                    &["updatedNumberScheduled", "numberAvailable"],
                ),
                "ReplicationController" | "ReplicaSet" => {
                    (replicas(&workload), &["replicas", "availableReplicas"])
                }
                _ => (
                    replicas(&workload),
                    &["replicas", "updatedReplicas", "availableReplicas"],
                ),
            };
            let available = wanted > 0 && counts.iter().all(|count| status(count) == wanted);
            ensure!(
                available && status("observedGeneration") == generation,
                "{}",
                workload.data["status"]
            );
            Ok(())
        })
        .await
    }

    /// The pods of a workload that are not being deleted, by name.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn pods(&self, workload: &str) -> Result<Vec<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.name);
        let mut pods = api
            .list(&ListParams::default().labels(&format!("app={workload}")))
            .await?
            .items;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        Ok(pods)
    }

    /// The state of its workloads, its pods and the nodes, a line each, for the error of a failed wait: shows whether
    /// the operator or the cluster below it hangs.
    pub async fn situation(&self) -> String {
        let mut lines = Vec::new();
        for kind in ["Deployment", "StatefulSet", "DaemonSet"] {
            for workload in listed(&self.workloads(kind)).await {
                let status = &workload.data["status"];
                let text = |field: &str| status[field].as_i64().unwrap_or_default();
                lines.push(format!(
                    "{kind} {}: generation {:?}, observed {}, replicas {}, updated {}, available {}, conditions {}",
                    workload.name_any(),
                    workload.metadata.generation,
                    text("observedGeneration"),
                    text("replicas") + text("currentNumberScheduled"),
                    text("updatedReplicas") + text("updatedNumberScheduled"),
                    text("availableReplicas") + text("numberAvailable"),
                    status["conditions"],
                ));
            }
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.name);
        for pod in listed(&pods).await {
            let status = pod.status.unwrap_or_default();
            let conditions: Vec<String> = status
                .conditions
                .unwrap_or_default()
                .into_iter()
                .map(|it| format!("{}={}", it.type_, it.status))
                .collect();
            lines.push(format!(
                "Pod {}: node {:?}, phase {:?}, made {:?}, deleted {:?}, {conditions:?}",
                pod.metadata.name.unwrap_or_default(),
                pod.spec.and_then(|spec| spec.node_name),
                status.phase,
                pod.metadata.creation_timestamp.map(|at| at.0),
                pod.metadata.deletion_timestamp.map(|at| at.0),
            ));
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        for node in listed(&nodes).await {
            let spec = node.spec.unwrap_or_default();
            let conditions = node.status.and_then(|status| status.conditions);
            let ready = conditions
                .into_iter()
                .flatten()
                .find(|it| it.type_ == "Ready");
            lines.push(format!(
                "Node {}: ready {:?}, unschedulable {:?}, taints {:?}",
                node.metadata.name.unwrap_or_default(),
                ready.map(|it| it.status),
                spec.unschedulable,
                spec.taints.map_or(0, |taints| taints.len()),
            ));
        }
        lines.join("\n  ")
    }

    /// What a workload was rolled for, by its template's annotation.
    ///
    /// # Errors
    /// When the workload cannot be read.
    pub async fn carried(&self, kind: &str, name: &str, secret: &str) -> Result<Option<String>> {
        let object = self.workloads(kind).get(name).await?;
        let annotations = &object.data["spec"]["template"]["metadata"]["annotations"];
        Ok(annotations[format!("state.cert-renew.io/leaf.{secret}")]
            .as_str()
            .map(ToOwned::to_owned))
    }

    /// The leaf in that annotation.
    ///
    /// # Errors
    /// When the workload cannot be read.
    pub async fn leaf_of(&self, kind: &str, name: &str, secret: &str) -> Result<Option<String>> {
        let carried = self.carried(kind, name, secret).await?;
        let leaf = carried.as_deref().and_then(|it| it.split('.').next());
        Ok(leaf.map(ToOwned::to_owned))
    }

    /// Number of changes of a workload's spec: 1 if it never changed since its creation.
    ///
    /// # Errors
    /// When the workload cannot be read.
    pub async fn generation(&self, kind: &str, name: &str) -> Result<i64> {
        Ok(self
            .workloads(kind)
            .get(name)
            .await?
            .metadata
            .generation
            .unwrap_or_default())
    }

    /// Events of this namespace about an object, as `reason: note`.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn events(&self, name: &str) -> Result<Vec<String>> {
        let api: Api<k8s_openapi::api::events::v1::Event> =
            Api::namespaced(self.client.clone(), &self.name);
        let events = api.list(&ListParams::default()).await?;
        let about = |event: &k8s_openapi::api::events::v1::Event| {
            event
                .regarding
                .as_ref()
                .and_then(|on| on.name.clone())
                .as_deref()
                == Some(name)
                && event.reporting_controller.as_deref() == Some("cert-renew.io/cert-renew")
        };
        let text = |event: k8s_openapi::api::events::v1::Event| {
            format!(
                "{}: {}",
                event.reason.unwrap_or_default(),
                event.note.unwrap_or_default()
            )
        };
        Ok(events.items.into_iter().filter(about).map(text).collect())
    }
}

async fn listed<K>(api: &Api<K>) -> Vec<K>
where
    K: Clone + std::fmt::Debug + k8s_openapi::serde::de::DeserializeOwned,
{
    api.list(&ListParams::default())
        .await
        .map(|list| list.items)
        .unwrap_or_default()
}

fn replicas(workload: &DynamicObject) -> i64 {
    workload.data["spec"]["replicas"].as_i64().unwrap_or(1)
}

/// How a pod template refers to a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A volume.
    Volume,
    /// A source of a projected volume.
    Projected,
    /// The secret of a CSI driver.
    Csi,
    /// One variable.
    Env,
    /// All keys as variables.
    EnvFrom,
    /// A variable of an init container.
    InitEnv,
    /// All keys as variables of an init container.
    InitEnvFrom,
    /// No reference.
    None,
}

impl Reference {
    /// All ways of referring to a Secret.
    pub const ALL: [Self; 7] = [
        Self::Volume,
        Self::Projected,
        Self::Csi,
        Self::Env,
        Self::EnvFrom,
        Self::InitEnv,
        Self::InitEnvFrom,
    ];
}

/// A workload's manifest.
#[must_use]
pub fn workload(
    kind: &str,
    name: &str,
    replicas: i64,
    reference: Reference,
    secret: &str,
) -> Value {
    let labels = json!({"app": name});
    let mut container = json!({"name": "main", "image": "none"});
    let mut spec = json!({"terminationGracePeriodSeconds": 0});
    let variable = json!([{"name": "CERTIFICATE", "valueFrom": {"secretKeyRef": {"name": secret, "key": "tls.crt"}}}]);
    let all = json!([{"secretRef": {"name": secret}}]);
    match reference {
        Reference::Volume => {
            spec["volumes"] = json!([{"name": "tls", "secret": {"secretName": secret}}]);
        }
        Reference::Projected => {
            spec["volumes"] =
                json!([{"name": "tls", "projected": {"sources": [{"secret": {"name": secret}}]}}]);
        }
        Reference::Csi => {
            let csi = json!({"driver": "csi.example", "nodePublishSecretRef": {"name": secret}});
            spec["volumes"] = json!([{"name": "tls", "csi": csi}]);
        }
        Reference::Env => container["env"] = variable,
        Reference::EnvFrom => container["envFrom"] = all,
        Reference::InitEnv => {
            spec["initContainers"] = json!([{"name": "init", "image": "none", "env": variable}]);
        }
        Reference::InitEnvFrom => {
            spec["initContainers"] = json!([{"name": "init", "image": "none", "envFrom": all}]);
        }
        Reference::None => {}
    }
    spec["containers"] = json!([container]);
    let template = json!({"metadata": {"labels": labels}, "spec": spec});
    let selector = if kind == "ReplicationController" {
        labels
    } else {
        json!({"matchLabels": labels})
    };
    let mut body = json!({"selector": selector, "template": template});
    if kind != "DaemonSet" {
        body["replicas"] = json!(replicas);
    }
    if kind == "StatefulSet" {
        body["serviceName"] = json!(name);
    }
    let version = if kind == "ReplicationController" {
        "v1"
    } else {
        "apps/v1"
    };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": body})
}

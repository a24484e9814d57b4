//! Kubernetes objects for the tests: namespaces, TLS Secrets, and workloads that refer to a Secret in every way there is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::certificates::TlsPair;
use crate::cluster::{apply, resource_of};
use crate::eventually;

/// Controllers and kwok need a few hundred milliseconds; a machine that compiles beside the tests needs more.
const AVAILABLE_DEADLINE: Duration = Duration::from_secs(60);

/// A namespace of one test.
pub struct Namespace {
    name: String,
    client: Client,
}

/// The workloads that cert-renew can roll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `apps/v1`
    Deployment,
    /// `apps/v1`
    StatefulSet,
    /// `apps/v1`
    DaemonSet,
    /// `v1`
    ReplicationController,
}

/// How a pod refers to the Secret of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use<'a> {
    /// `volumes[].secret`
    Volume(&'a str),
    /// `volumes[].projected.sources[].secret`
    Projected(&'a str),
    /// `volumes[].csi.nodePublishSecretRef`
    Csi(&'a str),
    /// `containers[].env[].valueFrom.secretKeyRef`
    Env(&'a str),
    /// `containers[].envFrom[].secretRef`
    EnvFrom(&'a str),
    /// `initContainers[].env[].valueFrom.secretKeyRef`
    InitEnv(&'a str),
    /// `initContainers[].envFrom[].secretRef`
    InitEnvFrom(&'a str),
}

impl Bench {
    /// A new namespace whose name begins with `prefix`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn namespace(&self, prefix: &str) -> Result<Namespace> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("{prefix}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.namespace_named(&name).await
    }

    /// The namespace of this name, made where it is missing.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn namespace_named(&self, name: &str) -> Result<Namespace> {
        let namespace = Namespace {
            name: name.to_owned(),
            client: self.client()?,
        };
        let manifest = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        apply(&namespace.client, &manifest).await?;
        Ok(namespace)
    }
}

impl Namespace {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The objects of one type in it.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates one object.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create<K>(&self, object: &K) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope>
            + Clone
            + fmt::Debug
            + DeserializeOwned
            + Serialize,
        K::DynamicType: Default,
    {
        Ok(self.api().create(&PostParams::default(), object).await?)
    }

    /// Applies a manifest, which need not name the namespace.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply(&self, manifest: &Value) -> Result<()> {
        let mut manifest = manifest.clone();
        manifest["metadata"]["namespace"] = self.name.as_str().into();
        apply(&self.client, &manifest).await
    }

    /// Applies a workload and waits until it is available.
    ///
    /// # Errors
    /// When the API server refuses it, or it does not become available.
    pub async fn run(&self, kind: Kind, name: &str, replicas: u32, uses: &[Use<'_>]) -> Result<()> {
        self.apply(&kind.manifest(name, replicas, uses)).await?;
        self.available(kind, name).await
    }

    /// A workload as it is now.
    ///
    /// # Errors
    /// When there is none.
    pub async fn workload(&self, kind: Kind, name: &str) -> Result<Value> {
        let resource = resource_of(kind.api_version(), &kind.to_string());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.name, &resource);
        Ok(serde_json::to_value(api.get(name).await?)?)
    }

    /// The annotations of a workload's pod template.
    ///
    /// # Errors
    /// When there is no such workload.
    pub async fn template_annotations(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<BTreeMap<String, String>> {
        let workload = self.workload(kind, name).await?;
        let annotations = &workload["spec"]["template"]["metadata"]["annotations"];
        Ok(serde_json::from_value::<Option<_>>(annotations.clone())?.unwrap_or_default())
    }

    /// Waits until every pod of the workload is of its newest template and available.
    ///
    /// # Errors
    /// When that does not come.
    pub async fn available(&self, kind: Kind, name: &str) -> Result<()> {
        let what = format!("{kind} {}/{name} is available", self.name);
        eventually(AVAILABLE_DEADLINE, &what, async || {
            let workload = self.workload(kind, name).await?;
            ensure!(kind.is_available(&workload), "{}", workload["status"]);
            Ok(())
        })
        .await
    }

    /// The pods of a workload that are not on their way out, by name.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn pods(&self, workload: &str) -> Result<Vec<Pod>> {
        let pods = self
            .api::<Pod>()
            .list(&ListParams::default().labels(&format!("app={workload}")))
            .await?;
        let mut pods = pods.items;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        Ok(pods)
    }

    /// The Secret of this name.
    ///
    /// # Errors
    /// When there is none.
    pub async fn secret(&self, name: &str) -> Result<Secret> {
        self.api::<Secret>()
            .get(name)
            .await
            .with_context(|| format!("Secret {}/{name}", self.name))
    }
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::ReplicationController,
    ];

    fn api_version(self) -> &'static str {
        if self == Self::ReplicationController {
            "v1"
        } else {
            "apps/v1"
        }
    }

    /// A workload with one container, labelled `app: <name>`. A DaemonSet has no use for `replicas`.
    #[must_use]
    pub fn manifest(self, name: &str, replicas: u32, uses: &[Use<'_>]) -> Value {
        let labels = json!({"app": name});
        let mut container =
            json!({"name": "main", "image": "example.test/server", "env": [], "envFrom": []});
        let mut init =
            json!({"name": "init", "image": "example.test/init", "env": [], "envFrom": []});
        let mut volumes = Vec::new();
        for (i, usage) in uses.iter().enumerate() {
            let volume = format!("volume-{i}");
            let variable = |secret: &str| {
                json!({
                    "name": format!("VARIABLE_{i}"),
                    "valueFrom": {"secretKeyRef": {"name": secret, "key": "tls.crt"}},
                })
            };
            let all = |secret: &str| json!({"secretRef": {"name": secret}});
            match usage {
                Use::Volume(secret) => {
                    volumes.push(json!({"name": volume, "secret": {"secretName": secret}}))
                }
                Use::Projected(secret) => {
                    let sources = json!([{"secret": {"name": secret}}]);
                    volumes.push(json!({"name": volume, "projected": {"sources": sources}}));
                }
                Use::Csi(secret) => {
                    let csi = json!({"driver": "csi.example.test", "nodePublishSecretRef": {"name": secret}});
                    volumes.push(json!({"name": volume, "csi": csi}));
                }
                Use::Env(secret) => push(&mut container["env"], variable(secret)),
                Use::EnvFrom(secret) => push(&mut container["envFrom"], all(secret)),
                Use::InitEnv(secret) => push(&mut init["env"], variable(secret)),
                Use::InitEnvFrom(secret) => push(&mut init["envFrom"], all(secret)),
            }
        }
        let template = json!({
            "metadata": {"labels": labels},
            "spec": {"initContainers": [init], "containers": [container], "volumes": volumes},
        });
        let mut spec = json!({"template": template, "selector": {"matchLabels": labels}});
        match self {
            Self::Deployment => spec["replicas"] = replicas.into(),
            Self::StatefulSet => {
                spec["replicas"] = replicas.into();
                spec["serviceName"] = name.into();
            }
            Self::DaemonSet => {}
            Self::ReplicationController => {
                spec["replicas"] = replicas.into();
                spec["selector"] = labels;
            }
        }
        json!({
            "apiVersion": self.api_version(),
            "kind": self.to_string(),
            "metadata": {"name": name},
            "spec": spec,
        })
    }

    fn is_available(self, workload: &Value) -> bool {
        let status = |field: &str| workload["status"][field].as_u64().unwrap_or(0);
        let wanted = match self {
            Self::DaemonSet => status("desiredNumberScheduled"),
            _ => workload["spec"]["replicas"].as_u64().unwrap_or(1),
        };
        let observed = status("observedGeneration")
            == workload["metadata"]["generation"].as_u64().unwrap_or(0);
        let fields: &[&str] = match self {
            Self::Deployment => &["replicas", "updatedReplicas", "availableReplicas"],
            Self::StatefulSet => &["replicas", "updatedReplicas", "availableReplicas"],
            Self::DaemonSet => &[
                "currentNumberScheduled",
                "updatedNumberScheduled",
                "numberAvailable",
            ],
            Self::ReplicationController => &["replicas", "availableReplicas"],
        };
        let scheduled = self != Self::DaemonSet || wanted > 0;
        observed && scheduled && fields.iter().all(|field| status(field) == wanted)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

/// A Secret of type `kubernetes.io/tls` with these annotations. Without a pair both keys are there and empty.
#[must_use]
pub fn tls_secret(name: &str, pair: Option<&TlsPair>, annotations: &[(&str, &str)]) -> Secret {
    let (certificate, key) = pair.map_or(("", ""), |pair| (&pair.certificate, &pair.key));
    let data = [("tls.crt", certificate), ("tls.key", key)];
    secret(name, "kubernetes.io/tls", &data, annotations)
}

/// A Secret of any type.
#[must_use]
pub fn secret(
    name: &str,
    type_: &str,
    data: &[(&str, &str)],
    annotations: &[(&str, &str)],
) -> Secret {
    let mut secret = Secret {
        type_: Some(type_.to_owned()),
        ..Secret::default()
    };
    secret.metadata.name = Some(name.to_owned());
    let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    secret.metadata.annotations = Some(annotations.iter().map(text).collect());
    let bytes =
        |(key, value): &(&str, &str)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()));
    secret.data = Some(data.iter().map(bytes).collect());
    secret
}

/// A data key of a Secret as text; empty where it is missing.
#[must_use]
pub fn data(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes
        .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
        .unwrap_or_default()
}

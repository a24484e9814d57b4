//! A checker that does not rely on the operator's reports: compares what each Secret says that its workloads have with
//! what every pod really has.
//!
//! It shares no code with the operator, and asks only the API server. A pod has a certificate if it was created after
//! the Secret was written, or from a template that names that certificate; likewise its chain and `ca.crt`, by the
//! digests of Secret and template, as far as the pod takes these keys. So it does not cover Secrets whose pods are
//! asked to reload, nor what was there before the first look.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DynamicObject, ListParams, ObjectMeta};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::runtime;

const ROLLED_OUT: &str = "state.cert-renew.io/rolled-out";
const ROLLED_OUT_WITH: &str = "state.cert-renew.io/rolled-out-with";
/// Hexadecimal digits of the digest of the chain, and of that of the CA after it.
const DIGITS: usize = 8;
const ROLLOUT: &str = "cert-renew.io/rollout";
/// Pause between two looks of a [`Watcher`].
const PAUSE: Duration = Duration::from_millis(500);

/// What each Secret held when it was first seen, by its uid: what pods had before is unknown.
#[derive(Debug, Default)]
pub struct Checker {
    first: BTreeMap<String, Held>,
    compared: usize,
}

/// A certificate, and the last recorded digests of its chain and CA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    fingerprint: String,
    chain: String,
    ca: String,
}

/// Looks repeatedly until it is stopped.
pub struct Watcher {
    found: Arc<Mutex<Found>>,
    looks: JoinHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Found {
    stale: Vec<String>,
    compared: usize,
}

/// A Secret that reports its rollout as done.
struct Done {
    name: String,
    held: Held,
    /// Its content at the first look.
    first: Held,
    /// Seconds since 1970.
    written: i64,
}

impl Checker {
    /// The pods that have an earlier certificate than the one that their Secret says its workloads have, in words. A
    /// Secret that is seen for the first time is only noted.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn stale_after_done(
        &mut self,
        client: &Client,
        namespace: &str,
    ) -> Result<Vec<String>> {
        // The Secrets first: a later write makes pods newer, and none older.
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let mut done = Vec::new();
        for secret in secrets.list(&ListParams::default()).await?.items {
            done.extend(self.done(&secret));
        }
        if done.is_empty() {
            return Ok(Vec::new());
        }
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let pods = pods.list(&ListParams::default()).await?.items;
        let mut owners = Owners::new(client, namespace);
        let mut found = Vec::new();
        for pod in pods {
            let runs = pod.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Running");
            if !runs || pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let spec = serde_json::to_value(&pod.spec)?;
            for secret in &done {
                let mut keys = Keys::default();
                keys.taken(&spec, &secret.name);
                if !keys.any() {
                    continue;
                }
                self.compared += 1;
                if !has(&pod.metadata, secret, &keys)
                    && owners.answer_for(&pod.metadata, secret).await?
                {
                    found.push(format!(
                        "{namespace}/{}: done with {}, written at {}, and pod {} of {:?} has {:?}",
                        secret.name,
                        secret.held.fingerprint,
                        secret.written,
                        pod.metadata.name.as_deref().unwrap_or_default(),
                        pod.metadata.creation_timestamp,
                        annotation(&pod.metadata, &leaf_annotation(&secret.name)),
                    ));
                }
            }
        }
        Ok(found)
    }

    /// What a Secret claims, if it claims anything.
    fn done(&mut self, secret: &Secret) -> Option<Done> {
        let metadata = &secret.metadata;
        let pem = secret.data.as_ref()?.get("tls.crt")?;
        let first = CertificateDer::from_pem_slice(&pem.0).ok();
        let fingerprint = first.map_or_else(|| "none".to_owned(), |der| hex(&der));
        let uid = metadata.uid.clone()?;
        let with = annotation(metadata, ROLLED_OUT_WITH);
        let with = with.and_then(|it| {
            it.strip_prefix(&*fingerprint)?
                .trim_start()
                .split(' ')
                .next()
        });
        let (chain, ca) = split(with);
        let held = Held {
            fingerprint,
            chain,
            ca,
        };
        let first = self.first.entry(uid).or_insert_with(|| held.clone());
        // A digest that is recorded for the first time existed before.
        for (at_first, now) in [(&mut first.chain, &held.chain), (&mut first.ca, &held.ca)] {
            if at_first.is_empty() {
                at_first.clone_from(now);
            }
        }
        let said = annotation(metadata, ROLLED_OUT)?;
        let restarts = annotation(metadata, ROLLOUT).is_none_or(|mode| mode == "restart");
        if *first == held || !said.starts_with(&held.fingerprint) || !restarts {
            return None;
        }
        Some(Done {
            name: metadata.name.clone()?,
            written: written(metadata)?,
            first: first.clone(),
            held,
        })
    }

    /// Looks at these namespaces until it is stopped; a failed request is repeated.
    #[must_use]
    pub fn watch(mut self, client: Client, namespaces: Vec<String>) -> Watcher {
        let found = Arc::<Mutex<Found>>::default();
        let all = Arc::clone(&found);
        let looks = async move {
            loop {
                for namespace in &namespaces {
                    if let Ok(more) = self.stale_after_done(&client, namespace).await {
                        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                        all.stale.extend(more);
                        all.compared = self.compared;
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        Watcher {
            found,
            looks: runtime().spawn(looks),
        }
    }
}

impl Watcher {
    /// All that was found until now.
    #[must_use]
    pub fn found(&self) -> Vec<String> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.stale.clone()
    }

    /// How often a running pod was compared with a Secret that it uses and that reported its rollout as done.
    #[must_use]
    pub fn compared(&self) -> usize {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.compared
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.looks.abort();
    }
}

/// The objects that pods belong to, each requested once.
struct Owners<'a> {
    client: &'a Client,
    namespace: &'a str,
    known: BTreeMap<(String, String), Option<DynamicObject>>,
}

impl<'a> Owners<'a> {
    fn new(client: &'a Client, namespace: &'a str) -> Self {
        Self {
            client,
            namespace,
            known: BTreeMap::new(),
        }
    }

    /// Whether the pod could have been replaced: false if it has no owner, belongs to a Job or to a workload that has
    /// opted out, or an Argo Rollout has restarted it since.
    async fn answer_for(&mut self, pod: &ObjectMeta, secret: &Done) -> Result<bool> {
        let mut metadata = pod.clone();
        loop {
            let owner = metadata.owner_references.iter().flatten();
            let Some(owner) = { owner }
                .find(|owner| owner.controller == Some(true))
                .cloned()
            else {
                return Ok(metadata.uid != pod.uid);
            };
            if owner.kind == "Job" {
                return Ok(false);
            }
            let key = (owner.kind.clone(), owner.name.clone());
            if !self.known.contains_key(&key) {
                let (group, version) = owner
                    .api_version
                    .split_once('/')
                    .unwrap_or(("", &owner.api_version));
                let kind =
                    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &owner.kind));
                let api: Api<DynamicObject> =
                    Api::namespaced_with(self.client.clone(), self.namespace, &kind);
                let found = api
                    .get_opt(&owner.name)
                    .await
                    .context("asking for an owner")?;
                self.known.insert(key.clone(), found);
            }
            // Its pods are deleted with it.
            let Some(object) = self.known.get(&key).and_then(Option::as_ref) else {
                return Ok(false);
            };
            if annotation(&object.metadata, ROLLOUT) == Some("none") {
                return Ok(false);
            }
            let restart_at = object.data["spec"]["restartAt"].as_str();
            let restarted =
                restart_at.and_then(|at| at.parse::<k8s_openapi::jiff::Timestamp>().ok());
            let carried = annotation(&object.metadata, &leaf_annotation(&secret.name));
            if let (Some(at), Some(leaf)) = (restarted, carried)
                && leaf.starts_with(&secret.held.fingerprint)
                && created(pod) >= Some(at.as_second())
            {
                return Ok(false);
            }
            metadata = object.metadata.clone();
        }
    }
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn created(metadata: &ObjectMeta) -> Option<i64> {
    metadata
        .creation_timestamp
        .as_ref()
        .map(|at| at.0.as_second())
}

/// When any of the data was last written.
fn written(metadata: &ObjectMeta) -> Option<i64> {
    let managers = metadata.managed_fields.iter().flatten();
    let of_data = managers.filter(|it| {
        let fields = it.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| fields.get("f:data").is_some())
    });
    of_data
        .filter_map(|it| it.time.as_ref())
        .map(|at| at.0.as_second())
        .max()
}

/// Whether a pod has what the Secret holds, as far as the pod takes it and it has changed since the first look.
fn has(pod: &ObjectMeta, secret: &Done, keys: &Keys) -> bool {
    let Done { held, first, .. } = secret;
    let said = annotation(pod, &leaf_annotation(&secret.name)).unwrap_or_default();
    let (leaf, with) = said.split_once('.').unwrap_or((said, ""));
    let (chain, ca) = split(Some(with));
    let named =
        |taken: bool, said: &str, now: &str, first: &str| !taken || now == first || said == now;
    created(pod).is_some_and(|created| created > secret.written)
        || (named(keys.pair, leaf, &held.fingerprint, &first.fingerprint)
            && named(keys.certificate, &chain, &held.chain, &first.chain)
            && named(keys.ca, &ca, &held.ca, &first.ca))
}

/// The digests of chain and CA; empty if there are none.
fn split(with: Option<&str>) -> (String, String) {
    let digits = with.and_then(|with| Some((with.get(..DIGITS)?, with.get(DIGITS..2 * DIGITS)?)));
    let (chain, ca) = digits.unwrap_or_default();
    (chain.to_owned(), ca.to_owned())
}

/// The keys of a Secret that a pod takes, in any of the possible ways.
#[derive(Debug, Default)]
struct Keys {
    /// Certificate or private key.
    pair: bool,
    /// The certificate, with its chain.
    certificate: bool,
    ca: bool,
}

impl Keys {
    fn any(&self) -> bool {
        self.pair || self.certificate || self.ca
    }

    fn taken(&mut self, spec: &Value, secret: &str) {
        match spec {
            Value::Array(items) => items.iter().for_each(|item| self.taken(item, secret)),
            Value::Object(fields) => {
                for (key, value) in fields {
                    let name = match key.as_str() {
                        "secret" if !value["secretName"].is_null() => &value["secretName"],
                        "secret" | "secretRef" | "secretKeyRef" | "nodePublishSecretRef" => {
                            &value["name"]
                        }
                        _ => &Value::Null,
                    };
                    if name.as_str() == Some(secret) {
                        self.take(value);
                    }
                    self.taken(value, secret);
                }
            }
            _ => {}
        }
    }

    /// Adds the keys of a reference: by `items`, by `key`, or all.
    fn take(&mut self, reference: &Value) {
        let items = reference["items"].as_array().filter(|it| !it.is_empty());
        let items = items.into_iter().flatten().map(|item| &item["key"]);
        let named: Vec<&str> = items
            .chain([&reference["key"]])
            .filter_map(Value::as_str)
            .collect();
        let takes = |key: &str| named.is_empty() || named.contains(&key);
        self.ca |= takes("ca.crt");
        self.certificate |= takes("tls.crt");
        self.pair |= named.is_empty() || named.iter().any(|key| *key != "ca.crt");
    }
}

fn leaf_annotation(secret: &str) -> String {
    if secret.len() <= 58 {
        return format!("state.cert-renew.io/leaf.{secret}");
    }
    let hash = hex(secret.as_bytes());
    format!("state.cert-renew.io/leaf.{}.{}", &secret[..16], &hash[..32])
}

fn hex(bytes: &[u8]) -> String {
    let hash = digest(&SHA256, bytes);
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

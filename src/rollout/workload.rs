//! Workloads as the planner sees them: a thin type, and the consistent list of one namespace.
//!
//! Of the object on the wire only named fields are decoded; the pod spec beyond its references to Secrets, and
//! managedFields beyond who touched the template when, are skipped. Nothing here writes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use futures::future::try_join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::ListParams;
use kube::core::{DynamicResourceScope, Selector};
use kube::{Api, Client, Resource};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::{Error, call};
use super::references::{PodSpec, Reference};
use crate::certificate::Fingerprint;
use crate::secret::keys;
use crate::secret::workload::{Kind, WorkloadRef};
use crate::time::UnixTime;

/// Objects asked for at a time. A Deployment is some 5 to 10 KB of JSON, so that a page stays under 1 MB.
const PAGE: u32 = 100;
/// Lists started over because their continue token had expired (410), which takes a list of more than five minutes.
const RESTARTS: usize = 3;

/// One workload, as far as a rollout needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Kind and name.
    pub id: WorkloadRef,
    /// Distinguishes it from a later object of the same name.
    pub uid: Box<str>,
    /// The version that a guarded patch names.
    pub resource_version: Box<str>,
    /// When it was created, by the API server's clock.
    pub created: Option<UnixTime>,
    /// When its template may last have been changed, by whomever: an upper bound, by the API server's clock.
    pub template_touched: Option<UnixTime>,
    /// When a `leaf.…` annotation was last written, by the API server's clock.
    pub rolled_at: Option<UnixTime>,
    /// It is being deleted.
    pub deleting: bool,
    /// Its own annotation `cert-renew.io/rollout: none`.
    pub opted_out: bool,
    /// `leaf.…` annotations of the pod template, by their whole key.
    pub leaves: BTreeMap<Box<str>, Box<str>>,
    /// Where the pod template names Secrets.
    pub references: Vec<Reference>,
    /// Its pods share the network of their node.
    pub host_network: bool,
    /// Label selector of its pods.
    pub selector: Box<str>,
    /// How its controller replaces pods.
    pub strategy: Strategy,
    /// A Deployment's `spec.paused`.
    pub paused: bool,
    /// What its controller reports.
    pub status: Status,
}

/// Who replaces pods when the template changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The workload's controller; of a StatefulSet it leaves the ordinals below `partition` alone.
    Rolling {
        /// Ordinals that keep the old template; 0 but for a StatefulSet that says otherwise.
        partition: i64,
    },
    /// Nobody: `OnDelete`, and every ReplicationController.
    OnDelete,
}

/// The numbers of pods that a workload's controller reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The controller has seen the present spec.
    pub observed: bool,
    /// Pods that there should be.
    pub wanted: i64,
    /// Pods that there are.
    pub total: i64,
    /// Pods of the present template. A ReplicationController does not know: its count of all pods.
    pub updated: i64,
    /// Pods that have been ready for `minReadySeconds`.
    pub available: i64,
    /// A StatefulSet's current revision is its update revision; true for all others.
    pub revision_reached: bool,
    /// `Progressing` is false with `ProgressDeadlineExceeded`.
    pub deadline_exceeded: bool,
    /// Since when `Available` has been false.
    pub unavailable_since: Option<UnixTime>,
}

/// Annotation key on a pod template for a Secret: `state.cert-renew.io/leaf.<secret-name>`.
///
/// The name part of an annotation key is at most 63 characters (Kubernetes, "Labels and annotations: syntax"), a
/// Secret's name up to 253. What does not fit is named by the first 16 characters of the name and 32 hexadecimal
/// digits of its SHA-256.
#[must_use]
pub fn leaf_annotation(secret: &str) -> String {
    const NAME_PART: usize = 63;
    let room = NAME_PART - (keys::LEAF_PREFIX.len() - keys::STATE_PREFIX.len());
    if secret.len() <= room {
        return format!("{}{secret}", keys::LEAF_PREFIX);
    }
    let hash = Fingerprint::of(secret.as_bytes()).to_string();
    // Names of Secrets are ASCII (RFC 1123 subdomains); the fallback keeps this total.
    let head = secret.get(..16).unwrap_or_default();
    format!("{}{head}.{}", keys::LEAF_PREFIX, &hash[..32])
}

impl Workload {
    /// Whether the template says that the workload was rolled for `leaf`, as first roll or as verify's repeat.
    #[must_use]
    pub fn carries(&self, secret: &str, leaf: Fingerprint) -> bool {
        self.leaf_of(secret).is_some_and(|value| says(value, leaf))
    }

    /// The template's `leaf.…` annotation for a Secret.
    #[must_use]
    pub fn leaf_of(&self, secret: &str) -> Option<&str> {
        self.leaves
            .get(leaf_annotation(secret).as_str())
            .map(|value| &**value)
    }

    /// Whether all pods that there should be are available.
    #[must_use]
    pub fn is_available(&self) -> bool {
        let Status {
            observed,
            wanted,
            available,
            deadline_exceeded,
            ..
        } = self.status;
        observed && available >= wanted && !deadline_exceeded
    }
}

/// Whether an annotation's value is `<leaf>` or `<leaf>.<repeat>`.
pub(super) fn says(value: &str, leaf: Fingerprint) -> bool {
    value
        .split('.')
        .next()
        .is_some_and(|first| first == leaf.to_string())
}

/// All workloads of a namespace, in the order of [`Kind::ALL`].
///
/// The lists are consistent (no resourceVersion, so never from a cache that lags behind): a workload that is missed is
/// a rollout that is lost. For the same reason one kind that cannot be listed fails the whole.
///
/// # Errors
/// When a list is forbidden or fails; nothing was changed.
pub async fn list(client: &Client, namespace: &str) -> Result<Vec<Workload>, Error> {
    let kinds = Kind::ALL.map(|kind| list_kind(client, namespace, kind));
    Ok(try_join_all(kinds).await?.into_iter().flatten().collect())
}

async fn list_kind(client: &Client, namespace: &str, kind: Kind) -> Result<Vec<Workload>, Error> {
    let api = api(client, namespace, kind);
    let mut objects = pages(&api, namespace, kind).await;
    for _ in 0..RESTARTS {
        if objects.as_ref().err().and_then(Error::code) != Some(410) {
            break;
        }
        objects = pages(&api, namespace, kind).await;
    }
    objects
}

async fn pages(api: &Api<Object>, namespace: &str, kind: Kind) -> Result<Vec<Workload>, Error> {
    let mut params = ListParams::default().limit(PAGE);
    let mut workloads = Vec::new();
    loop {
        let what = Object::plural(&kind);
        let page = call("list", &what, namespace, || api.list(&params)).await?;
        workloads.extend(page.items.into_iter().map(|object| object.read(kind)));
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            _ => return Ok(workloads),
        }
    }
}

/// One workload as it is now; `None` when it is gone.
pub(super) async fn get(
    client: &Client,
    namespace: &str,
    id: &WorkloadRef,
) -> Result<Option<Workload>, Error> {
    let api = api(client, namespace, id.kind);
    let object = call("get", id, namespace, || api.get_opt(&id.name)).await?;
    Ok(object.map(|object| object.read(id.kind)))
}

pub(super) fn api(client: &Client, namespace: &str, kind: Kind) -> Api<Object> {
    Api::namespaced_with(client.clone(), namespace, &kind)
}

/// A workload on the wire. Its kind is not part of it: objects in a list do not carry one.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Wire")]
pub(super) struct Object {
    /// Name, uid and version only, for the client library.
    meta: ObjectMeta,
    wire: Wire,
}

impl Resource for Object {
    type DynamicType = Kind;
    type Scope = DynamicResourceScope;

    fn kind(kind: &Kind) -> Cow<'_, str> {
        match kind {
            Kind::Deployment => "Deployment",
            Kind::StatefulSet => "StatefulSet",
            Kind::DaemonSet => "DaemonSet",
            Kind::ReplicationController => "ReplicationController",
        }
        .into()
    }

    fn group(kind: &Kind) -> Cow<'_, str> {
        if *kind == Kind::ReplicationController {
            ""
        } else {
            "apps"
        }
        .into()
    }

    fn version(_: &Kind) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(kind: &Kind) -> Cow<'_, str> {
        match kind {
            Kind::Deployment => "deployments",
            Kind::StatefulSet => "statefulsets",
            Kind::DaemonSet => "daemonsets",
            Kind::ReplicationController => "replicationcontrollers",
        }
        .into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

impl From<Wire> for Object {
    fn from(wire: Wire) -> Self {
        let meta = ObjectMeta {
            name: Some(wire.metadata.name.to_string()),
            resource_version: Some(wire.metadata.resource_version.to_string()),
            uid: Some(wire.metadata.uid.to_string()),
            ..ObjectMeta::default()
        };
        Self { meta, wire }
    }
}

/// The fields of the four kinds that are read, all of them in one type: where kinds differ, names differ.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Wire {
    metadata: Meta,
    spec: Spec,
    status: StatusWire,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    name: Box<str>,
    uid: Box<str>,
    resource_version: Box<str>,
    generation: Option<i64>,
    creation_timestamp: Option<Box<str>>,
    deletion_timestamp: Option<IgnoredAny>,
    annotations: Option<OwnAnnotations>,
    managed_fields: Option<Vec<ManagedFields>>,
}

/// The one annotation of a workload itself that is ours.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OwnAnnotations {
    #[serde(rename = "cert-renew.io/rollout")]
    rollout: Option<Box<str>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ManagedFields {
    time: Option<Box<str>>,
    #[serde(rename = "fieldsV1")]
    fields: Fields,
}

/// What a manager owns, down to the template's annotations.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Fields {
    #[serde(rename = "f:spec")]
    spec: Option<Box<Self>>,
    #[serde(rename = "f:template")]
    template: Option<Box<Self>>,
    #[serde(rename = "f:metadata")]
    metadata: Option<Box<Self>>,
    #[serde(rename = "f:annotations")]
    annotations: Option<BTreeMap<Box<str>, IgnoredAny>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    replicas: Option<i64>,
    paused: Option<bool>,
    selector: Option<serde_json::Value>,
    template: Option<Template>,
    /// StatefulSet and DaemonSet; a Deployment's `strategy` is always one that replaces pods.
    update_strategy: Option<UpdateStrategy>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Template {
    metadata: Option<TemplateMeta>,
    spec: Option<PodSpec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TemplateMeta {
    annotations: Option<BTreeMap<Box<str>, Box<str>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct UpdateStrategy {
    r#type: Option<Box<str>>,
    rolling_update: Option<RollingUpdate>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RollingUpdate {
    partition: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StatusWire {
    observed_generation: Option<i64>,
    replicas: i64,
    updated_replicas: i64,
    available_replicas: i64,
    current_revision: Option<Box<str>>,
    update_revision: Option<Box<str>>,
    desired_number_scheduled: i64,
    current_number_scheduled: i64,
    updated_number_scheduled: i64,
    number_available: i64,
    conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    r#type: Box<str>,
    status: Box<str>,
    reason: Option<Box<str>>,
    last_transition_time: Option<Box<str>>,
}

impl Object {
    /// The workload that this object of `kind` is.
    pub(super) fn read(self, kind: Kind) -> Workload {
        let Wire {
            metadata,
            spec,
            status,
        } = self.wire;
        let template = spec.template.unwrap_or_default();
        let pod_spec = template.spec.unwrap_or_default();
        let status = status.read(kind, metadata.generation, spec.replicas);
        let annotations = template
            .metadata
            .unwrap_or_default()
            .annotations
            .unwrap_or_default();
        let update = spec.update_strategy.unwrap_or_default();
        let on_delete =
            kind == Kind::ReplicationController || update.r#type.as_deref() == Some("OnDelete");
        let partition = update
            .rolling_update
            .and_then(|rolling| rolling.partition)
            .unwrap_or(0);
        let managers = metadata.managed_fields.unwrap_or_default();
        let latest = |of: fn(&Fields) -> bool| {
            let concerned = managers.iter().filter(|manager| of(&manager.fields));
            concerned
                .filter_map(|manager| instant(manager.time.as_deref()))
                .max()
        };
        Workload {
            id: WorkloadRef {
                kind,
                name: metadata.name,
            },
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            created: instant(metadata.creation_timestamp.as_deref()),
            template_touched: latest(Fields::has_template),
            rolled_at: latest(Fields::has_leaf),
            deleting: metadata.deletion_timestamp.is_some(),
            opted_out: metadata.annotations.and_then(|own| own.rollout).as_deref() == Some("none"),
            leaves: annotations
                .into_iter()
                .filter(|(key, _)| key.starts_with(keys::LEAF_PREFIX))
                .collect(),
            host_network: pod_spec.host_network,
            references: pod_spec.references(),
            selector: selector(kind, spec.selector.unwrap_or_default()),
            strategy: if on_delete {
                Strategy::OnDelete
            } else {
                Strategy::Rolling { partition }
            },
            paused: spec.paused.unwrap_or(false),
            status,
        }
    }
}

impl StatusWire {
    fn read(self, kind: Kind, generation: Option<i64>, replicas: Option<i64>) -> Status {
        let conditions = self.conditions.unwrap_or_default();
        let condition = |r#type: &str| {
            conditions
                .iter()
                .find(|condition| &*condition.r#type == r#type && &*condition.status == "False")
        };
        let (wanted, total, updated, available) = match kind {
            Kind::DaemonSet => (
                self.desired_number_scheduled,
                self.current_number_scheduled,
                self.updated_number_scheduled,
                self.number_available,
            ),
            // `spec.replicas` is defaulted to 1 by the API server.
            Kind::ReplicationController => (
                replicas.unwrap_or(1),
                self.replicas,
                self.replicas,
                self.available_replicas,
            ),
            Kind::Deployment | Kind::StatefulSet => (
                replicas.unwrap_or(1),
                self.replicas,
                self.updated_replicas,
                self.available_replicas,
            ),
        };
        Status {
            observed: self.observed_generation >= generation,
            wanted,
            total,
            updated,
            available,
            revision_reached: self.current_revision == self.update_revision,
            deadline_exceeded: condition("Progressing").is_some_and(|condition| {
                condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
            }),
            unavailable_since: condition("Available")
                .and_then(|condition| instant(condition.last_transition_time.as_deref())),
        }
    }
}

impl Fields {
    fn template(&self) -> Option<&Self> {
        self.spec.as_ref()?.template.as_deref()
    }

    fn has_template(&self) -> bool {
        self.template().is_some()
    }

    fn has_leaf(&self) -> bool {
        let ours = |key: &str| {
            key.strip_prefix("f:")
                .is_some_and(|key| key.starts_with(keys::LEAF_PREFIX))
        };
        let metadata = self
            .template()
            .and_then(|template| template.metadata.as_ref());
        let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
        annotations.is_some_and(|annotations| annotations.keys().any(|key| ours(key)))
    }
}

fn instant(text: Option<&str>) -> Option<UnixTime> {
    text?.parse().ok()
}

/// The selector of a workload's pods as a query takes it. Pods are also told by their owner, so that an unreadable
/// selector, which the API server would not have accepted, may select too much.
fn selector(kind: Kind, value: serde_json::Value) -> Box<str> {
    let labels = if kind == Kind::ReplicationController {
        serde_json::from_value(value).map(|match_labels| LabelSelector {
            match_labels,
            ..LabelSelector::default()
        })
    } else {
        serde_json::from_value(value)
    };
    let selector = labels
        .ok()
        .and_then(|labels| Selector::try_from(labels).ok());
    selector
        .map(|selector| selector.to_string())
        .unwrap_or_default()
        .into()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The workload that a JSON object of this kind is.
    pub(crate) fn workload(kind: Kind, object: Value) -> Workload {
        serde_json::from_value::<Object>(object).unwrap().read(kind)
    }

    #[test]
    fn an_object_on_the_wire_becomes_thin() {
        let leaf = Fingerprint::of(b"leaf");
        let web = workload(
            Kind::Deployment,
            json!({
                "metadata": {
                    "name": "web", "uid": "u", "resourceVersion": "7", "generation": 4,
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "annotations": {"cert-renew.io/rollout": "none", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
                    "managedFields": [
                        {"manager": "helm", "time": "2026-01-02T00:00:00Z", "fieldsV1": {
                            "f:metadata": {"f:annotations": {"f:a": {}}},
                            "f:spec": {"f:replicas": {}, "f:template": {"f:metadata": {"f:annotations": {".": {}}}}}}},
                        {"manager": "cert-renew", "time": "2026-01-03T00:00:00Z", "fieldsV1": {
                            "f:spec": {"f:template": {"f:metadata": {"f:annotations": {"f:state.cert-renew.io/leaf.tls": {}}}}}}},
                        {"manager": "scaler", "time": "2026-01-04T00:00:00Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]},
                "spec": {
                    "replicas": 2, "paused": true,
                    "selector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]},
                    "template": {
                        "metadata": {"creationTimestamp": null, "annotations": {
                            "other": "x", "state.cert-renew.io/leaf.tls": leaf.to_string()}},
                        "spec": {"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "tls"}}]}]}}},
                "status": {"observedGeneration": 3, "replicas": 2, "conditions": [
                    {"type": "Available", "status": "False", "lastTransitionTime": "2026-01-05T00:00:00Z"},
                    {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}
            }),
        );
        let at = |day: u8| format!("2026-01-0{day}T00:00:00Z").parse().ok();
        assert_eq!(web.id.to_string(), "deployment/web");
        assert_eq!(
            (web.created, web.template_touched, web.rolled_at),
            (at(1), at(3), at(3))
        );
        assert!(web.opted_out && web.paused && !web.deleting);
        assert_eq!(&*web.selector, "app=web,tier");
        assert!(
            web.carries("tls", leaf)
                && !web.carries("tls", Fingerprint::of(b"other"))
                && !web.carries("x", leaf)
        );
        assert_eq!(web.references.len(), 1);
        let Status {
            observed,
            wanted,
            deadline_exceeded,
            unavailable_since,
            ..
        } = web.status;
        assert_eq!(
            (observed, wanted, deadline_exceeded, unavailable_since),
            (false, 2, true, at(5))
        );
    }

    #[test]
    fn nobody_replaces_the_pods_of_some() {
        let on_delete = json!({"spec": {"updateStrategy": {"type": "OnDelete"}}});
        let legacy = workload(
            Kind::ReplicationController,
            json!({"spec": {"selector": {"app": "legacy"}}}),
        );
        assert_eq!(
            (legacy.strategy, &*legacy.selector),
            (Strategy::OnDelete, "app=legacy")
        );
        assert_eq!(
            workload(Kind::DaemonSet, on_delete.clone()).strategy,
            Strategy::OnDelete
        );
        assert_eq!(
            workload(Kind::StatefulSet, on_delete).strategy,
            Strategy::OnDelete
        );
        assert_eq!(
            workload(Kind::StatefulSet, json!({})).strategy,
            Strategy::Rolling { partition: 0 }
        );
    }

    #[test]
    fn annotation_keys_fit_and_stay_apart() {
        assert_eq!(
            leaf_annotation("shop-tls"),
            "state.cert-renew.io/leaf.shop-tls"
        );
        let fits = "a".repeat(58);
        assert_eq!(
            leaf_annotation(&fits),
            format!("state.cert-renew.io/leaf.{fits}")
        );
        let long: Vec<String> = ["b", "c"]
            .iter()
            .map(|end| leaf_annotation(&format!("{}{end}", "a".repeat(200))))
            .collect();
        assert_ne!(long[0], long[1]);
        for key in &long {
            let name = key.strip_prefix(keys::STATE_PREFIX).unwrap();
            assert!(name.len() <= 63 && name.starts_with("leaf.aaaa"), "{key}");
        }
    }

    #[test]
    fn the_repeat_that_verify_asks_for_is_the_same_leaf() {
        let leaf = Fingerprint::of(b"leaf");
        for (value, expected) in [
            (leaf.to_string(), true),
            (format!("{leaf}.2"), true),
            (format!("{leaf}2"), false),
            (String::new(), false),
        ] {
            assert_eq!(says(&value, leaf), expected, "{value}");
        }
    }
}

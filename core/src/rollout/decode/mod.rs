//! Decodes workloads from the API server's JSON into the thin type.
//!
//! Only named fields of the object are decoded. The pod spec beyond its references to Secrets, and managedFields beyond
//! who touched the template when, are skipped.
//!
//! An Argo Rollout is restarted by `spec.restartAt`: a changed template would send it through its canary steps. Its
//! `leaf.…` annotations are therefore on the Rollout itself, and count only together with that field.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube_core::Resource;
use kube_core::{DynamicResourceScope, Selector};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::lean::{Kept, Matters, Small};
use super::references::PodSpec;
use super::workload::{Status, Strategy, Workload};
use crate::secret::keys;
use crate::secret::workload::{Kind, WorkloadRef};
use crate::time::UnixTime;

/// A workload as the API server sends it. Its kind is not included: objects in a list do not carry one.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Wire")]
pub struct Object {
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
            Kind::ReplicaSet => "ReplicaSet",
            Kind::Rollout => "Rollout",
        }
        .into()
    }

    fn group(kind: &Kind) -> Cow<'_, str> {
        match kind {
            Kind::ReplicationController => "",
            Kind::Rollout => "argoproj.io",
            _ => "apps",
        }
        .into()
    }

    fn version(kind: &Kind) -> Cow<'_, str> {
        match kind {
            Kind::Rollout => "v1alpha1",
            _ => "v1",
        }
        .into()
    }

    fn plural(kind: &Kind) -> Cow<'_, str> {
        match kind {
            Kind::Deployment => "deployments",
            Kind::StatefulSet => "statefulsets",
            Kind::DaemonSet => "daemonsets",
            Kind::ReplicationController => "replicationcontrollers",
            Kind::ReplicaSet => "replicasets",
            Kind::Rollout => "rollouts",
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

/// The fields of all kinds in one type: fields that differ have different names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Wire {
    metadata: Meta,
    spec: Spec,
    status: StatusWire,
}

/// The fields read from the metadata of a workload, a pod or a Job.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    /// The object's name.
    pub name: Box<str>,
    uid: Box<str>,
    resource_version: Box<str>,
    generation: Option<i64>,
    creation_timestamp: Option<Box<str>>,
    deletion_timestamp: Option<Box<str>>,
    annotations: Option<OwnAnnotations>,
    owner_references: Kept<Owner>,
    managed_fields: Kept<ManagedFields>,
}

/// Our annotations on the workload itself; all others are skipped, `last-applied-configuration` above all.
#[derive(Clone, Debug, Default)]
struct OwnAnnotations(BTreeMap<Box<str>, Box<str>>);

impl<'de> Deserialize<'de> for OwnAnnotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ours;

        impl<'de> Visitor<'de> for Ours {
            type Value = OwnAnnotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut ours = BTreeMap::new();
                while let Some(key) = map.next_key::<Box<str>>()? {
                    if &*key == keys::ROLLOUT || key.starts_with(keys::LEAF_PREFIX) {
                        ours.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(OwnAnnotations(ours))
            }
        }

        deserializer.deserialize_map(Ours)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    controller: Option<bool>,
    kind: Box<str>,
    name: Box<str>,
    uid: Box<str>,
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
    annotations: Option<OwnFields>,
    #[serde(rename = "f:restartAt")]
    restart_at: Option<IgnoredAny>,
}

/// Whether a `leaf.…` annotation is among what a manager owns.
#[derive(Clone, Copy, Debug, Default)]
struct OwnFields(bool);

impl<'de> Deserialize<'de> for OwnFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Leaf;

        impl<'de> Visitor<'de> for Leaf {
            type Value = OwnFields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = false;
                while let Some(key) = map.next_key::<Box<str>>()? {
                    map.next_value::<IgnoredAny>()?;
                    let field = key.strip_prefix("f:");
                    found |= field.is_some_and(|it| it.starts_with(keys::LEAF_PREFIX));
                }
                Ok(OwnFields(found))
            }
        }

        deserializer.deserialize_map(Leaf)
    }
}

impl Matters for Owner {
    fn matters(&self) -> bool {
        self.controller == Some(true)
    }
}

impl Matters for ManagedFields {
    fn matters(&self) -> bool {
        self.fields.has_template() || self.fields.has_leaf()
    }
}

impl Matters for Condition {
    fn matters(&self) -> bool {
        let read = ["Available", "Complete", "Failed", "Progressing", "Ready"];
        read.contains(&&*self.r#type)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    replicas: Option<i64>,
    paused: Option<bool>,
    selector: Small,
    template: Option<Template>,
    /// StatefulSet and DaemonSet; a Deployment's `strategy` always replaces pods.
    update_strategy: Option<UpdateStrategy>,
    /// StatefulSet.
    pod_management_policy: Option<Box<str>>,
    /// Rollout.
    restart_at: Option<Box<str>>,
    /// Rollout: the Deployment whose template it uses.
    workload_ref: Option<WorkloadTemplate>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WorkloadTemplate {
    kind: Box<str>,
    name: Box<str>,
}

/// A pod template.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Template {
    metadata: Option<TemplateMeta>,
    /// The spec of the pods made from it.
    pub spec: Option<PodSpec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TemplateMeta {
    annotations: Option<OwnAnnotations>,
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
    observed_generation: Option<Generation>,
    replicas: i64,
    updated_replicas: i64,
    available_replicas: i64,
    current_revision: Option<Box<str>>,
    update_revision: Option<Box<str>>,
    desired_number_scheduled: i64,
    current_number_scheduled: i64,
    updated_number_scheduled: i64,
    number_available: i64,
    restarted_at: Option<Box<str>>,
    conditions: Kept<Condition>,
}

/// A Rollout has it as a text.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Generation {
    Number(i64),
    Text(Box<str>),
}

/// A condition of a workload's or a pod's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    r#type: Box<str>,
    status: Box<str>,
    reason: Option<Box<str>>,
    last_transition_time: Option<Box<str>>,
}

impl Object {
    /// Whether another object controls it.
    pub fn is_controlled(&self) -> bool {
        self.wire.metadata.is_controlled()
    }

    /// The workload, given its `kind`.
    pub fn read(self, kind: Kind) -> Workload {
        let Wire {
            metadata,
            spec,
            status,
        } = self.wire;
        let template = spec.template.unwrap_or_default();
        let pod_spec = template.spec.unwrap_or_default();
        let reached = kind != Kind::Rollout
            || instant(spec.restart_at.as_deref()) == instant(status.restarted_at.as_deref());
        let status = status.read(kind, metadata.generation, spec.replicas, reached);
        let (created, deleting) = (metadata.created(), metadata.is_leaving());
        let of_template = template.metadata.unwrap_or_default();
        let OwnAnnotations(of_template) = of_template.annotations.unwrap_or_default();
        let opted_out = metadata.has_opted_out() || has_opted_out(&of_template);
        let OwnAnnotations(own) = metadata.annotations.unwrap_or_default();
        let annotations = match kind {
            Kind::Rollout if spec.restart_at.is_some() => own,
            // Without the restart that they were written with, they prove nothing.
            Kind::Rollout => BTreeMap::new(),
            _ => of_template,
        };
        let update = spec.update_strategy.unwrap_or_default();
        let on_delete = matches!(kind, Kind::ReplicationController | Kind::ReplicaSet)
            || update.r#type.as_deref() == Some("OnDelete");
        let partition = update
            .rolling_update
            .and_then(|rolling| rolling.partition)
            .unwrap_or(0);
        let managers = &metadata.managed_fields;
        let latest = |of: fn(&Fields) -> bool| {
            let concerned = managers.iter().filter(|manager| of(&manager.fields));
            concerned
                .filter_map(|manager| instant(manager.time.as_deref()))
                .max()
        };
        let template_of = spec.workload_ref.filter(|of| &*of.kind == "Deployment");
        Workload {
            id: WorkloadRef {
                kind,
                name: metadata.name,
            },
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            created,
            template_touched: latest(Fields::has_template),
            rolled_at: latest(Fields::has_leaf),
            deleting,
            opted_out,
            leaves: annotations
                .into_iter()
                .filter(|(key, _)| key.starts_with(keys::LEAF_PREFIX))
                .collect(),
            host_network: pod_spec.host_network,
            references: pod_spec.references(),
            template_of: template_of.map(|of| WorkloadRef {
                kind: Kind::Deployment,
                name: of.name,
            }),
            selector: selector(kind, spec.selector.0.unwrap_or_default()),
            strategy: if on_delete {
                Strategy::OnDelete
            } else {
                Strategy::Rolling { partition }
            },
            ordered: kind == Kind::StatefulSet
                && spec.pod_management_policy.as_deref() != Some("Parallel"),
            // A paused Rollout takes no new version, but restarts.
            paused: kind != Kind::Rollout && spec.paused.unwrap_or(false),
            status,
        }
    }
}

impl Meta {
    /// The object's uid.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The object's resourceVersion.
    pub fn resource_version(&self) -> &str {
        &self.resource_version
    }

    /// When it should have ended, if it is being deleted.
    pub fn ends(&self) -> Option<UnixTime> {
        instant(self.deletion_timestamp.as_deref())
    }

    /// One of its own annotations that are ours.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        let OwnAnnotations(own) = self.annotations.as_ref()?;
        own.get(key).map(|value| &**value)
    }

    /// Whether the object with this uid controls it.
    pub fn is_controlled_by(&self, uid: &str) -> bool {
        self.owner_references.iter().any(|owner| &*owner.uid == uid)
    }

    /// When it was created, by the API server's clock.
    pub fn created(&self) -> Option<UnixTime> {
        instant(self.creation_timestamp.as_deref())
    }

    /// Whether it is being deleted.
    pub fn is_leaving(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// Whether another object controls it.
    pub fn is_controlled(&self) -> bool {
        self.controller().is_some()
    }

    /// Kind and name of the object that controls it.
    pub fn controller(&self) -> Option<(&str, &str)> {
        let owner = self.owner_references.first()?;
        Some((&owner.kind, &owner.name))
    }

    /// Its own annotation `cert-renew.io/rollout: none`.
    pub fn has_opted_out(&self) -> bool {
        let own = self.annotations.as_ref();
        own.is_some_and(|OwnAnnotations(own)| has_opted_out(own))
    }
}

fn has_opted_out(annotations: &BTreeMap<Box<str>, Box<str>>) -> bool {
    let mode = annotations.get(keys::ROLLOUT);
    mode.is_some_and(|mode| &**mode == "none")
}

impl Condition {
    /// Whether the condition has this type and is true.
    #[must_use]
    pub fn is_true(&self, r#type: &str) -> bool {
        &*self.r#type == r#type && &*self.status == "True"
    }
}

impl StatusWire {
    fn read(
        self,
        kind: Kind,
        generation: Option<i64>,
        replicas: Option<i64>,
        revision_reached: bool,
    ) -> Status {
        let conditions = &self.conditions;
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
            Kind::ReplicationController | Kind::ReplicaSet => (
                replicas.unwrap_or(1),
                self.replicas,
                self.replicas,
                self.available_replicas,
            ),
            Kind::Rollout => {
                let wanted = replicas.unwrap_or(1);
                let restarted = if revision_reached { wanted } else { 0 };
                (wanted, self.replicas, restarted, self.available_replicas)
            }
            Kind::Deployment | Kind::StatefulSet => (
                replicas.unwrap_or(1),
                self.replicas,
                self.updated_replicas,
                self.available_replicas,
            ),
        };
        let observed = match self.observed_generation {
            Some(Generation::Number(number)) => Some(number),
            Some(Generation::Text(text)) => text.parse().ok(),
            None => None,
        };
        Status {
            observed: observed >= generation,
            wanted,
            total,
            updated,
            available,
            revision_reached: revision_reached && self.current_revision == self.update_revision,
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
        let restarted = self
            .spec
            .as_ref()
            .is_some_and(|spec| spec.restart_at.is_some());
        restarted || self.template().is_some()
    }

    fn has_leaf(&self) -> bool {
        let places = [Some(self), self.template()].into_iter().flatten();
        let annotations = places.filter_map(|place| place.metadata.as_ref()?.annotations);
        { annotations }.any(|OwnFields(leaf)| leaf)
    }
}

fn instant(text: Option<&str>) -> Option<UnixTime> {
    text?.parse().ok()
}

/// The selector of a workload's pods as a query takes it. Pods are also matched by owner, so an unreadable selector,
/// which the API server would have refused, may match too much.
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
mod tests;

//! Which Secrets a pod template refers to, and how.
//!
//! Input: the few fields of a pod spec that can name a Secret; everything else is skipped undecoded, literal
//! environment values above all. `imagePullSecrets` is left out on purpose: the kubelet reads it at each pull, so a new
//! pod does not help. Pure; never looks at a Secret's data.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;

use super::lean::{Kept, Matters};

/// The data keys of a Secret that have changed: a reference to one of them is affected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedKeys {
    named: Vec<Box<str>>,
    /// Whether the names are the unchanged keys instead.
    others: bool,
}

impl ChangedKeys {
    /// Any key may have changed.
    #[must_use]
    pub fn any() -> Self {
        Self::all_but([])
    }

    /// Only these keys have changed.
    #[must_use]
    pub fn only(keys: impl IntoIterator<Item = Box<str>>) -> Self {
        let named = keys.into_iter().collect();
        Self {
            named,
            others: false,
        }
    }

    /// Any key but these may have changed.
    #[must_use]
    pub fn all_but(keys: impl IntoIterator<Item = Box<str>>) -> Self {
        let named = keys.into_iter().collect();
        Self {
            named,
            others: true,
        }
    }

    /// Whether no key has changed.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.named.is_empty() && !self.others
    }

    /// Bytes in memory, without the allocator's overhead.
    #[must_use]
    pub fn weight(&self) -> usize {
        let named = self.named.iter();
        named.map(|key| size_of::<Box<str>>() + key.len()).sum()
    }

    fn has(&self, key: &str) -> bool {
        self.named.iter().any(|named| **named == *key) != self.others
    }
}

/// How a reference reaches the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// `volumes[].secret`.
    Volume,
    /// `volumes[].projected.sources[].secret`.
    Projected,
    /// `volumes[].csi.nodePublishSecretRef`.
    Csi,
    /// `env[].valueFrom.secretKeyRef`.
    Env,
    /// `envFrom[].secretRef`.
    EnvFrom,
}

/// One reference of a pod template to a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The Secret's name, in the workload's namespace.
    pub secret: Box<str>,
    /// The form of the reference.
    pub via: Via,
    /// Where the reference is: the volume, or variable and container.
    pub place: Box<str>,
    /// The data keys that it takes; `None` means all of them.
    pub keys: Option<Vec<Box<str>>>,
    /// Whether a running pod sees a changed Secret as a changed file: false for variables, CSI and `subPath` mounts.
    pub live: bool,
}

impl Reference {
    /// Whether a change of these data keys affects the reference.
    #[must_use]
    pub fn takes(&self, changed: &ChangedKeys) -> bool {
        match &self.keys {
            Some(keys) => keys.iter().any(|key| changed.has(key)),
            None => !changed.is_none(),
        }
    }

    /// Bytes in memory, without the allocator's overhead.
    pub fn weight(&self) -> usize {
        let keys = self.keys.iter().flatten();
        let keys = keys.map(|key| size_of::<Box<str>>() + key.len());
        size_of::<Self>() + self.secret.len() + self.place.len() + keys.sum::<usize>()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.via {
            Via::Volume => "volume",
            Via::Projected => "projected volume",
            Via::Csi => "CSI volume",
            Via::Env => "env",
            Via::EnvFrom => "envFrom of",
        };
        write!(f, "{form} {}", self.place)?;
        if !self.live && matches!(self.via, Via::Volume | Via::Projected) {
            f.write_str(" (subPath)")?;
        }
        Ok(())
    }
}

/// The fields of `v1` PodSpec that can name a Secret.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    volumes: Kept<Volume>,
    containers: Kept<Container>,
    init_containers: Kept<Container>,
    ephemeral_containers: Kept<Container>,
    /// Whether its pods share the network of their node.
    pub host_network: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Volume {
    name: Box<str>,
    secret: Option<SecretVolume>,
    projected: Option<Projected>,
    csi: Option<Csi>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SecretVolume {
    secret_name: Option<Box<str>>,
    items: Option<Vec<Item>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Projected {
    sources: Kept<Source>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Source {
    secret: Option<Selected>,
}

/// A Secret by name, with the keys taken from it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Selected {
    name: Box<str>,
    items: Option<Vec<Item>>,
    key: Option<Box<str>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Item {
    key: Box<str>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Csi {
    node_publish_secret_ref: Option<Selected>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    name: Box<str>,
    env: Kept<Variable>,
    env_from: Kept<EnvFrom>,
    volume_mounts: Kept<Mount>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Variable {
    name: Box<str>,
    value_from: Option<ValueFrom>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ValueFrom {
    secret_key_ref: Option<Selected>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct EnvFrom {
    secret_ref: Option<Selected>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Mount {
    name: Box<str>,
    sub_path: Option<Box<str>>,
    sub_path_expr: Option<Box<str>>,
}

impl Matters for Volume {
    fn matters(&self) -> bool {
        let secret = self
            .secret
            .as_ref()
            .is_some_and(|it| it.secret_name.is_some());
        let projected = self
            .projected
            .as_ref()
            .is_some_and(|it| !it.sources.is_empty());
        let csi = self.csi.as_ref();
        secret || projected || csi.is_some_and(|it| it.node_publish_secret_ref.is_some())
    }
}

impl Matters for Source {
    fn matters(&self) -> bool {
        self.secret.is_some()
    }
}

impl Matters for Container {
    fn matters(&self) -> bool {
        !self.env.is_empty() || !self.env_from.is_empty() || !self.volume_mounts.is_empty()
    }
}

impl Matters for Variable {
    fn matters(&self) -> bool {
        self.value_from
            .as_ref()
            .is_some_and(|it| it.secret_key_ref.is_some())
    }
}

impl Matters for EnvFrom {
    fn matters(&self) -> bool {
        self.secret_ref.is_some()
    }
}

/// The kubelet never updates a file mounted by `subPath`.
impl Matters for Mount {
    fn matters(&self) -> bool {
        let some = |path: &Option<Box<str>>| path.as_ref().is_some_and(|path| !path.is_empty());
        some(&self.sub_path) || some(&self.sub_path_expr)
    }
}

impl PodSpec {
    /// Every reference to a Secret, volumes first, then the containers in their order.
    pub fn references(&self) -> Vec<Reference> {
        let mut found = Vec::new();
        let by_sub_path: BTreeSet<&str> = self
            .containers_by_sort()
            .flat_map(|(_, container)| container.volume_mounts.iter())
            .map(|mount| &*mount.name)
            .collect();
        for volume in self.volumes.iter() {
            let live = !by_sub_path.contains(&*volume.name);
            let mut add = |via, secret: &str, items: &Option<Vec<Item>>, live| {
                found.push(Reference {
                    secret: secret.into(),
                    via,
                    place: volume.name.clone(),
                    keys: items
                        .as_ref()
                        .filter(|items| !items.is_empty())
                        .map(|items| items.iter().map(|item| item.key.clone()).collect()),
                    live,
                });
            };
            if let Some(SecretVolume {
                secret_name: Some(name),
                items,
            }) = &volume.secret
            {
                add(Via::Volume, name, items, live);
            }
            let sources = { volume.projected.iter() }.flat_map(|it| it.sources.iter());
            for selected in sources.filter_map(|source| source.secret.as_ref()) {
                add(Via::Projected, &selected.name, &selected.items, live);
            }
            let csi = volume.csi.as_ref();
            if let Some(selected) = csi.and_then(|csi| csi.node_publish_secret_ref.as_ref()) {
                add(Via::Csi, &selected.name, &None, false);
            }
        }
        for (what, container) in self.containers_by_sort() {
            let place = format!("{what} {}", container.name);
            for variable in container.env.iter() {
                let source = variable.value_from.as_ref();
                if let Some(selected) = source.and_then(|source| source.secret_key_ref.as_ref()) {
                    found.push(Reference {
                        secret: selected.name.clone(),
                        via: Via::Env,
                        place: format!("{} of {place}", variable.name).into(),
                        keys: selected.key.clone().map(|key| vec![key]),
                        live: false,
                    });
                }
            }
            let sources = container.env_from.iter();
            for selected in sources.filter_map(|source| source.secret_ref.as_ref()) {
                found.push(Reference {
                    secret: selected.name.clone(),
                    via: Via::EnvFrom,
                    place: place.as_str().into(),
                    keys: None,
                    live: false,
                });
            }
        }
        found.retain(|reference| !reference.secret.is_empty());
        found
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.containers_by_sort().next().is_none()
    }

    fn containers_by_sort(&self) -> impl Iterator<Item = (&'static str, &Container)> {
        let sorts = [
            ("init container", &self.init_containers),
            ("container", &self.containers),
            ("ephemeral container", &self.ephemeral_containers),
        ];
        sorts.into_iter().flat_map(|(what, containers)| {
            { containers.iter() }.map(move |container| (what, container))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn references(spec: Value) -> Vec<Reference> {
        serde_json::from_value::<PodSpec>(spec)
            .unwrap()
            .references()
    }

    #[test]
    fn each_form_of_reference_is_found() {
        let by_env = json!([{"name": "c", "env": [
            {"name": "PLAIN", "value": "tls"},
            {"name": "CA", "valueFrom": {"configMapKeyRef": {"name": "tls", "key": "k"}}},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "tls", "key": "tls.key"}}}]}]);
        let by_env_from = json!([{"name": "c", "envFrom": [
            {"configMapRef": {"name": "other"}}, {"prefix": "X_", "secretRef": {"name": "tls"}}]}]);
        let cases: [(Value, &[&str]); 11] = [
            (
                json!({"volumes": [{"name": "v", "secret": {"secretName": "tls"}}]}),
                &["volume v"],
            ),
            (
                json!({"volumes": [{"name": "v", "projected": {"sources": [
                    {"configMap": {"name": "tls"}},
                    {"secret": {"name": "tls", "items": [{"key": "tls.crt", "path": "p"}]}}]}}]}),
                &["projected volume v"],
            ),
            (
                json!({"volumes": [{"name": "v", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "tls"}}}]}),
                &["CSI volume v"],
            ),
            (json!({"containers": by_env}), &["env KEY of container c"]),
            (
                json!({"initContainers": by_env}),
                &["env KEY of init container c"],
            ),
            (
                json!({"ephemeralContainers": by_env}),
                &["env KEY of ephemeral container c"],
            ),
            (
                json!({"containers": by_env_from}),
                &["envFrom of container c"],
            ),
            (
                json!({"initContainers": by_env_from}),
                &["envFrom of init container c"],
            ),
            (
                json!({"volumes": [{"name": "v", "secret": {"secretName": "tls"}}],
                    "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": "tls.crt"}]}]}),
                &["volume v (subPath)"],
            ),
            (
                json!({"imagePullSecrets": [{"name": "tls"}], "volumes": [{"name": "v", "emptyDir": {}}]}),
                &[],
            ),
            (
                json!({"volumes": null, "containers": null, "initContainers": [{"name": "c", "env": null}]}),
                &[],
            ),
        ];
        for (spec, expected) in cases {
            let found = references(spec.clone());
            let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(shown, expected, "{spec}");
            assert!(
                found.iter().all(|reference| &*reference.secret == "tls"),
                "{spec}"
            );
        }
    }

    #[test]
    fn a_reference_concerns_only_the_keys_that_it_takes() {
        let changed = ChangedKeys::only(["tls.crt".into(), "tls.key".into()]);
        let same = ChangedKeys::all_but(["ca.crt".into()]);
        let volume = |items: Value| json!({"volumes": [{"name": "v", "secret": {"secretName": "tls", "items": items}}]});
        let env = |key: &str| {
            json!({"containers": [{"name": "c", "env": [
                {"name": "E", "valueFrom": {"secretKeyRef": {"name": "tls", "key": key}}}]}]})
        };
        for (spec, concerned) in [
            (volume(json!(null)), true),
            (volume(json!([])), true),
            (volume(json!([{"key": "tls.key", "path": "p"}])), true),
            (volume(json!([{"key": "ca.crt", "path": "p"}])), false),
            (
                volume(json!([{"key": "ca.crt", "path": "p"}, {"key": "tls.crt", "path": "q"}])),
                true,
            ),
            (env("tls.crt"), true),
            (env("ca.crt"), false),
        ] {
            let found = references(spec.clone());
            assert_eq!(found[0].takes(&changed), concerned, "{spec}");
            assert_eq!(found[0].takes(&same), concerned, "{spec}");
            assert!(
                found[0].takes(&ChangedKeys::any()),
                "unknown changes concern every reference: {spec}"
            );
            assert!(!found[0].takes(&ChangedKeys::only([])), "{spec}");
        }
    }

    #[test]
    fn only_whole_volumes_follow_a_changed_secret() {
        let spec = json!({
            "volumes": [
                {"name": "whole", "secret": {"secretName": "a"}},
                {"name": "part", "secret": {"secretName": "b"}},
                {"name": "expr", "projected": {"sources": [{"secret": {"name": "c"}}]}}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "d"}}], "volumeMounts": [
                {"name": "whole", "mountPath": "/a", "subPath": ""},
                {"name": "part", "mountPath": "/b", "subPath": "x"},
                {"name": "expr", "mountPath": "/c", "subPathExpr": "$(X)"}]}]});
        let live: Vec<(Box<str>, bool)> = references(spec)
            .into_iter()
            .map(|reference| (reference.secret, reference.live))
            .collect();
        let expected = [("a", true), ("b", false), ("c", false), ("d", false)];
        assert_eq!(live, expected.map(|(secret, live)| (secret.into(), live)));
    }
}

//! The metadata of an object as the watches on declarations read it; of a ConfigMap nothing else is read.
//!
//! Anybody of a namespace may write a megabyte of labels and managedFields there, and the client library would decode all
//! of it. Only what a [`super::Declaration`] is read from is kept, and decoding cannot fail (see
//! [`crate::secret::object::lenient`]).

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_core::{NamespaceResourceScope, ObjectMeta, Resource};
use serde::de::{DeserializeSeed as _, MapAccess};
use serde::{Deserialize, Deserializer};

use super::{MOST_OTHERS, decide};
use crate::secret::keys;
use crate::secret::object::lenient::{Fill, Shape};

/// A ConfigMap without its data.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// Identity, age, and the labels and annotations of a declaration; all other fields stay empty.
    pub metadata: ObjectMeta,
}

/// Labels that are read.
const LABELS: [&str; 2] = [keys::CERTIFICATE_LABEL, keys::STATE];
/// Annotations that are read and are no settings.
const ANNOTATIONS: [&str; 5] = [
    keys::CLASS,
    keys::SECRET,
    keys::STATE,
    keys::PROBLEMS,
    keys::LAST_ERROR,
];
/// Most annotations under our prefix that are kept although nothing reads them: two of them are not told of.
const MOST_KEPT: usize = MOST_OTHERS + 2;

impl Resource for Metadata {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    /// Nothing else is asked for.
    fn metadata_api() -> bool {
        true
    }

    fn kind((): &()) -> Cow<'_, str> {
        "ConfigMap".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "configmaps".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Self::default();
        Fill(&mut object).deserialize(deserializer)?;
        Ok(object)
    }
}

impl Shape for Metadata {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "metadata" => map.next_value_seed(Fill(&mut Fields(&mut self.metadata))),
            _ => ().member(key, map),
        }
    }
}

pub(super) struct Fields<'a>(pub(super) &'a mut ObjectMeta);

impl Shape for Fields<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let metadata = &mut *self.0;
        match key {
            "name" => map.next_value_seed(Fill(&mut metadata.name)),
            "namespace" => map.next_value_seed(Fill(&mut metadata.namespace)),
            "uid" => map.next_value_seed(Fill(&mut metadata.uid)),
            "resourceVersion" => map.next_value_seed(Fill(&mut metadata.resource_version)),
            "creationTimestamp" => map.next_value_seed(Fill(&mut metadata.creation_timestamp)),
            "deletionTimestamp" => map.next_value_seed(Fill(&mut metadata.deletion_timestamp)),
            "labels" => {
                let kept = metadata.labels.get_or_insert_default();
                map.next_value_seed(Fill(&mut Labels(kept)))
            }
            "annotations" => {
                let kept = metadata.annotations.get_or_insert_default();
                map.next_value_seed(Fill(&mut Annotations { kept, others: 0 }))
            }
            _ => ().member(key, map),
        }
    }
}

struct Labels<'a>(&'a mut BTreeMap<String, String>);

impl Shape for Labels<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        if LABELS.contains(&key) {
            take(self.0, key, map)
        } else {
            ().member(key, map)
        }
    }
}

struct Annotations<'a> {
    kept: &'a mut BTreeMap<String, String>,
    /// How many under our prefix were kept that nothing reads.
    others: usize,
}

impl Shape for Annotations<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        if ANNOTATIONS.contains(&key) || decide::is_setting(key) {
            return take(self.kept, key, map);
        }
        if self.others >= MOST_KEPT || !key.starts_with(keys::PREFIX) {
            return ().member(key, map);
        }
        self.others += 1;
        take(self.kept, key, map)
    }
}

/// Takes the value of a member, if it is a text.
fn take<'de, A: MapAccess<'de>>(
    kept: &mut BTreeMap<String, String>,
    key: &str,
    map: &mut A,
) -> Result<(), A::Error> {
    let mut value: Option<String> = None;
    map.next_value_seed(Fill(&mut value))?;
    kept.extend(value.map(|value| (key.to_owned(), value)));
    Ok(())
}

impl Shape for Option<Time> {
    fn text(&mut self, text: &str) {
        *self = text.parse().ok().map(Time);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::declaration::Declaration;

    #[test]
    fn of_a_large_config_map_what_declares_is_kept_and_little_else() {
        let many = |prefix: &str| -> BTreeMap<String, String> {
            let all = (0..20_000).map(|it| (format!("{prefix}a{it:05}"), "x".to_owned()));
            all.collect()
        };
        let text = |it: (&str, &str)| (it.0.to_owned(), it.1.to_owned());
        let mut labels = many("");
        labels.extend([(keys::CERTIFICATE_LABEL, "true"), (keys::STATE, "current")].map(text));
        let mut annotations = many("example.com/");
        annotations.extend(many(keys::PREFIX));
        let ours = [
            (keys::ISSUER, "le"),
            (keys::NAMES, "a.example"),
            (keys::SECRET, "tls"),
            (keys::DECLARED, "x"),
            (keys::STATE, "current; until then"),
            (keys::PROBLEMS, "one"),
            (keys::LAST_ERROR, "two"),
        ];
        annotations.extend(ours.map(text));
        let mut metadata = json!({
            "name": "a", "namespace": "shop", "uid": "u", "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels, "annotations": annotations,
        });
        let whole: ObjectMeta = from_value(metadata.clone()).unwrap();
        // Not what the client library decodes.
        metadata["managedFields"] = json!("unread");
        metadata["ownerReferences"] = json!("unread");
        let read = |metadata: Value| -> ObjectMeta {
            let object = json!({"kind": "PartialObjectMetadata", "metadata": metadata});
            from_value::<Metadata>(object).unwrap().metadata
        };
        let thin = read(metadata.clone());
        let declared = |metadata: &ObjectMeta| Declaration::of_config_map(metadata, "default");
        assert!(declared(&thin).is_some());
        assert_eq!(declared(&thin), declared(&whole));
        assert_eq!(thin.namespace.as_deref(), Some("shop"));
        let kept = [&thin.labels, &thin.annotations].map(|it| it.as_ref().unwrap().len());
        assert!(kept.iter().sum::<usize>() < 50, "{kept:?}");
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(declared(&read(metadata)), None);
    }
}

//! The only patch that changes a Secret.
//!
//! A JSON merge patch (RFC 7386) with uid and resourceVersion in it: it never creates, changes only the keys that it
//! names, and is refused if anything changed since the Secret was read (409 for the version, 422 for the uid). Debug
//! shows no value.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use crate::secret::object::full::Data;
use crate::secret::object::head::Head;

/// Body of the patch; pass it to `kube::Api::patch` as `Patch::Merge(&patch)`.
pub struct GuardedPatch<'a> {
    uid: &'a str,
    resource_version: &'a str,
    annotations: &'a [(&'a str, Option<String>)],
    data: &'a Data,
}

/// A patch of the Secret that was read as `head`: sets annotations (`None` removes one) and keys of the data, and
/// leaves everything else as it is.
#[must_use]
pub fn guarded_patch<'a>(
    head: &'a Head,
    annotations: &'a [(&'a str, Option<String>)],
    data: &'a Data,
) -> GuardedPatch<'a> {
    let (uid, resource_version) = (head.uid(), head.resource_version());
    GuardedPatch {
        uid,
        resource_version,
        annotations,
        data,
    }
}

impl fmt::Debug for GuardedPatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let annotations = self.annotations.iter().map(|(key, _)| *key);
        let keys: Vec<&str> = annotations
            .chain(self.data.keys().map(String::as_str))
            .collect();
        f.debug_struct("GuardedPatch")
            .field("keys", &keys)
            .finish_non_exhaustive()
    }
}

impl Serialize for GuardedPatch<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut patch = serializer.serialize_struct("Patch", 2)?;
        patch.serialize_field("metadata", &Metadata(self))?;
        if self.data.is_empty() {
            patch.skip_field("data")?;
        } else {
            patch.serialize_field("data", &Base64(self.data))?;
        }
        patch.end()
    }
}

struct Metadata<'a>(&'a GuardedPatch<'a>);

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let annotations: BTreeMap<_, _> = self
            .0
            .annotations
            .iter()
            .map(|(key, value)| (key, value))
            .collect();
        let mut metadata = serializer.serialize_struct("Metadata", 3)?;
        metadata.serialize_field("uid", self.0.uid)?;
        metadata.serialize_field("resourceVersion", self.0.resource_version)?;
        if annotations.is_empty() {
            metadata.skip_field("annotations")?;
        } else {
            metadata.serialize_field("annotations", &annotations)?;
        }
        metadata.end()
    }
}

struct Base64<'a>(&'a Data);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut data = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            let text = Zeroizing::new(STANDARD.encode(value.as_slice()));
            data.serialize_entry(key, text.as_str())?;
        }
        data.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;
    use crate::secret::object::full::FullSecret;

    #[test]
    fn names_only_what_changes_and_is_guarded() {
        let secret: FullSecret =
            from_value(json!({"metadata": {"name": "a", "uid": "u", "resourceVersion": "7"}}))
                .unwrap();
        let data = Data::from([("tls.key".to_owned(), Zeroizing::new(b"canary".to_vec()))]);
        let annotations = [("a/x", Some("1".to_owned())), ("a/y", None)];
        let patch = guarded_patch(&secret.head, &annotations, &data);
        assert_eq!(
            to_value(&patch).unwrap(),
            json!({
                "metadata": {"uid": "u", "resourceVersion": "7", "annotations": {"a/x": "1", "a/y": Value::Null}},
                "data": {"tls.key": "Y2FuYXJ5"},
            })
        );
        assert_eq!(
            format!("{patch:?}"),
            r#"GuardedPatch { keys: ["a/x", "a/y", "tls.key"], .. }"#
        );

        let none = Data::new();
        let empty = to_value(guarded_patch(&secret.head, &[], &none)).unwrap();
        assert_eq!(
            empty,
            json!({"metadata": {"uid": "u", "resourceVersion": "7"}})
        );
    }
}

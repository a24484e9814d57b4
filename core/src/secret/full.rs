//! A single Secret as a renewal or a rollout reads it, with all of its data.
//!
//! Input is JSON from the API server. Data is decoded into buffers that clear themselves; Debug shows namespace and
//! name only, and decoding cannot fail (see [`super::lenient`]). It also keeps the other writers of the Secret, to name
//! the other owner of a conflict.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube_core::Resource;
use kube_core::{NamespaceResourceScope, ObjectMeta};
use serde::de::{DeserializeSeed as _, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::head::Head;
use super::keys;
use super::lenient::{Fill, Shape};
use super::parts;
use super::place::Place;
use super::thin::ThinSecret;
use crate::time::UnixTime;

/// Data of a Secret, by key.
pub type Data = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// A Secret with its data.
#[derive(Clone, Default)]
pub struct FullSecret {
    /// Identity and annotations.
    pub head: Head,
    /// Its `type`.
    pub kind: String,
    /// Whether the API server refuses changes of its data.
    pub immutable: bool,
    /// Who has written which part of it (managedFields).
    pub managers: Vec<Manager>,
    /// Who owns it (ownerReferences).
    pub owners: Vec<Owner>,
    /// Decoded values; a value that is not base64 is left out.
    pub data: Data,
}

/// One entry of managedFields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manager {
    /// Field manager, for example `helm` or `kustomize-controller`.
    pub name: String,
    /// `Apply` or `Update`.
    pub operation: String,
    /// When it last changed what it manages, by the API server's clock.
    pub time: Option<UnixTime>,
    /// Whether it owns any key of the data.
    pub owns_data: bool,
    /// Whether it owns the annotation by which cert-manager names its Certificate.
    pub names_certificate: bool,
}

/// Most bytes of data that a renewal keeps: a chain of about a dozen certificates, or a bundle, and its other forms.
const MOST_DATA: usize = 256 * 1024;
/// Most field managers that a renewal keeps.
const MOST_MANAGERS: usize = 100;

/// Kinds whose controllers write the Secrets that they own.
const KEEPERS: [&str; 3] = ["Certificate", "ExternalSecret", "SealedSecret"];
/// The annotation by which cert-manager names its Certificate, as fieldsV1 spells it.
const CERTIFICATE_NAME: &str = "f:cert-manager.io/certificate-name";

/// One of the ownerReferences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// For example `Certificate` or `SealedSecret`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl FullSecret {
    /// The data keys of certificate and private key.
    #[must_use]
    pub fn place(&self) -> Place {
        Place::of(&self.kind, self.head.annotation(keys::OUTPUTS))
    }

    /// The object for which another program writes this Secret; writing it too would be a conflict.
    ///
    /// An owner reference says so for External Secrets, Sealed Secrets and cert-manager. cert-manager sets none by
    /// default: then its field manager owns data and the annotation with the Certificate's name. The annotation alone,
    /// left on a Secret that was handed over, means nothing.
    #[must_use]
    pub fn kept_for(&self) -> Option<String> {
        let owner = self
            .owners
            .iter()
            .find(|owner| KEEPERS.contains(&&*owner.kind))
            .map(|owner| format!("{} {}", owner.kind, owner.name));
        let applied = self.managers.iter().any(|manager| {
            manager.name.starts_with("cert-manager")
                && manager.owns_data
                && manager.names_certificate
        });
        owner.or_else(|| applied.then(|| "a Certificate of cert-manager".to_owned()))
    }

    /// Drops what a renewal does not need: it keeps the Secret while the CA works, and dozens run at a time.
    /// Certificate and key are kept, then the data keys in `needed`, in this order.
    pub fn lighten(&mut self, needed: &[&str]) {
        let Place {
            certificate, key, ..
        } = self.place();
        let mut names: Vec<&str> = vec![&*certificate, &*key];
        names.extend_from_slice(needed);
        let (mut kept, mut room) = (Data::new(), MOST_DATA);
        for name in names {
            if let Some((name, value)) = self.data.remove_entry(name)
                && value.len() <= room
            {
                room -= value.len();
                kept.insert(name, value);
            }
        }
        self.data = kept;
        { &mut self.managers }.retain(|manager| manager.owns_data || manager.names_certificate);
        self.managers.truncate(MOST_MANAGERS);
    }

    /// When its data was last written, by the API server's clock; `None` if managedFields do not say.
    ///
    /// A manager's entry gets a new time whenever a value that it owns changes (Kubernetes, "Server-Side Apply: field
    /// management"), so that the latest entry that owns data is no earlier than the leaf.
    #[must_use]
    pub fn written(&self) -> Option<UnixTime> {
        self.managers
            .iter()
            .filter(|manager| manager.owns_data)
            .filter_map(|manager| manager.time)
            .max()
    }

    /// Bytes of certificate and private key; empty where one is missing.
    #[must_use]
    pub fn pair(&self) -> (&[u8], &[u8]) {
        let Place {
            certificate, key, ..
        } = self.place();
        let value = |key: &str| self.data.get(key).map_or(&[][..], |value| value.as_slice());
        (value(&certificate), value(&key))
    }

    /// A digest of its CA certificates, where they can be read; see [`parts::ca_digest`].
    #[must_use]
    pub fn ca(&self) -> Option<u32> {
        let Place {
            certificate, key, ..
        } = self.place();
        let value = self.data.get(parts::CA_KEY);
        let value = value.filter(|_| ![&*certificate, &*key].contains(&parts::CA_KEY));
        value.and_then(|bytes| parts::ca_digest(bytes))
    }
}

impl fmt::Debug for FullSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.head.place())
    }
}

impl Resource for FullSecret {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        ThinSecret::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        ThinSecret::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        ThinSecret::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        ThinSecret::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.head.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.head.metadata
    }
}

impl<'de> Deserialize<'de> for FullSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut secret = Self::default();
        Fill(&mut secret).deserialize(deserializer)?;
        Ok(secret)
    }
}

impl Shape for FullSecret {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "metadata" => map.next_value_seed(Fill(&mut Metadata(self))),
            "type" => map.next_value_seed(Fill(&mut self.kind)),
            "immutable" => map.next_value_seed(Fill(&mut self.immutable)),
            "data" => map.next_value_seed(Fill(&mut self.data)),
            _ => ().member(key, map),
        }
    }
}

struct Metadata<'a>(&'a mut FullSecret);

impl Shape for Metadata<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "managedFields" => map.next_value_seed(Fill(&mut self.0.managers)),
            "ownerReferences" => map.next_value_seed(Fill(&mut self.0.owners)),
            _ => self.0.head.member(key, map),
        }
    }
}

impl Shape for Data {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let mut value = Value(None);
        map.next_value_seed(Fill(&mut value))?;
        if let Some(value) = value.0 {
            self.insert(key.to_owned(), value);
        }
        Ok(())
    }
}

struct Value(Option<Zeroizing<Vec<u8>>>);

impl Shape for Value {
    fn text(&mut self, text: &str) {
        self.0 = STANDARD.decode(text).ok().map(Zeroizing::new);
    }
}

impl<T: Shape + Default> Shape for Vec<T> {
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<Option<()>, A::Error> {
        let mut item = T::default();
        let found = list.next_element_seed(Fill(&mut item))?;
        self.extend(found.map(|()| item));
        Ok(found)
    }
}

impl Shape for String {
    fn text(&mut self, text: &str) {
        text.clone_into(self);
    }
}

impl Shape for Manager {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "manager" => map.next_value_seed(Fill(&mut self.name)),
            "operation" => map.next_value_seed(Fill(&mut self.operation)),
            "time" => map.next_value_seed(Fill(&mut self.time)),
            "fieldsV1" => map.next_value_seed(Fill(&mut Fields(self))),
            _ => ().member(key, map),
        }
    }
}

impl Shape for Option<UnixTime> {
    fn text(&mut self, text: &str) {
        *self = text.parse().ok();
    }
}

/// The levels of fieldsV1 that matter: `f:data`, and `f:metadata`, `f:annotations` down to one annotation.
struct Fields<'a>(&'a mut Manager);

impl Shape for Fields<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "f:metadata" | "f:annotations" => return map.next_value_seed(Fill(self)),
            "f:data" => self.0.owns_data = true,
            CERTIFICATE_NAME => self.0.names_certificate = true,
            _ => {}
        }
        ().member(key, map)
    }
}

impl Shape for Owner {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "kind" => map.next_value_seed(Fill(&mut self.kind)),
            "name" => map.next_value_seed(Fill(&mut self.name)),
            _ => ().member(key, map),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn who_really_keeps_a_secret_is_known_from_what_is_left_over() {
        let entry = |manager: &str, fields: Value| json!([{"manager": manager, "operation": "Apply", "fieldsV1": fields}]);
        let named = json!({"f:annotations": {"f:cert-manager.io/certificate-name": {}}});
        let both = json!({"f:data": {"f:tls.crt": {}}, "f:metadata": named});
        let issuing = "cert-manager-certificates-issuing";
        for (metadata, expected) in [
            (json!({}), None),
            (
                json!({"ownerReferences": [{"kind": "SealedSecret", "name": "shop"}]}),
                Some("SealedSecret shop"),
            ),
            (
                json!({"ownerReferences": [{"kind": "Release", "name": "shop"}]}),
                None,
            ),
            (
                json!({"managedFields": entry(issuing, both.clone())}),
                Some("a Certificate of cert-manager"),
            ),
            // Handed over: the data is as cert-manager left it, the annotation is gone.
            (
                json!({"managedFields": entry(issuing, json!({"f:data": {}}))}),
                None,
            ),
            // Copied with its annotations by another program.
            (json!({"managedFields": entry("kubectl", both)}), None),
            (
                json!({"managedFields": entry(issuing, json!({"f:metadata": named}))}),
                None,
            ),
        ] {
            let secret: FullSecret = from_value(json!({"metadata": metadata.clone()})).unwrap();
            assert_eq!(secret.kept_for().as_deref(), expected, "{metadata}");
        }
    }
}

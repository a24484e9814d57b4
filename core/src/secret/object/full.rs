//! A single Secret as a renewal or a rollout reads it, with all of its data.
//!
//! Input is JSON from the API server. Data is decoded into buffers that clear themselves; Debug shows namespace and
//! name only, and decoding cannot fail (see [`super::lenient`]). It also keeps the other writers of the Secret, to name
//! the other owner of a conflict.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed as _, MapAccess};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::head::{Head, is_a_secret};
use super::keepers::{self, Keeper, Manager, Owner};
use super::lenient::{Fill, Shape};
use crate::secret::data::data_keys::{self, DataKeys};
use crate::secret::{keys, parts};
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
    /// Who has written its data (managedFields), as far as a hundred tell.
    pub managers: Vec<Manager>,
    /// Which of its owners (ownerReferences) write it, the first hundred.
    pub owners: Vec<Owner>,
    /// Decoded values; a value that is not base64 is left out. Of keys that nothing names, only the first
    /// [`MOST_UNNAMED`].
    pub data: Data,
}

/// A Secret without what a renewal does not need, which is what it keeps while the CA works: only
/// [`FullSecret::lighten`] makes one.
pub struct LightSecret(FullSecret);

impl Deref for LightSecret {
    type Target = FullSecret;

    fn deref(&self) -> &FullSecret {
        &self.0
    }
}

/// Most keys of the data that are read of a Secret although neither Kubernetes nor an annotation gives them a meaning. Its
/// mebibyte counts values only, so it may have more than a hundred thousand keys, at a hundred bytes each in memory. What
/// is not read stays on the Secret: a write names the keys that it changes.
const MOST_UNNAMED: usize = 1_000;
/// Most bytes of data that a renewal keeps: a chain of about a dozen certificates, or a bundle, and its other forms.
const MOST_DATA: usize = 256 * 1024;

impl FullSecret {
    /// The data keys of certificate and private key.
    #[must_use]
    pub fn place(&self) -> DataKeys {
        DataKeys::of(&self.kind, self.head.annotation(keys::OUTPUTS))
    }

    /// The object for which another program writes this Secret; writing it too would be a conflict.
    #[must_use]
    pub fn kept_for(&self) -> Option<Keeper> {
        keepers::of(&self.owners, &self.managers)
    }

    /// Drops what a renewal does not need: dozens run at a time.
    /// Certificate and key are kept, then the data keys in `needed`, in this order.
    #[must_use]
    pub fn lighten(mut self, needed: &[&str]) -> LightSecret {
        let DataKeys {
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
        // Their texts may be long.
        self.owners = self
            .owners
            .iter()
            .find_map(Owner::of_keeper)
            .into_iter()
            .collect();
        LightSecret(self)
    }

    /// The data keys that have a meaning for us: those of every TLS Secret, and those that its annotations name.
    fn named(&self) -> BTreeSet<String> {
        let annotation = |key| self.head.annotation(key);
        let outputs = annotation(keys::OUTPUTS).into_iter();
        let password = annotation(keys::PKCS12_PASSWORD_KEY).map(str::trim);
        ["tls.crt", "tls.key", parts::CA_KEY]
            .into_iter()
            .chain(outputs.flat_map(data_keys::named))
            .chain(password)
            .map(str::to_owned)
            .collect()
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
        let DataKeys {
            certificate, key, ..
        } = self.place();
        let value = |key: &str| self.data.get(key).map_or(&[][..], |value| value.as_slice());
        (value(&certificate), value(&key))
    }

    /// A digest of its CA certificates, where they can be read; see [`parts::ca_digest`].
    #[must_use]
    pub fn ca(&self) -> Option<u32> {
        let DataKeys {
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

is_a_secret!(FullSecret, head);

impl<'de> Deserialize<'de> for FullSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut secret = Self::default();
        Fill(&mut secret).deserialize(deserializer)?;
        secret.head.keeper = secret.kept_for();
        Ok(secret)
    }
}

impl Shape for FullSecret {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "metadata" => map.next_value_seed(Fill(&mut Metadata(self))),
            "type" => map.next_value_seed(Fill(&mut self.kind)),
            "immutable" => map.next_value_seed(Fill(&mut self.head.immutable)),
            // An API server sends the annotations before.
            "data" => {
                let named = self.named();
                map.next_value_seed(Fill(&mut Entries {
                    data: &mut self.data,
                    named,
                    unnamed: 0,
                }))
            }
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

/// The data while it is read.
struct Entries<'a> {
    data: &'a mut Data,
    /// The keys that are read whatever comes before them.
    named: BTreeSet<String>,
    /// How many others were read.
    unnamed: usize,
}

impl Shape for Entries<'_> {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let is_named = self.named.contains(key);
        if !is_named && self.unnamed >= MOST_UNNAMED {
            return ().member(key, map);
        }
        let mut value = Value(None);
        map.next_value_seed(Fill(&mut value))?;
        if let Some(value) = value.0 {
            self.unnamed += usize::from(!is_named);
            self.data.insert(key.to_owned(), value);
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

#[cfg(test)]
mod tests {
    use crate::secret::object::thin::ThinSecret;
    use serde_json::{Value, from_str, from_value, json};

    use super::*;

    #[test]
    fn a_renewal_keeps_of_a_secret_what_it_needs_and_no_more_than_a_quarter_of_a_megabyte() {
        let value = |bytes: usize| STANDARD.encode(vec![b'x'; bytes]);
        let manager =
            |fields: Value| json!({"manager": "x", "operation": "Update", "fieldsV1": fields});
        let mut managers = vec![manager(json!({"f:metadata": {}}))];
        managers.extend(vec![manager(json!({"f:data": {}})); 2 * keepers::MOST]);
        let long = "x".repeat(10_000);
        let owner = |kind: &str| json!({"apiVersion": format!("external-secrets.io/{long}"), "kind": kind, "name": long, "uid": long});
        let mut owners = vec![owner("Other"); 100];
        owners.extend([owner("ExternalSecret"), owner("ExternalSecret")]);
        let secret: FullSecret = from_value(json!({
            "metadata": {"name": "a", "namespace": "b", "managedFields": managers, "ownerReferences": owners},
            "type": "kubernetes.io/tls",
            "data": {
                "tls.crt": value(1_000), "tls.key": value(100), "pass": value(10), "bulk": value(1 << 20),
                "large": value(MOST_DATA),
            },
        }))
        .unwrap();
        let light = secret.lighten(&["pass", "large"]);
        let kept: Vec<&str> = light.data.keys().map(String::as_str).collect();
        assert_eq!(kept, ["pass", "tls.crt", "tls.key"]);
        assert_eq!(light.managers.len(), keepers::MOST);
        let owners = &light.owners;
        let texts = owners
            .iter()
            .map(|it| it.api_version.len() + it.kind.len() + it.name.len() + it.uid.len());
        assert!(texts.sum::<usize>() < 1_000, "{owners:?}");
        assert_eq!(light.kept_for().unwrap().to_string(), "ExternalSecret");
    }

    #[test]
    fn of_very_many_owners_and_field_managers_those_that_matter_are_kept_and_a_hundred_at_most() {
        let owner = |kind: &str, number: usize| json!({"apiVersion": "bitnami.com/v1", "kind": kind, "name": "a", "uid": number.to_string()});
        let of_status = json!({"operation": "Apply", "fieldsV1": {"f:status": {}}});
        let of_data =
            |at: String| json!({"operation": "Apply", "time": at, "fieldsV1": {"f:data": {}}});
        let read = |owners: Vec<Value>, managers: Vec<Value>| -> FullSecret {
            let metadata = json!({"name": "a", "namespace": "b", "ownerReferences": owners, "managedFields": managers});
            from_value(json!({"metadata": metadata})).unwrap()
        };
        let mut owners: Vec<Value> = (0..20_000).map(|it| owner("Other", it)).collect();
        owners.extend([owner("SealedSecret", 20_000), owner("Other", 20_001)]);
        let mut managers = vec![of_status; 20_000];
        managers.push(of_data("2026-01-01T00:00:00Z".into()));
        let secret = read(owners, managers);
        assert_eq!((secret.owners.len(), secret.managers.len()), (1, 1));
        assert!(secret.owners.capacity() + secret.managers.capacity() < 100);
        assert_eq!(secret.kept_for().unwrap().to_string(), "SealedSecret a");
        let owners = (0..20_000).map(|it| owner("SealedSecret", it)).collect();
        // The latest is neither the first nor the last.
        let minute = |it: usize| if it == 15_000 { 59 } else { it % 50 };
        let managers =
            (0..20_000).map(|it| of_data(format!("2026-01-01T00:{:02}:00Z", minute(it))));
        let secret = read(owners, managers.collect());
        let kept = (secret.owners.len(), secret.managers.len());
        assert_eq!(kept, (keepers::MOST, keepers::MOST));
        assert_eq!(secret.written(), "2026-01-01T00:59:00Z".parse().ok());
    }

    #[test]
    fn of_very_many_data_keys_those_with_a_meaning_are_read_and_a_thousand_others() {
        let many: Vec<String> = (0..20_000).map(|it| format!(r#""a{it}":"""#)).collect();
        let named = [
            "ca.crt", "pass", "site.key", "site.pem", "tls.crt", "tls.key",
        ];
        let values = named.map(|key| format!(r#""{key}":"QQ==""#));
        let json = format!(
            r#"{{"metadata":{{"name":"a","namespace":"b","annotations":{{
            "cert-renew.io/outputs":"site.pem=fullchain,site.key=key",
            "cert-renew.io/pkcs12-password-key":" pass "}}}},
            "data":{{{},{}}},"type":"Opaque"}}"#,
            many.join(","),
            values.join(","),
        );
        let secret: FullSecret = from_str(&json).unwrap();
        assert_eq!(secret.data.len(), MOST_UNNAMED + named.len());
        for key in named {
            assert_eq!(secret.data[key].as_slice(), b"A", "{key}");
        }
        assert_eq!(secret.pair(), (&b"A"[..], &b"A"[..]));
    }

    #[test]
    fn who_really_keeps_a_secret_is_known_from_what_is_left_over() {
        let entry = |manager: &str, fields: Value| json!([{"manager": manager, "operation": "Apply", "fieldsV1": fields}]);
        let named = json!({"f:annotations": {"f:cert-manager.io/certificate-name": {}}});
        let both = json!({"f:data": {"f:tls.crt": {}}, "f:metadata": named});
        let issuing = "cert-manager-certificates-issuing";
        let owner =
            |group: &str, kind: &str| json!({"apiVersion": group, "kind": kind, "name": "shop"});
        let keeper = |found: Option<Keeper>| found.map(|it| it.to_string());
        for (metadata, expected) in [
            (json!({}), None),
            (
                json!({"ownerReferences": [owner("bitnami.com/v1alpha1", "SealedSecret")]}),
                Some("SealedSecret shop"),
            ),
            (
                json!({"ownerReferences": [owner("external-secrets.io/v1", "ExternalSecret")]}),
                Some("ExternalSecret shop"),
            ),
            // Of somebody else, with a name that others have too.
            (
                json!({"ownerReferences": [owner("example.com/v1", "Certificate")]}),
                None,
            ),
            (
                json!({"ownerReferences": [owner("example.com/v1", "Release")]}),
                None,
            ),
            // Anybody who may edit the Secret can write any text there.
            (
                json!({"ownerReferences": [{"apiVersion": "bitnami.com/v1alpha1", "kind": "SealedSecret", "name": "\u{1b}[2Jgone"}]}),
                Some("SealedSecret"),
            ),
            (
                json!({"ownerReferences": [{"apiVersion": "bitnami.com/v1alpha1", "kind": "SealedSecret", "name": "x".repeat(254)}]}),
                Some("SealedSecret"),
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
            let mut metadata = metadata;
            metadata["annotations"] = json!({"cert-manager.io/certificate-name": "shop"});
            let secret = json!({"metadata": metadata, "immutable": expected.is_some()});
            let full: FullSecret = from_value(secret.clone()).unwrap();
            let thin: ThinSecret = from_value(secret).unwrap();
            assert_eq!(keeper(full.kept_for()).as_deref(), expected, "{metadata}");
            for head in [full.head, thin.head] {
                assert_eq!(keeper(head.keeper).as_deref(), expected, "{metadata}");
                assert_eq!(head.immutable, expected.is_some());
            }
        }
    }
}

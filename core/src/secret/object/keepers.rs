//! Which Secrets another program writes: by their owners, and by their field managers.
//!
//! An owner reference says so for External Secrets, Sealed Secrets and cert-manager. cert-manager sets none by default:
//! then its field manager owns data and the annotation with the Certificate's name. The annotation alone, left on a
//! Secret that was handed over, means nothing.

use serde::de::{MapAccess, SeqAccess};

use super::lenient::{Fill, Shape};
use crate::time::UnixTime;

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

/// Kinds whose controllers write the Secrets that they own.
const KEEPERS: [&str; 3] = ["Certificate", "ExternalSecret", "SealedSecret"];
/// The annotation by which cert-manager names its Certificate.
pub(in crate::secret) const CERTIFICATE_NAME: &str = "cert-manager.io/certificate-name";
/// The same in fieldsV1.
const FIELD: &str = "f:cert-manager.io/certificate-name";

/// One of the ownerReferences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// For example `Certificate` or `SealedSecret`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// The object for which another program writes a Secret with these owners and field managers.
#[must_use]
pub(in crate::secret) fn of(owners: &[Owner], managers: &[Manager]) -> Option<Box<str>> {
    let mut owners = owners.iter();
    let owner = owners.find(|owner| KEEPERS.contains(&&*owner.kind));
    let owner = owner.map(|owner| format!("{} {}", owner.kind, owner.name).into());
    let applied = managers.iter().any(|manager| {
        manager.name.starts_with("cert-manager") && manager.owns_data && manager.names_certificate
    });
    owner.or_else(|| applied.then(|| "a Certificate of cert-manager".into()))
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
            FIELD => self.0.names_certificate = true,
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

//! Which Secrets another program writes: by their owners, and by their field managers.
//!
//! An owner reference says so for External Secrets, Sealed Secrets and cert-manager. cert-manager sets none by default:
//! then its field manager owns data and the annotation with the Certificate's name. The annotation alone, left on a
//! Secret that was handed over, means nothing.

use std::fmt;

use serde::de::{MapAccess, SeqAccess};

use super::lenient::{Fill, Shape};
use crate::secret::keys;
use crate::secret::settings::values::EXTERNAL;
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

/// Kinds whose controllers write the Secrets that they own, each with its API group.
const KEEPERS: [(&str, &str); 3] = [
    ("cert-manager.io", "Certificate"),
    ("external-secrets.io", "ExternalSecret"),
    ("bitnami.com", "SealedSecret"),
];
/// Most owners, and most field managers, that are kept of a Secret. A megabyte holds tens of thousands of them, each of
/// which would take a hundred bytes.
pub(super) const MOST: usize = 100;
/// Longest name of an object (Kubernetes, "Object Names and IDs": a DNS subdomain).
const LONGEST_NAME: usize = 253;
/// The annotation by which cert-manager names its Certificate.
pub const CERTIFICATE_NAME: &str = "cert-manager.io/certificate-name";
/// The same in fieldsV1.
const FIELD: &str = "f:cert-manager.io/certificate-name";

/// What another program writes a Secret for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// This object owns it, and its controller writes it.
    Owner(Box<str>),
    /// cert-manager has written it, and its annotation names a Certificate.
    CertManager,
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(owner) => f.write_str(owner),
            Self::CertManager => f.write_str("a Certificate of cert-manager"),
        }
    }
}

impl Keeper {
    /// What its owner may do, in a sentence: the one that every place tells.
    #[must_use]
    pub fn remedy(&self) -> String {
        let ending = match self {
            Self::Owner(owner) => format!("end what writes it first: {owner} owns it"),
            Self::CertManager => format!(
                "end what writes it first: delete the Certificate, then the annotation {CERTIFICATE_NAME} (cert-renew adopt \
                 does both)"
            ),
        };
        format!(
            "expected no other program that writes this Secret: annotate it with {}: {EXTERNAL} to have only its workloads \
             restarted, or {ending}",
            keys::ISSUER
        )
    }
}

/// One of the ownerReferences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// With its group, for example `cert-manager.io/v1`.
    pub api_version: String,
    /// For example `Certificate` or `SealedSecret`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Tells it from a later object of the same name.
    pub uid: String,
}

impl Owner {
    /// Whether its controller writes the Secrets that it owns.
    fn is_keeper(&self) -> bool {
        KEEPERS.contains(&(self.group(), &self.kind))
    }

    fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(it, _)| it)
    }

    /// The same without texts of any length, if its controller writes the Secrets that it owns.
    pub(super) fn of_keeper(&self) -> Option<Self> {
        self.is_keeper().then(|| Self {
            api_version: format!("{}/", self.group()),
            kind: self.kind.clone(),
            name: { Some(&self.name) }
                .filter(|it| is_name(it))
                .cloned()
                .unwrap_or_default(),
            uid: String::new(),
        })
    }
}

/// The object for which another program writes a Secret with these owners and field managers.
#[must_use]
pub(in crate::secret) fn of(owners: &[Owner], managers: &[Manager]) -> Option<Keeper> {
    let owner = owners.iter().find(|owner| owner.is_keeper());
    let owner = owner.map(|owner| {
        Keeper::Owner(match &*owner.name {
            name if is_name(name) => format!("{} {name}", owner.kind).into(),
            _ => owner.kind.as_str().into(),
        })
    });
    let applied = managers.iter().any(|manager| {
        manager.name.starts_with("cert-manager") && manager.owns_data && manager.names_certificate
    });
    owner.or_else(|| applied.then_some(Keeper::CertManager))
}

/// Whether an object of these kinds can have this name: the API server accepts any text in an owner reference.
fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(inner)
}

impl<T: Shape + Default> Shape for Vec<T> {
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<Option<()>, A::Error> {
        let mut item = T::default();
        let found = list.next_element_seed(Fill(&mut item))?;
        if found.is_some() {
            item.add_to(self);
        }
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

    /// Only if it owns something that matters. Of too many, the last one kept is the latest, so that the latest of all is
    /// among them.
    fn add_to(self, list: &mut Vec<Self>) {
        if !self.owns_data && !self.names_certificate {
            return;
        }
        match list.get_mut(MOST - 1) {
            None => list.push(self),
            Some(last) if last.time < self.time => *last = self,
            Some(_) => {}
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
            "apiVersion" => map.next_value_seed(Fill(&mut self.api_version)),
            "kind" => map.next_value_seed(Fill(&mut self.kind)),
            "name" => map.next_value_seed(Fill(&mut self.name)),
            "uid" => map.next_value_seed(Fill(&mut self.uid)),
            _ => ().member(key, map),
        }
    }

    /// Only if its controller writes the Secrets that it owns.
    fn add_to(self, list: &mut Vec<Self>) {
        if self.is_keeper() && list.len() < MOST {
            list.push(self);
        }
    }
}

//! Objects that declare a certificate, and what follows from them for the Secret: a pure function from the declarations
//! that name a Secret, the Secret and the config to the one write that it needs, or to what is wrong.
//!
//! ```text
//! ConfigMap ──► Declaration ───────────┐
//! Ingress ──► one for each of its TLS  ├─► wanted ──► decide ──► made, changed, or left alone with a reason
//! Secret as it is now ─────────────────┘
//! ```
//! A declaration owns no data. Its settings are copied onto the Secret, where everything else reads them, so the rest of
//! cert-renew does not know of declarations. What a declaration asks for is judged as the Secret would be that it asks
//! for: a name that `allow` does not grant, or a value that cannot be read, changes nothing.

pub mod decide;
pub mod found;
pub mod ingress;
pub mod mirror;
pub mod object;
pub mod register;
pub mod room;
pub mod settling;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kube_core::ObjectMeta;

use crate::secret::SecretRef;
use crate::secret::declared::is_object_name;
use crate::secret::keys;
use crate::secret::settings::DEFAULT_CLASS;
use crate::text::hash::hash;
use crate::text::{holds_private_key, shown};
use crate::time::UnixTime;

/// Most declarations of one Secret that count, the oldest first: each is read before anything is written.
pub const MOST_OF_SECRET: usize = 32;

/// Most annotations under our prefix that are kept of a declaration although they are no settings, to be told of.
const MOST_OTHERS: usize = 32;

/// A kind of object that declares certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A ConfigMap with the label [`keys::CERTIFICATE_LABEL`].
    ConfigMap,
    /// An Ingress with the annotation [`keys::ISSUER`]: it declares each Secret that its TLS entries name.
    Ingress,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::ConfigMap, Self::Ingress];

    /// Its name, as manifests have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Ingress => "Ingress",
        }
    }

    /// Whether it says first of all where requests go. Nothing is written on such an object, and what changes of its hosts
    /// is waited for until it rests.
    #[must_use]
    pub fn is_route(self) -> bool {
        self == Self::Ingress
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An object that declares certificates, within its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl Source {
    /// Reads what Display has written.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once('/')?;
        let kind = Kind::ALL.into_iter().find(|it| it.as_str() == kind)?;
        is_object_name(name).then(|| Self {
            kind,
            name: name.into(),
        })
    }
}

/// One object that declares the certificate of one Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// The object.
    pub source: Source,
    /// Distinguishes it from a later object of the same name.
    pub uid: String,
    /// Its version, for a guarded patch.
    pub resource_version: String,
    /// When it was made: the oldest is preferred.
    pub created: UnixTime,
    /// The name of the Secret that it declares.
    pub secret: Arc<str>,
    /// The settings that it has, by annotation.
    pub settings: BTreeMap<String, String>,
    /// Why it cannot be followed, whatever the Secret says.
    pub fault: Option<String>,
    /// What it says in vain, whatever others declare.
    pub remarks: Vec<String>,
    /// What stands on it for people; of a route, nothing.
    pub told: mirror::Mirror,
}

impl Declaration {
    /// Reads a ConfigMap by its metadata; `None` if it declares nothing, is about to go, or is for an installation of
    /// another class.
    #[must_use]
    pub fn of_config_map(metadata: &ObjectMeta, class: &str) -> Option<Self> {
        let labels = metadata.labels.as_ref()?;
        let is_meant = labels.get(keys::CERTIFICATE_LABEL).map(String::as_str) == Some("true");
        let name = metadata.name.as_deref()?;
        if !is_meant || metadata.deletion_timestamp.is_some() {
            return None;
        }
        let none = BTreeMap::new();
        let annotations = metadata.annotations.as_ref().unwrap_or(&none);
        if !is_for(class, annotations) {
            return None;
        }
        let settings = settings_of(annotations, &[keys::SECRET]);
        let secret = annotations.get(keys::SECRET).map_or(name, |it| it.trim());
        let fault = if !is_object_name(secret) {
            let (key, secret) = (keys::SECRET, shown(secret));
            Some(format!("{key}: {secret}: expected the name of a Secret"))
        } else {
            hides_a_key(&settings)
        };
        Some(Self {
            // What has no valid name of its own is told on the object itself.
            secret: if is_object_name(secret) { secret } else { name }.into(),
            settings,
            fault,
            told: mirror::Mirror::of_object(annotations, labels),
            ..Self::nothing(Kind::ConfigMap, name, metadata)
        })
    }

    /// An object that says nothing yet.
    fn nothing(kind: Kind, name: &str, metadata: &ObjectMeta) -> Self {
        let created = metadata.creation_timestamp.as_ref();
        Self {
            source: Source {
                kind,
                name: name.into(),
            },
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            created: UnixTime(created.map_or(i64::MAX, |at| at.0.as_second())),
            secret: name.into(),
            settings: BTreeMap::new(),
            fault: None,
            remarks: Vec::new(),
            told: mirror::Mirror::default(),
        }
    }

    /// The Secret that it declares.
    #[must_use]
    pub fn key(&self, namespace: impl Into<Arc<str>>) -> SecretRef {
        SecretRef::new(namespace, Arc::clone(&self.secret))
    }

    /// What is kept of it between looks.
    #[must_use]
    pub fn brief(&self) -> Brief {
        let mut text = format!("{:?}{:?}", self.settings, self.fault);
        // Those of ConfigMaps stay as they are: they are on record.
        if !self.remarks.is_empty() {
            text.push_str(&format!("{:?}", self.remarks));
        }
        let digest = hash(&text);
        let urgent = if self.source.kind.is_route() {
            let settings = self.settings.iter();
            let others: Vec<(&String, &String)> = settings
                .filter(|(key, _)| key.as_str() != keys::NAMES)
                .collect();
            hash(&format!("{others:?}"))
        } else {
            digest
        };
        Brief {
            created: self.created,
            source: self.source.clone(),
            secret: Arc::clone(&self.secret),
            digest,
            urgent,
            told: self.told.digest(),
        }
    }
}

/// Whether an object is for an installation of this class.
fn is_for(class: &str, annotations: &BTreeMap<String, String>) -> bool {
    let wanted = annotations.get(keys::CLASS).map(|it| it.trim());
    wanted.unwrap_or(DEFAULT_CLASS) == class
}

/// The annotations under our prefix that are settings of a certificate, and some that are none; without those that mean
/// something else on such an object.
fn settings_of(
    annotations: &BTreeMap<String, String>,
    others: &[&str],
) -> BTreeMap<String, String> {
    let of_ours = annotations
        .iter()
        .filter(|(key, _)| key.starts_with(keys::PREFIX));
    let own = [keys::DECLARED, keys::MANAGED_LABEL];
    let is_own = |key: &str| own.contains(&key) || others.contains(&key);
    let mut unknown = 0;
    of_ours
        .filter(|(key, _)| !is_own(key))
        .filter(|(key, _)| {
            decide::is_setting(key) || {
                unknown += 1;
                unknown <= MOST_OTHERS
            }
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// What is wrong with settings among which there is a private key.
fn hides_a_key(settings: &BTreeMap<String, String>) -> Option<String> {
    let is_one = settings.values().any(|value| holds_private_key(value));
    is_one.then(|| {
        "an annotation holds a private key, which nobody may read there: remove it, and revoke what it belongs to"
            .into()
    })
}

/// What is kept of a declaration between looks. Ordered by age.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Brief {
    created: UnixTime,
    source: Source,
    secret: Arc<str>,
    digest: u64,
    /// Digest of what waits for no rest when it changes: of a route all settings but the names, of others everything.
    urgent: u64,
    told: mirror::Digest,
}

impl Brief {
    /// The object.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The Secret that it declares.
    fn key(&self, namespace: &Arc<str>) -> SecretRef {
        SecretRef::new(Arc::clone(namespace), Arc::clone(&self.secret))
    }
}

/// A digest of what these declare for a Secret; sorted by age, the oldest first.
#[must_use]
pub fn digest<'a>(key: &SecretRef, briefs: impl Iterator<Item = &'a Brief>) -> u64 {
    let mut text = key.to_string();
    for Brief { source, digest, .. } in briefs.take(MOST_OF_SECRET) {
        text.push_str(&format!("\n{source} {digest:016x}"));
    }
    hash(&text)
}

#[cfg(test)]
mod tests;

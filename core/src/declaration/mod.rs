//! Objects that declare a certificate, and what follows from them for the Secret: a pure function from the declarations
//! that name a Secret, the Secret and the config to the one write that it needs, or to what is wrong.
//!
//! ```text
//! ConfigMap ──► Declaration ─┐
//!                            ├─► wanted ──► decide ──► made, changed, or left alone with a reason
//! Secret as it is now ───────┘
//! ```
//! A declaration owns no data. Its settings are copied onto the Secret, where everything else reads them, so the rest of
//! cert-renew does not know of declarations. What a declaration asks for is judged as the Secret would be that it asks
//! for: a name that `allow` does not grant, or a value that cannot be read, changes nothing.

pub mod decide;
pub mod mirror;
pub mod object;
pub mod register;
pub mod room;

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
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
        })
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
        let name = text.strip_prefix("ConfigMap/")?;
        is_object_name(name).then(|| Self {
            kind: Kind::ConfigMap,
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
    /// What stands on it for people.
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
        let wanted = annotations.get(keys::CLASS).map(|it| it.trim());
        if wanted.unwrap_or(DEFAULT_CLASS) != class {
            return None;
        }
        let of_ours = annotations
            .iter()
            .filter(|(key, _)| key.starts_with(keys::PREFIX));
        let mut others = 0;
        let own = [keys::SECRET, keys::DECLARED, keys::MANAGED_LABEL];
        let settings: BTreeMap<String, String> = of_ours
            .filter(|(key, _)| !own.contains(&key.as_str()))
            .filter(|(key, _)| {
                decide::is_setting(key) || {
                    others += 1;
                    others <= MOST_OTHERS
                }
            })
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let secret = annotations.get(keys::SECRET).map_or(name, |it| it.trim());
        let hides_a_key = settings.values().any(|value| holds_private_key(value));
        let fault = if !is_object_name(secret) {
            let (key, secret) = (keys::SECRET, shown(secret));
            Some(format!("{key}: {secret}: expected the name of a Secret"))
        } else if hides_a_key {
            Some("an annotation holds a private key, which nobody may read there: remove it, and revoke what it belongs to".into())
        } else {
            None
        };
        let created = metadata.creation_timestamp.as_ref();
        Some(Self {
            source: Source {
                kind: Kind::ConfigMap,
                name: name.into(),
            },
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            created: UnixTime(created.map_or(i64::MAX, |at| at.0.as_second())),
            // What has no valid name of its own is told on the object itself.
            secret: if is_object_name(secret) { secret } else { name }.into(),
            settings,
            fault,
            told: mirror::Mirror::of_object(annotations, labels),
        })
    }

    /// The Secret that it declares.
    #[must_use]
    pub fn key(&self, namespace: impl Into<Arc<str>>) -> SecretRef {
        SecretRef::new(namespace, Arc::clone(&self.secret))
    }

    /// What is kept of it between looks.
    #[must_use]
    pub fn brief(&self) -> Brief {
        Brief {
            created: self.created,
            source: self.source.clone(),
            digest: hash(&format!("{:?}{:?}", self.settings, self.fault)),
            told: self.told.digest(),
        }
    }
}

/// What is kept of a declaration between looks. Ordered by age.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Brief {
    created: UnixTime,
    source: Source,
    digest: u64,
    told: mirror::Digest,
}

impl Brief {
    /// The object.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
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

//! A Secret as the watch reads it: identity, our annotations, and the bytes of its certificate.
//!
//! Input is JSON from the API server. `tls.key`, managedFields and foreign annotations are skipped in the text and
//! never copied; of a Secret without anything of ours only the identity is kept. Decoding cannot fail (see
//! [`super::lenient`]) and Debug shows namespace and name only. The certificate is parsed on demand, so an unchanged
//! Secret costs no X.509.

use std::collections::BTreeMap;
use std::fmt;

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, Engine as _};
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer, de::DeserializeSeed as _};
use zeroize::Zeroizing;

use super::head::{Head, is_a_secret};
use super::lenient::{Fill, Shape};
use crate::certificate::above::{self, Above};
use crate::certificate::{self, Leaf, Unreadable};
use crate::secret::data::data_keys::{self, TLS_TYPE};
use crate::secret::{SecretRef, keys, parts};

/// A Secret without its private data.
#[derive(Clone, Default)]
pub struct ThinSecret {
    /// Identity and annotations.
    pub head: Head,
    /// Its `type`; empty for the API server's default, which the server always writes out.
    pub kind: String,
    certificate: Option<Text>,
    /// Base64 of `ca.crt`, if the Secret is ours.
    ca: Option<String>,
}

/// Base64 of the value with the certificate.
#[derive(Clone)]
enum Text {
    /// `tls.crt`.
    Public(String),
    /// The key that `outputs` names, which may also hold a private key: cleared when dropped.
    Mixed(Zeroizing<String>),
}

/// The certificate, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateState {
    /// No certificate: it waits for its first one, or was emptied.
    Absent,
    /// The content is not a certificate.
    Unreadable(Unreadable),
    /// A certificate.
    Leaf(Box<Leaf>),
}

impl ThinSecret {
    /// Parses the certificate; takes some microseconds, so call it once for each resourceVersion.
    #[must_use]
    pub fn certificate(&self) -> CertificateState {
        let Some(leaf) = self.of_certificate(certificate::leaf) else {
            return CertificateState::Absent;
        };
        match leaf.unwrap_or(Err(Unreadable::NotBase64)) {
            Ok(leaf) => CertificateState::Leaf(Box::new(leaf)),
            Err(Unreadable::Empty) => CertificateState::Absent,
            Err(reason) => CertificateState::Unreadable(reason),
        }
    }

    /// What is above its leaf, for people. As expensive as [`ThinSecret::certificate`].
    #[must_use]
    pub fn above(&self) -> Option<Above> {
        self.of_certificate(above::above)?.ok()?
    }

    fn of_certificate<T>(&self, read: impl Fn(&[u8]) -> T) -> Option<Result<T, DecodeError>> {
        Some(match self.certificate.as_ref()? {
            Text::Public(text) => STANDARD.decode(text).map(|it| read(&it)),
            Text::Mixed(text) => {
                { STANDARD.decode(text.as_str()) }.map(|it| read(&Zeroizing::new(it)))
            }
        })
    }
}

impl ThinSecret {
    /// A digest of its CA certificates, if they can be read; see [`parts::ca_digest`]. As expensive as
    /// [`ThinSecret::certificate`].
    #[must_use]
    pub fn ca(&self) -> Option<u32> {
        let bytes = STANDARD.decode(self.ca.as_ref()?).ok()?;
        parts::ca_digest(&bytes)
    }
}

impl ThinSecret {
    /// A TLS Secret without a certificate, as it would be with these annotations.
    #[must_use]
    pub fn empty(key: &SecretRef, annotations: BTreeMap<String, String>) -> Self {
        Self {
            head: Head::of(&key.namespace, &key.name, "", "").annotated(annotations),
            kind: TLS_TYPE.to_owned(),
            ..Self::default()
        }
    }

    /// The same as it would be with these annotations.
    #[must_use]
    pub fn annotated(mut self, annotations: BTreeMap<String, String>) -> Self {
        self.head = self.head.annotated(annotations);
        self
    }
}

impl fmt::Debug for ThinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.head.place())
    }
}

is_a_secret!(ThinSecret, head);

impl<'de> Deserialize<'de> for ThinSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(deserializer, false)
    }
}

/// The same with the certificate of every Secret, ours or not: for `watch.observe: all`.
#[derive(Clone, Debug, Default)]
pub struct ObservedSecret(pub ThinSecret);

impl<'de> Deserialize<'de> for ObservedSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ThinSecret::read(deserializer, true).map(Self)
    }
}

impl From<ObservedSecret> for ThinSecret {
    fn from(secret: ObservedSecret) -> Self {
        secret.0
    }
}

is_a_secret!(ObservedSecret, 0.head);

impl ThinSecret {
    fn read<'de, D: Deserializer<'de>>(deserializer: D, all: bool) -> Result<Self, D::Error> {
        let mut parts = Parts {
            all,
            ..Parts::default()
        };
        Fill(&mut parts).deserialize(deserializer)?;
        let Parts {
            head,
            seen: _,
            all: _,
            kind,
            data,
        } = parts;
        let kind = kind.unwrap_or_default();
        let named = data.named.filter(|_| kind != TLS_TYPE);
        let value = match named {
            None => data.tls_crt.map(Text::Public),
            Some((_, value)) => value.map(Text::Mixed),
        };
        let certificate = value.filter(|_| all || head.concerns_us());
        Ok(Self {
            head,
            kind,
            ca: data.ca,
            certificate,
        })
    }
}

/// A Secret while it is read.
#[derive(Default)]
struct Parts {
    head: Head,
    /// Whether the metadata was read; an API server sends it before the data.
    seen: bool,
    /// Whether the certificate is also kept of Secrets that are not ours.
    all: bool,
    kind: Option<String>,
    data: Data,
}

#[derive(Default)]
struct Data {
    tls_crt: Option<String>,
    /// The key that `outputs` names for the certificate, with its value. Which of the two counts is known only with the
    /// type, which comes last. Data before metadata (no API server) leaves it out.
    named: Option<(String, Option<Zeroizing<String>>)>,
    /// Whether the Secret is ours: CA certificates of others are not read.
    ours: bool,
    ca: Option<String>,
}

impl Shape for Parts {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "metadata" => {
                self.seen = true;
                map.next_value_seed(Fill(&mut self.head))?;
                let outputs = self.head.annotation(keys::OUTPUTS);
                let named = outputs.and_then(data_keys::certificate_key);
                self.data.named = named.map(|key| (key.to_owned(), None));
                self.data.ours = self.head.concerns_us();
                Ok(())
            }
            "type" => map.next_value_seed(Fill(&mut self.kind)),
            "immutable" => map.next_value_seed(Fill(&mut self.head.immutable)),
            "data" if !self.seen || self.all || self.head.concerns_us() => {
                map.next_value_seed(Fill(&mut self.data))
            }
            _ => ().member(key, map),
        }
    }
}

impl Shape for Data {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match &mut self.named {
            Some((named, value)) if named == key => map.next_value_seed(Fill(value)),
            _ if key == "tls.crt" => map.next_value_seed(Fill(&mut self.tls_crt)),
            _ if key == parts::CA_KEY && self.ours => map.next_value_seed(Fill(&mut self.ca)),
            _ => ().member(key, map),
        }
    }
}

impl Shape for Option<Zeroizing<String>> {
    fn text(&mut self, text: &str) {
        *self = Some(Zeroizing::new(text.to_owned()));
    }
}

#[cfg(test)]
mod tests;

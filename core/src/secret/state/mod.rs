//! The annotations that cert-renew itself writes on a Secret and reads again.
//!
//! Nothing here can fail: a value from another writer, or in a form of a later version, counts as absent.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::certificate::{Fingerprint, KeyType, x509};
use crate::secret::keys;
use crate::secret::parts::{ChainAndCa, Parts};
use crate::text::name::Name;
use crate::time::UnixTime;

/// What the workloads of a Secret have: the value of [`keys::ROLLED_OUT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RolledOut {
    /// No certificate yet, so that the first one is rolled.
    None,
    /// This leaf.
    Leaf {
        /// Its fingerprint.
        fingerprint: Fingerprint,
        /// When it expires: windows, halts and alerts depend on what is served, not on the Secret.
        not_after: UnixTime,
        /// The chain and CA beside it: the value of [`keys::ROLLED_OUT_WITH`]; `None` if it is not on record.
        with: Option<ChainAndCa>,
    },
}

/// The last issuer and request: the value of [`keys::ISSUED_BY`]. A setting that differs from it was changed since and
/// makes the Secret due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedBy {
    /// The issuer's name in the config file.
    pub issuer: Box<str>,
    /// The CA's directory at that time; missing if a former version wrote it.
    pub directory: Option<Box<str>>,
    /// The names that were ordered.
    pub names: Vec<Name>,
    /// The requested profile; `None` if the Secret named none.
    pub profile: Option<Box<str>>,
    /// The requested lifetime; `None` if the Secret named none, or a former version wrote it.
    pub lifetime: Option<Duration>,
    /// The requested key type; `None` if the Secret named none.
    pub key_type: Option<KeyType>,
    /// The leaf that was written, and when, by our own clock; missing if a former version wrote it.
    pub written: Option<(Fingerprint, UnixTime)>,
    /// URL of the CA account of the order, for a CAA record (RFC 8657); missing likewise.
    pub account: Option<Box<str>>,
    /// The outputs that were written with it; see
    /// [`Settings::outputs_digest`](super::settings::Settings::outputs_digest).
    pub outputs: Option<u64>,
}

/// The text is no state value of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected a value that cert-renew wrote")]
pub struct Foreign;

impl RolledOut {
    /// The value on the Secret with this uid; `None` if it cannot be read, or was written for another Secret and
    /// copied. Former versions did not write the uid.
    #[must_use]
    pub fn read(annotations: &BTreeMap<String, String>, uid: &str) -> Option<Self> {
        let (value, of) = parts(annotations.get(keys::ROLLED_OUT)?);
        if of.is_some_and(|of| of != uid) {
            return None;
        }
        let read: Self = value.parse().ok()?;
        let with = annotations.get(keys::ROLLED_OUT_WITH);
        Some(match read {
            Self::Leaf {
                fingerprint,
                not_after,
                ..
            } => Self::Leaf {
                fingerprint,
                not_after,
                with: with.and_then(|value| with_of(value, fingerprint, uid)),
            },
            Self::None => Self::None,
        })
    }

    /// Whether the value on the Secret with this uid was written for another one.
    #[must_use]
    pub fn is_of_another(annotations: &BTreeMap<String, String>, uid: &str) -> bool {
        let value = annotations.get(keys::ROLLED_OUT);
        value.is_some_and(|value| parts(value).1.is_some_and(|of| of != uid))
    }

    /// The annotations for the Secret with this uid.
    #[must_use]
    pub fn written_for(self, uid: &str) -> [(&'static str, Option<String>); 2] {
        let with = match self {
            Self::Leaf {
                fingerprint,
                with: Some(with),
                ..
            } => Some(format!("{fingerprint} {with} {uid}")),
            _ => None,
        };
        [
            (keys::ROLLED_OUT, Some(format!("{self} {uid}"))),
            (keys::ROLLED_OUT_WITH, with),
        ]
    }

    /// Whether it is this leaf with this chain and CA; one that is not on record counts as equal.
    #[must_use]
    pub fn is(self, leaf: Fingerprint, beside: ChainAndCa) -> bool {
        matches!(self, Self::Leaf { fingerprint, with, .. }
            if fingerprint == leaf && with.is_none_or(|with| with == beside))
    }

    /// The record of the present leaf, completed with the Secret's chain and CA if they are not on record.
    #[must_use]
    pub fn noting(self, leaf: Fingerprint, beside: ChainAndCa) -> Self {
        match self {
            Self::Leaf {
                fingerprint,
                not_after,
                with: None,
            } if fingerprint == leaf => Self::Leaf {
                fingerprint,
                not_after,
                with: Some(beside),
            },
            other => other,
        }
    }

    /// The parts that the workloads of a Secret with this leaf lack, of those that they are restarted for. If it is not
    /// on record, they have the chain; the CA follows the leaf if another program writes the Secret, as we change no
    /// CA.
    #[must_use]
    pub fn changed(
        had: Option<Self>,
        (leaf, beside): (Fingerprint, ChainAndCa),
        on: Parts,
        external: bool,
    ) -> Parts {
        let (had, with) = match had {
            Some(Self::Leaf {
                fingerprint, with, ..
            }) => (Some(fingerprint), with),
            Some(Self::None) | None => (None, None),
        };
        let another = had != Some(leaf);
        Parts {
            leaf: on.leaf && another,
            chain: on.chain && with.is_some_and(|with| with.chain != beside.chain),
            ca: on.ca && with.map_or(another && external, |with| with.ca != beside.ca),
        }
    }

    /// The chain and CA that they have, if on record.
    #[must_use]
    pub fn with(self) -> Option<ChainAndCa> {
        match self {
            Self::None => None,
            Self::Leaf { with, .. } => with,
        }
    }

    /// The leaf's fingerprint.
    #[must_use]
    pub fn fingerprint(self) -> Option<Fingerprint> {
        match self {
            Self::None => None,
            Self::Leaf { fingerprint, .. } => Some(fingerprint),
        }
    }
}

/// A value of [`keys::ROLLED_OUT_WITH`], if it is of this leaf and was not written for another Secret.
fn with_of(value: &str, leaf: Fingerprint, uid: &str) -> Option<ChainAndCa> {
    let mut words = value.splitn(3, ' ');
    let of: Fingerprint = words.next()?.parse().ok()?;
    let with = words.next()?.parse().ok()?;
    (of == leaf && words.next().is_none_or(|of| of == uid)).then_some(with)
}

/// A value of [`keys::ROLLED_OUT`] without the uid, and the uid.
fn parts(value: &str) -> (&str, Option<&str>) {
    let words = if value.starts_with("none") { 1 } else { 2 };
    match value.match_indices(' ').nth(words - 1) {
        Some((at, _)) => (&value[..at], Some(&value[at + 1..])),
        None => (value, None),
    }
}

impl IssuedBy {
    /// The value on the Secret; `None` if it cannot be read.
    #[must_use]
    pub fn read(annotations: &BTreeMap<String, String>) -> Option<Self> {
        annotations.get(keys::ISSUED_BY)?.parse().ok()
    }

    /// When this leaf was written, if it was.
    #[must_use]
    pub fn wrote(&self, leaf: Fingerprint) -> Option<UnixTime> {
        self.written
            .filter(|(written, _)| *written == leaf)
            .map(|(_, at)| at)
    }
}

impl fmt::Display for RolledOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Leaf {
                fingerprint,
                not_after,
                with: _,
            } => write!(f, "{fingerprint} {not_after}"),
        }
    }
}

impl FromStr for RolledOut {
    type Err = Foreign;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s == "none" {
            return Ok(Self::None);
        }
        let (fingerprint, not_after) = s.split_once(' ').ok_or(Foreign)?;
        Ok(Self::Leaf {
            fingerprint: fingerprint.parse().map_err(|_| Foreign)?,
            not_after: not_after.parse().map_err(|_| Foreign)?,
            with: None,
        })
    }
}

/// [`IssuedBy`] as JSON; fields of later versions are ignored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    issuer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
    names: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    /// In seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lifetime: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leaf: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outputs: Option<String>,
}

impl fmt::Display for IssuedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wire = Wire {
            issuer: self.issuer.to_string(),
            directory: self.directory.as_ref().map(ToString::to_string),
            names: self.names.iter().map(Name::to_string).collect(),
            profile: self.profile.as_ref().map(ToString::to_string),
            lifetime: self.lifetime.map(|it| it.as_secs()),
            key_type: self.key_type.map(|key_type| key_type.to_string()),
            leaf: self.written.map(|(leaf, _)| leaf.to_string()),
            at: self.written.map(|(_, at)| at.to_string()),
            account: self.account.as_ref().map(ToString::to_string),
            outputs: self.outputs.map(|outputs| format!("{outputs:016x}")),
        };
        f.write_str(&serde_json::to_string(&wire).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for IssuedBy {
    type Err = Foreign;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let wire: Wire = serde_json::from_str(s).map_err(|_| Foreign)?;
        // None of our orders has had more.
        if wire.names.len() > x509::MAX_NAMES {
            return Err(Foreign);
        }
        let names = wire
            .names
            .iter()
            .map(|name| name.parse())
            .collect::<Result<_, _>>();
        let key_type = wire.key_type.map(|key_type| key_type.parse()).transpose();
        let written = wire.leaf.zip(wire.at);
        Ok(Self {
            issuer: wire.issuer.into(),
            directory: wire.directory.map(Into::into),
            names: names.map_err(|_| Foreign)?,
            profile: wire.profile.map(Into::into),
            lifetime: wire.lifetime.map(Duration::from_secs),
            key_type: key_type.map_err(|_| Foreign)?,
            written: written.and_then(|(leaf, at)| Some((leaf.parse().ok()?, at.parse().ok()?))),
            account: wire.account.map(Into::into),
            outputs: { wire.outputs }.and_then(|it| u64::from_str_radix(&it, 16).ok()),
        })
    }
}

#[cfg(test)]
mod tests;

//! Extra data keys of a Secret, as the `outputs` annotation asks for them:
//! `fullchain.pem=fullchain, tls.pem=key+fullchain`.
//!
//! The names on the left are those that the reader of the Secret expects, the parts on the right are the content.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::text::shown;

/// Most parts of one output: more than the kinds of PEM parts is a mistake.
const MAX_PARTS: usize = 8;

/// Longest key of a Secret's data, in characters, as the API server requires.
const MAX_DATA_KEY: usize = 253;

/// One data key and its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Key of the Secret's data, such as `fullchain.pem`.
    pub name: Box<str>,
    /// Its content, in this order; never empty, and a part that is not PEM is alone.
    pub parts: Vec<Part>,
}

/// A part of an issued certificate, or another file that servers need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The certificate alone, PEM.
    Leaf,
    /// The chain after the leaf, PEM, without the root.
    Chain,
    /// Leaf and chain, PEM: what `tls.crt` holds.
    Fullchain,
    /// The private key, PKCS#8 PEM: what `tls.key` holds.
    Key,
    /// The private key, PKCS#8 DER.
    DerKey,
    /// The certificate alone, DER.
    DerLeaf,
    /// Key, leaf and chain as PKCS#12 (RFC 7292).
    Pkcs12,
    /// The group ffdhe2048 of RFC 7919 as PEM `DH PARAMETERS`, for servers that want a `dhparam` file.
    Ffdhe2048,
    /// The group ffdhe3072, likewise.
    Ffdhe3072,
    /// The group ffdhe4096, likewise.
    Ffdhe4096,
}

/// Why a text is not an [`Output`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotAnOutput {
    /// No `=`.
    #[error("expected name=part[+part...], such as tls.pem=key+fullchain")]
    Form,
    /// The API server would refuse the name.
    #[error("expected a data key of letters, digits, '-', '_' and '.' before '=', found {0}")]
    Name(String),
    /// No such part.
    #[error(
        "expected a part leaf, chain, fullchain, key, der-key, der-leaf, pkcs12, ffdhe2048, ffdhe3072 or ffdhe4096, \
         found {0}"
    )]
    Part(String),
    /// Binary content cannot be joined with anything.
    #[error("expected {0} to stand alone, since it is not PEM")]
    Alone(Part),
    /// More than there can be.
    #[error("expected at most {MAX_PARTS} parts")]
    TooMany,
}

impl Part {
    /// All parts, in the order of lists.
    pub const ALL: [Self; 10] = [
        Self::Leaf,
        Self::Chain,
        Self::Fullchain,
        Self::Key,
        Self::DerKey,
        Self::DerLeaf,
        Self::Pkcs12,
        Self::Ffdhe2048,
        Self::Ffdhe3072,
        Self::Ffdhe4096,
    ];

    /// As the annotation writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leaf => "leaf",
            Self::Chain => "chain",
            Self::Fullchain => "fullchain",
            Self::Key => "key",
            Self::DerKey => "der-key",
            Self::DerLeaf => "der-leaf",
            Self::Pkcs12 => "pkcs12",
            Self::Ffdhe2048 => "ffdhe2048",
            Self::Ffdhe3072 => "ffdhe3072",
            Self::Ffdhe4096 => "ffdhe4096",
        }
    }

    /// Whether it is text that can be joined with other PEM.
    #[must_use]
    pub fn is_pem(self) -> bool {
        !matches!(self, Self::DerKey | Self::DerLeaf | Self::Pkcs12)
    }
}

/// Whether the API server accepts `key` as a key of a Secret's data.
#[must_use]
pub fn is_data_key(key: &str) -> bool {
    (1..=MAX_DATA_KEY).contains(&key.len())
        && key != "."
        && !key.starts_with("..")
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Part {
    type Err = NotAnOutput;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|part| part.as_str() == s.trim());
        known.ok_or_else(|| NotAnOutput::Part(shown(s)))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<&str> = self.parts.iter().map(|part| part.as_str()).collect();
        write!(f, "{}={}", self.name, parts.join("+"))
    }
}

impl FromStr for Output {
    type Err = NotAnOutput;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (name, parts) = s.split_once('=').ok_or(NotAnOutput::Form)?;
        let name = name.trim();
        if !is_data_key(name) {
            return Err(NotAnOutput::Name(shown(name)));
        }
        // One more than allowed is enough to detect too many.
        let parts: Vec<Part> = parts
            .split('+')
            .take(MAX_PARTS + 1)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        if parts.len() > MAX_PARTS {
            return Err(NotAnOutput::TooMany);
        }
        match parts.iter().find(|part| !part.is_pem()) {
            Some(part) if parts.len() > 1 => Err(NotAnOutput::Alone(*part)),
            _ => Ok(Self {
                name: name.into(),
                parts,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_predecessors_wrote() {
        for text in [
            "fullchain.pem=fullchain",
            "cert.pem=leaf",
            "privkey.pem=key",
            "chain.pem=chain",
            "dhparams.pem=ffdhe2048",
            "proxycert=fullchain",
            "proxykey=key",
            "tls.pem=fullchain+key",
            "dhparam=ffdhe2048",
            "key.der=der-key",
            "cert.der=der-leaf",
            "keystore.p12=pkcs12",
        ] {
            assert_eq!(text.parse::<Output>().unwrap().to_string(), text);
        }
        let spaced: Output = " tls.pem = key + fullchain ".parse().unwrap();
        assert_eq!(spaced.parts, [Part::Key, Part::Fullchain]);
    }

    #[test]
    fn says_what_is_wrong() {
        let many = format!("a={}", ["leaf"; 9].join("+"));
        for (text, message) in [
            ("tls.pem", "expected name=part"),
            ("=key", "before '=', found \"\""),
            ("a/b=key", "found \"a/b\""),
            ("..data=key", "found \"..data\""),
            ("a=", "expected a part leaf, chain"),
            ("a=jks", "found \"jks\""),
            ("a=key+pkcs12", "expected pkcs12 to stand alone"),
            (&many, "at most 8 parts"),
        ] {
            let error = text.parse::<Output>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}

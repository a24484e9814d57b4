//! Checks of a certificate and its key, before anything is rolled and before anything is written.
//!
//! Input is the bytes of a pair, or a chain that a CA has just issued, and the time.
//! A pair that passes satisfies invariant 2: key and certificate match, and the leaf is valid now.
//! Errors name certificates, names and times, never a key.

use std::collections::{HashMap, HashSet, VecDeque};

use thiserror::Error;

use crate::certificate::key::{KeyError, PrivateKey};
use crate::certificate::loader::{self, Refusal};
use crate::certificate::pem;
use crate::certificate::x509::{self, Certificate, DistinguishedName};
use crate::certificate::{self, Fingerprint, Leaf, Unreadable};
use crate::text::name::Name;
use crate::time::UnixTime;

/// Mark in the issuer names of Let's Encrypt's staging CA, which no client trusts.
pub(crate) const STAGING: &str = "(STAGING)";

/// Why workloads must not be rolled onto a pair.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PairFault {
    /// Certificate or key is missing: a Secret that waits for its first certificate, or was emptied.
    #[error("certificate or key is empty, a pair was expected")]
    Empty,
    /// The certificate cannot be read.
    #[error("the certificate cannot be read")]
    Certificate(#[source] Unreadable),
    /// The private key cannot be read.
    #[error("the private key cannot be read")]
    Key(#[source] KeyError),
    /// The key does not belong to the certificate.
    #[error("the private key is not the one of the certificate")]
    Mismatch,
    /// The certificate is not valid yet.
    #[error("the certificate is not valid before {0}")]
    NotYetValid(UnixTime),
    /// The certificate has expired.
    #[error("the certificate has expired at {0}")]
    Expired(UnixTime),
    /// Servers cannot load the pair in this form.
    #[error("{0}")]
    Unservable(Refusal),
}

/// A pair that workloads may be rolled onto.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollable {
    /// The facts about the leaf.
    pub leaf: Leaf,
    /// Why it is unknown whether the key belongs to the certificate.
    pub unproven: Option<KeyError>,
}

/// How strictly a pair is checked before workloads are rolled onto it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strictness {
    /// Another program makes the pair, perhaps with a key that only the workloads can read.
    pub external: bool,
    /// The Secret's own settings declare certificate and key as DER.
    pub der: bool,
}

/// Why a certificate that a CA has issued must not be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Rejected {
    /// A certificate of the chain cannot be read.
    #[error("the chain cannot be read")]
    Unreadable(#[source] Unreadable),
    /// The leaf is not for our key, or not valid now. With [`PairFault::NotYetValid`] one of the two
    /// clocks is wrong, and the same chain can be checked again at that time.
    #[error(transparent)]
    Unusable(PairFault),
    /// Some of the requested names are missing.
    #[error("the certificate lacks {}", list(.0))]
    MissingNames(Vec<Name>),
    /// A certificate is not issued by the one that follows it; counted from 1.
    #[error(
        "certificate {number} of the chain is issued by {issuer}, the one that follows it is another"
    )]
    Order {
        /// Its position, from 1.
        number: usize,
        /// Its issuer name.
        issuer: String,
    },
    /// The names match, but the signature does not; counted from 1.
    #[error("certificate {0} of the chain is not signed by the key of the one that follows it")]
    Signature(usize),
    /// From a staging CA.
    #[error("the certificate is from a staging CA: {0}")]
    Staging(String),
    /// The present leaf from the same issuer lasts longer, so it stays.
    #[error(
        "the certificate ends at {new}, sooner than the one in use from the same issuer, at {old}"
    )]
    EndsSooner {
        /// End of the new leaf.
        new: UnixTime,
        /// End of the leaf in use.
        old: UnixTime,
    },
}

/// What an issued certificate is checked against.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedPair<'a> {
    /// The key that signed the request.
    pub key: &'a PrivateKey,
    /// The names of the order; the certificate may have more.
    pub names: &'a [Name],
    /// The leaf in use, if only the clock asked for the renewal: it is not replaced by one of the same issuer that ends
    /// sooner. None if ARI, a changed setting or another issuer asked.
    pub not_sooner_than: Option<&'a Leaf>,
    /// Whether the user chose a staging CA as issuer.
    pub staging: bool,
}

/// A chain that passed the checks: the leaf first, each certificate issued by the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The facts about the leaf.
    pub leaf: Leaf,
    /// DER of all certificates, the leaf included; never empty.
    certificates: Vec<Vec<u8>>,
}

/// Checks a pair as it is in a Secret, for example before a rollout.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_pair(certificate: &[u8], key: &[u8], now: UnixTime) -> Result<Leaf, PairFault> {
    if certificate.trim_ascii().is_empty() || key.trim_ascii().is_empty() {
        return Err(PairFault::Empty);
    }
    let leaf = certificate::leaf(certificate).map_err(PairFault::Certificate)?;
    let key = PrivateKey::from_pem(key).map_err(PairFault::Key)?;
    usable(&leaf, &key, now)?;
    Ok(leaf)
}

/// Checks a pair before workloads are rolled onto it: as [`check_pair`], and servers must be able to load it.
///
/// A leaf that is not first in its file is no fault here: the program that reads such files puts them in order, and
/// does so again when they are renewed.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_rollable(
    certificate: &[u8],
    key: &[u8],
    now: UnixTime,
    look: Strictness,
) -> Result<Rollable, PairFault> {
    if certificate.trim_ascii().is_empty() || key.trim_ascii().is_empty() {
        return Err(PairFault::Empty);
    }
    let leaf = certificate::leaf(certificate).map_err(PairFault::Certificate)?;
    let unproven = match PrivateKey::from_pem(key) {
        Ok(key) => {
            usable(&leaf, &key, now)?;
            None
        }
        Err(error @ (KeyError::Encrypted | KeyError::Unsupported(_))) if look.external => {
            valid(&leaf, now)?;
            Some(error)
        }
        Err(error) => return Err(PairFault::Key(error)),
    };
    match loader::refusal(certificate, key).filter(|_| !look.der) {
        Some(refusal) => Err(PairFault::Unservable(refusal)),
        None => Ok(Rollable { leaf, unproven }),
    }
}

/// Checks an issued certificate before it is written.
///
/// # Errors
/// The first thing that is wrong with it. The Secret then stays as it is.
pub fn check_issued(
    pem: &[u8],
    asked: &ExpectedPair<'_>,
    now: UnixTime,
) -> Result<Chain, Rejected> {
    let ExpectedPair {
        key,
        names,
        not_sooner_than,
        staging,
    } = *asked;
    let chain = Chain::read(pem).map_err(Rejected::Unreadable)?;
    let leaf = &chain.leaf;

    usable(leaf, key, now).map_err(Rejected::Unusable)?;
    let missing = names.iter().filter(|name| !leaf.names.contains(name));
    let missing: Vec<Name> = missing.cloned().collect();
    if !missing.is_empty() {
        return Err(Rejected::MissingNames(missing));
    }
    chain.check_order()?;
    let issuer = chain
        .issuers()
        .find(|issuer| !staging && issuer.mentions(STAGING));
    if let Some(issuer) = issuer {
        return Err(Rejected::Staging(issuer.to_string()));
    }
    match not_sooner_than {
        Some(old) if old.issuer == leaf.issuer && leaf.not_after < old.not_after => {
            Err(Rejected::EndsSooner {
                new: leaf.not_after,
                old: old.not_after,
            })
        }
        _ => Ok(chain),
    }
}

/// The condition of every usable pair: the key is the leaf's, and the leaf is valid now.
fn usable(leaf: &Leaf, key: &PrivateKey, now: UnixTime) -> Result<(), PairFault> {
    if x509::same_key(&leaf.public_key, &key.public_key()) {
        valid(leaf, now)
    } else {
        Err(PairFault::Mismatch)
    }
}

fn valid(leaf: &Leaf, now: UnixTime) -> Result<(), PairFault> {
    if now < leaf.not_before {
        Err(PairFault::NotYetValid(leaf.not_before))
    } else if now > leaf.not_after {
        Err(PairFault::Expired(leaf.not_after))
    } else {
        Ok(())
    }
}

fn list(names: &[Name]) -> String {
    names
        .iter()
        .map(Name::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

// === impl Chain ===

impl Chain {
    /// Reads a chain without checking it, for example to write the outputs of an existing pair. Moves the leaf to the
    /// front.
    ///
    /// # Errors
    /// When it holds no certificate, or one that cannot be read.
    pub fn read(pem: &[u8]) -> Result<Self, Unreadable> {
        let chain = Self {
            leaf: certificate::leaf(pem)?,
            certificates: certificate::certificates(pem)?,
        };
        let first = Fingerprint::of(chain.leaf_der()) == chain.leaf.fingerprint;
        Ok(if first { chain } else { chain.arranged() })
    }

    /// The same certificates without duplicates: the leaf, its issuer, and so on by their names. Certificates outside
    /// this chain come last.
    fn arranged(self) -> Self {
        let parsed: Vec<_> = self.parsed().collect();
        let mut by_subject = HashMap::<&[u8], VecDeque<usize>>::new();
        let mut seen = HashSet::new();
        for (at, certificate) in parsed.iter().enumerate() {
            if seen.insert(certificate.der) {
                let same = by_subject.entry(certificate.subject).or_default();
                same.push_back(at);
            }
        }
        let mut order = vec![certificate::leaf_of(&parsed)];
        let mut used = HashSet::from([order[0]]);
        while let Some(last) = order.last() {
            let issuers = by_subject.entry(parsed[*last].issuer).or_default();
            let next = std::iter::from_fn(|| issuers.pop_front()).find(|at| used.insert(*at));
            let Some(next) = next else { break };
            order.push(next);
        }
        let mut rest: Vec<usize> = by_subject.into_values().flatten().collect();
        rest.retain(|at| used.insert(*at));
        rest.sort_unstable();
        order.extend(rest);
        let certificates = order.iter().map(|at| parsed[*at].der.to_vec()).collect();
        Self {
            leaf: self.leaf,
            certificates,
        }
    }

    /// RFC 8555, 9.1: each certificate certifies the one before it.
    ///
    /// # Errors
    /// [`Rejected::Order`] or [`Rejected::Signature`] for the first that is not.
    pub fn check_order(&self) -> Result<(), Rejected> {
        let parsed: Vec<_> = self.parsed().collect();
        for (number, pair) in (1..).zip(parsed.windows(2)) {
            let (lower, upper) = (&pair[0], &pair[1]);
            let issuer = DistinguishedName::from(lower.issuer);
            if issuer != DistinguishedName::from(upper.subject) {
                let issuer = issuer.to_string();
                return Err(Rejected::Order { number, issuer });
            }
            if lower.is_signed_by(upper) == Some(false) {
                return Err(Rejected::Signature(number));
            }
        }
        Ok(())
    }

    /// The issuer name of each certificate.
    fn issuers(&self) -> impl Iterator<Item = DistinguishedName> {
        self.parsed()
            .map(|certificate| DistinguishedName::from(certificate.issuer))
    }

    /// The certificates, parsed again; all were parsed when the chain was read.
    fn parsed(&self) -> impl Iterator<Item = Certificate<'_>> {
        self.certificates
            .iter()
            .filter_map(|der| Certificate::parse(der).ok())
    }

    /// The leaf alone, PEM.
    #[must_use]
    pub fn leaf_pem(&self) -> String {
        to_pem(&self.certificates[..1])
    }

    /// The leaf alone, DER.
    #[must_use]
    pub fn leaf_der(&self) -> &[u8] {
        &self.certificates[0]
    }

    /// The chain after the leaf, PEM; empty if the CA gave the leaf alone.
    #[must_use]
    pub fn issuers_pem(&self) -> String {
        to_pem(&self.certificates[1..])
    }

    /// All of it in clean PEM, leaf first: the content of `tls.crt`.
    #[must_use]
    pub fn to_pem(&self) -> String {
        to_pem(&self.certificates)
    }
}

fn to_pem(certificates: &[Vec<u8>]) -> String {
    certificates
        .iter()
        .map(|der| pem::encode("CERTIFICATE", der).to_string())
        .collect()
}

#[cfg(test)]
mod tests;

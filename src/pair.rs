//! Checks of a certificate and its key, before anything is rolled and before anything is written.
//!
//! Input is the bytes of a pair, or a chain that a CA has just issued, and the time.
//! What passes here is what invariant 2 allows: the two match, and the leaf is valid now.
//! Errors name certificates, names and times, never a key.

use thiserror::Error;

use crate::certificate::{self, Leaf, Unreadable};
use crate::key::{KeyError, PrivateKey};
use crate::name::Name;
use crate::pem;
use crate::time::UnixTime;
use crate::x509::{self, Certificate, DistinguishedName};

/// Mark in the issuer names of Let's Encrypt's staging CA, which no client trusts.
const STAGING: &str = "(STAGING)";

/// Why workloads must not be rolled onto a pair.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PairFault {
    /// Certificate or key is missing: a Secret that waits for its first certificate, or was emptied.
    #[error("certificate or key is empty, a pair was expected")]
    Empty,
    /// What stands in the place of the certificate is none.
    #[error("the certificate cannot be read")]
    Certificate(#[source] Unreadable),
    /// What stands in the place of the key is none.
    #[error("the private key cannot be read")]
    Key(#[source] KeyError),
    /// Each is fine, but not with the other.
    #[error("the private key is not the one of the certificate")]
    Mismatch,
    /// Its time has not come.
    #[error("the certificate is not valid before {0}")]
    NotYetValid(UnixTime),
    /// Its time is over.
    #[error("the certificate has expired at {0}")]
    Expired(UnixTime),
}

/// Why what a CA has issued must not be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Rejected {
    /// A certificate of the chain cannot be read.
    #[error("the chain cannot be read")]
    Unreadable(#[source] Unreadable),
    /// The leaf is not for our key, or not valid now. With [`PairFault::NotYetValid`] one of the two
    /// clocks is wrong, and the same chain can be checked again at that time.
    #[error(transparent)]
    Unusable(PairFault),
    /// Not all names that were asked for are in it.
    #[error("the certificate lacks {}", list(.0))]
    MissingNames(Vec<Name>),
    /// A certificate is not issued by the one that follows it; counted from 1.
    #[error(
        "certificate {number} of the chain is issued by {issuer}, the one that follows it is another"
    )]
    Order {
        /// Which one.
        number: usize,
        /// Who issued it, as it says.
        issuer: String,
    },
    /// The names fit, but not the signature; counted from 1.
    #[error("certificate {0} of the chain is not signed by the key of the one that follows it")]
    Signature(usize),
    /// From a CA for rehearsals.
    #[error("the certificate is from a staging CA: {0}")]
    Staging(String),
    /// The incumbent from the same issuer lasts longer, so it stays.
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

/// What the certificate that comes back from the CA is held against.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The key that signed the request.
    pub key: &'a PrivateKey,
    /// The names of the order; the certificate may have more.
    pub names: &'a [Name],
    /// The leaf in use, where the clock alone asked for the renewal: it is not given up for one of the
    /// same issuer that ends sooner. None where ARI, a changed setting or another issuer asked.
    pub not_sooner_than: Option<&'a Leaf>,
    /// Whether the issuer is a staging CA by the user's own wish.
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

/// Checks a pair as it stands in a Secret, for example before a rollout.
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

/// Checks what a CA has issued, before it is written.
///
/// # Errors
/// The first thing that is wrong with it. The Secret is left as it is then.
pub fn check_issued(pem: &[u8], asked: &Asked<'_>, now: UnixTime) -> Result<Chain, Rejected> {
    let Asked {
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
        .find(|issuer| !staging && issuer.contains(STAGING));
    if let Some(issuer) = issuer {
        return Err(Rejected::Staging(issuer));
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

/// What holds for every pair that may be used: the key is the leaf's, and the leaf is valid now.
fn usable(leaf: &Leaf, key: &PrivateKey, now: UnixTime) -> Result<(), PairFault> {
    if !x509::same_key(&leaf.public_key, &key.public_key()) {
        Err(PairFault::Mismatch)
    } else if now < leaf.not_before {
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
    /// Reads a chain without judging it, for example to write the outputs of a pair that is there already.
    ///
    /// # Errors
    /// When it holds no certificate, or one that cannot be read.
    pub fn read(pem: &[u8]) -> Result<Self, Unreadable> {
        let certificates = certificate::certificates(pem)?;
        Ok(Self {
            leaf: certificate::leaf(pem)?,
            certificates,
        })
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

    /// Who issued each of the certificates, as they say.
    fn issuers(&self) -> impl Iterator<Item = String> {
        self.parsed()
            .map(|certificate| DistinguishedName::from(certificate.issuer).to_string())
    }

    /// The certificates once more; they have all been parsed when the chain was read.
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

    /// What certifies the leaf, PEM; empty where the CA gave the leaf alone.
    #[must_use]
    pub fn issuers_pem(&self) -> String {
        to_pem(&self.certificates[1..])
    }

    /// All of it in clean PEM, leaf first: what belongs into `tls.crt`.
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
mod tests {
    use super::*;
    use crate::certificate::KeyType;

    /// Within the validity of the fixtures, 2026-01-01 to 2026-04-01.
    fn now() -> UnixTime {
        "2026-02-01T00:00:00Z".parse().unwrap()
    }

    fn file(name: &str) -> Vec<u8> {
        let path = format!(
            "{}/testdata/certificates/{name}",
            env!("CARGO_MANIFEST_DIR")
        );
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    #[test]
    fn a_pair_is_judged_by_its_first_fault() {
        let at = |text: &str| text.parse::<UnixTime>().unwrap();
        let check = |certificate: &str, key: &str, now| {
            check_pair(&file(certificate), &file(key), now).err()
        };
        for (certificate, key, now, fault) in [
            ("good.pem", "good.key", now(), None),
            ("good.pem", "sec1.key", now(), None),
            ("key-last.pem", "key-first.pem", now(), None),
            ("rsa-2048.pem", "pkcs1.key", now(), None),
            ("ed25519.pem", "ed25519.key", now(), None),
            ("good.pem", "good.key", at("2026-04-01T00:00:00Z"), None),
            (
                "broken-empty.pem",
                "good.key",
                now(),
                Some(PairFault::Empty),
            ),
            (
                "good.pem",
                "broken-blank.pem",
                now(),
                Some(PairFault::Empty),
            ),
            ("good.pem", "p384.key", now(), Some(PairFault::Mismatch)),
            (
                "broken-text.pem",
                "good.key",
                now(),
                Some(PairFault::Certificate(Unreadable::NoCertificate)),
            ),
            (
                "good.pem",
                "good.pem",
                now(),
                Some(PairFault::Key(KeyError::NoKey)),
            ),
            (
                "good.pem",
                "good.key",
                at("2025-12-31T23:59:59Z"),
                Some(PairFault::NotYetValid(at("2026-01-01T00:00:00Z"))),
            ),
            (
                "good.pem",
                "good.key",
                at("2026-04-01T00:00:01Z"),
                Some(PairFault::Expired(at("2026-04-01T00:00:00Z"))),
            ),
        ] {
            assert_eq!(
                check(certificate, key, now),
                fault,
                "{certificate} {key} {now}"
            );
        }
    }

    fn issued(parts: &[&str], asked: Asked<'_>) -> Result<Chain, Rejected> {
        let pem: Vec<u8> = parts.iter().flat_map(|name| file(name)).collect();
        check_issued(&pem, &asked, now())
    }

    /// Runs a test with what was asked for the good pair.
    fn with_asked(test: impl FnOnce(Asked<'_>)) {
        let key = PrivateKey::from_pem(&file("good.key")).unwrap();
        let names = ["shop.example.com".parse().unwrap()];
        test(Asked {
            key: &key,
            names: &names,
            not_sooner_than: None,
            staging: false,
        });
    }

    #[test]
    fn a_good_chain_passes_and_comes_out_clean() {
        with_asked(|asked| {
            for name in [
                "good",
                "crlf",
                "glued",
                "with-text",
                "key-first",
                "unwrapped",
                "indented",
            ] {
                let chain = issued(&[&format!("{name}.pem")], asked).unwrap();
                assert_eq!(chain.to_pem().as_bytes(), file("good.pem"), "{name}");
                assert_eq!(
                    chain.issuers_pem().as_bytes(),
                    file("intermediate.pem"),
                    "{name}"
                );
                assert_eq!(chain.leaf_pem() + &chain.issuers_pem(), chain.to_pem());
            }
            assert_eq!(issued(&["bare.der"], asked).unwrap().issuers_pem(), "");
            assert!(issued(&["good.pem", "root.pem"], asked).is_ok());
        });
    }

    #[test]
    fn what_the_ca_gave_is_refused_for_its_reason() {
        let order = |number, issuer: &str| Rejected::Order {
            number,
            issuer: issuer.to_owned(),
        };
        with_asked(|asked| {
            let names = ["other.example.com", "10.0.0.1"].map(|name| name.parse().unwrap());
            assert_eq!(
                issued(
                    &["good.pem"],
                    Asked {
                        names: &names,
                        ..asked
                    }
                ),
                Err(Rejected::MissingNames(names[..1].to_vec()))
            );
            let fresh = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
            assert_eq!(
                issued(
                    &["good.pem"],
                    Asked {
                        key: &fresh,
                        ..asked
                    }
                ),
                Err(Rejected::Unusable(PairFault::Mismatch))
            );
            let twin = "other-intermediate-of-the-same-name.pem";
            for (parts, error) in [
                (
                    ["good.pem", "intermediate.pem"],
                    order(2, "CN=Test Root,O=Test"),
                ),
                (
                    ["x509-label.pem", "root.pem"],
                    order(1, "CN=Test Intermediate,O=Test"),
                ),
                (["x509-label.pem", twin], Rejected::Signature(1)),
                (
                    ["broken-text.pem", "broken-blank.pem"],
                    Rejected::Unreadable(Unreadable::NoCertificate),
                ),
                (
                    ["staging.pem", "root.pem"],
                    Rejected::Staging("CN=(STAGING) Wannabe,O=(STAGING) Test".to_owned()),
                ),
            ] {
                assert_eq!(issued(&parts, asked), Err(error), "{parts:?}");
            }
            assert!(
                issued(
                    &["staging.pem"],
                    Asked {
                        staging: true,
                        ..asked
                    }
                )
                .is_ok()
            );
        });
    }

    #[test]
    fn a_leaf_in_use_is_not_given_up_for_a_shorter_one() {
        let mut old = Chain::read(&file("good.pem")).unwrap().leaf;
        with_asked(|asked| {
            let check = |old: &Leaf| {
                issued(
                    &["good.pem"],
                    Asked {
                        not_sooner_than: Some(old),
                        ..asked
                    },
                )
            };
            assert!(check(&old).is_ok());
            let new = old.not_after;
            old.not_after.0 += 1;
            assert_eq!(
                check(&old),
                Err(Rejected::EndsSooner {
                    new,
                    old: old.not_after
                })
            );
            old.issuer = b"CN=Another".as_slice().into();
            assert!(check(&old).is_ok());
        });
    }
}

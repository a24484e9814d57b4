//! From bytes to the facts about a certificate.
//!
//! Input is the content of `tls.crt`: PEM in any state, or one bare DER.
//! Total: any input yields a [`Leaf`] or an [`Unreadable`], and nothing in either quotes the input.
//! If the file also holds keys, only the certificates are decoded.

pub mod above;
pub mod key;
pub mod loader;
pub mod pair;
pub mod pem;
mod self_signed;
pub mod x509;

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256, digest};
use der::oid::db::rfc5912;
use thiserror::Error;

use self::pem::Block;
use self::x509::Certificate;
use crate::text::name::Name;
use crate::time::UnixTime;

pub use crate::certificate::self_signed::SelfSigned;
pub use crate::certificate::x509::{Abilities, DistinguishedName};

/// Largest input that is read, in bytes: a Secret holds at most 1 MiB (`MaxSecretSize` of Kubernetes).
pub const MAX_BYTES: usize = 1 << 20;

/// Longest issuer's name and public key that are kept of a leaf, in bytes of DER: a renewal holds its leaf for minutes. A
/// key of RSA with 16384 bits has 2 KiB.
const MOST_KEPT: usize = 16 * 1024;

/// Most certificates of the issuer's name whose keys are tried on the leaf's signature.
const MOST_ISSUERS: usize = 4;

/// SHA-256 of a certificate's DER; printed and parsed as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// The key types that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// `ecdsa-p256`
    EcdsaP256,
    /// `ecdsa-p384`
    EcdsaP384,
    /// `rsa-2048`
    Rsa2048,
    /// `rsa-3072`
    Rsa3072,
    /// `rsa-4096`
    Rsa4096,
}

/// What is known of the leaf of a file, the certificate that a server shows as its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Identity of the certificate.
    pub fingerprint: Fingerprint,
    /// First second at which it is valid.
    pub not_before: UnixTime,
    /// Last second at which it is valid (RFC 5280, 4.1.2.5: inclusive).
    pub not_after: UnixTime,
    /// DNS names and IP addresses of the SAN; the common name only where there is no SAN. At most 1,000.
    pub names: Vec<Name>,
    /// Whether it is signed by its own key, which is found out when somebody asks.
    pub self_signed: SelfSigned,
    /// The type of its key, if it is one that can be asked for.
    pub key_type: Option<KeyType>,
    /// `subjectPublicKeyInfo`, DER; empty if it is too long to keep.
    pub public_key: Box<[u8]>,
    /// Who signed it, as the certificate says; for people and for comparison. Unreadable if it is too long to keep.
    pub issuer: DistinguishedName,
    /// Content octets of the serial number as encoded, a leading zero kept (RFC 9773, 4.1 wants them).
    pub serial: Box<[u8]>,
    /// Key identifier of the issuer, if the certificate has it.
    pub authority_key_id: Option<Box<[u8]>>,
    /// Other uses than the names above.
    pub abilities: Abilities,
    /// The end of the certificate that signed it, if the file has that and it comes before its own. Clients refuse the
    /// leaf from then on.
    pub issuer_ends: Option<UnixTime>,
    /// A digest of the other certificates of the file; see [`set_digest`].
    pub chain: u32,
    /// Peculiarities of the certificate or the file, for people.
    pub remarks: Box<[Remark]>,
}

/// A peculiarity of a certificate that can be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Remark {
    /// The leaf is not the first; servers take the first as the leaf.
    #[error("the server certificate is number {number} of the file, and servers present the first")]
    NotFirst {
        /// Its position, from 1.
        number: usize,
    },
    /// A certificate of the chain is valid for a shorter time than the leaf.
    #[error("certificate {number} of the file ends at {at}, sooner than the server certificate")]
    EndsSooner {
        /// Its position, from 1.
        number: usize,
        /// Its last second.
        at: UnixTime,
    },
    /// One of the other certificates cannot be read.
    #[error("{0}")]
    Unreadable(Unreadable),
    /// Entries of the SAN that are no names to ask for.
    #[error("{count} entries of its subject alternative names are no names: {shown}")]
    OddNames {
        /// Number of such entries.
        count: usize,
        /// The first of them, quoted.
        shown: String,
    },
    /// More names than are kept.
    #[error(
        "it is for {count} names, of which the first {} are looked at",
        x509::MAX_NAMES
    )]
    ManyNames {
        /// Number of names in the certificate.
        count: usize,
    },
}

/// Why no certificate can be read. `number` counts the certificates of the file from 1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// Empty, or only whitespace.
    #[error("it is empty, a certificate was expected")]
    Empty,
    /// More than [`MAX_BYTES`].
    #[error("it has {0} bytes, at most {MAX_BYTES} were expected")]
    TooLarge(usize),
    /// Neither PEM nor DER of a certificate.
    #[error("no certificate is in it, a block -----BEGIN CERTIFICATE----- was expected")]
    NoCertificate,
    /// Only a key, no certificate.
    #[error(
        "a private key is in it and no certificate, a block -----BEGIN CERTIFICATE----- was expected"
    )]
    OnlyKey,
    /// The block of a certificate cannot be decoded.
    #[error("certificate {number} is not PEM: {fault}")]
    Pem {
        /// Its position, from 1.
        number: usize,
        /// What is wrong.
        fault: pem::Fault,
    },
    /// The block holds something other than a certificate.
    #[error("certificate {number} is not X.509: its {field} is missing or broken")]
    X509 {
        /// Its position, from 1.
        number: usize,
        /// The first field that cannot be read, by its name in RFC 5280.
        field: &'static str,
    },
    /// Another format that is common in such files.
    #[error("it is {0} and no certificate")]
    Other(&'static str),
    /// A Secret's `data` holds base64; the API server refuses anything else.
    #[error("the value is not base64, as all data of a Secret must be")]
    NotBase64,
}

/// Why a text is no [`Fingerprint`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected 64 hexadecimal digits, the SHA-256 of a certificate")]
pub struct NotAFingerprint;

/// Why a text is no [`KeyType`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected one of ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, rsa-4096")]
pub struct NotAKeyType;

/// The DER of all certificates, in the order of the file; each can be read by [`leaf`].
///
/// # Errors
/// When there is none, or one of them cannot be read.
pub fn certificates(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Unreadable> {
    let (ders, end) = decoded(bytes);
    let (all, end) = parsed(&ders, end);
    end?;
    Ok(all.iter().map(|it| it.der.to_vec()).collect())
}

/// The facts about the leaf, wherever it is in the file.
///
/// # Errors
/// When there is no certificate, or the first cannot be read. Later certificates and extensions cause no error.
pub fn leaf(bytes: &[u8]) -> Result<Leaf, Unreadable> {
    let (ders, end) = decoded(bytes);
    let (all, end) = parsed(&ders, end);
    let at = leaf_of(&all);
    let Some(certificate) = all.get(at) else {
        return Err(end.err().unwrap_or(Unreadable::NoCertificate));
    };
    let mut leaf = Leaf::of(certificate);
    let others = all.iter().map(|it| it.der);
    leaf.chain = set_digest(others.filter(|der| *der != certificate.der));
    leaf.issuer_ends = issuer_ends(certificate, &all);
    let mut remarks = leaf.remarks.into_vec();
    if at > 0 {
        remarks.push(Remark::NotFirst { number: at + 1 });
    }
    let sooner = (1..).zip(&all).min_by_key(|(_, it)| it.not_after);
    remarks.extend(
        sooner
            .filter(|(_, it)| it.not_after < leaf.not_after)
            .map(|(number, it)| Remark::EndsSooner {
                number,
                at: it.not_after,
            }),
    );
    remarks.extend(end.err().map(Remark::Unreadable));
    leaf.remarks = remarks.into();
    Ok(leaf)
}

/// Which of the certificates of a file is the leaf: the first that has issued none of the others and is not a CA.
/// Failing that, the first that has issued none of the others.
///
/// The key would tell, but the watch does not read it.
pub(crate) fn leaf_of(all: &[Certificate<'_>]) -> usize {
    let mut issuers: Vec<&[u8]> = all.iter().map(|it| it.issuer).collect();
    issuers.sort_unstable();
    let has_issued = |certificate: &Certificate<'_>| {
        let own = usize::from(certificate.issuer == certificate.subject);
        let first = issuers.partition_point(|issuer| *issuer < certificate.subject);
        // Its own is one of those that follow.
        issuers.get(first + own) == Some(&certificate.subject)
    };
    let ranked = all.iter().enumerate();
    let first = ranked.min_by_key(|(_, it)| (has_issued(it), it.is_ca()));
    first.map_or(0, |(at, _)| at)
}

/// A field of a leaf as it is kept: nothing of one that is longer than any that is made.
fn kept(field: &[u8]) -> &[u8] {
    if field.len() > MOST_KEPT {
        return &[];
    }
    field
}

/// The end of the certificate that signed the leaf, if it comes before the leaf's; the latest of several for one key.
///
/// What is above that one does not count: a cross-signed root at the end of a chain may have expired, and clients that
/// know the root itself do not look at it.
fn issuer_ends(leaf: &Certificate<'_>, all: &[Certificate<'_>]) -> Option<UnixTime> {
    let named = all.iter().filter(|it| it.subject == leaf.issuer);
    let mut issuers: Vec<&Certificate<'_>> = named.filter(|it| it.der != leaf.der).collect();
    // Checking signatures takes time, and most chains last.
    if issuers.iter().all(|it| it.not_after >= leaf.not_after) {
        return None;
    }
    issuers.sort_unstable_by_key(|it| Reverse(it.not_after));
    let tried = issuers.into_iter().take(MOST_ISSUERS);
    let signer = { tried }.find(|it| leaf.is_signed_by(it) != Some(false))?;
    Some(signer.not_after).filter(|end| *end < leaf.not_after)
}

/// The content of the certificate blocks, up to the first that cannot be decoded.
fn decoded(bytes: &[u8]) -> (Vec<Vec<u8>>, Result<(), Unreadable>) {
    let (mut found, mut keys) = (Vec::new(), 0);
    if bytes.len() > MAX_BYTES {
        return (found, Err(Unreadable::TooLarge(bytes.len())));
    }
    if bytes.trim_ascii().is_empty() {
        return (found, Err(Unreadable::Empty));
    }
    for block in pem::blocks(bytes) {
        if is_certificate(&block) {
            match block.decode_public() {
                Ok(der) => found.push(der),
                Err(fault) => {
                    let number = found.len() + 1;
                    return (found, Err(Unreadable::Pem { number, fault }));
                }
            }
        } else if block.is_private_key() {
            keys += 1;
        }
    }
    let bare = || Certificate::parse(bytes).is_ok_and(|bare| bare.der.len() == bytes.len());
    let end = match (found.is_empty(), keys) {
        (false, _) => Ok(()),
        (true, 0) if bare() => {
            found.push(bytes.to_vec());
            Ok(())
        }
        (true, 0) => Err(other(bytes).map_or(Unreadable::NoCertificate, Unreadable::Other)),
        (true, _) => Err(Unreadable::OnlyKey),
    };
    (found, end)
}

/// The certificates up to the first that cannot be read; `end` is how the file goes on after the last.
fn parsed(
    ders: &[Vec<u8>],
    end: Result<(), Unreadable>,
) -> (Vec<Certificate<'_>>, Result<(), Unreadable>) {
    let mut all = Vec::with_capacity(ders.len());
    for (number, der) in (1..).zip(ders) {
        match Certificate::parse(der) {
            Ok(certificate) => all.push(certificate),
            Err(field) => return (all, Err(Unreadable::X509 { number, field })),
        }
    }
    (all, end)
}

/// Other formats that people put in the place of a certificate.
fn other(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"\xff\xfe")
        || bytes.starts_with(b"\xfe\xff")
        || bytes.starts_with(b"-\0-\0")
    {
        return Some("text in UTF-16");
    }
    let label = pem::blocks(bytes).next().map(|block| block.label);
    match label {
        Some("CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") => Some("a certificate request"),
        Some("PKCS7" | "CMS") => Some("PKCS#7"),
        Some("PUBLIC KEY" | "RSA PUBLIC KEY") => Some("a public key"),
        Some("X509 CRL") => Some("a revocation list"),
        Some(_) => None,
        None => x509::container(bytes),
    }
}

/// RFC 7468, 5.1 and the two older labels that OpenSSL still reads.
fn is_certificate(block: &Block<'_>) -> bool {
    ["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"].contains(&block.label)
}

// === impl Leaf ===

impl Leaf {
    /// The facts about a parsed certificate.
    pub(crate) fn of(certificate: &Certificate<'_>) -> Self {
        let names = certificate.names();
        let mut remarks = Vec::new();
        if names.odd > 0 {
            remarks.push(Remark::OddNames {
                count: names.odd,
                shown: names.shown.join(", "),
            });
        }
        if names.entries > x509::MAX_NAMES {
            let count = names.entries;
            remarks.push(Remark::ManyNames { count });
        }
        Self {
            fingerprint: Fingerprint::of(certificate.der),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            names: names.list,
            self_signed: SelfSigned::of(certificate),
            key_type: KeyType::of_spki(certificate.public_key),
            public_key: kept(certificate.public_key).into(),
            issuer: kept(certificate.issuer).into(),
            serial: certificate.short_serial().into(),
            authority_key_id: certificate.authority_key_id().map(Into::into),
            abilities: certificate.abilities(),
            issuer_ends: None,
            chain: 0,
            remarks: remarks.into(),
        }
    }

    /// From the first to the last valid second; zero when the two are the wrong way round.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.not_after.since(self.not_before)
    }

    /// Until when clients take it: its own end, or that of the certificate that signed it.
    #[must_use]
    pub fn accepted_until(&self) -> UnixTime {
        self.issuer_ends.unwrap_or(self.not_after)
    }

    /// Whether `now` lies within the validity, both ends included.
    #[must_use]
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// The SHA-256 of the DER of one certificate.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            b'A'..=b'F' => Ok(digit - b'A' + 10),
            _ => Err(NotAFingerprint),
        };
        let digits = <&[u8; 64]>::try_from(text.as_bytes()).map_err(|_| NotAFingerprint)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

// === impl KeyType ===

impl KeyType {
    /// All types, in the order of lists.
    pub const ALL: [Self; 5] = [
        Self::EcdsaP256,
        Self::EcdsaP384,
        Self::Rsa2048,
        Self::Rsa3072,
        Self::Rsa4096,
    ];

    /// As annotations write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
            Self::Rsa4096 => "rsa-4096",
        }
    }

    /// The type of the key in a `subjectPublicKeyInfo`; none for Ed25519, P-521, RSA of other sizes.
    #[must_use]
    pub fn of_spki(der: &[u8]) -> Option<Self> {
        let (algorithm, parameters, key) = x509::key_parts(der)?;
        match algorithm {
            rfc5912::RSA_ENCRYPTION => match x509::modulus_bits(key)? {
                2048 => Some(Self::Rsa2048),
                3072 => Some(Self::Rsa3072),
                4096 => Some(Self::Rsa4096),
                _ => None,
            },
            rfc5912::ID_EC_PUBLIC_KEY => match parameters?.decode_as().ok()? {
                rfc5912::SECP_256_R_1 => Some(Self::EcdsaP256),
                rfc5912::SECP_384_R_1 => Some(Self::EcdsaP384),
                _ => None,
            },
            _ => None,
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyType {
    type Err = NotAKeyType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text.trim());
        found.ok_or(NotAKeyType)
    }
}

/// A digest of a set of certificates; 0 of none.
#[must_use]
pub fn set_digest<'a>(ders: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut all: Vec<Fingerprint> = ders.into_iter().map(Fingerprint::of).collect();
    all.sort_unstable();
    all.dedup();
    if all.is_empty() {
        return 0;
    }
    let mut digest = Context::new(&SHA256);
    for one in all {
        digest.update(&one.0);
    }
    let digest = digest.finish();
    let first = digest.as_ref().iter().take(4);
    first
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
        .max(1)
}

#[cfg(test)]
mod tests;

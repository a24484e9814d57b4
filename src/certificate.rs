//! From bytes to the facts about a certificate.
//!
//! Input is what stands in `tls.crt`: PEM in whatever state, or one bare DER.
//! Total: any input yields a [`Leaf`] or an [`Unreadable`], and nothing in either quotes the input.
//! Of a file that holds keys too, only the certificates are decoded.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::digest;
use der::oid::db::rfc5912;
use thiserror::Error;

use crate::name::Name;
use crate::pem::{self, Block};
use crate::time::UnixTime;
use crate::x509::{self, Certificate};

pub use crate::x509::DistinguishedName;

/// Largest input that is looked at: a Secret holds at most 1 MiB (`MaxSecretSize` of Kubernetes).
pub const MAX_BYTES: usize = 1 << 20;

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

/// What is known of the first certificate of a file, the one that a server shows as its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Identifies it everywhere.
    pub fingerprint: Fingerprint,
    /// First second at which it is valid.
    pub not_before: UnixTime,
    /// Last second at which it is valid (RFC 5280, 4.1.2.5: inclusive).
    pub not_after: UnixTime,
    /// DNS names and IP addresses of the SAN; the common name only where there is no SAN.
    pub names: Vec<Name>,
    /// Whether nobody but its own key vouches for it.
    pub self_signed: bool,
    /// The type of its key, when it is one that could be asked for.
    pub key_type: Option<KeyType>,
    /// `subjectPublicKeyInfo`, DER.
    pub public_key: Box<[u8]>,
    /// Who signed it, by the certificate's word; for people and for comparison.
    pub issuer: DistinguishedName,
    /// Content octets of the serial number as encoded, a leading zero kept (RFC 9773, 4.1 wants them).
    pub serial: Box<[u8]>,
    /// Key identifier of the issuer, when the certificate says it.
    pub authority_key_id: Option<Box<[u8]>>,
}

/// Why no certificate can be read. `number` counts the certificates of the file from 1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// Nothing, or nothing but blanks.
    #[error("it is empty, a certificate was expected")]
    Empty,
    /// More than [`MAX_BYTES`].
    #[error("it has {0} bytes, at most {MAX_BYTES} were expected")]
    TooLarge(usize),
    /// Neither PEM nor DER of a certificate.
    #[error("no certificate is in it, a block -----BEGIN CERTIFICATE----- was expected")]
    NoCertificate,
    /// As before, but a key.
    #[error(
        "a private key is in it and no certificate, a block -----BEGIN CERTIFICATE----- was expected"
    )]
    OnlyKey,
    /// The block of a certificate cannot be decoded.
    #[error("certificate {number} is not PEM: {fault}")]
    Pem {
        /// Which one.
        number: usize,
        /// What is wrong.
        fault: pem::Fault,
    },
    /// What the block holds is no certificate.
    #[error("certificate {number} is not X.509: its {field} is missing or broken")]
    X509 {
        /// Which one.
        number: usize,
        /// The first field that cannot be read, by its name in RFC 5280.
        field: &'static str,
    },
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
    let mut found = Vec::new();
    visit(bytes, |certificate| {
        found.push(certificate.der.to_vec());
        true
    })?;
    Ok(found)
}

/// The facts about the first certificate; what follows it is not decoded.
///
/// # Errors
/// When there is none, or it cannot be read. Extensions that cannot be read are no error.
pub fn leaf(bytes: &[u8]) -> Result<Leaf, Unreadable> {
    let mut found = None;
    visit(bytes, |certificate| {
        found = Some(Leaf::of(certificate));
        false
    })?;
    found.ok_or(Unreadable::NoCertificate)
}

/// Shows `each` the certificates in turn until it says that it has seen enough.
fn visit(bytes: &[u8], mut each: impl FnMut(&Certificate<'_>) -> bool) -> Result<(), Unreadable> {
    if bytes.len() > MAX_BYTES {
        return Err(Unreadable::TooLarge(bytes.len()));
    }
    if bytes.trim_ascii().is_empty() {
        return Err(Unreadable::Empty);
    }
    let (mut number, mut keys) = (0, 0);
    for block in pem::blocks(bytes) {
        if is_certificate(&block) {
            number += 1;
            let der = block
                .decode_public()
                .map_err(|fault| Unreadable::Pem { number, fault })?;
            let parsed = Certificate::parse(&der);
            let certificate = parsed.map_err(|field| Unreadable::X509 { number, field })?;
            if !each(&certificate) {
                return Ok(());
            }
        } else if block.is_private_key() {
            keys += 1;
        }
    }
    match (number, keys) {
        (0, 0) => match Certificate::parse(bytes) {
            Ok(bare) if bare.der.len() == bytes.len() => {
                each(&bare);
                Ok(())
            }
            _ => Err(Unreadable::NoCertificate),
        },
        (0, _) => Err(Unreadable::OnlyKey),
        _ => Ok(()),
    }
}

/// RFC 7468, 5.1 and the two older labels that OpenSSL still reads.
fn is_certificate(block: &Block<'_>) -> bool {
    ["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"].contains(&block.label)
}

// === impl Leaf ===

impl Leaf {
    /// The facts about a certificate that was parsed already.
    pub(crate) fn of(certificate: &Certificate<'_>) -> Self {
        let same_name = certificate.issuer == certificate.subject;
        Self {
            fingerprint: Fingerprint::of(certificate.der),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            names: certificate.names(),
            // Where the signature cannot be checked, the two equal names decide.
            self_signed: same_name && certificate.is_signed_by(certificate) != Some(false),
            key_type: KeyType::of_spki(certificate.public_key),
            public_key: certificate.public_key.into(),
            issuer: certificate.issuer.into(),
            serial: certificate.serial.into(),
            authority_key_id: certificate.authority_key_id().map(Into::into),
        }
    }

    /// From the first to the last valid second; zero when the two are the wrong way round.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.not_after.since(self.not_before)
    }

    /// Whether `now` lies within the validity, both ends included.
    #[must_use]
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Of the DER of one certificate.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, der).as_ref());
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
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotAFingerprint);
        }
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| NotAFingerprint)?;
        }
        Ok(Self(bytes))
    }
}

// === impl KeyType ===

impl KeyType {
    /// All of them, in the order in which they are listed.
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

#[cfg(test)]
mod tests {
    use der::Decode as _;

    use super::*;

    fn file(name: &str) -> Vec<u8> {
        let path = format!(
            "{}/testdata/certificates/{name}",
            env!("CARGO_MANIFEST_DIR")
        );
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn names(leaf: &Leaf) -> String {
        leaf.names
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02X}")).collect()
    }

    #[test]
    fn openssl_reads_the_same_in_every_file() {
        let table = String::from_utf8(file("facts.tsv")).unwrap();
        for line in table.lines() {
            let [name, fingerprint, from, until, serial, key] =
                line.split('\t').collect::<Vec<_>>().try_into().unwrap();
            let leaf = leaf(&file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(leaf.fingerprint, fingerprint.parse().unwrap(), "{name}");
            assert_eq!(leaf.not_before, from.parse().unwrap(), "{name}");
            assert_eq!(
                Fingerprint::of(&leaf.public_key),
                key.parse().unwrap(),
                "{name}"
            );
            // OpenSSL prints the number, we keep the octets; the test below has the difference.
            let octets = hex(&leaf.serial);
            assert!(
                octets.ends_with(serial) || serial == "-05",
                "{name}: {octets}"
            );
            // jiff reads no time of the last day of 9999.
            let until = until.parse().unwrap_or(UnixTime(253_402_300_799));
            assert_eq!(leaf.not_after, until, "{name}");
        }
        assert!(table.lines().count() > 40);
    }

    #[test]
    fn the_text_around_it_does_not_matter() {
        let good = certificates(&file("good.pem")).unwrap();
        assert_eq!(good.len(), 2);
        for name in [
            "crlf",
            "trailing-blanks",
            "indented",
            "glued",
            "unwrapped",
            "columns-76",
            "no-last-newline",
            "with-text",
            "byte-order-mark",
            "key-first",
            "key-last",
        ] {
            assert_eq!(
                certificates(&file(&format!("{name}.pem"))).unwrap(),
                good,
                "{name}"
            );
        }
        for name in [
            "x509-label.pem",
            "trusted.pem",
            "bare.der",
            "commented-out.pem",
        ] {
            assert_eq!(certificates(&file(name)).unwrap(), good[..1], "{name}");
        }
    }

    #[test]
    fn names_come_from_the_san() {
        for (name, expected) in [
            (
                "good",
                "shop.example.com *.shop.example.com 10.0.0.1 2001:db8::1",
            ),
            ("no-common-name", "only.example.com"),
            ("common-name-only", "old.example.com"),
            ("bmp-string", "bmp.example.com"),
            ("no-name", ""),
            ("empty-san", ""),
            ("broken-san", ""),
            ("unknown-critical", "critical.example.com"),
            ("other-names", "_sip.example.com last.example.com"),
        ] {
            assert_eq!(
                names(&leaf(&file(&format!("{name}.pem"))).unwrap()),
                expected,
                "{name}"
            );
        }
        assert_eq!(leaf(&file("many-names.pem")).unwrap().names.len(), 600);
    }

    #[test]
    fn a_serial_is_kept_as_encoded() {
        for (name, octets) in [
            ("negative", "FB"),
            ("zero", "00"),
            ("leading-zero", "008765"),
            ("20-bytes", "7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"),
            ("21-bytes", "00FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"),
        ] {
            assert_eq!(
                hex(&leaf(&file(&format!("serial-{name}.pem"))).unwrap().serial),
                octets,
                "{name}"
            );
        }
    }

    #[test]
    fn key_types_and_signers_are_told_apart() {
        for (name, kind) in [
            ("good", Some(KeyType::EcdsaP256)),
            ("p384", Some(KeyType::EcdsaP384)),
            ("rsa-2048", Some(KeyType::Rsa2048)),
            ("rsa-3072", Some(KeyType::Rsa3072)),
            ("p521", None),
            ("ed25519", None),
            ("ed448", None),
            ("rsa-pss", None),
        ] {
            assert_eq!(
                leaf(&file(&format!("{name}.pem"))).unwrap().key_type,
                kind,
                "{name}"
            );
        }
        for (name, self_signed) in [
            ("self-signed", true),
            ("root", true),
            ("good", false),
            ("intermediate", false),
        ] {
            assert_eq!(
                leaf(&file(&format!("{name}.pem"))).unwrap().self_signed,
                self_signed,
                "{name}"
            );
        }
        let good = leaf(&file("good.pem")).unwrap();
        assert_eq!(good.issuer.to_string(), "CN=Test Intermediate,O=Test");
        assert_eq!(good.authority_key_id.map(|id| id.len()), Some(20));
        assert_eq!(
            good.not_after.since(good.not_before),
            Duration::from_secs(90 * 86_400)
        );
    }

    #[test]
    fn x509_cert_reads_the_same_issuer_and_key_id() {
        use x509_cert::ext::pkix::AuthorityKeyIdentifier;
        for name in [
            "good.pem",
            "intermediate.pem",
            "rsa-2048.pem",
            "many-names.pem",
            "bmp-string.pem",
        ] {
            let bytes = file(name);
            let other =
                x509_cert::Certificate::from_der(&certificates(&bytes).unwrap()[0]).unwrap();
            let own = leaf(&bytes).unwrap();
            assert_eq!(
                own.issuer.to_string(),
                other.tbs_certificate().issuer().to_string(),
                "{name}"
            );
            let id = other
                .tbs_certificate()
                .get_extension::<AuthorityKeyIdentifier>()
                .unwrap();
            let id = id
                .and_then(|(_, id)| id.key_identifier)
                .map(|id| id.as_bytes().into());
            assert_eq!(own.authority_key_id, id, "{name}");
        }
    }

    #[test]
    fn the_reason_says_what_is_wrong() {
        let pem = |fault| Unreadable::Pem { number: 1, fault };
        for (name, reason) in [
            ("broken-empty.pem", Unreadable::Empty),
            ("broken-blank.pem", Unreadable::Empty),
            ("broken-text.pem", Unreadable::NoCertificate),
            ("broken-only-key.pem", Unreadable::OnlyKey),
            ("broken-truncated.pem", pem(pem::Fault::Truncated)),
            ("broken-base64.pem", pem(pem::Fault::Base64)),
            ("broken-backslash-n.pem", pem(pem::Fault::Base64)),
            ("broken-encoded-twice.pem", Unreadable::NoCertificate),
            ("broken-request.pem", Unreadable::NoCertificate),
            ("broken-cut.der", Unreadable::NoCertificate),
            ("pkcs8.der", Unreadable::NoCertificate),
        ] {
            assert_eq!(leaf(&file(name)), Err(reason), "{name}");
        }
        let lost = leaf(&file("broken-line-lost.pem"));
        assert!(
            matches!(lost, Err(Unreadable::X509 { number: 1, .. })),
            "{lost:?}"
        );
        let second = certificates(&file("second-broken.pem"));
        assert!(
            matches!(second, Err(Unreadable::X509 { number: 2, .. })),
            "{second:?}"
        );
        assert!(leaf(&file("second-broken.pem")).is_ok());
        let large = vec![b'a'; MAX_BYTES + 1];
        assert_eq!(leaf(&large), Err(Unreadable::TooLarge(MAX_BYTES + 1)));
    }

    /// Every byte changed, every length cut, and many bytes changed at once: any result will do.
    #[test]
    fn no_input_panics() {
        let mut seeds = vec![file("good.pem"), file("key-first.pem"), file("glued.pem")];
        for name in [
            "good",
            "rsa-2048",
            "other-names",
            "bmp-string",
            "self-signed",
            "ed25519",
        ] {
            seeds.extend(certificates(&file(&format!("{name}.pem"))).unwrap());
        }
        // A small linear generator: the same inputs in every run.
        let mut state = 1_u32;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        for seed in seeds {
            for at in 0..seed.len() {
                let _ = leaf(&seed[..at]);
                let mut changed = seed.clone();
                for _ in 0..=random(4) {
                    let byte = random(256) as u8;
                    changed[random(seed.len())] = byte;
                }
                changed[at] = random(256) as u8;
                let _ = leaf(&changed).map(|leaf| leaf.lifetime());
            }
        }
    }

    #[test]
    fn fingerprints_and_key_types_are_printed_and_parsed() {
        let print = Fingerprint::of(b"");
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(print.to_string(), text);
        assert_eq!(text.parse(), Ok(print));
        for bad in ["", "e3b0", &text.replace('e', "g"), &"é".repeat(32)] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(NotAFingerprint), "{bad}");
        }
        for kind in KeyType::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!("rsa-1024".parse::<KeyType>(), Err(NotAKeyType));
    }
}

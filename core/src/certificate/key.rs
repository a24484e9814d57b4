//! Private keys: generated, read, written, and used to sign a certificate request.
//!
//! Input is key material in PEM or DER.
//! The key lives inside aws-lc, which clears it when it is freed; every copy that leaves it is
//! [`Zeroizing`]. Nothing here prints or quotes a key; errors contain nothing of their input.
//! rcgen only builds the request: it gets the signer, never the key.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, PublicKeyData, SanType, SignatureAlgorithm,
    SigningKey,
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::certificate::{KeyType, MAX_BYTES};
use crate::certificate::{pem, x509};
use crate::text::name::Name;

/// Longest common name, in characters (`ub-common-name`, RFC 5280, A.1).
const MOST_COMMON: usize = 64;

/// A private key for signatures. Debug shows its type only.
pub struct PrivateKey(Pair);

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

/// Why there is no key, or no request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Empty, or only whitespace.
    #[error("it is empty, a private key was expected")]
    Empty,
    /// More than [`MAX_BYTES`].
    #[error("it has {0} bytes, at most {MAX_BYTES} were expected")]
    TooLarge(usize),
    /// Neither PEM nor DER of a private key.
    #[error("no private key is in it, a block -----BEGIN PRIVATE KEY----- was expected")]
    NoKey,
    /// A block with the label of a key cannot be decoded.
    #[error("the private key is not PEM: {0}")]
    Pem(pem::Fault),
    /// A passphrase would be needed.
    #[error("the private key is encrypted, one without a passphrase was expected")]
    Encrypted,
    /// The key decodes, but its kind is not supported.
    #[error(
        "the private key is {0}, and cert-renew reads RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521) and Ed25519"
    )]
    Unsupported(String),
    /// The block decodes, but is not a key.
    #[error("the private key is broken: PKCS#8, PKCS#1 or SEC1 was expected")]
    Broken,
    /// The crypto library failed.
    #[error("the crypto library could not make a key")]
    Generate,
    /// A request needs at least one name, each in ASCII.
    #[error("the request cannot be built for these names")]
    Names,
    /// The crypto library failed.
    #[error("the crypto library could not sign or encode with the key")]
    Use,
}

/// Curves in the order in which they are tried.
static CURVES: [&EcdsaSigningAlgorithm; 3] = [
    &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
    &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
    &signature::ECDSA_P521_SHA512_ASN1_SIGNING,
];

impl PrivateKey {
    /// Makes a new key. RSA takes from 0.1 s (2048) to seconds (4096): call it where blocking is allowed.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn generate(kind: KeyType) -> Result<Self, KeyError> {
        let ecdsa = |curve| EcdsaKeyPair::generate(curve).map(Pair::Ecdsa);
        let rsa = |size| RsaKeyPair::generate(size).map(Pair::Rsa);
        let pair = match kind {
            KeyType::EcdsaP256 => ecdsa(CURVES[0]),
            KeyType::EcdsaP384 => ecdsa(CURVES[1]),
            KeyType::Rsa2048 => rsa(KeySize::Rsa2048),
            KeyType::Rsa3072 => rsa(KeySize::Rsa3072),
            KeyType::Rsa4096 => rsa(KeySize::Rsa4096),
        };
        pair.map(Self).map_err(|_| KeyError::Generate)
    }

    /// Reads the first private key of a file: PKCS#8, PKCS#1 or SEC1 in PEM, with other blocks around it (parameters,
    /// certificates), or one bare DER of the same.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn from_pem(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() > MAX_BYTES {
            return Err(KeyError::TooLarge(bytes.len()));
        }
        if bytes.trim_ascii().is_empty() {
            return Err(KeyError::Empty);
        }
        let mut blocks = pem::blocks(bytes).peekable();
        if blocks.peek().is_none() {
            return Self::from_der(bytes).ok_or(KeyError::NoKey);
        }
        let block = blocks
            .find(pem::Block::is_private_key)
            .ok_or(KeyError::NoKey)?;
        if block.is_encrypted() {
            return Err(KeyError::Encrypted);
        }
        let der = block.decode().map_err(KeyError::Pem)?;
        Self::from_der(&der).ok_or_else(|| {
            x509::unsupported_key(&der).map_or(KeyError::Broken, KeyError::Unsupported)
        })
    }

    /// Labels may be wrong, so the content decides: each parser refuses other encodings.
    fn from_der(der: &[u8]) -> Option<Self> {
        let ecdsa = CURVES
            .iter()
            .find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, der).ok());
        let pair = ecdsa
            .map(Pair::Ecdsa)
            .or_else(|| RsaKeyPair::from_pkcs8(der).ok().map(Pair::Rsa))
            .or_else(|| RsaKeyPair::from_der(der).ok().map(Pair::Rsa))
            .or_else(|| {
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
                    .ok()
                    .map(Pair::Ed25519)
            });
        pair.map(Self)
    }

    /// PKCS#8 (RFC 5958), DER.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn to_der(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        // The library's own buffers clear themselves.
        let copy = |bytes: &[u8]| Zeroizing::new(bytes.to_vec());
        let der = match &self.0 {
            Pair::Ecdsa(pair) => pair.to_pkcs8v1().map(|document| copy(document.as_ref())),
            Pair::Ed25519(pair) => pair.to_pkcs8v1().map(|document| copy(document.as_ref())),
            Pair::Rsa(pair) => {
                AsDer::<Pkcs8V1Der<'_>>::as_der(pair).map(|document| copy(document.as_ref()))
            }
        };
        der.map_err(|_| KeyError::Use)
    }

    /// PKCS#8 (RFC 5958) in PEM, whatever form the key was read from.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        Ok(pem::encode("PRIVATE KEY", &self.to_der()?))
    }

    /// `subjectPublicKeyInfo`, DER: equal to a certificate's [`crate::certificate::Leaf::public_key`]
    /// when the two belong together.
    #[must_use]
    pub fn public_key(&self) -> Vec<u8> {
        self.subject_public_key_info()
    }

    /// The type, if it is one that can be asked for; an Ed25519 or P-521 key works and has none.
    #[must_use]
    pub fn key_type(&self) -> Option<KeyType> {
        KeyType::of_spki(&self.public_key())
    }

    /// A certificate signing request (RFC 2986), DER, with the names in a SAN. The subject is empty, as most CAs ignore
    /// it, or with `common_name` the first DNS name that fits into one (RFC 5280, A.1: at most 64 characters).
    ///
    /// # Errors
    /// When `names` is empty or not ASCII, or the crypto library fails.
    pub fn csr(&self, names: &[Name], common_name: bool) -> Result<Vec<u8>, KeyError> {
        let san = |name: &Name| match name {
            Name::Dns(name) => name.to_string().try_into().ok().map(SanType::DnsName),
            Name::Ip(ip) => Some(SanType::IpAddress(*ip)),
        };
        let sans: Option<Vec<_>> = names.iter().map(san).collect();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let fits = |name: &&Name| matches!(name, Name::Dns(name) if name.len() <= MOST_COMMON);
        if let Some(first) = names.iter().find(fits).filter(|_| common_name) {
            let first = first.to_string();
            params.distinguished_name.push(DnType::CommonName, first);
        }
        params.subject_alt_names = sans
            .filter(|sans| !sans.is_empty())
            .ok_or(KeyError::Names)?;
        let request = params.serialize_request(self).map_err(|_| KeyError::Use)?;
        Ok(request.der().to_vec())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.key_type().map_or("of another type", KeyType::as_str);
        write!(f, "PrivateKey({kind})")
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        match &self.0 {
            Pair::Ecdsa(pair) => pair.public_key().as_ref(),
            Pair::Ed25519(pair) => pair.public_key().as_ref(),
            Pair::Rsa(pair) => pair.public_key().as_ref(),
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match &self.0 {
            Pair::Ecdsa(pair) if pair.algorithm() == CURVES[0] => &rcgen::PKCS_ECDSA_P256_SHA256,
            Pair::Ecdsa(pair) if pair.algorithm() == CURVES[1] => &rcgen::PKCS_ECDSA_P384_SHA384,
            Pair::Ecdsa(_) => &rcgen::PKCS_ECDSA_P521_SHA512,
            Pair::Ed25519(_) => &rcgen::PKCS_ED25519,
            Pair::Rsa(_) => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

impl SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let random = SystemRandom::new();
        match &self.0 {
            Pair::Ecdsa(pair) => pair
                .sign(&random, message)
                .map(|made| made.as_ref().to_vec()),
            Pair::Ed25519(pair) => pair.try_sign(message).map(|made| made.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut made = vec![0; pair.public_modulus_len()];
                let signed = pair.sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut made);
                signed.map(|()| made)
            }
        }
        .map_err(|_| rcgen::Error::RingUnspecified)
    }
}

#[cfg(test)]
mod tests {
    use der::Decode as _;

    use super::*;

    #[test]
    fn every_type_is_made_written_and_read_back() {
        for kind in KeyType::ALL {
            let key = PrivateKey::generate(kind).unwrap();
            assert_eq!(key.key_type(), Some(kind));
            let pem = key.to_pem().unwrap();
            assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{kind}");
            let again = PrivateKey::from_pem(pem.as_bytes()).unwrap();
            assert_eq!(again.public_key(), key.public_key(), "{kind}");
            assert_eq!(format!("{key:?}"), format!("PrivateKey({kind})"));
            let bare = PrivateKey::from_pem(&key.to_der().unwrap()).unwrap();
            assert_eq!(bare.public_key(), key.public_key(), "{kind}");
        }
    }

    #[test]
    fn openssl_reads_the_same_key_in_every_file() {
        use crate::certificate::Fingerprint;
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/certificates");
        let file = |name: &str| std::fs::read(format!("{directory}/{name}")).unwrap();
        let table = String::from_utf8(file("keys.tsv")).unwrap();
        for line in table.lines() {
            let (name, public) = line.split_once('\t').unwrap();
            let key =
                PrivateKey::from_pem(&file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(
                Fingerprint::of(&key.public_key()),
                public.parse().unwrap(),
                "{name}"
            );
            let again = PrivateKey::from_pem(key.to_pem().unwrap().as_bytes()).unwrap();
            assert_eq!(again.public_key(), key.public_key(), "{name}");
        }
        assert_eq!(table.lines().count(), 13);
        for (name, error) in [
            ("encrypted.key", KeyError::Encrypted),
            ("encrypted-legacy.key", KeyError::Encrypted),
            ("ed448.key", KeyError::Unsupported("Ed448".to_owned())),
            ("rsa-pss.key", KeyError::Unsupported("RSA-PSS".to_owned())),
        ] {
            assert_eq!(
                PrivateKey::from_pem(&file(name)).err(),
                Some(error),
                "{name}"
            );
        }
        assert!(PrivateKey::from_pem(&file("indented.key")).is_ok());
        assert!(PrivateKey::from_pem(&file("key-last.pem")).is_ok());
    }

    #[test]
    fn a_request_holds_the_names_and_no_subject() {
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let names: Vec<Name> = ["*.example.com", "10.0.0.1", "::1"]
            .iter()
            .map(|name| name.parse().unwrap())
            .collect();
        let csr = key.csr(&names, false).unwrap();
        let request = x509_cert::request::CertReq::from_der(&csr).unwrap();
        assert!(request.info.subject.is_empty());
        let long = format!("{}.example.com", "x".repeat(60)).parse().unwrap();
        let named = [vec![names[1].clone(), long], names.clone()].concat();
        let named = key.csr(&named, true).unwrap();
        let named = x509_cert::request::CertReq::from_der(&named).unwrap();
        assert_eq!(named.info.subject.to_string(), "CN=*.example.com");
        // dNSName, iPAddress of four and of sixteen octets (RFC 5280, 4.2.1.6).
        for part in [
            b"\x82\x0d*.example.com".as_slice(),
            b"\x87\x04\x0a\0\0\x01",
            b"\x87\x10",
        ] {
            assert!(
                csr.windows(part.len()).any(|window| window == part),
                "{part:?}"
            );
        }
        assert_eq!(key.csr(&[], false), Err(KeyError::Names));
        assert_eq!(
            key.csr(&[Name::Dns("bücher".into())], false),
            Err(KeyError::Names)
        );
    }

    #[test]
    fn what_is_no_key_is_refused_for_its_reason() {
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----";
        let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n\
                      AAAA\n-----END RSA PRIVATE KEY-----";
        for (text, error) in [
            ("", KeyError::Empty),
            (" \n", KeyError::Empty),
            ("nonsense", KeyError::NoKey),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
                KeyError::NoKey,
            ),
            (encrypted, KeyError::Encrypted),
            (legacy, KeyError::Encrypted),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
                KeyError::Broken,
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n",
                KeyError::Pem(pem::Fault::Truncated),
            ),
            (
                "-----BEGIN PRIVATE KEY-----\n?\n-----END PRIVATE KEY-----",
                KeyError::Pem(pem::Fault::Base64),
            ),
        ] {
            assert_eq!(
                PrivateKey::from_pem(text.as_bytes()).err(),
                Some(error),
                "{text}"
            );
        }
        let large = vec![b'a'; MAX_BYTES + 1];
        assert_eq!(
            PrivateKey::from_pem(&large).err(),
            Some(KeyError::TooLarge(MAX_BYTES + 1))
        );
    }
}

//! Certificates for the Secrets of the tests: any validity, names, key and serial number; self-signed or by a test CA.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, RsaKeySize, SerialNumber,
};
use time::OffsetDateTime;

/// Seconds of an hour.
pub const HOUR: i64 = 60 * 60;
/// Seconds of a day.
pub const DAY: i64 = 24 * HOUR;

/// Type of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA of 2048 bits.
    Rsa2048,
}

/// The content of a certificate.
#[derive(Clone, Debug)]
pub struct Template {
    names: Vec<String>,
    not_before: i64,
    not_after: i64,
    key: Key,
    serial: Option<Vec<u8>>,
}

/// A certificate chain and a key, both PEM, as in a TLS Secret.
#[derive(Clone, Debug)]
pub struct Pair {
    /// `tls.crt`: the leaf, then its issuers, without the root.
    pub certificate: String,
    /// `tls.key`: PKCS#8.
    pub key: String,
}

/// A CA with a root and an intermediate.
pub struct TestCa {
    root: String,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

impl Template {
    /// A template for these DNS names and IP addresses, on P-256: 60 of its 90 days are over.
    #[must_use]
    pub fn new(names: &[&str]) -> Self {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            names,
            not_before: -60 * DAY,
            not_after: 30 * DAY,
            key: Key::P256,
            serial: None,
        }
    }

    /// Sets the validity in seconds from now: `between(-91 * DAY, -DAY)` expired yesterday.
    #[must_use]
    pub fn between(mut self, not_before: i64, not_after: i64) -> Self {
        (self.not_before, self.not_after) = (not_before, not_after);
        self
    }

    /// Sets the type of key.
    #[must_use]
    pub fn key(mut self, key: Key) -> Self {
        self.key = key;
        self
    }

    /// Sets the serial number, which is random otherwise.
    #[must_use]
    pub fn serial(mut self, serial: &[u8]) -> Self {
        self.serial = Some(serial.to_owned());
        self
    }

    /// Makes the certificate, signed by its own key.
    ///
    /// # Errors
    /// When a name is invalid.
    pub fn self_signed(&self) -> Result<Pair> {
        let (params, key) = (self.params()?, self.key.generate()?);
        let leaf = params.self_signed(&key)?;
        Ok(Pair {
            certificate: leaf.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Makes the certificate, signed by the intermediate of `ca`.
    ///
    /// # Errors
    /// When a name is invalid.
    pub fn signed_by(&self, ca: &TestCa) -> Result<Pair> {
        let (params, key) = (self.params()?, self.key.generate()?);
        let issuer: &Issuer<'_, _> = &ca.intermediate;
        let leaf = params.signed_by(&key, issuer)?;
        let certificate = format!("{}{}", leaf.pem(), ca.intermediate.pem());
        Ok(Pair {
            certificate,
            key: key.serialize_pem(),
        })
    }

    fn params(&self) -> Result<CertificateParams> {
        let mut params = CertificateParams::new(self.names.clone())?;
        // As ACME CAs do: the names are only in the SAN.
        params.distinguished_name.remove(DnType::CommonName);
        params.not_before = from_now(self.not_before)?;
        params.not_after = from_now(self.not_after)?;
        params.serial_number = self.serial.clone().map(SerialNumber::from);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

impl Key {
    fn generate(self) -> Result<KeyPair> {
        Ok(match self {
            Self::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?,
            Self::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)?,
            Self::Rsa2048 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048)?,
        })
    }
}

impl Pair {
    /// The same certificate with the key of another.
    #[must_use]
    pub fn with_key_of(&self, other: &Self) -> Self {
        Self {
            key: other.key.clone(),
            ..self.clone()
        }
    }
}

impl TestCa {
    /// A new CA whose certificates bear this name.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn new(name: &str) -> Result<Self> {
        Self::made(name, None)
    }

    /// The same, whose intermediate ends in this number of seconds.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn ending(name: &str, seconds: i64) -> Result<Self> {
        Self::made(name, Some(seconds))
    }

    fn made(name: &str, seconds: Option<i64>) -> Result<Self> {
        let params = |role: &str| -> Result<_> {
            let mut params = CertificateParams::new(Vec::new())?;
            params
                .distinguished_name
                .push(DnType::CommonName, format!("{name} {role}"));
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            Ok(params)
        };
        let root = CertifiedIssuer::self_signed(params("root")?, KeyPair::generate()?)?;
        let mut params = params("intermediate")?;
        if let Some(seconds) = seconds {
            params.not_after = from_now(seconds)?;
        }
        let intermediate = CertifiedIssuer::signed_by(params, KeyPair::generate()?, &root)?;
        Ok(Self {
            root: root.pem(),
            intermediate,
        })
    }

    /// PEM of the intermediate.
    #[must_use]
    pub fn intermediate(&self) -> String {
        self.intermediate.pem()
    }

    /// PEM of the root.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }
}

fn from_now(seconds: i64) -> Result<OffsetDateTime> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    OffsetDateTime::from_unix_timestamp(now + seconds).context("an instant out of range")
}

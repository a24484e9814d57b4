//! The key of a certificate: a new one, or with `key-rotation: never` the current one.
//!
//! A key that is to be kept is used whatever its kind, or nothing is ordered: it is never replaced silently.

use cert_renew_core::certificate::KeyType;
use cert_renew_core::certificate::key::{KeyError, PrivateKey};
use cert_renew_core::schedule::due::Reason;
use cert_renew_core::secret::settings::KeyRotation;

use crate::renewal::outcome::failure::Failure;
use crate::renewal::target::RenewalTarget;

/// Whether a certificate keeps its key or gets a new one.
pub(in crate::renewal) enum KeyChoice {
    /// The current key.
    Keep(PrivateKey),
    /// A new one of this type.
    Make(KeyType),
}

impl RenewalTarget {
    /// The key that the Secret asks for now.
    ///
    /// # Errors
    /// [`Failure::KeptKey`] where the one that is to be kept cannot be read.
    pub(in crate::renewal) fn key_choice(&self) -> Result<KeyChoice, Failure> {
        let kind = self.assessment.key_type().unwrap_or(KeyType::EcdsaP256);
        let due = self.assessment.renewal;
        let is_compromised = due.is_ok_and(|due| due.reason == Reason::Revoked);
        if self.assessment.settings.key_rotation == KeyRotation::Always || is_compromised {
            return Ok(KeyChoice::Make(kind));
        }
        match PrivateKey::from_pem(self.secret.pair().1) {
            Ok(key) => Ok(KeyChoice::Keep(key)),
            Err(KeyError::Empty) => Ok(KeyChoice::Make(kind)),
            Err(error) => Err(Failure::KeptKey(error)),
        }
    }

    /// Whether an order made with this key still fits what the Secret asks for.
    pub(in crate::renewal) fn asks_for(&self, key: &PrivateKey) -> bool {
        match self.key_choice() {
            Ok(KeyChoice::Keep(kept)) => kept.public_key() == key.public_key(),
            Ok(KeyChoice::Make(kind)) => key.key_type() == Some(kind) && !self.holds(key),
            Err(_) => false,
        }
    }

    /// Whether a certificate for this key may be written: it must not replace another key that is to be kept.
    pub(in crate::renewal) fn may_take(&self, key: &PrivateKey) -> bool {
        match self.key_choice() {
            Ok(KeyChoice::Keep(kept)) => kept.public_key() == key.public_key(),
            Ok(KeyChoice::Make(_)) => true,
            Err(_) => false,
        }
    }

    fn holds(&self, key: &PrivateKey) -> bool {
        let present = PrivateKey::from_pem(self.secret.pair().1);
        present.is_ok_and(|present| present.public_key() == key.public_key())
    }
}

impl KeyChoice {
    /// The key itself. Generating an RSA key takes up to seconds of CPU.
    ///
    /// # Errors
    /// When none can be made.
    pub(in crate::renewal) async fn key(self) -> Result<PrivateKey, Failure> {
        match self {
            Self::Keep(key) => Ok(key),
            // A hop to another thread would take longer.
            Self::Make(kind @ (KeyType::EcdsaP256 | KeyType::EcdsaP384)) => {
                Ok(PrivateKey::generate(kind)?)
            }
            Self::Make(kind) => {
                let generated = tokio::task::spawn_blocking(move || PrivateKey::generate(kind));
                let generated = generated.await.map_err(|_| Failure::Stopped)?;
                Ok(generated?)
            }
        }
    }
}

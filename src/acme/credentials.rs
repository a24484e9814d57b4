//! The account key, before and after there is an account (RFC 8555, section 7.3).
//!
//! [`Credentials`] exist before the account does: the key is generated, stored, and only then registered, so that a
//! crash in between costs neither a key nor a single-use external account binding.
//! Their JSON has the members of instant-acme's, so that an existing account can be used.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

use crate::acme::transport::jws::AccountKey;

/// Bytes reserved for the JSON: a reallocation would leave a copy of the key behind.
const JSON: usize = 4_096;

/// The account for which requests are signed.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) url: String,
    pub(super) key: AccountKey,
}

/// An account key, and the account once it is registered. Debug hides the key.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(super) directory: String,
    pub(super) key: Zeroizing<Vec<u8>>,
    pub(super) account: Option<String>,
    pub(super) contact: Vec<String>,
}

/// Why stored credentials cannot be used.
#[derive(Debug, ThisError)]
pub enum Unusable {
    /// Not the JSON that [`Credentials::to_json`] writes.
    #[error("expected account credentials as JSON with the members directory and key_pkcs8")]
    Json(#[source] serde_json::Error),
    /// Another kind of key, or a damaged one.
    #[error("the account's key_pkcs8 is damaged: expected an ECDSA P-256 key in PKCS#8, base64url")]
    Key,
    /// The issuer's directory was changed in the config file.
    #[error("the account belongs to {found}, but the issuer's directory is {expected}")]
    OtherCa {
        /// From the credentials.
        found: String,
        /// From the settings.
        expected: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    directory: String,
    #[serde(borrow)]
    key_pkcs8: &'a str,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    contact: Vec<String>,
}

impl Credentials {
    /// A new key for the CA at `directory`, to be stored before it is registered.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(directory: &str) -> Result<Self, Unusable> {
        let key = AccountKey::generate().map_err(|_| Unusable::Key)?;
        Ok(Self {
            directory: directory.to_owned(),
            key: Zeroizing::new(key.pkcs8().to_vec()),
            account: None,
            contact: Vec::new(),
        })
    }

    /// Reads what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// When the text is something else.
    pub fn from_json(json: &[u8]) -> Result<Self, Unusable> {
        let stored: Stored<'_> = serde_json::from_slice(json).map_err(Unusable::Json)?;
        let key = Zeroizing::new(BASE64.decode(stored.key_pkcs8).map_err(|_| Unusable::Key)?);
        AccountKey::from_pkcs8(&key).map_err(|_| Unusable::Key)?;
        Ok(Self {
            directory: stored.directory,
            key,
            account: stored.id,
            contact: stored.contact,
        })
    }

    /// The JSON for the Secret that stores the account: it contains the private key.
    ///
    /// # Errors
    /// None in practice: strings always serialise.
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, Unusable> {
        let mut json = Zeroizing::new(Vec::with_capacity(JSON));
        let key = Zeroizing::new(BASE64.encode(&self.key));
        let stored = Stored {
            directory: self.directory.clone(),
            key_pkcs8: &key,
            id: self.account.clone(),
            contact: self.contact.clone(),
        };
        serde_json::to_writer(&mut *json, &stored).map_err(Unusable::Json)?;
        Ok(json)
    }

    /// Whether the account belongs to the CA at `directory`, now or once registered.
    #[must_use]
    pub fn belongs_to(&self, directory: &str) -> bool {
        self.directory == directory
    }

    /// The account's URL; `None` while the key is not registered.
    #[must_use]
    pub fn account_url(&self) -> Option<&str> {
        self.account.as_deref()
    }

    /// The contacts last sent to the CA.
    #[must_use]
    pub fn contact(&self) -> &[String] {
        &self.contact
    }

    /// The same key with this account.
    pub(super) fn registered_as(&self, account: String) -> Self {
        Self {
            account: Some(account),
            ..self.clone()
        }
    }

    /// A new key for the same account, to be stored before the CA gets it.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn successor(&self) -> Result<Self, Unusable> {
        let fresh = Self::generate(&self.directory)?;
        Ok(Self {
            contact: self.contact.clone(),
            ..fresh
        })
    }

    /// The CA's directory.
    #[must_use]
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// The same key without its account, for a CA that no longer has it.
    #[must_use]
    pub fn unregistered(&self) -> Self {
        Self {
            account: None,
            ..self.clone()
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            directory,
            key: _,
            account,
            contact,
        } = self;
        f.debug_struct("Credentials")
            .field("directory", directory)
            .field("account", account)
            .field("contact", contact)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use zeroize::ZeroizeOnDrop;

    use super::*;

    /// Compiles only for what is wiped on drop.
    fn is_wiped<T: ZeroizeOnDrop>(_: &T) {}

    #[test]
    fn the_key_is_wiped_as_it_is_kept_and_as_it_is_stored() {
        let credentials = Credentials::generate("https://ca/dir").unwrap();
        is_wiped(&credentials.key);
        is_wiped(&credentials.to_json().unwrap());
        let again = Credentials::from_json(&credentials.to_json().unwrap()).unwrap();
        is_wiped(&again.unregistered().key);
    }

    #[test]
    fn credentials_survive_storing_before_and_after_registration() {
        let fresh = Credentials::generate("https://ca/dir").unwrap();
        assert_eq!(fresh.account_url(), None);
        assert_eq!(
            Credentials::from_json(&fresh.to_json().unwrap()).unwrap(),
            fresh
        );

        let registered = Credentials {
            account: Some("https://ca/acct/1".to_owned()),
            contact: vec!["mailto:ops@example.com".to_owned()],
            ..fresh.clone()
        };
        let json = registered.to_json().unwrap();
        assert_eq!(Credentials::from_json(&json).unwrap(), registered);
        assert_eq!(registered.unregistered().account_url(), None);
        assert!(json.capacity() == JSON, "the buffer was reallocated");
        // instant-acme can read them too.
        assert!(serde_json::from_slice::<instant_acme::AccountCredentials>(&json).is_ok());
    }

    #[test]
    fn the_key_is_not_in_debug_and_not_in_errors() {
        let credentials = Credentials::generate("https://ca/dir").unwrap();
        let json = String::from_utf8(credentials.to_json().unwrap().to_vec()).unwrap();
        let key = BASE64.encode(&credentials.key);
        assert!(json.contains(&key) && !format!("{credentials:?}").contains(&key[60..]));
        let damaged = json.replace(&key[..8], "AAAAAAAA");
        let error = Credentials::from_json(damaged.as_bytes()).unwrap_err();
        assert!(matches!(error, Unusable::Key) && !error.to_string().contains(&key[60..]));
        assert!(matches!(
            Credentials::from_json(b"{}"),
            Err(Unusable::Json(_))
        ));
    }
}

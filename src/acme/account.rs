//! The account that orders are made under (RFC 8555, section 7.3).
//!
//! [`Credentials`] exist before the account does: the key is generated, stored, and only then registered, so that a
//! crash in between costs neither a key nor a single-use external account binding.
//! Their JSON has the members of instant-acme's, so that an account can be brought along.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use instant_acme::NewAccount;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

use super::client::Client;
use super::error::{Action, Error, Kind};
use super::jws::AccountKey;

/// Room for the JSON without a reallocation, which would leave a copy of the key behind.
const JSON: usize = 4_096;

/// An account that requests are signed for.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) url: String,
    pub(super) key: AccountKey,
}

/// An account key, and the account made with it once there is one. Debug hides the key.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    directory: String,
    key: Zeroizing<Vec<u8>>,
    account: Option<String>,
    contact: Vec<String>,
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
    /// A fresh key for the CA at `directory`, to be stored before it is registered.
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

    /// For the Secret that keeps the account: it holds the private key.
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

    /// Whether the account is, or will be, one of the CA at `directory`.
    #[must_use]
    pub fn belongs_to(&self, directory: &str) -> bool {
        self.directory == directory
    }

    /// The account's URL; `None` while the key is not registered.
    #[must_use]
    pub fn account_url(&self) -> Option<&str> {
        self.account.as_deref()
    }

    /// The contacts that the CA was last told.
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

    /// A fresh key for the account that these are of, to be stored before the CA is told.
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

    /// The same key without its account, for a CA that has forgotten it.
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

impl Client {
    /// Registers the key with the CA, or finds the account that it already has, and signs with it from now on.
    /// The result is to be stored. Repeating it is harmless, and spends a single-use binding once only.
    ///
    /// # Errors
    /// When the CA refuses, or `credentials` are another CA's.
    pub async fn register(&self, credentials: &Credentials) -> Result<Credentials, Error> {
        let key = self.key_of(credentials)?;
        let settings = self.settings();
        let url = self.directory().await?.new_account.clone();
        let contact = contact_uris(&settings.contact);
        let contacts: Vec<&str> = contact.iter().map(String::as_str).collect();
        let request = |only_return_existing| NewAccount {
            contact: &contacts,
            terms_of_service_agreed: true,
            only_return_existing,
        };
        let unencodable =
            |_| Error::settings(Action::NewAccount, "the account request cannot be encoded");

        let mut existing = None;
        if let Some(eab) = &settings.eab {
            // Some CAs look at the binding before they look at the key: a binding that is used up must not be shown
            // again for an account whose answer a crash has swallowed.
            let payload = serde_json::to_vec(&request(true)).map_err(unencodable)?;
            existing = match self
                .post_as(&key, None, Action::NewAccount, &url, &payload)
                .await
            {
                Ok(answer) => Some(answer),
                Err(error) if error.is("accountDoesNotExist") => None,
                // A CA that cannot look an account up says so in its own way; registering will tell.
                Err(error)
                    if error
                        .status()
                        .is_some_and(|status| (400..429).contains(&status)) =>
                {
                    tracing::debug!(issuer = %settings.name, %eab.kid, %error, "no account was found by its key");
                    None
                }
                Err(error) => return Err(error),
            };
        }
        let answer = match existing {
            Some(answer) => answer,
            None => {
                let mut payload = serde_json::to_value(request(false)).map_err(unencodable)?;
                if let Some(eab) = &settings.eab {
                    let bound = key.bind(&eab.kid, &eab.hmac_key, &url);
                    payload["externalAccountBinding"] = bound.map_err(|_| {
                        Error::settings(Action::NewAccount, "the binding's key does not sign")
                    })?;
                }
                self.post_as(
                    &key,
                    None,
                    Action::NewAccount,
                    &url,
                    payload.to_string().as_bytes(),
                )
                .await?
            }
        };
        let Some(account) = answer.location.clone() else {
            return Err(Error::unexpected(
                Action::NewAccount,
                &answer.host,
                "no Location header",
            ));
        };
        let mut registered = credentials.clone();
        registered.account = Some(account.clone());
        // RFC 8555, 7.3.1: an account that was there already is left as it is.
        if answer.status == 201 {
            registered.contact = contact;
        }
        self.set_account(Account { url: account, key });
        Ok(registered)
    }

    /// Whether it signs with the key of these credentials.
    #[must_use]
    pub fn signs_with(&self, credentials: &Credentials) -> bool {
        self.account(Action::Account)
            .is_ok_and(|account| account.key.pkcs8() == credentials.key.as_slice())
    }

    /// Signs with a registered account from now on; asks the CA nothing.
    ///
    /// # Errors
    /// When `credentials` are another CA's, or not registered.
    pub fn restore(&self, credentials: &Credentials) -> Result<(), Error> {
        let key = self.key_of(credentials)?;
        let Some(url) = credentials.account.clone() else {
            return Err(Error::new(
                Action::Account,
                &credentials.directory,
                Kind::NoAccount,
            ));
        };
        self.set_account(Account { url, key });
        Ok(())
    }

    /// Tells the CA the settings' contacts where they are not what `credentials` say it was told
    /// (RFC 8555, section 7.3.2); the result, if any, is to be stored.
    ///
    /// # Errors
    /// When the CA refuses.
    pub async fn update_contact(
        &self,
        credentials: &Credentials,
    ) -> Result<Option<Credentials>, Error> {
        let contact = contact_uris(&self.settings().contact);
        if contact == credentials.contact {
            return Ok(None);
        }
        let account = self.account(Action::Account)?;
        let payload: Value = json!({"contact": contact});
        self.post(
            Action::Account,
            &account.url,
            payload.to_string().as_bytes(),
        )
        .await?;
        Ok(Some(Credentials {
            contact,
            ..credentials.clone()
        }))
    }

    pub(super) fn key_of(&self, credentials: &Credentials) -> Result<AccountKey, Error> {
        let expected = &self.settings().directory;
        if credentials.directory != *expected {
            let other = Unusable::OtherCa {
                found: credentials.directory.clone(),
                expected: expected.clone(),
            };
            return Err(Error::settings(Action::Account, other.to_string()));
        }
        AccountKey::from_pkcs8(&credentials.key)
            .map_err(|error| Error::settings(Action::Account, error.to_string()))
    }
}

/// Contacts are URIs (RFC 8555, section 7.1.2); people write e-mail addresses.
fn contact_uris(contact: &[String]) -> Vec<String> {
    let uri = |contact: &String| {
        if contact.contains(':') {
            contact.clone()
        } else {
            format!("mailto:{contact}")
        }
    };
    contact.iter().map(uri).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // instant-acme reads them too.
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

    #[test]
    fn addresses_become_mailto_uris() {
        let contact = [
            "ops@example.com".to_owned(),
            "mailto:a@example.com".to_owned(),
        ];
        assert_eq!(
            contact_uris(&contact),
            ["mailto:ops@example.com", "mailto:a@example.com"]
        );
    }
}

//! The ACME account under which orders are made (RFC 8555, section 7.3).

use instant_acme::NewAccount;
use serde_json::{Value, json};

use super::client::Client;
use super::credentials::{Account, Credentials, Unusable};
use super::error::{Action, Error, Kind};
use crate::acme::transport::jws::AccountKey;

impl Client {
    /// Registers the key with the CA, or finds its existing account, and signs with it from now on. The caller stores
    /// the result. Repeating it is harmless, and uses a single-use binding only once.
    ///
    /// # Errors
    /// When the CA refuses, or `credentials` are for another CA.
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
            // Some CAs check the binding before the key: a used binding must not be sent again for an account whose
            // answer was lost in a crash.
            let payload = serde_json::to_vec(&request(true)).map_err(unencodable)?;
            existing = match self
                .post_as(&key, None, Action::NewAccount, &url, &payload)
                .await
            {
                Ok(answer) => Some(answer),
                Err(error) if error.is("accountDoesNotExist") => None,
                // CAs that cannot look an account up differ in their answers; registering will show.
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
        // RFC 8555, 7.3.1: an existing account is left as it is.
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

    /// Signs with a registered account from now on; sends nothing to the CA.
    ///
    /// # Errors
    /// When `credentials` are for another CA, or not registered.
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

    /// Sends the contacts of the settings to the CA if they differ from those in `credentials` (RFC 8555, section
    /// 7.3.2); the caller stores the result, if any.
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

//! Revocation of a certificate (RFC 8555, section 7.6), and change of an account's key (section 7.3.5).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use serde_json::json;

use super::client::Client;
use super::credentials::{Account, Credentials};
use super::error::{Action, Error};

/// Why a certificate is revoked, as RFC 5280, section 5.3.1 numbers it; the reasons that subscribers may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in RFC 5280")]
pub enum RevocationReason {
    Unspecified = 0,
    KeyCompromise = 1,
    AffiliationChanged = 3,
    Superseded = 4,
    CessationOfOperation = 5,
}

impl Client {
    /// Revokes a certificate (DER); succeeds if it is already revoked. A CA that refuses the reason is asked without
    /// one.
    ///
    /// # Errors
    /// When the CA refuses, or does not support revocation.
    pub async fn revoke(&self, certificate: &[u8], reason: RevocationReason) -> Result<(), Error> {
        let directory = self.directory().await?;
        let Some(url) = &directory.revoke_cert else {
            let why = "this CA's directory has no revokeCert";
            return Err(Error::settings(Action::RevokeCert, why));
        };
        let payload = json!({"certificate": BASE64.encode(certificate), "reason": reason as u8});
        let payload = payload.to_string();
        let mut result = self.post(Action::RevokeCert, url, payload.as_bytes()).await;
        if { result.as_ref().err() }.is_some_and(|error| error.is("badRevocationReason")) {
            let payload = json!({"certificate": BASE64.encode(certificate)}).to_string();
            result = self.post(Action::RevokeCert, url, payload.as_bytes()).await;
        }
        match result {
            Err(error) if error.is("alreadyRevoked") => Ok(()),
            result => result.map(drop),
        }
    }

    /// Changes the account's key to that of `next`, and returns the account's new credentials.
    ///
    /// # Errors
    /// When the CA refuses, or does not support key changes.
    pub async fn change_key(&self, next: &Credentials) -> Result<Credentials, Error> {
        let account = self.account(Action::KeyChange)?;
        let directory = self.directory().await?;
        let Some(url) = &directory.key_change else {
            let why = "this CA's directory has no keyChange";
            return Err(Error::settings(Action::KeyChange, why));
        };
        let key = self.key_of(next)?;
        let request = key.succeed(&account.key, &account.url, url);
        let request = request
            .map_err(|_| Error::settings(Action::KeyChange, "the account key does not sign"))?;
        let request = request.to_string();
        self.post(Action::KeyChange, url, request.as_bytes())
            .await?;
        let url = account.url.clone();
        self.set_account(Account {
            url: url.clone(),
            key,
        });
        Ok(next.registered_as(url))
    }

    /// The account of the key of `credentials`, if the CA knows the key.
    ///
    /// # Errors
    /// When the CA's answer does not say.
    pub async fn find_account(
        &self,
        credentials: &Credentials,
    ) -> Result<Option<Credentials>, Error> {
        let key = self.key_of(credentials)?;
        let url = self.directory().await?.new_account.clone();
        let payload = br#"{"onlyReturnExisting":true}"#;
        match self
            .post_as(&key, None, Action::NewAccount, &url, payload)
            .await
        {
            Ok(answer) => Ok(answer.location.map(|url| credentials.registered_as(url))),
            Err(error) if error.is("accountDoesNotExist") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

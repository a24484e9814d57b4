//! What the client of a DNS host needs: its settings, and the content of its Secret. Pure.

use cert_renew_core::config::Dns01;
use cert_renew_core::secret::object::full::Data;

use super::Error;

/// Keys of the Secret for Route 53.
pub(super) const ACCESS_KEY_ID: &str = "access-key-id";
pub(super) const SECRET_ACCESS_KEY: &str = "secret-access-key";
pub(super) const SESSION_TOKEN: &str = "session-token";

/// The content of a provider's Secret. Debug and errors never show it.
#[derive(Default)]
pub(super) struct HostCredentials {
    secret: Option<String>,
    pub(super) data: Data,
}

/// Reads what one provider needs, and reports what is missing.
pub(super) struct Needs<'a> {
    pub(super) solver: &'a Dns01,
    pub(super) credentials: &'a HostCredentials,
}

impl HostCredentials {
    pub(super) fn new(secret: String, data: Data) -> Self {
        Self {
            secret: Some(secret),
            data,
        }
    }

    /// The text at a key, without the line end that editors add.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        let bytes = self.data.get(key)?;
        let text = std::str::from_utf8(bytes).ok()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Credentials that come from no Secret.
    pub(super) fn of_identity<const N: usize>(data: [(&str, String); N]) -> Self {
        let data = data.map(|(key, text)| (key.to_owned(), text.into_bytes().into()));
        Self {
            secret: None,
            data: data.into(),
        }
    }
}

impl Needs<'_> {
    pub(super) fn settings(&self, expected: impl Into<String>) -> Error {
        Error::Settings {
            provider: self.solver.provider.clone(),
            expected: expected.into(),
        }
    }

    pub(super) fn expected(&self, expected: impl Into<String>) -> Error {
        match &self.credentials.secret {
            Some(secret) => Error::Credentials {
                provider: self.solver.provider.clone(),
                secret: secret.clone(),
                expected: expected.into(),
            },
            None => self.settings(format!(
                "it needs credentials: {{secret: …}}; in that Secret: {}",
                expected.into()
            )),
        }
    }

    /// A setting; the config's check covers the required ones.
    pub(super) fn setting(&self, key: &str) -> Option<String> {
        self.solver.settings.get(key).cloned()
    }

    pub(super) fn required(&self, key: &str) -> Result<String, Error> {
        self.setting(key)
            .ok_or_else(|| self.settings(format!("expected settings.{key}")))
    }

    pub(super) fn optional(&self, key: &str) -> Option<String> {
        self.credentials.text(key)
    }

    pub(super) fn secret(&self, key: &str) -> Result<String, Error> {
        self.optional(key)
            .ok_or_else(|| self.expected(format!("expected text at key {key}")))
    }
}

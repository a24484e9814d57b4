//! ACME clients, one for each issuer, created and registered when first needed.
//!
//! The account key is stored before it is registered, so that a crash wastes neither key nor single-use binding.
//! The start of the operator does not depend on it: a CA that is down delays its own certificates only.

mod fallback;

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use cert_renew_core::config;
use cert_renew_core::schedule::quota::Quota;
use cert_renew_core::schedule::rate_limits::Usage;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::time::UnixTime;
use kube::Client as Kube;
use parking_lot::Mutex;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::acme::{
    self, Carrier, Client, Credentials, Eab, IssuerSettings, Observer, RateLimiter, RequestInfo,
};
use crate::cluster::{self, accounts};
use crate::process::write_gate::WriteGate;
use crate::telemetry::metrics::Metrics;

/// The ACME client, limits and quota of each issuer.
pub struct Issuers {
    kube: Kube,
    namespace: Arc<str>,
    metrics: Arc<Metrics>,
    gate: WriteGate,
    /// Carries all requests to CAs, in place of connections.
    carrier: Option<Carrier>,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    /// By the host of the directory.
    rate_limiter: Mutex<HashMap<String, RateLimiter>>,
}

/// The lock is held while the account is made ready, so that a hundred orders register once.
#[derive(Default)]
struct Slot {
    client: tokio::sync::Mutex<Option<Client>>,
    /// The CA asked for no request before this instant.
    limited_until: Mutex<UnixTime>,
    /// New orders of the last hours.
    quota: Mutex<Quota>,
}

/// Why an issuer cannot be used now.
#[derive(Debug, Error)]
pub enum Error {
    /// The CA, or the way to it.
    #[error(transparent)]
    Acme(#[from] acme::Error),
    /// The account Secret, or the one with the external account binding, cannot be read or written.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// The content of the account Secret is invalid.
    #[error("Secret {namespace}/{name}")]
    Account {
        /// The operator's namespace.
        namespace: String,
        /// The Secret.
        name: String,
        /// What is wrong with it.
        #[source]
        source: acme::Unusable,
    },
    /// The CA bundle cannot be read.
    #[error("caBundle {path}")]
    CaBundle {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The Secret lacks the binding's key.
    #[error("Secret {secret}: expected a base64url key at {key}")]
    Binding {
        /// The Secret's name, in the operator's namespace.
        secret: String,
        /// The data key.
        key: String,
    },
    /// The CA asked for no request before this instant.
    #[error("the CA asked for no request before {0}")]
    Limited(UnixTime),
}

impl Issuers {
    /// No issuer is asked for anything yet.
    #[must_use]
    pub fn new(kube: Kube, namespace: Arc<str>, metrics: Arc<Metrics>, gate: WriteGate) -> Self {
        Self {
            kube,
            namespace,
            metrics,
            gate,
            carrier: None,
            slots: Mutex::default(),
            rate_limiter: Mutex::default(),
        }
    }

    /// Has all requests to CAs carried by `carrier`, if there is one, in place of connections.
    #[must_use]
    pub fn carried_by(self, carrier: Option<Carrier>) -> Self {
        Self { carrier, ..self }
    }

    /// The client of an issuer, with an account.
    ///
    /// # Errors
    /// When the account cannot be read, made or registered, or the CA asked to be left alone.
    pub async fn ready(&self, name: &str, issuer: &config::Issuer) -> Result<Client, Error> {
        let slot = self.slot(name);
        let until = *slot.limited_until.lock();
        if until > UnixTime::now() {
            return Err(Error::Limited(until));
        }
        let mut client = slot.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let ready = self.prepare(name, issuer).await?;
        *client = Some(ready.clone());
        Ok(ready)
    }

    /// The profiles of an issuer's directory, if that was fetched already; the CA is not asked.
    pub fn known_profiles(&self, name: &str) -> Option<Vec<String>> {
        let slot = { self.slots.lock().get(name).cloned() }?;
        let client = { slot.client.try_lock().ok()?.as_ref().cloned() }?;
        client.known_profiles()
    }

    /// Forgets the accounts, which are read again when next needed: another leader may have replaced them.
    pub async fn forget_accounts(&self) {
        let slots: Vec<Arc<Slot>> = self.slots.lock().values().cloned().collect();
        for slot in slots {
            slot.client.lock().await.take();
        }
    }

    /// Notes that the CA asked for no request before `until`.
    pub fn limit(&self, name: &str, until: UnixTime) {
        let slot = self.slot(name);
        let mut limited = slot.limited_until.lock();
        *limited = until.max(*limited);
        self.metrics.limited_until(name, *limited);
    }

    /// Forgets what the CAs of these issuers asked for: it was noted by another clock, or came from another CA.
    pub fn forget_limits(&self, of: impl Fn(&str) -> bool) {
        for (name, slot) in self.slots.lock().iter().filter(|(name, _)| of(name)) {
            *slot.limited_until.lock() = UnixTime::default();
            self.metrics.limited_until(name, UnixTime::default());
        }
    }

    /// Counts the orders of a former run; see [`Quota::recall`].
    pub fn recall_orders(&self, name: &str, issued: Vec<(UnixTime, Arc<str>)>) {
        self.slot(name).quota.lock().recall(UnixTime::now(), issued);
    }

    /// Counts a due Secret of `namespace` as waiting, so that its order gets a share of the issuer's.
    pub fn expect_order(&self, name: &str, namespace: &Arc<str>) {
        self.slot(name)
            .quota
            .lock()
            .expect(UnixTime::now(), namespace);
    }

    /// Counts a new order for a Secret of `namespace`, if `per_3h` allows for it.
    ///
    /// # Errors
    /// With the instant at which to ask again.
    pub fn take_order(
        &self,
        name: &str,
        namespace: &Arc<str>,
        per_3h: u32,
    ) -> Result<(), UnixTime> {
        self.slot(name)
            .quota
            .lock()
            .take(UnixTime::now(), namespace, per_3h)
    }

    /// How many of the orders that `per_3h` allows are made, and until when the CA asked for no request at all.
    pub fn usage(&self, now: UnixTime, name: &str, per_3h: u32) -> (Usage, Option<UnixTime>) {
        let slot = self.slot(name);
        let until = Some(*slot.limited_until.lock()).filter(|until| *until > now);
        (slot.quota.lock().usage(now, per_3h), until)
    }

    /// Drops an account that the CA has lost: the same key is registered again when the issuer is next used.
    ///
    /// # Errors
    /// When the account Secret cannot be read or written.
    pub async fn account_gone(&self, name: &str) -> Result<(), Error> {
        let slot = self.slot(name);
        let mut client = slot.client.lock().await;
        // Another renewal has done it already.
        if client.take().is_none() {
            return Ok(());
        }
        if let Some(credentials) = self.stored(name).await? {
            self.store(name, &credentials.unregistered()).await?;
        }
        Ok(())
    }

    /// Finds out, after the CA refused a request signed by the account, whether the account was moved to another key
    /// and whether the CA still has it. True where another try may succeed.
    ///
    /// # Errors
    /// When the account Secret cannot be read or written.
    pub async fn account_is_new(&self, name: &str) -> Result<bool, Error> {
        let slot = self.slot(name);
        let mut client = slot.client.lock().await;
        // Another renewal has found out already.
        let Some(current) = client.clone() else {
            return Ok(true);
        };
        let stored = self.stored(name).await?;
        let Some(stored) = stored.filter(|stored| current.signs_with(stored)) else {
            tracing::info!(issuer = name, "the account has another key now");
            *client = None;
            return Ok(true);
        };
        let found = match current.find_account(&stored).await {
            Ok(Some(found)) if found.account_url() == stored.account_url() => return Ok(false),
            Ok(Some(found)) => found,
            Ok(None) => {
                tracing::warn!(
                    issuer = name,
                    "the CA has lost the account: it is registered again"
                );
                stored.unregistered()
            }
            Err(error) => {
                tracing::debug!(issuer = name, %error, "the CA does not say whether it has the account");
                return Ok(false);
            }
        };
        self.store(name, &found).await?;
        *client = None;
        Ok(true)
    }

    async fn prepare(&self, name: &str, issuer: &config::Issuer) -> Result<Client, Error> {
        let ca_bundle = match &issuer.ca_bundle {
            None => None,
            Some(path) => {
                let fault = |source| Error::CaBundle {
                    path: path.display().to_string(),
                    source,
                };
                Some(std::fs::read(path).map_err(fault)?)
            }
        };
        let eab = match &issuer.eab {
            None => None,
            Some(eab) => Some(self.binding(eab).await?),
        };
        let settings = IssuerSettings {
            name: name.into(),
            directory: issuer.directory.clone(),
            contact: issuer.contact.clone(),
            ca_bundle,
            eab,
            concurrency: count(issuer.concurrency),
            rate_limiter: self.rate_limiter(issuer),
        };
        let metrics = Arc::clone(&self.metrics);
        let directory = host(&issuer.directory);
        let observer: Observer = Arc::new(move |request| {
            let RequestInfo {
                host,
                action,
                status,
                duration,
                ..
            } = *request;
            let host = shown_host(directory.as_deref(), host);
            metrics.acme_request(host, action.as_str(), status, duration);
        });
        let gate = self.gate.clone();
        let client = match self.carrier.clone() {
            Some(carrier) => Client::over(carrier, settings, observer, gate),
            None => Client::new(settings, observer, gate)?,
        };
        let stored = self.stored(name).await?;
        let credentials = match stored {
            Some(credentials) if credentials.belongs_to(&issuer.directory) => credentials,
            other => {
                if other.is_some() {
                    tracing::warn!(
                        issuer = name,
                        "the issuer has another directory now: a new account is made"
                    );
                }
                let fresh = Credentials::generate(&issuer.directory);
                let fresh = fresh.map_err(|source| self.unusable(name, source))?;
                self.store(name, &fresh).await?;
                fresh
            }
        };
        if credentials.account_url().is_some() {
            client.restore(&credentials)?;
            match client.update_contact(&credentials).await {
                Ok(Some(updated)) => self.store(name, &updated).await?,
                Ok(None) => {}
                // Whether the account is gone shows at the order; contacts must not cost a certificate.
                Err(error) if error.may_be_the_key() => {
                    tracing::warn!(issuer = name, %error, "the CA is not told of the new contacts");
                }
                Err(error) => return Err(error.into()),
            }
        } else {
            let registered = client.register(&credentials).await?;
            self.store(name, &registered).await?;
            tracing::info!(
                issuer = name,
                account = registered.account_url(),
                "account registered"
            );
        }
        Ok(client)
    }

    async fn binding(&self, eab: &config::Eab) -> Result<Eab, Error> {
        let key = SecretRef::new(Arc::clone(&self.namespace), eab.hmac_key.secret.as_str());
        let secret = cluster::secrets::get(&self.kube, &key).await?;
        let text = secret.data.get(&eab.hmac_key.key);
        let decoded = text.and_then(|text| {
            // CAs give out the key with and without padding.
            let text = text.trim_ascii().trim_ascii_end();
            let text: Vec<u8> = text.iter().copied().filter(|byte| *byte != b'=').collect();
            BASE64_URL_SAFE_NO_PAD.decode(Zeroizing::new(text)).ok()
        });
        let hmac_key = decoded.map(Zeroizing::new).ok_or_else(|| Error::Binding {
            secret: eab.hmac_key.secret.clone(),
            key: eab.hmac_key.key.clone(),
        })?;
        Ok(Eab {
            kid: eab.kid.clone(),
            hmac_key,
        })
    }

    async fn stored(&self, name: &str) -> Result<Option<Credentials>, Error> {
        let stored = accounts::load(&self.kube, &self.namespace, name).await?;
        stored
            .map(|json| Credentials::from_json(&json).map_err(|source| self.unusable(name, source)))
            .transpose()
    }

    async fn store(&self, name: &str, credentials: &Credentials) -> Result<(), Error> {
        let json = credentials
            .to_json()
            .map_err(|source| self.unusable(name, source))?;
        Ok(accounts::store(&self.kube, &self.namespace, name, &json).await?)
    }

    fn unusable(&self, issuer: &str, source: acme::Unusable) -> Error {
        let (namespace, name) = (self.namespace.to_string(), accounts::secret_name(issuer));
        Error::Account {
            namespace,
            name,
            source,
        }
    }

    /// The rate limiter that all issuers of the same host share.
    fn rate_limiter(&self, issuer: &config::Issuer) -> RateLimiter {
        let url = issuer.directory.parse::<http::Uri>().ok();
        let host = url.as_ref().and_then(http::Uri::authority);
        let host = host.map_or(&*issuer.directory, http::uri::Authority::as_str);
        let mut rate_limiter = self.rate_limiter.lock();
        let rate_limiter = rate_limiter.entry(host.to_ascii_lowercase()).or_default();
        rate_limiter.per_second(issuer.requests_per_second)
    }

    fn slot(&self, name: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        let slot = slots.entry(name.to_owned()).or_insert_with(|| {
            self.metrics.limited_until(name, UnixTime::default());
            Arc::default()
        });
        Arc::clone(slot)
    }
}

/// The host of a request as metrics show it. A CA may point to further hosts, and each would create a series.
fn shown_host<'a>(directory: Option<&str>, asked: &'a str) -> &'a str {
    if directory == Some(asked) {
        asked
    } else {
        "other"
    }
}

/// The host of a URL, as a request has it.
fn host(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    url.host_str().map(str::to_owned)
}

/// A count from the config file.
fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_request_is_that_of_the_directory_or_another() {
        let directory = host("https://CA.example:14000/dir");
        for (asked, expected) in [
            ("https://ca.example:14000/new-order", "ca.example"),
            ("https://one-of-many.ca.example/order/7", "other"),
            ("https://other.example/", "other"),
        ] {
            let asked = host(asked).unwrap();
            assert_eq!(shown_host(directory.as_deref(), &asked), expected);
        }
    }
}

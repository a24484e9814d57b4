//! ACME clients, one for each issuer, created and registered when first needed.
//!
//! The account key is stored before it is registered, so that a crash wastes neither key nor single-use binding.
//! The start of the operator does not depend on it: a CA that is down delays its own certificates only.

mod fallback;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

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

/// Shortest time between two accounts of an issuer that are tried at once: a CA that refuses the new one too is asked
/// again by the pauses after failures.
const REPLACED_RECENTLY: Duration = Duration::from_secs(60);

/// The ACME client, limits and quota of each issuer.
pub struct Issuers {
    kube: Kube,
    namespace: Arc<str>,
    metrics: Arc<Metrics>,
    gate: WriteGate,
    /// Carries all requests to CAs, in place of connections.
    carrier: Option<Carrier>,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    /// The Secrets that wait for an order.
    expected: Mutex<HashMap<SecretRef, Expected>>,
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
    /// When the CA was last found to have lost the account, or to have it at another place.
    replaced: Mutex<UnixTime>,
}

/// What a Secret waits for: it is counted once, at one issuer.
struct Expected {
    issuer: Arc<str>,
    /// When it is to ask again. One that has not asked yet will ask soon.
    told: Option<UnixTime>,
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
            expected: Mutex::default(),
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

    /// Counts a due Secret as waiting, so that its order gets a share of the issuer's.
    pub fn expect_order(&self, name: &str, key: &SecretRef) {
        let now = UnixTime::now();
        let asks = Expected {
            issuer: name.into(),
            told: None,
        };
        let before = self.expected.lock().insert(key.clone(), asks);
        // The quota counts by itself that one asks again at its instant.
        let comes = |it: &Expected| *it.issuer == *name && it.told.is_some_and(|at| at <= now);
        if let Some(before) = before.filter(|it| !comes(it)) {
            self.withdraw(key, &before);
        }
        self.slot(name).quota.lock().expect(now, &key.namespace);
    }

    /// Counts a Secret as waiting no longer if it has not asked: its renewal has ended without that.
    pub fn expect_no_order(&self, key: &SecretRef) {
        self.withdraw_if(key, |it| it.told.is_none());
    }

    /// Counts a Secret as waiting no longer if it was told when to ask again: it is gone, or has changed and is judged
    /// again.
    pub fn forget_told(&self, key: &SecretRef) {
        self.withdraw_if(key, |it| it.told.is_some());
    }

    /// Counts no Secret as waiting any more: those of a former term come again.
    pub fn expect_no_orders(&self) {
        let all = std::mem::take(&mut *self.expected.lock());
        all.iter().for_each(|(key, it)| self.withdraw(key, it));
    }

    fn withdraw_if(&self, key: &SecretRef, which: impl Fn(&Expected) -> bool) {
        let expected = {
            let mut all = self.expected.lock();
            all.get(key).is_some_and(which).then(|| all.remove(key))
        };
        if let Some(expected) = expected.flatten() {
            self.withdraw(key, &expected);
        }
    }

    fn withdraw(&self, key: &SecretRef, expected: &Expected) {
        let slot = self.slot(&expected.issuer);
        let mut quota = slot.quota.lock();
        match expected.told {
            None => quota.leave(&key.namespace),
            Some(until) => quota.withdraw(&key.namespace, until),
        }
    }

    /// Counts a new order for a Secret, if `per_3h` allows for it.
    ///
    /// # Errors
    /// With the instant at which to ask again.
    pub fn take_order(&self, name: &str, key: &SecretRef, per_3h: u32) -> Result<(), UnixTime> {
        let now = UnixTime::now();
        // A fallback may be asked in place of the issuer that was expected.
        let here = |it: &Expected| *it.issuer == *name && it.told.is_none_or(|at| at <= now);
        let before = self.expected.lock().remove(key);
        if let Some(before) = before.filter(|it| !here(it)) {
            self.withdraw(key, &before);
        }
        let asked = {
            let slot = self.slot(name);
            let mut quota = slot.quota.lock();
            quota.take(now, &key.namespace, per_3h)
        };
        if let Err(until) = asked {
            let told = Expected {
                issuer: name.into(),
                told: Some(until),
            };
            self.expected.lock().insert(key.clone(), told);
        }
        asked
    }

    /// An order that [`Self::take_order`] has counted was not asked for.
    pub fn give_order_back(&self, name: &str, key: &SecretRef) {
        let slot = self.slot(name);
        slot.quota.lock().give_back(&key.namespace);
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
        let (now, replaced) = (UnixTime::now(), *slot.replaced.lock());
        if now >= replaced && now.since(replaced) < REPLACED_RECENTLY {
            tracing::debug!(
                issuer = name,
                "the CA refuses the account that has just been found or registered"
            );
            return Ok(false);
        }
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
        *slot.replaced.lock() = UnixTime::now();
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

    async fn binding(&self, eab: &config::EabConfig) -> Result<Eab, Error> {
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
    use std::convert::Infallible;
    use std::time::Duration;

    use base64::prelude::BASE64_STANDARD;
    use cert_renew_core::index::Index;
    use kube::client::Body;
    use serde_json::json;
    use tower::service_fn;

    use super::*;
    use crate::context::tests::without_an_answer;
    use crate::renewal::Renewals;

    /// With one order in three hours, the next has the slot after all that wait, one of each other namespace.
    #[tokio::test]
    async fn a_secret_that_was_told_when_to_ask_again_counts_once_and_no_longer_than_it_waits() {
        const HOURS: Duration = Duration::from_secs(3 * 3_600);
        let (shared, _in_force) = without_an_answer();
        let issuers = Renewals::new(shared).issuers;
        let key = |namespace: &str| SecretRef::new(namespace, "tls");
        let asks = |namespace: &str| {
            issuers.expect_order("le", &key(namespace));
            let taken = issuers.take_order("le", &key(namespace), 1);
            issuers.expect_no_order(&key(namespace));
            taken
        };
        let begun = UnixTime::now();
        assert_eq!(asks("first"), Ok(()));
        let slot = |until: UnixTime| until.since(begun).as_secs() / HOURS.as_secs();
        // One that is changed, and so asks, over and over.
        for _ in 0..100 {
            assert_eq!(asks("hostile").map_err(slot), Err(1));
        }
        assert_eq!(asks("shop").map_err(slot), Err(2), "the other one waits");
        issuers.forget_told(&key("hostile"));
        assert_eq!(asks("shop").map_err(slot), Err(1));
        issuers.forget_told(&key("shop"));
        assert!(issuers.expected.lock().is_empty());
        assert_eq!(asks("hostile").map_err(slot), Err(1));
        issuers.expect_no_orders();
        assert_eq!(asks("shop").map_err(slot), Err(1));
    }

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

    /// An API server with the Secret of a registered account at this CA.
    fn with_an_account(directory: &str) -> Kube {
        let fresh = Credentials::generate(directory).unwrap();
        let mut stored: serde_json::Value =
            serde_json::from_slice(&fresh.to_json().unwrap()).unwrap();
        stored["id"] = "https://ca.example/account/7".into();
        let stored = BASE64_STANDARD.encode(stored.to_string());
        let secret = json!({"metadata": {"name": "account"}, "data": {"credentials": stored}});
        let server = service_fn(move |_: http::Request<Body>| {
            let body = Body::from(secret.to_string().into_bytes());
            async move { Ok::<_, Infallible>(http::Response::new(body)) }
        });
        Kube::new(server, "cert-renew")
    }

    #[tokio::test]
    async fn hosts_that_only_the_ca_names_share_one_series() {
        const DIRECTORY: &str = r#"{"newNonce": "https://ca.example/nonce", "newAccount": "https://ca.example/account",
            "newOrder": "https://ca.example/order", "renewalInfo": "https://one-of-many.ca.example/info"}"#;
        let config = "issuers: {le: {directory: https://ca.example/dir, allow: [{namespaces: [shop], names: [a.example]}]}}";
        let config = config::Config::parse(config).unwrap();
        let issuer = config.issuer("le").unwrap();
        let ca = service_fn(|request: reqwest::Request| async move {
            let body = match request.url().path() {
                "/dir" => DIRECTORY,
                _ => "{}",
            };
            let answer = http::Response::new(body);
            Ok::<_, reqwest::Error>(reqwest::Response::from(answer))
        });
        let metrics = Arc::new(Metrics::new().unwrap());
        let kube = with_an_account(&issuer.directory);
        let issuers = Issuers::new(
            kube,
            "cert-renew".into(),
            Arc::clone(&metrics),
            WriteGate::open(),
        )
        .carried_by(Some(Carrier::new(ca)));
        let client = issuers.ready("le", issuer).await.unwrap();
        let id = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE".parse().unwrap();
        let asked = client.renewal_info(&id, 0, UnixTime(0)).await;
        assert!(asked.unwrap().is_some());
        let shown = metrics.render(UnixTime(0), &Index::default(), &|_| 0, true);
        for (action, host) in [("directory", "ca.example"), ("renewalInfo", "other")] {
            let labels = format!("{{action=\"{action}\",host=\"{host}\",status=\"200\"}}");
            let line = format!("cert_renew_acme_requests_total{labels} 1\n");
            assert!(shown.contains(&line), "{line}: {shown}");
        }
        assert!(!shown.contains("one-of-many"), "{shown}");
    }
}

//! One issuer: its connections, its directory, its account, its nonces.
//!
//! Every request is made only when needed, so a CA that is down delays no start. Requests are signed here; a request is
//! repeated only with a new nonce after a rejected one.

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::credentials::Account;
use super::directory::Directory;
use super::error::{Action, Error, Kind};
use crate::acme::transport::http::{Answer, Carrier, Http, Observer, Slot, connections};
use crate::acme::transport::jws::AccountKey;
use crate::acme::transport::nonce::Nonces;
use crate::acme::transport::poll_interval::PollInterval;
use crate::acme::transport::rate_limiter::RateLimiter;
use crate::process::permit::Permit;
use crate::process::write_gate::WriteGate;

/// Age after which a directory is fetched again: profiles and terms change in months, URLs hardly ever.
const DIRECTORY_AGE: Duration = Duration::from_secs(86_400);
/// Longest wait for a directory that another task is fetching.
const DIRECTORY_WAIT: Duration = Duration::from_secs(30);
/// Most attempts with a new nonce. A CA that rejects three of ten nonces rejects this many in a row once in 170,000
/// requests.
const NONCE_ATTEMPTS: usize = 10;

/// The settings of an issuer that the protocol needs.
#[derive(Clone)]
pub struct IssuerSettings {
    /// The issuer's name, for logs.
    pub name: Arc<str>,
    /// URL of the CA's directory.
    pub directory: String,
    /// E-mail addresses or URIs; may be empty.
    pub contact: Vec<String>,
    /// PEM of roots to trust beside the public ones.
    pub ca_bundle: Option<Vec<u8>>,
    /// For CAs that issue only to their customers.
    pub eab: Option<Eab>,
    /// Most requests in flight, at least one.
    pub concurrency: usize,
    /// The spacing of requests, shared with the other issuers of the same host.
    pub rate_limiter: RateLimiter,
}

/// An external account binding (RFC 8555, section 7.3.4).
#[derive(Clone)]
pub struct Eab {
    /// The CA's name for the key.
    pub kid: String,
    /// The key itself: decoded, not base64.
    pub hmac_key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Eab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kid, hmac_key: _ } = self;
        f.debug_struct("Eab")
            .field("kid", kid)
            .finish_non_exhaustive()
    }
}

/// Why a request that needs permission did not succeed.
#[derive(Debug)]
pub enum RequestError<R> {
    /// Permission was refused; nothing was sent.
    Refused(R),
    /// The CA refused it, or cannot be asked.
    Failed(Error),
}

impl<R> From<Error> for RequestError<R> {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl RequestError<Infallible> {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Refused(never) => match never {},
            Self::Failed(error) => error,
        }
    }
}

/// The permission for a request that needs none.
pub(super) fn unasked() -> Ready<Result<(), RequestError<Infallible>>> {
    ready(Ok(()))
}

/// Waits for the permission for a request to this host, and uses it up.
pub(super) async fn permitted<R>(
    action: Action,
    host: &str,
    may: impl Future<Output = Result<Permit<()>, R>>,
) -> Result<(), RequestError<R>> {
    let permit = may.await.map_err(RequestError::Refused)?;
    let late = || Error::new(action, host, Kind::TimedOut);
    Ok(permit.spend().ok_or_else(late)?)
}

/// A handle on one issuer; clones share everything.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    settings: IssuerSettings,
    http: Http,
    nonces: Nonces,
    directory: RwLock<Option<(Instant, Arc<Directory>)>>,
    /// Locked during the fetch of the directory, so that a hundred orders fetch once.
    fetch: Mutex<()>,
    account: RwLock<Option<Arc<Account>>>,
    /// Poll interval of validations.
    validation: PollInterval,
    /// Poll interval from finalize to the certificate.
    issue: PollInterval,
}

impl Client {
    /// Prepares an issuer; sends nothing. Later requests go through the gate.
    ///
    /// # Errors
    /// When the CA bundle or the proxy settings cannot be used.
    pub fn new(
        settings: IssuerSettings,
        observer: Observer,
        gate: WriteGate,
    ) -> Result<Self, Error> {
        let carrier = connections(&settings.directory, settings.ca_bundle.as_deref())?;
        Ok(Self::over(carrier, settings, observer, gate))
    }

    /// The same over a given carrier.
    #[must_use]
    pub fn over(
        carrier: Carrier,
        settings: IssuerSettings,
        observer: Observer,
        gate: WriteGate,
    ) -> Self {
        let http = Http::new(
            &settings.directory,
            carrier,
            settings.concurrency,
            settings.rate_limiter.clone(),
            observer,
            gate,
        );
        Self(Arc::new(Inner {
            settings,
            http,
            nonces: Nonces::default(),
            directory: RwLock::default(),
            fetch: Mutex::default(),
            account: RwLock::default(),
            validation: PollInterval::default(),
            issue: PollInterval::default(),
        }))
    }

    /// The settings of this client.
    #[must_use]
    pub fn settings(&self) -> &IssuerSettings {
        &self.0.settings
    }

    /// The CA's directory: fetched once a day.
    ///
    /// # Errors
    /// When the CA does not answer, or the answer is not a directory.
    pub async fn directory(&self) -> Result<Arc<Directory>, Error> {
        let url = &self.0.settings.directory;
        let lock = timeout(DIRECTORY_WAIT, self.0.fetch.lock()).await;
        let _fetch = lock.map_err(|_| Error::new(Action::Directory, url, Kind::TimedOut))?;
        if let Some((since, directory)) = self.0.directory.read().clone()
            && since.elapsed() < DIRECTORY_AGE
        {
            return Ok(directory);
        }
        let answer = self.get(Action::Directory, url).await?;
        if !answer.is_success() {
            return Err(answer.error(Action::Directory));
        }
        let directory = Arc::new(answer.json::<Directory>(Action::Directory)?);
        // It is kept for a while, and nothing works without these.
        let needed = [
            &directory.new_nonce,
            &directory.new_account,
            &directory.new_order,
        ];
        if needed.iter().any(|url| reqwest::Url::parse(url).is_err()) {
            let what = "a directory whose newNonce, newAccount or newOrder is no URL";
            return Err(Error::unexpected(Action::Directory, &answer.host, what));
        }
        for url in needed {
            self.0.http.permitted(Action::Directory, url)?;
        }
        *self.0.directory.write() = Some((Instant::now(), Arc::clone(&directory)));
        Ok(directory)
    }

    /// The profiles of the directory, if it was fetched already.
    #[must_use]
    pub fn known_profiles(&self) -> Option<Vec<String>> {
        let cached = self.0.directory.read();
        let (_, directory) = cached.as_ref()?;
        Some(directory.meta.profiles.keys().cloned().collect())
    }

    /// The account's URL, for CAA records with `accounturi` (RFC 8657); `None` before it is registered or restored.
    #[must_use]
    pub fn account_url(&self) -> Option<String> {
        self.account(Action::Account)
            .ok()
            .map(|account| account.url.clone())
    }

    /// The learned poll interval of an action.
    pub(super) fn pace(&self, action: Action) -> &PollInterval {
        match action {
            Action::Finalize => &self.0.issue,
            _ => &self.0.validation,
        }
    }

    pub(super) fn account(&self, action: Action) -> Result<Arc<Account>, Error> {
        let account = self.0.account.read();
        account
            .clone()
            .ok_or_else(|| Error::new(action, &self.0.settings.directory, Kind::NoAccount))
    }

    pub(super) fn set_account(&self, account: Account) {
        *self.0.account.write() = Some(Arc::new(account));
    }

    /// An unsigned GET; returns answers of any status.
    pub(super) async fn get(&self, action: Action, url: &str) -> Result<Answer, Error> {
        let slot = self.0.http.slot(action, url).await?;
        let answer = self.0.http.get(&slot, action, url).await?;
        self.keep_nonce(&answer);
        Ok(answer)
    }

    /// A POST signed for the account. `payload` is JSON, or empty for a POST-as-GET (RFC 8555, section 6.3).
    pub(super) async fn post(
        &self,
        action: Action,
        url: &str,
        payload: &[u8],
    ) -> Result<Answer, Error> {
        let account = self.account(action)?;
        self.post_as(&account.key, Some(&account.url), action, url, payload)
            .await
    }

    /// A POST signed for the account. `before` is awaited each time that it is about to be sent, when nothing of ours is
    /// waited for any more, and may refuse it. It must not ask this CA for anything: it has a slot, and would wait for
    /// another.
    pub(super) async fn post_after<R, F>(
        &self,
        action: Action,
        url: &str,
        payload: &[u8],
        before: impl Fn() -> F,
    ) -> Result<Answer, RequestError<R>>
    where
        F: Future<Output = Result<(), RequestError<R>>>,
    {
        let account = self.account(action)?;
        let signer = (&account.key, Some(&*account.url));
        self.signed(signer, (action, url), payload, before).await
    }

    /// A POST signed by `key`: for the account `kid`, or with the key itself.
    pub(super) async fn post_as(
        &self,
        key: &AccountKey,
        kid: Option<&str>,
        action: Action,
        url: &str,
        payload: &[u8],
    ) -> Result<Answer, Error> {
        let answer = self.signed((key, kid), (action, url), payload, unasked);
        answer.await.map_err(RequestError::into_error)
    }

    async fn signed<R, F>(
        &self,
        (key, kid): (&AccountKey, Option<&str>),
        (action, url): (Action, &str),
        payload: &[u8],
        before: impl Fn() -> F,
    ) -> Result<Answer, RequestError<R>>
    where
        F: Future<Output = Result<(), RequestError<R>>>,
    {
        let directory = self.directory().await?;
        let mut attempt = 1;
        loop {
            // The slot first: a request that waits for one takes no nonce, and those in flight bring theirs back. So no
            // more nonces are fetched than requests are in flight.
            let slot = self.0.http.slot(action, url).await?;
            let nonce = self.nonce(&slot, &directory.new_nonce).await;
            let nonce = nonce.inspect_err(|error| self.forget_if_moved(&directory, error))?;
            let jws = key.sign(kid, &nonce, url, payload);
            let jws = jws.map_err(|_| Error::settings(action, "the account key does not sign"))?;
            let turn = self.0.http.turn(&slot, action, url).await?;
            before().await?;
            let answer = self.0.http.post(turn, action, url, jws).await?;
            if answer.is_success() {
                self.keep_nonce(&answer);
                return Ok(answer);
            }
            let error = answer.error(action);
            self.forget_if_moved(&directory, &error);
            let rejected = error.is("badNonce");
            if rejected {
                self.0.nonces.flush();
            }
            self.keep_nonce(&answer);
            // RFC 8555, 6.5: only a rejected nonce proves that nothing was done.
            if !rejected || attempt == NONCE_ATTEMPTS {
                return Err(error.into());
            }
            attempt += 1;
        }
    }

    /// Fetches the directory again next time if something that it names is not where it says: a CA may move within a
    /// day.
    fn forget_if_moved(&self, directory: &Arc<Directory>, error: &Error) {
        let named = [Action::NewNonce, Action::NewAccount, Action::NewOrder];
        let is_gone = matches!(error.status(), Some(404 | 405 | 410));
        if !is_gone || !named.contains(&error.action()) || error.is("accountDoesNotExist") {
            return;
        }
        let mut kept = self.0.directory.write();
        if kept
            .as_ref()
            .is_some_and(|(_, it)| Arc::ptr_eq(it, directory))
        {
            *kept = None;
        }
    }

    async fn nonce(&self, slot: &Slot<'_>, new_nonce: &str) -> Result<String, Error> {
        if let Some(nonce) = self.0.nonces.take(Instant::now()) {
            return Ok(nonce);
        }
        let answer = self.0.http.get(slot, Action::NewNonce, new_nonce).await?;
        if !answer.is_success() {
            return Err(answer.error(Action::NewNonce));
        }
        let missing =
            || Error::unexpected(Action::NewNonce, &answer.host, "no Replay-Nonce header");
        answer.nonce.clone().ok_or_else(missing)
    }

    fn keep_nonce(&self, answer: &Answer) {
        if let Some(nonce) = &answer.nonce {
            self.0.nonces.put(nonce.clone(), Instant::now());
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.0.settings.name)
    }
}

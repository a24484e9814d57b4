//! One order, from newOrder to the chain (RFC 8555, sections 7.1.3 and 7.4).
//!
//! ```text
//! new_order ─► pending ──set_ready, wait_validated──► ready ──finalize──► processing ──wait_issued──► valid ─► certificate
//!                                resume(url) enters at any of these
//! ```
//! The caller stores [`Order::url`] before anything else, and continues according to [`Order::status`].
//! Every wait ends at the caller's deadline, respects Retry-After, and may be dropped at any await.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use instant_acme::{AuthorizationStatus, ChallengeStatus, Identifier, NewOrder, OrderStatus};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::ari::CertId;
use super::authorization::{self, Authorization, Challenge};
use super::body;
use super::chain::Preference;
use super::client::Client;
use super::error::{Action, Error, Kind, LONGEST_RETRY_AFTER};
use super::http::Answer;
use super::poll_interval;
use super::problem::{Class, Problem};
use crate::net::egress::Nearby;

/// Most alternate chains that are fetched: no CA has more roots, and each costs a request.
const ALTERNATES: usize = 5;
/// Age of a pending order at which its authorizations are checked: CAs validate in seconds.
const UNUSUAL: Duration = Duration::from_secs(10);
/// Longest time between two such checks; each interval is twice the one before.
const LONGEST_UNUSUAL: Duration = Duration::from_secs(60);
/// Most repeated posts to a CA that would look at a proof again: with the first, no more failed validations than CAs
/// allow in an hour.
const REPEATS: u32 = 3;

/// The parts of an order besides the names.
#[derive(Clone, Copy, Debug, Default)]
pub struct OrderRequest<'a> {
    /// The profile (profiles draft); `None` leaves it to the CA.
    pub profile: Option<&'a str>,
    /// When the certificate should end (RFC 8555, section 7.4); a CA may refuse it, or set another time.
    pub not_after: Option<UnixTime>,
    /// The certificate that this one replaces (RFC 9773, section 5).
    pub replaces: Option<&'a CertId>,
}

/// An order at the CA, in its last known state.
#[derive(Debug)]
pub struct Order {
    client: Client,
    url: String,
    host: Box<str>,
    state: State,
    replaces_accepted: bool,
    /// The pending authorizations when last fetched; None if they may have changed.
    pending: Option<Vec<Authorization>>,
    /// The CA's Retry-After.
    not_before: Option<Instant>,
}

/// The order object. Some CAs leave `authorizations` out or null once the order is valid or invalid.
#[derive(Debug)]
struct State {
    status: OrderStatus,
    expires: Option<String>,
    authorizations: Vec<String>,
    finalize: Option<String>,
    certificate: Option<String>,
    replaces: Option<String>,
    error: Option<Value>,
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Value::deserialize(deserializer)?;
        let status = body::word(&json, "status")
            .ok_or_else(|| D::Error::custom("an order without a status that RFC 8555 knows"))?;
        Ok(Self {
            status,
            expires: body::text(&json, "expires"),
            authorizations: body::texts(&json, "authorizations"),
            finalize: body::text(&json, "finalize"),
            certificate: body::text(&json, "certificate"),
            replaces: body::text(&json, "replaces"),
            error: body::any(&json, "error"),
        })
    }
}

impl State {
    /// Updates the order. Authorizations that the CA no longer lists are kept: some list only the valid ones in a
    /// failed order, and the failed ones are needed.
    fn follow(&mut self, mut now: Self) {
        for url in std::mem::take(&mut self.authorizations) {
            if !now.authorizations.contains(&url) {
                now.authorizations.push(url);
            }
        }
        // An answer to finalize may leave out known members.
        now.finalize = now.finalize.or_else(|| self.finalize.take());
        *self = now;
    }
}

// === impl Client ===

impl Client {
    /// Orders a certificate for `names`. If the CA refuses `replaces`, the order is made without it: there are many
    /// reasons (another account, replaced already, unknown), and none justifies a lost certificate.
    ///
    /// # Errors
    /// When the CA refuses, or does not support profiles although one is set.
    pub async fn new_order(
        &self,
        names: &[Name],
        request: OrderRequest<'_>,
    ) -> Result<Order, Error> {
        let directory = self.directory().await?;
        if let Some(profile) = request.profile
            && directory.meta.profiles.is_empty()
        {
            let why = format!("expected no profile, found {profile:?}: this CA has none");
            return Err(Error::settings(Action::NewOrder, why));
        }
        let url = &directory.new_order;
        // RFC 9773, 5: only a CA with renewal information knows the member.
        let replaces = { request.replaces }.filter(|_| directory.renewal_info.is_some());
        let plain = OrderRequest {
            replaces: None,
            ..request
        };
        let Some(replaces) = replaces else {
            return self.order(url, names, plain).await;
        };
        match self.order(url, names, request).await {
            Err(error) if is_about_replaces(&error) => {
                tracing::debug!(issuer = %self.settings().name, %replaces, %error, "ordering without replaces");
                self.order(url, names, plain).await
            }
            result => result,
        }
    }

    async fn order(
        &self,
        url: &str,
        names: &[Name],
        wanted: OrderRequest<'_>,
    ) -> Result<Order, Error> {
        let OrderRequest {
            profile,
            not_after,
            replaces,
        } = wanted;
        let identifiers: Vec<Identifier> = names.iter().map(identifier).collect();
        let mut request = NewOrder::new(&identifiers);
        if let Some(profile) = profile {
            request = request.profile(profile);
        }
        if let Some(replaces) = replaces {
            request = request.replaces(replaces.as_replaced());
        }
        let mut payload = serde_json::to_value(&request)
            .map_err(|_| Error::settings(Action::NewOrder, "the order cannot be encoded"))?;
        if let Some(not_after) = not_after {
            payload["notAfter"] = not_after.to_string().into();
        }
        let payload = payload.to_string();
        let answer = { self.post(Action::NewOrder, url, payload.as_bytes()) }.await?;
        let missing = || Error::unexpected(Action::NewOrder, &answer.host, "no Location header");
        let url = answer.location.clone().ok_or_else(missing)?;
        let mut order = Order::read(self, url, Action::NewOrder, &answer)?;
        // RFC 9773, 5: a CA that accepts it repeats it.
        order.replaces_accepted =
            replaces.is_some_and(|it| order.state.replaces == Some(it.to_string()));
        Ok(order)
    }

    /// Resumes an order in any state; `authorizations` are those that it had when it was made.
    ///
    /// # Errors
    /// When the CA does not answer or no longer knows the order ([`Error::is_gone`]).
    pub async fn resume(&self, url: &str, authorizations: &[String]) -> Result<Order, Error> {
        let answer = self.post(Action::Order, url, b"").await?;
        let mut order = Order::read(self, url.to_owned(), Action::Order, &answer)?;
        for url in authorizations {
            if !order.state.authorizations.contains(url) {
                order.state.authorizations.push(url.clone());
            }
        }
        order.replaces_accepted = order.state.replaces.is_some();
        Ok(order)
    }
}

/// Whether the same order may succeed without `replaces`.
fn is_about_replaces(error: &Error) -> bool {
    error.status().is_some()
        && matches!(
            error.class(),
            Class::Transient | Class::FixIt | Class::Permanent
        )
}

fn identifier(name: &Name) -> Identifier {
    match name {
        Name::Dns(name) => Identifier::Dns(name.to_string()),
        Name::Ip(address) => Identifier::Ip(*address),
    }
}

/// Adds the CA's report about one name, unless that name has one already.
fn add_problems(problem: &mut Problem, state: &authorization::State) {
    for found in state.problems().chain(state.failure()) {
        // Pebble repeats the text of the one authorization, without its name.
        if problem.detail == found.detail {
            problem.detail.clear();
        }
        if !problem.subproblems.iter().any(|it| it.name == found.name) {
            problem.subproblems.push(found);
        }
    }
}

/// The intervals of a wait's polls.
struct Rhythm {
    action: Action,
    started: Instant,
    pause: Duration,
    next_pause: Duration,
    /// Number of polls so far; None once the CA sets the time.
    polls: Option<u32>,
}

impl Rhythm {
    fn of(client: &Client, action: Action) -> Self {
        Self {
            action,
            started: Instant::now(),
            pause: client.pace(action).first(),
            next_pause: poll_interval::SECOND,
            polls: Some(0),
        }
    }
}

// === impl Order ===

impl Order {
    fn read(client: &Client, url: String, action: Action, answer: &Answer) -> Result<Self, Error> {
        let state = answer.json(action)?;
        let (client, host) = (client.clone(), answer.host.clone());
        let mut order = Self {
            client,
            url,
            host,
            state,
            replaces_accepted: false,
            pending: None,
            not_before: None,
        };
        order.note_retry_after(answer);
        Ok(order)
    }

    /// The order's URL: enough to [`Client::resume`] it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The issuer that made it.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the CA is on this machine, and so may connect to it.
    #[must_use]
    pub fn nearby(&self) -> Nearby {
        Nearby::of(&self.client.settings().directory)
    }

    /// The directory of the CA.
    #[must_use]
    pub fn directory(&self) -> &str {
        &self.client.settings().directory
    }

    /// The account that made the order.
    ///
    /// # Errors
    /// When the account was dropped concurrently.
    pub fn account_url(&self) -> Result<String, Error> {
        let account = self.client.account(Action::Authorization)?;
        Ok(account.url.clone())
    }

    /// The last known status.
    #[must_use]
    pub fn status(&self) -> OrderStatus {
        self.state.status
    }

    /// The URLs of all authorizations, pending or not.
    #[must_use]
    pub fn authorization_urls(&self) -> &[String] {
        &self.state.authorizations
    }

    /// When the order expires at the CA, if it says so.
    #[must_use]
    pub fn expires(&self) -> Option<UnixTime> {
        self.state.expires.as_ref()?.parse().ok()
    }

    /// Whether the CA counts this order as the named replacement, which exempts it from some limits.
    #[must_use]
    pub fn replaces_accepted(&self) -> bool {
        self.replaces_accepted
    }

    /// Fetches the present state.
    ///
    /// # Errors
    /// When the CA does not answer or no longer knows the order.
    pub async fn refresh(&mut self) -> Result<(), Error> {
        let answer = self.client.post(Action::Order, &self.url, b"").await?;
        self.note_retry_after(&answer);
        self.state.follow(answer.json(Action::Order)?);
        self.pending = None;
        Ok(())
    }

    /// The pending authorizations, without names that the CA has already validated. Fetched once, until something is
    /// done about them.
    ///
    /// # Errors
    /// When an authorization has failed or is unavailable.
    pub async fn authorizations(&mut self) -> Result<Vec<Authorization>, Error> {
        // RFC 8555, 7.1.6: such an order has all its authorizations.
        use OrderStatus::{Processing, Ready, Valid};
        if matches!(self.state.status, Ready | Processing | Valid) {
            return Ok(Vec::new());
        }
        if let Some(pending) = &self.pending {
            return Ok(pending.clone());
        }
        let account = self.client.account(Action::Authorization)?;
        let mut pending = Vec::new();
        // One after the other: each answer brings the nonce for the next request.
        for url in &self.state.authorizations {
            let state = self.authorization(url).await?;
            match state.status {
                AuthorizationStatus::Valid => {}
                AuthorizationStatus::Pending => pending.push(state.pending(url, &account.key)),
                _ => return Err(self.why_invalid(Action::Authorization).await),
            }
        }
        self.pending = Some(pending.clone());
        Ok(pending)
    }

    /// Tells the CA that the proof is in place. Does nothing for a challenge that the CA is already checking.
    ///
    /// # Errors
    /// When the CA refuses.
    pub async fn set_ready(&mut self, challenge: &Challenge) -> Result<(), Error> {
        self.pending = None;
        if challenge.status == ChallengeStatus::Pending {
            let answer = self
                .client
                .post(Action::Challenge, &challenge.url, b"{}")
                .await?;
            self.note_retry_after(&answer);
        }
        Ok(())
    }

    /// Waits until all names are validated. If it takes longer than usual, fetches the CA's report about each name, and
    /// sends it to `said` at once where the CA may check again; such a challenge is posted again, a few times.
    ///
    /// # Errors
    /// With the CA's report about each name when a proof has failed; when `deadline` comes first.
    pub async fn wait_validated(
        &mut self,
        deadline: Instant,
        mut said: impl FnMut(Error) + Send,
    ) -> Result<(), Error> {
        let done = |status| status != OrderStatus::Pending;
        let (mut rhythm, mut pause) = (Rhythm::of(&self.client, Action::Authorization), UNUSUAL);
        for look in 0.. {
            let now = Instant::now();
            // The CA's own time has priority over our checks.
            let next = self
                .not_before
                .map_or(now + pause, |at| at.max(now + pause));
            let until = deadline.min(next);
            let waited = self.wait(&mut rhythm, until, done).await;
            let Err(error) = waited else { return Ok(()) };
            let is_pending = self.state.status == OrderStatus::Pending && !error.is_gone();
            if !is_pending || error.class() != Class::Transient {
                return Err(error);
            }
            if until == deadline {
                let asked = error.retry_after().is_none();
                let found = if asked { self.found().await } else { None };
                return Err(found.unwrap_or(error));
            }
            self.look_closely(look, &mut said).await?;
            pause = (pause * 2).min(LONGEST_UNUSUAL);
        }
        Ok(())
    }

    /// Fetches the CA's report about each name of an order that is still pending.
    ///
    /// # Errors
    /// When a name has failed for good, or too often.
    async fn look_closely(
        &mut self,
        look: u32,
        said: &mut (impl FnMut(Error) + Send),
    ) -> Result<(), Error> {
        let (mut again, mut failed) = (Vec::new(), false);
        let mut problem = self.own_problem();
        for url in &self.state.authorizations {
            let state = match self.authorization(url).await {
                Ok(state) => state,
                Err(error) => {
                    tracing::debug!(order = self.url, %error, "an authorization cannot be looked at");
                    continue;
                }
            };
            add_problems(&mut problem, &state);
            failed |= state.failure().is_some();
            if state.status == AuthorizationStatus::Pending {
                again.extend(state.retryable().map(ToOwned::to_owned));
            }
        }
        let given_up = look >= REPEATS && !again.is_empty();
        if failed || given_up {
            return Err(self.invalid(Action::Authorization, problem));
        }
        if !again.is_empty() && !problem.subproblems.is_empty() {
            // There may be no receiver.
            said(self.invalid(Action::Authorization, problem));
        }
        for url in again {
            tracing::debug!(
                order = self.url,
                challenge = url,
                "the CA is asked to look again"
            );
            match self.client.post(Action::Challenge, &url, b"{}").await {
                Ok(answer) => self.note_retry_after(&answer),
                Err(error) => tracing::debug!(order = self.url, %error, "it will not"),
            }
        }
        Ok(())
    }

    /// The CA's report about the names of a pending order, if there is one.
    async fn found(&mut self) -> Option<Error> {
        let error = self.why_invalid(Action::Authorization).await;
        let said = error.problem().is_some_and(|it| !it.subproblems.is_empty());
        said.then_some(error)
    }

    /// Sends the certificate request. After a lost answer this may be the second time: the order has then moved on,
    /// which is no error.
    ///
    /// # Errors
    /// When the CA refuses.
    pub async fn finalize(&mut self, csr_der: &[u8]) -> Result<(), Error> {
        let missing = || {
            Error::unexpected(
                Action::Finalize,
                &self.host,
                "an order without a finalize URL",
            )
        };
        let url = self.state.finalize.clone().ok_or_else(missing)?;
        let payload = json!({"csr": BASE64.encode(csr_der)}).to_string();
        match self
            .client
            .post(Action::Finalize, &url, payload.as_bytes())
            .await
        {
            Ok(answer) => {
                self.note_retry_after(&answer);
                self.state.follow(answer.json(Action::Finalize)?);
                Ok(())
            }
            Err(error) if error.is("orderNotReady") => {
                self.refresh().await?;
                match self.state.status {
                    OrderStatus::Processing | OrderStatus::Valid => Ok(()),
                    OrderStatus::Invalid => Err(self.why_invalid(Action::Finalize).await),
                    OrderStatus::Pending | OrderStatus::Ready => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the certificate is issued.
    ///
    /// # Errors
    /// When the order becomes invalid; when `deadline` comes first.
    pub async fn wait_issued(&mut self, deadline: Instant) -> Result<(), Error> {
        let done = |status| status == OrderStatus::Valid;
        let mut rhythm = Rhythm::of(&self.client, Action::Finalize);
        self.wait(&mut rhythm, deadline, done).await
    }

    /// The chain as PEM, leaf first; can be fetched any number of times.
    ///
    /// # Errors
    /// When the order is not valid, or the CA does not return the chain.
    pub async fn certificate(&self, preference: &Preference) -> Result<String, Error> {
        let missing = || {
            Error::unexpected(
                Action::Certificate,
                &self.host,
                "an order without a certificate URL",
            )
        };
        let url = self.state.certificate.as_ref().ok_or_else(missing)?;
        let (chain, alternates) = self.chain(url).await?;
        let mut chains = vec![chain];
        for alternate in alternates.iter().take(ALTERNATES) {
            if !chains
                .last()
                .is_some_and(|chain| preference.wants_more_than(chain))
            {
                break;
            }
            match self.chain(alternate).await {
                Ok((chain, _)) => chains.push(chain),
                // The chain at hand is valid; do not wait for one that the CA lists but does not have.
                Err(error) if error.is_refusal() => {
                    tracing::warn!(order = self.url, %error, "an alternate chain cannot be had and is passed over");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(chains.swap_remove(preference.choose(&chains)))
    }

    /// Deactivates pending authorizations, which count against the account at some CAs.
    ///
    /// # Errors
    /// The first one; the others are still tried.
    pub async fn abandon(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for url in &self.state.authorizations {
            let deactivated = match self.authorization(url).await {
                Ok(state) if state.status == AuthorizationStatus::Pending => {
                    let payload = br#"{"status":"deactivated"}"#;
                    self.client
                        .post(Action::Authorization, url, payload)
                        .await
                        .map(drop)
                }
                other => other.map(drop),
            };
            result = result.and(deactivated);
        }
        result
    }

    async fn wait(
        &mut self,
        rhythm: &mut Rhythm,
        deadline: Instant,
        done: impl Fn(OrderStatus) -> bool,
    ) -> Result<(), Error> {
        let client = self.client.clone();
        let pace = client.pace(rhythm.action);
        let mut trouble = None;
        loop {
            match self.state.status {
                OrderStatus::Invalid => return Err(self.why_invalid(rhythm.action).await),
                status if done(status) => {
                    match rhythm.polls {
                        Some(1) => pace.in_time(),
                        Some(2..) => pace.too_early(rhythm.started.elapsed()),
                        _ => {}
                    }
                    return Ok(());
                }
                _ => {}
            }
            let now = Instant::now();
            let not_before = self.not_before.filter(|it| *it > now);
            if now >= deadline || not_before.is_some_and(|it| it > deadline) {
                let until =
                    not_before.map(|it| UnixTime::now() + (it - now) + Duration::from_secs(1));
                let unfinished =
                    || Error::new(rhythm.action, &self.host, Kind::Unfinished).retry_at(until);
                return Err(trouble.unwrap_or_else(unfinished));
            }
            self.not_before = None;
            sleep_until(not_before.unwrap_or_else(|| (now + rhythm.pause).min(deadline))).await;
            rhythm.polls = { rhythm.polls }
                .filter(|_| not_before.is_none())
                .map(|polls| polls + 1);
            rhythm.pause = rhythm.next_pause;
            rhythm.next_pause = (rhythm.next_pause * 2).min(poll_interval::LONGEST);
            trouble = match self.refresh().await {
                // A failed poll costs only time, which the deadline bounds.
                Err(error) if error.class() == Class::Transient && !error.is_gone() => Some(error),
                result => result.map(|()| None)?,
            };
        }
    }

    /// The order's own error with the report of each authorization.
    async fn why_invalid(&self, action: Action) -> Error {
        let mut problem = self.own_problem();
        for url in &self.state.authorizations {
            if let Ok(state) = self.authorization(url).await {
                add_problems(&mut problem, &state);
            }
        }
        self.invalid(action, problem)
    }

    /// The CA's report about the order itself.
    fn own_problem(&self) -> Problem {
        let own = self.state.error.as_ref().and_then(Problem::from_json);
        own.unwrap_or_default()
    }

    fn invalid(&self, action: Action, mut problem: Problem) -> Error {
        if problem == Problem::default() {
            "the CA gives no reason".clone_into(&mut problem.detail);
        }
        if problem.kind.is_empty() {
            let first = problem.subproblems.first();
            problem.kind = first.map(|it| it.kind.clone()).unwrap_or_default();
        }
        Error::new(action, &self.host, Kind::Invalid(Box::new(problem)))
    }

    async fn authorization(&self, url: &str) -> Result<authorization::State, Error> {
        self.client
            .post(Action::Authorization, url, b"")
            .await?
            .json(Action::Authorization)
    }

    async fn chain(&self, url: &str) -> Result<(String, Vec<String>), Error> {
        let Answer {
            host,
            alternates,
            body,
            ..
        } = self.client.post(Action::Certificate, url, b"").await?;
        let chain = String::from_utf8(body.to_vec()).map_err(|_| {
            Error::unexpected(Action::Certificate, &host, "a chain that is not PEM")
        })?;
        Ok((chain, alternates))
    }

    fn note_retry_after(&mut self, answer: &Answer) {
        let wait = answer
            .retry_after
            .map(|wait| wait.clamp(poll_interval::SHORTEST, LONGEST_RETRY_AFTER));
        self.not_before = wait.map(|wait| Instant::now() + wait);
    }
}

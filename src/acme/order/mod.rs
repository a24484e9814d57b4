//! One order, from newOrder to the chain (RFC 8555, sections 7.1.3 and 7.4).
//!
//! ```text
//! new_order ─► pending ──set_ready, wait_validated──► ready ──finalize──► processing ──wait_issued──► valid ─► certificate
//!                                resume(url) enters at any of these
//! ```
//! The caller stores [`Order::url`] before anything else, and continues according to [`Order::status`].
//! Every wait ends at the caller's deadline, respects Retry-After, and may be dropped at any await.

pub(super) mod authorization;
pub(super) mod chain;
mod wait;

use std::collections::HashSet;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use cert_renew_core::certificate::x509::MAX_NAMES;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use instant_acme::{AuthorizationStatus, ChallengeStatus, Identifier, NewOrder, OrderStatus};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::acme::ari::CertId;
use crate::acme::client::{Client, RequestError, permitted, unasked};
use crate::acme::error::problem::Class;
use crate::acme::error::{Action, Error, LONGEST_RETRY_AFTER};
use crate::acme::order::authorization::{Authorization, Challenge};
use crate::acme::order::chain::Preference;
use crate::acme::transport::http::Answer;
use crate::acme::transport::{body, poll_interval};
use crate::net::egress::Nearby;
use crate::process::permit::Permit;

/// Most authorizations of an order for this number of names. RFC 8555, 7.1.3, promises no fixed relation, so there is
/// room for two of each name and some of the account; each is stored, and costs a request at every look.
const fn most_authorizations(names: usize) -> usize {
    2 * names + 10
}
/// Most authorizations that are kept of any order; one more is read, so that too many can be told.
const MOST_AUTHORIZATIONS: usize = most_authorizations(MAX_NAMES);
/// Most alternate chains that are fetched: no CA has more roots, and each costs a request.
const ALTERNATES: usize = 5;

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
        let mut authorizations = body::texts(&json, "authorizations");
        authorizations.truncate(MOST_AUTHORIZATIONS + 1);
        authorizations.shrink_to_fit();
        Ok(Self {
            status,
            expires: body::text(&json, "expires"),
            authorizations,
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
        now.remember(std::mem::take(&mut self.authorizations));
        // An answer to finalize may leave out known members.
        now.finalize = now.finalize.or_else(|| self.finalize.take());
        *self = now;
    }

    /// Adds the authorizations that the order had before, as far as there is room.
    fn remember(&mut self, former: Vec<String>) {
        let mut known: HashSet<String> = self.authorizations.iter().cloned().collect();
        let room = MOST_AUTHORIZATIONS.saturating_sub(self.authorizations.len());
        let former = former.into_iter().filter(|url| known.insert(url.clone()));
        self.authorizations.extend(former.take(room));
    }
}

/// Reads an order from any input, and one that follows it and lists other authorizations.
#[cfg(test)]
pub(super) fn read(input: &[u8]) {
    let read = || serde_json::from_slice::<State>(input).ok();
    if let (Some(mut known), Some(mut now)) = (read(), read()) {
        let all = now.authorizations.iter_mut();
        all.for_each(|url| url.push('x'));
        known.follow(now);
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
        let ordered = self.ordered(names, request, unasked).await;
        ordered.map_err(RequestError::into_error)
    }

    /// [`Self::new_order`], with a permit for each time that the order is about to be sent: `may` looks after the last
    /// wait, which is that for other requests to the CA.
    ///
    /// # Errors
    /// As `may`, and as [`Self::new_order`].
    pub async fn new_order_if<R, F>(
        &self,
        names: &[Name],
        request: OrderRequest<'_>,
        may: impl Fn() -> F,
    ) -> Result<Order, RequestError<R>>
    where
        F: Future<Output = Result<Permit<()>, R>>,
    {
        let host = &*self.settings().directory;
        let before = || permitted(Action::NewOrder, host, may());
        self.ordered(names, request, before).await
    }

    async fn ordered<R, F>(
        &self,
        names: &[Name],
        request: OrderRequest<'_>,
        before: impl Fn() -> F,
    ) -> Result<Order, RequestError<R>>
    where
        F: Future<Output = Result<(), RequestError<R>>>,
    {
        let directory = self.directory().await?;
        if let Some(profile) = request.profile
            && directory.meta.profiles.is_empty()
        {
            let why = format!("expected no profile, found {profile:?}: this CA has none");
            return Err(Error::settings(Action::NewOrder, why).into());
        }
        let url = &directory.new_order;
        // RFC 9773, 5: only a CA with renewal information knows the member.
        let replaces = { request.replaces }.filter(|_| directory.renewal_info.is_some());
        let plain = OrderRequest {
            replaces: None,
            ..request
        };
        let Some(replaces) = replaces else {
            return self.order(url, names, plain, &before).await;
        };
        match self.order(url, names, request, &before).await {
            Err(RequestError::Failed(error)) if is_about_replaces(&error) => {
                tracing::debug!(issuer = %self.settings().name, %replaces, %error, "ordering without replaces");
                self.order(url, names, plain, &before).await
            }
            result => result,
        }
    }

    async fn order<R, F>(
        &self,
        url: &str,
        names: &[Name],
        wanted: OrderRequest<'_>,
        before: &impl Fn() -> F,
    ) -> Result<Order, RequestError<R>>
    where
        F: Future<Output = Result<(), RequestError<R>>>,
    {
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
        let posted = self.post_after(Action::NewOrder, url, payload.as_bytes(), before);
        let answer = posted.await?;
        let missing = || Error::unexpected(Action::NewOrder, &answer.host, "no Location header");
        let url = answer.location.clone().ok_or_else(missing)?;
        let mut order = Order::read(self, url, Action::NewOrder, &answer)?;
        let most = most_authorizations(names.len());
        if order.state.authorizations.len() > most {
            // The CA has made the order, and would make the next one like it: it is no outage.
            let host = &answer.host;
            let why = format!("expected no more than {most} authorizations, found more at {host}");
            return Err(Error::settings(Action::NewOrder, why).into());
        }
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
        order.state.remember(authorizations.to_vec());
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
        let told = self.told_ready(challenge, unasked).await;
        told.map_err(RequestError::into_error)
    }

    /// [`Self::set_ready`], with a permit for each time that the request is about to be sent, as for
    /// [`Client::new_order_if`].
    ///
    /// # Errors
    /// As `may`, and as [`Self::set_ready`].
    pub async fn set_ready_if<R, F>(
        &mut self,
        challenge: &Challenge,
        may: impl Fn() -> F,
    ) -> Result<(), RequestError<R>>
    where
        F: Future<Output = Result<Permit<()>, R>>,
    {
        let host = self.host.clone();
        let before = || permitted(Action::Challenge, &host, may());
        self.told_ready(challenge, before).await
    }

    async fn told_ready<R, F>(
        &mut self,
        challenge: &Challenge,
        before: impl Fn() -> F,
    ) -> Result<(), RequestError<R>>
    where
        F: Future<Output = Result<(), RequestError<R>>>,
    {
        self.pending = None;
        if challenge.status == ChallengeStatus::Pending {
            let posted = self
                .client
                .post_after(Action::Challenge, &challenge.url, b"{}", before);
            let answer = posted.await?;
            self.note_retry_after(&answer);
        }
        Ok(())
    }

    /// Sends the certificate request. After a lost answer this may be the second time: the order has then moved on,
    /// which is no error.
    ///
    /// # Errors
    /// When the CA refuses.
    pub async fn finalize(&mut self, csr_der: &[u8]) -> Result<(), Error> {
        let finalized = self.finalized(csr_der, unasked).await;
        finalized.map_err(RequestError::into_error)
    }

    /// [`Self::finalize`], with a permit for each time that the request is about to be sent, as for
    /// [`Client::new_order_if`].
    ///
    /// # Errors
    /// As `may`, and as [`Self::finalize`].
    pub async fn finalize_if<R, F>(
        &mut self,
        csr_der: &[u8],
        may: impl Fn() -> F,
    ) -> Result<(), RequestError<R>>
    where
        F: Future<Output = Result<Permit<()>, R>>,
    {
        let host = self.host.clone();
        let before = || permitted(Action::Finalize, &host, may());
        self.finalized(csr_der, before).await
    }

    async fn finalized<R, F>(
        &mut self,
        csr_der: &[u8],
        before: impl Fn() -> F,
    ) -> Result<(), RequestError<R>>
    where
        F: Future<Output = Result<(), RequestError<R>>>,
    {
        let missing = || {
            Error::unexpected(
                Action::Finalize,
                &self.host,
                "an order without a finalize URL",
            )
        };
        let url = self.state.finalize.clone().ok_or_else(missing)?;
        let payload = json!({"csr": BASE64.encode(csr_der)}).to_string();
        let posted = self
            .client
            .post_after(Action::Finalize, &url, payload.as_bytes(), before);
        match posted.await {
            Ok(answer) => {
                self.note_retry_after(&answer);
                self.state.follow(answer.json(Action::Finalize)?);
                Ok(())
            }
            Err(RequestError::Failed(error)) if error.is("orderNotReady") => {
                self.refresh().await?;
                match self.state.status {
                    OrderStatus::Processing | OrderStatus::Valid => Ok(()),
                    OrderStatus::Invalid => {
                        let why = self.why_invalid(Action::Finalize).await;
                        Err(why.into())
                    }
                    OrderStatus::Pending | OrderStatus::Ready => Err(error.into()),
                }
            }
            Err(error) => Err(error),
        }
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

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::slower_than_linear_in;

    use super::*;

    /// An order with as many authorizations, numbered from `first` on.
    fn state(first: usize, count: usize) -> State {
        let urls: Vec<String> = (first..first + count).map(url).collect();
        serde_json::from_value(json!({"status": "pending", "authorizations": urls})).unwrap()
    }

    fn url(number: usize) -> String {
        format!("https://ca.example/{number:07}")
    }

    #[test]
    fn an_order_keeps_a_bounded_number_of_authorizations_whatever_the_ca_lists() {
        let mut order = state(0, 3);
        // One that the CA lists no longer is kept, each once.
        order.follow(state(1, 3));
        assert_eq!(order.authorizations, [1, 2, 3, 0].map(url));
        order.remember(vec![url(0), url(9)]);
        assert_eq!(order.authorizations, [1, 2, 3, 0, 9].map(url));
        // Others at each look.
        for look in 1..4 {
            order.follow(state(look * 1_000, MOST_AUTHORIZATIONS - 10));
            assert!(order.authorizations.len() <= MOST_AUTHORIZATIONS);
        }
        order.follow(state(0, 150_000));
        assert_eq!(order.authorizations.len(), MOST_AUTHORIZATIONS + 1);
        let mut order = state(0, 3);
        order.remember((0..150_000).map(url).collect());
        assert_eq!(order.authorizations.len(), MOST_AUTHORIZATIONS);
    }

    #[test]
    fn very_many_recorded_authorizations_are_remembered_in_linear_time() {
        // One for each 64 bytes of length; a CA that lists none of them leaves room for all that there may be.
        let slow = slower_than_linear_in(
            |length| (0..length / 64).map(url).collect::<Vec<_>>(),
            |recorded| {
                let mut order = state(1_000_000, 0);
                order.remember(recorded.clone());
                assert!(order.authorizations.len() <= MOST_AUTHORIZATIONS);
            },
        );
        assert_eq!(slow, None);
    }
}

//! Who gets the metrics and the page where the config closes them to all but viewers.
//!
//! A client shows a token over TLS; the API server says whose it is and whether they have the right. Nothing else is
//! believed: no address, no certificate, no header that a proxy may set. The answer is kept for a short time, under a hash
//! of the token. Tokens are never logged.
//!
//! Strangers can send as many tokens as they like: few are reviewed at a time, few wait for that, each address has an
//! allowance, and all have one together. A token that was good before does not count. Whatever cannot be reviewed is
//! refused; probes never come here.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use axum::extract::{Request, State as Shared};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cert_renew_core::config::Access;
use cert_renew_core::schedule::token_bucket::TokenBucket;
use cert_renew_core::time::BootTime;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::Served;
use crate::net::bounded::{self, Connection, Encrypted};
use crate::telemetry::metrics::{Metrics, Reviewed};

/// The audience of tokens that are made for this port and are of no use to anybody else.
pub(crate) const AUDIENCE: &str = "cert-renew.io";
/// A header for tokens of [`AUDIENCE`], and no others: the API server's proxy removes the header Authorization, and does
/// not check whom it sends the rest to.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("cert-renew-token");
/// The beginning of each refusal for lack of a token or of TLS.
pub(crate) const CLOSED: &str = "cert-renew shows this to viewers only";

/// Longest token in bytes: those of Kubernetes have a thousand, those of identity providers a few thousand.
const LONGEST: usize = 8 * 1024;
/// Most tokens that are reviewed at a time.
const REVIEWS: usize = 4;
/// Most requests that wait for a review: at two milliseconds each, the last waits for a fraction of a second.
const WAITING: usize = 64;
/// Unknown tokens that an address may show at once; then one a second.
const AT_ONCE: u32 = 60;
/// Unknown tokens that all addresses together may show at once; then one in each [`FROM_ALL_EACH`]. A client with many
/// addresses can keep new viewers waiting by it, and the API server answers no more than this for them.
const FROM_ALL: u32 = 300;
/// Time until one more unknown token is reviewed.
const FROM_ALL_EACH: Duration = Duration::from_millis(50);
/// How long a yes holds: a right that is withdrawn, or a token that expires, is good for so much longer.
const ALLOWED: Duration = Duration::from_secs(60);
/// How long a no holds: somebody who has just been given the right waits no longer.
const REFUSED: Duration = Duration::from_secs(10);
/// Most answers of each kind that are kept.
const KEPT: usize = 1_024;
/// Time between two log lines about reviews that fail.
const TOLD: Duration = Duration::from_secs(60);
/// What a client that was refused for lack of time is told to wait, in seconds.
const LATER: HeaderValue = HeaderValue::from_static("2");

/// What a token is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The status page and its JSON.
    Page,
    /// The metrics.
    Metrics,
}

/// What the API server is asked.
pub struct Question {
    /// The token.
    pub token: Zeroizing<String>,
    /// The audience that it has to have; none is the API server's own.
    pub audience: Option<&'static str>,
    /// What it is shown for.
    pub wanted: Wanted,
}

/// What the API server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They have the right.
    Allowed,
    /// They do not: who lacks which right, as a sentence.
    Forbidden(Box<str>),
    /// It knows no such token.
    Unknown,
}

/// Asks the API server. Its error is for the log, and ends in time.
pub type Review =
    Arc<dyn Fn(Question) -> BoxFuture<'static, Result<Verdict, String>> + Send + Sync>;

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a token for {:?}", self.wanted)
    }
}

/// Digest of a token, of its audience and of what it is shown for.
type Key = [u8; 32];

/// Answers of the API server, by token.
#[derive(Default)]
struct Answers {
    /// When the answer is no longer believed. Kept longer, as a sign that the token is somebody's.
    allowed: HashMap<Key, BootTime>,
    /// Separate, so that refused tokens push out no others.
    refused: HashMap<Key, (BootTime, Verdict)>,
}

impl Answers {
    fn of(&self, key: &Key, now: BootTime) -> Option<Verdict> {
        if self.allowed.get(key).is_some_and(|until| now < *until) {
            return Some(Verdict::Allowed);
        }
        let (until, verdict) = self.refused.get(key)?;
        (now < *until).then(|| verdict.clone())
    }

    fn keep(&mut self, key: Key, now: BootTime, verdict: Verdict) {
        if verdict == Verdict::Allowed {
            self.refused.remove(&key);
            make_room(&mut self.allowed, |until| *until);
            self.allowed.insert(key, now + ALLOWED);
        } else {
            self.allowed.remove(&key);
            make_room(&mut self.refused, |(until, _)| *until);
            self.refused.insert(key, (now + REFUSED, verdict));
        }
    }
}

/// Drops the oldest answer if there are too many.
fn make_room<T>(answers: &mut HashMap<Key, T>, until: impl Fn(&T) -> BootTime) {
    if answers.len() < KEPT {
        return;
    }
    let oldest = answers.iter().min_by_key(|(_, answer)| until(answer));
    if let Some(key) = oldest.map(|(key, _)| *key) {
        answers.remove(&key);
    }
}

/// What came of a token.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    By(Verdict),
    /// Too many tokens are shown.
    Busy,
    /// The API server could not be asked.
    Failed,
}

/// How many unknown tokens are reviewed.
struct Allowance {
    of_each: TokenBucket,
    of_all: TokenBucket,
}

impl Allowance {
    fn new() -> Self {
        Self {
            of_each: TokenBucket::new(AT_ONCE),
            of_all: TokenBucket::every(FROM_ALL, FROM_ALL_EACH),
        }
    }

    /// What an address shows beyond its own allowance does not count for the others.
    fn take(&mut self, now: Instant, address: Option<IpAddr>) -> bool {
        let address = address.map(bounded::network).unwrap_or_default();
        self.of_each.take(now, &address) && self.of_all.take(now, "")
    }
}

/// Reviews tokens, within bounds.
pub(super) struct Doorkeeper {
    review: Review,
    metrics: Arc<Metrics>,
    answers: Mutex<Answers>,
    allowance: Mutex<Allowance>,
    waiting: Semaphore,
    reviews: Semaphore,
    told: Mutex<Option<Instant>>,
}

impl Doorkeeper {
    pub(super) fn new(review: Review, metrics: Arc<Metrics>) -> Self {
        Self {
            review,
            metrics,
            answers: Mutex::default(),
            allowance: Mutex::new(Allowance::new()),
            waiting: Semaphore::new(WAITING),
            reviews: Semaphore::new(REVIEWS),
            told: Mutex::default(),
        }
    }

    async fn judge(&self, address: Option<IpAddr>, question: Question) -> Judged {
        let key = key(&question);
        let known = lock(&self.answers).of(&key, BootTime::now());
        if let Some(verdict) = known {
            return Judged::By(verdict);
        }
        // One that was good before is always reviewed again, and takes no place from others.
        let was_good = lock(&self.answers).allowed.contains_key(&key);
        let waiting = if was_good {
            None
        } else {
            let may = lock(&self.allowance).take(Instant::now(), address);
            match self.waiting.try_acquire() {
                Ok(waiting) if may => Some(waiting),
                _ => return self.busy(),
            }
        };
        let Ok(_reviewing) = self.reviews.acquire().await else {
            return Judged::Failed;
        };
        drop(waiting);
        // Another request may have shown the same token in the meantime.
        let known = lock(&self.answers).of(&key, BootTime::now());
        if let Some(verdict) = known {
            return Judged::By(verdict);
        }
        match (self.review)(question).await {
            Ok(verdict) => {
                self.metrics.token_reviewed(match &verdict {
                    Verdict::Allowed => Reviewed::Allowed,
                    Verdict::Forbidden(_) => Reviewed::Forbidden,
                    Verdict::Unknown => Reviewed::Unknown,
                });
                lock(&self.answers).keep(key, BootTime::now(), verdict.clone());
                Judged::By(verdict)
            }
            Err(error) => {
                self.metrics.token_reviewed(Reviewed::Failed);
                self.tell(&error);
                Judged::Failed
            }
        }
    }

    fn busy(&self) -> Judged {
        self.metrics.token_reviewed(Reviewed::TooMany);
        Judged::Busy
    }

    fn tell(&self, error: &str) {
        let mut told = lock(&self.told);
        if told.is_none_or(|at| at.elapsed() > TOLD) {
            *told = Some(Instant::now());
            tracing::error!(
                error,
                "viewers are refused: their tokens cannot be reviewed"
            );
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(question: &Question) -> Key {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[
        u8::from(question.wanted == Wanted::Metrics),
        u8::from(question.audience.is_some()),
    ]);
    context.update(question.token.as_bytes());
    let mut key = Key::default();
    key.copy_from_slice(context.finish().as_ref());
    key
}

/// The token of a request, with the audience that it has to have.
fn shown(headers: &HeaderMap) -> Option<(Zeroizing<String>, Option<&'static str>)> {
    let one = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    };
    if headers.contains_key(AUTHORIZATION) {
        let (scheme, token) = one(&AUTHORIZATION)?.split_once(' ')?;
        let token = token.trim();
        let is_bearer = scheme.eq_ignore_ascii_case("bearer");
        let audience = is_for_us(token).then_some(AUDIENCE);
        return (is_bearer && is_token(token)).then(|| (token.to_owned().into(), audience));
    }
    let token = one(&HEADER)?.trim();
    is_token(token).then(|| (token.to_owned().into(), Some(AUDIENCE)))
}

/// The form of a bearer token (RFC 6750, 2.1).
fn is_token(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(fits)
}

/// Whether a token says that it is made for this port. Decides only what the API server is asked, which checks it.
fn is_for_us(token: &str) -> bool {
    #[derive(Deserialize)]
    struct Claims {
        aud: OneOrMore,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    let claims = || {
        let payload = token.get(..LONGEST.min(token.len()))?.split('.').nth(1)?;
        let payload = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload).ok()?);
        serde_json::from_slice::<Claims>(&payload).ok()
    };
    claims().is_some_and(|claims| match claims.aud {
        OneOrMore::One(one) => one == AUDIENCE,
        OneOrMore::More(more) => more.iter().any(|it| it == AUDIENCE),
    })
}

/// Reads the token of a request from any input.
#[cfg(test)]
pub(super) fn read(input: &[u8]) {
    for header in [&AUTHORIZATION, &HEADER] {
        if let Ok(value) = HeaderValue::from_bytes(input) {
            drop(shown(&HeaderMap::from_iter([(header.clone(), value)])));
        }
    }
    let _ = is_for_us(&format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(input)));
}

/// Lets a request for the page through, if the config or the API server does.
pub(super) async fn page(served: Shared<Arc<Served>>, request: Request, next: Next) -> Response {
    guard(served, Wanted::Page, request, next).await
}

/// Lets a request for the metrics through, if the config or the API server does.
pub(super) async fn metrics(served: Shared<Arc<Served>>, request: Request, next: Next) -> Response {
    guard(served, Wanted::Metrics, request, next).await
}

async fn guard(
    Shared(served): Shared<Arc<Served>>,
    wanted: Wanted,
    mut request: Request,
    next: Next,
) -> Response {
    let access = served.state.config.borrow().metrics.access;
    if access == Access::Anyone {
        return next.run(request).await;
    }
    if request.extensions().get::<Encrypted>().is_none() {
        // A token that has come this way is not looked at: others may have seen it.
        let note = format!("{CLOSED}, and over TLS only: ask by https\n");
        return refused(StatusCode::FORBIDDEN, note);
    }
    let Some((token, audience)) = shown(request.headers()) else {
        let note = format!("{CLOSED}: show a token, Authorization: Bearer …\n");
        return unauthorized(
            HeaderValue::from_static("Bearer realm=\"cert-renew\""),
            note,
        );
    };
    for header in [&AUTHORIZATION, &HEADER] {
        request.headers_mut().remove(header);
    }
    let question = Question {
        token,
        audience,
        wanted,
    };
    let connection = request.extensions().get::<Connection>().cloned();
    let address = connection.as_ref().map(Connection::address);
    match served.doorkeeper.judge(address, question).await {
        Judged::By(Verdict::Allowed) => {
            if let Some(connection) = connection {
                connection.welcome();
            }
            next.run(request).await
        }
        Judged::By(Verdict::Forbidden(why)) => {
            refused(StatusCode::FORBIDDEN, format!("{CLOSED}: {why}\n"))
        }
        Judged::By(Verdict::Unknown) => unauthorized(
            HeaderValue::from_static("Bearer realm=\"cert-renew\", error=\"invalid_token\""),
            format!("{CLOSED}: the API server does not take this token\n"),
        ),
        Judged::Busy => later("too many tokens are shown, try again later\n"),
        Judged::Failed => later("the token could not be reviewed: see the operator's log\n"),
    }
}

fn refused(status: StatusCode, note: String) -> Response {
    let headers = [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (status, headers, note).into_response()
}

fn unauthorized(challenge: HeaderValue, note: String) -> Response {
    let mut response = refused(StatusCode::UNAUTHORIZED, note);
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}

fn later(note: &str) -> Response {
    let mut response = refused(StatusCode::SERVICE_UNAVAILABLE, note.to_owned());
    response.headers_mut().insert(RETRY_AFTER, LATER);
    response
}

#[cfg(test)]
mod tests;

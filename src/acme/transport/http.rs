//! HTTP to a CA: with deadlines, a bounded body, and all headers that a later decision needs.
//!
//! Input: a URL from the CA, and a signed body or none. Output: an [`Answer`] of any status.
//! It never follows a redirect of a signed request, never leaves https (except to loopback), never has more requests in
//! flight to one issuer than its `concurrency`, and never sends them faster than its rate limit allows. `HTTPS_PROXY`,
//! `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` are honoured.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cert_renew_core::time::UnixTime;
use jiff::fmt::rfc2822;
use reqwest::header::{ACCEPT, CONTENT_TYPE, DATE, HeaderMap, LINK, LOCATION, RETRY_AFTER};
use reqwest::{ClientBuilder, Method, Request, Response, Url};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tower::util::BoxCloneSyncService;
use tower::{Service as _, ServiceExt as _};

use super::rate_limiter::RateLimiter;
use crate::acme::error::{Action, Error, Kind};
use crate::net::egress::{Nearby, System};
use crate::net::https;
use crate::process::write_gate::WriteGate;

/// Longest wait for a connection: after it the CA is down, or a firewall drops our packets.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest time of a request, from the first byte sent to the last one received.
const REQUEST: Duration = Duration::from_secs(30);
/// Longest time of a finalize request: some CAs issue within it and take more than 45 s (Sectigo).
const FINALIZE: Duration = Duration::from_secs(120);
/// Longest wait for one of the `concurrency` slots, as all may wait for a slow finalize. The time of the requests ahead
/// is added.
const SLOT: Duration = Duration::from_secs(180);
/// Most bytes of an answer: a chain of ten certificates is 20 kB, a directory 2 kB.
const BODY: usize = 1024 * 1024;
/// Most redirects of a GET; enough for a CA's move to another name and to https.
const REDIRECTS: usize = 3;
/// User-Agent: Boulder and Pebble refuse requests without one (RFC 8555, section 6.1).
const USER_AGENT: &str = concat!("cert-renew/", env!("CARGO_PKG_VERSION"));

/// A finished request, for metrics.
#[derive(Clone, Copy, Debug)]
pub struct RequestInfo<'a> {
    /// The CA's host.
    pub host: &'a str,
    /// The purpose.
    pub action: Action,
    /// The status of the answer; `None` without a complete answer.
    pub status: Option<u16>,
    /// From sending to the last byte, without the wait for a slot and for the rate limit.
    pub duration: Duration,
}

/// What carries a request to a CA and brings the answer.
pub type Carrier = BoxCloneSyncService<Request, Response, reqwest::Error>;

/// Called after each request.
pub type Observer = Arc<dyn Fn(&RequestInfo<'_>) + Send + Sync>;

/// The answer of a CA.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The host that answered.
    pub(crate) host: Box<str>,
    /// HTTP status.
    pub(crate) status: u16,
    /// Relative to now, also where the CA gave a date (RFC 9110, section 10.2.3).
    pub(crate) retry_after: Option<Duration>,
    /// Absolute URL.
    pub(crate) location: Option<String>,
    /// The absolute URLs of `Link: rel="alternate"`.
    pub(crate) alternates: Vec<String>,
    /// `Replay-Nonce` (RFC 8555, section 6.5.1).
    pub(crate) nonce: Option<String>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The answer, read as an error.
    pub(crate) fn error(&self, action: Action) -> Error {
        Error::answer(
            action,
            &self.host,
            self.status,
            &self.body,
            self.retry_after,
            UnixTime::now(),
        )
    }

    /// The body as JSON of the expected shape.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, action: Action) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Error::new(
                action,
                &self.host,
                Kind::Unexpected("a body of another form", Some(error)),
            )
        })
    }
}

/// A slot for a request in flight; dropping it frees the slot.
pub(crate) struct Slot<'a>(#[expect(dead_code, reason = "held")] SemaphorePermit<'a>);

/// The rate limit's consent to one request by a slot: nothing of ours is waited for any more.
pub(crate) struct Turn<'a>(#[expect(dead_code, reason = "held")] &'a Slot<'a>);

/// One issuer's connections.
pub(crate) struct Http {
    carrier: Carrier,
    /// Held while a request is in flight, never while an order waits.
    slots: Semaphore,
    /// One reference for each request that waits for a slot, and this one.
    waiting: Arc<()>,
    rate_limiter: RateLimiter,
    /// Whether the directory is on this machine (tests, side-cars): only then may its URLs be there too.
    nearby: Nearby,
    /// Whether the directory is fetched without TLS: only then may other URLs on this machine be.
    plain: bool,
    observer: Observer,
    gate: WriteGate,
}

/// Connections to the CA with this directory. `ca_bundle` is PEM, trusted beside the public roots, which are compiled in,
/// as the image holds no files.
pub(in crate::acme) fn connections(
    directory: &str,
    ca_bundle: Option<&[u8]>,
) -> Result<Carrier, Error> {
    let adapted = |client: ClientBuilder| {
        let resolver = Arc::new(System(Nearby::of(directory)));
        let client = client.dns_resolver(resolver).user_agent(USER_AGENT);
        client.connect_timeout(CONNECT)
    };
    let client = { https::roots(ca_bundle) }.and_then(|roots| https::client(roots, adapted));
    let client = client.map_err(|expected| Error::settings(Action::Directory, expected))?;
    Ok(Carrier::new(client))
}

impl Http {
    pub(crate) fn new(
        directory: &str,
        carrier: Carrier,
        concurrency: usize,
        rate_limiter: RateLimiter,
        observer: Observer,
        gate: WriteGate,
    ) -> Self {
        Self {
            carrier,
            // A semaphore without permits would block every request.
            slots: Semaphore::new(concurrency.max(1)),
            waiting: Arc::default(),
            rate_limiter,
            nearby: Nearby::of(directory),
            plain: directory.starts_with("http:"),
            observer,
            gate,
        }
    }

    /// A slot for consecutive requests, never held while an order waits.
    pub(crate) async fn slot(&self, action: Action, url: &str) -> Result<Slot<'_>, Error> {
        let waits = Arc::clone(&self.waiting);
        // Each request ahead may need a nonce first.
        let ahead = 2 * Arc::strong_count(&waits);
        let deadline = SLOT + self.rate_limiter.taken_by(ahead);
        let slot = timeout(deadline, self.slots.acquire()).await;
        // The semaphore is never closed.
        let slot = slot.ok().and_then(Result::ok);
        let slot = slot.ok_or_else(|| error_at(action, url, Kind::TimedOut))?;
        Ok(Slot(slot))
    }

    /// Waits until the rate limit lets the next request of this slot be sent.
    pub(crate) async fn turn<'a>(
        &self,
        slot: &'a Slot<'_>,
        action: Action,
        url: &str,
    ) -> Result<Turn<'a>, Error> {
        let waited = self.gate.pass(self.rate_limiter.wait()).await;
        waited.map_err(|closed| error_at(action, url, Kind::Closed(closed)))?;
        Ok(Turn(slot))
    }

    /// A GET, or a HEAD for newNonce; follows redirects that keep the scheme.
    pub(crate) async fn get(
        &self,
        slot: &Slot<'_>,
        action: Action,
        url: &str,
    ) -> Result<Answer, Error> {
        let method = if action == Action::NewNonce {
            Method::HEAD
        } else {
            Method::GET
        };
        let mut url = self.permitted(action, url)?;
        for _ in 0..REDIRECTS {
            let turn = self.turn(slot, action, url.as_str()).await?;
            let request = Request::new(method.clone(), url.clone());
            let answer = self.send(turn, action, request).await?;
            match &answer.location {
                Some(location) if (300..400).contains(&answer.status) => {
                    let next = self.permitted(action, location)?;
                    if next.scheme() != url.scheme() {
                        return Err(Error::unexpected(
                            action,
                            &answer.host,
                            "a redirect to another scheme",
                        ));
                    }
                    url = next;
                }
                _ => return Ok(answer),
            }
        }
        Err(Error::unexpected(
            action,
            url.host_str().unwrap_or_default(),
            "too many redirects",
        ))
    }

    /// A POST of a JWS.
    pub(crate) async fn post(
        &self,
        turn: Turn<'_>,
        action: Action,
        url: &str,
        jws: String,
    ) -> Result<Answer, Error> {
        let mut request = Request::new(Method::POST, self.permitted(action, url)?);
        let headers = request.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            const { http::HeaderValue::from_static("application/jose+json") },
        );
        if action == Action::Certificate {
            headers.insert(
                ACCEPT,
                const { http::HeaderValue::from_static("application/pem-certificate-chain") },
            );
        }
        *request.body_mut() = Some(jws.into());
        self.send(turn, action, request).await
    }

    /// The parsed URL.
    ///
    /// # Errors
    /// When it may not be requested.
    pub(crate) fn permitted(&self, action: Action, url: &str) -> Result<Url, Error> {
        permitted(url, self.nearby, self.plain).ok_or_else(|| {
            let found: String = url.chars().take(200).collect();
            let expected = "expected an https URL of another machine";
            Error::settings(action, format!("{expected}, found {found:?}"))
        })
    }

    async fn send(
        &self,
        _turn: Turn<'_>,
        action: Action,
        request: Request,
    ) -> Result<Answer, Error> {
        let host: Box<str> = request.url().host_str().unwrap_or_default().into();
        let timed_out = || Error::new(action, &host, Kind::TimedOut);
        let closed = |closed| Error::new(action, &host, Kind::Closed(closed));
        let started = Instant::now();
        let deadline = if action == Action::Finalize {
            FINALIZE
        } else {
            REQUEST
        };
        let exchange = self.gate.pass(self.exchange(action, &host, request));
        let result = match timeout(deadline, exchange).await {
            Ok(Ok(result)) => result,
            Ok(Err(shut)) => return Err(closed(shut)),
            Err(_) => Err(timed_out()),
        };
        let status = result.as_ref().ok().map(|answer| answer.status);
        (self.observer)(&RequestInfo {
            host: &host,
            action,
            status,
            duration: started.elapsed(),
        });
        result
    }

    async fn exchange(
        &self,
        action: Action,
        host: &str,
        request: Request,
    ) -> Result<Answer, Error> {
        // The error's own text would contain the URL, and that of a proxy with its password.
        let unreachable = |error: reqwest::Error| {
            Error::new(action, host, Kind::Unreachable(error.without_url()))
        };
        let url = request.url().clone();
        let mut carrier = self.carrier.clone();
        let ready = carrier.ready().await.map_err(unreachable)?;
        let mut response = ready.call(request).await.map_err(unreachable)?;
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > BODY {
                return Err(Error::unexpected(action, host, "a body of more than 1 MiB"));
            }
            body.extend_from_slice(&chunk);
        }
        let headers = response.headers();
        let text = |name| {
            headers
                .get(name)
                .and_then(|value: &http::HeaderValue| value.to_str().ok())
        };
        // Compare a date with the sender's clock, which may be right when ours is wrong.
        let said = text(DATE).and_then(date).unwrap_or_else(UnixTime::now);
        Ok(Answer {
            host: host.into(),
            status: response.status().as_u16(),
            retry_after: text(RETRY_AFTER).and_then(|value| retry_after(value, said)),
            location: text(LOCATION)
                .and_then(|target| url.join(target).ok())
                .map(String::from),
            alternates: alternates(headers, &url),
            nonce: headers
                .get("replay-nonce")
                .and_then(|it| it.to_str().ok())
                .map(str::to_owned),
            body: body.freeze(),
        })
    }
}

/// An error of a request to this URL.
fn error_at(action: Action, url: &str, kind: Kind) -> Error {
    let url = Url::parse(url).ok();
    let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
    Error::new(action, host, kind)
}

/// The parsed URL, if it may be requested: by https elsewhere, and on this machine only if the directory is there.
fn permitted(url: &str, nearby: Nearby, plain: bool) -> Option<Url> {
    let here = Nearby::of(url) == Nearby::Open;
    let url = Url::parse(url).ok()?;
    nearby.check(&url).ok()?;
    (url.scheme() == "https" || plain && here && url.scheme() == "http").then_some(url)
}

/// An HTTP-date (RFC 9110, section 5.6.7).
fn date(value: &str) -> Option<UnixTime> {
    let date = rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(UnixTime(date.as_second()))
}

/// `Retry-After` as seconds or as an HTTP-date (RFC 9110, section 10.2.3); an invalid one counts as absent.
pub(in crate::acme) fn retry_after(value: &str, now: UnixTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    Some(date(value)?.since(now))
}

/// The targets with `rel="alternate"` (RFC 8288; RFC 8555, section 7.4.2) of all such headers, without duplicates.
pub(in crate::acme) fn alternates(headers: &HeaderMap, base: &Url) -> Vec<String> {
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    for value in headers
        .get_all(LINK)
        .iter()
        .filter_map(|it| it.to_str().ok())
    {
        let mut rest = value;
        while let Some((target, after)) =
            rest.split_once('<').and_then(|(_, it)| it.split_once('>'))
        {
            let parameters = &after[..after.find('<').unwrap_or(after.len())];
            let alternate = parameters.split([';', ',']).any(|parameter| {
                parameter
                    .trim()
                    .split_once('=')
                    .is_some_and(|(name, value)| {
                        name.trim().eq_ignore_ascii_case("rel")
                            && value
                                .trim()
                                .trim_matches('"')
                                .eq_ignore_ascii_case("alternate")
                    })
            });
            if let Some(url) = base
                .join(target)
                .ok()
                .filter(|_| alternate)
                .map(String::from)
                && known.insert(url.clone())
            {
                found.push(url);
            }
            rest = after;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = UnixTime(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT
        let cases = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("99999999999999999999", None),
        ];
        for (value, seconds) in cases {
            assert_eq!(
                retry_after(value, now),
                seconds.map(Duration::from_secs),
                "{value}"
            );
        }
    }

    #[test]
    fn alternates_are_found_in_any_spelling() {
        let mut headers = HeaderMap::new();
        for value in [
            r#"<https://ca/dir>;rel="index""#,
            r#"</cert/1/alternate/1>; rel="alternate", <https://ca/a,b>;title="x";REL=alternate"#,
            r#"<https://ca/cert/1/alternate/1>;rel="alternate""#,
            "nonsense, <",
        ] {
            headers.append(LINK, value.parse().unwrap());
        }
        let base = Url::parse("https://ca/cert/1").unwrap();
        assert_eq!(
            alternates(&headers, &base),
            ["https://ca/cert/1/alternate/1", "https://ca/a,b"]
        );
    }

    #[test]
    fn only_https_or_loopback_is_permitted() {
        // For a CA elsewhere, one on this machine, and one there without TLS.
        let cases = [
            ("https://ca.example/directory", [true, true, true]),
            ("https://10.0.0.7:9000/dir", [true, true, true]),
            ("https://127.0.0.1:14000/dir", [false, true, true]),
            ("https://localhost/dir", [false, true, true]),
            ("https://169.254.169.254/", [false, false, false]),
            ("https://[fe80::1]/", [false, false, false]),
            ("http://127.0.0.1:14000/dir", [false, false, true]),
            ("http://[::1]:14000/dir", [false, false, true]),
            ("http://localhost/dir", [false, false, true]),
            ("http://ca.example/directory", [false, false, false]),
            ("http://localhost.example/dir", [false, false, false]),
            ("http://169.254.169.254/", [false, false, false]),
            ("ftp://127.0.0.1/", [false, false, false]),
            ("directory", [false, false, false]),
        ];
        for (url, expected) in cases {
            let found = [
                (Nearby::Closed, false),
                (Nearby::Open, false),
                (Nearby::Open, true),
            ]
            .map(|(nearby, plain)| permitted(url, nearby, plain).is_some());
            assert_eq!(found, expected, "{url}");
        }
    }
}

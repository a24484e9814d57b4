//! ACME Renewal Information (RFC 9773): when the CA suggests to replace a certificate.
//!
//! Input: the certificate's key identifier and serial, an unauthenticated answer, `now`.
//! Output: a window, and when to ask again. The rules are pure; only [`Client::renewal_info`] does I/O.
//! It never says that a certificate is not due: without an answer the schedule's own rule holds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use cert_renew_core::time::UnixTime;
use instant_acme::CertificateIdentifier;
use rustls_pki_types::Der;
use serde_json::Value;
use thiserror::Error as ThisError;

use super::client::Client;
use super::error::{Action, Error, Kind};
use crate::acme::error::problem::Class;

/// Shortest time between two polls (RFC 9773, 4.3.2 bounds Retry-After); a minute spares the CA.
const SOONEST: Duration = Duration::from_secs(60);
/// Longest time between two polls (RFC 9773, 4.3.2): after more than a day a mass revocation would be noticed too late.
const LATEST: Duration = Duration::from_secs(86_400);
/// Time to the next poll if there is no answer (RFC 9773, 4.3.3).
const LONG_TERM: Duration = Duration::from_secs(6 * 3_600);

/// The name of a certificate in ARI (RFC 9773, section 4.1): prints and parses as `<key identifier>.<serial>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertId(CertificateIdentifier<'static>);

/// Why a text is not a [`CertId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
#[error("expected a certificate id such as aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")]
pub struct NotACertId;

/// The period in which the CA suggests to renew; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// The first instant.
    pub start: UnixTime,
    /// Later than `start`.
    pub end: UnixTime,
}

/// The result of one poll.
#[derive(Debug)]
pub struct Poll {
    /// `None`: keep the former window, or the schedule's own rule.
    pub window: Option<Window>,
    /// URL of a page that explains the window, for people.
    pub explanation: Option<String>,
    /// When to ask again, neither sooner nor later.
    pub again: UnixTime,
    /// Why there is no window, or why the next poll is not at the CA's time.
    pub trouble: Option<Trouble>,
}

/// What is wrong with an answer.
#[derive(Debug, ThisError)]
pub enum Trouble {
    /// No answer, or an error.
    #[error("the CA gave no renewal information")]
    NoAnswer(#[source] Error),
    /// The body is not a renewal information object.
    #[error("the CA's renewal information cannot be read")]
    Unreadable,
    /// RFC 9773, 4.2: treated as no answer.
    #[error("the CA's window ends before it begins")]
    Inverted,
    /// RFC 9773, 4.3.2 requires one.
    #[error("the CA's renewal information came without Retry-After")]
    NoRetryAfter,
}

impl CertId {
    /// From the octets of the authority key identifier and of the serial as encoded in the certificate (including a
    /// leading zero octet).
    #[must_use]
    pub fn new(authority_key_id: &[u8], serial: &[u8]) -> Self {
        Self(CertificateIdentifier::new(
            Der::from_slice(authority_key_id),
            Der::from_slice(serial),
        ))
    }

    pub(super) fn as_replaced(&self) -> CertificateIdentifier<'static> {
        self.0.clone()
    }
}

impl fmt::Display for CertId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CertId {
    type Err = NotACertId;

    fn from_str(text: &str) -> Result<Self, NotACertId> {
        let base64url = |it: &str| {
            !it.is_empty()
                && it
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        match text.split_once('.') {
            Some((key_id, serial)) if base64url(key_id) && base64url(serial) => {
                Ok(Self(CertificateIdentifier {
                    authority_key_identifier: key_id.to_owned().into(),
                    serial: serial.to_owned().into(),
                }))
            }
            _ => Err(NotACertId),
        }
    }
}

/// A random instant in the window, uniform, and always the same for one certificate and window, so that a restart
/// neither renews twice nor moves the day (RFC 9773, section 4.2). An instant in the past means now.
#[must_use]
pub fn choose_instant(window: Window, certificate: &CertId) -> UnixTime {
    let seed = format!("{certificate} {} {}", window.start.0, window.end.0);
    let hash = digest(&SHA256, seed.as_bytes());
    let random = hash
        .as_ref()
        .iter()
        .take(8)
        .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let span = window.end.since(window.start).as_secs();
    // Scales 64 random bits to the span; the high half of the product is at most span - 1.
    let offset = (u128::from(random) * u128::from(span)) >> 64;
    window.start + Duration::from_secs(u64::try_from(offset).unwrap_or(0))
}

/// Interprets an answer with status 200.
pub(super) fn interpret(body: &[u8], retry_after: Option<Duration>, now: UnixTime) -> Poll {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let instant = |member: &str| {
        json["suggestedWindow"][member]
            .as_str()?
            .parse::<UnixTime>()
            .ok()
    };
    let (window, trouble) = match (instant("start"), instant("end")) {
        (Some(start), Some(end)) if start < end => (
            Some(Window { start, end }),
            retry_after.is_none().then_some(Trouble::NoRetryAfter),
        ),
        (Some(_), Some(_)) => (None, Some(Trouble::Inverted)),
        _ => (None, Some(Trouble::Unreadable)),
    };
    Poll {
        window,
        explanation: json["explanationURL"]
            .as_str()
            .map(|url| url.chars().take(1_000).collect()),
        again: now + clamped(retry_after),
        trouble,
    }
}

/// Interprets an error; `failures` counts temporary ones in a row, this one not included.
fn interpret_error(error: Error, failures: u32, now: UnixTime) -> Poll {
    // RFC 9773, 4.3.3: 4xx, refused connections and unknown names are lasting; 5xx and timeouts are temporary.
    let lasting = error.is_connect() || error.status().is_some_and(|status| status < 500);
    let wait = match error.retry_after() {
        Some(until) => clamped(Some(until.since(now))),
        None if lasting => LONG_TERM,
        None => SOONEST
            .saturating_mul(2_u32.saturating_pow(failures))
            .min(LONG_TERM),
    };
    Poll {
        window: None,
        explanation: None,
        again: now + wait,
        trouble: Some(Trouble::NoAnswer(error)),
    }
}

impl Poll {
    /// A poll without an answer in time, as by a temporary error; `failures` counts those in a row before it.
    #[must_use]
    pub fn late(directory: &str, failures: u32, now: UnixTime) -> Self {
        let error = Error::new(Action::RenewalInfo, directory, Kind::TimedOut);
        interpret_error(error, failures, now)
    }

    /// Whether the CA asks for no such request for a while, for any certificate.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        matches!(&self.trouble, Some(Trouble::NoAnswer(error))
            if matches!(error.class(), Class::RateLimited { .. }))
    }

    /// Whether the CA was unreachable or failed: a single certificate may be the cause.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(&self.trouble, Some(Trouble::NoAnswer(error))
            if error.status().is_none_or(|status| status >= 500 || status == 429))
    }
}

fn clamped(retry_after: Option<Duration>) -> Duration {
    retry_after.map_or(LONG_TERM, |wait| wait.clamp(SOONEST, LATEST))
}

impl Client {
    /// Asks the CA once; `failures` counts temporary ones in a row before this poll, and spaces the next one.
    /// `None`: this CA has no renewal information.
    ///
    /// # Errors
    /// When the directory is unavailable; a failed poll is a [`Poll`] with its trouble.
    pub async fn renewal_info(
        &self,
        certificate: &CertId,
        failures: u32,
        now: UnixTime,
    ) -> Result<Option<Poll>, Error> {
        let directory = self.directory().await?;
        let Some(base) = &directory.renewal_info else {
            return Ok(None);
        };
        let url = format!("{}/{certificate}", base.trim_end_matches('/'));
        let answer = self.get(Action::RenewalInfo, &url).await;
        Ok(Some(match answer {
            Ok(answer) if answer.is_success() => interpret(&answer.body, answer.retry_after, now),
            Ok(answer) => interpret_error(answer.error(Action::RenewalInfo), failures, now),
            Err(error) => interpret_error(error, failures, now),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    #[test]
    fn the_id_is_that_of_the_rfc() {
        // RFC 9773, section 4.1, the worked example.
        let key_id = [
            0x69, 0x88, 0x5B, 0x6B, 0x87, 0x46, 0x40, 0x41, 0xE1, 0xB3, 0x7B, 0x84, 0x7B, 0xA0,
            0xAE, 0x2C, 0xDE, 0x01, 0xC8, 0xD4,
        ];
        let id = CertId::new(&key_id, &[0x00, 0x87, 0x65, 0x43, 0x21]);
        assert_eq!(id.to_string(), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", ".", "a.", ".a", "a.b.c", "a/b.c", "a=.b"] {
            assert_eq!(bad.parse::<CertId>(), Err(NotACertId), "{bad}");
        }
    }

    #[test]
    fn the_instant_is_stable_uniform_and_within() {
        let window = Window {
            start: NOW,
            end: NOW + Duration::from_secs(1_000),
        };
        let mut quarters = [0; 4];
        for n in 0..4_000_u32 {
            let id = CertId::new(b"issuer", &n.to_be_bytes());
            let chosen = choose_instant(window, &id);
            assert_eq!(chosen, choose_instant(window, &id));
            quarters[usize::try_from(chosen.since(NOW).as_secs() / 250).unwrap()] += 1;
        }
        assert!(
            quarters.iter().all(|count| (850..1150).contains(count)),
            "{quarters:?}"
        );

        let id = CertId::new(b"issuer", b"1");
        let moved = Window {
            end: window.end + Duration::from_secs(1),
            ..window
        };
        assert_ne!(choose_instant(window, &id), choose_instant(moved, &id));
        let shortest = Window {
            start: NOW,
            end: NOW + Duration::from_secs(1),
        };
        assert_eq!(choose_instant(shortest, &id), NOW);
        let hostile = Window {
            start: UnixTime(i64::MIN),
            end: UnixTime(i64::MAX),
        };
        assert!(choose_instant(hostile, &id) < hostile.end);
    }

    #[test]
    fn answers_are_read_as_the_rfc_says() {
        let body = |start: &str, end: &str| {
            format!(r#"{{"suggestedWindow": {{"start": "{start}", "end": "{end}"}}}}"#)
        };
        let good = body("2021-01-03T00:00:00Z", "2021-01-07T00:00:00.5+00:00");
        let hours = |n: u64| Some(Duration::from_secs(n * 3_600));
        let cases = [
            (good.clone(), hours(6), true, 6 * 3_600),
            (good.clone(), hours(100), true, 86_400),
            (good.clone(), Some(Duration::ZERO), true, 60),
            (good, None, true, 6 * 3_600),
            (
                body("2021-01-07T00:00:00Z", "2021-01-03T00:00:00Z"),
                hours(1),
                false,
                3_600,
            ),
            (
                body("2021-01-03T00:00:00Z", "2021-01-03T00:00:00Z"),
                None,
                false,
                6 * 3_600,
            ),
            (body("soon", "later"), hours(1), false, 3_600),
            ("<html>".to_owned(), None, false, 6 * 3_600),
        ];
        for (body, retry_after, window, again) in cases {
            let poll = interpret(body.as_bytes(), retry_after, NOW);
            assert_eq!(
                (poll.window.is_some(), poll.again.since(NOW).as_secs()),
                (window, again),
                "{body}"
            );
            assert_eq!(
                poll.trouble.is_some(),
                !window || retry_after.is_none(),
                "{body}"
            );
        }
        let poll = interpret(br#"{"explanationURL": "https://ca/why"}"#, None, NOW);
        assert_eq!(poll.explanation.as_deref(), Some("https://ca/why"));
    }

    #[test]
    fn errors_are_asked_again_in_due_time() {
        let status = |status, wait: Option<u64>| {
            Error::answer(
                Action::RenewalInfo,
                "ca",
                status,
                b"",
                wait.map(Duration::from_secs),
                NOW,
            )
        };
        let timed_out = || Error::new(Action::RenewalInfo, "ca", Kind::TimedOut);
        let cases = [
            (status(404, None), 0, 6 * 3_600),
            (status(404, None), 9, 6 * 3_600),
            (status(500, None), 0, 60),
            (status(500, None), 3, 480),
            (status(500, None), 40, 6 * 3_600),
            (status(503, Some(299)), 0, 300),
            (status(429, Some(9)), 0, 60),
            (timed_out(), 1, 120),
        ];
        for (error, failures, again) in cases {
            let shown = error.to_string();
            let poll = interpret_error(error, failures, NOW);
            assert_eq!(
                (poll.window, poll.again.since(NOW).as_secs()),
                (None, again),
                "{shown}"
            );
        }
        let late = Poll::late("https://ca.example/", 1, NOW);
        assert_eq!(late.again.since(NOW).as_secs(), 120);
        assert!(late.is_unreachable() && !late.is_limit(), "of one alone");
    }
}

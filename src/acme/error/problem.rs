//! Problem documents (RFC 7807) as ACME uses them (RFC 8555, section 6.7): the errors of a CA.
//!
//! Input: JSON from a CA, read leniently and cut to a bounded size. Output: the text for people, and a [`Class`] for
//! the schedule, from type and text alone. Pure.

use std::borrow::Cow;
use std::fmt;

use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use serde_json::Value;

/// Most characters of a text from the CA: Events hold 1,024 bytes, and logs should stay readable.
const TEXT: usize = 2_000;
/// Most subproblems: no order has more names (Let's Encrypt: 100).
const SUBPROBLEMS: usize = 100;

/// How to react to an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Try again, with back-off.
    Transient,
    /// The CA asks for no request before `until`.
    RateLimited {
        /// Named by the CA, or an hour from the answer.
        until: UnixTime,
        /// The requests that the limit applies to.
        scope: Scope,
    },
    /// Something outside the CA and this program must be fixed (DNS, a route, CAA); a new try will show.
    FixIt,
    /// The same request will be refused until the settings change.
    Permanent,
    /// There is no such account: register again, once.
    AccountGone,
    /// The CA has paused these names for this account; the link in the detail ends that.
    Paused,
}

/// The requests that a rate limit applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every request to the issuer.
    Issuer,
    /// Orders with the same names.
    Names,
}

/// What a limit is about, if the CA names it: more than one order, and less than all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limited {
    /// A domain and every name under it.
    Under(String),
    /// Only this name.
    Only(String),
}

/// A problem document (RFC 7807) as ACME uses it (RFC 8555, section 6.7), cut to a bounded size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// For example `rateLimited`: without `urn:ietf:params:acme:error:`, other URNs in full.
    pub kind: String,
    /// The CA's text.
    pub detail: String,
    /// By identifier (RFC 8555, section 6.7.1).
    pub subproblems: Vec<Subproblem>,
}

/// What the CA says about one identifier of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subproblem {
    /// The DNS name or address; empty if the CA gave none.
    pub name: String,
    /// As [`Problem::kind`].
    pub kind: String,
    /// The CA's text.
    pub detail: String,
}

/// Reason and class of the ACME error types of RFC 8555 section 6.7, RFC 9773 section 7.4 and the profiles draft,
/// except limits and pauses, which need their text.
fn known(kind: &str) -> Option<(&'static str, Class)> {
    use Class::{AccountGone, FixIt, Permanent, Transient};
    Some(match kind {
        "accountDoesNotExist" => ("AccountDoesNotExist", AccountGone),
        "alreadyReplaced" => ("AlreadyReplaced", Transient),
        "alreadyRevoked" => ("AlreadyRevoked", Permanent),
        "badCSR" => ("BadCsr", Permanent),
        "badNonce" => ("BadNonce", Transient),
        "badPublicKey" => ("BadPublicKey", Permanent),
        "badRevocationReason" => ("BadRevocationReason", Permanent),
        "badSignatureAlgorithm" => ("BadSignatureAlgorithm", Permanent),
        "caa" => ("Caa", FixIt),
        "compound" => ("Compound", FixIt),
        "conflict" => ("Conflict", Transient),
        "connection" => ("Connection", FixIt),
        "dns" => ("Dns", FixIt),
        "externalAccountRequired" => ("ExternalAccountRequired", Permanent),
        "incorrectResponse" => ("IncorrectResponse", FixIt),
        "invalidContact" => ("InvalidContact", Permanent),
        "invalidProfile" => ("InvalidProfile", Permanent),
        "malformed" => ("Malformed", Permanent),
        "orderNotReady" => ("OrderNotReady", Transient),
        "rejectedIdentifier" => ("RejectedIdentifier", FixIt),
        "serverInternal" => ("ServerInternal", Transient),
        "tls" => ("Tls", FixIt),
        "unauthorized" => ("Unauthorized", FixIt),
        "unsupportedContact" => ("UnsupportedContact", Permanent),
        "unsupportedIdentifier" => ("UnsupportedIdentifier", Permanent),
        "userActionRequired" => ("UserActionRequired", Permanent),
        _ => return None,
    })
}

// === impl Problem ===

impl Problem {
    /// Reads a CA's document leniently: one malformed member must not hide the others. `None` without type and detail.
    pub(crate) fn from_json(json: &Value) -> Option<Self> {
        let (kind, mut detail) = type_and_detail(json);
        // RFC 8555, 6.2: the algorithms that it would accept.
        if kind == "badSignatureAlgorithm" {
            let algorithms = crate::acme::transport::body::texts(json, "algorithms").join(", ");
            let algorithms = text(Some(&algorithms.into()));
            detail = format!(
                "{detail} (the CA takes {algorithms}; the accounts of cert-renew sign by ES256 only)"
            );
        }
        let subproblems = json.get("subproblems").and_then(Value::as_array);
        let subproblems = subproblems
            .into_iter()
            .flatten()
            .take(SUBPROBLEMS)
            .map(|sub| {
                let (kind, detail) = type_and_detail(sub);
                let name = text(sub.get("identifier").and_then(|it| it.get("value")));
                Subproblem { name, kind, detail }
            });
        let subproblems = subproblems.filter(|it| *it != Subproblem::default());
        let problem = Self {
            kind,
            detail,
            subproblems: subproblems.collect(),
        };
        (!problem.kind.is_empty() || !problem.detail.is_empty()).then_some(problem)
    }

    /// The relevant type: `compound` says nothing itself, its parts do (RFC 8555, 6.7.1).
    fn kind(&self) -> &str {
        match self.subproblems.first() {
            Some(sub) if self.kind == "compound" => &sub.kind,
            _ => &self.kind,
        }
    }

    /// The class; `None` for an unknown type. `until` is the end of a limit, if this is one.
    pub(crate) fn class(&self, until: UnixTime) -> Option<Class> {
        match self.kind() {
            _ if self.is_paused() => Some(Class::Paused),
            "rateLimited" => Some(Class::RateLimited {
                until,
                scope: scope(&self.detail),
            }),
            kind => known(kind).map(|(_, class)| class),
        }
    }

    /// A stable name in PascalCase; `None` for an unknown type.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self.kind() {
            _ if self.is_paused() => Some("Paused"),
            "rateLimited" => Some("RateLimited"),
            kind => known(kind).map(|(reason, _)| reason),
        }
    }

    /// The end of a limit in the text: `…, retry after 2025-09-18 09:13:16 UTC: see …` (Boulder), for answers whose
    /// header a proxy has removed.
    pub(crate) fn named_time(&self) -> Option<UnixTime> {
        let (_, rest) = self.detail.split_once("retry after ")?;
        let (time, _) = rest.split_once(" UTC")?;
        format!("{}Z", time.replace(' ', "T")).parse().ok()
    }

    /// What a limit is about according to its text, as Boulder writes it (`ratelimits/limiter.go`):
    /// `too many certificates (50) already issued for "example.com" in the last 168h0m0s, …` and
    /// `too many failed authorizations (5) for "www.example.com" in the last 1h0m0s, …`.
    #[must_use]
    pub fn limited(&self) -> Option<Limited> {
        let (what, rest) = self.detail.split_once(" for \"")?;
        let (name, _) = rest.split_once('"')?;
        let name = name.parse::<Name>().ok()?.to_string();
        match what {
            _ if self.kind() != "rateLimited" => None,
            _ if what.ends_with("already issued") => Some(Limited::Under(name)),
            _ if what.contains("failed authorizations") => Some(Limited::Only(name)),
            _ => None,
        }
    }

    fn is_paused(&self) -> bool {
        tells_of_pause(&self.detail)
    }
}

/// Whether the text says that the CA has paused names. Let's Encrypt does so with names that fail for months; the type
/// is `rateLimited`, and only the text shows it (Boulder, `wfe2/wfe.go`, `probs.Paused`).
#[must_use]
pub fn tells_of_pause(words: &str) -> bool {
    words.contains("temporarily prevented from requesting certificates")
        || words.contains("/unpause?")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What has no words of its own only repeats what its parts say.
        let has_words = !self.detail.is_empty() || self.subproblems.is_empty();
        if has_words {
            write_problem(f, &self.kind, &self.detail)?;
        }
        for (number, Subproblem { name, kind, detail }) in self.subproblems.iter().enumerate() {
            if has_words || number > 0 {
                f.write_str("; ")?;
            }
            if !name.is_empty() {
                write!(f, "{name}: ")?;
            }
            write_problem(f, kind, detail)?;
        }
        Ok(())
    }
}

fn write_problem(f: &mut fmt::Formatter<'_>, kind: &str, detail: &str) -> fmt::Result {
    match (kind, detail) {
        (kind, "") => f.write_str(kind),
        ("", detail) => f.write_str(&cause_first(detail)),
        (kind, detail) => match url_of_challenge(detail) {
            Some(url) => write!(f, "{} ({kind}; it: {url})", without(detail, url)),
            None => write!(f, "{detail} ({kind})"),
        },
    }
}

/// The text with the URL of a challenge at its end: it is long, and the cause stands after it.
fn cause_first(detail: &str) -> Cow<'_, str> {
    match url_of_challenge(detail) {
        Some(url) => format!("{} (it: {url})", without(detail, url)).into(),
        None => detail.into(),
    }
}

fn without(detail: &str, url: &str) -> String {
    let quoted = format!("\"{url}\"");
    detail.replace(&quoted, "it").replace(url, "it")
}

/// The URL of an HTTP-01 challenge in a text.
fn url_of_challenge(detail: &str) -> Option<&str> {
    let start = detail.find("http://").or_else(|| detail.find("https://"))?;
    let rest = &detail[start..];
    let end = rest.find([' ', '"', ',', ']']).unwrap_or(rest.len());
    let url = rest[..end].trim_end_matches(':');
    url.contains("/.well-known/acme-challenge/").then_some(url)
}

fn type_and_detail(json: &Value) -> (String, String) {
    let kind = text(json.get("type"));
    let kind = kind
        .strip_prefix("urn:ietf:params:acme:error:")
        .map(str::to_owned)
        .unwrap_or(kind);
    // RFC 7807: without a type, the document means no more than its status.
    let kind = if kind == "about:blank" {
        String::new()
    } else {
        kind
    };
    (kind, text(json.get("detail")))
}

/// The CA's text, bounded and on one line, for logs and Events.
fn text(value: Option<&Value>) -> String {
    let text = value.and_then(Value::as_str).unwrap_or_default();
    text.chars()
        .take(TEXT)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The scope of a Boulder limit (`ratelimits/limiter.go`) by its text: limits by name or by registered domain leave
/// other names alone.
fn scope(detail: &str) -> Scope {
    let by_name = [
        "failed authorizations",
        "already issued for",
        "exact set of",
    ];
    if by_name.iter().any(|words| detail.contains(words)) {
        Scope::Names
    } else {
        Scope::Issuer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_read_forgivingly_and_told_in_full() {
        let json = serde_json::json!({
            "type": "urn:ietf:params:acme:error:compound",
            "detail": "two\u{1b}[31m names",
            "status": "odd",
            "subproblems": [
                {
                    "type": "urn:ietf:params:acme:error:dns",
                    "detail": "NXDOMAIN",
                    "identifier": {"type": "dns", "value": "a.example"},
                },
                {"type": 7, "identifier": "odd"},
                {"type": "urn:ietf:params:acme:error:caa", "identifier": {"value": "10.0.0.1"}},
            ],
        });
        let problem = Problem::from_json(&json).unwrap();
        assert_eq!(
            problem.to_string(),
            "two [31m names (compound); a.example: NXDOMAIN (dns); 10.0.0.1: caa"
        );
        assert_eq!(problem.class(UnixTime(0)), Some(Class::FixIt));
        assert_eq!(problem.reason(), Some("Dns"));
        for none in ["[]", "{}", r#"{"type":"about:blank"}"#, r#""down""#] {
            let json = serde_json::from_str(none).unwrap();
            assert_eq!(Problem::from_json(&json), None, "{none}");
        }
    }

    #[test]
    fn the_cause_comes_first_and_is_said_once() {
        let url = "http://a.example:5002/.well-known/acme-challenge/x-Y_z";
        let said = |detail: &str| {
            let problem = Problem {
                kind: "unauthorized".into(),
                detail: String::new(),
                subproblems: vec![Subproblem {
                    name: "a.example".into(),
                    kind: "unauthorized".into(),
                    detail: detail.into(),
                }],
            };
            problem.to_string()
        };
        for (detail, expected) in [
            (
                format!("Non-200 status code from HTTP: {url} returned 404"),
                format!(
                    "a.example: Non-200 status code from HTTP: it returned 404 (unauthorized; it: {url})"
                ),
            ),
            (
                format!("Get \"{url}\": dial tcp: connection refused"),
                format!(
                    "a.example: Get it: dial tcp: connection refused (unauthorized; it: {url})"
                ),
            ),
            (
                format!("Get \"{url}\": could not resolve URL \"{url}\""),
                format!("a.example: Get it: could not resolve URL it (unauthorized; it: {url})"),
            ),
            (
                format!("10.0.0.1: Invalid response from {url}: 404"),
                format!(
                    "a.example: 10.0.0.1: Invalid response from it: 404 (unauthorized; it: {url})"
                ),
            ),
            (
                "see https://ca.example/docs for more".to_owned(),
                "a.example: see https://ca.example/docs for more (unauthorized)".to_owned(),
            ),
        ] {
            assert_eq!(said(&detail), expected);
        }
    }

    #[test]
    fn a_limit_says_what_it_is_about() {
        let limited = |detail: &str| {
            let problem = Problem {
                kind: "rateLimited".into(),
                detail: format!("{detail}, retry after 2026-09-18 09:13:16 UTC: see https://le/"),
                subproblems: Vec::new(),
            };
            problem.limited()
        };
        let under = |name: &str| Some(Limited::Under(name.into()));
        for (detail, expected) in [
            (
                r#"too many certificates (50) already issued for "Example.co.uk" in the last 168h0m0s"#,
                under("example.co.uk"),
            ),
            (
                r#"too many failed authorizations (5) for "www.example.com" in the last 1h0m0s"#,
                Some(Limited::Only("www.example.com".into())),
            ),
            (
                "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s",
                None,
            ),
            (
                "too many new orders (300) from this account in the last 3h0m0s",
                None,
            ),
            (r#"already issued for "not a name""#, None),
            (r#"already issued for "open"#, None),
        ] {
            assert_eq!(limited(detail), expected, "{detail}");
        }
    }

    #[test]
    fn texts_are_bounded() {
        let json = serde_json::json!({
            "detail": "x".repeat(10 * TEXT),
            "subproblems": vec![serde_json::json!({"detail": "y"}); 10 * SUBPROBLEMS],
        });
        let problem = Problem::from_json(&json).unwrap();
        assert_eq!(problem.detail.len(), TEXT);
        assert_eq!(problem.subproblems.len(), SUBPROBLEMS);
    }
}

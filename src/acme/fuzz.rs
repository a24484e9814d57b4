//! Answers of a broken or hostile CA: none may cause a panic, nor a long or unreadable message.

use std::time::Duration;

use cert_renew_core::time::UnixTime;
use http::{HeaderMap, HeaderValue};
use reqwest::Url;

use super::error::{Action, Error};
use crate::acme::order::authorization;
use crate::acme::transport::http as acme_http;
use crate::acme::transport::jws::AccountKey;
use crate::acme::{Directory, Preference, ari, order};
use crate::fuzz::{feed, texts};

#[test]
fn answers() {
    let seeds = texts(&[
        r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many certificates already issued, retry after 2025-09-18 09:13:16 UTC: see https://x","subproblems":[{"type":"urn:ietf:params:acme:error:caa","detail":"no","identifier":{"type":"dns","value":"a.example"}}]}"#,
        r#"{"suggestedWindow":{"start":"2026-01-03T00:00:00Z","end":"2026-01-05T00:00:00Z"},"explanationURL":"https://x"}"#,
        r#"{"newNonce":"https://ca/n","newAccount":"https://ca/a","newOrder":"https://ca/o","renewalInfo":"https://ca/r","meta":{"profiles":{"classic":"x"},"externalAccountRequired":true}}"#,
        r#"{"status":"invalid","expires":"2026-01-01T00:00:00Z","identifiers":[{"type":"dns","value":"a.example"}],"authorizations":["https://ca/z"],"finalize":"https://ca/f","error":{"detail":7}}"#,
        r#"{"status":"pending","wildcard":true,"identifier":{"type":"dns","value":"a.example"},"challenges":[{"type":"dns-persist-01","url":"https://ca/1","status":"pending","accounturi":"https://ca/7","issuer-domain-names":["ca.example"]},{"type":"dns-01","url":"https://ca/2","status":"invalid","token":"t","error":{"detail":"no"}}]}"#,
        "<html><body>503 Service Unavailable</body></html>",
        "Wed, 21 Oct 2026 07:28:00 GMT",
        "<https://ca/1>;rel=\"alternate\", </2>; rel=alternate",
    ]);
    let dictionary: [&[u8]; 10] = [
        b"null",
        b"\"detail\":",
        b"\"subproblems\":[",
        b"{}",
        b"9999-12-31T23:59:59Z",
        b"-62135596800",
        b"18446744073709551615",
        b"\\u001b[2J",
        b"retry after ",
        b"urn:ietf:params:acme:error:",
    ];
    feed("acme", &seeds, &dictionary, |input| {
        read(input);
    });
}

/// Every reader of a CA's answers.
pub(crate) fn read(input: &[u8]) {
    let now = UnixTime(1_800_000_000);
    let key = AccountKey::generate().unwrap();
    for status in [200, 400, 403, 404, 409, 429, 500, 503] {
        let wait = (status == 429).then_some(Duration::from_secs(u64::MAX));
        let error = Error::answer(Action::Order, "ca.example", status, input, wait, now);
        let _ = (
            error.class(),
            error.reason(),
            error.retry_after(),
            error.is_gone(),
        );
        for text in [error.to_string(), error.detail()] {
            assert!(text.len() < 16 * 1024, "{} bytes", text.len());
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
    let _ = ari::interpret(input, Some(Duration::MAX), now);
    let _ = serde_json::from_slice::<Directory>(input);
    if let Ok(state) = serde_json::from_slice::<authorization::State>(input) {
        let _ = (
            state.pending("https://ca/z", &key),
            state.problems().count(),
        );
    }
    order::read(input);
    let text = String::from_utf8_lossy(input);
    let _ = acme_http::retry_after(&text, now);
    if let (Ok(value), Ok(base)) = (
        HeaderValue::from_bytes(input),
        Url::parse("https://ca.example/x"),
    ) {
        let headers = HeaderMap::from_iter([(http::header::LINK, value)]);
        assert!(acme_http::alternates(&headers, &base).len() <= input.len());
    }
    let chains = [text.into_owned(), String::new()];
    assert!(Preference::Shortest.choose(&chains) < chains.len());
}

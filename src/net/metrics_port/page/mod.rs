//! The status page at `/` of the metrics port, and the same as JSON at `/api/certificates`.
//!
//! Read only, and without secrets: everything shown of a certificate is public or in annotations, and the index has
//! never held a key. It is rendered once a request and one request at a time, so that a flood of requests slows down
//! only other readers of the page.

mod budget;
mod cells;
mod commands;
mod detail;
mod html;
mod narrow;
mod rows;
mod timeline;
mod words;

use std::io::Write as _;
use std::sync::{Arc, PoisonError};

use axum::Extension;
use axum::extract::{RawQuery, State as Shared};
use axum::response::{IntoResponse, Response};
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::Report;
use cert_renew_core::verdict::unmanaged::Unmanaged;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use rows::{Answer, Query};

use super::Served;
use crate::net::bounded::Connection;

/// Content security policy of the JSON, which loads nothing.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'";

/// `/`
pub(super) async fn page(
    Shared(served): Shared<Arc<Served>>,
    RawQuery(query): RawQuery,
    connection: Option<Extension<Connection>>,
    headers: HeaderMap,
) -> Response {
    let render = |answer: &Answer, query: &Query| {
        let page = html::render(answer, query);
        ("text/html; charset=utf-8", page.policy, page.html)
    };
    answered(&served, (query, connection), &headers, render).await
}

/// `/api/certificates`
pub(super) async fn json(
    Shared(served): Shared<Arc<Served>>,
    RawQuery(query): RawQuery,
    connection: Option<Extension<Connection>>,
    headers: HeaderMap,
) -> Response {
    let render = |answer: &Answer, _: &Query| {
        // Writing plain data into a string cannot fail.
        let text = serde_json::to_string(&answer.report).unwrap_or_default() + "\n";
        ("application/json", NOTHING.to_owned(), text)
    };
    answered(&served, (query, connection), &headers, render).await
}

async fn answered<R>(
    served: &Served,
    (query, connection): (Option<String>, Option<Extension<Connection>>),
    headers: &HeaderMap,
    render: R,
) -> Response
where
    R: FnOnce(&Answer, &Query) -> (&'static str, String, String) + Send + 'static,
{
    if !served.state.config.borrow().metrics.page {
        let note = "the status page is switched off: metrics.page in the config\n";
        return (StatusCode::NOT_FOUND, note).into_response();
    }
    let query = match Query::parse(&query.unwrap_or_default()) {
        Ok(query) => query,
        Err(refused) => return (StatusCode::BAD_REQUEST, refused).into_response(),
    };
    let packed = takes_gzip(headers);
    let connection = connection.map(|Extension(it)| it);
    let state = served.state.clone();
    let render = move || {
        let now = UnixTime::now();
        let index = state.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut rows = rows::copy(now, &index, &*state.failures);
        if let Some(key) = query.one() {
            rows::detail(&index, &mut rows, &key, &*state.remembered);
        }
        drop(index);
        for row in &mut rows {
            row.name_operator(&state.namespace);
        }
        let report = Report {
            unmanaged: unmanaged(&state, &query),
            ..report(&state, now)
        };
        let answer = rows::answer(report, rows, &query);
        let (kind, policy, text) = render(&answer, &query);
        let body = if packed {
            gzip(&text)
        } else {
            Ok(text.into_bytes())
        };
        body.map(|body| (kind, policy, body))
    };
    match served.paging.render(connection, render).await {
        Ok(Ok((kind, policy, body))) => response(kind, &policy, packed, body),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

/// Reads the query of a request from any input.
#[cfg(test)]
pub(super) fn read(input: &[u8]) {
    if let Ok(query) = Query::parse(&String::from_utf8_lossy(input)) {
        drop((query.link(|_| {}), query.sorted("state")));
    }
}

/// The head of a report.
fn report(state: &super::State, now: UnixTime) -> Report {
    Report {
        version: Some(env!("CARGO_PKG_VERSION").into()),
        class: Some(state.config.borrow().class.as_str().into()),
        operator_namespace: Some((*state.namespace).into()),
        replica: Some((*state.replica).into()),
        leader: (state.leader)(now),
        as_of: now,
        notices: notices(state, now),
        unmanaged: Unmanaged::default(),
        matching: 0,
        left_out: 0,
        certificates: Vec::new(),
    }
}

/// The Secrets of the query that seem to be meant and are not managed.
fn unmanaged(state: &super::State, query: &Query) -> Unmanaged {
    let strays = state.strays.read().unwrap_or_else(PoisonError::into_inner);
    Unmanaged::of(strays.iter().filter(|(key, _)| query.is_about(key)))
}

/// What somebody should know who looks at all certificates.
fn notices(state: &super::State, now: UnixTime) -> Vec<Box<str>> {
    let metrics = &state.metrics;
    let mut notices: Vec<Box<str>> = Vec::new();
    if state.config.borrow().paused {
        notices
            .push("The config pauses everything: nothing is renewed, written or restarted.".into());
    }
    if !metrics.is_watching() {
        notices.push(
            "A watch on Secrets is down: what has changed since is not known here. The operator's log says why.".into(),
        );
    }
    if metrics.is_config_rejected() {
        notices.push(
            "The config file is invalid, and the one before it is in use: cert-renew config check FILE".into(),
        );
    }
    let limited = metrics.limits(now).into_iter();
    notices.extend(limited.map(|(issuer, until)| {
        format!(
            "The CA of issuer {issuer} limits this account: nothing is asked there until {until}."
        )
        .into()
    }));
    notices
}

fn failed(error: &dyn std::error::Error) -> Response {
    tracing::error!(%error, "the status page could not be rendered");
    (StatusCode::INTERNAL_SERVER_ERROR, "see the log\n").into_response()
}

fn response(kind: &'static str, policy: &str, packed: bool, body: Vec<u8>) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (VARY, "accept-encoding"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(policy) = HeaderValue::from_str(policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    if packed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Whether the client accepts gzip.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = weight.replace(' ', "");
        let refused = refused
            .strip_prefix("q=")
            .is_some_and(|q| q.parse() == Ok(0_f32));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

fn gzip(text: &str) -> std::io::Result<Vec<u8>> {
    // The rows are similar: the fastest level saves nine tenths.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::entries;
    use cert_renew_core::verdict::Verdict;

    use super::*;

    /// The maximum of one page, all different, each with workloads.
    #[test]
    fn a_full_page_is_less_than_a_megabyte_on_the_wire() {
        let now = entries::NOW;
        let row = rows::copy(now, &entries::index(), &|_| 0).remove(0);
        let random = |number: i64| number.wrapping_mul(6_364_136_223_846_793_005) >> 40;
        let rows = (0..10_000).map(|number| {
            let any = random(number);
            let used_by = format!(
                "2023-11-14T22:13:20Z deployment/web-{any} statefulset/db-{any} web-{any}:443=2/3"
            );
            Verdict {
                name: format!("shop-{any}-tls").into(),
                names: ["www.shop", "shop"]
                    .map(|it| format!("{it}-{any}.example").into())
                    .into(),
                not_before: Some(UnixTime(now.0 - any.abs() % 5_000_000)),
                not_after: Some(UnixTime(now.0 + any.abs() % 7_000_000)),
                used_by: used_by.parse().ok(),
                ..row.clone()
            }
        });
        let query = Query::default();
        let answer = rows::answer(rows::tests::report(), rows.collect(), &query);
        let page = html::render(&answer, &query);
        assert_eq!(page.html.matches("<small>deployment/web-").count(), 10_000);
        let packed = gzip(&page.html).unwrap().len();
        assert!(packed < 1_000_000, "{packed}");
    }

    #[test]
    fn gzip_is_sent_to_who_takes_it() {
        for (value, expected) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, GZIP ; q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000", false),
            ("identity", false),
            ("xgzip", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(takes_gzip(&headers), expected, "{value}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}

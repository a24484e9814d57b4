//! The status page at `/` of the metrics port, and the same as JSON at `/api/certificates`.
//!
//! Read only, and without anything secret: what it shows of a certificate is public or stands in annotations, and the
//! index that it reads has never held a key. It is rendered once a request and one request at a time, so that whoever
//! asks for it a thousand times slows down others who ask, and nobody else.

mod html;
mod rows;

use std::io::Write as _;
use std::sync::{Arc, PoisonError};

use axum::extract::{RawQuery, State as Shared};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::Served;
use crate::time::UnixTime;
use rows::{Answer, Query};

/// Of the JSON, which loads nothing.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'";

/// `/`
pub(super) async fn page(
    Shared(served): Shared<Arc<Served>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let replica = served.state.replica.clone();
    let render = move |answer: &Answer, query: &Query| {
        let page = html::render(answer, query, &replica);
        ("text/html; charset=utf-8", page.policy, page.html)
    };
    answered(&served, query, &headers, render).await
}

/// `/api/certificates`
pub(super) async fn json(
    Shared(served): Shared<Arc<Served>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let render = |answer: &Answer, _: &Query| {
        // Writing plain data into a string cannot fail.
        let text = serde_json::to_string(answer).unwrap_or_default() + "\n";
        ("application/json", NOTHING.to_owned(), text)
    };
    answered(&served, query, &headers, render).await
}

async fn answered<R>(
    served: &Served,
    query: Option<String>,
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
    let packed = takes_gzip(headers);
    let turn = served.paging.lock().await;
    let state = served.state.clone();
    let rendered = tokio::task::spawn_blocking(move || {
        let now = UnixTime::now();
        let query = Query::parse(&query.unwrap_or_default());
        let index = state.index.read().unwrap_or_else(PoisonError::into_inner);
        let rows = rows::copy(now, &index, &*state.failures);
        drop(index);
        let (kind, policy, text) = render(&rows::answer(now, rows, &query), &query);
        let body = if packed {
            gzip(&text)
        } else {
            Ok(text.into_bytes())
        };
        body.map(|body| (kind, policy, body))
    })
    .await;
    drop(turn);
    match rendered {
        Ok(Ok((kind, policy, body))) => response(kind, &policy, packed, body),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
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

/// Whether the client says that it understands gzip.
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
    // The rows are much alike: the fastest level takes nine tenths away.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

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

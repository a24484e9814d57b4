//! Sends traces to a collector: OTLP over HTTP with JSON bodies (OpenTelemetry Protocol Specification 1, "OTLP/HTTP"),
//! `POST <endpoint>/v1/traces`.
//!
//! Written by hand, as it is one request of one form: the crates for it would be thirteen more.
//! Traces that a collector does not accept are lost, and the log reports that now and then.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cert_renew_core::text::error_chain;
use cert_renew_core::text::hash::hexadecimal;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use rustls::RootCertStore;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use super::trace::{Span, Trace};

/// Most traces of one request; a renewal takes seconds, so more rarely wait.
const BATCH: usize = 50;
/// Longest request to a collector.
const REQUEST: Duration = Duration::from_secs(10);
/// Shortest time between two lines that report lost traces.
const COMPLAIN: Duration = Duration::from_secs(600);
/// OTLP's codes: an internal span, and the status of an error.
const INTERNAL: u8 = 1;
const FAILED: u8 = 2;

/// Where traces go.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint(Url);

impl std::str::FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "expected a URL such as http://collector:4318, without /v1/traces";
        let mut url = Url::parse(text).map_err(|_| wrong)?;
        if !matches!(url.scheme(), "http" | "https") || url.path().ends_with("/v1/traces") {
            return Err(wrong);
        }
        url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
        Ok(Self(url))
    }
}

/// Sends traces until all senders are dropped. `replica` is the pod's name.
pub(crate) async fn export(
    endpoint: Endpoint,
    replica: String,
    traces: Arc<Mutex<Receiver<Trace>>>,
) {
    let mut traces = traces.lock().await;
    let client = match client() {
        Ok(client) => client,
        Err(error) => return tracing::error!(%error, "no traces are sent"),
    };
    let mut complained: Option<Instant> = None;
    let mut batch = Vec::new();
    while traces.recv_many(&mut batch, BATCH).await > 0 {
        let request = client
            .post(endpoint.0.clone())
            .header("content-type", "application/json")
            .body(body(&replica, &batch).to_string());
        let sent = request.send().await;
        let sent = sent.and_then(reqwest::Response::error_for_status);
        if let Err(error) = sent
            && complained.is_none_or(|at| at.elapsed() >= COMPLAIN)
        {
            complained = Some(Instant::now());
            tracing::warn!(traces = batch.len(), error = %error_chain(&error), "the trace collector does not take what is sent");
        }
        batch.clear();
    }
}

fn client() -> Result<Client, String> {
    let roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error_chain(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(REQUEST)
        .redirect(Policy::none());
    client.build().map_err(|error| error_chain(&error))
}

/// An `ExportTraceServiceRequest` as JSON: ids in hexadecimal, 64-bit numbers as text.
fn body(replica: &str, traces: &[Trace]) -> Value {
    let spans: Vec<Value> = traces
        .iter()
        .flat_map(|trace| trace.spans.iter().map(|it| span(trace, it)))
        .collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            attribute("service.name", "cert-renew"),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("service.instance.id", replica),
        ]},
        "scopeSpans": [{"scope": {"name": "cert-renew"}, "spans": spans}],
    }]})
}

fn span(trace: &Trace, span: &Span) -> Value {
    let attributes = span.attributes.iter();
    let attributes: Vec<Value> = attributes.map(|(key, it)| attribute(key, it)).collect();
    let mut value = json!({
        "traceId": hexadecimal(&trace.id),
        "spanId": hexadecimal(&span.id),
        "name": span.name,
        "kind": INTERNAL,
        "startTimeUnixNano": nanoseconds(span.start),
        "endTimeUnixNano": nanoseconds(span.end),
        "attributes": attributes,
    });
    if let Some(parent) = span.parent {
        value["parentSpanId"] = hexadecimal(&parent).into();
    }
    if let Some(error) = &span.error {
        value["status"] = json!({"code": FAILED, "message": error});
    }
    value
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn nanoseconds(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_base_url() {
        let url = |text: &str| text.parse::<Endpoint>().map(|it| it.0.to_string());
        assert_eq!(
            url("http://collector:4318").as_deref(),
            Ok("http://collector:4318/v1/traces")
        );
        assert_eq!(
            url("https://c.example/otlp/").as_deref(),
            Ok("https://c.example/otlp/v1/traces")
        );
        for wrong in ["", "collector:4318", "http://c/v1/traces", "grpc://c:4317"] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_trace_has_the_form_of_the_protocol() {
        let span = Span {
            id: [1; 8],
            parent: Some([2; 8]),
            name: "order".into(),
            start: UNIX_EPOCH + Duration::from_millis(1_500),
            end: UNIX_EPOCH + Duration::from_secs(2),
            attributes: vec![("issuer", "letsencrypt".into())],
            error: Some("no".into()),
        };
        let trace = Trace {
            id: [0xab; 16],
            spans: vec![span],
        };
        let body = body("pod", &[trace]);
        let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
        assert_eq!(
            spans[0],
            json!({
                "traceId": "ab".repeat(16),
                "spanId": "01".repeat(8),
                "parentSpanId": "02".repeat(8),
                "name": "order",
                "kind": 1,
                "startTimeUnixNano": "1500000000",
                "endTimeUnixNano": "2000000000",
                "attributes": [{"key": "issuer", "value": {"stringValue": "letsencrypt"}}],
                "status": {"code": 2, "message": "no"},
            })
        );
    }
}

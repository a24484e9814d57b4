//! One renewal is one trace, from due to served, at a collector that speaks OTLP over HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use serde_json::Value;
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, Result, ensure, eventually};
use tokio::net::TcpListener;

use crate::renewal::{SOON, options, renewed, rolled_out};

type Received = Arc<Mutex<Vec<String>>>;

/// Takes what is sent to `/v1/traces`; says where it is.
async fn collector() -> Result<(String, Received)> {
    let received = Received::default();
    let taken = Arc::clone(&received);
    let take = move |body: Bytes| {
        let body = String::from_utf8_lossy(&body).into_owned();
        taken.lock().expect("nobody panics").push(body);
        async { "{}" }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((format!("http://{address}"), received))
}

/// The spans of the trace whose root tells of this Secret.
fn trace(received: &Received, secret: &str) -> Result<Vec<Value>> {
    let bodies = received.lock().expect("nobody panics").clone();
    let mut spans = Vec::new();
    for body in &bodies {
        ensure!(!body.contains("PRIVATE KEY"), "a key in a trace");
        let body: Value = serde_json::from_str(body)?;
        let list = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
        spans.extend(list.as_array().context("no spans")?.clone());
    }
    let is_root = |span: &&Value| {
        let attributes = span["attributes"].as_array().into_iter().flatten();
        let mut of = attributes.filter(|it| it["key"] == "secret");
        span["name"] == "renewal" && of.any(|it| it["value"]["stringValue"] == secret)
    };
    let roots: Vec<&Value> = spans.iter().filter(is_root).collect();
    ensure!(roots.len() == 1, "{} roots for {secret}", roots.len());
    let id = roots[0]["traceId"].clone();
    spans.retain(|span| span["traceId"] == id);
    Ok(spans)
}

#[tokio::test]
async fn a_renewal_is_one_trace_from_due_to_served() -> Result<()> {
    let bench = Bench::shared().await?;
    let (endpoint, received) = collector().await?;
    let mut options = options();
    options.log_level = "error".into();
    options
        .arguments
        .extend(["--otlp-endpoint".into(), endpoint]);
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "traced", operator.namespace()).await?;
    let old = pair(&["traced.example"], OLD)?;
    for name in ["web", "api"] {
        space
            .workload("Deployment", name, Reference::Volume, "tls")
            .await?;
        space.available("Deployment", name).await?;
    }
    space
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    let secret = format!("{}/tls", space.name);
    let spans = eventually(SOON, "the trace is complete", async || {
        trace(&received, &secret)
    })
    .await?;

    let by_id: BTreeMap<&str, &Value> = spans
        .iter()
        .filter_map(|span| Some((span["spanId"].as_str()?, span)))
        .collect();
    ensure!(by_id.len() == spans.len(), "a span's id twice: {spans:#?}");
    let time = |span: &Value, which: &str| -> Result<u128> {
        Ok(span[which].as_str().context("no time")?.parse()?)
    };
    let mut told = Vec::new();
    for span in &spans {
        let parent = span["parentSpanId"].as_str();
        let above = parent.map(|id| by_id.get(id).context("its parent is not in the trace"));
        let above = above.transpose()?;
        let name = |span: &Value| span["name"].as_str().unwrap_or_default().to_owned();
        told.push((name(span), above.map(|it| name(it)).unwrap_or_default()));
        let (start, end) = (
            time(span, "startTimeUnixNano")?,
            time(span, "endTimeUnixNano")?,
        );
        ensure!(start <= end, "{span}");
        if let Some(above) = above {
            ensure!(end <= time(above, "endTimeUnixNano")?, "{span} in {above}");
        }
        ensure!(span["status"].is_null(), "{span}");
    }
    told.sort();
    let expected = [
        ("deployment/api", "rollout"),
        ("deployment/web", "rollout"),
        ("finalize", "renewal"),
        ("order", "renewal"),
        ("prove", "renewal"),
        ("renewal", ""),
        ("rollout", "renewal"),
        ("settle", "renewal"),
        ("write", "renewal"),
    ];
    let expected = expected.map(|(name, above)| (name.to_owned(), above.to_owned()));
    ensure!(told == expected, "{told:#?}");
    Ok(())
}

#[tokio::test]
async fn a_collector_that_is_away_costs_its_traces_and_nothing_else() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    let nowhere = ["--otlp-endpoint".into(), "http://127.0.0.1:1".into()];
    options.arguments.extend(nowhere);
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "untraced", operator.namespace()).await?;
    for name in ["one", "two"] {
        let host = format!("{name}.untraced.example");
        let old = pair(&[&host], OLD)?;
        let ours = [("issuer", "pebble")];
        space.tls_secret(name, Some(&old), &ours).await?;
        renewed(&space, name, &old.certificate).await?;
        rolled_out(&space, name).await?;
    }
    let said = "the trace collector does not take what is sent";
    let log = eventually(SOON, "the log says so", async || {
        let log = operator.log()?;
        ensure!(log.contains(said), "not yet");
        Ok(log)
    })
    .await?;
    ensure!(log.matches(said).count() == 1, "once for a while: {log}");
    Ok(())
}

//! DNS servers that answer late: whose names are in their zones waits, and nobody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams};
use serde_json::Value;
use test_bench::objects::{OLD, Space, pair};
use test_bench::{
    Bench, Context as _, Operator, OperatorOptions, PebbleOptions, Result, ensure, eventually,
};
use tokio::net::UdpSocket;

use crate::renewal::{SOON, data, options, renewed};

/// More Secrets than there are places for renewals.
const SLOW: usize = 70;
/// What one question in the slow zone takes.
const LATE: Duration = Duration::from_secs(2);
/// Labels of each slow name, and so the questions for its CAA records.
const LABELS: usize = 110;

/// A DNS server that passes each question on, those that are about the zone `slow.example` late.
async fn late(upstream: SocketAddr) -> Result<SocketAddr> {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    let address = socket.local_addr()?;
    tokio::spawn(async move {
        let mut buffer = [0; 4_096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let (question, socket) = (buffer[..length].to_vec(), Arc::clone(&socket));
            tokio::spawn(async move {
                let name = b"\x04slow\x07example";
                if question.windows(name.len()).any(|at| at == name) {
                    tokio::time::sleep(LATE).await;
                }
                let passed = UdpSocket::bind("127.0.0.1:0").await?;
                passed.send_to(&question, upstream).await?;
                let mut answer = [0; 4_096];
                let length = passed.recv(&mut answer).await?;
                socket.send_to(&answer[..length], client).await
            });
        }
    });
    Ok(address)
}

#[tokio::test]
async fn a_namespace_whose_dns_answers_late_takes_no_place_from_the_others() -> Result<()> {
    let bench = Bench::shared().await?;
    let pebble = PebbleOptions {
        name: "pebble-late".into(),
        caa_identities: vec!["ca.bench.example".into()],
        ..PebbleOptions::default()
    };
    let pebble = bench.start_pebble(&pebble).await?;
    let dns = late(bench.dns().address()).await?;
    let options = OperatorOptions {
        config: format!("{}dns: {{nameservers: [\"{dns}\"]}}\n", options().config),
        directory: Some(pebble.directory().to_owned()),
        ..options()
    };
    let operator = Operator::start(bench, options).await?;
    let slow = Space::new(bench.client()?, "slow", operator.namespace()).await?;
    let other = Space::new(bench.client()?, "other", operator.namespace()).await?;
    let deep = "x.".repeat(LABELS);
    for number in 0..SLOW {
        let names: Vec<String> = (0..2)
            .map(|n| format!("n{n}.{deep}s{number}.slow.example"))
            .collect();
        let names = names.join(", ");
        let annotations = [("issuer", "pebble"), ("names", &*names)];
        let name = format!("slow-{number}");
        slow.tls_secret(&name, None, &annotations).await?;
    }
    eventually(SOON, "the slow ones are at work", async || {
        let due = operator.log()?.matches("\"message\":\"due\"").count();
        ensure!(due >= 16, "{due} are");
        Ok(())
    })
    .await?;
    // One after the other, so that each comes while the slow ones wait.
    for number in 0..3 {
        let host = format!("n{number}.late.example");
        let old = pair(&[&host], OLD)?;
        let name = format!("other-{number}");
        other
            .tls_secret(&name, Some(&old), &[("issuer", "pebble")])
            .await?;
        renewed(&other, &name, &old.certificate).await?;
    }
    // What is not known in time is left to the CA.
    eventually(SOON * 3, "the slow ones are ordered for", async || {
        let ordered = operator.log()?.matches("\"message\":\"ordered\"").count();
        ensure!(ordered > 3, "{ordered} orders");
        Ok(())
    })
    .await?;
    Ok(())
}

/// It takes long to find out in which zones the names are: a crash meanwhile must not lose the order.
#[tokio::test]
async fn an_order_is_on_record_before_dns_has_said_where_its_proofs_go() -> Result<()> {
    let bench = Bench::shared().await?;
    let dns = late(bench.dns().address()).await?;
    let solver = "dns01: {provider: rfc2136, settings: {server: \"127.0.0.1:1\", keyName: unused}, \
                  credentials: {secret: unused}}";
    let options = OperatorOptions {
        config: format!(
            "{}solvers:\n  - {solver}\ndns: {{nameservers: [\"{dns}\"]}}\n",
            options().config
        ),
        ..options()
    };
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "unplanned", operator.namespace()).await?;
    let names: Vec<String> = (0..64)
        .map(|n| format!("n{n}.unplanned.slow.example"))
        .collect();
    let annotations = [("issuer", "pebble"), ("names", &*names.join(", "))];
    space.tls_secret("unplanned", None, &annotations).await?;
    let records: Api<Secret> = Api::namespaced(bench.client()?, operator.namespace());
    let labels = ListParams::default().labels("cert-renew.io/order-record");
    let recorded = async || {
        let found = records.list(&labels).await?.items;
        let record = found.first().context("no order is on record")?;
        Ok::<Value, test_bench::Error>(serde_json::from_str(&data(record, "order.json"))?)
    };
    eventually(SOON * 3, "the order is on record", async || {
        recorded().await.map(drop)
    })
    .await?;
    let order = recorded().await?;
    ensure!(order.get("txt").is_none(), "{order}");
    operator.kill();
    operator.run().await?;
    eventually(SOON, "the order is taken up again", async || {
        ensure!(operator.log()?.contains("the order is taken up again"));
        Ok(())
    })
    .await?;
    ensure!(recorded().await?["url"] == order["url"]);
    Ok(())
}

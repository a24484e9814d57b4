//! DNS servers that answer late: whose names are in their zones waits, and nobody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use test_bench::objects::{OLD, Space, pair};
use test_bench::{Bench, Operator, OperatorOptions, PebbleOptions, Result, ensure, eventually};
use tokio::net::UdpSocket;

use crate::renewal::{SOON, options, renewed};

/// More Secrets than there are places for renewals.
const SLOW: usize = 70;
/// What one question in the slow zone takes.
const LATE: Duration = Duration::from_secs(2);
/// Labels of each slow name, and so the questions for its CAA records.
const LABELS: usize = 50;

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

//! Servers that the NS records of a zone name, and that do not have its records: dead, lame, late, or with an old copy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use test_bench::objects::Space;
use test_bench::{Bench, Context as _, Nameserver, Result, TSIG_NAME, Zone, ensure};
use tokio::net::UdpSocket;

use super::{LONG, base, nothing_was_spent, operator, right, solved, stuck};
use crate::dns01::{await_values, no_record_is_left, pebble, rfc2136};
use crate::renewal::renewed;

/// Less than a question may take.
const LATE: Duration = Duration::from_secs(2);

/// Answers each question at `address` as `server` does, late.
async fn late(address: SocketAddr, server: SocketAddr) -> Result<()> {
    let socket = Arc::new(UdpSocket::bind(address).await?);
    tokio::spawn(async move {
        let mut buffer = [0; 4_096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let (question, socket) = (buffer[..length].to_vec(), Arc::clone(&socket));
            tokio::spawn(async move {
                tokio::time::sleep(LATE).await;
                let passed = UdpSocket::bind("127.0.0.1:0").await?;
                passed.send_to(&question, server).await?;
                let mut answer = [0; 4_096];
                let length = passed.recv(&mut answer).await?;
                socket.send_to(&answer[..length], client).await
            });
        }
    });
    Ok(())
}

/// A zone names a server that is long gone; the CA manages without (nginx-ui #1806, cert-manager #4837, #6510).
#[tokio::test]
async fn dead_and_lame_servers_of_a_zone_are_skipped_and_named_and_late_ones_are_asked()
-> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    if address.port() != 53 {
        eprintln!("not run: NS records lead to port 53, which is not free for this user");
        return Ok(());
    }
    let of_its_own = Nameserver::address_of_its_own;
    let (refuses, dead, lame, slow) = (of_its_own()?, of_its_own()?, of_its_own()?, of_its_own()?);
    let mut zone = Zone::new("many.lame.example");
    let named = [
        ("refuses", refuses),
        ("dead", dead),
        ("lame", lame),
        ("late", slow),
    ];
    zone.records = "@ NS nowhere.elsewhere.example.\n".into();
    for (name, server) in named {
        zone.records += &format!("@ NS {name}\n{name} A {}\n", server.ip());
    }
    let _server = Nameserver::start(bench, "knot-many", address, &[zone]).await?;
    let others = [Zone::new("other.example")];
    let _refuses = Nameserver::start(bench, "knot-refuses", refuses, &others).await?;
    let _dead = UdpSocket::bind(dead).await?;
    // It has the zone above and refers to the zone's servers.
    let mut above = Zone::new("lame.example");
    above.records = format!("many NS ns1.many\nns1.many A {}\n", address.ip());
    let _lame = Nameserver::start(bench, "knot-lame", lame, &[above]).await?;
    late(slow, address).await?;
    let ca = pebble(bench, "pebble-many", address).await?;
    let config = LONG.to_owned() + &solved(&right(address), address);
    let operator = operator(bench, Some(&ca), &config).await?;
    let space = Space::new(bench.client()?, "many", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "many.lame.example, *.many.lame.example"),
    ];
    space.tls_secret("many", None, &annotations).await?;
    renewed(&space, "many", "").await?;
    nothing_was_spent(&space, "many").await?;
    let log = operator.log()?;
    let told = { log.lines() }.find(|line| line.contains("do not answer for it and are skipped"));
    let told = told.context("nothing is told of them")?;
    for name in ["nowhere.elsewhere", "refuses", "dead", "lame"] {
        let server = format!("{name}.");
        ensure!(told.contains(&server), "{name}: {told}");
    }
    for name in ["late.many", "ns1.many"] {
        ensure!(!told.contains(name), "{name}: {told}");
    }
    await_values(address, "_acme-challenge.many.lame.example", 0).await?;
    Ok(())
}

/// A CA may ask that very server, and one failed validation more would be counted.
#[tokio::test]
async fn a_server_with_an_old_copy_of_the_zone_is_named_until_the_config_says_whom_to_ask()
-> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let old = Nameserver::address_of_its_own()?;
    let mut zone = Zone::new("copied.example");
    zone.others = vec![old];
    let zones = [zone];
    let _server = Nameserver::start(bench, "knot-copied", address, &zones).await?;
    let _old = Nameserver::start(bench, "knot-copy", old, &zones).await?;
    let ca = pebble(bench, "pebble-copied", address).await?;
    let by = |propagation: &str| solved(&rfc2136(address, TSIG_NAME, propagation), address);
    let all = Nameserver::propagation(&[address, old]);
    let comma = if all.is_empty() { "" } else { ", " };
    let config = LONG.to_owned() + &by(&format!("timeout: 3s{comma}{all}"));
    let mut operator = operator(bench, Some(&ca), &config).await?;
    let space = Space::new(bench.client()?, "copied", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "copied.example")];
    space.tls_secret("copied", None, &annotations).await?;
    let name = if all.is_empty() {
        "ns2.copied.example".to_owned()
    } else {
        old.to_string()
    };
    let said = format!("is not seen: {name} does not have it (NXDOMAIN)");
    stuck(bench, &operator, &space, "copied", &said).await?;
    nothing_was_spent(&space, "copied").await?;
    let asked = by(&format!("servers: [\"{address}\"]"));
    operator.configure(&(base() + LONG + &asked))?;
    renewed(&space, "copied", "").await?;
    nothing_was_spent(&space, "copied").await?;
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

//! Nobody waits for somebody else's trouble: certificates that can never be had, a DNS provider that does not answer.

use std::time::Duration;

use serde_json::json;
use test_bench::objects::{OLD, Space, pair};
use test_bench::{
    Bench, Context as _, Nameserver, Operator, OperatorOptions, Result, Zone, ensure, eventually,
};
use tokio::net::TcpListener;

use crate::renewal::{SOON, annotation, options, renewed};

/// Certificates whose names nobody can prove.
const HOPELESS: usize = 60;
/// Most of the hopeless that may be served before the good one: those that are under way, and those that come
/// meanwhile. All of them would be a round of the queue.
const BEFORE: usize = HOPELESS / 2;
/// A change at a provider is given up after a minute.
const PATIENCE: Duration = Duration::from_secs(150);

/// How many renewals have failed.
async fn failures(operator: &Operator<'_>) -> Result<usize> {
    let metrics = operator.metrics().await?;
    let failed = metrics.lines().filter(|line| {
        line.starts_with("cert_renew_renewals_total{") && line.contains("result=\"failed\"")
    });
    let counts = failed.map(|line| Ok(line.rsplit(' ').next().context("no value")?.parse()?));
    Ok(counts.collect::<Result<Vec<usize>>>()?.iter().sum())
}

#[tokio::test]
async fn sixty_hopeless_certificates_do_not_starve_a_good_one() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    // Few places, and all sixty want one again at once.
    options.config += "renewals: {concurrency: 2}\nretry: {base: 1s, factor: 1, max: 1s}\n";
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "hopeless", operator.namespace()).await?;
    for number in 0..HOPELESS {
        let host = format!("{number}.hopeless.example");
        bench
            .dns()
            .set("set-servfail", &json!({"host": host}))
            .await?;
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        let name = format!("hopeless-{number}");
        space.tls_secret(&name, None, &annotations).await?;
    }
    eventually(PATIENCE, "each has failed once", async || {
        let failures = failures(&operator).await?;
        ensure!(failures >= HOPELESS, "{failures}");
        Ok(())
    })
    .await?;
    let old = pair(&["good.example"], OLD)?;
    let before = failures(&operator).await?;
    space
        .tls_secret("good", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "good", &old.certificate).await?;
    let meanwhile = failures(&operator).await? - before;
    eprintln!("{meanwhile} hopeless ones were tried before the good one");
    ensure!(meanwhile < BEFORE, "{meanwhile} were served before it");
    Ok(())
}

/// Takes connections, and never says anything.
async fn mute() -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    Ok(address)
}

#[tokio::test]
async fn a_dns_provider_without_an_answer_delays_only_its_own_certificate() -> Result<()> {
    let bench = Bench::shared().await?;
    let server = Nameserver::address_of_its_own()?;
    let zones = [Zone::new("mute.example")];
    let _server = Nameserver::start(bench, "knot-mute", server, &zones).await?;
    let provider = mute().await?;
    let config = format!(
        "solvers:\n  - zones: [mute.example]\n    dns01: {{provider: webhook, settings: {{url: \
         \"http://{provider}/txt\"}}, credentials: {{secret: dns}}}}\n  - http01: {{route: shared, selfCheck: \
         false}}\ndns: {{nameservers: [\"{server}\"]}}\nrenewals: {{concurrency: 2}}\n"
    );
    let options = OperatorOptions {
        config: options().config + &config,
        ..options()
    };
    let mut operator = Operator::install(bench, options).await?;
    operator.credentials("dns", "token", "some-token").await?;
    operator.run().await?;
    let space = Space::new(bench.client()?, "mute", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "*.mute.example")];
    space.tls_secret("waits", None, &annotations).await?;
    eventually(SOON, "its order is made", async || {
        ensure!(operator.log()?.contains("\"ordered\""), "not yet");
        Ok(())
    })
    .await?;
    // One after the other, so that each finds the provider hanging.
    for number in 0..3 {
        let name = format!("goes-{number}");
        let old = pair(&[&format!("{name}.example")], OLD)?;
        space
            .tls_secret(&name, Some(&old), &[("issuer", "pebble")])
            .await?;
        renewed(&space, &name, &old.certificate).await?;
    }
    let waits = space.secrets().get("waits").await?;
    let error = annotation(&waits, "state.cert-renew.io/last-error");
    ensure!(error.is_none(), "it does not wait any more: {error:?}");
    eventually(PATIENCE, "it is told whose fault it is", async || {
        let secret = space.secrets().get("waits").await?;
        let error = annotation(&secret, "state.cert-renew.io/last-error").unwrap_or_default();
        ensure!(error.contains("DNS-01 by webhook"), "{error:?}");
        Ok(())
    })
    .await
}

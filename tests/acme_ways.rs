//! Ways around: a proxy for the CAs, a fallback where one has limited us, a staging CA that is down, a name that needs
//! no solver. And what a poll for renewal information does not do.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use test_bench::objects::Space;
use test_bench::{
    Bench, Context as _, Fault, Operator, OperatorOptions, PebbleOptions, Result, Server, ensure,
    eventually, throughout,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::acme_operator::{another_pebble, configured, event, issued};
use crate::renewal::{SOON, annotation, options, renewed};
use crate::scene::{answered, behind_proxies};

/// Long enough for a write to show itself.
const A_WHILE: Duration = Duration::from_secs(3);
/// Tests have no hours; the limits of the CA are none of these.
const AT_ONCE: &str = "retry: {base: 1s, factor: 1, max: 1s}\n";

/// Opens the tunnel that a client asks a proxy for (RFC 9110, section 9.3.6), and notes where to.
async fn tunnel(mut client: TcpStream, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let Some(host) = head
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next())
    else {
        return Ok(());
    };
    asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(host.to_owned());
    let mut server = TcpStream::connect(host).await?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

#[tokio::test]
async fn the_cas_are_asked_through_the_proxy_and_the_api_server_is_not() -> Result<()> {
    let bench = Bench::shared().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = format!("http://{}", listener.local_addr()?);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move { tunnel(client, &seen).await });
        }
    });
    let environment = [("HTTPS_PROXY", &*proxy), ("NO_PROXY", ""), ("no_proxy", "")];
    let options = OperatorOptions {
        environment: environment
            .map(|(key, value)| (key.into(), value.into()))
            .into(),
        ..options()
    };
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "tunnel", operator.namespace()).await?;
    issued(&space, "through", "through.tunnel.example").await?;
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = bench.pebble().directory();
    let ca = directory
        .split('/')
        .nth(2)
        .context("a directory without a host")?;
    ensure!(!asked.is_empty(), "nobody came");
    ensure!(
        asked.iter().all(|host| host == ca),
        "{asked:?} are not {ca}"
    );
    Ok(())
}

#[tokio::test]
async fn a_ca_that_has_limited_us_is_replaced_by_its_fallback_while_life_is_short() -> Result<()> {
    let bench = Bench::shared().await?;
    let second = format!(
        "  second:\n    directory: {}\n    caBundle: {}\n    allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]\n",
        bench.pebble().directory(),
        bench.ca_bundle().display(),
    );
    let (proxies, operator) =
        behind_proxies(bench, configured("    fallback: second\n", &second)).await?;
    let space = Space::new(bench.client()?, "limited", operator.namespace()).await?;
    let limits = [
        // The first runs into the limit, the second is not asked for any more.
        (
            "domain",
            "too many certificates (50) already issued for \"limited.example\" in the last 168h0m0s",
        ),
        (
            "all",
            "too many new orders (300) from this account in the last 3h0m0s",
        ),
    ];
    for (what, detail) in limits {
        let problem = json!({"type": "urn:ietf:params:acme:error:rateLimited", "detail": detail});
        proxies.rule(move |passed| {
            if passed.server != Server::Ca || !passed.path.ends_with("/order-plz") {
                return Fault::Pass;
            }
            let wait = Some(("retry-after", "3600".to_owned()));
            Fault::Answer(429, wait, "application/problem+json", problem.to_string())
        });
        for number in 0..2 {
            let name = format!("{what}-{number}");
            // The second limit is about everything, also about another domain.
            let domain = if what == "all" { "apart" } else { "limited" };
            let host = format!("{name}.{domain}.example");
            let annotations = [("issuer", "pebble"), ("names", &*host)];
            space.tls_secret(&name, None, &annotations).await?;
            let secret = renewed(&space, &name, "").await?;
            let issued_by = annotation(&secret, "state.cert-renew.io/issued-by");
            let issued_by = issued_by.unwrap_or_default();
            ensure!(issued_by.contains("\"second\""), "{name}: {issued_by}");
        }
    }
    let asked = proxies.passed().into_iter();
    let asked = asked.filter(|it| it.path.ends_with("/order-plz")).count();
    assert_eq!(asked, limits.len(), "once for each limit");
    Ok(())
}

#[tokio::test]
async fn an_outage_of_staging_holds_no_renewal_up() -> Result<()> {
    let bench = Bench::shared().await?;
    // Nothing listens there.
    let mut options = configured("    staging: https://127.0.0.1:9/dir\n", "");
    options.config += AT_ONCE;
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "outage", operator.namespace()).await?;
    let host = json!({"host": "broken.outage.example"});
    bench.dns().set("set-servfail", &host).await?;
    let annotations = [("issuer", "pebble"), ("names", "broken.outage.example")];
    space.tls_secret("broken", None, &annotations).await?;
    event(&space, "broken", "broken.outage.example").await?;
    bench.dns().set("clear-servfail", &host).await?;
    renewed(&space, "broken", "").await?;
    let log = operator.log()?;
    ensure!(
        log.contains("staging cannot be used: no rehearsal"),
        "it was not looked for"
    );
    Ok(())
}

#[tokio::test]
async fn a_name_that_the_ca_has_seen_proven_needs_no_solver() -> Result<()> {
    let bench = Bench::shared().await?;
    let pebble = PebbleOptions {
        authorization_reuse: 100,
        ..another_pebble("pebble-approved")
    };
    let pebble = bench.start_pebble(&pebble).await?;
    let options = OperatorOptions {
        directory: Some(pebble.directory().to_owned()),
        ..configured("", "")
    };
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "approved", operator.namespace()).await?;
    issued(&space, "first", "known.approved.example").await?;
    operator.kill();
    let elsewhere = "solvers:\n  - zones: [elsewhere.example]\n    http01: {route: shared}\n";
    let quick = "rollout: {settle: 0s, perWorkloadMinInterval: 0s}\n";
    operator.configure(&format!("{quick}{elsewhere}"))?;
    operator.run().await?;
    issued(&space, "second", "known.approved.example").await?;
    let annotations = [("issuer", "pebble"), ("names", "new.approved.example")];
    space.tls_secret("third", None, &annotations).await?;
    event(&space, "third", "NoSolver").await?;
    Ok(())
}

#[tokio::test]
async fn a_poll_for_renewal_information_writes_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let (proxies, mut operator) = behind_proxies(bench, options()).await?;
    let space = Space::new(bench.client()?, "polled", operator.namespace()).await?;
    issued(&space, "polled", "polled.example").await?;
    let polls = || answered(&proxies, "-ari", 200);
    eventually(SOON, "its window is asked for", async || {
        ensure!(polls() > 0, "it is not");
        Ok(())
    })
    .await?;
    operator.kill();
    let (before, asked) = (operator.writes()?, polls());
    operator.run().await?;
    eventually(SOON, "it is asked for again", async || {
        ensure!(polls() > asked, "it is not");
        Ok(())
    })
    .await?;
    throughout(A_WHILE, "nothing is written", async || {
        let now = operator.writes()?;
        ensure!(now == before, "{:?}", &now[before.len().min(now.len())..]);
        Ok(())
    })
    .await
}

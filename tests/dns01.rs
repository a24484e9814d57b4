//! DNS-01 against a real DNS server, by RFC 2136 with TSIG, and a CA that looks there.

use std::fmt::Display;
use std::net::SocketAddr;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cert_renew::net::dns::{self, RData, RecordType, Resolver};
use cert_renew::solver::dns01;
use dns_update::{DnsRecord, DnsRecordType, DnsUpdater, TsigAlgorithm};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::Value;
use test_bench::objects::Space;
use test_bench::{
    Bench, Context as _, Nameserver, Operator, OperatorOptions, Pebble, PebbleOptions, Result,
    TSIG_KEY, TSIG_NAME, Zone, ensure, eventually, throughout,
};
use tokio::net::TcpListener;

use crate::renewal::{SOON, annotation, leaf, options, renewed};

/// Time enough for a CA to be told too early.
const A_WHILE: std::time::Duration = std::time::Duration::from_secs(4);

/// A CA that asks this server.
pub(crate) async fn pebble(bench: &Bench, name: &str, dns: SocketAddr) -> Result<Pebble> {
    let options = PebbleOptions {
        name: name.to_owned(),
        dns: Some(dns),
        ..PebbleOptions::default()
    };
    bench.start_pebble(&options).await
}

/// An operator that changes zones at the first of `servers`, and looks for its records at all of them.
async fn operator<'a>(
    bench: &'a Bench,
    pebble: &Pebble,
    servers: &[SocketAddr],
    key: &str,
) -> Result<Operator<'a>> {
    let provider = format!(
        "provider: rfc2136, settings: {{server: \"{}\", keyName: {TSIG_NAME}}}",
        servers[0]
    );
    operator_by(
        bench,
        pebble,
        servers,
        servers[0],
        &provider,
        ("secret", key),
    )
    .await
}

/// The same by any provider, with one entry in the Secret of its credentials; `asks` is the operator's own resolver.
pub(crate) async fn operator_by<'a>(
    bench: &'a Bench,
    pebble: &Pebble,
    servers: &[SocketAddr],
    asks: SocketAddr,
    provider: &str,
    (entry, key): (&str, &str),
) -> Result<Operator<'a>> {
    let propagation = Nameserver::propagation(servers);
    let config = format!(
        "solvers:\n  - dns01: {{{provider}, credentials: {{secret: dns}}, propagation: {{{propagation}}}}}\n\
         dns: {{nameservers: [\"{asks}\"]}}\n"
    );
    let options = OperatorOptions {
        config: options().config + &config,
        directory: Some(pebble.directory().to_owned()),
        ..options()
    };
    let mut operator = Operator::install(bench, options).await?;
    operator.credentials("dns", entry, key).await?;
    operator.run().await?;
    Ok(operator)
}

/// What changes the zones of a server as somebody with the key may.
pub(crate) fn updater(server: SocketAddr) -> Result<DnsUpdater> {
    let key = BASE64_STANDARD.decode(TSIG_KEY)?;
    let (address, algorithm) = (format!("tcp://{server}"), TsigAlgorithm::HmacSha256);
    Ok(DnsUpdater::new_rfc2136_tsig(
        address, TSIG_NAME, key, algorithm,
    )?)
}

/// A solver by RFC 2136, for a config.
pub(crate) fn rfc2136(server: impl Display, key_name: &str, propagation: &str) -> String {
    format!(
        "dns01: {{provider: rfc2136, settings: {{server: \"{server}\", keyName: {key_name}}}, \
         credentials: {{secret: dns}}, propagation: {{{propagation}}}}}"
    )
}

/// The TXT values at a name, as this server has them.
pub(crate) async fn values(server: SocketAddr, name: &str) -> Result<Vec<String>> {
    let resolver = Resolver::new(&[server])?;
    let found = resolver.records(&dns::name(name)?, RecordType::TXT).await?;
    let text = |data| match data {
        RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
        _ => None,
    };
    Ok(found.into_iter().filter_map(text).collect())
}

pub(crate) async fn await_values(
    server: SocketAddr,
    name: &str,
    count: usize,
) -> Result<Vec<String>> {
    eventually(SOON, &format!("{name} has {count} values"), async || {
        let found = values(server, name).await?;
        ensure!(found.len() == count, "it has {found:?}");
        Ok(found)
    })
    .await
}

pub(crate) async fn no_record_is_left(bench: &Bench, operator: &Operator<'_>) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(bench.client()?, operator.namespace());
    let labels = ListParams::default().labels("cert-renew.io/order-record");
    eventually(SOON, "no order record is left", async || {
        let records = secrets.list(&labels).await?.items.len();
        ensure!(records == 0, "{records} are left");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn apex_and_wildcard_are_proven_beside_what_others_have_set() -> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let mut zone = Zone::new("apex.example");
    zone.records = "_acme-challenge TXT \"somebody-elses\"\n".into();
    let _server = Nameserver::start(bench, "knot-apex", address, &[zone]).await?;
    let pebble = pebble(bench, "pebble-apex", address).await?;
    let operator = operator(bench, &pebble, &[address], TSIG_KEY).await?;
    let space = Space::new(bench.client()?, "apex", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "apex.example, *.apex.example"),
    ];
    space.tls_secret("apex", None, &annotations).await?;
    let secret = renewed(&space, "apex", "").await?;
    let names: Vec<String> = leaf(&secret)?
        .names
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let left = await_values(address, "_acme-challenge.apex.example", 1).await?;
    assert_eq!(left, ["somebody-elses"]);
    no_record_is_left(bench, &operator).await?;
    assert!(!operator.log()?.contains(TSIG_KEY), "the key is in the log");
    Ok(())
}

#[tokio::test]
async fn a_delegated_challenge_is_set_where_the_cname_leads_and_a_circle_is_named() -> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let mut delegated = Zone::new("delegated.example");
    delegated.records = "_acme-challenge CNAME hop.delegated.example.\n\
        hop CNAME shop.delegated.example.\n\
        _acme-challenge.away CNAME away.challenges.example.\n\
        _acme-challenge.circle CNAME round.delegated.example.\n\
        round CNAME _acme-challenge.circle.delegated.example.\n"
        .into();
    let zones = [delegated, Zone::new("challenges.example")];
    let _server = Nameserver::start(bench, "knot-delegated", address, &zones).await?;
    let pebble = pebble(bench, "pebble-delegated", address).await?;
    let operator = operator(bench, &pebble, &[address], TSIG_KEY).await?;
    let space = Space::new(bench.client()?, "delegated", operator.namespace()).await?;
    let names = ("names", "*.delegated.example");
    space
        .tls_secret("delegated", None, &[("issuer", "pebble"), names])
        .await?;
    renewed(&space, "delegated", "").await?;
    await_values(address, "shop.delegated.example", 0).await?;
    // Knot follows no CNAME into another zone for a CA that asks it directly: `dns01_ways` has a resolver for that.
    let away = "away.delegated.example".parse()?;
    let site = dns01::site(&Resolver::new(&[address])?, &away).await?;
    let expected = ("away.challenges.example", "challenges.example");
    assert_eq!((site.at.as_str(), site.zone.as_str()), expected);

    let names = ("names", "circle.delegated.example");
    space
        .tls_secret("circle", None, &[("issuer", "pebble"), names])
        .await?;
    eventually(SOON, "the circle is named", async || {
        let secret = space.secrets().get("circle").await?;
        let said = annotation(&secret, "state.cert-renew.io/last-error");
        let said = said.context("no error yet")?;
        ensure!(said.contains("lead in a circle"), "{said}");
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn the_ca_is_told_when_every_server_has_the_record() -> Result<()> {
    let bench = Bench::shared().await?;
    let (first, second) = (
        Nameserver::address_of_its_own()?,
        Nameserver::address_of_its_own()?,
    );
    let mut zone = Zone::new("slow.example");
    zone.others = vec![second];
    let _primary = Nameserver::start(bench, "knot-slow-1", first, &[zone]).await?;
    let mut copy = Zone::new("slow.example");
    copy.primary = Some(first);
    let mut secondary = Nameserver::start(bench, "knot-slow-2", second, &[copy]).await?;
    let pebble = pebble(bench, "pebble-slow", first).await?;
    let operator = operator(bench, &pebble, &[first, second], TSIG_KEY).await?;
    let space = Space::new(bench.client()?, "slow", operator.namespace()).await?;
    let at = "_acme-challenge.slow.example";
    await_values(second, at, 0).await?;
    space
        .tls_secret(
            "slow",
            None,
            &[("issuer", "pebble"), ("names", "slow.example")],
        )
        .await?;
    await_values(first, at, 1).await?;
    throughout(A_WHILE, "the CA is not told", async || {
        let validated = operator.log()?.contains("validated");
        ensure!(
            !validated,
            "although the secondary does not have the record"
        );
        ensure!(values(second, at).await?.is_empty(), "it has");
        Ok(())
    })
    .await?;
    secondary.restart().await?;
    renewed(&space, "slow", "").await?;
    await_values(first, at, 0).await?;
    Ok(())
}

#[tokio::test]
async fn killed_after_the_record_was_set_it_is_swept() -> Result<()> {
    let bench = Bench::shared().await?;
    let (first, second) = (
        Nameserver::address_of_its_own()?,
        Nameserver::address_of_its_own()?,
    );
    let mut zone = Zone::new("killed.example");
    zone.others = vec![second];
    let _primary = Nameserver::start(bench, "knot-killed-1", first, &[zone]).await?;
    let mut copy = Zone::new("killed.example");
    copy.primary = Some(first);
    let mut secondary = Nameserver::start(bench, "knot-killed-2", second, &[copy]).await?;
    let pebble = pebble(bench, "pebble-killed", first).await?;
    let mut operator = operator(bench, &pebble, &[first, second], TSIG_KEY).await?;
    let space = Space::new(bench.client()?, "swept", operator.namespace()).await?;
    for name in ["stays", "goes"] {
        let host = format!("{name}.killed.example");
        space
            .tls_secret(name, None, &[("issuer", "pebble"), ("names", &host)])
            .await?;
    }
    for name in ["stays", "goes"] {
        await_values(first, &format!("_acme-challenge.{name}.killed.example"), 1).await?;
    }
    operator.kill();
    space
        .secrets()
        .delete("goes", &DeleteParams::default())
        .await?;
    secondary.restart().await?;
    operator.run().await?;
    renewed(&space, "stays", "").await?;
    for name in ["stays", "goes"] {
        await_values(first, &format!("_acme-challenge.{name}.killed.example"), 0).await?;
    }
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

#[tokio::test]
async fn a_host_that_refuses_is_quoted_and_the_key_is_not() -> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let zones = [Zone::new("refused.example")];
    let _server = Nameserver::start(bench, "knot-refused", address, &zones).await?;
    let pebble = pebble(bench, "pebble-refused", address).await?;
    let wrong = "YW5vdGhlci1zZWNyZXQtdGhhdC1pcy13cm9uZy0tLS0=";
    let operator = operator(bench, &pebble, &[address], wrong).await?;
    let space = Space::new(bench.client()?, "refused", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "refused.example")];
    space.tls_secret("refused", None, &annotations).await?;
    let said = eventually(SOON, "the refusal is told", async || {
        let secret = space.secrets().get("refused").await?;
        let said = annotation(&secret, "state.cert-renew.io/last-error");
        Ok(said.context("no error yet")?.to_owned())
    })
    .await?;
    let expected =
        "DNS-01 by rfc2136: adding TXT _acme-challenge.refused.example in zone refused.example";
    ensure!(said.starts_with(expected), "{said}");
    assert!(!operator.log()?.contains(wrong), "the key is in the log");
    Ok(())
}

#[tokio::test]
async fn mistakes_with_a_key_are_told_apart() -> Result<()> {
    let bench = Bench::shared().await?;
    let (address, elsewhere) = (
        Nameserver::address_of_its_own()?,
        Nameserver::address_of_its_own()?,
    );
    let mut locked = Zone::new("locked.mistaken.example");
    locked.updates = false;
    let [named, secret, lone] =
        ["named", "secret", "lone"].map(|it| format!("{it}.mistaken.example"));
    let zones = [
        Zone::new(&named),
        Zone::new(&secret),
        Zone::new(&lone),
        locked,
    ];
    let _server = Nameserver::start(bench, "knot-mistaken", address, &zones).await?;
    let others = [Zone::new("other.example")];
    let _elsewhere = Nameserver::start(bench, "knot-not-primary", elsewhere, &others).await?;
    let ca = pebble(bench, "pebble-mistaken", address).await?;
    let right = rfc2136(address, TSIG_NAME, "");
    let rows = [
        (
            "named",
            rfc2136(address, "another-key", ""),
            "the server has no key another-key, or one that has no rights in this zone (BADKEY)",
        ),
        (
            "secret",
            right.replace("{secret: dns}", "{secret: wrong}"),
            "the server has another secret for key cert-renew-key (BADSIG)",
        ),
        (
            "locked",
            right,
            "the server has no key cert-renew-key, or one that has no rights in this zone (BADKEY)",
        ),
        (
            "lone",
            rfc2136(elsewhere, TSIG_NAME, ""),
            "the server is not the primary of zone lone.mistaken.example (NOTAUTH)",
        ),
    ];
    let mut config = options().config + "solvers:\n";
    for (name, solver, _) in &rows {
        config += &format!("  - zones: [{name}.mistaken.example]\n    {solver}\n");
    }
    config += &format!("dns: {{nameservers: [\"{address}\"]}}\n");
    let options = OperatorOptions {
        config,
        directory: Some(ca.directory().to_owned()),
        ..options()
    };
    let mut operator = Operator::install(bench, options).await?;
    let wrong = "YW5vdGhlci1zZWNyZXQtdGhhdC1pcy13cm9uZy0tLS0=";
    operator.credentials("dns", "secret", TSIG_KEY).await?;
    operator.credentials("wrong", "secret", wrong).await?;
    operator.run().await?;
    let space = Space::new(bench.client()?, "mistaken", operator.namespace()).await?;
    for (name, ..) in &rows {
        let host = format!("{name}.mistaken.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret(name, None, &annotations).await?;
    }
    for (name, _, told) in &rows {
        eventually(SOON, "the reason is told", async || {
            let secret = space.secrets().get(name).await?;
            let said = annotation(&secret, "state.cert-renew.io/last-error");
            let said = said.context("no error yet")?;
            ensure!(said.contains(told), "{name}: {said}");
            Ok(())
        })
        .await?;
    }
    assert!(!operator.log()?.contains(wrong), "the key is in the log");
    Ok(())
}

/// A service of a user that changes records, as the documents describe it.
async fn webhook(server: SocketAddr, token: &'static str) -> Result<SocketAddr> {
    let updater = updater(server)?;
    let change = move |headers: HeaderMap, body: String| async move {
        let authorized = headers.get("authorization").and_then(|it| it.to_str().ok());
        if authorized != Some(&format!("Bearer {token}")) {
            return (StatusCode::UNAUTHORIZED, "who are you?");
        }
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let records = vec![DnsRecord::TXT(text("value"))];
        let (name, zone, kind) = (text("name"), text("zone"), DnsRecordType::TXT);
        let changed = match body["action"].as_str() {
            Some("present") => updater.add_to_rrset(name, kind, 60, records, zone).await,
            Some("cleanup") => updater.remove_from_rrset(name, kind, records, zone).await,
            _ => return (StatusCode::BAD_REQUEST, "what?"),
        };
        match changed {
            Ok(()) => (StatusCode::OK, ""),
            Err(_) => (StatusCode::BAD_GATEWAY, "the server refuses"),
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/txt", post(change));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

#[tokio::test]
async fn a_webhook_sets_and_removes_and_its_refusal_is_quoted_without_the_token() -> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let zones = [Zone::new("hook.example")];
    let _server = Nameserver::start(bench, "knot-hook", address, &zones).await?;
    let pebble = pebble(bench, "pebble-hook", address).await?;
    let hook = webhook(address, "the-right-token").await?;
    let provider = format!("provider: webhook, settings: {{url: \"http://{hook}/txt\"}}");
    let annotations = [("issuer", "pebble"), ("names", "*.hook.example")];
    for (token, name) in [("the-right-token", "good"), ("a-wrong-token", "bad")] {
        let credentials = ("token", token);
        let operator =
            operator_by(bench, &pebble, &[address], address, &provider, credentials).await?;
        let space = Space::new(bench.client()?, "hook", operator.namespace()).await?;
        space.tls_secret(name, None, &annotations).await?;
        if name == "good" {
            renewed(&space, name, "").await?;
            await_values(address, "_acme-challenge.hook.example", 0).await?;
            continue;
        }
        eventually(SOON, "the refusal is told", async || {
            let secret = space.secrets().get(name).await?;
            let said = annotation(&secret, "state.cert-renew.io/last-error");
            let said = said.context("no error yet")?;
            ensure!(said.contains("401 Unauthorized: who are you?"), "{said}");
            Ok(())
        })
        .await?;
        assert!(!operator.log()?.contains(token), "the token is in the log");
    }
    Ok(())
}

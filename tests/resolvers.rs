//! Whom the checks before the CA ask: each solver its own resolvers, over TLS and HTTPS where port 53 is closed.

use std::net::SocketAddr;
use std::sync::Arc;

use cert_renew::net::dns::{self, RecordType, Resolver};
use cert_renew::net::egress::Nearby;
use cert_renew::net::user_lookups::UserLookups;
use cert_renew::solver::http01_self_check;
use cert_renew_core::config::{ResolverAddress, Resolvers};
use test_bench::objects::Space;
use test_bench::{
    Bench, Nameserver, PebbleOptions, Recursor, Result, TSIG_NAME, Zone, ensure, ports,
};

use crate::acme_operator::event;
use crate::dns01::{await_values, rfc2136};
use crate::open_orders::{operator, stuck};
use crate::renewal::{leaf, renewed};

/// Tries follow each other quickly.
const QUICKLY: &str = "retry: {base: 1s, factor: 1, max: 1s}\n";

#[tokio::test]
async fn each_solver_asks_the_resolvers_that_it_names() -> Result<()> {
    let bench = Bench::shared().await?;
    let (first, second) = (
        Nameserver::address_of_its_own()?,
        Nameserver::address_of_its_own()?,
    );
    let _first = Nameserver::start(bench, "knot-own-1", first, &[Zone::new("one.example")]).await?;
    let _second =
        Nameserver::start(bench, "knot-own-2", second, &[Zone::new("two.example")]).await?;
    let zones = [("one.example", first), ("two.example", second)];
    let recursor = Recursor::start(bench, "unbound-own", &zones).await?;
    let pebble = PebbleOptions {
        name: "pebble-own".into(),
        dns: Some(recursor.address()),
        ..PebbleOptions::default()
    };
    let pebble = bench.start_pebble(&pebble).await?;
    // An operator whose config names no resolvers finds nobody.
    let nobody = ports::free()?;
    let config = format!(
        "{QUICKLY}solvers:\n  - zones: [one.example]\n    resolvers: [\"{first}\"]\n    {one}\n  \
         - zones: [two.example]\n    resolvers: [\"{second}\"]\n    {two}\n  \
         - zones: [routed.one.example]\n    resolvers: [\"{first}\"]\n    http01: {{route: shared}}\n\
         dns: {{nameservers: [\"{nobody}\"]}}\n",
        one = rfc2136(first, TSIG_NAME, &Nameserver::propagation(&[first])),
        two = rfc2136(second, TSIG_NAME, &Nameserver::propagation(&[second])),
    );
    let operator = operator(bench, Some(&pebble), &config).await?;
    let space = Space::new(bench.client()?, "own", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "*.one.example, two.example"),
    ];
    space.tls_secret("both", None, &annotations).await?;
    let routed = [("issuer", "pebble"), ("names", "routed.one.example")];
    space.tls_secret("routed", None, &routed).await?;
    renewed(&space, "both", "").await?;
    await_values(first, "_acme-challenge.one.example", 0).await?;
    await_values(second, "_acme-challenge.two.example", 0).await?;
    let said = format!("routed.one.example does not exist (NXDOMAIN, asked {first})");
    stuck(bench, &operator, &space, "routed", &said).await
}

#[tokio::test]
async fn where_port_53_is_closed_resolvers_over_tls_and_https_are_asked_in_the_zones_stead()
-> Result<()> {
    let bench = Bench::shared().await?;
    // Its NS records lead to port 53 of its address, where nobody listens.
    let own = Nameserver::address_of_its_own()?.ip();
    let seen = SocketAddr::new(own, ports::free()?.port());
    let unseen = SocketAddr::new(own, ports::free()?.port());
    let zones = [Zone::new("hidden.example"), Zone::new("stale.example")];
    let _seen = Nameserver::start(bench, "knot-hidden", seen, &zones).await?;
    let _unseen = Nameserver::start(bench, "knot-unseen", unseen, &zones[1..]).await?;
    let zones = [("hidden.example", seen), ("stale.example", seen)];
    let recursor = Recursor::start_encrypted(bench, "unbound-hidden", &zones).await?;
    let pebble = PebbleOptions {
        name: "pebble-hidden".into(),
        dns: Some(seen),
        caa_identities: vec!["ca.bench.example".into()],
        ..PebbleOptions::default()
    };
    let pebble = bench.start_pebble(&pebble).await?;
    let (tls, https) = (recursor.tls_url(), recursor.https_url());
    let config = format!(
        "{QUICKLY}solvers:\n  - resolvers: [\"{tls}\", \"{https}\"]\n    {hidden}\n  \
         - zones: [stale.example]\n    resolvers: [\"{tls}\", \"{https}\"]\n    {stale}\n  \
         - zones: [standing.hidden.example]\n    resolvers: [\"{https}\"]\n    \
         dnsPersist01: {{experimental: true}}\n\
         dns: {{nameservers: [\"{nobody}\"], caBundle: \"{roots}\"}}\n",
        hidden = rfc2136(seen, TSIG_NAME, ""),
        stale = rfc2136(unseen, TSIG_NAME, "timeout: 2s"),
        nobody = ports::free()?,
        roots = recursor.roots().display(),
    );
    let operator = operator(bench, Some(&pebble), &config).await?;
    let space = Space::new(bench.client()?, "hidden", operator.namespace()).await?;
    for (name, names) in [
        ("hidden", "hidden.example, *.hidden.example"),
        ("stale", "stale.example"),
        ("standing", "standing.hidden.example"),
    ] {
        let annotations = [("issuer", "pebble"), ("names", names)];
        space.tls_secret(name, None, &annotations).await?;
    }
    let names = leaf(&renewed(&space, "hidden", "").await?)?.names;
    assert_eq!(names.len(), 2, "{names:?}");
    await_values(seen, "_acme-challenge.hidden.example", 0).await?;
    // Who was asked, and what each answered.
    let said = event(&space, "stale", "is not seen").await?;
    for resolver in [&tls, &https] {
        let lacks = format!("{resolver} does not have it (NXDOMAIN");
        ensure!(said.contains(&lacks), "{said}");
    }
    let said = event(&space, "standing", "to be set").await?;
    let on = format!("TXT _validation-persist.standing.hidden.example on {https}: there is none");
    ensure!(said.contains(&on), "{said}");

    recursor.stop();
    let annotations = [("issuer", "pebble"), ("names", "late.hidden.example")];
    space.tls_secret("late", None, &annotations).await?;
    let unanswered = format!("no answer from {https}: ");
    let said = event(&space, "late", &unanswered).await?;
    ensure!(said.contains("refused"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_resolver_over_tls_is_believed_by_its_certificate_and_leads_nowhere_that_others_may_not()
-> Result<()> {
    let bench = Bench::shared().await?;
    let own = Nameserver::address_of_its_own()?.ip();
    let server = SocketAddr::new(own, ports::free()?.port());
    let mut zone = Zone::new("led.example");
    zone.records =
        "here A 127.0.0.1\nmetadata A 169.254.169.254\n_acme-challenge TXT \"there\"\n".into();
    let _server = Nameserver::start(bench, "knot-led", server, &[zone]).await?;
    let zones = [("led.example", server)];
    let recursor = Recursor::start_encrypted(bench, "unbound-led", &zones).await?;
    let by = |url: &str, is_trusted: bool| Resolvers {
        addresses: vec![url.parse::<ResolverAddress>().unwrap()],
        ca_bundle: is_trusted.then(|| recursor.roots()),
    };
    let name = dns::name("_acme-challenge.led.example")?;
    let other = format!("tls://{}#other.example", recursor.address());
    for (url, is_trusted, told) in [
        (recursor.tls_url(), true, None),
        (recursor.https_url(), true, None),
        (recursor.tls_url(), false, Some("UnknownIssuer")),
        (recursor.https_url(), false, Some("UnknownIssuer")),
        (other, true, Some("not valid for")),
        // What is there speaks something else.
        (format!("tls://{server}"), true, Some("")),
        (
            "https://nobody.invalid/dns-query".into(),
            true,
            Some("looking up nobody.invalid"),
        ),
    ] {
        let resolver = Resolver::new(by(&url, is_trusted))?;
        let found = resolver.records(&name, RecordType::TXT).await;
        match told {
            None => assert_eq!(found?.len(), 1, "{url}"),
            Some(told) => {
                let error = found.unwrap_err().to_string();
                let from = format!("TXT _acme-challenge.led.example: no answer from {url}: ");
                ensure!(error.starts_with(&from) && error.contains(told), "{error}");
            }
        }
    }
    let no_roots = Resolvers {
        ca_bundle: Some("/nowhere/roots.pem".into()),
        ..by(&recursor.tls_url(), true)
    };
    let error = Resolver::new(no_roots).unwrap_err().to_string();
    ensure!(
        error.starts_with("dns.caBundle: reading /nowhere/roots.pem"),
        "{error}"
    );

    for url in [recursor.tls_url(), recursor.https_url()] {
        for host in ["here.led.example", "metadata.led.example"] {
            let from = (Nearby::Closed, &Arc::<UserLookups>::default().of("shop"));
            let resolvers = by(&url, true);
            let reached = http01_self_check::reaches_us(from, &resolvers, host, "x", "y").await;
            let error = reached.unwrap_err().to_string();
            ensure!(error.contains("metadata address"), "{error}");
        }
        // Not one of the zone's own servers.
        let zone = dns::name("led.example")?;
        let asked = Resolver::new(by(&url, true))?;
        let asked = asked.authorities(Nearby::Open, &zone).await?;
        let asked: Vec<&str> = asked.iter().map(|it| &*it.name).collect();
        assert_eq!(asked, [&*url]);
    }
    Ok(())
}

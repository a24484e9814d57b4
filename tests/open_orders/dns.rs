//! DNS-01 that is corrected while an order waits: server, key, host, resolvers, and how long it waits.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use test_bench::objects::Space;
use test_bench::{Bench, Nameserver, Result, TSIG_KEY, TSIG_NAME, Zone};

use super::{LONG, SHORT, base, mended, nothing_was_spent, operator, right, solved, stuck};
use crate::acme_operator::event;
use crate::dns01::{await_values, no_record_is_left, pebble, rfc2136};
use crate::renewal::renewed;

#[tokio::test]
async fn a_key_name_that_is_corrected_is_taken_by_the_order_that_waits() -> Result<()> {
    mended("keyname", "DNS-01 by rfc2136: adding", |address| {
        let propagation = Nameserver::propagation(&[address]);
        [
            rfc2136(address.to_string(), "another-key", &propagation),
            right(address),
        ]
    })
    .await
}

#[tokio::test]
async fn a_dns_server_that_is_corrected_is_taken_by_the_order_that_waits() -> Result<()> {
    mended("server", "DNS-01 by rfc2136: adding", |address| {
        [
            rfc2136(
                "127.0.0.1:9",
                TSIG_NAME,
                &Nameserver::propagation(&[address]),
            ),
            right(address),
        ]
    })
    .await
}

#[tokio::test]
async fn a_propagation_check_that_is_turned_off_is_left_out_by_the_order_that_waits() -> Result<()>
{
    mended("unchecked", "is not seen", |address| {
        let server = address.to_string();
        [
            rfc2136(&server, TSIG_NAME, "servers: [\"127.0.0.1:9\"]"),
            rfc2136(&server, TSIG_NAME, "check: false"),
        ]
    })
    .await
}

#[tokio::test]
async fn propagation_servers_that_are_corrected_are_asked_by_the_order_that_waits() -> Result<()> {
    mended("servers", "is not seen", |address| {
        let server = address.to_string();
        [
            rfc2136(
                &server,
                TSIG_NAME,
                "servers: [\"127.0.0.1:9\"], timeout: 1s",
            ),
            rfc2136(&server, TSIG_NAME, &format!("servers: [\"{server}\"]")),
        ]
    })
    .await
}

#[tokio::test]
async fn credentials_that_are_named_anew_are_taken_by_the_order_that_waits() -> Result<()> {
    mended("credentials", "DNS-01 by rfc2136:", |address| {
        let right = right(address);
        [right.replace("{secret: dns}", "{secret: nowhere}"), right]
    })
    .await
}

#[tokio::test]
async fn another_dns_host_is_taken_by_the_order_that_waits() -> Result<()> {
    mended("provider", "DNS-01 by acme-dns:", |address| {
        let wrong = "dns01: {provider: acme-dns, settings: {server: \"https://127.0.0.1:9\"}, \
            credentials: {secret: dns}}";
        [wrong.to_owned(), right(address)]
    })
    .await
}

#[tokio::test]
async fn an_order_that_waits_for_a_record_of_the_users_goes_on_by_one_of_ours() -> Result<()> {
    mended("persisted", "dns-persist-01", |address| {
        let standing = "dnsPersist01: {experimental: true}";
        [standing.to_owned(), right(address)]
    })
    .await
}

/// A zone that two servers have, each for itself: the CA and updates go to the second.
#[tokio::test]
async fn another_resolver_and_a_shorter_wait_are_taken_by_the_order_that_waits() -> Result<()> {
    let bench = Bench::shared().await?;
    let first = Nameserver::address_of_its_own()?;
    let second = Nameserver::address_of_its_own()?;
    let zones = [Zone::new("resolved.example")];
    let gone = Nameserver::start(bench, "knot-resolved-1", first, &zones).await?;
    let _server = Nameserver::start(bench, "knot-resolved-2", second, &zones).await?;
    let ca = pebble(bench, "pebble-resolved", second).await?;
    let server = second.to_string();
    let patient = rfc2136(
        &server,
        TSIG_NAME,
        &format!("servers: [\"{server}\"], wait: 10m"),
    );
    let config = LONG.to_owned() + &solved(&patient, first);
    let mut operator = operator(bench, Some(&ca), &config).await?;
    let space = Space::new(bench.client()?, "resolved", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "resolved.example")];
    space.tls_secret("waits", None, &annotations).await?;
    // The record is set, and the CA is told in ten minutes.
    await_values(second, "_acme-challenge.resolved.example", 1).await?;
    drop(gone);
    let quick = rfc2136(
        &server,
        TSIG_NAME,
        &format!("servers: [\"{server}\"], wait: 0s"),
    );
    operator.configure(&(base() + LONG + &solved(&quick, second)))?;
    renewed(&space, "waits", "").await?;
    nothing_was_spent(&space, "waits").await?;
    await_values(second, "_acme-challenge.resolved.example", 0).await?;
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

#[tokio::test]
async fn resolvers_of_a_solver_that_are_corrected_are_asked_by_the_order_that_waits() -> Result<()>
{
    mended("asked", "no answer from 127.99.53.53:53", |address| {
        let solver = right(address);
        [
            format!("resolvers: [127.99.53.53]\n    {solver}"),
            format!("resolvers: [\"{address}\"]\n    {solver}"),
        ]
    })
    .await
}

/// What a Secret of credentials holds is read at each try; nobody tells us that it has changed.
#[tokio::test]
async fn a_key_that_is_corrected_in_its_secret_is_taken_at_the_next_try() -> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let zones = [Zone::new("rekeyed.example")];
    let _server = Nameserver::start(bench, "knot-rekeyed", address, &zones).await?;
    let ca = pebble(bench, "pebble-rekeyed", address).await?;
    let config = SHORT.to_owned() + &solved(&right(address), address);
    let operator = operator(bench, Some(&ca), &config).await?;
    let secrets: Api<Secret> = Api::namespaced(bench.client()?, operator.namespace());
    let put = async |key: &str| {
        let key = ByteString(key.as_bytes().to_vec());
        let body = Patch::Merge(json!({"data": {"secret": key}}));
        secrets.patch("dns", &PatchParams::default(), &body).await
    };
    put("bm90IHRoZSBrZXkgdGhhdCBpdCBpcw==").await?;
    let space = Space::new(bench.client()?, "rekeyed", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "rekeyed.example")];
    space.tls_secret("waits", None, &annotations).await?;
    stuck(
        bench,
        &operator,
        &space,
        "waits",
        "DNS-01 by rfc2136: adding",
    )
    .await?;
    put(TSIG_KEY).await?;
    renewed(&space, "waits", "").await?;
    nothing_was_spent(&space, "waits").await?;
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

#[tokio::test]
async fn a_cname_that_is_corrected_is_followed_by_the_order_that_waits() -> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let zones = |target: &str| {
        let mut zone = Zone::new("cname.example");
        zone.records = format!("_acme-challenge CNAME {target}.\n");
        let mut locked = Zone::new("locked.example");
        locked.updates = false;
        [zone, locked]
    };
    let wrong =
        Nameserver::start(bench, "knot-cname-1", address, &zones("x.locked.example")).await?;
    let ca = pebble(bench, "pebble-cname", address).await?;
    let config = SHORT.to_owned() + &solved(&right(address), address);
    let operator = operator(bench, Some(&ca), &config).await?;
    let space = Space::new(bench.client()?, "cname", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "cname.example")];
    space.tls_secret("waits", None, &annotations).await?;
    stuck(bench, &operator, &space, "waits", "x.locked.example").await?;
    drop(wrong);
    let _mended =
        Nameserver::start(bench, "knot-cname-2", address, &zones("x.cname.example")).await?;
    renewed(&space, "waits", "").await?;
    nothing_was_spent(&space, "waits").await?;
    await_values(address, "x.cname.example", 0).await?;
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

/// The wildcard CNAME of a load balancer answers where the CA looks, and leads into a zone of somebody else
/// (cert-manager #837).
#[tokio::test]
async fn a_wildcard_cname_does_not_carry_the_proof_away_and_a_dead_server_of_the_zone_holds_nothing_up()
-> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let mut zone = Zone::new("starred.example");
    zone.records = "* CNAME lb.elsewhere.example.\n@ NS ns9.nowhere.example.\n".into();
    let mut elsewhere = Zone::new("elsewhere.example");
    elsewhere.updates = false;
    let zones = [zone, elsewhere];
    let _server = Nameserver::start(bench, "knot-starred", address, &zones).await?;
    let ca = pebble(bench, "pebble-starred", address).await?;
    let operator = operator(
        bench,
        Some(&ca),
        &(LONG.to_owned() + &solved(&right(address), address)),
    )
    .await?;
    let space = Space::new(bench.client()?, "starred", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "starred.example, *.starred.example"),
    ];
    space.tls_secret("starred", None, &annotations).await?;
    renewed(&space, "starred", "").await?;
    await_values(address, "_acme-challenge.starred.example", 0).await?;
    Ok(())
}

#[tokio::test]
async fn a_cname_leads_no_proof_out_of_the_zones_of_its_solver() -> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let mut zone = Zone::new("tenant.example");
    zone.records = "_acme-challenge CNAME mail.other.example.\n".into();
    let zones = [zone, Zone::new("other.example")];
    let _server = Nameserver::start(bench, "knot-tenant", address, &zones).await?;
    let ca = pebble(bench, "pebble-tenant", address).await?;
    let solver = |zones: &str| format!("{{zones: [{zones}], {}}}", right(address));
    let config = LONG.to_owned() + &solved(&solver("tenant.example"), address);
    let mut operator = operator(bench, Some(&ca), &config).await?;
    let space = Space::new(bench.client()?, "tenant", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "tenant.example")];
    space.tls_secret("tenant", None, &annotations).await?;
    event(
        &space,
        "tenant",
        "in none of the solver's zones (tenant.example)",
    )
    .await?;
    await_values(address, "mail.other.example", 0).await?;
    let allowed = solver("tenant.example, other.example");
    operator.configure(&(base() + LONG + &solved(&allowed, address)))?;
    await_values(address, "mail.other.example", 1).await?;
    Ok(())
}

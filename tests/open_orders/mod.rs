//! An order under way is carried on with what is set now: whatever is mended while it waits is seen at once, and what it
//! cannot be carried on with makes it begin again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use test_bench::objects::Space;
use test_bench::{
    Bench, Context as _, Nameserver, Operator, OperatorOptions, Pebble, PebbleOptions, Result,
    TSIG_KEY, TSIG_NAME, Zone, ensure, eventually,
};

use crate::acme_operator::event;
use crate::dns01::{await_values, no_record_is_left, pebble};
use crate::renewal::{SOON, annotation, data, leaf, options, renewed};
use crate::routes::validate_paths_as_ingress_nginx;

/// Longer than any of these tests: who succeeds has not waited for it.
const LONG: &str = "retry: {base: 1h, factor: 1, max: 1h}\n";
/// For what nobody tells us of, such as a change in DNS.
const SHORT: &str = "retry: {base: 2s, factor: 1, max: 2s}\n";
/// A try that finds nobody at a DNS server goes on for a while.
const PATIENTLY: Duration = Duration::from_secs(150);

fn base() -> String {
    options().config
}

fn rfc2136(server: &str, key_name: &str, propagation: &str) -> String {
    format!(
        "dns01: {{provider: rfc2136, settings: {{server: \"{server}\", keyName: {key_name}}}, \
         credentials: {{secret: dns}}, propagation: {{{propagation}}}}}"
    )
}

fn solved(solver: &str, asks: SocketAddr) -> String {
    format!("solvers:\n  - {solver}\ndns: {{nameservers: [\"{asks}\"]}}\n")
}

/// An operator with this config and the right TSIG key in Secret `dns`.
pub(crate) async fn operator<'a>(
    bench: &'a Bench,
    ca: Option<&Pebble>,
    config: &str,
) -> Result<Operator<'a>> {
    let options = OperatorOptions {
        config: base() + config,
        directory: ca.map(|ca| ca.directory().to_owned()),
        addons: vec!["rbac/addons/route-ingress.yaml".to_owned()],
        ..options()
    };
    let mut operator = Operator::install(bench, options).await?;
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some("dns".into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            "secret".into(),
            ByteString(TSIG_KEY.as_bytes().to_vec()),
        )])),
        ..Secret::default()
    };
    let secrets: Api<Secret> = Api::namespaced(bench.client()?, operator.namespace());
    secrets.create(&PostParams::default(), &secret).await?;
    operator.run().await?;
    Ok(operator)
}

/// Waits until the Secret's order is on record and cannot go on, for the reason that `said` is a part of.
pub(crate) async fn stuck(
    bench: &Bench,
    operator: &Operator<'_>,
    space: &Space,
    name: &str,
    said: &str,
) -> Result<()> {
    eventually(PATIENTLY, &format!("{name} says {said}"), async || {
        let secret = space.secrets().get(name).await?;
        let error = annotation(&secret, "state.cert-renew.io/last-error");
        let error = error.context("no error yet")?;
        ensure!(error.contains(said), "{error}");
        Ok(())
    })
    .await?;
    let records: Api<Secret> = Api::namespaced(bench.client()?, operator.namespace());
    let labels = ListParams::default().labels("cert-renew.io/order-record");
    let count = records.list(&labels).await?.items.len();
    ensure!(count > 0, "no order is open");
    Ok(())
}

async fn patch(space: &Space, name: &str, patch: Value) -> Result<()> {
    let params = PatchParams::default();
    space
        .secrets()
        .patch(name, &params, &Patch::Merge(patch))
        .await?;
    Ok(())
}

async fn annotate(space: &Space, name: &str, key: &str, value: Option<&str>) -> Result<()> {
    let key = format!("cert-renew.io/{key}");
    patch(
        space,
        name,
        json!({"metadata": {"annotations": {key: value}}}),
    )
    .await
}

pub(crate) async fn unannotate(space: &Space, name: &str, key: &str) -> Result<()> {
    annotate(space, name, key, None).await
}

/// No validation has failed at the CA.
async fn nothing_was_spent(space: &Space, name: &str) -> Result<()> {
    let events = space.events(name).await?;
    let kinds = [
        "Unauthorized",
        "Connection",
        "IncorrectResponse",
        "Dns",
        "OrderInvalid",
    ];
    let spent = kinds.map(|kind| format!("RenewalFailed: {kind}:"));
    let found = { events.iter() }.find(|event| spent.iter().any(|it| event.starts_with(it)));
    ensure!(found.is_none(), "{found:?}");
    Ok(())
}

/// One name by DNS-01, stuck under one solver and mended by another.
async fn mended(tag: &str, said: &str, solvers: impl Fn(SocketAddr) -> [String; 2]) -> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let zone = format!("{tag}.example");
    let mut served = Zone::new(&zone);
    served.records = "@ A 127.0.0.1\n".into();
    let _server = Nameserver::start(bench, &format!("knot-{tag}"), address, &[served]).await?;
    let ca = pebble(bench, &format!("pebble-{tag}"), address).await?;
    let [wrong, right] = solvers(address);
    let mut operator = operator(
        bench,
        Some(&ca),
        &(LONG.to_owned() + &solved(&wrong, address)),
    )
    .await?;
    let space = Space::new(bench.client()?, tag, operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", &*zone)];
    space.tls_secret("waits", None, &annotations).await?;
    stuck(bench, &operator, &space, "waits", said).await?;
    operator.configure(&(base() + LONG + &solved(&right, address)))?;
    renewed(&space, "waits", "").await?;
    nothing_was_spent(&space, "waits").await?;
    await_values(address, &format!("_acme-challenge.{zone}"), 0).await?;
    no_record_is_left(bench, &operator).await?;
    let left = space.events("waits").await?;
    ensure!(
        !left.iter().any(|it| it.contains("TxtRecordLeft")),
        "{left:?}"
    );
    Ok(())
}

fn right(address: SocketAddr) -> String {
    rfc2136(
        &address.to_string(),
        TSIG_NAME,
        &Nameserver::propagation(&[address]),
    )
}

#[tokio::test]
async fn a_key_name_that_is_corrected_is_taken_by_the_order_that_waits() -> Result<()> {
    mended("keyname", "DNS-01 by rfc2136: adding", |address| {
        let propagation = Nameserver::propagation(&[address]);
        [
            rfc2136(&address.to_string(), "another-key", &propagation),
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

/// The only object of a kind that the operator has made for a challenge.
async fn route(bench: &Bench, operator: &Operator<'_>, kind: &str) -> Result<Value> {
    let (group, plural) = match kind {
        "Ingress" => ("networking.k8s.io", "ingresses"),
        _ => ("gateway.networking.k8s.io", "httproutes"),
    };
    let kind = kube::core::GroupVersionKind::gvk(group, "v1", kind);
    let resource = kube::core::ApiResource::from_gvk_with_plural(&kind, plural);
    let api: Api<DynamicObject> =
        Api::namespaced_with(bench.client()?, operator.namespace(), &resource);
    let found = api.list(&ListParams::default()).await?.items;
    ensure!(found.len() == 1, "{} are there", found.len());
    Ok(serde_json::to_value(&found[0])?)
}

#[tokio::test]
async fn the_class_of_an_ingress_and_the_gateway_of_a_route_that_are_corrected_are_taken()
-> Result<()> {
    let bench = Bench::shared().await?;
    bench.install_gateway_api().await?;
    let ingress = |name: &str| {
        format!(
            "route: ingress, ingress: {{class: {name}, annotations: {{example.com/by: {name}}}}}"
        )
    };
    let gateway =
        |name: &str| format!("route: gateway, gateway: {{parentRefs: [{{name: {name}}}]}}");
    let http = |route: &str, more: &str| {
        solved(&format!("http01: {{{route}{more}}}"), bench.dns().address())
    };
    let rows: [(&str, &[&str]); 2] = [
        (
            "Ingress",
            &[
                "/spec/ingressClassName",
                "/metadata/annotations/example.com~1by",
            ],
        ),
        ("HTTPRoute", &["/spec/parentRefs/0/name"]),
    ];
    for (kind, places) in rows {
        let set = |name: &str| match kind {
            "Ingress" => ingress(name),
            _ => gateway(name),
        };
        let tag = format!("class-{}", kind.to_lowercase());
        let options = OperatorOptions {
            config: base() + LONG + &http(&set("one"), ""),
            addons: ["ingress", "gateway"]
                .map(|kind| format!("rbac/addons/route-{kind}.yaml"))
                .into(),
            ..options()
        };
        let mut operator = Operator::start(bench, options).await?;
        let space = Space::new(bench.client()?, &tag, operator.namespace()).await?;
        let host = format!("{tag}.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret("waits", None, &annotations).await?;
        // Nobody listens on port 80 of what the name resolves to.
        stuck(bench, &operator, &space, "waits", "HTTP-01").await?;
        for name in ["one", "two"] {
            operator.configure(&(base() + LONG + &http(&set(name), "")))?;
            eventually(SOON, &format!("the route is for {name}"), async || {
                let route = route(bench, &operator, kind).await?;
                for place in places {
                    let found = route.pointer(place).and_then(Value::as_str);
                    ensure!(found == Some(name), "{place}: {route}");
                }
                Ok(())
            })
            .await?;
        }
        operator.configure(&(base() + LONG + &http(&set("two"), ", selfCheck: false")))?;
        renewed(&space, "waits", "").await?;
        nothing_was_spent(&space, "waits").await?;
        no_record_is_left(bench, &operator).await?;
    }
    Ok(())
}

/// What lets the Secret have a certificate is taken away while its order waits, and given back.
#[tokio::test]
async fn an_order_that_waits_goes_when_nobody_may_have_it_any_more() -> Result<()> {
    let bench = Bench::shared().await?;
    let second = |names: &str| {
        format!(
            "  second: {{directory: \"{}\", caBundle: \"{}\", profile: default, allow: [{{namespaces: [\"*\"], names: [{names}]}}]}}\n",
            bench.pebble().directory(),
            bench.ca_bundle().display(),
        )
    };
    let config = |names: &str, way: &str| second(names) + &base() + LONG + way;
    let all = "\"**.example\"";
    let options = OperatorOptions {
        config: config(all, &unreachable(bench)),
        ..options()
    };
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "withdrawn", operator.namespace()).await?;
    for name in ["allow", "class"] {
        let host = format!("{name}.withdrawn.example");
        let annotations = [("issuer", "second"), ("names", &*host)];
        space.tls_secret(name, None, &annotations).await?;
        stuck(bench, &operator, &space, name, "HTTP-01").await?;
    }
    annotate(&space, "class", "class", Some("another")).await?;
    operator.configure(&config("elsewhere.example", &open(bench)))?;
    event(&space, "allow", "issuers.second.allow").await?;
    no_record_is_left(bench, &operator).await?;
    for name in ["allow", "class"] {
        let secret = space.secrets().get(name).await?;
        ensure!(data(&secret, "tls.crt").is_empty(), "{name} was written");
    }
    annotate(&space, "class", "class", Some(operator.namespace())).await?;
    operator.configure(&config(all, &open(bench)))?;
    for name in ["allow", "class"] {
        renewed(&space, name, "").await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_order_for_a_key_that_was_to_be_kept_is_made_again_when_it_need_not_be() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "rotates", operator.namespace()).await?;
    let old = test_bench::objects::pair(&["rotates.example"], test_bench::objects::OLD)?;
    let annotations = [("issuer", "pebble"), ("key-rotation", "never")];
    space.tls_secret("waits", Some(&old), &annotations).await?;
    stuck(bench, &operator, &space, "waits", "HTTP-01").await?;
    annotate(&space, "waits", "key-rotation", Some("always")).await?;
    operator.configure(&(base() + LONG + &open(bench)))?;
    let secret = renewed(&space, "waits", &old.certificate).await?;
    ensure!(
        data(&secret, "tls.key") != old.key,
        "the key is the old one"
    );
    Ok(())
}

/// What an order's record copies, or what it brings depends on: each has a test in which it changes while the order
/// waits, with success soon after. A row is a setting and the test.
const SETTINGS: [(&str, &str); 34] = [
    (
        "solver: http01 to dns01",
        "open_orders::an_order_that_waits_for_a_route_goes_on_by_dns_and_the_ca_is_told_of_no_other_way",
    ),
    (
        "solver: dns01 to http01",
        "open_orders::an_order_that_waits_for_dns_goes_on_by_a_route",
    ),
    (
        "solver: dnsPersist01 to dns01",
        "open_orders::an_order_that_waits_for_a_record_of_the_users_goes_on_by_one_of_ours",
    ),
    (
        "solver: zones",
        "open_orders::a_cname_leads_no_proof_out_of_the_zones_of_its_solver",
    ),
    (
        "dns01.provider",
        "open_orders::another_dns_host_is_taken_by_the_order_that_waits",
    ),
    (
        "dns01.credentials",
        "open_orders::credentials_that_are_named_anew_are_taken_by_the_order_that_waits",
    ),
    (
        "dns01.credentials: what the Secret holds",
        "open_orders::a_key_that_is_corrected_in_its_secret_is_taken_at_the_next_try",
    ),
    (
        "dns01.settings: keyName",
        "open_orders::a_key_name_that_is_corrected_is_taken_by_the_order_that_waits",
    ),
    (
        "dns01.settings: server",
        "open_orders::a_dns_server_that_is_corrected_is_taken_by_the_order_that_waits",
    ),
    (
        "dns01.propagation.check",
        "open_orders::a_propagation_check_that_is_turned_off_is_left_out_by_the_order_that_waits",
    ),
    (
        "dns01.propagation.servers",
        "open_orders::propagation_servers_that_are_corrected_are_asked_by_the_order_that_waits",
    ),
    (
        "dns01.propagation.timeout",
        "open_orders::propagation_servers_that_are_corrected_are_asked_by_the_order_that_waits",
    ),
    (
        "dns01.propagation.wait",
        "open_orders::another_resolver_and_a_shorter_wait_are_taken_by_the_order_that_waits",
    ),
    (
        "solver: resolvers",
        "open_orders::resolvers_of_a_solver_that_are_corrected_are_asked_by_the_order_that_waits",
    ),
    (
        "dns.nameservers",
        "open_orders::another_resolver_and_a_shorter_wait_are_taken_by_the_order_that_waits",
    ),
    (
        "the place of the record: a CNAME",
        "open_orders::a_cname_that_is_corrected_is_followed_by_the_order_that_waits",
    ),
    (
        "http01.route",
        "open_orders::a_path_type_and_a_kind_of_route_that_are_corrected_are_taken_by_orders_that_wait",
    ),
    (
        "http01.ingress.pathType",
        "open_orders::a_path_type_and_a_kind_of_route_that_are_corrected_are_taken_by_orders_that_wait",
    ),
    (
        "http01.ingress.class",
        "open_orders::the_class_of_an_ingress_and_the_gateway_of_a_route_that_are_corrected_are_taken",
    ),
    (
        "http01.ingress.annotations",
        "open_orders::the_class_of_an_ingress_and_the_gateway_of_a_route_that_are_corrected_are_taken",
    ),
    (
        "http01.gateway.parentRefs",
        "open_orders::the_class_of_an_ingress_and_the_gateway_of_a_route_that_are_corrected_are_taken",
    ),
    (
        "http01.selfCheck",
        "open_orders::a_self_check_that_is_turned_off_is_left_out_and_what_was_waited_for_is_told_before",
    ),
    (
        "key-type",
        "open_orders::what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited",
    ),
    (
        "profile",
        "open_orders::what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited",
    ),
    (
        "lifetime",
        "open_orders::what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited",
    ),
    (
        "names",
        "open_orders::what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited",
    ),
    (
        "issuer",
        "open_orders::what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited",
    ),
    (
        "the key that key-rotation keeps",
        "open_orders::a_key_that_is_put_there_to_be_kept_while_an_order_waits_is_used",
    ),
    (
        "key-rotation",
        "open_orders::an_order_for_a_key_that_was_to_be_kept_is_made_again_when_it_need_not_be",
    ),
    (
        "paused, change-window",
        "open_orders::an_order_that_waits_keeps_to_a_pause_and_to_a_change_window",
    ),
    (
        "class, allow",
        "open_orders::an_order_that_waits_goes_when_nobody_may_have_it_any_more",
    ),
    (
        "the issuer's directory",
        "reload::an_issuer_that_moves_to_another_ca_leaves_the_order_there_and_makes_one_here",
    ),
    (
        "the issuer itself",
        "causes::an_order_waits_while_its_issuer_is_not_in_the_config",
    ),
    (
        "the Secret's uid",
        "faults::a_secret_that_is_made_anew_while_the_ca_issues_is_renewed_itself",
    ),
];

/// No field of what a record copies is without a row: a new one does not compile here until somebody has thought of it.
#[test]
fn each_setting_that_an_order_depends_on_is_changed_while_the_order_waits() -> Result<()> {
    use cert_renew_core::config::{Dns01, Http01, Propagation, Route};
    let row = |setting: &str| SETTINGS.iter().any(|(named, _)| named.contains(setting));
    let check = |settings: &[&str]| {
        for setting in settings {
            assert!(row(setting), "{setting} has no row");
        }
    };
    let _ = |dns01: Dns01, propagation: Propagation, http01: Http01, route: Route| {
        let Dns01 {
            provider: _,
            credentials: _,
            settings: _,
            propagation: _,
        } = dns01;
        let Propagation {
            check: _,
            servers: _,
            timeout: _,
            wait: _,
        } = propagation;
        let Http01 {
            route: _,
            self_check: _,
        } = http01;
        match route {
            Route::Shared => {}
            Route::Ingress {
                class: _,
                annotations: _,
                path_type: _,
            } => {}
            Route::Gateway { parents: _ } => {}
        }
    };
    check(&["provider", "credentials", "settings", "propagation"]);
    check(&["check", "servers", "timeout", "wait", "route", "selfCheck"]);
    check(&["class", "annotations", "pathType", "parentRefs"]);
    let mut sources = String::new();
    for module in ["open_orders", "reload", "causes", "faults"] {
        let path = format!("{}/tests/{module}.rs", env!("CARGO_MANIFEST_DIR"));
        sources += &std::fs::read_to_string(path)?;
    }
    for (setting, test) in SETTINGS {
        let name = test.rsplit("::").next().unwrap_or_default();
        ensure!(
            sources.contains(&format!("fn {name}(")),
            "{setting}: {name} does not exist"
        );
    }
    eprintln!(
        "settings that change while an order waits: {} rows",
        SETTINGS.len()
    );
    Ok(())
}

#[tokio::test]
async fn an_order_that_waits_for_a_route_goes_on_by_dns_and_the_ca_is_told_of_no_other_way()
-> Result<()> {
    mended("todns", "HTTP-01", |address| {
        ["http01: {route: shared}".to_owned(), right(address)]
    })
    .await
}

#[tokio::test]
async fn an_order_that_waits_for_dns_goes_on_by_a_route() -> Result<()> {
    mended("tohttp", "DNS-01 by rfc2136: adding", |address| {
        let propagation = Nameserver::propagation(&[address]);
        [
            rfc2136(&address.to_string(), "another-key", &propagation),
            "http01: {route: shared, selfCheck: false}".to_owned(),
        ]
    })
    .await
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

/// A name that does not resolve and whose route is tried first: nothing is put in place anywhere else.
pub(crate) fn unreachable(bench: &Bench) -> String {
    solved("http01: {route: shared}", bench.dns().address())
}

/// The config with which an order that could not be proven can.
pub(crate) fn way_is_open(bench: &Bench, retry: &str) -> String {
    base() + retry + &open(bench)
}

fn open(bench: &Bench) -> String {
    solved(
        "http01: {route: shared, selfCheck: false}",
        bench.dns().address(),
    )
}

#[tokio::test]
async fn a_self_check_that_is_turned_off_is_left_out_and_what_was_waited_for_is_told_before()
-> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let _server = Nameserver::start(
        bench,
        "knot-nobody",
        address,
        &[Zone::new("nobody.example")],
    )
    .await?;
    let config = LONG.to_owned() + &solved("http01: {route: shared}", address);
    let mut operator = operator(bench, None, &config).await?;
    let space = Space::new(bench.client()?, "selfcheck", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "gone.nobody.example")];
    space.tls_secret("waits", None, &annotations).await?;
    let said = "gone.nobody.example does not exist (NXDOMAIN, asked";
    stuck(bench, &operator, &space, "waits", said).await?;
    event(&space, "waits", said).await?;
    operator.configure(&(base() + LONG + &open(bench)))?;
    renewed(&space, "waits", "").await?;
    nothing_was_spent(&space, "waits").await?;
    Ok(())
}

/// What the Secret asks for changes while its order waits; then the way is opened.
#[tokio::test]
async fn what_a_secret_asks_for_by_now_is_what_it_gets_from_an_order_that_waited() -> Result<()> {
    let bench = Bench::shared().await?;
    let rows = [
        ("key-type", "rsa-2048"),
        ("profile", "shortlived"),
        ("lifetime", "30d"),
        ("names", "other.changed.example"),
        ("issuer", "second"),
    ];
    let second = format!(
        "  second: {{directory: \"{}\", caBundle: \"{}\", profile: default, allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]}}\n",
        bench.pebble().directory(),
        bench.ca_bundle().display(),
    );
    let config = |way: &str| second.clone() + &base() + LONG + way;
    let nobody = unreachable(bench).replace("route: shared", "route: shared, selfCheck: true");
    let mut options = options();
    options.config = config(&nobody);
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "changed", operator.namespace()).await?;
    // Nobody listens on port 80 of what these names resolve to.
    for (key, _) in rows {
        let host = format!("{key}.changed.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret(key, None, &annotations).await?;
    }
    for (key, value) in rows {
        stuck(bench, &operator, &space, key, "HTTP-01").await?;
        annotate(&space, key, key, Some(value)).await?;
    }
    eventually(SOON, "each of the orders is given up", async || {
        let given_up = operator.log()?.matches("the order is given up").count();
        ensure!(given_up >= rows.len(), "{given_up} are");
        Ok(())
    })
    .await?;
    operator.configure(&config(&open(bench)))?;
    for (key, value) in rows {
        let secret = renewed(&space, key, "").await?;
        let issued_by = annotation(&secret, "state.cert-renew.io/issued-by").unwrap_or_default();
        let noted = if key == "lifetime" {
            "\"lifetime\":2592000"
        } else {
            value
        };
        ensure!(issued_by.contains(noted), "{key}: {issued_by}");
        let (leaf, names) = (
            leaf(&secret)?,
            |leaf: &cert_renew_core::certificate::Leaf| {
                leaf.names
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(",")
            },
        );
        match key {
            "key-type" => ensure!(
                leaf.key_type.is_some_and(|it| it.as_str() == value),
                "{leaf:?}"
            ),
            "names" => ensure!(names(&leaf) == value, "{leaf:?}"),
            "lifetime" => {
                let days = leaf.lifetime().as_secs() as f64 / 86_400.0;
                ensure!((29.9..=30.1).contains(&days), "{days} days");
            }
            _ => {}
        }
        nothing_was_spent(&space, key).await?;
    }
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_put_there_to_be_kept_while_an_order_waits_is_used() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "kept", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "kept.example"),
        ("key-rotation", "never"),
    ];
    space.tls_secret("waits", None, &annotations).await?;
    stuck(bench, &operator, &space, "waits", "HTTP-01").await?;
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/certificates/rsa-3072.key"
    );
    let key = std::fs::read(path)?;
    let own = cert_renew_core::certificate::key::PrivateKey::from_pem(&key)?.public_key();
    patch(
        &space,
        "waits",
        json!({"data": {"tls.key": ByteString(key)}}),
    )
    .await?;
    operator.configure(&(base() + LONG + &open(bench)))?;
    let secret = renewed(&space, "waits", "").await?;
    assert_eq!(*leaf(&secret)?.public_key, *own);
    Ok(())
}

#[tokio::test]
async fn an_order_that_waits_keeps_to_a_pause_and_to_a_change_window() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "shut", operator.namespace()).await?;
    let valid = test_bench::objects::Age {
        since: 60,
        left: 60,
    };
    for (name, key, value) in [
        ("paused", "paused", "true"),
        ("window", "change-window", "Mon 00:00-00:01 UTC"),
    ] {
        let host = format!("{name}.shut.example");
        let pair = test_bench::objects::pair(&[&host], valid)?;
        let annotations = [("issuer", "pebble"), ("renew-now", "1")];
        space.tls_secret(name, Some(&pair), &annotations).await?;
        stuck(bench, &operator, &space, name, "HTTP-01").await?;
        annotate(&space, name, key, Some(value)).await?;
    }
    operator.configure(&(base() + LONG + &open(bench)))?;
    let before = space.secrets().get("paused").await?;
    // Something else is renewed meanwhile, so that the config is in force and has been acted on.
    let annotations = [("issuer", "pebble"), ("names", "free.shut.example")];
    space.tls_secret("free", None, &annotations).await?;
    renewed(&space, "free", "").await?;
    for name in ["paused", "window"] {
        let now = space.secrets().get(name).await?;
        let host = format!("{name}.shut.example");
        let is_old = leaf(&now)?.names.iter().any(|it| it.to_string() == host)
            && annotation(&now, "state.cert-renew.io/issued-by").is_none();
        ensure!(is_old, "{name} was written");
    }
    let old = data(&before, "tls.crt");
    annotate(&space, "paused", "paused", None).await?;
    renewed(&space, "paused", &old).await?;
    let old = data(&space.secrets().get("window").await?, "tls.crt");
    annotate(&space, "window", "change-window", None).await?;
    renewed(&space, "window", &old).await?;
    Ok(())
}

#[tokio::test]
async fn a_path_type_and_a_kind_of_route_that_are_corrected_are_taken_by_orders_that_wait()
-> Result<()> {
    let bench = Bench::shared().await?;
    let ingress = |path_type: &str| {
        let route = format!(
            "http01: {{route: ingress, ingress: {{pathType: {path_type}}}, selfCheck: false}}"
        );
        solved(&route, bench.dns().address())
    };
    for (tag, after) in [
        ("pathtype", ingress("ImplementationSpecific")),
        ("kind", open(bench)),
    ] {
        let options = OperatorOptions {
            config: base() + LONG + &ingress("Prefix"),
            addons: vec!["rbac/addons/route-ingress.yaml".to_owned()],
            ..options()
        };
        let mut operator = Operator::install(bench, options).await?;
        validate_paths_as_ingress_nginx(bench, operator.namespace()).await?;
        operator.run().await?;
        let space = Space::new(bench.client()?, tag, operator.namespace()).await?;
        let host = format!("{tag}.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret("waits", None, &annotations).await?;
        eventually(SOON, "it is refused", async || {
            let secret = space.secrets().get("waits").await?;
            let error = annotation(&secret, "state.cert-renew.io/last-error");
            let error = error.context("not yet")?;
            ensure!(error.contains("cannot be used with pathType"), "{error}");
            Ok(())
        })
        .await?;
        operator.configure(&(base() + LONG + &after))?;
        renewed(&space, "waits", "").await?;
        no_record_is_left(bench, &operator).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_ca_has_refused_for_good_is_not_tried_until_a_setting_changes() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = PebbleOptions {
        name: "pebble-settings".into(),
        ..PebbleOptions::default()
    };
    let ca = bench.start_pebble(&options).await?;
    let operator = operator(bench, Some(&ca), &(LONG.to_owned() + &open(bench))).await?;
    let space = Space::new(bench.client()?, "woken", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "woken.example"),
        ("profile", "nobody-has-this"),
    ];
    space.tls_secret("woken", None, &annotations).await?;
    event(&space, "woken", "nobody-has-this").await?;
    annotate(&space, "woken", "profile", Some("default")).await?;
    renewed(&space, "woken", "").await?;
    Ok(())
}

/// Changes the record of the only order that is open.
pub(crate) async fn tamper(
    bench: &Bench,
    operator: &Operator<'_>,
    change: impl Fn(&mut Value),
) -> Result<()> {
    let records: Api<Secret> = Api::namespaced(bench.client()?, operator.namespace());
    let labels = ListParams::default().labels("cert-renew.io/order-record");
    let found = records.list(&labels).await?.items;
    let record = found.first().context("no order is open")?;
    let mut order: Value = serde_json::from_str(&data(record, "order.json"))?;
    change(&mut order);
    let name = record.metadata.name.as_deref().unwrap_or_default();
    let order = ByteString(order.to_string().into_bytes());
    let body = Patch::Merge(json!({"data": {"order.json": order}}));
    records.patch(name, &PatchParams::default(), &body).await?;
    Ok(())
}

#[tokio::test]
async fn an_order_that_cannot_be_read_is_given_up_after_a_few_tries() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(SHORT.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "unread", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "unread.example")];
    space.tls_secret("unread", None, &annotations).await?;
    stuck(bench, &operator, &space, "unread", "HTTP-01").await?;
    // An account is valid too, and has no certificate.
    tamper(bench, &operator, |order| {
        order["url"] = order["account"].clone();
    })
    .await?;
    operator.configure(&(base() + SHORT + &open(bench)))?;
    renewed(&space, "unread", "").await?;
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

#[tokio::test]
async fn a_record_of_a_later_version_does_not_block_its_secret() -> Result<()> {
    let bench = Bench::shared().await?;
    for (name, change) in [
        ("later", json!({"version": 2, "names": {"dns": ["x"]}})),
        (
            "newer",
            json!({"txt": [{"solver": {"quantum": true}}], "routes": [7]}),
        ),
    ] {
        let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
        let space = Space::new(bench.client()?, name, operator.namespace()).await?;
        let host = format!("{name}.version.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret(name, None, &annotations).await?;
        stuck(bench, &operator, &space, name, "HTTP-01").await?;
        tamper(bench, &operator, |order| {
            for (key, value) in change.as_object().into_iter().flatten() {
                order[key] = value.clone();
            }
        })
        .await?;
        operator.configure(&(base() + LONG + &open(bench)))?;
        renewed(&space, name, "").await?;
        no_record_is_left(bench, &operator).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_account_that_the_ca_has_lost_is_registered_again_in_the_same_try() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = PebbleOptions {
        name: "pebble-lost".into(),
        ..PebbleOptions::default()
    };
    let mut ca = bench.start_pebble(&options).await?;
    let operator = operator(bench, Some(&ca), &(LONG.to_owned() + &open(bench))).await?;
    let space = Space::new(bench.client()?, "lost", operator.namespace()).await?;
    for name in ["before", "after"] {
        let host = format!("{name}.lost.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret(name, None, &annotations).await?;
        renewed(&space, name, "").await?;
        ca.restart().await?;
    }
    let failed = space.events("after").await?;
    ensure!(
        !failed.iter().any(|it| it.contains("RenewalFailed")),
        "{failed:?}"
    );
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_written_or_proven_costs_no_order() -> Result<()> {
    let bench = Bench::shared().await?;
    let solver = "{zones: [proven.example], http01: {route: shared, selfCheck: false}}";
    let config = LONG.to_owned() + &solved(solver, bench.dns().address());
    let operator = operator(bench, None, &config).await?;
    let space = Space::new(bench.client()?, "noorder", operator.namespace()).await?;
    let issuer = [("issuer", "pebble")];
    let old = |name: &str| test_bench::objects::pair(&[name], test_bench::objects::OLD);
    space
        .tls_secret("fixed", Some(&old("fixed.proven.example")?), &[])
        .await?;
    patch(&space, "fixed", json!({"immutable": true})).await?;
    annotate(&space, "fixed", "issuer", Some("pebble")).await?;
    let class = operator.namespace();
    annotate(&space, "fixed", "class", Some(class)).await?;
    space
        .tls_secret("score", Some(&old("a_b.proven.example")?), &issuer)
        .await?;
    for (name, said) in [("fixed", "immutable"), ("score", "underscore")] {
        event(&space, name, said).await?;
    }
    ensure!(
        !operator.log()?.contains("\"ordered\""),
        "an order was made"
    );
    Ok(())
}

#[tokio::test]
async fn a_secret_that_is_emptied_is_renewed_for_the_names_that_it_had() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = operator(bench, None, &(LONG.to_owned() + &open(bench))).await?;
    let space = Space::new(bench.client()?, "emptied", operator.namespace()).await?;
    let old = test_bench::objects::pair(&["emptied.example"], test_bench::objects::OLD)?;
    space
        .tls_secret("emptied", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "emptied", &old.certificate).await?;
    patch(
        &space,
        "emptied",
        json!({"data": {"tls.crt": "", "tls.key": ""}}),
    )
    .await?;
    eventually(SOON, "it has a certificate again", async || {
        let secret = space.secrets().get("emptied").await?;
        ensure!(!data(&secret, "tls.crt").is_empty(), "it is empty");
        Ok(())
    })
    .await?;
    let names = leaf(&space.secrets().get("emptied").await?)?.names;
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].to_string(), "emptied.example");
    Ok(())
}

//! Routes of challenges that are corrected while an order waits, and orders that change between a route and DNS.

use std::time::{Duration, Instant};

use kube::Api;
use kube::api::ListParams;
use kube::core::DynamicObject;
use serde_json::Value;
use test_bench::objects::Space;
use test_bench::{
    Bench, Context as _, Nameserver, Operator, OperatorOptions, Result, Zone, ensure, eventually,
};

use super::{LONG, base, mended, nothing_was_spent, open, operator, right, solved, stuck};
use crate::acme_operator::event;
use crate::command::cert_renew;
use crate::dns01::{no_record_is_left, rfc2136};
use crate::renewal::{SOON, annotation, options, renewed};
use crate::routes::validate_paths_as_ingress_nginx;

/// By then what an order waits for is told.
const A_MINUTE: Duration = Duration::from_secs(60);

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
            rfc2136(address.to_string(), "another-key", &propagation),
            "http01: {route: shared, selfCheck: false}".to_owned(),
        ]
    })
    .await
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
    let asked = Instant::now();
    stuck(bench, &operator, &space, "waits", said).await?;
    let told = event(&space, "waits", "RenewalWaits").await?;
    ensure!(told.contains(said), "{told}");
    let status = ["status", "-n", &space.name, "-o", "json"];
    let status = cert_renew(&status, Some(bench.kubeconfig()))?;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure!(status.contains(said), "{status}");
    // The check goes on for ten minutes.
    let took = asked.elapsed();
    ensure!(took < A_MINUTE, "it was told after {took:?}");
    operator.configure(&(base() + LONG + &open(bench)))?;
    renewed(&space, "waits", "").await?;
    nothing_was_spent(&space, "waits").await?;
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

//! An order under way is carried on with what is set now: whatever is mended while it waits is seen at once, and what it
//! cannot be carried on with makes it begin again.

mod dns;
mod issuer;
mod routes;
mod secret;
mod servers;
mod settings;
mod unusable;

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use test_bench::objects::Space;
use test_bench::{
    Bench, Context as _, Nameserver, Operator, OperatorOptions, Pebble, Result, TSIG_KEY,
    TSIG_NAME, Zone, ensure, eventually,
};

use crate::dns01::{await_values, no_record_is_left, pebble, rfc2136};
use crate::renewal::{annotation, data, options, renewed};

/// Longer than any of these tests: who succeeds has not waited for it.
const LONG: &str = "retry: {base: 1h, factor: 1, max: 1h}\n";
/// For what nobody tells us of, such as a change in DNS.
const SHORT: &str = "retry: {base: 2s, factor: 1, max: 2s}\n";
/// A try that finds nobody at a DNS server goes on for a while.
const PATIENTLY: Duration = Duration::from_secs(150);

fn base() -> String {
    options().config
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
    operator.credentials("dns", "secret", TSIG_KEY).await?;
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
        address.to_string(),
        TSIG_NAME,
        &Nameserver::propagation(&[address]),
    )
}

/// A name that does not resolve and whose route is tried first: nothing is put in place anywhere else.
pub(crate) fn unreachable(bench: &Bench) -> String {
    solved("http01: {route: shared}", bench.dns().address())
}

/// The config with which an order that could not be proven can.
pub(crate) fn way_is_open(bench: &Bench, retry: &str) -> String {
    base() + retry + &open(bench)
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

fn open(bench: &Bench) -> String {
    solved(
        "http01: {route: shared, selfCheck: false}",
        bench.dns().address(),
    )
}

//! Orders that wait without end: for a route that leads nowhere, and for DNS records that nobody sets.

use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ListParams};
use serde_json::Value;
use test_bench::Result;
use test_bench::objects::Space;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::attack::PAUSE;
use super::tally::Tally;
use crate::renewal::data;

/// How names are proven: those of two zones of the tenant's not before the tenant has done something, all others at
/// once.
pub(super) const SOLVERS: &str = "solvers:
  - zones: [w.x]
    http01: {route: shared}
  - zones: [r.x]
    dnsPersist01: {experimental: true}
  - http01: {route: shared, selfCheck: false}
";
/// The zones without a route, and without a record.
const UNROUTED: &str = "w.x";
const UNRECORDED: &str = "r.x";

/// Orders that wait for a route. Each holds a place for three quarters of the time, and a namespace has sixteen: what else
/// the tenant wants renewed gets the rest.
const ROUTES: usize = 16;
/// Secrets whose orders wait for records, made one after the other; open orders of one namespace may have 12,500 names, so
/// that most of them get none.
const RECORDS: usize = 2_000;
/// Names of each: with 148 such orders the namespace has no room for another, and some for orders of single names.
const NAMES: usize = 84;

/// Makes all of them; those that wait for records are made for as long as the set lives.
pub(super) async fn begin(space: &Space, tasks: &mut JoinSet<()>, tally: &Tally) -> Result<()> {
    for number in 0..ROUTES {
        make(space, "a-route", number, UNROUTED).await?;
    }
    let space = space.clone();
    let made = tally.of("Secrets whose orders wait for records");
    tasks.spawn(async move {
        for number in 0..RECORDS {
            let is_made = make(&space, "record", number, UNRECORDED).await.is_ok();
            made.add_if(is_made);
            sleep(PAUSE).await;
        }
    });
    Ok(())
}

/// They come after the Secrets whose DNS is slow, and those for a route first: renewals of equal urgency go by their names.
async fn make(space: &Space, what: &str, number: usize, zone: &str) -> Result<()> {
    let names = (0..NAMES).map(|name| format!("{}.{zone}", number * NAMES + name));
    let names: Vec<String> = names.collect();
    let annotations = [("issuer", "pebble"), ("names", &*names.join(","))];
    let secret = format!("waits-{what}-{number}");
    space.tls_secret(&secret, None, &annotations).await?;
    Ok(())
}

/// How many orders of the namespace are open for names without a route, and for names without a record.
pub(super) async fn open(client: Client, operator: &str, namespace: &str) -> Result<[usize; 2]> {
    let records: Api<Secret> = Api::namespaced(client, operator);
    let labels = ListParams::default().labels("cert-renew.io/order-record");
    let mut open = [0; 2];
    for record in records.list(&labels).await?.items {
        let order: Value = serde_json::from_str(&data(&record, "order.json"))?;
        let name = order["names"][0].as_str().unwrap_or_default();
        if order["namespace"].as_str() == Some(namespace) {
            for (count, zone) in open.iter_mut().zip([UNROUTED, UNRECORDED]) {
                *count += usize::from(name.ends_with(&format!(".{zone}")));
            }
        }
    }
    Ok(open)
}

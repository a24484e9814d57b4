//! What somebody who may write in one namespace can do to others: docs/threat-model.md names these tests.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::json;
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{Bench, Operator, Result, ensure, eventually, throughout};

use crate::renewal::{SOON, options, renewed, rolled_out};

/// Names are given by the config alone: not by the certificate that somebody puts into a Secret, nor by an annotation.
#[tokio::test]
async fn names_of_others_are_refused_before_the_ca_is_asked() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.allow = "[{namespaces: [\"tenant-a-*\"], names: [\"**.a.example\"]}, \
                      {namespaces: [\"tenant-b-*\"], names: [\"**.b.example\"]}]"
        .into();
    let operator = Operator::start(bench, options).await?;
    let a = Space::new(bench.client()?, "tenant-a", operator.namespace()).await?;
    let b = Space::new(bench.client()?, "tenant-b", operator.namespace()).await?;
    let stolen = pair(&["shop.a.example"], OLD)?;
    b.tls_secret("by-certificate", Some(&stolen), &[("issuer", "pebble")])
        .await?;
    let mixed = [
        ("issuer", "pebble"),
        ("names", "www.b.example, shop.a.example"),
    ];
    b.tls_secret("by-annotation", None, &mixed).await?;
    for name in ["by-certificate", "by-annotation"] {
        eventually(SOON, "it is refused", async || {
            let events = b.events(name).await?.join("\n");
            ensure!(
                events.contains("shop.a.example") && events.contains("allow"),
                "{events}"
            );
            Ok(())
        })
        .await?;
    }
    // The owner of the name has it all the while.
    let own = pair(&["shop.a.example"], OLD)?;
    a.tls_secret("own", Some(&own), &[("issuer", "pebble")])
        .await?;
    renewed(&a, "own", &own.certificate).await?;
    rolled_out(&a, "own").await?;
    let orders = operator.log()?.matches("\"message\":\"ordered\"").count();
    assert_eq!(orders, 1, "the owner's");
    Ok(())
}

#[tokio::test]
async fn what_a_user_writes_restarts_nothing_elsewhere() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let victim = Space::new(bench.client()?, "victim", operator.namespace()).await?;
    let user = Space::new(bench.client()?, "user", operator.namespace()).await?;
    // The same names everywhere: of the Secret, and of the workload.
    victim
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    user.workload("Deployment", "own", Reference::None, "-")
        .await?;
    let old = pair(&["user.example"], OLD)?;
    let workloads = ("workloads", "deployment/web, deployment/own");
    user.tls_secret("tls", Some(&old), &[("issuer", "pebble"), workloads])
        .await?;
    renewed(&user, "tls", &old.certificate).await?;
    eventually(SOON, "the user's own workload rolls", async || {
        ensure!(user.generation("Deployment", "own").await? == 2);
        Ok(())
    })
    .await?;
    throughout(
        Duration::from_secs(2),
        "the other one does not",
        async || {
            ensure!(victim.generation("Deployment", "web").await? == 1);
            Ok(())
        },
    )
    .await?;
    // A path out of the namespace is no workload.
    let path = json!({"metadata": {"annotations": {
        "cert-renew.io/workloads": format!("deployment/../../{}/deployments/web", victim.name),
    }}});
    user.secrets()
        .patch("tls", &PatchParams::default(), &Patch::Merge(path))
        .await?;
    eventually(SOON, "it is said", async || {
        let events = user.events("tls").await?.join("\n");
        ensure!(events.contains("expected kind/name"), "{events}");
        Ok(())
    })
    .await?;
    assert_eq!(victim.generation("Deployment", "web").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_huge_annotation_makes_a_short_line() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "flood", operator.namespace()).await?;
    let huge = "\u{1b}[31mx".repeat(30_000);
    let annotations = [
        ("issuer", "pebble"),
        ("profile", &*huge),
        ("unheard-of", &huge[..1_000]),
    ];
    space.tls_secret("tls", None, &annotations).await?;
    eventually(SOON, "it is said", async || {
        let events = space.events("tls").await?.join("\n");
        ensure!(events.contains("cert-renew.io/profile"), "{events}");
        ensure!(
            events.len() < 8_000 && !events.contains('\u{1b}'),
            "{events}"
        );
        Ok(())
    })
    .await?;
    let longest = operator.log()?.lines().map(str::len).max();
    ensure!(longest < Some(8_000), "a line of {longest:?} bytes");
    ensure!(!operator.metrics().await?.contains('\u{1b}'));
    Ok(())
}

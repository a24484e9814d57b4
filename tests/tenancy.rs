//! What somebody who may write in one namespace can do to others: docs/threat-model-tests.md names these tests.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use test_bench::objects::{FRESH, OLD, Pair, Reference, Space, pair};
use test_bench::{Bench, Operator, Result, ensure, eventually, throughout};

use crate::renewal::{SOON, annotation, options, renewed, rolled_out};

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
    user.merge("tls", path).await?;
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

/// A user who may make namespaces may give them any name; labels are for those with a right of their own.
#[tokio::test]
async fn names_go_by_the_labels_of_a_namespace() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.allow =
        "[{namespaceSelector: {matchLabels: {example.com/may-issue: \"true\"}}, names: [\"**.example\"]}]"
            .into();
    options.config += "retry: {base: 1s, factor: 1, max: 1s}\n";
    let mut rightless = Operator::start(bench, options.clone()).await?;
    let space = Space::new(bench.client()?, "labelled", rightless.namespace()).await?;
    let old = pair(&["labelled.example"], OLD)?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    let told = async |space: &Space, said: &str| {
        eventually(SOON, said, async || {
            let events = space.events("tls").await?.join("\n");
            ensure!(events.contains(said), "{events}");
            Ok(())
        })
        .await
    };
    // Without the right nobody has anything, and it is said which one it is.
    told(&space, "rbac/addons/namespace-labels.yaml").await?;
    let log = rightless.log()?;
    let missed = log.lines().find(|line| line.contains("a right is missing"));
    ensure!(
        missed.is_some_and(|line| line.contains("namespaces")),
        "{log}"
    );
    rightless.kill();

    options
        .addons
        .push("rbac/addons/namespace-labels.yaml".into());
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "labelled", operator.namespace()).await?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    told(&space, "NotAllowed").await?;
    ensure!(!operator.log()?.contains("\"message\":\"ordered\""));
    let namespaces: Api<Namespace> = Api::all(bench.client()?);
    let label = async |value: Option<&str>| {
        let labels = json!({"metadata": {"labels": {"example.com/may-issue": value}}});
        let patch = Patch::Merge(labels);
        namespaces
            .patch(&space.name, &PatchParams::default(), &patch)
            .await
    };
    label(Some("true")).await?;
    renewed(&space, "tls", &old.certificate).await?;
    rolled_out(&space, "tls").await?;
    // Taken back, it holds for the next one, and for one that is not due it is told when it is written.
    label(None).await?;
    let fresh = pair(&["young.labelled.example"], FRESH)?;
    space
        .tls_secret("young", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    eventually(
        SOON,
        "it is told that the names are not granted",
        async || {
            let young = space.secrets().get("young").await?;
            let problems = annotation(&young, "state.cert-renew.io/problems").unwrap_or_default();
            ensure!(problems.contains("issuers.pebble.allow"), "{problems:?}");
            Ok(())
        },
    )
    .await?;
    space
        .tls_secret("later", Some(&old), &[("issuer", "pebble")])
        .await?;
    eventually(SOON, "the next one is refused", async || {
        let events = space.events("later").await?.join("\n");
        ensure!(events.contains("whose labels count too"), "{events}");
        Ok(())
    })
    .await?;
    let orders = operator.log()?.matches("\"message\":\"ordered\"").count();
    assert_eq!(orders, 1);
    Ok(())
}

/// A namespace without the label asks for somebody else's names, by annotation and by showing the certificate, again and
/// again: it is refused, and the owner's renewal neither waits for it nor follows it.
#[tokio::test]
async fn what_is_refused_to_one_namespace_delays_no_other_that_has_the_name() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.allow =
        "[{namespaceSelector: {matchLabels: {example.com/may-issue: \"true\"}}, names: [\"**.example\"]}]"
            .into();
    options
        .addons
        .push("rbac/addons/namespace-labels.yaml".into());
    let operator = Operator::start(bench, options).await?;
    // The other one comes first in every order.
    let other = Space::new(bench.client()?, "aaa-other", operator.namespace()).await?;
    let owner = Space::new(bench.client()?, "owner", operator.namespace()).await?;
    let namespaces: Api<Namespace> = Api::all(bench.client()?);
    let label = json!({"metadata": {"labels": {"example.com/may-issue": "true"}}});
    namespaces
        .patch(&owner.name, &PatchParams::default(), &Patch::Merge(label))
        .await?;
    let old = pair(&["www.charged.example"], OLD)?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "www.charged.example"),
        ("renew-now", "0"),
    ];
    other.tls_secret("asks", None, &annotations).await?;
    let refused = || -> Result<usize> {
        let failed = "\"message\":\"the renewal failed\"";
        Ok(operator.log()?.matches(failed).count())
    };
    for time in 1..=3 {
        eventually(SOON, &format!("it is refused {time} times"), async || {
            let refused = refused()?;
            ensure!(refused == time, "{refused} times");
            Ok(())
        })
        .await?;
        if time < 3 {
            other
                .annotate("asks", "renew-now", time.to_string())
                .await?;
        }
    }
    let shown = Pair {
        key: pair(&["x.example"], OLD)?.key,
        ..old.clone()
    };
    other
        .tls_secret("shows", Some(&shown), &[("issuer", "pebble")])
        .await?;
    let since = std::time::Instant::now();
    owner
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&owner, "tls", &old.certificate).await?;
    let took = since.elapsed();
    ensure!(took < Duration::from_secs(25), "it followed for {took:?}");
    // Our own writes of the error brought no further try, and nothing of it is in the ledger.
    assert_eq!(
        refused()?,
        4,
        "one for each value, and one for the certificate"
    );
    let maps: Api<ConfigMap> = Api::namespaced(bench.client()?, operator.namespace());
    let ledger = maps.get_opt("cert-renew-ledger").await?;
    let entries = ledger.and_then(|map| map.data).unwrap_or_default();
    ensure!(
        entries.values().all(|entry| !entry.contains("failures")),
        "{entries:?}"
    );
    Ok(())
}

/// A user holds the DNS of the names that their Secrets ask for; it leads the self-check no further than it would lead
/// the CA.
#[tokio::test]
async fn dns_leads_the_self_check_to_no_metadata_server() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    let dns = bench.dns().address();
    options.config +=
        &format!("solvers: [{{http01: {{route: shared}}}}]\ndns: {{nameservers: [\"{dns}\"]}}\n");
    let host = "metadata.tenancy.example";
    let arguments = json!({"host": host, "addresses": ["169.254.169.254"]});
    bench.dns().set("add-a", &arguments).await?;
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "led", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", host)];
    space.tls_secret("tls", None, &annotations).await?;
    eventually(SOON, "it is said", async || {
        let log = operator.log()?;
        let said = "is, or stands for, a loopback, link-local or metadata address";
        ensure!(log.contains(said), "{log}");
        Ok(())
    })
    .await
}

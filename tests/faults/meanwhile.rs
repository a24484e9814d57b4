//! What users and other programs do to a Secret while the CA issues its certificate.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, OLD, Space, pair};
use test_bench::{Bench, Fault, Operator, Result, ensure, eventually, throughout};

use super::{QUIET, SOONER, action, edit, finalizes, of_cert_manager, once, stays_as_it_was};
use crate::renewal::{SOON, data, leaf, options, renewed, rolled_out};
use crate::scene::{End, SECRET, Scene, answered};

/// A scene whose user does something while the CA issues.
async fn interrupted<F>(bench: &'static Bench, what: F) -> Result<Scene<'static>>
where
    F: AsyncFn(Client, &str) -> Result<()> + Send + Sync + 'static,
{
    let mut scene = Scene::set(bench, SOONER).await?;
    let namespace = scene.space.name.clone();
    let done = action(bench, async move |client| what(client, &namespace).await);
    let done = once(&scene, finalizes, Fault::Meanwhile(done));
    scene.operator.run().await?;
    eventually(SOON, "the CA is about to issue", async || {
        ensure!(done.load(Ordering::SeqCst), "it is not");
        Ok(())
    })
    .await?;
    Ok(scene)
}

async fn no_order_is_left(scene: &Scene<'_>) -> Result<()> {
    eventually(SOON, "no order record is left", async || {
        let left = scene.records().await?;
        ensure!(left == 0, "{left} are");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_secret_that_is_deleted_while_the_ca_issues_does_not_come_back() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        let secrets: Api<Secret> = Api::namespaced(client, namespace);
        secrets.delete(SECRET, &DeleteParams::default()).await?;
        Ok(())
    })
    .await?;
    no_order_is_left(&scene).await?;
    throughout(QUIET, "it stays away", async || {
        let secret = scene.space.secrets().get_opt(SECRET).await?;
        ensure!(secret.is_none(), "it is back");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_secret_that_is_made_anew_while_the_ca_issues_is_renewed_itself() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        let secrets: Api<Secret> = Api::namespaced(client, namespace);
        let mut secret = secrets.get(SECRET).await?;
        secrets.delete(SECRET, &DeleteParams::default()).await?;
        secret.metadata.uid = None;
        secret.metadata.resource_version = None;
        secret.metadata.managed_fields = None;
        secrets.create(&PostParams::default(), &secret).await?;
        Ok(())
    })
    .await?;
    let end = scene.end().await?;
    // The certificate that was under way may serve it, or another one is issued; never a third.
    ensure!(end.certificates <= 2, "{end:?}");
    // Two are remembered, for the CA counts them; those of one second as one.
    let remembered: Vec<&String> = end.failures.values().collect();
    ensure!(
        remembered.len() < end.certificates
            && remembered
                .iter()
                .all(|it| it.starts_with("{\"scheduled\":[")),
        "{end:?}"
    );
    let expected = End {
        certificates: end.certificates,
        failures: end.failures.clone(),
        ..End::undisturbed()
    };
    assert_eq!(end, expected);
    Ok(())
}

#[tokio::test]
async fn a_secret_that_is_no_longer_annotated_is_not_written() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        let none = json!({"metadata": {"annotations": null}});
        edit(client, namespace, none).await
    })
    .await?;
    no_order_is_left(&scene).await?;
    stays_as_it_was(&scene).await
}

#[tokio::test]
async fn names_that_change_while_the_ca_issues_are_what_is_written() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        let names =
            json!({"metadata": {"annotations": {"cert-renew.io/names": "changed.example"}}});
        edit(client, namespace, names).await
    })
    .await?;
    let secret = eventually(SOON, "it holds the new name", async || {
        let secret = scene.space.secrets().get(SECRET).await?;
        let names: Vec<String> = leaf(&secret)?
            .names
            .iter()
            .map(ToString::to_string)
            .collect();
        ensure!(names == ["changed.example"], "{names:?}");
        Ok(secret)
    })
    .await?;
    ensure!(
        data(&secret, "tls.crt") != scene.old.certificate,
        "it is the old one"
    );
    rolled_out(&scene.space, SECRET).await?;
    no_order_is_left(&scene).await
}

#[tokio::test]
async fn a_pause_while_the_ca_issues_is_kept_to_and_then_goes_on() -> Result<()> {
    let bench = Bench::shared().await?;
    let paused =
        |value: Value| json!({"metadata": {"annotations": {"cert-renew.io/paused": value}}});
    let scene = interrupted(bench, async move |client, namespace| {
        edit(client, namespace, paused(json!("true"))).await
    })
    .await?;
    stays_as_it_was(&scene).await?;
    edit(bench.client()?, &scene.space.name, paused(Value::Null)).await?;
    let end = scene.end().await?;
    ensure!(end.certificates <= 2, "{end:?}");
    Ok(())
}

#[tokio::test]
async fn a_secret_that_is_made_immutable_is_said_and_stays() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        edit(client, namespace, json!({"immutable": true})).await
    })
    .await?;
    eventually(SOON, "an Event says so", async || {
        let events = scene.space.events(SECRET).await?;
        ensure!(
            events.iter().any(|event| event.contains("immutable")),
            "{events:?}"
        );
        Ok(())
    })
    .await?;
    stays_as_it_was(&scene).await
}

#[tokio::test]
async fn a_namespace_that_goes_while_the_ca_issues_leaves_nothing_behind() -> Result<()> {
    let bench = Bench::shared().await?;
    let scene = interrupted(bench, async |client, namespace| {
        let namespaces: Api<Namespace> = Api::all(client);
        namespaces
            .delete(namespace, &DeleteParams::default())
            .await?;
        Ok(())
    })
    .await?;
    no_order_is_left(&scene).await?;
    ensure!(
        answered(&scene.proxies, "/order-plz", 201) == 1,
        "it is ordered again"
    );
    Ok(())
}

#[tokio::test]
async fn a_secret_that_another_program_keeps_is_left_to_it() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "kept", operator.namespace()).await?;
    let old = pair(&["kept.example"], OLD)?;
    // It is known from the first sight on, and not only when a renewal is due.
    of_cert_manager(&space, "young", &pair(&["kept.example"], FRESH)?).await?;
    eventually(SOON, "it is blocked", async || {
        let path = format!("/api/certificates?namespace={}&name=young", space.name);
        let report: Value = serde_json::from_str(&operator.ask(&path).await?)?;
        let row = &report["certificates"][0];
        ensure!(
            row["state"] == "blocked" && row["renewsWhy"] == "OwnedByAnother",
            "{report:#}"
        );
        Ok(())
    })
    .await?;
    let mut secret = of_cert_manager(&space, SECRET, &old).await?;
    // A leftover of a copy, not of cert-manager.
    secret.metadata.name = Some("copied".into());
    secret.metadata.managed_fields = None;
    space
        .secrets()
        .create(&PostParams::default(), &secret)
        .await?;
    renewed(&space, "copied", &old.certificate).await?;
    eventually(SOON, "an Event says who keeps it", async || {
        let events = space.events(SECRET).await?;
        let said =
            |event: &String| event.starts_with("OwnedByAnother") && event.contains("cert-manager");
        ensure!(events.iter().any(said), "{events:?}");
        Ok(())
    })
    .await?;
    let stuck = format!(
        "cert_renew_certificate_stuck{{namespace=\"{}\",secret=\"{SECRET}\",issuer=\"pebble\",why=\"other_owner\"}} 1",
        space.name
    );
    eventually(SOON, "the metrics say so too", async || {
        ensure!(operator.metrics().await?.contains(&stuck), "not yet");
        Ok(())
    })
    .await?;
    throughout(QUIET, "it is not renewed", async || {
        let secret = space.secrets().get(SECRET).await?;
        ensure!(data(&secret, "tls.crt") == old.certificate, "it is");
        Ok(())
    })
    .await?;
    // Somebody else renews it, and we roll: that is what `external` is for.
    let external = json!({"metadata": {"annotations": {"cert-renew.io/issuer": "external"}}});
    edit(bench.client()?, &space.name, external).await?;
    rolled_out(&space, SECRET).await?;
    // Its workloads may have had the pair all along: then nothing is waited for before the watch tells of the change.
    eventually(SOON, "it is nobody's to decide any more", async || {
        ensure!(!operator.metrics().await?.contains(&stuck), "it still is");
        Ok(())
    })
    .await
}

/// `kubectl replace --force` of a Secret by one of another type: the two come by two watches, in any order.
#[tokio::test]
async fn a_secret_that_is_replaced_by_one_of_another_type_is_not_forgotten() -> Result<()> {
    const SECRETS: usize = 60;
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "replaced", operator.namespace()).await?;
    let fresh = pair(&["replaced.example"], FRESH)?;
    let external = [("issuer", "external")];
    let opaque = async |name: String| {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name),
                annotations: Some(space.annotations(&external)),
                labels: Some([("cert-renew.io/managed".into(), "true".into())].into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([
                (
                    "tls.crt".into(),
                    ByteString(fresh.certificate.clone().into()),
                ),
                ("tls.key".into(), ByteString(fresh.key.clone().into())),
            ])),
            ..Secret::default()
        };
        space
            .secrets()
            .create(&PostParams::default(), &secret)
            .await
    };
    let known = async |expected: usize| {
        eventually(SOON, "all are known", async || {
            let metrics = operator.metrics().await?;
            let series = "cert_renew_certificate_not_after_timestamp_seconds{";
            let of_space = format!("namespace=\"{}\"", space.name);
            let count = metrics
                .lines()
                .filter(|line| line.starts_with(series) && line.contains(&of_space));
            let count = count.count();
            ensure!(count == expected, "{count} of {expected}");
            Ok(())
        })
        .await
    };
    for number in 0..SECRETS {
        opaque(format!("tls-{number}")).await?;
    }
    known(SECRETS).await?;
    // There and back again, many at once: each watch is once the one that tells of the deletion, and now and then it is
    // the later one to tell.
    for there in [true, false] {
        let replaced = stream::iter(0..SECRETS).map(async |number| {
            let name = format!("tls-{number}");
            { space.secrets() }
                .delete(&name, &DeleteParams::default())
                .await?;
            if there {
                space.tls_secret(&name, Some(&fresh), &external).await?;
            } else {
                opaque(name).await?;
            }
            Ok::<_, test_bench::Error>(())
        });
        replaced
            .buffer_unordered(SECRETS)
            .try_collect::<()>()
            .await?;
        // A watch tells in order: with these, all before them has been told.
        { space.tls_secret("last-tls", Some(&fresh), &external) }.await?;
        opaque("last-opaque".into()).await?;
        known(SECRETS + 2).await?;
        for name in ["last-tls", "last-opaque"] {
            { space.secrets() }
                .delete(name, &DeleteParams::default())
                .await?;
        }
    }
    Ok(())
}

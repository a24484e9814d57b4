//! A new leaf reaches the workloads: once, only with a new certificate, never with a bad one, whatever happens in between.

mod halts;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use kube::api::DeleteParams;
use serde_json::json;
use test_bench::objects::{EXPIRED, FRESH, OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, Result, ensure, eventually, throughout};

use crate::renewal::{SOON, annotation, data, leaf, options, renewed, rolled_out};

const KINDS: [&str; 5] = [
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicationController",
    "ReplicaSet",
];
/// Long enough for a rollout that should not be to show itself: one takes less than a second.
pub(crate) const QUIET: Duration = Duration::from_secs(3);

/// Waits until the operator says in an Event on the object what `said` says; the whole Event.
pub(crate) async fn told(space: &Space, name: &str, said: &str) -> Result<String> {
    let what = format!("an Event on {name} says {said}");
    eventually(SOON, &what, async || {
        let events = space.events(name).await?;
        let found = events.iter().find(|event| event.contains(said));
        found.cloned().with_context(|| format!("{events:?}"))
    })
    .await
}

/// The ready pods of a workload, and the leaf that their template annotation names.
async fn pods(space: &Space, app: &str, secret: &str) -> Result<Vec<(bool, Option<String>)>> {
    let api: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(space.client.clone(), &space.name);
    let list = api
        .list(&kube::api::ListParams::default().labels(&format!("app={app}")))
        .await?;
    let key = format!("state.cert-renew.io/leaf.{secret}");
    let see = |pod: k8s_openapi::api::core::v1::Pod| {
        let conditions = pod
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        let ready = conditions
            .iter()
            .any(|it| it.type_ == "Ready" && it.status == "True");
        (
            ready,
            pod.metadata
                .annotations
                .and_then(|annotations| Some(annotations.get(&key)?.split('.').next()?.to_owned())),
        )
    };
    Ok(list.items.into_iter().map(see).collect())
}

#[tokio::test]
async fn every_kind_rolls_once_for_every_form_of_reference() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.addons.push("rbac/addons/eviction.yaml".into());
    options.config = "rollout: {settle: 1s, perWorkloadMinInterval: 0s, perNamespace: 8}\n".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "forms", operator.namespace()).await?;
    let old = pair(&["forms.example"], FRESH)?;
    space
        .tls_secret("forms", Some(&old), &[("issuer", "external")])
        .await?;
    let mut names = Vec::new();
    for kind in KINDS {
        for reference in Reference::ALL {
            let name = format!("{kind}-{reference:?}").to_lowercase();
            space.workload(kind, &name, reference, "forms").await?;
            names.push((kind, name));
        }
        let name = format!("{}-none", kind.to_lowercase());
        space
            .workload(kind, &name, Reference::None, "forms")
            .await?;
    }
    rolled_out(&space, "forms").await?;
    space
        .put("forms", &pair(&["forms.example"], FRESH)?)
        .await?;
    let secret = rolled_out(&space, "forms").await?;
    let fingerprint = leaf(&secret)?.fingerprint.to_string();
    for (kind, name) in &names {
        assert_eq!(
            space.leaf_of(kind, name, "forms").await?.as_ref(),
            Some(&fingerprint),
            "{kind} {name}"
        );
        assert_eq!(
            space.generation(kind, name).await?,
            2,
            "{kind} {name} rolled once"
        );
        for (ready, leaf) in pods(&space, name, "forms").await? {
            assert!(ready, "a pod of {kind} {name} is not ready");
            assert_eq!(
                leaf.as_ref(),
                Some(&fingerprint),
                "a pod of {kind} {name} is an old one"
            );
        }
    }
    for kind in KINDS {
        let name = format!("{}-none", kind.to_lowercase());
        assert_eq!(
            space.generation(kind, &name).await?,
            1,
            "{kind} {name} does not refer to the Secret"
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_new_certificate_restarts_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "same", operator.namespace()).await?;
    let fresh = pair(&["same.example"], FRESH)?;
    space
        .tls_secret("same", Some(&fresh), &[("issuer", "external")])
        .await?;
    space
        .workload("Deployment", "web", Reference::Volume, "same")
        .await?;
    rolled_out(&space, "same").await?;
    let patch = async |patch: serde_json::Value| space.merge("same", patch).await;
    patch(
        json!({"metadata": {"labels": {"colour": "blue"}, "annotations": {"example.com/x": "y"}}}),
    )
    .await?;
    patch(json!({"stringData": {"other": "key"}})).await?;
    // The same certificate, written in another way.
    patch(json!({"stringData": {"tls.crt": fresh.certificate.replace('\n', "\r\n")}})).await?;
    operator.terminate().await?;
    operator.run().await?;
    throughout(QUIET, "web is not restarted", async || {
        ensure!(space.generation("Deployment", "web").await? == 1, "it was");
        Ok(())
    })
    .await?;
    // It was looked at, and not just overlooked.
    space.put("same", &pair(&["same.example"], FRESH)?).await?;
    rolled_out(&space, "same").await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_bad_pair_is_never_rolled_onto() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "bad", operator.namespace()).await?;
    let (fresh, other) = (
        pair(&["bad.example"], FRESH)?,
        pair(&["bad.example"], FRESH)?,
    );
    for name in ["emptied", "mismatched", "expired"] {
        space
            .tls_secret(name, Some(&fresh), &[("issuer", "external")])
            .await?;
        space
            .workload("Deployment", name, Reference::Volume, name)
            .await?;
        rolled_out(&space, name).await?;
    }
    let empty = json!({"data": {"tls.crt": "", "tls.key": ""}});
    space.merge("emptied", empty).await?;
    let half = json!({"stringData": {"tls.crt": other.certificate}});
    space.merge("mismatched", half).await?;
    space
        .put("expired", &pair(&["bad.example"], EXPIRED)?)
        .await?;
    told(
        &space,
        "mismatched",
        "the private key is not the one of the certificate",
    )
    .await?;
    told(&space, "expired", "has expired").await?;
    throughout(QUIET, "nothing is restarted", async || {
        for name in ["emptied", "mismatched", "expired"] {
            ensure!(
                space.generation("Deployment", name).await? == 1,
                "{name} was"
            );
        }
        Ok(())
    })
    .await?;
    for name in ["emptied", "mismatched", "expired"] {
        let again = pair(&["bad.example"], FRESH)?;
        space.put(name, &again).await?;
        rolled_out(&space, name).await?;
        assert_eq!(
            space.generation("Deployment", name).await?,
            2,
            "{name} rolls once it is sound"
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_emptied_secret_is_issued_anew_and_then_rolls() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "wiped", operator.namespace()).await?;
    let fresh = pair(&["wiped.example"], FRESH)?;
    space
        .tls_secret(
            "wiped",
            Some(&fresh),
            &[("issuer", "pebble"), ("names", "wiped.example")],
        )
        .await?;
    space
        .workload("Deployment", "web", Reference::Volume, "wiped")
        .await?;
    rolled_out(&space, "wiped").await?;
    let empty = json!({"data": {"tls.crt": "", "tls.key": ""}});
    space.merge("wiped", empty).await?;
    renewed(&space, "wiped", "").await?;
    rolled_out(&space, "wiped").await?;
    assert_eq!(
        space.generation("Deployment", "web").await?,
        2,
        "rolled once, onto the new certificate"
    );
    Ok(())
}

#[tokio::test]
async fn killed_between_the_write_and_the_rollout_it_rolls_once() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config = "rollout: {settle: 1h}\n".into();
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "killed", operator.namespace()).await?;
    let old = pair(&["killed.example"], OLD)?;
    space
        .workload("Deployment", "web", Reference::Volume, "killed")
        .await?;
    space
        .tls_secret("killed", Some(&old), &[("issuer", "pebble")])
        .await?;
    let secret = renewed(&space, "killed", &old.certificate).await?;
    let had = leaf_of(&old.certificate)?;
    let said = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or_default();
    assert!(
        said.starts_with(&had),
        "the old leaf is on record with the new pair: {said}"
    );
    operator.kill();
    assert_eq!(
        space.generation("Deployment", "web").await?,
        1,
        "it has not been rolled yet"
    );
    operator.configure("rollout: {settle: 0s}\n")?;
    operator.run().await?;
    rolled_out(&space, "killed").await?;
    assert_eq!(
        space.generation("Deployment", "web").await?,
        2,
        "rolled once"
    );
    assert_eq!(
        data(&space.secrets().get("killed").await?, "tls.crt"),
        data(&secret, "tls.crt"),
        "issued once"
    );
    Ok(())
}

fn leaf_of(pem: &str) -> Result<String> {
    Ok(cert_renew_core::certificate::leaf(pem.as_bytes())?
        .fingerprint
        .to_string())
}

#[tokio::test]
async fn what_changed_while_it_was_down_is_rolled_once_each() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "down", operator.namespace()).await?;
    let fresh = pair(&["down.example"], FRESH)?;
    let names: Vec<String> = (0..20).map(|number| format!("tls-{number}")).collect();
    for name in &names {
        space
            .tls_secret(name, Some(&fresh), &[("issuer", "external")])
            .await?;
        space
            .workload("Deployment", name, Reference::Volume, name)
            .await?;
    }
    for name in &names {
        rolled_out(&space, name).await?;
    }
    operator.kill();
    let other = pair(&["down.example"], FRESH)?;
    for name in &names {
        space.put(name, &other).await?;
    }
    operator.run().await?;
    for name in &names {
        rolled_out(&space, name).await?;
        assert_eq!(
            space.generation("Deployment", name).await?,
            2,
            "{name} rolled once"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_that_comes_back_rolls_only_with_another_certificate() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "back", operator.namespace()).await?;
    let (one, two, three) = (
        pair(&["back.example"], FRESH)?,
        pair(&["back.example"], FRESH)?,
        pair(&["back.example"], FRESH)?,
    );
    let annotations = [("issuer", "external")];
    space
        .workload("Deployment", "web", Reference::Volume, "back")
        .await?;
    space.tls_secret("back", Some(&one), &annotations).await?;
    rolled_out(&space, "back").await?;
    let recreate = async |pair| {
        space
            .secrets()
            .delete("back", &DeleteParams::default())
            .await?;
        space.tls_secret("back", Some(pair), &annotations).await?;
        rolled_out(&space, "back").await
    };
    recreate(&one).await?;
    assert_eq!(
        space.generation("Deployment", "web").await?,
        1,
        "the same certificate"
    );
    recreate(&two).await?;
    assert_eq!(
        space.generation("Deployment", "web").await?,
        2,
        "another one"
    );
    // While it is down nobody remembers, but the template does.
    operator.kill();
    space
        .secrets()
        .delete("back", &DeleteParams::default())
        .await?;
    space.tls_secret("back", Some(&three), &annotations).await?;
    operator.run().await?;
    rolled_out(&space, "back").await?;
    assert_eq!(
        space.generation("Deployment", "web").await?,
        3,
        "another one, made while it was down"
    );
    Ok(())
}

#[tokio::test]
async fn secrets_of_other_types_come_in_by_label() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "opaque", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "opaque.example"),
        (
            "outputs",
            "fullchain.pem=fullchain, privkey.pem=key, tls.pem=key+fullchain",
        ),
    ];
    space
        .secret(
            "seed",
            "Opaque",
            BTreeMap::from([("dhparams.pem".to_owned(), ByteString(b"keep".to_vec()))]),
            &annotations,
        )
        .await?;
    space
        .workload("Deployment", "web", Reference::Volume, "seed")
        .await?;
    let label = json!({"metadata": {"labels": {"cert-renew.io/managed": "true"}}});
    space.merge("seed", label).await?;
    let secret = eventually(SOON, "it is issued", async || {
        let secret = space.secrets().get("seed").await?;
        ensure!(!data(&secret, "fullchain.pem").is_empty(), "it is empty");
        Ok(secret)
    })
    .await?;
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    assert_eq!(data(&secret, "dhparams.pem"), "keep");
    let (chain, key, both) = (
        data(&secret, "fullchain.pem"),
        data(&secret, "privkey.pem"),
        data(&secret, "tls.pem"),
    );
    assert_eq!(both, format!("{key}{chain}"));
    let now = cert_renew_core::time::UnixTime::now();
    cert_renew_core::certificate::pair::check_pair(chain.as_bytes(), key.as_bytes(), now)?;
    eventually(SOON, "its workload rolls", async || {
        ensure!(
            space.generation("Deployment", "web").await? == 2,
            "it has not"
        );
        Ok(())
    })
    .await?;
    Ok(())
}

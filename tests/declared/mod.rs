//! Certificates that ConfigMaps and Ingresses declare: their Secrets are made, kept, left alone and told of.

pub(crate) mod ingress;
mod kills;
mod left_alone;
mod syncs;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use test_bench::objects::Space;
use test_bench::{Bench, Context as _, Operator, OperatorOptions, Result, ensure, eventually};

use crate::renewal::{SOON, annotation, data, leaf, options, overdue, renewed, rolled_out};

/// The role that it needs.
pub(crate) const ADDON: &str = "rbac/addons/declarations.yaml";

/// An operator that may follow declarations.
fn with_addon() -> OperatorOptions {
    let mut options = options();
    options.addons.push(ADDON.into());
    options
}

fn config_maps(space: &Space) -> Api<ConfigMap> {
    Api::namespaced(space.client.clone(), &space.name)
}

/// A declaration with these annotations.
fn declaration(space: &Space, name: &str, annotations: &[(&str, &str)]) -> ConfigMap {
    let label = ("cert-renew.io/certificate".to_owned(), "true".to_owned());
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([label])),
            annotations: Some(space.annotations(annotations)),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

async fn create(space: &Space, name: &str, annotations: &[(&str, &str)]) -> Result<ConfigMap> {
    let object = declaration(space, name, annotations);
    let maps = config_maps(space);
    Ok(maps.create(&PostParams::default(), &object).await?)
}

/// Declares a certificate for a host.
pub(crate) async fn declare(space: &Space, name: &str, host: &str) -> Result<()> {
    let annotations = [("issuer", "pebble"), ("names", host)];
    create(space, name, &annotations).await.map(drop)
}

/// Sets annotations of a declaration; null takes one away.
async fn annotate(space: &Space, name: &str, annotations: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    let (maps, params) = (config_maps(space), PatchParams::default());
    maps.patch(name, &params, &patch).await?;
    Ok(())
}

/// Waits until a declaration has this word for its state; what stands on it then.
async fn says(space: &Space, name: &str, word: &str) -> Result<BTreeMap<String, String>> {
    eventually(SOON, &format!("{name} says {word}"), async || {
        let metadata = config_maps(space).get(name).await?.metadata;
        let labels = metadata.labels.unwrap_or_default();
        let annotations = metadata.annotations.unwrap_or_default();
        let said = labels.get("state.cert-renew.io/state");
        ensure!(
            said.is_some_and(|it| it == word),
            "{said:?} {annotations:?}"
        );
        Ok(annotations)
    })
    .await
}

/// Waits until the Secret of a declaration has been made and issued.
async fn issued(space: &Space, name: &str) -> Result<String> {
    eventually(SOON, &format!("{name} is made"), async || {
        space.secrets().get(name).await?;
        Ok(())
    })
    .await?;
    renewed(space, name, "").await?;
    Ok(data(&rolled_out(space, name).await?, "tls.crt"))
}

#[tokio::test]
async fn a_declared_secret_is_made_issued_kept_and_let_go() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, with_addon()).await?;
    let space = Space::new(bench.client()?, "declared", operator.namespace()).await?;
    declare(&space, "tls", "a.declared.example").await?;
    let first = issued(&space, "tls").await?;
    let secret = space.secrets().get("tls").await?;
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
    let state = says(&space, "tls", "ok").await?;
    ensure!(
        state["state.cert-renew.io/state"].starts_with("ok"),
        "{state:?}"
    );
    let events = space.events("tls").await?;
    ensure!(
        events
            .iter()
            .any(|it| it.starts_with("Declared: Secret tls is made")),
        "{events:?}"
    );

    // A name more is asked for by one more order; a setting that goes takes nothing else along.
    let names = "a.declared.example, b.declared.example";
    annotate(
        &space,
        "tls",
        json!({"cert-renew.io/names": names, "cert-renew.io/renew-before": "25%"}),
    )
    .await?;
    let secret = renewed(&space, "tls", &first).await?;
    assert_eq!(leaf(&secret)?.names.len(), 2);
    assert_eq!(
        annotation(&secret, "cert-renew.io/renew-before"),
        Some("25%")
    );
    let second = data(&secret, "tls.crt");
    annotate(&space, "tls", json!({"cert-renew.io/renew-before": null})).await?;
    eventually(SOON, "the setting is gone", async || {
        let secret = space.secrets().get("tls").await?;
        ensure!(annotation(&secret, "cert-renew.io/renew-before").is_none());
        Ok(())
    })
    .await?;

    // What somebody changes on the Secret is put back, and costs no order.
    space.annotate("tls", "names", "a.declared.example").await?;
    eventually(SOON, "the names are put back", async || {
        let secret = space.secrets().get("tls").await?;
        ensure!(annotation(&secret, "cert-renew.io/names") == Some(names));
        Ok(())
    })
    .await?;

    // The declaration goes: the Secret stays, says so, and is not renewed, whatever it asks for.
    let maps = config_maps(&space);
    maps.delete("tls", &DeleteParams::default()).await?;
    eventually(
        SOON,
        "the Secret says that nothing declares it",
        async || {
            let events = space.events("tls").await?;
            ensure!(
                events.iter().any(|it| it.starts_with("Undeclared: ")),
                "{events:?}"
            );
            Ok(())
        },
    )
    .await?;
    eventually(SOON, "its state says it too", async || {
        let secret = space.secrets().get("tls").await?;
        let line = annotation(&secret, "state.cert-renew.io/state");
        ensure!(
            line == Some("blocked: what declared the certificate is gone"),
            "{line:?}"
        );
        Ok(())
    })
    .await?;
    space.annotate("tls", "renew-now", "force-1").await?;
    let later = overdue(&space, "later", "later.declared.example").await?;
    renewed(&space, "later", &later).await?;
    assert_eq!(data(&space.secrets().get("tls").await?, "tls.crt"), second);
    space.annotate("tls", "renew-now", Value::Null).await?;

    // It comes back: no order, and renewed as before.
    create(&space, "tls", &[("issuer", "pebble"), ("names", names)]).await?;
    says(&space, "tls", "ok").await?;
    assert_eq!(data(&space.secrets().get("tls").await?, "tls.crt"), second);
    annotate(&space, "tls", json!({"cert-renew.io/renew-now": "force-2"})).await?;
    renewed(&space, "tls", &second).await?;

    // Somebody deletes the Secret: it is made again.
    space
        .secrets()
        .delete("tls", &DeleteParams::default())
        .await?;
    issued(&space, "tls").await?;
    Ok(())
}

/// A declaration may name its Secret; two that name one ask for the names of both.
#[tokio::test]
async fn two_declarations_of_one_secret_are_put_together() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, with_addon()).await?;
    let space = Space::new(bench.client()?, "together", operator.namespace()).await?;
    let of = |host: &'static str| [("issuer", "pebble"), ("names", host), ("secret", "shared")];
    create(&space, "one", &of("one.together.example")).await?;
    let first = issued(&space, "shared").await?;
    ensure!(space.secrets().get_opt("one").await?.is_none());
    let mut other = of("two.together.example").to_vec();
    other.push(("key-type", "rsa-2048"));
    create(&space, "two", &other).await?;
    let secret = renewed(&space, "shared", &first).await?;
    assert_eq!(leaf(&secret)?.names.len(), 2);
    rolled_out(&space, "shared").await?;
    says(&space, "two", "ok").await?;
    // The older one disagrees now, and counts.
    annotate(
        &space,
        "one",
        json!({"cert-renew.io/key-type": "ecdsa-p384"}),
    )
    .await?;
    eventually(SOON, "the younger one says so", async || {
        let metadata = config_maps(&space).get("two").await?.metadata;
        let annotations = metadata.annotations.unwrap_or_default();
        let problems = annotations.get("state.cert-renew.io/problems");
        let problems = problems.context("no problems")?;
        ensure!(
            problems.contains("cert-renew.io/key-type: \"rsa-2048\": an older object"),
            "{problems}"
        );
        Ok(())
    })
    .await
}

/// Without the role everything else works, and what is missing is said once.
#[tokio::test]
async fn without_the_role_nothing_is_declared_and_that_is_said_once() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "no-role", operator.namespace()).await?;
    declare(&space, "tls", "tls.no-role.example").await?;
    let old = overdue(&space, "other", "other.no-role.example").await?;
    renewed(&space, "other", &old).await?;
    rolled_out(&space, "other").await?;
    ensure!(space.secrets().get_opt("tls").await?.is_none());
    let asked = eventually(SOON, "ConfigMaps were asked for", async || {
        let requests = operator.requests()?;
        let asked = requests
            .iter()
            .filter(|it| it.resource == "configmaps" && it.verb == "list");
        let asked = asked.count();
        ensure!(asked > 0);
        Ok(asked)
    })
    .await?;
    assert_eq!(asked, 1, "it is not asked again and again");
    let log = operator.log()?;
    assert_eq!(
        log.matches("rbac/addons/declarations.yaml").count(),
        1,
        "{log}"
    );
    Ok(())
}

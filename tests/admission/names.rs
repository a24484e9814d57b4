//! The policy on names: whom it looks at, and what was there before it.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use test_bench::objects::Space;
use test_bench::{Bench, Result, bail};

use super::{bind, in_force, verdict};

/// What the API server says, and what is expected: that the names are refused, or nothing.
fn compare(what: &str, answer: Result<(), String>, refused: bool) -> Result<()> {
    match answer {
        Ok(()) if !refused => Ok(()),
        Err(said) if refused && said.contains("may not ask for") => Ok(()),
        other => bail!("{what}: {other:?}"),
    }
}

/// Makes the list of a namespace, and waits until it counts.
async fn listed(space: &Space) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(space.client.clone(), &space.class);
    let lists =
        json!({"metadata": {"name": "cert-renew-names"}, "data": {&space.name: "**.shop.example"}});
    let lists = serde_json::from_value(lists)?;
    maps.create(&PostParams::default(), &lists).await?;
    in_force(space, &[("issuer", "x"), ("names", "unheard.of")]).await
}

/// What a ConfigMap declares is held to the list, and other ConfigMaps are nobody's business.
#[tokio::test]
async fn a_declaration_is_held_to_the_list_and_no_other_config_map() -> Result<()> {
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let home = Space::new(client.clone(), "declared-names-home", "nobody").await?;
    let space = Space::new(client.clone(), "declared-names", &home.name).await?;
    bind(&client, "names.yaml", &space).await?;
    listed(&space).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, &space.name);
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let declares = "cert-renew.io/certificate";
    for (labels, names, refused) in [
        (json!({declares: "true"}), "unheard.of", true),
        (json!({declares: "true"}), "a.shop.example", false),
        (json!({declares: "false"}), "unheard.of", false),
        (json!({"example.com/other": "true"}), "unheard.of", false),
        (Value::Null, "unheard.of", false),
    ] {
        let map = json!({"metadata": {
            "name": "probe", "labels": labels, "annotations": {"cert-renew.io/names": names},
        }});
        let answer = verdict(maps.create(&dry, &serde_json::from_value(map)?).await)?;
        compare(&format!("{labels} {names}"), answer, refused)?;
    }
    Ok(())
}

/// What was there before holds nobody up, until its names or its issuer change.
#[tokio::test]
async fn names_that_were_there_before_the_list_are_refused_when_they_change() -> Result<()> {
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let home = Space::new(client.clone(), "former-names-home", "nobody").await?;
    let space = Space::new(client.clone(), "former-names", &home.name).await?;
    let former = [("issuer", "x"), ("names", "unheard.of")];
    space.tls_secret("former", None, &former).await?;
    let external = [("issuer", "external"), ("names", "unheard.of")];
    space.tls_secret("external", None, &external).await?;
    space.tls_secret("bare", None, &[]).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &space.name);
    let map = json!({"metadata": {
        "name": "former", "labels": {"cert-renew.io/certificate": "true"}, "annotations": space.annotations(&former),
    }});
    maps.create(&PostParams::default(), &serde_json::from_value(map)?)
        .await?;
    let map = json!({"metadata": {"name": "later", "annotations": space.annotations(&former)}});
    maps.create(&PostParams::default(), &serde_json::from_value(map)?)
        .await?;
    bind(&client, "names.yaml", &space).await?;
    listed(&space).await?;

    let secrets: Api<Secret> = space.secrets();
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let note = |key: &str, value: &str| json!({"metadata": {"annotations": {format!("cert-renew.io/{key}"): value}}});
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let declares = json!({"metadata": {"labels": {"cert-renew.io/certificate": "true"}}});
    for (resource, name, body, refused) in [
        ("secrets", "former", label.clone(), false),
        ("secrets", "former", note("key-type", "rsa-2048"), false),
        ("secrets", "former", note("names", "a.shop.example"), false),
        ("secrets", "former", note("names", "also.unheard.of"), true),
        // Another CA is asked.
        ("secrets", "former", note("issuer", "y"), true),
        (
            "secrets",
            "external",
            note("names", "also.unheard.of"),
            false,
        ),
        ("secrets", "external", note("issuer", "x"), true),
        ("secrets", "bare", note("issuer", "x"), false),
        ("secrets", "bare", note("names", "unheard.of"), true),
        ("configmaps", "former", label.clone(), false),
        (
            "configmaps",
            "former",
            note("names", "a.shop.example"),
            false,
        ),
        (
            "configmaps",
            "former",
            note("names", "also.unheard.of"),
            true,
        ),
        ("configmaps", "former", note("issuer", "y"), true),
        ("configmaps", "later", label, false),
        // It begins to declare a certificate.
        ("configmaps", "later", declares, true),
    ] {
        let patch = Patch::Merge(&body);
        let answer = match resource {
            "secrets" => verdict(secrets.patch(name, &dry, &patch).await),
            _ => verdict(maps.patch(name, &dry, &patch).await),
        }?;
        compare(&format!("{resource} {name} {body}"), answer, refused)?;
    }
    Ok(())
}

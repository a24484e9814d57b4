//! The admission policies of `deploy/admission/`, enforced by the bench's API server.
//!
//! The one on the operator itself is installed with every bench, so that all other tests show that it hinders no user;
//! here it is shown to hinder a thief. The ones on annotations and names are bound to one namespace at a time.

mod annotations;
mod names;

use std::collections::BTreeMap;
use std::fs;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, Result, bail, ensure, eventually};

use crate::argo::Argo;
use crate::renewal::{SOON, options, renewed, rolled_out};

/// Installs the policies of a file, bound to the namespace of `space` alone.
async fn bind(client: &Client, file: &str, space: &Space) -> Result<()> {
    let path = format!("{}/deploy/admission/{file}", env!("CARGO_MANIFEST_DIR"));
    for mut manifest in serde_saphyr::from_multiple::<Value>(&fs::read_to_string(path)?)? {
        let kind = manifest["kind"].as_str().context("no kind")?.to_owned();
        let name = manifest["metadata"]["name"].as_str().context("no name")?;
        let name = format!("{name}-{}", space.name);
        manifest["metadata"]["name"] = name.clone().into();
        if kind == "ValidatingAdmissionPolicyBinding" {
            manifest["spec"]["policyName"] = name.into();
            manifest["spec"]["matchResources"] = json!({"namespaceSelector": {
                "matchLabels": {"kubernetes.io/metadata.name": space.name},
            }});
            if let Some(namespace) = manifest.pointer_mut("/spec/paramRef/namespace") {
                *namespace = space.class.clone().into();
            }
        }
        let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", &kind);
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk));
        let object = serde_json::from_value(manifest)?;
        api.create(&PostParams::default(), &object).await?;
    }
    Ok(())
}

/// What the API server says to a Secret with these annotations; nothing is kept.
async fn try_create(space: &Space, annotations: &[(&str, &str)]) -> Result<Result<(), String>> {
    let full = |(key, value): &(&str, &str)| (format!("cert-renew.io/{key}"), (*value).to_owned());
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some("probe".into()),
            annotations: Some(annotations.iter().map(full).collect()),
            ..ObjectMeta::default()
        },
        ..Secret::default()
    };
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    verdict(space.secrets().create(&dry, &secret).await)
}

/// Waits until a Secret with these annotations is refused.
async fn in_force(space: &Space, refused: &[(&str, &str)]) -> Result<()> {
    eventually(SOON, "the policy is in force", async || {
        ensure!(try_create(space, refused).await?.is_err());
        Ok(())
    })
    .await
}

fn verdict<T>(answer: kube::Result<T>) -> Result<Result<(), String>> {
    match answer {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy") => {
            Ok(Err(status.message.clone()))
        }
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn names_outside_the_list_are_refused() -> Result<()> {
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let home = Space::new(client.clone(), "names-home", "nobody").await?;
    let listed = Space::new(client.clone(), "names", &home.name).await?;
    let other = Space::new(client.clone(), "names-other", &home.name).await?;
    for space in [&listed, &other] {
        bind(&client, "names.yaml", space).await?;
    }
    let probe = [("issuer", "x"), ("names", "unheard.of")];
    assert_eq!(
        try_create(&listed, &probe).await?,
        Ok(()),
        "no ConfigMap, no list"
    );
    let list = "Shop.example.com, *.shop.example.com\n**.deep.example, 10.0.0.0/8, fd00::1";
    let lists = ConfigMap {
        metadata: ObjectMeta {
            name: Some("cert-renew-names".into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(listed.name.clone(), list.to_owned())])),
        ..ConfigMap::default()
    };
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &home.name);
    maps.create(&PostParams::default(), &lists).await?;
    for space in [&listed, &other] {
        in_force(space, &probe).await?;
    }
    for good in [
        "shop.example.com, SHOP.example.com.",
        "a.shop.example.com,*.shop.example.com",
        "a.deep.example, a.b.deep.example, *.deep.example",
        "10.1.2.3, fd00:0::1",
    ] {
        let answer = try_create(&listed, &[("issuer", "x"), ("names", good)]).await?;
        assert_eq!(answer, Ok(()), "{good}");
    }
    for bad in [
        "shop.example.com, example.com",
        "a.b.shop.example.com",
        "*.a.shop.example.com",
        "deep.example",
        "xdeep.example",
        "11.0.0.1",
        "fd00::2",
        "evil-shop.example.com",
    ] {
        let answer = try_create(&listed, &[("issuer", "x"), ("names", bad)]).await?;
        let said = answer.expect_err(&format!("{bad} passed"));
        ensure!(said.contains("may not ask for"), "{said}");
    }
    // A namespace without a key may ask for nothing, until the others have one; somebody else's renewal asks nobody.
    let shop = [("issuer", "x"), ("names", "shop.example.com")];
    assert!(try_create(&other, &shop).await?.is_err());
    let external = [("issuer", "external"), ("names", "any.where")];
    assert_eq!(try_create(&other, &external).await?, Ok(()));
    let others = json!({"data": {"_others": "shop.example.com"}});
    maps.patch(
        "cert-renew-names",
        &PatchParams::default(),
        &Patch::Merge(others),
    )
    .await?;
    eventually(SOON, "the others have a list", async || {
        ensure!(try_create(&other, &shop).await?.is_ok());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_operator_works_under_the_policies_even_on_what_they_would_refuse() -> Result<()> {
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(client.clone(), "under", operator.namespace()).await?;
    let old = pair(&["under.example"], OLD)?;
    // Written before the policy came: it says that it does not parse, and holds nothing up.
    let annotations = [("issuer", "external"), ("renew-before", "sometime")];
    space.tls_secret("tls", Some(&old), &annotations).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    rolled_out(&space, "tls").await?;
    for file in ["annotations.yaml", "names.yaml"] {
        bind(&client, file, &space).await?;
    }
    in_force(&space, &[("issuer", "")]).await?;
    let issuer = json!({"metadata": {"annotations": {"cert-renew.io/issuer": "pebble"}}});
    space.merge("tls", issuer).await?;
    renewed(&space, "tls", &old.certificate).await?;
    rolled_out(&space, "tls").await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_stolen_token_can_change_no_more_than_the_operator_does() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::install(bench, options()).await?;
    let space = Space::new(bench.client()?, "thief", operator.namespace()).await?;
    let old = pair(&["thief.example"], OLD)?;
    let outputs = ("outputs", "all.pem=key+fullchain");
    for (name, annotations) in [
        ("foreign", &[][..]),
        ("external", &[("issuer", "external")]),
        ("ours", &[("issuer", "pebble"), outputs]),
    ] {
        space.tls_secret(name, Some(&old), annotations).await?;
    }
    let thief = operator.client().await?;
    let stolen: Api<Secret> = Api::namespaced(thief.clone(), &space.name);
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let patch = async |name: &str, body: &Value| {
        verdict(stolen.patch(name, &dry, &Patch::Merge(body)).await)
    };
    let data = |key: &str| json!({"data": {key: "eA=="}});
    let note = |key: &str| json!({"metadata": {"annotations": {key: "x"}}});
    eventually(SOON, "the policy is in force", async || {
        ensure!(patch("foreign", &data("tls.crt")).await?.is_err());
        Ok(())
    })
    .await?;
    for (name, body, refusal) in [
        ("ours", data("tls.crt"), None),
        ("ours", data("tls.key"), None),
        ("ours", data("all.pem"), None),
        ("ours", note("state.cert-renew.io/rolled-out"), None),
        ("external", note("state.cert-renew.io/rolled-out"), None),
        ("ours", data("other"), Some("of a Secret's data")),
        (
            "ours",
            json!({"data": {"tls.key": null, "tls.crt": null}}),
            Some(""),
        ),
        (
            "ours",
            note("cert-renew.io/names"),
            Some("of a Secret's annotations"),
        ),
        (
            "ours",
            note("example.com/x"),
            Some("of a Secret's annotations"),
        ),
        (
            "ours",
            json!({"metadata": {"annotations": {"cert-renew.io/issuer": null}}}),
            Some("of a Secret's annotations"),
        ),
        (
            "ours",
            json!({"metadata": {"labels": {"x": "y"}}}),
            Some("of a Secret's metadata"),
        ),
        (
            "ours",
            json!({"metadata": {"finalizers": ["x.y/z"]}}),
            Some("of a Secret's metadata"),
        ),
        (
            "ours",
            json!({"immutable": true}),
            Some("whether it is immutable"),
        ),
        ("external", data("tls.crt"), Some("of a Secret's data")),
        ("foreign", data("tls.crt"), Some("have opted in")),
        (
            "foreign",
            note("state.cert-renew.io/rolled-out"),
            Some("have opted in"),
        ),
        (
            "foreign",
            note("cert-renew.io/issuer"),
            Some("have opted in"),
        ),
    ] {
        match (patch(name, &body).await, refusal) {
            (Ok(Ok(())), None) => {}
            (Ok(Err(said)), Some(part)) => ensure!(said.contains(part), "{name} {body}: {said}"),
            // A TLS Secret without its keys is refused by the API server itself.
            (Err(_), Some("")) => {}
            other => bail!("{name} {body}: {other:?}"),
        }
    }
    // In its own namespace it may make Secrets, but none that turns into a token.
    let own: Api<Secret> = Api::namespaced(thief.clone(), operator.namespace());
    for (kind, allowed) in [
        ("cert-renew.io/account", true),
        ("kubernetes.io/service-account-token", false),
        ("Opaque", false),
    ] {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some("probe".into()),
                // The API server makes no token without it, and an account key or order record may not have it.
                annotations: (kind == "kubernetes.io/service-account-token").then(|| {
                    BTreeMap::from([(
                        "kubernetes.io/service-account.name".into(),
                        "cert-renew".into(),
                    )])
                }),
                ..ObjectMeta::default()
            },
            type_: Some(kind.into()),
            data: Some(BTreeMap::from([("x".into(), ByteString(b"y".to_vec()))])),
            ..Secret::default()
        };
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let answer = verdict(own.create(&dry, &secret).await)?;
        assert_eq!(answer.is_ok(), allowed, "{kind}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stolen_token_runs_nothing_in_a_workload() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    for addon in ["eviction", "argo-rollouts"] {
        options.addons.push(format!("rbac/addons/{addon}.yaml"));
    }
    let operator = Operator::install(bench, options).await?;
    let space = Space::new(bench.client()?, "thief-workloads", operator.namespace()).await?;
    let thief = Space {
        client: operator.client().await?,
        name: space.name.clone(),
        class: space.class.clone(),
    };
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let leaf = || json!({"state.cert-renew.io/leaf.tls": "00"});
    let template = |body: Value| json!({"spec": {"template": body}});
    let image = template(json!({"spec": {"containers": [{"name": "main", "image": "evil"}]}}));
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicationController",
        "ReplicaSet",
    ] {
        space.workload(kind, "web", Reference::Env, "tls").await?;
        let patch = async |body: &Value| {
            let workloads = thief.workloads(kind);
            verdict(workloads.patch("web", &dry, &Patch::Merge(body)).await)
        };
        eventually(SOON, "the policy is in force", async || {
            ensure!(patch(&image).await?.is_err());
            Ok(())
        })
        .await?;
        let annotated = template(json!({"metadata": {"annotations": leaf()}}));
        assert_eq!(patch(&annotated).await?, Ok(()), "{kind}");
        for (body, part) in [
            (image.clone(), "annotations only"),
            (
                template(json!({"spec": {"serviceAccountName": "admin"}})),
                "annotations only",
            ),
            (
                template(json!({"spec": {"hostNetwork": true}})),
                "annotations only",
            ),
            (
                template(json!({"metadata": {"annotations": {"example.com/inject": "true"}}})),
                "state.cert-renew.io/leaf.",
            ),
            (
                template(json!({"metadata": {"labels": {"team": "evil"}}})),
                "annotations only",
            ),
            (json!({"spec": {"minReadySeconds": 9}}), "pod template only"),
            (json!({"metadata": {"labels": {"x": "y"}}}), "own metadata"),
            (
                json!({"metadata": {"annotations": {"x": "y"}}}),
                "own metadata",
            ),
        ] {
            let said = patch(&body)
                .await?
                .expect_err(&format!("{kind} {body} passed"));
            ensure!(said.contains(part), "{kind} {body}: {said}");
        }
    }
    // An Argo Rollout may be told to restart, and nothing else.
    let _argo = Argo::start(bench, &space, "tls").await?;
    let rollouts = Argo::rollouts(&thief);
    for (body, refusal) in [
        (image, Some("restartAt only")),
        (json!({"spec": {"paused": true}}), Some("restartAt only")),
        (
            json!({"metadata": {"labels": {"x": "y"}}}),
            Some("own metadata"),
        ),
        (
            json!({"metadata": {"annotations": {"x": "y"}}}),
            Some("own metadata"),
        ),
        (
            json!({"metadata": {"annotations": leaf()}, "spec": {"restartAt": "2026-01-01T00:00:00Z"}}),
            None,
        ),
    ] {
        let patch = async || verdict(rollouts.patch("shop", &dry, &Patch::Merge(&body)).await);
        eventually(SOON, "the policy is in force", async || {
            match (patch().await?, refusal) {
                (Ok(()), None) => Ok(()),
                (Err(said), Some(part)) if said.contains(part) => Ok(()),
                other => bail!("{body}: {other:?}"),
            }
        })
        .await?;
    }
    Ok(())
}

//! `cert-renew adopt`: Certificates of cert-manager become annotated Secrets; nothing is issued again, nothing restarts.

mod granted;

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, OLD, Reference, Space, pair};
use test_bench::{Bench, Fault, Operator, Proxies, Result, ensure, eventually};

use crate::command::{cert_renew, said};
use crate::install::kubectl;
use crate::preconditions::wrong;
use crate::renewal::{SOON, annotation, options, renewed, rolled_out};

fn api(space: &Space, group: &str, kind: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk(group, "v1", kind);
    Api::namespaced_with(
        space.client.clone(),
        &space.name,
        &ApiResource::from_gvk(&gvk),
    )
}

async fn make(space: &Space, group: &str, object: Value) -> Result<DynamicObject> {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let object = serde_json::from_value(object)?;
    Ok(api(space, group, &kind)
        .create(&PostParams::default(), &object)
        .await?)
}

/// cert-manager's kinds, once for the bench.
async fn kinds(space: &Space) -> Result<()> {
    let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let api: Api<DynamicObject> = Api::all_with(space.client.clone(), &ApiResource::from_gvk(&gvk));
    let manifests = include_str!("../testdata/cert-manager/crds.yaml");
    for manifest in serde_saphyr::from_multiple::<Value>(manifests)? {
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        let apply = PatchParams::apply("test").force();
        api.patch(name, &apply, &Patch::Apply(&manifest)).await?;
    }
    // Of the Gateway API as much as has annotations.
    let gateways = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "gateways.gateway.networking.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/3328"},
        },
        "spec": {
            "group": "gateway.networking.k8s.io", "scope": "Namespaced",
            "names": {"kind": "Gateway", "plural": "gateways", "singular": "gateway"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }}}],
        },
    });
    let apply = PatchParams::apply("test").force();
    let gateways = Patch::Apply(&gateways);
    api.patch("gateways.gateway.networking.k8s.io", &apply, &gateways)
        .await?;
    for (group, kind) in [
        ("cert-manager.io", "Certificate"),
        ("gateway.networking.k8s.io", "Gateway"),
    ] {
        eventually(SOON, &format!("{kind}s are served"), async || {
            let served = crate::adopt::api(space, group, kind);
            served.list(&Default::default()).await?;
            Ok(())
        })
        .await?;
    }
    Ok(())
}

fn owner(object: &DynamicObject, kind: &str, version: &str) -> Value {
    json!([{
        "apiVersion": version, "kind": kind, "name": object.metadata.name, "uid": object.metadata.uid,
        "controller": true, "blockOwnerDeletion": true,
    }])
}

/// A Certificate, the Secret that cert-manager has made for it and owns, and a Deployment that uses it.
async fn issued(
    space: &Space,
    name: &str,
    spec: Value,
    age: test_bench::objects::Age,
) -> Result<()> {
    let host = format!("{name}.example");
    let mut full = json!({"secretName": name, "dnsNames": [host], "issuerRef": {"name": "prod", "kind": "ClusterIssuer"}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        full[key] = value.clone();
    }
    let certificate = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Certificate", "metadata": {"name": name}, "spec": full,
    });
    let certificate = make(space, "cert-manager.io", certificate).await?;
    let old = pair(&[&host], age)?;
    space
        .tls_secret(
            name,
            Some(&old),
            &[
                ("cert-manager.io/certificate-name", name),
                ("cert-manager.io/issuer-name", "prod"),
                ("cert-manager.io/alt-names", &host),
                ("example.com/note", "keep me"),
                // The Space adds its class, which is taken away again: nothing of ours is there yet.
                ("cert-renew.io/class", &space.class),
            ],
        )
        .await?;
    let owned = json!({"metadata": {
        "labels": {"controller.cert-manager.io/fao": "true", "team": "shop"},
        "annotations": {"cert-renew.io/class": null},
        "ownerReferences": owner(&certificate, "Certificate", "cert-manager.io/v1"),
    }});
    space.merge(name, owned).await?;
    space
        .workload("Deployment", name, Reference::Volume, name)
        .await
}

async fn adopt(bench: &Bench, space: &Space, more: &[&str]) -> Result<Output> {
    adopt_by(bench.kubeconfig(), space, more).await
}

async fn adopt_by(kubeconfig: &Path, space: &Space, more: &[&str]) -> Result<Output> {
    let fixed = [
        "adopt",
        "--from=cert-manager",
        "--issuer=prod=pebble",
        "--class",
        &space.class,
        "--namespace",
        &space.name,
    ];
    let arguments: Vec<String> = fixed
        .iter()
        .chain(more)
        .map(|it| (*it).to_owned())
        .collect();
    let kubeconfig = kubeconfig.to_owned();
    let run = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        cert_renew(&arguments, Some(&kubeconfig))
    };
    tokio::task::spawn_blocking(run).await?
}

/// What is left of cert-manager on an adopted Secret: nothing.
fn is_ours(secret: &Secret) -> Result<()> {
    let metadata = serde_json::to_value(&secret.metadata)?;
    ensure!(metadata.get("ownerReferences").is_none(), "{metadata}");
    for map in ["annotations", "labels"] {
        let text = metadata[map].to_string();
        ensure!(!text.contains("cert-manager.io"), "{text}");
    }
    ensure!(
        annotation(secret, "cert-renew.io/issuer") == Some("pebble"),
        "{metadata}"
    );
    ensure!(
        annotation(secret, "cert-renew.io/paused").is_none(),
        "{metadata}"
    );
    ensure!(
        annotation(secret, "example.com/note") == Some("keep me"),
        "{metadata}"
    );
    ensure!(metadata["labels"]["team"] == "shop", "{metadata}");
    Ok(())
}

#[tokio::test]
async fn certificates_become_annotated_secrets_and_nothing_is_issued_or_restarted() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "adopt", operator.namespace()).await?;
    kinds(&space).await?;
    let ingress = make(
        &space,
        "networking.k8s.io",
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": "web", "annotations": {
                "cert-manager.io/cluster-issuer": "prod", "kubernetes.io/tls-acme": "true", "example.com/note": "keep me",
            }},
            "spec": {"tls": [{"hosts": ["shop.example"], "secretName": "shop"}], "rules": [{"host": "shop.example"}]},
        }),
    )
    .await?;
    issued(&space, "shop", json!({"renewBefore": "360h0m0s"}), FRESH).await?;
    let certificates = api(&space, "cert-manager.io", "Certificate");
    let by_ingress = json!({"metadata": {"ownerReferences": owner(&ingress, "Ingress", "networking.k8s.io/v1")}});
    certificates
        .patch("shop", &PatchParams::default(), &Patch::Merge(by_ingress))
        .await?;
    // What a Gateway asks for by annotation is owned by it, as what an Ingress asks for is.
    let gateway = make(
        &space,
        "gateway.networking.k8s.io",
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "edge", "annotations": {
                "cert-manager.io/cluster-issuer": "prod", "example.com/note": "keep me",
            }},
            "spec": {"listeners": [{"name": "https", "hostname": "gate.example", "port": 443, "protocol": "HTTPS",
                "tls": {"certificateRefs": [{"name": "gate"}]}}]},
        }),
    )
    .await?;
    issued(&space, "gate", json!({}), FRESH).await?;
    let by_gateway = json!({"metadata": {"ownerReferences": owner(&gateway, "Gateway", "gateway.networking.k8s.io/v1")}});
    certificates
        .patch("gate", &PatchParams::default(), &Patch::Merge(by_gateway))
        .await?;
    issued(
        &space,
        "api",
        json!({"privateKey": {"rotationPolicy": "Never"}}),
        FRESH,
    )
    .await?;
    issued(
        &space,
        "java",
        json!({"keystores": {"jks": {"create": true}}}),
        FRESH,
    )
    .await?;
    for name in ["shop", "gate", "api", "java"] {
        space.available("Deployment", name).await?;
    }
    let get = async |name: &str| space.secrets().get(name).await;
    let before = [
        get("shop").await?,
        get("api").await?,
        get("java").await?,
        get("gate").await?,
    ];

    // Asked only, it changes nothing.
    let asked = adopt(bench, &space, &[]).await?;
    let text = said(&asked);
    ensure!(
        text.contains("Ingress web: drop") && text.contains("Gateway edge: drop"),
        "{text}"
    );
    ensure!(
        text.contains("java: stays with cert-manager: it makes a JKS"),
        "{text}"
    );
    ensure!(asked.status.code() == Some(1), "one has to stay: {text}");
    for secret in &before {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let now = get(name).await?;
        assert_eq!(
            now.metadata.resource_version,
            secret.metadata.resource_version
        );
    }

    let done = said(&adopt(bench, &space, &["--apply"]).await?);
    ensure!(done.contains("3 adopted"), "{done}");
    let adopted = [
        ("shop", &before[0]),
        ("api", &before[1]),
        ("gate", &before[3]),
    ];
    for (name, before) in adopted {
        let secret = rolled_out(&space, name).await?;
        is_ours(&secret)?;
        assert_eq!(
            secret.data, before.data,
            "{name}: the certificate is the same"
        );
        ensure!(certificates.get_opt(name).await?.is_none(), "{name}");
        assert_eq!(space.generation("Deployment", name).await?, 1, "{name}");
    }
    assert_eq!(
        annotation(&get("shop").await?, "cert-renew.io/renew-before"),
        Some("360h0m0s")
    );
    assert_eq!(
        annotation(&get("api").await?, "cert-renew.io/key-rotation"),
        Some("never")
    );
    let java = get("java").await?;
    assert_eq!(
        java.metadata.resource_version,
        before[2].metadata.resource_version
    );
    for (group, kind, name) in [
        ("networking.k8s.io", "Ingress", "web"),
        ("gateway.networking.k8s.io", "Gateway", "edge"),
    ] {
        let maker = api(&space, group, kind).get(name).await?;
        let notes = maker.metadata.annotations.unwrap_or_default();
        assert_eq!(notes.keys().collect::<Vec<_>>(), ["example.com/note"]);
    }
    let orders = operator
        .writes()?
        .into_iter()
        .filter(|it| it.name.contains("order"));
    assert_eq!(orders.count(), 0, "nothing was asked of the CA");
    let again = said(&adopt(bench, &space, &["--apply"]).await?);
    ensure!(again.contains("Nothing to adopt"), "{again}");

    // What comes due is renewed from now on, once.
    issued(&space, "due", json!({}), OLD).await?;
    space.available("Deployment", "due").await?;
    let old = crate::renewal::data(&get("due").await?, "tls.crt");
    adopt(bench, &space, &["--apply"]).await?;
    renewed(&space, "due", &old).await?;
    rolled_out(&space, "due").await?;
    assert_eq!(space.generation("Deployment", "due").await?, 2);
    Ok(())
}

/// Cut off between two steps, the next run ends where an undisturbed one does.
#[tokio::test]
async fn an_adoption_that_was_cut_off_goes_on() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "adopt-again", "nobody").await?;
    kinds(&space).await?;
    for name in ["before", "after"] {
        issued(&space, name, json!({}), FRESH).await?;
        let marked = json!({"metadata": {
            "annotations": {"cert-renew.io/issuer": "pebble", "cert-renew.io/class": "nobody", "cert-renew.io/paused": "true"},
            "ownerReferences": null,
        }});
        space.merge(name, marked).await?;
    }
    // Of one the Certificate is gone already.
    let certificates = api(&space, "cert-manager.io", "Certificate");
    certificates
        .delete("after", &kube::api::DeleteParams::default())
        .await?;
    eventually(SOON, "it is gone", async || {
        ensure!(certificates.get_opt("after").await?.is_none());
        Ok(())
    })
    .await?;
    let done = said(&adopt(bench, &space, &["--apply"]).await?);
    ensure!(done.contains("2 adopted"), "{done}");
    for name in ["before", "after"] {
        is_ours(&space.secrets().get(name).await?)?;
        ensure!(certificates.get_opt(name).await?.is_none(), "{name}");
    }
    Ok(())
}

/// The administrator's rights, by a token, through the proxy.
fn kubeconfig_through(proxies: &Proxies, bench: &Bench, space: &Space) -> Result<String> {
    let name = &space.name;
    let account = format!("create serviceaccount admin --namespace={name}");
    kubectl(bench, &account, "")?;
    let binding = format!(
        "create clusterrolebinding {name} --clusterrole=cluster-admin --serviceaccount={name}:admin"
    );
    kubectl(bench, &binding, "")?;
    let token = kubectl(bench, &format!("create token admin --namespace={name}"), "")?;
    let token = String::from_utf8(token.stdout)?;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "cut",
        "clusters": [{"name": "cut", "cluster": {"server": proxies.api_server()}}],
        "users": [{"name": "cut", "user": {"token": token.trim()}}],
        "contexts": [{"name": "cut", "context": {"cluster": "cut", "user": "cut"}}],
    });
    Ok(config.to_string())
}

/// Cut off after each of its writes in turn, whose answer is lost too, the next run ends where an undisturbed one does.
#[tokio::test]
async fn an_adoption_cut_off_after_any_write_goes_on() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "adopt-cut", "nobody").await?;
    kinds(&space).await?;
    let proxies = Proxies::start(bench).await?;
    let kubeconfig = bench.directory().join("adopt-cut.kubeconfig");
    std::fs::write(&kubeconfig, kubeconfig_through(&proxies, bench, &space)?)?;
    eventually(SOON, "the token is let in", async || {
        let looked = adopt_by(&kubeconfig, &space, &[]).await?;
        ensure!(looked.status.success(), "{}", said(&looked));
        Ok(())
    })
    .await?;
    let certificates = api(&space, "cert-manager.io", "Certificate");
    let ingresses = api(&space, "networking.k8s.io", "Ingress");
    let theirs = async |name: &str| -> Result<()> {
        let ingress = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": name, "annotations": {"cert-manager.io/cluster-issuer": "prod"}},
            "spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}},
        });
        let ingress = make(&space, "networking.k8s.io", ingress).await?;
        issued(&space, name, json!({}), FRESH).await?;
        let by_ingress = json!({"metadata": {"ownerReferences": owner(&ingress, "Ingress", "networking.k8s.io/v1")}});
        certificates
            .patch(name, &PatchParams::default(), &Patch::Merge(by_ingress))
            .await?;
        Ok(())
    };
    let mut cuts = 0;
    loop {
        let name = format!("cut-{}", cuts + 1);
        theirs(&name).await?;
        let before = space.secrets().get(&name).await?;

        let (writes, last) = (AtomicUsize::new(0), cuts + 1);
        proxies.rule(move |passed| {
            let nth = writes.fetch_add(usize::from(passed.method != "GET"), Ordering::SeqCst);
            match nth {
                nth if nth >= last => Fault::Refuse,
                nth if nth + 1 == last && passed.method != "GET" => Fault::After(Arc::new(|| {})),
                _ => Fault::Pass,
            }
        });
        let run = adopt_by(&kubeconfig, &space, &["--apply"]).await?;
        if run.status.success() {
            break;
        }
        cuts += 1;
        // A look now finds one that renews, or none, never two.
        let secret = space.secrets().get(&name).await?;
        let is_theirs = certificates.get_opt(&name).await?.is_some();
        let is_ours_now = annotation(&secret, "cert-renew.io/issuer").is_some()
            && annotation(&secret, "cert-renew.io/paused") != Some("true");
        ensure!(!(is_theirs && is_ours_now), "both renew {name}");

        let again = adopt(bench, &space, &["--apply"]).await?;
        ensure!(again.status.success(), "{}", said(&again));
        let secret = space.secrets().get(&name).await?;
        is_ours(&secret)?;
        assert_eq!(secret.data, before.data, "{name}");
        ensure!(certificates.get_opt(&name).await?.is_none(), "{name}");
        let notes = ingresses.get(&name).await?.metadata.annotations;
        ensure!(notes.is_none_or(|notes| notes.is_empty()), "{name}");
        assert_eq!(space.generation("Deployment", &name).await?, 1, "{name}");
    }
    assert_eq!(
        cuts, 4,
        "a write for each step of docs/migrate-from-cert-manager.md"
    );
    // Each of its writes is for one object, and is refused where another one has its name.
    proxies.rule(|_| Fault::Pass);
    proxies.try_before(wrong);
    theirs("guarded").await?;
    let run = adopt_by(&kubeconfig, &space, &["--apply"]).await?;
    ensure!(run.status.success(), "{}", said(&run));
    let answers = proxies.answers();
    for name in [
        "DELETE certificates: uid",
        "PATCH secrets: uid",
        "PATCH secrets: version",
    ] {
        ensure!(answers.contains_key(name), "{name} is not in {answers:?}");
    }
    for (name, statuses) in &answers {
        let refused = statuses.iter().all(|status| [409, 422].contains(status));
        ensure!(refused, "{name} was answered {statuses:?}");
    }
    Ok(())
}

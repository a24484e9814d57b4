//! What is there before the thief comes.

use http::Request;
use kube::Client;
use kube::api::PostParams;
use serde_json::{Value, json};
use test_bench::objects::{OLD, Reference, Space, pair, workload};
use test_bench::{Context as _, Operator, Result};

use super::tries::{OURS, PATH, http_route, ingress, labelled, merge, named};
use super::{path, typed};

/// What the tries are about.
pub(super) async fn set_up(operator: &Operator<'_>, space: &Space) -> Result<()> {
    let home = operator.namespace();
    let client = &space.client;
    let old = pair(&["thief.example"], OLD)?;
    let owner = post(
        client,
        &space.name,
        "configmaps",
        named(
            "foreign",
            labels(json!({"cert-renew.io/certificate": "false"})),
        ),
    )
    .await?;
    let owners = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "foreign", "uid": owner["metadata"]["uid"]}]);
    // Beside what the operator may write stands what others have written, for a thief to take away.
    let kept = json!({"metadata": {
        "labels": {"example.com/team": "shop"}, "annotations": {"example.com/kept": "yes"}, "ownerReferences": owners,
    }});
    for (name, annotations) in [
        ("foreign", &[][..]),
        ("labelled", &[]),
        (
            "tls",
            &[
                ("issuer", "pebble"),
                ("state.cert-renew.io/rolled-out", "x"),
            ],
        ),
        ("declared", &[("issuer", "pebble"), ("declared", "true")]),
        ("withdrawn", &[("issuer", "pebble"), ("declared", "false")]),
        ("external", &[("issuer", "external"), ("declared", "true")]),
    ] {
        space.tls_secret(name, Some(&old), annotations).await?;
    }
    let mut more = kept.clone();
    merge(
        &mut more,
        json!({"data": {"more": "eA=="}, "immutable": false}),
    );
    space.merge("tls", more).await?;
    space
        .merge("foreign", labels(json!({"cert-renew.io/managed": "false"})))
        .await?;
    space
        .merge("labelled", labels(json!({"cert-renew.io/managed": "true"})))
        .await?;
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicationController",
        "ReplicaSet",
    ] {
        let mut web = workload(kind, "web", 2, Reference::Env, "tls");
        merge(&mut web, foreign());
        let web = serde_json::from_value(web)?;
        space
            .workloads(kind)
            .create(&PostParams::default(), &web)
            .await?;
    }
    let config = "solvers:\n- http01:\n    route: ingress\n    ingress:\n      annotations:\n        \
                  example.com/named: |\n          a value\n          of two lines\n";
    // As a thief has made it, and given it outputs.
    let planted = named(
        "planted",
        json!({
            "type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""},
            "metadata": {"annotations": {"cert-renew.io/declared": "true", "cert-renew.io/outputs": "token=key"}},
        }),
    );
    let mut declares = named("declares", kept);
    merge(
        &mut declares,
        json!({"data": {"x": "y"}, "metadata": {
            "annotations": {"state.cert-renew.io/state": "ok"},
            "labels": {"cert-renew.io/certificate": "true", "state.cert-renew.io/state": "ok"},
        }}),
    );
    let event = |name: &str, controller: &str| {
        named(
            name,
            json!({
                "eventTime": "2026-01-01T00:00:00.000000Z", "action": "x", "reason": "X", "type": "Normal",
                "reportingController": controller, "reportingInstance": "x",
                "regarding": {"apiVersion": "v1", "kind": "Secret", "name": "tls", "namespace": space.name},
            }),
        )
    };
    for (namespace, resource, object) in [
        (
            home,
            "secrets",
            named(
                "record",
                json!({"type": "cert-renew.io/order-record", "metadata": {
                    "labels": {"example.com/team": "shop"}, "annotations": {"example.com/kept": "yes"},
                }}),
            ),
        ),
        (home, "secrets", planted),
        (
            &space.name,
            "secrets",
            named("record", json!({"type": "cert-renew.io/order-record"})),
        ),
        (home, "secrets", named("foreign", json!({"type": "Opaque"}))),
        (home, "configmaps", named("cert-renew-ledger", json!({}))),
        (
            home,
            "configmaps",
            named(
                "cert-renew-config",
                json!({"data": {"config.yaml": config}}),
            ),
        ),
        (&space.name, "configmaps", declares),
        (
            &space.name,
            "configmaps",
            named("cert-renew-ledger", json!({})),
        ),
        (home, "leases", named("cert-renew", json!({"spec": {}}))),
        (home, "ingresses", labelled("route", ingress(PATH, OURS))),
        (home, "ingresses", named("foreign", ingress(PATH, OURS))),
        (
            home,
            "httproutes",
            labelled("route", http_route(PATH, OURS)),
        ),
        (home, "httproutes", named("foreign", http_route(PATH, OURS))),
        (
            &space.name,
            "events",
            event("ours", "cert-renew.io/cert-renew"),
        ),
        (&space.name, "events", event("theirs", "kubelet")),
    ] {
        post(client, namespace, resource, object).await?;
    }
    Ok(())
}

/// A Rollout gets what others have written when it is there.
pub(super) fn foreign() -> Value {
    let note =
        |key: &str, value: &str| json!({key: value, "state.cert-renew.io/leaf.former": "00"});
    json!({
        "metadata": {"labels": {"example.com/team": "shop"}, "annotations": note("example.com/kept", "yes")},
        "spec": {"minReadySeconds": 1, "template": {"metadata": {
            "name": "web", "labels": {"example.com/team": "shop"}, "annotations": note("sidecar.istio.io/inject", "true"),
        }}},
    })
}

fn labels(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

async fn post(client: &Client, namespace: &str, resource: &str, object: Value) -> Result<Value> {
    let request = Request::post(format!("/{}", path(namespace, resource, "")))
        .header("content-type", "application/json")
        .body(typed(resource, object).to_string().into_bytes())?;
    client
        .request(request)
        .await
        .with_context(|| format!("making {resource} in {namespace}"))
}

//! In the namespaces of users, and in the whole cluster.

use serde_json::{Value, json};

use super::{Try, merge, named};

/// In any other namespace.
pub(in crate::stolen_token) fn elsewhere(namespace: &str) -> Vec<Try> {
    let leaf = json!({"metadata": {"annotations": {"state.cert-renew.io/leaf.tls": "00"}}});
    let template = |body: Value| json!({"spec": {"template": body}});
    let note = |key: &str| json!({"metadata": {"annotations": {key: "x"}}});
    let image = || template(json!({"spec": {"containers": [{"name": "main", "image": "evil"}]}}));
    let event = |controller: &str, kind: &str| {
        json!({
            "metadata": {"name": "new"},
            "eventTime": "2026-01-01T00:00:00.000000Z", "action": "x", "reason": "X", "type": "Normal",
            "reportingController": controller, "reportingInstance": "x",
            "regarding": {"apiVersion": "v1", "kind": kind, "name": "tls", "namespace": namespace},
        })
    };
    let controller = "cert-renew.io/cert-renew";
    let series =
        || json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}});
    // The Secret of a declaration, as the operator makes it, with something else.
    let empty = |more: Value| {
        let mut it = named(
            "new",
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""}, "metadata": {
                "annotations": {"cert-renew.io/declared": "true", "state.cert-renew.io/declaration": "{}", "cert-renew.io/issuer": "a"},
                "labels": {"cert-renew.io/managed": "true", "app.kubernetes.io/managed-by": "cert-renew"},
            }}),
        );
        merge(&mut it, more);
        it
    };
    let only_empty = Some("and makes empty TLS Secrets for declarations");
    let on_declaration = Some("of a ConfigMap that declares a certificate");
    let mut tries = vec![
        (
            "create",
            "tokenreviews",
            "",
            json!({"spec": {"token": "a.b.c"}}),
            None,
        ),
        (
            "create",
            "subjectaccessreviews",
            "",
            json!({"spec": {"user": "x", "resourceAttributes": {"verb": "get", "resource": "secrets"}}}),
            None,
        ),
        (
            "patch",
            "secrets",
            "tls",
            json!({"data": {"tls.crt": "eA=="}}),
            None,
        ),
        (
            "patch",
            "secrets",
            "tls",
            json!({"data": {"other": "eA=="}}),
            Some("of a Secret's data"),
        ),
        (
            "patch",
            "secrets",
            "tls",
            json!({"data": {"more": null}}),
            Some("of a Secret's data"),
        ),
        (
            "patch",
            "secrets",
            "tls",
            note("cert-renew.io/names"),
            Some("of a Secret's annotations"),
        ),
        (
            "patch",
            "secrets",
            "tls",
            json!({"metadata": {"labels": {"x": "y"}}}),
            Some("of a Secret's metadata"),
        ),
        (
            "patch",
            "secrets",
            "tls",
            json!({"immutable": true}),
            Some("whether it is immutable"),
        ),
        (
            "patch",
            "secrets",
            "foreign",
            json!({"data": {"tls.crt": "eA=="}}),
            Some("have opted in"),
        ),
        (
            "patch",
            "secrets",
            "declared",
            note("cert-renew.io/names"),
            None,
        ),
        (
            "patch",
            "secrets",
            "declared",
            note("cert-renew.io/issuer"),
            None,
        ),
        (
            "patch",
            "secrets",
            "declared",
            note("cert-renew.io/outputs"),
            None,
        ),
        (
            "patch",
            "secrets",
            "declared",
            json!({"metadata": {"annotations": {"cert-renew.io/declared": null}}}),
            Some("and the settings of one that is declared"),
        ),
        (
            "patch",
            "secrets",
            "declared",
            note("example.com/x"),
            Some("and the settings of one that is declared"),
        ),
        ("create", "secrets", "", empty(json!({})), None),
        (
            "create",
            "secrets",
            "",
            empty(json!({"data": {"tls.crt": "eA=="}})),
            only_empty,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"data": {"other": ""}})),
            only_empty,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"immutable": true})),
            only_empty,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"metadata": {"annotations": {"example.com/x": "y"}}})),
            only_empty,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"metadata": {"annotations": {"cert-renew.io/declared": null}}})),
            only_empty,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"metadata": {"labels": {"x": "y"}}})),
            only_empty,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"metadata": {"finalizers": ["example.com/x"]}})),
            only_empty,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"type": "Opaque"})),
            only_empty,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({
                "type": "kubernetes.io/service-account-token",
                "metadata": {"annotations": {"kubernetes.io/service-account.name": "default"}},
            })),
            only_empty,
        ),
        (
            "patch",
            "configmaps",
            "declares",
            json!({"metadata": {
                "annotations": {"state.cert-renew.io/state": "ok"}, "labels": {"state.cert-renew.io/state": "ok"},
            }}),
            None,
        ),
        (
            "patch",
            "configmaps",
            "declares",
            json!({"data": {"x": "z"}}),
            on_declaration,
        ),
        (
            "patch",
            "configmaps",
            "declares",
            note("cert-renew.io/names"),
            on_declaration,
        ),
        (
            "patch",
            "configmaps",
            "declares",
            json!({"metadata": {"labels": {"cert-renew.io/certificate": null}}}),
            on_declaration,
        ),
        (
            "patch",
            "configmaps",
            "declares",
            json!({"metadata": {"finalizers": ["a.b/c"]}}),
            on_declaration,
        ),
        (
            "patch",
            "configmaps",
            "foreign",
            note("state.cert-renew.io/state"),
            Some("makes and changes only cert-renew-ledger and cert-renew"),
        ),
        ("create", "events", "", event(controller, "Secret"), None),
        (
            "create",
            "events",
            "",
            event("kubelet", "Secret"),
            Some("reports its own Events only"),
        ),
        (
            "create",
            "events",
            "",
            event(controller, "Node"),
            Some("on what declares them and on workloads only"),
        ),
        (
            "create",
            "events",
            "",
            {
                let mut it = event(controller, "Secret");
                it["regarding"]["namespace"] = "kube-system".into();
                it
            },
            Some("on what declares them and on workloads only"),
        ),
        ("patch", "events", "ours", series(), None),
        (
            "patch",
            "events",
            "theirs",
            series(),
            Some("reports its own Events only"),
        ),
        (
            "patch",
            "rollouts",
            "shop",
            json!({"spec": {"restartAt": "2026-01-01T00:00:00Z"}}),
            None,
        ),
        (
            "patch",
            "rollouts",
            "shop",
            json!({"spec": {"paused": true}}),
            Some("restartAt only"),
        ),
        (
            "patch",
            "rollouts",
            "shop",
            note("x"),
            Some("of a Rollout's own metadata"),
        ),
        (
            "create",
            "pods/eviction",
            "any",
            named(
                "any",
                json!({"apiVersion": "policy/v1", "kind": "Eviction"}),
            ),
            Some("by its uid only"),
        ),
        (
            "create",
            "pods/eviction",
            "any",
            named(
                "any",
                json!({"apiVersion": "policy/v1", "kind": "Eviction", "deleteOptions": {"preconditions": {"uid": "any"}}}),
            ),
            None,
        ),
        (
            "create",
            "pods/eviction",
            "any",
            named(
                "any",
                json!({"apiVersion": "policy/v1", "kind": "Eviction", "deleteOptions": {"gracePeriodSeconds": 0, "preconditions": {"uid": "any"}}}),
            ),
            Some("the time that the pod's own spec gives it"),
        ),
    ];
    for odd in [
        json!({"propagationPolicy": "Foreground"}),
        json!({"orphanDependents": true}),
    ] {
        let mut options = json!({"preconditions": {"uid": "any"}});
        merge(&mut options, odd);
        let eviction =
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "deleteOptions": options});
        let refused = Some("the time that the pod's own spec gives it");
        tries.push((
            "create",
            "pods/eviction",
            "any",
            named("any", eviction),
            refused,
        ));
    }
    for kind in [
        "deployments",
        "statefulsets",
        "daemonsets",
        "replicationcontrollers",
        "replicasets",
    ] {
        tries.extend([
            ("patch", kind, "web", template(leaf.clone()), None),
            (
                "patch",
                kind,
                "web",
                image(),
                Some("of a pod template, cert-renew changes annotations only"),
            ),
            (
                "patch",
                kind,
                "web",
                template(note("x")),
                Some("state.cert-renew.io/leaf. only"),
            ),
            (
                "patch",
                kind,
                "web",
                json!({"spec": {"minReadySeconds": 9}}),
                Some("annotations of the pod template only"),
            ),
            (
                "patch",
                kind,
                "web",
                note("x"),
                Some("nothing of a workload's own metadata"),
            ),
        ]);
    }
    tries
}

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
            Some("on Secrets and workloads only"),
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
            Some("on Secrets and workloads only"),
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

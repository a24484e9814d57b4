//! In the namespaces of users, and in the whole cluster.

use serde_json::json;

use super::{ONLY_EMPTY, Try, empty, merge, named, no_note, note, without};

/// In any other namespace.
pub(in crate::stolen_token) fn elsewhere(namespace: &str) -> Vec<Try> {
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
    let of_data = Some("of a Secret's data");
    let of_metadata = Some("of a Secret's metadata");
    let of_notes = Some("of a Secret's annotations");
    let of_settings = Some("and the settings of one that is declared");
    let records = Some("makes and deletes nothing but its account keys and order records");
    let on_declaration = Some("of a ConfigMap that declares a certificate");
    let record = |kind: &str| named("new", json!({"type": kind, "data": {"x": "eA=="}}));
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
            of_data,
        ),
        (
            "patch",
            "secrets",
            "tls",
            json!({"data": {"more": null}}),
            of_data,
        ),
        (
            "patch",
            "secrets",
            "tls",
            note("cert-renew.io/names"),
            of_notes,
        ),
        (
            "patch",
            "secrets",
            "tls",
            json!({"metadata": {"labels": {"x": "y"}}}),
            of_metadata,
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
            of_settings,
        ),
        (
            "patch",
            "secrets",
            "declared",
            note("example.com/x"),
            of_settings,
        ),
        ("patch", "secrets", "tls", without("labels"), of_metadata),
        (
            "patch",
            "secrets",
            "tls",
            without("ownerReferences"),
            of_metadata,
        ),
        (
            "patch",
            "secrets",
            "tls",
            no_note("example.com/kept"),
            of_notes,
        ),
        (
            "patch",
            "secrets",
            "tls",
            no_note("state.cert-renew.io/rolled-out"),
            None,
        ),
        (
            "patch",
            "secrets",
            "tls",
            json!({"immutable": null}),
            Some("whether it is immutable"),
        ),
        (
            "patch",
            "secrets",
            "labelled",
            json!({"data": {"tls.crt": "eA=="}}),
            None,
        ),
        (
            "patch",
            "secrets",
            "withdrawn",
            note("cert-renew.io/names"),
            of_notes,
        ),
        (
            "patch",
            "secrets",
            "declared",
            no_note("cert-renew.io/issuer"),
            None,
        ),
        (
            "patch",
            "secrets",
            "declared",
            note("cert-renew.io/declared"),
            of_settings,
        ),
        // One declares it, and another fills it.
        (
            "patch",
            "secrets",
            "external",
            json!({"data": {"tls.crt": "eA=="}}),
            Some("never where the issuer is external"),
        ),
        (
            "patch",
            "secrets",
            "external",
            json!({"data": {"more": "eA=="}}),
            Some("never where the issuer is external"),
        ),
        (
            "patch",
            "secrets",
            "external",
            note("state.cert-renew.io/rolled-out"),
            None,
        ),
        (
            "patch",
            "secrets",
            "external",
            note("cert-renew.io/issuer"),
            None,
        ),
        // Account keys and order records are made at home only, and only there they need not have opted in.
        (
            "create",
            "secrets",
            "",
            record("cert-renew.io/account"),
            records,
        ),
        (
            "create",
            "secrets",
            "",
            record("cert-renew.io/order-record"),
            records,
        ),
        (
            "patch",
            "secrets",
            "record",
            json!({"data": {"x": "eQ=="}}),
            Some("have opted in"),
        ),
        ("create", "secrets", "", empty(json!({})), None),
        (
            "create",
            "secrets",
            "",
            empty(json!({"data": {"tls.crt": "eA=="}})),
            ONLY_EMPTY,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"data": {"other": ""}})),
            ONLY_EMPTY,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"immutable": true})),
            ONLY_EMPTY,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"metadata": {"annotations": {"example.com/x": "y"}}})),
            ONLY_EMPTY,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"metadata": {"annotations": {"cert-renew.io/declared": null}}})),
            ONLY_EMPTY,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"metadata": {"labels": {"x": "y"}}})),
            ONLY_EMPTY,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"metadata": {"finalizers": ["example.com/x"]}})),
            ONLY_EMPTY,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"type": "Opaque"})),
            ONLY_EMPTY,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({
                "type": "kubernetes.io/service-account-token",
                "metadata": {"annotations": {"kubernetes.io/service-account.name": "default"}},
            })),
            ONLY_EMPTY,
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
        (
            "patch",
            "configmaps",
            "declares",
            json!({"metadata": {"annotations": {"state.cert-renew.io/state": null}, "labels": {"state.cert-renew.io/state": null}}}),
            None,
        ),
        (
            "patch",
            "configmaps",
            "declares",
            json!({"data": null}),
            on_declaration,
        ),
        (
            "patch",
            "configmaps",
            "declares",
            no_note("example.com/kept"),
            on_declaration,
        ),
        (
            "patch",
            "configmaps",
            "declares",
            without("ownerReferences"),
            on_declaration,
        ),
        (
            "patch",
            "configmaps",
            "cert-renew-ledger",
            json!({"data": {"x": "y"}}),
            Some("makes and changes only cert-renew-ledger and cert-renew"),
        ),
        ("create", "events", "", event(controller, "Secret"), None),
        ("create", "events", "", event(controller, "Ingress"), None),
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
    tries
}

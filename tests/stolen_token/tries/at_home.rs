//! In the namespace of the operator.

use serde_json::{Value, json};

use super::{
    ONLY_EMPTY, OURS, PATH, Try, empty, http_route, ingress, labelled, merge, named, note, put,
};

/// In the operator's own namespace.
pub(in crate::stolen_token) fn at_home() -> Vec<Try> {
    let record = || json!({"type": "cert-renew.io/order-record", "data": {"x": "eA=="}});
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    let only_its = Some("makes and changes only cert-renew-ledger and cert-renew");
    let metadata = Some("sets the label app.kubernetes.io/name only");
    let own_routes = Some("makes and deletes only routes of its own");
    let bare = Some("has its two labels and no other metadata");
    let an_ingress = Some("an Ingress of cert-renew leads the challenges");
    let its_own_labels =
        Some("account keys and order records, cert-renew sets its own labels only");
    let a_route = Some("an HTTPRoute of cert-renew leads the challenges");
    let only_named = Some("only those that its config file names");
    let annotated = |value: &str| {
        let mut it = ingress(PATH, OURS);
        it["metadata"] = json!({"annotations": {"example.com/named": value}});
        it
    };
    let mut unlabelled = labelled("new", ingress(PATH, OURS));
    unlabelled["metadata"]["labels"] = json!({});
    let mut catch_all = ingress(PATH, OURS);
    catch_all["spec"]["defaultBackend"] = json!({"service": {"name": "x", "port": {"number": 80}}});
    let mut any_host = ingress(PATH, OURS);
    any_host["spec"]["rules"][0]["host"] = Value::Null;
    let mut to_a_bucket = ingress(PATH, OURS);
    to_a_bucket["spec"]["rules"][0]["http"]["paths"][0]["backend"] = json!({
        "resource": {"apiGroup": "example.com", "kind": "Bucket", "name": "x"},
    });
    let finalized = json!({"metadata": {"finalizers": ["example.com/x"]}});
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"});
    let owned = json!({"metadata": {"ownerReferences": [owner]}});
    let mut elsewhere = http_route(PATH, OURS);
    elsewhere["spec"]["rules"][0]["backendRefs"][0]["namespace"] = "shop".into();
    let mut redirects = http_route(PATH, OURS);
    redirects["spec"]["rules"][0]["filters"] =
        json!([{"type": "RequestRedirect", "requestRedirect": {"hostname": "evil.example"}}]);
    let mut tries = vec![
        ("create", "secrets", "", named("new", record()), None),
        (
            "create",
            "secrets",
            "",
            named("new", json!({"type": "Opaque"})),
            Some("makes and deletes nothing but"),
        ),
        (
            "create",
            "secrets",
            "",
            named("new", {
                let mut it = record();
                merge(&mut it, json!({"metadata": {"labels": {"x": "y"}}}));
                it
            }),
            its_own_labels,
        ),
        (
            "patch",
            "secrets",
            "record",
            json!({"data": {"x": "eQ=="}}),
            None,
        ),
        (
            "patch",
            "secrets",
            "record",
            json!({"metadata": {"annotations": {"x": "y"}}}),
            its_own_labels,
        ),
        (
            "patch",
            "secrets",
            "record",
            json!({"metadata": {"finalizers": ["example.com/x"]}}),
            its_own_labels,
        ),
        (
            "patch",
            "secrets",
            "foreign",
            json!({"data": {"x": "eQ=="}}),
            Some("have opted in"),
        ),
        ("delete", "secrets", "record", Value::Null, None),
        (
            "delete",
            "secrets",
            "foreign",
            Value::Null,
            Some("makes and deletes nothing but"),
        ),
        // A Secret that the config names and that is not there yet can be planted: made empty, then filled.
        (
            "create",
            "secrets",
            "",
            empty(json!({"metadata": {
                "name": "dns-credentials", "annotations": {"cert-renew.io/outputs": "token=key"},
            }})),
            None,
        ),
        (
            "patch",
            "secrets",
            "planted",
            json!({"data": {"token": "eA=="}}),
            None,
        ),
        (
            "create",
            "secrets",
            "",
            empty(json!({"data": {"token": "eA=="}})),
            ONLY_EMPTY,
        ),
        (
            "create",
            "secrets",
            "",
            empty(label("app.kubernetes.io/managed-by")),
            ONLY_EMPTY,
        ),
        (
            "create",
            "secrets",
            "",
            empty(note("state.cert-renew.io/rolled-out")),
            ONLY_EMPTY,
        ),
        (
            "create",
            "configmaps",
            "",
            named("cert-renew-ledger", json!({"data": {"x": "y"}})),
            None,
        ),
        (
            "create",
            "configmaps",
            "",
            named(
                "cert-renew-config",
                json!({"data": {"config.yaml": "issuers: {}"}}),
            ),
            only_its,
        ),
        (
            "create",
            "configmaps",
            "",
            named("cert-renew-names", json!({})),
            only_its,
        ),
        (
            "create",
            "configmaps",
            "",
            named("cert-renew-ledger", label("grafana_dashboard")),
            metadata,
        ),
        (
            "patch",
            "configmaps",
            "cert-renew-ledger",
            json!({"data": {"x": "y"}}),
            None,
        ),
        (
            "patch",
            "configmaps",
            "cert-renew-config",
            json!({"data": {"config.yaml": "issuers: {}"}}),
            only_its,
        ),
        (
            "patch",
            "configmaps",
            "cert-renew-config",
            json!({"metadata": {"labels": {"cert-renew.io/certificate": "true"}}}),
            only_its,
        ),
        (
            "patch",
            "configmaps",
            "cert-renew-ledger",
            label("grafana_dashboard"),
            metadata,
        ),
        (
            "patch",
            "configmaps",
            "cert-renew-ledger",
            label("app.kubernetes.io/name"),
            metadata,
        ),
        (
            "patch",
            "configmaps",
            "cert-renew-ledger",
            note("example.com/x"),
            metadata,
        ),
        (
            "patch",
            "configmaps",
            "cert-renew-ledger",
            json!({"metadata": {"finalizers": ["a.b/c"]}}),
            metadata,
        ),
        (
            "create",
            "leases",
            "",
            named("cert-renew", json!({"spec": {}})),
            None,
        ),
        (
            "create",
            "leases",
            "",
            named("another", json!({"spec": {}})),
            only_its,
        ),
        (
            "patch",
            "leases",
            "cert-renew",
            json!({"spec": {"holderIdentity": "thief"}}),
            None,
        ),
        ("patch", "leases", "cert-renew", label("x"), metadata),
        (
            "create",
            "ingresses",
            "",
            labelled("new", ingress(PATH, OURS)),
            None,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", ingress("/.well-known/acme-challenge", OURS)),
            None,
        ),
        ("create", "ingresses", "", unlabelled, own_routes),
        (
            "create",
            "ingresses",
            "",
            labelled("new", {
                let mut it = ingress(PATH, OURS);
                merge(&mut it, label("x"));
                it
            }),
            bare,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", ingress("/", OURS)),
            an_ingress,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled(
                "new",
                ingress("/.well-known/acme-challenge/; deny all", OURS),
            ),
            an_ingress,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", ingress(PATH, "kubernetes")),
            an_ingress,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", catch_all),
            an_ingress,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", any_host),
            an_ingress,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", to_a_bucket),
            an_ingress,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", {
                let mut it = ingress(PATH, OURS);
                it["spec"]["tls"] = json!([{"hosts": ["shop.example"], "secretName": "tls"}]);
                it
            }),
            an_ingress,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", {
                let mut it = ingress(PATH, OURS);
                merge(
                    &mut it,
                    note("nginx.ingress.kubernetes.io/configuration-snippet"),
                );
                it
            }),
            only_named,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", annotated("a value")),
            None,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", annotated("another value")),
            only_named,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", annotated("a value\ndeny all;")),
            only_named,
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", annotated("a value\n  of two lines")),
            None,
        ),
        ("delete", "ingresses", "route", Value::Null, None),
        ("delete", "ingresses", "foreign", Value::Null, own_routes),
        (
            "create",
            "httproutes",
            "",
            labelled("new", http_route(PATH, OURS)),
            None,
        ),
        (
            "create",
            "httproutes",
            "",
            labelled("new", http_route("/", OURS)),
            a_route,
        ),
        (
            "create",
            "httproutes",
            "",
            labelled("new", http_route(PATH, "kubernetes")),
            a_route,
        ),
        (
            "create",
            "httproutes",
            "",
            labelled("new", elsewhere),
            a_route,
        ),
        (
            "create",
            "httproutes",
            "",
            labelled("new", redirects),
            a_route,
        ),
        (
            "create",
            "httproutes",
            "",
            labelled("new", {
                let mut it = http_route(PATH, OURS);
                merge(&mut it, note("example.com/x"));
                it
            }),
            a_route,
        ),
        ("delete", "httproutes", "route", Value::Null, None),
        ("delete", "httproutes", "foreign", Value::Null, own_routes),
    ];
    for metadata in [finalized, owned] {
        for (resource, mut route) in [
            ("ingresses", ingress(PATH, OURS)),
            ("httproutes", http_route(PATH, OURS)),
        ] {
            merge(&mut route, metadata.clone());
            tries.push(("create", resource, "", labelled("new", route), bare));
        }
    }
    for (at, odd) in [
        ("/spec/hostnames", json!([])),
        // The API server puts `/` there.
        ("/spec/rules/0/matches", json!([])),
        (
            "/spec/rules/0/matches/0/headers",
            json!([{"name": "x", "value": "y"}]),
        ),
        (
            "/spec/rules/0/matches/0/path/type",
            json!("RegularExpression"),
        ),
        ("/spec/rules/0/backendRefs", json!([])),
        ("/spec/rules/0/backendRefs/0/kind", json!("ServiceImport")),
        ("/spec/rules/0/backendRefs/0/group", json!("example.com")),
        (
            "/spec/rules/0/backendRefs/0/filters",
            json!([{"type": "RequestRedirect", "requestRedirect": {"hostname": "evil.example"}}]),
        ),
    ] {
        let mut route = http_route(PATH, OURS);
        put(&mut route, at, odd);
        tries.push(("create", "httproutes", "", labelled("new", route), a_route));
    }
    tries
}

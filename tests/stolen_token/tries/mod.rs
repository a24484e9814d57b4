//! What a thief tries: of each right something that the operator does, and what it never does.

use serde_json::{Value, json};

/// A try to change something: the right, the object's name, the body, and what refuses it.
pub(super) type Try = (
    &'static str,
    &'static str,
    &'static str,
    Value,
    Option<&'static str>,
);

pub(super) fn named(name: &str, rest: Value) -> Value {
    let mut object = json!({"metadata": {"name": name}});
    merge(&mut object, rest);
    object
}

pub(super) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

pub(super) fn labelled(name: &str, rest: Value) -> Value {
    let labels =
        json!({"app.kubernetes.io/name": "cert-renew", "cert-renew.io/challenge-route": "true"});
    let mut object = named(name, json!({"metadata": {"labels": labels}}));
    merge(&mut object, rest);
    object
}

pub(super) fn ingress(path: &str, service: &str) -> Value {
    let backend = json!({"service": {"name": service, "port": {"number": 80}}});
    let path = json!({"path": path, "pathType": "Exact", "backend": backend});
    json!({"spec": {"rules": [{"host": "shop.example", "http": {"paths": [path]}}]}})
}

pub(super) fn http_route(path: &str, service: &str) -> Value {
    let rule = json!({
        "matches": [{"path": {"type": "PathPrefix", "value": path}}],
        "backendRefs": [{"name": service, "port": 80}],
    });
    json!({"spec": {"parentRefs": [{"name": "public"}], "hostnames": ["shop.example"], "rules": [rule]}})
}

pub(super) const PATH: &str = "/.well-known/acme-challenge/abc-_123";
pub(super) const OURS: &str = "cert-renew-challenge";

/// In the operator's own namespace.
pub(super) fn at_home() -> Vec<Try> {
    let record = || json!({"type": "cert-renew.io/order-record", "data": {"x": "eA=="}});
    let note = |key: &str| json!({"metadata": {"annotations": {key: "x"}}});
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    let only_its = Some("makes and changes only cert-renew-ledger and cert-renew");
    let metadata = Some("sets the label app.kubernetes.io/name only");
    let own_routes = Some("makes and deletes only routes of its own");
    let bare = Some("has its two labels and no other metadata");
    let an_ingress = Some("an Ingress of cert-renew leads the challenges");
    let its_own_labels =
        Some("account keys and order records, cert-renew sets its own labels only");
    let a_route = Some("an HTTPRoute of cert-renew leads the challenges");
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
            "cert-renew-ledger",
            label("grafana_dashboard"),
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
            Some("only those that its config file names"),
        ),
        (
            "create",
            "ingresses",
            "",
            labelled("new", {
                let mut it = ingress(PATH, OURS);
                it["metadata"] = json!({"annotations": {"example.com/named": "a value"}});
                it
            }),
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

/// Sets what a JSON pointer names; the last step may be new.
fn put(object: &mut Value, at: &str, value: Value) {
    let (parent, last) = at.rsplit_once('/').unwrap_or_default();
    if let Some(parent) = object.pointer_mut(parent) {
        parent[last] = value;
    }
}
/// In any other namespace.
pub(super) fn elsewhere(namespace: &str) -> Vec<Try> {
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

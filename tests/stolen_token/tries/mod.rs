//! What a thief tries: of each right something that the operator does, and what it never does.

pub(super) mod at_home;
pub(super) mod elsewhere;
pub(super) mod workloads;

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

/// The Secret of a declaration, as the operator makes it, with something else.
fn empty(more: Value) -> Value {
    let mut it = named(
        "new",
        json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""}, "metadata": {
            "annotations": {"cert-renew.io/declared": "true", "state.cert-renew.io/declaration": "{}", "cert-renew.io/issuer": "a"},
            "labels": {"cert-renew.io/managed": "true", "app.kubernetes.io/managed-by": "cert-renew"},
        }}),
    );
    merge(&mut it, more);
    it
}

/// What is said where it is not empty, or where something is on it that others go by.
const ONLY_EMPTY: Option<&str> = Some("and makes empty TLS Secrets for declarations");

/// A patch that sets an annotation, and one that takes it away.
fn note(key: &str) -> Value {
    json!({"metadata": {"annotations": {key: "x"}}})
}

fn no_note(key: &str) -> Value {
    json!({"metadata": {"annotations": {key: null}}})
}

/// A patch that takes a field of the metadata away.
fn without(key: &str) -> Value {
    json!({"metadata": {key: null}})
}

/// Sets what a JSON pointer names; the last step may be new.
fn put(object: &mut Value, at: &str, value: Value) {
    let (parent, last) = at.rsplit_once('/').unwrap_or_default();
    if let Some(parent) = object.pointer_mut(parent) {
        parent[last] = value;
    }
}

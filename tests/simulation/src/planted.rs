//! Faults of the operator's, put on between it and the world: what the world would see of an operator that has them.
//! Each has to be found; nothing of them is in the operator.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cert_renew_core::secret::keys;
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::checks::{annotation, data};
use crate::objects::{CONFIG_MAPS, DEPLOYMENTS, Key, SECRETS, merge, timestamp};
use crate::world::{HOME, State};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planted(pub &'static str);

/// All of them: the name, what it is, and words of the check that finds it.
pub const ALL: [(&str, &str, &str); 15] = [
    (
        "gate",
        "a replica writes although it does not lead",
        "does not lead",
    ),
    (
        "precondition",
        "patches say no version",
        "without saying which",
    ),
    (
        "retry-after",
        "the CA's Retry-After is not heeded",
        "Retry-After",
    ),
    (
        "early",
        "rolled-out is written with the certificate",
        "rolled-out",
    ),
    (
        "twice",
        "each restart is written a second time",
        "restarted again",
    ),
    (
        "record",
        "the order's record is not kept",
        "without a cause",
    ),
    (
        "left",
        "the order's record is not deleted",
        "is left in the end",
    ),
    (
        "before",
        "the order's record is deleted before the certificate is written",
        "without a cause",
    ),
    (
        "uncounted",
        "certificates are not counted in the ledger",
        "more often than the CA allows",
    ),
    (
        "window",
        "the CA's window is taken for one that is over",
        "without a cause",
    ),
    (
        "key",
        "a certificate is written with another key",
        "with another key",
    ),
    (
        "leak",
        "a private key is written into an annotation too",
        "a private key leaves",
    ),
    (
        "unwritten",
        "a certificate is taken for written and is not",
        "without a cause",
    ),
    (
        "unrolled",
        "a workload is taken for restarted and is not",
        "serve",
    ),
    (
        "leaf",
        "a workload is restarted for another Secret's certificate",
        "has no more",
    ),
];

impl Planted {
    /// The fault of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let found = ALL.iter().find(|(of, ..)| *of == name);
        found.map(|(name, ..)| Self(name))
    }
}

impl fmt::Display for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl State {
    /// Changes a patch as the planted fault would have written it.
    pub fn distort(&self, key: &Key, patch: &mut Value) {
        let of_users = key.kind == &SECRETS && key.namespace != HOME;
        if self.planted_is("precondition") && (of_users || key.kind == &DEPLOYMENTS) {
            patch["metadata"]["resourceVersion"] = Value::Null;
            patch["metadata"]["uid"] = Value::Null;
        }
        if self.planted_is("leaf") && key.kind == &DEPLOYMENTS {
            self.confuse(key, patch);
        }
        self.uncount(key, patch);
        if let Some(private) = data(patch, "tls.key").filter(|_| self.planted_is("leak")) {
            patch["metadata"]["annotations"]["example.com/note"] = json!(private);
        }
        if self.planted_is("key") && of_users && data(patch, "tls.key").is_some() {
            let other = KeyPair::generate().unwrap_or_else(|error| panic!("{error}"));
            patch["data"]["tls.key"] = json!(BASE64_STANDARD.encode(other.serialize_pem()));
        }
        if self.planted_is("early") && of_users {
            let known =
                { self.objects.get(key) }.filter(|it| annotation(it, keys::ROLLED_OUT).is_some());
            let leaf = data(patch, "tls.crt").and_then(|chain| self.ca.find(&chain));
            if let (Some(known), Some(leaf)) = (known, leaf) {
                let it = &self.ca.issued[leaf];
                let uid = known["metadata"]["uid"].as_str().unwrap_or_default();
                let value = format!("{} {} {uid}", it.fingerprint, timestamp(it.not_after));
                patch["metadata"]["annotations"][keys::ROLLED_OUT] = json!(value);
            }
        }
    }

    /// Takes the certificates out of what is written of the ledger.
    pub fn uncount(&self, key: &Key, body: &mut Value) {
        let is_ledger = key.kind == &CONFIG_MAPS && key.namespace == HOME;
        if !is_ledger || !self.planted_is("uncounted") {
            return;
        }
        let entries = body["data"].as_object_mut().into_iter().flatten();
        for (_, entry) in entries {
            let text = entry.as_str().unwrap_or_default();
            let Ok(Value::Object(mut account)) = serde_json::from_str(text) else {
                continue;
            };
            account.retain(|name, _| !matches!(name.as_str(), "unscheduled" | "scheduled"));
            *entry = json!(Value::Object(account).to_string());
        }
    }

    /// Deletes the record of a Secret's order when the certificate is on its way into the Secret.
    pub fn forget_order(&mut self, path: &str, body: &[u8]) {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let ["api", "v1", "namespaces", namespace, "secrets", name] = *parts.as_slice() else {
            return;
        };
        let patch: Value = serde_json::from_slice(body).unwrap_or_default();
        if namespace == HOME || patch["data"].is_null() || !self.planted_is("before") {
            return;
        }
        let is_of_it = |record: &Value| {
            let order = data(record, "order.json").unwrap_or_default();
            let order: Value = serde_json::from_str(&order).unwrap_or_default();
            order["namespace"] == namespace && order["name"] == name
        };
        let record = { self.objects.list(&SECRETS, Some(HOME)) }
            .find(|(_, record)| is_of_it(record))
            .map(|(key, _)| key.clone());
        if let Some(record) = record {
            // It was just found.
            let _ = self.objects.delete(&record, &Value::Null);
        }
    }

    /// Has a restart be one for another Secret's certificate.
    fn confuse(&self, key: &Key, patch: &mut Value) {
        let annotations = patch.pointer_mut("/spec/template/metadata/annotations");
        let Some(annotations) = annotations.and_then(Value::as_object_mut) else {
            return;
        };
        for (name, value) in annotations {
            let Some(secret) = name.strip_prefix(keys::LEAF_PREFIX) else {
                continue;
            };
            let secret = Key::new(&SECRETS, &key.namespace, secret);
            let leaf = { self.objects.get(&secret) }.and_then(|it| self.leaf_in(it));
            let Some(leaf) = leaf.map(|leaf| &self.ca.issued[leaf]) else {
                continue;
            };
            let other = { self.ca.issued.iter() }.find(|it| it.names != leaf.names);
            if let (Some(text), Some(other)) = (value.as_str(), other) {
                *value = json!(text.replace(&leaf.fingerprint, &other.fingerprint));
            }
        }
    }

    /// The answer to a patch that the fault keeps from being carried out.
    #[must_use]
    pub fn pretends(&self, key: &Key, patch: &Value) -> Option<Value> {
        let of_users = key.kind == &SECRETS && key.namespace != HOME;
        let writes = of_users && !patch["data"].is_null();
        let restarts = key.kind == &DEPLOYMENTS && !patch["spec"]["template"].is_null();
        let kept =
            writes && self.planted_is("unwritten") || restarts && self.planted_is("unrolled");
        if !kept {
            return None;
        }
        let mut object = Value::clone(self.objects.get(key)?);
        let version = object["metadata"]["resourceVersion"].clone();
        merge(&mut object, patch);
        object["metadata"]["resourceVersion"] = version;
        Some(object)
    }

    /// Whether the fault keeps this object from being deleted.
    #[must_use]
    pub fn keeps(&self, key: &Key) -> bool {
        let object = self.objects.get(key);
        let is_record = object.is_some_and(|it| it["type"] == "cert-renew.io/order-record");
        key.namespace == HOME && is_record && self.planted_is("left")
    }

    /// A second write of the fault's, after a patch was carried out.
    #[must_use]
    pub fn second_write(&self, key: &Key, patch: &Value) -> Option<Value> {
        let restarts = key.kind == &DEPLOYMENTS && !patch["spec"]["template"].is_null();
        let again = json!({"again": self.objects.version().to_string()});
        let again = json!({"spec": {"template": {"metadata": {"annotations": again}}}});
        (restarts && self.planted_is("twice")).then_some(again)
    }

    /// Whether the fault keeps this new object from being kept.
    #[must_use]
    pub fn loses(&self, key: &Key, object: &Value) -> bool {
        key.namespace == HOME
            && object["type"] == "cert-renew.io/order-record"
            && self.planted_is("record")
    }
}

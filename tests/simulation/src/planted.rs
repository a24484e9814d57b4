//! Faults of the operator's, put on between it and the world: what the world would see of an operator that has them.
//! Each has to be found; nothing of them is in the operator.

use std::fmt;

use cert_renew_core::secret::keys;
use serde_json::{Value, json};

use crate::checks::{annotation, data};
use crate::objects::{DEPLOYMENTS, Key, SECRETS, timestamp};
use crate::world::{HOME, State};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planted(pub &'static str);

/// All of them: the name, what it is, and words of the check that finds it.
pub const ALL: [(&str, &str, &str); 6] = [
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

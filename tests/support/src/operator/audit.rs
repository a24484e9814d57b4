//! What the operator under test has asked of the API server, by the audit log.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Operator;
use crate::install::user;

/// A request of the operator in the audit log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// For example `patch`.
    pub verb: String,
    /// For example `secrets` or `pods/eviction`.
    pub resource: String,
    /// Namespace of the object; empty for all.
    pub namespace: String,
    /// Name of the object; empty for lists and creates.
    pub name: String,
    /// HTTP status of the answer.
    pub status: u16,
}

impl Operator<'_> {
    /// Its requests to the API server until now, without watches, the lease and Events; not those of other replicas.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let mut requests = self.audited(&self.credential)?;
        let aside = ["events", "leases", "selfsubjectrulesreviews"];
        requests.retain(|it| it.verb != "watch" && !aside.contains(&&*it.resource));
        Ok(requests)
    }

    /// All requests of this installation until now, of every replica and of every kind.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn requests_of_all_replicas(&self) -> Result<Vec<Request>> {
        self.audited(&user(&self.namespace))
    }

    /// This installation's requests in the lines of the audit log that contain `mark`.
    fn audited(&self, mark: &str) -> Result<Vec<Request>> {
        let user = user(&self.namespace);
        let file = self.bench.audit_log();
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let mut requests = Vec::new();
        for line in text.lines().filter(|line| line.contains(mark)) {
            // The last line may be half written.
            let Ok(event) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let at = |path: &str| {
                event
                    .pointer(path)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            let (verb, mut resource) = (at("/verb"), at("/objectRef/resource"));
            let subresource = at("/objectRef/subresource");
            if !subresource.is_empty() {
                resource = format!("{resource}/{subresource}");
            }
            if at("/user/username") != user {
                continue;
            }
            let status = event
                .pointer("/responseStatus/code")
                .and_then(Value::as_u64)
                .unwrap_or_default();
            requests.push(Request {
                verb,
                resource,
                namespace: at("/objectRef/namespace"),
                name: at("/objectRef/name"),
                status: u16::try_from(status).unwrap_or_default(),
            });
        }
        Ok(requests)
    }

    /// The requests that write.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn writes(&self) -> Result<Vec<Request>> {
        let mut requests = self.requests()?;
        requests.retain(|request| {
            matches!(
                request.verb.as_str(),
                "create" | "update" | "patch" | "delete" | "deletecollection"
            )
        });
        Ok(requests)
    }
}

/// Requests counted by verb and resource, for printing.
#[must_use]
pub fn tally(requests: &[Request]) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for request in requests {
        *counts
            .entry((request.verb.clone(), request.resource.clone()))
            .or_default() += 1;
    }
    counts
}

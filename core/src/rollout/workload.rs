//! Workloads as the planner needs them: a thin type. Nothing here writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::references::Reference;
use crate::certificate::Fingerprint;
use crate::secret::keys;
use crate::secret::workload::WorkloadRef;
use crate::time::UnixTime;

/// One workload, as far as a rollout needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Kind and name.
    pub id: WorkloadRef,
    /// Distinguishes it from a later object of the same name.
    pub uid: Box<str>,
    /// The version for a guarded patch.
    pub resource_version: Box<str>,
    /// When it was created, by the API server's clock.
    pub created: Option<UnixTime>,
    /// When its template was last changed, by anybody: an upper bound, by the API server's clock.
    pub template_touched: Option<UnixTime>,
    /// When a `leaf.…` annotation was last written, by the API server's clock.
    pub rolled_at: Option<UnixTime>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it or its pod template has `cert-renew.io/rollout: none`.
    pub opted_out: bool,
    /// `leaf.…` annotations of the pod template (for a Rollout: its own), by their whole key.
    pub leaves: BTreeMap<Box<str>, Box<str>>,
    /// References of the pod template to Secrets.
    pub references: Vec<Reference>,
    /// A Rollout's `spec.workloadRef`: the Deployment whose template it uses.
    pub template_of: Option<WorkloadRef>,
    /// Whether its pods share the network of their node.
    pub host_network: bool,
    /// Label selector of its pods.
    pub selector: Box<str>,
    /// How its controller replaces pods.
    pub strategy: Strategy,
    /// Whether it is a StatefulSet that creates each pod only after all of lower ordinals are ready.
    pub ordered: bool,
    /// A Deployment's `spec.paused`.
    pub paused: bool,
    /// What its controller reports.
    pub status: Status,
}

/// Who replaces pods when the template changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The workload's controller; of a StatefulSet it leaves the ordinals below `partition` alone.
    Rolling {
        /// Ordinals that keep the old template; 0 unless a StatefulSet sets it.
        partition: i64,
    },
    /// No controller: `OnDelete`, every ReplicationController and standalone ReplicaSet.
    OnDelete,
}

/// The numbers of pods that a workload's controller reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether the controller has seen the present spec.
    pub observed: bool,
    /// Number of pods that there should be.
    pub wanted: i64,
    /// Number of pods that there are.
    pub total: i64,
    /// Pods of the present template. A ReplicationController and a ReplicaSet do not know them, so all pods are
    /// counted. For a Rollout only the end of its restart is known: none before, all after.
    pub updated: i64,
    /// Pods that have been ready for `minReadySeconds`.
    pub available: i64,
    /// Whether a StatefulSet's current revision is its update revision, or a Rollout's last restart is the requested
    /// one; true for all other kinds.
    pub revision_reached: bool,
    /// Whether `Progressing` is false with `ProgressDeadlineExceeded`.
    pub deadline_exceeded: bool,
    /// Since when `Available` has been false.
    pub unavailable_since: Option<UnixTime>,
}

/// Annotation key on a pod template for a Secret: `state.cert-renew.io/leaf.<secret-name>`.
///
/// The name part of an annotation key has at most 63 characters (Kubernetes, "Labels and annotations: syntax"), a
/// Secret's name up to 253. A longer name is replaced by its first 16 characters and 32 hexadecimal digits of its
/// SHA-256.
#[must_use]
pub fn leaf_annotation(secret: &str) -> String {
    const NAME_PART: usize = 63;
    let room = NAME_PART - (keys::LEAF_PREFIX.len() - keys::STATE_PREFIX.len());
    if secret.len() <= room {
        return format!("{}{secret}", keys::LEAF_PREFIX);
    }
    let hash = Fingerprint::of(secret.as_bytes()).to_string();
    // Names of Secrets are ASCII (RFC 1123 subdomains); the fallback avoids a panic.
    let head = secret.get(..16).unwrap_or_default();
    format!("{}{head}.{}", keys::LEAF_PREFIX, &hash[..32])
}

impl Workload {
    /// Whether the template says that the workload was rolled for `leaf`, with any chain and CA.
    #[must_use]
    pub fn carries(&self, secret: &str, leaf: Fingerprint) -> bool {
        self.leaf_of(secret).is_some_and(|value| says(value, leaf))
    }

    /// The template's `leaf.…` annotation for a Secret.
    #[must_use]
    pub fn leaf_of(&self, secret: &str) -> Option<&str> {
        self.leaves
            .get(leaf_annotation(secret).as_str())
            .map(|value| &**value)
    }

    /// Bytes in memory, without the allocator's overhead.
    pub fn weight(&self) -> usize {
        let references = self.references.iter().map(Reference::weight);
        self.weight_without_references() + references.sum::<usize>()
    }

    /// The same for a copy without its references.
    #[must_use]
    pub(super) fn weight_without_references(&self) -> usize {
        let texts = [
            &self.id.name,
            &self.uid,
            &self.resource_version,
            &self.selector,
        ];
        let texts = texts.map(|text| text.len()).into_iter().sum::<usize>();
        let leaves = { self.leaves.iter() }
            .map(|(key, value)| 2 * size_of::<Box<str>>() + key.len() + value.len());
        size_of::<Self>() + texts + leaves.sum::<usize>()
    }

    /// Whether all wanted pods are available.
    #[must_use]
    pub fn is_available(&self) -> bool {
        let Status {
            observed,
            wanted,
            available,
            deadline_exceeded,
            ..
        } = self.status;
        observed && available >= wanted && !deadline_exceeded
    }
}

/// The `leaf.…` annotations of all workloads of a namespace, by key.
pub struct Carried<'a>(HashMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Carried<'a> {
    /// The annotations of these workloads.
    #[must_use]
    pub fn by(workloads: &'a [Workload]) -> Self {
        let mut carried: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for (key, value) in workloads.iter().flat_map(|it| &it.leaves) {
            carried.entry(key).or_default().insert(value);
        }
        Self(carried)
    }

    /// Whether a workload says that it has another leaf of the Secret than this one.
    #[must_use]
    pub fn another(&self, secret: &str, leaf: Option<Fingerprint>) -> bool {
        let values = self.0.get(leaf_annotation(secret).as_str());
        let mut values = values.into_iter().flatten();
        values.any(|value| !leaf.is_some_and(|leaf| says(value, leaf)))
    }
}

/// Whether an annotation's value is of this leaf, with any chain and CA, repeated or not.
pub fn says(value: &str, leaf: Fingerprint) -> bool {
    value
        .split('.')
        .next()
        .is_some_and(|first| first == leaf.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotation_keys_fit_and_stay_apart() {
        assert_eq!(
            leaf_annotation("shop-tls"),
            "state.cert-renew.io/leaf.shop-tls"
        );
        let fits = "a".repeat(58);
        assert_eq!(
            leaf_annotation(&fits),
            format!("state.cert-renew.io/leaf.{fits}")
        );
        let long: Vec<String> = ["b", "c"]
            .iter()
            .map(|end| leaf_annotation(&format!("{}{end}", "a".repeat(200))))
            .collect();
        assert_ne!(long[0], long[1]);
        for key in &long {
            let name = key.strip_prefix(keys::STATE_PREFIX).unwrap();
            assert!(name.len() <= 63 && name.starts_with("leaf.aaaa"), "{key}");
        }
    }

    #[test]
    fn what_comes_with_it_and_the_repeat_that_verify_asks_for_are_of_the_same_leaf() {
        let leaf = Fingerprint::of(b"leaf");
        for (value, expected) in [
            (leaf.to_string(), true),
            (format!("{leaf}.2"), true),
            (format!("{leaf}.00000001000000ff"), true),
            (format!("{leaf}.00000001000000ff.2"), true),
            (format!("{leaf}2"), false),
            (String::new(), false),
        ] {
            assert_eq!(says(&value, leaf), expected, "{value}");
        }
    }
}

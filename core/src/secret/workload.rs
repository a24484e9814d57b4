//! Workloads as annotations name them, and how they take up a new certificate.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The kinds of workloads that can be rolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `v1` ReplicationController: its controller never replaces pods, so cert-renew does, one at a time.
    ReplicationController,
    /// Standalone `apps/v1` ReplicaSet; cert-renew replaces its pods too.
    ReplicaSet,
    /// `argoproj.io/v1alpha1` Rollout, if the cluster has them: restarted by `spec.restartAt`.
    Rollout,
}

/// A workload in the Secret's own namespace, written `deployment/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadRef {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Box<str>,
}

/// What happens to workloads with an old leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RolloutMode {
    /// Their pods are replaced by the workload's own strategy.
    #[default]
    Restart,
    /// Nothing: they notice a changed file themselves.
    None,
    /// Each pod is asked to reload by `POST http://<pod>:<port>/<path>`.
    Post {
        /// The pod's port.
        port: u16,
        /// Path with its leading slash.
        path: Box<str>,
    },
}

/// Why a text names no workload.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "expected kind/name with kind one of deployment, statefulset, daemonset, replicationcontroller, replicaset, rollout"
)]
pub struct NotAWorkload;

impl Kind {
    /// All kinds, in the order of lists.
    pub const ALL: [Self; 6] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::ReplicationController,
        Self::ReplicaSet,
        Self::Rollout,
    ];

    /// Lower-case singular, as kubectl takes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
            Self::DaemonSet => "daemonset",
            Self::ReplicationController => "replicationcontroller",
            Self::ReplicaSet => "replicaset",
            Self::Rollout => "rollout",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl FromStr for WorkloadRef {
    type Err = NotAWorkload;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (kind, name) = s.trim().split_once('/').ok_or(NotAWorkload)?;
        let kind = match kind.to_ascii_lowercase().as_str() {
            "deployment" | "deployments" | "deploy" => Kind::Deployment,
            "statefulset" | "statefulsets" | "sts" => Kind::StatefulSet,
            "daemonset" | "daemonsets" | "ds" => Kind::DaemonSet,
            "replicationcontroller" | "replicationcontrollers" | "rc" => {
                Kind::ReplicationController
            }
            "replicaset" | "replicasets" | "rs" => Kind::ReplicaSet,
            "rollout" | "rollouts" | "ro" => Kind::Rollout,
            _ => return Err(NotAWorkload),
        };
        // RFC 1123 subdomain, as the API server demands of object names.
        let valid = !name.is_empty()
            && name.len() <= 253
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
        if valid {
            Ok(Self {
                kind,
                name: name.into(),
            })
        } else {
            Err(NotAWorkload)
        }
    }
}

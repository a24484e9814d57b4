//! Stand-in until the config file's reader lands: what a rollout is told.

use std::time::Duration;

/// `rollout:` of the config file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutConfig {
    /// Workloads that roll at once in the cluster.
    pub concurrency: usize,
    /// Workloads that roll at once in one namespace.
    pub per_namespace: usize,
    /// Least time between two rollouts of one workload.
    pub per_workload_min_interval: Duration,
    /// Wait after a Secret has changed, so that one restart serves several.
    pub settle: Duration,
    /// Workloads that go first, for each Secret.
    pub canary_workloads: usize,
    /// Longest time without progress.
    pub progress_timeout: Duration,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            concurrency: 8,
            per_namespace: 2,
            per_workload_min_interval: Duration::from_secs(300),
            settle: Duration::from_secs(10),
            canary_workloads: 1,
            progress_timeout: Duration::from_secs(600),
        }
    }
}

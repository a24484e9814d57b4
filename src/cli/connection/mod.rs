//! What a command needs to reach the cluster and the operator in it: flags, the config, whether a replica leads.

pub(super) mod api_error;
pub(super) mod cluster_config;
pub(super) mod kube_flags;
pub(super) mod operator;

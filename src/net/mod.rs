//! The network: DNS, addresses that are off limits, trusted roots, bounded servers, and the metrics port.

pub mod bounded;
pub mod dns;
pub mod egress;
pub(crate) mod https;
pub mod metrics_port;
pub mod presented;
pub mod user_lookups;

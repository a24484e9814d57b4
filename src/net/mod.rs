//! The network: DNS, addresses that are off limits, trusted roots, and bounded servers.

pub mod bounded;
pub mod dns;
pub mod egress;
pub(crate) mod https;
pub mod presented;

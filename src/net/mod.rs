//! The network: names, where others may lead us, whom we trust, and servers within bounds.

pub mod bounded;
pub mod dns;
pub mod egress;
pub(crate) mod roots;

//! Ways to prove control of a name to a CA.

pub mod caa;
pub mod dns01;
pub mod dns_persist01;
pub mod http01;
pub mod http01_self_check;

//! cert-renew: renews the certificates in annotated TLS Secrets and rolls the workloads that use them.

pub mod acme;
pub mod duration;
pub mod name;
pub mod secret;
pub mod solver;
pub mod time;

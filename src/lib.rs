//! cert-renew: renews the certificates in annotated TLS Secrets and rolls the workloads that use them.

pub mod duration;
pub mod name;
pub mod schedule;
pub mod secret;
pub mod text;
pub mod time;

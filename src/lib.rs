//! cert-renew: renews the certificates in annotated TLS Secrets and rolls the workloads that use them.

pub mod certificate;
pub mod config;
pub mod duration;
pub mod key;
pub mod name;
pub mod pair;
pub mod pem;
pub mod rollout;
pub mod secret;
pub mod time;
mod x509;

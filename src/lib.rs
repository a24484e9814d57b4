//! cert-renew: renews the certificates in annotated TLS Secrets and rolls the workloads that use them.

pub mod acme;
pub mod certificate;
pub mod duration;
pub mod http;
pub mod index;
pub mod key;
pub mod metrics;
pub mod name;
pub mod pem;
pub mod schedule;
pub mod secret;
pub mod solver;
pub mod text;
pub mod time;
mod x509;

//! cert-renew: renews the certificates in annotated TLS Secrets and rolls the workloads that use them.
//!
//! ```text
//! API server ──watch──► thin Secret ──► facts ──► decision ──► index + due queue
//!      ▲                                                            │ due
//!      └── guarded patches ◄── renewal (ACME) and rollout ◄─────────┘
//! ```
//! Data flows one way, and the way back is through the API server; ARCHITECTURE.md tells the rest.

pub mod acme;
pub mod allowance;
pub mod assess;
pub mod certificate;
pub mod cli;
pub mod cluster;
pub mod compact;
pub mod config;
pub mod context;
pub mod controller;
pub mod dns;
pub mod doubts;
pub mod duration;
pub mod election;
#[cfg(test)]
mod fuzz;
pub mod gate;
pub mod http;
pub mod index;
pub mod kernel;
pub mod key;
pub mod loader;
pub mod metrics;
pub mod name;
pub mod pair;
pub mod pairs;
pub mod pem;
pub mod permit;
pub mod propagation;
pub mod reach;
pub mod renewal;
pub mod rollout;
mod roots;
pub mod schedule;
pub mod secret;
pub mod solver;
pub mod sources;
pub mod supervise;
pub mod term;
pub mod text;
pub mod ticket;
pub mod time;
mod x509;

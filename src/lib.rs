//! cert-renew: renews the certificates in annotated TLS Secrets and rolls the workloads that use them.
//!
//! ```text
//! API server ──watch──► thin Secret ──► facts ──► decision ──► index + due queue
//!      ▲                                                            │ due
//!      └── guarded patches ◄── renewal (ACME) and rollout ◄─────────┘
//! ```
//! Data flows one way, and the way back is through the API server; ARCHITECTURE.md tells the rest.

// The operator's own parts, where only the commands are built.
#![cfg_attr(not(unix), allow(dead_code))]

pub mod acme;
pub mod cli;
pub mod cluster;
pub mod context;
pub mod declared;
#[cfg(test)]
mod fuzz;
pub mod leader;
pub mod net;
pub mod process;
pub mod renewal;
pub mod rollout;
pub mod solver;
pub mod telemetry;

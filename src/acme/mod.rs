//! ACME: a client for one CA, as RFC 8555, RFC 9773 (renewal information) and RFC 8738 (IP addresses) describe it.
//!
//! ```text
//! Client ──directory, register/restore──► Order ──authorizations──► Challenge      (solver/ puts the proof in place)
//!    └── http, jws, nonce ── every request ──► Error { class, reason, retry_after, detail }
//! ```
//! Only this module uses instant-acme: its wire types, not its client, which drops status, Retry-After and Link of an
//! answer, cannot register a stored key, fetches only the default chain, and requests a nonce before each request of an
//! account. This client keeps all of that.
//!
//! It never writes to the cluster, never logs a key, and repeats a request only because of its nonce.

mod account;
pub mod ari;
mod client;
mod credentials;
mod directory;
mod error;
#[cfg(test)]
pub(crate) mod fuzz;
mod order;
mod revocation;
mod transport;

pub use ari::CertId;
pub use client::{Client, Eab, IssuerSettings, RequestError};
pub use credentials::{Credentials, Unusable};
pub use directory::{Directory, DirectoryMeta};
pub use error::problem::{Class, Limited, Problem, Scope, Subproblem, tells_of_pause};
pub use error::{Action, Error};
pub use instant_acme::{ChallengeType, OrderStatus};
pub use order::authorization::{Authorization, Challenge, dns_persist_01};
pub use order::chain::{Preference, in_order};
pub use order::{Order, OrderRequest};
pub use revocation::RevocationReason;
pub use transport::http::{Carrier, Observer, RequestInfo};
pub use transport::rate_limiter::RateLimiter;

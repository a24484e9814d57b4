//! The transport of ACME messages (RFC 8555, section 6): HTTP, signed requests, nonces, and how fast we may ask.

pub(super) mod body;
pub(super) mod http;
pub(super) mod jws;
pub(super) mod nonce;
pub(super) mod poll_interval;
pub(super) mod rate_limiter;

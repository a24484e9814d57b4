//! The client of the API server: how each call is made, bounded, gated and counted.

mod bounded;
pub(super) mod call;
pub(super) mod error;
pub(super) mod gated;
pub(super) mod observe;
pub(crate) mod pages;
pub(super) mod params;
pub(super) mod transport;

#[cfg(test)]
pub(super) use bounded::tests::Chunked;
pub(super) use call::{DEADLINE, call, if_any};

//! The protocol of cert-renew in small, in all interleavings.
//!
//! ```text
//! two operators ──requests, which may be late or never arrive──► API server (Secret, order record, Deployment, Lease), CA
//!       └── what each answer means is decided by cert-renew-core, on real certificates
//! ```
//! `world` is what everybody sees, `election` one replica's part in the lease, `operator` the two tasks of a leader,
//! `decide` the decisions of the core, `protocol` the model that stateright exhausts. `tests` runs it, and shows that it
//! finds each of the faults of `planted`.

#[cfg(test)]
mod decide;
#[cfg(test)]
mod election;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod planted;
#[cfg(test)]
mod protocol;
#[cfg(test)]
mod settle;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

//! What a Secret says: the thin type on the wire, its annotations as settings, its outputs.

pub mod keys;
pub mod state;
pub mod workload;

//! What a Secret says: the thin type on the wire, its annotations as settings, its outputs.

mod annotations;
pub mod keys;
pub mod outputs;
pub mod settings;
pub mod state;
pub(crate) mod values;
pub mod workload;

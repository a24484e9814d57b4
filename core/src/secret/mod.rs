//! The content of a Secret: the thin type from the API server, its annotations as settings, its outputs.

pub(crate) mod annotations;
pub mod data;
pub mod declared;
pub mod keys;
pub mod object;
pub mod parts;
mod secret_ref;
pub mod settings;
pub mod state;
pub mod stray;
pub mod used_by;
pub mod workload;

pub use secret_ref::SecretRef;

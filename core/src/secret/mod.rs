//! The content of a Secret: the thin type from the API server, its annotations as settings, its outputs.

mod annotations;
pub mod compact;
pub mod declared;
pub mod full;
pub mod head;
pub mod keepers;
pub mod keys;
pub mod lenient;
pub mod outputs;
pub mod parts;
pub mod patch;
pub mod place;
pub mod render;
mod secret_ref;
pub mod settings;
pub mod state;
pub mod stray;
pub mod thin;
pub mod used_by;
pub mod values;
pub mod workload;

pub use secret_ref::SecretRef;

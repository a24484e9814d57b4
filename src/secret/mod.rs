//! What a Secret says: the thin type on the wire, its annotations as settings, its outputs.

mod annotations;
pub mod full;
pub mod head;
pub mod keys;
pub mod outputs;
pub mod parts;
pub mod patch;
pub mod place;
pub mod render;
pub mod settings;
pub mod state;
pub mod thin;
pub mod total;
pub mod used_by;
pub(crate) mod values;
pub mod workload;

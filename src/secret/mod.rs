//! What a Secret says: the thin type on the wire, its annotations as settings, its outputs.

pub mod full;
pub mod head;
pub mod keys;
pub mod outputs;
pub mod patch;
pub mod place;
pub mod render;
pub mod thin;
pub(crate) mod total;
pub mod workload;

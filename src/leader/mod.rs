//! The leader: the one loop that owns the index, and its terms.

pub mod controller;
pub mod handles;
mod lookups;
pub mod notes;
pub mod pairs;
mod rewrite;
pub mod sources;
pub mod strays;
pub mod term;

//! The leader: the one loop that owns the index, and its terms.

pub mod controller;
mod lookups;
pub mod notes;
pub mod pairs;
pub mod sources;
pub mod strays;
pub mod term;

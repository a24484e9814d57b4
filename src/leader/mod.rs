//! The leader: the one loop that owns the index, and its terms.

pub mod controller;
pub mod pairs;
pub mod sources;
pub mod term;

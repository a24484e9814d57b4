//! The data of a Secret: which keys hold the pair and the outputs, what is written there, and the patch that does.

pub mod data_keys;
pub mod outputs;
pub mod patch;
pub mod render;

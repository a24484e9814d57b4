//! Commands that need no cluster: what is wrong with files, and the command line itself.

pub(super) mod check;
pub(super) mod completions;
pub(super) mod config;
pub mod lint;

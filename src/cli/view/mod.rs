//! Commands that show, and change nothing.

pub(super) mod account;
pub(super) mod describe;
pub(super) mod names;
pub(super) mod plan;
pub(super) mod status;
pub(super) mod version;

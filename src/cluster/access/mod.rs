//! Rights: our own, reviewed at the start, and those of viewers.

pub mod review;
pub mod viewers;

//! When things are due: pure functions of certificate facts, settings and `now`.

pub mod due;
pub mod quota;
pub mod rate_limits;
pub mod token_bucket;

//! When things are due: pure functions of certificate facts, settings and `now`.

pub mod budget;
pub mod due;
pub mod quota;
pub mod window;

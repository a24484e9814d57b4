//! What the operator reports of itself: log, metrics and traces.

pub(crate) mod log;
pub mod metrics;
pub(crate) mod otlp;
pub(crate) mod stage;
pub(crate) mod steps;
pub(crate) mod trace;

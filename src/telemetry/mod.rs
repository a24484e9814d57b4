//! What the operator says of itself: log, metrics and traces.

pub(crate) mod log;
pub mod metrics;
pub(crate) mod otlp;
pub(crate) mod trace;

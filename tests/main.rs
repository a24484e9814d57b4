//! The integration tests: one binary, so that one bench serves them all. A module per behaviour.

mod alerts;
mod bench_smoke;
mod install;

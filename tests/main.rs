//! The integration tests: one binary, so that one bench serves them all. A module per behaviour.

mod acme;
mod acme_faults;
mod acme_operator;
mod admission;
mod adopt;
mod alerts;
mod bench_smoke;
mod chaos;
mod command;
mod documents;
mod faults;
mod image;
mod install;
mod kill_points;
mod leadership;
mod monitoring;
mod page;
mod propagation;
mod renewal;
mod rights;
mod rollout;
mod scene;
mod secrecy;
mod tenancy;

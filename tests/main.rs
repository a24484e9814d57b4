//! The integration tests: one binary, so that one bench serves them all. A module per behaviour.

mod accounts;
mod acme;
mod acme_faults;
mod acme_operator;
mod alerts;
mod bench_smoke;
mod chaos;
mod command;
mod dns01;
mod documents;
mod faults;
mod install;
mod kill_points;
mod leadership;
mod monitoring;
mod page;
mod preflight;
mod propagation;
mod renewal;
mod rights;
mod rollout;
mod routes;
mod scene;
mod secrecy;

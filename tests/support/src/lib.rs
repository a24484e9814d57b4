//! The test bench: a real control plane and a real ACME CA on loopback, for the tests, the demo and the benchmarks.
//!
//! [`Bench::shared`] starts etcd, kube-apiserver (RBAC on), kube-controller-manager, kwok, Pebble and its DNS server in
//! a few seconds and leaves no process and no file behind, however the test process ends. Tests run in parallel on one
//! bench and are kept apart by their namespaces and by the `class` of their operator.
//!
//! It is test code and no part of the operator: errors are [`anyhow::Error`], whose Debug form is printed by a test
//! that returns `Result`.

mod bench;
pub mod browser;
mod cached_client;
pub mod certificates;
mod checker;
mod data_path;
mod dns_hosts;
mod edge;
mod eventually;
mod foreign_ca;
mod gitops;
mod group;
mod install;
mod kubernetes;
mod nameserver;
mod network;
mod node;
mod node_client;
mod node_image;
mod node_space;
pub mod objects;
mod operator;
mod pebble;
mod pki;
pub mod ports;
mod process;
mod prometheus;
mod proxy;
pub mod report;
mod traefik;

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

pub use anyhow::{Context, Error, Result, bail, ensure};
pub use bench::{Bench, Options};
pub use cached_client::CachedClient;
pub use checker::{Checker, Watcher};
pub use data_path::DataPath;
pub use dns_hosts::{Bind, Moto, PowerDns};
pub use edge::{Edge, Hit, serve_edge_if_asked};
pub use eventually::{eventually, throughout};
pub use foreign_ca::{ForeignCa, Make, ensure_foreign_cas};
pub use gitops::{Engine, ensure_gitops};
pub use nameserver::{Nameserver, Recursor, TSIG_KEY, TSIG_NAME, Zone, tool};
pub use network::{
    RESOLVER, ran_where_pods_have_addresses, run_where_pods_have_addresses,
    run_where_there_is_only_ipv6, run_with_ports_of_its_own, run_with_resolv_conf,
};
pub use node::{NODE, Node, OPERATOR_IMAGE, keep_node_logs};
pub use node_client::{Handshakes, Probes, Watched, handshake, leaf_of};
pub use node_space::run_on_a_node;
pub use operator::{Operator, OperatorOptions, Request, tally};
pub use pebble::{Dns, Pebble, PebbleOptions};
pub use process::Process;
pub use prometheus::Prometheus;
pub use proxy::{Action, Fault, Passed, Proxies, Rule, Server, Variants};
pub use test_programs::{self as control_plane, KUBERNETES, Minor};
pub use traefik::{Traefik, ensure_traefik};

/// The runtime for what must outlive the runtime of a single test.
pub(crate) fn runtime() -> Handle {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let start = || {
        let builder = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("test-bench")
            .enable_all()
            .build();
        builder.expect("the runtime of the bench starts")
    };
    RUNTIME.get_or_init(start).handle().clone()
}

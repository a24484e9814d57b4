//! `make interop`: ACME servers, DNS hosts and ingress controllers that people run, and the operator between them.
//!
//! Each scene has an operator of its own. A table says what each found, and the figures go to `target/bench/interop.json`.
//! The engines of Flux and Argo CD have tests of their own, since they need nothing of that (`make interop-gitops`).
//! `INTEROP_SCENES=Caddy,PowerDNS` runs those whose row holds one of these words. What explains a failure is kept in
//! `target/interop`.

use test_bench::{Result, ensure_foreign_cas, ensure_traefik, run_with_ports_of_its_own, tool};

#[tokio::test]
#[ignore = "make interop runs it: it takes minutes, and servers that no other test needs"]
async fn other_cas_and_dns_hosts() -> Result<()> {
    // Inside, nothing can be fetched.
    tokio::task::spawn_blocking(ensure_foreign_cas).await??;
    tokio::task::spawn_blocking(ensure_traefik).await??;
    for name in ["knotd", "unbound", "named", "pdns_server", "moto_server"] {
        tool(name).await?;
    }
    run_with_ports_of_its_own("interop::inside::scenes").await
}

mod cas;
mod edges;
mod gitops;
mod hosts;
mod inside;
mod routes;

//! Clusters that have IPv6 only: API server, CA, DNS server, edge and operator on `::1`, in a network without IPv4.

use std::net::{Ipv6Addr, TcpListener};

use test_bench::{Result, run_where_there_is_only_ipv6};

/// The main job, leadership, and what a user types: each on a bench of its own there.
const TESTS: [&str; 3] = [
    "renewal::what_is_due_is_renewed_and_its_workloads_roll",
    "newcomer::the_five_steps_of_the_page_lead_to_a_renewed_secret",
    "leadership::handover::a_leader_that_ends_hands_over_at_once",
];

#[tokio::test]
async fn the_operator_works_without_ipv4() -> Result<()> {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("not run: this machine has no ::1");
        return Ok(());
    }
    run_where_there_is_only_ipv6(&TESTS).await
}

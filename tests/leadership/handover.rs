//! A replica that is told to end: what it has in hand, and how soon another one leads.

use std::sync::Arc;

use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{Action, Bench, Proxies, Result, ensure};

use super::{LONG, Two, leading, lease, once_at};
use crate::renewal::{SOON, options, renewed, rolled_out};
use crate::scene::answered;

#[tokio::test]
async fn a_leader_that_ends_hands_over_at_once() -> Result<()> {
    let bench = Bench::shared().await?;
    let Two {
        mut leader,
        standby,
    } = Two::alike(bench, options().lease(LONG)).await?;
    let space = Space::new(bench.client()?, "handed", leader.namespace()).await?;
    let before = lease(bench, &leader).await?;
    leader.terminate().await?;
    // Were the lease not given back, nothing would happen for ten minutes.
    let old = pair(&["handed.example"], OLD)?;
    space
        .workload("Deployment", "web", Reference::Volume, "web")
        .await?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "web", &old.certificate).await?;
    rolled_out(&space, "web").await?;
    let after = lease(bench, &standby).await?;
    assert_ne!(before.holder_identity, after.holder_identity);
    assert_eq!(before.lease_transitions, Some(0));
    assert_eq!(after.lease_transitions, Some(1));
    // And back again: the first one is started again and waits for its turn.
    leader.run().await?;
    let mut standby = standby;
    standby.terminate().await?;
    leading(&leader).await
}

/// Proxies learn late that a pod ends: until then they send it their share of the challenges.
#[tokio::test]
async fn a_replica_that_ends_answers_challenges_while_another_one_leads() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options().lease(LONG);
    options.shutdown_grace = "300s".into();
    let Two {
        mut leader,
        standby,
    } = Two::alike(bench, options).await?;
    let space = Space::new(bench.client()?, "lingering", leader.namespace()).await?;
    // The CA reaches the one that ends, and no other.
    bench.edge().remove(standby.challenge_address());
    leader.process()?.signal("TERM")?;
    leading(&standby).await?;
    let ready = leader.ask("/readyz").await;
    ensure!(ready.is_err(), "it is ready: {ready:?}");
    let old = pair(&["lingering.example"], OLD)?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "web", &old.certificate).await?;
    // Who asks a second time does not wait.
    leader.process()?.signal("TERM")?;
    let status = leader.process()?.ended(SOON).await?;
    ensure!(status.success(), "it ended with {status}");
    leader.kill();
    Ok(())
}

#[tokio::test]
async fn an_order_in_hand_is_written_down_before_the_lease_is_given_back() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let mut options = options().lease(LONG);
    options.directory = Some(proxies.directory());
    let Two {
        mut leader,
        standby,
    } = Two::alike(bench, options).await?;
    let space = Space::new(bench.client()?, "parked", leader.namespace()).await?;
    let process = leader.process()?.id();
    // While the CA makes the order, the leader is told to end.
    let end: Action = Arc::new(move || {
        let _ = std::process::Command::new("sh")
            .args(["-c", &format!("kill -s TERM {process}")])
            .status();
    });
    once_at(&proxies, "/order-plz", end);
    let old = pair(&["parked.example"], OLD)?;
    space
        .tls_secret("web", Some(&old), &[("issuer", "pebble")])
        .await?;
    let status = leader.process()?.ended(SOON).await?;
    ensure!(status.success(), "it ended with {status}");
    leader.kill();
    renewed(&space, "web", &old.certificate).await?;
    rolled_out(&space, "web").await?;
    assert_eq!(
        answered(&proxies, "/order-plz", 201),
        1,
        "the order that was made is gone on with"
    );
    assert_eq!(answered(&proxies, "/finalize-order/", 200), 1);
    assert!(standby.log()?.contains("the order is taken up again"));
    Ok(())
}

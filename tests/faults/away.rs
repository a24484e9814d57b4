//! The API server is away, absent at the start, silent about one call, or lists everything again.

use std::sync::atomic::{AtomicBool, Ordering};

use test_bench::objects::{FRESH, OLD, Space, pair};
use test_bench::{Bench, Fault, Result, ensure, eventually};

use super::{OUTAGE, PATIENT, SOONER, finalizes, once};
use crate::renewal::{SOON, renewed, rolled_out};
use crate::scene::{End, SECRET, Scene};

#[tokio::test]
async fn an_api_server_that_is_away_is_waited_for_and_not_hammered() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut scene = Scene::set(bench, SOONER).await?;
    let away = once(&scene, finalizes, Fault::Meanwhile(scene.proxies.vanish()));
    scene.operator.run().await?;
    eventually(SOON, "the API server goes away", async || {
        ensure!(away.load(Ordering::SeqCst), "it is still there");
        Ok(())
    })
    .await?;
    let before = scene.proxies.aside();
    // The outage itself, not a wait for something.
    tokio::time::sleep(OUTAGE).await;
    let tries = scene.proxies.aside() - before;
    scene.proxies.gone(false);
    ensure!(tries <= PATIENT, "{tries} connections in {OUTAGE:?}");
    assert_eq!(scene.end().await?, End::undisturbed());
    Ok(())
}

#[tokio::test]
async fn an_api_server_that_is_not_there_at_the_start_is_waited_for() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut scene = Scene::set(bench, SOONER).await?;
    scene.proxies.gone(true);
    scene.operator.spawn()?;
    eventually(SOON, "it says what it waits for", async || {
        let log = scene.operator.log()?;
        ensure!(log.contains("the API server does not answer"), "{log}");
        Ok(())
    })
    .await?;
    scene.proxies.gone(false);
    scene.operator.wait_ready().await?;
    assert_eq!(scene.end().await?, End::undisturbed());
    Ok(())
}

#[tokio::test]
async fn a_relist_in_the_middle_of_a_renewal_changes_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut scene = Scene::set(bench, SOONER).await?;
    once(&scene, finalizes, Fault::Meanwhile(scene.proxies.expire(3)));
    scene.operator.run().await?;
    assert_eq!(scene.end().await?, End::undisturbed());
    eventually(SOON, "three watches are told 410", async || {
        let left = scene.proxies.unexpired();
        ensure!(left == 0, "{left} are not");
        Ok(())
    })
    .await?;
    // It still sees what changes.
    let other = pair(&["relisted.example"], FRESH)?;
    scene.space.put(SECRET, &other).await?;
    rolled_out(&scene.space, SECRET).await?;
    Ok(())
}

#[tokio::test]
async fn a_call_that_hangs_delays_only_its_own_certificate() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut scene = Scene::set(bench, SOONER).await?;
    let hangs = format!("/namespaces/{}/secrets/{SECRET}", scene.space.name);
    let first = AtomicBool::new(true);
    scene.proxies.rule(move |passed| {
        if passed.method == "PATCH"
            && passed.path.ends_with(&hangs)
            && first.swap(false, Ordering::SeqCst)
        {
            Fault::Hang
        } else {
            Fault::Pass
        }
    });
    let class = scene.operator.namespace().to_owned();
    let other = Space::new(bench.client()?, "beside", &class).await?;
    scene.operator.run().await?;
    let old = pair(&["beside.example"], OLD)?;
    other
        .tls_secret("beside", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&other, "beside", &old.certificate).await?;
    // Two Secrets, one certificate each.
    let end = scene.end().await?;
    assert_eq!(
        end,
        End {
            certificates: 2,
            ..End::undisturbed()
        }
    );
    Ok(())
}

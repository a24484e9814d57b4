//! The way is shut while an order is under way: nothing is finalized and nothing is written before it opens again, and then
//! the same order goes on.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use test_bench::objects::{Age, pair};
use test_bench::{Bench, Fault, Passed, Result, ensure, eventually, throughout};

use crate::faults::{action, edit, finalizes, once};
use crate::fresh_look::closed_window;
use crate::renewal::{SOON, data};
use crate::scene::{End, SECRET, Scene, answered};

/// Long enough for a request or a write that should not be to show itself.
const QUIET: Duration = Duration::from_secs(3);

/// Due, and far enough from its end that a window may be waited for.
const DUE: Age = Age {
    since: 65,
    left: 25,
};

/// A request at which the way is shut, the step of the log after which the Secret is looked at, and the certificates that
/// are issued before it opens again.
type Instant = (fn(&Passed) -> bool, &'static str, usize);

const BEFORE_FINALIZE: Instant = (validates, "\"validated\"", 0);
const BEFORE_WRITE: Instant = (finalizes, "\"issued\"", 1);

fn validates(passed: &Passed) -> bool {
    passed.path.starts_with("/chalZ/")
}

fn setting(key: &str, value: Value) -> Value {
    let key = format!("cert-renew.io/{key}");
    json!({"metadata": {"annotations": {key: value}}})
}

async fn waits(
    bench: &'static Bench,
    (key, value): (&'static str, String),
    (when, step, issued): Instant,
) -> Result<()> {
    let mut scene = Scene::set(bench, "").await?;
    scene.old = pair(&[&format!("{}.example", scene.space.name)], DUE)?;
    scene.space.put(SECRET, &scene.old).await?;
    let namespace = scene.space.name.clone();
    let shut = setting(key, json!(value));
    let shuts = action(bench, async move |client| {
        edit(client, &namespace, shut.clone()).await
    });
    let done = once(&scene, when, Fault::Meanwhile(shuts));
    scene.operator.run().await?;
    let what = format!("{key} is set, and then the log says {step}");
    eventually(SOON, &what, async || {
        ensure!(done.load(Ordering::SeqCst), "it is not set");
        ensure!(scene.operator.log()?.contains(step), "it does not say so");
        Ok(())
    })
    .await?;
    let what = format!("{key} is set at {step}: nothing more is done");
    throughout(QUIET, &what, async || {
        let certificates = answered(&scene.proxies, "/finalize-order/", 200);
        let secret = scene.space.secrets().get(SECRET).await?;
        ensure!(certificates == issued, "{certificates} are issued");
        let is_old = data(&secret, "tls.crt") == scene.old.certificate;
        ensure!(is_old, "the Secret was written");
        Ok(())
    })
    .await?;
    let open = setting(key, Value::Null);
    edit(bench.client()?, &scene.space.name, open).await?;
    let end = scene.end().await?;
    ensure!(end == End::undisturbed(), "{key}, {step}: {end:?}");
    Ok(())
}

#[tokio::test]
async fn a_window_or_a_pause_that_comes_while_an_order_is_under_way_holds_finalize_and_write()
-> Result<()> {
    let bench = Bench::shared().await?;
    let rows = [
        (("change-window", closed_window()), BEFORE_FINALIZE),
        (("change-window", closed_window()), BEFORE_WRITE),
        (("paused", "true".to_owned()), BEFORE_FINALIZE),
        (("paused", "true".to_owned()), BEFORE_WRITE),
    ];
    let rows = stream::iter(rows).map(|(setting, at)| waits(bench, setting, at));
    rows.buffer_unordered(4).try_collect().await
}

/// An order that a former run has left, and that has still to be proven.
async fn is_left(bench: &'static Bench, (key, value): (&'static str, String)) -> Result<()> {
    let mut scene = Scene::set(bench, "").await?;
    scene.old = pair(&[&format!("{}.example", scene.space.name)], DUE)?;
    scene.space.put(SECRET, &scene.old).await?;
    scene.operator.spawn()?;
    let killed = once(&scene, validates, Fault::Before(scene.operator.killer()?));
    eventually(SOON, "it is killed", async || {
        ensure!(killed.load(Ordering::SeqCst), "it is not");
        Ok(())
    })
    .await?;
    scene.operator.kill();
    let namespace = scene.space.name.clone();
    edit(bench.client()?, &namespace, setting(key, json!(value))).await?;
    scene.operator.run().await?;
    eventually(SOON, "it leads", async || {
        ensure!(scene.operator.leads().await?, "it does not");
        Ok(())
    })
    .await?;
    let what = format!("{key} is set: the CA is told nothing");
    throughout(QUIET, &what, async || {
        let told = answered(&scene.proxies, "/chalZ/", 200);
        ensure!(told == 0, "it is told to validate");
        Ok(())
    })
    .await?;
    edit(bench.client()?, &namespace, setting(key, Value::Null)).await?;
    let end = scene.end().await?;
    ensure!(end == End::undisturbed(), "{key}: {end:?}");
    Ok(())
}

#[tokio::test]
async fn an_order_that_a_former_run_has_left_waits_for_a_window_or_a_pause_before_it_is_proven()
-> Result<()> {
    let bench = Bench::shared().await?;
    let window = is_left(bench, ("change-window", closed_window()));
    let pause = is_left(bench, ("paused", "true".to_owned()));
    futures::try_join!(window, pause)?;
    Ok(())
}

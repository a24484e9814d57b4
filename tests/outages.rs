//! The API server as the operator cannot see it: a watch that says nothing any more, and a past that comes back.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use test_bench::objects::{FRESH, OLD, Reference, Space, pair};
use test_bench::{Bench, Operator, Options, Proxies, Result, ensure, eventually, throughout};

use crate::renewal::{SOON, data, leaf, options, renewed, rolled_out};

/// Changes that the past does not know: more than the API server makes by itself until it is back.
const FORGOTTEN: usize = 400;
/// Long enough for a write that should not be to show itself.
const QUIET: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_watch_that_falls_silent_is_opened_anew() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let mut options = options();
    options.api_server = Some(proxies.api_server());
    // As short as it can be set.
    options.arguments.push("--watch-timeout=10s".into());
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "silent", operator.namespace()).await?;
    let ours = [("issuer", "pebble")];
    let seen = pair(&["seen.silent.example"], FRESH)?;
    space.tls_secret("seen", Some(&seen), &ours).await?;
    rolled_out(&space, "seen").await?;

    proxies.silence();
    let old = pair(&["unseen.silent.example"], OLD)?;
    space.tls_secret("unseen", Some(&old), &ours).await?;
    eventually(SOON, "the watch is kept from bringing it", async || {
        ensure!(proxies.withheld() > 0, "it is not");
        Ok(())
    })
    .await?;
    renewed(&space, "unseen", &old.certificate).await?;
    // And what it brings from then on is seen as ever.
    let other = pair(&["seen.silent.example"], FRESH)?;
    space.put("seen", &other).await?;
    rolled_out(&space, "seen").await?;
    Ok(())
}

/// Copies a directory with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-r").args([from, to]).status()?;
    ensure!(status.success(), "cp ended with {status}");
    Ok(())
}

#[tokio::test]
async fn a_past_that_is_restored_is_believed_and_what_is_missing_is_made_up_for() -> Result<()> {
    // Of its own: nobody else is to lose anything.
    let bench = Bench::start(Options::default()).await?;
    let operator = Operator::start(&bench, options()).await?;
    let client = bench.client()?;
    let space = Space::new(client.clone(), "restored", operator.namespace()).await?;
    let ours = [("issuer", "pebble")];
    let old = pair(&["web.restored.example"], OLD)?;
    space
        .workload("Deployment", "web", Reference::Volume, "web")
        .await?;
    space.available("Deployment", "web").await?;
    space.tls_secret("web", Some(&old), &ours).await?;
    renewed(&space, "web", &old.certificate).await?;
    let first = rolled_out(&space, "web").await?;
    let generation = space.generation("Deployment", "web").await?;

    let backup = bench.directory().join("etcd.backup");
    bench.restart(|data| copy(data, &backup)).await?;
    let first = data(&first, "tls.crt");
    let other = pair(&["web.restored.example"], FRESH)?;
    space.put("web", &other).await?;
    rolled_out(&space, "web").await?;
    let later = pair(&["later.restored.example"], FRESH)?;
    space.tls_secret("later", Some(&later), &ours).await?;
    rolled_out(&space, "later").await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &space.name);
    for number in 0..FORGOTTEN {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(format!("forgotten-{number}")),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        maps.create(&PostParams::default(), &map).await?;
    }

    bench
        .restart(|data| {
            fs::remove_dir_all(data)?;
            copy(&backup, data)
        })
        .await?;
    // What has come back is seen, what has never been is forgotten, and what is new is seen too.
    let held = space.secrets().get("web").await?;
    ensure!(data(&held, "tls.crt") == first, "it is not the past");
    eventually(SOON, "it knows what there is", async || {
        let metrics = operator.metrics().await?;
        ensure!(!metrics.contains("secret=\"later\""), "it knows of another");
        let end = format!(
            "secret=\"web\",issuer=\"pebble\"}} {}",
            leaf(&held)?.not_after.0
        );
        ensure!(metrics.contains(&end), "it believes in another end");
        Ok(())
    })
    .await?;
    let new = pair(&["new.restored.example"], OLD)?;
    space.tls_secret("new", Some(&new), &ours).await?;
    renewed(&space, "new", &new.certificate).await?;
    throughout(QUIET, "the workload stays as it is", async || {
        let is = space.generation("Deployment", "web").await?;
        ensure!(is == generation, "generation {is} instead of {generation}");
        let secret = space.secrets().get("web").await?;
        ensure!(data(&secret, "tls.crt") == first, "it is renewed again");
        Ok(())
    })
    .await
}

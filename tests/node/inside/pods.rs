//! What pods serve: restarts that nobody notices, reloads, and servers that do not do as they should.

use std::process::Command;
use std::time::{Duration, Instant};

use kube::ResourceExt as _;
use test_bench::{Context as _, ensure, eventually};
use tokio::time::sleep;

use super::super::site::{LONG, Server, Site, WEB};
use super::{Cluster, Found, RELOAD, count, count_stale};

pub(super) async fn unnoticed(cluster: &Cluster, kind: &'static str, server: Server) -> Found {
    let site = Site::start(&cluster.bench, "unnoticed", kind, server).await?;
    site.annotate(&[("issuer", "pebble")]).await?;
    site.done(&[&site.first]).await?;
    Ok(count(&site.end_changed_once().await?))
}

pub(super) async fn controller(cluster: &Cluster) -> Found {
    let site = Site::start(
        &cluster.bench,
        "controller",
        "ReplicationController",
        Server::Nginx,
    )
    .await?;
    let before = site.space.pods(WEB).await?;
    site.annotate(&[("issuer", "pebble")]).await?;
    site.done(&[&site.first]).await?;
    let after = site.space.pods(WEB).await?;
    let kept = after
        .iter()
        .filter(|pod| before.iter().any(|it| it.uid() == pod.uid()))
        .count();
    ensure!(
        kept == 0 && after.len() == 2,
        "{kept} pods were kept, there are {}",
        after.len()
    );
    Ok(count(&site.end().await?))
}

pub(super) async fn first(cluster: &Cluster) -> Found {
    let began = Instant::now();
    let site = Site::from_nothing(&cluster.bench, "first", Server::Nginx).await?;
    site.done(&[""]).await?;
    let took = began.elapsed();
    let (text, figures) = count_stale(&site.end().await?);
    Ok((
        format!("served everywhere after {took:.0?}; {text}"),
        figures,
    ))
}

pub(super) async fn post(cluster: &Cluster) -> Found {
    let site = Site::start(&cluster.bench, "post", "Deployment", Server::Pod(&[])).await?;
    let began = Instant::now();
    site.annotate(&[("issuer", "pebble"), RELOAD, ("verify", "web:443")])
        .await?;
    site.done(&[&site.first]).await?;
    let took = began.elapsed();
    let generation = site.space.generation("Deployment", WEB).await?;
    ensure!(generation == 1, "the workload was restarted");
    let (text, figures) = count(&site.end().await?);
    Ok((format!("reloaded after {took:.0?}; {text}"), figures))
}

/// One pod is not Ready when the others are asked, and comes back with the certificate that it has.
pub(super) async fn unready(cluster: &Cluster) -> Found {
    let site = Site::start(&cluster.bench, "unready", "Deployment", Server::Pod(&[])).await?;
    let pod = site.space.pods(WEB).await?.pop().context("no pod")?;
    let address = pod
        .status
        .and_then(|status| status.pod_ip)
        .context("no address")?;
    let say = async |what: &str| {
        let url = format!("http://{address}:9000/{what}");
        let said = Command::new("curl")
            .args(["-sf", "-X", "POST", &url])
            .status()?;
        ensure!(said.success(), "POST {url}: {said}");
        Ok(())
    };
    say("unready").await?;
    site.annotate(&[("issuer", "pebble"), RELOAD, ("verify", "web:443")])
        .await?;
    site.renewed(&[&site.first]).await?;
    // By then the others were asked.
    sleep(Duration::from_secs(110)).await;
    say("ready").await?;
    site.done(&[&site.first]).await?;
    Ok(count_stale(&site.end().await?))
}

pub(super) async fn liar(cluster: &Cluster) -> Found {
    let site = Site::start(&cluster.bench, "liar", "Deployment", Server::Liar).await?;
    site.annotate(&[("issuer", "pebble"), ("verify", "web:443")])
        .await?;
    let leaf = site.renewed(&[&site.first]).await?;
    let said = site.event("ServedCertificateStale").await?;
    let secret = site.secret().await?;
    let done = secret.annotations().get("state.cert-renew.io/rolled-out");
    ensure!(
        !done.is_some_and(|done| done.starts_with(&leaf)),
        "it is called done: {done:?}"
    );
    let (_, figures) = count_stale(&site.end().await?);
    Ok((said, figures))
}

pub(super) async fn crash(cluster: &Cluster) -> Found {
    let site = Site::start(
        &cluster.bench,
        "crash",
        "Deployment",
        Server::Pod(&["-only", "P-256"]),
    )
    .await?;
    site.annotate(&[("issuer", "pebble"), ("key-type", "ecdsa-p384")])
        .await?;
    let bad = site.renewed(&[&site.first]).await?;
    let said = site.event("RolloutHalted").await?;
    let served = site.watched();
    ensure!(
        served.presented == [site.first.clone()],
        "while halted: {:?}",
        served.presented
    );
    let began = Instant::now();
    site.annotate(&[("key-type", "ecdsa-p256")]).await?;
    site.done(&[&site.first, &bad]).await?;
    let took = began.elapsed();
    let (text, figures) = count(&site.end().await?);
    Ok((
        format!("{said:.60}…, mended after {took:.0?}; {text}"),
        figures,
    ))
}

/// Nobody waits for the end of a rollout that the newer certificate is about to mend.
pub(super) async fn newer(cluster: &Cluster) -> Found {
    let only = Server::Pod(&["-only", "P-256"]);
    let site = Site::start(&cluster.bench, "newer", "Deployment", only).await?;
    site.annotate(&[("issuer", "pebble"), ("key-type", "ecdsa-p384")])
        .await?;
    let bad = site.renewed(&[&site.first]).await?;
    eventually(LONG, "a pod fails with it", async || {
        let pods = site.space.pods(WEB).await?;
        ensure!(pods.len() > 2, "there are {} pods", pods.len());
        Ok(())
    })
    .await?;
    let began = Instant::now();
    site.annotate(&[("key-type", "ecdsa-p256")]).await?;
    site.done(&[&site.first, &bad]).await?;
    let took = began.elapsed();
    let events = site.events().await;
    ensure!(
        !events.iter().any(|it| it.starts_with("RolloutHalted")),
        "the stuck rollout was waited for: {events:?}"
    );
    let (text, figures) = count(&site.end().await?);
    Ok((format!("mended after {took:.0?}; {text}"), figures))
}

/// What was broken before is not called available, and comes up with the certificate that mends it.
pub(super) async fn unavailable(cluster: &Cluster) -> Found {
    let only = Server::Pod(&["-only", "P-384"]);
    let site = Site::prepare(&cluster.bench, "unavailable", "DaemonSet", only).await?;
    eventually(LONG, "its pod crashes", async || {
        let pods = site.space.pods(WEB).await?;
        let status = pods.first().and_then(|pod| pod.status.as_ref());
        let containers = status.and_then(|it| it.container_statuses.as_ref());
        let restarts: i32 = containers
            .into_iter()
            .flatten()
            .map(|it| it.restart_count)
            .sum();
        ensure!(restarts > 0, "it has not yet");
        Ok(())
    })
    .await?;
    site.annotate(&[("issuer", "pebble")]).await?;
    let bad = site.renewed(&[&site.first]).await?;
    let said = site.event("RolloutFailed").await?;
    let events = site.events().await;
    ensure!(
        !events
            .iter()
            .any(|it| it.contains("available with the new certificate")),
        "it is called available: {events:?}"
    );
    site.annotate(&[("key-type", "ecdsa-p384")]).await?;
    let good = site.renewed(&[&site.first, &bad]).await?;
    site.served(&good).await?;
    site.done(&[&site.first, &bad]).await?;
    let (text, figures) = count_stale(&site.end().await?);
    Ok((format!("{said:.70}…; {text}"), figures))
}

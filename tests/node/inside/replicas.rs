//! Replicas of the operator that end, are replaced or cannot start in the middle of renewals and rollouts.

use std::collections::BTreeMap;
use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use test_bench::objects::{OLD, pair};
use test_bench::{Context as _, Probes, ensure, eventually, leaf_of};
use tokio::time::sleep;

use super::super::site::{LONG, Server, Site, WEB, some, workload};
use super::{Cluster, Figures, Found, OWN, RELOAD, RENEWALS, Renewals, count};
use crate::install::kubectl;

/// A config that allows more names, while a rollout waits for the kubelet.
pub(super) async fn config(cluster: &Cluster) -> Found {
    let site = Site::start(&cluster.bench, "config", "Deployment", Server::Pod(&[])).await?;
    let late = format!("{}.late", site.space.name);
    let old = pair(&[&late], OLD)?;
    let held = site
        .space
        .tls_secret("late", Some(&old), &[("issuer", "pebble")])
        .await?;
    let held = leaf_of(&held);
    let replicas = async || {
        let pods = cluster.operator_pods().await?;
        let restarts = |pod: &Pod| {
            let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
            Some(containers.iter().map(|it| it.restart_count).sum::<i32>())
        };
        let of = |pod: &Pod| (pod.uid(), restarts(pod));
        Ok::<_, test_bench::Error>(pods.iter().map(of).collect::<BTreeMap<_, _>>())
    };
    let before = replicas().await?;
    site.annotate(&[("issuer", "pebble"), RELOAD, ("verify", "web:443")])
        .await?;
    site.renewed(&[&site.first]).await?;
    let began = Instant::now();
    cluster.apply(r#""**.example", "**.late""#)?;
    let heeded = async {
        eventually(LONG, "the new config is heeded", async || {
            let secret = site.space.secrets().get("late").await?;
            ensure!(
                leaf_of(&secret) != held,
                "{:?}",
                site.space.events("late").await?
            );
            Ok(())
        })
        .await?;
        Ok::<_, test_bench::Error>(began.elapsed())
    };
    let rolled = async {
        site.done(&[&site.first]).await?;
        Ok::<_, test_bench::Error>(began.elapsed())
    };
    let (heeded, rolled) = futures::try_join!(heeded, rolled)?;
    let after = replicas().await?;
    ensure!(
        before == after,
        "the operator was restarted: {before:?}, {after:?}"
    );
    let (text, figures) = count(&site.end().await?);
    Ok((
        format!("heeded after {heeded:.0?}, reloaded after {rolled:.0?}; {text}"),
        figures,
    ))
}

pub(super) async fn resume(cluster: &Cluster) -> Found {
    let site = Site::start(
        &cluster.bench,
        "resume",
        "Deployment",
        Server::Pod(&["-only", "P-256"]),
    )
    .await?;
    site.annotate(&[("issuer", "pebble"), ("key-type", "ecdsa-p384")])
        .await?;
    site.event("RolloutHalted").await?;
    // The user takes the flag away, and says that it may go on.
    let fixed = workload("Deployment", Server::Pod(&[]));
    let containers = &fixed["spec"]["template"]["spec"]["containers"];
    let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let workloads = site.space.workloads("Deployment");
    workloads
        .patch(WEB, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    let output = Command::new(env!("CARGO_BIN_EXE_cert-renew"))
        .args(["resume", &format!("{}/{WEB}", site.space.name)])
        .env("KUBECONFIG", cluster.bench.kubeconfig())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "cert-renew resume: {said}");
    site.done(&[&site.first]).await?;
    Ok(count(&site.end().await?))
}

pub(super) async fn killed(cluster: &Cluster) -> Found {
    let site = Site::start(&cluster.bench, "killed", "Deployment", Server::Nginx).await?;
    let leader = cluster.leader().await?;
    site.annotate(&[("issuer", "pebble")]).await?;
    site.renewed(&[&site.first]).await?;
    cluster.node.kill_in_pod(&leader, "cert-renew")?;
    site.done(&[&site.first]).await?;
    let watched = site.end_changed_once().await?;
    cluster.operator_available().await?;
    Ok(count(&watched))
}

/// What the CA would have lost: requests without an answer, and renewals that failed.
async fn lost(probes: &Probes, renewals: &Renewals) -> Found {
    let failed = renewals.end().await?;
    let watched = probes.watched();
    let text = format!(
        "{} of {} requests lost {:?}, {failed} tries of {RENEWALS} renewals failed",
        watched.failed.len(),
        watched.tried,
        some(&watched.failed),
    );
    let figures = Figures {
        challenges_lost: watched.failed.len() + failed,
        ..Figures::default()
    };
    Ok((text, figures))
}

pub(super) async fn broken(cluster: &Cluster) -> Found {
    // A third replica whose program does not come up: it listens nowhere.
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), OWN);
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "broken", "labels": {"app.kubernetes.io/name": "cert-renew"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "cert-renew",
                "image": "node.test/pod:1",
                "args": ["pause"],
                "ports": [{"name": "challenge", "containerPort": 8402}],
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": 9402}, "periodSeconds": 1},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    eventually(LONG, "it runs", async || {
        let status = pods.get("broken").await?.status.context("no status")?;
        ensure!(
            status.phase.as_deref() == Some("Running"),
            "{:?}",
            status.phase
        );
        Ok(())
    })
    .await?;
    // What follows the pod's address would be there by now.
    sleep(Duration::from_secs(3)).await;
    let renewals = cluster.renewals("broken").await?;
    let probes = cluster.probe_challenges()?;
    renewals.begin().await?;
    let found = lost(&probes, &renewals).await;
    pods.delete("broken", &Default::default()).await?;
    found
}

pub(super) async fn upgrade(cluster: &Cluster) -> Found {
    let site = Site::start(&cluster.bench, "upgrade", "Deployment", Server::Nginx).await?;
    let renewals = cluster.renewals("upgrade").await?;
    let probes = cluster.probe_challenges()?;
    site.annotate(&[("issuer", "pebble")]).await?;
    renewals.begin().await?;
    let restart = format!("-n {OWN} rollout restart deployment/cert-renew");
    kubectl(&cluster.bench, &restart, "")?;
    sleep(Duration::from_secs(2)).await;
    cluster.operator_available().await?;
    eventually(LONG, "the former replicas are gone", async || {
        let pods = cluster.operator_pods().await?;
        ensure!(pods.len() == 2, "there are {} pods", pods.len());
        Ok(())
    })
    .await?;
    site.done(&[&site.first]).await?;
    let (text, figures) = lost(&probes, &renewals).await?;
    let (handshakes, of_site) = count(&site.end_changed_once().await?);
    let figures = Figures {
        challenges_lost: figures.challenges_lost,
        ..of_site
    };
    Ok((format!("{text}; {handshakes}"), figures))
}

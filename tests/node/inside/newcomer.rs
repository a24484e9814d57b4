//! docs/install.md on a real node: the image in the node, one file or the chart applied, and the last two steps typed as
//! they stand there but for the issuer's name, for a shop whose pods serve.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use serde_json::{Value, json};
use test_bench::ensure;

use super::super::site::Site;
use super::{Cluster, Found, NAMES, OWN, ROOT, count};
use crate::command::said;
use crate::install::{helm_program, kubectl};
use crate::newcomer::{Newcomer, Steps};

/// Installed by one file, as the cluster of all scenes is.
pub(super) async fn by_one_file(cluster: &Cluster) -> Found {
    last_steps(cluster, "one-file", cluster.challenges).await
}

/// Taken away as the page says, and installed by the chart.
pub(super) async fn by_helm(cluster: &Cluster) -> Found {
    kubectl(
        &cluster.bench,
        "delete -f target/node-dist/install.yaml",
        "",
    )?;
    kubectl(
        &cluster.bench,
        "delete -f rbac/addons --ignore-not-found",
        "",
    )?;
    let directory = cluster.bench.directory().join("helm");
    fs::create_dir_all(&directory)?;
    let values = directory.join("my-values.yaml");
    kubectl(&cluster.bench, &format!("create namespace {OWN}"), "")?;
    let ca = cluster.bench.ca_bundle().display();
    let ca = format!("-n {OWN} create configmap ca --from-file=ca.pem={ca}");
    kubectl(&cluster.bench, &ca, "")?;
    let config = cluster
        .config(NAMES)
        .replace("/etc/cert-renew/ca.pem", "/etc/ca/ca.pem");
    let config: Value = serde_saphyr::from_str(&config)?;
    let text = json!({
        "image": {"repository": "docker.io/library/cert-renew"},
        "config": config,
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": true}],
    });
    fs::write(&values, text.to_string())?;
    let helm = Command::new(helm_program()?)
        .args([
            "install",
            "cert-renew",
            "deploy/helm",
            "--namespace",
            OWN,
            "--create-namespace",
            "--values",
        ])
        .arg(&values)
        .env("KUBECONFIG", cluster.bench.kubeconfig())
        .env("HOME", &directory)
        .current_dir(ROOT)
        .output()?;
    ensure!(helm.status.success(), "{}", said(&helm));
    let challenges = cluster.lead_challenges().await?;
    cluster.operator_available().await?;
    last_steps(cluster, "by-helm", challenges).await
}

/// Steps 4 and 5 for `shop/shop-tls`, which a Deployment of nginx serves as shop.example.com, from a home of this name.
async fn last_steps(cluster: &Cluster, home: &str, challenges: IpAddr) -> Found {
    let steps = Steps::read()?;
    let gone = "delete namespace shop --ignore-not-found";
    kubectl(&cluster.bench, gone, "")?;
    let site = Site::of_the_page(&cluster.bench).await?;
    // The name leads to the Service that challenges come to, as the bench's DNS has it.
    let newcomer = Newcomer::at(&cluster.bench, home, SocketAddr::new(challenges, 80))?;
    steps.is_routed(&newcomer).await?;
    let annotate = steps.annotate;
    newcomer.types(&annotate.replace("issuer=letsencrypt", "issuer=pebble"))?;
    site.done(&[&site.first]).await?;
    steps.is_told(&newcomer).await?;
    let found = count(&site.end_changed_once().await?);
    kubectl(&cluster.bench, gone, "")?;
    Ok(found)
}

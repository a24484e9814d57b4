//! docs/install.md on a real node: the image in the node, one file or the chart applied, and the last two steps typed as
//! they stand there, for a shop whose pods serve.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use test_bench::{Context as _, Result, ensure, eventually};

use super::super::site::{LONG, Site};
use super::{Cluster, Found, NAMES, OWN, ROOT, count};
use crate::command::said;
use crate::install::{helm_program, kubectl};
use crate::newcomer::blocks;

/// Installed by one file, as the cluster of all scenes is.
pub(super) async fn by_one_file(cluster: &Cluster) -> Found {
    last_steps(cluster).await
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
    cluster.lead_challenges().await?;
    cluster.operator_available().await?;
    last_steps(cluster).await
}

/// Steps 4 and 5 for `shop/shop-tls`, which a Deployment of nginx serves as shop.example.com.
async fn last_steps(cluster: &Cluster) -> Found {
    let blocks = blocks()?;
    let block = |begins: &str| {
        let mut found = blocks.iter().filter(|(_, text)| text.starts_with(begins));
        found
            .next_back()
            .map(|(_, text)| *text)
            .with_context(|| format!("no block {begins}"))
    };
    let (route, annotate) = (block("curl ")?, block("kubectl -n shop annotate ")?);
    let annotate = annotate.replace("issuer=letsencrypt", "issuer=pebble");
    let gone = "delete namespace shop --ignore-not-found";
    kubectl(&cluster.bench, gone, "")?;
    let site = Site::of_the_page(&cluster.bench).await?;
    let shell = Shell::open(cluster)?;
    let routed = shell.types(route)?;
    ensure!(routed.contains("404 Not Found"), "{route}: {routed}");
    shell.types(&annotate)?;
    site.done(&[&site.first]).await?;
    let events = annotate.lines().last().context("no command")?;
    eventually(
        LONG,
        "the documented command shows the Events",
        async || {
            let shown = shell.types(events)?;
            ensure!(
                shown.contains("Renewed") && shown.contains("RolledOut"),
                "{shown}"
            );
            Ok(())
        },
    )
    .await?;
    let status = shell.types("cert-renew status -n shop")?;
    ensure!(
        status.contains("shop-tls") && status.contains(" ok "),
        "{status}"
    );
    let found = count(&site.end_changed_once().await?);
    kubectl(&cluster.bench, gone, "")?;
    Ok(found)
}

/// Somebody's shell, with rights on the cluster.
struct Shell<'a> {
    cluster: &'a Cluster,
    home: PathBuf,
}

impl<'a> Shell<'a> {
    fn open(cluster: &'a Cluster) -> Result<Self> {
        let home = cluster.bench.directory().join("shell");
        if home.exists() {
            fs::remove_dir_all(&home)?;
        }
        fs::create_dir_all(home.join("bin"))?;
        symlink(cluster.bench.program("kubectl"), home.join("bin/kubectl"))?;
        symlink(
            env!("CARGO_BIN_EXE_cert-renew"),
            home.join("bin/cert-renew"),
        )?;
        // The name leads to the Service that challenges come to, as the bench's DNS has it.
        let services = kubectl(
            &cluster.bench,
            &format!("-n {OWN} get service cert-renew-challenge -o jsonpath={{.spec.clusterIP}}"),
            "",
        )?;
        let address = String::from_utf8(services.stdout)?;
        fs::write(
            home.join(".curlrc"),
            format!("connect-to = \"shop.example.com:80:{address}:80\"\n"),
        )?;
        Ok(Self { cluster, home })
    }

    fn types(&self, block: &str) -> Result<String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", block])
            .current_dir(&self.home)
            .env_clear()
            .env(
                "PATH",
                format!("{}:{path}", self.home.join("bin").display()),
            )
            .env("HOME", &self.home)
            .env("KUBECONFIG", self.cluster.bench.kubeconfig())
            .output()?;
        ensure!(output.status.success(), "{block}\n{}", said(&output));
        Ok(said(&output))
    }
}

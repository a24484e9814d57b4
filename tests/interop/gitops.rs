//! What Git declares, applied by the engines of Flux and Argo CD: certificates stay, and no order is made for a sync.

use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Secret;
use test_bench::objects::{Reference, Space, workload};
use test_bench::{Bench, Engine, Operator, Result, ensure, ensure_gitops};

use crate::gitops::declared_as;
use crate::renewal::{annotation, data, options, renewed, rolled_out};

/// How often the manifest is applied each time.
const SYNCS: usize = 10;
/// The manifest of the page that every tool may apply.
const EVERY_TOOL: &str = "# examples/gitops/secret.yaml";
/// The one of type `kubernetes.io/tls` for Flux.
const FLUX_ONLY: &str = "# examples/flux/secret.yaml";
/// That for Argo CD, and its Application.
const ARGO_ONLY: &str = "# examples/argo-cd/secret.yaml";
const APPLICATION: &str = include_str!("../../examples/argo-cd/application.yaml");
/// By which Argo CD applies the data that it ignores as it is in the cluster.
const RESPECT: &str = "RespectIgnoreDifferences=true";
/// Where a client-side apply keeps what it has applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

#[tokio::test]
#[ignore = "make interop runs it: its engine takes minutes to build"]
async fn flux() -> Result<()> {
    synced(Engine::Flux, EVERY_TOOL, None, "flux")
        .await
        .map(drop)
}

#[tokio::test]
#[ignore = "make interop runs it: its engine takes minutes to build"]
async fn flux_with_a_secret_of_type_tls() -> Result<()> {
    synced(Engine::Flux, FLUX_ONLY, None, "flux-tls")
        .await
        .map(drop)
}

#[tokio::test]
#[ignore = "make interop runs it: its engine takes minutes to build"]
async fn argo_cd() -> Result<()> {
    synced(Engine::Argo, EVERY_TOOL, None, "argo-cd")
        .await
        .map(drop)
}

#[tokio::test]
#[ignore = "make interop runs it: its engine takes minutes to build"]
async fn argo_cd_by_server_side_apply() -> Result<()> {
    let tag = "argo-cd-server-side";
    synced(Engine::ArgoServerSide, EVERY_TOOL, None, tag)
        .await
        .map(drop)
}

/// As the page has it: the Application says that the data in the cluster counts.
#[tokio::test]
#[ignore = "make interop runs it: its engine takes minutes to build"]
async fn argo_cd_with_a_secret_of_type_tls() -> Result<()> {
    let engine = Engine::ArgoServerSide;
    let site = synced(engine, ARGO_ONLY, Some(APPLICATION), "argo-cd-tls").await?;
    let secret = site.space.secrets().get("tls").await?;
    let copied = annotation(&secret, LAST_APPLIED);
    ensure!(copied.is_none(), "the key is copied into {LAST_APPLIED}");
    Ok(())
}

/// Neither half by itself is enough, as the page says; and what it says of a client-side apply.
#[tokio::test]
#[ignore = "make interop runs it: its engine takes minutes to build"]
async fn argo_cd_with_half_of_the_application() -> Result<()> {
    let application = APPLICATION.replace(", ServerSideApply=true", "");
    ensure!(application != APPLICATION, "no ServerSideApply");
    let mut site = synced(Engine::Argo, ARGO_ONLY, Some(&application), "argo-cd-half").await?;
    let secret = site.space.secrets().get("tls").await?;
    let copied = annotation(&secret, LAST_APPLIED).unwrap_or_default();
    ensure!(copied.contains("tls.key\":\"L"), "no key in {copied}");

    let half = application.replace(RESPECT, "");
    ensure!(!half.contains("Respect"), "{half}");
    // It would put the certificate back.
    site.operator.kill();
    fs::write(
        site.application(),
        half.replace("name: shop-tls", "name: tls"),
    )?;
    site.sync(1)?;
    let secret = site.space.secrets().get("tls").await?;
    ensure!(
        data(&secret, "tls.key").is_empty(),
        "the key is still there"
    );
    Ok(())
}

/// A namespace that an engine keeps as Git has it.
struct Site<'a> {
    bench: &'a Bench,
    operator: Operator<'a>,
    space: Space,
    engine: Engine,
    /// What Git holds now.
    git: PathBuf,
}

impl Site<'_> {
    /// Where the Application is, if there is one.
    fn application(&self) -> PathBuf {
        self.git.with_extension("application")
    }

    /// Applies what Git holds this number of times.
    fn sync(&self, times: usize) -> Result<()> {
        let application = self.application();
        let application = application.exists().then_some(&*application);
        let Self {
            bench, git, space, ..
        } = self;
        self.engine
            .sync(bench, git, &space.name, times, application)
    }

    /// Waits until the workload has the certificate, then syncs: nothing changes. Returns the number of orders until now.
    async fn keeps(&self, issued: &Secret) -> Result<usize> {
        let Self {
            operator, space, ..
        } = self;
        let before = rolled_out(space, "tls").await?;
        let generation = space.generation("Deployment", "web").await?;
        self.sync(SYNCS)?;
        // A renewal that a sync has caused is over before this one, which is asked for after it.
        let later = format!("later-{generation}");
        let names = format!("{later}.gitops.example");
        let annotations = [("issuer", "pebble"), ("names", names.as_str())];
        space.tls_secret(&later, None, &annotations).await?;
        renewed(space, &later, "").await?;

        let now = space.secrets().get("tls").await?;
        for key in ["tls.crt", "tls.key"] {
            ensure!(data(&now, key) == data(issued, key), "another {key}");
        }
        for key in ["rolled-out", "issued-by"] {
            let key = format!("state.cert-renew.io/{key}");
            let [was, is] = [&before, &now].map(|it| annotation(it, &key));
            ensure!(was == is, "{key}: {was:?}, then {is:?}");
        }
        let after = space.generation("Deployment", "web").await?;
        ensure!(
            after == generation,
            "web has changed with the syncs: generation {after}, not {generation}"
        );
        let ours = format!("\"secret\":\"{}/tls\"", space.name);
        let log = operator.log()?;
        let about = log.lines().filter(|line| line.contains(&ours));
        Ok(about
            .filter(|line| line.contains("\"message\":\"ordered\""))
            .count())
    }
}

/// Git holds a Secret and a Deployment that mounts it. Later it asks for one more name.
async fn synced(
    engine: Engine,
    mark: &str,
    application: Option<&str>,
    tag: &str,
) -> Result<Site<'static>> {
    tokio::task::spawn_blocking(ensure_gitops).await??;
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, tag, operator.namespace()).await?;
    let site = Site {
        bench,
        operator,
        space,
        engine,
        git: bench.directory().join(format!("{tag}.yaml")),
    };
    if let Some(application) = application {
        // The Secret is called so here.
        let application = application.replace("name: shop-tls", "name: tls");
        fs::write(site.application(), application)?;
    }
    let first = manifest(&site.space, mark)?;
    fs::write(&site.git, &first)?;
    site.sync(1)?;
    let issued = renewed(&site.space, "tls", "").await?;
    let mut orders = site.keeps(&issued).await?;
    ensure!(orders == 1, "{orders} orders for the first certificate");
    // Flux does not write again what it creates only.
    if mark != FLUX_ONLY {
        let name = "tls.gitops.example";
        let second = first.replace(name, &format!("{name}, more.{name}"));
        ensure!(second != first, "no names in {first}");
        fs::write(&site.git, second)?;
        site.sync(1)?;
        let old = data(&issued, "tls.crt");
        let issued = renewed(&site.space, "tls", &old).await?;
        orders = site.keeps(&issued).await?;
        ensure!(orders == 2, "{orders} orders for two certificates");
    }
    eprintln!(
        "{engine:?}: {orders} orders, each certificate kept over {SYNCS} syncs, no further restart"
    );
    Ok(site)
}

/// What Git holds: the Secret as the page has it, and a workload without an annotation of ours.
fn manifest(space: &Space, mark: &str) -> Result<String> {
    let namespace = format!("metadata:\n  namespace: {}\n", space.name);
    let secret = declared_as(mark, "tls", &space.class)?.replace("metadata:\n", &namespace);
    let mut deployment = workload("Deployment", "web", 2, Reference::Volume, "tls");
    deployment["metadata"]["namespace"] = space.name.as_str().into();
    Ok(format!("{secret}---\n{deployment}\n"))
}

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
const EVERY_TOOL: &str = "# declared.yaml";
/// The one of type `kubernetes.io/tls` for Flux.
const FLUX_ONLY: &str = "kustomize.toolkit.fluxcd.io/ssa: IfNotPresent";

#[tokio::test]
#[ignore = "make interop runs it: its engine takes minutes to build"]
async fn flux() -> Result<()> {
    synced(Engine::Flux, EVERY_TOOL, "flux").await
}

#[tokio::test]
#[ignore = "make interop runs it: its engine takes minutes to build"]
async fn flux_with_a_secret_of_type_tls() -> Result<()> {
    synced(Engine::Flux, FLUX_ONLY, "flux-tls").await
}

#[tokio::test]
#[ignore = "make interop runs it: its engine takes minutes to build"]
async fn argo_cd() -> Result<()> {
    synced(Engine::Argo, EVERY_TOOL, "argo-cd").await
}

#[tokio::test]
#[ignore = "make interop runs it: its engine takes minutes to build"]
async fn argo_cd_by_server_side_apply() -> Result<()> {
    synced(Engine::ArgoServerSide, EVERY_TOOL, "argo-cd-server-side").await
}

/// A namespace that an engine keeps as Git has it.
struct Site<'a> {
    operator: Operator<'a>,
    space: Space,
    engine: Engine,
    /// What Git holds now.
    git: PathBuf,
}

impl Site<'_> {
    /// Applies what Git holds so many times.
    fn sync(&self, bench: &Bench, times: usize) -> Result<()> {
        self.engine.sync(bench, &self.git, &self.space.name, times)
    }

    /// Waits until the workload has the certificate, then syncs: nothing changes. Returns the number of orders until now.
    async fn keeps(&self, bench: &Bench, issued: &Secret) -> Result<usize> {
        let Self {
            operator, space, ..
        } = self;
        let before = rolled_out(space, "tls").await?;
        let generation = space.generation("Deployment", "web").await?;
        self.sync(bench, SYNCS)?;
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
async fn synced(engine: Engine, mark: &str, tag: &str) -> Result<()> {
    tokio::task::spawn_blocking(ensure_gitops).await??;
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, tag, operator.namespace()).await?;
    let site = Site {
        operator,
        space,
        engine,
        git: bench.directory().join(format!("{tag}.yaml")),
    };
    let first = manifest(&site.space, mark)?;
    fs::write(&site.git, &first)?;
    site.sync(bench, 1)?;
    let issued = renewed(&site.space, "tls", "").await?;
    let mut orders = site.keeps(bench, &issued).await?;
    ensure!(orders == 1, "{orders} orders for the first certificate");
    // Flux does not write again what it creates only.
    if mark == EVERY_TOOL {
        let name = "tls.gitops.example";
        let second = first.replace(name, &format!("{name}, more.{name}"));
        ensure!(second != first, "no names in {first}");
        fs::write(&site.git, second)?;
        site.sync(bench, 1)?;
        let old = data(&issued, "tls.crt");
        let issued = renewed(&site.space, "tls", &old).await?;
        orders = site.keeps(bench, &issued).await?;
        ensure!(orders == 2, "{orders} orders for two certificates");
    }
    eprintln!(
        "{engine:?}: {orders} orders, each certificate kept over {SYNCS} syncs, no further restart"
    );
    Ok(())
}

/// What Git holds: the Secret as the page has it, and a workload without an annotation of ours.
fn manifest(space: &Space, mark: &str) -> Result<String> {
    let namespace = format!("metadata:\n  namespace: {}\n", space.name);
    let secret = declared_as(mark, "tls", &space.class)?.replace("metadata:\n", &namespace);
    let mut deployment = workload("Deployment", "web", 2, Reference::Volume, "tls");
    deployment["metadata"]["namespace"] = space.name.as_str().into();
    Ok(format!("{secret}---\n{deployment}\n"))
}

//! What Git declares: the manifests of docs/gitops.md and of the pages below it keep their certificates under every way to apply
//! them, each kustomization of the documents renders as it is printed, and a chart without its manifests is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use test_bench::objects::Space;
use test_bench::{Bench, Context as _, Operator, Result, ensure};

use crate::command::{cert_renew, said};
use crate::install::{ALL_IN, helm_program, kubectl};
use crate::renewal::{data, options, renewed};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PAGES: [&str; 3] = [
    include_str!("../docs/gitops.md"),
    include_str!("../docs/gitops/argo-cd.md"),
    include_str!("../docs/gitops/flux.md"),
];
/// How often each tool applies the manifest.
pub(crate) const SYNCS: usize = 10;

/// A directory of a test's own below `target/`, gone with it.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let directory = Path::new(ROOT).join("target").join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        Ok(Self(directory))
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.0.join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(fs::write(path, text)?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left lies below target/, where nobody minds.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The YAML blocks of a page.
fn yaml(page: &str) -> impl Iterator<Item = &str> {
    let blocks = page.split("```yaml\n").skip(1);
    blocks.filter_map(|rest| rest.split("```").next())
}

/// Runs helm against the bench.
pub(crate) fn helm(bench: &Bench, arguments: &str) -> Result<()> {
    let output = Command::new(helm_program()?)
        .args(arguments.split(' '))
        .env("KUBECONFIG", bench.kubeconfig())
        .current_dir(ROOT)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm {arguments}: {said}");
    Ok(())
}

/// The declared Secret of the pages that has `mark`, under a name and for a host of its own.
pub(crate) fn declared_as(mark: &str, name: &str, class: &str) -> Result<String> {
    let is_it = |block: &&str| block.contains("kind: Secret\n") && block.contains(mark);
    let mut blocks = PAGES.into_iter().flat_map(yaml);
    let block = blocks.find(is_it).with_context(|| mark.to_owned())?;
    let ours = format!("issuer: pebble\n    cert-renew.io/class: {class}");
    Ok(block
        .replace("  namespace: shop\n", "")
        .replace("issuer: letsencrypt", &ours)
        .replace("name: shop-tls", &format!("name: {name}"))
        .replace("shop.example.com", &format!("{name}.gitops.example")))
}

/// The one that survives every tool.
fn declared(name: &str, class: &str) -> Result<String> {
    declared_as("# examples/gitops/secret.yaml", name, class)
}

#[tokio::test]
async fn ten_syncs_lose_no_certificate_and_issue_none() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "gitops", operator.namespace()).await?;
    let scratch = Scratch::new(&space.name)?;
    let chart = "apiVersion: v2\nname: shop\nversion: 0.1.0\n";
    scratch.write("chart/Chart.yaml", chart)?;
    let template = declared("helmed", &space.class)?;
    scratch.write("chart/templates/secret.yaml", &template)?;
    let path = scratch.0.display();
    let namespace = &space.name;
    let sync = |tool: &str| -> Result<()> {
        let apply = |arguments: &str| {
            let input = declared(tool, &space.class)?;
            kubectl(bench, &format!("-n {namespace} {arguments} -f -"), &input).map(drop)
        };
        match tool {
            "applied" => apply("apply"),
            "forced" => {
                apply("apply --server-side --force-conflicts --field-manager=argocd-controller")
            }
            _ => helm(
                bench,
                &format!("upgrade --install shop {path}/chart --namespace {namespace}"),
            ),
        }
    };
    for tool in ["applied", "forced", "helmed"] {
        sync(tool)?;
        let issued = renewed(&space, tool, "").await?;
        for _ in 0..SYNCS {
            sync(tool)?;
        }
        // A renewal that a sync had caused would be over before this one, which is asked for after it.
        let later = format!("{tool}-later");
        let input = declared(&later, &space.class)?;
        kubectl(bench, &format!("-n {namespace} apply -f -"), &input)?;
        renewed(&space, &later, "").await?;
        let now = space.secrets().get(tool).await?;
        ensure!(
            data(&now, "tls.crt") == data(&issued, "tls.crt"),
            "{tool}: another certificate than before the syncs"
        );
        ensure!(
            data(&now, "tls.key") == data(&issued, "tls.key"),
            "{tool}: another key than before the syncs"
        );
    }
    Ok(())
}

/// The manifest that `create` prints is one to keep in Git: applied before and after a renewal, it takes nothing away.
#[tokio::test]
async fn the_manifest_that_create_prints_survives_being_applied_again() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "printed", operator.namespace()).await?;
    let place = format!("{}/shop-tls", space.name);
    let create = [
        "create",
        &place,
        "--issuer=pebble",
        "--names=printed.gitops.example",
        "--class",
        &space.class,
        "--dry-run=client",
        "-o=yaml",
    ];
    let printed = cert_renew(&create, None)?;
    ensure!(printed.status.success(), "{}", said(&printed));
    let manifest = String::from_utf8(printed.stdout)?;
    kubectl(bench, "apply -f -", &manifest)?;
    let issued = renewed(&space, "shop-tls", "").await?;
    kubectl(bench, "apply -f -", &manifest)?;
    let now = space.secrets().get("shop-tls").await?;
    for key in ["tls.crt", "tls.key"] {
        ensure!(data(&now, key) == data(&issued, key), "{key} is another");
    }
    let wish = format!(
        "-n {} annotate secret shop-tls cert-renew.io/renew-now=force-1",
        space.name
    );
    kubectl(bench, &wish, "")?;
    let old = data(&issued, "tls.crt");
    let issued = renewed(&space, "shop-tls", &old).await?;
    kubectl(bench, "apply -f -", &manifest)?;
    let now = space.secrets().get("shop-tls").await?;
    for key in ["tls.crt", "tls.key"] {
        ensure!(data(&now, key) == data(&issued, key), "{key} is another");
    }
    Ok(())
}

#[tokio::test]
async fn each_kustomization_of_the_documents_renders_as_printed() -> Result<()> {
    let bench = Bench::shared().await?;
    let scratch = Scratch::new("kustomizations")?;
    let config = fs::read_to_string(Path::new(ROOT).join("deploy/config.yaml"))?;
    let mut rendered = 0;
    for page in fs::read_dir(Path::new(ROOT).join("docs"))? {
        let page = page?.path();
        if page.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&page)?;
        // Those of `examples/` are rendered where they are.
        let theirs = |block: &&str| {
            block.contains("kustomize.config.k8s.io/") && !block.starts_with("# examples/")
        };
        for block in yaml(&text).filter(theirs) {
            let directory = format!("overlay-{rendered}");
            // The reader's copy of the repository stands beside the overlay.
            let ours = block.replace("../cert-renew/", "../../../");
            scratch.write(&format!("{directory}/kustomization.yaml"), &ours)?;
            scratch.write(&format!("{directory}/config.yaml"), &config)?;
            let path = scratch.0.join(directory);
            kubectl(bench, &format!("kustomize {}", path.display()), "")
                .with_context(|| format!("{}:\n{block}", page.display()))?;
            rendered += 1;
        }
    }
    ensure!(rendered >= 3, "only {rendered} kustomizations are shown");
    Ok(())
}

/// Each file that the chart is made of is missed: one that a tool has left out does not end in half an installation.
#[test]
fn a_chart_without_a_part_says_so() -> Result<()> {
    let source = Path::new(ROOT).join("deploy/helm");
    let parts = crate::documents::files(&source)?;
    let parts = parts
        .iter()
        .filter_map(|path| path.strip_prefix(&source).ok());
    let parts: Vec<&Path> = parts
        .filter(|path| {
            path.starts_with("manifests")
                || path.starts_with("config.yaml")
                || path.starts_with("dashboard.json")
                || path.starts_with("manifests.sha256")
                || path.parent() == Some(Path::new("templates"))
                    && path.extension().is_some_and(|it| it == "yaml")
        })
        .collect();
    ensure!(parts.len() > 20, "only {} parts", parts.len());
    for missing in parts {
        let scratch = Scratch::new("chart-without-a-part")?;
        let copied = Command::new("cp")
            .args(["-r", "deploy/helm/."])
            .arg(&scratch.0)
            .current_dir(ROOT)
            .status()?;
        ensure!(copied.success(), "cp");
        let place = scratch.0.join(missing);
        fs::remove_file(&place)?;
        without(&scratch, missing)?;
        if missing.starts_with("manifests") {
            // What a link is where links are not kept, and half a file.
            fs::write(&place, "../../rbac/role.yaml")?;
            without(&scratch, missing)?;
            fs::write(&place, "kind: Role\nmetadata: {name")?;
            without(&scratch, missing)?;
            // Cut off where an object ends, or a line.
            let whole = fs::read_to_string(source.join(missing))?;
            let cut = whole.rsplit_once("\n---\n");
            let cut = cut.or_else(|| whole.trim_end().rsplit_once('\n'));
            let (kept, _) = cut.context("one line")?;
            fs::write(&place, format!("{kept}\n"))?;
            without(&scratch, missing)?;
        }
    }
    Ok(())
}

/// A chart without a part is refused, and names it.
fn without(chart: &Scratch, missing: &Path) -> Result<()> {
    let mut helm = Command::new(helm_program()?);
    for kind in ["PodMonitor", "ServiceMonitor", "PrometheusRule"] {
        helm.arg(format!("--api-versions=monitoring.coreos.com/v1/{kind}"));
    }
    let monitor = if missing.ends_with("servicemonitor.yaml") {
        "monitoring.serviceMonitor=true"
    } else {
        "monitoring.podMonitor=true"
    };
    let output = helm
        .args(["template", "cert-renew", "--set", ALL_IN, "--set", monitor])
        .arg(&chart.0)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success()
            && said.contains(&format!("the chart is incomplete: {}", missing.display())),
        "without {}: {said}",
        missing.display()
    );
    Ok(())
}

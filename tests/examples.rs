//! `examples/`: each file is taken by what it is for, and the documents show it as it is there.
//!
//! Objects are applied by a server-side dry run, in a namespace of the test's own. Kinds that the API server of the bench
//! does not have, those of the Gateway API, OpenShift, Argo CD and Flux, are read only; so is Alertmanager's file, for which
//! there is no checker. The Application of a Secret is followed by Argo CD's own engine in `interop::gitops`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cert_renew_core::config::{Config, Labels};
use cert_renew_core::secret::settings::{IssuerRef, Settings};
use serde_json::{Value, json};
use test_bench::objects::Space;
use test_bench::{Bench, Context as _, Result, ensure};

use crate::documents::{blocks, documents, files};
use crate::install::{helm_program, kubectl};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Groups that the bench's API server does not serve.
const FOREIGN: [&str; 5] = [
    "gateway.networking.k8s.io/",
    "route.openshift.io/",
    "argoproj.io/",
    "source.toolkit.fluxcd.io/",
    "helm.toolkit.fluxcd.io/",
];

/// Secrets with empty data, which the tool that applies them is told to leave alone: followed in `interop::gitops`.
const GUARDED: [&str; 2] = ["argo-cd/secret.yaml", "flux/secret.yaml"];

/// The files of `examples/` with this extension.
fn examples(extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = files(&Path::new(ROOT).join("examples"))?;
    found.retain(|path| {
        let extension = path.extension().unwrap_or_default();
        extensions.iter().any(|it| extension == *it)
    });
    Ok(found)
}

fn named<'a>(paths: &'a [PathBuf], name: &'a str) -> impl Iterator<Item = &'a PathBuf> {
    let is = move |path: &&PathBuf| path.file_name().is_some_and(|it| it == name);
    paths.iter().filter(is)
}

fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name != "config.yaml" && name != "kustomization.yaml"
}

fn objects(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    let objects = serde_saphyr::from_multiple::<Value>(&text);
    let objects = objects.with_context(|| path.display().to_string())?;
    for object in &objects {
        ensure!(
            object["kind"] == "Namespace"
                || object["kind"].is_string() && object["metadata"]["namespace"].is_string(),
            "{}: expected objects with a namespace",
            path.display()
        );
    }
    Ok(objects)
}

/// The objects of all manifests, each with its file.
fn manifests() -> Result<Vec<(PathBuf, Value)>> {
    let mut all = Vec::new();
    for path in examples(&["yaml"])?
        .into_iter()
        .filter(|it| is_manifest(it))
    {
        let objects = objects(&path)?.into_iter();
        all.extend(objects.map(|object| (path.clone(), object)));
    }
    Ok(all)
}

#[tokio::test]
async fn every_manifest_is_accepted_without_a_warning() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "examples", "examples").await?;
    let mut accepted = 0;
    for (path, mut object) in manifests()? {
        let group = object["apiVersion"].as_str().unwrap_or_default();
        if FOREIGN.iter().any(|it| group.starts_with(it)) {
            continue;
        }
        if object["kind"] != "Namespace" {
            object["metadata"]["namespace"] = space.name.clone().into();
        }
        let dry_run = "apply --validate=strict --dry-run=server -f -";
        let said = kubectl(bench, dry_run, &object.to_string())
            .with_context(|| path.display().to_string())?;
        // Of a Secret that is still empty the API server says that there is nothing to read.
        let expected = "Warning: tls: failed to find any PEM data in certificate input";
        let warnings = String::from_utf8_lossy(&said.stderr).replace(expected, "");
        ensure!(!warnings.contains("Warning"), "{warnings}");
        accepted += 1;
    }
    ensure!(accepted >= 31, "only {accepted} objects were applied");
    Ok(())
}

/// A certificate that came in the meantime, from cert-renew or from a copier, stays.
#[tokio::test]
async fn applying_an_example_again_takes_no_certificate_away() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "again", "again").await?;
    let mut applied = 0;
    for (path, mut object) in manifests()? {
        let guarded = GUARDED.iter().any(|it| path.ends_with(it));
        if guarded || object["kind"] != "Secret" {
            continue;
        }
        let namespace = &space.name;
        let name = format!("again-{applied}");
        object["metadata"]["namespace"] = namespace.clone().into();
        object["metadata"]["name"] = name.clone().into();
        let apply = |how: &str| kubectl(bench, &format!("{how} -f -"), &object.to_string());
        apply("apply")?;
        let data = json!({"data": {"tls.crt": "Y2VydA==", "tls.key": "a2V5"}});
        let patch = format!("-n {namespace} patch secret {name} --type=merge -p {data}");
        kubectl(bench, &patch, "")?;
        apply("apply")?;
        apply("apply --server-side --force-conflicts")?;
        let secret = serde_json::to_value(space.secrets().get(&name).await?)?;
        ensure!(
            secret["data"] == data["data"],
            "{}: {}",
            path.display(),
            secret["data"]
        );
        applied += 1;
    }
    ensure!(applied >= 10, "only {applied} Secrets were applied");
    Ok(())
}

/// Who goes on from the quick start to another page has its Secret: a type is never changed.
#[test]
fn the_secret_of_the_quick_start_is_that_of_the_other_pages_too() -> Result<()> {
    let quick_start = include_str!("../docs/start/quick-start.md");
    ensure!(quick_start.contains("kubectl apply -f examples/gitops/secret.yaml"));
    let (paths, mut same) = (examples(&["yaml"])?, 0);
    for path in named(&paths, "app.yaml") {
        for object in objects(path)? {
            let metadata = &object["metadata"];
            if object["kind"] == "Secret"
                && metadata["namespace"] == "shop"
                && metadata["name"] == "shop-tls"
            {
                ensure!(object["type"] == "Opaque", "{}", path.display());
                same += 1;
            }
        }
    }
    ensure!(same >= 5, "only {same}");
    Ok(())
}

/// Who follows a page from its top has each namespace before something is applied to it.
#[test]
fn each_page_makes_the_namespaces_of_what_it_applies() -> Result<()> {
    let (mut missing, mut needed) = (Vec::new(), 0);
    for (page, text) in documents()? {
        let blocks = blocks(&text);
        let commands = blocks.iter().filter(|it| it.language == "sh");
        let commands: String = commands.map(|block| block.text.as_str()).collect();
        for file in commands.split(" -f ").skip(1) {
            let file = file.split_whitespace().next().unwrap_or_default();
            if !file.starts_with("examples/") {
                continue;
            }
            let applied = text.find(&format!(" -f {file}")).context("not there")?;
            let (above, _) = text.split_at(applied);
            for object in objects(&Path::new(ROOT).join(file))? {
                let Some(namespace) = object["metadata"]["namespace"].as_str() else {
                    continue;
                };
                // The installation makes its own.
                if namespace == "cert-renew" {
                    continue;
                }
                needed += 1;
                if !above.contains(&format!("kubectl create namespace {namespace}")) {
                    missing.push(format!("{}: {file}: {namespace}", page.display()));
                }
            }
        }
    }
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    ensure!(needed >= 12, "only {needed}");
    Ok(())
}

#[tokio::test]
async fn every_kustomization_renders_with_the_config_beside_it() -> Result<()> {
    let bench = Bench::shared().await?;
    let paths = examples(&["yaml"])?;
    let mut rendered = 0;
    for path in named(&paths, "kustomization.yaml") {
        let directory = path.parent().context("no directory")?;
        let arguments = format!("kustomize {}", directory.display());
        let output = String::from_utf8(kubectl(bench, &arguments, "")?.stdout)?;
        let map = crate::install::objects(&output)?;
        let map = map.get("ConfigMap cert-renew cert-renew-config");
        let data = &map.context("no config")?["data"];
        let file = fs::read_to_string(directory.join("config.yaml"))?;
        let config = data["config.yaml"].as_str();
        ensure!(config == Some(&*file), "{arguments}: another config");
        // What the config names is where the ConfigMap is mounted.
        for name in file.split("/etc/cert-renew/").skip(1) {
            let name = name.split_whitespace().next().unwrap_or_default();
            ensure!(data[name].is_string(), "{arguments}: no {name}");
        }
        rendered += 1;
    }
    ensure!(rendered >= 5, "only {rendered} kustomizations");
    Ok(())
}

/// The config allows and can prove what the Secrets beside it ask for.
#[test]
fn every_config_gives_the_secrets_beside_it_what_they_ask_for() -> Result<()> {
    let paths = examples(&["yaml"])?;
    let mut asked = 0;
    for path in named(&paths, "config.yaml") {
        let config = Config::parse(&fs::read_to_string(path)?)?;
        ensure!(
            config.warnings().is_empty(),
            "{}: {:?}",
            path.display(),
            config.warnings()
        );
        for manifest in paths.iter().filter(|it| it.parent() == path.parent()) {
            if !is_manifest(manifest) {
                continue;
            }
            for object in objects(manifest)? {
                if object["kind"] != "Secret" {
                    continue;
                }
                gives(&config, &object).with_context(|| manifest.display().to_string())?;
                asked += 1;
            }
        }
    }
    ensure!(asked >= 10, "only {asked} Secrets ask for anything");
    Ok(())
}

fn gives(config: &Config, secret: &Value) -> Result<()> {
    let metadata = &secret["metadata"];
    let annotations: BTreeMap<String, String> =
        serde_json::from_value(metadata["annotations"].clone())?;
    let managed = metadata["labels"]["cert-renew.io/managed"] == "true";
    ensure!(
        managed || secret["type"] == "kubernetes.io/tls",
        "a Secret of another type needs the label"
    );
    let (settings, problems) = Settings::read(&annotations, managed, &Default::default());
    ensure!(problems.is_empty(), "{problems:?}");
    let settings = settings.context("not annotated")?;
    let IssuerRef::Named(issuer) = &settings.issuer else {
        return Ok(());
    };
    let issuer = config.issuer(issuer).context("no such issuer")?;
    let namespace = metadata["namespace"].as_str().unwrap_or_default();
    for name in settings.names.iter().flatten() {
        ensure!(
            issuer.allows(namespace, Labels::NotAsked, name),
            "{name} is not allowed"
        );
        ensure!(config.solver(name).is_some(), "no solver for {name}");
    }
    Ok(())
}

/// Argo CD and Flux install the chart with the values that their examples have.
#[test]
fn the_chart_takes_the_values_of_argo_cd_and_flux() -> Result<()> {
    for (path, object, values) in [
        (
            "argo-cd/cert-renew.yaml",
            0,
            "/spec/source/helm/valuesObject",
        ),
        ("flux/cert-renew.yaml", 1, "/spec/values"),
    ] {
        let path = Path::new(ROOT).join("examples").join(path);
        let object = objects(&path)?.into_iter().nth(object);
        let object = object.with_context(|| path.display().to_string())?;
        let values = object.pointer(values).context("no values")?;
        let file = Path::new(ROOT).join("target").join(format!(
            "values-{}.json",
            object["kind"].as_str().unwrap_or_default()
        ));
        fs::write(&file, values.to_string())?;
        let output = Command::new(helm_program()?)
            .args([
                "template",
                "cert-renew",
                "--namespace=cert-renew",
                "--values",
            ])
            .arg(&file)
            .arg(Path::new(ROOT).join("deploy/helm"))
            .output()?;
        fs::remove_file(&file)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", path.display());
        let rendered = crate::install::objects(&String::from_utf8(output.stdout)?)?;
        let map = rendered.get("ConfigMap cert-renew cert-renew-config");
        let config = map.context("no config")?["data"]["config.yaml"].as_str();
        let config = Config::parse(config.context("no file")?)?;
        ensure!(config.issuer("letsencrypt").is_some(), "no issuer");
    }
    Ok(())
}

/// Objects that a page shows and `examples/` does not have.
#[tokio::test]
async fn every_object_of_the_documents_is_accepted_as_printed() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "printed", "").await?;
    let mut accepted = 0;
    for (page, text) in documents()? {
        let objects = blocks(&text).into_iter().filter(|block| {
            let shown = &block.text;
            block.language == "yaml"
                && shown.contains("apiVersion:")
                && !shown.starts_with("# examples/")
                && !shown.contains("kustomize.config.k8s.io/")
        });
        for block in objects {
            let here = block.text.replace(
                "namespace: cert-renew\n",
                &format!("namespace: {}\n", space.name),
            );
            let apply = format!(
                "apply --validate=strict --dry-run=server -n {} -f -",
                space.name
            );
            let output = kubectl(bench, &apply, &here);
            let output = output.with_context(|| format!("{}:\n{here}", page.display()))?;
            let warnings = String::from_utf8_lossy(&output.stderr);
            ensure!(
                !warnings.contains("Warning"),
                "{}: {warnings}",
                page.display()
            );
            accepted += 1;
        }
    }
    ensure!(accepted >= 4, "only {accepted} objects are shown");
    Ok(())
}

/// Debian's promtool knows no discovery in Kubernetes: a list of targets takes its place.
#[test]
fn prometheus_takes_its_example() -> Result<()> {
    let directory = Path::new(ROOT).join("target/example-prometheus");
    fs::create_dir_all(&directory)?;
    let example = fs::read_to_string(Path::new(ROOT).join("examples/alerts/prometheus.yml"))?;
    let (before, rest) = example
        .split_once("    kubernetes_sd_configs:\n")
        .context("no discovery")?;
    let (_, after) = rest
        .split_once("    relabel_configs:")
        .context("no relabelling")?;
    let targets = "    static_configs: [{targets: [\"cert-renew:9402\"]}]\n";
    let config = format!("{before}{targets}    relabel_configs:{after}");
    fs::write(directory.join("prometheus.yml"), config)?;
    let alerts = Path::new(ROOT).join("deploy/alerts.yaml");
    fs::copy(alerts, directory.join("alerts.yaml"))?;
    let output = Command::new("promtool")
        .args(["check", "config", "prometheus.yml"])
        .current_dir(&directory)
        .output()
        .context("promtool")?;
    fs::remove_dir_all(&directory)?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let alertmanager =
        fs::read_to_string(Path::new(ROOT).join("examples/alerts/alertmanager.yml"))?;
    let alertmanager: Value = serde_saphyr::from_str(&alertmanager)?;
    ensure!(alertmanager["route"]["receiver"] == alertmanager["receivers"][0]["name"]);
    Ok(())
}

/// A block that begins with the path of an example is that file; each example is shown or linked.
#[test]
fn the_documents_show_the_examples_as_they_are() -> Result<()> {
    let mut told = String::new();
    let mut shown = 0;
    for (page, text) in documents()? {
        for block in blocks(&text) {
            let first = block.text.lines().next().unwrap_or_default();
            let Some(path) = first
                .strip_prefix("# ")
                .filter(|it| it.starts_with("examples/"))
            else {
                continue;
            };
            let file = fs::read_to_string(Path::new(ROOT).join(path))
                .with_context(|| format!("{}: {path}", page.display()))?;
            ensure!(
                file == block.text,
                "{}: {path} is another than in the block",
                page.display()
            );
            shown += 1;
        }
        told += &text;
    }
    ensure!(shown >= 28, "only {shown} examples are shown");
    for path in examples(&["yaml", "yml", "json"])? {
        let path = path.strip_prefix(ROOT)?.display().to_string();
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        ensure!(
            told.contains(&format!("({path})")) || told.contains(&format!("../{directory})")),
            "{path}: no document shows it"
        );
    }
    Ok(())
}

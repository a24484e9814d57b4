//! What people look for in a repository, a chart and a book before they try something, and where they look for it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use test_bench::{Context as _, Result, ensure};

use crate::documents::blocks;

fn read(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn yaml(path: &str) -> Result<Value> {
    let value = serde_saphyr::from_str(&read(path)?);
    value.with_context(|| path.to_owned())
}

/// Who to ask, how to report, what is supported, and what keeps it up to date: each file, and what it must say.
#[test]
fn the_files_that_people_look_for_are_there() -> Result<()> {
    for (path, words) in [
        ("LICENSE", "Apache License"),
        ("SECURITY.md", "Report a vulnerability in private"),
        ("SECURITY.md", "## Supported versions"),
        ("RELEASING.md", "## Versions"),
        ("RELEASING.md", "## Support"),
        (
            "RELEASING.md",
            "cosign verify ghcr.io/cert-renew/cert-renew:",
        ),
        ("RELEASING.md", "gh attestation verify"),
        ("RELEASING.md", "## What has not been run"),
        ("CONTRIBUTING.md", "## How to add"),
        ("CONTRIBUTING.md", "UPDATE_GOLDEN=1"),
        (".editorconfig", "root = true"),
        (".github/CODEOWNERS", "/rbac/ "),
        (".github/pull_request_template.md", "make test"),
        ("rust-toolchain.toml", "clippy"),
        ("Makefile", "RUSTDOCFLAGS=\"-D warnings"),
        ("artifacthub-repo.yml", "repositoryID"),
        ("RELEASING.md", "## Artifact Hub"),
        ("docs/self-assessment.md", "## Self-assessment use"),
        (
            "docs/self-assessment.md",
            "## Security functions and features",
        ),
        ("docs/self-assessment.md", "## Project compliance"),
        ("docs/self-assessment.md", "## Secure development practices"),
        ("docs/self-assessment.md", "## Security issue resolution"),
    ] {
        ensure!(read(path)?.contains(words), "{path} does not say: {words}");
    }
    let renovate: Value = serde_json::from_str(&read("renovate.json")?)?;
    ensure!(renovate["schedule"].is_array(), "{renovate}");
    for form in ["bug", "feature", "dns-host"] {
        let form = yaml(&format!(".github/ISSUE_TEMPLATE/{form}.yml"))?;
        ensure!(
            form["body"].is_array() && form["name"].is_string(),
            "{form}"
        );
    }
    Ok(())
}

/// A release is signed without a key, with provenance; advisories are looked at each week; the oldest Rust is tried.
#[test]
fn the_workflows_sign_audit_and_try_the_oldest_rust() -> Result<()> {
    let release = read(".github/workflows/release.yml")?;
    for words in [
        "id-token: write",
        "attestations: write",
        "sigstore/cosign-installer@",
        "actions/attest-build-provenance@",
        "make publish",
    ] {
        ensure!(release.contains(words), "release.yml has no {words}");
    }
    let audit = read(".github/workflows/audit.yml")?;
    ensure!(audit.contains("cron: ") && audit.contains("make audit"));
    let ci = read(".github/workflows/ci.yml")?;
    ensure!(ci.contains("make msrv") && ci.contains("make test"));
    Ok(())
}

/// What Artifact Hub and `helm show chart` tell of the chart.
#[test]
fn the_chart_says_what_it_is() -> Result<()> {
    let chart = yaml("deploy/helm/Chart.yaml")?;
    for field in ["description", "icon", "home", "kubeVersion", "appVersion"] {
        ensure!(
            chart[field].as_str().is_some_and(|it| !it.is_empty()),
            "no {field}"
        );
    }
    for field in ["sources", "keywords", "maintainers"] {
        ensure!(
            chart[field].as_array().is_some_and(|it| !it.is_empty()),
            "no {field}"
        );
    }
    for annotation in ["category", "license", "operator", "links"] {
        let key = format!("artifacthub.io/{annotation}");
        ensure!(chart["annotations"][&key].is_string(), "no {key}");
    }
    let icon = chart["icon"]
        .as_str()
        .and_then(|it| it.split("/main/").nth(1));
    ensure!(
        read(icon.context("no icon")?)?.contains("<svg"),
        "no picture"
    );
    Ok(())
}

/// The image that the chart installs, and of each entry of the CHANGELOG its kind and first sentence.
#[test]
fn artifact_hub_is_told_of_the_image_and_of_what_has_changed() -> Result<()> {
    let run = |program: &str, arguments: &[&str]| -> Result<String> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let changelog = read("CHANGELOG.md")?;
    let mut sections = changelog.split("\n## ").skip(1);
    let section = sections.find(|it| it.contains("\n- "));
    let section = section.context("nothing has changed")?;
    let version = section.split_whitespace().next().unwrap_or_default();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/changes.sh");
    let changes = run(&script.to_string_lossy(), &[version])?;
    let changes: Vec<Value> = serde_saphyr::from_str(&changes)?;
    let entries = section.lines().filter(|line| line.starts_with("- "));
    assert_eq!(changes.len(), entries.count());
    let kinds = [
        "added",
        "changed",
        "deprecated",
        "fixed",
        "removed",
        "security",
    ];
    for change in changes {
        let (kind, text) = (change["kind"].as_str(), change["description"].as_str());
        ensure!(kind.is_some_and(|it| kinds.contains(&it)), "{change}");
        let is_whole = |it: &str| !it.is_empty() && !it.contains("](docs/");
        ensure!(text.is_some_and(is_whole), "{change}");
    }
    let (image, made) = ("registry.example.com/cert-renew", "target/dist-hub");
    run("sh", &["deploy/dist.sh", image, made])?;
    let version = env!("CARGO_PKG_VERSION");
    let archive = format!("{made}/cert-renew-{version}.tgz");
    let chart = run("tar", &["-xzOf", &archive, "cert-renew/Chart.yaml"])?;
    let chart: Value = serde_saphyr::from_str(&chart)?;
    let images = &chart["annotations"]["artifacthub.io/images"];
    let images: Value = serde_saphyr::from_str(images.as_str().context("no images")?)?;
    let expected = json!([{"name": "cert-renew", "image": format!("{image}:{version}")}]);
    assert_eq!(images, expected);
    fs::remove_dir_all(Path::new(env!("CARGO_MANIFEST_DIR")).join(made))?;
    Ok(())
}

/// IPv6-only, IPv4-only and dual-stack clusters take the same manifests.
#[test]
fn ports_and_services_take_the_families_that_the_cluster_has() -> Result<()> {
    let services: Vec<Value> = serde_saphyr::from_multiple(&read("deploy/services.yaml")?)?;
    assert_eq!(services.len(), 2);
    for service in services {
        ensure!(
            service["spec"]["ipFamilyPolicy"] == "PreferDualStack",
            "{service}"
        );
        ensure!(service["spec"]["ipFamilies"].is_null(), "{service}");
    }
    let deployment = yaml("deploy/deployment.yaml")?;
    let arguments = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
    for port in ["9402", "8402"] {
        let bound = format!("[::]:{port}");
        let arguments = arguments.as_array().into_iter().flatten();
        let mut arguments = arguments.filter_map(Value::as_str);
        ensure!(
            arguments.any(|it| it.ends_with(&bound)),
            "nothing binds {bound}"
        );
    }
    Ok(())
}

/// What a reader wants to do, in the order in which it is wanted, and the pages that must be there for it.
#[test]
fn the_book_has_a_part_for_what_each_reader_wants() -> Result<()> {
    let summary = read("docs/SUMMARY.md")?;
    let mut parts = summary.split("\n# ").skip(1);
    for (heading, pages) in [
        (
            "Start",
            &[
                "start/concepts",
                "start/quick-start",
                "start/first-certificate",
                "install",
            ][..],
        ),
        (
            "How to",
            &[
                "how-to/ingress-nginx",
                "how-to/traefik",
                "how-to/gateway",
                "how-to/ingress",
                "how-to/wildcard",
                "private-cas",
                "how-to/change-windows",
                "how-to/reload",
                "how-to/multi-tenant",
                "how-to/openshift",
                "how-to/many-clusters",
                "how-to/expiry-alerts",
            ][..],
        ),
        (
            "GitOps",
            &["gitops", "gitops/argo-cd", "gitops/flux", "gitops/helm"][..],
        ),
        (
            "Coming from",
            &[
                "migrate-from-cert-manager",
                "migrate-from-reloader",
                "migrate-from-kcert",
                "migrate-from-certbot",
                "migrate-from-scripts",
            ][..],
        ),
        ("Every day", &["everyday"][..]),
        (
            "When something is wrong",
            &["troubleshooting", "runbook"][..],
        ),
        (
            "Reference",
            &[
                "annotations",
                "configuration",
                "command",
                "metrics",
                "events",
                "rbac",
                "features",
                "comparison",
            ][..],
        ),
        (
            "Operating",
            &[
                "operate",
                "failures",
                "performance",
                "threat-model",
                "self-assessment",
            ][..],
        ),
    ] {
        let part = parts.next().with_context(|| heading.to_owned())?;
        ensure!(part.starts_with(heading), "{part} instead of {heading}");
        for page in pages {
            ensure!(
                part.contains(&format!("({page}.md)")),
                "{heading} has no {page}"
            );
        }
    }
    ensure!(parts.next().is_none(), "there is another part");
    // The page that most come for begins with what most come for.
    let troubles = read("docs/troubleshooting.md")?;
    let first = troubles.lines().find(|line| line.starts_with("## "));
    assert_eq!(first, Some("## I annotated a Secret and nothing happens"));
    Ok(())
}

/// A cluster on one's own machine, with the command that loads the image into it, and how to get the command itself.
#[test]
fn the_quick_start_has_each_local_cluster_and_the_command() -> Result<()> {
    let page = read("docs/start/quick-start.md")?;
    let blocks = blocks(&page);
    for command in [
        "kind load image-archive ",
        "minikube image load ",
        "k3s ctr images import ",
        "make image",
        "make build",
        "kubectl apply -k examples/first",
    ] {
        let is_there = blocks
            .iter()
            .any(|it| it.language == "sh" && it.text.contains(command));
        ensure!(is_there, "no {command}");
    }
    Ok(())
}

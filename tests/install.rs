//! What `kubectl apply -k deploy/` installs: every object is accepted by a real API server, the pod by Pod Security too.
//!
//! The objects are not kept (server-side dry run): the bench is shared, and their names are fixed.
//! The Prometheus operator's own kinds are not known to the bench and are rendered only.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use test_bench::{Bench, Context as _, Result, ensure};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Renders `deploy/` into another namespace, with an `extra` line in the kustomization on top of it.
fn render(bench: &Bench, namespace: &str, extra: &str) -> Result<String> {
    let overlay = Path::new(ROOT).join("target").join(namespace);
    fs::create_dir_all(&overlay)?;
    let kustomization = format!("namespace: {namespace}\nresources: [../../deploy]\n{extra}\n");
    fs::write(overlay.join("kustomization.yaml"), kustomization)?;
    let rendered = kubectl(bench, &format!("kustomize target/{namespace}"), "");
    fs::remove_dir_all(&overlay)?;
    Ok(String::from_utf8(rendered?.stdout)?)
}

/// Runs kubectl in the repository, as the administrator, with `input` as its standard input.
fn try_kubectl(bench: &Bench, arguments: &str, input: &str) -> Result<Output> {
    let mut child = Command::new(bench.program("kubectl"))
        .arg("--kubeconfig")
        .arg(bench.kubeconfig())
        .args(arguments.split(' '))
        .current_dir(ROOT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // kubectl reads all of it before it writes anything; dropping the pipe ends the input.
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(input.as_bytes())?;
    Ok(child.wait_with_output()?)
}

fn kubectl(bench: &Bench, arguments: &str, input: &str) -> Result<Output> {
    let output = try_kubectl(bench, arguments, input)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {arguments}: {said}");
    Ok(output)
}

#[tokio::test]
async fn every_object_is_accepted_without_a_warning() -> Result<()> {
    let bench = Bench::shared().await?;
    let namespace = "install-accepted";
    let rendered = render(bench, namespace, "")?;
    // A dry run needs the namespace to be there, with its Pod Security labels.
    let first = rendered
        .split("\n---\n")
        .next()
        .context("nothing rendered")?;
    ensure!(
        first.contains("kind: Namespace"),
        "the first object is no Namespace"
    );
    kubectl(bench, "apply --validate=strict -f -", first)?;

    let dry_run = "apply --validate=strict --dry-run=server -o json -f -";
    let applied = kubectl(bench, dry_run, &rendered)?;
    let warnings = String::from_utf8(applied.stderr)?;
    assert!(!warnings.contains("Warning"), "{warnings}");
    let list: Value = serde_json::from_slice(&applied.stdout)?;
    let items = list["items"].as_array().context("no list")?;
    let mut kinds: Vec<&str> = items
        .iter()
        .filter_map(|item| item["kind"].as_str())
        .collect();
    kinds.sort_unstable();
    let expected = "ClusterRole ClusterRoleBinding ConfigMap Deployment Namespace NetworkPolicy \
                    PodDisruptionBudget Role RoleBinding Service Service ServiceAccount";
    assert_eq!(kinds.join(" "), expected);

    // Deployments are only warned about; what Pod Security enforces, it enforces on pods.
    let deployment = items.iter().find(|item| item["kind"] == "Deployment");
    let template = &deployment.context("no Deployment")?["spec"]["template"];
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "probe", "namespace": namespace},
        "spec": template["spec"],
    });
    // The ServiceAccount was not kept by the dry run.
    pod["spec"]["serviceAccountName"] = "default".into();
    pod["spec"]["serviceAccount"] = "default".into();
    kubectl(bench, "create --dry-run=server -f -", &pod.to_string())?;
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = true.into();
    let refused = try_kubectl(bench, "create --dry-run=server -f -", &pod.to_string())?;
    let reason = String::from_utf8(refused.stderr)?;
    assert!(
        reason.contains("violates PodSecurity \"restricted"),
        "{reason}"
    );
    Ok(())
}

#[tokio::test]
async fn another_namespace_reaches_every_reference() -> Result<()> {
    let bench = Bench::shared().await?;
    let namespace = "install-elsewhere";
    let rendered = render(bench, namespace, "components: [../../deploy/monitoring]")?;
    assert!(rendered.contains("kind: PodMonitor"));
    assert!(rendered.contains("grafana_dashboard: \"1\""));
    for line in rendered.lines().filter(|line| line.contains("namespace:")) {
        let value = line.split_once(':').map_or("", |(_, value)| value.trim());
        assert_ne!(value, "cert-renew", "{line}");
    }
    Ok(())
}

//! What `kubectl apply -k deploy/` and the chart install: the same objects, each accepted by a real API server, the pod by
//! Pod Security too; and the operator works with what they give it, in the whole cluster and in a list of namespaces.
//!
//! The objects are not kept (server-side dry run): the bench is shared, and their names are fixed.
//! The Prometheus operator's own kinds are not known to the bench and are rendered only.

mod namespaces;
mod values;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use cert_renew_core::config::Config;
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

pub(crate) fn kubectl(bench: &Bench, arguments: &str, input: &str) -> Result<Output> {
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
    // On OpenShift it gets a user of the namespace's range, and no constraint lets it name one of its own.
    let context = &pod["spec"]["securityContext"];
    ensure!(
        context["runAsNonRoot"] == true && context["runAsUser"].is_null(),
        "{context}"
    );
    // The ServiceAccount was not kept by the dry run.
    pod["spec"]["serviceAccountName"] = "default".into();
    pod["spec"]["serviceAccount"] = "default".into();
    kubectl(bench, "create --dry-run=server -f -", &pod.to_string())?;
    // As OpenShift fills it in. Elsewhere it is the image's user, who is known not to be root by a number only.
    pod["spec"]["securityContext"]["runAsUser"] = Value::from(1_000_680_000_i64);
    kubectl(bench, "create --dry-run=server -f -", &pod.to_string())?;
    let image = include_str!("../deploy/Containerfile");
    let user = image.lines().find_map(|line| line.strip_prefix("USER "));
    let user = user.and_then(|user| user.split(':').next()?.parse::<u32>().ok());
    ensure!(user.is_some_and(|user| user > 0), "the image has no user");
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

/// Everything that is opt-in.
pub(crate) const ALL_IN: &str = "addons.access=true,addons.argo-rollouts=true,addons.eviction=true,addons.verify=true,addons.route-ingress=true,addons.route-gateway=true,\
                                 addons.namespace-labels=true,addons.declarations=true,addons.routes=true,addons.viewer=true,monitoring.prometheusRule=true,monitoring.dashboard=true,admission.enabled=true";

/// Where helm stands; built first where it is not there yet.
pub(crate) fn helm_program() -> Result<&'static str> {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let tools = Path::new(ROOT).join("tests/tools.sh");
        let output = Command::new(tools).arg("helm").output();
        let said = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        said.unwrap_or_default()
    });
    ensure!(
        !program.is_empty(),
        "`tests/tools.sh helm` does not say where helm is"
    );
    Ok(program)
}

/// What the chart gives in a namespace; `values` as `--set` takes them, then more arguments.
pub(crate) fn helm(namespace: &str, values: &str) -> Result<String> {
    let output = Command::new(helm_program()?)
        .args([
            "template",
            "cert-renew",
            "deploy/helm",
            "--namespace",
            namespace,
            "--skip-tests",
            "--api-versions=monitoring.coreos.com/v1/PodMonitor",
            "--api-versions=monitoring.coreos.com/v1/ServiceMonitor",
            "--api-versions=monitoring.coreos.com/v1/PrometheusRule",
        ])
        .arg("--set")
        .args(values.split(' '))
        .current_dir(ROOT)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm template: {said}");
    ensure!(said.is_empty(), "helm template warns: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Objects by kind, namespace and name.
pub(crate) fn objects(yaml: &str) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for object in serde_saphyr::from_multiple::<Value>(yaml)? {
        if object.is_null() {
            continue;
        }
        let metadata = &object["metadata"];
        let key = [&object["kind"], &metadata["namespace"], &metadata["name"]];
        let key = key.map(|part| part.as_str().unwrap_or("-")).join(" ");
        ensure!(found.insert(key.clone(), object).is_none(), "{key} twice");
    }
    Ok(found)
}

#[tokio::test]
async fn the_chart_gives_the_same_objects_as_the_kustomization() -> Result<()> {
    let bench = Bench::shared().await?;
    let extra = "components: [../../deploy/monitoring, ../../deploy/verify]";
    let mut kustomized = objects(&render(bench, "cert-renew", extra)?)?;
    // Helm makes the namespace itself, without labels.
    kustomized.remove("Namespace - cert-renew");
    let admission = kubectl(bench, "kustomize deploy/admission", "")?;
    kustomized.extend(objects(&String::from_utf8(admission.stdout)?)?);
    for addon in fs::read_dir(Path::new(ROOT).join("rbac/addons"))? {
        kustomized.extend(objects(&fs::read_to_string(addon?.path())?)?);
    }
    let mut charted = objects(&helm(
        "cert-renew",
        &format!("{ALL_IN},monitoring.podMonitor=true"),
    )?)?;
    for object in charted.values_mut().chain(kustomized.values_mut()) {
        // kustomize labels what has no label of its own in its file.
        if object["kind"]
            .as_str()
            .is_some_and(|it| it.starts_with("Validating"))
        {
            object["metadata"]["labels"] = Value::Null;
        }
    }
    let keys = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys(&charted),
        keys(&kustomized),
        "a new file of deploy/ is copied by deploy/chart.sh, and taken by the chart's templates"
    );
    for (key, object) in &kustomized {
        assert_eq!(&charted[key], object, "{key}");
    }
    Ok(())
}

/// Closing the metrics port takes a ClusterRole also where there is no other, and nothing of the operator's goes to viewers.
#[test]
fn the_chart_closes_the_metrics_port() -> Result<()> {
    let values = "addons.access=true,addons.viewer=true,scope.namespaces={shop},monitoring.podMonitor=true,\
                  monitoring.endpoint.scheme=https,serviceAccount.annotations.role=cloud,\
                  config.issuers.a.directory=https://a.example/,config.metrics.access=viewers,\
                  config.metrics.tls.secret=status";
    let made = objects(&helm("elsewhere", values)?)?;
    let cluster: Vec<&String> = { made.keys() }
        .filter(|it| it.starts_with("Cluster"))
        .collect();
    assert_eq!(
        cluster,
        [
            "ClusterRole - cert-renew-access-elsewhere",
            "ClusterRoleBinding - cert-renew-access-elsewhere"
        ]
    );
    let endpoint = &made["PodMonitor elsewhere cert-renew"]["spec"]["podMetricsEndpoints"][0];
    ensure!(
        endpoint["scheme"] == "https" && endpoint["honorLabels"] == true,
        "{endpoint}"
    );
    let account = |name: &str| &made[&format!("ServiceAccount elsewhere {name}")]["metadata"];
    ensure!(account("cert-renew")["annotations"]["role"] == "cloud");
    ensure!(account("cert-renew-viewer")["annotations"].is_null());
    let binding = &made["RoleBinding elsewhere cert-renew-viewer-account"];
    ensure!(
        binding["subjects"][0]["namespace"] == "elsewhere",
        "{binding}"
    );
    let config = &made["ConfigMap elsewhere cert-renew-config"]["data"]["config.yaml"];
    let config = Config::parse(config.as_str().context("no config")?)?;
    ensure!(config.metrics.tls.as_deref() == Some("status"));
    Ok(())
}

/// The chart's own files are those of `deploy/` and `rbac/`: `make chart` copies them.
#[test]
fn the_chart_holds_the_files_of_the_repository() -> Result<()> {
    let scratch = Path::new(ROOT).join("target/chart-again");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(&scratch)?;
    let copied = Command::new("cp")
        .args(["-r", "deploy", "rbac"])
        .arg(&scratch)
        .current_dir(ROOT)
        .status()?;
    ensure!(copied.success(), "cp");
    let made = Command::new(scratch.join("deploy/chart.sh")).status()?;
    ensure!(made.success(), "deploy/chart.sh");
    let compared = Command::new("diff")
        .args(["-r", "deploy/helm"])
        .arg(scratch.join("deploy/helm"))
        .current_dir(ROOT)
        .output()?;
    fs::remove_dir_all(&scratch)?;
    let differs = String::from_utf8_lossy(&compared.stdout);
    ensure!(
        compared.status.success(),
        "`make chart` mends it: {differs}"
    );
    let mut files = crate::documents::files(&Path::new(ROOT).join("deploy/helm"))?;
    files.retain(|path| path.is_symlink());
    ensure!(files.is_empty(), "links do not come everywhere: {files:?}");
    Ok(())
}

/// What asks for a kind that the cluster does not have is left out, and the notes say so.
#[tokio::test]
async fn monitors_are_left_out_where_the_cluster_has_no_such_kind() -> Result<()> {
    let bench = Bench::shared().await?;
    let output = Command::new(helm_program()?)
        .args(["install", "cert-renew", "deploy/helm", "--dry-run=server"])
        .args(["--namespace", "default", "--set"])
        .arg("monitoring.podMonitor=true,monitoring.prometheusRule=true,monitoring.dashboard=true")
        .env("KUBECONFIG", bench.kubeconfig())
        .current_dir(ROOT)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    for kind in ["PodMonitor", "PrometheusRule"] {
        ensure!(!said.contains(&format!("kind: {kind}")), "{said}");
        ensure!(
            said.contains(&format!("the cluster has no kind {kind}")),
            "{said}"
        );
    }
    ensure!(
        said.contains("pod-security.kubernetes.io/enforce=restricted"),
        "{said}"
    );
    ensure!(said.contains("grafana_dashboard"), "{said}");
    Ok(())
}

/// Makes a namespace in which Pod Security enforces its strictest level, and warns of what it would refuse.
fn restricted(bench: &Bench, namespace: &str) -> Result<()> {
    let labels = "labels: {pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/warn: restricted}";
    let home =
        format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  {labels}\n");
    kubectl(bench, "apply -f -", &home)?;
    Ok(())
}

/// The pod of `helm test` is one that Pod Security lets in at its strictest.
#[tokio::test]
async fn the_chart_has_a_test_that_any_namespace_takes() -> Result<()> {
    let bench = Bench::shared().await?;
    let namespace = "install-helm-test";
    restricted(bench, namespace)?;
    let template = |values: &str| -> Result<String> {
        let output = Command::new(helm_program()?)
            .args([
                "template",
                "cert-renew",
                "deploy/helm",
                "--namespace",
                namespace,
            ])
            .args([
                "--show-only",
                "templates/tests/challenge.yaml",
                "--set",
                values,
            ])
            .current_dir(ROOT)
            .output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let values =
        "image.pullPolicy=Never,imagePullSecrets[0].name=a,nodeSelector.a=b,tolerations[0].key=c";
    for values in ["replicas=1", values] {
        let pod = template(values)?;
        ensure!(pod.contains("helm.sh/hook: test"), "{pod}");
        kubectl(bench, "create --dry-run=server -f -", &pod)?;
    }
    Ok(())
}

/// A ServiceMonitor instead of the PodMonitor, by either way.
#[tokio::test]
async fn a_service_monitor_takes_the_place_of_the_pod_monitor() -> Result<()> {
    let bench = Bench::shared().await?;
    let extra = "components: [../../deploy/monitoring, ../../deploy/monitoring/service]";
    let kustomized = objects(&render(bench, "cert-renew", extra)?)?;
    let values = "monitoring.serviceMonitor=true,monitoring.prometheusRule=true";
    let charted = objects(&helm("cert-renew", values)?)?;
    let key = "ServiceMonitor cert-renew cert-renew";
    let monitor = charted.get(key).context("no ServiceMonitor")?;
    assert_eq!(kustomized.get(key), Some(monitor));
    // Without it Prometheus renames the namespace of every series.
    assert_eq!(monitor["spec"]["endpoints"][0]["honorLabels"], true);
    for objects in [kustomized, charted] {
        let other = objects.keys().find(|key| key.starts_with("PodMonitor"));
        assert_eq!(other, None);
    }
    Ok(())
}

/// What may be reached: DNS, the web's ports and the API server anywhere; pods on any port only where that is opted into.
#[test]
fn the_network_policy_opens_pods_only_with_the_add_on() -> Result<()> {
    let egress = |values: &str| -> Result<Vec<String>> {
        let objects = objects(&helm("cert-renew", values)?)?;
        let policies = objects
            .iter()
            .filter(|(key, _)| key.starts_with("NetworkPolicy"));
        let rules = policies.flat_map(|(_, policy)| policy["spec"]["egress"].as_array().cloned());
        let shown = |rule: &Value| match rule.get("ports") {
            Some(ports) => {
                let ports = ports.as_array().into_iter().flatten();
                let port = |port: &Value| format!("{}/{}", port["port"], port["protocol"]);
                ports.map(port).collect::<Vec<_>>().join(" ")
            }
            None => rule["to"].to_string(),
        };
        let mut shown: Vec<String> = rules.flatten().map(|rule| shown(&rule)).collect();
        shown.sort_unstable();
        Ok(shown)
    };
    let always = [
        r#"53/"UDP" 53/"TCP" 5353/"UDP" 5353/"TCP""#,
        r#"6443/"TCP""#,
        r#"80/"TCP" 443/"TCP""#,
    ];
    assert_eq!(egress("addons.eviction=true")?, always);
    let pods = r#"[{"namespaceSelector":{}}]"#;
    assert_eq!(
        egress("addons.verify=true")?,
        [&always[..], &[pods]].concat()
    );
    assert_eq!(
        egress("addons.verify=true,networkPolicy.enabled=false")?,
        [""; 0]
    );
    let more =
        "networkPolicy.egress[0].ports[0].port=9000,networkPolicy.egress[0].ports[0].protocol=TCP";
    ensure!(egress(more)?.contains(&r#"9000/"TCP""#.to_owned()));
    Ok(())
}

#[tokio::test]
async fn what_the_chart_gives_is_accepted_without_a_warning() -> Result<()> {
    let bench = Bench::shared().await?;
    let namespace = "install-chart";
    restricted(bench, namespace)?;
    let values = "addons.eviction=true,addons.verify=true,addons.namespace-labels=true,admission.enabled=true,\
                  networkPolicy.egress[0].ports[0].port=9000,admission.names.shop=shop.example,replicas=3,\
                  priorityClassName=system-cluster-critical,dnsConfig.options[0].name=ndots,podLabels.a=b,args[0]=--log-level=debug,\
                  env[0].name=HTTPS_PROXY,env[0].value=http://proxy:3128,nodeSelector.disk=ssd,\
                  image.repository=registry.example/cert-renew,serviceAccount.annotations.a=b";
    for scope in ["", ",scope.namespaces={default}"] {
        let rendered = helm(namespace, &format!("{values}{scope}"))?;
        let dry_run = "apply --validate=strict --dry-run=server -f -";
        let applied = kubectl(bench, dry_run, &rendered)?;
        let warnings = String::from_utf8(applied.stderr)?;
        assert!(!warnings.contains("Warning"), "{warnings}");
        assert_eq!(rendered.contains("kind: ClusterRole"), scope.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn the_admission_policies_are_accepted_without_a_warning() -> Result<()> {
    let bench = Bench::shared().await?;
    let dry_run = "apply -k deploy/admission --validate=strict --dry-run=server";
    let warnings = String::from_utf8(kubectl(bench, dry_run, "")?.stderr)?;
    // The bench has made those of the operator without kubectl.
    let warned =
        |line: &&str| line.contains("Warning") && !line.contains("last-applied-configuration");
    assert_eq!(warnings.lines().find(warned), None);
    Ok(())
}

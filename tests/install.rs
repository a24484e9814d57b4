//! What `kubectl apply -k deploy/` and the chart install: the same objects, each accepted by a real API server, the pod by
//! Pod Security too; and the operator works with what they give it, in the whole cluster and in a list of namespaces.
//!
//! The objects are not kept (server-side dry run): the bench is shared, and their names are fixed.
//! The Prometheus operator's own kinds are not known to the bench and are rendered only.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use cert_renew_core::config::Config;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use serde_json::{Value, json};
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, Result, bail, ensure, eventually, throughout};

use crate::renewal::{SOON, options, renewed, rolled_out};

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
pub(crate) const ALL_IN: &str = "addons.argo-rollouts=true,addons.eviction=true,addons.verify=true,addons.route-ingress=true,addons.route-gateway=true,\
                                 addons.namespace-labels=true,addons.viewer=true,monitoring.prometheusRule=true,monitoring.dashboard=true,admission.enabled=true";

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

/// What the schema lets into `config` is what the config's reader knows: an unknown key has it say which it expects.
#[test]
fn the_schema_knows_the_keys_of_the_config() -> Result<()> {
    let schema = fs::read_to_string(Path::new(ROOT).join("deploy/helm/values.schema.json"))?;
    let schema: Value = serde_json::from_str(&schema)?;
    let mut compared = 0;
    let root = &schema["definitions"]["config"];
    compare(&schema, root, &mut Vec::new(), &mut compared)?;
    ensure!(compared > 20, "only {compared} mappings");
    Ok(())
}

/// A step from a mapping to what is below it.
#[derive(Clone)]
enum Step {
    Key(String),
    Item,
}

fn compare(schema: &Value, at: &Value, path: &mut Vec<Step>, compared: &mut usize) -> Result<()> {
    if let Some(reference) = at["$ref"].as_str() {
        let pointer = reference.trim_start_matches('#');
        let target = schema.pointer(pointer).context("no such definition")?;
        return compare(schema, target, path, compared);
    }
    if at["items"].is_object() {
        path.push(Step::Item);
        compare(schema, &at["items"], path, compared)?;
        path.pop();
    }
    if at["additionalProperties"].is_object() {
        // A name that the user chooses.
        path.push(Step::Key("a".into()));
        compare(schema, &at["additionalProperties"], path, compared)?;
        path.pop();
    }
    let Some(properties) = at["properties"].as_object() else {
        return Ok(());
    };
    let mut known: Vec<&str> = properties.keys().map(String::as_str).collect();
    known.sort_unstable();
    let config = unknown_at(path).to_string();
    let faults = Config::parse(&config).err().context("it was taken")?;
    let faults = faults.to_string();
    let expected = faults.lines().find_map(|line| {
        let (_, expected) = line.split_once("zzz: unknown, expected one of ")?;
        Some(expected)
    });
    let mut expected: Vec<&str> = expected
        .with_context(|| faults.clone())?
        .split(", ")
        .collect();
    expected.sort_unstable();
    ensure!(
        known == expected,
        "{config}: the schema has {known:?}, the reader {expected:?}"
    );
    *compared += 1;
    for (key, below) in properties {
        path.push(Step::Key(key.clone()));
        compare(schema, below, path, compared)?;
        path.pop();
    }
    Ok(())
}

/// A config with an unknown key at the end of a path.
fn unknown_at(path: &[Step]) -> Value {
    let Some((step, rest)) = path.split_first() else {
        return json!({"zzz": 1});
    };
    match step {
        Step::Item => json!([unknown_at(rest)]),
        Step::Key(key) => {
            let mut map = json!({key: unknown_at(rest)});
            // Read only where the route is theirs.
            if key == "ingress" || key == "gateway" {
                map["route"] = key.as_str().into();
            }
            map
        }
    }
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

/// The values that docs/install.md shows, and what becomes of their config.
#[test]
fn the_values_of_the_documentation_give_a_config_without_a_fault() -> Result<()> {
    let text = include_str!("../docs/install.md");
    let values = text
        .split("```yaml\n")
        .find(|block| block.starts_with("# my-values.yaml"))
        .and_then(|block| block.split("```").next())
        .context("no values in docs/install.md")?;
    let file = Path::new(ROOT).join("target/my-values.yaml");
    fs::write(&file, values)?;
    let chart = |scope: &str| -> Result<Config> {
        let values = format!("{scope} --values target/my-values.yaml");
        let objects = objects(&helm("cert-renew", &values)?)?;
        let config = &objects["ConfigMap cert-renew cert-renew-config"]["data"]["config.yaml"];
        Ok(Config::parse(config.as_str().context("no config")?)?)
    };
    let config = chart("replicas=1")?;
    assert_eq!(config.warnings(), [""; 0]);
    assert!(config.watch.namespaces.is_empty());
    let scoped = chart("scope.namespaces={shop,blog}")?;
    assert_eq!(scoped.watch.namespaces, ["shop", "blog"]);
    fs::remove_file(file)?;
    Ok(())
}

#[test]
fn the_schema_of_the_values_refuses_what_it_does_not_know() -> Result<()> {
    for (values, part) in [
        ("replica=2", "replica"),
        ("replicas=many", "replicas"),
        ("image.digest=sha256:12", "digest"),
        ("scope.namespaces={Shop}", "namespaces"),
        (
            "addons.argo=true",
            "additional properties 'argo' not allowed",
        ),
        (
            "config.issuers.le.directry=https://acme.example",
            "additional properties 'directry' not allowed",
        ),
        ("config.rollout.settle=10", "settle"),
        (
            "monitoring.podMonitor=true,monitoring.serviceMonitor=true",
            "expected podMonitor or serviceMonitor",
        ),
    ] {
        let said = format!("{:#}", helm("cert-renew", values).expect_err(values));
        ensure!(said.contains(part), "{values}: {said}");
    }
    Ok(())
}

/// Renews and rolls in `space` as ever, with the rights that the chart gives.
async fn works(space: &Space) -> Result<()> {
    let old = pair(&["chart.example"], OLD)?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(space, "tls", &old.certificate).await?;
    rolled_out(space, "tls").await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    Ok(())
}

#[tokio::test]
async fn the_operator_works_with_the_chart_in_the_whole_cluster() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator =
        Operator::install_rendered(bench, options(), |namespace| helm(namespace, "replicas=0"))
            .await?;
    operator.run().await?;
    let space = Space::new(bench.client()?, "charted", operator.namespace()).await?;
    works(&space).await?;
    ensure!(!operator.log()?.contains("a right is missing"));
    Ok(())
}

#[tokio::test]
async fn a_list_of_namespaces_needs_no_cluster_role() -> Result<()> {
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let mut listed = Vec::new();
    for _ in 0..2 {
        listed.push(Space::new(client.clone(), "listed", "later").await?);
    }
    let names = listed.iter().map(|space| &*space.name).collect::<Vec<_>>();
    let names = names.join(",");
    let values = format!("replicas=0,addons.eviction=true,scope.namespaces={{{names}}}");
    let mut options = options();
    options.config += &format!("watch: {{namespaces: [{names}]}}\n");
    let mut operator =
        Operator::install_rendered(bench, options, |namespace| helm(namespace, &values)).await?;
    operator.run().await?;
    for space in &mut listed {
        space.class = operator.namespace().to_owned();
        works(space).await?;
    }
    // A namespace that is not on the list is none of its business.
    let other = Space::new(client, "unlisted", operator.namespace()).await?;
    let old = pair(&["unlisted.example"], OLD)?;
    let made = other
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    throughout(
        std::time::Duration::from_secs(2),
        "it is left alone",
        async || {
            let now = other.secrets().get("tls").await?;
            ensure!(now.metadata.resource_version == made.metadata.resource_version);
            Ok(())
        },
    )
    .await?;
    let log = operator.log()?;
    ensure!(
        !log.contains("a right is missing") && !log.contains("forbidden"),
        "{log}"
    );
    Ok(())
}

/// Takes the operator's rights in a namespace away, and gives them back.
async fn withdrawn(space: &Space) -> Result<RoleBinding> {
    let bindings: Api<RoleBinding> = Api::namespaced(space.client.clone(), &space.name);
    let all = bindings.list(&Default::default()).await?;
    let [binding] = &all.items[..] else {
        bail!("one expected: {all:?}");
    };
    let name = binding.metadata.name.as_deref().context("no name")?;
    bindings.delete(name, &Default::default()).await?;
    let metadata = ObjectMeta {
        name: binding.metadata.name.clone(),
        ..ObjectMeta::default()
    };
    Ok(RoleBinding {
        metadata,
        ..binding.clone()
    })
}

/// A tenant's admin may delete the RoleBinding of the own namespace, or the namespace itself.
#[tokio::test]
async fn a_namespace_that_cannot_be_listed_keeps_no_other_waiting() -> Result<()> {
    let bench = Bench::shared().await?;
    let client = bench.client()?;
    let mut listed = Vec::new();
    for _ in 0..2 {
        listed.push(Space::new(client.clone(), "barred", "later").await?);
    }
    let names = listed.iter().map(|space| &*space.name).collect::<Vec<_>>();
    // The third was never made, so that no Role could be put there.
    let names = format!("{},never-made", names.join(","));
    let values = format!(
        "replicas=0,scope.namespaces={{{}}}",
        names.replace(",never-made", "")
    );
    let mut options = options();
    options.config += &format!("watch: {{namespaces: [{names}]}}\n");
    let mut operator =
        Operator::install_rendered(bench, options.clone(), |namespace| helm(namespace, &values))
            .await?;
    for space in &mut listed {
        space.class = operator.namespace().to_owned();
    }
    let [good, barred] = &listed[..] else {
        bail!("two spaces");
    };
    let old = pair(&["barred.example"], OLD)?;
    let annotations = [("issuer", "pebble")];
    let series = |space: &Space| {
        format!(
            "cert_renew_namespace_passed_over{{namespace=\"{}\"}} 1",
            space.name
        )
    };
    let expected = async |operator: &Operator<'_>, passed_over: bool| {
        eventually(
            SOON,
            "the metrics say which namespace is passed over",
            async || {
                let metrics = operator.metrics().await?;
                ensure!(
                    metrics.contains(&series(barred)) == passed_over,
                    "{metrics}"
                );
                ensure!(!metrics.contains(&series(good)), "{metrics}");
                ensure!(metrics.contains("cert_renew_watch_up 1"), "{metrics}");
                Ok(())
            },
        )
        .await
    };
    // It begins although one namespace is barred from the start, and sees to that one when it can.
    let binding = withdrawn(barred).await?;
    barred.tls_secret("tls", Some(&old), &annotations).await?;
    operator.run().await?;
    works(good).await?;
    expected(&operator, true).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), &barred.name);
    bindings.create(&PostParams::default(), &binding).await?;
    renewed(barred, "tls", &old.certificate).await?;
    expected(&operator, false).await?;

    // Barred later, and the config is read anew: what is known of it is kept, and the others are looked after.
    withdrawn(barred).await?;
    let config = options.config.replace("settle: 0s", "settle: 1s");
    ensure!(config != options.config);
    operator.configure(&config)?;
    good.tls_secret("later", Some(&old), &annotations).await?;
    renewed(good, "later", &old.certificate).await?;
    expected(&operator, true).await?;
    eventually(SOON, "the changed config is in force", async || {
        let log = operator.log()?;
        let (_, since) = log
            .split_once("a changed config is in force")
            .context("not yet")?;
        ensure!(since.contains("all Secrets are listed"), "not yet");
        Ok(())
    })
    .await?;
    expected(&operator, true).await?;
    let known = format!(
        "cert_renew_certificate_not_after_timestamp_seconds{{namespace=\"{}\"",
        barred.name
    );
    let metrics = operator.metrics().await?;
    ensure!(metrics.contains(&known), "its expiry is forgotten");
    // What changes in the meantime is done when it can be seen again; what goes is gone.
    barred.tls_secret("new", Some(&old), &annotations).await?;
    { barred.secrets() }
        .delete("tls", &Default::default())
        .await?;
    bindings.create(&PostParams::default(), &binding).await?;
    renewed(barred, "new", &old.certificate).await?;
    expected(&operator, false).await?;
    let gone = format!("namespace=\"{}\",secret=\"tls\"", barred.name);
    let metrics = operator.metrics().await?;
    ensure!(!metrics.contains(&gone), "what is gone is still known");
    Ok(())
}

/// The same by kustomize: the component takes the ClusterRole away, `rbac/namespaced` puts a Role in its place.
#[tokio::test]
async fn the_kustomization_has_both_scopes_too() -> Result<()> {
    let bench = Bench::shared().await?;
    let rendered = render(
        bench,
        "install-scoped",
        "components: [../../deploy/namespaced]",
    )?;
    ensure!(rendered.contains("kind: Deployment") && !rendered.contains("kind: ClusterRole"));
    let namespaced = kubectl(bench, "kustomize rbac/namespaced", "")?;
    let charted = objects(&helm(
        "cert-renew",
        "scope.namespaces={shop},addons.argo-rollouts=true,addons.eviction=true,addons.verify=true,addons.namespace-labels=true",
    )?)?;
    let mut kustomized = objects(&String::from_utf8(namespaced.stdout)?)?;
    for addon in fs::read_dir(Path::new(ROOT).join("rbac/namespaced/addons"))? {
        kustomized.extend(objects(&fs::read_to_string(addon?.path())?)?);
    }
    assert_eq!(kustomized.len(), 10);
    for (key, object) in kustomized {
        assert_eq!(charted.get(&key), Some(&object), "{key}");
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

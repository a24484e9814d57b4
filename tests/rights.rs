//! The shipped roles are what is used and no more: the audit log of the API server is held against them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Fault, Operator, Proxies, Result, ensure, eventually};

use crate::argo::Argo;
use crate::declared::{declare, ingress};
use crate::documents::files;
use crate::renewal::{SOON, options, overdue, renewed, rolled_out};
use crate::viewers;

const ADDONS: [&str; 9] = [
    "rbac/addons/argo-rollouts.yaml",
    "rbac/addons/eviction.yaml",
    "rbac/addons/namespace-labels.yaml",
    "rbac/addons/route-gateway.yaml",
    "rbac/addons/route-ingress.yaml",
    "rbac/addons/verify.yaml",
    "rbac/addons/access.yaml",
    "rbac/addons/declarations.yaml",
    "rbac/addons/routes.yaml",
];

/// Two names whose routes are made, and all others.
const SOLVERS: &str = "solvers:
  - zones: [ingress.rights.example]
    http01: {route: ingress, ingress: {class: none}, selfCheck: false}
  - zones: [gateway.rights.example]
    http01: {route: gateway, gateway: {parentRefs: [{name: none}]}, selfCheck: false}
  - http01: {route: shared, selfCheck: false}
";

/// Used only while somebody scales such a workload down in the moment in which its turn comes.
const RARE: [(Place, &str, &str); 1] = [(Place::Elsewhere, "watch", "replicationcontrollers")];
/// Of two add-ons, each of which may be installed without the other.
const SHARED: [(Place, &str, &str); 2] = [
    (Place::Elsewhere, "list", "pods"),
    (Place::Elsewhere, "create", "secrets"),
];

/// The operator's own namespace has a Role of its own; in a list of namespaces nothing else holds there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Home,
    Elsewhere,
}

/// Where, verb and resource.
type Right = (Place, String, String);

fn right((place, verb, resource): (Place, &str, &str)) -> Right {
    (place, verb.to_owned(), resource.to_owned())
}

#[tokio::test]
async fn every_right_is_used_and_none_is_missing() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    bench.install_gateway_api().await?;
    options.addons = ADDONS.map(Into::into).into();
    // With a rule that goes by labels.
    options.allow =
        "[{namespaces: [\"*\"], names: [\"**.example\"]}, {namespaceSelector: {}, names: [a.test]}]".into();
    options.config = "rollout: {settle: 0s, perWorkloadMinInterval: 30s, verifyGrace: 1s}\n"
        .to_owned()
        + SOLVERS
        + viewers::CLOSED;
    options.config += "retry: {base: 1s, factor: 1, max: 1s}\n";
    let mut operator = Operator::start(bench, options.clone()).await?;
    let space = Space::new(bench.client()?, "rights", operator.namespace()).await?;
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicationController",
        "ReplicaSet",
    ] {
        let name = kind.to_lowercase();
        space
            .workload(kind, &name, Reference::Volume, "used")
            .await?;
    }
    let _argo = Argo::start(bench, &space, "used").await?;
    // Somebody shows a token.
    let home = Space {
        client: bench.client()?,
        name: operator.namespace().to_owned(),
        class: "nobody".into(),
    };
    let port = pair(&["status.example"], FRESH)?;
    home.tls_secret("port", Some(&port), &[]).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(bench.client()?, operator.namespace());
    let token = viewers::token_of(&accounts, "cert-renew", None).await?;
    eventually(SOON, "the token is reviewed", async || {
        let (status, text) = viewers::show(&operator, "/", &token).await?;
        ensure!(status == 403, "{status} {text}");
        Ok(())
    })
    .await?;
    let old = pair(&["rights.example"], OLD)?;
    // No pod is behind it: nothing here has the addresses that they say they have.
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "none"}, "ports": [{"port": 443}]}});
    let services: Api<Service> = Api::namespaced(bench.client()?, &space.name);
    services
        .create(&PostParams::default(), &serde_json::from_value(service)?)
        .await?;
    let annotations = [("issuer", "pebble"), ("verify", "web:443")];
    space.tls_secret("used", Some(&old), &annotations).await?;
    renewed(&space, "used", &old.certificate).await?;
    rolled_out(&space, "used").await?;
    declare(&space, "declared", "declared.rights.example").await?;
    rolled_out(&space, "declared").await?;
    let hosts = [("routed", &["routed.rights.example"][..])];
    ingress::create(&space, "web", &[], &hosts).await?;
    rolled_out(&space, "routed").await?;
    // A workload that was restarted a moment ago waits, and is read again when its turn comes.
    let pair_of_somebody = pair(&["rights.example"], FRESH)?;
    let written = json!({"stringData": {
        "tls.crt": pair_of_somebody.certificate,
        "tls.key": pair_of_somebody.key,
    }});
    space.merge("used", written).await?;
    rolled_out(&space, "used").await?;
    for name in ["ingress", "gateway"] {
        let asked = format!("{name}.rights.example");
        let annotations = [("issuer", "pebble"), ("names", &asked)];
        space.tls_secret(name, None, &annotations).await?;
        rolled_out(&space, name).await?;
    }
    // Two issues that no clock asked for are two entries of the ledger: it is made, then changed.
    for name in ["first", "second"] {
        let asked = format!("{name}.rights.example");
        let annotations = [("issuer", "pebble"), ("names", &asked)];
        space.tls_secret(name, None, &annotations).await?;
        rolled_out(&space, name).await?;
    }
    // What fails again and again is one Event, which counts.
    let annotations = [
        ("issuer", "pebble"),
        ("names", "refused.example"),
        ("profile", "unheard-of"),
    ];
    space.tls_secret("refused", None, &annotations).await?;
    eventually(SOON, "an Event is repeated", async || {
        let used = used(&operator)?;
        let repeated = right((Place::Elsewhere, "patch", "events"));
        ensure!(used.contains(&repeated), "{used:?}");
        Ok(())
    })
    .await?;
    // The next start reads the account that this one has made.
    operator.restart().await?;
    space
        .secrets()
        .delete("second", &Default::default())
        .await?;
    let again = pair(&["again.rights.example"], OLD)?;
    space
        .tls_secret("again", Some(&again), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "again", &again.certificate).await?;
    rolled_out(&space, "again").await?;

    let proxies = of_1_33(bench).await?;
    options.api_server = Some(proxies.api_server());
    let mut standby = operator.replica(options).await?;
    standby.run().await?;
    eventually(
        SOON,
        "the standby lists Secrets and watches the lease",
        async || {
            let used = used(&operator)?;
            for needed in [
                (Place::Elsewhere, "list", "secrets"),
                (Place::Home, "watch", "leases"),
            ] {
                ensure!(used.contains(&right(needed)), "{needed:?} of {used:?}");
            }
            Ok(())
        },
    )
    .await?;

    let mut used = used(&operator)?;
    used.extend(RARE.map(right));
    let (mut granted, mut twice) = (BTreeSet::new(), BTreeSet::new());
    for file in ["rbac/clusterrole.yaml", "rbac/role.yaml"]
        .iter()
        .chain(&ADDONS)
    {
        for right in rights_of(file)? {
            if let Some(again) = granted.replace(right) {
                twice.insert(again);
            }
        }
    }
    // What is granted once and used is missed when it is taken away.
    assert_eq!(twice, SHARED.map(right).into());
    let (missing, idle): (Vec<_>, Vec<_>) = (
        used.difference(&granted).collect(),
        granted.difference(&used).collect(),
    );
    assert!(
        missing.is_empty() && idle.is_empty(),
        "used, not granted: {missing:?}; granted, not used: {idle:?}"
    );
    Ok(())
}

/// A proxy that makes of the bench's API server one of the oldest supported version, which streams no lists.
async fn of_1_33(bench: &Bench) -> Result<Proxies> {
    let proxies = Proxies::start(bench).await?;
    let version = json!({
        "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "", "goVersion": "", "compiler": "gc", "platform": "linux/amd64",
    });
    proxies.rule(move |passed| match &*passed.path {
        "/version" => Fault::Answer(200, None, "application/json", version.to_string()),
        _ => Fault::Pass,
    });
    Ok(proxies)
}

#[tokio::test]
async fn an_api_server_of_1_33_is_listed_before_it_is_watched() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = of_1_33(bench).await?;
    let mut options = options();
    options.api_server = Some(proxies.api_server());
    let mut operator = Operator::install(bench, options).await?;
    let space = Space::new(bench.client()?, "older", operator.namespace()).await?;
    // One is there before the start, and comes by the list; the other comes by the watch that goes on from it.
    for start in [true, false] {
        let name = if start { "listed" } else { "watched" };
        let old = overdue(&space, name, &format!("{name}.older.example")).await?;
        if start {
            operator.run().await?;
        }
        renewed(&space, name, &old).await?;
        rolled_out(&space, name).await?;
        assert_eq!(space.generation("Deployment", name).await?, 2);
    }
    let has_listed = operator
        .requests()?
        .into_iter()
        .any(|it| it.verb == "list" && it.resource == "secrets" && it.namespace.is_empty());
    ensure!(has_listed, "it has listed no Secrets");
    Ok(())
}

/// The feature gate is off, as on a distribution that turns it off, or with a store that cannot do it.
#[tokio::test]
async fn an_api_server_that_streams_no_lists_is_listed_page_by_page() -> Result<()> {
    let bench = Bench::start(test_bench::Options {
        api_server: vec!["--feature-gates=WatchList=false".into()],
        ..test_bench::Options::default()
    })
    .await?;
    let mut operator = Operator::install(&bench, options()).await?;
    let space = Space::new(bench.client()?, "pages", operator.namespace()).await?;
    for start in [true, false] {
        let name = if start { "listed" } else { "watched" };
        let old = overdue(&space, name, &format!("{name}.pages.example")).await?;
        if start {
            operator.run().await?;
        }
        renewed(&space, name, &old).await?;
        rolled_out(&space, name).await?;
    }
    let log = operator.log()?;
    // Minors before 1.34 are not asked for it.
    let pages = log.contains("does not stream lists") || log.contains("\"streaming\":false");
    ensure!(pages, "{log}");
    let metrics = operator.metrics().await?;
    ensure!(
        metrics.contains("cert_renew_watch_restarts_total 0"),
        "{metrics}"
    );
    Ok(())
}

#[test]
fn the_roles_of_both_scopes_are_the_same() -> Result<()> {
    for (cluster, namespaced) in [
        ("rbac/clusterrole.yaml", "rbac/namespaced/role.yaml"),
        (ADDONS[0], "rbac/namespaced/addons/argo-rollouts.yaml"),
        (ADDONS[1], "rbac/namespaced/addons/eviction.yaml"),
        (ADDONS[2], "rbac/namespaced/addons/namespace-labels.yaml"),
        (ADDONS[5], "rbac/namespaced/addons/verify.yaml"),
        (ADDONS[7], "rbac/namespaced/addons/declarations.yaml"),
        (ADDONS[8], "rbac/namespaced/addons/routes.yaml"),
    ] {
        let sorted = |file: &str| -> Result<Vec<Right>> {
            let mut rights = rights_of(file)?;
            rights.sort_unstable();
            Ok(rights)
        };
        assert_eq!(sorted(cluster)?, sorted(namespaced)?, "{namespaced}");
    }
    Ok(())
}

/// A line of the log, as docs/install.md shows it.
fn is_on_the_page(line: &str) -> Result<()> {
    let told: Value = serde_json::from_str(line)?;
    let text = |field: &str| told[field].as_str().unwrap_or_default().to_owned();
    let fields = ["verbs", "resource", "namespace", "needed_for"];
    let fields = fields.map(|it| format!("{it}={:?}", text(it))).join(" ");
    let shown = format!("\n{} {} {fields}\n", text("level"), text("message"));
    ensure!(
        include_str!("../docs/install.md").contains(&shown),
        "{shown}"
    );
    Ok(())
}

/// One right is taken away: the log names it and what it is for, and the operator goes on.
#[tokio::test]
async fn a_missing_right_is_named_at_the_start() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let roles: Api<ClusterRole> = Api::all(bench.client()?);
    let mut role = roles.get(operator.namespace()).await?;
    for rule in role.rules.iter_mut().flatten() {
        if rule.resources.iter().flatten().any(|it| it == "daemonsets") {
            rule.verbs.retain(|verb| verb != "patch");
        }
    }
    roles
        .replace(operator.namespace(), &Default::default(), &role)
        .await?;
    let space = Space::new(bench.client()?, "lacking", operator.namespace()).await?;
    let old = pair(&["lacking.example"], OLD)?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    eventually(SOON, "the right is gone and missed", async || {
        operator.run().await?;
        let log = operator.log()?;
        let missed: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("a right is missing"))
            .collect();
        if missed.is_empty() {
            operator.kill();
        }
        ensure!(missed.len() >= 3, "{missed:?}");
        for (line, kind) in missed
            .iter()
            .zip(["deployments", "statefulsets", "daemonsets"])
        {
            ensure!(line.contains(kind) && line.contains("patch"), "{line}");
            ensure!(line.contains("restart them by one annotation"), "{line}");
            if kind == "daemonsets" {
                is_on_the_page(line)?;
            }
        }
        Ok(())
    })
    .await?;
    renewed(&space, "tls", &old.certificate).await?;
    Ok(())
}

/// Nothing is done before the failure history is known, and the alert that nobody leads says so.
#[tokio::test]
async fn a_leader_that_cannot_read_what_it_needs_does_not_count_as_one() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let roles: Api<Role> = Api::namespaced(bench.client()?, operator.namespace());
    let concerns = |rule: &PolicyRule| rule.resources.iter().flatten().any(|it| it == "configmaps");
    let all = roles.list(&ListParams::default()).await?.items;
    let mut all = all.into_iter();
    let whole = all.find(|role| role.rules.iter().flatten().any(concerns));
    let whole = whole.context("no Role has a rule for ConfigMaps")?;
    let name = whole.metadata.name.clone().unwrap_or_default();
    let mut lacking = whole.clone();
    for rule in lacking.rules.iter_mut().flatten().filter(|it| concerns(it)) {
        rule.verbs.retain(|verb| verb != "get");
    }
    roles.replace(&name, &Default::default(), &lacking).await?;
    eventually(SOON, "the right is gone and missed", async || {
        operator.run().await?;
        let waits = "nothing is renewed or restarted before this can be read";
        let missed = eventually(Duration::from_secs(10), "it says so", async || {
            ensure!(operator.log()?.contains(waits), "it has the right");
            Ok(())
        });
        let missed = missed.await;
        if missed.is_err() {
            operator.kill();
        }
        missed
    })
    .await?;
    let metrics = operator.metrics().await?;
    let shown = |line: &str| metrics.lines().any(|it| it == line);
    ensure!(shown("cert_renew_leader 0"), "{metrics}");
    ensure!(shown("cert_renew_leader_terms_total 1"), "{metrics}");
    let mut whole = whole;
    whole.metadata.resource_version = None;
    roles.replace(&name, &Default::default(), &whole).await?;
    eventually(SOON, "it works when it has the right", async || {
        ensure!(operator.leads().await?, "it does not");
        Ok(())
    })
    .await
}

/// What a file's roles grant, each as often as it does.
fn rights_of(file: &str) -> Result<Vec<Right>> {
    let text = fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR")))?;
    let mut rights = Vec::new();
    for role in serde_saphyr::from_multiple::<Value>(&text)? {
        let place = match role["metadata"]["namespace"].as_str() {
            Some("cert-renew") => Place::Home,
            _ => Place::Elsewhere,
        };
        for rule in role["rules"].as_array().into_iter().flatten() {
            let texts = |key: &str| -> Result<Vec<String>> {
                serde_json::from_value(rule[key].clone()).context("a rule")
            };
            for resource in texts("resources")? {
                for verb in texts("verbs")? {
                    rights.push((place, verb, resource.clone()));
                }
            }
        }
    }
    Ok(rights)
}

/// What the operator has asked for; `/version` and the look at one's own rights are everybody's.
fn used(operator: &Operator<'_>) -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    for request in operator.requests_of_all_replicas()? {
        ensure!(request.status != 403, "refused: {request:?}");
        let place = if request.namespace == operator.namespace() {
            Place::Home
        } else {
            Place::Elsewhere
        };
        if !["", "selfsubjectrulesreviews"].contains(&&*request.resource) {
            rights.insert((place, request.verb, request.resource));
        }
    }
    Ok(rights)
}

/// Each file of `rbac/` that docs/rbac.md names is followed by a table of its rules, and no file is left out.
#[test]
fn the_page_on_rights_lists_what_the_roles_grant() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/rbac.md"))?;
    let mut roles = files(&root.join("rbac"))?;
    roles.retain(|path| !path.starts_with(root.join("rbac/namespaced")));
    let mut compared = 0;
    for path in roles {
        let text = fs::read_to_string(&path)?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        let rules = objects.iter().filter_map(|it| it["rules"].as_array());
        let mut granted: Vec<String> = rules.flatten().map(row).collect();
        if granted.is_empty() {
            continue;
        }
        let file = path.strip_prefix(root)?.display().to_string();
        let section = page
            .split(&format!("\n[`{file}`](../{file})"))
            .nth(1)
            .with_context(|| format!("{file} is not on the page"))?;
        // Up to the next file or heading.
        let section = section.split("\n[`rbac/").next().unwrap_or_default();
        let section = section.split("\n#").next().unwrap_or_default();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let mut told: Vec<String> = rows
            .take(granted.len())
            .map(|row| row.split(" | ").take(2).collect::<Vec<_>>().join(" | "))
            .collect();
        granted.sort_unstable();
        told.sort_unstable();
        ensure!(
            granted == told,
            "{file}: {granted:#?}, on the page {told:#?}"
        );
        compared += 1;
    }
    ensure!(compared == 12, "{compared} files of roles");
    Ok(())
}

/// A rule as a row of the page has it: its resources, with the names that it is limited to, and its verbs.
fn row(rule: &Value) -> String {
    let strings = |key: &str| -> Vec<&str> {
        let list = rule[key].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).collect()
    };
    let quoted = |key: &str| {
        let list = strings(key).into_iter().map(|it| format!("`{it}`"));
        list.collect::<Vec<_>>().join(", ")
    };
    let mut what = quoted("resources");
    if !strings("resourceNames").is_empty() {
        what = format!("{what}: {}", quoted("resourceNames"));
    }
    format!("| {what} | {}", strings("verbs").join(", "))
}

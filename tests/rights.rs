//! The shipped roles are what is used and no more: the operator's own count of its requests is held against them.

use std::collections::BTreeSet;
use std::fs;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, Result, ensure, eventually};

use crate::argo::Argo;
use crate::renewal::{SOON, options, renewed, rolled_out};

const ADDONS: [&str; 6] = [
    "rbac/addons/argo-rollouts.yaml",
    "rbac/addons/eviction.yaml",
    "rbac/addons/namespace-labels.yaml",
    "rbac/addons/route-gateway.yaml",
    "rbac/addons/route-ingress.yaml",
    "rbac/addons/verify.yaml",
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
const RARE: [(&str, &str); 1] = [("watch", "replicationcontrollers")];

/// Verb and resource.
type Rights = BTreeSet<(String, String)>;

#[tokio::test]
async fn every_right_is_used_and_none_is_missing() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    bench.install_gateway_api().await?;
    options.addons = ADDONS.map(Into::into).into();
    // With a rule that goes by labels.
    options.allow =
        "[{namespaces: [\"*\"], names: [\"**.example\"]}, {namespaceSelector: {}, names: [a.test]}]".into();
    options.config = "rollout: {settle: 0s, perWorkloadMinInterval: 10s, verifyGrace: 1s}\n"
        .to_owned()
        + SOLVERS;
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
    // Whoever was rolled a moment ago waits, and is read again when its turn comes.
    let pair_of_somebody = pair(&["rights.example"], FRESH)?;
    let written = json!({"stringData": {
        "tls.crt": pair_of_somebody.certificate,
        "tls.key": pair_of_somebody.key,
    }});
    { space.secrets() }
        .patch("used", &PatchParams::default(), &Patch::Merge(written))
        .await?;
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
    let before = eventually(SOON, "an Event is repeated", async || {
        let used = used(&operator.metrics().await?)?;
        let repeated = ("patch".to_owned(), "events".to_owned());
        ensure!(used.contains(&repeated), "{used:?}");
        Ok(used)
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

    let mut standby = operator.replica(options).await?;
    standby.run().await?;
    let watched = eventually(SOON, "the standby watches the lease", async || {
        let used = used(&standby.metrics().await?)?;
        let watches = ("watch".to_owned(), "leases".to_owned());
        ensure!(used.contains(&watches), "{used:?}");
        Ok(used)
    })
    .await?;

    let mut used = used(&operator.metrics().await?)?;
    used.extend(before);
    used.extend(watched);
    used.extend(RARE.map(|(verb, resource)| (verb.to_owned(), resource.to_owned())));
    let mut granted = Rights::new();
    for file in ["rbac/clusterrole.yaml", "rbac/role.yaml"]
        .iter()
        .chain(&ADDONS)
    {
        granted.extend(rights_of(file)?);
    }
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

#[test]
fn the_roles_of_both_scopes_are_the_same() -> Result<()> {
    for (cluster, namespaced) in [
        ("rbac/clusterrole.yaml", "rbac/namespaced/role.yaml"),
        (ADDONS[0], "rbac/namespaced/addons/argo-rollouts.yaml"),
        (ADDONS[1], "rbac/namespaced/addons/eviction.yaml"),
        (ADDONS[2], "rbac/namespaced/addons/namespace-labels.yaml"),
        (ADDONS[5], "rbac/namespaced/addons/verify.yaml"),
    ] {
        assert_eq!(rights_of(cluster)?, rights_of(namespaced)?, "{namespaced}");
    }
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
            ensure!(line.contains("roll them by one annotation"), "{line}");
        }
        Ok(())
    })
    .await?;
    renewed(&space, "tls", &old.certificate).await?;
    Ok(())
}

/// What a file's roles grant.
fn rights_of(file: &str) -> Result<Rights> {
    let text = fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR")))?;
    let mut rights = Rights::new();
    for role in serde_saphyr::from_multiple::<Value>(&text)? {
        for rule in role["rules"].as_array().into_iter().flatten() {
            let texts = |key: &str| -> Result<Vec<String>> {
                serde_json::from_value(rule[key].clone()).context("a rule")
            };
            for resource in texts("resources")? {
                rights.extend(
                    texts("verbs")?
                        .into_iter()
                        .map(|verb| (verb, resource.clone())),
                );
            }
        }
    }
    Ok(rights)
}

/// What the operator has asked for, by its own metrics; `/version` and the look at one's own rights are everybody's.
fn used(metrics: &str) -> Result<Rights> {
    let mut rights = Rights::new();
    for line in metrics.lines() {
        let Some(labels) = line.strip_prefix("cert_renew_api_requests_total{") else {
            continue;
        };
        let label = |name: &str| -> Result<String> {
            let (_, rest) = labels
                .split_once(&format!("{name}=\""))
                .context(name.to_owned())?;
            Ok(rest.split('"').next().unwrap_or_default().to_owned())
        };
        ensure!(label("status")? != "403", "refused: {line}");
        if !["", "selfsubjectrulesreviews"].contains(&&*label("resource")?) {
            rights.insert((label("verb")?, label("resource")?));
        }
    }
    Ok(rights)
}

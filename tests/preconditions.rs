//! Every guard that a request carries is one to the real API server too: with a wrong uid or a wrong version it is refused.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use test_bench::objects::{OLD, Space, pair};
use test_bench::{Bench, Operator, Proxies, Result, ensure, eventually};

use crate::argo::Argo;
use crate::renewal::{options, renewed, rolled_out};
use crate::rolling::{SOON, make, ready};

/// Where a request says which object it is for, and which version of it.
const GUARDS: [(&str, &str); 6] = [
    ("/metadata/uid", "uid"),
    ("/metadata/resourceVersion", "version"),
    ("/preconditions/uid", "uid"),
    ("/preconditions/resourceVersion", "version"),
    ("/deleteOptions/preconditions/uid", "uid"),
    ("/deleteOptions/preconditions/resourceVersion", "version"),
];

/// The same request for another object, and for another version of it, by its method, what it is for, and what is wrong.
pub(crate) fn wrong(method: &str, path: &str, body: &Value) -> Vec<(String, Value)> {
    let mut parts = path.rsplit('/');
    let last = parts.next().unwrap_or_default();
    let what = match (last, parts.next(), parts.next()) {
        ("eviction", _, Some(resource)) => format!("{resource}/eviction"),
        (_, Some(resource), _) => resource.to_owned(),
        _ => return Vec::new(),
    };
    let guarded = GUARDS.iter().filter_map(|(pointer, name)| {
        let mut other = body.clone();
        *other.pointer_mut(pointer)? = match *name {
            "uid" => json!("00000000-0000-4000-8000-000000000000"),
            _ => json!("1"),
        };
        Some((format!("{method} {what}: {name}"), other))
    });
    guarded.collect()
}

#[tokio::test]
async fn a_request_for_another_object_or_another_version_is_refused() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    proxies.try_before(wrong);
    let mut options = options();
    options.api_server = Some(proxies.api_server());
    options.directory = Some(proxies.directory());
    for addon in ["eviction", "argo-rollouts"] {
        options.addons.push(format!("rbac/addons/{addon}.yaml"));
    }
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "guards", operator.namespace()).await?;
    let old = pair(&["guards.example"], OLD)?;
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicationController",
        "ReplicaSet",
    ] {
        make(&space, kind, &kind.to_lowercase(), "tls", &[]).await?;
        ready(
            &space,
            &kind.to_lowercase(),
            if kind == "DaemonSet" { 3 } else { 2 },
        )
        .await?;
    }
    let _argo = Argo::start(bench, &space, "tls").await?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "tls", &old.certificate).await?;
    rolled_out(&space, "tls").await?;
    let expected = [
        "DELETE secrets: uid",
        "PATCH daemonsets: uid",
        "PATCH daemonsets: version",
        "PATCH deployments: uid",
        "PATCH deployments: version",
        "PATCH leases: uid",
        "PATCH leases: version",
        "PATCH replicasets: uid",
        "PATCH replicasets: version",
        "PATCH replicationcontrollers: uid",
        "PATCH replicationcontrollers: version",
        "PATCH rollouts: uid",
        "PATCH rollouts: version",
        "PATCH secrets: uid",
        "PATCH secrets: version",
        "PATCH statefulsets: uid",
        "PATCH statefulsets: version",
        "POST pods/eviction: uid",
    ];
    let answers = eventually(SOON, "the order record is deleted too", async || {
        let answers: BTreeMap<String, BTreeSet<u16>> = proxies.answers();
        let tried: Vec<&str> = answers.keys().map(String::as_str).collect();
        ensure!(tried == expected, "{tried:?}");
        Ok(answers)
    })
    .await?;
    for (name, statuses) in &answers {
        let refused = statuses.iter().all(|status| [409, 422].contains(status));
        assert!(refused, "{name} was answered {statuses:?}");
    }
    eprintln!("preconditions: {answers:?}");
    // Each pod that nobody replaces is asked to go once.
    let passed = proxies.passed();
    let evictions = passed.iter().filter(|it| it.path.ends_with("/eviction"));
    assert_eq!(evictions.count(), 4, "two pods of each");
    Ok(())
}

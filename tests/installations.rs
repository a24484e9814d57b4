//! Several installations in one cluster, each with a class of its own.

use std::collections::BTreeSet;

use serde_json::Value;
use test_bench::objects::Space;
use test_bench::{Bench, Operator, Result, ensure};

use crate::install::{helm, objects};
use crate::renewal::{options, overdue, renewed, rolled_out};

/// One namespace, Secrets of two classes and of a third that nobody has: each is the business of its own installation.
#[tokio::test]
async fn two_installations_side_by_side_heed_their_own_class_only() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut charts = Vec::new();
    let mut operators = Vec::new();
    for _ in 0..2 {
        let chart = |namespace: &str| {
            let rendered = helm(namespace, "replicas=0")?;
            charts.push(rendered.clone());
            Ok(rendered)
        };
        let mut operator = Operator::install_rendered(bench, options(), chart).await?;
        operator.run().await?;
        operators.push(operator);
    }
    // No object is in both: either can be taken away without the other.
    let [first, second] = [objects(&charts[0])?, objects(&charts[1])?];
    let shared = first.keys().find(|key| second.contains_key(*key));
    assert_eq!(shared, None);
    ensure!(first.keys().any(|key| key.starts_with("ClusterRole ")));

    let mut space = Space::new(bench.client()?, "beside", "").await?;
    let classes = operators.iter().map(|operator| operator.namespace());
    for (name, class) in ["one", "two", "none"].iter().zip(classes.chain(["nobody"])) {
        space.class = class.to_owned();
        let old = overdue(&space, name, &format!("{name}.beside.example")).await?;
        if *name != "none" {
            renewed(&space, name, &old).await?;
        }
    }
    for (operator, name) in operators.iter().zip(["one", "two"]) {
        rolled_out(&space, name).await?;
        assert_eq!(space.generation("Deployment", name).await?, 2);
        let requests = operator.requests()?.into_iter();
        let named: BTreeSet<(String, String)> = requests
            .filter(|it| it.namespace == space.name && !it.name.is_empty())
            .map(|it| (it.resource, it.name))
            .collect();
        let own = ["deployments", "secrets"].map(|resource| (resource.to_owned(), name.to_owned()));
        assert_eq!(named, own.into(), "{}", operator.namespace());
    }
    let none = space.secrets().get("none").await?;
    let annotations = serde_json::to_value(none.metadata.annotations)?;
    let is_written = |annotations: &Value| annotations.to_string().contains("state.cert-renew.io");
    ensure!(!is_written(&annotations), "{annotations}");
    assert_eq!(space.generation("Deployment", "none").await?, 1);
    Ok(())
}

//! A canary that fails halts the others, until it is mended or somebody resumes.

use std::collections::BTreeMap;

use kube::api::DeleteParams;
use serde_json::json;
use test_bench::objects::{FRESH, Reference, Space, pair};
use test_bench::{Bench, Operator, Result, ensure, eventually};

use super::{pods, told};
use crate::acme_operator::command;
use crate::renewal::{SOON, annotation, leaf, options, rolled_out};
use crate::rolling::{counted, full, full_of, make, merge, ready};
use crate::told::is_halted;

#[tokio::test]
async fn a_failing_canary_halts_and_a_mended_one_goes_on() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 0s, progressTimeout: 10s, perNamespace: 1}\n"
            .into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "halt", operator.namespace()).await?;
    let fresh = pair(&["halt.example"], FRESH)?;
    space
        .tls_secret("halt", Some(&fresh), &[("issuer", "external")])
        .await?;
    for name in ["a", "b", "c"] {
        space
            .workload("Deployment", name, Reference::Volume, "halt")
            .await?;
        eventually(SOON, "its pods are ready", async || {
            let ready = pods(&space, name, "halt")
                .await?
                .iter()
                .filter(|(ready, _)| *ready)
                .count();
            ensure!(ready == 2, "{ready} are");
            Ok(())
        })
        .await?;
    }
    rolled_out(&space, "halt").await?;
    // New pods cannot be made any more: a quota, as it happens to people.
    full(&space, 6).await?;
    space.put("halt", &pair(&["halt.example"], FRESH)?).await?;
    is_halted(&space, "halt").await?;
    let secret = space.secrets().get("halt").await?;
    let used_by = annotation(&secret, "state.cert-renew.io/used-by").unwrap_or_default();
    let of = |state: &str| used_by.matches(state).count();
    assert_eq!(
        (of("=failed"), of("=kept"), of("deployment/")),
        (1, 2, 3),
        "{used_by}"
    );
    let generations = async || {
        let mut all = BTreeMap::new();
        for name in ["a", "b", "c"] {
            all.insert(name, space.generation("Deployment", name).await?);
        }
        Ok::<_, test_bench::Error>(all)
    };
    let rolled: i64 = generations()
        .await?
        .values()
        .map(|generation| generation - 1)
        .sum();
    assert_eq!(
        rolled,
        1,
        "only the canary was touched: {:?}",
        generations().await?
    );
    let metrics = operator.metrics().await?;
    assert!(metrics.contains("cert_renew_rollout_halted"), "{metrics}");
    let quotas: kube::Api<k8s_openapi::api::core::v1::ResourceQuota> =
        kube::Api::namespaced(space.client.clone(), &space.name);
    quotas.delete("full", &DeleteParams::default()).await?;
    // A newer leaf ends the halt.
    space.put("halt", &pair(&["halt.example"], FRESH)?).await?;
    rolled_out(&space, "halt").await?;
    let secret = space.secrets().get("halt").await?;
    assert_eq!(
        annotation(&secret, "state.cert-renew.io/rollout-halted"),
        None
    );
    let used_by = annotation(&secret, "state.cert-renew.io/used-by").unwrap_or_default();
    assert!(
        used_by.ends_with("Z deployment/a deployment/b deployment/c"),
        "{used_by}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn resume_goes_on_with_the_others_although_one_still_fails() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config =
        "rollout: {settle: 0s, perWorkloadMinInterval: 0s, progressTimeout: 10s}\n".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "resume", operator.namespace()).await?;
    // One needs a pod more while it rolls, which its quota does not give; the others have none.
    let asks = [(
        "/spec/template/spec/containers/0/resources",
        json!({"requests": {"cpu": "1m"}}),
    )];
    make(&space, "Deployment", "a", "tls", &asks).await?;
    make(&space, "Deployment", "b", "tls", &[]).await?;
    make(&space, "Deployment", "c", "tls", &[]).await?;
    for name in ["a", "b", "c"] {
        ready(&space, name, 2).await?;
    }
    counted(&space, &["a", "b", "c"]).await?;
    full_of(&space, 2, &["NotBestEffort"]).await?;
    let old = pair(&["resume.example"], FRESH)?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "external")])
        .await?;
    rolled_out(&space, "tls").await?;
    space.put("tls", &pair(&["resume.example"], FRESH)?).await?;
    told(&space, "tls", "RolloutHalted").await?;
    for (name, generation) in [("a", 2), ("b", 1), ("c", 1)] {
        let now = space.generation("Deployment", name).await?;
        assert_eq!(now, generation, "{name}");
    }
    let place = format!("{}/tls", space.name);
    let at = ["--operator-namespace", operator.namespace()];
    let (text, well) = command(bench, &[&["resume", &place][..], &at].concat())?;
    assert!(well && text.contains("deployment/a"), "{text}");
    // The others have it, and that one pods with an earlier one: it is not done.
    let told_of = told(&space, "tls", "RolloutIncomplete").await?;
    assert!(told_of.contains("deployment/a since 2"), "{told_of}");
    for name in ["a", "b", "c"] {
        let now = space.generation("Deployment", name).await?;
        assert_eq!(now, 2, "{name}");
    }
    told(&space, "a", "RolloutFailed").await?;
    let secret = space.secrets().get("tls").await?;
    let fingerprint = leaf(&secret)?.fingerprint.to_string();
    let had = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or_default();
    assert!(!had.starts_with(&fingerprint), "{had}");
    // There is room for it.
    let gives_way = json!({"maxSurge": 0, "maxUnavailable": 1});
    let gives_way = json!({"spec": {"strategy": {"rollingUpdate": gives_way}}});
    merge(&space, "Deployment", "a", gives_way).await?;
    let secret = rolled_out(&space, "tls").await?;
    let halted = annotation(&secret, "state.cert-renew.io/rollout-halted");
    assert_eq!(halted, None);
    Ok(())
}

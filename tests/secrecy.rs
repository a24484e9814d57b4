//! Invariant 1: no private key in a log, an Event or a metric, wherever a user has put one.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use serde_json::json;
use test_bench::objects::{FRESH, OLD, Pair, Reference, Space, pair};
use test_bench::{Bench, Operator, Result, ensure, eventually};

use crate::renewal::{SOON, data, options, renewed};

/// What would give a key away: any whole line of its PEM.
fn lines(pair: &Pair) -> Vec<String> {
    pair.key
        .lines()
        .filter(|line| !line.starts_with("---") && line.len() > 16)
        .map(ToOwned::to_owned)
        .collect()
}

#[tokio::test]
async fn no_private_key_leaves_its_secret() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "canary", operator.namespace()).await?;
    let canary = pair(&["canary.example"], OLD)?;
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let applied = json!({"data": {"tls.key": canary.key}}).to_string();
    space
        .tls_secret(
            "due",
            Some(&canary),
            &[
                ("issuer", "pebble"),
                ("kubectl.kubernetes.io/last-applied-configuration", &applied),
            ],
        )
        .await?;
    // A key where the certificate should be, in an annotation of ours, and in one file with the certificate.
    let swapped = BTreeMap::from([
        ("tls.crt".to_owned(), bytes(&canary.key)),
        ("tls.key".to_owned(), bytes(&canary.certificate)),
    ]);
    space
        .secret(
            "swapped",
            "kubernetes.io/tls",
            swapped,
            &[("issuer", "external")],
        )
        .await?;
    space
        .tls_secret(
            "pasted",
            Some(&canary),
            &[("issuer", "external"), ("names", &canary.key)],
        )
        .await?;
    let combined = BTreeMap::from([(
        "tls.pem".to_owned(),
        bytes(&format!("{}{}", canary.key, canary.certificate)),
    )]);
    space
        .secret(
            "combined",
            "Opaque",
            combined,
            &[("issuer", "external"), ("outputs", "tls.pem=key+fullchain")],
        )
        .await?;
    let label = json!({"metadata": {"labels": {"cert-renew.io/managed": "true"}}});
    space.merge("combined", label).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "due")
        .await?;
    let secret = renewed(&space, "due", &canary.certificate).await?;
    for name in ["swapped", "pasted"] {
        eventually(SOON, "it is told", async || {
            let events = space.events(name).await?;
            ensure!(!events.is_empty(), "no Event on {name} yet");
            Ok(())
        })
        .await?;
    }
    // A mismatch makes the operator speak about the pair.
    let half = json!({"stringData": {"tls.crt": pair(&["canary.example"], FRESH)?.certificate}});
    space.merge("due", half).await?;
    eventually(SOON, "the mismatch is told", async || {
        let events = space.events("due").await?;
        ensure!(
            events.iter().any(|event| event.starts_with("NotRolledOut")),
            "{events:?}"
        );
        Ok(())
    })
    .await?;

    let issued = Pair {
        certificate: String::new(),
        key: data(&secret, "tls.key"),
    };
    let mut said = vec![
        ("the log", operator.log()?),
        ("metrics", operator.metrics().await?),
        ("the status page", operator.ask("/").await?),
        ("its JSON", operator.ask("/api/certificates").await?),
    ];
    for name in ["due", "swapped", "pasted", "combined", "web"] {
        said.push(("Events", space.events(name).await?.join("\n")));
    }
    for secret in space
        .secrets()
        .list(&kube::api::ListParams::default())
        .await?
        .items
    {
        let state = secret.metadata.annotations.unwrap_or_default().into_iter();
        said.push((
            "state",
            { state }
                .filter(|(key, _)| key.starts_with("state."))
                .map(|(_, value)| value)
                .collect(),
        ));
    }
    for line in lines(&canary).iter().chain(&lines(&issued)) {
        for (place, text) in &said {
            assert!(
                !text.contains(line.as_str()),
                "{place} holds a line of a private key"
            );
        }
    }
    Ok(())
}

/// What is on its way through HTTP and TLS cannot be wiped, so that a dump of the memory would hold keys.
#[tokio::test]
async fn the_operator_writes_no_core_dump() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let limits = format!("/proc/{}/limits", operator.process()?.id());
    let limits = std::fs::read_to_string(limits)?;
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core
        .unwrap_or_default()
        .split_whitespace()
        .skip(4)
        .collect();
    assert_eq!(core[..2], ["0", "0"], "{limits}");
    Ok(())
}

//! What is shown is true of everybody's Secrets, whatever one tenant writes on his: those that are not managed are named,
//! and nobody makes an answer too large to read or hides the causes of others.

use std::process::Output;

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, Space, pair};
use test_bench::{Bench, Context as _, Operator, OperatorOptions, Result, ensure, eventually};

use crate::acme_operator::{event, issued};
use crate::command::{cert_renew, said};
use crate::renewal::{SOON, annotation};
use crate::verdict::{json as report, outward, service, viewer};

/// An operator that can be asked through the API server.
async fn shown(bench: &Bench) -> Result<Operator<'_>> {
    let mut operator = Operator::install(
        bench,
        OperatorOptions::new(env!("CARGO_BIN_EXE_cert-renew")),
    )
    .await?;
    operator.show_at(outward()?);
    let namespace = operator.namespace().to_owned();
    service(bench, &namespace, operator.metrics_address()).await?;
    viewer(bench, &namespace).await?;
    operator.run().await?;
    Ok(operator)
}

/// A command as somebody who may read no Secret.
fn as_viewer(operator: &Operator<'_>, bench: &Bench, command: &[&str]) -> Result<Output> {
    let way = [
        "--operator-namespace",
        operator.namespace(),
        "--as",
        "viewer",
    ];
    cert_renew(&[command, &way].concat(), Some(bench.kubeconfig()))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn mark(space: &Space, name: &str, metadata: Value) -> Result<()> {
    let patch = json!({"metadata": metadata});
    let params = PatchParams::default();
    space
        .secrets()
        .patch(name, &params, &Patch::Merge(patch))
        .await?;
    Ok(())
}

#[tokio::test]
async fn who_is_meant_and_not_managed_is_named_by_status_describe_and_page() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = shown(bench).await?;
    let space = Space::new(bench.client()?, "meant", operator.namespace()).await?;
    let fresh = pair(&["meant.example"], FRESH)?;
    let class = operator.namespace();
    let near = format!("x{class}");
    let of_class =
        |key: &str| json!({"annotations": {key: "pebble", "cert-renew.io/class": class}});
    let cases = [
        (
            "isuer",
            of_class("cert-renew.io/isuer"),
            "did you mean cert-renew.io/issuer?",
        ),
        (
            "dot",
            of_class("cert-renew.io.issuer"),
            "did you mean cert-renew.io/issuer?",
        ),
        (
            "other",
            of_class("renew-cert.io/issuer"),
            "did you mean cert-renew.io/issuer?",
        ),
        (
            "notes",
            of_class("state.cert-renew.io/issuer"),
            "did you mean cert-renew.io/issuer?",
        ),
        (
            "label",
            json!({
                "labels": {"cert-renew.io/issuer": "pebble"},
                "annotations": {"cert-renew.io/class": class},
            }),
            "cert-renew.io/issuer is a label",
        ),
        (
            "declared",
            json!({"annotations": {"cert-renew.io/declared": "true", "cert-renew.io/class": class}}),
            "and none has given it any",
        ),
        (
            "class",
            json!({"annotations": {"cert-renew.io/issuer": "external", "cert-renew.io/class": near}}),
            "--overwrite cert-renew.io/class=",
        ),
    ];
    for (name, metadata, _) in &cases {
        space.tls_secret(name, Some(&fresh), &[]).await?;
        mark(&space, name, metadata.clone()).await?;
    }
    let status = eventually(SOON, "all are named", async || {
        let status = as_viewer(&operator, bench, &["status", "-n", &space.name])?;
        for (name, _, words) in &cases {
            let place = format!("{}/{name}: not managed: ", space.name);
            let told = stderr(&status);
            let line = told.lines().find(|line| line.contains(&place));
            ensure!(line.is_some_and(|it| it.contains(words)), "{name}: {told}");
        }
        Ok(status)
    })
    .await?;
    let count = format!("{} Secrets seem to be meant for cert-renew:", cases.len());
    ensure!(stderr(&status).contains(&count), "{}", stderr(&status));
    let json = as_viewer(
        &operator,
        bench,
        &["status", "-n", &space.name, "-o", "json"],
    )?;
    let json: Value = serde_json::from_slice(&json.stdout)?;
    assert_eq!(json["unmanaged"]["count"], cases.len(), "{json:#}");
    for (name, _, words) in &cases {
        let place = format!("{}/{name}", space.name);
        let described = as_viewer(&operator, bench, &["describe", &place])?;
        ensure!(
            described.status.code() == Some(1) && stderr(&described).contains(words),
            "{name}: {}",
            said(&described)
        );
    }
    // Nor is one of them well where the Secrets alone are read, but for what may be of another class: whether it is, the
    // config says, and it cannot be read.
    let alone = ["status", "-n", &space.name, "-o", "json"];
    let way = [
        "--operator-namespace",
        class,
        "--metrics-service",
        "nosuch:metrics",
    ];
    let alone = cert_renew(&[&alone[..], &way].concat(), Some(bench.kubeconfig()))?;
    let alone: Value = serde_json::from_slice(&alone.stdout)?;
    let well = alone["certificates"].as_array().context("a list")?;
    let well: Vec<_> = well.iter().map(|it| &it["name"]).collect();
    assert_eq!(well, ["class"], "{alone:#}");
    let page = operator.ask(&format!("/?namespace={}", space.name)).await?;
    ensure!(
        page.contains("seem to be meant for cert-renew") && page.contains("is a label"),
        "{page}"
    );
    let one = format!("/?namespace={}&name=isuer", space.name);
    let page = operator.ask(&one).await?;
    ensure!(
        page.contains("did you mean cert-renew.io/issuer?"),
        "{page}"
    );
    // Without the operator, by who may read the Secrets.
    space.tls_secret("alone", Some(&fresh), &[]).await?;
    mark(
        &space,
        "alone",
        json!({"annotations": {"certrenew.io/issuer": "pebble"}}),
    )
    .await?;
    let place = format!("{}/alone", space.name);
    let alone = ["describe", &place, "--operator-namespace", "nowhere"];
    let alone = cert_renew(&alone, Some(bench.kubeconfig()))?;
    ensure!(
        stderr(&alone).contains("did you mean cert-renew.io/issuer?"),
        "{}",
        said(&alone)
    );
    // The operator's own word takes no right on its Deployment.
    let version = as_viewer(&operator, bench, &["version"])?;
    let line = format!(
        "operator: {} in namespace {class}",
        env!("CARGO_PKG_VERSION")
    );
    ensure!(
        version.status.success() && said(&version).contains(&line),
        "{}",
        said(&version)
    );
    Ok(())
}

#[tokio::test]
async fn one_tenant_neither_blows_the_answer_up_nor_hides_the_causes_of_others() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = shown(bench).await?;
    let hostile = Space::new(bench.client()?, "aaa", operator.namespace()).await?;
    let shop = Space::new(bench.client()?, "shop-a", operator.namespace()).await?;
    let fresh = pair(&["meant.example"], FRESH)?;
    let unknown: Vec<String> = (0..10).map(|number| format!("unknown-{number}")).collect();
    // More than an answer has room for.
    let value = "x".repeat(120);
    let annotations = unknown.iter().map(|key| (&**key, &*value));
    let annotations: Vec<(&str, &str)> = annotations.chain([("issuer", "external")]).collect();
    for number in 0..80 {
        let name = format!("m{number:02}");
        hostile
            .tls_secret(&name, Some(&fresh), &annotations)
            .await?;
    }
    let typo = [("issuer", "external"), ("rolout", "none")];
    shop.tls_secret("typo", Some(&fresh), &typo).await?;
    let forged = format!(" deployment/{}", "w".repeat(253)).repeat(64);
    let forged = format!("2023-11-14T22:13:20Z{forged}");
    let row = async |place: &Space, name: &str| {
        let report = report(&operator).await?;
        let rows = report["certificates"].as_array().into_iter().flatten();
        let mut rows = rows.filter(|row| row["namespace"] == *place.name && row["name"] == *name);
        Ok::<_, test_bench::Error>(rows.next().cloned().unwrap_or_default())
    };
    eventually(SOON, "the last is watched and noted", async || {
        let secret = hostile.secrets().get("m79").await?;
        let written = secret.metadata.annotations.unwrap_or_default();
        ensure!(
            written.contains_key("state.cert-renew.io/rolled-out"),
            "{written:?}"
        );
        Ok(())
    })
    .await?;
    mark(
        &hostile,
        "m79",
        json!({"annotations": {"state.cert-renew.io/used-by": forged}}),
    )
    .await?;
    let forger = eventually(SOON, "what is forged is shown", async || {
        let row = row(&hostile, "m79").await?;
        ensure!(row["usedBy"]["more"].as_u64() > Some(0), "{row:#}");
        Ok(row)
    })
    .await?;
    let workloads = forger["usedBy"].to_string();
    ensure!(workloads.len() < 2_048, "{} bytes", workloads.len());
    // All namespaces, as everybody sees them.
    let all = as_viewer(&operator, bench, &["status", "-A"])?;
    let line = said(&all);
    let line = line.lines().find(|line| line.starts_with(&shop.name));
    ensure!(
        line.is_some_and(|line| line.contains("did you mean cert-renew.io/rollout?")),
        "{}",
        said(&all)
    );
    let cut = "too many errors to show all texts";
    ensure!(said(&all).contains(cut), "all fits: {}", said(&all));
    // A name is in one namespace.
    let named = as_viewer(&operator, bench, &["status", "-A", "typo"])?;
    ensure!(
        named.status.code() == Some(1) && stderr(&named).contains("NAMESPACE/NAME"),
        "{}",
        said(&named)
    );
    Ok(())
}

/// A profile that the CA does not have is told when it is written, although nothing is due: with those that there are.
#[tokio::test]
async fn a_profile_that_there_is_not_is_told_with_those_that_the_ca_offers() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = shown(bench).await?;
    let space = Space::new(bench.client()?, "offered", operator.namespace()).await?;
    // With the first order the CA says what it offers.
    issued(&space, "first", "first.offered.example").await?;
    let fresh = pair(&["second.offered.example"], FRESH)?;
    let asked = [("issuer", "pebble"), ("profile", "short-lived")];
    space.tls_secret("second", Some(&fresh), &asked).await?;
    let problem = "cert-renew.io/profile: \"short-lived\": expected a profile of issuer pebble (default, minute, minutes, \
                   shortlived); did you mean shortlived?";
    event(&space, "second", problem).await?;
    // The Event comes first.
    eventually(SOON, "the problem is written on the Secret", async || {
        let secret = space.secrets().get("second").await?;
        let written = annotation(&secret, "state.cert-renew.io/problems");
        ensure!(written == Some(problem), "{written:?}");
        Ok(())
    })
    .await?;
    let path = format!("?namespace={}&name=second", space.name);
    let json: Value =
        serde_json::from_str(&operator.ask(&format!("/api/certificates{path}")).await?)?;
    let row = &json["certificates"][0];
    ensure!(
        row["problems"] == json!([problem]) && row["state"] == "ok",
        "{row:#}"
    );
    let page = operator.ask(&format!("/{path}")).await?;
    ensure!(page.contains(&problem.replace('"', "&quot;")), "{page}");
    let place = format!("{}/second", space.name);
    eventually(SOON, "the viewer's roles are in force", async || {
        let described = said(&as_viewer(&operator, bench, &["describe", &place])?);
        for part in [problem, "cert-renew.io/profile=VALUE"] {
            ensure!(described.contains(part), "{part}: {described}");
        }
        Ok(())
    })
    .await
}

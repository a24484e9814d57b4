//! Dashboard and alerts on a real Prometheus that scrapes a real run.

use std::time::Duration;

use serde_json::{Value, json};
use test_bench::objects::{EXPIRED, FRESH, OLD, Reference, Space, pair};
use test_bench::{
    Bench, Context as _, Fault, Operator, OperatorOptions, Prometheus, Proxies, Result, Server,
    ensure, eventually,
};

use crate::faults::of_cert_manager;

const DASHBOARD: &str = include_str!("../deploy/monitoring/dashboard.json");
const RULES: &str = include_str!("../deploy/alerts.yaml");
const SOON: Duration = Duration::from_secs(90);
/// The CA asks for a pause of so long: a few scrapes see it.
const PAUSE: u32 = 8;
/// The API server takes so long for a restart: a few evaluations of the rules see it.
const SLOW: Duration = Duration::from_secs(10);

/// The alerts as they are shipped, but for how long they wait before they fire.
fn impatient() -> String {
    let lines = RULES.lines().map(|line| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 2s"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

async fn alert(prometheus: &Prometheus, name: &str, secret: &str, fires: bool) -> Result<()> {
    let firing =
        format!("ALERTS{{alertname=\"{name}\", secret=\"{secret}\", alertstate=\"firing\"}}");
    let what = format!("{name} {}", if fires { "fires" } else { "clears" });
    eventually(SOON, &what, async || {
        let found = prometheus.query(&firing).await?;
        ensure!(found.is_empty() != fires, "{found:?}");
        Ok(())
    })
    .await
}

fn panels(dashboard: &Value) -> Vec<(&str, &str)> {
    let list = dashboard["panels"].as_array().expect("panels");
    let queries = |panel| {
        let panel: &Value = panel;
        let title = panel["title"].as_str().unwrap_or_default();
        let targets = panel["targets"].as_array().map(Vec::as_slice);
        let targets = targets.unwrap_or_default().iter();
        targets.filter_map(move |target| Some((title, target["expr"].as_str()?)))
    };
    list.iter().flat_map(queries).collect()
}

/// A series with a number in it.
fn tells(series: &Value) -> bool {
    let samples = series["values"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let number = |sample: &Value| sample[1].as_str()?.parse::<f64>().ok();
    samples.iter().filter_map(number).any(f64::is_finite)
}

#[tokio::test]
async fn alerts_fire_and_clear_and_no_panel_is_empty() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let mut options = OperatorOptions::new(env!("CARGO_BIN_EXE_cert-renew"));
    options.directory = Some(proxies.directory());
    options.api_server = Some(proxies.api_server());
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "monitored", operator.namespace()).await?;
    let prometheus = Prometheus::start(
        bench,
        "prometheus",
        &[operator.metrics_address()],
        &impatient(),
    )
    .await?;
    let ours = [("issuer", "pebble")];

    // What goes well.
    space
        .workload("Deployment", "first", Reference::Volume, "first")
        .await?;
    space.available("Deployment", "first").await?;
    space
        .tls_secret("fine", Some(&pair(&["fine.example"], FRESH)?), &ours)
        .await?;
    space
        .tls_secret("first", Some(&pair(&["first.example"], OLD)?), &ours)
        .await?;
    eventually(SOON, "a scrape sees the first rollout", async || {
        let rolled = "cert_renew_rollouts_total{result=\"rolled\"} and on () cert_renew_renewals_total{result=\"renewed\"}";
        ensure!(!prometheus.query(rolled).await?.is_empty(), "none yet");
        Ok(())
    })
    .await?;

    // The CA refuses, and then it does not.
    proxies.rule(|passed| {
        if passed.server == Server::Ca && passed.path.contains("order") {
            Fault::too_many(PAUSE)
        } else {
            Fault::Pass
        }
    });
    space
        .workload("Deployment", "second", Reference::Volume, "second")
        .await?;
    space.available("Deployment", "second").await?;
    space
        .tls_secret("second", Some(&pair(&["second.example"], OLD)?), &ours)
        .await?;
    alert(&prometheus, "CertRenewRenewalFailing", "second", true).await?;
    proxies.rule(|passed| {
        if passed.server == Server::Api
            && passed.method == "PATCH"
            && passed.path.ends_with("/second")
            && passed.path.contains("/deployments/")
        {
            Fault::Delay(SLOW)
        } else {
            Fault::Pass
        }
    });
    eventually(SOON, "the CA's pause is over", async || {
        let left = "max(cert_renew_issuer_limited_until_timestamp_seconds) - time() > 0";
        ensure!(prometheus.query(left).await?.is_empty(), "not yet");
        Ok(())
    })
    .await?;
    let again = json!({"metadata": {"annotations": {"cert-renew.io/renew-now": "again"}}});
    space.merge("second", again).await?;
    alert(&prometheus, "CertRenewRenewalFailing", "second", false).await?;

    // Its workload takes its time, and then has it.
    alert(&prometheus, "CertRenewRenewedNotRolledOut", "second", true).await?;
    alert(&prometheus, "CertRenewRenewedNotRolledOut", "second", false).await?;

    // Once more without a fault: rates and quantiles need a change that a scrape has seen.
    proxies.rule(|_| Fault::Pass);
    let other = pair(&["third.example"], OLD)?;
    space
        .workload("Deployment", "third", Reference::Volume, "third")
        .await?;
    space.available("Deployment", "third").await?;
    space.tls_secret("third", Some(&other), &ours).await?;
    // A CA that is limited is no failure; a profile that it does not know is.
    let unheard_of = [
        ("issuer", "pebble"),
        ("names", "refused.example"),
        ("profile", "unheard-of"),
    ];
    space.tls_secret("refused", None, &unheard_of).await?;
    of_cert_manager(&space, "fought", &other).await?;
    alert(&prometheus, "CertRenewTwoOwners", "fought", true).await?;
    let misread = [("issuer", "pebble"), ("key-type", "rsa")];
    space.tls_secret("misread", Some(&other), &misread).await?;
    space
        .tls_secret("misspelt", Some(&other), &[("isuer", "pebble")])
        .await?;
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let panels = panels(&dashboard);
    ensure!(panels.len() > 35, "{} queries", panels.len());
    eventually(SOON, "every panel shows something", async || {
        let mut empty = Vec::new();
        for (title, expression) in &panels {
            let expression = expression
                .replace("$__rate_interval", "10s")
                .replace("$namespace", ".*")
                .replace("$cluster", ".*")
                .replace("$job", ".*");
            let found = prometheus.query_range(&expression, 240).await;
            let found = found.with_context(|| (*title).to_owned())?;
            if !found.iter().any(tells) {
                empty.push((*title, expression));
            }
        }
        ensure!(empty.is_empty(), "empty: {empty:#?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn every_tls_secret_is_observed_and_nothing_is_done_to_it() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = OperatorOptions::new(env!("CARGO_BIN_EXE_cert-renew"));
    options.config += "watch: {observe: all}\n";
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "observed", operator.namespace()).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "old")
        .await?;
    space.available("Deployment", "web").await?;
    let generation = space.generation("Deployment", "web").await?;
    space
        .tls_secret("old", Some(&pair(&["old.example"], OLD)?), &[])
        .await?;
    space
        .tls_secret("gone", Some(&pair(&["gone.example"], EXPIRED)?), &[])
        .await?;
    space.tls_secret("empty", None, &[]).await?;
    let labels = |name: &str| format!("namespace=\"{}\",secret=\"{name}\",issuer=\"\"", space.name);
    let end = async |name: &str| -> Result<Option<String>> {
        let metrics = operator.metrics().await?;
        let series = format!(
            "cert_renew_certificate_not_after_timestamp_seconds{{{}}} ",
            labels(name)
        );
        let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
        Ok(line.map(ToOwned::to_owned))
    };
    let before = eventually(SOON, "both are observed", async || {
        let metrics = operator.metrics().await?;
        let trouble = format!(
            "cert_renew_certificate_trouble{{{},state=\"expired\"}} 1",
            labels("gone")
        );
        ensure!(metrics.contains(&trouble), "not yet");
        end("old").await?.context("not yet")
    })
    .await?;
    let put = space.put("old", &pair(&["old.example"], FRESH)?).await?;
    eventually(SOON, "another certificate is observed", async || {
        ensure!(
            end("old").await?.is_some_and(|now| now != before),
            "not yet"
        );
        Ok(())
    })
    .await?;
    ensure!(
        end("empty").await?.is_none(),
        "a Secret without a certificate"
    );
    // One that is annotated by then has been handled after all that came before it.
    let external = [("issuer", "external")];
    space
        .tls_secret("last", Some(&pair(&["last.example"], FRESH)?), &external)
        .await?;
    eventually(SOON, "the last one is settled", async || {
        let last = space.secrets().get("last").await?;
        let annotations = last.metadata.annotations.unwrap_or_default();
        ensure!(
            annotations.contains_key("state.cert-renew.io/rolled-out"),
            "not yet"
        );
        Ok(())
    })
    .await?;
    let writes = operator.writes()?;
    let touched = writes
        .iter()
        .filter(|it| it.namespace == space.name && it.name != "last");
    ensure!(
        touched.clone().count() == 0,
        "{:?}",
        touched.collect::<Vec<_>>()
    );
    let after = space.secrets().get("old").await?;
    ensure!(
        after.metadata.resource_version == put.metadata.resource_version,
        "it was written"
    );
    ensure!(
        space.generation("Deployment", "web").await? == generation,
        "it was rolled"
    );
    Ok(())
}

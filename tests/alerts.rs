//! The alert rules: right by promtool's unit tests, the same for the Prometheus operator, each with a runbook section.

use std::process::Command;

use serde_json::Value;
use test_bench::{Context as _, Result, ensure};

const RULES: &str = include_str!("../deploy/alerts.yaml");
const OPERATOR_RULE: &str = include_str!("../deploy/monitoring/prometheusrule.yaml");
const DASHBOARD: &str = include_str!("../deploy/monitoring/dashboard.json");
const METRICS: &str = include_str!("../docs/metrics.md");
const RUNBOOK: &str = include_str!("../docs/runbook.md");

#[test]
fn rules_fire_when_they_should_and_not_otherwise() -> Result<()> {
    let output = Command::new("promtool")
        .args(["test", "rules", "deploy/alerts_test.yaml"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("promtool is in Debian's package prometheus")?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{}{}",
        said(&output.stdout),
        said(&output.stderr)
    );
    Ok(())
}

/// They share one Alertmanager with everybody's.
#[test]
fn every_alert_has_the_prefix() {
    let mut names = alerts().into_iter();
    assert!(names.all(|alert| alert.starts_with("CertRenew")));
}

#[test]
fn every_alert_is_tested() {
    let tests = include_str!("../deploy/alerts_test.yaml");
    for alert in alerts() {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert}");
    }
}

/// The tests of the rules make their own series: these are the ones that the operator has.
#[test]
fn rules_and_dashboard_ask_for_what_is_documented() {
    let words = |text: &'static str| text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let mut asked = 0;
    for name in words(RULES).chain(words(DASHBOARD)) {
        let name = name.strip_suffix("_bucket").unwrap_or(name);
        if name.starts_with("cert_renew_") {
            asked += 1;
            assert!(METRICS.contains(&format!("| `{name}` |")), "{name}");
        }
    }
    assert!(asked > 50, "{asked}");
    // A state or a reason that is asked for.
    for selector in RULES.split('{').skip(1) {
        let Some((label, rest)) = selector.split_once('=') else {
            continue;
        };
        if !["state", "why"].contains(&label) {
            continue;
        }
        let values = rest.trim_start_matches('~').split('"').nth(1);
        for value in values.expect("quoted").split('|') {
            assert!(METRICS.contains(&format!("`{value}`")), "{label} {value}");
        }
    }
}

/// A label that an alert does not have would leave a hole in its text.
#[test]
fn an_alert_has_the_labels_that_its_text_names() {
    let tests = include_str!("../deploy/alerts_test.yaml");
    for rule in RULES.split("- alert: ").skip(1) {
        let (alert, rule) = rule.split_once('\n').unwrap();
        let has = tests
            .lines()
            .find(|line| line.contains(&format!("alertname=\"{alert}\"")));
        for label in rule.split("$labels.").skip(1) {
            let end = label.find(|c: char| !c.is_ascii_lowercase()).unwrap();
            // Of a query, and empty where there is one cluster.
            if &label[..end] == "cluster" {
                continue;
            }
            let label = format!("{}=\"", &label[..end]);
            assert!(
                has.is_some_and(|has| has.contains(&label)),
                "{alert}: {label}"
            );
        }
        for part in ["summary: ", "description: >-", "severity: "] {
            assert!(rule.contains(part), "{alert} has no {part}");
        }
    }
}

/// Where one Prometheus has the series of several clusters, an alert or a panel of one hides none of another.
#[test]
fn rules_and_dashboard_keep_the_label_of_the_cluster() -> Result<()> {
    for aggregation in RULES.split(" by (").skip(1) {
        ensure!(aggregation.starts_with("cluster"), "{aggregation:.60}");
    }
    for aggregation in DASHBOARD.split(" by (").skip(1) {
        let of_secrets = aggregation.starts_with("namespace");
        ensure!(!of_secrets, "{aggregation:.60}");
    }
    Ok(())
}

#[test]
fn every_panel_heeds_the_cluster_and_the_job_that_are_chosen() -> Result<()> {
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut queries = 0;
    for target in targets {
        let query = target["expr"].as_str().context("no query")?;
        for variable in ["$cluster", "$job"] {
            ensure!(query.contains(variable), "{variable}: {query}");
        }
        queries += 1;
    }
    ensure!(queries > 40, "only {queries} queries");
    Ok(())
}

/// The figures at the top are those of the namespace that is chosen.
#[test]
fn the_figures_at_the_top_of_the_dashboard_heed_the_namespace() -> Result<()> {
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let is_row = |panel: &&Value| panel["type"] == "row";
    let first = panels.iter().skip(1).take_while(|it| !is_row(it));
    let mut figures = 0;
    for panel in first {
        let query = panel["targets"][0]["expr"].as_str().context("no query")?;
        ensure!(query.contains("namespace=~\"$namespace\""), "{panel:#}");
        figures += 1;
    }
    ensure!(figures >= 6, "only {figures} figures");
    Ok(())
}

/// What to type next is in the text of each alert about a Secret. Events alone are not enough: an API server keeps them for an
/// hour, and most alerts last longer.
#[test]
fn alerts_that_ask_why_name_the_command_that_says_so() -> Result<()> {
    let command = "cert-renew describe {{ $labels.namespace }}/{{ $labels.secret }}";
    let mut found = 0;
    for rule in RULES.split("- alert: CertRenew").skip(1) {
        // What has no label of a Secret is about all of them.
        if !rule.contains("$labels.secret") {
            continue;
        }
        // It cuts annotations at 140 characters.
        let cuts = rule.contains(" describe secret ");
        ensure!(!cuts, "{rule}");
        // The operator has not come to it, so that its log is to be read; and what is to be done is no question.
        let is_known = ["RenewalOverdue", "RolloutHalted"];
        let is_known = is_known.iter().any(|alert| rule.starts_with(alert));
        ensure!(is_known || rule.contains(command), "{rule}");
        found += usize::from(!is_known);
    }
    ensure!(found >= 14, "only {found}");
    Ok(())
}

#[test]
fn the_prometheus_operator_gets_the_same_rules() {
    let (_, rules) = RULES.split_once("\ngroups:").unwrap();
    let (_, spec) = OPERATOR_RULE.split_once("\nspec:\n  groups:").unwrap();
    let unindented = |line: &str| line.strip_prefix("  ").unwrap_or(line).to_owned();
    let spec: Vec<String> = spec.lines().map(unindented).collect();
    assert_eq!(rules.lines().collect::<Vec<_>>(), spec);
}

#[test]
fn every_alert_has_its_section_in_the_runbook() {
    for alert in alerts() {
        assert!(
            RUNBOOK.contains(&format!("\n## {alert}\n")),
            "no section {alert}"
        );
        let link = format!("docs/runbook.md#{}\n", alert.to_lowercase());
        assert!(RULES.contains(&link), "no link {link}");
    }
}

fn alerts() -> Vec<&'static str> {
    RULES
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect()
}

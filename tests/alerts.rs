//! The alert rules: right by promtool's unit tests, the same for the Prometheus operator, each with a runbook section.

use std::process::Command;

use test_bench::{Context as _, Result, ensure};

const RULES: &str = include_str!("../deploy/alerts.yaml");
const OPERATOR_RULE: &str = include_str!("../deploy/monitoring/prometheusrule.yaml");
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

#[test]
fn every_alert_is_tested() {
    let tests = include_str!("../deploy/alerts_test.yaml");
    for alert in alerts() {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert}");
    }
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

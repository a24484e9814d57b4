//! The log: one line a step, which says whose step it is; for people or for programs.

use std::process::Command;

use serde_json::Value;
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, OperatorOptions, Result, ensure, eventually};

use crate::renewal::{SOON, options, renewed, rolled_out};

/// The lines with a step of a Secret, in their order.
fn steps(operator: &Operator<'_>, secret: &str) -> Result<Vec<Value>> {
    let log = operator.log()?;
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let fields = lines.map(|line: Value| line.get("fields").unwrap_or(&line).clone());
    let of_it = fields.filter(|it| it["step"].is_string() && it["secret"] == secret);
    Ok(of_it.collect())
}

#[tokio::test]
async fn each_step_of_a_renewal_is_one_line_that_says_whose_it_is() -> Result<()> {
    let bench = Bench::shared().await?;
    let logs_info = OperatorOptions {
        log_level: "info".into(),
        ..options()
    };
    let operator = Operator::start(bench, logs_info).await?;
    let space = Space::new(bench.client()?, "logged", operator.namespace()).await?;
    let old = pair(&["logged.example"], OLD)?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    space.available("Deployment", "web").await?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "tls", &old.certificate).await?;
    rolled_out(&space, "tls").await?;
    let secret = format!("{}/tls", space.name);
    let lines = eventually(SOON, "it is done", async || {
        let lines = steps(&operator, &secret)?;
        ensure!(lines.iter().any(|it| it["step"] == "done"), "{lines:?}");
        Ok(lines)
    })
    .await?;
    let told: Vec<&str> = lines.iter().filter_map(|it| it["step"].as_str()).collect();
    let expected = ["due", "order", "prove", "finalize", "write", "roll", "done"];
    ensure!(told == expected, "{lines:#?}");
    let renewal = &lines[..5];
    for line in renewal {
        ensure!(line["issuer"] == "pebble", "{line}");
    }
    let order = renewal[1]["order"].as_str().context("no order")?;
    ensure!(order.starts_with("https://"), "{order}");
    for line in &renewal[2..] {
        ensure!(line["order"] == order, "{line}");
    }
    // What a workload's line is about is the workload; its Secrets are named there too.
    let log = operator.log()?;
    let place = format!("\"{}\"", space.name);
    let workload =
        |line: &&str| line.contains("\"workload\":\"deployment/web\"") && line.contains(&place);
    ensure!(log.lines().filter(workload).count() == 1, "{log}");
    Ok(())
}

#[test]
fn a_line_is_for_people_or_for_programs() -> Result<()> {
    let config = std::env::temp_dir().join(format!("cert-renew-{}.yaml", std::process::id()));
    std::fs::write(&config, "issuers: {}\n")?;
    let lines = |format: &[&str]| -> Result<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_cert-renew"))
            .args(["run", "--namespace", "nowhere", "--config"])
            .arg(&config)
            .args(format)
            .env("KUBECONFIG", "/no/such/kubeconfig")
            .output()?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    let human = lines(&["--log-format", "human"])?;
    ensure!(human.contains(" WARN "), "{human}");
    // A pipe is read by programs.
    for format in [&["--log-format", "json"][..], &[]] {
        let text = lines(format)?;
        let first = text.lines().next().context("nothing was said")?;
        let line: Value = serde_json::from_str(first)?;
        ensure!(line["level"] == "WARN", "{text}");
        ensure!(line["timestamp"].is_string(), "{text}");
    }
    std::fs::remove_file(&config)?;
    Ok(())
}

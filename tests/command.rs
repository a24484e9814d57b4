//! The command line as a person meets it: exit codes, and what it says where.

use std::process::{Command, Output};

use test_bench::objects::{FRESH, Reference, Space, pair};
use test_bench::{Bench, Result, ensure};

fn cert_renew(arguments: &[&str], kubeconfig: Option<&std::path::Path>) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cert-renew"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    Ok(command.output()?)
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn every_command_explains_itself() -> Result<()> {
    for command in [
        vec!["run"],
        vec!["status"],
        vec!["check"],
        vec!["config", "check"],
    ] {
        let output = cert_renew(&[command.as_slice(), &["--help"]].concat(), None)?;
        ensure!(
            output.status.success() && said(&output).contains("Usage:"),
            "{command:?}: {}",
            said(&output)
        );
    }
    Ok(())
}

#[test]
fn a_config_is_checked_whole() -> Result<()> {
    let good = cert_renew(&["config", "check", "deploy/config.yaml"], None)?;
    ensure!(good.status.success(), "{}", said(&good));
    let bad = cert_renew(
        &["config", "check", "testdata/config/bad-everything.yaml"],
        None,
    )?;
    ensure!(bad.status.code() == Some(1), "{}", said(&bad));
    let lines = said(&bad)
        .lines()
        .filter(|line| line.contains("bad-everything.yaml:"))
        .count();
    ensure!(
        lines > 10,
        "every fault has a line of its own: {}",
        said(&bad)
    );
    Ok(())
}

#[test]
fn a_file_is_checked_and_the_exit_code_says_how_it_is() -> Result<()> {
    for (file, code) in [("bare.der", 0), ("broken-backslash-n.pem", 2)] {
        let output = cert_renew(&["check", &format!("testdata/certificates/{file}")], None)?;
        // A fixture ages: one that has expired is an error too, and says so.
        let expired = said(&output).contains("expired");
        ensure!(
            output.status.code() == Some(code) || expired,
            "{file}: {}",
            said(&output)
        );
    }
    let missing = cert_renew(&["check", "no-such-file"], None)?;
    ensure!(
        missing.status.code() == Some(1) && said(&missing).contains("no-such-file"),
        "{}",
        said(&missing)
    );
    Ok(())
}

#[tokio::test]
async fn status_shows_the_annotated_secrets() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "status", "nobody").await?;
    space
        .tls_secret(
            "shop",
            Some(&pair(&["shop.example"], FRESH)?),
            &[("issuer", "external")],
        )
        .await?;
    space
        .tls_secret("other", Some(&pair(&["other.example"], FRESH)?), &[])
        .await?;
    let table = cert_renew(&["status", "-n", &space.name], Some(bench.kubeconfig()))?;
    let text = said(&table);
    ensure!(
        table.status.success() && text.contains("shop") && !text.contains("other"),
        "{text}"
    );
    let json = cert_renew(
        &["status", "-n", &space.name, "-o", "json"],
        Some(bench.kubeconfig()),
    )?;
    let rows: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    ensure!(
        rows[0]["name"] == "shop" && rows[0]["names"][0] == "shop.example",
        "{rows}"
    );
    Ok(())
}

#[tokio::test]
async fn plan_says_what_would_roll_in_which_order_and_why() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "plan", "planned").await?;
    let old = pair(&["plan.example"], FRESH)?;
    for (secret, annotations) in [
        (
            "restarts",
            vec![("issuer", "external"), ("verify", "web:443")],
        ),
        (
            "reloads",
            vec![("issuer", "external"), ("rollout", "post:8080/r")],
        ),
    ] {
        space.tls_secret(secret, Some(&old), &annotations).await?;
        for (name, reference) in [("a-env", Reference::Env), ("b", Reference::Volume)] {
            let name = format!("{secret}-{name}");
            space
                .workload("Deployment", &name, reference, secret)
                .await?;
            space.available("Deployment", &name).await?;
        }
    }
    let config = bench.directory().join("plan.yaml");
    let text = "class: planned\nissuers: {internal: {directory: \"https://ca.example/directory\", contact: ops@example.com}}\n";
    std::fs::write(&config, text)?;
    let config = config.display().to_string();
    let arguments = ["plan", "--config", &config, "-n", &space.name];
    let lines = said(&cert_renew(&arguments, Some(bench.kubeconfig()))?);
    for expected in [
        "rolls deployment/restarts-a-env (env CERTIFICATE of container main), deployment/restarts-b (volume tls), verifies web:443",
        "rolls deployment/reloads-a-env (env CERTIFICATE of container main), asks to reload deployment/reloads-b (volume tls)",
    ] {
        ensure!(lines.contains(expected), "{lines}");
    }
    let output = cert_renew(
        &[arguments.as_slice(), &["--json"]].concat(),
        Some(bench.kubeconfig()),
    )?;
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let reloads = rows
        .as_array()
        .and_then(|rows| rows.iter().find(|row| row["name"] == "reloads"));
    let how = reloads.map(|row| (&row["rollout"][0]["how"], &row["rollout"][1]["how"]));
    let (restart, reload) = ("restart".into(), "reload".into());
    ensure!(how == Some((&restart, &reload)), "{rows}");
    Ok(())
}

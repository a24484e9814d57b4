//! The command line as a person meets it: exit codes, and what it says where.

mod check;
mod help;

use std::env;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;
use test_bench::objects::{Age, FRESH, OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, OperatorOptions, Result, ensure, eventually};

pub(crate) fn cert_renew(
    arguments: &[&str],
    kubeconfig: Option<&std::path::Path>,
) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cert-renew"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    Ok(command.output()?)
}

pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The exit code of docs/command.md for what cannot be done, and an answer that says what was in the way.
#[test]
fn what_cannot_be_reached_is_named_and_ends_with_one() -> Result<()> {
    let config = "deploy/config.yaml";
    for command in [
        vec!["status"],
        vec!["describe", "a"],
        vec!["plan"],
        vec!["plan", "--config", config],
        vec!["create", "a", "--issuer", "x", "--names", "a.example"],
        vec!["adopt", "--from", "cert-manager", "--issuer", "x"],
        vec!["renew", "a"],
        vec!["renew", "-l", "app=a"],
        vec!["revoke", "a"],
        vec!["resume", "a"],
        vec!["account", "show", "x"],
        vec!["account", "rollover", "x"],
    ] {
        let way = ["--kubeconfig", "/no/such/kubeconfig"];
        let output = cert_renew(&[command.as_slice(), &way].concat(), None)?;
        let text = said(&output);
        ensure!(
            output.status.code() == Some(1) && text.contains("/no/such/kubeconfig"),
            "{command:?}: {text}"
        );
        ensure!(output.stdout.is_empty(), "{command:?}: {text}");
    }
    for command in [
        vec!["plan", "--config", "/no/such/config"],
        vec!["config", "check", "/no/such/config"],
        vec!["run", "--config", "/no/such/config"],
    ] {
        let output = cert_renew(&command, None)?;
        let text = said(&output);
        ensure!(
            output.status.code() == Some(1) && text.contains("/no/such/config"),
            "{command:?}: {text}"
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
    // A program gets the same, and the same exit code.
    let checked = |file: &str, output: &str, code: i32| -> Result<Value> {
        let said = cert_renew(&["config", "check", file, "-o", output], None)?;
        ensure!(said.status.code() == Some(code), "{file}: {said:?}");
        Ok(match output {
            "json" => serde_json::from_slice(&said.stdout)?,
            _ => serde_saphyr::from_slice(&said.stdout)?,
        })
    };
    let json = checked("testdata/config/bad-everything.yaml", "json", 1)?;
    let yaml = checked("testdata/config/bad-everything.yaml", "yaml", 1)?;
    ensure!(json == yaml && json["valid"] == false, "{json:#} {yaml:#}");
    let faults = json["faults"].as_array().context("a list")?;
    ensure!(faults.len() == lines, "{json:#}");
    let table = said(&bad);
    for fault in faults {
        let line = fault["line"].as_u64().map(|line| format!(":{line}: "));
        let path = fault["path"].as_str().context("a path")?;
        let expected = fault["expected"].as_str().context("what was expected")?;
        let told = |it: &&str| {
            it.contains(path)
                && it.ends_with(expected)
                && line.as_ref().is_none_or(|line| it.contains(line))
        };
        ensure!(table.lines().any(|it| told(&it)), "{fault}: {table}");
    }
    let json = checked("deploy/config.yaml", "json", 0)?;
    ensure!(
        json["valid"] == true && json["issuers"][0] == "letsencrypt",
        "{json:#}"
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
    let rows = String::from_utf8_lossy(&table.stdout);
    ensure!(
        table.status.success() && rows.contains("shop") && !rows.contains("other"),
        "{}",
        said(&table)
    );
    let json = cert_renew(
        &["status", "-n", &space.name, "-o", "json"],
        Some(bench.kubeconfig()),
    )?;
    let rows: Value = serde_json::from_slice(&json.stdout)?;
    ensure!(
        rows["certificates"][0]["name"] == "shop"
            && rows["certificates"][0]["names"][0] == "shop.example",
        "{rows}"
    );
    Ok(())
}

#[tokio::test]
async fn the_same_facts_are_in_every_output() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "outputs", "nobody").await?;
    let external = [("issuer", "external")];
    let old = pair(&["old.example"], OLD)?;
    space.tls_secret("old", Some(&old), &external).await?;
    space.tls_secret("empty", None, &external).await?;
    let ask = |output: &str| {
        let arguments = ["status", "-n", &space.name, "-o", output];
        cert_renew(&arguments, Some(bench.kubeconfig()))
    };
    let json: Value = serde_json::from_slice(&ask("json")?.stdout)?;
    let yaml: Value = serde_saphyr::from_slice(&ask("yaml")?.stdout)?;
    let rows = |it: &Value| it["certificates"].clone();
    ensure!(rows(&json) == rows(&yaml), "{json:#} {yaml:#}");
    let wide = said(&ask("wide")?);
    for row in json["certificates"].as_array().context("a list")? {
        let name = row["name"].as_str().unwrap_or_default();
        let line = wide
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(name));
        let line = line.with_context(|| wide.clone())?;
        for fact in ["namespace", "state", "issuer", "rollout", "notBefore"] {
            let fact = row[fact].as_str().unwrap_or("-");
            ensure!(line.contains(fact), "{fact}: {line}");
        }
    }
    Ok(())
}

/// A command that keeps running, and the objects that it prints.
fn watching(bench: &Bench, command: &[&str]) -> Result<(Child, Receiver<Value>)> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cert-renew"))
        .args(command)
        .env("KUBECONFIG", bench.kubeconfig())
        .stdout(Stdio::piped())
        .spawn()?;
    let (sender, lines) = channel();
    let out = BufReader::new(child.stdout.take().context("no output")?);
    std::thread::spawn(move || {
        let parse = |line: String| serde_json::from_str::<Value>(&line).ok();
        let rows = out.lines().map_while(|line| line.ok()).filter_map(parse);
        rows.for_each(|row| drop(sender.send(row)));
    });
    Ok((child, lines))
}

/// Both at the first sight and when it changes.
#[tokio::test]
async fn a_watch_leaves_out_what_the_flags_leave_out() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "narrowed", "nobody").await?;
    let external = [("issuer", "external")];
    let fresh = pair(&["narrowed.example"], FRESH)?;
    let later = Age {
        since: 1,
        left: 400,
    };
    let later = pair(&["later.example"], later)?;
    space.tls_secret("first", Some(&fresh), &external).await?;
    space.tls_secret("later", Some(&later), &external).await?;
    let command = ["status", "--watch", "-o", "json", "--expiring", "365d"];
    let command = [&command[..], &["-n", &space.name]].concat();
    let (mut child, lines) = watching(bench, &command)?;
    let next = || {
        let row = lines.recv_timeout(Duration::from_secs(60));
        row.context("no line").map(|row| row["name"].clone())
    };
    let check = async || {
        ensure!(next()? == "first");
        space.annotate("later", "rollout", "none").await?;
        space.tls_secret("second", Some(&fresh), &external).await?;
        let second = next()?;
        ensure!(second == "second", "{second}");
        // Its owner renews it for longer than is asked for.
        space.put("first", &later).await?;
        let row = lines.recv_timeout(Duration::from_secs(60));
        let row = row.context("no line")?;
        ensure!(row["name"] == "first" && row["deleted"] == true, "{row}");
        Ok(())
    };
    let checked = check().await;
    child.kill()?;
    child.wait()?;
    checked
}

#[tokio::test]
async fn a_watch_prints_what_changes() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "watched", "nobody").await?;
    let external = [("issuer", "external")];
    let fresh = pair(&["watched.example"], FRESH)?;
    space.tls_secret("first", Some(&fresh), &external).await?;
    let command = ["status", "--watch", "-o", "json", "-n", &space.name];
    let (mut child, lines) = watching(bench, &command)?;
    let next = || {
        lines
            .recv_timeout(Duration::from_secs(60))
            .context("no line")
    };
    let check = async || {
        let row = next()?;
        ensure!(row["name"] == "first" && row["state"] == "ok", "{row}");
        space.tls_secret("second", None, &external).await?;
        let row = next()?;
        ensure!(row["name"] == "second" && row["state"] == "absent", "{row}");
        space.put("second", &fresh).await?;
        let row = next()?;
        ensure!(row["name"] == "second" && row["state"] == "ok", "{row}");
        space
            .secrets()
            .delete("first", &kube::api::DeleteParams::default())
            .await?;
        let row = next()?;
        ensure!(row["name"] == "first" && row["deleted"] == true, "{row}");
        Ok(())
    };
    let checked = check().await;
    child.kill()?;
    child.wait()?;
    checked
}

#[tokio::test]
async fn renew_waits_and_tells_how_far_it_is() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = OperatorOptions::new(env!("CARGO_BIN_EXE_cert-renew"));
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "awaited", operator.namespace()).await?;
    let ours = [("issuer", "pebble")];
    // Old enough that the budget allows another, and not yet due.
    let age = Age {
        since: 41,
        left: 49,
    };
    let fresh = pair(&["awaited.example"], age)?;
    space.tls_secret("shop", Some(&fresh), &ours).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "shop")
        .await?;
    space.available("Deployment", "web").await?;
    let arguments = [
        "renew",
        "shop",
        "-n",
        &space.name,
        "--wait",
        "--timeout",
        "60s",
        "--operator-namespace",
        operator.namespace(),
    ];
    let (arguments, kubeconfig) = (
        arguments.map(ToOwned::to_owned),
        bench.kubeconfig().to_owned(),
    );
    let asked = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        cert_renew(&arguments, Some(&kubeconfig))
    });
    let asked = asked.await??;
    let text = said(&asked);
    ensure!(asked.status.success(), "{text}");
    ensure!(
        text.contains("shop: asked for") && text.contains("and the workloads have it"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn a_hangup_turns_the_log_level_and_the_next_one_back() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = OperatorOptions::new(env!("CARGO_BIN_EXE_cert-renew"));
    options.log_level = "info".into();
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "hangup", operator.namespace()).await?;
    let ours = ("issuer", "pebble");
    let turned = |times: usize| {
        let log = operator.log()?;
        let lines = log.matches("the log level has changed").count();
        ensure!(lines == times, "{lines} times");
        Ok(log)
    };
    let soon = Duration::from_secs(60);
    for (times, name) in [(1, "seen"), (2, "unseen")] {
        operator.process()?.signal("HUP")?;
        eventually(soon, "the level is another", async || turned(times)).await?;
        // A debug line tells of each Secret that is watched, and an Event follows an annotation that is none.
        let fresh = pair(&["hangup.example"], FRESH)?;
        let odd = [ours, ("nonsense", "x")];
        space.tls_secret(name, Some(&fresh), &odd).await?;
        eventually(soon, "the Secret is noticed", async || {
            let log = operator.log()?;
            let place = format!("{}/{name}", space.name);
            let noticed =
                |line: &&str| line.contains(&place) && line.contains("invalid annotation");
            ensure!(log.lines().any(|line| noticed(&line)), "not yet");
            Ok(())
        })
        .await?;
    }
    let log = operator.log()?;
    let watched = |name: &str| {
        let place = format!("{}/{name}", space.name);
        log.lines()
            .any(|line| line.contains(&place) && line.contains("\"DEBUG\""))
    };
    ensure!(watched("seen") && !watched("unseen"), "{log}");
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
        "deployment/restarts-a-env(restart: env CERTIFICATE of container main),deployment/restarts-b(restart: volume tls) ",
        " web:443\n",
        "deployment/reloads-a-env(restart: env CERTIFICATE of container main),deployment/reloads-b(reload: volume tls) ",
    ] {
        ensure!(lines.contains(expected), "{lines}");
    }
    let output = cert_renew(
        &[arguments.as_slice(), &["-o", "json"]].concat(),
        Some(bench.kubeconfig()),
    )?;
    let rows: Value = serde_json::from_slice(&output.stdout)?;
    let reloads = rows
        .as_array()
        .and_then(|rows| rows.iter().find(|row| row["name"] == "reloads"));
    let how = reloads.map(|row| (&row["rollout"][0]["how"], &row["rollout"][1]["how"]));
    let (restart, reload) = ("restart".into(), "reload".into());
    ensure!(how == Some((&restart, &reload)), "{rows}");
    Ok(())
}

//! One verdict: what the operator thinks of a Secret is what the command, the page, the JSON, the metrics and its
//! annotation say, and seeing it takes no right to read Secrets.

mod scene;

use std::collections::BTreeMap;
use std::time::Duration;

use cert_renew_core::time::UnixTime;
use scene::{BY_THE_CA, IN_WORDS, Reader, cases, lasting, started, states, stderr};
use serde_json::Value;
use test_bench::objects::{Age, Space, pair};
use test_bench::{Bench, Context as _, Operator, OperatorOptions, Result, ensure, eventually};

use crate::command::{cert_renew, said};
use crate::renewal::{SOON, annotation};

pub(crate) use scene::{json, outward, service, viewer};

#[tokio::test]
async fn command_page_json_metrics_and_annotation_say_the_same_of_each_secret() -> Result<()> {
    let bench = Bench::shared().await?;
    let (operator, space) = started(bench, "verdict").await?;
    let report = json(&operator).await?;
    let states = states(&report);
    let expected: BTreeMap<String, String> = cases()
        .iter()
        .map(|(name, _, state)| ((*name).to_owned(), (*state).to_owned()))
        .collect();
    assert_eq!(states, expected, "{report:#}");
    ensure!(
        report["class"] == operator.namespace() && report["version"].is_string(),
        "{report:#}"
    );
    ensure!(report["leader"]["name"] == report["replica"], "{report:#}");

    // The metrics.
    let metrics = operator.metrics().await?;
    let space_name = &space.name;
    for (name, state) in &expected {
        let series = format!(
            "cert_renew_certificate_trouble{{namespace=\"{space_name}\",secret=\"{name}\","
        );
        let series = metrics.lines().find(|line| line.starts_with(&series));
        let trouble = !["ok", "held", "paused", "due"].contains(&&**state);
        ensure!(series.is_some() == trouble, "{name}: {series:?}");
        let label = format!("state=\"{state}\"}} 1");
        ensure!(
            series.is_none_or(|it| it.ends_with(&label)),
            "{name}: {series:?}"
        );
        let count = expected.values().filter(|it| *it == state).count();
        let count = format!("cert_renew_certificates{{state=\"{state}\"}} {count}\n");
        ensure!(metrics.contains(&count), "{count}");
    }

    on_the_page(&operator, &space, (&report, &expected)).await?;
    on_the_secrets(&space, &expected).await?;

    // The command, as somebody who may read no Secret.
    let reader = |who| Reader {
        bench,
        space: &space,
        operator: operator.namespace(),
        who,
    };
    let viewer = reader("viewer");
    let shown = eventually(SOON, "the viewer's roles are in force", async || {
        let shown = viewer.types(&["status", "-o", "json"])?;
        ensure!(shown.status.success(), "{}", said(&shown));
        Ok(shown)
    })
    .await?;
    assert_eq!(stderr(&shown), "");
    let told: Value = serde_json::from_slice(&shown.stdout)?;
    assert_eq!(lasting(&told), lasting(&json(&operator).await?));
    for field in ["version", "class", "replica", "leader"] {
        assert_eq!(told[field], report[field], "{field}");
    }
    for name in ["healthy", "warned", BY_THE_CA] {
        same_date(&operator, &viewer, name).await?;
    }
    by_whose_word(&operator, &viewer).await?;
    let table = viewer.types(&["status"])?;
    let table = said(&table);
    for (name, state) in &expected {
        let line = table
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(name));
        ensure!(
            line.is_some_and(|it| it.contains(&format!(" {state} "))),
            "{name}: {table}"
        );
    }
    ensure!(
        !table.contains("CLASS") && !table.contains("other-class"),
        "{table}"
    );
    Ok(())
}

/// All say one date at which a Secret is renewed.
async fn same_date(operator: &Operator<'_>, viewer: &Reader<'_>, name: &str) -> Result<()> {
    let (space, report) = (viewer.space, json(operator).await?);
    let rows = report["certificates"].as_array().into_iter().flatten();
    let mut renews = rows
        .filter(|row| row["name"] == name)
        .map(|row| &row["renews"]);
    let renews = renews.next().and_then(Value::as_str);
    let renews = renews.with_context(|| format!("{name} has no date: {report:#}"))?;
    let minute = renews.get(..16).context("an instant")?;
    let secret = space.secrets().get(name).await?;
    let line = annotation(&secret, "state.cert-renew.io/state").unwrap_or_default();
    ensure!(
        line.contains(&format!("renews {minute}Z")),
        "{renews}: {line}"
    );
    let page = operator
        .ask(&format!("/?namespace={}&name={name}", space.name))
        .await?;
    ensure!(page.contains(&minute.replace('T', " ")), "{renews}: {page}");
    let described = said(&viewer.types(&["describe", name])?);
    ensure!(
        described.contains(&format!("{renews}, in ")),
        "{renews}: {described}"
    );
    let plan = viewer.types(&["plan", "-o", "json"])?;
    ensure!(said(&plan).contains(renews), "{renews}: {}", said(&plan));
    let series = format!(
        "cert_renew_certificate_renew_at_timestamp_seconds{{namespace=\"{}\",secret=\"{name}\"",
        space.name
    );
    let metrics = operator.metrics().await?;
    let series = metrics.lines().find(|line| line.starts_with(&series));
    let seconds = series.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    let at = renews.parse::<UnixTime>().ok().map(|at| at.0 as f64);
    ensure!(seconds == at, "{renews}: {series:?}");
    Ok(())
}

/// A CA that has renewal information decides the date, and each says that it does.
async fn by_whose_word(operator: &Operator<'_>, viewer: &Reader<'_>) -> Result<()> {
    let own = format!("/?namespace={}&name={BY_THE_CA}", viewer.space.name);
    let (page, described) = (
        operator.ask(&own).await?,
        said(&viewer.types(&["describe", BY_THE_CA])?),
    );
    let plan = said(&viewer.types(&["plan", BY_THE_CA])?);
    for text in [page, described, plan] {
        ensure!(text.contains(IN_WORDS), "{text}");
    }
    let wide = said(&viewer.types(&["status", BY_THE_CA, "-o", "wide"])?);
    ensure!(
        wide.lines()
            .nth(1)
            .is_some_and(|line| line.contains(" RenewalInfo ")),
        "{wide}"
    );
    Ok(())
}

/// A state in the words of the status page.
fn in_words(state: &str) -> &str {
    match state {
        "renewal_failing" => "renewal fails",
        "rollout_failing" => "rollout fails",
        "expiring" => "ends soon",
        "held" => "held back",
        other => other,
    }
}

/// Each Secret has its row on the status page, with the state in words, and a page of its own, with the same and the reason
/// of the JSON.
async fn on_the_page(
    operator: &Operator<'_>,
    space: &Space,
    (report, expected): (&Value, &BTreeMap<String, String>),
) -> Result<()> {
    let rows = report["certificates"].as_array().into_iter().flatten();
    let reason = |row: &Value| Some((row["name"].as_str()?.to_owned(), row["reason"].clone()));
    let reasons: BTreeMap<String, Value> = rows.filter_map(reason).collect();
    let namespace = &space.name;
    let page = operator.ask(&format!("/?namespace={namespace}")).await?;
    for (name, state) in expected {
        let link = format!("?namespace={namespace}&amp;name={name}\"");
        let row = page.split("<tr").find(|row| row.contains(&link));
        let row = row.with_context(|| format!("{name} has no row: {page}"))?;
        let words = in_words(state);
        ensure!(
            row.contains(&format!("data-s=\"{state}\"")) && row.contains(&format!(">{words}<")),
            "{name}, {state}: {row}"
        );
        let own = format!("/?namespace={namespace}&name={name}");
        let own = operator.ask(&own).await?;
        let reason = reasons.get(name).and_then(Value::as_str);
        let reason = reason.with_context(|| format!("{name} has no reason"))?;
        let told = format!("<strong>{words}</strong>: {reason}.");
        ensure!(own.contains(&told), "{name}: {told}: {own}");
    }
    Ok(())
}

/// Each Secret says its state in its annotation, to a user who has nothing but kubectl.
async fn on_the_secrets(space: &Space, expected: &BTreeMap<String, String>) -> Result<()> {
    for (name, state) in expected {
        eventually(SOON, "its annotation tells the state", async || {
            let secret = space.secrets().get(name).await?;
            let line = annotation(&secret, "state.cert-renew.io/state");
            let word = line.and_then(|line| line.split([':', ';']).next());
            // Nothing is written on a Secret whose certificate is asked for and held, before something changes.
            if *state == "held" && word.is_none() {
                return Ok(());
            }
            ensure!(word == Some(state), "{name} is {state}: {line:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_viewer_describes_what_he_may_not_read_and_a_stranger_gets_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let (operator, space) = started(bench, "viewer").await?;
    let reader = |who| Reader {
        bench,
        space: &space,
        operator: operator.namespace(),
        who,
    };
    let viewer = reader("viewer");
    let describe = async |name: &str| {
        eventually(SOON, "the viewer's roles are in force", async || {
            let shown = viewer.types(&["describe", name])?;
            ensure!(
                shown.status.success() && stderr(&shown).is_empty(),
                "{}",
                said(&shown)
            );
            Ok(said(&shown))
        })
        .await
    };
    let (halted, held) = (describe("halted").await?, describe("held").await?);
    let misread = eventually(SOON, "since when it is blocked is written", async || {
        let misread = describe("misread-key").await?;
        ensure!(misread.contains("\nSince:"), "{misread}");
        Ok(misread)
    })
    .await?;
    let resume = format!(
        "\nNext:\n  cert-renew resume {}/halted --operator-namespace {}\n",
        space.name,
        operator.namespace()
    );
    ensure!(
        halted.contains("rollout_failing") && halted.ends_with(&resume),
        "{halted}"
    );
    ensure!(halted.contains("leads"), "{halted}");
    ensure!(
        held.contains("it is held until") && held.contains("--force"),
        "{held}"
    );
    // Who signed it, although the viewer may not read it.
    ensure!(
        held.contains("\nChain:") && held.contains(", by CN="),
        "{held}"
    );
    // The budgets, and what is known of the past.
    ensure!(
        held.contains("\nLimits:")
            && held.contains(" orders of issuer pebble within 3h")
            && held.contains("0 of 4 certificates for these names within 7d")
            && held.contains(": the certificate begins to be valid (by the certificate)"),
        "{held}"
    );
    // The problem in full, and the Event about it.
    let problem = "cert-renew.io/key-type: \"rsa\": expected";
    ensure!(misread.contains(problem), "{misread}");
    ensure!(misread.contains("InvalidAnnotation"), "{misread}");
    // The same on the page and in the JSON, with the Events that the leader has published.
    let path = format!("?namespace={}&name=misread-key", space.name);
    let report: Value =
        serde_json::from_str(&operator.ask(&format!("/api/certificates{path}")).await?)?;
    let detail = &report["certificates"][0]["detail"];
    ensure!(
        detail["events"].to_string().contains("InvalidAnnotation")
            && detail["chain"][0]["notAfter"] == report["certificates"][0]["notAfter"]
            && detail["limits"][0]["what"] == "orders"
            && detail["limits"][1]["most"] == 4
            && detail["past"].to_string().contains("begins to be valid"),
        "{report:#}"
    );
    let page = operator.ask(&format!("/{path}")).await?;
    ensure!(
        page.contains("<strong>InvalidAnnotation</strong>")
            && page.contains("<dt>Chain</dt>")
            && page.contains("certificates for these names within 7d")
            && page.contains("<h2>Last renewals</h2>"),
        "{page}"
    );
    // A plan without a right on Secrets, and the first line says whose word it is.
    let plan = viewer.types(&["plan"])?;
    ensure!(
        plan.status.success()
            && stderr(&plan).starts_with("cert-renew: you may not list Secrets in namespace")
            && stderr(&plan).lines().count() == 1,
        "{}",
        said(&plan)
    );
    let never = said(&plan);
    let cell = |line: &str, column| line.split_whitespace().nth(column) == Some("never");
    let never = never.lines().find(|line| cell(line, 1));
    ensure!(
        never.is_some_and(|line| cell(line, 2) && line.contains("NotAllowed")),
        "{}",
        said(&plan)
    );
    is_held(&said(&plan), &space.name)?;
    let one = said(&viewer.types(&["status", "held"])?);
    ensure!(one.contains("Next:"), "a single one is one screen: {one}");
    let two = viewer.types(&["status", "held", "halted", "--no-headers"])?;
    ensure!(said(&two).lines().count() == 2, "{}", said(&two));
    let soon = viewer.types(&["status", "--expiring", "30d", "--no-headers"])?;
    let soon = said(&soon);
    ensure!(
        soon.lines().count() == 1 && soon.contains("partner"),
        "{soon}"
    );
    let missing = viewer.types(&["status", "nothing", "held"])?;
    ensure!(
        missing.status.code() == Some(1)
            && stderr(&missing).contains("/nothing: there is no such Secret"),
        "{}",
        said(&missing)
    );
    // He may read no Secret, so that nothing is left without the operator.
    for command in [
        vec!["status", "--metrics-service", "nosuch:metrics"],
        vec!["status", "-l", "a=b"],
    ] {
        let refused = viewer.types(&command)?;
        ensure!(
            refused.status.code() == Some(1) && refused.stdout.is_empty(),
            "{}",
            said(&refused)
        );
    }
    for command in [vec!["status"], vec!["describe", "held"], vec!["plan"]] {
        let stranger = reader("stranger").types(&command)?;
        ensure!(
            stranger.status.code() == Some(1) && stranger.stdout.is_empty(),
            "{}",
            said(&stranger)
        );
    }
    Ok(())
}

#[tokio::test]
async fn without_the_operator_the_secrets_are_judged_alike_and_the_first_line_says_so() -> Result<()>
{
    let bench = Bench::shared().await?;
    let (mut operator, space) = started(bench, "fallback").await?;
    let namespace = operator.namespace().to_owned();
    let ask = |more: &[&str]| {
        let status = [
            "status",
            "-n",
            &space.name,
            "--operator-namespace",
            &namespace,
        ];
        cert_renew(&[&status, more].concat(), Some(bench.kubeconfig()))
    };
    let fallback = ask(&["-o", "json", "--metrics-service", "nosuch:metrics"])?;
    let first = stderr(&fallback);
    ensure!(
        first.lines().count() == 1
            && first.contains("this is what the Secrets say, with the config of its ConfigMap")
            && is_not_asked(&first, "nosuch:metrics"),
        "{first}"
    );
    ensure!(!first.contains("no cert-renew leads"), "{first}");
    let told: Value = serde_json::from_slice(&fallback.stdout)?;
    let mut states_told = states(&told);
    let other = states_told.remove("other-class");
    ensure!(other.as_deref() == Some("ok"), "{other:?}");
    assert_eq!(states_told, states(&json(&operator).await?));
    let table = said(&ask(&["--metrics-service", "nosuch:metrics"])?);
    ensure!(table.contains(" CLASS "), "two classes: {table}");
    // What the operator knows stands on the Secret.
    let one = eventually(SOON, "the line of its state is written", async || {
        let one = said(&ask(&["forced", "--metrics-service", "nosuch:metrics"])?);
        ensure!(
            one.contains("the operator said last: renewal_failing: "),
            "{one}"
        );
        Ok(one)
    })
    .await?;
    ensure!(one.contains("Last error"), "{one}");

    // The plan knows it of the Secret itself.
    let plan = ["plan", "held", "-n", &space.name];
    let unasked = [
        "--operator-namespace",
        &namespace,
        "--metrics-service",
        "nosuch:metrics",
    ];
    let plan = cert_renew(&[plan, unasked].concat(), Some(bench.kubeconfig()))?;
    is_held(&said(&plan), &space.name)?;

    operator.kill();
    let silent = eventually(
        Duration::from_secs(180),
        "the Lease has run out",
        async || {
            let silent = ask(&[])?;
            ensure!(
                stderr(&silent).contains("no cert-renew leads"),
                "{}",
                stderr(&silent)
            );
            Ok(silent)
        },
    )
    .await?;
    let first = stderr(&silent);
    let lease = format!("no cert-renew leads: Lease {namespace}/cert-renew silent for ");
    ensure!(
        silent.status.success()
            && first.contains(&lease)
            && is_not_asked(&first, "cert-renew-metrics:metrics"),
        "{first}"
    );
    Ok(())
}

/// A plan says of a Secret that is held what holds it, and until when.
fn is_held(plan: &str, space: &str) -> Result<()> {
    let held = format!(
        "{space}/held: a new certificate is asked for, and the present one is younger than a tenth of its lifetime: "
    );
    let mut lines = plan.lines().filter_map(|line| line.strip_prefix(&*held));
    let until = lines
        .next()
        .and_then(|line| line.strip_prefix("it is held until "));
    let until = until.with_context(|| format!("it is not said to be held: {plan}"))?;
    // The same instant is that of the table.
    let mut rows = plan
        .lines()
        .filter(|line| line.starts_with(&format!("{space} ")) && line.contains(" held "));
    ensure!(
        rows.any(|row| row.contains(&format!(" {until} "))),
        "{until}: {plan}"
    );
    Ok(())
}

/// Whether this says that nothing answers behind a Service that does not exist. Older API servers say which it is.
fn is_not_asked(note: &str, service: &str) -> bool {
    note.contains("no replica of it answers in namespace")
        || note.contains(&format!("there is no Service {service} in "))
}

/// What was refused as long as every certificate was shown for it.
#[tokio::test]
async fn what_is_no_state_is_refused_by_the_page_and_the_json() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = OperatorOptions::new(env!("CARGO_BIN_EXE_cert-renew"));
    let operator = Operator::start(bench, options).await?;
    for path in ["/", "/api/certificates"] {
        let url = format!("http://{}{path}?state=zzz", operator.metrics_address());
        let answer = reqwest::Client::builder()
            .no_proxy()
            .build()?
            .get(url)
            .send()
            .await?;
        assert_eq!(answer.status(), 400);
        let text = answer.text().await?;
        ensure!(text.contains("expected one of trouble, expired"), "{text}");
    }
    let aged = Age {
        since: 41,
        left: 49,
    };
    let space = Space::new(bench.client()?, "one", operator.namespace()).await?;
    let fresh = pair(&["one.example"], aged)?;
    space
        .tls_secret("one", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    space
        .tls_secret("two", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    eventually(SOON, "one is asked for", async || {
        let path = format!("/api/certificates?namespace={}&name=two", space.name);
        let report: Value = serde_json::from_str(&operator.ask(&path).await?)?;
        ensure!(
            report["matching"] == 1 && report["certificates"][0]["name"] == "two",
            "{report:#}"
        );
        Ok(())
    })
    .await
}

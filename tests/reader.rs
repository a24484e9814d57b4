//! The command as a reader meets it, with few rights and on a narrow terminal, and as a user who asks for something.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Api;
use kube::api::PostParams;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use test_bench::objects::{Age, FRESH, Pair, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, Result, ensure, eventually};

use crate::acme_operator::issued;
use crate::command::{cert_renew, said};
use crate::renewal::{SOON, annotation, data, options, rolled_out};

/// What a CA may well say; longer than any terminal.
const ERROR: &str = "the CA refuses shop.example: no A or AAAA record was found, and what it says about that goes on \
                     and on, as the problem documents of CAs do, until nobody reads to its end";

/// What the command prints on a terminal of this number of columns, line by line and without colours.
fn on_terminal(columns: u16, arguments: &[&str], kubeconfig: &Path) -> Result<Vec<String>> {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&terminal)?;
    unlockpt(&terminal)?;
    let name = ptsname(&terminal, Vec::new())?;
    let name = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
    let inner = OpenOptions::new().read(true).write(true).open(name)?;
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&inner, size)?;
    let mut child = Command::new(env!("CARGO_BIN_EXE_cert-renew"))
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .stdout(Stdio::from(inner))
        .stderr(Stdio::null())
        .spawn()?;
    let mut shown = Vec::new();
    let mut outer = File::from(terminal);
    let mut part = [0; 4_096];
    // The end of a terminal that nobody has open any more is an error.
    while let Ok(read @ 1..) = outer.read(&mut part) {
        shown.extend_from_slice(&part[..read]);
    }
    ensure!(child.wait()?.success(), "{arguments:?} failed");
    let text = String::from_utf8(shown)?;
    let mut plain = String::new();
    for (number, part) in text.split("\u{1b}[").enumerate() {
        let part = match part.split_once('m') {
            Some((_, rest)) if number > 0 => rest,
            _ => part,
        };
        plain.push_str(part);
    }
    Ok(plain.lines().map(|line| line.trim_end().into()).collect())
}

#[tokio::test]
async fn a_table_fits_the_terminal_and_a_pipe_gets_all_of_it() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "term", "nobody").await?;
    let fresh = pair(&["www.shop.example", "shop.example"], FRESH)?;
    let failing = [
        ("issuer", "pebble"),
        ("state.cert-renew.io/last-error", ERROR),
    ];
    space.tls_secret("shop", Some(&fresh), &failing).await?;
    let arguments = ["status", "-n", &space.name];
    let lines = on_terminal(100, &arguments, bench.kubeconfig())?;
    ensure!(
        lines.len() == 2 && lines.iter().all(|line| line.chars().count() <= 100),
        "{lines:#?}"
    );
    ensure!(
        lines[1].contains("shop ") && lines[1].contains("the CA ") && lines[1].ends_with('…'),
        "{lines:#?}"
    );
    let whole = |lines: &[String]| lines.iter().any(|line| line.contains(ERROR));
    let wide = [arguments.as_slice(), &["-o", "wide"]].concat();
    let wide = on_terminal(100, &wide, bench.kubeconfig())?;
    ensure!(whole(&wide), "wide is never cut: {wide:#?}");
    let piped = said(&cert_renew(&arguments, Some(bench.kubeconfig()))?);
    ensure!(
        whole(std::slice::from_ref(&piped)),
        "a pipe gets all of it: {piped}"
    );
    Ok(())
}

/// Lets `reader` do what docs/command.md says that a reader needs, in one namespace.
async fn reader(space: &Space) -> Result<()> {
    let name = json!({"name": "reader"});
    let role = json!({"metadata": name, "rules": [
        {"apiGroups": [""], "resources": ["secrets", "replicationcontrollers"], "verbs": ["list"]},
        {"apiGroups": ["apps"], "resources": ["deployments", "statefulsets", "daemonsets"], "verbs": ["list"]},
    ]});
    let binding = json!({
        "metadata": name,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "reader"}],
    });
    let (client, post) = (&space.client, PostParams::default());
    let roles: Api<Role> = Api::namespaced(client.clone(), &space.name);
    roles.create(&post, &serde_json::from_value(role)?).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), &space.name);
    let binding = serde_json::from_value(binding)?;
    bindings.create(&post, &binding).await?;
    Ok(())
}

#[tokio::test]
async fn the_account_for_a_caa_record_is_shown_to_whoever_may_list_the_secrets() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "account", operator.namespace()).await?;
    issued(&space, "shop", "shop.account.example").await?;
    reader(&space).await?;
    let show = ["account", "show", "pebble", "-n", operator.namespace()];
    let shown = said(&cert_renew(&show, Some(bench.kubeconfig()))?);
    let account = shown
        .lines()
        .find_map(|line| line.strip_prefix("account: "));
    let account = account.filter(|it| it.starts_with("https://"));
    let account = account.with_context(|| shown.clone())?;
    let ask = |output: &str| {
        let way = ["-n", &space.name, "--as", "reader", "-o", output];
        cert_renew(&[&["status"][..], &way].concat(), Some(bench.kubeconfig()))
    };
    let rows: Value = serde_json::from_slice(&ask("json")?.stdout)?;
    let row = &rows["certificates"][0];
    ensure!(row["account"] == account, "{rows}, not {account}");
    let wide = said(&ask("wide")?);
    ensure!(wide.contains(account), "{wide}");
    let own = [&show[..], &["--as", "reader"]].concat();
    let own = cert_renew(&own, Some(bench.kubeconfig()))?;
    ensure!(!own.status.success(), "the reader reads the key too");
    Ok(())
}

#[tokio::test]
async fn the_documented_rights_of_a_reader_are_enough_and_give_no_more() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "reader", "reading").await?;
    let fresh = pair(&["reader.example"], FRESH)?;
    let external = [("issuer", "external")];
    space.tls_secret("shop", Some(&fresh), &external).await?;
    let halted = ("state.cert-renew.io/rollout-halted", "deployment/web");
    let mine = [("issuer", "x"), halted];
    space.tls_secret("mine", Some(&fresh), &mine).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "shop")
        .await?;
    reader(&space).await?;
    let config = bench.directory().join("reader.yaml");
    std::fs::write(&config, "class: reading\nissuers: {}\n")?;
    let config = config.display().to_string();
    let ask = |command: &[&str]| {
        let way = [
            "-n",
            &space.name,
            "--as",
            "reader",
            "--as-group",
            "system:authenticated",
        ];
        cert_renew(&[command, &way].concat(), Some(bench.kubeconfig()))
    };
    for (command, expected) in [
        (vec!["status"], "shop"),
        (vec!["plan", "--config", &config], "deployment/web"),
    ] {
        eventually(SOON, "a reader may read", async || {
            let output = ask(&command)?;
            let text = said(&output);
            ensure!(output.status.success() && text.contains(expected), "{text}");
            Ok(())
        })
        .await?;
    }
    for command in [
        vec!["renew", "mine"],
        vec!["resume", "mine"],
        vec!["create", "more", "--issuer", "x", "--names", "a.example"],
        vec!["create", "more", "--issuer", "x", "--from", "ingress/web"],
        vec!["revoke", "mine", "--yes", "--issuer", "x"],
    ] {
        let output = ask(&command)?;
        let text = said(&output);
        ensure!(output.status.code() == Some(1), "{command:?}: {text}");
        ensure!(text.contains("forbidden"), "{command:?}: {text}");
    }
    let everywhere = ["status", "-A", "--as", "reader"];
    let everywhere = cert_renew(&everywhere, Some(bench.kubeconfig()))?;
    ensure!(everywhere.status.code() == Some(1), "{}", said(&everywhere));
    Ok(())
}

#[tokio::test]
async fn a_secret_is_made_for_the_hosts_of_an_ingress() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "hosts", "nobody").await?;
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    let paths = json!([{"path": "/", "pathType": "Prefix", "backend": backend}]);
    let ingress = json!({"metadata": {"name": "web"}, "spec": {
        "tls": [{"hosts": ["b.example", "a.example"], "secretName": "shop"}],
        "rules": [{"host": "a.example", "http": {"paths": paths}}, {"host": "c.example"}],
    }});
    let ingresses: Api<Ingress> = Api::namespaced(space.client.clone(), &space.name);
    let ingress = serde_json::from_value(ingress)?;
    ingresses.create(&PostParams::default(), &ingress).await?;
    let create = |more: &[&str]| {
        // In a namespace without an operator no config says which issuers there are.
        let common = [
            "create",
            "shop",
            "--issuer",
            "pebble",
            "-n",
            &space.name,
            "--operator-namespace",
            &space.name,
        ];
        cert_renew(&[&common, more].concat(), Some(bench.kubeconfig()))
    };
    for (more, code, expected) in [
        (vec![], 2, "--names"),
        (vec!["--from", "ingress/other"], 1, "ingress"),
        (
            vec!["--from", "service/web"],
            1,
            "expected --from ingress/NAME",
        ),
        (
            vec!["--from", "ingress/web"],
            0,
            "a.example,b.example,c.example",
        ),
        (vec!["--from", "ingress/web"], 1, "already exists"),
    ] {
        let output = create(&more)?;
        let text = said(&output);
        ensure!(output.status.code() == Some(code), "{more:?}: {text}");
        ensure!(
            text.to_lowercase().contains(&expected.to_lowercase()),
            "{more:?}: {text}"
        );
    }
    let made = space.secrets().get("shop").await?;
    ensure!(annotation(&made, "cert-renew.io/names") == Some("a.example,b.example,c.example"));
    ensure!(annotation(&made, "cert-renew.io/issuer") == Some("pebble"));
    ensure!(
        data(&made, "tls.crt").is_empty() && made.type_.as_deref() == Some("kubernetes.io/tls")
    );
    Ok(())
}

/// What is known of the workloads is told in every output.
#[tokio::test]
async fn status_tells_which_workloads_use_a_secret() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "users", "nobody").await?;
    let fresh = pair(&["users.example"], FRESH)?;
    let external = [("issuer", "external")];
    space.tls_secret("shop", Some(&fresh), &external).await?;
    let used_by = "2026-01-01T00:00:00Z deployment/api=failed deployment/web web:443=2/3";
    let note = json!({"metadata": {"annotations": {"state.cert-renew.io/used-by": used_by}}});
    space.merge("shop", note).await?;
    let ask = |output: &str| {
        let arguments = ["status", "-n", &space.name, "-o", output];
        cert_renew(&arguments, Some(bench.kubeconfig()))
    };
    let told = || -> Result<Value> {
        let mut rows: Value = serde_json::from_slice(&ask("json")?.stdout)?;
        Ok(rows["certificates"][0]["usedBy"].take())
    };
    let proven = told()?["proven"].take();
    ensure!(proven.is_null(), "of another certificate: {proven}");
    let leaf = cert_renew_core::certificate::leaf(fresh.certificate.as_bytes());
    let leaf = leaf.context("a leaf")?;
    let rolled = format!("{} {}", leaf.fingerprint, leaf.not_after);
    let note = json!({"metadata": {"annotations": {"state.cert-renew.io/rolled-out": rolled}}});
    space.merge("shop", note).await?;
    let told = told()?;
    ensure!(
        told == json!({
            "asOf": "2026-01-01T00:00:00Z",
            "workloads": [{"workload": "deployment/api", "state": "failed"},
                {"workload": "deployment/web", "state": "has"}],
            "more": 0,
            "proven": {"service": "web:443", "served": 2, "asked": 3},
        }),
        "{told:#}"
    );
    let wide = String::from_utf8(ask("wide")?.stdout)?;
    let words = "deployment/api (failed), deployment/web; 2 of 3 pods behind web:443 serve it";
    ensure!(wide.contains(words), "{wide}");
    ensure!(wide.lines().count() == 2, "{wide}");
    Ok(())
}

#[tokio::test]
async fn all_that_a_selector_matches_are_renewed_and_no_others() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "selected", operator.namespace()).await?;
    // Old enough that the budget allows another, and not yet due.
    let age = Age {
        since: 41,
        left: 49,
    };
    let mut old = Vec::new();
    for (name, team) in [("a", "shop"), ("b", "shop"), ("c", "blog")] {
        let host = format!("{name}.selected.example");
        let aged = pair(&[&host], age)?;
        let ours = [("issuer", "pebble")];
        space.tls_secret(name, Some(&aged), &ours).await?;
        let label = json!({"metadata": {"labels": {"team": team}}});
        space.merge(name, label).await?;
        rolled_out(&space, name).await?;
        old.push(aged.certificate);
    }
    let arguments = [
        "renew",
        "-l",
        "team=shop",
        "-n",
        &space.name,
        "--wait",
        "--timeout",
        "60",
        "--operator-namespace",
        operator.namespace(),
    ];
    let arguments = arguments.map(ToOwned::to_owned);
    let kubeconfig = bench.kubeconfig().to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        cert_renew(&arguments, Some(&kubeconfig))
    });
    let asked = asked.await??;
    let text = said(&asked);
    ensure!(asked.status.success(), "{text}");
    for (name, had) in ["a", "b", "c"].into_iter().zip(&old) {
        let now = data(&space.secrets().get(name).await?, "tls.crt");
        ensure!((now != *had) == (name != "c"), "{name}: {text}");
    }
    let none = ["renew", "-l", "team=nobody", "-n", &space.name];
    let none = cert_renew(&none, Some(bench.kubeconfig()))?;
    ensure!(none.status.code() == Some(1), "{}", said(&none));
    Ok(())
}

#[tokio::test]
async fn resume_lets_a_halted_rollout_go_on() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let space = Space::new(bench.client()?, "resumed", operator.namespace()).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    space.available("Deployment", "web").await?;
    // As a rollout leaves it that was halted.
    let (old, new) = (
        pair(&["resumed.example"], FRESH)?,
        pair(&["resumed.example"], FRESH)?,
    );
    let of = |pair: &Pair| {
        let leaf = cert_renew_core::certificate::leaf(pair.certificate.as_bytes());
        leaf.context("a leaf")
    };
    let (had, has) = (of(&old)?, of(&new)?);
    let rolled = format!("{} {}", had.fingerprint, had.not_after);
    let halted = format!("deployment/web {}", has.fingerprint);
    let annotations = [
        ("issuer", "external"),
        ("state.cert-renew.io/rolled-out", &*rolled),
        ("state.cert-renew.io/rollout-halted", &*halted),
    ];
    space.tls_secret("tls", Some(&new), &annotations).await?;
    operator.run().await?;
    let series = format!(
        "cert_renew_rollout_halted{{namespace=\"{}\",secret=\"tls\"}} 1",
        space.name
    );
    eventually(SOON, "it is known as halted", async || {
        ensure!(operator.metrics().await?.contains(&series), "not yet");
        Ok(())
    })
    .await?;
    let ask = |command: &str, name: &str| {
        let at = ["--operator-namespace", operator.namespace()];
        let arguments = [&[command, name, "-n", &space.name][..], &at].concat();
        cert_renew(&arguments, Some(bench.kubeconfig()))
    };
    let status = said(&cert_renew(
        &["status", "-n", &space.name],
        Some(bench.kubeconfig()),
    )?);
    ensure!(status.contains("halted"), "{status}");
    ensure!(
        space.generation("Deployment", "web").await? == 1,
        "it was rolled"
    );
    let resumed = ask("resume", "tls")?;
    ensure!(
        resumed.status.success() && said(&resumed).contains("goes on"),
        "{}",
        said(&resumed)
    );
    rolled_out(&space, "tls").await?;
    ensure!(
        space.generation("Deployment", "web").await? == 2,
        "it was not rolled"
    );
    let again = said(&ask("resume", "tls")?);
    ensure!(again.contains("not halted"), "{again}");
    let missing = ask("resume", "nothing")?;
    ensure!(missing.status.code() == Some(1), "{}", said(&missing));
    Ok(())
}

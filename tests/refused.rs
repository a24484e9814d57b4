//! What the command refuses, and in which words: errors as kubectl prints them, and requests that would do nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use test_bench::objects::{Age, FRESH, Space, pair};
use test_bench::{Bench, Result, ensure};

use crate::command::said;
use crate::faults::of_cert_manager;
use crate::fresh_look::closed_window;
use crate::renewal::annotation;

/// Half of its lifetime has passed: old enough for another, and not due.
const MIDWAY: Age = Age {
    since: 45,
    left: 45,
};
/// What only Rust prints.
const DUMPS: [&str; 6] = [
    "Status {",
    "ApiError",
    "ServiceError",
    "Some(",
    "Error {",
    "kind:",
];

/// Runs the command in an environment that names no cluster but by this file.
pub(crate) fn run(arguments: &[&str], kubeconfig: Option<&Path>) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cert-renew"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        .env("HOME", "/no/such/home");
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    Ok(command.output()?)
}

/// A namespace with the Lease of an operator that leads, and with its config.
pub(crate) async fn operator(space: &Space, config: &str) -> Result<()> {
    let now = Timestamp::now();
    let lease = json!({"metadata": {"name": "cert-renew"}, "spec": {"holderIdentity": "somebody",
        "leaseDurationSeconds": 15, "renewTime": format!("{now:.6}")}});
    let leases: Api<Lease> = Api::namespaced(space.client.clone(), &space.name);
    let lease = serde_json::from_value(lease)?;
    leases.create(&PostParams::default(), &lease).await?;
    let map = json!({"metadata": {"name": "cert-renew-config"}, "data": {"config.yaml": config}});
    let maps: Api<ConfigMap> = Api::namespaced(space.client.clone(), &space.name);
    let map = serde_json::from_value(map)?;
    maps.create(&PostParams::default(), &map).await?;
    Ok(())
}

pub(crate) fn config(class: &str, more: &str) -> String {
    format!(
        "class: {class}\nissuers: {{le: {{directory: \"https://ca.example/\", allow: [{{namespaces: [\"*\"], names: \
         [\"**.example\"]}}]}}}}\nsolvers: [{{http01: {{route: shared}}}}]\n{more}"
    )
}

/// Every command that asks the API server for something.
const ASKING: [&[&str]; 16] = [
    &["status"],
    &["describe", "nosuch"],
    &["plan"],
    &["plan", "--config", "deploy/config.yaml"],
    &["names"],
    &["version"],
    &[
        "create",
        "made",
        "--issuer",
        "x",
        "--from",
        "ingress/nosuch",
    ],
    &["adopt", "--from", "cert-manager", "--issuer", "x"],
    &["renew", "nosuch"],
    &["renew", "--all"],
    &["revoke", "nosuch", "--yes"],
    &["resume", "nosuch"],
    &["account", "show", "nosuch"],
    &["account", "rollover", "nosuch"],
    &["create", "made", "--issuer", "x", "--names", "a.example"],
    &["renew", "-l", "a=b"],
];

fn no_dump(arguments: &[&str], text: &str) -> Result<()> {
    for dump in DUMPS {
        ensure!(!text.contains(dump), "{arguments:?}: {dump}: {text}");
    }
    Ok(())
}

/// No command prints an error as Rust does, and each says what kubectl would say.
#[tokio::test]
async fn errors_are_said_in_kubectls_words() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "words", "words").await?;
    operator(&space, &config("words", "")).await?;
    let stopped = bench.directory().join("stopped.kubeconfig");
    let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}]});
    std::fs::write(&stopped, text.to_string())?;
    let bench_config = Some(bench.kubeconfig());
    for arguments in ASKING {
        let account = arguments[0] == "account";
        let namespace = ["-n", &space.name];
        let at = ["--operator-namespace", &space.name];
        let mut here = arguments.to_vec();
        if arguments[0] != "version" {
            here.extend(namespace);
        }
        if !account && arguments[0] != "status" {
            here.extend(at);
        }
        let stranger = [&here[..], &["--as", "a-stranger"]].concat();
        let expected = |way: &str| match way {
            "stopped" => "127.0.0.1:1",
            "none" => "no kubeconfig",
            _ => "Error from server (Forbidden): ",
        };
        for (way, arguments, kubeconfig) in [
            ("stopped", &here, Some(stopped.as_path())),
            ("none", &here, None),
            ("stranger", &stranger, bench_config),
        ] {
            let output = run(arguments, kubeconfig)?;
            let text = said(&output);
            no_dump(arguments, &text)?;
            ensure!(
                output.status.code() == Some(1),
                "{way} {arguments:?}: {text}"
            );
            ensure!(text.contains(expected(way)), "{way} {arguments:?}: {text}");
        }
    }
    // A missing object, as kubectl names it.
    for arguments in [
        ["renew", "nosuch"],
        ["resume", "nosuch"],
        ["revoke", "nosuch"],
    ] {
        let place = ["-n", &space.name, "--operator-namespace", &space.name];
        let output = run(&[&arguments[..], &place].concat(), bench_config)?;
        let text = said(&output);
        ensure!(
            text.contains("Error from server (NotFound): secrets \"nosuch\" not found"),
            "{arguments:?}: {text}"
        );
        ensure!(output.status.code() == Some(1), "{text}");
    }
    let refused = said(&run(&["status"], Some(&stopped))?);
    ensure!(
        refused.contains("The connection to the server 127.0.0.1:1 was refused - did you specify the right host or port?"),
        "{refused}"
    );
    Ok(())
}

/// `renew` writes nothing where nothing would happen, and says why and until when.
#[tokio::test]
async fn renew_refuses_what_would_not_happen() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "asking", "asking").await?;
    operator(&space, &config("asking", "")).await?;
    let midway = pair(&["a.example"], MIDWAY)?;
    let fresh = pair(&["a.example"], FRESH)?;
    let ours = ("issuer", "le");
    for (name, pair, annotations) in [
        ("plain", &midway, vec![]),
        ("external", &midway, vec![("issuer", "external")]),
        ("paused", &midway, vec![ours, ("paused", "true")]),
        ("classed", &midway, vec![ours, ("class", "other")]),
        ("typo", &midway, vec![ours, ("key-type", "dsa")]),
        ("unknown", &midway, vec![("issuer", "nosuch")]),
        ("disallowed", &midway, vec![ours, ("names", "a.test")]),
        ("young", &fresh, vec![ours]),
        ("midway", &midway, vec![ours]),
        ("immutable", &midway, vec![ours]),
    ] {
        space.tls_secret(name, Some(pair), &annotations).await?;
    }
    let immutable = kube::api::Patch::Merge(json!({"immutable": true}));
    space
        .secrets()
        .patch("immutable", &Default::default(), &immutable)
        .await?;
    of_cert_manager(&space, "owned", &midway).await?;
    let data = space.secrets().get("midway").await?.data;
    space
        .secret("opaque", "Opaque", data.unwrap_or_default(), &[ours])
        .await?;
    let place = ["-n", &space.name, "--operator-namespace", &space.name];
    let renew = |more: &[&str]| -> Result<(i32, String)> {
        let output = run(
            &[&["renew"], more, &place].concat(),
            Some(bench.kubeconfig()),
        )?;
        Ok((output.status.code().unwrap_or_default(), said(&output)))
    };
    for (name, expected) in [
        ("plain", "no annotation cert-renew.io/issuer"),
        ("external", "somebody else renews it"),
        ("paused", "it is paused, by cert-renew.io/paused"),
        ("classed", "another installation"),
        ("typo", "key-type"),
        ("unknown", "an issuer of the config (le)"),
        ("disallowed", "issuers.le.allow"),
        ("young", "--force asks now"),
        ("immutable", "the Secret is immutable"),
        ("owned", "cert-manager.io/certificate-name"),
        ("opaque", "needs the label cert-renew.io/managed"),
    ] {
        let (code, text) = renew(&[name])?;
        ensure!(
            code == 1 && text.contains(expected),
            "{name}: {code} {text}"
        );
        let secret = space.secrets().get(name).await?;
        ensure!(
            annotation(&secret, "cert-renew.io/renew-now").is_none(),
            "{name}: {text}"
        );
    }
    // One that can be renewed is, beside others that cannot; and a certificate that is young by force.
    let (code, text) = renew(&["midway", "paused"])?;
    ensure!(
        code == 1 && text.contains("/midway: asked for"),
        "{code} {text}"
    );
    let (code, text) = renew(&["young", "--force"])?;
    ensure!(
        code == 0 && text.contains("/young: asked for"),
        "{code} {text}"
    );
    // A pair that no server can load is a good cause.
    let mismatched = test_bench::objects::Pair {
        key: midway.key.clone(),
        ..fresh.clone()
    };
    space
        .tls_secret("broken", Some(&mismatched), &[ours])
        .await?;
    let (code, text) = renew(&["broken"])?;
    ensure!(
        code == 0 && text.contains("/broken: asked for"),
        "{code} {text}"
    );
    let (code, text) = renew(&["--all"])?;
    ensure!(
        code == 1 && text.contains("/paused: not asked for: it is paused"),
        "{code} {text}"
    );
    ensure!(!text.contains("/plain"), "{text}");
    for wrong in [
        &["a/b/c"][..],
        &["shop/"],
        &["elsewhere/midway"],
        &["midway", "--timeout", "soon"],
        &["midway", "-A"],
    ] {
        let (code, text) = renew(wrong)?;
        ensure!(
            code != 0 && (text.contains("expected") || text.contains("namespace")),
            "{wrong:?}: {text}"
        );
    }
    // The plan has no renewal of what the operator does not see.
    let plan = [&["plan"][..], &place].concat();
    let planned = said(&run(&plan, Some(bench.kubeconfig()))?);
    ensure!(
        planned.contains("  midway  ") && !planned.contains("  opaque  "),
        "{planned}"
    );
    // Until when it is held, while it is waited for.
    let window = ("change-window", &*closed_window());
    space
        .tls_secret("shut", Some(&midway), &[ours, window])
        .await?;
    for (name, expected) in [
        ("midway", "/midway: not done within 1s: not renewed yet"),
        (
            "shut",
            "/shut: not done within 1s: not renewed yet: its change window opens at 20",
        ),
    ] {
        let (code, text) = renew(&[name, "--wait", "--timeout", "1s"])?;
        ensure!(
            code == 1 && text.contains(expected),
            "{name}: {code} {text}"
        );
    }
    Ok(())
}

/// `renew` and `create` go by what is watched, and by the labels of the namespace.
#[tokio::test]
async fn what_is_not_watched_or_not_granted_by_labels_is_refused() -> Result<()> {
    let bench = Bench::shared().await?;
    let midway = pair(&["a.example"], MIDWAY)?;
    let by_labels = "class: asking\nissuers: {le: {directory: \"https://ca.example/\", allow: [{namespaceSelector: \
                     {matchLabels: {team: web}}, names: [\"**.example\"]}]}}\nsolvers: [{http01: {route: shared}}]\n";
    let elsewhere = config("asking", "watch: {namespaces: [elsewhere]}\n");
    for (prefix, config, renewed, created) in [
        (
            "unwatched",
            &*elsewhere,
            "does not watch namespace",
            "does not watch namespace",
        ),
        (
            "unlabelled",
            by_labels,
            "issuers.le.allow",
            "does not allow namespace",
        ),
    ] {
        let space = Space::new(bench.client()?, prefix, "asking").await?;
        operator(&space, config).await?;
        space
            .tls_secret("tls", Some(&midway), &[("issuer", "le")])
            .await?;
        let place = ["-n", &space.name, "--operator-namespace", &space.name];
        let create = ["create", "made", "--issuer", "le", "--names", "b.example"];
        if prefix == "unwatched" {
            let names = said(&run(
                &[&["names"][..], &place].concat(),
                Some(bench.kubeconfig()),
            )?);
            ensure!(
                names.contains("may ask for no name: it is not among watch.namespaces"),
                "{names}"
            );
            let plan = [&["plan", "tls", "--preflight"], &place[..]].concat();
            let output = run(&plan, Some(bench.kubeconfig()))?;
            let text = said(&output);
            ensure!(
                output.status.code() == Some(1)
                    && text.contains("or is in a namespace that is not watched")
                    && text.contains("there is no renewal"),
                "{text}"
            );
        }
        for (command, expected) in [(&["renew", "tls"][..], renewed), (&create, created)] {
            let output = run(&[command, &place].concat(), Some(bench.kubeconfig()))?;
            let text = said(&output);
            ensure!(
                output.status.code() == Some(1) && text.contains(expected),
                "{prefix}: {command:?}: {text}"
            );
        }
        let secret = space.secrets().get("tls").await?;
        ensure!(annotation(&secret, "cert-renew.io/renew-now").is_none());
    }
    Ok(())
}

/// Where no replica leads, or all is paused, `renew` says so.
#[tokio::test]
async fn renew_says_when_nobody_would_renew() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "nobody-leads", "still").await?;
    let midway = pair(&["a.example"], MIDWAY)?;
    space
        .tls_secret("tls", Some(&midway), &[("issuer", "le")])
        .await?;
    let renew = || -> Result<(i32, String)> {
        let place = ["-n", &space.name, "--operator-namespace", &space.name];
        let output = run(
            &[&["renew", "tls"], &place[..]].concat(),
            Some(bench.kubeconfig()),
        )?;
        Ok((output.status.code().unwrap_or_default(), said(&output)))
    };
    let (code, text) = renew()?;
    ensure!(
        code == 1 && text.contains("--operator-namespace"),
        "{code} {text}"
    );
    operator(&space, &config("still", "paused: true\n")).await?;
    let (code, text) = renew()?;
    ensure!(
        code == 1 && text.contains("the config has paused: true"),
        "{code} {text}"
    );
    let leases: Api<Lease> = Api::namespaced(space.client.clone(), &space.name);
    let silent = json!({"spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}});
    let patch = kube::api::Patch::Merge(silent);
    leases
        .patch("cert-renew", &kube::api::PatchParams::default(), &patch)
        .await?;
    let (code, text) = renew()?;
    ensure!(
        code == 1 && text.contains("no cert-renew leads"),
        "{code} {text}"
    );
    let place = ["-n", &space.name, "--operator-namespace", &space.name];
    let plan = [&["plan"][..], &place].concat();
    let planned = said(&run(&plan, Some(bench.kubeconfig()))?);
    ensure!(planned.contains("no cert-renew leads"), "{planned}");
    let secret = space.secrets().get("tls").await?;
    ensure!(annotation(&secret, "cert-renew.io/renew-now").is_none());
    Ok(())
}

/// What the config of the cluster does not have is refused before it is written, and a manifest can be had instead.
#[tokio::test]
async fn what_the_config_does_not_have_is_refused() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "refused-names", "names").await?;
    operator(&space, &config("names", "")).await?;
    let run = |arguments: &[&str]| -> Result<(i32, String)> {
        let place = ["-n", &space.name, "--operator-namespace", &space.name];
        let output = run(&[arguments, &place].concat(), Some(bench.kubeconfig()))?;
        Ok((output.status.code().unwrap_or_default(), said(&output)))
    };
    let unknown = "has no issuer \"nosuch\": it has le";
    for (arguments, expected) in [
        (
            &["create", "a", "--issuer", "nosuch", "--names", "a.example"][..],
            unknown,
        ),
        (
            &["adopt", "--from=cert-manager", "--issuer=prod=nosuch"],
            unknown,
        ),
        (
            &["create", "a", "--issuer", "le", "--names", "a.test"],
            "does not allow namespace",
        ),
        (&["account", "show", "nosuch"], unknown),
        (&["account", "show", "le"], "issuer le has no account yet"),
    ] {
        let (code, text) = run(arguments)?;
        ensure!(
            code == 1 && text.contains(expected),
            "{arguments:?}: {text}"
        );
    }
    let (code, text) = run(&["names"])?;
    ensure!(
        code == 0 && text.contains("le      -        **.example"),
        "{text}"
    );
    let (code, text) = run(&["adopt", "--from=cert-manager", "--issuer=le"])?;
    ensure!(
        code == 0 && text.contains("Nothing to adopt in namespace"),
        "{text}"
    );

    let create = [
        "create",
        "a",
        "--issuer",
        "le",
        "--names",
        "a.example",
        "--class",
        "names",
    ];
    for dry_run in ["--dry-run=client", "--dry-run=server"] {
        let (code, text) = run(&[&create[..], &[dry_run, "-o", "yaml"]].concat())?;
        ensure!(code == 0, "{text}");
        let made: Value = serde_saphyr::from_str(&text)?;
        // The form that can be applied again and again: no data to write.
        ensure!(
            made["kind"] == "Secret" && made["type"] == "Opaque",
            "{text}"
        );
        ensure!(
            made["metadata"]["labels"]["cert-renew.io/managed"] == "true",
            "{text}"
        );
        ensure!(
            made["metadata"]["annotations"]["cert-renew.io/class"] == "names",
            "{text}"
        );
        ensure!(made.get("data").is_none(), "{text}");
        let as_tls = [&create[..], &[dry_run, "-o", "yaml", "--type", "tls"]].concat();
        let (code, text) = run(&as_tls)?;
        ensure!(code == 0 && text.contains("kubernetes.io/tls"), "{text}");
        ensure!(text.contains("takes the certificate away"), "{text}");
        ensure!(
            space.secrets().get_opt("a").await?.is_none(),
            "{dry_run} made it"
        );
    }
    // On paper no cluster is needed.
    let on_paper = crate::refused::run(&[&create[..], &["--dry-run=client"]].concat(), None)?;
    ensure!(on_paper.status.success(), "{}", said(&on_paper));
    let (code, text) = run(&create)?;
    ensure!(
        code == 0 && text.contains("/a: made, for a.example"),
        "{text}"
    );
    Ok(())
}

/// kubectl completes the plugin by what `completions kubectl` prints.
#[tokio::test]
async fn kubectl_completes_the_plugin() -> Result<()> {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let bench = Bench::shared().await?;
    let directory = bench.directory().join("completing");
    std::fs::create_dir_all(&directory)?;
    symlink(
        env!("CARGO_BIN_EXE_cert-renew"),
        directory.join("kubectl-cert_renew"),
    )?;
    let program: PathBuf = directory.join("kubectl_complete-cert_renew");
    std::fs::write(&program, run(&["completions", "kubectl"], None)?.stdout)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([directory].into_iter().chain(std::env::split_paths(&path)))?;
    let output = Command::new(bench.program("kubectl"))
        .args(["__complete", "cert-renew", "rene"])
        .env("PATH", path)
        .output()?;
    let text = said(&output);
    ensure!(text.lines().any(|line| line == "renew"), "{text}");
    Ok(())
}

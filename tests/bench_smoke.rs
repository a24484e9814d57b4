//! The bench itself: what it starts is real, its instances are kept apart, and nothing of it is left behind.

use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use test_bench::certificates::{DAY, Key, Template, TestCa, fingerprint};
use test_bench::objects::{Kind, Use, data, secret, tls_secret};
use test_bench::{
    Bench, Context as _, Operator, Options, PebbleOptions, Result, bail, ensure, eventually,
};
use tokio::net::TcpListener;

/// Set in the child that [`nothing_is_left_of_a_killed_process`] kills.
const CHILD: &str = "CERT_RENEW_BENCH_CHILD";
const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn it_is_quick_and_small() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut kibibytes = 0;
    for (id, _) in programs_of(bench.directory())? {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        kibibytes += resident
            .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0);
    }
    let (seconds, mebibytes) = (bench.started_in().as_secs_f64(), kibibytes / 1024_u64);
    // Not `eprintln`, which the harness keeps to itself unless the test fails.
    writeln!(
        io::stderr(),
        "bench: started in {seconds:.1} s, resident {mebibytes} MiB"
    )?;
    // Some ten times what it takes on two idle cores.
    ensure!(seconds < 45.0, "started in {seconds} s");
    ensure!((100..4096).contains(&mebibytes), "{mebibytes} MiB");
    Ok(())
}

#[tokio::test]
async fn the_server_says_which_kubernetes_it_is() -> Result<()> {
    let version = Bench::shared().await?.client()?.apiserver_version().await?;
    // With KUBEBUILDER_ASSETS it may be another one.
    ensure!(version.git_version.starts_with("v1."), "{version:?}");
    Ok(())
}

#[tokio::test]
async fn every_kind_of_workload_becomes_available_and_rolls() -> Result<()> {
    let bench = Bench::shared().await?;
    let namespace = bench.namespace("workloads").await?;
    let uses = [
        Use::Volume("tls"),
        Use::Projected("tls"),
        Use::Csi("tls"),
        Use::Env("tls"),
        Use::EnvFrom("tls"),
        Use::InitEnv("tls"),
        Use::InitEnvFrom("tls"),
    ];
    for kind in Kind::ALL {
        let name = kind.to_string().to_lowercase();
        namespace
            .run(kind, &name, 3, &uses)
            .await
            .with_context(|| format!("{kind}"))?;
        let before = namespace.pods(&name).await?;
        assert_eq!(before.len(), 3, "a {kind} of three replicas, or one a node");

        let mut manifest = kind.manifest(&name, 3, &uses);
        manifest["spec"]["template"]["metadata"]["annotations"] = json!({"rolled": "once"});
        namespace.apply(&manifest).await?;
        namespace.available(kind, &name).await?;
        assert_eq!(
            namespace.template_annotations(kind, &name).await?["rolled"],
            "once"
        );
        // A ReplicationController replaces no pod by itself: that is what the operator is for.
        let rolls = kind != Kind::ReplicationController;
        let after = namespace.pods(&name).await?;
        let replaced = before
            .iter()
            .all(|old| after.iter().all(|new| new.metadata.uid != old.metadata.uid));
        assert_eq!(replaced, rolls, "{kind}");
    }
    Ok(())
}

#[tokio::test]
async fn secrets_hold_what_the_template_says() -> Result<()> {
    let bench = Bench::shared().await?;
    let namespace = bench.namespace("secrets").await?;
    let ca = TestCa::new("somebody")?;
    let template = Template::new(&["shop.test", "127.0.0.1"])
        .between(-91 * DAY, -DAY)
        .serial(&[0x00, 0x8f, 1]);
    for key in [Key::P256, Key::P384, Key::Rsa2048] {
        let pair = template.clone().key(key).signed_by(&ca)?;
        let name = format!("{key:?}").to_lowercase();
        let made = namespace
            .create(&tls_secret(
                &name,
                Some(&pair),
                &[("cert-renew.io/issuer", "external")],
            ))
            .await?;
        assert_eq!(data(&made, "tls.crt"), pair.certificate);
        assert_eq!(
            data(&made, "tls.crt").matches("BEGIN CERTIFICATE").count(),
            2,
            "leaf and intermediate"
        );
        assert_eq!(fingerprint_of_first(&pair.certificate)?, pair.fingerprint);
    }
    let mismatched = template
        .self_signed()?
        .with_key_of(&template.self_signed()?);
    namespace
        .create(&tls_secret("mismatched", Some(&mismatched), &[]))
        .await?;
    namespace.create(&tls_secret("empty", None, &[])).await?;
    namespace
        .create(&secret("opaque", "Opaque", &[("tls.pem", "nothing")], &[]))
        .await?;
    assert_eq!(
        namespace
            .api::<Secret>()
            .list(&ListParams::default())
            .await?
            .items
            .len(),
        6
    );
    Ok(())
}

/// By another reader than the one that wrote it.
fn fingerprint_of_first(pem: &str) -> Result<String> {
    let (_, body) = pem
        .split_once("-----BEGIN CERTIFICATE-----")
        .context("no certificate")?;
    let (body, _) = body
        .split_once("-----END CERTIFICATE-----")
        .context("no end")?;
    let body: String = body.split_whitespace().collect();
    Ok(fingerprint(&STANDARD.decode(body)?))
}

#[tokio::test]
async fn operators_have_the_shipped_rights_and_are_counted_apart() -> Result<()> {
    let bench = Bench::shared().await?;
    let binary = env!("CARGO_BIN_EXE_cert-renew");
    let (one, other) = (
        Operator::install(bench, binary).await?,
        Operator::install(bench, binary).await?,
    );
    assert_ne!(one.class(), other.class());
    let namespace = bench.namespace("rights").await?;
    namespace.create(&tls_secret("tls", None, &[])).await?;

    let config = Kubeconfig::read_from(one.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let foreign: Api<Secret> = Api::namespaced(client.clone(), namespace.name());
    foreign.get("tls").await?;
    let refused = foreign
        .create(&PostParams::default(), &tls_secret("another", None, &[]))
        .await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 403));
    let refused = foreign.delete("tls", &DeleteParams::default()).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 403));
    let own: Api<Secret> = Api::namespaced(client.clone(), one.namespace());
    own.create(&PostParams::default(), &tls_secret("account", None, &[]))
        .await?;
    let elsewhere: Api<ConfigMap> = Api::namespaced(client.clone(), other.namespace());
    assert!(elsewhere.get("ledger").await.is_err());

    let evict =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "none"}})
            .to_string();
    let path = format!("/api/v1/namespaces/{}/pods/none/eviction", namespace.name());
    let evict = async || {
        let request = http::Request::post(&path).header("content-type", "application/json");
        match client
            .request_text(request.body(evict.clone().into_bytes())?)
            .await
        {
            Err(kube::Error::Api(status)) => Ok(status.code),
            other => bail!("{other:?}"),
        }
    };
    assert_eq!(evict().await?, 403);
    one.apply_shipped("addons/eviction.yaml").await?;
    assert_eq!(evict().await?, 404, "allowed, but there is no such pod");

    let expected = [
        ("create pods/eviction", 2),
        ("create secrets", 2),
        ("delete secrets", 1),
        ("get configmaps", 1),
        ("get secrets", 1),
    ];
    let expected = expected
        .map(|(call, count)| (call.to_owned(), count))
        .into();
    assert_eq!(one.requests()?, expected);
    assert!(other.requests()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_edge_asks_every_operator() -> Result<()> {
    let bench = Bench::shared().await?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let path = "/.well-known/acme-challenge/smoke-token";
    let ask = async || {
        let request = http
            .get(format!("http://{}{path}", bench.edge().address()))
            .header("host", "smoke.test:80");
        let response = request.send().await?;
        Ok::<_, test_bench::Error>((response.status(), response.text().await?))
    };
    assert_eq!(ask().await?.0, StatusCode::NOT_FOUND);
    let serve = async |router: Router| {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok::<_, test_bench::Error>(address)
    };
    let ignorant = serve(Router::new()).await?;
    let knowing = serve(Router::new().route(path, get(async || "smoke-token.thumbprint"))).await?;
    bench.edge().add(ignorant);
    bench.edge().add(knowing);
    assert_eq!(
        ask().await?,
        (StatusCode::OK, "smoke-token.thumbprint".to_owned())
    );
    bench.edge().remove(ignorant);
    bench.edge().remove(knowing);
    let hits: Vec<_> = bench
        .edge()
        .hits()
        .into_iter()
        .filter(|hit| hit.host == "smoke.test")
        .collect();
    assert_eq!(
        hits.iter()
            .map(|hit| hit.status.as_u16())
            .collect::<Vec<_>>(),
        [404, 200]
    );
    Ok(())
}

#[tokio::test]
async fn a_pebble_that_hangs_or_dies_is_said_as_what_it_is() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = PebbleOptions {
        name: "frozen".to_owned(),
        nonce_reject: 30,
        ..PebbleOptions::default()
    };
    let pebble = bench.start_pebble(&options).await?;
    pebble.health().await?;
    assert_ne!(pebble.root(0).await?, pebble.root(1).await?);
    pebble.process().signal("STOP")?;
    let error = pebble
        .health()
        .await
        .err()
        .context("healthy although it is stopped")?;
    assert!(
        error
            .to_string()
            .starts_with("Pebble hangs: version 2.10.1 deadlocks"),
        "{error}"
    );
    pebble.process().kill();
    let error = pebble
        .health()
        .await
        .err()
        .context("healthy although it is dead")?;
    assert!(
        error.to_string().starts_with("frozen ended with signal: 9"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn an_operator_that_ends_at_once_is_told_with_its_log() -> Result<()> {
    let bench = Bench::shared().await?;
    let script = bench.directory().join("ends-at-once");
    fs::write(&script, "#!/bin/sh\necho 'no config, no work'; exit 3\n")?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let mut operator = Operator::install(bench, &script.display().to_string()).await?;
    let error = operator
        .run(&operator.config(bench.pebble()))
        .await
        .err()
        .context("ready although it has ended")?;
    let error = error.to_string();
    assert!(
        error.contains("ended with exit status: 3") && error.contains("no config, no work"),
        "{error}"
    );
    Ok(())
}

/// The whole of a second bench beside the shared one, killed in the hardest way.
#[tokio::test]
async fn nothing_is_left_of_a_killed_process() -> Result<()> {
    let mut child = Command::new(env::current_exe()?)
        .args(["--exact", "bench_smoke::child", "--ignored", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("no output")?);
    let line = output
        .lines()
        .map_while(|line| line.ok())
        .find(|line| line.contains("bench at "));
    let line = line.context("the child has started no bench")?;
    let directory = PathBuf::from(line.rsplit("bench at ").next().unwrap_or_default());
    ensure!(
        directory.join("etcd").is_dir(),
        "no bench at {}",
        directory.display()
    );
    ensure!(
        programs_of(&directory)?.len() > 6,
        "few programs: {:?}",
        programs_of(&directory)?
    );
    child.kill()?;
    child.wait()?;
    eventually(DEADLINE, "the killed bench is gone", async || {
        ensure!(
            !directory.exists(),
            "{} is still there",
            directory.display()
        );
        let left = programs_of(&directory)?;
        ensure!(left.is_empty(), "still running: {left:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "the child of `nothing_is_left_of_a_killed_process`"]
async fn child() -> Result<()> {
    if env::var_os(CHILD).is_some() {
        let bench = Bench::start(Options::default()).await?;
        writeln!(io::stdout(), "bench at {}", bench.directory().display())?;
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// Process ids and command lines of the live processes that mention the directory: all programs of a bench do.
fn programs_of(directory: &Path) -> Result<Vec<(String, String)>> {
    let directory = directory.display().to_string();
    let mut programs = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?;
        // A process may end meanwhile; the command line of a dead one that nobody has waited for is empty.
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&directory) {
            programs.push((process.file_name().to_string_lossy().into_owned(), line));
        }
    }
    Ok(programs)
}

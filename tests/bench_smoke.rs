//! The bench itself: what it starts is real, its instances are kept apart, and nothing of it is left behind.

use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use cert_renew_core::certificate::pair::check_pair;
use cert_renew_core::certificate::{self, KeyType};
use cert_renew_core::time::UnixTime;
use http::StatusCode;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use test_bench::certificates::{DAY, Key, Template, TestCa};
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{
    Bench, Context as _, Minor, Operator, OperatorOptions, Options, PebbleOptions, Result, bail,
    ensure, eventually, tally,
};
use tokio::net::TcpListener;

use crate::renewal::{data, leaf, options};

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
    // With KUBEBUILDER_ASSETS it may be any.
    let expected = Minor::chosen()?.map_or_else(|| "1.".to_owned(), |minor| minor.version);
    ensure!(
        version.git_version.starts_with(&format!("v{expected}")),
        "{version:?}"
    );
    Ok(())
}

#[tokio::test]
async fn every_kind_of_workload_becomes_available_and_rolls() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "workloads", "nobody").await?;
    let old = pair(&["workloads.example"], OLD)?;
    space.tls_secret("tls", Some(&old), &[]).await?;
    for (i, reference) in Reference::ALL.into_iter().enumerate() {
        let name = format!("web-{i}");
        space
            .workload("Deployment", &name, reference, "tls")
            .await?;
        space
            .available("Deployment", &name)
            .await
            .with_context(|| format!("{reference:?}"))?;
    }
    for (kind, pods) in [
        ("Deployment", 2),
        ("StatefulSet", 2),
        ("ReplicationController", 2),
        ("DaemonSet", 3),
    ] {
        let name = kind.to_lowercase();
        space
            .workload(kind, &name, Reference::Volume, "tls")
            .await?;
        space.available(kind, &name).await?;
        let before = space.pods(&name).await?;
        assert_eq!(
            before.len(),
            pods,
            "a {kind} of two replicas, or one a node"
        );

        let annotate =
            json!({"spec": {"template": {"metadata": {"annotations": {"rolled": "once"}}}}});
        space
            .workloads(kind)
            .patch(&name, &PatchParams::default(), &Patch::Merge(annotate))
            .await?;
        space.available(kind, &name).await?;
        let after = space.pods(&name).await?;
        let kept = before
            .iter()
            .filter(|old| after.iter().any(|new| new.metadata.uid == old.metadata.uid))
            .count();
        // A ReplicationController replaces no pod by itself: that is what the operator is for.
        assert_eq!(
            kept,
            if kind == "ReplicationController" {
                pods
            } else {
                0
            },
            "{kind}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn secrets_hold_what_the_template_says() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "secrets", "nobody").await?;
    let ca = TestCa::new("somebody")?;
    let template = Template::new(&["shop.example", "127.0.0.1"])
        .between(-91 * DAY, -DAY)
        .serial(&[0x8f, 1]);
    for (key, expected) in [
        (Key::P256, KeyType::EcdsaP256),
        (Key::P384, KeyType::EcdsaP384),
        (Key::Rsa2048, KeyType::Rsa2048),
    ] {
        let pair = template.clone().key(key).signed_by(&ca)?;
        let name = format!("{key:?}").to_lowercase();
        let made = space
            .tls_secret(&name, Some(&pair), &[("issuer", "external")])
            .await?;
        assert_eq!(data(&made, "tls.crt"), pair.certificate);
        assert_eq!(
            certificate::certificates(pair.certificate.as_bytes())?.len(),
            2,
            "leaf and intermediate"
        );
        let leaf = leaf(&made)?;
        assert_eq!(leaf.key_type, Some(expected));
        assert_eq!(leaf.serial.as_ref(), [0, 0x8f, 1], "a positive INTEGER");
        assert_eq!(leaf.lifetime(), Duration::from_secs(90 * 24 * 60 * 60));
        assert_eq!(
            leaf.names
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            ["shop.example", "127.0.0.1"]
        );
        assert!(!leaf.self_signed.get());
        let now = UnixTime::now();
        assert!(!leaf.is_valid_at(now), "it has expired");
        let earlier = UnixTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
        check_pair(pair.certificate.as_bytes(), pair.key.as_bytes(), earlier)?;
        let mismatched = pair.with_key_of(&template.self_signed()?);
        assert!(
            check_pair(
                mismatched.certificate.as_bytes(),
                mismatched.key.as_bytes(),
                earlier
            )
            .is_err()
        );
    }
    assert!(
        certificate::leaf(template.self_signed()?.certificate.as_bytes())?
            .self_signed
            .get()
    );
    Ok(())
}

#[tokio::test]
async fn operators_have_the_shipped_rights_and_are_counted_apart() -> Result<()> {
    let bench = Bench::shared().await?;
    let plain = Operator::install(bench, options()).await?;
    let addons = vec!["rbac/addons/eviction.yaml".to_owned()];
    let evicting = Operator::install(
        bench,
        OperatorOptions {
            addons,
            ..options()
        },
    )
    .await?;
    let space = Space::new(bench.client()?, "rights", "nobody").await?;
    space.tls_secret("tls", None, &[]).await?;

    for (operator, eviction) in [(&plain, 403), (&evicting, 404)] {
        let client = operator.client().await?;
        let foreign: Api<Secret> = Api::namespaced(client.clone(), &space.name);
        let secret = foreign.get("tls").await?;
        let refused = foreign.create(&PostParams::default(), &secret).await;
        assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 403));
        let refused = foreign.delete("tls", &DeleteParams::default()).await;
        assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 403));
        let own: Api<ConfigMap> = Api::namespaced(client.clone(), operator.namespace());
        assert!(own.get_opt("cert-renew-ledger").await?.is_none());
        let elsewhere: Api<ConfigMap> = Api::namespaced(client.clone(), &space.name);
        assert!(elsewhere.get_opt("cert-renew-ledger").await.is_err());
        assert_eq!(
            evict(&client, &space.name).await?,
            eviction,
            "404: allowed, but there is no such pod"
        );

        let expected = [
            ("create", "pods/eviction", 1),
            ("create", "secrets", 1),
            ("delete", "secrets", 1),
            ("get", "configmaps", 2),
            ("get", "secrets", 1),
        ];
        let expected =
            expected.map(|(verb, resource, count)| ((verb.to_owned(), resource.to_owned()), count));
        assert_eq!(tally(&operator.requests()?), expected.into());
    }
    Ok(())
}

/// The HTTP status of an attempt to evict a pod that is not there.
async fn evict(client: &Client, namespace: &str) -> Result<u16> {
    // As the admission policies, which another test may have installed, ask for it.
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "none"},
        "deleteOptions": {"preconditions": {"uid": "none"}}});
    let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/pods/none/eviction"))
        .header("content-type", "application/json")
        .body(eviction.to_string().into_bytes())?;
    match client.request_text(request).await {
        Err(kube::Error::Api(status)) => Ok(status.code),
        other => bail!("{other:?}"),
    }
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
    let error = Operator::start(bench, OperatorOptions::new(script))
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

//! What strangers make large costs little memory and stops nobody: bodies, pages, connections. docs/threat-model-tests.md
//! names these tests. The pod has 128 MiB.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DynamicObject, ListParams, PostParams};
use serde_json::{Value, json};
use test_bench::objects::{FRESH, Pair, Reference, Space, pair, workload};
use test_bench::{
    Bench, Context as _, Fault, Operator, Options, Proxies, Result, ensure, eventually,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::renewal::{SOON, annotation, data, options, overdue, renewed, rolled_out};

/// Reading some hundred megabytes takes its time, most of all on a machine that does much else.
const LATE: Duration = Duration::from_secs(900);
/// What the operator may grow by. A binary without optimisation begins with some 40 MiB.
const GROWTH: u64 = 72 << 20;
/// Objects of the test cluster that are made at the same time.
const AT_ONCE: usize = 8;

/// The most memory that the operator ever had.
fn peak(operator: &Operator<'_>) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", operator.process()?.id()))?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    let kilobytes = line.context("no VmHWM")?.trim().trim_end_matches(" kB");
    Ok(kilobytes.parse::<u64>()? << 10)
}

fn is_small(operator: &Operator<'_>, before: u64) -> Result<()> {
    let after = peak(operator)?;
    eprintln!(
        "peak of {} MiB before, {} MiB after",
        before >> 20,
        after >> 20
    );
    ensure!(
        after < before + GROWTH,
        "{before} bytes before, {after} after"
    );
    Ok(())
}

/// A Deployment without pods, of 1.3 MiB.
fn huge(name: &str) -> Value {
    let value = "x".repeat(64 << 10);
    let env: Vec<Value> = (0..20)
        .map(|number| json!({"name": format!("V{number}"), "value": value}))
        .collect();
    let containers = json!([{"name": "main", "image": "nothing", "env": env}]);
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}}})
}

/// A pod of 250 KiB of annotations that nobody replaces.
fn annotated(name: &str, secret: &str) -> Value {
    let annotations = json!({"example.com/text": "x".repeat(250 << 10)});
    let volumes = json!([{"name": "tls", "secret": {"secretName": secret}}]);
    let containers = json!([{"name": "main", "image": "nothing"}]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": containers, "volumes": volumes}})
}

#[tokio::test]
async fn a_namespace_of_huge_workloads_stops_no_other_and_takes_little_memory() -> Result<()> {
    // Of its own: nobody else is to read all that.
    let bench = Bench::start(Options::default()).await?;
    let mut options = options();
    options.addons.push("rbac/addons/eviction.yaml".into());
    let operator = Operator::start(&bench, options).await?;
    let client = bench.client()?;
    let space = Space::new(client.clone(), "huge", operator.namespace()).await?;
    let deployments = space.workloads("Deployment");
    let made = stream::iter(0..100).map(|number| {
        let object = serde_json::from_value::<DynamicObject>(huge(&format!("huge-{number}")));
        let deployments = &deployments;
        async move {
            deployments.create(&PostParams::default(), &object?).await?;
            Ok::<_, test_bench::Error>(())
        }
    });
    made.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &space.name);
    let made = stream::iter(0..100).map(|number| {
        let pod = serde_json::from_value::<Pod>(annotated(&format!("fat-{number}"), "tls"));
        let pods = &pods;
        async move {
            pods.create(&PostParams::default(), &pod?).await?;
            Ok::<_, test_bench::Error>(())
        }
    });
    made.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    space.available("Deployment", "web").await?;

    let before = peak(&operator)?;
    let first = pair(&["huge.example"], FRESH)?;
    space
        .tls_secret("tls", Some(&first), &[("issuer", "external")])
        .await?;
    // Others are renewed and rolled meanwhile.
    let other = Space::new(client.clone(), "ordinary", operator.namespace()).await?;
    let old = overdue(&other, "web", "web.ordinary.example").await?;
    renewed(&other, "web", &old).await?;
    rolled_out(&other, "web").await?;

    let recorded = async |leaf: &str| {
        eventually(LATE, "its workloads are listed", async || {
            let secret = space.secrets().get("tls").await?;
            let all = secret.metadata.annotations.unwrap_or_default();
            let said = all.get("state.cert-renew.io/rolled-out");
            let said = said.map_or("nothing", String::as_str);
            ensure!(said.starts_with(leaf), "rolled-out says {said}");
            Ok(())
        })
        .await
    };
    let fingerprint = |pem: &str| -> Result<String> {
        let leaf = cert_renew_core::certificate::leaf(pem.as_bytes()).context("reading a pair")?;
        Ok(leaf.fingerprint.to_string())
    };
    recorded(&fingerprint(&first.certificate)?).await?;
    // And what changes there is brought to the one that uses it, past a hundred large pods that do too.
    let second = pair(&["huge.example"], FRESH)?;
    space.put("tls", &second).await?;
    recorded(&fingerprint(&second.certificate)?).await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    eventually(LATE, "the pods are named", async || {
        let events = space.events("tls").await?.join("\n");
        ensure!(events.contains("nobody restarts pod/fat-"), "{events}");
        Ok(())
    })
    .await?;
    is_small(&operator, before)
}

#[tokio::test]
async fn large_secrets_of_others_are_read_page_by_page_within_little_memory() -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let proxies = Proxies::start(&bench).await?;
    // Which lists page by page.
    let version = json!({
        "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
    proxies.rule(move |passed| match &*passed.path {
        "/version" => Fault::Answer(200, None, "application/json", version.to_string()),
        _ => Fault::Pass,
    });
    let mut options = options();
    options.api_server = Some(proxies.api_server());
    let mut operator = Operator::install(&bench, options).await?;
    operator.run().await?;
    let before = peak(&operator)?;
    operator.terminate().await?;

    let client = bench.client()?;
    let space = Space::new(client.clone(), "large", operator.namespace()).await?;
    let value = ByteString(vec![b'x'; 900 << 10]);
    let made = stream::iter(0..250).map(|number| {
        let (space, value) = (&space, value.clone());
        async move {
            let data = [("tls.crt", ByteString::default()), ("tls.key", value)];
            let data = data.map(|(key, value)| (key.to_owned(), value));
            let data: BTreeMap<String, ByteString> = data.into();
            let name = format!("large-{number}");
            space.secret(&name, "kubernetes.io/tls", data, &[]).await?;
            Ok::<_, test_bench::Error>(())
        }
    });
    made.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let other = Space::new(client, "ordinary", operator.namespace()).await?;
    let old = overdue(&other, "web", "web.paged.example").await?;

    operator.spawn()?;
    eventually(LATE, "all are listed", async || {
        operator.ask("/readyz").await?;
        Ok(())
    })
    .await?;
    renewed(&other, "web", &old).await?;
    rolled_out(&other, "web").await?;
    let lists = proxies.passed();
    let lists = lists.iter().filter(|it| it.path == "/api/v1/secrets");
    ensure!(lists.count() > 100, "it does not list page by page");
    is_small(&operator, before)
}

/// A workload is watched while it rolls, and each change of its status brings all of it.
#[tokio::test]
async fn large_workloads_that_roll_together_take_little_memory() -> Result<()> {
    const COUNT: usize = 16;
    let bench = Bench::start(Options::default()).await?;
    let mut options = options();
    options.config = format!(
        "rollout: {{settle: 0s, perWorkloadMinInterval: 0s, concurrency: {COUNT}, perNamespace: {COUNT}}}\n"
    );
    let operator = Operator::start(&bench, options).await?;
    let space = Space::new(bench.client()?, "large", operator.namespace()).await?;
    let names: Vec<String> = (0..COUNT).map(|number| format!("large-{number}")).collect();
    let first = pair(&["large.example"], FRESH)?;
    for name in &names {
        let mut object = workload("Deployment", name, 1, Reference::Volume, name);
        // A megabyte of etcd's, and six on the wire.
        let env = json!([{"name": "TEXT", "value": "<".repeat(1_000_000)}]);
        object["spec"]["template"]["spec"]["containers"][0]["env"] = env;
        // So that they roll at the same time.
        object["spec"]["minReadySeconds"] = json!(20);
        let object: DynamicObject = serde_json::from_value(object)?;
        { space.workloads("Deployment") }
            .create(&PostParams::default(), &object)
            .await?;
        let external = [("issuer", "external")];
        space.tls_secret(name, Some(&first), &external).await?;
    }
    let all_rolled = async |leaf: &str| {
        let leaf = cert_renew_core::certificate::leaf(leaf.as_bytes()).context("reading a pair")?;
        let leaf = leaf.fingerprint.to_string();
        eventually(LATE, "all are rolled", async || {
            for name in &names {
                let secret = space.secrets().get(name).await?;
                let said = annotation(&secret, "state.cert-renew.io/rolled-out");
                let said = said.unwrap_or("nothing");
                ensure!(said.starts_with(&leaf), "{name} says {said}");
            }
            Ok(())
        })
        .await
    };
    all_rolled(&first.certificate).await?;
    let before = peak(&operator)?;
    let second = pair(&["large.example"], FRESH)?;
    for name in &names {
        space.put(name, &second).await?;
    }
    all_rolled(&second.certificate).await?;
    is_small(&operator, before)
}

/// A batch holds its Secrets until it ends; those for which there is no room wait.
#[tokio::test]
async fn secrets_with_long_annotations_that_roll_together_take_little_memory() -> Result<()> {
    const COUNT: usize = 1_500;
    let bench = Bench::start(Options::default()).await?;
    let mut operator = Operator::install(&bench, options()).await?;
    operator.run().await?;
    let before = peak(&operator)?;
    operator.terminate().await?;

    let space = Space::new(bench.client()?, "long", operator.namespace()).await?;
    let long = |number: usize| format!("deployment/{number:03}{}", "w".repeat(250));
    let named: Vec<String> = (0..100).map(long).collect();
    let users = (0..64).map(|number| format!(" {}=unavailable", long(number)));
    let used_by = format!("2026-11-14T22:13:20Z{}", users.collect::<String>());
    let (named, fresh) = (named.join(","), pair(&["long.example"], FRESH)?);
    let annotations = [
        ("issuer", "external"),
        ("workloads", &*named),
        ("state.cert-renew.io/used-by", &*used_by),
        ("state.cert-renew.io/rolled-out", "none"),
    ];
    let made = stream::iter(0..COUNT).map(async |number| {
        let name = format!("long-{number}");
        space.tls_secret(&name, Some(&fresh), &annotations).await?;
        Ok::<_, test_bench::Error>(())
    });
    made.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let other = Space::new(bench.client()?, "ordinary", operator.namespace()).await?;
    let old = overdue(&other, "web", "web.beside.example").await?;

    operator.spawn()?;
    eventually(LATE, "all are looked at", async || {
        let requests = operator.requests()?.into_iter();
        let read = requests.filter(|it| it.verb == "get" && it.namespace == space.name);
        let read: BTreeSet<String> = read.map(|it| it.name).collect();
        ensure!(read.len() >= COUNT, "{} of {COUNT}", read.len());
        Ok(())
    })
    .await?;
    renewed(&other, "web", &old).await?;
    rolled_out(&other, "web").await?;
    // What was let go is rolled out in its turn.
    eventually(
        LATE,
        "more are rolled out than are held at a time",
        async || {
            let all = space.secrets().list(&ListParams::default()).await?;
            let done = all.items.iter().filter(|secret| {
                let said = annotation(secret, "state.cert-renew.io/rolled-out");
                said.is_some_and(|said| said != "none")
            });
            let done = done.count();
            ensure!(done > 300, "{done} of {COUNT}");
            Ok(())
        },
    )
    .await?;
    is_small(&operator, before)
}

#[tokio::test]
async fn probes_are_answered_while_thousands_hold_connections_open() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let address = operator.metrics_address();
    let before = peak(&operator)?;
    // Three times as many as there are places, and each comes again when it is closed: a probe that queues behind them
    // waits for as long as they have for their headers, over and over.
    let (mut strangers, connected) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..1_500 {
        let connected = Arc::clone(&connected);
        strangers.spawn(async move {
            loop {
                if let Ok(mut stream) = TcpStream::connect(address).await {
                    connected.fetch_add(1, Ordering::Relaxed);
                    let _ = stream.read(&mut [0]).await;
                }
                sleep(Duration::from_secs(1)).await;
            }
        });
    }
    eventually(SOON, "all places are taken", async || {
        let connected = connected.load(Ordering::Relaxed);
        ensure!(connected > 550, "{connected} have connected");
        Ok(())
    })
    .await?;
    for number in 0..5 {
        // As the kubelet asks.
        for path in ["/healthz", "/readyz"] {
            let probed = timeout(Duration::from_secs(5), operator.ask(path)).await;
            probed.with_context(|| format!("{path}, probe {number}"))??;
        }
    }
    is_small(&operator, before)
}

/// Anybody who may edit a Secret writes its annotations.
#[tokio::test]
async fn issuers_that_only_annotations_know_make_no_series() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "forged", operator.namespace()).await?;
    // Of a CA that has renewal information, and ordered just now.
    let issued = async |name: &str| {
        let old = overdue(&space, name, &format!("{name}.forged.example")).await?;
        let secret = renewed(&space, name, &old).await?;
        Ok::<_, test_bench::Error>(Pair {
            certificate: data(&secret, "tls.crt"),
            key: data(&secret, "tls.key"),
        })
    };
    let issued_by = json!({"issuer": "forged-issuer", "names": []}).to_string();
    let annotations = [
        ("issuer", "pebble"),
        ("state.cert-renew.io/issued-by", &*issued_by),
    ];
    space
        .tls_secret("forged", Some(&issued("due").await?), &annotations)
        .await?;
    // Of several that hold the same leaf one counts: it is the one that was issued.
    issued("unknown").await?;
    space.annotate("unknown", "issuer", "unheard-of").await?;
    // What is in the index when it begins to lead is counted.
    operator.restart().await?;
    let metrics = eventually(SOON, "the CA is asked about it", async || {
        let metrics = operator.metrics().await?;
        let polls = "cert_renew_renewal_info_polls_total{issuer=\"pebble\"";
        ensure!(metrics.contains(polls), "{metrics}");
        ensure!(metrics.contains("secret=\"unknown\""), "{metrics}");
        Ok(metrics)
    })
    .await?;
    for line in metrics.lines() {
        let names_a_secret = line.contains("secret=\"unknown\"");
        let foreign = line.contains("forged-issuer") || line.contains("unheard-of");
        ensure!(names_a_secret || !foreign, "{line}");
    }
    Ok(())
}

//! Many Secrets that fall due at once, against Pebble; and beside it the same orders by a client that does nothing else.
//!
//! The bare client is the operator's own ACME client in a loop: the same requests, the same pauses, the same writes to
//! the API server (record, pair, record gone), no watch, no checks, no budgets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use cert_renew::acme::{
    self, ChallengeType, Client as Acme, Credentials, IssuerSettings, OrderRequest, Preference,
    RateLimiter,
};
use cert_renew::process::write_gate::WriteGate;
use cert_renew_core::certificate::KeyType;
use cert_renew_core::certificate::key::PrivateKey;
use cert_renew_core::text::name::Name;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use test_bench::objects::{OLD, Reference, workload};
use test_bench::{Bench, Context as _, Operator, Options, Result, ensure, eventually};

use crate::data::{Maker, Set, in_parallel};
use crate::process::usage;
use crate::propagation::settled;
use crate::report::{Report, say};
use crate::{audit, options};

/// Orders in flight, on both sides: as many as Pebble 2.10.1 stands, which deadlocks with more.
const IN_FLIGHT: usize = 16;
/// Requests in flight, as the operator has by default.
const REQUESTS: usize = 8;
/// Enough to measure the bare client by.
const BARE: usize = 500;
/// Nothing of this takes longer on a machine that works at all.
const DEADLINE: Duration = Duration::from_secs(900);
/// Size of the second wave, in which each Secret has a Deployment.
const WITH_WORKLOADS: usize = 100;

/// See the module's documentation.
pub(crate) async fn run(report: &mut Report, count: usize) -> Result<()> {
    let mut with = Options::default();
    with.pebble.retry_after = 0;
    let bench = Bench::start(with).await?;
    let maker = Arc::new(Maker::new()?);

    let mut operator = Operator::install(&bench, wave_options()).await?;
    let set = Arc::new(due("wave", count, operator.namespace()));
    set.fill(&bench, &maker).await?;
    say("the bare client");
    let bare = bare_wave(&bench, &set, count.min(BARE), IN_FLIGHT).await?;
    report.add(
        format!("wave.bare_renewals_per_second.{count}"),
        bare,
        "1/s",
    );

    say("the operator");
    let mark = audit::mark(&bench)?;
    operator.run().await?;
    let began = Instant::now();
    let renewed = renewed_count(&bench, &operator, count).await?;
    let rate = count as f64 / renewed.duration_since(began).as_secs_f64();
    // What follows a renewal, such as the Events that wait, is part of its cost.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = usage(operator.process()?.id())?;
    let counts = audit::since(&bench, &operator, &mark)?;
    let each = |number: f64| number / count as f64;
    report.add(format!("wave.renewals_per_second.{count}"), rate, "1/s");
    report.add(
        format!("wave.rate_ratio_to_bare_client.{count}"),
        rate / bare,
        "ratio",
    );
    report.add(
        format!("wave.cpu_ms_per_renewal.{count}"),
        each(used.cpu * 1e3),
        "ms",
    );
    report.add(format!("wave.rss_peak_bytes.{count}"), used.peak, "bytes");
    let metrics = operator.metrics().await?;
    let asked = |label| each(sum(&metrics, "cert_renew_acme_requests_total", label));
    let polls = asked("action=\"renewalInfo\"");
    report.add(
        "wave.ca_requests_per_renewal",
        asked("") - polls,
        "requests",
    );
    report.add("wave.ca_renewal_info_per_renewal", polls, "requests");
    report.add(
        "wave.ca_polls_per_renewal",
        asked("action=\"order\""),
        "requests",
    );
    report.add(
        "wave.ca_nonces_per_renewal",
        asked("action=\"newNonce\""),
        "requests",
    );
    report.add(
        format!("wave.api_requests_per_renewal.{count}"),
        each(counts.requests as f64),
        "requests",
    );
    operator.terminate().await?;

    say("each with a Deployment");
    let mut operator = Operator::install(&bench, wave_options()).await?;
    let set = Arc::new(due("roll", WITH_WORKLOADS, operator.namespace()));
    set.fill(&bench, &maker).await?;
    let owned = Arc::clone(&set);
    in_parallel(
        "making Deployments",
        WITH_WORKLOADS,
        &bench.client()?,
        move |client, number| {
            let api: Api<Deployment> = Api::namespaced(client, &owned.namespace(number));
            async move {
                let name = Set::name(number);
                let body = workload("Deployment", &name, 1, Reference::Volume, &name);
                api.create(&PostParams::default(), &serde_json::from_value(body)?)
                    .await?;
                Ok(())
            }
        },
    )
    .await?;
    let client = bench.client()?;
    settled(&client).await?;
    let mark = audit::mark(&bench)?;
    operator.run().await?;
    eventually(
        DEADLINE,
        "every workload is rolled and on record",
        async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let rolled = rolled_count(&client, operator.namespace()).await?;
            ensure!(rolled == WITH_WORKLOADS, "{rolled} are");
            Ok(())
        },
    )
    .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let counts = audit::since(&bench, &operator, &mark)?;
    let each = |number: usize| number as f64 / WITH_WORKLOADS as f64;
    report.add(
        "wave.api_writes_per_renewal",
        each(counts.writes),
        "requests",
    );
    report.add(
        "wave.event_writes_per_renewal",
        each(counts.events),
        "requests",
    );
    Ok(())
}

fn wave_options() -> test_bench::OperatorOptions {
    let mut options = options();
    // What is measured is the operator, not its thrift: by default it orders 250 certificates in three hours.
    options.issuer = "    ordersPer3h: 100000\n".into();
    options.config = format!(
        "renewals: {{concurrency: {IN_FLIGHT}}}\n\
         rollout: {{settle: 0s, perWorkloadMinInterval: 0s, concurrency: 100, perNamespace: 100}}\n"
    );
    options
}

fn due(prefix: &'static str, count: usize, class: &str) -> Set {
    Set {
        prefix,
        count,
        namespaces: 20,
        class: class.to_owned(),
        issuer: "pebble",
        annotated: 1,
        settled: true,
        used: false,
        age: Some(OLD),
    }
}

/// When the last of them was renewed, by the operator's own count.
async fn renewed_count(bench: &Bench, operator: &Operator<'_>, count: usize) -> Result<Instant> {
    let began = Instant::now();
    let mut told = Instant::now();
    loop {
        let text = operator.metrics().await?;
        let renewed = sum(&text, "cert_renew_renewals_total", "result=\"renewed\"");
        if renewed >= count as f64 {
            return Ok(Instant::now());
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            eprintln!(
                "  renewed: {renewed} of {count} after {} s",
                began.elapsed().as_secs()
            );
        }
        ensure!(
            began.elapsed() < DEADLINE,
            "{renewed} of {count} are renewed; {}",
            bench.pebble().process().tail()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The sum of a counter's series that carry a label.
fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let of = |line: &str| {
        let value = line
            .strip_prefix(name)?
            .rsplit(' ')
            .next()?
            .parse::<f64>()
            .ok();
        value.filter(|_| line.contains(label))
    };
    metrics.lines().filter_map(of).sum()
}

/// How many Secrets of a class say that their workloads have the leaf that they hold.
async fn rolled_count(client: &Client, class: &str) -> Result<usize> {
    let api: Api<Secret> = Api::all(client.clone());
    let params = ListParams::default().fields("type=kubernetes.io/tls");
    let rolled = |secret: &Secret| {
        let annotations = secret.metadata.annotations.as_ref();
        let of = |key: &str| annotations.and_then(|all| all.get(key));
        let certificate = secret.data.as_ref().and_then(|data| data.get("tls.crt"));
        let leaf = certificate.and_then(|pem| cert_renew_core::certificate::leaf(&pem.0).ok());
        let rolled_out = of("state.cert-renew.io/rolled-out");
        of("cert-renew.io/class").is_some_and(|it| it == class)
            && of("state.cert-renew.io/issued-by").is_some()
            && leaf
                .zip(rolled_out)
                .is_some_and(|(leaf, value)| value.starts_with(&leaf.fingerprint.to_string()))
    };
    Ok(api
        .list(&params)
        .await?
        .iter()
        .filter(|secret| rolled(secret))
        .count())
}

type Proofs = Arc<Mutex<BTreeMap<String, String>>>;

/// Renewals a second of the bare client, with the first `count` names of a set.
async fn bare_wave(bench: &Bench, set: &Arc<Set>, count: usize, in_flight: usize) -> Result<f64> {
    let proofs = Proofs::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/.well-known/acme-challenge/{token}", get(prove))
        .with_state(Arc::clone(&proofs));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    bench.edge().add(address);
    let directory = bench.pebble().directory();
    let settings = IssuerSettings {
        name: "bare".into(),
        directory: directory.to_owned(),
        contact: Vec::new(),
        ca_bundle: Some(std::fs::read(bench.ca_bundle())?),
        eab: None,
        concurrency: REQUESTS,
        rate_limiter: RateLimiter::default(),
    };
    let acme = Acme::new(settings, Arc::new(|_| {}), WriteGate::open())?;
    acme.register(&Credentials::generate(directory)?).await?;
    let client = bench.client()?;
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let turn = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for _ in 0..in_flight {
        let (acme, client, set) = (acme.clone(), client.clone(), Arc::clone(set));
        let (proofs, turn) = (Arc::clone(&proofs), Arc::clone(&turn));
        tasks.spawn(async move {
            loop {
                let number = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, test_bench::Error>(());
                }
                // The Secrets stay due for the operator: what is written goes into others.
                bare_renewal(
                    &acme,
                    &client,
                    &proofs,
                    &set.host(number),
                    &format!("bare-{number}"),
                )
                .await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    bench.edge().remove(address);
    server.abort();
    Ok(rate)
}

async fn prove(State(proofs): State<Proofs>, Path(token): Path<String>) -> String {
    let proofs = proofs.lock().unwrap_or_else(PoisonError::into_inner);
    proofs.get(&token).cloned().unwrap_or_default()
}

async fn bare_renewal(
    acme: &Acme,
    client: &Client,
    proofs: &Proofs,
    host: &str,
    name: &str,
) -> Result<()> {
    let deadline = || tokio::time::Instant::now() + Duration::from_secs(60);
    let names = [host.parse::<Name>()?];
    let mut order = acme
        .new_order(
            &names,
            OrderRequest {
                profile: Some("default"),
                ..OrderRequest::default()
            },
        )
        .await?;
    let key = PrivateKey::generate(KeyType::EcdsaP256)?;
    let api: Api<Secret> = Api::default_namespaced(client.clone());
    let pem = key.to_pem()?;
    let record = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            "tls.key".to_owned(),
            ByteString(pem.as_bytes().to_vec()),
        )])),
        ..Secret::default()
    };
    api.create(&PostParams::default(), &record).await?;
    for authorization in order.authorizations().await? {
        let challenge = authorization
            .challenges
            .iter()
            .find(|it: &&acme::Challenge| it.kind == ChallengeType::Http01)
            .context("no http-01")?;
        proofs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(challenge.token.clone(), challenge.key_authorization.clone());
        order.set_ready(challenge).await?;
    }
    order.wait_validated(deadline(), |_| {}).await?;
    order.finalize(&key.csr(&names, false)?).await?;
    order.wait_issued(deadline()).await?;
    let chain = order.certificate(&Preference::default()).await?;
    let patch = json!({"stringData": {"tls.crt": chain}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    api.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

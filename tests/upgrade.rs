//! A new version where an old one was, and what is left when none is any more.
//!
//! `testdata/upgrade/<version>/` holds what that version has written. It is frozen: a format that changes is read in its
//! old form too, or these tests fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use cert_renew::acme::{
    ChallengeType, Client, Credentials, IssuerSettings, OrderRequest, RateLimiter,
};
use cert_renew::process::write_gate::WriteGate;
use cert_renew_core::certificate::key::PrivateKey;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, Result, ensure, eventually, throughout};

use crate::install::{helm, kubectl};
use crate::renewal::{SOON, annotation, data, leaf, options, renewed, rolled_out};

/// Long enough for a restart or an order that should not be to show itself.
const QUIET: Duration = Duration::from_secs(4);
/// The namespace of the fixture's users.
const USERS: &str = "version-0-1";

/// An account at the bench's CA with the fixture's key, an order of it, and the fixture that speaks of both.
async fn of_the_ca(bench: &Bench, home: &str, uid: &str) -> Result<String> {
    let directory = bench.pebble().directory();
    let settings = IssuerSettings {
        name: "pebble".into(),
        directory: directory.to_owned(),
        contact: vec!["ops@bench.example".to_owned()],
        ca_bundle: Some(fs::read(bench.ca_bundle())?),
        eab: None,
        concurrency: 1,
        rate_limiter: RateLimiter::default(),
    };
    let client = Client::new(settings, Arc::new(|_| {}), WriteGate::open())?;
    let home = home.replace("{directory}", directory);
    let credentials = home
        .split_once("credentials: '")
        .and_then(|(_, rest)| rest.split('\'').next())
        .context("no credentials in the fixture")?;
    let unregistered = credentials.replace(r#""id":"{account}","#, "");
    let registered = client
        .register(&Credentials::from_json(unregistered.as_bytes())?)
        .await?;
    let account = registered.account_url().context("no account")?.to_owned();
    // Named, as an operator's is: of its own choice Pebble gives one of 90 seconds now and then, which is due again.
    let request = OrderRequest {
        profile: Some("default"),
        ..OrderRequest::default()
    };
    let mut order = client
        .new_order(&["ordered.example".parse()?], request)
        .await?;
    let authorizations = order.authorizations().await?;
    let challenge = authorizations
        .iter()
        .flat_map(|authorization| &authorization.challenges)
        .find(|challenge| challenge.kind == ChallengeType::Http01)
        .context("no HTTP-01")?;
    Ok(home
        .replace("{account}", &account)
        .replace("{order}", order.url())
        .replace("{token}", &challenge.token)
        .replace("{proof}", &challenge.key_authorization)
        .replace("{uid}", uid))
}

#[tokio::test]
async fn what_version_0_1_has_written_is_read_and_nothing_is_issued_or_restarted() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let home = operator.namespace().to_owned();
    let space = Space {
        client: bench.client()?,
        name: USERS.into(),
        class: home.clone(),
    };
    // No pod is made in it, so that the halt has its reason still.
    let namespace = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": USERS}},
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": USERS},
            "spec": {"hard": {"pods": "0"}}},
    ]});
    kubectl(bench, "create -f -", &namespace.to_string())?;
    let opted_in = "cert-renew.io/issuer:";
    let class = format!("cert-renew.io/class: {home}\n    {opted_in}");
    let users = include_str!("../testdata/upgrade/0.1/namespace.yaml").replace(opted_in, &class);
    kubectl(bench, "create -f -", &users)?;
    let ordered = space.secrets().get("ordered").await?;
    let uid = ordered.uid().context("no uid")?;
    let fixture = include_str!("../testdata/upgrade/0.1/home.yaml");
    let kept = of_the_ca(bench, fixture, &uid).await?;
    kubectl(bench, &format!("create --namespace {home} -f -"), &kept)?;
    // The version before said nothing of chain and CA: what is there counts as what the workloads have.
    let noted = ["renewed", "external"];
    let untouched = ["failing"];
    let mut before = Vec::new();
    for name in untouched {
        before.push(space.secrets().get(name).await?.resource_version());
    }
    let halted = space.secrets().get("halted").await?;

    operator.run().await?;
    // The order that the old version had begun, with the key that it had made.
    let secret = rolled_out(&space, "ordered").await?;
    let pem = kept
        .split_once("tls.key: |\n")
        .map_or("", |(_, pem)| pem)
        .replace("    ", "");
    let key = PrivateKey::from_pem(pem.as_bytes())?;
    assert_eq!(&*leaf(&secret)?.public_key, key.public_key());
    let log = operator.log()?;
    ensure!(log.contains("the order is taken up again"), "{log}");
    for name in noted {
        eventually(SOON, "chain and CA are on record", async || {
            let secret = space.secrets().get(name).await?;
            let said = annotation(&secret, "state.cert-renew.io/rolled-out-with");
            let fingerprint = leaf(&secret)?.fingerprint.to_string();
            ensure!(
                said.is_some_and(|it| it.starts_with(&fingerprint)),
                "{said:?}"
            );
            Ok(())
        })
        .await?;
        before.push(space.secrets().get(name).await?.resource_version());
    }
    throughout(QUIET, "nothing else changes", async || {
        for (name, version) in untouched.iter().chain(&noted).zip(&before) {
            let secret = space.secrets().get(name).await?;
            ensure!(secret.resource_version() == *version, "{name} was written");
        }
        let now = space.secrets().get("halted").await?;
        for key in ["rolled-out", "rollout-halted"] {
            let key = format!("state.cert-renew.io/{key}");
            ensure!(annotation(&now, &key) == annotation(&halted, &key), "{key}");
        }
        for name in ["renewed", "external", "halted", "waiting"] {
            let generation = space.generation("Deployment", name).await?;
            ensure!(generation == 1, "{name} is at {generation}");
        }
        Ok(())
    })
    .await?;
    let log = operator.log()?;
    for sign in [
        "\"message\":\"ordered\"",
        "account registered",
        "cannot be read",
    ] {
        ensure!(!log.contains(sign), "{sign}: {log}");
    }
    // An older version can follow: what is written today is what it wrote, and more that it passes over.
    let issued_by = annotation(&secret, "state.cert-renew.io/issued-by").context("none")?;
    let issued_by: BTreeMap<String, Value> = serde_json::from_str(issued_by)?;
    assert_eq!(issued_by["issuer"], "pebble");
    assert_eq!(issued_by["names"], json!(["ordered.example"]));
    let written: BTreeSet<_> = secret.annotations().keys().map(String::as_str).collect();
    let expected = [
        "cert-renew.io/class",
        "cert-renew.io/issuer",
        "cert-renew.io/names",
        "state.cert-renew.io/issued-by",
        "state.cert-renew.io/rolled-out",
        "state.cert-renew.io/rolled-out-with",
        // With the write of the one above.
        "state.cert-renew.io/state",
    ];
    assert_eq!(written, BTreeSet::from(expected));
    Ok(())
}

/// Kind and name of everything in a namespace that its makers, the cluster's own controllers left out, have left.
fn left_in(bench: &Bench, namespace: &str) -> Result<BTreeSet<String>> {
    let kinds = "secrets,configmaps,leases,ingresses,services,deployments,roles,rolebindings,serviceaccounts,\
                 networkpolicies,poddisruptionbudgets,pods";
    let listed = kubectl(bench, &format!("get {kinds} -n {namespace} -o name"), "")?;
    let listed = String::from_utf8(listed.stdout)?;
    let everybodys = ["configmap/kube-root-ca.crt", "serviceaccount/default"];
    let names = listed.lines().filter(|name| !everybodys.contains(name));
    Ok(names.map(ToOwned::to_owned).collect())
}

/// A command of docs/install.md that begins so, its lines joined.
fn documented(start: &str) -> Result<String> {
    let text = include_str!("../docs/install.md").replace("\\\n", " ");
    let line = text.lines().find(|line| line.starts_with(start));
    let command = line.with_context(|| format!("docs/install.md has no `{start}…`"))?;
    let command = command.split(" #").next().unwrap_or_default();
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    Ok(words.join(" "))
}

#[tokio::test]
async fn taken_away_it_leaves_the_secrets_and_what_the_document_says() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut options = options();
    options.config += &format!(
        "solvers:\n  - zones: [unrouted.example]\n    http01: {{route: ingress, ingress: {{class: none}}}}\n  \
         - http01: {{route: shared, selfCheck: false}}\ndns: {{nameservers: [\"{}\"]}}\n",
        bench.dns().address()
    );
    let values = "replicas=0,addons.route-ingress=true,addons.verify=true";
    let mut manifests = String::new();
    let mut operator = Operator::install_rendered(bench, options, |namespace| {
        manifests = helm(namespace, values)?;
        Ok(manifests.clone())
    })
    .await?;
    operator.run().await?;
    let home = operator.namespace().to_owned();
    let space = Space::new(bench.client()?, "left", &home).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    let old = pair(&["left.example"], OLD)?;
    space
        .tls_secret("tls", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "tls", &old.certificate).await?;
    rolled_out(&space, "tls").await?;
    // One that no clock asked for is in the ledger, one that is not routed is under way.
    for (name, host) in [("first", "first.example"), ("waiting", "unrouted.example")] {
        let annotations = [("issuer", "pebble"), ("names", host)];
        space.tls_secret(name, None, &annotations).await?;
    }
    rolled_out(&space, "first").await?;
    let left = |names: &[&str]| -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    };
    eventually(
        SOON,
        "the order that is not routed is under way",
        async || {
            let ingresses = kubectl(bench, &format!("get ingresses -n {home} -o name"), "")?;
            ensure!(!ingresses.stdout.is_empty(), "no Ingress yet");
            Ok(())
        },
    )
    .await?;
    operator.terminate().await?;
    let certificate = space.secrets().get("tls").await?;
    let generation = space.generation("Deployment", "web").await?;

    // `helm uninstall` deletes what the chart gave; with kustomize the namespace goes too, and all that is in it.
    kubectl(bench, "delete --wait=true -f -", &manifests)?;
    let roles = kubectl(bench, "get clusterroles,clusterrolebindings -o name", "")?;
    let roles = String::from_utf8(roles.stdout)?;
    let ours = |line: &&str| line.ends_with(&home) && line.contains("cert-renew");
    assert_eq!(roles.lines().find(ours), None);
    let found = left_in(bench, &home)?;
    let record = format!("secret/{}", record_of(&space));
    let ingress = found.iter().find(|name| name.starts_with("ingress"));
    let ingress = ingress.context("no Ingress is left")?.clone();
    let expected = left(&[
        "configmap/cert-renew-ledger",
        "lease.coordination.k8s.io/cert-renew",
        "secret/cert-renew-account-pebble",
        &record,
        &ingress,
    ]);
    assert_eq!(found, expected);
    let document = include_str!("../docs/install.md");
    for part in ["account key", "order record", "ledger", "Lease", "Ingress"] {
        ensure!(document.contains(part), "docs/install.md names no {part}");
    }
    // The command that takes those away too.
    let tidy = documented("kubectl -n cert-renew delete secrets")?;
    kubectl(
        bench,
        &tidy.replace("-n cert-renew", &format!("-n {home}")),
        "",
    )?;
    assert_eq!(left_in(bench, &home)?, BTreeSet::new());

    // Secrets and workloads are as they were.
    let now = space.secrets().get("tls").await?;
    assert_eq!(now.resource_version(), certificate.resource_version());
    assert_eq!(space.generation("Deployment", "web").await?, generation);
    // The command that takes every annotation off changes no data and restarts nothing.
    let strip = documented("kubectl annotate secrets")?;
    ensure!(strip.contains("--all-namespaces"), "{strip}");
    let here = format!("--namespace={}", space.name);
    kubectl(bench, &strip.replace("--all-namespaces", &here), "")?;
    let api: Api<Secret> = space.secrets();
    for secret in api.list(&ListParams::default()).await? {
        let ours = |key: &&String| key.contains("cert-renew.io/");
        assert_eq!(secret.annotations().keys().find(ours), None);
    }
    let now = space.secrets().get("tls").await?;
    for key in ["tls.crt", "tls.key"] {
        assert_eq!(data(&now, key), data(&certificate, key));
    }
    assert_eq!(space.generation("Deployment", "web").await?, generation);
    Ok(())
}

fn record_of(space: &Space) -> String {
    cert_renew::cluster::order_records::record_name(&cert_renew_core::secret::SecretRef {
        namespace: space.name.as_str().into(),
        name: "waiting".into(),
    })
}

/// The command of the document names each annotation that there is.
#[test]
fn the_command_that_strips_annotations_knows_them_all() -> Result<()> {
    let strip = documented("kubectl annotate secrets")?;
    let keys = include_str!("../core/src/secret/keys.rs");
    let mut expected = BTreeSet::new();
    for line in keys.lines().filter(|line| line.contains(": &str = \"")) {
        let value = line.split('"').nth(1).unwrap_or_default();
        let (_, key) = value.split_once('/').unwrap_or_default();
        // A label, and what only ConfigMaps have.
        let elsewhere = ["managed", "certificate", "secret"].contains(&key);
        if !key.is_empty() && !key.ends_with('.') && !elsewhere {
            expected.insert(format!("{value}-"));
        }
    }
    ensure!(expected.len() > 15, "{expected:?}");
    let named = strip
        .split(' ')
        .filter(|word| word.contains("cert-renew.io/"));
    assert_eq!(
        named.map(ToOwned::to_owned).collect::<BTreeSet<_>>(),
        expected
    );
    Ok(())
}

/// An order record that an older version cannot know, and fields of it that it does not, are no reason to do anything.
#[tokio::test]
async fn what_a_newer_version_has_written_is_passed_over() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let home = operator.namespace().to_owned();
    let ledger = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cert-renew-ledger"},
        "data": {"0123456789abcdef": r#"{"failures":1,"retryAt":4102444800,"mood":"good"}"#, "summary": "fine"}});
    kubectl(
        bench,
        &format!("create -n {home} -f -"),
        &ledger.to_string(),
    )?;
    let space = Space::new(bench.client()?, "newer", &home).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    let fresh = pair(&["newer.example"], test_bench::objects::FRESH)?;
    space
        .tls_secret("tls", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    let newer: Value = json!({"metadata": {"annotations": {
        "state.cert-renew.io/served": "yes",
        "state.cert-renew.io/issued-by":
            r#"{"issuer":"pebble","names":["newer.example"],"account":"https://ca.example/1"}"#,
    }}});
    space.merge("tls", newer).await?;
    operator.run().await?;
    rolled_out(&space, "tls").await?;
    throughout(QUIET, "nothing is issued or restarted", async || {
        let secret = space.secrets().get("tls").await?;
        ensure!(
            data(&secret, "tls.crt") == fresh.certificate,
            "it is another certificate"
        );
        ensure!(annotation(&secret, "state.cert-renew.io/served") == Some("yes"));
        ensure!(space.generation("Deployment", "web").await? == 1);
        Ok(())
    })
    .await?;
    ensure!(space.events("tls").await?.is_empty());
    Ok(())
}

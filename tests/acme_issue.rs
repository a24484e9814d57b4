//! What a CA can be like, as the operator meets it: accounts by binding, addresses, profiles; and how often it is asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use test_bench::objects::{OLD, Space, pair};
use test_bench::report::Report;
use test_bench::{
    Bench, Fault, Operator, OperatorOptions, Passed, PebbleOptions, Proxies, Result, Server,
    ensure, eventually,
};

use crate::acme_operator::{another_pebble, configured, event, issued};
use crate::renewal::{SOON, annotation, leaf, options, renewed};
use crate::scene::answered;

/// What was asked of the CA after this number of requests; renewal information and the directory aside.
fn asked(proxies: &Proxies, after: usize) -> Vec<Passed> {
    let aside = ["/dir", "/draft-ietf-acme-ari"];
    let all = proxies.passed().into_iter().skip(after);
    let of_ca = all.filter(|it| it.server == Server::Ca);
    of_ca
        .filter(|it| !aside.iter().any(|path| it.path.starts_with(path)))
        .collect()
}

fn paths(passed: &[Passed]) -> Vec<&str> {
    passed
        .iter()
        .map(|it| it.path.split('/').nth(1).unwrap_or_default())
        .collect()
}

#[tokio::test]
async fn a_renewal_asks_seven_times_and_four_where_the_name_is_proven_already() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = PebbleOptions {
        authorization_reuse: 100,
        ..another_pebble("pebble-counted")
    };
    let pebble = bench.start_pebble(&options).await?;
    let proxies = Proxies::before(bench, &pebble).await?;
    let options = OperatorOptions {
        directory: Some(proxies.directory()),
        ..configured("", "")
    };
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "counted", operator.namespace()).await?;
    // The account is made with the first one.
    issued(&space, "before", "before.counted.example").await?;
    let mut report = Report::new("requests", "cargo test --test integration acme_issue::");
    for (name, count) in [("fresh", 7), ("proven", 4)] {
        let before = proxies.passed().len();
        issued(&space, name, "www.counted.example").await?;
        let asked = asked(&proxies, before);
        eprintln!(
            "{name}: {} requests: {}",
            asked.len(),
            paths(&asked).join(" ")
        );
        assert_eq!(asked.len(), count, "{name}: {:?}", paths(&asked));
        report.count(format!("renewal.requests_{name}"), asked.len(), "requests")?;
    }
    eprintln!("{}", report.finish()?);
    Ok(())
}

#[tokio::test]
async fn many_at_once_ask_for_no_more_nonces_than_requests_are_in_flight() -> Result<()> {
    const MANY: usize = 20;
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let options = OperatorOptions {
        directory: Some(proxies.directory()),
        ..options()
    };
    let mut operator = Operator::install(bench, options).await?;
    let space = Space::new(bench.client()?, "nonces", operator.namespace()).await?;
    for number in 0..MANY {
        let old = pair(&[&format!("n{number}.nonces.example")], OLD)?;
        let (name, annotations) = (format!("tls-{number}"), [("issuer", "pebble")]);
        space.tls_secret(&name, Some(&old), &annotations).await?;
    }
    operator.run().await?;
    eventually(SOON, "all are issued", async || {
        let certificates = proxies.passed();
        let certificates = certificates
            .iter()
            .filter(|it| it.path.starts_with("/certZ/"));
        let certificates = certificates.filter(|it| it.status == Some(200)).count();
        ensure!(certificates == MANY, "{certificates} are");
        Ok(())
    })
    .await?;
    let asked = asked(&proxies, 0);
    let nonces = asked.iter().filter(|it| it.path.contains("nonce")).count();
    eprintln!(
        "{} requests for {MANY} certificates, {nonces} of them for nonces",
        asked.len()
    );
    // One request in flight is what operators of the bench are allowed.
    ensure!(nonces <= 2, "{nonces} nonces were asked for");
    Ok(())
}

#[tokio::test]
async fn an_account_is_bound_once_though_the_answer_is_lost() -> Result<()> {
    let bench = Bench::shared().await?;
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let mut pebble = another_pebble("pebble-bound");
    pebble.external_accounts = BTreeMap::from([("kid-1".to_owned(), key.to_owned())]);
    let pebble = bench.start_pebble(&pebble).await?;
    let proxies = Proxies::before(bench, &pebble).await?;
    let eab = "    eab: {kid: kid-1, hmacKey: {secret: eab, key: hmac}}\n";
    let mut options = configured(eab, "");
    options.config += "retry: {base: 1s, factor: 1, max: 1s}\n";
    options.directory = Some(proxies.directory());
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "bound", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "bound.example")];
    space.tls_secret("bound", None, &annotations).await?;
    event(&space, "bound", "/eab: not found").await?;
    let registrations = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&registrations);
    proxies.rule(move |passed| {
        let registers = passed.path.ends_with("/sign-me-up");
        // The first one only asks whether the key has an account.
        if registers && seen.fetch_add(1, Ordering::SeqCst) == 1 {
            Fault::After(Arc::new(|| {}))
        } else {
            Fault::Pass
        }
    });
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some("eab".into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            "hmac".into(),
            ByteString(key.as_bytes().to_vec()),
        )])),
        ..Secret::default()
    };
    let secrets: Api<Secret> = Api::namespaced(bench.client()?, operator.namespace());
    secrets.create(&PostParams::default(), &secret).await?;
    renewed(&space, "bound", "").await?;
    // Its answer was lost, and then the account was found.
    assert_eq!(registrations.load(Ordering::SeqCst), 3);
    assert_eq!(answered(&proxies, "/sign-me-up", 201), 1, "accounts");
    assert!(!operator.log()?.contains(key), "the key is in the log");
    Ok(())
}

#[tokio::test]
async fn an_address_is_issued_for_where_the_config_allows_its_network() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = OperatorOptions {
        allow: "[{namespaces: [\"*\"], names: [\"**.example\", \"127.0.0.0/8\"]}]".into(),
        ..options()
    };
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "address", operator.namespace()).await?;
    let names = "127.0.0.1, address.example";
    let annotations = [
        ("issuer", "pebble"),
        ("names", names),
        ("profile", "shortlived"),
    ];
    space.tls_secret("address", None, &annotations).await?;
    let names = leaf(&renewed(&space, "address", "").await?)?.names;
    let mut names: Vec<String> = names.iter().map(ToString::to_string).collect();
    names.sort();
    assert_eq!(names, ["127.0.0.1", "address.example"]);
    let annotations = [("issuer", "pebble"), ("names", "10.0.0.1")];
    space.tls_secret("elsewhere", None, &annotations).await?;
    event(&space, "elsewhere", "10.0.0.1").await?;
    Ok(())
}

#[tokio::test]
async fn a_profile_of_the_secret_is_required_and_one_of_the_issuer_preferred() -> Result<()> {
    let bench = Bench::shared().await?;
    let prefers = format!(
        "  prefers:\n    directory: {}\n    caBundle: {}\n    profile: nowhere\n    \
         allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]\n",
        bench.pebble().directory(),
        bench.ca_bundle().display(),
    );
    let operator = Operator::start(bench, configured("", &prefers)).await?;
    let space = Space::new(bench.client()?, "profiles", operator.namespace()).await?;
    let required = [
        ("issuer", "pebble"),
        ("names", "required.profiles.example"),
        ("profile", "unheard-of"),
    ];
    space.tls_secret("required", None, &required).await?;
    let said = event(&space, "required", "unheard-of").await?;
    ensure!(
        said.contains("shortlived"),
        "it names what there is: {said}"
    );
    let preferred = [
        ("issuer", "prefers"),
        ("names", "preferred.profiles.example"),
    ];
    space.tls_secret("preferred", None, &preferred).await?;
    renewed(&space, "preferred", "").await?;
    let secret = space.secrets().get("required").await?;
    let retry = annotation(&secret, "state.cert-renew.io/retry-at");
    ensure!(retry.is_some(), "it is not tried again and again");
    Ok(())
}

#[tokio::test]
async fn certificates_of_a_minute_are_renewed_over_and_over() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut pebble = another_pebble("pebble-sixty");
    pebble.profiles = BTreeMap::from([("sixty".to_owned(), Duration::from_secs(60))]);
    let pebble = bench.start_pebble(&pebble).await?;
    let options = OperatorOptions {
        directory: Some(pebble.directory().to_owned()),
        ..options()
    };
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "sixty", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "sixty.example"),
        ("profile", "sixty"),
    ];
    space.tls_secret("sixty", None, &annotations).await?;
    renewed(&space, "sixty", "").await?;
    let mut leaves = std::collections::BTreeSet::new();
    eventually(
        Duration::from_secs(180),
        "three certificates more",
        async || {
            let leaf = leaf(&space.secrets().get("sixty").await?)?;
            let now = cert_renew_core::time::UnixTime::now();
            assert!(leaf.is_valid_at(now), "it has expired at {now}");
            leaves.insert(leaf.fingerprint);
            ensure!(leaves.len() == 4, "{} certificates", leaves.len());
            Ok(())
        },
    )
    .await?;
    Ok(())
}

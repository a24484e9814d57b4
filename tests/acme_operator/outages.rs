//! CAs that give no answer, are down, have forgotten everything, or have paused an account.

use serde_json::json;
use test_bench::objects::{OLD, Space, pair};
use test_bench::{Bench, Fault, Operator, OperatorOptions, Result, ensure, eventually};

use super::{PAST, QUICK, another_pebble, configured, event, issued, stuck, window};
use crate::renewal::{SOON, annotation, data, options, renewed};
use crate::scene::behind_proxies;

#[tokio::test]
async fn a_ca_without_an_answer_holds_nothing_up() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "ari-gone", operator.namespace()).await?;
    // Pebble has not issued it: 404.
    let old = pair(&["gone.ari.example"], OLD)?;
    space
        .tls_secret("gone", Some(&old), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "gone", &old.certificate).await?;
    Ok(())
}

#[tokio::test]
async fn after_a_failed_validation_staging_is_tried_until_it_passes() -> Result<()> {
    let bench = Bench::shared().await?;
    let staging = bench
        .start_pebble(&another_pebble("pebble-staging"))
        .await?;
    let settings = format!("    staging: {}\n", staging.directory());
    let mut options = configured(&settings, "");
    options.config += "retry: {base: 1s, factor: 1, max: 1s}\n";
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "staging", operator.namespace()).await?;
    let host = json!({"host": "broken.staging.example"});
    bench.dns().set("set-servfail", &host).await?;
    let annotations = [("issuer", "pebble"), ("names", "broken.staging.example")];
    space.tls_secret("broken", None, &annotations).await?;
    event(&space, "broken", "the rehearsal at the staging CA failed").await?;
    bench.dns().set("clear-servfail", &host).await?;
    renewed(&space, "broken", "").await?;
    let log = operator.log()?;
    assert!(log.contains("the rehearsal has passed"));
    // Each order of the real CA is an Event; rehearsals are none.
    let orders = log.matches("\"message\":\"ordered\"").count();
    let rehearsals = log
        .matches("the rehearsal at the staging CA failed")
        .count();
    eprintln!("{orders} orders, {rehearsals} failed rehearsals");
    assert!(
        orders <= 2 + rehearsals / 3,
        "{orders} orders, {rehearsals} failed rehearsals"
    );
    Ok(())
}

#[tokio::test]
async fn a_ca_that_is_down_is_replaced_by_its_fallback_while_life_is_short() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut fallback = another_pebble("pebble-fallback");
    fallback.profiles.remove("minutes");
    fallback.profiles.remove("minute");
    let fallback = bench.start_pebble(&fallback).await?;
    let config = |home: &str| {
        let allow = "[{namespaces: [\"*\"], names: [\"**.example\"]}]";
        let bundle = bench.ca_bundle().display();
        format!(
            "  home:\n    directory: {home}\n    fallback: second\n    caBundle: {bundle}\n    allow: {allow}\n  \
             second:\n    directory: {second}\n    caBundle: {bundle}\n    allow: {allow}\n{QUICK}\
             retry: {{base: 1s, factor: 1, max: 1s}}\n",
            second = fallback.directory(),
        )
    };
    // Nothing listens there.
    let down = config("https://127.0.0.1:9/dir");
    let options = OperatorOptions {
        config: down,
        ..options()
    };
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "fallback", operator.namespace()).await?;
    // The profile is one of the CA that is down; the other one has none of that name.
    let annotations = [
        ("issuer", "home"),
        ("names", "short.fallback.example"),
        ("profile", "minutes"),
    ];
    space.tls_secret("short", None, &annotations).await?;
    let age = test_bench::objects::Age {
        since: 65,
        left: 25,
    };
    let long = pair(&["long.fallback.example"], age)?;
    space
        .tls_secret("long", Some(&long), &[("issuer", "home")])
        .await?;
    let first = renewed(&space, "short", "").await?;
    let issued_by = annotation(&first, "state.cert-renew.io/issued-by").unwrap_or_default();
    assert!(issued_by.contains("second"), "{issued_by}");
    event(&space, "long", "RenewalFailed").await?;
    let secret = space.secrets().get("long").await?;
    assert_eq!(
        data(&secret, "tls.crt"),
        long.certificate,
        "it has time to wait"
    );
    // The CA is back, and the next renewal is its own again.
    operator.kill();
    let certificate = data(&first, "tls.crt");
    fallback
        .set_renewal_info(&certificate, &window(PAST.0, PAST.1))
        .await?;
    operator.configure(&config(bench.pebble().directory()))?;
    operator.run().await?;
    let second = renewed(&space, "short", &certificate).await?;
    let issued_by = annotation(&second, "state.cert-renew.io/issued-by").unwrap_or_default();
    assert!(issued_by.contains("\"home\""), "{issued_by}");
    renewed(&space, "long", &long.certificate).await?;
    Ok(())
}

#[tokio::test]
async fn a_ca_that_has_forgotten_everything_gets_the_account_again() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut ca = bench
        .start_pebble(&another_pebble("pebble-amnesia"))
        .await?;
    let mut options = configured("", "");
    options.config += "retry: {base: 1s, factor: 1, max: 1s}\n";
    options.directory = Some(ca.directory().to_owned());
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "amnesia", operator.namespace()).await?;
    let before = issued(&space, "before", "before.amnesia.example").await?;
    let root = ca.root(0).await?;
    ca.restart().await?;
    assert_ne!(ca.root(0).await?, root, "the roots are others too");
    issued(&space, "after", "after.amnesia.example").await?;
    // It says of itself that this CA has issued it, and the CA knows nothing of what it is to replace.
    let old = pair(&["old.amnesia.example"], OLD)?;
    let issued_by = annotation(&before, "state.cert-renew.io/issued-by").unwrap_or_default();
    let annotations = [
        ("issuer", "pebble"),
        ("state.cert-renew.io/issued-by", issued_by),
    ];
    space.tls_secret("old", Some(&old), &annotations).await?;
    renewed(&space, "old", &old.certificate).await?;
    let registered = operator.log()?.matches("account registered").count();
    assert_eq!(registered, 2, "once at each life of the CA");
    Ok(())
}

#[tokio::test]
async fn the_link_that_ends_a_pause_reaches_the_user() -> Result<()> {
    let bench = Bench::shared().await?;
    let (proxies, mut operator) = behind_proxies(bench, options()).await?;
    let space = Space::new(bench.client()?, "paused-ca", operator.namespace()).await?;
    let link = format!(
        "https://portal.letsencrypt.org/sfe/v1/unpause?jwt={}.b.c",
        "a".repeat(400)
    );
    let problem = json!({
        "type": "urn:ietf:params:acme:error:rateLimited", "status": 429,
        "detail": format!(
            "Your account is temporarily prevented from requesting certificates for pause.example and possibly \
             others. Please visit: {link}"
        ),
    })
    .to_string();
    proxies.rule(move |passed| {
        if passed.path.ends_with("/order-plz") {
            Fault::Answer(429, None, "application/problem+json", problem.clone())
        } else {
            Fault::Pass
        }
    });
    let annotations = [("issuer", "pebble"), ("names", "pause.example")];
    space.tls_secret("pause", None, &annotations).await?;
    let said = event(&space, "pause", "Paused").await?;
    ensure!(said.contains(&link), "{said}");
    eventually(SOON, "the Secret has the link", async || {
        let secret = space.secrets().get("pause").await?;
        let said = annotation(&secret, "state.cert-renew.io/last-error").unwrap_or_default();
        ensure!(said.contains(&link), "{said}");
        Ok(())
    })
    .await?;
    stuck(&operator, &space, "pause", "paused_by_ca").await?;
    // The next leader reads that from the Secret, and does not ask the CA to know.
    operator.kill();
    operator.run().await?;
    stuck(&operator, &space, "pause", "paused_by_ca").await?;
    let orders = proxies.passed().into_iter();
    let orders = orders.filter(|it| it.path.ends_with("/order-plz")).count();
    assert_eq!(
        orders, 1,
        "a CA that has paused us is not asked again at once"
    );
    Ok(())
}

//! How many certificates are asked for, whatever somebody does to the Secrets.

use std::time::Duration;

use serde_json::json;
use test_bench::objects::{Age, OLD, Pair, Space, pair};
use test_bench::{Bench, Operator, Result, ensure, eventually};

use super::{configured, event, issued, renewals, stuck};
use crate::dns01::no_record_is_left;
use crate::renewal::{SOON, data, leaf, options, renewed, rolled_out};

#[tokio::test]
async fn no_more_orders_than_the_config_allows() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, configured("    ordersPer3h: 4\n", "")).await?;
    let space = Space::new(bench.client()?, "quota", operator.namespace()).await?;
    for number in 0..6 {
        if number == 3 {
            // What was ordered before a restart counts.
            eventually(SOON, "three are issued", async || {
                ensure!(renewals(&operator)? == 3, "{} are", renewals(&operator)?);
                Ok(())
            })
            .await?;
            operator.restart().await?;
        }
        let (name, host) = (format!("tls-{number}"), format!("n{number}.quota.example"));
        space
            .tls_secret(&name, None, &[("issuer", "pebble"), ("names", &host)])
            .await?;
    }
    eventually(SOON, "four are issued and two wait", async || {
        ensure!(
            renewals(&operator)? == 4,
            "{} are issued",
            renewals(&operator)?
        );
        let waiting = operator.log()?.matches("the renewal waits").count();
        ensure!(waiting == 2, "{waiting} wait");
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_secret_that_somebody_wipes_gets_three_certificates_and_the_culprit_is_named()
-> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "wiped", operator.namespace()).await?;
    issued(&space, "wiped", "wiped.example").await?;
    let empty = Pair {
        certificate: String::new(),
        key: String::new(),
    };
    for second in 0..20 {
        space.put("wiped", &empty).await?;
        if second == 8 {
            operator.kill();
            operator.run().await?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    event(&space, "wiped", "somebody-else keeps replacing").await?;
    stuck(&operator, &space, "wiped", "other_owner").await?;
    assert_eq!(renewals(&operator)?, 3);
    Ok(())
}

#[tokio::test]
async fn a_secret_that_is_made_anew_over_and_over_gets_three_certificates() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "anew", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "anew.example")];
    for _ in 0..10 {
        space.tls_secret("anew", None, &annotations).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        space
            .secrets()
            .delete("anew", &kube::api::DeleteParams::default())
            .await?;
    }
    space.tls_secret("anew", None, &annotations).await?;
    event(&space, "anew", "no more is asked for").await?;
    assert_eq!(renewals(&operator)?, 3);
    Ok(())
}

#[tokio::test]
async fn impatience_brings_no_second_certificate() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "eager", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "early.eager.example"),
        ("renew-before", "9000h"),
    ];
    space.tls_secret("early", None, &annotations).await?;
    renewed(&space, "early", "").await?;
    issued(&space, "now", "now.eager.example").await?;
    for value in 0..10 {
        let patch =
            json!({"metadata": {"annotations": {"cert-renew.io/renew-now": value.to_string()}}});
        space.merge("now", patch).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let held = event(&space, "now", "younger than a tenth").await?;
    let (place, operator_namespace) = (&space.name, operator.namespace());
    let force = format!(
        "cert-renew renew --force {place}/now --operator-namespace {operator_namespace} asks at once"
    );
    ensure!(held.contains(&force), "{held}");
    assert_eq!(renewals(&operator)?, 2, "one each");
    Ok(())
}

#[tokio::test]
async fn twenty_copies_of_one_wildcard_share_one_order() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let old = pair(&["shop.copies.example", "www.copies.example"], OLD)?;
    let mut spaces = Vec::new();
    for _ in 0..20 {
        let space = Space::new(bench.client()?, "copies", operator.namespace()).await?;
        space
            .tls_secret("wild", Some(&old), &[("issuer", "pebble")])
            .await?;
        spaces.push(space);
    }
    // The same certificate, but somebody else's key: it is not given the new one.
    let stranger = Space::new(bench.client()?, "zz-stranger", operator.namespace()).await?;
    let forged = Pair {
        key: pair(&["x.example"], OLD)?.key,
        ..old.clone()
    };
    stranger
        .tls_secret("wild", Some(&forged), &[("issuer", "pebble")])
        .await?;
    operator.run().await?;
    let first = renewed(&spaces[0], "wild", &old.certificate).await?;
    let shared = leaf(&first)?.fingerprint;
    for space in &spaces {
        let secret = renewed(space, "wild", &old.certificate).await?;
        assert_eq!(leaf(&secret)?.fingerprint, shared);
        rolled_out(space, "wild").await?;
    }
    let own = renewed(&stranger, "wild", &old.certificate).await?;
    assert_ne!(leaf(&own)?.fingerprint, shared);
    let orders = operator.log()?.matches("\"message\":\"ordered\"").count();
    assert_eq!(orders, 2, "one for the copies, one for the stranger");
    Ok(())
}

/// One of them is renewed, and its certificate is put into none with an invalid annotation.
#[tokio::test]
async fn a_copy_with_an_annotation_that_cannot_be_followed_keeps_its_certificate() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let space = Space::new(bench.client()?, "unread-copies", operator.namespace()).await?;
    let aged = Age {
        since: 20,
        left: 70,
    };
    let old = pair(&["unread.copies.example"], aged)?;
    let blocked = [
        ("pause", "paused", "yes"),
        ("window", "change-window", "Mon 25:00-26:00 UTC"),
        ("key", "key-type", "rsa"),
    ];
    for (name, key, value) in blocked {
        let annotations = [("issuer", "pebble"), (key, value)];
        space.tls_secret(name, Some(&old), &annotations).await?;
    }
    let asks = [("issuer", "pebble"), ("renew-now", "1")];
    space.tls_secret("a", Some(&old), &asks).await?;
    space.tls_secret("sound", Some(&old), &asks[..1]).await?;
    // All are known when it is renewed.
    operator.run().await?;
    let shared = leaf(&renewed(&space, "a", &old.certificate).await?)?.fingerprint;
    let copy = renewed(&space, "sound", &old.certificate).await?;
    assert_eq!(leaf(&copy)?.fingerprint, shared);
    // The record goes when all copies are written.
    no_record_is_left(bench, &operator).await?;
    for (name, key, _) in blocked {
        let secret = space.secrets().get(name).await?;
        ensure!(
            data(&secret, "tls.crt") == old.certificate,
            "{name} was overwritten although {key} is invalid"
        );
    }
    Ok(())
}

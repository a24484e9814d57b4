//! Annotated Secrets are renewed: what is due, what is not, what is kept, what is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::install::kubectl;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use test_bench::objects::{FRESH, OLD, Reference, Space, pair};
use test_bench::{
    Bench, Context as _, Operator, OperatorOptions, Result, ensure, eventually, tally,
};

/// Generous: a renewal takes about a second.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) fn options() -> OperatorOptions {
    OperatorOptions::new(env!("CARGO_BIN_EXE_cert-renew"))
}

pub(crate) fn data(secret: &Secret, key: &str) -> String {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value
        .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
        .unwrap_or_default()
}

pub(crate) fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret
        .metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

/// The leaf that a Secret holds, read by the operator's own reader.
pub(crate) fn leaf(secret: &Secret) -> Result<cert_renew_core::certificate::Leaf> {
    cert_renew_core::certificate::leaf(data(secret, "tls.crt").as_bytes())
        .context("reading tls.crt")
}

/// A Secret whose certificate is due, and a Deployment that mounts it; the old certificate.
pub(crate) async fn overdue(space: &Space, name: &str, host: &str) -> Result<String> {
    let old = pair(&[host], OLD)?;
    space
        .workload("Deployment", name, Reference::Volume, name)
        .await?;
    space
        .tls_secret(name, Some(&old), &[("issuer", "pebble")])
        .await?;
    Ok(old.certificate)
}

/// Waits until the Secret holds another certificate than `old`, and that it is sound.
pub(crate) async fn renewed(space: &Space, name: &str, old: &str) -> Result<Secret> {
    let secret = eventually(SOON, &format!("{name} is renewed"), async || {
        let secret = space.secrets().get(name).await?;
        ensure!(
            data(&secret, "tls.crt") != old,
            "it still holds the old certificate"
        );
        Ok(secret)
    })
    .await?;
    let now = cert_renew_core::time::UnixTime::now();
    let (certificate, key) = (data(&secret, "tls.crt"), data(&secret, "tls.key"));
    cert_renew_core::certificate::pair::check_pair(certificate.as_bytes(), key.as_bytes(), now)?;
    Ok(secret)
}

/// Waits until the Secret says that its workloads have what it holds.
pub(crate) async fn rolled_out(space: &Space, name: &str) -> Result<Secret> {
    let rolled = eventually(SOON, &format!("{name} is rolled out"), async || {
        let secret = space.secrets().get(name).await?;
        let fingerprint = leaf(&secret)?.fingerprint.to_string();
        let said = annotation(&secret, "state.cert-renew.io/rolled-out").unwrap_or("nothing");
        ensure!(
            said.starts_with(&fingerprint),
            "rolled-out says {said}, the leaf is {fingerprint}"
        );
        Ok(secret)
    })
    .await;
    match rolled {
        Err(error) => Err(error.context(space.situation().await)),
        rolled => rolled,
    }
}

#[tokio::test]
async fn what_is_due_is_renewed_and_its_workloads_roll() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "due", operator.namespace()).await?;
    // The account is made with the first renewal of an issuer; that of the second one is counted.
    let first = pair(&["before.example"], OLD)?;
    space
        .tls_secret("before", Some(&first), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "before", &first.certificate).await?;
    rolled_out(&space, "before").await?;
    let old = pair(&["due.example", "www.due.example"], OLD)?;
    space.tls_secret("shop-tls", Some(&old), &[]).await?;
    space
        .workload("Deployment", "web", Reference::Volume, "shop-tls")
        .await?;
    let mark = json!({"metadata": {
        "labels": {"team": "shop"},
        "annotations": space.annotations(&[("issuer", "pebble"), ("example.com/note", "keep me")]),
    }, "data": {"extra": "a2VlcCBtZSB0b28="}});
    let before = operator.writes()?.len();
    space.merge("shop-tls", mark).await?;
    renewed(&space, "shop-tls", &old.certificate).await?;
    let secret = rolled_out(&space, "shop-tls").await?;

    let leaf = leaf(&secret)?;
    let names: Vec<String> = leaf.names.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_ne!(data(&secret, "tls.key"), old.key, "the key is a new one");
    // The seeds wiped all of this.
    assert_eq!(secret.metadata.labels.as_ref().unwrap()["team"], "shop");
    assert_eq!(annotation(&secret, "example.com/note"), Some("keep me"));
    assert_eq!(data(&secret, "extra"), "keep me too");
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
    assert_eq!(
        space.leaf_of("Deployment", "web", "shop-tls").await?,
        Some(leaf.fingerprint.to_string())
    );
    assert_eq!(
        space.generation("Deployment", "web").await?,
        2,
        "rolled once"
    );

    let events = eventually(SOON, "the Events are there", async || {
        let events = space.events("shop-tls").await?;
        ensure!(
            events.iter().any(|event| event.starts_with("RolledOut")),
            "{events:?}"
        );
        Ok(events)
    })
    .await?;
    for reason in ["Renewed", "RolledOut"] {
        assert!(
            events.iter().any(|event| event.starts_with(reason)),
            "{reason} in {events:?}"
        );
    }

    let writes = &operator.writes()?[before..];
    eprintln!(
        "writes for one renewal with one Deployment: {} {:?}",
        writes.len(),
        tally(writes)
    );
    assert!(writes.len() <= 5, "{writes:#?}");
    Ok(())
}

#[tokio::test]
async fn a_first_certificate_is_issued_into_an_empty_secret() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "first", operator.namespace()).await?;
    space
        .workload("StatefulSet", "db", Reference::Env, "first-tls")
        .await?;
    space
        .tls_secret(
            "first-tls",
            None,
            &[("issuer", "pebble"), ("names", "first.example")],
        )
        .await?;
    renewed(&space, "first-tls", "").await?;
    let secret = rolled_out(&space, "first-tls").await?;
    let fingerprint = leaf(&secret)?.fingerprint.to_string();
    assert_eq!(
        space.leaf_of("StatefulSet", "db", "first-tls").await?,
        Some(fingerprint),
        "the first certificate rolls"
    );
    Ok(())
}

#[tokio::test]
async fn what_is_not_due_is_not_renewed_and_installing_restarts_nothing() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let space = Space::new(bench.client()?, "install", operator.namespace()).await?;
    let fresh = pair(&["install.example"], FRESH)?;
    space
        .tls_secret("annotated", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    let untouched = space
        .tls_secret("unannotated", Some(&pair(&["other.example"], OLD)?), &[])
        .await?;
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicationController",
    ] {
        space
            .workload(kind, "a", Reference::Volume, "annotated")
            .await?;
        space
            .workload(kind, "b", Reference::Volume, "unannotated")
            .await?;
    }
    operator.run().await?;
    rolled_out(&space, "annotated").await?;
    // The Secret that is due is renewed after the others were looked at: then they had their chance.
    let due = pair(&["due.install.example"], OLD)?;
    space
        .tls_secret("due", Some(&due), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "due", &due.certificate).await?;
    rolled_out(&space, "due").await?;

    let annotated = space.secrets().get("annotated").await?;
    assert_eq!(
        data(&annotated, "tls.crt"),
        fresh.certificate,
        "not due, not renewed"
    );
    let unannotated = space.secrets().get("unannotated").await?;
    assert_eq!(
        unannotated.metadata.resource_version, untouched.metadata.resource_version,
        "never touched"
    );
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicationController",
    ] {
        for name in ["a", "b"] {
            assert_eq!(
                space.generation(kind, name).await?,
                1,
                "{kind} {name} was restarted by the install"
            );
        }
    }
    let writes = operator.writes()?;
    let elsewhere = writes
        .iter()
        .filter(|write| write.namespace == space.name && write.name != "due");
    let elsewhere: Vec<_> = elsewhere
        .map(|write| (write.verb.as_str(), write.name.as_str()))
        .collect();
    assert_eq!(
        elsewhere,
        [("patch", "annotated")],
        "nothing is written but rolled-out"
    );
    Ok(())
}

#[tokio::test]
async fn a_hundred_that_fall_due_at_once_are_all_renewed() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let space = Space::new(bench.client()?, "hundred", operator.namespace()).await?;
    let mut old = BTreeMap::new();
    for number in 0..100 {
        let name = format!("tls-{number}");
        let pair = pair(&[&format!("n{number}.hundred.example")], OLD)?;
        space
            .tls_secret(&name, Some(&pair), &[("issuer", "pebble")])
            .await?;
        old.insert(name, pair.certificate);
    }
    operator.run().await?;
    for (name, old) in &old {
        renewed(&space, name, old).await?;
        rolled_out(&space, name).await?;
    }
    let left = operator
        .requests()?
        .iter()
        .filter(|it| it.verb == "delete" && it.resource == "secrets")
        .count();
    assert_eq!(left, 100, "every order record is deleted");
    Ok(())
}

#[tokio::test]
async fn odd_input_is_named_in_an_event_and_the_rest_goes_on() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::install(bench, options()).await?;
    let space = Space::new(bench.client()?, "odd", operator.namespace()).await?;
    let fresh = pair(&["odd.example"], FRESH)?;
    let annotations =
        |more: &[(&'static str, &'static str)]| [&[("issuer", "pebble")], more].concat();
    let with = |certificate: &str| {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        BTreeMap::from([
            ("tls.crt".to_owned(), bytes(certificate)),
            ("tls.key".to_owned(), bytes(&fresh.key)),
        ])
    };
    let tls = "kubernetes.io/tls";
    space
        .secret(
            "garbage",
            tls,
            with("no certificate at all"),
            &annotations(&[]),
        )
        .await?;
    space
        .secret(
            "bundle",
            tls,
            with(&format!("{}{}", fresh.key, fresh.certificate)),
            &annotations(&[]),
        )
        .await?;
    let crlf = fresh.certificate.replace('\n', "  \r\n");
    space
        .secret("crlf", tls, with(&crlf), &annotations(&[]))
        .await?;
    space
        .tls_secret(
            "unknown-annotation",
            Some(&fresh),
            &annotations(&[("colour", "blue")]),
        )
        .await?;
    space
        .tls_secret("unknown-issuer", Some(&fresh), &[("issuer", "nobody")])
        .await?;
    space
        .tls_secret(
            "forbidden",
            Some(&pair(&["shop.forbidden.test"], OLD)?),
            &annotations(&[]),
        )
        .await?;
    space
        .tls_secret(
            "bad-value",
            Some(&fresh),
            &annotations(&[("renew-before", "soon")]),
        )
        .await?;
    let good = pair(&["good.odd.example"], OLD)?;
    space
        .tls_secret("good", Some(&good), &annotations(&[]))
        .await?;
    operator.run().await?;
    renewed(&space, "good", &good.certificate).await?;
    for (name, said) in [
        ("unknown-annotation", "cert-renew.io/colour"),
        ("unknown-issuer", "\"nobody\""),
        ("forbidden", "shop.forbidden.test"),
        ("bad-value", "\"soon\""),
        ("garbage", "cert-renew.io/names"),
    ] {
        eventually(
            SOON,
            &format!("an Event on {name} says {said}"),
            async || {
                let events = space.events(name).await?;
                ensure!(
                    events.iter().any(|event| event.contains(said)),
                    "{events:?}"
                );
                Ok(())
            },
        )
        .await?;
    }
    for name in ["bundle", "crlf", "unknown-annotation", "bad-value"] {
        rolled_out(&space, name).await?;
    }
    let metrics = operator.metrics().await?;
    let expected = "cert_renew_certificates{state=\"unreadable\"} 1";
    assert!(metrics.contains(expected), "{expected} in\n{metrics}");
    Ok(())
}

/// One customer of many takes their domain away (certbot #5217, #4470, acme.sh #1928).
#[tokio::test]
async fn a_name_that_is_gone_is_told_with_the_command_that_goes_on_without_it() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "gone", operator.namespace()).await?;
    let moved = json!({"host": "moved.gone.example."});
    bench.dns().set("set-servfail", &moved).await?;
    let names = ["a.gone.example", "moved.gone.example", "b.gone.example"];
    let old = pair(&names, OLD)?;
    space
        .tls_secret("shared", Some(&old), &[("issuer", "pebble")])
        .await?;
    let command = eventually(SOON, "the Event has the command", async || {
        let events = space.events("shared").await?;
        let failed = { events.iter() }.find(|event| event.starts_with("RenewalFailed"));
        let (_, command) = failed
            .with_context(|| format!("{events:?}"))?
            .split_once("for the 2 other names: kubectl ")
            .with_context(|| format!("{failed:?}"))?;
        Ok(command.to_owned())
    })
    .await?;
    kubectl(bench, &command.replace('\'', ""), "")?;
    let secret = renewed(&space, "shared", &old.certificate).await?;
    let left = leaf(&secret)?.names;
    let mut left: Vec<String> = left.iter().map(ToString::to_string).collect();
    left.sort();
    assert_eq!(left, ["a.gone.example", "b.gone.example"]);
    Ok(())
}

#[tokio::test]
async fn a_renewal_that_fails_restarts_nothing_and_backs_off_across_restarts() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "fails", operator.namespace()).await?;
    let broken = json!({"host": "broken.example."});
    bench.dns().set("set-servfail", &broken).await?;
    let old = pair(&["broken.example"], OLD)?;
    space
        .tls_secret("broken", Some(&old), &[("issuer", "pebble")])
        .await?;
    space
        .workload("Deployment", "web", Reference::Volume, "broken")
        .await?;
    let failed = async || {
        let secret = space.secrets().get("broken").await?;
        let retry_at =
            annotation(&secret, "state.cert-renew.io/retry-at").context("no retry-at yet")?;
        ensure!(
            annotation(&secret, "state.cert-renew.io/last-error").is_some(),
            "no last-error yet"
        );
        Ok((retry_at.to_owned(), secret))
    };
    let (retry_at, secret) = eventually(SOON, "the failure stands on the Secret", failed).await?;
    assert_eq!(
        data(&secret, "tls.crt"),
        old.certificate,
        "the old certificate stays"
    );
    eventually(SOON, "an Event tells of it", async || {
        let events = space.events("broken").await?;
        ensure!(events.iter().any(|event| event.starts_with("RenewalFailed") && event.contains("broken.example")), "{events:?}");
        Ok(())
    })
    .await?;
    operator.terminate().await?;
    operator.run().await?;
    // Another one is renewed after the restart: the broken one had its chance to be tried too early.
    let other = pair(&["other.fails.example"], OLD)?;
    space
        .tls_secret("other", Some(&other), &[("issuer", "pebble")])
        .await?;
    renewed(&space, "other", &other.certificate).await?;
    assert_eq!(
        failed().await?.0,
        retry_at,
        "it was tried again before its time"
    );
    assert_eq!(
        space.generation("Deployment", "web").await?,
        1,
        "the seed restarted even when the fetch failed"
    );
    bench.dns().set("clear-servfail", &broken).await?;
    let again = json!({"metadata": {"annotations": {"cert-renew.io/renew-now": "now, please"}}});
    space.merge("broken", again).await?;
    let secret = renewed(&space, "broken", &old.certificate).await?;
    assert_eq!(annotation(&secret, "state.cert-renew.io/last-error"), None);
    assert_eq!(
        annotation(&secret, "state.cert-renew.io/renewed-for"),
        Some("now, please")
    );
    rolled_out(&space, "broken").await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    Ok(())
}

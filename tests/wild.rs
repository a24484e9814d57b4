//! Certificates and keys as people and tools put them there: in disorder, in odd forms, with a key that does not fit.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use cert_renew_core::testing::forge::{Forged, alternative_names, tlv};
use cert_renew_core::time::UnixTime;
use kube::api::{Patch, PatchParams};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::json;
use test_bench::certificates::{DAY, Pair};
use test_bench::objects::{FRESH, Reference, Space, pair};
use test_bench::{Bench, Fault, Operator, Proxies, Result, ensure, eventually, throughout};

use crate::fresh_look::closed_window;
use crate::propagation::{QUIET, told};
use crate::renewal::{SOON, data, leaf, options, renewed, rolled_out};

const EXTERNAL: [(&str, &str); 1] = [("issuer", "external")];

/// A Secret with this pair, and a Deployment that mounts it; first sight is over.
async fn served(
    space: &Space,
    name: &str,
    pair: &Pair,
    annotations: &[(&str, &str)],
) -> Result<()> {
    space.tls_secret(name, Some(pair), annotations).await?;
    space
        .workload("Deployment", name, Reference::Volume, name)
        .await?;
    rolled_out(space, name).await?;
    Ok(())
}

/// The intermediate before the leaf.
fn disordered(pair: &Pair) -> Pair {
    let second = pair.certificate.rfind("-----BEGIN").unwrap_or_default();
    let (leaf, issuer) = pair.certificate.split_at(second);
    Pair {
        certificate: format!("{issuer}{leaf}"),
        key: pair.key.clone(),
    }
}

/// As `cat` makes it of files without a last line end.
fn glued(pair: &Pair) -> Pair {
    Pair {
        certificate: pair.certificate.replace("-----\n-----", "----------"),
        key: pair.key.clone(),
    }
}

#[tokio::test]
async fn a_file_in_disorder_is_reported_and_its_renewal_is_rolled() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "disorder", operator.namespace()).await?;
    let fresh = || Ok(disordered(&pair(&["disorder.example"], FRESH)?));
    let first: Result<Pair> = fresh();
    served(&space, "tls", &first?, &EXTERNAL).await?;
    told(
        &space,
        "tls",
        "the server certificate is number 2 of the file",
    )
    .await?;
    let next: Result<Pair> = fresh();
    let next = next?;
    space.put("tls", &next).await?;
    let secret = rolled_out(&space, "tls").await?;
    assert_eq!(space.generation("Deployment", "tls").await?, 2);
    // The leaf counts for all that is said of it, not the first block.
    let held = leaf(&secret)?;
    assert_eq!(held.names, ["disorder.example".parse()?]);
    let metrics = operator.metrics().await?;
    let ends = format!("secret=\"tls\",issuer=\"external\"}} {}", held.not_after.0);
    assert!(metrics.contains(&ends), "{ends}: {metrics}");
    Ok(())
}

#[tokio::test]
async fn what_no_server_loads_is_not_rolled_onto() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "unservable", operator.namespace()).await?;
    let make = || pair(&["unservable.example"], FRESH);
    served(&space, "foreign", &make()?, &EXTERNAL).await?;
    served(&space, "ours", &make()?, &[("issuer", "pebble")]).await?;
    let unread = [("issuer", "pebble"), ("key-type", "rsa")];
    served(&space, "unread", &make()?, &unread).await?;
    let left = glued(&make()?);
    space.put("unread", &left).await?;
    told(&space, "unread", "cannot load the certificate").await?;
    space.put("foreign", &glued(&make()?)).await?;
    let next = make()?;
    space.put("ours", &glued(&next)).await?;
    told(
        &space,
        "foreign",
        "OpenSSL (nginx, HAProxy, Apache) and Go (Traefik, Caddy) cannot load the certificate",
    )
    .await?;
    told(&space, "foreign", "sed -i").await?;
    // Ours is written again as the same pair, no CA is asked, and the workload has it.
    let secret = eventually(SOON, "the pair is written in clean PEM", async || {
        let secret = space.secrets().get("ours").await?;
        ensure!(data(&secret, "tls.crt") == next.certificate, "it is not");
        Ok(secret)
    })
    .await?;
    let (certificate, key) = (data(&secret, "tls.crt"), data(&secret, "tls.key"));
    let now = UnixTime::now();
    cert_renew_core::certificate::pair::check_pair(certificate.as_bytes(), key.as_bytes(), now)?;
    rolled_out(&space, "ours").await?;
    assert_eq!(space.generation("Deployment", "ours").await?, 2);
    throughout(QUIET, "the other is not restarted", async || {
        ensure!(
            space.generation("Deployment", "foreign").await? == 1,
            "it was"
        );
        let unread = space.secrets().get("unread").await?;
        ensure!(
            data(&unread, "tls.crt") == left.certificate,
            "a Secret with an invalid annotation was written"
        );
        Ok(())
    })
    .await?;
    space.put("foreign", &make()?).await?;
    rolled_out(&space, "foreign").await?;
    assert_eq!(space.generation("Deployment", "foreign").await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_key_that_was_replaced_alone_is_reported() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "mismatch", operator.namespace()).await?;
    let fresh = pair(&["mismatch.example"], FRESH)?;
    served(&space, "tls", &fresh, &EXTERNAL).await?;
    let broken = async || {
        let metrics = operator.metrics().await?;
        let series = metrics
            .lines()
            .filter(|line| line.contains("cert_renew_certificate_trouble{"));
        let ours = format!("namespace=\"{}\"", space.name);
        let found: Vec<&str> = series.filter(|line| line.contains(&ours)).collect();
        Ok::<_, test_bench::Error>(
            found
                .iter()
                .any(|line| line.contains("state=\"pair_broken\"")),
        )
    };
    let key = |key: &str| json!({"stringData": {"tls.key": key}});
    let patch = async |key: serde_json::Value| {
        let params = PatchParams::default();
        space
            .secrets()
            .patch("tls", &params, &Patch::Merge(key))
            .await
    };
    let other = pair(&["mismatch.example"], FRESH)?;
    patch(key(&other.key)).await?;
    told(
        &space,
        "tls",
        "the private key is not the one of the certificate",
    )
    .await?;
    eventually(SOON, "it has a series", async || {
        ensure!(broken().await?, "it has none");
        Ok(())
    })
    .await?;
    patch(key(&fresh.key)).await?;
    eventually(SOON, "the series is gone", async || {
        ensure!(!broken().await?, "it is still there");
        Ok(())
    })
    .await?;
    // Once more: the first time the Secret was new, and looked at for that.
    patch(key(&other.key)).await?;
    eventually(SOON, "it has a series again", async || {
        ensure!(broken().await?, "it has none");
        Ok(())
    })
    .await?;
    assert_eq!(space.generation("Deployment", "tls").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_key_that_cannot_be_looked_at_is_looked_at_later() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let mut options = options();
    options.api_server = Some(proxies.api_server());
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "unseen", operator.namespace()).await?;
    let fresh = pair(&["unseen.example"], FRESH)?;
    served(&space, "tls", &fresh, &EXTERNAL).await?;
    let path = format!("/api/v1/namespaces/{}/secrets/tls", space.name);
    // More than one request with all its repetitions.
    let (left, refused) = (AtomicUsize::new(6), Arc::new(AtomicUsize::new(0)));
    let count = refused.clone();
    proxies.rule(move |passed| {
        let is_look = passed.method == "GET" && passed.path == path;
        let less = |left: usize| left.checked_sub(1);
        if is_look && left.fetch_update(Relaxed, Relaxed, less).is_ok() {
            count.fetch_add(1, Relaxed);
            return Fault::Refuse;
        }
        Fault::Pass
    });
    let other = pair(&["unseen.example"], FRESH)?;
    let key = json!({"stringData": {"tls.key": other.key}});
    let params = PatchParams::default();
    let patch = Patch::Merge(key);
    space.secrets().patch("tls", &params, &patch).await?;
    told(
        &space,
        "tls",
        "the private key is not the one of the certificate",
    )
    .await?;
    assert_eq!(refused.load(Relaxed), 6);
    Ok(())
}

#[tokio::test]
async fn a_pair_that_does_not_fit_is_reported_although_nothing_is_rolled_for_it() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "unfit", operator.namespace()).await?;
    let window = closed_window();
    let shut = [
        ("window", ("change-window", &*window)),
        ("paused", ("paused", "true")),
    ];
    let fresh = || pair(&["unfit.example"], FRESH);
    let first = fresh()?;
    for (name, setting) in shut {
        served(&space, name, &first, &[EXTERNAL[0], setting]).await?;
    }
    served(&space, "again", &first, &EXTERNAL).await?;
    let unfit = |pair: Pair| {
        Ok::<_, test_bench::Error>(Pair {
            key: fresh()?.key,
            ..pair
        })
    };
    // Certificate and key at once, long before the way opens.
    for (name, _) in shut {
        space.put(name, &unfit(fresh()?)?).await?;
    }
    // Made again with the certificate that it had.
    space.secrets().delete("again", &Default::default()).await?;
    space
        .tls_secret("again", Some(&unfit(first)?), &EXTERNAL)
        .await?;
    for name in ["window", "paused", "again"] {
        told(
            &space,
            name,
            "the private key is not the one of the certificate",
        )
        .await?;
        assert_eq!(space.generation("Deployment", name).await?, 1, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn a_foreign_pair_with_a_key_that_we_cannot_read_is_rolled() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "unread", operator.namespace()).await?;
    for (name, file) in [("encrypted", "encrypted.key"), ("pss", "rsa-pss.key")] {
        let key = std::fs::read_to_string(format!("testdata/certificates/{file}"))?;
        let make = || {
            let made = pair(&["unread.example"], FRESH)?;
            Ok::<_, test_bench::Error>(Pair {
                key: key.clone(),
                ..made
            })
        };
        served(&space, name, &make()?, &EXTERNAL).await?;
        space.put(name, &make()?).await?;
        rolled_out(&space, name).await?;
        assert_eq!(space.generation("Deployment", name).await?, 2, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn a_certificate_with_more_names_than_any_profile_allows_is_left_alone() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "many", operator.namespace()).await?;
    let names: Vec<String> = (0..1_100).map(|it| format!("n{it}.many.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let annotations = [("issuer", "pebble"), ("renew-now", "1")];
    let many = pair(&names, test_bench::objects::OLD)?;
    space.tls_secret("many", Some(&many), &annotations).await?;
    told(&space, "many", "it is for 1100 names").await?;
    throughout(QUIET, "it is not renewed", async || {
        let secret = space.secrets().get("many").await?;
        ensure!(data(&secret, "tls.crt") == many.certificate, "it was");
        Ok(())
    })
    .await
}

/// A certificate for a name and for what is none, of ninety days, with the number of days that are left.
fn odd(name: &str, left: i64) -> Result<Pair> {
    let key = KeyPair::generate()?;
    let in_days = |days: i64| {
        let at = UnixTime(UnixTime::now().0 + days * DAY).to_string();
        let digits: String = at[2..].chars().filter(char::is_ascii_digit).collect();
        tlv(0x17, (digits + "Z").as_bytes())
    };
    let names = [(0x82, name.as_bytes()), (0x82, b"lost.example,odd.example")];
    let forged = Forged {
        validity: [in_days(left - 90), in_days(left)],
        key: key.subject_public_key_info(),
        extensions: vec![alternative_names(names)],
        ..Forged::default()
    };
    Ok(Pair {
        certificate: forged.pem(),
        key: key.serialize_pem(),
    })
}

/// A renewal by the names of the certificate that is there does not lose one of them in silence.
#[tokio::test]
async fn a_name_that_cannot_be_asked_for_is_reported_and_lost_only_in_need() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "odd", operator.namespace()).await?;
    let annotations = [("issuer", "pebble")];
    // Both are due.
    let held = odd("held.odd.example", 25)?;
    let ends = odd("ends.odd.example", 5)?;
    for (name, pair) in [("held", &held), ("ends", &ends)] {
        space.tls_secret(name, Some(pair), &annotations).await?;
    }
    let said = "are no names: \"lost.example,odd.example\"";
    told(&space, "held", said).await?;
    told(
        &space,
        "held",
        "name those to ask for in cert-renew.io/names",
    )
    .await?;
    renewed(&space, "ends", &ends.certificate).await?;
    told(&space, "ends", said).await?;
    throughout(QUIET, "a name that may be meant is not lost", async || {
        let secret = space.secrets().get("held").await?;
        ensure!(data(&secret, "tls.crt") == held.certificate, "it was");
        Ok(())
    })
    .await?;
    let names = "held.odd.example, lost.odd.example";
    space.annotate("held", "names", names).await?;
    let secret = renewed(&space, "held", &held.certificate).await?;
    assert_eq!(leaf(&secret)?.names.len(), 2);
    Ok(())
}

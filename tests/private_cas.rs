//! Private CAs: requested lifetimes, names that need no proof, chains that Pebble never gives.

use std::time::Duration;

use cert_renew_core::time::UnixTime;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;
use test_bench::certificates::{Template, TestCa};
use test_bench::objects::{OLD, Space, pair};
use test_bench::{
    Bench, Operator, OperatorOptions, PebbleOptions, Proxies, Result, ensure, eventually,
    throughout,
};

use crate::acme_operator::{another_pebble, configured, event, issued};
use crate::open_orders::{operator as with_dns, stuck, tamper, unreachable, way_is_open};
use crate::private_ca::{Lifetimes, Manners, PrivateCa};
use crate::renewal::{SOON, annotation, data, leaf, renewed};

const DAY: i64 = 86_400;
/// Longer than any of these tests: who succeeds has not waited for it.
const LONG: &str = "retry: {base: 1h, factor: 1, max: 1h}\n";
/// Long enough for another order.
const A_WHILE: Duration = Duration::from_secs(5);

async fn operator<'a>(
    bench: &'a Bench,
    ca: &PrivateCa,
    of_issuer: &str,
    others: &str,
) -> Result<Operator<'a>> {
    let options = OperatorOptions {
        directory: Some(ca.directory()),
        ..configured(of_issuer, &(LONG.to_owned() + others))
    };
    Operator::start(bench, options).await
}

/// For how many days from now on it is valid.
fn days(secret: &Secret) -> Result<f64> {
    let left = leaf(secret)?.not_after.since(UnixTime::now());
    Ok(left.as_secs() as f64 / DAY as f64)
}

fn is_about(days: f64, expected: f64) -> Result<()> {
    ensure!(
        (expected * 0.98..=expected * 1.02).contains(&days),
        "{days} days, not {expected}"
    );
    Ok(())
}

#[tokio::test]
async fn a_lifetime_that_is_asked_for_is_had_and_costs_no_request_more() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = PebbleOptions {
        authorization_reuse: 100,
        ..another_pebble("pebble-lifetime")
    };
    let pebble = bench.start_pebble(&options).await?;
    let proxies = Proxies::before(bench, &pebble).await?;
    let options = OperatorOptions {
        directory: Some(proxies.directory()),
        ..configured("", LONG)
    };
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "lifetime", operator.namespace()).await?;
    // The account is made with the first one.
    issued(&space, "before", "before.lifetime.example").await?;
    let asked = || {
        let passed = proxies.passed().into_iter();
        let aside = ["/dir", "/draft-ietf-acme-ari"];
        let counted = passed.filter(|it| {
            it.server == test_bench::Server::Ca
                && !aside.iter().any(|path| it.path.starts_with(path))
        });
        counted.count()
    };
    let before = asked();
    let annotations = [
        ("issuer", "pebble"),
        ("names", "a.lifetime.example"),
        ("lifetime", "24h"),
    ];
    space.tls_secret("tls", None, &annotations).await?;
    let first = renewed(&space, "tls", "").await?;
    is_about(days(&first)?, 1.0)?;
    assert_eq!(asked() - before, 7);
    let issued_by = annotation(&first, "state.cert-renew.io/issued-by").unwrap_or_default();
    let issued_by: Value = serde_json::from_str(issued_by)?;
    assert_eq!(issued_by["lifetime"], DAY);
    // Another lifetime is had at once, as another profile is.
    let before = asked();
    space.annotate("tls", "lifetime", "7d").await?;
    let second = renewed(&space, "tls", &data(&first, "tls.crt")).await?;
    is_about(days(&second)?, 7.0)?;
    assert_eq!(asked() - before, 4);
    // Without the annotation nothing is due: the next renewal has what the CA gives.
    space.annotate("tls", "lifetime", Value::Null).await?;
    throughout(A_WHILE, "nothing is ordered", async || {
        ensure!(asked() - before == 4, "{} requests", asked() - before);
        Ok(())
    })
    .await?;
    let events = space.events("tls").await?;
    let other = events.iter().find(|it| it.contains("OtherLifetime"));
    ensure!(other.is_none(), "{other:?}");
    Ok(())
}

#[tokio::test]
async fn a_lifetime_that_the_ca_ignores_is_told_once_and_asked_for_no_more_often() -> Result<()> {
    let bench = Bench::shared().await?;
    for (tag, given, told) in [("longer", 90, "90d after"), ("sooner", 2, "2d after")] {
        let manners = Manners {
            lifetimes: Lifetimes::Ignored,
            lifetime: given * DAY,
            ..Manners::default()
        };
        let ca = PrivateCa::start("Ignorant CA", manners).await?;
        let operator = operator(bench, &ca, "", "").await?;
        let space = Space::new(bench.client()?, tag, operator.namespace()).await?;
        let host = format!("{tag}.ignored.example");
        let annotations = [("issuer", "pebble"), ("names", &*host), ("lifetime", "30d")];
        space.tls_secret("tls", None, &annotations).await?;
        let first = renewed(&space, "tls", "").await?;
        is_about(days(&first)?, given as f64)?;
        let said = event(&space, "tls", "OtherLifetime").await?;
        ensure!(
            said.contains("asks for 30d") && said.contains(told),
            "{said}"
        );
        throughout(A_WHILE, "nothing more is ordered", async || {
            ensure!(ca.orders() == 1, "{} orders", ca.orders());
            Ok(())
        })
        .await?;
        // By its real end, which the page and the command show.
        let status = ["status", "-n", &space.name, "-o", "json"];
        let status = crate::command::cert_renew(&status, Some(bench.kubeconfig()))?;
        let status: Value = serde_json::from_slice(&status.stdout)?;
        let renews = status["certificates"][0]["renews"]
            .as_str()
            .unwrap_or_default();
        let renews: UnixTime = renews
            .parse()
            .map_err(|_| test_bench::Error::msg(status.to_string()))?;
        let until = renews.since(UnixTime::now()).as_secs() as i64 / DAY;
        ensure!(until < given && until >= given / 2 - 1, "{until} days");
        space.annotate("tls", "renew-now", "force 1").await?;
        renewed(&space, "tls", &data(&first, "tls.crt")).await?;
        throughout(A_WHILE, "it is told once", async || {
            let events = space.events("tls").await?;
            let told = events.iter().filter(|it| it.contains("OtherLifetime"));
            ensure!(told.count() == 1, "{events:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_lifetime_that_the_ca_refuses_is_told_and_what_is_mended_is_tried_at_once() -> Result<()>
{
    let bench = Bench::shared().await?;
    for (tag, lifetimes, words, mended) in [
        (
            "atonce",
            Lifetimes::RefusedAtOnce,
            "are not supported",
            None,
        ),
        ("atend", Lifetimes::RefusedAtTheEnd, "internal error", None),
        (
            "other",
            Lifetimes::RefusedAtTheEnd,
            "internal error",
            Some("12h"),
        ),
    ] {
        let manners = Manners {
            lifetimes,
            ..Manners::default()
        };
        let ca = PrivateCa::start("Refusing CA", manners).await?;
        let operator = operator(bench, &ca, "", "").await?;
        let space = Space::new(bench.client()?, tag, operator.namespace()).await?;
        let host = format!("{tag}.refused.example");
        let annotations = [("issuer", "pebble"), ("names", &*host), ("lifetime", "24h")];
        space.tls_secret("tls", None, &annotations).await?;
        let said = event(&space, "tls", words).await?;
        for part in [
            "asks for a lifetime of 1d",
            "cert-renew.io/lifetime",
            "take the annotation away",
        ] {
            ensure!(said.contains(part), "{part} is not in {said}");
        }
        eventually(SOON, "the Secret says so too", async || {
            let secret = space.secrets().get("tls").await?;
            let error = annotation(&secret, "state.cert-renew.io/last-error");
            let error = error.unwrap_or_default();
            ensure!(error.contains("cert-renew.io/lifetime"), "{error}");
            Ok(())
        })
        .await?;
        match mended {
            None => space.annotate("tls", "lifetime", Value::Null).await?,
            // The CA takes this one.
            Some(other) => {
                ca.change(|manners| manners.lifetimes = Lifetimes::Kept);
                space.annotate("tls", "lifetime", other).await?;
            }
        }
        let secret = renewed(&space, "tls", "").await?;
        is_about(days(&secret)?, mended.map_or(90.0, |_| 0.5))?;
        ensure!(annotation(&secret, "state.cert-renew.io/last-error").is_none());
    }
    Ok(())
}

#[tokio::test]
async fn a_fallback_is_asked_for_its_own_lifetime() -> Result<()> {
    let bench = Bench::shared().await?;
    let manners = Manners {
        lifetimes: Lifetimes::RefusedAtOnce,
        ..Manners::default()
    };
    let spare = PrivateCa::start("Spare CA", manners).await?;
    let second = format!(
        "  second:\n    directory: {}\n    allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]\n",
        spare.directory()
    );
    let quick = "retry: {base: 1s, factor: 1, max: 1s}\n";
    let options = OperatorOptions {
        // Nobody listens there.
        directory: Some("http://127.0.0.1:9/directory".into()),
        ..configured("    fallback: second\n", &(second + quick))
    };
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "spare", operator.namespace()).await?;
    let old = pair(&["spare.example"], OLD)?;
    let annotations = [("issuer", "pebble"), ("lifetime", "24h")];
    space.tls_secret("tls", Some(&old), &annotations).await?;
    let secret = renewed(&space, "tls", &old.certificate).await?;
    is_about(days(&secret)?, 90.0)?;
    throughout(A_WHILE, "it is content with that", async || {
        ensure!(spare.orders() == 1, "{} orders", spare.orders());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_order_that_has_waited_for_most_of_its_lifetime_is_made_again() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = with_dns(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "stale", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "stale.example"),
        ("lifetime", "24h"),
    ];
    space.tls_secret("waits", None, &annotations).await?;
    stuck(bench, &operator, &space, "waits", "HTTP-01").await?;
    tamper(bench, &operator, |order| {
        let created = order["created"].as_i64().unwrap_or_default();
        order["created"] = (created - 20 * 3_600).into();
    })
    .await?;
    operator.configure(&way_is_open(bench, LONG))?;
    let secret = renewed(&space, "waits", "").await?;
    is_about(days(&secret)?, 1.0)?;
    ensure!(operator.log()?.contains("the order is given up"));
    Ok(())
}

#[tokio::test]
async fn a_ca_that_asks_for_no_proof_needs_no_solver() -> Result<()> {
    let bench = Bench::shared().await?;
    for status in ["ready", "pending"] {
        let manners = Manners {
            status,
            ..Manners::default()
        };
        let ca = PrivateCa::start("Trusting CA", manners).await?;
        // A solver is there, for other issuers, and can prove none of these names.
        let elsewhere = "solvers:\n  - zones: [elsewhere.example]\n    http01: {route: shared}\n";
        let operator = operator(bench, &ca, "", elsewhere).await?;
        let space = Space::new(bench.client()?, "trusting", operator.namespace()).await?;
        let names = "one.trusting.example, two.trusting.example, *.trusting.example";
        let annotations = [("issuer", "pebble"), ("names", names)];
        space.tls_secret("tls", None, &annotations).await?;
        let first = renewed(&space, "tls", "").await?;
        space.annotate("tls", "renew-now", "force 1").await?;
        renewed(&space, "tls", &data(&first, "tls.crt")).await?;
        assert_eq!((ca.issued(), ca.proofs()), (2, 0), "{status}");
        let events = space.events("tls").await?;
        let failed = events.iter().find(|it| it.contains("RenewalFailed"));
        ensure!(failed.is_none(), "{failed:?}");
    }
    Ok(())
}

/// Some CAs send the root before the intermediate, or a certificate twice; each try was a certificate.
#[tokio::test]
async fn a_chain_in_disorder_is_written_in_order_and_each_certificate_once() -> Result<()> {
    let bench = Bench::shared().await?;
    let manners = Manners {
        chain: |leaf, ca| format!("{ca}{leaf}{ca}"),
        ..Manners::default()
    };
    let ca = PrivateCa::start("Disorderly CA", manners).await?;
    let operator = operator(bench, &ca, "", "").await?;
    let space = Space::new(bench.client()?, "disorderly", operator.namespace()).await?;
    let secret = issued(&space, "tls", "tls.disorderly.example").await?;
    let certificate = data(&secret, "tls.crt");
    assert_eq!(
        certificate.matches("-----BEGIN CERTIFICATE-----").count(),
        2
    );
    let first = cert_renew_core::certificate::pair::Chain::read(certificate.as_bytes())?;
    ensure!(certificate.starts_with(&first.leaf_pem()), "{certificate}");
    assert_eq!(ca.issued(), 1);
    Ok(())
}

/// A staging CA is one that an issuer names in `staging`, or that says so in its certificates, whatever its URL is.
#[tokio::test]
async fn a_staging_ca_is_known_by_its_certificates_and_each_that_is_refused_counts() -> Result<()> {
    let bench = Bench::shared().await?;
    let name = "(STAGING) Pretend Pear X1";
    let ca = PrivateCa::start(name, Manners::default()).await?;
    let staging = "    staging: http://127.0.0.1:9/directory\n";
    let quick = "retry: {base: 1s, factor: 1, max: 1s}\n";
    let options = OperatorOptions {
        directory: Some(ca.directory()),
        ..configured(staging, quick)
    };
    // With a staging CA of its own, an issuer is a production one.
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "mirror", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "mirror.example")];
    space.tls_secret("tls", None, &annotations).await?;
    event(&space, "tls", "the certificate is from a staging CA").await?;
    event(&space, "tls", "no more is asked for").await?;
    operator.restart().await?;
    throughout(A_WHILE, "no more than three are issued", async || {
        ensure!(ca.issued() == 3, "{} are", ca.issued());
        let secret = space.secrets().get("tls").await?;
        ensure!(data(&secret, "tls.crt").is_empty(), "it is written");
        Ok(())
    })
    .await?;
    // One that has none writes what its directory gives.
    let plain = OperatorOptions {
        directory: Some(ca.directory()),
        ..configured("", "")
    };
    let other = Operator::start(bench, plain).await?;
    let space = Space::new(bench.client()?, "rehearsal", other.namespace()).await?;
    let secret = issued(&space, "tls", "rehearsal.example").await?;
    let by = leaf(&secret)?.issuer.to_string();
    ensure!(by.contains(name), "{by}");
    assert_eq!(ca.issued(), 4);
    Ok(())
}

/// DigiCert and others want a common name in the request (certbot #4922, acme2certifier #98, smallstep #1321).
#[tokio::test]
async fn a_ca_that_wants_a_common_name_gets_one_where_its_issuer_says_so() -> Result<()> {
    let bench = Bench::shared().await?;
    let manners = Manners {
        common_name: true,
        ..Manners::default()
    };
    let ca = PrivateCa::start("Old CA", manners).await?;
    let mut operator = operator(bench, &ca, "", "").await?;
    let space = Space::new(bench.client()?, "common", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "common.example")];
    space.tls_secret("tls", None, &annotations).await?;
    event(&space, "tls", "the subject needs a common name").await?;
    let options = configured("    commonName: true\n", LONG);
    operator.configure(&options.config)?;
    renewed(&space, "tls", "").await?;
    Ok(())
}

/// Servers that speak to each other use their certificates as clients too (ejabberd #4392, prosody, zowe #4783).
#[tokio::test]
async fn what_the_new_certificate_can_no_longer_be_used_for_is_told() -> Result<()> {
    let bench = Bench::shared().await?;
    let manners = Manners {
        for_clients: true,
        ..Manners::default()
    };
    let ca = PrivateCa::start("Changing CA", manners).await?;
    let operator = operator(bench, &ca, "", "").await?;
    let space = Space::new(bench.client()?, "able", operator.namespace()).await?;
    let first = issued(&space, "tls", "able.example").await?;
    ca.change(|manners| manners.for_clients = false);
    space.annotate("tls", "renew-now", "force 1").await?;
    renewed(&space, "tls", &data(&first, "tls.crt")).await?;
    let said = event(&space, "tls", "lacks what the one before had").await?;
    ensure!(said.contains("clients"), "{said}");
    Ok(())
}

/// Clients refuse a certificate from the end of the one that signed it (cert-manager #5864, smallstep/certificates #381).
/// The CA may sign with the same one again.
#[tokio::test]
async fn a_certificate_is_renewed_before_its_issuers_ends_and_not_again_and_again() -> Result<()> {
    let bench = Bench::shared().await?;
    let manners = Manners {
        own_end: Some(20 * DAY),
        ..Manners::default()
    };
    let ca = PrivateCa::start("Ending CA", manners).await?;
    let operator = operator(bench, &ca, "", "").await?;
    let space = Space::new(bench.client()?, "ending", operator.namespace()).await?;
    let annotations = [("issuer", "pebble")];
    // A month old, of 90 days.
    let made = |name: &str, ca: &TestCa| {
        let template = Template::new(&[name]).between(-30 * DAY, 60 * DAY);
        template.signed_by(ca)
    };
    let old = made("short.ending.example", &TestCa::ending("Old CA", 25 * DAY)?)?;
    space.tls_secret("short", Some(&old), &annotations).await?;
    // What is above the issuer does not count: clients may know another way from there.
    let mut crossed = made("crossed.ending.example", &TestCa::new("Other CA")?)?;
    crossed.certificate += &TestCa::ending("Forgotten CA", -DAY)?.intermediate();
    space
        .tls_secret("crossed", Some(&crossed), &annotations)
        .await?;
    let secret = renewed(&space, "short", &old.certificate).await?;
    event(&space, "short", "sooner than the server certificate").await?;
    event(&space, "crossed", "sooner than the server certificate").await?;
    // The same issuer until the same day: again when a tenth of the 90 days is over.
    throughout(A_WHILE, "nothing more is ordered", async || {
        ensure!(ca.orders() == 1, "{} orders", ca.orders());
        Ok(())
    })
    .await?;
    let status = ["status", "-n", &space.name, "-o", "json"];
    let status = crate::command::cert_renew(&status, Some(bench.kubeconfig()))?;
    let status: Value = serde_json::from_slice(&status.stdout)?;
    let told = |name: &str| {
        let mut all = status["certificates"].as_array().into_iter().flatten();
        let found = all.find(|it| it["name"] == name).cloned();
        found.unwrap_or_default()
    };
    let (short, crossed) = (told("short"), told("crossed"));
    ensure!(
        short["renewsWhy"] == "IssuerEnds" && crossed["renewsWhy"] == "Lifetime",
        "{short:#} {crossed:#}"
    );
    let renews: UnixTime = short["renews"].as_str().unwrap_or_default().parse()?;
    is_about(
        renews.since(UnixTime::now()).as_secs() as f64 / DAY as f64,
        9.0,
    )?;
    // Another certificate of the CA ends it.
    ca.change(|manners| manners.own_end = None);
    space.annotate("short", "renew-now", "force 1").await?;
    let second = renewed(&space, "short", &data(&secret, "tls.crt")).await?;
    assert_eq!(leaf(&second)?.issuer_ends, None);
    Ok(())
}

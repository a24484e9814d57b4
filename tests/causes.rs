//! What makes a certificate be replaced before its time, and what the CA's or the config's change of mind costs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use test_bench::objects::{OLD, Pair, Space, pair};
use test_bench::{
    Bench, Context as _, Fault, Operator, OperatorOptions, PebbleOptions, Proxies, Result, Server,
    bail, ensure, eventually, throughout,
};

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::acme_operator::{configured, event, issued};
use crate::faults::{action, finalizes};
use crate::private_ca::{Manners, PrivateCa};
use crate::renewal::{SOON, annotation, data, leaf, options, renewed};
use crate::scene::{answered, behind_proxies, records};

/// Long enough for a write or an order that should not be to show itself.
const QUIET: Duration = Duration::from_secs(4);

/// Another issuer, as the config file has it behind the first.
fn another(bench: &Bench, name: &str, directory: &str, profile: &str) -> String {
    format!(
        "  {name}:\n    directory: {directory}\n    caBundle: {}\n    concurrency: 1\n    requestsPerSecond: 100000\n    \
         profile: {profile}\n    allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]\n",
        bench.ca_bundle().display()
    )
}

/// People try with a staging CA first, then change the issuer (cert-manager #61, #813); or they correct the type of key
/// right after the first certificate (cert-manager #5183, #6815).
#[tokio::test]
async fn another_issuer_or_key_is_had_at_once_when_there_is_cause() -> Result<()> {
    let bench = Bench::shared().await?;
    let directory = bench.pebble().directory();
    let others = another(bench, "rehearsal", directory, "default")
        + &another(bench, "second", directory, "default");
    let operator = Operator::start(bench, configured("    staging: rehearsal\n", &others)).await?;
    let space = Space::new(bench.client()?, "causes", operator.namespace()).await?;
    let by = async |name: &str, issuer: &str, old: &str| -> Result<String> {
        let secret = renewed(&space, name, old).await?;
        let issued_by = annotation(&secret, "state.cert-renew.io/issued-by").unwrap_or_default();
        ensure!(
            issued_by.contains(&format!("\"issuer\":\"{issuer}\"")),
            "{issued_by}"
        );
        Ok(data(&secret, "tls.crt"))
    };
    for (name, first) in [("staged", "rehearsal"), ("moved", "second")] {
        let host = format!("{name}.causes.example");
        let annotations = [("issuer", first), ("names", &*host)];
        space.tls_secret(name, None, &annotations).await?;
        let old = by(name, first, "").await?;
        space.annotate(name, "issuer", "pebble").await?;
        if name == "moved" {
            // Both CAs are trusted: it is replaced in its time, or when somebody asks.
            space.annotate(name, "renew-now", "1").await?;
        }
        by(name, "pebble", &old).await?;
    }
    let old = data(
        &issued(&space, "key", "key.causes.example").await?,
        "tls.crt",
    );
    space.annotate("key", "key-type", "rsa-2048").await?;
    let old = by("key", "pebble", &old).await?;
    space.annotate("key", "renew-now", "1").await?;
    event(&space, "key", "younger than a tenth").await?;
    space.annotate("key", "renew-now", "force 1").await?;
    by("key", "pebble", &old).await?;
    // The key was replaced by another: the pair is of no use, however young it is.
    let old = issued(&space, "broken", "broken.causes.example").await?;
    let old = data(&old, "tls.crt");
    let mismatched = Pair {
        certificate: old.clone(),
        key: pair(&["broken.causes.example"], OLD)?.key,
    };
    space.put("broken", &mismatched).await?;
    space.annotate("broken", "renew-now", "1").await?;
    by("broken", "pebble", &old).await?;
    Ok(())
}

/// As often, they change the directory of the issuer that they have (cert-manager #4223).
#[tokio::test]
async fn an_issuer_that_has_become_another_ca_gives_a_new_certificate_and_replaces_a_staging_one()
-> Result<()> {
    let bench = Bench::shared().await?;
    let staging = PrivateCa::start("(STAGING) Pretend Pear X1", Manners::default()).await?;
    let trusted = PrivateCa::start("Former CA", Manners::default()).await?;
    let plain = options().config;
    let config = |[tried, former]: [&str; 2]| {
        another(bench, "tried", tried, "default")
            + &another(bench, "former", former, "default")
            + &plain
    };
    let before = [staging.directory(), trusted.directory()];
    let options = OperatorOptions {
        config: config([&before[0], &before[1]]),
        ..options()
    };
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "became", operator.namespace()).await?;
    let mut olds = Vec::new();
    for issuer in ["tried", "former"] {
        let host = format!("{issuer}.became.example");
        let annotations = [("issuer", issuer), ("names", &*host)];
        space.tls_secret(issuer, None, &annotations).await?;
        let secret = renewed(&space, issuer, "").await?;
        olds.push(data(&secret, "tls.crt"));
    }
    // What the issuer itself gave is what was asked for, whatever it calls itself.
    let ordered = || (staging.orders(), trusted.orders());
    throughout(QUIET, "nothing more is ordered", async || {
        ensure!(ordered() == (1, 1), "{:?}", ordered());
        Ok(())
    })
    .await?;
    let production = bench.pebble().directory();
    operator.configure(&config([production, production]))?;
    renewed(&space, "tried", &olds[0]).await?;
    // A certificate that clients trust is replaced in its time, or when somebody asks.
    let secret = space.secrets().get("former").await?;
    assert_eq!(data(&secret, "tls.crt"), olds[1]);
    space.annotate("former", "renew-now", "1").await?;
    renewed(&space, "former", &olds[1]).await?;
    assert_eq!(ordered(), (1, 1));
    Ok(())
}

/// The policy or the profile of a CA changes, as from 90 to 45 days (acmetool #354, certbot #9261).
#[tokio::test]
async fn a_ca_that_issues_for_a_shorter_time_than_before_is_taken_at_its_word() -> Result<()> {
    let bench = Bench::shared().await?;
    let profiles = [("long", 160), ("short", 20)];
    let pebble = PebbleOptions {
        name: "pebble-shorter".into(),
        profiles: profiles
            .map(|(name, seconds)| (name.to_owned(), Duration::from_secs(seconds)))
            .into(),
        ..PebbleOptions::default()
    };
    let pebble = bench.start_pebble(&pebble).await?;
    // The window that Pebble suggests is the whole lifetime, and its first tenth means now.
    let proxies = Proxies::before(bench, &pebble).await?;
    proxies.rule(|passed| match passed.server {
        Server::Ca if passed.path.contains("/renewalInfo/") => {
            Fault::Answer(404, None, "text/plain", "none".into())
        }
        _ => Fault::Pass,
    });
    let plain = options().config;
    let config = |profile| another(bench, "shorter", &proxies.directory(), profile) + &plain;
    let options = OperatorOptions {
        config: config("long"),
        ..options()
    };
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "shorter", operator.namespace()).await?;
    let annotations = [
        ("issuer", "shorter"),
        ("names", "shorter.example"),
        ("renew-before", "50%"),
    ];
    space.tls_secret("tls", None, &annotations).await?;
    let old = renewed(&space, "tls", "").await?;
    let (old, first) = (data(&old, "tls.crt"), leaf(&old)?);
    operator.configure(&config("short"))?;
    let taken = eventually(SOON * 2, "it is renewed", async || {
        let secret = space.secrets().get("tls").await?;
        ensure!(data(&secret, "tls.crt") != old, "it is not");
        leaf(&secret)
    })
    .await?;
    ensure!(taken.not_after < first.not_after, "{}", taken.not_after);
    if let Err(error) = event(&space, "tls", "sooner than the one it replaces").await {
        let log = operator.log()?;
        let why = log
            .lines()
            .filter(|it| it.contains("\"due\"") || it.contains("config"));
        bail!("{error}\n{}", why.collect::<Vec<_>>().join("\n"));
    }
    ensure!(!operator.log()?.contains("is not written"));
    Ok(())
}

#[tokio::test]
async fn an_order_waits_while_its_issuer_is_not_in_the_config() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let quick = format!(
        "{}retry: {{base: 1s, factor: 1, max: 1s}}\n",
        options().config
    );
    let config = another(bench, "gone", &proxies.directory(), "default") + &quick;
    let options = OperatorOptions {
        config: config.clone(),
        ..options()
    };
    let mut operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, "gone", operator.namespace()).await?;
    proxies.rule(|passed| match passed.server {
        Server::Ca if passed.path.contains("/finalize-order/") => {
            Fault::Answer(500, None, "text/plain", "down".into())
        }
        _ => Fault::Pass,
    });
    let annotations = [("issuer", "gone"), ("names", "gone.example")];
    space.tls_secret("tls", None, &annotations).await?;
    event(&space, "tls", "500").await?;
    // An order that is on record is looked after whatever its Secret names by now, which anybody writes: no series comes of
    // that.
    space.annotate("tls", "issuer", "unheard-of").await?;
    event(&space, "tls", "unheard-of").await?;
    for line in operator.metrics().await?.lines() {
        ensure!(
            !line.contains("issuer=\"unheard-of\"") || line.contains("secret="),
            "{line}"
        );
    }
    space.annotate("tls", "issuer", "gone").await?;
    operator.configure(&quick)?;
    eventually(SOON, "it waits for the issuer", async || {
        let log = operator.log()?;
        ensure!(log.contains("a changed config is in force"), "not yet");
        Ok(())
    })
    .await?;
    throughout(QUIET, "its record stays", async || {
        let open = records(bench, &operator).await?;
        ensure!(open == 1, "{open} orders are on record");
        Ok(())
    })
    .await?;
    proxies.rule(|_| Fault::Pass);
    operator.configure(&config)?;
    renewed(&space, "tls", "").await?;
    assert_eq!(answered(&proxies, "/order-plz", 201), 1, "orders");
    Ok(())
}

/// Who has stolen a key holds it in a Secret too, perhaps.
#[tokio::test]
async fn what_replaces_a_revoked_key_goes_to_no_other_secret() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    // Of copies the first by namespace goes before the others: the thief's.
    let thief = Space::new(bench.client()?, "copied", operator.namespace()).await?;
    let owner = Space::new(bench.client()?, "owner", operator.namespace()).await?;
    let secret = issued(&owner, "tls", "stolen.example").await?;
    let stolen = Pair {
        certificate: data(&secret, "tls.crt"),
        key: data(&secret, "tls.key"),
    };
    thief
        .tls_secret("tls", Some(&stolen), &[("issuer", "pebble")])
        .await?;
    let fingerprint = leaf(&secret)?.fingerprint.to_string();
    owner.annotate("tls", "revoked", fingerprint).await?;
    renewed(&owner, "tls", &stolen.certificate).await?;
    throughout(QUIET, "the other Secret is left as it is", async || {
        let secret = thief.secrets().get("tls").await?;
        ensure!(data(&secret, "tls.crt") == stolen.certificate, "it is not");
        Ok(())
    })
    .await
}

/// A certificate that is due, and the fingerprint by which its owner says that the key is stolen.
fn stolen(host: &str) -> Result<(Pair, String)> {
    let pair = pair(&[host], OLD)?;
    let leaf = cert_renew_core::certificate::leaf(pair.certificate.as_bytes());
    let fingerprint = leaf.context("reading the leaf")?.fingerprint;
    Ok((pair, fingerprint.to_string()))
}

/// Has the CA work for ever on the first order that is finalized from now on; its number, once there is one.
fn work_for_ever_on_the_first(proxies: &Proxies) -> Arc<OnceLock<String>> {
    let first = Arc::new(OnceLock::new());
    let found = Arc::clone(&first);
    proxies.rule(move |passed| {
        let finalized = passed.path.strip_prefix("/finalize-order/");
        if let Some(number) = finalized {
            found.get_or_init(|| number.to_owned());
        }
        let asked = finalized.or_else(|| passed.path.strip_prefix("/my-order/"));
        match asked.zip(found.get()) {
            Some((asked, first)) if asked == first => {
                let order = r#"{"status": "processing"}"#;
                Fault::Answer(200, None, "application/json", order.into())
            }
            _ => Fault::Pass,
        }
    });
    first
}

/// Both are due, and the thief's goes before the others by its namespace: its order may take as long as it likes.
#[tokio::test]
async fn who_says_that_a_key_is_stolen_waits_for_no_order_of_the_thief() -> Result<()> {
    let bench = Bench::shared().await?;
    let (proxies, operator) = behind_proxies(bench, options()).await?;
    let thief = Space::new(bench.client()?, "copied", operator.namespace()).await?;
    let owner = Space::new(bench.client()?, "owner", operator.namespace()).await?;
    let (stolen, fingerprint) = stolen("waits.stolen.example")?;
    let annotations = [("issuer", "pebble"), ("revoked", &*fingerprint)];
    let first = work_for_ever_on_the_first(&proxies);
    thief
        .tls_secret("tls", Some(&stolen), &annotations[..1])
        .await?;
    eventually(SOON, "the thief's order is at the CA", async || {
        ensure!(first.get().is_some(), "it is not");
        Ok(())
    })
    .await?;
    owner.tls_secret("tls", Some(&stolen), &annotations).await?;
    renewed(&owner, "tls", &stolen.certificate).await?;
    let secret = thief.secrets().get("tls").await?;
    assert_eq!(data(&secret, "tls.crt"), stolen.certificate);
    Ok(())
}

/// Both are due, and the thief's is renewed first: what it gets has a key that the thief knows.
#[tokio::test]
async fn who_says_that_a_key_is_stolen_takes_no_pair_from_the_thief() -> Result<()> {
    let bench = Bench::shared().await?;
    let (proxies, operator) = behind_proxies(bench, options()).await?;
    let thief = Space::new(bench.client()?, "copied", operator.namespace()).await?;
    let owner = Space::new(bench.client()?, "owner", operator.namespace()).await?;
    let (stolen, fingerprint) = stolen("takes.stolen.example")?;
    let annotations = [("issuer", "pebble"), ("revoked", &*fingerprint)];
    let first = work_for_ever_on_the_first(&proxies);
    owner.tls_secret("tls", Some(&stolen), &annotations).await?;
    eventually(SOON, "the owner's order is at the CA", async || {
        ensure!(first.get().is_some(), "it is not");
        Ok(())
    })
    .await?;
    thief
        .tls_secret("tls", Some(&stolen), &annotations[..1])
        .await?;
    renewed(&thief, "tls", &stolen.certificate).await?;
    // The record of the thief's order goes when all copies are written.
    eventually(SOON, "the owner's order is the only one", async || {
        let open = records(bench, &operator).await?;
        ensure!(open == 1, "{open} orders are on record");
        Ok(())
    })
    .await?;
    let secret = owner.secrets().get("tls").await?;
    assert_eq!(data(&secret, "tls.crt"), stolen.certificate);
    Ok(())
}

/// A namespace that is deleted and made again holds nothing of ours that somebody could have put back.
#[tokio::test]
async fn nobody_is_named_where_nothing_was_undone() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "remade", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "remade.example"),
        ("profile", "minutes"),
    ];
    for round in 0..4 {
        space.tls_secret("tls", None, &annotations).await?;
        if round < 3 {
            renewed(&space, "tls", "").await?;
            let params = kube::api::DeleteParams::default();
            space.secrets().delete("tls", &params).await?;
        }
    }
    // Certificates of five minutes: the week of the budgets is some 3.5 minutes.
    let said = event(&space, "tls", "no more is asked for").await?;
    ensure!(
        said.contains("within 3m ") && !said.contains("keeps replacing"),
        "{said}"
    );
    Ok(())
}

/// The CA takes two minutes for an answer. A user who deletes a Secret and creates it again does not wait for the
/// renewal of the one before.
#[tokio::test]
async fn a_secret_that_is_made_again_is_renewed_while_the_ca_is_silent_about_the_one_before()
-> Result<()> {
    let bench = Bench::shared().await?;
    let (proxies, operator) = behind_proxies(bench, options()).await?;
    let (silent, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(Notify::new()));
    proxies.rule({
        let (silent, asked) = (Arc::clone(&silent), Arc::clone(&asked));
        move |passed| {
            if finalizes(passed) && silent.load(Ordering::Relaxed) {
                asked.notify_one();
                return Fault::Hang;
            }
            Fault::Pass
        }
    });
    let space = Space::new(bench.client()?, "again", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "again.example")];
    space.tls_secret("tls", None, &annotations).await?;
    timeout(SOON, asked.notified()).await?;
    silent.store(false, Ordering::Relaxed);
    let params = kube::api::DeleteParams::default();
    space.secrets().delete("tls", &params).await?;
    space.tls_secret("tls", None, &annotations).await?;
    renewed(&space, "tls", "").await?;
    Ok(())
}

/// A certificate that the CA has issued counts, whatever has become of its Secret by then.
#[tokio::test]
async fn what_is_issued_for_a_secret_that_is_deleted_meanwhile_counts() -> Result<()> {
    let bench = Bench::shared().await?;
    // The connection ends with the Secret: whether that is seen first is a matter of chance, and a failure of the next one
    // of its name.
    let quick = "retry: {base: 1s, factor: 1, max: 1s}\n";
    let options = OperatorOptions {
        config: options().config + quick,
        ..options()
    };
    let (proxies, operator) = behind_proxies(bench, options).await?;
    let space = Space::new(bench.client()?, "dropped", operator.namespace()).await?;
    let namespace = space.name.clone();
    let delete = action(bench, async move |client| {
        let secrets: kube::Api<Secret> = kube::Api::namespaced(client, &namespace);
        secrets
            .delete("tls", &kube::api::DeleteParams::default())
            .await?;
        Ok(())
    });
    proxies.rule(move |passed| {
        if finalizes(passed) {
            Fault::After(Arc::clone(&delete))
        } else {
            Fault::Pass
        }
    });
    let annotations = [("issuer", "pebble"), ("names", "dropped.example")];
    for round in 0..3 {
        space.tls_secret("tls", None, &annotations).await?;
        eventually(SOON, &format!("it is deleted, round {round}"), async || {
            ensure!(
                space.secrets().get_opt("tls").await?.is_none(),
                "it is there"
            );
            Ok(())
        })
        .await?;
    }
    space.tls_secret("tls", None, &annotations).await?;
    event(&space, "tls", "no more is asked for").await?;
    ensure!(
        answered(&proxies, "/order-plz", 201) == 3,
        "a further order"
    );
    Ok(())
}

/// Each certificate that is thrown away counts, so that a CA whose chains are wrong is not asked over and over.
#[tokio::test]
async fn certificates_that_cannot_be_used_count_against_the_week() -> Result<()> {
    let bench = Bench::shared().await?;
    let quick = "retry: {base: 1s, factor: 1, max: 1s}\n";
    let options = OperatorOptions {
        config: options().config + quick,
        ..options()
    };
    let (proxies, mut operator) = behind_proxies(bench, options).await?;
    // A certificate of somebody else, in place of what was issued.
    let other = pair(&["somebody.else.example"], OLD)?.certificate;
    proxies.rule(move |passed| {
        if passed.path.starts_with("/certZ/") {
            let kind = "application/pem-certificate-chain";
            return Fault::Answer(200, None, kind, other.clone());
        }
        Fault::Pass
    });
    let space = Space::new(bench.client()?, "wasted", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "wasted.example")];
    space.tls_secret("tls", None, &annotations).await?;
    event(&space, "tls", "no more is asked for").await?;
    operator.restart().await?;
    throughout(QUIET, "no further order is made", async || {
        let orders = answered(&proxies, "/order-plz", 201);
        ensure!(orders == 3, "{orders} orders");
        Ok(())
    })
    .await?;
    Ok(())
}

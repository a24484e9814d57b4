//! Orders that cannot be carried on with, whatever is set: refused, unreadable, of a later version, of a lost account.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use test_bench::objects::Space;
use test_bench::{
    Bench, Fault, Operator, OperatorOptions, PebbleOptions, Proxies, Result, Server, ensure,
    throughout,
};

use super::{LONG, SHORT, base, open, operator, solved, stuck, tamper, unreachable};
use crate::acme_operator::event;
use crate::dns01::no_record_is_left;
use crate::renewal::{options, renewed};

/// Long enough for another order.
const A_WHILE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn what_a_ca_has_refused_for_good_is_not_tried_until_a_setting_changes() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = PebbleOptions {
        name: "pebble-settings".into(),
        ..PebbleOptions::default()
    };
    let ca = bench.start_pebble(&options).await?;
    let operator = operator(bench, Some(&ca), &(LONG.to_owned() + &open(bench))).await?;
    let space = Space::new(bench.client()?, "woken", operator.namespace()).await?;
    let annotations = [
        ("issuer", "pebble"),
        ("names", "woken.example"),
        ("profile", "nobody-has-this"),
    ];
    space.tls_secret("woken", None, &annotations).await?;
    event(&space, "woken", "nobody-has-this").await?;
    space.annotate("woken", "profile", "default").await?;
    renewed(&space, "woken", "").await?;
    Ok(())
}

#[tokio::test]
async fn an_order_that_cannot_be_read_is_given_up_after_a_few_tries() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = operator(bench, None, &(SHORT.to_owned() + &unreachable(bench))).await?;
    let space = Space::new(bench.client()?, "unread", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "unread.example")];
    space.tls_secret("unread", None, &annotations).await?;
    let why = "its NetworkPolicy may lack the port of the ingress controller";
    stuck(bench, &operator, &space, "unread", why).await?;
    // An account is valid too, and has no certificate.
    tamper(bench, &operator, |order| {
        order["url"] = order["account"].clone();
    })
    .await?;
    operator.configure(&(base() + SHORT + &open(bench)))?;
    renewed(&space, "unread", "").await?;
    no_record_is_left(bench, &operator).await?;
    Ok(())
}

#[tokio::test]
async fn a_record_of_a_later_version_does_not_block_its_secret() -> Result<()> {
    let bench = Bench::shared().await?;
    for (name, change) in [
        ("later", json!({"version": 2, "names": {"dns": ["x"]}})),
        (
            "newer",
            json!({"txt": [{"solver": {"quantum": true}}], "routes": [7]}),
        ),
    ] {
        let mut operator = operator(bench, None, &(LONG.to_owned() + &unreachable(bench))).await?;
        let space = Space::new(bench.client()?, name, operator.namespace()).await?;
        let host = format!("{name}.version.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret(name, None, &annotations).await?;
        stuck(bench, &operator, &space, name, "HTTP-01").await?;
        tamper(bench, &operator, |order| {
            for (key, value) in change.as_object().into_iter().flatten() {
                order[key] = value.clone();
            }
        })
        .await?;
        operator.configure(&(base() + LONG + &open(bench)))?;
        renewed(&space, name, "").await?;
        no_record_is_left(bench, &operator).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_account_that_the_ca_has_lost_is_registered_again_in_the_same_try() -> Result<()> {
    let bench = Bench::shared().await?;
    let options = PebbleOptions {
        name: "pebble-lost".into(),
        ..PebbleOptions::default()
    };
    let mut ca = bench.start_pebble(&options).await?;
    let operator = operator(bench, Some(&ca), &(LONG.to_owned() + &open(bench))).await?;
    let space = Space::new(bench.client()?, "lost", operator.namespace()).await?;
    for name in ["before", "after"] {
        let host = format!("{name}.lost.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret(name, None, &annotations).await?;
        renewed(&space, name, "").await?;
        ca.restart().await?;
    }
    let failed = space.events("after").await?;
    ensure!(
        !failed.iter().any(|it| it.contains("RenewalFailed")),
        "{failed:?}"
    );
    Ok(())
}

/// An operator behind proxies, with an account at the CA.
async fn registered<'a>(
    bench: &'a Bench,
    proxies: &Proxies,
    tag: &str,
) -> Result<(Operator<'a>, Space)> {
    let options = OperatorOptions {
        config: base() + LONG + &open(bench),
        directory: Some(proxies.directory()),
        ..options()
    };
    let operator = Operator::start(bench, options).await?;
    let space = Space::new(bench.client()?, tag, operator.namespace()).await?;
    let host = format!("before.{tag}.example");
    let annotations = [("issuer", "pebble"), ("names", &*host)];
    space.tls_secret("before", None, &annotations).await?;
    renewed(&space, "before", "").await?;
    Ok((operator, space))
}

/// What a CA says instead of an order, or of an account.
fn refusal(status: u16, kind: &str) -> Fault {
    let nonce = Some(("replay-nonce", "bm9uY2U".to_owned()));
    let body = json!({"type": kind, "detail": "there is no such account"}).to_string();
    Fault::Answer(status, nonce, "application/problem+json", body)
}

const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// A CA that wants accounts to be bound says `unauthorized` where it has lost one, and others have a type of their own.
#[tokio::test]
async fn an_account_that_is_lost_is_registered_again_whatever_the_ca_calls_it() -> Result<()> {
    let bench = Bench::shared().await?;
    for (tag, kind) in [
        ("unbound", "urn:ietf:params:acme:error:unauthorized"),
        ("own-words", "Verification failed: account key"),
    ] {
        let proxies = Proxies::start(bench).await?;
        let (operator, space) = registered(bench, &proxies, tag).await?;
        // Until somebody asks for the account.
        let is_lost = AtomicBool::new(true);
        proxies.rule(move |passed| {
            let is_known = !is_lost.load(Ordering::SeqCst);
            if is_known || passed.server != Server::Ca {
                return Fault::Pass;
            }
            match &*passed.path {
                "/order-plz" => refusal(403, kind),
                "/sign-me-up" => {
                    is_lost.store(false, Ordering::SeqCst);
                    refusal(400, NO_ACCOUNT)
                }
                _ => Fault::Pass,
            }
        });
        let host = format!("after.{tag}.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret("after", None, &annotations).await?;
        renewed(&space, "after", "").await?;
        ensure!(operator.log()?.contains("the CA has lost the account"));
        let events = space.events("after").await?;
        let failed = events.iter().find(|it| it.contains("RenewalFailed"));
        ensure!(failed.is_none(), "{failed:?}");
    }
    Ok(())
}

/// A CA that registers an account, and knows nothing of it at once, is not asked without a pause.
#[tokio::test]
async fn a_ca_that_loses_each_account_is_asked_again_after_the_pauses_of_failures() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let (_operator, space) = registered(bench, &proxies, "forgetful").await?;
    let is_asked_for = AtomicBool::new(false);
    proxies.rule(move |passed| match &*passed.path {
        "/order-plz" => {
            is_asked_for.store(true, Ordering::SeqCst);
            refusal(403, "urn:ietf:params:acme:error:unauthorized")
        }
        // What comes after that registers it.
        "/sign-me-up" if is_asked_for.swap(false, Ordering::SeqCst) => refusal(400, NO_ACCOUNT),
        _ => Fault::Pass,
    });
    let orders = || {
        let passed = proxies.passed().into_iter();
        passed.filter(|it| it.path == "/order-plz").count()
    };
    let before = orders();
    let annotations = [("issuer", "pebble"), ("names", "after.forgetful.example")];
    space.tls_secret("after", None, &annotations).await?;
    event(&space, "after", "RenewalFailed").await?;
    throughout(A_WHILE, "no more is ordered", async || {
        let more = orders() - before;
        ensure!(more == 2, "{more} orders");
        Ok(())
    })
    .await
}

/// Nobody can activate an account again (RFC 8555, section 7.3.6), and a new one is registered only when somebody wants it.
#[tokio::test]
async fn an_account_that_was_deactivated_is_replaced_when_its_key_is_deleted() -> Result<()> {
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let (operator, space) = registered(bench, &proxies, "deactivated").await?;
    let (is_deleted, is_new) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    let deleted = Arc::clone(&is_deleted);
    proxies.rule(move |passed| match &*passed.path {
        "/sign-me-up" if deleted.load(Ordering::SeqCst) => {
            is_new.store(true, Ordering::SeqCst);
            Fault::Pass
        }
        "/sign-me-up" | "/order-plz" if !is_new.load(Ordering::SeqCst) => {
            refusal(403, "urn:ietf:params:acme:error:unauthorized")
        }
        _ => Fault::Pass,
    });
    let annotations = [("issuer", "pebble"), ("names", "after.deactivated.example")];
    space.tls_secret("after", None, &annotations).await?;
    event(&space, "after", "there is no such account").await?;
    let secrets: Api<Secret> = Api::namespaced(bench.client()?, operator.namespace());
    let params = DeleteParams::default();
    secrets.delete("cert-renew-account-pebble", &params).await?;
    is_deleted.store(true, Ordering::SeqCst);
    space.annotate("after", "renew-now", "1").await?;
    renewed(&space, "after", "").await?;
    let registered = operator.log()?.matches("account registered").count();
    assert_eq!(registered, 2);
    Ok(())
}

/// An immutable Secret was ordered for again and again (kube-lego #31), and so were names with an underscore
/// (acme.sh #4385, certbot #3057).
#[tokio::test]
async fn what_cannot_be_written_or_proven_costs_no_order() -> Result<()> {
    let bench = Bench::shared().await?;
    let solver = "{zones: [proven.example], http01: {route: shared, selfCheck: false}}";
    let config = LONG.to_owned() + &solved(solver, bench.dns().address());
    let operator = operator(bench, None, &config).await?;
    let space = Space::new(bench.client()?, "noorder", operator.namespace()).await?;
    let issuer = [("issuer", "pebble")];
    let old = |name: &str| test_bench::objects::pair(&[name], test_bench::objects::OLD);
    space
        .tls_secret("fixed", Some(&old("fixed.proven.example")?), &[])
        .await?;
    space.merge("fixed", json!({"immutable": true})).await?;
    space.annotate("fixed", "issuer", "pebble").await?;
    let class = operator.namespace();
    space.annotate("fixed", "class", class).await?;
    space
        .tls_secret("score", Some(&old("a_b.proven.example")?), &issuer)
        .await?;
    for (name, said) in [("fixed", "immutable"), ("score", "underscore")] {
        event(&space, name, said).await?;
    }
    ensure!(
        !operator.log()?.contains("\"ordered\""),
        "an order was made"
    );
    Ok(())
}

//! Within every limit: Retry-After to the second, failed validations, budgets and shares, also over restarts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use test_bench::objects::Space;
use test_bench::{Bench, Fault, Operator, Result, Server, ensure, eventually, throughout};

use crate::acme_operator::{configured, event, issued, renewals};
use crate::faults::{action, finalizes, once};
use crate::renewal::{SOON, annotation, options, renewed};
use crate::scene::{End, Scene, answered, behind_proxies, records};

/// What the CA asks for.
const LIMIT: Duration = Duration::from_secs(5);
/// Long enough for an order that should not be to show itself.
const QUIET: Duration = Duration::from_secs(4);
const SOONER: &str = "retry: {base: 5s, factor: 6}\n";

async fn delete(space: &Space, name: &str) -> Result<()> {
    let (secrets, params) = (space.secrets(), DeleteParams::default());
    secrets.delete(name, &params).await?;
    Ok(())
}

fn limits(status: u16) -> Fault {
    let wait = Some(("retry-after", LIMIT.as_secs().to_string()));
    let (kind, body) = match status {
        429 => (
            "application/problem+json",
            json!({
                "type": "urn:ietf:params:acme:error:rateLimited",
                "detail": "too many new orders (300) from this account in the last 3h0m0s",
            })
            .to_string(),
        ),
        _ => ("text/html", "<html>back in a moment</html>".to_owned()),
    };
    Fault::Answer(status, wait, kind, body)
}

#[tokio::test]
async fn a_limit_stops_its_issuer_for_as_long_as_it_says_and_no_other() -> Result<()> {
    let bench = Bench::shared().await?;
    let beside = format!(
        "  beside:\n    directory: {}\n    caBundle: {}\n    profile: default\n    \
         allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]\n",
        bench.pebble().directory(),
        bench.ca_bundle().display(),
    );
    let (proxies, operator) = behind_proxies(bench, configured("", &beside)).await?;
    let space = Space::new(bench.client()?, "limits", operator.namespace()).await?;
    issued(&space, "before", "before.limits.example").await?;
    for status in [429, 503] {
        let since = Arc::new(Mutex::new(None::<Instant>));
        let early = Arc::new(Mutex::new(Vec::new()));
        let (limited, asked) = (Arc::clone(&since), Arc::clone(&early));
        proxies.rule(move |passed| {
            if passed.server != Server::Ca {
                return Fault::Pass;
            }
            let mut limited = limited.lock().unwrap_or_else(PoisonError::into_inner);
            match *limited {
                None if passed.path.ends_with("/order-plz") => {
                    *limited = Some(Instant::now());
                    return limits(status);
                }
                // A question about another certificate may have been on its way.
                Some(at) if at.elapsed() < LIMIT && !passed.path.contains("-ari") => {
                    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
                    asked.push(passed.to_string());
                }
                _ => {}
            }
            Fault::Pass
        });
        let first = format!("first-{status}");
        let host = format!("{first}.limits.example");
        let annotations = [("issuer", "pebble"), ("names", &*host)];
        space.tls_secret(&first, None, &annotations).await?;
        eventually(SOON, "the limit is reached", async || {
            let limited = since.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(limited.is_some(), "it is not");
            Ok(())
        })
        .await?;
        let now = cert_renew_core::time::UnixTime::now();
        let (second, other) = (format!("second-{status}"), format!("other-{status}"));
        for (name, issuer) in [(&second, "pebble"), (&other, "beside")] {
            let host = format!("{name}.limits.example");
            let annotations = [("issuer", issuer), ("names", &*host)];
            space.tls_secret(name, None, &annotations).await?;
        }
        renewed(&space, &other, "").await?;
        let secret = space.secrets().get(&first).await?;
        if let Some(retry) = annotation(&secret, "state.cert-renew.io/retry-at") {
            let retry: cert_renew_core::time::UnixTime = retry.parse()?;
            let wait = retry.0 - now.0;
            ensure!(wait <= 7, "it waits {wait} s, longer than it was told");
        }
        renewed(&space, &second, "").await?;
        renewed(&space, &first, "").await?;
        let early = early.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(early.is_empty(), "asked within the {status}: {early:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_to_finalize_that_is_lost_or_late_costs_no_second_certificate() -> Result<()> {
    let bench = Bench::shared().await?;
    for fault in [
        Fault::After(Arc::new(|| {})),
        Fault::Delay(Duration::from_secs(8)),
    ] {
        let mut scene = Scene::set(bench, SOONER).await?;
        once(&scene, finalizes, fault);
        scene.operator.run().await?;
        assert_eq!(scene.end().await?, End::undisturbed());
        assert_eq!(answered(&scene.proxies, "/order-plz", 201), 1, "orders");
    }
    Ok(())
}

/// How many orders the operator has made since it was installed.
pub(crate) fn orders(operator: &Operator<'_>) -> Result<usize> {
    Ok(operator.log()?.matches("\"message\":\"ordered\"").count())
}

#[tokio::test]
async fn a_name_fails_five_validations_an_hour_whoever_asks_and_however_often() -> Result<()> {
    const TRIES: usize = 5;
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "invalid", operator.namespace()).await?;
    let host = json!({"host": "broken.invalid.example"});
    bench.dns().set("set-servfail", &host).await?;
    let annotations = [("issuer", "pebble"), ("names", "broken.invalid.example")];
    space.tls_secret("alone", None, &annotations).await?;
    for tried in 1..=TRIES {
        eventually(SOON, &format!("{tried} have failed"), async || {
            let failed = operator
                .log()?
                .matches("\"message\":\"the renewal failed\"")
                .count();
            ensure!(failed == tried, "{failed} have");
            Ok(())
        })
        .await?;
        // Each value forgets the back-off, but not the CA's limit.
        space
            .annotate("alone", "renew-now", tried.to_string())
            .await?;
    }
    event(
        &space,
        "alone",
        "5 validations of broken.invalid.example have failed",
    )
    .await?;
    let names = "other.invalid.example, broken.invalid.example";
    let together = [("issuer", "pebble"), ("names", names)];
    space.tls_secret("together", None, &together).await?;
    event(
        &space,
        "together",
        "5 validations of broken.invalid.example have failed",
    )
    .await?;
    operator.restart().await?;
    space.annotate("alone", "renew-now", "please").await?;
    delete(&space, "together").await?;
    space.tls_secret("again", None, &together).await?;
    event(
        &space,
        "again",
        "5 validations of broken.invalid.example have failed",
    )
    .await?;
    assert_eq!(
        orders(&operator)?,
        TRIES,
        "no order that would be validated"
    );
    // Another name is nobody's fault.
    issued(&space, "good", "other.invalid.example").await?;
    bench.dns().set("clear-servfail", &host).await?;
    Ok(())
}

#[tokio::test]
async fn budgets_are_kept_over_restarts() -> Result<()> {
    let bench = Bench::shared().await?;
    let mut operator = Operator::start(bench, options()).await?;
    let space = Space::new(bench.client()?, "budgets", operator.namespace()).await?;
    let anew = [("issuer", "pebble"), ("names", "anew.budgets.example")];
    let early = [
        ("issuer", "pebble"),
        ("names", "early.budgets.example"),
        ("renew-before", "9000h"),
    ];
    let short = [
        ("issuer", "pebble"),
        ("names", "short.budgets.example"),
        ("profile", "default"),
    ];
    space.tls_secret("early", None, &early).await?;
    space.tls_secret("short", None, &short).await?;
    issued(&space, "now", "now.budgets.example").await?;
    for name in ["early", "short"] {
        renewed(&space, name, "").await?;
    }
    for round in 0..4 {
        space.tls_secret("anew", None, &anew).await?;
        for step in 0..2 {
            let value = (round * 2 + step).to_string();
            space.annotate("now", "renew-now", value).await?;
            // A profile that shortens lifetimes, and back.
            let profile = ["shortlived", "default"][step % 2];
            space.annotate("short", "profile", profile).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if round < 3 {
            renewed(&space, "anew", "").await?;
            delete(&space, "anew").await?;
        }
        operator.restart().await?;
    }
    event(&space, "anew", "no more is asked for").await?;
    event(&space, "now", "younger than a tenth").await?;
    event(&space, "short", "CAs count them").await?;
    let orders_of = |host: &str| -> Result<usize> {
        let log = operator.log()?;
        let renewed = log
            .lines()
            .filter(|line| line.contains("\"message\":\"ordered\""));
        let place = format!("{}/{host}", space.name);
        Ok(renewed.filter(|line| line.contains(&place)).count())
    };
    for (name, most) in [("anew", 3), ("early", 1), ("now", 1), ("short", 4)] {
        let orders = orders_of(name)?;
        ensure!(orders <= most, "{name}: {orders} orders, at most {most}");
    }
    Ok(())
}

#[tokio::test]
async fn certificates_of_secrets_that_went_meanwhile_are_counted_too() -> Result<()> {
    let bench = Bench::shared().await?;
    let (proxies, operator) = behind_proxies(bench, options()).await?;
    let space = Space::new(bench.client()?, "went", operator.namespace()).await?;
    let annotations = [("issuer", "pebble"), ("names", "went.example")];
    let namespace = space.name.clone();
    // While the CA hands the certificate out, its Secret is deleted and made again.
    proxies.rule(move |passed| {
        if !passed.path.starts_with("/certZ/") {
            return Fault::Pass;
        }
        let namespace = namespace.clone();
        Fault::Meanwhile(action(bench, async move |client| {
            let secrets: Api<Secret> = Api::namespaced(client, &namespace);
            secrets.delete("went", &DeleteParams::default()).await?;
            Ok(())
        }))
    });
    // Issued, whether or not it is still downloaded.
    let certificates = || answered(&proxies, "/finalize-order/", 200);
    for round in 1..=3 {
        space.tls_secret("went", None, &annotations).await?;
        eventually(SOON, &format!("{round} are issued"), async || {
            ensure!(certificates() == round, "{} are", certificates());
            let open = records(bench, &operator).await?;
            ensure!(open == 0, "{open} orders are open");
            Ok(())
        })
        .await?;
    }
    space.tls_secret("went", None, &annotations).await?;
    event(&space, "went", "no more is asked for").await?;
    assert_eq!(certificates(), 3);
    Ok(())
}

#[tokio::test]
async fn no_namespace_takes_all_orders_while_another_waits_also_after_a_restart() -> Result<()> {
    const ORDERS: usize = 8;
    let bench = Bench::shared().await?;
    let limit = format!("    ordersPer3h: {ORDERS}\n");
    let mut operator = Operator::install(bench, configured(&limit, "")).await?;
    let greedy = Space::new(bench.client()?, "greedy", operator.namespace()).await?;
    let modest = Space::new(bench.client()?, "modest", operator.namespace()).await?;
    // All are due at the same time, and those of the greedy one are dispatched first.
    for (space, count) in [(&greedy, 14), (&modest, 3)] {
        for number in 0..count {
            let host = format!("n{number}.{}.example", space.name);
            let annotations = [("issuer", "pebble"), ("names", &*host)];
            let name = format!("tls-{number}");
            space.tls_secret(&name, None, &annotations).await?;
        }
    }
    operator.run().await?;
    for number in 0..3 {
        renewed(&modest, &format!("tls-{number}"), "").await?;
    }
    eventually(SOON, "no order that is allowed is left", async || {
        let renewals = renewals(&operator)?;
        ensure!(renewals == ORDERS, "{renewals} renewals");
        Ok(())
    })
    .await?;
    operator.restart().await?;
    eventually(SOON, "the others wait again", async || {
        let log = operator.log()?;
        let waiting = log.matches("the renewal waits").count();
        ensure!(waiting >= 9, "{waiting} wait");
        Ok(())
    })
    .await?;
    throughout(QUIET, "nothing more is ordered", async || {
        let orders = orders(&operator)?;
        ensure!(orders == ORDERS, "{orders} orders");
        Ok(())
    })
    .await
}

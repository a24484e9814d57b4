//! What is asked of one host in a second, and limits that name a domain.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams};
use serde_json::json;
use test_bench::objects::Space;
use test_bench::{
    Bench, Fault, Operator, OperatorOptions, Proxies, Result, Server, ensure, eventually,
    throughout,
};

use crate::acme_limits::orders;
use crate::acme_operator::{configured, event};
use crate::renewal::{SOON, renewed};
use crate::scene::behind_proxies;

/// Long enough for those to show themselves that should wait.
const LIMIT: Duration = Duration::from_secs(30);

async fn ask(space: &Space, name: &str, issuer: &str, names: &str) -> Result<()> {
    let annotations = [("issuer", issuer), ("names", names)];
    space.tls_secret(name, None, &annotations).await?;
    Ok(())
}

#[tokio::test]
async fn requests_to_one_host_follow_each_other_as_the_config_says() -> Result<()> {
    const A_SECOND: usize = 3;
    let bench = Bench::shared().await?;
    let proxies = Proxies::start(bench).await?;
    let rate = format!("    requestsPerSecond: {A_SECOND}\n");
    let beside = format!(
        "  beside:\n    directory: {}\n    caBundle: {}\n    allow: [{{namespaces: [\"*\"], names: [\"**.example\"]}}]\n\
         {rate}",
        proxies.directory(),
        bench.ca_bundle().display(),
    );
    let options = OperatorOptions {
        directory: Some(proxies.directory()),
        ..configured(&rate, &beside)
    };
    let mut operator = Operator::install(bench, options).await?;
    let space = Space::new(bench.client()?, "paced", operator.namespace()).await?;
    for (name, issuer) in [("one", "pebble"), ("two", "beside"), ("three", "pebble")] {
        ask(&space, name, issuer, &format!("{name}.paced.example")).await?;
    }
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    proxies.rule(move |passed| {
        if passed.server == Server::Ca {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(Instant::now());
        }
        Fault::Pass
    });
    operator.run().await?;
    for name in ["one", "two", "three"] {
        renewed(&space, name, "").await?;
    }
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(asked.len() > 8 * A_SECOND, "only {}", asked.len());
    // A request that comes late, because the machine is busy, makes the others seem to follow sooner: this is granted
    // once.
    let grace = Duration::from_secs(2);
    for (number, at) in asked.iter().enumerate() {
        let since = at.duration_since(asked[0]) + grace;
        let most = since.as_secs_f64() * A_SECOND as f64 + 1.0;
        ensure!((number as f64) < most, "{number} within {since:?}");
    }
    let log = operator.log()?;
    ensure!(!log.contains("the renewal failed"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_limit_of_a_domain_stops_every_set_with_a_name_under_it_and_no_other() -> Result<()> {
    let bench = Bench::shared().await?;
    let (proxies, mut operator) = behind_proxies(bench, configured("", "")).await?;
    let space = Space::new(bench.client()?, "named", operator.namespace()).await?;
    let since = Arc::new(Mutex::new(None::<Instant>));
    let limited = Arc::clone(&since);
    proxies.rule(move |passed| {
        let mut limited = limited.lock().unwrap_or_else(PoisonError::into_inner);
        if limited.is_some() || !passed.path.ends_with("/order-plz") {
            return Fault::Pass;
        }
        *limited = Some(Instant::now());
        let detail =
            "too many certificates (50) already issued for \"one.example\" in the last 168h0m0s";
        let body = json!({"type": "urn:ietf:params:acme:error:rateLimited", "detail": detail});
        let wait = Some(("retry-after", LIMIT.as_secs().to_string()));
        Fault::Answer(429, wait, "application/problem+json", body.to_string())
    });
    ask(&space, "first", "pebble", "a.one.example").await?;
    eventually(SOON, "the limit is reached", async || {
        let failed = operator.log()?.contains("the renewal failed");
        ensure!(failed, "it is not");
        Ok(())
    })
    .await?;
    let ends = { *since.lock().unwrap_or_else(PoisonError::into_inner) }.map(|at| at + LIMIT);
    ask(&space, "second", "pebble", "b.one.example, b.two.example").await?;
    ask(&space, "third", "pebble", "one.example").await?;
    ask(&space, "apart", "pebble", "a.two.example").await?;
    ask(&space, "alike", "pebble", "stone.example").await?;
    for name in ["second", "third"] {
        event(&space, name, "names under one.example").await?;
    }
    for name in ["apart", "alike"] {
        renewed(&space, name, "").await?;
    }
    // It is known after a restart, and no wish forgets it.
    operator.restart().await?;
    let wish = json!({"metadata": {"annotations": {"cert-renew.io/renew-now": "please"}}});
    for name in ["first", "second"] {
        let (patch, params) = (Patch::Merge(&wish), PatchParams::default());
        space.secrets().patch(name, &params, &patch).await?;
    }
    let rest = ends.map(|ends| ends.saturating_duration_since(Instant::now()));
    let rest = rest.unwrap_or_default();
    throughout(rest, "only the others are ordered", async || {
        let orders = orders(&operator)?;
        ensure!(orders == 2, "{orders} orders");
        Ok(())
    })
    .await?;
    for name in ["first", "second", "third"] {
        renewed(&space, name, "").await?;
    }
    Ok(())
}

//! Killed at any request of the way from a declaration to its certificate, it ends where the undisturbed run ends: one
//! Secret, one order, nothing left.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use kube::api::ListParams;
use test_bench::objects::Space;
use test_bench::{
    Action, Bench, Fault, Operator, Passed, Proxies, Result, Server, ensure, eventually,
};

use super::{declare, ingress, issued, says, with_addon};
use crate::renewal::SOON;
use crate::scene::{answered, records};

/// Runs at the same time: each mostly waits.
const AT_ONCE: usize = 4;
/// A process that was killed is seen within milliseconds.
const DEATH: Duration = Duration::from_secs(10);

/// What declares the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    ConfigMap,
    Ingress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Before,
    After,
}

/// Requests of the making of a Secret; those of its renewal have kill points of their own.
fn is_of_making(passed: &Passed) -> Option<&'static str> {
    let Passed {
        server,
        method,
        path,
        ..
    } = passed;
    if *server != Server::Api || path.contains("cert-renew-ledger") {
        return None;
    }
    match method.as_str() {
        "GET" if path.contains("/configmaps/") || path.contains("/ingresses/") => {
            Some("read the declaration")
        }
        "PATCH" if path.contains("/configmaps/") => Some("tell the declaration"),
        "GET" if path.ends_with("/secrets/tls") => Some("read the Secret"),
        "POST" if path.contains("/namespaces/kills-") && path.ends_with("/secrets") => {
            Some("make the Secret")
        }
        _ => None,
    }
}

struct End {
    secrets: usize,
    certificates: usize,
    records: usize,
    points: usize,
}

#[tokio::test]
async fn killed_while_a_secret_is_made_it_is_made_once_and_issued_once() -> Result<()> {
    at_each_point(By::ConfigMap, 4..=8).await
}

/// On an Ingress nothing is written: three requests make a Secret.
#[tokio::test]
async fn killed_while_the_secret_of_an_ingress_is_made_it_is_made_once_and_issued_once()
-> Result<()> {
    at_each_point(By::Ingress, 3..=3).await
}

/// Kills at each of the first requests: there are at least as many as the range begins with, and those up to its end are
/// tried.
async fn at_each_point(by: By, tried: RangeInclusive<usize>) -> Result<()> {
    let bench = Bench::shared().await?;
    let undisturbed = run(bench, by, None).await?;
    ensure!(
        undisturbed.points >= *tried.start(),
        "only {} requests",
        undisturbed.points
    );
    // The first ones are those of the making; the last tell how the renewal goes on.
    let count = undisturbed.points.min(*tried.end());
    let points = (1..=count).flat_map(|number| [(number, Moment::Before), (number, Moment::After)]);
    let results: Vec<_> = stream::iter(points)
        .map(async |point| (point, run(bench, by, Some(point)).await))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut bad = Vec::new();
    for (point, result) in &results {
        match result {
            Ok(End {
                secrets: 1,
                certificates: 1,
                records: 0,
                ..
            }) => {}
            Ok(End {
                secrets,
                certificates,
                records,
                ..
            }) => {
                bad.push(format!(
                    "{point:?}: {secrets} Secrets, {certificates} certificates, {records} records"
                ));
            }
            Err(error) => bad.push(format!("{point:?}: {error:#}")),
        }
    }
    eprintln!(
        "{} kill points, {} ended otherwise",
        results.len(),
        bad.len()
    );
    ensure!(bad.is_empty(), "{bad:#?}");
    Ok(())
}

/// Declares a certificate, kills the operator at a point, starts it again and says where that ends.
async fn run(bench: &Bench, by: By, point: Option<(usize, Moment)>) -> Result<End> {
    let proxies = Proxies::start(bench).await?;
    let mut options = match by {
        By::ConfigMap => with_addon(),
        By::Ingress => ingress::with_routes("0s"),
    };
    options.api_server = Some(proxies.api_server());
    options.directory = Some(proxies.directory());
    options.config.push_str("retry: {base: 5s}\n");
    let mut operator = Operator::install(bench, options).await?;
    let space = Space::new(bench.client()?, "kills", operator.namespace()).await?;
    let host = format!("{}.example", space.name);
    match by {
        By::ConfigMap => declare(&space, "tls", &host).await?,
        By::Ingress => ingress::create(&space, "web", &[], &[("tls", &[host.as_str()])]).await?,
    }
    let killer: Arc<std::sync::OnceLock<Action>> = Arc::default();
    let killed = Arc::new(AtomicBool::new(false));
    if let Some((number, moment)) = point {
        let (killer, killed) = (Arc::clone(&killer), Arc::clone(&killed));
        let count = std::sync::atomic::AtomicUsize::new(0);
        let kill: Action = Arc::new(move || {
            killer.wait()();
            killed.store(true, Ordering::SeqCst);
        });
        proxies.rule(move |passed| {
            let is_it = is_of_making(passed).is_some()
                && count.fetch_add(1, Ordering::SeqCst) + 1 == number;
            match (is_it, moment) {
                (false, _) => Fault::Pass,
                (true, Moment::Before) => Fault::Before(Arc::clone(&kill)),
                (true, Moment::After) => Fault::After(Arc::clone(&kill)),
            }
        });
    }
    operator.spawn()?;
    let _ = killer.set(operator.killer()?);
    if point.is_some() {
        eventually(SOON, "the operator is killed", async || {
            ensure!(killed.load(Ordering::SeqCst), "it has not come so far");
            Ok(())
        })
        .await?;
        operator.process()?.ended(DEATH).await?;
        operator.kill();
        operator.run().await?;
    }
    issued(&space, "tls").await?;
    if by == By::ConfigMap {
        says(&space, "tls", "ok").await?;
    }
    let left = eventually(SOON, "no order record is left", async || {
        let left = records(bench, &operator).await?;
        ensure!(left == 0, "{left} are left");
        Ok(left)
    })
    .await?;
    let secrets = space.secrets().list(&ListParams::default()).await?;
    let points = proxies.passed();
    Ok(End {
        secrets: secrets.items.len(),
        certificates: answered(&proxies, "/finalize-order/", 200),
        records: left,
        points: points
            .iter()
            .filter(|it| is_of_making(it).is_some())
            .count(),
    })
}

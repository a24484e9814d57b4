//! Invariant 3: a renewal that is killed at any request, before or after it is passed on, ends where the undisturbed
//! one ends.
//!
//! One renewal with a Deployment and a StatefulSet is run undisturbed from the operator's very first start; its n
//! requests to the API server and the CA are the kill points.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use test_bench::report::Report;
use test_bench::{Action, Bench, Fault, Passed, Result, ensure, eventually};

use crate::renewal::SOON;
use crate::scene::{End, Scene};

/// Runs at the same time: each mostly waits.
const AT_ONCE: usize = 4;
/// In `make test` one kill point of this number is tried; `make chaos` tries each.
const STRIDE: usize = 9;
/// Number of the last kill points that may lie behind the end of a run that did with fewer requests: both moments of
/// one.
const MOST_UNREACHED: usize = 2;
/// A process that was killed is seen within milliseconds.
const DEATH: Duration = Duration::from_secs(10);

/// Where the operator is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Before,
    After,
}

/// How a run went.
struct Run {
    /// Whether it came as far as the request at which it was to be killed.
    reached: bool,
    end: End,
    orders: usize,
    requests: Vec<Passed>,
    took: Duration,
}

#[tokio::test]
async fn a_renewal_killed_at_some_requests_ends_as_if_it_had_not_been() -> Result<()> {
    every(STRIDE).await
}

/// Each of them: minutes.
#[tokio::test]
#[ignore = "make chaos runs it"]
async fn a_renewal_killed_at_each_request_ends_as_if_it_had_not_been() -> Result<()> {
    every(1).await
}

async fn every(stride: usize) -> Result<()> {
    let bench = Bench::shared().await?;
    let started = Instant::now();
    let undisturbed = run(bench, None).await?;
    let expected = End::undisturbed();
    assert_eq!(undisturbed.end, expected, "the undisturbed run");
    let count = undisturbed.requests.len();
    let points = (1..=count)
        .step_by(stride)
        .flat_map(|number| [(number, Moment::Before), (number, Moment::After)]);
    let mut results: Vec<_> = stream::iter(points)
        .map(async |point| (point, run(bench, Some(point)).await))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    results.sort_by_key(|((number, moment), _)| (*number, matches!(moment, Moment::After)));

    let (mut bad, mut unreached) = (0, 0);
    eprintln!("killed at | request                                            | orders | ended");
    for ((number, moment), result) in &results {
        let moment = format!("{moment:?}");
        let (what, orders, ended) = match result {
            Ok(run) => {
                let what = run.requests.get(number - 1).map(Passed::to_string);
                let right = run.end == expected;
                unreached += usize::from(!run.reached);
                let ended = if right && !run.reached {
                    "before it came so far, and the same".into()
                } else if right {
                    format!("the same, in {:.1} s", run.took.as_secs_f64())
                } else {
                    format!("{:?}", run.end)
                };
                bad += usize::from(!right);
                (what.unwrap_or_default(), run.orders.to_string(), ended)
            }
            Err(error) => {
                bad += 1;
                (String::new(), "?".into(), format!("{error:#}"))
            }
        };
        eprintln!("{number:>2} {moment:<6} | {what:<50.50} | {orders:>6} | {ended}");
    }
    let runs = results.len();
    eprintln!(
        "{runs} kill points of {} tried in {:.0} s, {bad} ended otherwise, {unreached} came not so far; the undisturbed run takes {:.1} s",
        2 * count,
        started.elapsed().as_secs_f64(),
        undisturbed.took.as_secs_f64()
    );
    if stride == 1 {
        let mut report = Report::new("chaos", "make chaos");
        report.add("chaos.kill_points", number(runs)?, "points");
        report.add("chaos.kill_points_failed", number(bad)?, "points");
        eprintln!("{}", report.finish()?);
    }
    ensure!(bad == 0, "{bad} of {runs} kill points end otherwise");
    // Only the last requests may be saved; where more are missed, the points are not what they are taken for.
    ensure!(
        unreached <= MOST_UNREACHED,
        "{unreached} of {runs} kill points were not reached"
    );
    Ok(())
}

fn number(count: usize) -> Result<f64> {
    Ok(f64::from(u32::try_from(count)?))
}

/// Installs an operator of its own, kills it at `point`, starts it again and says where that ends.
async fn run(bench: &Bench, point: Option<(usize, Moment)>) -> Result<Run> {
    let started = Instant::now();
    // Killed after the CA was told to validate, the one replica may not be back in time to answer: it tries again.
    let mut scene = Scene::set(bench, "retry: {base: 5s}\n").await?;
    // The first request comes after the start, when it is known whom to kill.
    let killer: Arc<std::sync::OnceLock<Action>> = Arc::default();
    let killed = Arc::new(AtomicBool::new(false));
    if let Some((number, moment)) = point {
        let (killer, killed) = (Arc::clone(&killer), Arc::clone(&killed));
        let kill: Action = Arc::new(move || {
            killer.wait()();
            killed.store(true, Ordering::SeqCst);
        });
        scene
            .proxies
            .rule(move |passed| match (passed.number == number, moment) {
                (false, _) => Fault::Pass,
                (true, Moment::Before) => Fault::Before(Arc::clone(&kill)),
                (true, Moment::After) => Fault::After(Arc::clone(&kill)),
            });
    }
    scene.operator.spawn()?;
    let _ = killer.set(scene.operator.killer()?);
    if point.is_some() {
        let reached = eventually(SOON, "the operator is killed", async || {
            ensure!(killed.load(Ordering::SeqCst), "it has not come so far");
            Ok(())
        });
        // A run may do with fewer requests than the undisturbed one, and then ends by itself.
        tokio::select! {
            biased;
            reached = reached => reached?,
            end = scene.end() => drop(end?),
        }
    }
    let reached = killed.load(Ordering::SeqCst);
    if reached {
        scene.operator.process()?.ended(DEATH).await?;
        scene.operator.kill();
        scene.operator.run().await?;
    }
    let end = scene.end().await?;
    let requests = scene.proxies.passed();
    let orders = requests.iter().filter(|it| it.path.ends_with("/order-plz"));
    Ok(Run {
        reached: reached || point.is_none(),
        end,
        orders: orders.count(),
        took: started.elapsed(),
        requests,
    })
}

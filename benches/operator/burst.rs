//! Many Secrets that change at once, with one and with several workloads each: how time and requests grow.
//!
//! The same changes are made once more while the operator does not run, by a client that sends the patches of the
//! Deployments itself, each at once: what takes as long then is the control plane's own.
//!
//! The Deployments have no pods, so that the operator is measured, and not who makes pods.

use test_bench::{Bench, Operator, Options, Result};

use crate::propagation::{CONFIG, Scale, World, at_rest};
use crate::report::{Report, say};
use crate::{audit, options};

/// Secrets in a namespace.
const TOGETHER: usize = 10;

/// See the module's documentation.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    for (secrets, workloads) in [(200, 1), (200, 4), (2_000, 1), (2_000, 4)] {
        say(&format!(
            "{secrets} Secrets with {workloads} Deployments each"
        ));
        let bench = Bench::start(Options::default()).await?;
        let mut wanted = options();
        wanted.config = CONFIG.into();
        let mut operator = Operator::install(&bench, wanted).await?;
        let scale = Scale {
            secrets,
            namespaces: secrets / TOGETHER,
            workloads,
            replicas: 0,
        };
        let (world, follower) = World::lay(&bench, "roll", operator.namespace(), scale).await?;
        operator.run().await?;
        let mark = audit::mark(&bench)?;
        let (changed, patched) = world.change_all(2).await?;
        let counts = audit::since(&bench, &operator, &mark)?;
        operator.terminate().await?;
        at_rest(&world.client).await?;
        say("the bare client");
        let (_, bare) = world.change_and_patch_all(3).await?;
        follower.abort();
        let mut add = |what: &str, value: f64, unit: &'static str| {
            report.add(format!("burst.{what}.{secrets}x{workloads}"), value, unit);
        };
        let each = |count: usize| count as f64 / secrets as f64;
        add("written_seconds", changed.as_secs_f64(), "s");
        add("patched_seconds", patched.as_secs_f64(), "s");
        add("bare_client_seconds", bare.as_secs_f64(), "s");
        add("lists_per_change", each(counts.lists), "requests");
        add("writes_per_change", each(counts.writes), "requests");
        report.add(
            format!("burst.{secrets}x{workloads}_ratio_to_bare_client"),
            patched.as_secs_f64() / bare.as_secs_f64(),
            "ratio",
        );
    }
    Ok(())
}

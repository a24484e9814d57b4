//! 10,000 certificates and nothing due: what a quiet hour costs.

use std::sync::Arc;
use std::time::Duration;

use test_bench::{Bench, Operator, Options, Result};

use crate::data::{Maker, Set};
use crate::process::usage;
use crate::report::{Report, say};
use crate::{audit, options};

/// Looked at for so long; long enough that a tick of the CPU clock is no matter.
const QUIET: Duration = Duration::from_secs(90);

/// See the module's documentation.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let mut operator = Operator::install(&bench, options()).await?;
    let set = Arc::new(Set::known("quiet", 10_000, 100, operator.namespace(), 1));
    set.fill(&bench, &Arc::new(Maker::new()?)).await?;
    operator.run().await?;
    let pid = operator.process()?.id();
    tokio::time::sleep(Duration::from_secs(10)).await;
    say("quiet");
    let (mark, before) = (audit::mark(&bench)?, usage(pid)?);
    tokio::time::sleep(QUIET).await;
    let (after, counts) = (usage(pid)?, audit::since(&bench, &operator, &mark)?);
    let hour = 3_600.0 / QUIET.as_secs_f64();
    report.add(
        "steady.requests_per_hour.10k",
        counts.requests as f64 * hour,
        "requests",
    );
    report.add(
        "steady.cpu_seconds_per_hour.10k",
        (after.cpu - before.cpu) * hour,
        "s",
    );
    Ok(())
}

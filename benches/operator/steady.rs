//! 10,000 certificates and nothing due: what a quiet hour costs, and a scrape.

use std::sync::Arc;
use std::time::{Duration, Instant};

use test_bench::{Bench, Operator, Options, Result};

use crate::data::{Maker, Set};
use crate::process::usage;
use crate::report::{Report, percentile, say};
use crate::{audit, options};

/// Looked at for so long; long enough that a tick of the CPU clock is no matter.
const QUIET: Duration = Duration::from_secs(90);
/// Scrapes of which the median counts.
const SCRAPES: usize = 11;

/// See the module's documentation.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let mut operator = Operator::install(&bench, options()).await?;
    let set = Arc::new(Set {
        prefix: "quiet",
        count: 10_000,
        namespaces: 100,
        class: operator.namespace().to_owned(),
        issuer: "pebble",
        annotated: 1,
        settled: true,
        age: None,
    });
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
    say("scrapes");
    let (mut took, mut bytes) = (Vec::new(), 0);
    for _ in 0..SCRAPES {
        let began = Instant::now();
        bytes = operator.metrics().await?.len();
        took.push(began.elapsed());
    }
    let scraped = usage(pid)?;
    report.add("metrics.scrape_ms.10k", percentile(&mut took, 0.5), "ms");
    report.add("metrics.scrape_bytes.10k", bytes as f64, "bytes");
    report.add(
        "metrics.scrape_rss_growth_bytes.10k",
        scraped.rss - after.rss,
        "bytes",
    );
    Ok(())
}

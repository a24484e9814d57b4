//! From exec to ready, and the memory that is held then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use test_bench::{Bench, Operator, Options, Result, ensure, eventually};

use crate::data::{Maker, Set, in_parallel};
use crate::process::{Usage, usage};
use crate::report::{Report, percentile, say};
use crate::{audit, bare, options};

/// Scrapes, of which the median counts.
const SCRAPES: usize = 11;
/// After the start: what was needed for it only has been given back by then.
const CALM: Duration = Duration::from_secs(10);

/// So many thousand Secrets, all annotated and long known; a scrape of them; and after each of them has changed.
pub(crate) async fn thousands(report: &mut Report, count: usize) -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let mut operator = Operator::install(&bench, options()).await?;
    let set = Arc::new(Set::known(
        "shop",
        count * 1_000,
        100,
        operator.namespace(),
        1,
    ));
    set.fill(&bench, &Arc::new(Maker::new()?)).await?;
    let case = format!("{count}k_annotated");
    let before = start(&bench, &mut operator, report, &case).await?;
    scrape(&operator, report, &format!("{count}k")).await?;
    say("every Secret changes");
    let churned = Arc::clone(&set);
    in_parallel(
        "changing",
        set.count,
        &bench.client()?,
        move |client, number| {
            let api: Api<Secret> = Api::namespaced(client, &churned.namespace(number));
            async move {
                let patch = json!({"metadata": {"labels": {"round": "1"}}});
                let name = Set::name(number);
                api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch))
                    .await?;
                Ok(())
            }
        },
    )
    .await?;
    tokio::time::sleep(CALM).await;
    let after = usage(operator.process()?.id())?;
    report.add(
        format!("memory.rss_after_churn_bytes.{case}"),
        after.rss,
        "bytes",
    );
    report.add(
        format!("memory.rss_after_churn_ratio.{count}k"),
        after.rss / before.rss,
        "ratio",
    );
    Ok(())
}

/// So many thousand Secrets with self-signed certificates that another program renews.
pub(crate) async fn self_signed(report: &mut Report, count: usize) -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let mut operator = Operator::install(&bench, options()).await?;
    let mut set = Set::known("shop", count * 1_000, 100, operator.namespace(), 1);
    set.issuer = "external";
    let set = Arc::new(set);
    set.fill(&bench, &Arc::new(Maker::self_signed()?)).await?;
    let case = format!("{count}k_self_signed");
    start(&bench, &mut operator, report, &case).await?;
    Ok(())
}

/// So many thousand Secrets with certificates about which the CA is asked, as about those of a public one: something is
/// kept of each for that.
pub(crate) async fn asked_about(report: &mut Report, count: usize) -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let mut operator = Operator::install(&bench, options()).await?;
    let namespaces = if count < 100 { 100 } else { 500 };
    let set = Set::known("shop", count * 1_000, namespaces, operator.namespace(), 1);
    let set = Arc::new(set);
    set.fill(&bench, &Arc::new(Maker::of_public_ca()?)).await?;
    let case = format!("{count}k_asked_about");
    start(&bench, &mut operator, report, &case).await?;
    Ok(())
}

/// 100,000 Secrets: first one in a hundred is annotated, then all.
pub(crate) async fn hundred_thousand(report: &mut Report) -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let mut operator = Operator::install(&bench, options()).await?;
    let set = Arc::new(Set::known("shop", 100_000, 500, operator.namespace(), 100));
    let rolled_out = set.fill(&bench, &Arc::new(Maker::new()?)).await?;
    start(&bench, &mut operator, report, "100k_one_percent").await?;
    operator.terminate().await?;
    set.annotate(&bench, rolled_out).await?;
    start(&bench, &mut operator, report, "100k_annotated").await?;
    scrape(&operator, report, "100k").await
}

/// Scrapes of `/metrics`: the median, and what the first ones leave in memory.
async fn scrape(operator: &Operator<'_>, report: &mut Report, case: &str) -> Result<()> {
    say("scrapes");
    let before = usage(operator.process()?.id())?;
    let (mut took, mut bytes) = (Vec::new(), 0);
    for _ in 0..SCRAPES {
        let began = Instant::now();
        bytes = operator.metrics().await?.len();
        took.push(began.elapsed());
    }
    let median = percentile(&mut took, 0.5);
    report.add(format!("metrics.scrape_ms.{case}"), median, "ms");
    report.add(
        format!("metrics.scrape_bytes.{case}"),
        bytes as f64,
        "bytes",
    );
    let after = usage(operator.process()?.id())?;
    report.add(
        format!("metrics.scrape_rss_growth_bytes.{case}"),
        after.rss - before.rss,
        "bytes",
    );
    Ok(())
}

/// 10,000 annotated Secrets that were never seen: each is recorded by one patch.
pub(crate) async fn install(report: &mut Report) -> Result<()> {
    const RECORDED: &str = "cert_renew_rollouts_first_sight";
    let bench = Bench::start(Options::default()).await?;
    let mut operator = Operator::install(&bench, options()).await?;
    let mut set = Set::known("shop", 10_000, 100, operator.namespace(), 1);
    set.settled = false;
    let set = Arc::new(set);
    set.fill(&bench, &Arc::new(Maker::new()?)).await?;
    let mark = audit::mark(&bench)?;
    let began = Instant::now();
    operator.run().await?;
    report.add(
        "install.ready_seconds.10k",
        began.elapsed().as_secs_f64(),
        "s",
    );
    eventually(Duration::from_secs(600), RECORDED, async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let writes = audit::since(&bench, &operator, &mark)?.writes;
        ensure!(writes >= set.count, "{writes} are recorded");
        Ok(())
    })
    .await?;
    let after = usage(operator.process()?.id())?;
    let counts = audit::since(&bench, &operator, &mark)?;
    report.add(
        "install.recorded_seconds.10k",
        began.elapsed().as_secs_f64(),
        "s",
    );
    report.add("install.cpu_seconds.10k", after.cpu, "s");
    report.add(
        "install.api_writes_per_secret.10k",
        counts.writes as f64 / set.count as f64,
        "requests",
    );
    report.add("install.api_lists.10k", counts.lists as f64, "requests");
    report.add("memory.rss_peak_bytes.10k_install", after.peak, "bytes");
    Ok(())
}

/// From exec to ready, beside bare lists; returns what it holds once it is calm.
async fn start(
    bench: &Bench,
    operator: &mut Operator<'_>,
    report: &mut Report,
    case: &str,
) -> Result<Usage> {
    say(&format!("starting with {case}"));
    let before = bare::list(bench).await?;
    let began = Instant::now();
    operator.run().await?;
    let took = began.elapsed();
    let pid = operator.process()?.id();
    let Usage { cpu, .. } = usage(pid)?;
    let after = bare::list(bench).await?;
    tokio::time::sleep(CALM).await;
    let calm = usage(pid)?;
    let list = (before.took + after.took) / 2;
    let list_cpu = f64::midpoint(before.cpu, after.cpu);
    report.add(
        format!("start.ready_seconds.{case}"),
        took.as_secs_f64(),
        "s",
    );
    report.add(format!("start.cpu_seconds.{case}"), cpu, "s");
    report.add(
        format!("start.bare_list_seconds.{case}"),
        list.as_secs_f64(),
        "s",
    );
    report.add(
        format!("start.ratio_to_bare_list.{case}"),
        took.as_secs_f64() / list.as_secs_f64(),
        "ratio",
    );
    report.add(format!("start.bare_list_cpu_seconds.{case}"), list_cpu, "s");
    report.add(
        format!("start.cpu_ratio_to_bare_list.{case}"),
        cpu / list_cpu,
        "ratio",
    );
    report.add(
        format!("start.bytes_on_the_wire.{case}"),
        before.bytes as f64,
        "bytes",
    );
    report.add(format!("memory.rss_steady_bytes.{case}"), calm.rss, "bytes");
    report.add(
        format!("memory.rss_of_program_file_bytes.{case}"),
        calm.file,
        "bytes",
    );
    report.add(format!("memory.rss_peak_bytes.{case}"), calm.peak, "bytes");
    Ok(calm)
}

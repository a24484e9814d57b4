//! The status page with 10,000 certificates, each with who uses it and what they serve: how large it is, how long it takes to make, how soon Chromium shows it.

use std::sync::Arc;
use std::time::Instant;

use test_bench::browser::Browser;
use test_bench::{Bench, Context as _, Operator, Options, Result, ensure};

use crate::data::{Maker, Set};
use crate::options;
use crate::process::usage;
use crate::report::{Report, percentile, say};

/// Pages of which the median counts.
const PAGES: usize = 11;
/// What the page has told the browser about itself, in milliseconds since the address was typed.
const TIMES: &str = "(() => { const [page] = performance.getEntriesByType('navigation'); \
    const paint = performance.getEntriesByName('first-contentful-paint')[0]; \
    return [paint ? paint.startTime : NaN, page.loadEventEnd]; })()";
/// From a letter in the filter to the rows that are left, as they stand on the screen.
const FILTER: &str = "new Promise((done) => { const began = performance.now(), field = document.querySelector('#q'); \
    field.value = '-7777-'; field.dispatchEvent(new Event('input')); \
    const look = () => document.querySelector('output').value.startsWith('1 of') \
      ? requestAnimationFrame(() => done(performance.now() - began)) : setTimeout(look, 1); look(); })";
/// The same for a click on a heading.
const SORT: &str = "new Promise((done) => { const began = performance.now(); \
    document.querySelector('th[data-sort=ends] a').click(); \
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - began))); })";

/// See the module's documentation.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let bench = Bench::start(Options::default()).await?;
    let mut operator = Operator::install(&bench, options()).await?;
    let set = Arc::new(Set {
        used: true,
        ..Set::known("page", 10_000, 100, operator.namespace(), 1)
    });
    set.fill(&bench, &Arc::new(Maker::new()?)).await?;
    operator.run().await?;
    let pid = operator.process()?.id();
    let page = format!("http://{}/", operator.metrics_address());
    // What crosses the wire is counted, so nothing may be unpacked on the way.
    let client = reqwest::Client::builder().no_proxy().no_gzip().build()?;
    let before = usage(pid)?;
    say("pages");
    for (what, packed) in [("", true), ("_plain", false)] {
        let (mut took, mut bytes) = (Vec::new(), 0);
        for _ in 0..PAGES {
            let began = Instant::now();
            let coding = if packed { "gzip" } else { "identity" };
            let answer = client.get(&page).header("accept-encoding", coding);
            bytes = answer
                .send()
                .await?
                .error_for_status()?
                .bytes()
                .await?
                .len();
            took.push(began.elapsed());
        }
        report.add(format!("page.bytes{what}.10k"), bytes as f64, "bytes");
        report.add(
            format!("page.render_ms{what}.10k"),
            percentile(&mut took, 0.5),
            "ms",
        );
    }
    report.add(
        "page.rss_growth_bytes.10k",
        usage(pid)?.rss - before.rss,
        "bytes",
    );
    say("chromium");
    let mut browser = Browser::start(bench.directory())?;
    let (mut paints, mut loads) = (Vec::new(), Vec::new());
    for _ in 0..PAGES {
        browser.open(&page)?;
        let times: [f64; 2] = serde_json::from_value(browser.evaluate(TIMES)?)?;
        paints.push(std::time::Duration::try_from_secs_f64(times[0] / 1e3)?);
        loads.push(std::time::Duration::try_from_secs_f64(times[1] / 1e3)?);
    }
    let rows = browser.evaluate("document.querySelectorAll('tbody tr').length")?;
    ensure!(rows == 10_000, "{rows} rows");
    let served = "[...document.querySelectorAll('tbody tr')].filter((row) => row.textContent.includes('serve it')).length";
    let served = browser.evaluate(served)?;
    ensure!(
        served == 10_000,
        "{served} rows with what their workloads serve"
    );
    report.add(
        "page.first_paint_ms.10k",
        percentile(&mut paints, 0.5),
        "ms",
    );
    report.add("page.loaded_ms.10k", percentile(&mut loads, 0.5), "ms");
    for (name, expression) in [("page.filter_ms.10k", FILTER), ("page.sort_ms.10k", SORT)] {
        let took = browser.evaluate(expression)?;
        report.add(name, took.as_f64().context("no time")?, "ms");
    }
    Ok(())
}

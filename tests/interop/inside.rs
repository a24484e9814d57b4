//! The scenes in a row, and the table of what they found.

use std::env;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use dns_update::{DnsRecord, DnsRecordType, DnsUpdater};
use futures::future::{LocalBoxFuture, join, join_all};
use futures::{StreamExt as _, stream};
use test_bench::report::Report;
use test_bench::{Bench, Bind, Options, RESOLVER, Result, Zone, bail, keep_node_logs};

use super::edges::Edges;
use super::{cas, hosts, routes};
use crate::dns01::updater;

/// Each has an operator or two; those that mostly wait run beside them.
const AT_ONCE: usize = 4;
/// The zone of names that a CA finds at the edge, and of those that it does not find.
pub(super) const ZONE: &str = "interop.example";

/// What is tried.
pub(super) struct Scene<'a> {
    pub(super) ca: &'static str,
    pub(super) what: &'static str,
    /// Where the records are; "–" where there are none of ours.
    pub(super) host: &'static str,
    /// Whether it mostly waits.
    pub(super) long: bool,
    /// In words, what was found.
    pub(super) run: LocalBoxFuture<'a, Result<String>>,
}

/// What all scenes stand on.
pub(super) struct Ground {
    pub(super) bench: Bench,
    _dns: Bind,
    updater: DnsUpdater,
}

impl Ground {
    async fn start() -> Result<Self> {
        let options = Options {
            // Where CAs come for HTTP-01.
            edge_port: Some(80),
            ..Options::default()
        };
        let bench = Bench::start(options).await?;
        let mut zone = Zone::new(ZONE);
        zone.records = "*.there A 127.0.0.1\n".into();
        let dns = Bind::start(&bench, "resolver", resolver(), &[zone]).await?;
        Ok(Self {
            bench,
            _dns: dns,
            updater: updater(resolver())?,
        })
    }

    /// Lets a name of [`ZONE`] lead to the edge.
    pub(super) async fn add_host(&self, name: &str) -> Result<()> {
        let address = vec![DnsRecord::A(Ipv4Addr::LOCALHOST)];
        let (kind, ttl) = (DnsRecordType::A, 1);
        Ok(self
            .updater
            .set_rrset(name, kind, ttl, address, ZONE)
            .await?)
    }
}

/// What this machine's programs ask for names.
pub(super) fn resolver() -> SocketAddr {
    (RESOLVER, 53).into()
}

struct Outcome {
    row: String,
    took: Duration,
    found: Result<String>,
}

async fn tried(scene: Scene<'_>) -> Outcome {
    let started = Instant::now();
    let found = scene.run.await;
    let took = started.elapsed();
    let row = row(scene.ca, scene.what, scene.host);
    match &found {
        Ok(text) => eprintln!("ok     {row} {} s  {text}", took.as_secs()),
        Err(error) => eprintln!("FAILED {row} {} s  {error:#}", took.as_secs()),
    }
    Outcome { row, took, found }
}

fn row(ca: &str, what: &str, host: &str) -> String {
    format!("{ca:<8} | {what:<36} | {host:<8} |")
}

/// The name of a scene's figure: `interop.step-ca.killed-before-finalize`.
fn figure(row: &str) -> String {
    let mut name = "interop".to_owned();
    for cell in row.split('|') {
        let cell = cell.to_lowercase();
        let words = cell.split(|letter: char| !letter.is_alphanumeric());
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        if !words.is_empty() {
            name.push('.');
            name.push_str(&words.join("-"));
        }
    }
    name
}

#[tokio::test]
#[ignore = "`make interop` runs it where it has ports of its own"]
async fn scenes() -> Result<()> {
    let ground = Ground::start().await?;
    let servers = cas::Servers::start(&ground).await?;
    let edges = Edges::start(&ground).await?;
    let mut all = cas::scenes(&ground, &servers);
    all.extend(hosts::scenes(&ground));
    all.extend(routes::scenes(&ground, &edges));
    let chosen = env::var("INTEROP_SCENES").unwrap_or_default();
    all.retain(|it| {
        let row = row(it.ca, it.what, it.host);
        chosen.is_empty() || chosen.split(',').any(|word| row.contains(word))
    });
    let (long, short): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| it.long);
    let short = stream::iter(short)
        .map(tried)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>();
    let (mut outcomes, waited) = join(short, join_all(long.into_iter().map(tried))).await;
    outcomes.extend(waited);
    outcomes.sort_by(|one, other| one.row.cmp(&other.row));

    let mut table = format!("       {} took\n", row("CA", "scene", "DNS host"));
    let mut failed = 0;
    for Outcome { row, took, found } in &outcomes {
        let (verdict, text) = match found {
            Ok(text) => ("ok", text.clone()),
            Err(error) => ("FAILED", format!("{error:#}")),
        };
        failed += u32::from(found.is_err());
        let text = text.lines().next().unwrap_or_default();
        writeln!(
            table,
            "{verdict:<6} {row} {:>4} s  {text:.160}",
            took.as_secs()
        )?;
    }
    eprintln!("\n{table}");
    // A run of some scenes leaves the figures of all of them alone.
    let mut report = if chosen.is_empty() {
        Report::new("interop", "make interop")
    } else {
        let command = format!("INTEROP_SCENES={chosen} make interop");
        Report::new("interop-chosen", &command)
    };
    for Outcome { row, found, .. } in &outcomes {
        let passed = if found.is_ok() { 1.0 } else { 0.0 };
        report.add(figure(row), passed, "passed");
    }
    let count = u32::try_from(outcomes.len())?;
    report.add("interop.scenes", f64::from(count), "scenes");
    report.add("interop.failed", f64::from(failed), "scenes");
    eprintln!("{}", report.finish()?);
    if failed > 0 || count == 0 {
        let into = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/interop");
        keep_node_logs(&ground.bench, None, &into)?;
        bail!("{failed} of {count} scenes failed; logs are in target/interop");
    }
    Ok(())
}

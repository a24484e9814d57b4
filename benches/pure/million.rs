//! The index alone with a million annotated Secrets: the bytes of each, and how long the one loop is held up by what it
//! does with all of them.
//!
//! It is as after the first day: each has its rollout on record, and its renewal waits in the queue. Names are short
//! enough to be stored inline; one of more than 22 bytes takes an allocation of its own.

use std::hint::black_box;
use std::time::{Duration, Instant};

use cert_renew_core::index::{Finished, Index, Observed, Source};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::object::compact::Uid;
use cert_renew_core::time::UnixTime;
use test_bench::report::Report;
use test_bench::{Context as _, Result, ensure};

/// Secrets.
const COUNT: u32 = 1_000_000;
/// Namespaces, in turn.
const NAMESPACES: u32 = 10_000;
/// Of these are measured what happens to one Secret at a time.
const SAMPLE: u32 = 100_000;
/// The renewals are spread over so many seconds: sixty days.
const SPREAD: u32 = 60 * 24 * 60 * 60;
/// The one watch.
const WATCH: Source = Source(0);
/// Nothing is rolled out here.
const SETTLE: Duration = Duration::ZERO;

/// What is measured comes first in the process, so that no memory is reused that was freed before. `like` is what the
/// watch says of a Secret.
pub(crate) fn measure(report: &mut Report, now: UnixTime, like: &Observed) -> Result<()> {
    let mut secrets = Secrets {
        index: Index::default(),
        now,
        like: like.clone(),
    };
    let is_plain = like.problems == 0 && like.window.is_none() && !like.rollout_blocked;
    ensure!(is_plain, "most Secrets have nothing odd: {like:?}");
    let before = resident()?;
    let began = Instant::now();
    secrets.index.begin(WATCH);
    (0..COUNT).for_each(|number| secrets.apply(number, number));
    let gone = secrets.index.finish(WATCH);
    let took = began.elapsed();
    let after = resident()?;
    let known = (secrets.index.len(), secrets.index.queued(), gone.len());
    ensure!(known == (1_000_000, 1_000_000, 0), "{known:?}");
    report.add(
        "memory.index_bytes_per_secret.1m",
        (after - before) / f64::from(COUNT),
        "bytes",
    );
    each(report, "index.apply_us.1m", took, COUNT);

    let began = Instant::now();
    secrets.index.begin(WATCH);
    let known = (0..COUNT).filter(|number| secrets.touch(*number)).count();
    let gone = secrets.index.finish(WATCH);
    seconds(report, "index.relist_seconds.1m", began);
    ensure!((known, gone.len()) == (1_000_000, 0), "{known} known");

    let began = Instant::now();
    (0..SAMPLE).for_each(|number| secrets.apply(number, COUNT + number));
    each(report, "index.change_us.1m", began.elapsed(), SAMPLE);

    // As for metrics and the page.
    let began = Instant::now();
    let entries = secrets.index.iter();
    black_box(entries.filter(|(_, entry)| entry.pair_broken).count());
    seconds(report, "index.walk_seconds.1m", began);

    // As when a leader begins.
    let began = Instant::now();
    secrets.index.restart(now, SETTLE, |_| None);
    seconds(report, "index.restart_seconds.1m", began);

    let began = Instant::now();
    let late = now + Duration::from_secs(SPREAD.into()) * 2;
    for _ in 0..SAMPLE {
        let due = secrets.index.pop_due(late);
        let (task, key) = due.context("all are due by then")?;
        let end = Finished::Later(late + Duration::from_secs(3_600), None);
        secrets
            .index
            .finished(late, (task, &key), end, SETTLE, None);
    }
    each(report, "index.due_us.1m", began.elapsed(), SAMPLE);
    Ok(())
}

struct Secrets {
    index: Index,
    now: UnixTime,
    like: Observed,
}

impl Secrets {
    fn key(&mut self, number: u32) -> SecretRef {
        let namespace = format!("shop-{}", number % NAMESPACES);
        self.index.key(&namespace, &format!("shop-tls-{number}"))
    }

    /// The watch brings a version of a Secret.
    fn apply(&mut self, number: u32, version: u32) {
        let key = self.key(number);
        let mut observed = self.like.clone();
        observed.uid = Uid::from(u128::from(number).to_be_bytes());
        observed.resource_version = version.to_string().as_str().into();
        // A prime, so that Secrets that come together are not due together.
        let at = u64::from(number) * 7_919 % u64::from(SPREAD);
        if let Ok(due) = &mut observed.renewal {
            due.at = self.now + Duration::from_secs(3_600 + at);
        }
        let index = &mut self.index;
        black_box(index.apply(self.now, &key, observed, WATCH, SETTLE, None));
    }

    /// A list names the version that is known.
    fn touch(&mut self, number: u32) -> bool {
        let key = self.key(number);
        self.index.touch(&key, &number.to_string(), WATCH)
    }
}

fn each(report: &mut Report, name: &str, took: Duration, count: u32) {
    report.add(name, took.as_secs_f64() * 1e6 / f64::from(count), "µs");
}

fn seconds(report: &mut Report, name: &str, began: Instant) {
    report.add(name, began.elapsed().as_secs_f64(), "s");
}

/// Bytes of this process that are in memory.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("no VmRSS in /proc/self/status")? * 1024.0)
}

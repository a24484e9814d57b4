//! Figures: collected, printed as a table, written as JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_bench::{Context as _, Result};

/// How often a line tells how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// The figures of one benchmark.
pub(crate) struct Report {
    name: String,
    figures: Vec<(String, f64, &'static str)>,
}

impl Report {
    /// Nothing is measured yet; `name` is the benchmark's argument.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            figures: Vec::new(),
        }
    }

    /// Takes a figure.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push((name.into(), value, unit));
    }

    /// Prints the table and writes `target/bench/<name>.json`.
    pub(crate) fn finish(self) -> Result<()> {
        let command = format!("make bench BENCH={}", self.name);
        let mut table = String::new();
        for (name, value, unit) in &self.figures {
            let shown = if *unit == "bytes" && *value >= 1e6 {
                format!("{:.1} MiB", value / f64::from(1 << 20))
            } else {
                format!("{:.3} {unit}", value)
            };
            writeln!(table, "{name:<52} {shown:>18}")?;
        }
        println!("{table}");
        let list: Vec<Value> = self
            .figures
            .iter()
            .map(|(name, value, unit)| {
                json!({"name": name, "value": value, "unit": unit, "command": command})
            })
            .collect();
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        std::fs::create_dir_all(&directory)?;
        let file = directory.join(format!("{}.json", self.name));
        std::fs::write(&file, format!("{:#}\n", Value::from(list)))
            .with_context(|| format!("writing {}", file.display()))
    }
}

/// The part of sorted `values` that lies at `share`, in milliseconds.
pub(crate) fn percentile(values: &mut [Duration], share: f64) -> f64 {
    values.sort_unstable();
    let at = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values
        .get(at)
        .map_or(f64::NAN, |value| value.as_secs_f64() * 1e3)
}

/// Says now and then how many of how many are done.
pub(crate) struct Progress {
    what: String,
    total: usize,
    done: AtomicUsize,
    began: Instant,
    told: AtomicUsize,
}

impl Progress {
    /// Nothing is done yet.
    pub(crate) fn new(what: impl Into<String>, total: usize) -> Self {
        Self {
            what: what.into(),
            total,
            done: AtomicUsize::new(0),
            began: Instant::now(),
            told: AtomicUsize::new(0),
        }
    }

    /// The next number to work on, until all are taken.
    pub(crate) fn next(&self) -> Option<usize> {
        let next = self.done.fetch_add(1, Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs();
        let turn = usize::try_from(seconds / PROGRESS.as_secs()).unwrap_or_default();
        if self.told.fetch_max(turn, Ordering::Relaxed) < turn {
            eprintln!(
                "  {}: {next} of {} after {seconds} s",
                self.what, self.total
            );
        }
        (next < self.total).then_some(next)
    }
}

/// A step begins.
pub(crate) fn say(what: &str) {
    eprintln!("bench: {what}");
}

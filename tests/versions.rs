//! `make versions`: every test of this program on the oldest supported minor of Kubernetes, and on one between it and that
//! of the bench.
//!
//! The program starts itself anew for each, with a bench of its own. A table says what passed, and the figures go to
//! `target/bench/versions.json`; it prints the rows for the table of docs/install.md too. `MINORS=1.33` runs that one, whose
//! figures go to `versions-1.33.json`; the output of each run is kept in `target/versions`.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cert_renew_core::time::UnixTime;
use test_bench::report::Report;
use test_bench::{Context as _, KUBERNETES, Minor, Result, bail, control_plane, ensure};

/// A test of what a minor does not have: the minors before `since` are asked for it in vain.
struct Absent {
    test: &'static str,
    since: &'static str,
    reason: &'static str,
}

/// What is left out on older minors, told in the table; nothing else is.
const ABSENT: [Absent; 0] = [];

/// What came of one minor.
struct Outcome {
    minor: Minor,
    passed: u32,
    failed: u32,
    ignored: u32,
    /// Their names.
    failures: Vec<String>,
    skipped: Vec<&'static Absent>,
    took: Duration,
}

#[tokio::test]
#[ignore = "make versions runs it: it takes most of an hour"]
async fn every_test_on_other_minors() -> Result<()> {
    let run = || {
        let chosen = env::var("MINORS").unwrap_or_default();
        let mut minors = Minor::all()?;
        minors.retain(|minor| chosen.is_empty() || chosen.split(',').any(|it| it == minor.name));
        ensure!(
            !minors.is_empty(),
            "MINORS={chosen}: there is no such minor"
        );
        // Before the tests, as building beside them would eat into their deadlines.
        control_plane::ensure()?;
        for minor in &minors {
            minor.ensure()?;
        }
        let (mut outcomes, mut unfinished) = (Vec::new(), Vec::new());
        for minor in minors {
            let name = minor.name.clone();
            match tested(minor) {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => {
                    eprintln!("  {name} did not come to an end: {error:#}");
                    unfinished.push(name);
                }
            }
        }
        // What the others found is not lost with it.
        told(&outcomes, &chosen)?;
        ensure!(
            unfinished.is_empty(),
            "{}: no count; the output is in target/versions",
            unfinished.join(", ")
        );
        Ok(())
    };
    // One thread for all of it, as in `run_with_ports_of_its_own`.
    tokio::task::spawn_blocking(run).await?
}

fn tested(minor: Minor) -> Result<Outcome> {
    let mut skipped = Vec::new();
    for absent in &ABSENT {
        if number(&minor.name) < number(absent.since) {
            skipped.push(absent);
        }
    }
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/versions");
    fs::create_dir_all(&place)?;
    let mut log = File::create(place.join(format!("{}.log", minor.name)))?;
    eprintln!("Kubernetes {}:", minor.version);
    let started = Instant::now();
    let mut child = Command::new(env::current_exe()?)
        .args(["--test-threads", "4"])
        .args(skipped.iter().flat_map(|it| ["--skip", it.test]))
        .env(KUBERNETES, &minor.name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    let (mut failures, mut last) = (Vec::new(), String::new());
    for line in BufReader::new(output).lines() {
        let line = line?;
        writeln!(log, "{line}")?;
        let verdict = line
            .strip_prefix("test ")
            .and_then(|it| it.split_once(" ... "));
        match verdict {
            Some((name, "FAILED")) => {
                eprintln!("  FAILED {name}");
                failures.push(name.to_owned());
            }
            _ if line.starts_with("test result: ") => last = line,
            _ => {}
        }
    }
    let status = child.wait()?;
    let count = |what: &str| -> Result<u32> {
        let count = last.split([';', '.']).map(str::trim);
        let mut count = count.filter_map(|part| part.strip_suffix(what));
        let count = count
            .next()
            .with_context(|| format!("{status}, and no count of {what}: {last:?}"))?;
        Ok(count.trim().parse()?)
    };
    let (passed, failed, ignored) = (count("passed")?, count("failed")?, count("ignored")?);
    Ok(Outcome {
        minor,
        passed,
        failed,
        ignored,
        failures,
        skipped,
        took: started.elapsed(),
    })
}

/// `1.9` comes before `1.33`.
fn number(minor: &str) -> u32 {
    let number = minor.rsplit('.').next().map(str::parse);
    number.and_then(Result::ok).unwrap_or_default()
}

/// The row of a minor in the table of docs/install.md.
fn row(outcome: &Outcome) -> String {
    let version = &outcome.minor.version;
    let failed = match outcome.failed {
        0 => "none".to_owned(),
        failed => failed.to_string(),
    };
    let day = UnixTime::now().to_string();
    let day = day.split('T').next().unwrap_or_default();
    format!("| {version} | {} | {failed} | {day} |", outcome.passed)
}

fn told(outcomes: &[Outcome], chosen: &str) -> Result<()> {
    let mut table = format!(
        "{:<12} {:>6} {:>6} {:>7} {:>7}   took\n",
        "Kubernetes", "passed", "failed", "ignored", "skipped"
    );
    // A run of some minors leaves the figures of all of them alone.
    let (name, command) = match chosen {
        "" => ("versions".to_owned(), "make versions".to_owned()),
        chosen => (
            format!("versions-{}", chosen.replace(',', "-")),
            format!("MINORS={chosen} make versions"),
        ),
    };
    let mut report = Report::new(&name, &command);
    let (mut failed, mut rows) = (0, String::new());
    for outcome in outcomes {
        let Outcome {
            minor,
            failures,
            skipped,
            ..
        } = outcome;
        let left_out = u32::try_from(skipped.len())?;
        writeln!(
            table,
            "{:<12} {:>6} {:>6} {:>7} {left_out:>7}   {} min",
            minor.version,
            outcome.passed,
            outcome.failed,
            outcome.ignored,
            outcome.took.as_secs().div_ceil(60)
        )?;
        for name in failures {
            writeln!(table, "  failed: {name}")?;
        }
        for it in skipped {
            writeln!(
                table,
                "  skipped: {}, from {} on: {}",
                it.test, it.since, it.reason
            )?;
        }
        let figures = [
            ("passed", outcome.passed),
            ("failed", outcome.failed),
            ("ignored", outcome.ignored),
            ("skipped", left_out),
        ];
        for (what, count) in figures {
            let name = format!("versions.{}.{what}", minor.name);
            report.add(name, f64::from(count), "tests");
        }
        failed += outcome.failed;
        writeln!(rows, "{}", row(outcome))?;
    }
    eprintln!(
        "\n{table}\n{}\nfor docs/install.md:\n{rows}",
        report.finish()?
    );
    if failed > 0 {
        bail!("{failed} tests failed; the output is in target/versions");
    }
    Ok(())
}

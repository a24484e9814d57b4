//! Years in minutes: the whole operator on a cluster and a CA in memory, from a seed.
//!
//! `simulation story SEED` tells one run. `simulation seeds SECONDS [FIRST]` lives as many seeds as fit, each in a process
//! of its own, so that a seed is the same run wherever it stands. `simulation year` measures. `simulation planted` puts
//! faults of the operator's on, one by one, and sees each found.

mod system;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use simulation::life::{Outcome, Plan};
use simulation::planted::{self, Planted};

/// Seeds under each planted fault before it counts as not found.
const TRIES: u64 = 40;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments.as_slice() {
        ["story", seed] => one(Plan::of(number(seed)?), true),
        ["run", seed] => one(Plan::of(number(seed)?), false),
        ["run", seed, planted] => {
            let planted = Some(Planted::named(planted).context("no fault has this name")?);
            let plan = Plan::of(number(seed)?);
            one(Plan { planted, ..plan }, false)
        }
        ["year"] => year(),
        ["seeds", seconds] => seeds(number(seconds)?, 1),
        ["seeds", seconds, first] => seeds(number(seconds)?, number(first)?),
        ["planted"] => planted(),
        _ => bail!("expected: story SEED, run SEED [FAULT], seeds SECONDS [FIRST], year, planted"),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse()
        .with_context(|| format!("{text:?} is no number"))
}

fn say(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("standard output")
}

/// Lives one plan in this process.
fn one(plan: Plan, printed: bool) -> Result<ExitCode> {
    let seed = plan.seed;
    system::seed(seed);
    let outcome = plan.live(printed)?;
    if !printed && !outcome.violations.is_empty() {
        for line in &outcome.last {
            say(line)?;
        }
    }
    for violation in &outcome.violations {
        say(&format!("VIOLATED {violation}"))?;
    }
    say(&summary(&outcome).to_string())?;
    Ok(if outcome.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn summary(outcome: &Outcome) -> Value {
    let (lines, digest) = outcome.digest;
    json!({
        "days": outcome.seconds / 86_400, "issued": outcome.issued, "lines": lines, "digest": format!("{digest:016x}"),
        "requests": outcome.requests.api, "writes": outcome.requests.writes, "toTheCa": outcome.requests.ca,
    })
}

fn child(arguments: &[&str]) -> Result<Output> {
    let program = std::env::current_exe()?;
    Command::new(program)
        .args(arguments)
        .output()
        .context("a run of its own")
}

/// Lives seeds for so long.
fn seeds(seconds: u64, first: u64) -> Result<ExitCode> {
    let began = Instant::now();
    let (mut count, mut days, mut failed) = (0_u64, 0_u64, Vec::new());
    for seed in first.. {
        if began.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        let lived = child(&["run", &seed.to_string()])?;
        let text = String::from_utf8_lossy(&lived.stdout);
        count += 1;
        let summary = text
            .lines()
            .last()
            .and_then(|it| serde_json::from_str::<Value>(it).ok());
        days += summary.and_then(|it| it["days"].as_u64()).unwrap_or(0);
        if !lived.status.success() {
            say(&format!(
                "seed {seed} failed; `make simulate SEED={seed}` tells its story"
            ))?;
            for line in text.lines().filter(|line| line.starts_with("VIOLATED")) {
                say(&format!("  {line}"))?;
            }
            let error = String::from_utf8_lossy(&lived.stderr);
            error
                .lines()
                .take(20)
                .try_for_each(|line| say(&format!("  {line}")))?;
            failed.push(seed);
        }
    }
    let years = days as f64 / 365.0;
    say(&format!(
        "{count} seeds, {years:.1} years, {} failures: {failed:?}",
        failed.len()
    ))?;
    report(&[
        ("simulation.seeds", json!(count)),
        ("simulation.years", json!(years)),
        ("simulation.failures", json!(failed.len())),
    ])?;
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A calm year of a hundred Secrets, measured.
fn year() -> Result<ExitCode> {
    let plan = Plan {
        secrets: 100,
        days: 365,
        lifetime: 90 * 86_400,
        replicas: 1,
        api: 0,
        ca: 0,
        deaths: 0,
        acts: 0,
        outages: 0,
        ..Plan::of(1)
    };
    system::seed(1);
    let began = Instant::now();
    let outcome = plan.live(false)?;
    let years = outcome.seconds as f64 / 86_400.0 / 365.0;
    let rate = years / (began.elapsed().as_secs_f64() / 60.0);
    for violation in &outcome.violations {
        say(&format!("VIOLATED {violation}"))?;
    }
    say(&format!("{} {rate:.2} years a minute", summary(&outcome)))?;
    report(&[("simulation.years_per_minute", json!(rate))])?;
    Ok(if outcome.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Sees each planted fault found.
fn planted() -> Result<ExitCode> {
    let mut missed = Vec::new();
    for (name, what, words) in planted::ALL {
        let began = Instant::now();
        let mut found = None;
        for seed in 1..=TRIES {
            let lived = child(&["run", &seed.to_string(), name])?;
            let text = String::from_utf8_lossy(&lived.stdout).into_owned();
            let violation = text
                .lines()
                .find(|it| it.starts_with("VIOLATED") && it.contains(words));
            if let Some(violation) = violation {
                found = Some((seed, violation.to_owned()));
                break;
            }
        }
        let seconds = began.elapsed().as_secs();
        match found {
            Some((seed, violation)) => say(&format!(
                "{name}: {what}: found by seed {seed} in {seconds} s: {violation}"
            ))?,
            None => {
                say(&format!(
                    "{name}: {what}: not found by {TRIES} seeds in {seconds} s"
                ))?;
                missed.push(name);
            }
        }
    }
    report(&[
        ("simulation.planted", json!(planted::ALL.len())),
        ("simulation.planted_missed", json!(missed.len())),
    ])?;
    Ok(if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Adds figures to `target/bench/simulation.json`.
fn report(figures: &[(&str, Value)]) -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    fs::create_dir_all(&directory)?;
    let file = directory.join("simulation.json");
    let former = fs::read_to_string(&file).ok();
    let former = former.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let mut all = former.filter(Value::is_object).unwrap_or_else(|| json!({}));
    for (name, value) in figures {
        all[*name] = value.clone();
    }
    fs::write(&file, serde_json::to_string_pretty(&all)?).context("simulation.json")
}

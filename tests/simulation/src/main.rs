//! Years in minutes: the whole operator on a cluster and a CA in memory, from a seed.
//!
//! `simulation story SEED` tells one run. `simulation seeds SECONDS [FIRST]` lives as many seeds as fit, each in a process
//! of its own, so that a seed is the same run wherever it stands; `wild-seeds` the same with a CA that has whims and watches
//! that lag behind. `simulation year` measures. `simulation planted` puts faults of the operator's on, one by one, and sees
//! each found. `simulation scenes` plays the scenes that found the gravest faults, `simulation scene NAME` one of them,
//! `simulation story-of NAME` tells it. `simulation scale` computes a year of a million Secrets. `simulation shrink SEED`
//! looks for the fewest faults, acts of users and Secrets with which a seed still fails, and `simulation story SEED FILE`
//! tells the run with these.

mod shrink;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use simulation::found;
use simulation::life::{Outcome, Plan};
use simulation::parts::Part;
use simulation::planted::{self, Planted};
use simulation::{scale, scenes};

/// Seeds under each planted fault before it counts as not found.
const TRIES: u64 = 40;
/// How long one seed may take.
const MOST: Duration = Duration::from_secs(240);
/// Seconds in which the first seed that fails is made shorter.
const SHRINK: u64 = 120;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments.as_slice() {
        ["story", seed] => one(Plan::of(number(seed)?), true),
        ["run", seed] => one(Plan::of(number(seed)?), false),
        ["story", seed, file] => one(partly(seed, file, None)?, true),
        ["story", seed, file, planted] => one(partly(seed, file, Some(planted))?, true),
        ["run", seed, planted] => one(partly(seed, "-", Some(planted))?, false),
        ["parts", seed, file] => parts(partly(seed, file, None)?),
        ["parts", seed, file, planted] => parts(partly(seed, file, Some(planted))?),
        ["shrink", seed] => shrunk(number(seed)?, None),
        ["shrink", seed, planted] => shrunk(number(seed)?, Some(planted)),
        ["year"] => year(),
        ["scenes"] => scenes(),
        ["scale"] => scale(),
        ["scene", name] => one(scene(name)?, false),
        ["story-of", name] => one(scene(name)?, true),
        ["list-mends"] => mends(),
        ["note", name, count] => note(name, count),
        ["seeds", seconds] => seeds(number(seconds)?, 1, false),
        ["seeds", seconds, first] => seeds(number(seconds)?, number(first)?, false),
        ["wild-seeds", seconds, first] => seeds(number(seconds)?, number(first)?, true),
        ["run-wild", seed] => one(Plan::wild(number(seed)?), false),
        ["story-wild", seed] => one(Plan::wild(number(seed)?), true),
        ["planted"] => planted(),
        _ => bail!(
            "expected: story SEED [FILE [FAULT]], run SEED [FAULT], shrink SEED [FAULT], seeds SECONDS [FIRST], wild-seeds SECONDS \
             FIRST, story-wild SEED, year, planted, scale, scenes, scene NAME, story-of NAME, list-mends, note FIGURE NUMBER"
        ),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse()
        .with_context(|| format!("{text:?} is no number"))
}

/// A seed with the parts that a file lists, one a line (`-`: all that it has), and a planted fault.
fn partly(seed: &str, file: &str, planted: Option<&str>) -> Result<Plan> {
    let named = |planted| Planted::named(planted).context("no fault has this name");
    let plan = Plan::of(number(seed)?);
    let plan = match planted.map(named).transpose()? {
        Some(planted) => plan.with(planted),
        None => plan,
    };
    if file == "-" {
        return Ok(plan);
    }
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    let among: BTreeSet<Part> = text
        .lines()
        .map(str::parse::<Part>)
        .collect::<Result<_, _>>()?;
    Ok(Plan {
        among: Some(among),
        until_one: true,
        ..plan
    })
}

/// Lives one plan up to the first thing that does not hold, and prints its parts.
fn parts(plan: Plan) -> Result<ExitCode> {
    system::seed(plan.seed);
    let plan = Plan {
        until_one: true,
        ..plan
    };
    let outcome = plan.live(false)?;
    for part in &outcome.parts {
        say(&format!("PART {part}"))?;
    }
    for violation in &outcome.violations {
        say(&format!("VIOLATED {violation}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn shrunk(seed: u64, planted: Option<&str>) -> Result<ExitCode> {
    let fails = shrink::shrink(seed, planted, 10 * SHRINK)?;
    Ok(if fails {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

pub(crate) fn say(text: &str) -> Result<()> {
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

/// What came of a run of its own.
pub(crate) struct Child {
    /// Whether all held; `None` if it did not end in time.
    pub(crate) held: Option<bool>,
    /// What it printed.
    pub(crate) out: String,
    /// What it complained about.
    pub(crate) err: String,
}

/// Runs this program with other arguments, for so long at the most.
pub(crate) fn child(arguments: &[&str], most: Duration) -> Result<Child> {
    let program = std::env::current_exe()?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("a run of its own")?;
    let (out, err) = (read(child.stdout.take()), read(child.stderr.take()));
    let until = Instant::now() + most;
    let held = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status.success());
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let text = |reading: JoinHandle<String>| reading.join().unwrap_or_default();
    Ok(Child {
        held,
        out: text(out),
        err: text(err),
    })
}

/// Reads a pipe to its end.
fn read(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before an error is shown.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Lives seeds for so long.
fn seeds(seconds: u64, first: u64, are_wild: bool) -> Result<ExitCode> {
    let (run, asked) = if are_wild {
        ("run-wild", "WILD")
    } else {
        ("run", "SEED")
    };
    let began = Instant::now();
    let (mut count, mut days, mut failed) = (0_u64, 0_u64, Vec::new());
    for seed in first.. {
        if began.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        let lived = child(&[run, &seed.to_string()], MOST)?;
        count += 1;
        let summary = lived.out.lines().next_back();
        let summary = summary.and_then(|it| serde_json::from_str::<Value>(it).ok());
        days += summary.and_then(|it| it["days"].as_u64()).unwrap_or(0);
        if lived.held != Some(true) {
            say(&format!(
                "seed {seed} failed; `make simulate {asked}={seed}` tells its story"
            ))?;
            if lived.held.is_none() {
                say(&format!("  it has not ended within {} s", MOST.as_secs()))?;
            }
            let violations = lived
                .out
                .lines()
                .filter(|line| line.starts_with("VIOLATED"));
            violations
                .chain(lived.err.lines().take(20))
                .try_for_each(|line| say(&format!("  {line}")))?;
            failed.push(seed);
        }
    }
    if let Some(first) = failed.first().filter(|_| !are_wild) {
        shrink::shrink(*first, None, SHRINK)?;
    }
    let years = days as f64 / 365.0;
    say(&format!(
        "{count} seeds, {years:.1} years, {} failures: {failed:?}",
        failed.len()
    ))?;
    let names = if are_wild {
        [
            "simulation.wild_seeds",
            "simulation.wild_years",
            "simulation.wild_failures",
        ]
    } else {
        [
            "simulation.seeds",
            "simulation.years",
            "simulation.failures",
        ]
    };
    let found = found::ALL.iter();
    let found: Vec<String> = found
        .map(|it| format!("{}: {} ({})", it.by, it.cause, it.commit))
        .collect();
    report(
        "make simulate",
        &[
            figure(names[0], count, "seeds"),
            figure(names[1], years, "years"),
            (
                names[2],
                json!(failed.len()),
                "seeds",
                failed.iter().map(|seed| format!("{seed} ")).collect(),
            ),
            (
                "simulation.faults_found",
                json!(found.len()),
                "faults",
                found.join("; "),
            ),
        ],
    )?;
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
    report(
        "make simulate",
        &[figure("simulation.years_per_minute", rate, "years")],
    )?;
    Ok(if outcome.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Secrets of the year on paper.
const MANY: u32 = 1_000_000;

/// Goes through a year of a million Secrets on paper, and draws it.
fn scale() -> Result<ExitCode> {
    let year = scale::year(MANY)?;
    let [ordinary, after] = year.most();
    let failed: u64 = year.failed.iter().map(|it| u64::from(*it)).sum();
    let least = year.least as f64 / 86_400.0;
    say(&format!(
        "{MANY} Secrets: {} renewals in a year; in an hour at most {ordinary}, after a day without a CA {after}, with {failed} \
         tries that failed; no certificate had less than {least:.1} days left",
        year.all()
    ))?;
    report(
        "make simulate SCALE=1",
        &[
            figure("scale.renewals", year.all(), "renewals"),
            figure("scale.renewals_per_hour_most", ordinary, "renewals"),
            figure("scale.renewals_per_hour_after_outage", after, "renewals"),
            figure("scale.tries_failed", failed, "tries"),
            figure("scale.least_days_left", least, "days"),
        ],
    )?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::write(root.join("docs/scale.svg"), year.drawn(MANY)).context("docs/scale.svg")?;
    Ok(ExitCode::SUCCESS)
}

/// Sees each planted fault found.
fn planted() -> Result<ExitCode> {
    let (mut missed, mut by_seeds) = (Vec::new(), Vec::new());
    for (name, what, words) in planted::ALL {
        let began = Instant::now();
        let mut found = None;
        for seed in 1..=TRIES {
            let lived = child(&["run", &seed.to_string(), name], MOST)?;
            let violation =
                { lived.out.lines() }.find(|it| it.starts_with("VIOLATED") && it.contains(words));
            if let Some(violation) = violation {
                found = Some((seed, violation.to_owned()));
                break;
            }
        }
        let seconds = began.elapsed().as_secs();
        match found {
            Some((seed, violation)) => {
                by_seeds.push(format!("{name} by seed {seed} in {seconds} s"));
                say(&format!(
                    "{name}: {what}: found by seed {seed} in {seconds} s: {violation}"
                ))?;
            }
            None => {
                say(&format!(
                    "{name}: {what}: not found by {TRIES} seeds in {seconds} s"
                ))?;
                missed.push(name);
            }
        }
    }
    report(
        "make simulate",
        &[
            (
                "simulation.planted",
                json!(planted::ALL.len()),
                "faults",
                by_seeds.join(", "),
            ),
            figure("simulation.planted_missed", missed.len(), "faults"),
        ],
    )?;
    Ok(if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn scene(name: &str) -> Result<Plan> {
    Plan::scene(name).context("no scene has this name")
}

/// Plays all scenes: as the operator is, each of them holds.
fn scenes() -> Result<ExitCode> {
    let mut failed = Vec::new();
    for scene in &scenes::ALL {
        let played = child(&["scene", scene.name], MOST)?;
        let name = scene.name;
        if played.held == Some(true) {
            say(&format!("{name}: holds"))?;
            continue;
        }
        say(&format!("{name}: does not hold; {}", scene.what))?;
        let lines = played.out.lines().filter(|it| it.starts_with("VIOLATED"));
        lines
            .chain(played.err.lines().take(20))
            .try_for_each(|line| say(&format!("  {line}")))?;
        failed.push(name);
    }
    report(
        "make simulate",
        &[
            figure("simulation.scenes", scenes::ALL.len(), "scenes"),
            (
                "simulation.scenes_failed",
                json!(failed.len()),
                "scenes",
                failed.join(" "),
            ),
        ],
    )?;
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The scenes for which there is a patch that takes a mend back, each with the words of the check that finds it.
fn mends() -> Result<ExitCode> {
    let mended = scenes::ALL.iter().filter(|scene| !scene.words.is_empty());
    for scene in mended {
        say(&format!("{}\t{}\t{}", scene.name, scene.words, scene.what))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Notes a figure that a script has counted.
fn note(name: &str, count: &str) -> Result<ExitCode> {
    let count = number(count)?;
    report("make planted-mends", &[figure(name, count, "mends")])?;
    Ok(ExitCode::SUCCESS)
}

/// A directory below `target`, made if there is none.
pub(crate) fn directory(name: &str) -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let directory = target.join(name);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// A figure: its name, its value, its unit, and what else is said of it.
type Figure<'a> = (&'a str, Value, &'a str, String);

fn figure<'a>(name: &'a str, value: impl Into<Value>, unit: &'a str) -> Figure<'a> {
    (name, value.into(), unit, String::new())
}

/// Puts figures into `target/bench/simulation.json`, beside those of runs before, of the model and of the comparison with
/// the real API server.
fn report(command: &str, figures: &[Figure<'_>]) -> Result<()> {
    let bench = directory("bench")?;
    let mut all: BTreeMap<String, Value> = BTreeMap::new();
    // Those of the others are newer than what was taken over of them.
    for file in ["simulation.json", "model.json", "simulated.json"] {
        let text = fs::read_to_string(bench.join(file)).unwrap_or_default();
        let list: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        for figure in list {
            let name = figure["name"].as_str().unwrap_or_default().to_owned();
            all.insert(name, figure);
        }
    }
    for (name, value, unit, note) in figures {
        let mut figure = json!({"name": name, "value": value, "unit": unit, "command": command});
        if !note.is_empty() {
            figure["note"] = json!(note);
        }
        all.insert((*name).to_owned(), figure);
    }
    let list = Value::from_iter(all.into_values());
    let file = bench.join("simulation.json");
    fs::write(&file, format!("{list:#}\n")).context("simulation.json")
}

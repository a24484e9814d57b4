//! The shortest list of parts with which a run still fails: those that are not needed for that are left out, many at a
//! time first, one by one in the end.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::{child, directory, say};

/// How long one run may take; what does not end within it does not fail in the way that is looked for.
const MOST: Duration = Duration::from_secs(120);

/// A run and what was seen of it.
struct Lived {
    /// What did not hold first.
    violation: Option<String>,
    /// Its parts.
    parts: Vec<String>,
}

/// Runs of one seed, each with some of its parts.
struct Runs<'a> {
    seed: u64,
    planted: Option<&'a str>,
    file: PathBuf,
}

impl Runs<'_> {
    /// Lives the seed with these parts, or with all that it has.
    fn live(&self, parts: Option<&[String]>) -> Result<Lived> {
        let file = self.file.display().to_string();
        let among = match parts {
            Some(parts) => {
                fs::write(&self.file, parts.join("\n")).context("the list of parts")?;
                file.as_str()
            }
            None => "-",
        };
        let seed = self.seed.to_string();
        let mut arguments = vec!["parts", seed.as_str(), among];
        arguments.extend(self.planted);
        let lived = child(&arguments, MOST)?;
        let lines = |word: &str| {
            let found = lived.out.lines().filter_map(|line| line.strip_prefix(word));
            found.map(str::to_owned).collect::<Vec<_>>()
        };
        let panicked = { lived.err.lines() }.find(|line| line.contains("panicked at"));
        let violation = lines("VIOLATED ").into_iter().next();
        Ok(Lived {
            violation: violation.or_else(|| panicked.map(str::to_owned)),
            parts: lines("PART "),
        })
    }
}

/// What a violation is, whenever it happens and to whichever certificate.
fn kind(violation: &str) -> String {
    let kept = |letter: &char| !letter.is_ascii_digit() && !letter.is_whitespace();
    violation.chars().filter(kept).collect()
}

/// Leaves out what is not needed for so many seconds, and prints what is left. `false` if the seed does not fail.
pub(crate) fn shrink(seed: u64, planted: Option<&str>, seconds: u64) -> Result<bool> {
    let began = Instant::now();
    let name = planted.map_or_else(|| seed.to_string(), |planted| format!("{seed}-{planted}"));
    let directory = directory("simulation")?;
    let runs = Runs {
        seed,
        planted,
        file: directory.join(format!("{name}.tried")),
    };
    let whole = runs.live(None)?;
    let Some(mut violation) = whole.violation else {
        let seconds = MOST.as_secs();
        say(&format!("seed {seed} does not fail within {seconds} s"))?;
        return Ok(false);
    };
    let looked_for = kind(&violation);
    let (mut kept, mut tries) = (whole.parts, 1);
    let count = kept.len();
    let mut size = count.div_ceil(2);
    let mut is_shortest = kept.is_empty();
    'all: while !is_shortest {
        let (mut at, mut shorter) = (0, false);
        while at < kept.len() {
            if began.elapsed() >= Duration::from_secs(seconds) {
                break 'all;
            }
            let mut fewer = kept.clone();
            fewer.drain(at..(at + size).min(kept.len()));
            tries += 1;
            let lived = runs.live(Some(fewer.as_slice()))?;
            let same = { lived.violation }.filter(|it| kind(it) == looked_for);
            if let Some(same) = same {
                // What did not come to happen any more changes nothing.
                let happened: BTreeSet<String> = lived.parts.into_iter().collect();
                fewer.retain(|part| happened.contains(part));
                (kept, violation, shorter) = (fewer, same, true);
            } else {
                at += size;
            }
        }
        is_shortest = kept.is_empty() || size <= 1 && !shorter;
        size = size.div_ceil(2);
    }
    fs::remove_file(&runs.file).ok();
    let file = directory.join(format!("{name}.parts"));
    fs::write(&file, kept.join("\n")).context("the list of parts")?;
    let (left, file) = (kept.len(), file.display());
    let last = if is_shortest {
        "none of them can be left out"
    } else {
        "there was no time for more"
    };
    say(&format!(
        "seed {seed} fails with {left} of {count} parts ({tries} runs; {last}): VIOLATED {violation}"
    ))?;
    kept.iter()
        .try_for_each(|part| say(&format!("  PART {part}")))?;
    let planted = planted.map_or_else(String::new, |planted| format!(" {planted}"));
    say(&format!(
        "its story: cargo run -p simulation -- story {seed} {file}{planted}"
    ))?;
    Ok(true)
}

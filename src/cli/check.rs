//! `cert-renew check FILE…`: prints what is wrong with certificate files and manifests.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use super::findings::{self, Finding, Severity};
use super::{CommandResult, Failure};
use crate::time::UnixTime;

#[derive(Debug, Parser)]
pub(super) struct Args {
    /// PEM, DER, YAML or JSON; - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Exit code: 0 nothing is wrong, 1 it works for now, 2 it does not.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn run(args: Args) -> CommandResult {
    let colours = std::io::stdout().is_terminal();
    let mut worst = 0;
    for file in &args.files {
        let bytes = read(file)
            .map_err(|error| Failure::new(&format!("reading {}", file.display()), &error))?;
        let found = findings::check(&bytes, UnixTime::now());
        for finding in &found {
            println!("{}: {}", file.display(), line(finding, colours));
        }
        worst = worst.max(findings::exit_code(&found));
    }
    Ok(ExitCode::from(worst))
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return std::fs::read(file);
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn line(finding: &Finding, colours: bool) -> String {
    let Finding {
        severity,
        place,
        message,
        remedy,
    } = finding;
    let (word, colour) = match severity {
        Severity::Note => ("ok", "32"),
        Severity::Warning => ("warning", "33"),
        Severity::Error => ("error", "31"),
    };
    let word = if colours {
        format!("\u{1b}[{colour}m{word}\u{1b}[0m")
    } else {
        word.to_owned()
    };
    let remedy = if remedy.is_empty() {
        String::new()
    } else {
        format!(" ({remedy})")
    };
    format!("{place}: {word}: {message}{remedy}")
}

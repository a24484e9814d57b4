//! `cert-renew config check FILE`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cert_renew_core::config::{Config, Faults};
use clap::Subcommand;
use serde::Serialize;

use crate::cli::output::Output;
use crate::cli::{CommandResult, Failure};
use crate::process::config_file;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Command {
    /// Check a config file whole and say all that is wrong with it
    Check {
        /// The file
        file: PathBuf,
        /// How it is printed
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// The result, for programs.
#[derive(Serialize)]
struct Checked<'a> {
    file: String,
    valid: bool,
    issuers: Vec<&'a str>,
    warnings: Vec<String>,
    notes: Vec<String>,
    faults: Vec<Faulty<'a>>,
}

#[derive(Serialize)]
struct Faulty<'a> {
    line: Option<u64>,
    path: &'a str,
    found: Option<&'a str>,
    expected: &'a str,
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) fn run(command: Command) -> CommandResult {
    let Command::Check { file, output } = command;
    let loaded = config_file::load(&file);
    if let Some(text) = output.of_program(&Checked::of(&file, &loaded))? {
        print!("{text}");
        return Ok(match loaded {
            Ok(_) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        });
    }
    let config = loaded.map_err(|faults| Failure(faults.to_string()))?;
    for warning in config.warnings() {
        println!("warning: {warning}");
    }
    for note in config.notes() {
        println!("note: {note}");
    }
    let issuers: Vec<&str> = config.issuers.keys().map(String::as_str).collect();
    let count = match issuers.len() {
        0 => "no issuer".to_owned(),
        1 => format!("1 issuer: {}", issuers[0]),
        several => format!("{several} issuers: {}", issuers.join(", ")),
    };
    println!("{}: ok, {count}", file.display());
    Ok(ExitCode::SUCCESS)
}

impl<'a> Checked<'a> {
    fn of(file: &Path, loaded: &'a Result<Config, Faults>) -> Self {
        let config = loaded.as_ref().ok();
        let issuers = config.map(|config| config.issuers.keys().map(String::as_str));
        let faults = loaded.as_ref().err().map(|faults| faults.list.iter());
        Self {
            file: file.display().to_string(),
            valid: config.is_some(),
            issuers: issuers.into_iter().flatten().collect(),
            warnings: config.map(Config::warnings).unwrap_or_default(),
            notes: config.map(Config::notes).unwrap_or_default(),
            faults: faults
                .into_iter()
                .flatten()
                .map(|fault| Faulty {
                    line: fault.line,
                    path: &fault.path,
                    found: fault.found.as_deref(),
                    expected: &fault.expected,
                })
                .collect(),
        }
    }
}

//! `cert-renew config check FILE`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::{CommandResult, Failure};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check a config file whole and say all that is wrong with it
    Check {
        /// The file
        file: PathBuf,
    },
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn run(command: Command) -> CommandResult {
    let Command::Check { file } = command;
    let config = Config::load(&file).map_err(|faults| Failure(faults.to_string()))?;
    for warning in config.warnings() {
        println!("warning: {warning}");
    }
    println!(
        "{}: ok, {} issuers: {}",
        file.display(),
        config.issuers.len(),
        config
            .issuers
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(ExitCode::SUCCESS)
}

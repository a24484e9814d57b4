//! `cert-renew check FILE…`: prints what is wrong with certificate files and manifests.
//! `cert-renew check route HOST`: whether HTTP-01 requests for a host reach an operator.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::findings::{self, Finding, Severity};
use super::{CommandResult, Failure, block_on};
use crate::solver::route;
use crate::time::UnixTime;

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    /// PEM, DER, YAML or JSON; - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask a host for `/.well-known/acme-challenge/health`, as a CA would
    Route {
        /// The host, as it stands in the certificate
        host: String,
        /// The DNS server to ask, with a port or without; the system's resolver where there is none
        #[arg(long = "nameserver")]
        nameservers: Vec<String>,
    },
}

/// Exit code: 0 nothing is wrong, 1 it works for now, 2 it does not.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn run(args: Args) -> CommandResult {
    if let Some(Command::Route { host, nameservers }) = &args.command {
        return route(host, nameservers);
    }
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

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn route(host: &str, nameservers: &[String]) -> CommandResult {
    let parse = |text: &String| {
        crate::config::nameserver(text).map_err(|error| Failure(format!("{text}: {error}")))
    };
    let nameservers = nameservers
        .iter()
        .map(parse)
        .collect::<Result<Vec<_>, _>>()?;
    block_on(async {
        route::check(&nameservers, host)
            .await
            .map_err(|error| Failure(error.to_string()))?;
        println!("{host}: requests of a CA reach cert-renew");
        Ok(ExitCode::SUCCESS)
    })
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

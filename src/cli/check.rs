//! `cert-renew check FILE…`: prints what is wrong with certificate files and manifests.
//! `cert-renew check route HOST`: whether HTTP-01 requests for a host reach an operator.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cert_renew_core::config::Resolvers;
use cert_renew_core::time::UnixTime;
use clap::{Parser, Subcommand};
use serde::Serialize;

use super::lint::{self, Finding, Severity};
use super::output::Output;
use super::{CommandResult, Failure, block_on};
use crate::solver::http01_self_check;

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    /// PEM, DER, YAML or JSON; - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask a host for `/.well-known/acme-challenge/health`, as a CA would
    Route {
        /// The host, as it stands in the certificate
        host: String,
        /// The resolver to ask, as `dns.nameservers` of the config has it; the system's where there is none
        #[arg(long = "nameserver")]
        nameservers: Vec<String>,
    },
}

/// A finding and its place.
#[derive(Serialize)]
struct Found {
    file: String,
    #[serde(flatten)]
    finding: Finding,
}

/// Exit code: 0 no problems, 1 it works for now, 2 it does not.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn run(args: Args) -> CommandResult {
    if let Some(Command::Route { host, nameservers }) = &args.command {
        return route(host, nameservers);
    }
    let colours = std::io::stdout().is_terminal();
    let mut all = Vec::new();
    for file in &args.files {
        let bytes = read(file)
            .map_err(|error| Failure::new(&format!("reading {}", file.display()), &error))?;
        let found = lint::check(&bytes, UnixTime::now());
        all.extend(found.into_iter().map(|finding| Found {
            file: file.display().to_string(),
            finding,
        }));
    }
    if let Some(text) = args.output.of_program(&all)? {
        print!("{text}");
    } else {
        for Found { file, finding } in &all {
            println!("{file}: {}", line(finding, colours));
        }
    }
    let worst = all.iter().map(|found| found.finding.severity).max();
    Ok(ExitCode::from(lint::exit_code(worst)))
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn route(host: &str, nameservers: &[String]) -> CommandResult {
    let parse = |text: &String| {
        text.parse()
            .map_err(|error| Failure(format!("{text}: {error}")))
    };
    let resolvers = Resolvers {
        addresses: nameservers.iter().map(parse).collect::<Result<_, _>>()?,
        ca_bundle: None,
    };
    block_on(async {
        http01_self_check::check(&resolvers, host)
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

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    /// Every certificate and key of `testdata/certificates`, as `check` sees it at one instant.
    #[test]
    fn what_is_said_of_each_file_is_as_the_golden_file_has_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
        let now: UnixTime = "2026-02-01T00:00:00Z".parse().unwrap();
        let files = std::fs::read_dir(root.join("certificates")).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|it| it != "tsv"));
        files.sort();
        let (mut said, mut all) = (String::new(), Vec::new());
        for file in files {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            for finding in lint::check(&std::fs::read(&file).unwrap(), now) {
                said += &format!("{name}: {}\n", line(&finding, false));
                let file = name.clone();
                all.push(Found { file, finding });
            }
        }
        golden("check.txt", &said);
        let json = Output::Json.of_program(&all).unwrap().unwrap();
        golden("check.json", &json);
        // The same facts as named fields.
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let json = json.as_array().unwrap();
        assert_eq!(said.lines().count(), json.len());
        for (line, found) in said.lines().zip(json) {
            for field in ["file", "place", "message", "remedy"] {
                let fact = found[field].as_str().unwrap_or_default();
                assert!(line.contains(fact), "{field} {fact}: {line}");
            }
        }
    }
}

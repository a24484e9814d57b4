//! `cert-renew completions SHELL` and `cert-renew man [COMMAND…]`: generated from the command line's own definition.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};
use clap_complete::Shell;

use super::{Cli, CommandResult, Failure, NAME};

#[derive(Debug, Parser)]
pub(super) struct Completions {
    /// For example: cert-renew completions bash > /etc/bash_completion.d/cert-renew
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Parser)]
pub(super) struct Man {
    /// The command, for example: account show
    command: Vec<String>,
}

pub(super) fn completions(args: &Completions) -> CommandResult {
    let mut out = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut out);
    print(&out)
}

pub(super) fn man(args: &Man) -> CommandResult {
    let mut command = Cli::command();
    command.build();
    let mut page = &command;
    for name in &args.command {
        page = page.find_subcommand(name).ok_or_else(|| {
            let known: Vec<_> = page
                .get_subcommands()
                .map(clap::Command::get_name)
                .collect();
            Failure(format!(
                "expected one of {}, found {name:?}",
                known.join(", ")
            ))
        })?;
    }
    let mut out = Vec::new();
    clap_mangen::Man::new(page.clone())
        .render(&mut out)
        .map_err(|error| Failure::new("rendering the page", &error))?;
    print(&out)
}

fn print(text: &[u8]) -> CommandResult {
    std::io::stdout()
        .write_all(text)
        .map_err(|error| Failure::new("printing", &error))?;
    Ok(ExitCode::SUCCESS)
}

//! `cert-renew completions SHELL` and `cert-renew man [COMMAND…]`: generated from the command line's own definition.
//!
//! kubectl completes the arguments of a plugin by a program `kubectl_complete-NAME` in PATH, which it runs with the words
//! so far; `completions kubectl` prints that program, which runs the hidden command `__complete`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::builder::PossibleValue;
use clap::{Command, CommandFactory as _, Parser, ValueEnum};
use clap_complete::Shell;

use crate::cli::{Cli, CommandResult, Failure, NAME};

/// The program that kubectl runs to complete the plugin.
const FOR_KUBECTL: &str = "#!/bin/sh
# kubectl runs this to complete \"kubectl cert-renew\": put it into PATH as kubectl_complete-cert_renew, executable.
exec kubectl-cert_renew __complete \"$@\"
";
/// What kubectl does with the answer: it completes no file names (cobra's ShellCompDirectiveNoFileComp).
const NO_FILES: &str = ":4";

#[derive(Debug, Parser)]
pub(in crate::cli) struct Completions {
    /// For example: cert-renew completions bash > /etc/bash_completion.d/cert-renew
    #[arg(value_enum)]
    shell: Target,
}

/// A shell, or kubectl.
#[derive(Clone, Copy, Debug)]
enum Target {
    Shell(Shell),
    Kubectl,
}

impl ValueEnum for Target {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Shell(Shell::Bash),
            Self::Shell(Shell::Elvish),
            Self::Shell(Shell::Fish),
            Self::Shell(Shell::PowerShell),
            Self::Shell(Shell::Zsh),
            Self::Kubectl,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Shell(shell) => shell.to_possible_value(),
            Self::Kubectl => Some(PossibleValue::new("kubectl")),
        }
    }
}

#[derive(Debug, Parser)]
pub(in crate::cli) struct Complete {
    /// The words after the plugin's name; the last one is to be completed
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<String>,
}

#[derive(Debug, Parser)]
pub(in crate::cli) struct Man {
    /// The command, for example: account show
    command: Vec<String>,
}

pub(in crate::cli) fn completions(args: &Completions) -> CommandResult {
    let mut out = Vec::new();
    match args.shell {
        Target::Shell(shell) => {
            clap_complete::generate(shell, &mut Cli::command(), NAME, &mut out);
        }
        Target::Kubectl => out.extend(FOR_KUBECTL.as_bytes()),
    }
    print(&out)
}

/// Prints the candidates for the last word, one a line, and what kubectl does with them.
pub(in crate::cli) fn complete(args: &Complete) -> CommandResult {
    let mut root = Cli::command();
    root.build();
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    let mut lines = candidates(&root, &words);
    lines.push(NO_FILES.into());
    print((lines.join("\n") + "\n").as_bytes())
}

/// What the last word may be: commands, flags, or the values of a flag that has a list of them.
fn candidates(root: &Command, words: &[&str]) -> Vec<String> {
    let (last, before) = words.split_last().unwrap_or((&"", &[]));
    let mut command = root;
    for word in before {
        if let Some(below) = command.find_subcommand(word) {
            command = below;
        }
    }
    let flag = |word: &str| {
        command.get_arguments().find(|argument| {
            let long = argument.get_long().map(|long| format!("--{long}"));
            let short = argument.get_short().map(|short| format!("-{short}"));
            [long, short].iter().flatten().any(|it| it == word)
        })
    };
    let values = |argument: &clap::Arg| {
        let values = argument.get_possible_values();
        values.iter().map(|it| it.get_name().to_owned()).collect()
    };
    // The next word: where the value is a part of the word itself, that is another one.
    let takes_value = |argument: &&clap::Arg| {
        argument.get_action().takes_values() && !argument.is_require_equals_set()
    };
    let all: Vec<String> = match before
        .last()
        .and_then(|word| flag(word))
        .filter(takes_value)
    {
        Some(argument) => values(argument),
        None if last.starts_with('-') => {
            let shown = command.get_arguments().filter(|it| !it.is_hide_set());
            let long = shown.filter_map(clap::Arg::get_long);
            long.map(|long| format!("--{long}")).collect()
        }
        None => {
            let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
            let below = shown.map(|it| it.get_name().to_owned());
            let positional = command.get_positionals().flat_map(values);
            below.chain(positional).collect()
        }
    };
    let fitting = all.into_iter().filter(|it| it.starts_with(last));
    fitting.collect()
}

pub(in crate::cli) fn man(args: &Man) -> CommandResult {
    let mut command = Cli::command();
    command.build();
    let mut page = &command;
    for name in &args.command {
        page = page.find_subcommand(name).ok_or_else(|| {
            let known: Vec<_> = page
                .get_subcommands()
                .filter(|it| !it.is_hide_set())
                .map(Command::get_name)
                .collect();
            Failure(format!(
                "expected one of {}, found {name:?}",
                known.join(", ")
            ))
        })?;
    }
    let mut out = Vec::new();
    clap_mangen::Man::new(with_usage(page))
        .render(&mut out)
        .map_err(|error| Failure::new("rendering the page", &error))?;
    print(&out)
}

/// A command with the usage that its help has: the generator's own lists all flags, without their values.
fn with_usage(page: &Command) -> Command {
    let mut page = page.clone();
    let usage = page.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim_start().to_owned();
    page.override_usage(usage)
}

fn print(text: &[u8]) -> CommandResult {
    std::io::stdout()
        .write_all(text)
        .map_err(|error| Failure::new("printing", &error))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usage_of_a_page_is_that_of_the_help() {
        let mut root = Cli::command();
        root.build();
        let status = with_usage(root.find_subcommand("status").unwrap());
        let usage = status.get_overridden_usage().unwrap().to_string();
        assert!(usage.starts_with("cert-renew status [OPTIONS]"), "{usage}");
        let mut page = Vec::new();
        clap_mangen::Man::new(status).render(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        let mut sections = page.split(".SH ");
        let synopsis = sections.find(|it| it.starts_with("SYNOPSIS")).unwrap();
        assert!(
            synopsis.contains("[OPTIONS]") && !synopsis.contains("output"),
            "{synopsis}"
        );
    }

    #[test]
    fn kubectl_gets_commands_flags_and_values() {
        let mut root = Cli::command();
        root.build();
        for (words, expected, missing) in [
            (&["rene"][..], "renew", "status"),
            (&[""], "status", "__complete"),
            (&["renew", "--ti"], "--timeout", "--all"),
            (&["status", "-o", "js"], "json", "yaml"),
            (&["account", ""], "rollover", "status"),
            (&["completions", ""], "kubectl", "status"),
            (&["create", "--dry-run", "-"], "--output", "client"),
            (&["check", "r"], "route", "status"),
        ] {
            let found = candidates(&root, words);
            let has = |word: &str| found.iter().any(|it| it == word);
            assert!(has(expected) && !has(missing), "{words:?}: {found:?}");
        }
        assert_eq!(candidates(&root, &["nothing-such"]), [""; 0]);
    }
}

//! The command line: `cert-renew run`, and commands for people.
//!
//! The only module that prints. Exit codes are in `docs/command.md`: 0 success, 1 failure or problems found, 2 wrong
//! usage, or a certificate that `check` found broken.

mod change;
mod connection;
pub mod offline;
mod output;
mod view;
// The operator runs on a unix: it ends by signals. Elsewhere there are the other commands.
#[cfg(unix)]
mod run;
mod verdicts;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// Renews the TLS certificates in annotated Secrets by ACME, and restarts the workloads that use them.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator
    #[cfg(unix)]
    Run(run::Args),
    /// Show the annotated Secrets: what they hold, when they renew, what went wrong
    Status(view::status::Args),
    /// Show everything about one Secret: its state, its last Events, and the next thing to do
    Describe(view::describe::Args),
    /// Find what is wrong with certificates, keys and manifests
    Check(offline::check::Args),
    /// Show what would be renewed when, and which workloads would restart; change nothing
    Plan(view::plan::Args),
    /// Ask for new certificates now, within the limits of the CA
    Renew(change::renew::Args),
    /// Revoke a certificate at its CA, and have a new key and certificate made
    Revoke(change::revoke::Args),
    /// Continue a rollout that was halted
    Resume(change::secret::Resume),
    /// Create an annotated Secret that waits for its first certificate
    Create(change::create::Args),
    /// Take over what another tool renews, without issuing or restarting anything
    Adopt(change::adopt::Args),
    /// Show which names a namespace may ask which issuer for
    Names(view::names::Args),
    /// Show the account at a CA, or change its key
    #[command(subcommand)]
    Account(view::account::Command),
    /// Look at a config file
    #[command(subcommand)]
    Config(offline::config::Command),
    /// Print the version of this command, and of the operator in the cluster
    Version(view::version::Args),
    /// Print what a shell, or kubectl, needs to complete this command
    Completions(offline::completions::Completions),
    /// Complete a command line, as kubectl asks its plugins
    #[command(name = "__complete", hide = true)]
    Complete(offline::completions::Complete),
    /// Print the manual page of this command, or of one below it
    Man(offline::completions::Man),
}

impl Cli {
    /// Parses the command line of this process; ends the process if it is wrong or asks for help.
    ///
    /// As `kubectl-cert_renew` it is a plugin of kubectl, and its help says so.
    #[must_use]
    pub fn from_command_line() -> Self {
        let invoked = std::env::args_os().next().unwrap_or_default();
        // Without the `.exe` of Windows.
        let invoked = std::path::Path::new(&invoked).file_stem();
        let plugin = invoked.is_some_and(|name| name == "kubectl-cert_renew");
        let name = if plugin { "kubectl cert-renew" } else { NAME };
        let matches = Self::command().bin_name(name).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Runs the command.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            #[cfg(unix)]
            Command::Run(args) => run::run(args),
            Command::Status(args) => view::status::run(args),
            Command::Describe(args) => view::describe::run(args),
            Command::Check(args) => offline::check::run(args),
            Command::Plan(args) => view::plan::run(args),
            Command::Renew(args) => change::renew::run(args),
            Command::Revoke(args) => change::revoke::run(args),
            Command::Resume(args) => change::secret::resume(args),
            Command::Create(args) => change::create::run(args),
            Command::Adopt(args) => change::adopt::adopt(args),
            Command::Account(command) => view::account::run(command),
            Command::Config(command) => offline::config::run(command),
            Command::Names(args) => view::names::run(args),
            Command::Version(args) => view::version::run(args),
            Command::Complete(args) => offline::completions::complete(&args),
            Command::Completions(args) => offline::completions::completions(&args),
            Command::Man(args) => offline::completions::man(&args),
        };
        match result {
            Ok(code) => code,
            Err(Failure(message)) => {
                // There is no other output if standard error is closed.
                let _ = writeln!(std::io::stderr(), "cert-renew: {message}");
                ExitCode::FAILURE
            }
        }
    }
}

/// The command's name.
const NAME: &str = "cert-renew";

/// Why a command ended early: a sentence for the user.
#[derive(Debug)]
struct Failure(String);

impl Failure {
    /// What failed and why. An error of the API server is said as kubectl says it, which names the object.
    fn new(doing: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        if let Some(text) = connection::api_error::in_kubectls_words(error) {
            return Self(text);
        }
        Self(format!(
            "{doing}: {}",
            cert_renew_core::text::error_chain(error)
        ))
    }
}

/// Compares a command's output with a file of `testdata/cli`; `UPDATE_GOLDEN=1` writes it.
#[cfg(test)]
fn golden(name: &str, said: &str) {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cli");
    let path = directory.join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, said).expect("it can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(said, golden, "UPDATE_GOLDEN=1 writes {}", path.display());
}

type CommandResult = Result<ExitCode, Failure>;

/// Runs async code on its own runtime.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        // Mostly waiting; the second thread keeps a slow decode from delaying the probes.
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new("starting the runtime", &error))?
        .block_on(future)
}

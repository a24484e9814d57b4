//! `cert-renew account show ISSUER`: the account's URL, for a CAA record with `accounturi` (RFC 8657).

use std::process::ExitCode;

use clap::Subcommand;

use super::way::Way;
use super::{CommandResult, Failure, block_on};
use crate::acme::Credentials;
use crate::cluster::accounts;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show an issuer's account; its key is not shown
    Show {
        /// The issuer, as the config file names it
        issuer: String,
        /// The operator's namespace
        #[arg(short, long, env = "POD_NAMESPACE", default_value = "cert-renew")]
        namespace: String,
        #[command(flatten)]
        way: Way,
    },
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn run(command: Command) -> CommandResult {
    let Command::Show {
        issuer,
        namespace,
        way,
    } = command;
    block_on(async {
        let client = way.client().await?;
        let stored = accounts::load(&client, &namespace, &issuer).await;
        let stored = stored.map_err(|error| Failure::new("reading the account", &error))?;
        let Some(stored) = stored else {
            return Err(Failure(format!("issuer {issuer} has no account yet")));
        };
        let credentials = Credentials::from_json(&stored);
        let credentials =
            credentials.map_err(|error| Failure::new("reading the account", &error))?;
        let url = credentials.account_url();
        println!("account: {}", url.unwrap_or("not registered yet"));
        println!("contact: {}", credentials.contact().join(", "));
        Ok(ExitCode::SUCCESS)
    })
}

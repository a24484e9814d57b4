//! `cert-renew account show ISSUER`: the account's URL, for a CAA record with `accounturi` (RFC 8657).
//! `cert-renew account rollover ISSUER`: a new key for the account.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use kube::Client as Kube;
use serde::Serialize;

use crate::acme::{Client, Credentials, IssuerSettings, RateLimiter};
use crate::cli::connection::cluster_config;
use crate::cli::connection::kube_flags::{KubeFlags, OperatorNamespace};
use crate::cli::output::Output;
use crate::cli::{CommandResult, Failure, block_on};
use crate::cluster::accounts;
use crate::process::write_gate::WriteGate;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Command {
    /// Show an issuer's account; its key is not shown
    Show(Show),
    /// Change the key of an issuer's account; a running operator takes the new one
    Rollover(Rollover),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Place {
    /// The issuer, as the config file names it
    issuer: String,
    #[command(flatten)]
    operator: OperatorNamespace,
    /// The same as --operator-namespace: the account is there
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    way: KubeFlags,
}

impl Place {
    fn namespace(&self) -> &str {
        let operator = &self.operator.operator_namespace;
        self.namespace.as_ref().unwrap_or(operator)
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Show {
    #[command(flatten)]
    place: Place,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Rollover {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    trust: Trust,
}

/// How a CA is reached from here.
#[derive(Debug, Args)]
pub(in crate::cli) struct Trust {
    /// PEM file with roots for the CA's endpoint, beside the public ones
    #[arg(long)]
    pub(in crate::cli) ca_bundle: Option<PathBuf>,
}

pub(in crate::cli) fn run(command: Command) -> CommandResult {
    match command {
        Command::Show(args) => show(&args),
        Command::Rollover(args) => rollover(&args),
    }
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn show(args: &Show) -> CommandResult {
    /// The same for programs.
    #[derive(Serialize)]
    struct Shown<'a> {
        issuer: &'a str,
        /// Its URL at the CA; none before it is registered.
        account: Option<&'a str>,
        contact: &'a [String],
    }
    let place = &args.place;
    block_on(async {
        let client = place.way.client().await?;
        let (credentials, _) = load(&client, place.namespace(), &place.issuer).await?;
        let url = credentials.account_url();
        let shown = Shown {
            issuer: &place.issuer,
            account: url,
            contact: credentials.contact(),
        };
        if let Some(text) = args.output.of_program(&shown)? {
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        println!("account: {}", url.unwrap_or("not registered yet"));
        println!("contact: {}", credentials.contact().join(", "));
        Ok(ExitCode::SUCCESS)
    })
}

/// The new key is stored before the CA gets it, and the old one is kept until the CA has agreed: after a crash, the
/// next run finds out which of them the CA knows, and completes the rollover.
#[expect(clippy::print_stdout, reason = "the command's answer")]
fn rollover(args: &Rollover) -> CommandResult {
    let Place { issuer, way, .. } = &args.place;
    let namespace = args.place.namespace();
    block_on(async {
        let kube = way.client().await?;
        let (old, begun) = load(&kube, namespace, issuer).await?;
        let client = acme(issuer, &old, args.trust.ca_bundle.as_deref())?;
        let told = |doing: &'static str| {
            move |error: crate::acme::Error| Failure(format!("{doing}: {}", error.detail()))
        };
        let taken = match &begun {
            None => None,
            Some(next) => client
                .find_account(next)
                .await
                .map_err(told("asking for the account"))?,
        };
        let new = match taken {
            Some(new) => new,
            None => {
                let next = match begun {
                    Some(next) => next,
                    None => unusable(old.successor())?,
                };
                let (was, will_be) = (unusable(old.to_json())?, unusable(next.to_json())?);
                store(&kube, namespace, issuer, &was, Some(&will_be)).await?;
                client
                    .restore(&old)
                    .map_err(told("signing with the old key"))?;
                match client.change_key(&next).await {
                    Ok(new) => new,
                    Err(error) => {
                        // If the CA has clearly refused, the key that it will never know is not kept.
                        if error.is_final() {
                            store(&kube, namespace, issuer, &was, None).await?;
                        }
                        return Err(told("changing the key")(error));
                    }
                }
            }
        };
        store(&kube, namespace, issuer, &unusable(new.to_json())?, None).await?;
        println!("issuer {issuer}: its account has a new key");
        Ok(ExitCode::SUCCESS)
    })
}

async fn store(
    kube: &Kube,
    namespace: &str,
    issuer: &str,
    credentials: &[u8],
    next: Option<&[u8]>,
) -> Result<(), Failure> {
    accounts::change(kube, namespace, issuer, credentials, next)
        .await
        .map_err(|error| Failure::new("storing the account", &error))
}

/// An issuer's credentials, and those of a rollover that was begun.
pub(in crate::cli) async fn load(
    kube: &Kube,
    namespace: &str,
    issuer: &str,
) -> Result<(Credentials, Option<Credentials>), Failure> {
    let stored = accounts::load_with_next(kube, namespace, issuer).await;
    let stored = stored.map_err(|error| Failure::new("reading the account", &error))?;
    let Some((credentials, next)) = stored else {
        // Where the config may not be read, nobody knows better.
        let config = cluster_config::read_if_allowed(kube, namespace).await;
        let config = config.ok().flatten();
        return Err(Failure(match config {
            Some(config) if config.issuer(issuer).is_none() => {
                cluster_config::unknown_issuer(issuer, &config)
            }
            _ => format!("issuer {issuer} has no account yet"),
        }));
    };
    let next = next.map(|json| unusable(Credentials::from_json(&json)));
    Ok((
        unusable(Credentials::from_json(&credentials))?,
        next.transpose()?,
    ))
}

/// A client for the CA of these credentials; sends nothing yet.
pub(in crate::cli) fn acme(
    issuer: &str,
    credentials: &Credentials,
    ca_bundle: Option<&Path>,
) -> Result<Client, Failure> {
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|error| Failure::new(&format!("reading {}", path.display()), &error))
    };
    let settings = IssuerSettings {
        name: issuer.into(),
        directory: credentials.directory().to_owned(),
        contact: Vec::new(),
        ca_bundle: ca_bundle.map(read).transpose()?,
        eab: None,
        concurrency: 1,
        rate_limiter: RateLimiter::default(),
    };
    Client::new(settings, Arc::new(|_| {}), WriteGate::open())
        .map_err(|error| Failure::new("preparing the way to the CA", &error))
}

fn unusable<T>(result: Result<T, crate::acme::Unusable>) -> Result<T, Failure> {
    result.map_err(|error| Failure::new("reading the account", &error))
}

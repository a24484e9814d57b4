//! `cert-renew revoke NS/NAME`: revokes a certificate at its CA, and requests a new key and certificate at once.
//!
//! The annotation `cert-renew.io/revoked` on the Secret names the leaf: the operator does the rest, and the annotation
//! has no effect once the Secret has another leaf.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use cert_renew_core::assess::listed;
use cert_renew_core::certificate::{self, Leaf};
use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::settings::{IssuerRef, NamespaceDefaults, Settings};
use cert_renew_core::secret::state::IssuedBy;
use clap::{Parser, ValueEnum};
use kube::api::Api;
use serde_json::json;

use super::renew;
use super::secret::{annotate, get};
use crate::acme::RevocationReason;
use crate::cli::connection::kube_flags::{NamespaceFlags, OperatorNamespace};
use crate::cli::connection::operator::Operator;
use crate::cli::view::account::{Trust, acme, load};
use crate::cli::{CommandResult, Failure, block_on};

#[derive(Debug, Parser)]
pub(in crate::cli) struct Args {
    /// The Secret, as NAMESPACE/NAME or NAME
    #[arg(value_name = "NAME")]
    secret: String,
    #[command(flatten)]
    place: NamespaceFlags,
    /// Revoke without asking
    #[arg(short, long)]
    yes: bool,
    /// The reason, in the words of RFC 5280
    #[arg(long, value_enum, default_value_t = Reason::Unspecified)]
    reason: Reason,
    /// The issuer whose account revokes it; by default the one that issued it, as the Secret says
    #[arg(long)]
    issuer: Option<String>,
    #[command(flatten)]
    operator: OperatorNamespace,
    #[command(flatten)]
    trust: Trust,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "camelCase")]
enum Reason {
    Unspecified,
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
}

impl From<Reason> for RevocationReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Unspecified => Self::Unspecified,
            Reason::KeyCompromise => Self::KeyCompromise,
            Reason::AffiliationChanged => Self::AffiliationChanged,
            Reason::Superseded => Self::Superseded,
            Reason::CessationOfOperation => Self::CessationOfOperation,
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) fn run(args: Args) -> CommandResult {
    block_on(async {
        let client = args.place.client().await?;
        let (namespace, name) = args.place.of(&client, &args.secret)?;
        let api: Api<FullSecret> = Api::namespaced(client.clone(), &namespace);
        let secret = api
            .get(&name)
            .await
            .map_err(|error| Failure::new(&format!("reading Secret {namespace}/{name}"), &error))?;
        let unreadable = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(&format!("the certificate in {namespace}/{name}"), error)
        };
        let (pem, _) = secret.pair();
        let leaf = certificate::leaf(pem).map_err(|error| unreadable(&error))?;
        let der = certificate::certificates(pem).map_err(|error| unreadable(&error))?;
        let der = der.first().cloned().unwrap_or_default();
        let issued_by = secret.head.annotations().and_then(IssuedBy::read);
        let issuer = args.issuer.or_else(|| issued_by.map(|it| it.issuer.into()));
        let issuer = issuer.ok_or_else(|| {
            Failure(format!(
                "{namespace}/{name} does not say who issued its certificate: name the issuer with --issuer"
            ))
        })?;
        let operator_namespace = &args.operator.operator_namespace;
        let operator = Operator::look(&client, operator_namespace).await?;
        let fingerprint = leaf.fingerprint.to_string();
        let replaced = match no_replacement(&secret.head) {
            Some(why) => Err(why),
            None => {
                let thin = get(&client, &namespace, &name).await?;
                let why = renew::no_replacement(&client, thin, &fingerprint, &operator);
                why.await?.map_or(Ok(()), Err)
            }
        };
        if !args.yes {
            confirm(
                &format!("{namespace}/{name}"),
                &leaf,
                &issuer,
                replaced.as_ref().err(),
            )?;
        }
        let revoked = async {
            let (credentials, _) = load(&client, operator_namespace, &issuer).await?;
            let ca = acme(&issuer, &credentials, args.trust.ca_bundle.as_deref())?;
            let revoked = async {
                ca.restore(&credentials)?;
                ca.revoke(&der, args.reason.into()).await
            };
            revoked.await.map_err(|error| Failure(error.detail()))
        };
        let revoked = revoked.await;
        if revoked.is_ok() {
            println!("{namespace}/{name}: revoked, certificate {fingerprint}");
        }
        // Whether or not the revocation succeeds, the key must no longer be used. On a Secret without annotations of ours
        // it would say nothing, or opt the Secret in where its namespace has a default issuer.
        if secret.head.concerns_us() {
            let patch = json!({"metadata": {"annotations": {keys::REVOKED: fingerprint}}});
            annotate(&client, &namespace, &name, &patch).await?;
        }
        match replaced {
            Ok(()) => println!("{namespace}/{name}: a new key and certificate are asked for"),
            Err(why) => {
                println!("{namespace}/{name}: NO new key and certificate will be made: {why}");
            }
        }
        revoked.map_err(|why| {
            Failure(format!(
                "{namespace}/{name} is not revoked at its CA: {}",
                why.0
            ))
        })?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Why the operator makes no new certificate in place of the revoked one, by the Secret.
fn no_replacement(head: &Head) -> Option<String> {
    let defaults = NamespaceDefaults::default();
    let annotations = head.annotations();
    let (settings, _) = Settings::read(annotations?, head.managed, &defaults);
    let external = settings.is_some_and(|settings| settings.issuer == IssuerRef::External);
    external.then(|| "somebody else renews it: make them there".into())
}

/// Asks on the terminal whether the certificate is to be revoked.
fn confirm(place: &str, leaf: &Leaf, issuer: &str, alone: Option<&String>) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure(format!(
            "{place}: nothing was revoked: say --yes where nobody can be asked"
        )));
    }
    let (names, until) = (listed(&leaf.names), leaf.not_after);
    let mut question = format!(
        "Revoke the certificate in {place} at {issuer}? It is for {names}, and valid until {until}. This cannot be undone.\n"
    );
    if let Some(why) = alone {
        question += &format!("No new one will be made: {why}.\n");
    }
    question += "[y/N] ";
    let failed = |error| Failure::new("asking", &error);
    let mut terminal = std::io::stderr();
    terminal.write_all(question.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(failed)?;
    if ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        return Ok(());
    }
    Err(Failure(format!("{place}: nothing was revoked")))
}

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
use cert_renew_core::time::UnixTime;
use clap::{Parser, ValueEnum};
use kube::api::Api;
use serde_json::json;

use super::passed_over::OfClass;
use super::renew::{self, Verdict};
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
        let replacement = if is_external(&secret.head) {
            Replacement::None("somebody else renews it: make them there".into())
        } else {
            let thin = get(&client, &namespace, &name).await?;
            let verdict = renew::of_revoked(&client, thin, &fingerprint, &operator);
            Replacement::of(verdict.await?, operator.out_of_action())
        };
        if !args.yes {
            let place = format!("{namespace}/{name}");
            confirm(&place, &leaf, &issuer, &replacement)?;
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
        println!("{namespace}/{name}: {}", replacement.in_words());
        revoked.map_err(|why| {
            Failure(format!(
                "{namespace}/{name} is not revoked at its CA: {}",
                why.0
            ))
        })?;
        Ok(ExitCode::SUCCESS)
    })
}

/// What is made in place of a key and a certificate that are revoked, and when.
#[derive(Debug)]
enum Replacement {
    /// A new pair, at once.
    Asked,
    /// A new pair, not before this instant, and why.
    NotBefore(UnixTime, String),
    /// A new pair, but no operator is known to act; and why.
    Nobody(String),
    /// What the installation of another class makes.
    OfClass(String),
    /// Nothing, and why.
    None(String),
}

impl Replacement {
    /// By the verdict on the Secret, and by why the operator does nothing for any, if so.
    fn of(verdict: Verdict, out_of_action: Option<String>) -> Self {
        match (verdict, out_of_action) {
            (Verdict::OfClass(OfClass { class, .. }), _) => Self::OfClass(class),
            (Verdict::Nothing(why), _) => Self::None(why),
            (_, Some(why)) => Self::Nobody(why),
            (Verdict::NotBefore(until, why), None) => Self::NotBefore(until, why),
            (Verdict::Renews | Verdict::Waits(_) | Verdict::Unknown(_), None) => Self::Asked,
        }
    }

    /// In words, once `revoked` is written.
    fn in_words(&self) -> String {
        match self {
            Self::Asked => "a new key and certificate are asked for".into(),
            Self::NotBefore(until, why) => {
                format!(
                    "a new key and certificate are asked for, and NOT made before {until}: {why}"
                )
            }
            Self::Nobody(why) => format!(
                "a new key and certificate are asked for, and NOBODY is known to make them: {why}"
            ),
            Self::OfClass(class) => {
                format!("a new key and certificate are left to the installation of class {class}")
            }
            Self::None(why) => format!("NO new key and certificate will be made: {why}"),
        }
    }

    /// What somebody should know before the certificate is revoked.
    fn warning(&self) -> Option<String> {
        Some(match self {
            Self::Asked => return None,
            Self::NotBefore(until, why) => format!("No new one is made before {until}: {why}."),
            Self::Nobody(why) => format!("Nobody is known to make a new one: {why}"),
            Self::OfClass(class) => {
                format!("A new one is left to the installation of class {class}.")
            }
            Self::None(why) => format!("No new one will be made: {why}."),
        })
    }
}

/// Whether somebody else renews it, by the Secret.
fn is_external(head: &Head) -> bool {
    let Some(annotations) = head.annotations() else {
        return false;
    };
    let (settings, _) = Settings::read(annotations, head.managed, &NamespaceDefaults::default());
    settings.is_some_and(|settings| settings.issuer == IssuerRef::External)
}

/// Asks on the terminal whether the certificate is to be revoked.
fn confirm(
    place: &str,
    leaf: &Leaf,
    issuer: &str,
    replacement: &Replacement,
) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure(format!(
            "{place}: nothing was revoked: say --yes where nobody can be asked"
        )));
    }
    let (names, until) = (listed(&leaf.names), leaf.not_after);
    let mut question = format!(
        "Revoke the certificate in {place} at {issuer}? It is for {names}, and valid until {until}. This cannot be undone.\n"
    );
    if let Some(warning) = replacement.warning() {
        question += &format!("{warning}\n");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_later_or_elsewhere_is_not_said_to_be_never_made() {
        let until = UnixTime(1_800_000_000);
        let of = OfClass {
            class: "edge".into(),
            why: "it belongs to another installation".into(),
        };
        for (verdict, said, asked) in [
            (
                Verdict::Renews,
                "a new key and certificate are asked for",
                "",
            ),
            (
                Verdict::NotBefore(until, "limited".into()),
                "NOT made before 2027-01-15T08:00:00Z: limited",
                "No new one is made before 2027-01-15T08:00:00Z: limited.",
            ),
            (
                Verdict::OfClass(of),
                "left to the installation of class edge",
                "A new one is left to the installation of class edge.",
            ),
            (
                Verdict::Nothing("it is paused".into()),
                "NO new key and certificate will be made: it is paused",
                "No new one will be made: it is paused.",
            ),
        ] {
            let replacement = Replacement::of(verdict, None);
            let (words, warning) = (replacement.in_words(), replacement.warning());
            assert!(words.contains(said), "{words}");
            assert_eq!(warning.unwrap_or_default(), asked);
        }
    }

    #[test]
    fn nobody_is_asked_for_what_would_not_be_made_anyway() {
        let idle = || Some("no cert-renew leads".to_owned());
        let until = UnixTime(1_800_000_000);
        for (verdict, said) in [
            (
                Verdict::Renews,
                "NOBODY is known to make them: no cert-renew leads",
            ),
            (
                Verdict::NotBefore(until, "limited".into()),
                "NOBODY is known to make them: no cert-renew leads",
            ),
            (
                Verdict::Nothing("cert-renew does not manage it".into()),
                "NO new key and certificate will be made: cert-renew does not manage it",
            ),
        ] {
            let words = Replacement::of(verdict, idle()).in_words();
            assert!(words.contains(said), "{words}");
        }
    }
}

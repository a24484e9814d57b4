//! `cert-renew revoke NS/NAME`: revokes a certificate at its CA, and requests a new key and certificate at once.
//!
//! The annotation `cert-renew.io/revoked` on the Secret names the leaf: the operator does the rest, and the annotation
//! has no effect once the Secret has another leaf.

use std::process::ExitCode;

use cert_renew_core::certificate;
use cert_renew_core::secret::full::FullSecret;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::state::IssuedBy;
use clap::{Parser, ValueEnum};
use kube::api::Api;
use serde_json::json;

use super::account::{Trust, acme, load};
use super::kube_flags::Place;
use super::secret::annotate;
use super::{CommandResult, Failure, block_on};
use crate::acme::RevocationReason;

#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The Secret, as NAMESPACE/NAME or NAME
    secret: String,
    #[command(flatten)]
    place: Place,
    /// Why, in the words of RFC 5280
    #[arg(long, value_enum, default_value_t = Reason::Unspecified)]
    reason: Reason,
    /// The issuer whose account revokes; else the one that the Secret says it was issued by
    #[arg(long)]
    issuer: Option<String>,
    /// The operator's namespace, where the account is
    #[arg(long, env = "POD_NAMESPACE", default_value = "cert-renew")]
    operator_namespace: String,
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
pub(super) fn run(args: Args) -> CommandResult {
    block_on(async {
        let client = args.place.client().await?;
        let (namespace, name) = args.place.of(&client, &args.secret);
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
        let revoked = async {
            let (credentials, _) = load(&client, &args.operator_namespace, &issuer).await?;
            let ca = acme(&issuer, &credentials, args.trust.ca_bundle.as_deref())?;
            let revoked = async {
                ca.restore(&credentials)?;
                ca.revoke(&der, args.reason.into()).await
            };
            revoked.await.map_err(|error| Failure(error.detail()))
        };
        let revoked = revoked.await;
        let fingerprint = leaf.fingerprint.to_string();
        if revoked.is_ok() {
            println!("{namespace}/{name}: revoked, certificate {fingerprint}");
        }
        // Whether or not the revocation succeeds, the key must no longer be used.
        let patch = json!({"metadata": {"annotations": {keys::REVOKED: fingerprint}}});
        annotate(&client, &namespace, &name, &patch).await?;
        println!("{namespace}/{name}: a new key and certificate are asked for");
        revoked.map_err(|why| {
            Failure(format!(
                "{namespace}/{name} is not revoked at its CA: {}",
                why.0
            ))
        })?;
        Ok(ExitCode::SUCCESS)
    })
}

//! Rewrites a pair of ours that servers cannot load, as the same certificate and key in clean PEM.
//!
//! No CA is asked: the pair is sound, and somebody has only changed its form. Each certificate is rewritten once, so
//! that we do not fight with a program that restores its form.

use cert_renew_core::assess::Assessment;
use cert_renew_core::certificate::key::PrivateKey;
use cert_renew_core::certificate::pair::Chain;
use cert_renew_core::secret::data::render::render;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::{SecretRef, keys};

use crate::cluster::events::Reason;
use crate::cluster::secrets::{self, Changes};
use crate::context::Shared;
use crate::telemetry::stage::Stage;

/// Rewrites the pair; true if that was done.
pub(super) async fn rewrite(
    shared: &Shared,
    key: &SecretRef,
    secret: &FullSecret,
    assessment: &Assessment,
) -> bool {
    let Some(changes) = changes(secret, assessment) else {
        return false;
    };
    match secrets::patch(&shared.client, &secret.head, &changes).await {
        Ok(_) => {}
        Err(error) => {
            tracing::info!(secret = %key, %error, "the pair is not written in clean PEM");
            return false;
        }
    }
    let note = "servers could not load the pair in the form that it had: the same certificate and key are written in clean PEM";
    tracing::info!(secret = %key, step = Stage::Rewritten.name(), "{note}");
    let uid = secret.head.uid();
    shared
        .events
        .secret(key, uid, Reason::CertificateProblem, note);
    true
}

/// The changes to write; `None` where the Secret belongs to another program, may not change now, or was rewritten already.
fn changes(secret: &FullSecret, assessment: &Assessment) -> Option<Changes<'static>> {
    let settings = &assessment.settings;
    let fingerprint = assessment.leaf.as_ref().ok()?.fingerprint.to_string();
    let done = secret.head.annotation(keys::REWRITTEN) == Some(&*fingerprint);
    let ours = !assessment.is_external() && secret.kept_for().is_none();
    // An invalid annotation may be a pause or another class.
    let held = settings.paused || assessment.blocked.issue() || assessment.opens.is_some();
    if done || !ours || held || secret.head.immutable {
        return None;
    }
    let (certificate, private_key) = secret.pair();
    let chain = Chain::read(certificate).ok()?;
    let private_key = PrivateKey::from_pem(private_key).ok()?;
    let password = settings.pkcs12_password_key.as_deref();
    let password = password.and_then(|name| secret.data.get(name));
    let password = password.and_then(|bytes| std::str::from_utf8(bytes).ok());
    let outputs = &settings.outputs;
    let rendered = render(&secret.kind, outputs, &chain, &private_key, password).ok()?;
    Some(Changes {
        annotations: vec![(keys::REWRITTEN, Some(fingerprint))],
        data: rendered.data,
    })
}

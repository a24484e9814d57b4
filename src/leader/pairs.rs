//! Finds changes that the watch cannot see: a private key that was replaced while the certificate beside it stayed.
//!
//! The watch skips `tls.key`, so a Secret with only a changed key arrives as another version with the same content.
//! Such a Secret is read once, a moment later, and its pair is judged as before a rollout. Nothing of it is kept.
//!
//! A change of the annotations that we know or of the certificate is judged by the task that acts on it; where that has
//! to wait, or the Secret is new so that no task acts, it is judged here too. An unchanged Secret costs nothing here,
//! however many there are. Each namespace has a token bucket, and [`Doubts`](crate::context::doubts::Doubts) takes them in
//! turn.

use cert_renew_core::assess::{self, Assessment};
use cert_renew_core::certificate::pair::{self, PairFault, Strictness};
use cert_renew_core::config::Labels;
use cert_renew_core::index::{Entry, Observed};
use cert_renew_core::schedule::token_bucket::TokenBucket;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::handles::Handles;
use super::rewrite::rewrite;
use crate::cluster::events::Reason;
use crate::cluster::{self, secrets};
use crate::process::task::Done;

/// Most looks in one namespace at once, then one a second: no user can make us load the API server without limit.
const AT_ONCE: u32 = 100;

/// Whether a version of a Secret differs from the one before only in what the watch does not see.
#[must_use]
pub fn is_hidden(before: &Observed, now: &Observed) -> bool {
    let seen = |it: &Observed| {
        let Observed {
            leaf,
            rolled_out,
            halted,
            renewed,
            wish,
            problem_texts,
            ..
        } = it;
        (*leaf, *rolled_out, *halted, *renewed, *wish, *problem_texts)
    };
    before.uid == now.uid && before.leaf.is_ok() && seen(before) == seen(now)
}

/// Looks at doubted Secrets until the term ends.
pub async fn follow(all: &Handles, done: &UnboundedSender<Done>) {
    let allowance = Mutex::new(TokenBucket::new(AT_ONCE));
    let doubts = &all.shared.doubts;
    let look = async |key: SecretRef| {
        let now = Instant::now().into_std();
        if !allowance.lock().take(now, &key.namespace) {
            doubts.add(&key);
            return;
        }
        if let Err(error) = look(all, &key, done).await {
            tracing::info!(secret = %key, error = %error_chain(&error), "the pair cannot be looked at");
            // It is tried again when the API server answers again.
            if error.is_uncertain() {
                doubts.add(&key);
            }
        }
    };
    doubts.each(look).await;
}

/// Reads one Secret and reports its pair's fault, once.
async fn look(
    all: &Handles,
    key: &SecretRef,
    done: &UnboundedSender<Done>,
) -> Result<(), cluster::Error> {
    let now = UnixTime::now();
    let secret = match secrets::get(&all.shared.client, key).await {
        Ok(secret) => secret,
        Err(cluster::Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let config = all.shared.config();
    let view = (&*config, Labels::NotAsked);
    let assessment = assess::of_full(now, key, &secret, view, |_| None);
    let Some(assessment) = assessment.filter(|it| it.leaf.is_ok()) else {
        return Ok(());
    };
    let fault = fault(&secret, &assessment, now);
    if matches!(fault, Some(PairFault::Unservable(_)))
        && rewrite(&all.shared, key, &secret, &assessment).await
    {
        return Ok(());
    }
    // A due rollout looks at the pair itself, and reports it, as soon as it may begin.
    let looks = |entry: Entry| entry.rollout_due() && !entry.is_held(now);
    if all.shared.entry(key).is_none_or(looks) {
        return Ok(());
    }
    let note = fault.map(|fault| format!("the pair in the Secret: {}", error_chain(&fault)));
    if let Some(note) = &note
        && !all.shared.rollout_said(key, note)
    {
        tracing::warn!(secret = %key, note, "unusable pair");
        let uid = secret.head.uid();
        let events = &all.shared.events;
        events.secret(key, uid, Reason::CertificateProblem, note);
    }
    // The receiver is dropped only with the term.
    let _ = done.send(Done::Judged(key.clone(), note.map(Into::into)));
    Ok(())
}

/// The fault of the pair, except faults that are due to time alone.
fn fault(secret: &FullSecret, assessment: &Assessment, now: UnixTime) -> Option<PairFault> {
    let (certificate, private_key) = secret.pair();
    let look = Strictness {
        external: assessment.is_external(),
        der: secret.place().der,
    };
    let fault = pair::check_rollable(certificate, private_key, now, look).err();
    fault.filter(|fault| !matches!(fault, PairFault::NotYetValid(_) | PairFault::Expired(_)))
}

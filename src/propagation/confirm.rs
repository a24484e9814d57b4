//! After a rollout: do the pods serve the new leaf?
//!
//! With `verify` they are asked over TLS. One that still serves an earlier leaf is helped once, by one more restart of its
//! workload (the kubelet's cache can hand a new pod the old Secret) or, with `post:`, by asking it once more; then it is
//! reported. What is unknown neither restarts nor halts. Without `verify`, pods that were asked to reload are asked again
//! once the slowest kubelet has had its time.

use std::sync::{Mutex, PoisonError};

use tokio::time::sleep;

use super::tell;
use crate::cluster::chain;
use crate::cluster::events::Reason;
use crate::context::Context;
use crate::index::Key;
use crate::rollout::{self, Ask, Error, How, Outcome, Proof, Request, Step, Verified, Workload};
use crate::secret::head::Head;
use crate::secret::workload::WorkloadRef;
use crate::time::UnixTime;

/// Where the rights for it are.
const ADD_ON: &str = "kubectl apply -f rbac/addons/verify.yaml";

/// What a rollout came to in the end.
pub(super) enum Conclusion {
    /// The workloads have the leaf, as far as can be told; what is known beyond that, in words.
    Done(Option<String>),
    /// So many pods serve an earlier leaf, in words, although all was done that is done.
    Stale(usize, String),
    /// As [`Outcome::Halted`].
    Halted(WorkloadRef, String),
    /// As [`Outcome::Deferred`].
    Deferred(String),
    /// As [`Outcome::Interrupted`].
    Interrupted(String),
}

/// A Secret whose workloads were just rolled.
pub(super) struct Rolled<'a> {
    pub(super) context: &'a Context,
    pub(super) key: &'a Key,
    pub(super) request: &'a Request,
    /// The Secret as it was planned.
    pub(super) head: &'a Head,
    /// What is to be proven, where the Secret asks for it.
    pub(super) proof: Option<&'a Proof>,
    /// What was done for it just now.
    pub(super) steps: &'a [Step],
}

impl From<Outcome> for Conclusion {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done(None),
            Outcome::Halted(workload, why) => Self::Halted(workload, why),
            Outcome::Deferred(why) => Self::Deferred(why),
            Outcome::Interrupted(why) => Self::Interrupted(why),
        }
    }
}

impl Rolled<'_> {
    /// What the rollout came to, once the pods were asked where they can be.
    pub(super) async fn conclusion(&self, outcome: Outcome) -> Conclusion {
        if !matches!(outcome, Outcome::Done) {
            return outcome.into();
        }
        let Some(proof) = self.proof else {
            return self.ask_once_more().await;
        };
        match self.prove(proof).await {
            Ok(conclusion) => conclusion,
            Err(Error::Forbidden { .. }) => {
                self.not_verified(&format!("Services or pods may not be read: {ADD_ON}"))
            }
            Err(error) => Conclusion::Interrupted(chain(&error)),
        }
    }

    async fn prove(&self, proof: &Proof) -> Result<Conclusion, Error> {
        let Self { context, key, .. } = self;
        let mut verified = context.roller().verify(&key.namespace, proof).await?;
        if !verified.stale.is_empty() {
            match self.help(&verified).await? {
                // There was nothing left to do, and nothing new to see.
                None => {}
                Some(Outcome::Done) => {
                    verified = context.roller().verify(&key.namespace, proof).await?;
                }
                Some(other) => return Ok(other.into()),
            }
        }
        let Verified {
            served,
            stale,
            unknown,
        } = &verified;
        context
            .metrics
            .verified(*served, stale.len(), unknown.len());
        let service = &proof.service;
        if !stale.is_empty() {
            let pods = verified.stale_text();
            let note =
                format!("behind Service {service} {pods} still serve an earlier certificate");
            return Ok(Conclusion::Stale(stale.len(), note));
        }
        if !unknown.is_empty() {
            let note = format!("{served} pods do; {}", verified.unknown_text());
            return Ok(self.not_verified(&note));
        }
        let note = format!("all {served} pods behind Service {service} serve it");
        Ok(Conclusion::Done(Some(note)))
    }

    fn not_verified(&self, note: &str) -> Conclusion {
        let note = format!("whether every pod serves the new certificate is not known: {note}");
        self.warn(Reason::NotVerified, &note);
        Conclusion::Done(None)
    }

    fn warn(&self, reason: Reason, note: &str) {
        tracing::warn!(secret = %self.key, note, "{reason}");
        let events = &self.context.events;
        events.secret(self.key, &self.request.uid, reason, note);
    }

    /// The one thing that is done for pods that serve an earlier leaf; none where it was done before.
    async fn help(&self, verified: &Verified) -> Result<Option<Outcome>, Error> {
        let (namespace, roller) = (&*self.key.namespace, self.context.roller());
        let stale = &verified.stale;
        let workloads = roller.list(namespace).await?;
        let (mut steps, mut asked) = (Vec::new(), false);
        for workload in rollout::using(self.request, &workloads) {
            if let Some((_, asks)) = self.asked().find(|(asked, _)| asked.id == workload.id) {
                let again = roller.ask_some(namespace, &workload, asks, stale).await?;
                asked |= again.reloaded > 0;
                continue;
            }
            let step = Step::again(workload, self.request, UnixTime::now());
            let done = step.is_carried_by(&step.workload);
            if !done && roller.has_any(namespace, &step.workload, stale).await? {
                steps.push(step);
            }
        }
        if steps.is_empty() {
            return Ok(asked.then_some(Outcome::Done));
        }
        let names: Vec<String> = steps
            .iter()
            .map(|step| step.workload.id.to_string())
            .collect();
        let note = format!(
            "{} still serve an earlier certificate: {} once more",
            verified.stale_text(),
            names.join(", ")
        );
        self.warn(Reason::RestartedAgain, &note);
        Ok(Some(self.restart(steps).await))
    }

    async fn restart(&self, steps: Vec<Step>) -> Outcome {
        let Self { context, key, .. } = self;
        let outcome = Mutex::new(Outcome::Done);
        let set = |ended| *outcome.lock().unwrap_or_else(PoisonError::into_inner) = ended;
        let secrets = std::slice::from_ref(&self.request.secret);
        let told = |happening: rollout::Happening<'_>| {
            tell::happening(context, &key.namespace, &happening);
        };
        let roller = context.roller();
        roller
            .roll(&key.namespace, secrets, steps, told, |_, ended| set(ended))
            .await;
        outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The workloads whose pods were asked to reload, and how.
    fn asked(&self) -> impl Iterator<Item = (&Workload, &[Ask])> {
        self.steps.iter().filter_map(|step| match &step.how {
            How::Reload(asks) => Some((&step.workload, asks.as_slice())),
            How::Restart => None,
        })
    }

    /// Where nothing verifies that a reload came late enough, a second one does.
    async fn ask_once_more(&self) -> Conclusion {
        if self.asked().next().is_none() {
            return Conclusion::Done(None);
        }
        let Self { context, key, .. } = self;
        sleep(context.config().rollout.reload_again).await;
        for (workload, asks) in self.asked() {
            match context
                .roller()
                .ask_all(&key.namespace, workload, asks)
                .await
            {
                Ok(asked) if asked.failed.is_empty() => {}
                Ok(asked) => {
                    let why = format!("not reloaded: {}", asked.failed_text());
                    return Conclusion::Halted(workload.id.clone(), why);
                }
                Err(error) => return Conclusion::Interrupted(chain(&error)),
            }
        }
        Conclusion::Done(Some("its pods were asked twice to reload".into()))
    }
}

//! Checks after a rollout whether the pods serve the new leaf.
//!
//! With `verify` they are asked over TLS. A pod that still serves an earlier leaf is helped once, by one more restart
//! of its workload (the kubelet's cache can give a new pod the old Secret) or, with `post:`, by asking it once more;
//! then it is reported. An unknown result neither restarts nor halts. Without `verify`, pods that were asked to reload
//! are asked again once the slowest kubelet has had its time.

use std::collections::BTreeMap;
use std::sync::Arc;

use cert_renew_core::rollout::{Ask, How, Request, Step};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::used_by::{Has, Proven, UsedBy};
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::notify;
use crate::cluster::events::Reason;
use crate::rollout::rollouts::Rollouts;
use crate::rollout::{
    self, Error, Judge, Outcome, Proof, ReloadResult, Rollout, Verified, Withdrawal,
};
use crate::telemetry::stage::Stage;

/// The command that grants the rights for it.
const ADD_ON: &str = "kubectl apply -f rbac/addons/verify.yaml";

/// The final result of a rollout.
pub(super) enum Conclusion {
    /// The workloads have the leaf, as far as is known; what is known beyond that, in words and in numbers.
    Done(Option<String>, Option<Proven>),
    /// Every step finished, but this many pods still serve an earlier leaf; the text describes them.
    Stale(usize, String),
    /// As [`Outcome::Incomplete`].
    Incomplete(Vec<(WorkloadRef, String)>),
    /// As [`Outcome::Halted`].
    Halted(WorkloadRef, String),
    /// As [`Outcome::Deferred`].
    Deferred(String),
    /// As [`Outcome::Interrupted`].
    Interrupted(String),
    /// As [`Outcome::Withdrawn`].
    Withdrawn(Withdrawal),
    /// As [`Outcome::Beside`].
    Beside(String),
}

/// The leaves of the workloads that are being rolled; all others had the leaf before.
pub(super) type RolledSoFar = Mutex<BTreeMap<WorkloadRef, Has>>;

/// A Secret whose workloads were just rolled.
pub(super) struct Rolled<'a> {
    pub(super) rollouts: &'a Rollouts,
    pub(super) key: &'a SecretRef,
    pub(super) request: &'a Request,
    /// The Secret as it was planned.
    pub(super) head: &'a Head,
    /// What is to be proven, if the Secret asks for it.
    pub(super) proof: Option<&'a Proof>,
    /// What its workloads had at the last rollout, or at the last look at this one.
    pub(super) before: Option<&'a UsedBy>,
    /// The steps just carried out for it.
    pub(super) steps: &'a [Arc<Step>],
    /// The workloads that use it.
    pub(super) users: &'a [WorkloadRef],
    /// The state of its workloads.
    pub(super) standing: &'a RolledSoFar,
    /// Judges the Secrets of the batch again.
    pub(super) judge: &'a dyn Judge,
}

impl From<Outcome> for Conclusion {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done(None, None),
            Outcome::Incomplete(lacking) => Self::Incomplete(lacking),
            Outcome::Halted(workload, why) => Self::Halted(workload, why),
            Outcome::Deferred(why) => Self::Deferred(why),
            Outcome::Interrupted(why) => Self::Interrupted(why),
            Outcome::Withdrawn(withdrawal) => Self::Withdrawn(withdrawal),
            Outcome::Beside(why) => Self::Beside(why),
        }
    }
}

impl Rolled<'_> {
    /// The value of `used-by`, after a rollout that `halted` may have ended.
    pub(super) fn used_by(
        &self,
        now: UnixTime,
        halted: Option<&WorkloadRef>,
        proven: Option<Proven>,
    ) -> Option<String> {
        let used_by = UsedBy::new(now, self.workloads(halted).collect(), proven);
        used_by.map(|used_by| used_by.to_string())
    }

    /// The workloads that have the leaf but are not available, in words, if any.
    pub(super) fn unavailable(&self) -> Option<String> {
        let all = self.workloads(None);
        let names = all.filter(|(_, has)| *has == Has::Unavailable);
        let names: Vec<String> = names.map(|(workload, _)| workload.to_string()).collect();
        let verb = if names.len() == 1 { "is" } else { "are" };
        let text = format!(
            "{} {verb} not available with it, nor before",
            rollout::some_of(&names)
        );
        (!names.is_empty()).then_some(text)
    }

    /// The workloads that use the Secret, and what they have.
    fn workloads(&self, halted: Option<&WorkloadRef>) -> impl Iterator<Item = (WorkloadRef, Has)> {
        let standing = self.standing.lock();
        let has = move |workload: &WorkloadRef| match standing.get(workload) {
            _ if halted == Some(workload) => Has::Failed,
            Some(Has::Lacks(at)) => Has::Lacks(self.since(workload).unwrap_or(*at)),
            Some(has) => *has,
            // It was not looked at, as nothing was left to do.
            None if self.was_unavailable(workload) => Has::Unavailable,
            None => Has::It,
        };
        let users = self.users.iter();
        users.map(move |workload| (workload.clone(), has(workload)))
    }

    /// Since when a workload lacks the leaf, by earlier looks.
    fn since(&self, workload: &WorkloadRef) -> Option<UnixTime> {
        self.before?.lacks_since(workload)
    }

    fn was_unavailable(&self, workload: &WorkloadRef) -> bool {
        let had = self.before.iter().flat_map(|before| &before.workloads);
        { had }.any(|(it, has)| it == workload && *has == Has::Unavailable)
    }

    /// Whether the Secret already reports that exactly these lack the leaf.
    pub(super) fn knows(&self, lacking: &[(WorkloadRef, String)]) -> bool {
        let before = self.before.iter().flat_map(|before| &before.workloads);
        let before = before.filter(|(_, has)| has.lacks_since().is_some());
        before.count() == lacking.len() && lacking.iter().all(|(it, _)| self.since(it).is_some())
    }

    /// The workloads that lack the leaf, since when and why.
    pub(super) fn lacking_in_words(
        &self,
        now: UnixTime,
        lacking: &[(WorkloadRef, String)],
    ) -> String {
        let one = |(workload, why): &(WorkloadRef, String)| {
            let since = self.since(workload).unwrap_or(now);
            format!("{workload} since {since} ({why})")
        };
        rollout::some_of(&lacking.iter().map(one).collect::<Vec<_>>())
    }

    /// The result of the rollout, once all pods that can be asked were asked.
    pub(super) async fn conclusion(&self, outcome: Outcome) -> Conclusion {
        let conclusion = self.concluded(outcome).await;
        if matches!(conclusion, Conclusion::Done(..)) {
            let roller = self.rollouts.roller();
            self.asked()
                .for_each(|(step, _)| roller.forget(&self.key.namespace, &step.workload.id));
        }
        conclusion
    }

    async fn concluded(&self, outcome: Outcome) -> Conclusion {
        if !matches!(outcome, Outcome::Done) {
            return outcome.into();
        }
        let Some(proof) = self.proof else {
            return self.ask_once_more().await;
        };
        match self.prove(proof).await {
            Ok(conclusion) => conclusion,
            Err(error) if error.is_forbidden() => {
                self.not_verified(&format!("Services or pods may not be read: {ADD_ON}"), None)
            }
            Err(error) => Conclusion::Interrupted(error_chain(&error)),
        }
    }

    async fn prove(&self, proof: &Proof) -> Result<Conclusion, Error> {
        let Self { rollouts, key, .. } = self;
        let mut verified = rollouts.roller().verify(&key.namespace, proof).await?;
        if !verified.stale.is_empty() {
            match self.help(&verified).await? {
                // Nothing was left to do, and nothing has changed.
                None => {}
                Some(Outcome::Done) => {
                    verified = rollouts.roller().verify(&key.namespace, proof).await?;
                }
                Some(other) => return Ok(other.into()),
            }
        }
        rollouts.note_asked(key, verified.for_people(UnixTime::now(), &proof.service));
        let Verified {
            served,
            stale,
            unknown,
            ..
        } = &verified;
        rollouts
            .shared
            .metrics
            .verified(*served, stale.len(), unknown.len());
        tracing::info!(
            secret = %key, step = Stage::Verify.name(), served, stale = stale.len(), unknown = unknown.len(),
            "the pods have been asked what they serve"
        );
        let service = &proof.service;
        if !stale.is_empty() {
            let pods = verified.stale_text();
            let verb = if stale.len() == 1 { "serves" } else { "serve" };
            let note =
                format!("behind Service {service} {pods} still {verb} an earlier certificate");
            return Ok(Conclusion::Stale(stale.len(), note));
        }
        let proven = Proven {
            service: service.clone(),
            served: *served,
            asked: served + unknown.len(),
        };
        if !unknown.is_empty() {
            let note = match served {
                1 => "1 pod does".to_owned(),
                _ => format!("{served} pods do"),
            };
            let note = format!("{note}; {}", verified.unknown_text());
            return Ok(self.not_verified(&note, Some(proven)));
        }
        let note = match served {
            1 => format!("the one pod behind Service {service} serves it"),
            _ => format!("all {served} pods behind Service {service} serve it"),
        };
        Ok(Conclusion::Done(Some(note), Some(proven)))
    }

    fn not_verified(&self, note: &str, proven: Option<Proven>) -> Conclusion {
        let note = format!("whether every pod serves the new certificate is not known: {note}");
        self.warn(Reason::NotVerified, &note);
        Conclusion::Done(None, proven)
    }

    fn warn(&self, reason: Reason, note: &str) {
        tracing::warn!(secret = %self.key, note, "{reason}");
        let events = &self.rollouts.shared.events;
        events.secret(self.key, &self.request.uid, reason, note);
    }

    /// Helps pods that serve an earlier leaf, once; `None` where that was done before.
    async fn help(&self, verified: &Verified) -> Result<Option<Outcome>, Error> {
        let (namespace, roller) = (&*self.key.namespace, self.rollouts.roller());
        let stale = &verified.stale;
        // Only those that use the Secret are kept.
        let workloads = {
            let _place = roller.place_for_request(namespace).await;
            let listed = roller.list(namespace).await?;
            cert_renew_core::rollout::using(self.request, &listed)
        };
        let (mut steps, mut asked) = (Vec::new(), false);
        for workload in workloads {
            let mut before = self.asked();
            if let Some((step, asks)) = before.find(|(step, _)| step.workload.id == workload.id) {
                let again = roller.ask_some(namespace, step, asks, self.judge, stale);
                let again = again.await?;
                if again.withdrawn.is_some() {
                    return Ok(self.withdrawn(again));
                }
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
        let verb = if stale.len() == 1 { "serves" } else { "serve" };
        let (pods, names) = (verified.stale_text(), rollout::some_of(&names));
        let note = format!("{pods} still {verb} an earlier certificate: {names} once more");
        self.warn(Reason::RestartedAgain, &note);
        Ok(Some(self.restart(steps).await))
    }

    async fn restart(&self, steps: Vec<Step>) -> Outcome {
        let Self { rollouts, key, .. } = self;
        let outcome = Mutex::new(Outcome::Done);
        let set = |ended| *outcome.lock() = ended;
        let secrets = std::slice::from_ref(&self.request.secret);
        let told = |happening: rollout::Happening<'_>| {
            notify::happening(&rollouts.shared, &key.namespace, &happening);
        };
        let roller = rollouts.roller();
        let rollout = Rollout {
            namespace: &key.namespace,
            secrets,
            steps: steps.into_iter().map(Arc::new).collect(),
            judge: self.judge,
            looks: BTreeMap::new(),
            since: Instant::now(),
            hints: stream::pending().boxed(),
        };
        roller.roll(rollout, told, |_, ended| set(ended)).await;
        outcome.into_inner()
    }

    /// The steps by which pods were asked to reload, and how.
    fn asked(&self) -> impl Iterator<Item = (&Step, &[Ask])> {
        self.steps.iter().filter_map(|step| match &step.how {
            How::Reload(asks) => Some((&**step, asks.as_slice())),
            How::Restart => None,
        })
    }

    /// The outcome if a Secret was withdrawn before all its pods were asked.
    fn withdrawn(&self, asked: ReloadResult) -> Option<Outcome> {
        let (secret, withdrawal) = asked.withdrawn?;
        Some(if secret == self.request.secret {
            Outcome::Withdrawn(withdrawal)
        } else {
            Outcome::Beside(format!(
                "its pods use Secret {secret} too, which has changed"
            ))
        })
    }

    /// Asks the pods a second time, as nothing verifies that the first reload came late enough.
    async fn ask_once_more(&self) -> Conclusion {
        if self.asked().next().is_none() {
            return Conclusion::Done(None, None);
        }
        let Self { rollouts, key, .. } = self;
        sleep(rollouts.shared.config().rollout.reload_again).await;
        let mut lacking = Vec::new();
        for (step, asks) in self.asked() {
            let (id, roller) = (&step.workload.id, rollouts.roller());
            match roller
                .ask_again(&key.namespace, step, asks, self.judge)
                .await
            {
                Ok(asked) if asked.withdrawn.is_some() => {
                    return { self.withdrawn(asked) }.unwrap_or(Outcome::Done).into();
                }
                Ok(asked) if !asked.failed.is_empty() => {
                    let why = format!("not reloaded: {}", asked.failed_text());
                    return Conclusion::Halted(id.clone(), why);
                }
                Ok(asked) if !asked.missing.is_empty() => {
                    let lacks = Has::Lacks(UnixTime::now());
                    let mut standing = self.standing.lock();
                    standing.insert(id.clone(), lacks);
                    lacking.push((id.clone(), asked.missing_text()));
                }
                Ok(_) => {}
                Err(error) => return Conclusion::Interrupted(error_chain(&error)),
            }
        }
        if !lacking.is_empty() {
            return Conclusion::Incomplete(lacking);
        }
        Conclusion::Done(Some("its pods were asked twice to reload".into()), None)
    }
}

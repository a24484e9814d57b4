//! Carries out a plan: rolls its workloads, and concludes each Secret as soon as its own are ready.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cert_renew_core::rollout::{Request, Step};
use cert_renew_core::secret::used_by::Has;
use cert_renew_core::time::UnixTime;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream, FuturesUnordered};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::Instant;

use super::confirm::{Rolled, RolledSoFar};
use super::held::Held;
use super::look::Again;
use super::{Open, Users, notify};
use crate::process::permit::Look;
use crate::process::task::TaskHandle;
use crate::rollout::rollouts::Rollouts;
use crate::rollout::{Happening, Outcome, Rollout};
use crate::telemetry::stage::Stage;

/// Most Secrets of one batch that are concluded at the same time: one workload may serve thousands.
const CONCLUSIONS: usize = 1_000;

/// How a Secret's workloads were rolled.
type Ended = (Box<str>, Outcome);

/// The Secrets of one namespace that are rolled out together.
pub(super) struct Batch<'a> {
    rollouts: &'a Rollouts,
    namespace: &'a Arc<str>,
    users: &'a Users,
    /// The Secrets that are rolled out.
    secrets: Vec<Box<str>>,
    steps: Vec<Arc<Step>>,
    by_secret: BySecret,
    judge: Again<'a>,
    /// What the workloads of the steps have by now.
    standing: RolledSoFar,
}

/// The steps that serve each Secret. One step may serve thousands: each is held once.
struct BySecret(HashMap<Box<str>, Vec<Arc<Step>>>);

impl BySecret {
    fn of(steps: &[Arc<Step>]) -> Self {
        let mut by_secret: HashMap<Box<str>, Vec<Arc<Step>>> = HashMap::new();
        for step in steps {
            for due in &step.leaves {
                let of = by_secret.entry(due.secret.clone()).or_default();
                of.push(Arc::clone(step));
            }
        }
        Self(by_secret)
    }

    fn serving(&self, secret: &str) -> &[Arc<Step>] {
        self.0.get(secret).map_or(&[], Vec::as_slice)
    }
}

impl<'a> Batch<'a> {
    /// A batch of these `secrets` by the steps of a plan.
    pub(super) fn new(
        rollouts: &'a Rollouts,
        namespace: &'a Arc<str>,
        requests: &'a [Request],
        users: &'a Users,
        secrets: Vec<Box<str>>,
        steps: Vec<Step>,
    ) -> Self {
        let kept = |step: &Arc<Step>| (step.workload.id.clone(), Has::Kept);
        let steps: Vec<Arc<Step>> = steps.into_iter().map(Arc::new).collect();
        Self {
            by_secret: BySecret::of(&steps),
            judge: Again {
                rollouts,
                namespace,
                requests: requests.iter().map(|it| (&*it.secret, it)).collect(),
                overruled: Mutex::default(),
            },
            standing: Mutex::new(steps.iter().map(kept).collect()),
            rollouts,
            namespace,
            users,
            secrets,
            steps,
        }
    }

    /// Rolls the workloads, and records how that ended on each Secret. `since` is when the first look at them began.
    pub(super) async fn carry_out(&self, mut open: Open, since: Instant) {
        self.announce(&open);
        let looks = open.iter_mut();
        let looks =
            looks.filter_map(|(secret, (_, held))| Some((secret.clone(), held.look.take()?)));
        let (looks, hints) = (looks.collect(), changes(&open));
        let (sender, ended) = unbounded_channel();
        futures::join!(
            self.roll(looks, since, hints, sender),
            self.conclude_each(open, ended)
        );
    }

    /// Reports what begins, and which change windows are overruled.
    fn announce(&self, open: &Open) {
        for secret in &self.secrets {
            let Some((ticket, held)) = open.get(secret) else {
                continue;
            };
            let steps = self.by_secret.serving(secret).iter();
            let names: Vec<String> = steps.map(|step| step.workload.id.to_string()).collect();
            tracing::info!(secret = %ticket.key(), step = Stage::Roll.name(), workloads = ?names, "rolling");
            if let (Some(opens), Some(request)) = (held.overruled, self.request(secret)) {
                self.judge.overruled(ticket.key(), request, opens);
            }
        }
    }

    fn request(&self, secret: &str) -> Option<&Request> {
        self.judge.requests.get(secret).copied()
    }

    /// Rolls the workloads, and sends how that ended for each Secret.
    async fn roll(
        &self,
        looks: BTreeMap<Box<str>, Look>,
        since: Instant,
        hints: BoxStream<'static, Box<str>>,
        ended: UnboundedSender<Ended>,
    ) {
        let rollout = Rollout {
            namespace: self.namespace,
            secrets: &self.secrets,
            steps: self.steps.clone(),
            judge: &self.judge,
            looks,
            since,
            hints,
        };
        let told = |happening: Happening<'_>| {
            self.note(&happening);
            notify::happening(&self.rollouts.shared, self.namespace, &happening);
        };
        let send = move |secret: &str, outcome| {
            // The receiver lives as long as this call.
            let _ = ended.send((secret.into(), outcome));
        };
        self.rollouts.roller().roll(rollout, told, send).await;
    }

    /// Concludes each Secret when its workloads are ready: it does not wait for others.
    async fn conclude_each(&self, mut open: Open, mut ended: UnboundedReceiver<Ended>) {
        let mut concluding = FuturesUnordered::new();
        loop {
            tokio::select! {
                next = ended.recv(), if concluding.len() < CONCLUSIONS => {
                    let Some((secret, outcome)) = next else { break };
                    if let (Some(held), Some(request)) = (open.remove(&secret), self.request(&secret)) {
                        concluding.push(self.conclude(request, held, outcome));
                    }
                }
                Some(()) = concluding.next() => {}
            }
        }
        while concluding.next().await.is_some() {}
    }

    async fn conclude(
        &self,
        request: &Request,
        (ticket, held): (TaskHandle, Held),
        outcome: Outcome,
    ) {
        let secret = &*request.secret;
        let rolled = Rolled {
            rollouts: self.rollouts,
            key: ticket.key(),
            request,
            head: &held.head,
            proof: held.proof.as_ref(),
            before: held.used_by.as_ref(),
            steps: self.by_secret.serving(secret),
            users: self.users.get(secret).map_or(&[], Vec::as_slice),
            standing: &self.standing,
            judge: &self.judge,
        };
        let finished = rolled.conclude(outcome, ticket.changed()).await;
        ticket.finish(finished);
    }

    /// Notes the new state of a workload.
    fn note(&self, happening: &Happening<'_>) {
        let (step, has) = match happening {
            Happening::Rolled(step, _)
            | Happening::Reloaded(step, _)
            | Happening::Unchanged(step) => (step, Has::It),
            Happening::Unavailable(step, _) => (step, Has::Unavailable),
            // The start of the lack is known from earlier looks.
            Happening::Incomplete(step, _) => (step, Has::Lacks(UnixTime::now())),
            Happening::Failed(step, _) => (step, Has::Failed),
            Happening::Waits(..) => return,
        };
        let mut standing = self.standing.lock();
        standing.insert(step.workload.id.clone(), has);
    }
}

/// The Secrets that hold another certificate according to the watch, once for each change.
fn changes(open: &Open) -> BoxStream<'static, Box<str>> {
    let each = open.iter().map(|(secret, (ticket, _))| {
        let state = (secret.clone(), ticket.changed());
        let next = async |(secret, mut changed): (Box<str>, watch::Receiver<()>)| {
            changed.changed().await.ok()?;
            Some((secret.clone(), (secret, changed)))
        };
        stream::unfold(state, next).boxed()
    });
    stream::select_all(each.collect::<Vec<_>>()).boxed()
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::{of_secrets, slower_than_linear};

    use super::*;

    #[test]
    fn a_step_for_very_many_secrets_is_held_once_and_found_in_linear_time() {
        // One Secret for each 64 bytes of length.
        let slow = slower_than_linear(
            |length| vec![0; length],
            |all| {
                let names: Vec<String> =
                    (0..all.len() / 64).map(|it| format!("tls-{it}")).collect();
                let secrets: Vec<&str> = names.iter().map(String::as_str).collect();
                let step = Arc::new(of_secrets("web", &secrets));
                let by_secret = BySecret::of(std::slice::from_ref(&step));
                for secret in secrets {
                    let [found] = by_secret.serving(secret) else {
                        panic!("{secret} has one");
                    };
                    assert!(Arc::ptr_eq(found, &step));
                }
            },
        );
        assert_eq!(slow, None);
    }
}

//! Records on a Secret how its rollout ended, and reports it.

use std::time::Duration;

use cert_renew_core::index::Finished;
use cert_renew_core::rollout::HaltNote;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::parts::Parts;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::time::UnixTime;
use tokio::sync::watch;

use super::confirm::{Conclusion, Rolled};
use super::{AGAIN, HINDERED_AGAIN, LOOK_AGAIN, look_again, record};
use crate::cluster;
use crate::cluster::events::Reason;
use crate::cluster::secrets::{self, Changes};
use crate::rollout::{Outcome, Withdrawal};
use crate::telemetry::stage::Stage;

/// Delay until a Secret is looked at again whose workloads lack its leaf because they were not well before. Together
/// with [`crate::rollout`]'s glance at each, that is within a minute of their recovery.
const LACKS_AGAIN: Duration = Duration::from_secs(20);
/// Most write conflicts in a row on a Secret before the write is given up: something changes it all the time.
const CONFLICTS: usize = 5;

impl Rolled<'_> {
    /// Records how the rollout of a Secret ended.
    pub(super) async fn conclude(
        &self,
        outcome: Outcome,
        changed: watch::Receiver<()>,
    ) -> Finished {
        let Self {
            rollouts,
            key,
            request,
            ..
        } = self;
        let shared = &rollouts.shared;
        let conclusion = tokio::select! {
            conclusion = self.conclusion(outcome) => conclusion,
            withdrawal = self.superseded(changed) => Conclusion::Withdrawn(withdrawal),
        };
        // Before what is written is gathered: until then it may change.
        let roller = rollouts.roller();
        let _place = roller.place_for_request(&key.namespace).await;
        let now = UnixTime::now();
        let halt = |workload| HaltNote {
            workload,
            leaf: request.leaf,
            with: Some(request.with),
            resumed: false,
        };
        let (annotations, reason, note) = match conclusion {
            Conclusion::Stale(pods, note) => {
                // It is looked at repeatedly, but reported once.
                if !shared.rollout_said(key, &note) {
                    tracing::warn!(secret = %key, note, "an earlier certificate is served");
                    let reason = Reason::ServedCertificateStale;
                    shared.events.secret(key, &request.uid, reason, &note);
                }
                return Finished::Stale(now + LOOK_AGAIN, pods, note.into());
            }
            Conclusion::Done(more, proven) => {
                // Record what the workloads have by now, even if the Secret has changed.
                let mut written = vec![
                    (keys::USED_BY, self.used_by(now, None, proven)),
                    (keys::ROLLOUT_HALTED, None),
                ];
                let value = record::value_of(request);
                written.extend(value.written_for(&request.uid));
                written.extend(shared.state_note(key, |facts| record::has(facts, value)));
                let more = { more.into_iter() }.chain(self.unavailable());
                let more: String = more.map(|more| format!("; {more}")).collect();
                let what = match request.changed {
                    Parts { leaf: true, .. } => "the certificate".to_owned(),
                    parts => format!("the new {} of the certificate", parts.in_words()),
                };
                let note = format!(
                    "the workloads have {what} that is valid until {}{more}",
                    request.not_after
                );
                (written, Reason::RolledOut, note)
            }
            Conclusion::Incomplete(lacking) => return self.incomplete(now, &lacking).await,
            Conclusion::Halted(workload, why) => {
                let note = format!(
                    "{workload} did not take the new {} up ({why}); the others keep what they have. Look at it, then: {}",
                    request.changed.in_words(),
                    shared.command(&format!("cert-renew resume {key}"))
                );
                let mut written = vec![(keys::USED_BY, self.used_by(now, Some(&workload), None))];
                written.extend(shared.state_note(key, |facts| {
                    facts.entry.observed.halted = true;
                    facts.halted_at = Some(workload.to_string());
                }));
                written.push((keys::ROLLOUT_HALTED, Some(halt(workload).to_string())));
                (written, Reason::RolloutHalted, note)
            }
            Conclusion::Deferred(why) => {
                if !shared.rollout_said(key, &why) {
                    tracing::info!(secret = %key, why, "the rollout waits");
                    let (note, reason) =
                        (format!("the rollout waits: {why}"), Reason::RolloutWaits);
                    shared.events.secret(key, &request.uid, reason, &note);
                }
                return Finished::Later(now + HINDERED_AGAIN, Some(why.into()));
            }
            Conclusion::Interrupted(why) => {
                tracing::warn!(secret = %key, why, "the rollout is interrupted: it goes on soon");
                return Finished::Later(now + AGAIN, Some(why.into()));
            }
            Conclusion::Withdrawn(Withdrawal { at, shut: true, .. }) => {
                rollouts.tell_shut(key, &request.uid, at);
                return Finished::Shut(at);
            }
            Conclusion::Withdrawn(Withdrawal { at, why, .. }) => {
                let said = why.as_deref().unwrap_or("it has changed since");
                tracing::info!(secret = %key, step = Stage::Withdrawn.name(), why = said, "the rollout does not go on as it was planned");
                return Finished::Later(at, why);
            }
            Conclusion::Beside(why) => {
                tracing::info!(secret = %key, step = Stage::Withdrawn.name(), why, "the rollout is planned again");
                let settled = now + shared.config().rollout.settle.max(Duration::from_secs(1));
                return Finished::Later(settled, Some(why.into()));
            }
        };
        let halted = reason == Reason::RolloutHalted;
        match self.write(annotations).await {
            Ok(()) => {}
            Err(cluster::Error::NotFound { .. }) => return Finished::Wrote,
            Err(error) => {
                tracing::warn!(secret = %key, %error, "how the rollout ended could not be written: looked at again");
                return Finished::Later(now + AGAIN, Some(error.to_string().into()));
            }
        }
        shared.events.secret(key, &request.uid, reason, &note);
        if halted {
            tracing::warn!(secret = %key, step = Stage::Halted.name(), note, "the rollout is halted");
            return Finished::Later(look_again(now, request), Some(note.into()));
        }
        tracing::info!(secret = %key, step = Stage::Done.name(), leaf = %request.leaf, "rolled out");
        Finished::Wrote
    }

    /// Waits until a Secret is withdrawn; looks at it when the watch gives a reason.
    async fn superseded(&self, mut changed: watch::Receiver<()>) -> Withdrawal {
        let roller = self.rollouts.roller();
        while changed.changed().await.is_ok() {
            let place = roller.place_for_request(&self.key.namespace).await;
            let judged = self.judge.judge(&self.request.secret).await;
            drop(place);
            if let Err(withdrawal) = judged
                && withdrawal.superseded
            {
                return withdrawal;
            }
        }
        std::future::pending().await
    }

    /// Records which workloads lack the leaf and since when, and reports it once.
    async fn incomplete(&self, now: UnixTime, lacking: &[(WorkloadRef, String)]) -> Finished {
        let Self { rollouts, key, .. } = self;
        let shared = &rollouts.shared;
        let again = now + LACKS_AGAIN;
        let words = self.lacking_in_words(now, lacking);
        let what = self.request.changed.in_words();
        let note = format!("not every workload has the new {what}: {words}");
        if !self.knows(lacking) {
            let mut written = vec![(keys::USED_BY, self.used_by(now, None, None))];
            let error = || Some(note.as_str().into());
            written.extend(shared.state_note(key, |facts| facts.entry.rollout_error = error()));
            match self.write(written).await {
                Ok(()) => {}
                Err(cluster::Error::NotFound { .. }) => return Finished::Wrote,
                Err(error) => return Finished::Later(again, Some(error.to_string().into())),
            }
            let (reason, uid) = (Reason::RolloutIncomplete, &self.request.uid);
            shared.events.secret(key, uid, reason, &note);
            tracing::warn!(secret = %key, step = Stage::Incomplete.name(), note, "not every workload has the certificate: looked at again");
        }
        Finished::Incomplete(again, lacking.len(), note.into())
    }

    /// Writes onto the Secret, as it was planned or as it is by now.
    async fn write(
        &self,
        annotations: Vec<(&'static str, Option<String>)>,
    ) -> Result<(), cluster::Error> {
        let client = &self.rollouts.shared.client;
        let changes = Changes::of(annotations);
        let mut head = self.head.clone();
        for _ in 0..CONFLICTS {
            match secrets::patch(client, &head, &changes).await {
                Err(cluster::Error::Conflict { .. }) => {}
                other => return other.map(drop),
            }
            head = secrets::get(client, self.key).await?.head;
            if head.uid() != &*self.request.uid {
                return Ok(());
            }
        }
        secrets::patch(client, &head, &changes).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use cert_renew_core::rollout::{Ask, How, Request, Step};
    use cert_renew_core::secret::SecretRef;
    use cert_renew_core::secret::object::head::Head;
    use cert_renew_core::testing::of_secrets;
    use futures::FutureExt as _;
    use futures::future::{BoxFuture, join_all};
    use http::Response;
    use kube::Client;
    use kube::client::Body;
    use parking_lot::Mutex;
    use tokio::time::{sleep, timeout};
    use tower::service_fn;

    use super::*;
    use crate::context::tests::with;
    use crate::rollout::Judge;
    use crate::rollout::rollouts::Rollouts;

    /// Counts what runs at the same time. Each takes a moment.
    #[derive(Default)]
    struct Counted {
        running: AtomicUsize,
        most: AtomicUsize,
        ended: AtomicUsize,
    }

    impl Counted {
        async fn run(&self) {
            let running = self.running.fetch_add(1, Relaxed) + 1;
            self.most.fetch_max(running, Relaxed);
            sleep(Duration::from_millis(20)).await;
            self.running.fetch_sub(1, Relaxed);
            self.ended.fetch_add(1, Relaxed);
        }

        fn most_and_all(&self) -> (usize, usize) {
            (self.most.load(Relaxed), self.ended.load(Relaxed))
        }
    }

    impl Judge for Counted {
        fn judge<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), Withdrawal>> {
            self.run().map(Ok).boxed()
        }
    }

    /// Rollouts whose API server counts its requests, and has nothing.
    fn rollouts(requests: &Arc<Counted>) -> Rollouts {
        let requests = Arc::clone(requests);
        let answer = move |_: http::Request<Body>| {
            let requests = Arc::clone(&requests);
            async move {
                requests.run().await;
                let gone = Response::builder().status(404).body(Body::empty());
                Ok::<_, Infallible>(gone.unwrap())
            }
        };
        let (shared, _) = with(Client::new(service_fn(answer), "cert-renew"));
        Rollouts::new(shared, Arc::default())
    }

    /// Concludes 300 Secrets of each of these namespaces at the same time, within a minute.
    async fn conclude(
        rollouts: &Rollouts,
        namespaces: &[&str],
        (steps, judge): (&[Arc<Step>], &Counted),
        changed: &watch::Receiver<()>,
    ) {
        let one = |key| conclude_one(rollouts, key, (steps, judge), changed);
        let keys = namespaces.iter().flat_map(|namespace| {
            let names = (0..300).map(|number| format!("tls-{number}"));
            names.map(|name| SecretRef::new(*namespace, name))
        });
        let all = join_all(keys.map(one));
        let _ = timeout(Duration::from_secs(60), all).await;
    }

    async fn conclude_one(
        rollouts: &Rollouts,
        key: SecretRef,
        (steps, judge): (&[Arc<Step>], &Counted),
        changed: &watch::Receiver<()>,
    ) {
        let rolled = Rolled {
            rollouts,
            key: &key,
            request: &Request::first_sight(&key.name, "uid", None),
            head: &Head::of(&key.namespace, &key.name, "uid", "1"),
            proof: None,
            before: None,
            steps,
            users: &[],
            standing: &Mutex::default(),
            judge,
        };
        rolled.conclude(Outcome::Done, changed.clone()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_conclusions_are_written_at_a_time() {
        for (namespaces, expected) in [(&["shop"][..], 4), (&["shop", "news", "loud"][..], 8)] {
            let requests = Arc::new(Counted::default());
            let (_kept, changed) = watch::channel(());
            let rolled: (&[_], _) = (&[], &Counted::default());
            conclude(&rollouts(&requests), namespaces, rolled, &changed).await;
            let all = 300 * namespaces.len();
            assert_eq!(requests.most_and_all(), (expected, all));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_secrets_that_change_while_they_are_confirmed_are_looked_at_at_a_time() {
        for (namespaces, expected) in [(&["shop"][..], 4), (&["shop", "news", "loud"][..], 8)] {
            let (looks, requests) = (Counted::default(), Arc::default());
            let (change, changed) = watch::channel(());
            change.send(()).unwrap();
            let mut step = of_secrets("web", &["tls"]);
            let (port, path) = (9000, "/reload".into());
            // Its pods are asked again in some minutes.
            step.how = How::Reload(vec![Ask { port, path }]);
            let rolled: (&[_], _) = (&[Arc::new(step)], &looks);
            conclude(&rollouts(&requests), namespaces, rolled, &changed).await;
            let all = 300 * namespaces.len();
            assert_eq!(looks.most_and_all(), (expected, all));
            assert_eq!(requests.most_and_all(), (0, 0));
        }
    }
}

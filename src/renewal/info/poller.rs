//! Asks the CAs when they want their certificates renewed, one request after the other, the soonest due first.

use std::time::Duration;

use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::acme::ari::Poll;
use crate::cluster::events::Reason;
use crate::renewal::info::{Answer, BEAT, Question, Suggested};
use crate::renewal::issuers;
use crate::renewal::renewals::Renewals;

/// Most polls in flight, over all issuers.
pub(super) const CONCURRENCY: usize = 8;
/// Shortest time between two polls: fifty a second is a twentieth of what Let's Encrypt allows an address.
const SPACING: Duration = Duration::from_millis(20);
/// Longest poll, more than its two requests may take. After it no renewal waits for the CA's answer any more.
const DEADLINE: Duration = Duration::from_secs(40);
/// Time between two reads of the directory of a CA without renewal information, which it may introduce.
const NO_RENEWAL_INFO: Duration = Duration::from_secs(86_400);
/// Delay until an issuer is asked again that cannot be used now.
const UNUSABLE: Duration = Duration::from_secs(300);

impl Renewals {
    /// Polls the CAs until the future is dropped, and sends the results to `suggest`. Everything has been listed once
    /// by then, so that the soonest due is known.
    pub async fn poll_info(&self, suggest: mpsc::UnboundedSender<Vec<Suggested>>) {
        let info = &self.info;
        info.lock().requeue();
        let mut polls = FuturesUnordered::new();
        let mut free_at = Instant::now();
        loop {
            let now = UnixTime::now();
            let mut wait = BEAT;
            if polls.len() < CONCURRENCY {
                wait = free_at.saturating_duration_since(Instant::now());
                if wait.is_zero() {
                    match info.next(now) {
                        Ok(question) => {
                            free_at = Instant::now() + SPACING;
                            polls.push(self.ask(question));
                            continue;
                        }
                        Err(later) => wait = later,
                    }
                }
            }
            tokio::select! {
                Some((question, answer)) = polls.next() => self.settle(&question, answer, &suggest),
                () = info.changed.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    async fn ask(&self, question: Question) -> (Question, Answer) {
        let (now, deadline) = (UnixTime::now(), Instant::now() + DEADLINE);
        let Question { issuer, id, .. } = &question;
        let answer = async {
            let config = self.shared.config();
            let (Some(settings), Ok(id)) = (config.issuer(issuer), id.parse()) else {
                return Answer::Issuer(now + UNUSABLE);
            };
            let client = match timeout_at(deadline, self.issuers.ready(issuer, settings)).await {
                Ok(Ok(client)) => client,
                Ok(Err(issuers::Error::Limited(until))) => return Answer::Issuer(until),
                Ok(Err(_)) | Err(_) => return Answer::Issuer(now + UNUSABLE),
            };
            let asked = client.renewal_info(&id, question.failures, now);
            match timeout_at(deadline, asked).await {
                Ok(Ok(Some(poll))) if poll.is_limit() => Answer::Issuer(poll.again),
                Ok(Ok(Some(poll))) => Answer::Poll(poll),
                Ok(Ok(None)) => Answer::Issuer(now + NO_RENEWAL_INFO),
                Ok(Err(_)) => Answer::Issuer(now + UNUSABLE),
                // The CA may be slow about this certificate alone.
                Err(_) => Answer::Poll(Poll::late(&settings.directory, question.failures, now)),
            }
        };
        let answer = answer.await;
        (question, answer)
    }

    fn settle(
        &self,
        question: &Question,
        answer: Answer,
        suggest: &mpsc::UnboundedSender<Vec<Suggested>>,
    ) {
        let mut state = self.info.lock();
        state.queues.asked(&question.key.namespace);
        let suggested = match answer {
            Answer::Issuer(again) => {
                // A changed config may no longer have the issuer.
                if self.shared.config().issuer(&question.issuer).is_some() {
                    self.shared.metrics.renewal_info(&question.issuer, None);
                }
                tracing::debug!(issuer = %question.issuer, %again, "no renewal information for now");
                state.put_off(&question.issuer, again)
            }
            Answer::Poll(poll) => {
                if let Some(trouble) = &poll.trouble {
                    let trouble = error_chain(trouble);
                    tracing::debug!(secret = %question.key, trouble, again = %poll.again, "renewal information");
                }
                let answered = poll.window.map(|_| UnixTime::now());
                self.shared.metrics.renewal_info(&question.issuer, answered);
                let had_window = state
                    .certificates
                    .get(&question.key)
                    .is_some_and(|known| known.window.is_some());
                let is_outage = state.is_outage(question, poll.is_unreachable());
                let Some((suggested, note)) = state.answered(question, &poll) else {
                    return;
                };
                let put_off = is_outage.then(|| state.put_off(&question.issuer, poll.again));
                if note.is_some() && had_window {
                    self.shared.metrics.renewal_window_moved(&question.issuer);
                }
                if let Some(note) = note {
                    tracing::info!(secret = %question.key, note, "renewal information");
                    let known = state.certificates.get(&question.key);
                    let uid = known.map(|known| known.uid.to_string()).unwrap_or_default();
                    let reason = Reason::RenewalWindowMoved;
                    self.shared
                        .events
                        .secret(&question.key, &uid, reason, &note);
                }
                let mut all = vec![suggested];
                all.extend(put_off.unwrap_or_default());
                all
            }
        };
        // The controller outlives this task.
        let _ = suggest.send(suggested);
    }
}

#[cfg(test)]
mod tests {
    use cert_renew_core::schedule::due::Suggestion;
    use cert_renew_core::secret::SecretRef;

    use super::*;
    use crate::acme::ari::Trouble;
    use crate::acme::{Action, Error};
    use crate::context::tests::without_an_answer;
    use crate::renewal::info::tests::certificate;

    /// The answer of a CA that fails.
    fn failed(again: UnixTime) -> Answer {
        let error = Error::answer(Action::RenewalInfo, "ca.example", 500, b"", None, again);
        Answer::Poll(Poll {
            window: None,
            explanation: None,
            again,
            trouble: Some(Trouble::NoAnswer(error)),
        })
    }

    #[tokio::test]
    async fn an_outage_that_three_namespaces_tell_of_puts_off_all_of_the_issuer() {
        let (shared, _in_force) = without_an_answer();
        let renewals = Renewals::new(shared);
        let info = &renewals.info;
        let certificates = [
            ("shop", "down"),
            ("blog", "down"),
            ("bank", "down"),
            ("waiting", "down"),
            ("other", "up"),
        ];
        for (due, (namespace, issuer)) in (0..).zip(certificates) {
            let key = SecretRef::new(namespace, "tls");
            info.lock().insert(&key, certificate(due, issuer));
        }
        let (sender, mut suggested) = mpsc::unbounded_channel();
        let mut told = Vec::new();
        for again in [1_060, 1_120, 1_180] {
            let question = info.next(UnixTime(1_000)).ok().unwrap();
            renewals.settle(&question, failed(UnixTime(again)), &sender);
            let all = suggested.try_recv().unwrap();
            assert!(all.iter().all(|it| it.suggestion == Suggestion::None));
            let namespaces = all.iter().map(|it| it.key.namespace.to_string());
            told.push(namespaces.collect::<Vec<_>>());
        }
        // The last one has not been asked about, and waits for no answer any more.
        assert_eq!(told, [vec!["shop"], vec!["blog"], vec!["bank", "waiting"]]);
        let not_before = info.lock().not_before.get("down").copied();
        assert_eq!(not_before, Some(UnixTime(1_180)), "for new certificates");
        let other = info.next(UnixTime(1_000)).ok().unwrap();
        assert_eq!(&*other.key.namespace, "other");
        let wait = info.next(UnixTime(1_179)).err();
        assert_eq!(wait, Some(Duration::from_secs(1)));
        let asked = (0..9).filter(|_| info.next(UnixTime(1_180)).is_ok());
        assert_eq!(asked.count(), 4);
    }
}

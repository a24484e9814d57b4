//! Asks the CAs when they want their certificates renewed, one request after the other, the soonest due first.

use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

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
        let now = UnixTime::now();
        let Question { issuer, id, .. } = &question;
        let answer = async {
            let config = self.shared.config();
            let (Some(settings), Ok(id)) = (config.issuer(issuer), id.parse()) else {
                return Answer::Issuer(now + UNUSABLE);
            };
            let client = match self.issuers.ready(issuer, settings).await {
                Ok(client) => client,
                Err(issuers::Error::Limited(until)) => return Answer::Issuer(until),
                Err(_) => return Answer::Issuer(now + UNUSABLE),
            };
            match client.renewal_info(&id, question.failures, now).await {
                Ok(Some(poll)) if poll.is_limit() => Answer::Issuer(poll.again),
                Ok(Some(poll)) => Answer::Poll(poll),
                Ok(None) => Answer::Issuer(now + NO_RENEWAL_INFO),
                Err(_) => Answer::Issuer(now + UNUSABLE),
            }
        };
        let answer = timeout(DEADLINE, answer)
            .await
            .unwrap_or(Answer::Issuer(now + UNUSABLE));
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
                    let uid = state.certificates.get(&question.key);
                    let uid = uid.map(|known| Arc::clone(&known.uid)).unwrap_or_default();
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

//! One renewal, step by step.
//!
//! ```text
//! read Secret ─► order ─► order record ─► challenges ─► finalize ─► download ─► checks ─► guarded patch ─► record deleted
//!  `target`      `order`      ▲          `challenges`   `resume`                `write`                    `record`
//!                             a restart enters here, at whatever state the CA reports
//! ```
//! The record is written before anything irreversible, so a renewal that is killed anywhere goes on from there.
//! It relies only on what it reads itself, and reads the Secret again before it finalizes and before it writes, because
//! the user may have changed it. It never touches a workload.
//!
//! `fallback` decides which CA is asked, and `on_failure` what a failed renewal means for the next one.

pub mod challenges;
pub mod info;
pub mod issuers;
pub mod limits;
mod order;
mod outcome;
pub mod preflight;
mod renewals;
mod shared_certificates;
mod target;
mod write;

use std::time::{Duration, Instant};

use cert_renew_core::assess;
use cert_renew_core::index::{Entry, Finished};
use cert_renew_core::schedule::due::{Never, Reason};
use cert_renew_core::secret::keys;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::state_line;
use outcome::Outcome;
use outcome::failure::Failure;
use renewals::Renewal;
pub use renewals::Renewals;
use target::RenewalTarget;
use tokio::time::{sleep, timeout};

use crate::cluster::order_records::{self, Found, Record};
use crate::cluster::{self, events};
use crate::process::task::TaskHandle;

/// How long an order whose issuer is not in the config is kept, in case a config has it again: as long as CAs keep one.
const ORDER_LIFE: Duration = Duration::from_secs(7 * 86_400);
/// Delay before an order is given up again whose DNS host took too long: it takes the DNS places of others for as long as
/// a renewal may take, each time.
const ABANDON_AGAIN: Duration = Duration::from_secs(3_600);

impl Renewals {
    /// Renews a Secret if it is due, and reports the result through the task handle.
    pub async fn run(&self, ticket: TaskHandle) {
        let key = ticket.key().clone();
        let (renewal, mut gone) = (self.of(&key), ticket.changed());
        // An order on record is cleaned up although the renewal is cut off; one without a record ends at its next look.
        let given_up = async { gone.changed().await.is_ok() && self.running_orders.contains(&key) };
        let attempt = async {
            match renewal.attempt().await {
                Ok(Outcome::Renewed | Outcome::Tidied) => Finished::Wrote,
                Ok(Outcome::Later(at, why)) => Finished::Later(at, why),
                Ok(Outcome::Stuck(at, stuck, why)) => Finished::Stuck(at, stuck, why),
                Err(failure) => renewal.on_failure(failure).await,
            }
        };
        let finished = tokio::select! {
            ended = timeout(self.longest, attempt) => ended.unwrap_or_else(|_| renewal.took_too_long()),
            // The Secret is gone. One of the same name may exist by now, and waits.
            true = given_up => Finished::Later(UnixTime::now(), None),
        };
        if let Finished::Wrote = finished
            && let Some(entry) = self.shared.entry(&key)
        {
            self.secret_failures.forget(&entry.observed.uid);
        }
        ticket.finish(finished);
    }
}

impl Renewal<'_> {
    /// Abandons the order of a Secret that is gone or no longer annotated. An order may have hundreds of TXT records, and
    /// its DNS host may be slow: one that takes too long is given up again later, unless its Secret has come back and
    /// goes on with it. Takes no place of the renewals.
    pub async fn abandon(self) {
        while timeout(self.all.longest, self.abandoned()).await.is_err() {
            tracing::warn!(
                secret = %self.key,
                "an order that is no longer wanted could not be given up in time; it is tried again in an hour"
            );
            sleep(ABANDON_AGAIN).await;
            if let Some(entry) = self.shared.entry(self.key) {
                // It goes on with the order now: its next renewal may be months away.
                if entry.renewing.is_none() && self.all.running_orders.contains(self.key) {
                    let mut index = self.shared.write_index();
                    index.order_open(UnixTime::now(), self.key, true);
                }
                return;
            }
        }
    }

    async fn abandoned(self) {
        let record = match self.running().await {
            Ok(Some(record)) => record,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(secret = %self.key, %error, "an order that is no longer wanted could not be given up now");
                return;
            }
        };
        tracing::info!(secret = %self.key, order = record.order.url, "the order is given up: nobody waits for it");
        if let Err(error) = self.all.give_up(&record).await {
            tracing::warn!(secret = %self.key, %error, "the order record stays until the next start");
        }
    }

    /// Goes on with the running order, or makes one if the Secret is due and nothing holds it back.
    async fn attempt(self) -> Result<Outcome, Failure> {
        let now = UnixTime::now();
        let record = self.running().await?;
        let read = self.read(now).await;
        if let (Err(Failure::NoIssuer(_)), Some(record)) = (&read, &record)
            && now.since(UnixTime(record.order.created)) > ORDER_LIFE
        {
            self.all.remove(record).await?;
        }
        let Some(fresh) = read? else {
            if let Some(record) = record {
                self.all.give_up(&record).await?;
            }
            return Ok(Outcome::Later(UnixTime::NEVER, None));
        };
        if let Some((never, problem)) = assess::left_alone(&fresh.secret.head) {
            let outcome = self.left_alone(&fresh, never, &problem);
            if let Some(record) = record {
                self.all.give_up(&record).await?;
            }
            return Ok(outcome);
        }
        if let Some(record) = record {
            return self.resume(fresh, record).await;
        }
        let due = match fresh.assessment.renewal {
            Ok(due) if due.at <= now => due,
            Ok(due) => return Ok(Outcome::Later(due.at, None)),
            // The watch knows no labels and had let it pass.
            Err(Never::NotAllowed) if fresh.labels.is_some() => {
                return Err(Failure::NotAllowed(fresh.refusal()).about(&fresh));
            }
            Err(_) => return Ok(Outcome::Later(UnixTime::NEVER, None)),
        };
        if let Some(opens) = fresh.assessment.opens {
            return Ok(Outcome::Later(opens, None));
        }
        if due.reason == Reason::OutputsChanged {
            let written = self.write_outputs(&fresh).await;
            return written.map_err(|failure| failure.about(&fresh));
        }
        if let Some(again) = self.follows(&fresh, now).await {
            return Ok(Outcome::Later(again, None));
        }
        let fresh = self.at_hand(fresh, now);
        let account = self.shared.ledger.get(fresh.assessment.account);
        if let Some(hold) = fresh.claim(due.reason).hold(now, &account) {
            return Ok(self.held_by_budget(&fresh, hold));
        }
        self.tell_adopted(&fresh, now).await;
        self.order(fresh, due).await
    }

    /// Reports a Secret whose first certificate of ours is asked for before anything is written on it.
    async fn tell_adopted(self, fresh: &RenewalTarget, now: UnixTime) {
        let notes = fresh.secret.head.annotations().into_iter().flatten();
        let is_written = notes
            .into_iter()
            .any(|(key, _)| key.starts_with(keys::STATE_PREFIX));
        let is_known = |entry: Entry| entry.rolled_out().is_some() || entry.renewal_error.is_some();
        if is_written || self.shared.entry(self.key).is_none_or(is_known) {
            return;
        }
        let note = match self.users(&fresh.assessment.settings.workloads).await {
            Some(users) => state_line::adopted(now, &fresh.assessment, &users),
            None => state_line::adopting(now, &fresh.assessment),
        };
        tracing::info!(secret = %self.key, note, "adopted");
        let reason = events::Reason::Adopted;
        self.tell(fresh.uid(), reason, &note);
    }

    /// The workloads that use the Secret, where they can be told.
    async fn users(self, named: &[WorkloadRef]) -> Option<Vec<String>> {
        let users = self.all.users.as_ref()?;
        let may_look = { self.all.lookups.lock() }.take(Instant::now(), &self.key.namespace);
        if !may_look {
            return None;
        }
        users(self.key.clone(), named.to_vec()).await
    }

    /// The record of the Secret's order, if one runs.
    async fn running(self) -> Result<Option<Record>, cluster::Error> {
        if !self.all.running_orders.contains(self.key) {
            return Ok(None);
        }
        match order_records::get(&self.shared.client, &self.shared.namespace, self.key).await? {
            Found::Record(record) => return Ok(Some(*record)),
            Found::Unreadable { name, uid } => self.replace_record((&name, &uid)).await?,
            Found::Nothing => self.all.running_orders.remove(self.key),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use cert_renew_core::index::Task;
    use cert_renew_core::secret::SecretRef;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::context::tests::without_an_answer;

    #[tokio::test(start_paused = true)]
    async fn a_renewal_gives_its_place_back_although_nobody_ever_answers() {
        let (shared, _in_force) = without_an_answer();
        let mut renewals = Renewals::new(shared);
        assert_eq!(renewals.longest, Duration::from_secs(15 * 60));
        // Sooner than any deadline of its parts.
        let longest = Duration::from_millis(1);
        renewals.longest = longest;
        let (sender, mut done) = mpsc::unbounded_channel();
        let (_kept, changed) = watch::channel(());
        let key = SecretRef {
            namespace: "shop".into(),
            name: "tls".into(),
        };
        let ticket = TaskHandle::new(Task::Renew, key, sender, changed);
        let begun = tokio::time::Instant::now();
        renewals.run(ticket).await;
        assert_eq!(begun.elapsed(), longest);
        assert!(done.recv().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_that_cannot_be_given_up_in_time_is_given_up_again_later() {
        let (shared, _in_force) = without_an_answer();
        let mut renewals = Renewals::new(shared);
        // Sooner than any deadline of its parts.
        let longest = Duration::from_millis(1);
        renewals.longest = longest;
        let key = SecretRef::new("shop", "tls");
        renewals.running_orders.insert(&key, 1);
        let begun = tokio::time::Instant::now();
        let mut abandon = pin!(renewals.of(&key).abandon());
        // Nobody answers: it keeps its record, and does not end.
        let waits = timeout(ABANDON_AGAIN * 10, abandon.as_mut()).await;
        assert!(waits.is_err() && renewals.running_orders.contains(&key));
        renewals.running_orders.remove(&key);
        abandon.await;
        let took = begun.elapsed();
        assert!(
            took > ABANDON_AGAIN * 10 && took < ABANDON_AGAIN * 11,
            "{took:?}"
        );
    }
}

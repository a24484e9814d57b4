//! Brings a new leaf from a Secret to its workloads: the rollouts of one namespace that are due together.
//!
//! The workloads are listed once for the whole batch. Secrets that are seen for the first time are only recorded; the
//! others are read again, alongside the lists, and a pair is not rolled out if it is empty, does not match, is not
//! valid now, or is itself due for renewal. The same judgement is repeated before each effect on a workload.
//! `rolled-out` is written last: until then the rollout stays due.

mod carry_out;
mod conclude;
mod confirm;
mod held;
mod look;
mod notify;
mod record;
mod restored;
pub(super) mod room;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::index::Finished;
use cert_renew_core::rollout::{Decision, Lookup, Plan, Request, Step, plan};
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use tokio::time::Instant;

use self::carry_out::Batch;
use self::held::Held;
use self::room::FULL;
use crate::process::task::{Planning, TaskHandle};
use crate::rollout;
use crate::rollout::rollouts::Rollouts;

/// Delay after the API server refused a request.
const AGAIN: Duration = Duration::from_secs(30);
/// Delay until a bad pair, or a stale one that is served, is looked at again if the watch brings nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// Delay until a halt or a paused workload is looked at again, so that a rollout goes on within a minute after somebody
/// has fixed or resumed the workload, which changes nothing on the Secret. One list serves all Secrets of the
/// namespace.
const HINDERED_AGAIN: Duration = Duration::from_secs(45);
/// Most Secrets of one batch that are read or written at the same time.
const AT_ONCE: usize = 8;

impl Rollouts {
    /// Plans and carries out the rollouts of one namespace.
    pub async fn run(&self, planning: Planning, tickets: Vec<TaskHandle>) {
        let namespace = Arc::clone(planning.namespace());
        let since = Instant::now();
        let roller = self.roller();
        let room = self.room.of(&namespace);
        let looks = self.look_at_all(tickets, &room);
        let (workloads, looks) = futures::join!(roller.list(&namespace), looks);
        let workloads = match workloads {
            Ok(workloads) => workloads,
            Err(error) => {
                let text = error_chain(&error);
                tracing::warn!(%namespace, error = text, "the workloads cannot be listed: nothing is restarted");
                for (ticket, _) in looks {
                    let again = UnixTime::now() + AGAIN;
                    ticket.finish(Finished::Later(again, Some(text.as_str().into())));
                }
                return;
            }
        };
        let looks = self.put_back(looks).await;
        let (requests, mut open) = self.ask(&workloads, looks, &room).await;
        let lookup = Lookup::of(&workloads);
        let config = self.shared.config();
        let Plan {
            verdicts,
            users,
            steps,
            remarks,
        } = plan(UnixTime::now(), &requests, &workloads, &config.rollout);
        drop(planning);
        for remark in &remarks {
            notify::remark(&self.shared, &open, remark);
        }
        notify::restarted(&self.shared, &open, &remarks);
        // There may be a hundred for each Secret.
        drop(remarks);
        let users: Users = users.into_iter().collect();
        let mut behind: Vec<&Request> = Vec::new();
        for (request, (secret, verdict)) in requests.iter().zip(&verdicts) {
            if rollout::leaves_behind(request, verdict) {
                behind.push(request);
            }
            if *verdict == Decision::Roll
                && let Some((ticket, held)) = open.get(secret)
                && let Some(age) = held.age
                && let Some(why) = restored::older(request, age, &lookup)
            {
                notify::older(&self.shared, ticket.key(), request, &why);
            }
        }
        let rolled = async {
            let mut secrets: Vec<Box<str>> = Vec::new();
            for (request, (secret, verdict)) in requests.iter().zip(verdicts) {
                let finished = match verdict {
                    Decision::Roll => {
                        secrets.push(secret);
                        continue;
                    }
                    Decision::UpToDate | Decision::FirstSight | Decision::NothingRefers => {
                        self.record(&open, request, &users).await
                    }
                    Decision::Halted(note) => {
                        let why = format!(
                            "halted at {}: cert-renew resume {namespace}/{secret}",
                            note.workload
                        );
                        Finished::Later(look_again(UnixTime::now(), request), Some(why.into()))
                    }
                };
                if let Some((ticket, _)) = open.remove(&secret) {
                    ticket.finish(finished);
                }
            }
            let weight = steps.iter().map(Step::weight).sum::<usize>() + weight_of(&users);
            if !room.take_whole(weight) {
                return put_off(secrets, open);
            }
            let batch = Batch::new(self, &namespace, &requests, &users, secrets, steps);
            batch.carry_out(open, since).await;
        };
        // The rollout may take days: the list goes before.
        let told = self.left_behind(&namespace, &behind, workloads, &room);
        futures::join!(told, rolled);
    }
}

/// Ends the looks at Secrets for whose workloads there is no room: they are looked at later.
fn put_off(secrets: Vec<Box<str>>, mut open: Open) {
    for secret in secrets {
        if let Some((ticket, _)) = open.remove(&secret) {
            let again = UnixTime::now() + AGAIN;
            ticket.finish(Finished::Later(again, Some(FULL.into())));
        }
    }
}

type Open = BTreeMap<Box<str>, (TaskHandle, Held)>;

/// The workloads that use each Secret.
type Users = BTreeMap<Box<str>, Vec<WorkloadRef>>;

/// Their bytes in memory, without the allocator's overhead.
fn weight_of(users: &Users) -> usize {
    let all = users.values().flatten();
    all.map(|it| size_of::<WorkloadRef>() + it.name.len()).sum()
}

/// When a halt is looked at again: at the latest when the leaf expires that the other workloads serve.
fn look_again(now: UnixTime, request: &Request) -> UnixTime {
    match request.rolled_out {
        // The last second of a leaf is still part of its validity.
        Some(RolledOut::Leaf { not_after, .. }) if not_after >= now => {
            (now + HINDERED_AGAIN).min(not_after + Duration::from_secs(1))
        }
        _ => now + HINDERED_AGAIN,
    }
}

//! Brings a new leaf from a Secret to its workloads: the rollouts of one namespace that are due together.
//!
//! The workloads are listed once for the whole batch. Secrets that are seen for the first time are only recorded; the
//! others are read again, alongside the lists, and a pair is not rolled out if it is empty, does not match, is not
//! valid now, or is itself due for renewal. The same judgement is repeated before each effect on a workload.
//! `rolled-out` is written last: until then the rollout stays due.

pub(super) mod bystanders;
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
use cert_renew_core::rollout::plan::allowance;
use cert_renew_core::rollout::{Decision, Lookup, Plan, Request, Step, plan_within};
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use tokio::time::Instant;

use self::carry_out::Batch;
use self::held::Held;
use self::room::{FULL, Share, weight};
use crate::process::task::{Planning, TaskHandle};
use crate::rollout;
use crate::rollout::rollouts::Rollouts;

/// Delay after the API server refused a request.
const AGAIN: Duration = Duration::from_secs(30);
/// Delay until a Secret is looked at for which the others of its batch left no room.
const SOON: Duration = Duration::from_secs(5);
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
        if room.is_refused() {
            return self.put_off_all(tickets, &room).await;
        }
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
        let (taken, allowance) = room.take_for_plan();
        let now = UnixTime::now();
        let Plan {
            verdicts,
            users,
            steps,
            remarks,
        } = plan_within(allowance, now, &requests, &lookup, &config.rollout);
        let users: Users = users.into_iter().collect();
        let planned = steps.iter().map(Step::weight).sum::<usize>() + weight_of(&users);
        // What the remarks take goes with them, in a moment.
        room.give_back(taken.saturating_sub(planned));
        drop(planning);
        for remark in &remarks {
            notify::remark(&self.shared, &open, remark);
        }
        notify::restarted(&self.shared, &open, &remarks);
        drop(remarks);
        let mut behind: Vec<Request> = Vec::new();
        let (mut rolled, mut recorded) = (Vec::new(), Vec::new());
        let mut put_off = 0;
        for (request, (_, verdict)) in requests.into_iter().zip(verdicts) {
            let Some((ticket, held)) = open.remove(&request.secret) else {
                continue;
            };
            if rollout::leaves_behind(&request, &verdict) {
                behind.push(request.clone());
            }
            match verdict {
                Decision::Roll => {
                    if let Some(age) = held.age
                        && let Some(why) = restored::older(&request, age, &lookup)
                    {
                        notify::older(&self.shared, ticket.key(), &request, &why);
                    }
                    rolled.push((request, (ticket, held)));
                }
                Decision::UpToDate | Decision::FirstSight | Decision::NothingRefers => {
                    recorded.push((request, (ticket, held)));
                }
                Decision::Halted(note) => {
                    let resume = format!("cert-renew resume {namespace}/{}", request.secret);
                    let resume = self.shared.command(&resume);
                    let why = format!("halted at {}: {resume}", note.workload);
                    let again = look_again(UnixTime::now(), &request);
                    ticket.finish(Finished::Later(again, Some(why.into())));
                    room.give_back(weight(&request, &held));
                }
                Decision::PutOff => {
                    let again = UnixTime::now() + AGAIN;
                    ticket.finish(Finished::Later(again, Some(FULL.into())));
                    room.give_back(weight(&request, &held));
                    put_off += 1;
                }
            }
        }
        if put_off > 0 {
            tracing::info!(%namespace, secrets = put_off, why = FULL, "not restarted yet");
        }
        // The rollout may take days: the list goes before.
        drop(workloads);
        let told = self.left_behind(&namespace, behind);
        let recorded = self.record_each(recorded, &users, &room);
        let carried_out = async {
            let (requests, open): (Vec<Request>, Vec<_>) = rolled.into_iter().unzip();
            let secrets: Vec<Box<str>> = requests.iter().map(|it| it.secret.clone()).collect();
            let open: Open = secrets.iter().cloned().zip(open).collect();
            let batch = Batch::new(self, &namespace, &requests, &users, secrets, steps);
            batch.carry_out(open, since).await;
        };
        // In this order: patches of workloads are sent before requests that can wait.
        futures::join!(carried_out, recorded, told);
    }

    /// Looks at Secrets for whose rollouts there is no room: nothing is read, and what is lost is put back all the same.
    async fn put_off_all(&self, tickets: Vec<TaskHandle>, room: &Share<'_>) {
        let looks = self.look_at_all(tickets, room).await;
        let looks = self.put_back(looks).await;
        tracing::info!(namespace = %room.namespace(), secrets = looks.len(), why = FULL, "not restarted yet");
        for (ticket, _) in looks {
            ticket.finish(Finished::Later(UnixTime::now() + AGAIN, Some(FULL.into())));
        }
    }

    /// Records, one after the other, the Secrets for which nothing is to be rolled. Nothing waits for it.
    async fn record_each(
        &self,
        recorded: Vec<(Request, (TaskHandle, Held))>,
        users: &Users,
        room: &Share<'_>,
    ) {
        for (request, open) in recorded {
            let workloads = users.get(&request.secret).map_or(&[][..], Vec::as_slice);
            let finished = self.record(&open, &request, workloads).await;
            let (ticket, held) = open;
            ticket.finish(finished);
            room.give_back(weight(&request, &held));
        }
    }
}

type Open = BTreeMap<Box<str>, (TaskHandle, Held)>;

/// The workloads that use each Secret.
type Users = BTreeMap<Box<str>, Vec<WorkloadRef>>;

fn weight_of(users: &Users) -> usize {
    users.values().map(|all| allowance::of_users(all)).sum()
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

//! Brings a new leaf from a Secret to its workloads: the rollouts of one namespace that are due together.
//!
//! The workloads are listed once for the whole batch. Secrets that are seen for the first time are only recorded; the
//! others are read again, alongside the lists, and a pair is not rolled out if it is empty, does not match, is not
//! valid now, or is itself due for renewal. The same judgement is repeated before each effect on a workload.
//! `rolled-out` is written last: until then the rollout stays due.

mod confirm;
mod held;
mod look;
mod record;
mod restored;
mod rewrite;
mod tell;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream, FuturesUnordered};
use tokio::sync::watch;
use tokio::time::Instant;

use self::confirm::{Conclusion, Rolled, Standing};
use self::held::Held;
use self::look::Again;
pub(crate) use self::restored::look_at_records;
pub(crate) use self::rewrite::rewrite;
pub(crate) use self::tell::shut as tell_shut;
use cert_renew_core::index::Finished;
use cert_renew_core::rollout::{HaltNote, Request, Step, Verdict};
use cert_renew_core::secret::keys;
use cert_renew_core::secret::parts::Parts;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::used_by::Has;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;

use crate::cluster;
use crate::cluster::events::Reason;
use crate::cluster::secrets::{self, Changes};
use crate::context::Context;
use crate::process::task::{Planning, TaskHandle};
use crate::rollout::{self, Happening, Outcome, Rollout, Withdrawal};

/// Delay after the API server refused a request.
const AGAIN: Duration = Duration::from_secs(30);
/// Delay until a bad pair, or a stale one that is served, is looked at again if the watch brings nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// Delay until a halt or a paused workload is looked at again, so that a rollout goes on within a minute after somebody
/// has fixed or resumed the workload, which changes nothing on the Secret. One list serves all Secrets of the
/// namespace.
const HINDERED_AGAIN: Duration = Duration::from_secs(45);
/// Delay until a Secret is looked at again whose workloads lack its leaf because they were not well before. Together
/// with [`crate::rollout`]'s glance at each, that is within a minute of their recovery.
const LACKS_AGAIN: Duration = Duration::from_secs(20);
/// Most Secrets of one batch that are read or written at the same time.
const AT_ONCE: usize = 8;
/// Most write conflicts in a row on a Secret before the write is given up: something changes it all the time.
const CONFLICTS: usize = 5;

/// Plans and carries out the rollouts of one namespace.
pub async fn run(context: Arc<Context>, planning: Planning, tickets: Vec<TaskHandle>) {
    let namespace = Arc::clone(planning.namespace());
    let since = Instant::now();
    let roller = context.roller();
    let (workloads, looks) = futures::join!(
        roller.list(&namespace),
        look::look_at_all(&context, tickets)
    );
    let workloads = match workloads {
        Ok(workloads) => workloads,
        Err(error) => {
            let text = error_chain(&error);
            tracing::warn!(%namespace, error = text, "the workloads cannot be listed: nothing is rolled");
            for (ticket, _) in looks {
                ticket.finish(Finished::Later(
                    UnixTime::now() + AGAIN,
                    Some(text.as_str().into()),
                ));
            }
            return;
        }
    };
    let looks = record::put_back(&context, looks).await;
    let (requests, mut open) = look::ask(&context, &workloads, looks).await;
    let plan = cert_renew_core::rollout::plan(
        UnixTime::now(),
        &requests,
        &workloads,
        &context.config().rollout,
    );
    drop(planning);
    for remark in &plan.remarks {
        tell::remark(&context, &open, remark);
    }
    tell::restarted(&context, &open, &plan.remarks);
    let users: Users = plan.users.into_iter().collect();
    let mut rolling: Vec<Box<str>> = Vec::new();
    let mut behind: Vec<&Request> = Vec::new();
    for (request, (secret, verdict)) in requests.iter().zip(plan.verdicts) {
        if rollout::leaves_behind(request, &verdict) {
            behind.push(request);
        }
        let finished = match verdict {
            Verdict::Roll => {
                if let Some((ticket, held)) = open.get(&secret)
                    && let Some(age) = held.age
                    && let Some(why) = restored::older(request, age, &workloads)
                {
                    tell::older(&context, ticket.key(), request, &why);
                }
                rolling.push(secret);
                continue;
            }
            Verdict::UpToDate | Verdict::FirstSight | Verdict::NothingRefers => {
                record::record(&context, &open, request, &users).await
            }
            Verdict::Halted(note) => {
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
    let batch = Batch {
        requests: &requests,
        users: &users,
        since,
    };
    futures::join!(
        tell::left_behind(&context, &namespace, &behind, &workloads),
        carry_out(&context, &namespace, batch, rolling, plan.steps, open)
    );
}

type Open = BTreeMap<Box<str>, (TaskHandle, Held)>;

/// The workloads that use each Secret.
type Users = BTreeMap<Box<str>, Vec<WorkloadRef>>;

/// The arguments of a plan.
#[derive(Clone, Copy)]
struct Batch<'a> {
    requests: &'a [Request],
    users: &'a Users,
    /// When the first look at its Secrets began.
    since: Instant,
}

async fn carry_out(
    context: &Arc<Context>,
    namespace: &Arc<str>,
    Batch {
        requests,
        users,
        since,
    }: Batch<'_>,
    secrets: Vec<Box<str>>,
    steps: Vec<Step>,
    mut open: Open,
) {
    let judge = &Again {
        context,
        namespace,
        requests,
        overruled: Mutex::default(),
    };
    for secret in &secrets {
        if let Some((ticket, held)) = open.get(secret) {
            let names: Vec<String> = steps
                .iter()
                .filter(|step| step.serves(secret))
                .map(|step| step.workload.id.to_string())
                .collect();
            tracing::info!(secret = %ticket.key(), step = "roll", workloads = ?names, "rolling");
            let request = requests.iter().find(|it| it.secret == *secret);
            if let (Some(opens), Some(request)) = (held.overruled, request) {
                judge.overruled(ticket.key(), request, opens);
            }
        }
    }
    let standing = steps
        .iter()
        .map(|step| (step.workload.id.clone(), Has::Kept));
    let standing: Standing = Mutex::new(standing.collect());
    let standing = &standing;
    let done = steps.clone();
    let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let roller = context.roller();
    let looks = open.iter_mut();
    let looks = looks.filter_map(|(secret, (_, held))| Some((secret.clone(), held.look.take()?)));
    let rollout = Rollout {
        namespace,
        secrets: &secrets,
        steps,
        judge,
        looks: looks.collect(),
        since,
        hints: changes(&open),
    };
    let rolled = roller.roll(
        rollout,
        |happening| {
            note(standing, &happening);
            tell::happening(context, namespace, &happening);
        },
        move |secret, outcome| {
            // The receiver lives as long as this call.
            let _ = sender.send((Box::<str>::from(secret), outcome));
        },
    );
    let settle = async {
        // Secrets whose workloads are ready do not wait for others.
        let mut concluding = FuturesUnordered::new();
        loop {
            tokio::select! {
                next = ended.recv() => {
                    let Some((secret, outcome)) = next else { break };
                    let request = requests.iter().find(|request| request.secret == secret);
                    if let (Some((ticket, held)), Some(request)) = (open.remove(&secret), request) {
                        let steps = done.iter().filter(|step| step.serves(&secret));
                        let steps: Vec<Step> = steps.cloned().collect();
                        concluding.push(async move {
                            let rolled = Rolled {
                                context,
                                key: ticket.key(),
                                request,
                                head: &held.head,
                                proof: held.proof.as_ref(),
                                before: held.used_by.as_ref(),
                                steps: &steps,
                                users: users.get(&secret).map_or(&[], Vec::as_slice),
                                standing,
                                judge,
                            };
                            let finished = conclude(&rolled, outcome, ticket.changed()).await;
                            ticket.finish(finished);
                        });
                    }
                }
                Some(()) = concluding.next() => {}
            }
        }
        while concluding.next().await.is_some() {}
    };
    futures::join!(rolled, settle);
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

/// Waits until a Secret is withdrawn; looks at it when the watch gives a reason.
async fn superseded(rolled: &Rolled<'_>, mut changed: watch::Receiver<()>) -> Withdrawal {
    while changed.changed().await.is_ok() {
        if let Err(withdrawal) = rolled.judge.judge(&rolled.request.secret).await
            && withdrawal.superseded
        {
            return withdrawal;
        }
    }
    std::future::pending().await
}

/// Records how the rollout of a Secret ended.
async fn conclude(rolled: &Rolled<'_>, outcome: Outcome, changed: watch::Receiver<()>) -> Finished {
    let Rolled {
        context,
        key,
        request,
        ..
    } = rolled;
    let conclusion = tokio::select! {
        conclusion = rolled.conclusion(outcome) => conclusion,
        withdrawal = superseded(rolled, changed) => Conclusion::Withdrawn(withdrawal),
    };
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
            if !context.rollout_said(key, &note) {
                tracing::warn!(secret = %key, note, "an earlier certificate is served");
                let reason = Reason::ServedCertificateStale;
                context.events.secret(key, &request.uid, reason, &note);
            }
            return Finished::Stale(now + LOOK_AGAIN, pods, note.into());
        }
        Conclusion::Done(more, proven) => {
            // Record what the workloads have by now, even if the Secret has changed.
            let mut written = vec![
                (keys::USED_BY, rolled.used_by(now, None, proven)),
                (keys::ROLLOUT_HALTED, None),
            ];
            let value = record::value_of(request);
            written.extend(value.written_for(&request.uid));
            written.extend(context.state_note(key, |facts| record::has(facts, value)));
            let more = { more.into_iter() }.chain(rolled.unavailable());
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
        Conclusion::Incomplete(lacking) => return incomplete(rolled, now, &lacking).await,
        Conclusion::Halted(workload, why) => {
            let note = format!(
                "{workload} did not take the new {} up ({why}); the others keep what they have. Look at it, then: \
                 cert-renew resume {key}",
                request.changed.in_words()
            );
            let mut written = vec![(keys::USED_BY, rolled.used_by(now, Some(&workload), None))];
            written.extend(context.state_note(key, |facts| {
                facts.entry.observed.halted = true;
                facts.halted_at = Some(workload.to_string());
            }));
            written.push((keys::ROLLOUT_HALTED, Some(halt(workload).to_string())));
            (written, Reason::RolloutHalted, note)
        }
        Conclusion::Deferred(why) => {
            if !context.rollout_said(key, &why) {
                tracing::info!(secret = %key, why, "the rollout waits");
                let (note, reason) = (format!("the rollout waits: {why}"), Reason::RolloutWaits);
                context.events.secret(key, &request.uid, reason, &note);
            }
            return Finished::Later(now + HINDERED_AGAIN, Some(why.into()));
        }
        Conclusion::Interrupted(why) => {
            tracing::warn!(secret = %key, why, "the rollout is interrupted: it goes on soon");
            return Finished::Later(now + AGAIN, Some(why.into()));
        }
        Conclusion::Withdrawn(Withdrawal { at, shut: true, .. }) => {
            tell::shut(context, key, &request.uid, at);
            return Finished::Shut(at);
        }
        Conclusion::Withdrawn(Withdrawal { at, why, .. }) => {
            let said = why.as_deref().unwrap_or("it has changed meanwhile");
            tracing::info!(secret = %key, step = "withdrawn", why = said, "the rollout does not go on as it was planned");
            return Finished::Later(at, why);
        }
        Conclusion::Beside(why) => {
            tracing::info!(secret = %key, step = "withdrawn", why, "the rollout is planned again");
            let settled = now + context.config().rollout.settle.max(Duration::from_secs(1));
            return Finished::Later(settled, Some(why.into()));
        }
    };
    let halted = reason == Reason::RolloutHalted;
    match write(rolled, annotations).await {
        Ok(()) => {}
        Err(cluster::Error::NotFound { .. }) => return Finished::Wrote,
        Err(error) => {
            tracing::warn!(secret = %key, %error, "how the rollout ended could not be written: looked at again");
            return Finished::Later(now + AGAIN, Some(error.to_string().into()));
        }
    }
    context.events.secret(key, &request.uid, reason, &note);
    if halted {
        tracing::warn!(secret = %key, step = "halted", note, "the rollout is halted");
        return Finished::Later(look_again(now, request), Some(note.into()));
    }
    tracing::info!(secret = %key, step = "done", leaf = %request.leaf, "rolled out");
    Finished::Wrote
}

/// Records which workloads lack the leaf and since when, and reports it once.
async fn incomplete(
    rolled: &Rolled<'_>,
    now: UnixTime,
    lacking: &[(WorkloadRef, String)],
) -> Finished {
    let Rolled { context, key, .. } = rolled;
    let again = now + LACKS_AGAIN;
    let words = rolled.lacking_in_words(now, lacking);
    let what = rolled.request.changed.in_words();
    let note = format!("not every workload has the new {what}: {words}");
    if !rolled.knows(lacking) {
        let mut written = vec![(keys::USED_BY, rolled.used_by(now, None, None))];
        let error = || Some(note.as_str().into());
        written.extend(context.state_note(key, |facts| facts.entry.rollout_error = error()));
        match write(rolled, written).await {
            Ok(()) => {}
            Err(cluster::Error::NotFound { .. }) => return Finished::Wrote,
            Err(error) => return Finished::Later(again, Some(error.to_string().into())),
        }
        let (reason, uid) = (Reason::RolloutIncomplete, &rolled.request.uid);
        context.events.secret(key, uid, reason, &note);
        tracing::warn!(secret = %key, step = "incomplete", note, "not every workload has the certificate: looked at again");
    }
    Finished::Incomplete(again, lacking.len(), note.into())
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

/// Writes onto the Secret, as it was planned or as it is by now.
async fn write(
    rolled: &Rolled<'_>,
    annotations: Vec<(&'static str, Option<String>)>,
) -> Result<(), cluster::Error> {
    let client = &rolled.context.client;
    let changes = Changes {
        annotations,
        ..Changes::default()
    };
    let mut head = rolled.head.clone();
    for _ in 0..CONFLICTS {
        match secrets::patch(client, &head, &changes).await {
            Err(cluster::Error::Conflict { .. }) => {}
            other => return other.map(drop),
        }
        head = secrets::get(client, rolled.key).await?.head;
        if head.uid() != &*rolled.request.uid {
            return Ok(());
        }
    }
    secrets::patch(client, &head, &changes).await.map(drop)
}

/// Notes the new state of a workload.
fn note(standing: &Standing, happening: &Happening<'_>) {
    let (step, has) = match happening {
        Happening::Rolled(step, _) | Happening::Reloaded(step, _) | Happening::Unchanged(step) => {
            (step, Has::It)
        }
        Happening::Unavailable(step, _) => (step, Has::Unavailable),
        // The start of the lack is known from earlier looks.
        Happening::Incomplete(step, _) => (step, Has::Lacks(UnixTime::now())),
        Happening::Failed(step, _) => (step, Has::Failed),
        Happening::Waits(..) => return,
    };
    let mut standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
    standing.insert(step.workload.id.clone(), has);
}

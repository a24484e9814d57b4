//! From a new leaf in a Secret to workloads that have it: the rollouts of one namespace that fall due together.
//!
//! The workloads are listed once for the whole batch. Secrets that are seen for the first time are only recorded; the
//! others are read afresh, beside the lists, and nothing is rolled onto a pair that is empty, does not match, is not
//! valid now, or is itself due for an issue. The same judgement is asked again before each thing that is done to a
//! workload. `rolled-out` is written last: until then the rollout stays due.

mod confirm;
mod rewrite;
mod tell;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio::time::Instant;

use self::confirm::{Conclusion, Rolled, Standing};
pub(crate) use self::rewrite::rewrite;
use crate::assess::{self, Assessment};
use crate::certificate::Fingerprint;
use crate::cluster::events::Reason;
use crate::cluster::secrets::{self, Changes};
use crate::cluster::{self, chain};
use crate::config::Labels;
use crate::context::Context;
use crate::index::{self, Entry, Finished, Key, LeafFacts};
use crate::pair::{self, PairFault, Rollable};
use crate::permit;
use crate::rollout::{
    self, HaltNote, Happening, Judge, Outcome, Proof, Request, Rollout, Step, Verdict, Withdrawal,
    Workload,
};
use crate::secret::full::FullSecret;
use crate::secret::head::Head;
use crate::secret::keys;
use crate::secret::state::RolledOut;
use crate::secret::used_by::{Has, UsedBy};
use crate::secret::workload::{RolloutMode, WorkloadRef};
use crate::ticket::{Planning, Ticket};
use crate::time::UnixTime;

/// What the API server refused is tried again after this.
const AGAIN: Duration = Duration::from_secs(30);
/// A halt, a pause or a bad pair is looked at again after this when the watch brings nothing: a workload that was
/// mended is no event on the Secret.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// A Secret whose workloads do not all have its leaf, since some were not well before, is looked at again after this:
/// together with [`crate::rollout`]'s glance at each within a minute of its recovery.
const LACKS_AGAIN: Duration = Duration::from_secs(20);
/// Secrets of one batch that are read or written at the same time.
const AT_ONCE: usize = 8;
/// Somebody who changes a Secret faster than this many times in a row is not to be raced with.
const CONFLICTS: usize = 5;

/// A Secret that is being planned, beside its request.
struct Held {
    head: Head,
    /// What is to be proven after the rollout.
    proof: Option<Proof>,
    /// The look by which it is planned.
    look: Option<permit::Look>,
    /// Which workloads use it and what they have, by the last rollout.
    used_by: Option<UsedBy>,
}

/// What a look at a Secret says.
enum Look {
    /// To be planned.
    Due(Box<(Request, Held)>),
    /// Not now.
    Later(UnixTime, Option<Box<str>>),
}

/// What can be said of a Secret before the workloads are listed.
enum Glance {
    Judged(Look),
    /// Nothing is on record: what the workloads carry says whether it is new.
    Unrecorded(Box<Entry>),
}

/// Plans and carries out the rollouts of one namespace.
pub async fn run(context: Arc<Context>, planning: Planning, tickets: Vec<Ticket>) {
    let namespace = Arc::clone(planning.namespace());
    let since = Instant::now();
    let roller = context.roller();
    let (workloads, looks) =
        futures::join!(roller.list(&namespace), look_at_all(&context, tickets));
    let workloads = match workloads {
        Ok(workloads) => workloads,
        Err(error) => {
            let text = chain(&error);
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
    let (requests, mut open) = ask(&context, &workloads, looks).await;
    let plan = rollout::plan(
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
                rolling.push(secret);
                continue;
            }
            Verdict::UpToDate | Verdict::FirstSight | Verdict::NothingRefers => {
                record(&context, &open, request, &users).await
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

type Open = BTreeMap<Box<str>, (Ticket, Held)>;

/// The workloads that use each Secret.
type Users = BTreeMap<Box<str>, Vec<WorkloadRef>>;

/// What was planned for.
#[derive(Clone, Copy)]
struct Batch<'a> {
    requests: &'a [Request],
    users: &'a Users,
    /// When the first look at its Secrets began.
    since: Instant,
}

/// Looks at all Secrets of a batch; those of which something is on record are read afresh.
async fn look_at_all(context: &Context, tickets: Vec<Ticket>) -> Vec<(Ticket, Glance)> {
    stream::iter(tickets)
        .map(|ticket| async move {
            let look = look(context, ticket.key()).await;
            (ticket, look)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

/// Turns looks into requests: first sights are only recorded, what is not due now ends here.
async fn ask(
    context: &Context,
    workloads: &[Workload],
    looks: Vec<(Ticket, Glance)>,
) -> (Vec<Request>, Open) {
    let carried = &rollout::Carried::by(workloads);
    let looked: Vec<(Ticket, Look)> = stream::iter(looks)
        .map(|(ticket, look)| async move {
            let look = match look {
                Glance::Judged(look) => look,
                Glance::Unrecorded(entry)
                    if carried.another(&ticket.key().name, leaf_of(&entry)) =>
                {
                    read(context, ticket.key(), &entry).await
                }
                Glance::Unrecorded(entry) => first_sight(ticket.key(), &entry),
            };
            (ticket, look)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let (mut requests, mut open) = (Vec::new(), Open::new());
    for (ticket, look) in looked {
        match look {
            Look::Due(due) => {
                let (request, held) = *due;
                open.insert(request.secret.clone(), (ticket, held));
                requests.push(request);
            }
            Look::Later(at, why) => ticket.finish(Finished::Later(at, why)),
        }
    }
    (requests, open)
}

async fn look(context: &Context, key: &Key) -> Glance {
    let entry = {
        let index = context.index.read().unwrap_or_else(PoisonError::into_inner);
        index.get(key)
    };
    match entry {
        None => Glance::Judged(Look::Later(UnixTime::now(), None)),
        Some(entry) if is_unrecorded(&entry) => Glance::Unrecorded(entry.into()),
        Some(entry) => Glance::Judged(read(context, key, &entry).await),
    }
}

/// Reads a Secret and judges it.
async fn read(context: &Context, key: &Key, entry: &Entry) -> Look {
    let looked = permit::Look::take(async {
        let read = read_afresh(context, key, UnixTime::now()).await?;
        judge(context, key, entry, &read, UnixTime::now())
    });
    match looked.await {
        Ok((look, (request, head, proof))) => {
            let held = Held {
                used_by: used_by_of(&head),
                head,
                proof,
                look: Some(look),
            };
            Look::Due(Box::new((request, held)))
        }
        Err(Not(at, why)) => Look::Later(at, why),
    }
}

/// Which workloads use a Secret and what they have, by its own annotation.
fn used_by_of(head: &Head) -> Option<UsedBy> {
    head.annotation(keys::USED_BY)?.parse().ok()
}

/// Not to be rolled onto now: when to look again, and why.
struct Not(UnixTime, Option<Box<str>>);

/// A Secret as it is now, and what it asks for.
async fn read_afresh(
    context: &Context,
    key: &Key,
    now: UnixTime,
) -> Result<(FullSecret, Assessment), Not> {
    let secret = match secrets::get(&context.client, key).await {
        Ok(secret) => secret,
        Err(cluster::Error::NotFound { .. }) => return Err(Not(now + AGAIN, None)),
        Err(error) => return Err(Not(now + AGAIN, Some(error.to_string().into()))),
    };
    let config = context.config();
    // No CA is asked from here, so that nobody need look at labels.
    let view = (&*config, Labels::NotAsked);
    let suggested = |leaf| context.renewal_info.instant(key, leaf);
    match assess::of_full(now, key, &secret, view, suggested) {
        Some(assessment) => Ok((secret, assessment)),
        None => Err(Not(now + AGAIN, None)),
    }
}

/// The judgement that comes before each effect: the same as that by which the batch was planned.
struct Again<'a> {
    context: &'a Context,
    namespace: &'a Arc<str>,
    requests: &'a [Request],
}

impl Judge for Again<'_> {
    fn judge<'a>(&'a self, secret: &'a str) -> BoxFuture<'a, Result<(), Withdrawal>> {
        self.look(secret).boxed()
    }
}

impl Again<'_> {
    async fn look(&self, secret: &str) -> Result<(), Withdrawal> {
        let Self {
            context,
            namespace,
            requests,
        } = self;
        let now = UnixTime::now();
        let withdrawn = |Not(at, why), superseded| Withdrawal {
            at,
            why,
            superseded,
        };
        let key = Key {
            namespace: Arc::clone(namespace),
            name: secret.into(),
        };
        let planned = requests.iter().find(|request| *request.secret == *secret);
        let (Some(planned), Some(entry)) = (planned, context.entry(&key)) else {
            return Err(withdrawn(Not(now + AGAIN, None), true));
        };
        let read = read_afresh(context, &key, now).await;
        let read = read.map_err(|not| {
            let gone = not.1.is_none();
            withdrawn(not, gone)
        })?;
        let (full, assessment) = &read;
        let holds = assessment.leaf.as_ref().ok().map(|leaf| leaf.fingerprint);
        let superseded = holds != Some(planned.leaf) || full.head.uid() != &*planned.uid;
        let judged = judge(context, &key, &entry, &read, UnixTime::now());
        let (request, ..) = judged.map_err(|not| withdrawn(not, superseded))?;
        if superseded || request.mode != planned.mode {
            return Err(withdrawn(Not(now, None), superseded));
        }
        Ok(())
    }
}

fn leaf_of(entry: &Entry) -> Option<Fingerprint> {
    entry.observed.leaf.ok().map(|leaf| leaf.fingerprint)
}

/// Whether neither the Secret nor the index says that its workloads ever had another leaf.
fn is_unrecorded(entry: &Entry) -> bool {
    let leaf = leaf_of(entry);
    let had = entry.rolled_out().and_then(RolledOut::fingerprint);
    entry.observed.rolled_out.is_none()
        && entry
            .rolled_out()
            .is_none_or(|_| had.is_some() && had == leaf)
}

/// A request that the plan answers with a record, made from what the watch said.
fn first_sight(key: &Key, entry: &Entry) -> Look {
    let observed = &entry.observed;
    let head = Head::of(
        &key.namespace,
        &key.name,
        &observed.uid.to_string(),
        &observed.resource_version.to_string(),
    );
    let none = LeafFacts {
        fingerprint: Fingerprint([0; 32]),
        not_before: UnixTime(0),
        not_after: UnixTime(0),
    };
    let leaf = observed.leaf.unwrap_or(none);
    let request = Request {
        secret: (*key.name).into(),
        uid: observed.uid.to_string().into(),
        leaf: leaf.fingerprint,
        not_after: leaf.not_after,
        rolled_out: None,
        remembered: None,
        halted: None,
        mode: RolloutMode::Restart,
        workloads: Vec::new(),
        keys: Vec::new(),
        written: None,
        unwell: Vec::new(),
    };
    let held = Held {
        head,
        proof: None,
        look: None,
        used_by: None,
    };
    Look::Due(Box::new((request, held)))
}

/// Whether the Secret as it is now may be rolled onto.
fn judge(
    context: &Context,
    key: &Key,
    entry: &Entry,
    (secret, assessment): &(FullSecret, Assessment),
    now: UnixTime,
) -> Result<(Request, Head, Option<Proof>), Not> {
    if let Some(opens) = assessment.opens {
        return Err(Not(opens, None));
    }
    if assessment.rollout_blocked {
        return Err(Not(UnixTime::NEVER, None));
    }
    let served_expired =
        matches!(entry.rolled_out(), Some(RolledOut::Leaf { not_after, .. }) if not_after <= now);
    if assessment.renewal.is_ok_and(|due| due.at <= now) && !served_expired {
        return Err(Not(
            now + LOOK_AGAIN,
            Some("waits for the renewal that is due".into()),
        ));
    }
    let (certificate, private_key) = secret.pair();
    let strictness = pair::Look {
        external: assessment.is_external(),
        der: secret.place().der,
    };
    let leaf = match pair::check_rollable(certificate, private_key, now, strictness) {
        Ok(Rollable { leaf, unproven }) => {
            if let Some(error) = unproven {
                tracing::info!(secret = %key, %error, "it is not known whether the key is the certificate's");
            }
            leaf
        }
        Err(fault) => {
            if matches!(fault, PairFault::Unservable(_)) && !assessment.is_external() {
                // It is written again in another form, and the watch brings that.
                context.doubts.add(key);
            }
            let note = format!("workloads keep what they have: {}", chain(&fault));
            if entry.last_error.as_deref() != Some(index::kept(&note)) {
                tracing::warn!(secret = %key, note, "not rolled");
                context
                    .events
                    .secret(key, secret.head.uid(), Reason::NotRolledOut, &note);
            }
            return Err(Not(now + LOOK_AGAIN, Some(note.into())));
        }
    };
    let changed = rendered_keys(secret, assessment);
    let had = assessment.rolled_out.or_else(|| entry.rolled_out());
    let proof = assessment.settings.verify.clone().map(|service| Proof {
        service,
        previous: had.and_then(RolledOut::fingerprint),
        leaf: leaf.clone(),
    });
    let used_by = used_by_of(&secret.head);
    let unwell = used_by.iter().flat_map(UsedBy::unwell).cloned();
    let request = Request {
        secret: (*key.name).into(),
        uid: secret.head.uid().into(),
        leaf: leaf.fingerprint,
        not_after: leaf.not_after,
        rolled_out: assessment.rolled_out,
        remembered: entry.rolled_out().and_then(RolledOut::fingerprint),
        halted: assessment.halted.clone(),
        mode: assessment.settings.rollout.clone(),
        workloads: assessment.settings.workloads.clone(),
        keys: changed,
        written: secret.written(),
        unwell: unwell.collect(),
    };
    Ok((request, secret.head.clone(), proof))
}

/// The data keys that change with a leaf; none where somebody else writes the Secret, who may change any.
fn rendered_keys(secret: &FullSecret, assessment: &Assessment) -> Vec<Box<str>> {
    if assess::issuer_name(&assessment.settings.issuer) == assess::EXTERNAL {
        return Vec::new();
    }
    let place = secret.place();
    let outputs = assessment
        .settings
        .outputs
        .iter()
        .map(|output| output.name.clone());
    outputs.chain([place.certificate, place.key]).collect()
}

/// Writes `rolled-out` where nothing is to be rolled.
async fn record(context: &Context, open: &Open, request: &Request, users: &Users) -> Finished {
    let Some((ticket, Held { head, .. })) = open.get(&request.secret) else {
        return Finished::Later(UnixTime::now() + AGAIN, None);
    };
    let value = value_of(request);
    let users = users.get(&request.secret).into_iter().flatten();
    let users = users.map(|workload| (workload.clone(), Has::It)).collect();
    let used_by = UsedBy::new(UnixTime::now(), users, None);
    let changes = Changes {
        annotations: vec![
            (keys::ROLLED_OUT, Some(value.to_string())),
            (keys::USED_BY, used_by.map(|used_by| used_by.to_string())),
            (keys::ROLLOUT_HALTED, None),
        ],
        ..Changes::default()
    };
    match secrets::patch(&context.client, head, &changes).await {
        Ok(_) => {
            tracing::info!(secret = %ticket.key(), step = "recorded", leaf = %value, "recorded: nothing to roll");
            Finished::Wrote
        }
        Err(cluster::Error::Conflict { .. } | cluster::Error::NotFound { .. }) => {
            Finished::Later(UnixTime::now() + Duration::from_secs(1), None)
        }
        Err(error) => Finished::Later(UnixTime::now() + AGAIN, Some(error.to_string().into())),
    }
}

fn value_of(request: &Request) -> RolledOut {
    if request.leaf == Fingerprint([0; 32]) {
        return RolledOut::None;
    }
    RolledOut::Leaf {
        fingerprint: request.leaf,
        not_after: request.not_after,
    }
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
    for secret in &secrets {
        if let Some((ticket, _)) = open.get(secret) {
            let names: Vec<String> = steps
                .iter()
                .filter(|step| step.serves(secret))
                .map(|step| step.workload.id.to_string())
                .collect();
            tracing::info!(secret = %ticket.key(), step = "roll", workloads = ?names, "rolling");
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
    let judge = &Again {
        context,
        namespace,
        requests,
    };
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
        // A Secret whose workloads are well does not wait for those of another.
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

/// The Secrets of which the watch says that they hold another certificate, each as often as it does.
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

/// When a Secret is not to be rolled onto as it was planned any more, as far as the watch gives reason to look.
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

/// Writes down how the rollout of a Secret ended.
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
        resumed: false,
    };
    let (annotations, reason, note) = match conclusion {
        Conclusion::Stale(pods, note) => {
            // It is looked at again and again, and told once.
            if !context.last_said(key, &note) {
                tracing::warn!(secret = %key, note, "an earlier certificate is served");
                let reason = Reason::ServedCertificateStale;
                context.events.secret(key, &request.uid, reason, &note);
            }
            return Finished::Stale(now + LOOK_AGAIN, pods, note.into());
        }
        Conclusion::Done(more, proven) => {
            // What the workloads have by now, whatever the Secret holds by now.
            let value = value_of(request).to_string();
            let written = vec![
                (keys::ROLLED_OUT, Some(value)),
                (keys::USED_BY, rolled.used_by(now, None, proven)),
                (keys::ROLLOUT_HALTED, None),
            ];
            let more = more.map(|more| format!("; {more}")).unwrap_or_default();
            let note = format!(
                "the workloads have the certificate that is valid until {}{more}",
                request.not_after
            );
            (written, Reason::RolledOut, note)
        }
        Conclusion::Incomplete(lacking) => return incomplete(rolled, now, &lacking).await,
        Conclusion::Halted(workload, why) => {
            let note = format!(
                "{workload} did not take the new certificate up ({why}); the others keep what they have"
            );
            let written = vec![
                (keys::USED_BY, rolled.used_by(now, Some(&workload), None)),
                (keys::ROLLOUT_HALTED, Some(halt(workload).to_string())),
            ];
            (written, Reason::RolloutHalted, note)
        }
        Conclusion::Deferred(why) => {
            tracing::info!(secret = %key, why, "the rollout is put off");
            return Finished::Later(now + LOOK_AGAIN, Some(why.into()));
        }
        Conclusion::Interrupted(why) => {
            tracing::warn!(secret = %key, why, "the rollout is interrupted: it goes on soon");
            return Finished::Later(now + AGAIN, Some(why.into()));
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

/// Notes which workloads lack the leaf and since when, and tells it once.
async fn incomplete(
    rolled: &Rolled<'_>,
    now: UnixTime,
    lacking: &[(WorkloadRef, String)],
) -> Finished {
    let Rolled { context, key, .. } = rolled;
    let again = now + LACKS_AGAIN;
    let words = rolled.lacking_in_words(now, lacking);
    let note = format!("not every workload has the new certificate: {words}");
    if !rolled.knows(lacking) {
        let written = vec![(keys::USED_BY, rolled.used_by(now, None, None))];
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

/// When a halt is looked at again: it ends at the latest with what the others serve.
fn look_again(now: UnixTime, request: &Request) -> UnixTime {
    match request.rolled_out {
        // The last second of a leaf is still one of its own.
        Some(RolledOut::Leaf { not_after, .. }) if not_after >= now => {
            (now + LOOK_AGAIN).min(not_after + Duration::from_secs(1))
        }
        _ => now + LOOK_AGAIN,
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

/// What a workload has by now.
fn note(standing: &Standing, happening: &Happening<'_>) {
    let (step, has) = match happening {
        Happening::Rolled(step, _) | Happening::Reloaded(step, _) | Happening::Unchanged(step) => {
            (step, Has::It)
        }
        Happening::Unavailable(step, _) => (step, Has::Unavailable),
        // Since when is known from earlier looks.
        Happening::Incomplete(step, _) => (step, Has::Lacks(UnixTime::now())),
        Happening::Failed(step, _) => (step, Has::Failed),
    };
    let mut standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
    standing.insert(step.workload.id.clone(), has);
}

//! The one loop that owns the index: watch events in, due tasks out.
//!
//! ```text
//! watch event ──► assess ──► index ──due──► renewal or rollout task ──► finished ──► index
//! ```
//! It waits for nothing but the next event, the next due instant and the end of a task;
//! everything that talks to anybody runs in a task of its own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLockWriteGuard};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::assess::{self, Assessment};
use crate::cluster::events::Severity;
use crate::cluster::{chain, watch};
use crate::context::Context;
use crate::index::{Change, Finished, Index, Key, Source, Task};
use crate::renewal::info::{self, Suggested};
use crate::schedule::quota;
use crate::secret::thin::ThinSecret;
use crate::time::UnixTime;
use crate::{propagation, renewal};

/// Namespaces whose workloads are listed at the same time.
const PLANNERS: usize = 8;
/// The loop turns at least this often: timers do not count the time that a machine was suspended, the clock does.
const BEAT: Duration = Duration::from_secs(30);
/// A task that died without a word is tried again after this.
const AFTER_PANIC: Duration = Duration::from_secs(300);

/// A running task's promise to say how it ended; a task that is dropped or panics says so by dropping it.
pub struct Ticket {
    task: Task,
    key: Key,
    sender: mpsc::UnboundedSender<Done>,
    sent: bool,
}

enum Done {
    /// The workloads of a namespace were listed; the next batch may start.
    Planned(Arc<str>),
    /// The task of a Secret ended.
    Task(Task, Key, Finished),
}

/// Says that a namespace's batch is planned, when dropped.
pub struct Planning {
    namespace: Arc<str>,
    sender: mpsc::UnboundedSender<Done>,
}

impl Ticket {
    /// The Secret that the task is for.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The task ended.
    pub fn finish(mut self, finished: Finished) {
        self.sent = true;
        // The receiver goes only when the controller does, and then nobody asks.
        let _ = self
            .sender
            .send(Done::Task(self.task, self.key.clone(), finished));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.sent {
            let error = Some("the task ended without a result; this is a bug".into());
            let later = Finished::Later(UnixTime::now() + AFTER_PANIC, error);
            let _ = self
                .sender
                .send(Done::Task(self.task, self.key.clone(), later));
        }
    }
}

impl Planning {
    /// Whose workloads are planned.
    #[must_use]
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }
}

impl Drop for Planning {
    fn drop(&mut self) {
        let _ = self.sender.send(Done::Planned(Arc::clone(&self.namespace)));
    }
}

struct Controller {
    context: Arc<Context>,
    sender: mpsc::UnboundedSender<Done>,
    /// Due renewals that wait for a place, those that failed least first.
    ready: BTreeSet<(u32, UnixTime, Key)>,
    renewing: usize,
    /// Due rollouts by namespace; all that wait are planned in one go.
    due: HashMap<Arc<str>, Vec<Key>>,
    planning: HashSet<Arc<str>>,
    unlisted: HashSet<Source>,
    down: HashSet<Source>,
}

/// Runs until `shutdown`, or until the watch ends for ever.
pub async fn run(
    context: Arc<Context>,
    watches: watch::Secrets,
    shutdown: impl Future<Output = ()>,
) {
    let (suggest, mut suggested) = mpsc::unbounded_channel();
    let polls = info::follow(Arc::clone(&context), suggest);
    let (sender, mut done) = mpsc::unbounded_channel();
    let sources = 0..u16::try_from(watches.count).unwrap_or(u16::MAX);
    let mut controller = Controller {
        context,
        sender,
        ready: BTreeSet::new(),
        renewing: 0,
        due: HashMap::new(),
        planning: HashSet::new(),
        unlisted: sources.map(Source).collect(),
        down: HashSet::new(),
    };
    let mut events = watches.events;
    tokio::pin!(shutdown, polls);
    let mut planned = Instant::now();
    loop {
        let turn = Instant::now();
        let lag = turn.saturating_duration_since(planned);
        controller.context.metrics.loop_lag(lag);
        let now = UnixTime::now();
        controller.context.beat.store(now.0, Ordering::Relaxed);
        let wait = controller.dispatch(now);
        planned = turn + wait;
        tokio::select! {
            // What is believed comes before what is due.
            biased;
            () = &mut shutdown => return,
            event = events.next() => match event {
                Some((source, event)) => controller.on_event(source, event),
                None => return,
            },
            Some(done) = done.recv() => controller.on_done(done),
            Some(suggested) = suggested.recv() => controller.on_suggested(suggested),
            () = &mut polls => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Controller {
    fn index(&self) -> RwLockWriteGuard<'_, Index> {
        self.context
            .index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn on_event(&mut self, source: Source, event: watcher::Result<watcher::Event<ThinSecret>>) {
        let down = event.is_err();
        if down != self.down.contains(&source) {
            if down {
                self.down.insert(source);
                self.context.metrics.watch_restarted();
            } else {
                self.down.remove(&source);
            }
        }
        self.context.metrics.watch_up(self.down.is_empty());
        match event {
            Ok(watcher::Event::Init) => self.index().begin(source),
            Ok(watcher::Event::InitApply(secret) | watcher::Event::Apply(secret)) => {
                self.on_secret(source, &secret);
            }
            Ok(watcher::Event::Delete(secret)) => {
                let mut index = self.index();
                let key = index.key(secret.head.namespace(), secret.head.name());
                drop(index);
                self.forget(&key);
            }
            Ok(watcher::Event::InitDone) => {
                let gone = self.index().finish(source);
                for key in gone {
                    self.forget(&key);
                    tracing::info!(secret = %key, "gone since the last list");
                }
                if self.unlisted.remove(&source) && self.unlisted.is_empty() {
                    self.on_ready();
                }
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the watch on Secrets is interrupted");
            }
        }
    }

    /// Everything has been listed once: orders that a former run left are looked after first.
    fn on_ready(&mut self) {
        let now = UnixTime::now();
        let count = self.index().len();
        tracing::info!(secrets = count, "all Secrets are listed");
        for key in self.context.known.subjects() {
            if !self.index().order_open(now, &key, true) {
                self.abandon(&key);
            }
        }
        self.recall_orders();
        let context = Arc::clone(&self.context);
        tokio::spawn(async move { renewal::proof::sweep(&context).await });
        self.context.ready.store(true, Ordering::Relaxed);
        self.context.renewal_info.begin();
    }

    /// What was ordered before this process was in charge, by the certificates that are there; copies count once.
    fn recall_orders(&self) {
        let mut issued: HashMap<Arc<str>, Vec<(UnixTime, Arc<str>)>> = HashMap::new();
        let (now, mut seen) = (UnixTime::now(), HashSet::new());
        let index = self.index();
        for (row, entry) in index.iter() {
            let observed = entry.observed;
            if let Ok(leaf) = observed.leaf
                && quota::is_recent(now, leaf.not_before)
                && seen.insert(leaf.fingerprint)
                && let Some((key, _)) = index.row(row)
            {
                let of_issuer = issued.entry(observed.issuer).or_default();
                of_issuer.push((leaf.not_before, key.namespace));
            }
        }
        drop(index);
        for (issuer, issued) in issued {
            self.context.issuers.recall_orders(&issuer, issued);
        }
    }

    /// The Secret is gone, or nobody annotates it any more; true when it was known.
    fn forget(&self, key: &Key) -> bool {
        self.context.renewal_info.forget(key);
        let running = self
            .index()
            .get(key)
            .is_some_and(|entry| entry.running.is_some());
        // A task that runs sees it by itself; what it leaves is looked after when it ends.
        if !running {
            self.abandon(key);
        }
        self.index().remove(key)
    }

    /// Gives up the order that a Secret has, if it has one: nobody waits for it any more.
    fn abandon(&self, key: &Key) {
        if self.context.known.contains(key) {
            let (context, key) = (Arc::clone(&self.context), key.clone());
            tokio::spawn(async move { renewal::abandon(&context, &key).await });
        }
    }

    fn on_secret(&mut self, source: Source, secret: &ThinSecret) {
        let head = &secret.head;
        let key = {
            let mut index = self.index();
            let key = index.key(head.namespace(), head.name());
            if index.touch(&key, head.resource_version(), source) {
                return;
            }
            key
        };
        let now = UnixTime::now();
        let config = self.context.config();
        let Some(assessment) = assess::of_thin(now, &key, secret, &config) else {
            if self.forget(&key) {
                tracing::info!(secret = %key, "no longer annotated");
            }
            return;
        };
        let uid = head.uid();
        let mut observed = assessment.observed(uid, head.resource_version());
        observed.suggestion = self.context.renewal_info.note(&key, uid, &assessment);
        let retry_at = self
            .context
            .ledger
            .retry_at(observed.account, observed.wish);
        let problems = observed.problem_texts;
        let known = self
            .index()
            .get(&key)
            .map_or(0, |entry| entry.observed.problem_texts);
        let change =
            self.index()
                .apply(now, &key, observed, source, config.rollout.settle, retry_at);
        self.narrate(&key, uid, change, &assessment);
        if problems != known {
            self.report(&key, uid, &assessment);
        }
    }

    fn narrate(&self, key: &Key, uid: &str, change: Change, assessment: &Assessment) {
        if change != Change::New {
            return;
        }
        let Ok(due) = assessment.renewal else { return };
        let issuer = assess::issuer_name(&assessment.settings.issuer);
        tracing::debug!(secret = %key, uid, issuer, renews = %due.at, reason = due.reason.as_str(), "watched");
    }

    /// Tells once what is wrong with the annotations.
    fn report(&self, key: &Key, uid: &str, assessment: &Assessment) {
        for problem in &assessment.problems {
            let text = problem.to_string();
            tracing::warn!(secret = %key, problem = %text, "not as it should be");
            let reason = if problem.key.contains('/') {
                "InvalidAnnotation"
            } else {
                "UnreadableCertificate"
            };
            self.context
                .events
                .secret(key, uid, Severity::Warning, reason, &text);
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Planned(namespace) => {
                self.planning.remove(&namespace);
            }
            Done::Task(task, key, finished) => {
                let now = UnixTime::now();
                let settle = self.context.config().rollout.settle;
                if task == Task::Renew {
                    self.renewing -= 1;
                    let open = self.context.known.contains(&key);
                    if !self.index().order_open(now, &key, open) {
                        self.abandon(&key);
                    }
                }
                let drawn = self
                    .index()
                    .get(&key)
                    .map(|entry| (entry.observed.account, entry.observed.wish));
                let retry_at =
                    drawn.and_then(|(account, wish)| self.context.ledger.retry_at(account, wish));
                self.index().finished(now, &key, finished, settle, retry_at);
            }
        }
    }

    /// A CA was asked, or cannot be asked, about these.
    fn on_suggested(&self, suggested: Vec<Suggested>) {
        let now = UnixTime::now();
        let settle = self.context.config().rollout.settle;
        for Suggested {
            key,
            about,
            suggestion,
        } in suggested
        {
            let mut index = self.index();
            let drawn = index
                .get(&key)
                .map(|entry| (entry.observed.account, entry.observed.wish));
            let retry_at =
                drawn.and_then(|(account, wish)| self.context.ledger.retry_at(account, wish));
            index.suggest(now, &key, about, suggestion, settle, retry_at);
        }
    }

    /// Starts what is due and has a place; says how long nothing else will be due.
    fn dispatch(&mut self, now: UnixTime) -> Duration {
        if self.context.ready.load(Ordering::Relaxed) {
            while let Some((task, key)) = { self.index().pop_due(now) } {
                match task {
                    Task::Renew => {
                        let (failures, expires) = self.priority(&key);
                        self.ready.insert((failures, expires, key));
                    }
                    Task::Roll => self
                        .due
                        .entry(Arc::clone(&key.namespace))
                        .or_default()
                        .push(key),
                }
            }
        }
        let places = self.context.config().renewals.concurrency;
        let places = usize::try_from(places).unwrap_or(usize::MAX);
        while self.renewing < places
            && let Some((_, _, key)) = self.ready.pop_first()
        {
            self.renewing += 1;
            let (context, ticket) = (Arc::clone(&self.context), self.ticket(Task::Renew, key));
            tokio::spawn(async move { renewal::run(&context, ticket).await });
        }
        while self.planning.len() < PLANNERS
            && let Some(namespace) = self
                .due
                .keys()
                .find(|key| !self.planning.contains(*key))
                .cloned()
        {
            let keys = self.due.remove(&namespace).unwrap_or_default();
            let tickets: Vec<Ticket> = keys
                .into_iter()
                .map(|key| self.ticket(Task::Roll, key))
                .collect();
            self.planning.insert(Arc::clone(&namespace));
            let planning = Planning {
                namespace,
                sender: self.sender.clone(),
            };
            let context = Arc::clone(&self.context);
            tokio::spawn(async move { propagation::run(context, planning, tickets).await });
        }
        if !self.context.ready.load(Ordering::Relaxed) {
            // What is overdue already waits for the list, and the list is an event: no need to turn before it comes.
            return BEAT;
        }
        self.index()
            .next_due()
            .map_or(BEAT, |at| at.since(now).min(BEAT))
    }

    fn ticket(&self, task: Task, key: Key) -> Ticket {
        Ticket {
            task,
            key,
            sender: self.sender.clone(),
            sent: false,
        }
    }

    /// Hopeless certificates wait behind those that never failed, and then the nearest expiry goes first.
    fn priority(&self, key: &Key) -> (u32, UnixTime) {
        let index = self.index();
        let Some(entry) = index.get(key) else {
            return (0, UnixTime::NEVER);
        };
        let failures = self.context.ledger.get(entry.observed.account).failures;
        (
            failures,
            entry
                .observed
                .leaf
                .map_or(UnixTime(0), |leaf| leaf.not_after),
        )
    }
}

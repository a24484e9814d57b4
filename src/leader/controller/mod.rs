//! The one loop that owns the index: watch events in, due tasks out.
//!
//! ```text
//! watch event ──► assess ──► index ──due──► the term's tasks ──► finished ──► index
//! ```
//! It waits only for the next event, the next due instant, the end of a task, the lease and the config file; everything
//! that talks to other systems runs in a task of its own. On a standby it only keeps the index.
//!
//! A changed config is applied between two sets of tasks of the same term: running tasks come to a known state and end,
//! all Secrets are listed and judged again, and then the work begins as after a start. The same happens after a jump of
//! the wall clock, and after an etcd restore.

mod watched;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLockWriteGuard};
use std::time::Duration;

use cert_renew_core::config::Config;
use cert_renew_core::index::{Index, Source, Task};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::{BootTime, UnixTime, jump};
use cert_renew_core::verdict::State;
use futures::{FutureExt, StreamExt};
use kube::runtime::watcher;
use tokio::task::unconstrained;
use tokio::time::Instant;

use crate::cluster::events::Reason;
use crate::cluster::secrets::watch::{self, Events};
use crate::leader::handles::Handles;
use crate::leader::sources::{Failed, Sources};
use crate::leader::strays::Strays;
use crate::leader::term::{Heard, Term};
use crate::process::fair::Fair;
use crate::process::task::Done;
use crate::renewal::info::Suggested;

/// Longest time between two turns: timers do not count the time that a machine was suspended, the clock does.
const BEAT: Duration = Duration::from_secs(30);
/// Most reports of tasks that are applied after one event: more than one event can cause, so that they do not add up.
const REPORTS: usize = 64;

/// The faults of a Secret's annotations, each with reason and text.
type Complaints = Vec<(Reason, String)>;

/// The config, and what the controller makes from it.
pub struct Configs {
    /// The config of the file.
    pub wanted: tokio::sync::watch::Receiver<Arc<Config>>,
    /// The config in force; all read it in what they share.
    pub in_force: tokio::sync::watch::Sender<Arc<Config>>,
    /// Opens the watches.
    pub opener: watch::Opener,
}

struct Controller {
    all: Handles,
    /// The number of the lease's term, while we hold the lease.
    lease: Option<u64>,
    /// Set while this replica leads and all Secrets are listed.
    term: Option<Term>,
    /// The state of the watches that the config asks for.
    sources: Sources,
    /// The namespaces that were reported as passed over.
    passed_over: BTreeSet<Option<Arc<str>>>,
    /// Secrets that seem to be meant and are not managed.
    strays: Strays,
    /// What a leader would have reported.
    untold: Fair<(Box<str>, Complaints)>,
}

/// Why the loop has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A shutdown was requested.
    Told,
    /// The task of the watches, the lease or the config file has ended: only a new process can continue.
    Unattended,
}

/// Runs until `shutdown`, or until the task of the watches, the lease or the config file ends. `leads` holds the term
/// as whose leader it acts.
pub async fn run(
    all: Handles,
    mut configs: Configs,
    mut leads: tokio::sync::watch::Receiver<Option<u64>>,
    shutdown: impl Future<Output = ()>,
) -> Ended {
    let mut controller = Controller::new(all);
    leads.mark_changed();
    let mut relist = controller.all.shared.health.relist.subscribe();
    let mut events = controller.listen(&configs);
    let mut clocks = (UnixTime::now(), BootTime::now());
    tokio::pin!(shutdown);
    let mut planned = Instant::now();
    let ended = loop {
        let turn = Instant::now();
        controller.begin(turn);
        let lag = turn.saturating_duration_since(planned);
        controller.all.shared.metrics.loop_lag(lag);
        let now = UnixTime::now();
        controller
            .all
            .shared
            .health
            .heartbeat
            .store(now.0, Ordering::Relaxed);
        let before = std::mem::replace(&mut clocks, (now, BootTime::now()));
        if let Some(seconds) = jump(before, clocks) {
            tracing::warn!(
                seconds,
                "the wall clock has jumped: everything is judged again"
            );
            controller.rest().await;
            controller.all.renewals.info.forget_all();
            controller.all.renewals.issuers.forget_limits(|_| true);
            events = controller.listen(&configs);
        }
        let next = controller.term.as_mut().and_then(|term| term.dispatch(now));
        let wait = next.map_or(BEAT, |at| at.since(now).min(BEAT));
        planned = turn + wait;
        tokio::select! {
            // First whether to act, then the data to act on.
            biased;
            () = &mut shutdown => break Ended::Told,
            changed = leads.changed() => {
                if changed.is_err() {
                    tracing::error!("the lease task stopped unexpectedly; this is a bug");
                    break Ended::Unattended;
                }
                let number = *leads.borrow_and_update();
                controller.on_lease(number).await;
            }
            changed = configs.wanted.changed() => {
                if changed.is_err() {
                    tracing::error!("the task of the config file stopped unexpectedly; this is a bug");
                    break Ended::Unattended;
                }
                controller.take_over(&mut configs).await;
                events = controller.listen(&configs);
            }
            // Its sender lives as long as what all share.
            Ok(()) = relist.changed() => {
                controller.rest().await;
                events = controller.listen(&configs);
            }
            attended = controller.turn(&mut events, wait) => if !attended {
                break Ended::Unattended;
            },
        }
    };
    controller.rest().await;
    controller.all.shared.metrics.leader(false);
    ended
}

async fn heard(term: &mut Option<Term>) -> Heard {
    match term {
        Some(term) => term.heard().await,
        None => std::future::pending().await,
    }
}

impl Controller {
    /// Nothing is known yet, and no watch is open.
    fn new(all: Handles) -> Self {
        Self {
            strays: Strays::new(&all.shared.metrics, &all.shared.strays),
            all,
            lease: None,
            term: None,
            sources: Sources::opened(Vec::new(), Instant::now()),
            passed_over: BTreeSet::new(),
            untold: Fair::of_at_most(watched::MOST_UNTOLD),
        }
    }

    /// Applies the next event, or else the next report of a task, if there is one before `wait` is over; then the reports
    /// that are there already, since an event may always be. False if the watches have ended. May be dropped at any
    /// time.
    async fn turn(&mut self, events: &mut Events, wait: Duration) -> bool {
        tokio::select! {
            biased;
            event = events.next() => match event {
                Some((source, event)) => self.on_event(source, event),
                None => return false,
            },
            heard = heard(&mut self.term) => self.on_heard(heard),
            () = tokio::time::sleep(wait) => {}
        }
        for _ in 0..REPORTS {
            match unconstrained(heard(&mut self.term)).now_or_never() {
                Some(heard) => self.on_heard(heard),
                None => break,
            }
        }
        true
    }

    fn on_heard(&mut self, heard: Heard) {
        match heard {
            Heard::Done(done) => self.on_done(done),
            Heard::Suggested(suggested) => self.on_suggested(suggested),
        }
    }

    fn index(&self) -> RwLockWriteGuard<'_, Index> {
        self.all.shared.write_index()
    }

    fn on_broken(&mut self, source: Source, error: &watcher::Error) {
        let refused = watch::is_refusal(error);
        let failed = self.sources.failed(source, refused, Instant::now());
        let error = error_chain(error);
        match failed {
            Failed::Broke => {
                self.all.shared.metrics.watch_restarted();
                tracing::warn!(error, "the watch on Secrets is interrupted");
            }
            Failed::Refused => {
                self.all.shared.metrics.watch_restarted();
                let namespace = self.sources.namespace(source);
                tracing::warn!(
                    namespace = namespace.as_deref().unwrap_or("(all)"),
                    error,
                    "cannot list or watch Secrets in this namespace: it is skipped until that works"
                );
            }
            Failed::Again => tracing::debug!(error, "the watch on Secrets is still interrupted"),
        }
        self.show_sources();
    }

    /// Begins the work once everything that can be listed is listed; reports the state of the watches.
    fn begin(&mut self, now: Instant) {
        self.strays.expire(UnixTime::now());
        self.tell_strays();
        self.sources.settle(now);
        if self.sources.begins(now) {
            self.on_listed();
        }
        self.show_sources();
    }

    fn show_sources(&mut self) {
        self.all.shared.metrics.watch_up(self.sources.are_up());
        let passed_over = self.sources.passed_over();
        if passed_over == self.passed_over {
            return;
        }
        self.all.shared.metrics.passed_over(&passed_over);
        let before = std::mem::replace(&mut self.passed_over, passed_over);
        let again: BTreeSet<_> = before.difference(&self.passed_over).cloned().collect();
        for namespace in &again {
            tracing::info!(
                namespace = namespace.as_deref().unwrap_or("(all)"),
                "Secrets are listed and watched there again"
            );
        }
        // Their orders were left alone while the Secrets that they are for could not be seen.
        let sources = &self.sources;
        let seen = |namespace: &str| {
            let is_it = |it: &Option<Arc<str>>| it.as_deref().is_none_or(|it| it == namespace);
            again.iter().any(is_it) && !sources.is_blind(namespace)
        };
        if let Some(term) = &mut self.term {
            term.take_up_orders(UnixTime::now(), seen);
        }
    }

    fn on_source_listed(&mut self, source: Source) {
        self.strays.finish(source);
        let gone = self.index().finish(source);
        for key in gone {
            self.forget(&key);
            tracing::info!(secret = %key, "gone since the last list");
        }
        if self.sources.listed(source) {
            self.drop_unnamed();
        }
    }

    /// Applies that the lease was won or lost. Nothing of the former term is left when this returns.
    async fn on_lease(&mut self, number: Option<u64>) {
        if let Some(term) = self.term.take_if(|term| Some(term.number()) != number) {
            term.end().await;
        }
        if number != self.lease {
            self.lease = number;
            self.all.shared.metrics.leader(false);
            if number.is_some() {
                self.all.shared.metrics.term_began();
            }
        }
        self.open_term();
    }

    /// Begins a term if this replica leads and has seen all Secrets.
    fn open_term(&mut self) {
        if let (None, Some(number)) = (&self.term, self.lease)
            && self.sources.begun()
        {
            self.term = Some(Term::open(&self.all, number));
        }
    }

    /// Ends all running tasks, as when the lease is handed over; the lease stays.
    async fn rest(&mut self) {
        if let Some(term) = self.term.take() {
            term.hand_over().await;
        }
    }

    /// Applies a changed config: it is in force when this returns, and nothing runs that began under the former one.
    async fn take_over(&mut self, configs: &mut Configs) {
        self.rest().await;
        let before = self.all.shared.config();
        let config = Arc::clone(&configs.wanted.borrow_and_update());
        let directory = |config: &Config, name: &str| Some(config.issuer(name)?.directory.clone());
        let moved = |name: &str| directory(&before, name) != directory(&config, name);
        self.all.renewals.issuers.forget_limits(moved);
        self.all.rollouts.apply(&config.rollout);
        self.all.shared.metrics.paused(config.paused);
        configs.in_force.send_replace(config);
        self.all.shared.metrics.config_taken_over(UnixTime::now());
        tracing::info!("a changed config is in force: all Secrets are listed again");
    }

    /// Opens the watches that the config asks for, in place of the former ones. Nothing is done before they have listed
    /// all Secrets that can be listed.
    fn listen(&mut self, configs: &Configs) -> Events {
        self.strays.invalidate_all();
        self.index().invalidate_all();
        let watch::Secrets { scopes, events } =
            configs.opener.open(&self.all.shared.config().watch);
        self.sources = Sources::opened(scopes, Instant::now());
        events
    }

    /// Drops Secrets that no watch covers any more. Known Secrets of namespaces that cannot be listed are kept.
    fn drop_unnamed(&mut self) {
        let gone = {
            let sources = &self.sources;
            self.all
                .shared
                .write_index()
                .drop_unnamed(|namespace| sources.is_blind(namespace))
        };
        for key in gone {
            self.forget(&key);
            tracing::info!(secret = %key, "not among those that the config has watched any more");
        }
    }

    fn on_listed(&mut self) {
        self.strays.finish_all();
        self.drop_unnamed();
        let count = self.index().len();
        tracing::info!(secrets = count, "all Secrets are listed");
        self.all.shared.health.ready.store(true, Ordering::Relaxed);
        self.all.shared.health.first_list.notify_one();
        self.open_term();
    }

    /// Begins to work: the ledger and order records of former leaders have been read.
    fn on_opened(&mut self) {
        self.tell_strays();
        for ((namespace, name), (uid, complaints)) in self.untold.take() {
            let key = SecretRef::new(namespace, name);
            self.tell(&key, &uid, &complaints);
        }
        let sources = &self.sources;
        if let Some(term) = &mut self.term {
            term.work(UnixTime::now(), |namespace| sources.is_blind(namespace));
            self.all.shared.metrics.leader(true);
        }
    }

    /// Abandons the order of a Secret, if it has one, because it is no longer wanted. A standby leaves that to the
    /// leader.
    fn abandon(&mut self, key: &SecretRef) {
        if let Some(term) = &mut self.term {
            term.abandon(key);
        }
    }

    /// Notifies the rollout of a Secret that it holds another certificate.
    fn changed(&self, key: &SecretRef) {
        if let Some(term) = &self.term {
            term.changed(key);
        }
    }

    fn tell(&self, key: &SecretRef, uid: &str, complaints: &Complaints) {
        for (reason, problem) in complaints {
            tracing::warn!(secret = %key, problem, "invalid annotation");
            self.all.shared.events.secret(key, uid, *reason, problem);
        }
    }

    fn on_done(&mut self, done: Done) {
        if let Some(term) = &mut self.term {
            term.on_done(&done);
        }
        match done {
            Done::Opened => self.on_opened(),
            Done::Planned(_) | Done::Gathered(_) => {}
            Done::LookedUp(key, found) => self.index().found_problems(&key, &found),
            Done::Judged(key, fault) => self.noting(&key, |index| index.judged(&key, fault)),
            Done::Task(task, key, finished) => {
                let now = UnixTime::now();
                let settle = self.all.shared.config().rollout.settle;
                if task == Task::Renew {
                    let open = self.all.renewals.running_orders.contains(&key);
                    if !self.index().order_open(now, &key, open) {
                        self.abandon(&key);
                    }
                }
                let entry = self.index().get(&key);
                let retry_at =
                    entry.and_then(|entry| self.all.renewals.retry_at(now, &entry.observed));
                let ended = (task, &key);
                self.noting(&key, |index| {
                    index.finished(now, ended, finished, settle, retry_at);
                });
                let entry = self.index().get(&key);
                if let Some(entry) = entry {
                    self.all.declared.state(&key, State::of(&entry, now));
                }
            }
        }
    }

    /// Applies a change to the index. If the Secret's errors are others by it, so may be its line.
    fn noting(&self, key: &SecretRef, change: impl FnOnce(&mut Index)) {
        let errors = |index: &Index| {
            let entry = index.get(key)?;
            Some((entry.renewal_error, entry.rollout_error))
        };
        let mut index = self.index();
        let before = errors(&index);
        change(&mut index);
        let is_news = before != errors(&index);
        drop(index);
        if is_news {
            self.all.notes.add(key);
        }
    }

    /// Applies the results of asking CAs about certificates.
    fn on_suggested(&self, suggested: Vec<Suggested>) {
        let now = UnixTime::now();
        let settle = self.all.shared.config().rollout.settle;
        for Suggested {
            key,
            about,
            suggestion,
        } in suggested
        {
            let mut index = self.index();
            let entry = index.get(&key);
            let retry_at = entry.and_then(|entry| self.all.renewals.retry_at(now, &entry.observed));
            index.suggest(now, &key, about, suggestion, settle, retry_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use cert_renew_core::index::Finished;
    use cert_renew_core::schedule::due::{AT_ONCE, Due, Reason};
    use cert_renew_core::secret::object::thin::ThinSecret;
    use cert_renew_core::testing::entries::healthy;
    use futures::stream;
    use tokio::sync::watch as channel;
    use tokio::time::timeout;

    use super::*;
    use crate::context::tests::without_an_answer;

    /// The loop's result when `drop` has dropped the sender of the lease or of the config file.
    async fn ended(
        drop: impl FnOnce(channel::Sender<Option<u64>>, channel::Sender<Arc<Config>>),
    ) -> Ended {
        let (shared, in_force) = without_an_answer();
        let all = Handles::new(shared);
        let (want, wanted) = channel::channel(all.shared.config());
        let (leads, term) = channel::channel(None);
        let opener = watch::Opener::new(&all.shared.client, Duration::from_secs(300));
        let configs = Configs {
            wanted,
            in_force,
            opener,
        };
        drop(leads, want);
        let run = run(all, configs, term, pending());
        timeout(Duration::from_secs(60), run).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_process_ends_when_nobody_looks_after_the_lease_or_the_config_file() {
        let (mut kept_lease, mut kept_config) = (None, None);
        let of_lease = ended(|_, want| kept_config = Some(want)).await;
        let of_config = ended(|leads, _| kept_lease = Some(leads)).await;
        assert_eq!(of_lease, Ended::Unattended);
        assert_eq!(of_config, Ended::Unattended);
        assert!(kept_lease.is_some() && kept_config.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_full_of_faults_leaves_those_of_others_to_be_told() {
        let (shared, _in_force) = without_an_answer();
        let mut controller = Controller::new(Handles::new(shared));
        let faulty = |namespace: &str, name: &str| -> ThinSecret {
            serde_json::from_value(serde_json::json!({
                "metadata": {"namespace": namespace, "name": name, "uid": name, "resourceVersion": "1",
                    "annotations": {"cert-renew.io/issuer": "le", "cert-renew.io/renew-before": "soon"}},
                "type": "kubernetes.io/tls",
            }))
            .unwrap()
        };
        let mut see = |secret| controller.on_event(Source(0), Ok(watcher::Event::Apply(secret)));
        for number in 0..=watched::MOST_UNTOLD {
            see(faulty("loud", &format!("tls-{number}")));
        }
        see(faulty("shop", "tls"));
        let untold = &controller.untold;
        assert_eq!(untold.len(), watched::MOST_UNTOLD);
        let (uid, complaints) = untold.of(("shop", "tls")).next().unwrap();
        assert_eq!(&**uid, "tls");
        assert!(!complaints.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_ended_is_applied_although_an_event_is_always_ready() {
        let (shared, _in_force) = without_an_answer();
        let mut controller = Controller::new(Handles::new(shared));
        let term = Term::open(&controller.all, 1);
        let now = UnixTime::now();
        for number in 0..4 * REPORTS {
            let mut observed = healthy();
            observed.renewal = Ok(Due {
                at: AT_ONCE,
                reason: Reason::NoCertificate,
            });
            let key = SecretRef::new("shop", number.to_string());
            let mut index = controller.index();
            index.apply(now, &key, observed, Source(0), Duration::ZERO, None);
            assert_eq!(index.pop_due(now), Some((Task::Renew, key.clone())));
            drop(index);
            let later = Finished::Later(now + BEAT, None);
            term.report(Done::Task(Task::Renew, key, later));
        }
        controller.term = Some(term);
        let event = || (Source(0), Ok(watcher::Event::Init));
        let mut events: Events = stream::repeat_with(event).boxed();
        for _ in 0..4 {
            assert!(controller.turn(&mut events, BEAT).await);
        }
        let index = controller.index();
        let running = index.iter().filter(|(_, entry)| entry.renewing.is_some());
        assert_eq!(running.count(), 0);
    }
}

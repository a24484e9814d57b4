//! One term as the leader: begins what is due, and ends with all that it has begun.
//!
//! ```text
//! lease ──► opens: ledger and order records are read ──► works: due ──► renewal or rollout task ──► done ──► index
//! ```
//! A term keeps no state except the index: the next term, here or elsewhere, starts from what the API server says. Its
//! tasks live in one set; none of them outlives it.

mod places;
mod plans;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLockWriteGuard};
use std::time::Duration;

use cert_renew_core::index::{Finished, Index, Observed, Task};
use cert_renew_core::schedule::quota;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use places::Places;
use plans::{GATHER, Next, Plans};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::leader::handles::Handles;
use crate::leader::{notes, pairs};
use crate::process::supervise::supervised;
use crate::process::task::{Done, Planning, TaskHandle};
use crate::renewal::Renewals;
use crate::renewal::info::Suggested;
use crate::telemetry::metrics::{Metrics, Part};

/// Delay until the ledger or order records are read again after a failure; nothing is done without them.
const AGAIN: Duration = Duration::from_secs(2);
/// Longest wait of a handover for running steps, and again for running requests: a CA takes a second or two to make an
/// order, and an order that is not recorded is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// One term as the leader, with its tasks and what waits for them.
pub struct Term {
    all: Handles,
    number: u64,
    tasks: JoinSet<()>,
    sender: mpsc::UnboundedSender<Done>,
    done: mpsc::UnboundedReceiver<Done>,
    suggest: mpsc::UnboundedSender<Vec<Suggested>>,
    suggested: mpsc::UnboundedReceiver<Vec<Suggested>>,
    works: bool,
    /// Due renewals that wait for a place, and those that have one.
    renewals: Places,
    /// Due rollouts.
    plans: Plans,
    /// Running tasks. Each is notified when its Secret is gone, a rollout also of another certificate.
    running: HashMap<(Task, SecretRef), watch::Sender<()>>,
}

/// A report of a term's tasks.
#[derive(Debug)]
pub enum Heard {
    /// A task has ended, or reached this point.
    Done(Done),
    /// Results of asking CAs about certificates.
    Suggested(Vec<Suggested>),
}

impl Term {
    /// Opens the write gate for the term's tasks and reads what former leaders left; then reports [`Done::Opened`].
    #[must_use]
    pub fn open(all: &Handles, number: u64) -> Self {
        let (sender, done) = mpsc::unbounded_channel();
        let (suggest, suggested) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        all.shared.gate.adopt(number);
        let begin = {
            let (renewals, sender) = (Arc::clone(&all.renewals), sender.clone());
            let metrics = Arc::clone(&all.shared.metrics);
            move || read(Arc::clone(&renewals), Arc::clone(&metrics), sender.clone())
        };
        tasks.spawn(supervised(
            Part::Takeover,
            Arc::clone(&all.shared.metrics),
            begin,
        ));
        Self {
            all: all.clone(),
            number,
            tasks,
            sender,
            done,
            suggest,
            suggested,
            works: false,
            renewals: Places::default(),
            plans: Plans::default(),
            running: HashMap::new(),
        }
    }

    /// The number of the term in this process.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Waits for the next report of its tasks. May be dropped at any time.
    pub async fn heard(&mut self) -> Heard {
        loop {
            tokio::select! {
                Some(done) = self.done.recv() => return Heard::Done(done),
                Some(suggested) = self.suggested.recv() => return Heard::Suggested(suggested),
                // The task handle reports that the task is over.
                Some(ended) = self.tasks.join_next() => if ended.is_err_and(|error| error.is_panic()) {
                    self.all.shared.metrics.task_panicked(Part::Secret);
                }
            }
        }
    }

    /// Begins to work on what the index says is due now. Orders that a former leader left come first, except those of
    /// namespaces whose Secrets cannot be seen according to `blind`.
    pub fn work(&mut self, now: UnixTime, blind: impl Fn(&str) -> bool) {
        self.works = true;
        let settle = self.all.shared.config().rollout.settle;
        let renewals = &self.all.renewals;
        self.index().restart(now, settle, |observed: &Observed| {
            renewals.retry_at(now, observed)
        });
        self.take_up_orders(now, |namespace| !blind(namespace));
        self.recall_orders();
        let all = self.all.clone();
        let sender = self.sender.clone();
        self.supervise(Part::Pairs, move || {
            let (all, sender) = (all.clone(), sender.clone());
            async move { pairs::follow(&all, &sender).await }
        });
        let all = self.all.clone();
        let sender = self.sender.clone();
        self.supervise(Part::Notes, move || {
            let (all, sender) = (all.clone(), sender.clone());
            async move { notes::follow(&all, &sender).await }
        });
        let renewals = Arc::clone(&self.all.renewals);
        self.supervise(Part::Sweep, move || {
            let renewals = Arc::clone(&renewals);
            async move { renewals.sweep().await }
        });
        let (renewals, suggest) = (Arc::clone(&self.all.renewals), self.suggest.clone());
        self.supervise(Part::RenewalInfo, move || {
            let (renewals, suggest) = (Arc::clone(&renewals), suggest.clone());
            async move { renewals.poll_info(suggest).await }
        });
        let declared = Arc::clone(&self.all.declared);
        self.supervise(Part::DeclaredSecrets, move || {
            let declared = Arc::clone(&declared);
            async move { declared.keep().await }
        });
        let rollouts = Arc::clone(&self.all.rollouts);
        self.supervise(Part::Records, move || {
            let rollouts = Arc::clone(&rollouts);
            async move { rollouts.look_at_records().await }
        });
    }

    /// Starts a task that ends with the term, and is begun again after a panic.
    fn supervise<F>(&mut self, part: Part, begin: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let metrics = Arc::clone(&self.all.shared.metrics);
        self.tasks.spawn(supervised(part, metrics, begin));
    }

    /// Resumes the orders that a former leader left in namespaces whose Secrets have all been `seen`, and gives up
    /// those whose Secrets are gone.
    pub fn take_up_orders(&mut self, now: UnixTime, seen: impl Fn(&str) -> bool) {
        if !self.works {
            return;
        }
        let subjects = self.all.renewals.running_orders.subjects().into_iter();
        for key in subjects.filter(|key| seen(&key.namespace)) {
            let entry = self.index().get(&key);
            match entry {
                Some(entry) if entry.order_open || entry.renewing.is_some() => {}
                Some(_) => _ = self.index().order_open(now, &key, true),
                None => self.abandon(&key),
            }
        }
    }

    /// Counts what was ordered before this term, by the present certificates; copies count once.
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
        // A Secret may name any issuer; only those of the config have metrics and a quota.
        let config = self.all.shared.config();
        issued.retain(|issuer, _| config.issuer(issuer).is_some());
        for (issuer, issued) in issued {
            self.all.renewals.issuers.recall_orders(&issuer, issued);
        }
    }

    /// Abandons the order of a Secret, if it has one, because it is no longer wanted.
    pub fn abandon(&mut self, key: &SecretRef) {
        self.all.renewals.forget(key);
        if self.works && self.all.renewals.running_orders.contains(key) {
            let (renewals, key) = (Arc::clone(&self.all.renewals), key.clone());
            self.tasks
                .spawn(async move { renewals.of(&key).abandon().await });
        }
    }

    /// Applies the end of a task; the caller updates the index.
    pub fn on_done(&mut self, done: &Done) {
        match done {
            Done::Planned(namespace) => self.plans.planned(namespace),
            Done::Gathered(namespace) => self.plans.gathered(namespace),
            Done::Task(task, key, _) => {
                self.running.remove(&(*task, key.clone()));
                if *task == Task::Renew {
                    self.renewals.free(key);
                    self.all.renewals.issuers.expect_no_order(key);
                }
            }
            Done::Opened | Done::Judged(..) | Done::LookedUp(..) => {}
        }
    }

    /// Starts what is due and has a place; returns when something else is due.
    pub fn dispatch(&mut self, now: UnixTime) -> Option<UnixTime> {
        if !self.works {
            return None;
        }
        while let Some((task, key)) = { self.index().pop_due(now) } {
            match task {
                Task::Renew => {
                    let priority = self.priority(&key);
                    let issuer = self.issuer(&key);
                    let config = self.all.shared.config();
                    // Anybody who may edit a Secret can name an issuer: only those of the config have a slot.
                    if let Some(issuer) = issuer.as_ref().filter(|it| config.issuer(it).is_some()) {
                        self.all.renewals.issuers.expect_order(issuer, &key);
                    }
                    self.renewals
                        .wait(priority, key, issuer.unwrap_or_default());
                }
                Task::Roll => self.plans.add(key),
            }
        }
        let places = self.all.shared.config().renewals.concurrency;
        let places = usize::try_from(places).unwrap_or(usize::MAX);
        while let Some(key) = self.renewals.next(places) {
            let renewals = Arc::clone(&self.all.renewals);
            let ticket = self.ticket(Task::Renew, key);
            self.tasks.spawn(async move { renewals.run(ticket).await });
        }
        self.plan();
        self.index().next_due()
    }

    /// Starts the plans of namespaces that have waited long enough for others, in turn, as far as there are places.
    fn plan(&mut self) {
        while let Some(next) = self.plans.next(Instant::now()) {
            let sender = self.sender.clone();
            match next {
                Next::Gather(namespace) => {
                    self.tasks.spawn(async move {
                        tokio::time::sleep(GATHER).await;
                        // The receiver is dropped only with the term.
                        let _ = sender.send(Done::Gathered(namespace));
                    });
                }
                Next::Plan(namespace, keys) => {
                    let tickets: Vec<TaskHandle> = keys
                        .into_iter()
                        .map(|key| self.ticket(Task::Roll, key))
                        .collect();
                    let planning = Planning::new(namespace, sender);
                    let rollouts = Arc::clone(&self.all.rollouts);
                    self.tasks
                        .spawn(async move { rollouts.run(planning, tickets).await });
                }
            }
        }
    }

    /// Ends the term after the lease was lost: nothing more can be sent anyway.
    pub async fn end(mut self) {
        self.all.shared.gate.leave();
        self.tasks.shutdown().await;
    }

    /// Ends the term while we still hold the lease: running tasks come to a known state first.
    pub async fn hand_over(self) {
        self.all.shared.gate.park(PATIENCE).await;
        self.end().await;
    }

    fn index(&self) -> RwLockWriteGuard<'_, Index> {
        self.all.shared.write_index()
    }

    fn ticket(&mut self, task: Task, key: SecretRef) -> TaskHandle {
        let (sender, changed) = watch::channel(());
        self.running.insert((task, key.clone()), sender);
        TaskHandle::new(task, key, self.sender.clone(), changed)
    }

    /// Notifies the tasks of a Secret that it holds another certificate.
    pub fn changed(&self, key: &SecretRef) {
        self.tell(Task::Roll, key);
    }

    /// Notifies the tasks of a Secret that it is gone or no longer annotated. A task that has not begun is over.
    pub fn gone(&mut self, key: &SecretRef) {
        self.tell(Task::Renew, key);
        self.tell(Task::Roll, key);
        if self.renewals.leave(key) {
            self.over(Task::Renew, key);
        }
        if self.plans.leave(key) {
            self.over(Task::Roll, key);
        }
    }

    /// Reports the end of a task that has not begun. A new Secret of the name waits for the report.
    fn over(&self, task: Task, key: &SecretRef) {
        let over = Finished::Later(UnixTime::now(), None);
        // We hold the receiver.
        let _ = self.sender.send(Done::Task(task, key.clone(), over));
    }

    fn tell(&self, task: Task, key: &SecretRef) {
        if let Some(running) = self.running.get(&(task, key.clone())) {
            running.send_replace(());
        }
    }

    /// The issuer of a Secret's order.
    fn issuer(&self, key: &SecretRef) -> Option<Arc<str>> {
        Some(self.index().get(key)?.observed.issuer)
    }

    /// Certificates that failed before come after those that never did; among equals the nearest expiry goes first.
    fn priority(&self, key: &SecretRef) -> (u32, UnixTime) {
        let index = self.index();
        let Some(entry) = index.get(key) else {
            return (0, UnixTime::NEVER);
        };
        let failures = self.all.renewals.failures(&entry.observed);
        (
            failures,
            entry
                .observed
                .leaf
                .map_or(UnixTime(0), |leaf| leaf.not_after),
        )
    }
}

/// Reads what former leaders left. A leader that cannot read it does not count as one.
async fn read(renewals: Arc<Renewals>, metrics: Arc<Metrics>, sender: mpsc::UnboundedSender<Done>) {
    renewals.issuers.forget_accounts().await;
    renewals.secret_failures.forget_all();
    renewals.issuers.expect_no_orders();
    renewals.followers.forget_all();
    let mut told = false;
    loop {
        match renewals.reload().await {
            Ok(()) => break,
            Err(error) => {
                if !told {
                    metrics.leader(false);
                    let error = error_chain(&error);
                    tracing::warn!(
                        error,
                        "nothing is renewed or restarted before this can be read"
                    );
                }
                told = true;
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
    // The receiver is dropped only with the term.
    let _ = sender.send(Done::Opened);
}

#[cfg(test)]
mod tests {
    use cert_renew_core::config::Config;
    use cert_renew_core::index::Source;
    use cert_renew_core::schedule::due::{AT_ONCE, Due, Reason};
    use cert_renew_core::testing::entries::{NOW, healthy};

    use super::*;
    use crate::context::tests::without_an_answer;

    impl Term {
        /// Reports this as a task would.
        pub fn report(&self, done: Done) {
            self.sender.send(done).unwrap();
        }

        /// Adds a Secret for which a task is due.
        fn create(&self, task: Task, number: u32) -> SecretRef {
            let mut observed = healthy();
            match task {
                Task::Renew => {
                    observed.renewal = Ok(Due {
                        at: AT_ONCE,
                        reason: Reason::NoCertificate,
                    });
                }
                Task::Roll => observed.rolled_out = None,
            }
            let mut index = self.index();
            let key = index.key("hostile", &format!("{task:?}-{number}"));
            index.apply(NOW, &key, observed, Source(0), Duration::ZERO, None);
            key
        }

        fn delete(&mut self, key: &SecretRef) {
            self.gone(key);
            self.index().remove(key);
        }

        /// Applies what was reported, as the controller does.
        fn apply_reports(&mut self) {
            while let Ok(done) = self.done.try_recv() {
                self.on_done(&done);
                if let Done::Task(task, key, finished) = done {
                    let ended = (task, &key);
                    let mut index = self.index();
                    index.finished(NOW, ended, finished, Duration::ZERO, None);
                }
            }
        }
    }

    /// A term whose tasks wait for an API server that never answers.
    fn working() -> (Term, watch::Sender<Arc<Config>>) {
        let (shared, in_force) = without_an_answer();
        let mut term = Term::open(&Handles::new(shared), 1);
        term.works = true;
        (term, in_force)
    }

    #[tokio::test]
    async fn secrets_that_are_deleted_while_they_wait_leave_nothing_behind() {
        const MANY: u32 = 10_000;
        let (mut term, _in_force) = working();
        let all = |number| [(Task::Renew, number), (Task::Roll, number)];
        for (task, number) in (0..MANY).flat_map(all) {
            let key = term.create(task, number);
            term.dispatch(NOW);
            term.delete(&key);
            term.apply_reports();
        }
        let turns_of_namespaces = term.plans.len().1;
        assert_eq!((term.renewals.len(), term.plans.len().0), (0, 0));
        assert!(turns_of_namespaces <= 1, "{turns_of_namespaces}");
        // A Secret that comes back is due at once, and once, unless its first task still runs.
        for (task, number) in (0..MANY).flat_map(all) {
            term.create(task, number);
        }
        term.dispatch(NOW);
        term.dispatch(NOW);
        let many = usize::try_from(MANY).unwrap();
        let waiting = term.renewals.len() + term.plans.len().0;
        assert_eq!(waiting, 2 * many - term.running.len());
    }

    #[tokio::test]
    async fn a_secret_that_is_back_before_its_end_is_heard_waits_for_that_and_is_due_once() {
        let (mut term, _in_force) = working();
        for number in 0..100 {
            term.create(Task::Renew, number);
        }
        term.dispatch(NOW);
        let (held, waiting) = (term.running.len(), term.renewals.len());
        assert!(held > 0 && waiting > 0 && held + waiting == 100);
        let key = (0..100).map(|number| SecretRef::new("hostile", format!("Renew-{number}")));
        let mut waits = key.filter(|key| !term.running.contains_key(&(Task::Renew, key.clone())));
        let key = waits.next().unwrap();
        let number = key.name.trim_start_matches("Renew-").parse().unwrap();
        for _ in 0..3 {
            term.delete(&key);
            term.create(Task::Renew, number);
            term.dispatch(NOW);
            assert_eq!(term.renewals.len(), waiting - 1, "its end is not heard yet");
        }
        term.apply_reports();
        term.dispatch(NOW);
        assert_eq!(term.renewals.len(), waiting);
    }
}

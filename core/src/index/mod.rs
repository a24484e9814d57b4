//! All annotated Secrets, and the queue of what falls due.
//!
//! ```text
//! watch ──► Observed ──apply──► Entry ──► queue of (instant, task, key) ──due──► controller
//! ```
//! Pure and synchronous; owned by one task. Its only source is the watch: a finished task only releases its entry, and
//! its writes are seen when the watch sends them back. It holds no certificate and no key,
//! about 160 bytes a Secret with its name.
//!
//! A relist is tracked by generation: [`Index::begin`] opens one, [`Index::finish`] drops what it did not name.

mod entry;
mod gone;
mod problems;
mod queue;
mod room;
mod shown;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::certificate::Fingerprint;
use crate::schedule::due::Suggestion;
use crate::schedule::rate_limits::AccountId;
use crate::secret::SecretRef;
use crate::secret::object::compact::{Uid, Version};
use crate::secret::state::RolledOut;
use crate::time::UnixTime;
use entry::shortened;
pub use entry::{Entry, LeafFacts, NoLeaf, Observed, Stuck, Task, kept};
use gone::Gone;
use problems::Problems;
use queue::Queue;
pub use shown::Shown;
use table::{Id, Table};

/// Longest wait for the watch event of a write. The watch is alive, or would have been restarted.
const ECHO_PATIENCE: Duration = Duration::from_secs(60);

/// The watch that sends a Secret: relists are tracked for each. No Secret comes by two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(pub u16);

impl Source {
    /// Not named by any watch since the watches restarted.
    const NONE: Self = Self(u16::MAX);
}

/// Number of a Secret, valid until the index changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row(Id);

/// What [`Index::apply`] changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The Secret was not known.
    New,
    /// Another version of a known Secret.
    Changed,
    /// The known version.
    Same,
}

/// How a task ended, as far as the index is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// Something was written; the watch will show what.
    Wrote,
    /// Nothing was written; look again at this instant.
    Later(UnixTime, Option<Box<str>>),
    /// Nothing was written; the change window is shut until this instant.
    Shut(UnixTime),
    /// Nothing was written, and only a person can end the reason; look again at this instant.
    Stuck(UnixTime, Stuck, Box<str>),
    /// This many pods serve an earlier leaf; the text describes them. Look again at this instant.
    Stale(UnixTime, usize, Box<str>),
    /// This many workloads lack the leaf; the text describes them. Look again at this instant.
    Incomplete(UnixTime, usize, Box<str>),
}

/// All annotated Secrets, and the queue of their tasks.
#[derive(Debug, Default)]
pub struct Index {
    table: Table,
    queue: Queue,
    generations: Vec<u16>,
    /// What the workloads of deleted Secrets have.
    gone: Gone,
    /// Tasks that still ran when their Secret was deleted: a new Secret of that name waits for their end, and ignores
    /// their result.
    left: HashSet<(Task, SecretRef)>,
    /// Kept apart from the entries: for people only, and not of all Secrets.
    named: shown::Named,
    /// The accounts in `named`, each once: a CA has one.
    accounts: Vec<Arc<str>>,
    /// The chains in `named`, each once: most certificates have one of few.
    chains: Vec<shown::Chain>,
    /// The problems of Secrets that have some, also for people only.
    problems: Problems,
}

/// The start version of a task whose object is gone: no object has it.
fn of_a_former_object() -> Version {
    Version::from("")
}

impl Index {
    /// Number of annotated Secrets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are no annotated Secrets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// One Secret.
    #[must_use]
    pub fn get(&self, key: &SecretRef) -> Option<Entry> {
        self.table.get(self.table.find(key)?)
    }

    /// All Secrets, in no order. An entry is unpacked on demand and takes more memory: keep the row, not the entry.
    pub fn iter(&self) -> impl Iterator<Item = (Row, Entry)> {
        let all = self.table.ids(|_| true);
        all.filter_map(|id| Some((Row(id), self.table.get(id)?)))
    }

    /// The Secret of a row of [`Index::iter`].
    #[must_use]
    pub fn row(&self, row: Row) -> Option<(SecretRef, Entry)> {
        Some((self.table.key(row.0)?, self.table.get(row.0)?))
    }

    /// The row of a Secret.
    #[must_use]
    pub fn row_of(&self, key: &SecretRef) -> Option<Row> {
        self.table.find(key).map(Row)
    }

    /// Namespace and name of a row of [`Index::iter`].
    #[must_use]
    pub fn key_of(&self, row: Row) -> Option<SecretRef> {
        self.table.key(row.0)
    }

    /// The namespace of a row's Secret.
    #[must_use]
    pub fn namespace_of(&self, row: Row) -> Option<Arc<str>> {
        self.table.namespace(row.0)
    }

    /// The Secrets that are counted on one account of the ledger, in no order.
    pub fn drawing_on(&self, account: AccountId) -> impl Iterator<Item = (SecretRef, Entry)> {
        let drawing = self.table.ids(move |short| short.account == account);
        drawing.filter_map(|id| self.row(Row(id)))
    }

    /// Number of tasks that wait for their instant.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The key of a Secret, sharing the namespace's one allocation.
    pub fn key(&mut self, namespace: &str, name: &str) -> SecretRef {
        SecretRef::new(self.table.intern(namespace), name)
    }

    /// A relist of `source` begins.
    pub fn begin(&mut self, source: Source) {
        let slot = usize::from(source.0);
        if self.generations.len() <= slot {
            self.generations.resize(slot + 1, 0);
        }
        // Only compared with the present generation, so reused numbers are harmless.
        self.generations[slot] = self.generations[slot].wrapping_add(1);
    }

    /// A relist of `source` is complete; drops what it did not name.
    pub fn finish(&mut self, source: Source) -> Vec<SecretRef> {
        let generation = self.generation(source);
        let unnamed = self
            .table
            .ids(|short| short.listed.0 == source && short.listed.1 != generation);
        let gone = unnamed.collect();
        self.remove_all(gone)
    }

    /// The watches restart with different RBAC or selectors: every Secret is read again, even in a known version. Once
    /// all are listed, [`Index::drop_unnamed`] drops those that no watch sends any more.
    pub fn invalidate_all(&mut self) {
        self.table.invalidate_all();
        self.named = shown::Named::default();
        self.accounts.clear();
        self.chains.clear();
        self.problems = Problems::default();
    }

    /// Drops what no watch has named since [`Index::invalidate_all`], except in namespaces that `blind` says are not completely
    /// listed.
    pub fn drop_unnamed(&mut self, blind: impl Fn(&str) -> bool) -> Vec<SecretRef> {
        let unnamed = self.table.ids(|short| short.listed.0 == Source::NONE);
        let seen = |id: &Id| {
            let key = self.table.key(*id);
            key.is_some_and(|key| !blind(&key.namespace))
        };
        let gone = unnamed.filter(seen).collect();
        self.remove_all(gone)
    }

    /// Whether a watch event is about an earlier object than the known one.
    ///
    /// An object replaced by one of another type comes by another watch, and the two watches may report in any order.
    #[must_use]
    pub fn is_former(&self, key: &SecretRef, uid: &str, version: &str, source: Source) -> bool {
        let Some(entry) = self.get(key) else {
            return false;
        };
        let known = &entry.observed;
        let by_another = entry.source != source && entry.source != Source::NONE;
        by_another
            && known.uid != Uid::from(uid)
            && Version::from(version).is_before(&known.resource_version)
    }

    /// Whether a deletion is of the known object, and not of another one of the same name.
    #[must_use]
    pub fn is_of(&self, key: &SecretRef, uid: &str) -> bool {
        self.get(key)
            .is_some_and(|entry| entry.observed.uid == Uid::from(uid))
    }

    fn remove_all(&mut self, ids: Vec<Id>) -> Vec<SecretRef> {
        let gone = ids.into_iter().filter_map(|id| self.table.key(id));
        let gone: Vec<SecretRef> = gone.collect();
        for key in &gone {
            self.remove(key);
        }
        gone
    }

    /// Marks a known version as listed, without reading it; false if it has to be read.
    pub fn touch(&mut self, key: &SecretRef, resource_version: &str, source: Source) -> bool {
        let listed = (source, self.generation(source));
        let version = Version::from(resource_version);
        self.table.touch(key, &version, listed)
    }

    /// Stores the watch's version of an annotated Secret.
    pub fn apply(
        &mut self,
        now: UnixTime,
        key: &SecretRef,
        mut observed: Observed,
        source: Source,
        settle: Duration,
        retry_at: Option<UnixTime>,
    ) -> Change {
        let generation = self.generation(source);
        let known = self.table.find(key);
        let previous = known.and_then(|id| self.table.get(id));
        let change = match &previous {
            None => Change::New,
            Some(old) if old.observed.resource_version == observed.resource_version => Change::Same,
            Some(_) => Change::Changed,
        };
        if let (Some(id), Some(old)) = (known, &previous) {
            self.unqueue(id, old);
        }
        let gone = self.gone.take(key);
        if { previous.as_ref() }.is_some_and(|old| old.is_doubted_by(&observed)) {
            observed.rolled_out = None;
        }
        let remembered = match (observed.rolled_out, &previous) {
            (Some(_), _) => None,
            (None, Some(old)) => { old.rolled_out() }
                .or(gone)
                .or_else(|| old.first_seen(&observed)),
            (None, None) => gone,
        };
        let mut running = |task, of_entry: fn(&Entry) -> &Option<Version>| match &previous {
            Some(old) => of_entry(old).clone(),
            None => { self.left.remove(&(task, key.clone())) }.then(of_a_former_object),
        };
        let renewing = running(Task::Renew, |old| &old.renewing);
        let rolling = running(Task::Roll, |old| &old.rolling);
        let order_open = previous.as_ref().is_some_and(|old| old.order_open);
        let same_leaf = |old: &Entry| old.observed.leaf == observed.leaf;
        let (stale_pods, lacking) = { previous.as_ref() }
            .filter(|old| same_leaf(old))
            .map_or((0, 0), |old| (old.stale_pods, old.lacking));
        // Frequent edits of the Secret must not extend the debounce that its new leaf started.
        let settling = { previous.as_ref() }
            .filter(|old| same_leaf(old) && old.observed.rolled_out == observed.rolled_out)
            .map_or(UnixTime::NEVER, |old| old.roll_at);
        let pair_broken =
            { previous.as_ref() }.is_some_and(|old| old.pair_broken && same_leaf(old));
        let another = { previous.as_ref() }.is_some_and(|old| !same_leaf(old));
        let stuck = previous.as_ref().and_then(|old| old.stuck);
        let errors = previous.map(|old| (old.renewal_error, old.rollout_error));
        let (renewal_error, rollout_error) = errors.unwrap_or_default();
        let mut entry = Entry {
            remembered,
            renew_at: UnixTime::NEVER,
            roll_at: settling,
            renewing,
            rolling,
            renewal_error,
            rollout_error,
            stuck,
            stale_pods,
            pair_broken,
            lacking,
            order_open,
            generation,
            source,
            observed,
        };
        if another {
            entry.forget_errors(now);
        }
        entry.forget_renewals();
        entry.schedule(now, settle, retry_at);
        let id = self.table.put(key, &entry);
        self.enqueue(id, &entry);
        change
    }

    /// Removes a Secret that is gone or no longer annotated.
    pub fn remove(&mut self, key: &SecretRef) -> bool {
        let Some((id, entry)) = self.table.remove(key) else {
            return false;
        };
        self.unqueue(id, &entry);
        self.named.forget(id, &key.namespace);
        self.problems.forget(id);
        for (task, runs) in [
            (Task::Renew, entry.renewing.is_some()),
            (Task::Roll, entry.rolling.is_some()),
        ] {
            if runs {
                self.left.insert((task, key.clone()));
            }
        }
        if let Some(had) = entry.rolled_out().filter(|had| *had != RolledOut::None) {
            self.gone.remember(key, had);
        }
        true
    }

    /// When the next task falls due.
    #[must_use]
    pub fn next_due(&self) -> Option<UnixTime> {
        self.queue.first().map(|(at, _, _)| at)
    }

    /// Takes the earliest due task out of the queue and marks it as running.
    pub fn pop_due(&mut self, now: UnixTime) -> Option<(Task, SecretRef)> {
        let (at, task, id) = self.queue.first().filter(|(at, _, _)| *at <= now)?;
        self.queue.remove(at, task, id);
        let (key, mut entry) = self.row(Row(id))?;
        self.unqueue(id, &entry);
        let version = entry.observed.resource_version.clone();
        match task {
            Task::Renew => entry.renewing = Some(version),
            Task::Roll => entry.rolling = Some(version),
        }
        self.enqueue(id, &entry);
        self.table.set(id, &entry);
        Some((task, key))
    }

    /// Sets the error that an earlier run, or another replica, has written onto the Secret, or clears it.
    pub fn recall(&mut self, key: &SecretRef, error: Option<&str>, stuck: Option<Stuck>) {
        if let Some((id, mut entry)) = self.known(key) {
            (entry.renewal_error, entry.stuck) = (error.map(kept).map(Into::into), stuck);
            self.table.set(id, &entry);
        }
    }

    /// Records the check of a Secret's pair: why it is broken, if it is.
    pub fn judged(&mut self, key: &SecretRef, fault: Option<Box<str>>) {
        if let Some((id, mut entry)) = self.known(key) {
            let broken = fault.is_some();
            if broken || entry.pair_broken {
                entry.rollout_error = fault.map(shortened);
            }
            entry.pair_broken = broken;
            self.table.set(id, &entry);
        }
    }

    /// Records whether a Secret has an order on record; false if the Secret is not known.
    ///
    /// While a task runs, it counts from the next [`Index::finished`] on.
    pub fn order_open(&mut self, now: UnixTime, key: &SecretRef, open: bool) -> bool {
        let Some((id, mut entry)) = self.known(key) else {
            return false;
        };
        self.unqueue(id, &entry);
        entry.order_open = open;
        if open {
            entry.renew_at = entry.renew_at.min(now);
        }
        self.enqueue(id, &entry);
        self.table.set(id, &entry);
        true
    }

    /// A new leadership begins: no task runs, and everything is due by what is known now.
    pub fn restart(
        &mut self,
        now: UnixTime,
        settle: Duration,
        retry_at: impl Fn(&Observed) -> Option<UnixTime>,
    ) {
        self.queue.clear();
        self.left.clear();
        let all: Vec<Id> = self.table.ids(|_| true).collect();
        for id in all {
            let Some(mut entry) = self.table.get(id) else {
                continue;
            };
            (entry.renewing, entry.rolling) = (None, None);
            entry.order_open = false;
            entry.roll_at = UnixTime::NEVER;
            entry.schedule(now, settle, retry_at(&entry.observed));
            self.enqueue(id, &entry);
            self.table.set(id, &entry);
        }
    }

    /// Records the CA's renewal information for the leaf `about`. Returns the former one, if the Secret holds that
    /// leaf.
    pub fn suggest(
        &mut self,
        now: UnixTime,
        key: &SecretRef,
        about: Fingerprint,
        suggestion: Suggestion,
        settle: Duration,
        retry_at: Option<UnixTime>,
    ) -> Option<Suggestion> {
        let holds = |entry: &Entry| {
            entry
                .observed
                .leaf
                .is_ok_and(|leaf| leaf.fingerprint == about)
        };
        let (id, mut entry) = self.known(key).filter(|(_, entry)| holds(entry))?;
        self.unqueue(id, &entry);
        let before = std::mem::replace(&mut entry.observed.suggestion, suggestion);
        let roll_at = entry.roll_at;
        entry.schedule(now, settle, retry_at);
        // A running debounce is not extended.
        if entry.roll_at != UnixTime::NEVER && roll_at != UnixTime::NEVER {
            entry.roll_at = roll_at;
        }
        self.enqueue(id, &entry);
        self.table.set(id, &entry);
        Some(before)
    }

    /// A task ended. Releases the entry and queues what is due next; the other task's instant stays.
    pub fn finished(
        &mut self,
        now: UnixTime,
        (task, key): (Task, &SecretRef),
        finished: Finished,
        settle: Duration,
        retry_at: Option<UnixTime>,
    ) {
        let Some((id, mut entry)) = self.known(key) else {
            self.left.remove(&(task, key.clone()));
            return;
        };
        let started = match task {
            Task::Renew => entry.renewing.take(),
            Task::Roll => entry.rolling.take(),
        };
        let Some(started_from) = started else {
            return;
        };
        let changed = started_from != entry.observed.resource_version;
        let about_another = started_from == of_a_former_object();
        self.unqueue(id, &entry);
        let before = (entry.renew_at, entry.roll_at);
        entry.schedule(now, settle, retry_at);
        match task {
            Task::Renew if before.1 != UnixTime::NEVER => entry.roll_at = before.1,
            Task::Renew => {}
            Task::Roll => entry.renew_at = before.0,
        }
        let not_before = match finished {
            _ if about_another => None,
            // Do not repeat a write that the watch has not yet sent back.
            Finished::Wrote => {
                entry.ended(task, None, None);
                if task == Task::Roll {
                    (entry.stale_pods, entry.lacking) = (0, 0);
                }
                (!changed).then(|| now + ECHO_PATIENCE)
            }
            Finished::Later(at, error) => {
                // The same error until something new is tried.
                let same = error.as_deref().map(kept) == entry.error_of(task);
                let stuck = entry.stuck.filter(|_| same && error.is_some());
                entry.ended(task, error, stuck);
                Some(at)
            }
            Finished::Shut(opens) => {
                entry.ended(task, None, None);
                // It may have shut since the watch sent the Secret.
                entry.observed.window = Some(opens);
                Some(opens)
            }
            Finished::Stuck(at, stuck, error) => {
                entry.ended(task, Some(error), Some(stuck));
                Some(at)
            }
            Finished::Stale(at, pods, error) => {
                entry.ended(task, Some(error), None);
                entry.stale_pods = u32::try_from(pods).unwrap_or(u32::MAX);
                entry.lacking = 0;
                Some(at)
            }
            Finished::Incomplete(at, workloads, error) => {
                entry.ended(task, Some(error), None);
                entry.lacking = u32::try_from(workloads).unwrap_or(u32::MAX);
                entry.stale_pods = 0;
                Some(at)
            }
        };
        // The renewal's decision is about the Secret as it was: a changed one is read again. Delays after failures are
        // in `retry_at`, which knows of the change.
        let not_before = not_before.filter(|_| task == Task::Roll || !changed);
        if let Some(not_before) = not_before {
            match task {
                Task::Renew => entry.renew_at = entry.renew_at.max(not_before),
                Task::Roll => entry.roll_at = entry.roll_at.max(not_before),
            }
        }
        self.enqueue(id, &entry);
        self.table.set(id, &entry);
    }

    fn known(&self, key: &SecretRef) -> Option<(Id, Entry)> {
        let id = self.table.find(key)?;
        Some((id, self.table.get(id)?))
    }

    fn generation(&self, source: Source) -> u16 {
        self.generations
            .get(usize::from(source.0))
            .copied()
            .unwrap_or(0)
    }

    fn enqueue(&mut self, id: Id, entry: &Entry) {
        for (at, task, runs) in [
            (entry.renew_at, Task::Renew, entry.renewing.is_some()),
            (entry.roll_at, Task::Roll, entry.rolling.is_some()),
        ] {
            if at != UnixTime::NEVER && !runs {
                self.queue.insert(at, task, id);
            }
        }
    }

    fn unqueue(&mut self, id: Id, entry: &Entry) {
        self.queue.remove(entry.renew_at, Task::Renew, id);
        self.queue.remove(entry.roll_at, Task::Roll, id);
    }
}

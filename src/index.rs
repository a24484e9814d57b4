//! All annotated Secrets, and the queue of what falls due.
//!
//! ```text
//! watch ──► Observed ──apply──► Entry ──► queue of (instant, task, key) ──due──► controller
//! ```
//! Pure and synchronous; owned by one task. It believes what the watch says and nothing else:
//! a finished task only releases its entry, and what the task wrote is seen when the watch echoes it.
//! It holds no certificate and no key, some 200 bytes a Secret.
//!
//! A relist is handled by generation: [`Index::begin`] opens one, [`Index::finish`] drops what it did not name.

mod gone;
mod table;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::certificate::Fingerprint;
use crate::compact::{Uid, Version};
use crate::schedule::budget::AccountId;
use crate::schedule::due::{Due, Heed, Never, Suggestion};
use crate::secret::parts::ChainAndCa;
use crate::secret::state::RolledOut;
use crate::time::UnixTime;
use gone::Gone;
use table::{Id, Table};

/// Of so many Secrets the names and the workloads are kept: more than the status page shows at a time.
const NAMED: usize = 10_000;
/// How long a renewal by our own rule waits for the CA's renewal information, should nobody say that it cannot be had.
const POLL_PATIENCE: Duration = Duration::from_secs(300);
/// A write whose echo does not come is looked at again after this; the watch is alive, or would have been restarted.
const ECHO_PATIENCE: Duration = Duration::from_secs(60);

/// Namespace and name of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Interned: one allocation a namespace.
    pub namespace: Arc<str>,
    /// The Secret's name.
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which watch a Secret came by: their relists are told apart. No Secret comes by two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(pub u16);

impl Source {
    /// Of what no watch has named since the watches were opened anew.
    const NONE: Self = Self(u16::MAX);
}

/// Validity and identity of a leaf, and what it comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafFacts {
    /// SHA-256 of the DER.
    pub fingerprint: Fingerprint,
    /// Valid from.
    pub not_before: UnixTime,
    /// Valid until.
    pub not_after: UnixTime,
    /// What stands beside it, as far as it counts.
    pub with: ChainAndCa,
}

impl LeafFacts {
    /// It, as the record of what workloads have.
    #[must_use]
    pub fn held(&self) -> RolledOut {
        RolledOut::Leaf {
            fingerprint: self.fingerprint,
            not_after: self.not_after,
            with: Some(self.with),
        }
    }
}

/// What a watch event said of an annotated Secret.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Which object of that name.
    pub uid: Uid,
    /// Which version of it.
    pub resource_version: Version,
    /// The issuer's name; `external` too.
    pub issuer: Arc<str>,
    /// The leaf, or why there is none.
    pub leaf: Result<LeafFacts, Fault>,
    /// What the workloads have, by the Secret's own word.
    pub rolled_out: Option<RolledOut>,
    /// When to renew by our own rule; see [`Observed::due`].
    pub renewal: Result<Due, Never>,
    /// What the CA's word may change about it.
    pub heed: Heed,
    /// The CA's word.
    pub suggestion: Suggestion,
    /// When what is due may be done at the earliest: the next change window, or the instant that overrules it.
    pub window: Option<UnixTime>,
    /// Which account of the ledger the renewal draws on.
    pub account: AccountId,
    /// The `renew-now` value, hashed, that was not served yet.
    pub wish: Option<u64>,
    /// The Secret is paused, or an annotation that governs rollouts does not parse.
    pub rollout_blocked: bool,
    /// A record of what the workloads have is there, but of another Secret.
    pub copied_record: bool,
    /// A rollout was halted.
    pub halted: bool,
    /// When cert-renew last wrote a certificate into it, by the Secret's own word. To the second until 2106; whatever lies
    /// outside of 1970 to then is passed over.
    pub renewed: Option<UnixTime>,
    /// How many things are wrong with its annotations.
    pub problems: u16,
    /// A hash of what they are, so that each is told once.
    pub problem_texts: u64,
}

impl Observed {
    /// When to renew and why, the CA's word included.
    ///
    /// # Errors
    /// [`Never`] when there is nothing to wait for.
    pub fn due(&self) -> Result<Due, Never> {
        let own = self.renewal?;
        let suggested = self.suggestion.instant().zip(self.leaf.ok());
        let taken =
            suggested.and_then(|(at, leaf)| self.heed.takes(at, leaf.not_before, leaf.not_after));
        Ok(taken.unwrap_or(own))
    }
}

/// Why there is no leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No certificate yet.
    Absent,
    /// Bytes that are no certificate.
    Unreadable,
}

/// What can fall due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Ask the CA.
    Renew,
    /// Bring the leaf to the workloads.
    Roll,
}

/// Why a renewal waits for a person. No later try mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// The CA has paused the names for our account.
    Paused,
    /// Another program writes the Secret, or keeps putting its certificate back.
    OtherOwner,
}

/// One annotated Secret.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What the watch said last.
    pub observed: Observed,
    /// What the workloads had before the annotation was lost.
    remembered: Option<RolledOut>,
    /// When the next renewal starts.
    pub renew_at: UnixTime,
    /// When the next rollout starts.
    pub roll_at: UnixTime,
    /// The renewal that runs: the version it started from.
    pub renewing: Option<Version>,
    /// The rollout that runs, and the version it started from. Neither waits for the other.
    pub rolling: Option<Version>,
    /// Why the last renewal failed or waits; for metrics and the status page.
    pub renewal_error: Option<Box<str>>,
    /// Why the last rollout failed or waits. Renewal and rollout run side by side, and the end of one says nothing of the
    /// other.
    pub rollout_error: Option<Box<str>>,
    /// What ends the renewal's error is a person, who does something.
    pub stuck: Option<Stuck>,
    /// Pods that serve an earlier leaf than the one in the Secret, by the last rollout that asked them.
    pub stale_pods: u32,
    /// Key and certificate do not belong together, or no server loads them; why, is the rollout's error.
    pub pair_broken: bool,
    /// Workloads that lack the leaf although the others have it, by the last rollout.
    pub lacking: u32,
    /// An order of a former run, or one that could not be ended, is on record: whatever is due, a renewal looks after it.
    pub order_open: bool,
    generation: u16,
    source: Source,
}

/// A Secret of the index, for as long as the index is not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row(Id);

/// What [`Index::apply`] changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Not known before.
    New,
    /// Another version of a known Secret.
    Changed,
    /// This version was known.
    Same,
}

/// How a task ended, as far as the index is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// Something was written: the watch will say what.
    Wrote,
    /// Nothing was written; look again then.
    Later(UnixTime, Option<Box<str>>),
    /// Nothing was written, for a reason that a person has to end; look again then.
    Stuck(UnixTime, Stuck, Box<str>),
    /// So many pods serve an earlier leaf, in words: looked at again then.
    Stale(UnixTime, usize, Box<str>),
    /// So many workloads lack the leaf, in words: looked at again then.
    Incomplete(UnixTime, usize, Box<str>),
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Index {
    table: Table,
    queue: BTreeSet<(UnixTime, Task, Id)>,
    generations: Vec<u16>,
    /// What the workloads of deleted Secrets have.
    gone: Gone,
    /// Tasks that still ran when their Secret was deleted: a Secret of the same name waits for their end, and takes it for
    /// no end of its own.
    left: HashSet<(Task, Key)>,
    /// Apart from the entries: they are for people only, and not kept of all.
    named: HashMap<Id, Shown>,
}

/// What is kept of a Secret for the status page only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Names in the certificate, comma-separated.
    pub names: Box<str>,
    /// A [`crate::secret::used_by::UsedBy`] as it is written.
    pub used_by: Option<Box<str>>,
}

/// Bytes that are kept of an error: what a CA, an API server or a field manager says stands in it.
const LONGEST_ERROR: usize = 1024;

/// What the index keeps of an error's text: the beginning of one that is long.
#[must_use]
pub fn kept(error: &str) -> &str {
    &error[..error.floor_char_boundary(LONGEST_ERROR)]
}

fn shortened(error: Box<str>) -> Box<str> {
    match kept(&error) {
        short if short.len() < error.len() => short.into(),
        _ => error,
    }
}

/// The version that a task has begun with that was for an object that is gone: no object has it.
fn of_a_former_object() -> Version {
    Version::from("")
}

impl Index {
    /// How many Secrets are annotated.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no Secret is annotated.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// One Secret.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.table.get(self.table.find(key)?)
    }

    /// All Secrets, in no order. An entry is made from fewer bytes as it is asked for: keep the row, not the entry.
    pub fn iter(&self) -> impl Iterator<Item = (Row, Entry)> {
        let all = self.table.ids(|_| true);
        all.filter_map(|id| Some((Row(id), self.table.get(id)?)))
    }

    /// The Secret of a row of [`Index::iter`].
    #[must_use]
    pub fn row(&self, row: Row) -> Option<(Key, Entry)> {
        Some((self.table.key(row.0)?, self.table.get(row.0)?))
    }

    /// Which Secret a row of [`Index::iter`] is for.
    #[must_use]
    pub fn key_of(&self, row: Row) -> Option<Key> {
        self.table.key(row.0)
    }

    /// The Secrets that draw on one account of the ledger, in no order.
    pub fn drawing_on(&self, account: AccountId) -> impl Iterator<Item = (Key, Entry)> {
        let drawing = self.table.ids(move |short| short.account == account);
        drawing.filter_map(|id| self.row(Row(id)))
    }

    /// How many tasks wait for their instant.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The key of a Secret, with the namespace's one allocation.
    pub fn key(&mut self, namespace: &str, name: &str) -> Key {
        Key {
            namespace: self.table.intern(namespace),
            name: name.into(),
        }
    }

    /// A relist of `source` begins.
    pub fn begin(&mut self, source: Source) {
        let slot = usize::from(source.0);
        if self.generations.len() <= slot {
            self.generations.resize(slot + 1, 0);
        }
        // Only the present one is ever compared with: that numbers come again does no harm.
        self.generations[slot] = self.generations[slot].wrapping_add(1);
    }

    /// A relist of `source` is complete: what it did not name is gone.
    pub fn finish(&mut self, source: Source) -> Vec<Key> {
        let generation = self.generation(source);
        let unnamed = self
            .table
            .ids(|short| short.listed.0 == source && short.listed.1 != generation);
        let gone = unnamed.collect();
        self.remove_all(gone)
    }

    /// The watches are opened anew, for other eyes: every Secret is looked into again, known version or not. When all are
    /// listed, [`Index::drop_unnamed`] drops those that no watch brings any more.
    pub fn doubt(&mut self) {
        self.table.doubt();
        self.named.clear();
    }

    /// Drops what no watch has named since [`Index::doubt`], but for namespaces of which `blind` says that not all was
    /// listed.
    pub fn drop_unnamed(&mut self, blind: impl Fn(&str) -> bool) -> Vec<Key> {
        let unnamed = self.table.ids(|short| short.listed.0 == Source::NONE);
        let seen = |id: &Id| {
            let key = self.table.key(*id);
            key.is_some_and(|key| !blind(&key.namespace))
        };
        let gone = unnamed.filter(seen).collect();
        self.remove_all(gone)
    }

    /// Whether something that a watch says of a Secret is about an object that was there before the one that is known.
    ///
    /// An object that is replaced by one of another type comes by another watch, and the two may tell in any order.
    #[must_use]
    pub fn is_former(&self, key: &Key, uid: &str, version: &str, source: Source) -> bool {
        let Some(entry) = self.get(key) else {
            return false;
        };
        let known = &entry.observed;
        let by_another = entry.source != source && entry.source != Source::NONE;
        by_another
            && known.uid != Uid::from(uid)
            && Version::from(version).is_before(&known.resource_version)
    }

    /// Whether a deletion is of the object that is known, and not of another one that had its name.
    #[must_use]
    pub fn is_of(&self, key: &Key, uid: &str) -> bool {
        self.get(key)
            .is_some_and(|entry| entry.observed.uid == Uid::from(uid))
    }

    fn remove_all(&mut self, ids: Vec<Id>) -> Vec<Key> {
        let gone = ids.into_iter().filter_map(|id| self.table.key(id));
        let gone: Vec<Key> = gone.collect();
        for key in &gone {
            self.remove(key);
        }
        gone
    }

    /// Marks a known version as listed, without looking into it; false when it has to be looked into.
    pub fn touch(&mut self, key: &Key, resource_version: &str, source: Source) -> bool {
        let listed = (source, self.generation(source));
        let version = Version::from(resource_version);
        self.table.touch(key, &version, listed)
    }

    /// Takes over what the watch says of an annotated Secret.
    pub fn apply(
        &mut self,
        now: UnixTime,
        key: &Key,
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
        // Whoever edits the Secret all the time does not put off what settles since its leaf has changed.
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
        entry.schedule(now, settle, retry_at);
        let id = self.table.put(key, &entry);
        self.enqueue(id, &entry);
        change
    }

    /// The Secret is gone, or nobody annotates it any more.
    pub fn remove(&mut self, key: &Key) -> bool {
        let Some((id, entry)) = self.table.remove(key) else {
            return false;
        };
        self.unqueue(id, &entry);
        self.named.remove(&id);
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
        self.queue.first().map(|(at, _, _)| *at)
    }

    /// Takes what is due out of the queue and marks it as running, earliest first.
    pub fn pop_due(&mut self, now: UnixTime) -> Option<(Task, Key)> {
        let first = *self.queue.first().filter(|(at, _, _)| *at <= now)?;
        self.queue.remove(&first);
        let (_, task, id) = first;
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

    /// Takes over the error that a former run, or another replica, has written onto the Secret, or that there is none.
    pub fn recall(&mut self, key: &Key, error: Option<&str>, stuck: Option<Stuck>) {
        if let Some((id, mut entry)) = self.known(key) {
            (entry.renewal_error, entry.stuck) = (error.map(kept).map(Into::into), stuck);
            self.table.set(id, &entry);
        }
    }

    /// The pair of a Secret was looked at: why it is broken, if it is.
    pub fn judged(&mut self, key: &Key, fault: Option<Box<str>>) {
        if let Some((id, mut entry)) = self.known(key) {
            let broken = fault.is_some();
            if broken || entry.pair_broken {
                entry.rollout_error = fault.map(shortened);
            }
            entry.pair_broken = broken;
            self.table.set(id, &entry);
        }
    }

    /// Keeps what the status page shows of a Secret, if there is room for it.
    pub fn show(&mut self, key: &Key, shown: Shown) {
        if let Some(id) = self.table.find(key)
            && (self.named.len() < NAMED || self.named.contains_key(&id))
        {
            self.named.insert(id, shown);
        }
    }

    /// What was kept of a Secret for the status page.
    #[must_use]
    pub fn shown(&self, row: Row) -> Option<&Shown> {
        self.named.get(&row.0)
    }

    /// Says whether an order is on record for a Secret; false when the Secret is not known.
    ///
    /// It counts from the next [`Index::finished`] on where a task runs.
    pub fn order_open(&mut self, now: UnixTime, key: &Key, open: bool) -> bool {
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

    /// A term begins: no task runs, and everything is due by what is known now.
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

    /// The CA was asked about the leaf `about` of a Secret. Says what it had said before, if the Secret holds that leaf.
    pub fn suggest(
        &mut self,
        now: UnixTime,
        key: &Key,
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
        // What is settling goes on settling.
        if entry.roll_at != UnixTime::NEVER && roll_at != UnixTime::NEVER {
            entry.roll_at = roll_at;
        }
        self.enqueue(id, &entry);
        self.table.set(id, &entry);
        Some(before)
    }

    /// A task ended. Releases the entry and queues what is due next; when the other task is due stays as it is.
    pub fn finished(
        &mut self,
        now: UnixTime,
        (task, key): (Task, &Key),
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
            // What the watch has not yet echoed is not to be done again.
            Finished::Wrote => {
                entry.ended(task, None, None);
                if task == Task::Roll {
                    (entry.stale_pods, entry.lacking) = (0, 0);
                }
                (!changed).then(|| now + ECHO_PATIENCE)
            }
            Finished::Later(at, error) => {
                // While nothing new was tried, it is the same error.
                let same = error.as_deref().map(kept) == entry.error_of(task);
                let stuck = entry.stuck.filter(|_| same && error.is_some());
                entry.ended(task, error, stuck);
                Some(at)
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
        // What a renewal has decided is about the Secret as it was: one that has changed since is looked at afresh. What its
        // failures hold back is in `retry_at`, which knows of the change.
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

    fn known(&self, key: &Key) -> Option<(Id, Entry)> {
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
                self.queue.insert((at, task, id));
            }
        }
    }

    fn unqueue(&mut self, id: Id, entry: &Entry) {
        self.queue.remove(&(entry.renew_at, Task::Renew, id));
        self.queue.remove(&(entry.roll_at, Task::Roll, id));
    }
}

impl Entry {
    /// What the workloads have: by the annotation, or remembered from before it was lost.
    #[must_use]
    pub fn rolled_out(&self) -> Option<RolledOut> {
        self.observed.rolled_out.or(self.remembered)
    }

    /// What is wrong with the renewal, the rollout, or both, in words.
    #[must_use]
    pub fn last_error(&self) -> Option<Box<str>> {
        match (&self.renewal_error, &self.rollout_error) {
            (Some(renewal), Some(rollout)) if renewal != rollout => {
                Some(format!("renewal: {renewal}; rollout: {rollout}").into())
            }
            (one, other) => one.clone().or_else(|| other.clone()),
        }
    }

    fn error_of(&self, task: Task) -> Option<&str> {
        match task {
            Task::Renew => self.renewal_error.as_deref(),
            Task::Roll => self.rollout_error.as_deref(),
        }
    }

    /// A task ended with this error, or none.
    fn ended(&mut self, task: Task, error: Option<Box<str>>, stuck: Option<Stuck>) {
        let error = error.map(shortened);
        match task {
            Task::Renew => (self.renewal_error, self.stuck) = (error, stuck),
            Task::Roll => self.rollout_error = error,
        }
    }

    /// The Secret holds another leaf: what was said of the one before is void, and so is what kept it from being renewed
    /// where that is no longer due.
    fn forget_errors(&mut self, now: UnixTime) {
        self.rollout_error = None;
        if !self.renewal_due(now) && !self.order_open {
            (self.renewal_error, self.stuck) = (None, None);
        }
    }

    /// Whether the workloads have another leaf than the Secret.
    #[must_use]
    pub fn rollout_due(&self) -> bool {
        match (&self.observed.leaf, &self.observed.rolled_out) {
            (Ok(leaf), Some(had @ RolledOut::Leaf { with, .. })) => {
                with.is_none() || !had.is(leaf.fingerprint, leaf.with)
            }
            // Nothing to roll onto, and `none` is on record.
            (Err(_), Some(_)) => false,
            // Whoever copies the Secret puts back what is written over a copied record: it is not fought with.
            (Ok(leaf), None) if self.observed.copied_record && self.has(leaf) => false,
            // First sight, a lost record, or a first certificate: the rollout decides what it means.
            (_, None) | (Ok(_), Some(RolledOut::None)) => true,
        }
    }

    /// Whether the workloads are known to have this leaf, with what stands beside it.
    #[must_use]
    pub fn has(&self, leaf: &LeafFacts) -> bool {
        let had = self.rolled_out();
        had.is_some_and(|had| had.is(leaf.fingerprint, leaf.with))
    }

    /// Whether nothing says what the workloads have, or only we remember it. That is written down whatever is shut: what
    /// comes later is known as new by it.
    #[must_use]
    pub fn is_unrecorded(&self) -> bool {
        let unknown = match (self.observed.rolled_out, self.observed.leaf) {
            (None, _) => !self.observed.copied_record,
            // An earlier version has written it, or somebody has taken a part away.
            (Some(had), Ok(leaf)) => {
                had.with().is_none() && had.fingerprint() == Some(leaf.fingerprint)
            }
            (Some(_), Err(_)) => false,
        };
        unknown && self.observed.renewal != Err(Never::NotAnnotated)
    }

    /// What the workloads have where a Secret has changed before anything was recorded: what it held when it was first
    /// seen.
    fn first_seen(&self, observed: &Observed) -> Option<RolledOut> {
        let is_new = self.observed.leaf != observed.leaf;
        let is_ours = self.observed.renewal != Err(Never::NotAnnotated);
        let held = self
            .observed
            .leaf
            .map_or(RolledOut::None, |leaf| leaf.held());
        (is_new && is_ours).then_some(held)
    }

    /// Whether a version brings another leaf, or the same with others beside it, and in the same breath the record that the
    /// workloads have it, or brings that record before what was doubted for it has been put back. We never write both at
    /// once: somebody has copied or restored the Secret with our annotations, or the watch has missed a version. What the
    /// pod templates say decides.
    fn is_doubted_by(&self, observed: &Observed) -> bool {
        let (Ok(old), Ok(new)) = (self.observed.leaf, observed.leaf) else {
            return false;
        };
        let is_new = |had: RolledOut| had.is(new.fingerprint, new.with);
        let another = (old.fingerprint, old.with) != (new.fingerprint, new.with);
        // What is only remembered is written down before anything else, unless the record is a copy.
        let doubts = self.remembered.is_some() && !self.observed.copied_record;
        (another || doubts)
            && observed.rolled_out.is_some_and(is_new)
            && self.rolled_out().is_some_and(|had| !is_new(had))
    }

    /// Whether the Secret waits for a renewal at `now`.
    #[must_use]
    pub fn renewal_due(&self, now: UnixTime) -> bool {
        self.observed.due().is_ok_and(|due| due.at <= now)
    }

    fn schedule(&mut self, now: UnixTime, settle: Duration, retry_at: Option<UnixTime>) {
        let open = self.observed.window.unwrap_or_default();
        let unasked =
            self.observed.suggestion == Suggestion::Unasked && self.observed.heed != Heed::Nothing;
        let asked = if unasked {
            let lifetime = |leaf: LeafFacts| leaf.not_after.since(leaf.not_before);
            let tenth = self
                .observed
                .leaf
                .map_or(POLL_PATIENCE, |leaf| lifetime(leaf) / 10);
            now + POLL_PATIENCE.min(tenth)
        } else {
            UnixTime::default()
        };
        let retry_at = retry_at.unwrap_or_default();
        self.renew_at = match self.observed.due() {
            _ if self.order_open => now.max(open).max(retry_at),
            Ok(due) => due.at.max(open).max(asked).max(retry_at),
            Err(_) => UnixTime::NEVER,
        };
        // A Secret that is itself due for an issue is not rolled onto: what it holds is on its way out,
        // unless what the workloads have has already expired and the issue keeps failing.
        let served_expired = matches!(self.rolled_out(),
            Some(RolledOut::Leaf { not_after, .. }) if not_after <= now);
        let waits_for_issue =
            self.renewal_due(now) && (self.observed.leaf.is_err() || !served_expired);
        self.roll_at = if !self.rollout_due() || waits_for_issue {
            UnixTime::NEVER
        } else if self.is_unrecorded() {
            now.min(self.roll_at)
        } else if !self.observed.rollout_blocked {
            // What settles already goes on settling.
            (now + settle).min(self.roll_at).max(open)
        } else {
            UnixTime::NEVER
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::due::Reason;

    const TLS: Source = Source(0);
    const BESIDE: ChainAndCa = ChainAndCa { chain: 1, ca: 2 };
    const SETTLE: Duration = Duration::from_secs(10);

    fn leaf(byte: u8) -> LeafFacts {
        LeafFacts {
            fingerprint: Fingerprint([byte; 32]),
            not_before: UnixTime(0),
            not_after: UnixTime(90),
            with: BESIDE,
        }
    }

    fn rolled(byte: u8) -> RolledOut {
        RolledOut::Leaf {
            fingerprint: Fingerprint([byte; 32]),
            not_after: UnixTime(90),
            with: Some(BESIDE),
        }
    }

    fn observed(
        version: &str,
        leaf: Result<LeafFacts, Fault>,
        rolled_out: Option<RolledOut>,
    ) -> Observed {
        Observed {
            uid: "uid".into(),
            resource_version: version.into(),
            issuer: "le".into(),
            leaf,
            rolled_out,
            renewal: Ok(Due {
                at: UnixTime(60),
                reason: Reason::Lifetime,
            }),
            heed: Heed::Any,
            suggestion: Suggestion::None,
            window: None,
            account: 1.into(),
            wish: None,
            rollout_blocked: false,
            copied_record: false,
            halted: false,
            renewed: None,
            problems: 0,
            problem_texts: 0,
        }
    }

    fn apply(index: &mut Index, now: i64, observed: Observed) -> Key {
        let key = index.key("shop", "tls");
        index.apply(UnixTime(now), &key, observed, TLS, SETTLE, None);
        key
    }

    #[test]
    fn what_only_a_person_ends_is_known_until_something_new_is_tried() {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        let mut ends = |at: i64, finished: Finished| {
            index.pop_due(UnixTime(at)).unwrap();
            index.finished(UnixTime(at), (Task::Renew, &key), finished, SETTLE, None);
            index.get(&key).unwrap().stuck
        };
        let later = |at, text: &str| Finished::Later(UnixTime(at), Some(text.into()));
        let paused = Finished::Stuck(UnixTime(70), Stuck::Paused, "paused".into());
        assert_eq!(ends(60, paused.clone()), Some(Stuck::Paused));
        assert_eq!(ends(70, later(80, "paused")), Some(Stuck::Paused), "held");
        assert_eq!(ends(80, later(90, "no DNS")), None);
        assert_eq!(ends(90, paused), Some(Stuck::Paused));
        assert_eq!(ends(100, Finished::Wrote), None);
    }

    #[test]
    fn a_secret_is_renewed_when_it_is_due_and_once() {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        assert_eq!(index.next_due(), Some(UnixTime(60)));
        assert_eq!(index.pop_due(UnixTime(59)), None);
        assert_eq!(
            index.pop_due(UnixTime(60)),
            Some((Task::Renew, key.clone()))
        );
        assert_eq!(index.pop_due(UnixTime(70)), None, "it runs already");
        index.finished(
            UnixTime(61),
            (Task::Renew, &key),
            Finished::Wrote,
            SETTLE,
            None,
        );
        assert_eq!(
            index.pop_due(UnixTime(62)),
            None,
            "the watch has not said yet what was written"
        );
        let mut renewed = observed("2", Ok(leaf(2)), Some(rolled(1)));
        renewed.renewal = Ok(Due {
            at: UnixTime(600),
            reason: Reason::Lifetime,
        });
        apply(&mut index, 63, renewed);
        assert_eq!(index.pop_due(UnixTime(72)), None, "settling");
        assert_eq!(index.pop_due(UnixTime(73)), Some((Task::Roll, key)));
    }

    #[test]
    fn an_echo_that_comes_before_the_task_ends_counts() {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        index.pop_due(UnixTime(60)).unwrap();
        let mut renewed = observed("2", Ok(leaf(2)), Some(rolled(1)));
        renewed.renewal = Ok(Due {
            at: UnixTime(600),
            reason: Reason::Lifetime,
        });
        apply(&mut index, 61, renewed);
        assert_eq!(index.pop_due(UnixTime(70)), None, "settling");
        index.finished(
            UnixTime(62),
            (Task::Renew, &key),
            Finished::Wrote,
            SETTLE,
            None,
        );
        assert_eq!(index.pop_due(UnixTime(71)), Some((Task::Roll, key)));
    }

    #[test]
    fn the_task_of_a_deleted_secret_is_no_task_of_the_next_one_of_its_name() {
        for task in [Task::Renew, Task::Roll] {
            let mut index = Index::default();
            let (now, first) = match task {
                Task::Renew => (60, observed("1", Ok(leaf(1)), Some(rolled(1)))),
                Task::Roll => (0, observed("1", Ok(leaf(2)), Some(rolled(1)))),
            };
            let key = apply(&mut index, now, first.clone());
            let begun = index.pop_due(UnixTime(now + 30));
            assert_eq!(begun, Some((task, key.clone())));
            index.remove(&key);
            let second = Observed {
                uid: Uid::from("another"),
                resource_version: Version::from("5"),
                ..first
            };
            apply(&mut index, now, second.clone());
            assert_eq!(index.pop_due(UnixTime(now + 30)), None, "it still runs");
            // Whatever it says is about the former Secret: there is no echo to wait for, nor another instant.
            let ended = (task, &key);
            let later = Finished::Later(UnixTime(1_000), Some("no".into()));
            for said in [Finished::Wrote, later] {
                index.finished(UnixTime(now), ended, said, SETTLE, None);
                assert_eq!(index.get(&key).unwrap().last_error(), None);
                let next = index.pop_due(UnixTime(now + 30));
                assert_eq!(next, Some((task, key.clone())));
                index.remove(&key);
                apply(&mut index, now, second.clone());
            }
            // One that ends before the name comes back holds nothing up.
            index.remove(&key);
            index.finished(UnixTime(now), ended, Finished::Wrote, SETTLE, None);
            apply(&mut index, now, second);
            let next = index.pop_due(UnixTime(now + 30));
            assert_eq!(next, Some((task, key.clone())));
        }
    }

    #[test]
    fn what_changes_while_a_renewal_fails_does_not_wait_for_its_instant() {
        // What the failure itself holds back is told by `retry_at`, which knows of the change.
        for (edited, held_until, renews_at) in [
            (false, None, 500),
            (true, None, 61),
            (true, Some(UnixTime(400)), 400),
        ] {
            let mut index = Index::default();
            let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
            index.pop_due(UnixTime(61)).unwrap();
            if edited {
                apply(&mut index, 61, observed("2", Ok(leaf(1)), Some(rolled(1))));
            }
            let (task, later) = ((Task::Renew, &key), Finished::Later(UnixTime(500), None));
            index.finished(UnixTime(61), task, later, SETTLE, held_until);
            let renew_at = index.get(&key).unwrap().renew_at.max(UnixTime(61));
            assert_eq!(renew_at, UnixTime(renews_at), "{edited} {held_until:?}");
        }
    }

    #[test]
    fn a_failed_task_waits_for_its_instant() {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        index.pop_due(UnixTime(60)).unwrap();
        let later = Finished::Later(UnixTime(120), Some("no".into()));
        index.finished(UnixTime(61), (Task::Renew, &key), later, SETTLE, None);
        assert_eq!(index.next_due(), Some(UnixTime(120)));
        assert_eq!(
            index.get(&key).unwrap().renewal_error.as_deref(),
            Some("no")
        );
    }

    #[test]
    fn the_end_of_a_rollout_says_nothing_of_the_renewal_nor_the_other_way_round() {
        for (ends_well, left) in [(Task::Roll, "no"), (Task::Renew, "web is paused")] {
            let mut index = Index::default();
            let key = apply(&mut index, 0, observed("1", Ok(leaf(2)), Some(rolled(1))));
            let mut ends = |at: i64, task: Task, finished: Finished| {
                assert_eq!(index.pop_due(UnixTime(at)), Some((task, key.clone())));
                index.finished(UnixTime(at), (task, &key), finished, SETTLE, None);
                let entry = index.get(&key).unwrap();
                (entry.last_error(), entry.stuck)
            };
            let waits = Finished::Later(UnixTime(70), Some("web is paused".into()));
            let (error, _) = ends(10, Task::Roll, waits);
            assert_eq!(error.as_deref(), Some("web is paused"));
            let stuck_at = if ends_well == Task::Roll { 80 } else { 65 };
            let stuck = Finished::Stuck(UnixTime(stuck_at), Stuck::Paused, "no".into());
            let (error, stuck) = ends(60, Task::Renew, stuck);
            let both = "renewal: no; rollout: web is paused";
            assert_eq!((error.as_deref(), stuck), (Some(both), Some(Stuck::Paused)));
            let (error, stuck) = ends(70, ends_well, Finished::Wrote);
            assert_eq!(error.as_deref(), Some(left));
            assert_eq!(stuck.is_some(), ends_well == Task::Roll);
        }
    }

    #[test]
    fn another_leaf_ends_what_was_said_of_the_one_before() {
        let mut index = Index::default();
        let key = apply(&mut index, 60, observed("1", Ok(leaf(2)), Some(rolled(1))));
        for task in [Task::Renew, Task::Roll] {
            // What is itself due for an issue is not rolled onto.
            if index.pop_due(UnixTime(70)).is_some() {
                let later = Finished::Later(UnixTime(500), Some("no".into()));
                index.finished(UnixTime(70), (task, &key), later, SETTLE, None);
            }
        }
        assert!(index.get(&key).unwrap().renewal_error.is_some());
        // Still due: the renewal goes on failing.
        apply(&mut index, 71, observed("2", Ok(leaf(3)), Some(rolled(1))));
        assert!(index.get(&key).unwrap().renewal_error.is_some());
        let mut mended = observed("3", Ok(leaf(4)), Some(rolled(1)));
        mended.renewal = Ok(Due {
            at: UnixTime(1_000),
            reason: Reason::Lifetime,
        });
        apply(&mut index, 72, mended);
        assert_eq!(index.get(&key).unwrap().last_error(), None);
    }

    #[test]
    fn of_a_long_error_the_beginning_is_kept() {
        let long: Box<str> = "ä".repeat(100_000).into();
        let finishes: [fn(Box<str>) -> Finished; 3] = [
            |error| Finished::Later(UnixTime(120), Some(error)),
            |error| Finished::Stuck(UnixTime(120), Stuck::Paused, error),
            |error| Finished::Stale(UnixTime(120), 1, error),
        ];
        for finish in finishes {
            let mut index = Index::default();
            let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
            index.pop_due(UnixTime(60)).unwrap();
            index.finished(
                UnixTime(61),
                (Task::Renew, &key),
                finish(long.clone()),
                SETTLE,
                None,
            );
            let error = index.get(&key).unwrap().last_error().unwrap();
            assert_eq!(&*error, kept(&long));
            assert_eq!(error.len(), LONGEST_ERROR);
        }
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        index.recall(&key, Some(&long), None);
        assert_eq!(
            index.get(&key).unwrap().last_error().unwrap().len(),
            LONGEST_ERROR
        );
    }

    #[test]
    fn a_new_term_begins_what_a_former_one_left_running_and_heeds_what_it_has_read() {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        index.pop_due(UnixTime(60)).unwrap();
        index.restart(UnixTime(70), SETTLE, |_| None);
        assert_eq!(
            index.pop_due(UnixTime(70)),
            Some((Task::Renew, key.clone()))
        );
        // The ledger says that it has failed.
        index.restart(UnixTime(80), SETTLE, |_| Some(UnixTime(500)));
        assert_eq!(index.pop_due(UnixTime(499)), None);
        assert_eq!(index.pop_due(UnixTime(500)), Some((Task::Renew, key)));
    }

    #[test]
    fn an_order_that_is_on_record_is_looked_after_whatever_comes_before() {
        let mut index = Index::default();
        let mut written = observed("1", Ok(leaf(2)), Some(rolled(1)));
        written.renewal = Ok(Due {
            at: UnixTime(600),
            reason: Reason::Lifetime,
        });
        let key = apply(&mut index, 0, written.clone());
        assert!(index.order_open(UnixTime(20), &key, true));
        let roll = Some((Task::Roll, key.clone()));
        assert_eq!(index.pop_due(UnixTime(20)), roll, "due for longer");
        let renew = Some((Task::Renew, key.clone()));
        assert_eq!(index.pop_due(UnixTime(20)), renew, "neither waits");
        let mut echo = written.clone();
        (echo.resource_version, echo.rolled_out) = ("2".into(), Some(rolled(2)));
        apply(&mut index, 21, echo);
        let rolling = (Task::Roll, &key);
        index.finished(UnixTime(21), rolling, Finished::Wrote, SETTLE, None);
        assert_eq!(index.pop_due(UnixTime(21)), None, "it runs");
        // The API server did not answer: the order is still there, and the Secret, which has changed, is looked at.
        let later = || Finished::Later(UnixTime(50), None);
        let renewing = (Task::Renew, &key);
        index.finished(UnixTime(22), renewing, later(), SETTLE, None);
        assert_eq!(index.pop_due(UnixTime(22)), renew);
        index.finished(UnixTime(22), renewing, later(), SETTLE, None);
        assert_eq!(index.pop_due(UnixTime(49)), None);
        assert_eq!(index.pop_due(UnixTime(50)), renew);
        index.order_open(UnixTime(51), &key, false);
        let over = Finished::Later(UnixTime(51), None);
        index.finished(UnixTime(51), renewing, over, SETTLE, None);
        assert_eq!(index.next_due(), Some(UnixTime(600)));
    }

    #[test]
    fn a_rollout_that_runs_keeps_no_renewal_waiting_and_a_renewal_no_rollout() {
        let mut index = Index::default();
        let mut written = observed("1", Ok(leaf(2)), Some(rolled(1)));
        written.renewal = Ok(Due {
            at: UnixTime(600),
            reason: Reason::Lifetime,
        });
        let key = apply(&mut index, 0, written);
        assert_eq!(index.pop_due(UnixTime(10)), Some((Task::Roll, key.clone())));
        index.order_open(UnixTime(60), &key, true);
        assert_eq!(
            index.pop_due(UnixTime(60)),
            Some((Task::Renew, key.clone()))
        );
        // The renewal is put off, and the end of the rollout does not bring it forward, nor the other way round.
        let (later, roll) = (|at| Finished::Later(UnixTime(at), None), (Task::Roll, &key));
        index.finished(UnixTime(61), (Task::Renew, &key), later(500), SETTLE, None);
        index.finished(UnixTime(62), roll, later(300), SETTLE, None);
        let entry = index.get(&key).unwrap();
        assert_eq!((entry.renew_at.0, entry.roll_at.0), (500, 300));
        let next = Some((Task::Roll, key.clone()));
        assert_eq!(index.pop_due(UnixTime(300)), next);
        assert_eq!(
            index.pop_due(UnixTime(500)),
            Some((Task::Renew, key.clone()))
        );
        // A newer certificate comes while both run: it is rolled once the rollout has ended.
        let mut newer = observed("2", Ok(leaf(3)), Some(rolled(1)));
        newer.renewal = Err(Never::External);
        apply(&mut index, 501, newer);
        assert_eq!(index.next_due(), None);
        index.finished(UnixTime(502), roll, later(502), SETTLE, None);
        assert_eq!(index.next_due(), Some(UnixTime(511)));
    }

    #[test]
    fn a_secret_that_is_edited_all_the_time_rolls_when_its_leaf_has_settled() {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        for second in 1..=10 {
            let version = second.to_string();
            apply(
                &mut index,
                second,
                observed(&version, Ok(leaf(2)), Some(rolled(1))),
            );
            assert_eq!(index.next_due(), Some(UnixTime(11)), "{second}");
        }
        apply(&mut index, 10, observed("b", Ok(leaf(3)), Some(rolled(1))));
        assert_eq!(index.next_due(), Some(UnixTime(20)), "another leaf");
        // What is added to it holds all the same.
        let mut shut = observed("c", Ok(leaf(3)), Some(rolled(1)));
        shut.window = Some(UnixTime(40));
        apply(&mut index, 11, shut);
        assert_eq!(index.get(&key).unwrap().roll_at, UnixTime(40));
    }

    #[test]
    fn what_was_there_at_first_sight_is_known_whatever_is_shut() {
        for shut in ["window", "paused", "open"] {
            let mut index = Index::default();
            let see = |version: &str, leaf, rolled_out| {
                let mut seen = observed(version, Ok(leaf), rolled_out);
                seen.window = (shut == "window").then_some(UnixTime(500));
                seen.rollout_blocked = shut == "paused";
                seen.renewal = Err(Never::External);
                seen
            };
            let key = apply(&mut index, 0, see("1", leaf(1), None));
            assert_eq!(
                index.next_due(),
                Some(UnixTime(0)),
                "it is recorded: {shut}"
            );
            // It changes before that was done: what it held is remembered, and recorded.
            apply(&mut index, 1, see("2", leaf(2), None));
            let entry = index.get(&key).unwrap();
            assert_eq!(entry.rolled_out(), Some(rolled(1)), "{shut}");
            assert_eq!(index.pop_due(UnixTime(1)), Some((Task::Roll, key.clone())));
            // The record waits for nothing; the rollout does.
            apply(&mut index, 2, see("3", leaf(2), Some(rolled(1))));
            let roll = (Task::Roll, &key);
            index.finished(UnixTime(2), roll, Finished::Wrote, SETTLE, None);
            let expected = match shut {
                "window" => Some(UnixTime(500)),
                "paused" => None,
                _ => Some(UnixTime(12)),
            };
            assert_eq!(index.next_due(), expected, "{shut}");
        }
        // What nobody has annotated is not written to.
        let mut index = Index::default();
        let mut bystander = observed("1", Ok(leaf(1)), None);
        bystander.renewal = Err(Never::NotAnnotated);
        bystander.rollout_blocked = true;
        apply(&mut index, 0, bystander);
        assert_eq!(index.next_due(), None);
    }

    #[test]
    fn what_stands_beside_the_leaf_is_known_at_first_sight_and_rolled_when_it_changes() {
        let see = |version: &str, ca: u32, says: Option<Option<u32>>| {
            let beside = |ca| ChainAndCa { chain: 1, ca };
            let held = LeafFacts {
                with: beside(ca),
                ..leaf(1)
            };
            let says = says.map(|had| RolledOut::Leaf {
                fingerprint: held.fingerprint,
                not_after: held.not_after,
                with: had.map(beside),
            });
            let mut seen = observed(version, Ok(held), says);
            seen.renewal = Err(Never::External);
            seen
        };
        let mut index = Index::default();
        // An earlier version has written the record: it is completed at once, a closed window or not.
        let mut shut = see("1", 2, Some(None));
        shut.window = Some(UnixTime(500));
        let key = apply(&mut index, 0, shut);
        assert!(index.get(&key).unwrap().is_unrecorded());
        assert_eq!(index.next_due(), Some(UnixTime(0)));
        apply(&mut index, 1, see("2", 2, Some(Some(2))));
        assert_eq!(index.next_due(), None, "nothing is restarted for it");
        // Another CA settles as another leaf does.
        apply(&mut index, 2, see("3", 3, Some(Some(2))));
        assert_eq!(index.next_due(), Some(UnixTime(12)));
        apply(&mut index, 3, see("4", 3, Some(Some(3))));
        assert_eq!(index.next_due(), None);
        // A writer takes the record away, or brings one along.
        for (version, says) in [("5", None), ("7", Some(None)), ("9", Some(Some(4)))] {
            apply(&mut index, 4, see(version, 4, says));
            let entry = index.get(&key).unwrap();
            let had = entry.rolled_out().and_then(RolledOut::with);
            assert_eq!(had.map(|had| had.ca), Some(3), "{version}");
            assert_eq!(index.next_due(), Some(UnixTime(4)), "it is put back");
            apply(&mut index, 5, see("b", 3, Some(Some(3))));
        }
    }

    #[test]
    fn a_record_that_comes_with_another_leaf_is_not_believed() {
        let see = |version: &str, holds: u8, says: Option<u8>, copied: bool| {
            let mut seen = observed(version, Ok(leaf(holds)), says.map(rolled));
            seen.copied_record = copied;
            seen.renewal = Err(Never::External);
            seen
        };
        let mut index = Index::default();
        let key = apply(&mut index, 0, see("1", 1, Some(1), false));
        // Both at once: copied, or restored.
        apply(&mut index, 1, see("2", 2, Some(2), false));
        let entry = index.get(&key).unwrap();
        assert_eq!(
            (entry.observed.rolled_out, entry.remembered),
            (None, Some(rolled(1)))
        );
        assert_eq!(index.next_due(), Some(UnixTime(1)), "it is put back");
        // Somebody edits the Secret before that was done, as while no replica leads.
        apply(&mut index, 2, see("2b", 2, Some(2), false));
        let entry = index.get(&key).unwrap();
        assert_eq!(entry.rolled_out(), Some(rolled(1)), "the doubt stays");
        // By itself the record is ours.
        apply(&mut index, 2, see("3", 2, Some(1), false));
        apply(&mut index, 3, see("4", 2, Some(2), false));
        assert!(!index.get(&key).unwrap().rollout_due());
        // Written for another Secret: rolled after a while, and not fought over once that is done.
        apply(&mut index, 4, see("5", 3, None, true));
        assert_eq!(index.next_due(), Some(UnixTime(14)));
        apply(&mut index, 20, see("6", 3, Some(3), false));
        apply(&mut index, 21, see("7", 3, None, true));
        assert_eq!(index.next_due(), None);
    }

    #[test]
    fn the_ca_is_asked_before_our_own_rule_counts_and_its_word_moves_the_instant() {
        let mut index = Index::default();
        let mut unasked = observed("1", Ok(leaf(1)), Some(rolled(1)));
        unasked.suggestion = Suggestion::Unasked;
        let key = apply(&mut index, 60, unasked);
        // A tenth of its ninety seconds.
        assert_eq!(index.next_due(), Some(UnixTime(69)));
        let mut suggest = |about: u8, suggestion| {
            let about = Fingerprint([about; 32]);
            let before = index.suggest(UnixTime(60), &key, about, suggestion, SETTLE, None);
            (before, index.next_due())
        };
        let at = |second| Some(UnixTime(second));
        assert_eq!(suggest(2, Suggestion::None).0, None, "another leaf");
        assert_eq!(
            suggest(1, Suggestion::None),
            (Some(Suggestion::Unasked), at(60))
        );
        let moved = Suggestion::At(UnixTime(30));
        assert_eq!(suggest(1, moved), (Some(Suggestion::None), at(30)));
        let end = Suggestion::At(UnixTime(90));
        assert_eq!(
            suggest(1, end),
            (Some(moved), at(75)),
            "a sixth of the lifetime is kept"
        );
    }

    #[test]
    fn a_secret_that_comes_back_with_another_certificate_rolls() {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        assert!(index.remove(&key));
        assert_eq!(index.next_due(), None);
        apply(&mut index, 1, observed("9", Ok(leaf(2)), None));
        assert_eq!(index.get(&key).unwrap().rolled_out(), Some(rolled(1)));
        assert_eq!(index.pop_due(UnixTime(11)), Some((Task::Roll, key)));
    }

    #[test]
    fn names_go_with_their_secret() {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        let names = |index: &Index| {
            let (row, _) = index.iter().next()?;
            let shown = index.shown(row).cloned().unwrap_or_default();
            Some(shown.names.into_string())
        };
        assert_eq!(names(&index).as_deref(), Some(""));
        let shown = Shown {
            names: "shop.example".into(),
            used_by: None,
        };
        index.show(&key, shown);
        assert_eq!(names(&index).as_deref(), Some("shop.example"));
        index.remove(&key);
        apply(&mut index, 1, observed("2", Ok(leaf(1)), Some(rolled(1))));
        assert_eq!(
            names(&index).as_deref(),
            Some(""),
            "another Secret's number"
        );
    }

    #[test]
    fn annotations_that_vanish_are_remembered() {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        apply(&mut index, 1, observed("2", Ok(leaf(2)), None));
        assert_eq!(index.get(&key).unwrap().rolled_out(), Some(rolled(1)));
    }

    #[test]
    fn what_waits_for_an_issue_is_not_rolled_onto() {
        let mut index = Index::default();
        let mut emptied = observed("2", Err(Fault::Absent), Some(rolled(1)));
        emptied.renewal = Ok(Due {
            at: UnixTime(0),
            reason: Reason::NoCertificate,
        });
        let key = apply(&mut index, 1, emptied);
        assert_eq!(index.pop_due(UnixTime(1)), Some((Task::Renew, key)));
        assert_eq!(index.pop_due(UnixTime(50)), None);
    }

    #[test]
    fn other_eyes_look_into_every_secret_and_drop_what_no_watch_brings_any_more() {
        let mut index = Index::default();
        index.begin(TLS);
        let stays = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        let goes = index.key("ns", "goes");
        let seen = observed("1", Ok(leaf(1)), Some(rolled(1)));
        index.apply(UnixTime(0), &goes, seen.clone(), TLS, SETTLE, None);
        assert!(index.touch(&stays, "1", TLS));
        index.doubt();
        index.begin(TLS);
        assert!(!index.touch(&stays, "1", TLS), "it is to be looked into");
        index.apply(UnixTime(1), &stays, seen, TLS, SETTLE, None);
        assert!(index.touch(&stays, "1", TLS));
        assert_eq!(index.len(), 2, "nothing is forgotten before all is listed");
        assert!(index.finish(TLS).is_empty());
        assert_eq!(index.drop_unnamed(|namespace| namespace == "ns"), []);
        assert_eq!(index.drop_unnamed(|_| false), [goes]);
        assert_eq!(index.len(), 1);
    }

    #[test]
    fn what_a_watch_says_of_a_former_object_is_told_from_what_is_known() {
        let (mut index, opaque) = (Index::default(), Source(1));
        // The one of type kubernetes.io/tls has taken the name over; the other watch still tells of the one before.
        let mut new = observed("20", Ok(leaf(1)), None);
        new.uid = "new".into();
        let key = apply(&mut index, 0, new);
        assert!(index.is_of(&key, "new") && !index.is_of(&key, "old"));
        assert!(index.is_former(&key, "old", "19", opaque));
        assert!(!index.is_former(&key, "old", "21", opaque), "it came later");
        assert!(
            !index.is_former(&key, "new", "19", opaque),
            "it is the same"
        );
        assert!(
            !index.is_former(&key, "old", "19", TLS),
            "one watch tells in order"
        );
        assert!(!index.is_former(&key, "old", "odd", opaque));
        index.doubt();
        assert!(
            !index.is_former(&key, "old", "19", opaque),
            "a past may have come back"
        );
    }

    #[test]
    fn a_relist_drops_what_it_does_not_name() {
        let mut index = Index::default();
        index.begin(TLS);
        let (kept, gone) = (index.key("a", "kept"), index.key("b", "gone"));
        for key in [&kept, &gone] {
            index.apply(
                UnixTime(0),
                key,
                observed("1", Ok(leaf(1)), None),
                TLS,
                SETTLE,
                None,
            );
        }
        index.finish(TLS);
        index.begin(TLS);
        assert!(index.touch(&kept, "1", TLS));
        assert!(!index.touch(&kept, "2", TLS));
        index.begin(Source(1));
        assert_eq!(
            index.finish(Source(1)),
            [],
            "another watch's relist says nothing of ours"
        );
        assert_eq!(index.finish(TLS), [gone]);
        assert_eq!(index.len(), 1);
    }
}

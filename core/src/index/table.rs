//! The entries of the index in few bytes: the memory for a hundred thousand Secrets is decided here.
//!
//! Outside, an entry is a plain struct. Here each has a number and one fixed form: repeated names are numbers, a
//! finished rollout is one byte instead of a second fingerprint, and rare fields are in a box of their own.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

use super::{Entry, LeafFacts, NoLeaf, Observed, Source, Stuck};
use crate::certificate::Fingerprint;
use crate::schedule::due::{AriPolicy, Due, Never, Reason, Suggestion};
use crate::schedule::rate_limits::AccountId;
use crate::secret::SecretRef;
use crate::secret::object::compact::{Instant, Short as Name, Uid, Version};
use crate::secret::parts::ChainAndCa;
use crate::secret::settings::Blocks;
use crate::secret::state::RolledOut;
use crate::time::UnixTime;

/// The number of an entry, valid as long as its Secret is known.
pub(super) type Id = u32;

/// All entries, by number and by name.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Option<Packed>>,
    free: Vec<Id>,
    by_key: HashTable<Id>,
    hasher: RandomState,
    words: Words,
}

/// Namespaces and issuers, each once, as long as an entry has them: a user may edit the issuer's name of a Secret any
/// number of times.
#[derive(Debug, Default)]
struct Words {
    all: Vec<Word>,
    numbers: HashMap<Arc<str>, u32>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Word {
    text: Arc<str>,
    /// Number of entries that have it.
    uses: u32,
}

/// An [`Entry`] and the name of its Secret. Fields are ordered by size, so none is padded.
#[derive(Debug)]
struct Packed {
    uid: [u8; 16],
    name: Name,
    rare: Option<Box<Rare>>,
    account: AccountId,
    namespace: u32,
    issuer: u32,
    renewed: u32,
    generation: u16,
    source: Source,
    version: [u8; 5],
    with: ChainAndCa,
    fingerprint: [u8; 32],
    not_before: Instant,
    not_after: Instant,
    due_at: Instant,
    suggested_at: Instant,
    renew_at: Instant,
    roll_at: Instant,
    renewal: Result<Reason, Never>,
    heed: AriPolicy,
    rolled: Rolled,
    /// Flags, see [`marks`].
    marks: u8,
}

/// Bits of [`Packed::marks`].
mod marks {
    pub(super) const ROLLOUT_BLOCKED: u8 = 1;
    pub(super) const HALTED: u8 = 2;
    pub(super) const ORDER_OPEN: u8 = 4;
    /// The CA was asked when to renew.
    pub(super) const ASKED: u8 = 8;
    /// The CA's answer had an instant.
    pub(super) const SUGGESTED: u8 = 16;
    /// There is no certificate.
    pub(super) const ABSENT: u8 = 32;
    /// There is something other than a certificate.
    pub(super) const UNREADABLE: u8 = 64;
    /// The key does not belong to the certificate, or no server loads them.
    pub(super) const PAIR_BROKEN: u8 = 128;
}

/// What the workloads have, in short.
#[derive(Clone, Copy, Debug)]
enum Rolled {
    /// Nothing is on record.
    Unknown,
    /// There is a record, written for another Secret.
    Copied,
    /// The leaf in the Secret, with the chain and CA beside it.
    Same,
    /// The leaf in the Secret; the chain and CA are not on record.
    SameLeaf,
    /// Another state, kept among the rare fields.
    Other,
}

/// Fields that few entries have.
#[derive(Debug, Default, PartialEq)]
struct Rare {
    uid: Option<Uid>,
    version: Option<Version>,
    rolled_out: Option<RolledOut>,
    remembered: Option<RolledOut>,
    window: Option<UnixTime>,
    wish: Option<u64>,
    held_until: Option<UnixTime>,
    blocked: Blocks,
    pauses_itself: bool,
    problems: u16,
    problem_texts: u64,
    renewing: Option<Version>,
    rolling: Option<Version>,
    renewal_error: Option<Box<str>>,
    rollout_error: Option<Box<str>>,
    stuck: Option<Stuck>,
    stale_pods: u32,
    lacking: u32,
}

impl Words {
    /// The number of a word that one more entry has.
    fn take(&mut self, word: &Arc<str>) -> u32 {
        if let Some(number) = self.numbers.get(word) {
            if let Some(word) = self.all.get_mut(place(*number)) {
                word.uses += 1;
            }
            return *number;
        }
        let new = Word {
            text: Arc::clone(word),
            uses: 1,
        };
        // No API server holds that many namespaces.
        let next = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let number = self.free.pop().unwrap_or(next);
        match self.all.get_mut(place(number)) {
            Some(free) => *free = new,
            None => self.all.push(new),
        }
        self.numbers.insert(Arc::clone(word), number);
        number
    }

    /// One entry fewer has this word.
    fn give_back(&mut self, number: u32) {
        let Some(word) = self.all.get_mut(place(number)) else {
            return;
        };
        word.uses -= 1;
        if word.uses == 0 {
            self.numbers.remove(&word.text);
            word.text = Arc::default();
            self.free.push(number);
        }
    }

    fn word(&self, number: u32) -> Arc<str> {
        { self.all.get(place(number)) }.map_or_else(Arc::default, |word| Arc::clone(&word.text))
    }
}

impl Table {
    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// The shared allocation of a word, or a new one.
    pub(super) fn intern(&self, word: &str) -> Arc<str> {
        let known = self.words.numbers.get_key_value(word);
        known.map_or_else(|| word.into(), |(known, _)| Arc::clone(known))
    }

    pub(super) fn find(&self, key: &SecretRef) -> Option<Id> {
        let number = self.words.numbers.get(&*key.namespace)?;
        let hash = self.hasher.hash_one((number, &*key.name));
        let is = |id: &Id| {
            self.packed(*id)
                .is_some_and(|packed| packed.namespace == *number && *packed.name == *key.name)
        };
        self.by_key.find(hash, is).copied()
    }

    /// An entry; `None` for a number that was freed.
    pub(super) fn get(&self, id: Id) -> Option<Entry> {
        self.packed(id).map(|packed| packed.unpack(&self.words))
    }

    /// The Secret of an entry.
    pub(super) fn key(&self, id: Id) -> Option<SecretRef> {
        let packed = self.packed(id)?;
        Some(SecretRef::new(
            self.words.word(packed.namespace),
            &*packed.name,
        ))
    }

    /// The namespace of an entry.
    pub(super) fn namespace(&self, id: Id) -> Option<Arc<str>> {
        Some(self.words.word(self.packed(id)?.namespace))
    }

    /// The numbers of all entries that satisfy `which`, in no order.
    pub(super) fn ids(&self, which: impl Fn(Short) -> bool) -> impl Iterator<Item = Id> {
        (0..).zip(&self.slots).filter_map(move |(id, slot)| {
            let packed = slot.as_ref()?;
            which(packed.short()).then_some(id)
        })
    }

    /// Stores an entry, replacing the one of the same Secret, and returns its number.
    pub(super) fn put(&mut self, key: &SecretRef, entry: &Entry) -> Id {
        let known = self.find(key);
        let namespace = self.words.take(&key.namespace);
        let issuer = self.words.take(&entry.observed.issuer);
        let packed = Packed::of((namespace, &key.name), issuer, entry);
        let id = known.or_else(|| self.free.pop());
        let id = id.unwrap_or_else(|| {
            self.slots.push(None);
            // Entries take a hundred bytes: memory ends before the numbers do.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(slot) = self.slots.get_mut(place(id))
            && let Some(former) = slot.replace(packed)
        {
            self.words.give_back(former.namespace);
            self.words.give_back(former.issuer);
        }
        if known.is_none() {
            let Self {
                slots,
                hasher,
                by_key,
                ..
            } = self;
            let hash = |id: &Id| {
                let packed = slots.get(place(*id)).and_then(Option::as_ref);
                packed.map_or(0, |it| hasher.hash_one((it.namespace, &*it.name)))
            };
            by_key.insert_unique(hash(&id), id, hash);
        }
        id
    }

    /// Changes an entry; does nothing for a number that was freed.
    pub(super) fn set(&mut self, id: Id, entry: &Entry) {
        if let Some(Some(packed)) = self.slots.get_mut(place(id)) {
            let issuer = self.words.take(&entry.observed.issuer);
            self.words.give_back(packed.issuer);
            *packed = Packed::of((packed.namespace, &packed.name), issuer, entry);
        }
    }

    pub(super) fn remove(&mut self, key: &SecretRef) -> Option<(Id, Entry)> {
        let id = self.find(key)?;
        let entry = self.get(id)?;
        let hash = self
            .hasher
            .hash_one((self.packed(id)?.namespace, &*key.name));
        if let Ok(found) = self.by_key.find_entry(hash, |other| *other == id) {
            found.remove();
        }
        if let Some(former) = self.slots.get_mut(place(id)).and_then(Option::take) {
            self.words.give_back(former.namespace);
            self.words.give_back(former.issuer);
        }
        self.free.push(id);
        Some((id, entry))
    }

    /// Marks every entry as listed by no watch.
    pub(super) fn invalidate_all(&mut self) {
        for packed in self.slots.iter_mut().flatten() {
            packed.source = Source::NONE;
        }
    }

    /// Marks an entry as listed, if it has this version and was listed before.
    pub(super) fn touch(
        &mut self,
        key: &SecretRef,
        version: &Version,
        listed: (Source, u16),
    ) -> bool {
        let Some(id) = self.find(key) else {
            return false;
        };
        match self.slots.get_mut(place(id)) {
            Some(Some(packed)) if packed.is_of(version) && packed.source != Source::NONE => {
                (packed.source, packed.generation) = listed;
                true
            }
            _ => false,
        }
    }

    fn packed(&self, id: Id) -> Option<&Packed> {
        self.slots.get(place(id))?.as_ref()
    }
}

/// The fields of an entry that need no unpacking.
#[derive(Clone, Copy, Debug)]
pub(super) struct Short {
    pub(super) account: AccountId,
    /// The watch that sends it, and the number of the last list of that watch that named it.
    pub(super) listed: (Source, u16),
}

fn place(id: Id) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

impl Packed {
    fn of((namespace, name): (u32, &str), issuer: u32, entry: &Entry) -> Self {
        let observed = &entry.observed;
        let (leaf, fault) = match observed.leaf {
            Ok(leaf) => (leaf, None),
            Err(fault) => (NO_LEAF, Some(fault)),
        };
        let same = leaf.held();
        let (rolled, rolled_out) = match observed.rolled_out {
            None if observed.copied_record => (Rolled::Copied, None),
            None => (Rolled::Unknown, None),
            Some(had) if fault.is_none() && had == same => (Rolled::Same, None),
            Some(had) if fault.is_none() && had == without(same) => (Rolled::SameLeaf, None),
            other => (Rolled::Other, other),
        };
        let (asked, suggested, suggested_at) = match observed.suggestion {
            Suggestion::Unasked => (false, false, UnixTime(0)),
            Suggestion::None => (true, false, UnixTime(0)),
            Suggestion::At(at) => (true, true, at),
        };
        let marks = [
            (observed.rollout_blocked, marks::ROLLOUT_BLOCKED),
            (observed.halted, marks::HALTED),
            (entry.order_open, marks::ORDER_OPEN),
            (entry.pair_broken, marks::PAIR_BROKEN),
            (asked, marks::ASKED),
            (suggested, marks::SUGGESTED),
            (fault == Some(NoLeaf::Absent), marks::ABSENT),
            (fault == Some(NoLeaf::Unreadable), marks::UNREADABLE),
        ];
        let marks = { marks.iter() }.filter(|(is_so, _)| *is_so);
        let marks = marks.fold(0, |all, (_, mark)| all | mark);
        let (uid, version) = (observed.uid.short(), observed.resource_version.short());
        let rare = Rare {
            uid: uid.is_none().then(|| observed.uid.clone()),
            version: version.is_none().then(|| observed.resource_version.clone()),
            rolled_out,
            remembered: entry.remembered,
            window: observed.window,
            wish: observed.wish,
            held_until: observed.held_until,
            blocked: observed.blocked,
            pauses_itself: observed.pauses_itself,
            problems: observed.problems,
            problem_texts: observed.problem_texts,
            renewing: entry.renewing.clone(),
            rolling: entry.rolling.clone(),
            renewal_error: entry.renewal_error.clone(),
            rollout_error: entry.rollout_error.clone(),
            stuck: entry.stuck,
            stale_pods: entry.stale_pods,
            lacking: entry.lacking,
        };
        let renewed = observed.renewed.map(|at| u32::try_from(at.0));
        Self {
            fingerprint: leaf.fingerprint.0,
            with: leaf.with,
            not_before: leaf.not_before.into(),
            not_after: leaf.not_after.into(),
            uid: uid.unwrap_or_default(),
            name: name.into(),
            rare: (rare != Rare::default()).then(|| Box::new(rare)),
            version: version.unwrap_or_default(),
            account: observed.account,
            due_at: observed.renewal.map_or(UnixTime(0), |due| due.at).into(),
            suggested_at: suggested_at.into(),
            renew_at: entry.renew_at.into(),
            roll_at: entry.roll_at.into(),
            namespace,
            issuer,
            renewed: renewed.and_then(Result::ok).unwrap_or(NOT_RENEWED),
            generation: entry.generation,
            source: entry.source,
            renewal: observed.renewal.map(|due| due.reason),
            heed: observed.heed,
            rolled,
            marks,
        }
    }

    fn unpack(&self, words: &Words) -> Entry {
        let rare = self.rare.as_deref();
        let leaf = LeafFacts {
            fingerprint: Fingerprint(self.fingerprint),
            not_before: self.not_before.into(),
            not_after: self.not_after.into(),
            with: self.with,
        };
        let rolled_out = match self.rolled {
            Rolled::Unknown | Rolled::Copied => None,
            Rolled::Same => Some(leaf.held()),
            Rolled::SameLeaf => Some(without(leaf.held())),
            Rolled::Other => rare.and_then(|rare| rare.rolled_out),
        };
        let is = |mark| self.marks & mark != 0;
        let leaf = match (is(marks::ABSENT), is(marks::UNREADABLE)) {
            (true, _) => Err(NoLeaf::Absent),
            (_, true) => Err(NoLeaf::Unreadable),
            _ => Ok(leaf),
        };
        let suggestion = match (is(marks::ASKED), is(marks::SUGGESTED)) {
            (false, _) => Suggestion::Unasked,
            (true, false) => Suggestion::None,
            (true, true) => Suggestion::At(self.suggested_at.into()),
        };
        let uid = rare.and_then(|rare| rare.uid.clone());
        Entry {
            observed: Observed {
                uid: uid.unwrap_or_else(|| Uid::from(self.uid)),
                resource_version: self.version(),
                issuer: words.word(self.issuer),
                leaf,
                rolled_out,
                renewal: self.renewal.map(|reason| Due {
                    at: self.due_at.into(),
                    reason,
                }),
                heed: self.heed,
                suggestion,
                window: rare.and_then(|rare| rare.window),
                account: self.account,
                wish: rare.and_then(|rare| rare.wish),
                held_until: rare.and_then(|rare| rare.held_until),
                blocked: rare.map_or(Blocks::Nothing, |rare| rare.blocked),
                copied_record: matches!(self.rolled, Rolled::Copied),
                rollout_blocked: is(marks::ROLLOUT_BLOCKED),
                pauses_itself: rare.is_some_and(|rare| rare.pauses_itself),
                halted: is(marks::HALTED),
                renewed: (self.renewed != NOT_RENEWED).then(|| UnixTime(self.renewed.into())),
                problems: rare.map_or(0, |rare| rare.problems),
                problem_texts: rare.map_or(0, |rare| rare.problem_texts),
            },
            remembered: rare.and_then(|rare| rare.remembered),
            renew_at: self.renew_at.into(),
            roll_at: self.roll_at.into(),
            renewing: rare.and_then(|rare| rare.renewing.clone()),
            rolling: rare.and_then(|rare| rare.rolling.clone()),
            renewal_error: rare.and_then(|rare| rare.renewal_error.clone()),
            rollout_error: rare.and_then(|rare| rare.rollout_error.clone()),
            stuck: rare.and_then(|rare| rare.stuck),
            stale_pods: rare.map_or(0, |rare| rare.stale_pods),
            lacking: rare.map_or(0, |rare| rare.lacking),
            order_open: is(marks::ORDER_OPEN),
            pair_broken: is(marks::PAIR_BROKEN),
            generation: self.generation,
            source: self.source,
        }
    }

    fn version(&self) -> Version {
        let odd = self.rare.as_deref().and_then(|rare| rare.version.clone());
        odd.unwrap_or_else(|| Version::from(self.version))
    }

    fn is_of(&self, version: &Version) -> bool {
        let odd = self.rare.as_deref().and_then(|rare| rare.version.as_ref());
        match (odd, version.short()) {
            (None, Some(number)) => number == self.version,
            (Some(odd), None) => odd == version,
            _ => false,
        }
    }

    fn short(&self) -> Short {
        Short {
            account: self.account,
            listed: (self.source, self.generation),
        }
    }
}

/// Means not renewed: nothing was in 1970.
const NOT_RENEWED: u32 = 0;
/// Means no leaf.
const NO_LEAF: LeafFacts = LeafFacts {
    fingerprint: Fingerprint([0; 32]),
    not_before: UnixTime(0),
    not_after: UnixTime(0),
    with: ChainAndCa::NONE,
};

/// A record as written by versions that knew only leaves.
fn without(had: RolledOut) -> RolledOut {
    match had {
        RolledOut::Leaf {
            fingerprint,
            not_after,
            ..
        } => RolledOut::Leaf {
            fingerprint,
            not_after,
            with: None,
        },
        RolledOut::None => RolledOut::None,
    }
}

#[cfg(test)]
mod tests;

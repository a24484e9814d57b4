//! What is known of one annotated Secret, and when its tasks are due.

use std::sync::Arc;
use std::time::Duration;

use super::Source;
use crate::certificate::Fingerprint;
use crate::schedule::due::{Due, Heed, Never, Suggestion};
use crate::schedule::rate_limits::AccountId;
use crate::secret::compact::{Uid, Version};
use crate::secret::parts::ChainAndCa;
use crate::secret::state::RolledOut;
use crate::time::UnixTime;

/// How long a renewal by our own rule waits for the CA's renewal information, should nobody say that it cannot be had.
const POLL_PATIENCE: Duration = Duration::from_secs(300);
/// Bytes that are kept of an error: what a CA, an API server or a field manager says stands in it.
pub(super) const LONGEST_ERROR: usize = 1024;

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
    pub(super) remembered: Option<RolledOut>,
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
    /// SecretRef and certificate do not belong together, or no server loads them; why, is the rollout's error.
    pub pair_broken: bool,
    /// Workloads that lack the leaf although the others have it, by the last rollout.
    pub lacking: u32,
    /// An order of a former run, or one that could not be ended, is on record: whatever is due, a renewal looks after it.
    pub order_open: bool,
    pub(super) generation: u16,
    pub(super) source: Source,
}

/// What the index keeps of an error's text: the beginning of one that is long.
#[must_use]
pub fn kept(error: &str) -> &str {
    &error[..error.floor_char_boundary(LONGEST_ERROR)]
}

pub(super) fn shortened(error: Box<str>) -> Box<str> {
    match kept(&error) {
        short if short.len() < error.len() => short.into(),
        _ => error,
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

    pub(super) fn error_of(&self, task: Task) -> Option<&str> {
        match task {
            Task::Renew => self.renewal_error.as_deref(),
            Task::Roll => self.rollout_error.as_deref(),
        }
    }

    /// A task ended with this error, or none.
    pub(super) fn ended(&mut self, task: Task, error: Option<Box<str>>, stuck: Option<Stuck>) {
        let error = error.map(shortened);
        match task {
            Task::Renew => (self.renewal_error, self.stuck) = (error, stuck),
            Task::Roll => self.rollout_error = error,
        }
    }

    /// The Secret holds another leaf: what was said of the one before is void, and so is what kept it from being renewed
    /// where that is no longer due.
    pub(super) fn forget_errors(&mut self, now: UnixTime) {
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
    pub(super) fn first_seen(&self, observed: &Observed) -> Option<RolledOut> {
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
    pub(super) fn is_doubted_by(&self, observed: &Observed) -> bool {
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

    /// Whether a rollout that is due waits for its window, a person or a renewal: nobody looks at the pair meanwhile.
    #[must_use]
    pub fn is_held(&self, now: UnixTime) -> bool {
        let shut = self.observed.window.is_some_and(|opens| opens > now);
        shut || self.observed.rollout_blocked || self.renewal_due(now)
    }

    /// Whether the Secret waits for a renewal at `now`.
    #[must_use]
    pub fn renewal_due(&self, now: UnixTime) -> bool {
        self.observed.due().is_ok_and(|due| due.at <= now)
    }

    pub(super) fn schedule(&mut self, now: UnixTime, settle: Duration, retry_at: Option<UnixTime>) {
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

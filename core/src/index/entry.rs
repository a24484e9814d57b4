//! What is known of one annotated Secret, and when its tasks are due.

use std::sync::Arc;
use std::time::Duration;

use super::Source;
use crate::certificate::Fingerprint;
use crate::schedule::due::{AriPolicy, Due, Never, Suggestion};
use crate::schedule::rate_limits::AccountId;
use crate::secret::object::compact::{Uid, Version};
use crate::secret::parts::ChainAndCa;
use crate::secret::settings::Blocks;
use crate::secret::state::RolledOut;
use crate::time::UnixTime;

/// Longest wait of a renewal by our own rule for the CA's renewal information, unless that is known to be unavailable.
const POLL_PATIENCE: Duration = Duration::from_secs(300);
/// Most bytes kept of an error, which may quote a CA, an API server or a field manager.
pub(super) const LONGEST_ERROR: usize = 1024;

/// Validity and identity of a leaf, with the chain and CA beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafFacts {
    /// SHA-256 of the DER.
    pub fingerprint: Fingerprint,
    /// Valid from.
    pub not_before: UnixTime,
    /// Valid until.
    pub not_after: UnixTime,
    /// The chain and the CA certificates, as far as they count.
    pub with: ChainAndCa,
}

impl LeafFacts {
    /// The same facts, as the record of what workloads have.
    #[must_use]
    pub fn held(&self) -> RolledOut {
        RolledOut::Leaf {
            fingerprint: self.fingerprint,
            not_after: self.not_after,
            with: Some(self.with),
        }
    }
}

/// What a watch event says of an annotated Secret.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The object's uid.
    pub uid: Uid,
    /// The object's resourceVersion.
    pub resource_version: Version,
    /// The issuer's name, or `external`.
    pub issuer: Arc<str>,
    /// The leaf, or why there is none.
    pub leaf: Result<LeafFacts, NoLeaf>,
    /// What the workloads have, according to the Secret.
    pub rolled_out: Option<RolledOut>,
    /// When to renew by our own rule; see [`Observed::due`].
    pub renewal: Result<Due, Never>,
    /// What the CA's renewal information may change about `renewal`.
    pub heed: AriPolicy,
    /// The CA's renewal information.
    pub suggestion: Suggestion,
    /// Earliest instant for what is due: the next change window, or the instant that overrules it.
    pub window: Option<UnixTime>,
    /// The account of the ledger that the renewal is counted on.
    pub account: AccountId,
    /// The `renew-now` value, hashed, if it was not served yet.
    pub wish: Option<u64>,
    /// The Secret is paused, or an annotation that governs rollouts does not parse.
    pub rollout_blocked: bool,
    /// Its own annotation pauses it, whatever the config does.
    pub pauses_itself: bool,
    /// What its annotations block because they are invalid. Whatever blocks is one of its problems.
    pub blocked: Blocks,
    /// What is asked for by `renew-now` is held until then: the certificate is younger than a tenth of its lifetime.
    pub held_until: Option<UnixTime>,
    /// The record of what the workloads have was written for another Secret.
    pub copied_record: bool,
    /// A rollout was halted.
    pub halted: bool,
    /// When cert-renew last wrote a certificate into it, according to the Secret: whole seconds, from 1970 to 2106;
    /// other instants are ignored.
    pub renewed: Option<UnixTime>,
    /// Number of problems of its annotations.
    pub problems: u16,
    /// A hash of the problems, so that each is reported once.
    pub problem_texts: u64,
}

impl Observed {
    /// When to renew and why, including the CA's renewal information.
    ///
    /// # Errors
    /// [`Never`] when there is nothing to wait for.
    pub fn due(&self) -> Result<Due, Never> {
        let own = self.renewal?;
        let suggested = self.suggestion.instant().zip(self.leaf.ok());
        let taken =
            suggested.and_then(|(at, leaf)| self.heed.takes(at, leaf.not_before, leaf.not_after));
        Ok(own.or_suggested(taken))
    }
}

/// Why there is no leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLeaf {
    /// There is no certificate yet.
    Absent,
    /// The bytes are not a certificate.
    Unreadable,
}

/// The tasks of a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Order a certificate from the CA.
    Renew,
    /// Bring the leaf to the workloads.
    Roll,
}

/// Why a renewal waits for a person. Retrying will not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// The CA has paused the names for our account.
    Paused,
    /// Another program writes the Secret, or keeps restoring its certificate.
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
    /// Version that the running renewal started from.
    pub renewing: Option<Version>,
    /// Version that the running rollout started from. Neither task waits for the other.
    pub rolling: Option<Version>,
    /// Why the last renewal failed or waits; for metrics and the status page.
    pub renewal_error: Option<Box<str>>,
    /// Why the last rollout failed or waits. Renewal and rollout run side by side; the end of one does not clear the
    /// other's error.
    pub rollout_error: Option<Box<str>>,
    /// The renewal's error needs a person.
    pub stuck: Option<Stuck>,
    /// Pods that serve an earlier leaf than the Secret's, by the last rollout that probed them.
    pub stale_pods: u32,
    /// Key and certificate do not belong together, or no server loads them; `rollout_error` says why.
    pub pair_broken: bool,
    /// Workloads that lack the leaf while the others have it, by the last rollout.
    pub lacking: u32,
    /// An order of an earlier run, or one that could not be ended, is on record: a renewal handles it, whatever is due.
    pub order_open: bool,
    /// Number of the last list of `source` that named it.
    pub(super) generation: u16,
    /// The watch that sends it.
    pub(super) source: Source,
}

/// The part of an error's text that the index keeps: its beginning.
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
    /// What the workloads have: by the annotation, or remembered from before the annotation was lost.
    #[must_use]
    pub fn rolled_out(&self) -> Option<RolledOut> {
        self.observed.rolled_out.or(self.remembered)
    }

    /// The errors of the renewal, the rollout, or both, in words.
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

    /// Records the end of a task, with its error or none.
    pub(super) fn ended(&mut self, task: Task, error: Option<Box<str>>, stuck: Option<Stuck>) {
        let error = error.map(shortened);
        match task {
            Task::Renew => (self.renewal_error, self.stuck) = (error, stuck),
            Task::Roll => self.rollout_error = error,
        }
    }

    /// The Secret holds another leaf: drops the errors of the former one, and the delay of its renewal if that is no
    /// longer due.
    pub(super) fn forget_errors(&mut self, now: UnixTime) {
        self.rollout_error = None;
        if !self.renewal_due(now) && !self.order_open {
            (self.renewal_error, self.stuck) = (None, None);
        }
    }

    /// Drops the error of a renewal that is not ours to try any more.
    pub(super) fn forget_renewals(&mut self) {
        let ours = self.observed.renewal.map_or_else(Never::is_pause, |_| true);
        if !ours && !self.order_open {
            (self.renewal_error, self.stuck) = (None, None);
        }
    }

    /// Whether the workloads have another leaf than the Secret's.
    #[must_use]
    pub fn rollout_due(&self) -> bool {
        match (&self.observed.leaf, &self.observed.rolled_out) {
            (Ok(leaf), Some(had @ RolledOut::Leaf { with, .. })) => {
                with.is_none() || !had.is(leaf.fingerprint, leaf.with)
            }
            // Nothing to roll onto, and `none` is on record.
            (Err(_), Some(_)) => false,
            // A program that copies the Secret restores the copied record after each write: do not write it again.
            (Ok(leaf), None) if self.observed.copied_record && self.has(leaf) => false,
            // First sight, a lost record, or a first certificate: the rollout decides which.
            (_, None) | (Ok(_), Some(RolledOut::None)) => true,
        }
    }

    /// Whether the workloads are known to have this leaf, with the chain and CA beside it.
    #[must_use]
    pub fn has(&self, leaf: &LeafFacts) -> bool {
        let had = self.rolled_out();
        had.is_some_and(|had| had.is(leaf.fingerprint, leaf.with))
    }

    /// Whether the record is missing, or only remembered here. It is written even while the window is shut, so that a
    /// later change is recognised as one.
    #[must_use]
    pub fn is_unrecorded(&self) -> bool {
        let unknown = match (self.observed.rolled_out, self.observed.leaf) {
            (None, _) => !self.observed.copied_record,
            // Written by an earlier version, or a part was removed.
            (Some(had), Ok(leaf)) => {
                had.with().is_none() && had.fingerprint() == Some(leaf.fingerprint)
            }
            (Some(_), Err(_)) => false,
        };
        unknown && self.observed.renewal != Err(Never::NotAnnotated)
    }

    /// What the workloads have if a Secret changed before anything was recorded: its content when it was first seen.
    pub(super) fn first_seen(&self, observed: &Observed) -> Option<RolledOut> {
        let is_new = self.observed.leaf != observed.leaf;
        let is_ours = self.observed.renewal != Err(Never::NotAnnotated);
        let held = self
            .observed
            .leaf
            .map_or(RolledOut::None, |leaf| leaf.held());
        (is_new && is_ours).then_some(held)
    }

    /// Whether a version brings another leaf, or the same with other certificates beside it, together with the record
    /// that the workloads have it; or brings that record before the doubted one was restored. We never write both at
    /// once: the Secret was copied or restored with our annotations, or the watch has missed a version. The pod
    /// templates decide.
    pub(super) fn is_doubted_by(&self, observed: &Observed) -> bool {
        let (Ok(old), Ok(new)) = (self.observed.leaf, observed.leaf) else {
            return false;
        };
        let is_new = |had: RolledOut| had.is(new.fingerprint, new.with);
        let another = (old.fingerprint, old.with) != (new.fingerprint, new.with);
        // A remembered record is written before anything else, unless the record is a copy.
        let doubts = self.remembered.is_some() && !self.observed.copied_record;
        (another || doubts)
            && observed.rolled_out.is_some_and(is_new)
            && self.rolled_out().is_some_and(|had| !is_new(had))
    }

    /// Whether a due rollout waits for its window, a person or a renewal: the pair is not checked until then.
    #[must_use]
    pub fn is_held(&self, now: UnixTime) -> bool {
        let shut = self.observed.window.is_some_and(|opens| opens > now);
        shut || self.observed.rollout_blocked || self.awaits_issue(now)
    }

    /// Whether what the Secret holds is about to be replaced: it is due for a renewal, which is not held for days because
    /// the certificate is young.
    #[must_use]
    pub fn awaits_issue(&self, now: UnixTime) -> bool {
        self.renewal_due(now) && self.held_until(now).is_none()
    }

    /// Until when a renewal that was asked for is held because the certificate is young. A pair that no server can load is
    /// a good cause, which is not held.
    #[must_use]
    pub fn held_until(&self, now: UnixTime) -> Option<UnixTime> {
        let until = self.observed.held_until.filter(|_| !self.pair_broken)?;
        (until > now && self.renewal_due(now)).then_some(until)
    }

    /// Whether the Secret waits for a renewal at `now`.
    #[must_use]
    pub fn renewal_due(&self, now: UnixTime) -> bool {
        self.observed.due().is_ok_and(|due| due.at <= now)
    }

    pub(super) fn schedule(&mut self, now: UnixTime, settle: Duration, retry_at: Option<UnixTime>) {
        let open = self.observed.window.unwrap_or_default();
        let unasked = self.observed.suggestion == Suggestion::Unasked
            && self.observed.heed != AriPolicy::Nothing;
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
        // No rollout onto a Secret that is itself due for an issue, as its content will be replaced, unless what the
        // workloads have has expired and the issue keeps failing.
        let served_expired = matches!(self.rolled_out(),
            Some(RolledOut::Leaf { not_after, .. }) if not_after <= now);
        let waits_for_issue =
            self.awaits_issue(now) && (self.observed.leaf.is_err() || !served_expired);
        self.roll_at = if !self.rollout_due() || waits_for_issue {
            UnixTime::NEVER
        } else if self.is_unrecorded() {
            now.min(self.roll_at)
        } else if !self.observed.rollout_blocked {
            // A running debounce is not extended.
            (now + settle).min(self.roll_at).max(open)
        } else {
            UnixTime::NEVER
        };
    }
}

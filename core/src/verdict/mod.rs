//! The verdict on one Secret: its state and why, when it is renewed and by whose word, what its workloads have, and the
//! next thing to do. The command, the status page, its JSON and the metrics all show this and nothing else.
//!
//! Input is an entry of the index and what is kept beside it. Pure. Without an operator, [`of_secret`] judges what a
//! Secret says by the same functions; what only the operator knows (the CA's renewal information, failures in a row) is
//! missing then.

pub mod detail;
pub mod held;
mod reason;
pub mod since;
pub mod state_line;
pub mod unmanaged;
mod why;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::assess;
use crate::config::Config;
use crate::index::{Entry, Index, LeafFacts, NoLeaf, Row, Shown, Source};
use crate::schedule::due::{AT_ONCE, Never};
use crate::secret::data::data_keys::TLS_TYPE;
use crate::secret::object::thin::ThinSecret;
use crate::secret::settings::{Blocks, DEFAULT_CLASS};
use crate::secret::state::RolledOut;
use crate::secret::used_by::UsedBy;
use crate::secret::{SecretRef, keys};
use crate::time::UnixTime;
use detail::{Detail, Remembered};
pub use reason::{NAMESPACE, for_operator_in};
use unmanaged::Unmanaged;
pub use why::Why;

/// A certificate has little life left once less than this share of its lifetime is: one that nobody here renews is in
/// trouble, as its owner is late by then; the others are shown in amber.
const LITTLE_SHARE: u32 = 5;

/// The state of a certificate in one word: the first that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has expired.
    Expired,
    /// It is due and the last try failed.
    RenewalFailing,
    /// The Secret has none.
    Absent,
    /// The Secret's content is no certificate.
    Unreadable,
    /// The private key is not the certificate's, or servers cannot load the pair.
    PairBroken,
    /// Little of its lifetime is left, and cert-renew does not renew it.
    Expiring,
    /// The last try to roll it out failed, or a rollout is halted.
    RolloutFailing,
    /// Its annotations or the config hold its renewal or its rollout up.
    Blocked,
    /// It is due and waits for its turn, its window or its CA.
    Due,
    /// A new one is asked for, and waits until the present one is a tenth of its lifetime old.
    Held,
    /// The Secret says `paused`, or the config pauses everything.
    Paused,
    /// None of the others.
    Ok,
}

impl State {
    /// All states, the worst first.
    pub const ALL: [Self; 12] = [
        Self::Expired,
        Self::RenewalFailing,
        Self::Absent,
        Self::Unreadable,
        Self::PairBroken,
        Self::Expiring,
        Self::RolloutFailing,
        Self::Blocked,
        Self::Due,
        Self::Held,
        Self::Paused,
        Self::Ok,
    ];

    /// The state of an entry at `now`.
    #[must_use]
    pub fn of(entry: &Entry, now: UnixTime) -> Self {
        let seen = &entry.observed;
        let due = entry.renewal_due(now);
        let held = entry.held_until(now).is_some();
        let refused = is_refused(entry);
        match seen.leaf {
            Ok(leaf) if leaf.not_after < now => Self::Expired,
            _ if entry.renewal_error.is_some() && due && !held => Self::RenewalFailing,
            Err(NoLeaf::Absent) if refused => Self::Blocked,
            Err(NoLeaf::Absent) => Self::Absent,
            Err(NoLeaf::Unreadable) => Self::Unreadable,
            Ok(_) if entry.pair_broken => Self::PairBroken,
            Ok(leaf) if !refused && seen.renewal.is_err() && has_little_left(&leaf, now) => {
                Self::Expiring
            }
            Ok(_) if entry.rollout_due() && (entry.rollout_error.is_some() || seen.halted) => {
                Self::RolloutFailing
            }
            Ok(_) if refused || is_held_up(entry) => Self::Blocked,
            Ok(_) if held => Self::Held,
            Ok(_) if due => Self::Due,
            Ok(_) if is_paused(entry) => Self::Paused,
            Ok(_) => Self::Ok,
        }
    }

    /// Its value of a label, and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::RenewalFailing => "renewal_failing",
            Self::Absent => "absent",
            Self::Unreadable => "unreadable",
            Self::PairBroken => "pair_broken",
            Self::Expiring => "expiring",
            Self::RolloutFailing => "rollout_failing",
            Self::Blocked => "blocked",
            Self::Due => "due",
            Self::Held => "held",
            Self::Paused => "paused",
            Self::Ok => "ok",
        }
    }

    /// Whether it needs attention.
    #[must_use]
    pub fn is_trouble(self) -> bool {
        self <= Self::Blocked
    }
}

/// Whether nothing can be asked for: the names are unknown, the config does not grant them, the Secret is not ours to
/// write, or nothing declares it any more.
fn is_refused(entry: &Entry) -> bool {
    matches!(
        entry.observed.renewal,
        Err(Never::NoNames
            | Never::UnknownIssuer
            | Never::NotAllowed
            | Never::OwnedByAnother
            | Never::Immutable
            | Never::Undeclared)
    )
}

/// Whether an invalid annotation holds a renewal or a rollout up.
fn is_held_up(entry: &Entry) -> bool {
    let seen = &entry.observed;
    match seen.renewal {
        Ok(_) => seen.blocked != Blocks::Nothing,
        Err(Never::Paused | Never::AllPaused) => false,
        Err(_) => seen.blocked.rollout(),
    }
}

/// Whether it is paused: of a certificate that another program renews, its rollouts are.
fn is_paused(entry: &Entry) -> bool {
    let seen = &entry.observed;
    match seen.renewal {
        // Nothing but a pause holds them up where no annotation is invalid.
        Err(Never::External) => seen.rollout_blocked && !seen.blocked.rollout(),
        Err(never) => never.is_pause(),
        Ok(_) => false,
    }
}

fn has_little_left(leaf: &LeafFacts, now: UnixTime) -> bool {
    now >= little_left_from(leaf)
}

/// From when on little of its lifetime is left.
fn little_left_from(leaf: &LeafFacts) -> UnixTime {
    little_left_of(leaf.not_before, leaf.not_after)
}

fn little_left_of(not_before: UnixTime, not_after: UnixTime) -> UnixTime {
    let lifetime = not_after.since(not_before);
    not_after - lifetime / LITTLE_SHARE
}

/// The progress of the certificate's rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rollout {
    /// Continues only after a person has looked.
    Halted,
    /// In progress.
    Pending,
    /// Waits for a change window, a renewal or a person.
    Waits,
    /// Nothing is recorded yet, or there is no certificate.
    None,
    /// The workloads have it.
    Done,
}

impl Rollout {
    /// All of them, the worst first.
    pub const ALL: [Self; 5] = [
        Self::Halted,
        Self::Pending,
        Self::Waits,
        Self::None,
        Self::Done,
    ];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Halted => "halted",
            Self::Pending => "pending",
            Self::Waits => "waits",
            Self::None => "none",
            Self::Done => "done",
        }
    }

    /// The rollout of an entry at `now`.
    #[must_use]
    pub fn of(entry: &Entry, now: UnixTime) -> Self {
        match (unrolled(entry), &entry.observed.leaf, entry.rolled_out()) {
            _ if entry.observed.halted => Self::Halted,
            (true, ..) if moves(entry, now) => Self::Pending,
            (true, ..) => Self::Waits,
            (false, Err(_), _) | (false, _, None) => Self::None,
            (false, Ok(_), Some(_)) => Self::Done,
        }
    }
}

/// Whether the workloads are known to have another leaf than the Secret. A Secret without a record does not count.
#[must_use]
pub fn unrolled(entry: &Entry) -> bool {
    if entry.observed.renewal == Err(Never::NotAnnotated) {
        return false;
    }
    match (&entry.observed.leaf, entry.rolled_out()) {
        (Ok(leaf), Some(RolledOut::Leaf { .. })) => !entry.has(leaf),
        (Ok(_), Some(RolledOut::None)) => true,
        _ => false,
    }
}

/// Whether a rollout waits for nothing.
#[must_use]
pub fn moves(entry: &Entry, now: UnixTime) -> bool {
    let queued = entry.roll_at != UnixTime::NEVER;
    let running = entry.rolling.is_some();
    let open = entry.observed.window.is_none_or(|window| window <= now);
    (queued || running) && open && !entry.observed.rollout_blocked && !entry.observed.halted
}

/// When a renewal is due according to the Secret and the CA, without back-off and rate limits, which only delay it.
#[must_use]
pub fn renew_at(entry: &Entry) -> Option<UnixTime> {
    let due = entry.observed.due().ok()?;
    Some(due.at.max(entry.observed.window.unwrap_or_default()))
}

/// When it will be renewed, as far as is known: what is due is renewed now, unless it is held or a next try is set.
fn renews(entry: &Entry, now: UnixTime) -> Option<UnixTime> {
    let at = renew_at(entry)?;
    if at > now {
        return Some(at);
    }
    let set = entry.renewal_error.is_some() && entry.renew_at != UnixTime::NEVER;
    let next_try = Some(entry.renew_at).filter(|at| set && *at > now);
    Some(entry.held_until(now).or(next_try).unwrap_or(now))
}

/// What cert-renew thinks of one Secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// The class that it asks for, where that is another than the report's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Box<str>>,
    /// Its state in a word.
    pub state: State,
    /// Why it is in that state, in a sentence.
    pub reason: Box<str>,
    /// Since when it is in that state, where that is known; see [`since`].
    pub since: Option<UnixTime>,
    /// The issuer that renews it, or `external`.
    pub issuer: Box<str>,
    /// URL of the CA account that ordered the certificate, for a CAA record with `accounturi`.
    pub account: Option<Box<str>>,
    /// Names in the certificate, or those to ask for where there is none: the first of them.
    pub names: Vec<Box<str>>,
    /// Number of names beside those.
    pub more_names: usize,
    /// Start of validity.
    pub not_before: Option<UnixTime>,
    /// End of validity.
    pub not_after: Option<UnixTime>,
    /// When it is renewed, with the CA's renewal information in it; the instant of the report where that is now. None if
    /// cert-renew never renews it.
    pub renews: Option<UnixTime>,
    /// By whose word, or why never: a [`Why`].
    pub renews_why: Box<str>,
    /// How far the workloads are.
    pub rollout: Rollout,
    /// End of what the workloads have, if that is another certificate.
    pub served_until: Option<UnixTime>,
    /// The workloads that use it, according to the last rollout.
    pub used_by: Option<UsedBy>,
    /// Pods that serve an earlier certificate although every step finished.
    pub stale_pods: u32,
    /// Renewals that failed in a row.
    pub failures: u32,
    /// When the next try is, if the last one failed or was held back.
    pub next_try: Option<UnixTime>,
    /// The last error of its renewal, its rollout, or both.
    pub last_error: Option<Box<str>>,
    /// What is wrong with its annotations or its certificate: which, the value, and what was expected.
    pub problems: Vec<Box<str>>,
    /// The next thing to do, as a command to copy; words in capitals are to be replaced.
    pub next: Option<Box<str>>,
    /// What is told of one Secret alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Box<Detail>>,
    /// The line that the operator has written on the Secret last, where no operator was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<Box<str>>,
}

/// What is known of a Secret beside its entry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// Names, workloads and account.
    pub shown: Option<&'a Shown>,
    /// The problems, one a line.
    pub problems: Option<&'a str>,
    /// The number of those that were looked up.
    pub looked_up: u16,
    /// Renewals that failed in a row.
    pub failures: u32,
}

impl Verdict {
    /// The verdict on an entry at `now`.
    #[must_use]
    pub fn of(now: UnixTime, key: &SecretRef, entry: &Entry, beside: Beside<'_>) -> Self {
        let seen = &entry.observed;
        let leaf = seen.leaf.ok();
        let state = State::of(entry, now);
        let served = entry.rolled_out().filter(|_| unrolled(entry));
        let shown = beside.shown;
        let (names, more_names) = shown.map_or((Vec::new(), 0), |it| assess::unlisted(&it.names));
        let problems = problems(entry, beside);
        let rollout = Rollout::of(entry, now);
        let used_by: Option<UsedBy> = shown.and_then(|it| it.used_by.as_deref()?.parse().ok());
        let used_by = used_by.map(|it| UsedBy {
            // What pods were asked at the end of the rollout before says nothing of this certificate.
            proven: it.proven.filter(|_| rollout == Rollout::Done),
            ..it
        });
        let declared = shown.and_then(|it| it.declared.as_deref());
        let next = reason::Commands { key, declared };
        let next_try = match state {
            // A person ends the halt.
            State::RolloutFailing if seen.halted => None,
            State::RolloutFailing => Some(entry.roll_at),
            State::Held => entry.held_until(now),
            _ => Some(entry.renew_at).filter(|_| entry.renewal_error.is_some()),
        };
        let last_error = match state {
            // It says that it is held, which is no error.
            State::Held => entry.rollout_error.clone(),
            _ => entry.last_error(),
        };
        Self {
            namespace: (*key.namespace).into(),
            name: (*key.name).into(),
            class: None,
            state,
            reason: reason::reason(entry, state, now).into(),
            since: since::since(entry, state, shown.and_then(|it| it.since.as_deref()), now),
            issuer: (*seen.issuer).into(),
            account: shown.and_then(|it| Some((**it.account.as_ref()?).into())),
            names,
            more_names,
            not_before: leaf.map(|leaf| leaf.not_before),
            not_after: leaf.map(|leaf| leaf.not_after),
            renews: renews(entry, now),
            renews_why: Why::of(seen.due(), seen.heed, seen.blocked).as_str().into(),
            rollout,
            served_until: match served {
                Some(RolledOut::Leaf { not_after, .. }) => Some(not_after),
                _ => None,
            },
            stale_pods: entry.stale_pods,
            failures: beside.failures,
            next_try: next_try.filter(|at| *at != UnixTime::NEVER && *at != AT_ONCE),
            last_error,
            next: next
                .next(entry, state, &problems, used_by.as_ref())
                .map(Into::into),
            problems,
            used_by,
            detail: None,
            said: None,
        }
    }

    /// Names the operator's namespace in the next thing to do, where that needs it.
    pub fn name_operator(&mut self, namespace: &str) {
        let next = self.next.take();
        self.next = next.map(|command| for_operator_in(namespace, &command).into());
    }

    /// Whether less than a fifth of the certificate's lifetime is left, whatever its state is.
    #[must_use]
    pub fn has_little_left(&self, now: UnixTime) -> bool {
        let validity = self.not_before.zip(self.not_after);
        validity.is_some_and(|(from, to)| now >= little_left_of(from, to))
    }

    /// The names with commas between them, and the number of those that are left out.
    #[must_use]
    pub fn names_in_words(&self) -> String {
        let names = self.names.join(", ");
        match self.more_names {
            0 => names,
            more => format!("{names} and {more} more"),
        }
    }

    /// The verdict on a row of the index.
    #[must_use]
    pub fn of_row(now: UnixTime, index: &Index, row: Row, failures: u32) -> Option<Self> {
        let (key, entry) = index.row(row)?;
        let problems = index.problems(row);
        let beside = Beside {
            shown: index.shown(row),
            problems: problems.as_deref(),
            looked_up: index.looked_up(row),
            failures,
        };
        Some(Self::of(now, &key, &entry, beside))
    }
}

/// The texts of the problems, or how many there are where the index had no room for them.
fn problems(entry: &Entry, beside: Beside<'_>) -> Vec<Box<str>> {
    let count = entry.observed.problems.saturating_add(beside.looked_up);
    match (beside.problems, count) {
        (_, 0) => Vec::new(),
        (Some(texts), _) => texts.lines().map(Into::into).collect(),
        (None, count) => vec![format!("{count} in all; the Events of the Secret name them").into()],
    }
}

/// The verdict on what a Secret says, without an operator; None if it is not annotated. Without a config, of which the
/// reader may not know, its issuer is taken to exist and to be allowed its names.
#[must_use]
pub fn of_secret(now: UnixTime, secret: &ThinSecret, config: Option<&Config>) -> Option<Verdict> {
    let head = &secret.head;
    let key = SecretRef {
        namespace: head.namespace().into(),
        name: head.name().into(),
    };
    let own = config.and_then(|config| assess::of_thin(now, &key, secret, config));
    let is_tls = secret.kind == TLS_TYPE;
    let missed = |config: &Config| { &config.watch }.misses(&key.namespace, is_tls, head.managed);
    // The operator does not see it.
    if own.is_some() && config.and_then(missed).is_some() {
        return None;
    }
    let (assessment, is_ours) = match own {
        Some(assessment) => (assessment, true),
        // Of another class, or the config is not known.
        None => (assess::of_thin_alone(now, &key, secret)?, config.is_none()),
    };
    let mut index = Index::default();
    let retry_at = head
        .annotation(keys::RETRY_AT)
        .and_then(|at| at.parse().ok());
    let observed = assessment.observed(head.uid(), head.resource_version());
    let source = Source(0);
    index.apply(now, &key, observed, source, Duration::ZERO, retry_at);
    index.recall(&key, head.annotation(keys::LAST_ERROR), None);
    let shown = Shown {
        chain: secret.above().map(Arc::new),
        ..assessment.shown(head)
    };
    index.show(&key, shown);
    index.tell_problems(&key, &assessment.problem_texts());
    let (row, _) = index.iter().next()?;
    let class = || {
        let class = assessment.settings.class.as_deref();
        class.unwrap_or(DEFAULT_CLASS).into()
    };
    let verdict = Verdict::of_row(now, &index, row, 0)?;
    let detail = Detail::of_row(&index, row, Remembered::default());
    Some(Verdict {
        class: (!is_ours || config.is_none()).then(class),
        detail: detail.map(Box::new),
        // A try that is past says nothing about the next one.
        next_try: verdict.next_try.filter(|at| *at > now),
        said: head.annotation(keys::STATE).map(Into::into),
        ..verdict
    })
}

/// All verdicts that an operator, or a reader of Secrets, gives at one instant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The operator's version; None where no operator was asked.
    pub version: Option<Box<str>>,
    /// The operator's class, if it is known.
    pub class: Option<Box<str>>,
    /// The namespace of the operator, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_namespace: Option<Box<str>>,
    /// The replica that answered; None where no operator was asked.
    pub replica: Option<Box<str>>,
    /// Who leads.
    pub leader: Leader,
    /// The instant of the verdicts.
    pub as_of: UnixTime,
    /// What holds for all of them and somebody should know: sentences.
    #[serde(default)]
    pub notices: Vec<Box<str>>,
    /// Secrets that seem to be meant and are not managed.
    #[serde(default)]
    pub unmanaged: Unmanaged,
    /// Number of certificates that were asked for.
    pub matching: usize,
    /// Number of those that are not in the list because there are too many.
    pub left_out: usize,
    /// The certificates.
    pub certificates: Vec<Verdict>,
}

/// Who leads, by the Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leader {
    /// The replica that leads; None if nobody does.
    pub name: Option<Box<str>>,
    /// The last sign of a leader, if nobody leads and there was one.
    pub silent_since: Option<UnixTime>,
}

impl Leader {
    /// Who leads at `now`, by the last renewal of the Lease that was seen and how long it holds.
    #[must_use]
    pub fn at(now: UnixTime, holder: Option<&str>, renewed: UnixTime, lasts: Duration) -> Self {
        match holder.filter(|_| now <= renewed + lasts) {
            Some(holder) => Self::named(holder),
            None => Self {
                name: None,
                silent_since: Some(renewed),
            },
        }
    }

    /// The replica that the Lease names.
    #[must_use]
    pub fn named(holder: &str) -> Self {
        // Behind the name of the pod there is a number that tells its containers apart.
        let name = holder.split('_').next().unwrap_or(holder);
        Self {
            name: Some(name.into()),
            silent_since: None,
        }
    }
}

#[cfg(test)]
mod tests;

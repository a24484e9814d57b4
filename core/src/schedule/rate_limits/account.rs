//! What the ledger remembers of a set of names at an issuer, and what each failure and each issue changes about it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use super::urgency::runs_short_at;
use super::{ISSUES_A_WEEK, scaled_week};
use crate::certificate::Leaf;
use crate::text::hash::{digest, hexadecimal};
use crate::text::name::{self, Name};
use crate::time::UnixTime;

/// Let's Encrypt counts issues of one set of names over a week; so do we.
pub(super) const WEEK: Duration = Duration::from_secs(7 * 86_400);
/// CAs count failed validations of a name over an hour; so do we, or over less in a test.
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
/// So many validations of a name may fail without the spacing of [`Backoff`] between them, for example where sets of names
/// share one that cannot be validated.
pub const FAILED_VALIDATIONS: usize = 5;
/// One that may fail and be the one too many is awaited so long.
const UNDER_WAY: Duration = Duration::from_secs(30);
/// The longest back-off when life runs short, still within the CA's limit of failed validations.
const URGENT_RETRY: Duration = Duration::from_secs(20 * 60);
/// What was written so long after now was written by a clock that was wrong, and is not believed; replicas may differ by
/// less.
pub(super) const AHEAD: Duration = Duration::from_secs(3_600);

/// Which account of the ledger: 128 bits, so that nobody finds names whose account is somebody else's.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId([u8; 16]);

impl AccountId {
    /// The account of what the text says.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(digest(text))
    }

    /// What version 0.1 called it: half as long. No other account has such a name.
    #[must_use]
    pub fn former(self) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        Self::from(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl From<u64> for AccountId {
    fn from(first: u64) -> Self {
        Self((u128::from(first) << 64).to_be_bytes())
    }
}

/// As the ledger has it: 32 hexadecimal digits, and 16 where version 0.1 has written it.
impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_former = *self == self.former();
        let digits = hexadecimal(&self.0);
        f.write_str(digits.get(..16).filter(|_| is_former).unwrap_or(&digits))
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// It is no account of the ledger.
#[derive(Debug, thiserror::Error)]
#[error("not 32 hexadecimal digits")]
pub struct NoAccountId;

impl FromStr for AccountId {
    type Err = NoAccountId;

    fn from_str(text: &str) -> Result<Self, NoAccountId> {
        match text.len() {
            16 => u64::from_str_radix(text, 16)
                .map(Self::from)
                .map_err(|_| NoAccountId),
            32 => u128::from_str_radix(text, 16)
                .map(|number| Self(number.to_be_bytes()))
                .map_err(|_| NoAccountId),
            _ => Err(NoAccountId),
        }
    }
}

/// The account of a set of names at an issuer: of those that an order asks for, as the CA counts them.
#[must_use]
pub fn account_of<'a>(issuer: &str, names: impl IntoIterator<Item = &'a Name>) -> AccountId {
    let needed = name::needed(names).into_iter();
    let mut names: Vec<String> = needed.map(Name::to_string).collect();
    names.sort_unstable();
    names.dedup();
    AccountId::of(&format!("{issuer}\n{}", names.join("\n")))
}

/// The account of one name at an issuer, which failed validations are counted on whatever else was asked for with it.
/// A wildcard is counted on the name that it stands under: both are proven there.
#[must_use]
pub fn account_of_name(issuer: &str, name: &Name) -> AccountId {
    let text = name.to_string();
    let bare = text.strip_prefix("*.").unwrap_or(&text);
    AccountId::of(&format!("{issuer}\n{bare}"))
}

/// What the ledger remembers of one set of names at one issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Account {
    /// Failures in a row.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// No try before this instant (unix seconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<i64>,
    /// The CA named this instant as the end of a limit (unix seconds): no wish forgets that. The account of a limit that is
    /// about a domain or a name has nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limited_until: Option<i64>,
    /// When the last of them was (unix seconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<i64>,
    /// The last `renew-now` value, hashed, that was tried in vain: it forgets no further back-off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tried: Option<u64>,
    /// What the last failure was tried with, where other settings may fare better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tried_with: Option<TriedWith>,
    /// Instants of issues that no clock asked for, oldest first, at most a week old.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unscheduled: Vec<i64>,
    /// Instants of issues that the clock asked for and that the CA did not count as a replacement, likewise. One alone
    /// is not worth an entry: it is kept in memory only, and the CA's own limit is one higher than ours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scheduled: Vec<i64>,
    /// Seconds for which the last certificate of these is valid: what a week of the budgets is scaled by. Kept beside issues
    /// that count, and never taken from a certificate that somebody else may have put into a Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u64>,
    /// Namespace of the Secret that changed it last: whose entries go first when the ledger is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Box<str>>,
    /// How often the next tries go to staging first.
    #[serde(skip_serializing_if = "is_zero")]
    pub rehearsals: u32,
    /// Until when the CA counts as out of reach (unix seconds), so that a fallback may be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable_until: Option<i64>,
    /// Instants of failed validations of a name, oldest first, at most an hour old. Only the account of the one name
    /// has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub invalid: Vec<i64>,
    /// The name was proven after those: the CA counts them all the same, but they are worth no entry.
    #[serde(skip)]
    pub proven: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The settings under which a renewal was tried: once they are others, it is tried again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedWith {
    /// What the config said of issuers, solvers and DNS, hashed.
    pub config: u64,
    /// Which Secret it was, hashed: others with the same names have settings of their own.
    pub subject: u64,
    /// What its annotations said, hashed.
    pub settings: u64,
}

/// A certificate that a CA has issued, as its account counts it.
#[derive(Clone, Copy, Debug)]
pub struct Issue {
    /// When it was ordered: an issue that is told twice is known by that.
    pub ordered: UnixTime,
    /// Whether the clock, or the CA itself, asked for it.
    pub expected: bool,
    /// Whether the CA counts it as the replacement of another, which no limit holds back.
    pub replaced: bool,
    /// For how long it is valid, where it could be read.
    pub lifetime: Option<Duration>,
}

/// A renewal that failed, as its account counts it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Failed<'a> {
    /// The readable certificate that is there: the less life is left, the sooner is the next try.
    pub leaf: Option<&'a Leaf>,
    /// Whether the CA counted a failed validation.
    pub validation: bool,
    /// The CA's own word (Retry-After).
    pub at_least: Option<UnixTime>,
    /// The `renew-now` value, hashed, with which it was tried.
    pub wish: Option<u64>,
    /// The settings, where other ones may fare better.
    pub tried_with: Option<TriedWith>,
}

impl Account {
    /// Whether nothing is left to remember: a lifetime alone scales nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let nothing = Self {
            lifetime: self.lifetime,
            namespace: self.namespace.clone(),
            ..Self::default()
        };
        *self == nothing
    }

    /// Whether nothing of it counts any more: every back-off has passed for longer than any lasts, every issue too.
    #[must_use]
    pub fn is_over(&self, now: UnixTime) -> bool {
        let instants = self.retry_at.iter().chain(&self.unavailable_until);
        let instants = instants.chain(&self.limited_until);
        let mut instants = instants.chain(&self.unscheduled).chain(&self.scheduled);
        let mut invalid = self.invalid.iter();
        instants.all(|at| UnixTime(*at) + WEEK <= now)
            && invalid.all(|at| UnixTime(*at) + HOUR <= now)
    }

    /// The last instant before now of which it knows; what is older is of less use.
    #[must_use]
    pub fn changed_at(&self, now: UnixTime) -> UnixTime {
        let failed = self.failed_at.iter().chain(&self.invalid);
        let instants = failed.chain(&self.unscheduled).chain(&self.scheduled);
        let latest = instants.max().copied().map(UnixTime);
        // A limit has no other instant than its end.
        let limited = self.limited_until(now).map(|_| now);
        latest.max(limited).unwrap_or_default()
    }

    /// No try before this instant. A `renew-now` value that was not tried yet (`wish`, hashed) forgets the back-off;
    /// the budgets are never forgotten. One that began in the future did so by a clock that was wrong.
    #[must_use]
    pub fn retry_at(&self, now: UnixTime, wish: Option<u64>) -> Option<UnixTime> {
        let forgotten = wish.is_some() && wish != self.tried;
        let ahead = self.failed_at.is_some_and(|at| UnixTime(at) > now + AHEAD);
        self.retry_at.filter(|_| !forgotten && !ahead).map(UnixTime)
    }

    /// Until when the CA has limited what this is the account of, if it has. No limit lasts longer than a week: what
    /// seems to was noted by a clock that was wrong.
    #[must_use]
    pub fn limited_until(&self, now: UnixTime) -> Option<UnixTime> {
        let until = self.limited_until.map(UnixTime);
        until.filter(|until| *until > now && *until <= now + WEEK + AHEAD)
    }

    /// Counts a failure and says when to try again.
    pub fn failed(&mut self, now: UnixTime, backoff: &Backoff, failed: Failed<'_>) -> UnixTime {
        let Failed {
            leaf,
            validation,
            at_least,
            wish,
            tried_with,
        } = failed;
        self.tried = wish.or(self.tried);
        self.tried_with = tried_with;
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now.0);
        let mut delay = backoff.wait(self.failures);
        if leaf.is_some_and(|leaf| runs_short_at(leaf) < now) {
            delay = delay.min(URGENT_RETRY);
        }
        if validation && self.failures > 1 {
            delay = delay.max(backoff.validation_spacing());
        }
        let until = at_least.map_or(now + delay, |until| until.max(now + delay));
        self.retry_at = Some(until.0);
        until
    }

    /// The CA asks for nothing before `until`: that says nothing of the certificate, and is neither a failure nor longer
    /// than the CA said.
    pub fn limited(&mut self, until: UnixTime, wish: Option<u64>) {
        self.tried = wish.or(self.tried);
        self.tried_with = None;
        self.retry_at = Some(until.0);
        self.limited_until = Some(until.0);
    }

    /// Counts a failed validation of the name that this is the account of.
    pub fn invalid(&mut self, now: UnixTime, backoff: &Backoff) {
        self.prune_invalid(now, backoff);
        self.invalid.push(now.0);
        self.proven = false;
    }

    /// The name was proven.
    pub fn proven(&mut self, now: UnixTime, backoff: &Backoff) {
        self.prune_invalid(now, backoff);
        self.proven = !self.invalid.is_empty();
    }

    fn prune_invalid(&mut self, now: UnixTime, backoff: &Backoff) {
        let hour = backoff.hour();
        self.invalid.retain(|at| UnixTime(*at) + hour > now);
    }

    /// When the name may be validated again, with so many validations under way that may yet fail; `None` is now.
    #[must_use]
    pub fn validates_at(
        &self,
        now: UnixTime,
        backoff: &Backoff,
        under_way: usize,
    ) -> Option<UnixTime> {
        let hour = backoff.hour();
        let failed = recent(now, hour, &self.invalid);
        // The oldest of those that are too many has to leave the hour first.
        let oldest = (failed.len() + under_way).checked_sub(FAILED_VALIDATIONS)?;
        let leaves = failed.get(oldest).map(|at| *at + hour);
        Some(leaves.unwrap_or(now + UNDER_WAY))
    }

    /// What is to be remembered across restarts.
    #[must_use]
    pub fn kept(&self) -> Self {
        let mut kept = self.clone();
        if std::mem::take(&mut kept.proven) {
            kept.invalid.clear();
        }
        if kept.scheduled.len() < 2 {
            kept.scheduled.clear();
        }
        if kept.is_empty() {
            kept = Self::default();
        }
        kept
    }

    /// Forgets the back-off of a failure where `is_mended` says that what it was tried with is not what holds now. What
    /// the CA has asked for stays.
    pub fn mend(&mut self, is_mended: impl Fn(&TriedWith) -> bool) {
        if self.tried_with.as_ref().is_some_and(is_mended) {
            self.retry_at = None;
        }
    }

    /// How far apart issues are that fill the week evenly.
    #[must_use]
    pub fn spacing(&self) -> Duration {
        let week = self
            .lifetime
            .map_or(WEEK, |it| scaled_week(Duration::from_secs(it)));
        week / u32::try_from(ISSUES_A_WEEK).unwrap_or(u32::MAX)
    }

    /// Counts an issue that was put to use, and forgets the failures before it.
    pub fn issued(&mut self, now: UnixTime, issue: Issue) {
        self.failures = 0;
        self.failed_at = None;
        self.retry_at = None;
        self.tried_with = None;
        // What another CA has issued meanwhile is not this one's leave.
        self.limited_until = self.limited_until(now).map(|until| until.0);
        self.tried = None;
        self.rehearsals = 0;
        self.unavailable_until = None;
        self.count(now, issue);
    }

    /// Counts an issue that nobody uses: the CA has counted it, and would count the next one that replaces the same.
    pub fn wasted(&mut self, now: UnixTime, issue: Issue) {
        let replaced = false;
        self.count(now, Issue { replaced, ..issue });
    }

    /// When an order counts as made that is made now: issues are told apart by their second, and each counts.
    #[must_use]
    pub fn order_at(&self, now: UnixTime) -> UnixTime {
        let mut at = now;
        while self.unscheduled.contains(&at.0) || self.scheduled.contains(&at.0) {
            at = at + Duration::from_secs(1);
        }
        at
    }

    /// An issue that a limit of CAs counts is remembered for a week. Told twice, as after a restart, it counts once.
    fn count(&mut self, now: UnixTime, issue: Issue) {
        let Issue {
            ordered,
            expected,
            replaced,
            lifetime,
        } = issue;
        self.lifetime = { lifetime.map(|it| it.as_secs()) }.or(self.lifetime);
        for issues in [&mut self.unscheduled, &mut self.scheduled] {
            let recent = recent(now, WEEK, issues).into_iter();
            *issues = recent.map(|at| at.0).collect();
        }
        let counted = match (expected, replaced) {
            (false, _) => &mut self.unscheduled,
            (true, false) => &mut self.scheduled,
            (true, true) => return,
        };
        if !counted.contains(&ordered.0) {
            counted.push(ordered.0);
            counted.sort_unstable();
        }
        // No budget looks at more, and certificates of minutes are many in a week.
        counted.drain(..counted.len().saturating_sub(ISSUES_A_WEEK));
    }
}

/// Those of the instants that lie within the window before now, and not in a future that a wrong clock has seen.
pub(super) fn recent(now: UnixTime, window: Duration, issues: &[i64]) -> Vec<UnixTime> {
    issues
        .iter()
        .map(|at| UnixTime(*at))
        .filter(|at| *at + window > now && *at <= now + AHEAD)
        .collect()
}

//! What the ledger stores for a set of names at an issuer, and how failures and issues change it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use super::urgency::runs_short_at;
use super::{ISSUES_A_WEEK, UNSCHEDULED_A_WEEK, Usage, scaled_week};
use crate::certificate::Leaf;
use crate::text::hash::{digest, hexadecimal};
use crate::text::name::{self, Name};
use crate::time::UnixTime;

/// Span over which Let's Encrypt counts issues of one set of names, and so do we.
pub(super) const WEEK: Duration = Duration::from_secs(7 * 86_400);
/// Span over which CAs count failed validations of a name, and so do we; less in a test.
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
/// Most validations of a name that may fail without the spacing of [`Backoff`] between them, for example if sets of
/// names share one that cannot be validated.
pub const FAILED_VALIDATIONS: usize = 5;
/// Longest wait for a running validation that would exceed the limit if it failed.
const UNDER_WAY: Duration = Duration::from_secs(30);
/// Longest back-off close to expiry, still within the CA's limit of failed validations.
const URGENT_RETRY: Duration = Duration::from_secs(20 * 60);
/// An entry this far in the future was written by a wrong clock, and is ignored; the clocks of replicas may differ by
/// less.
pub(super) const AHEAD: Duration = Duration::from_secs(3_600);

/// Identifies an account of the ledger: 128 bits, so that nobody can find names with the account of another.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId([u8; 16]);

impl AccountId {
    /// The account of a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(digest(text))
    }

    /// Its name in version 0.1: half as long. No other account has such a name.
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

/// As in the ledger: 32 hexadecimal digits, or 16 if version 0.1 has written it.
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

/// Not an account of the ledger.
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

/// The account of a set of names at an issuer: the names of the order, as the CA counts them.
#[must_use]
pub fn account_of<'a>(issuer: &str, names: impl IntoIterator<Item = &'a Name>) -> AccountId {
    let needed = name::needed(names).into_iter();
    let mut names: Vec<String> = needed.map(Name::to_string).collect();
    names.sort_unstable();
    names.dedup();
    AccountId::of(&format!("{issuer}\n{}", names.join("\n")))
}

/// The account of one name at an issuer, which counts failed validations independent of the other names of the order. A
/// wildcard uses the account of its parent name: both are validated there.
#[must_use]
pub fn account_of_name(issuer: &str, name: &Name) -> AccountId {
    let text = name.to_string();
    let bare = text.strip_prefix("*.").unwrap_or(&text);
    AccountId::of(&format!("{issuer}\n{bare}"))
}

/// The stored history of one set of names at one issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IssuanceHistory {
    /// Failures in a row.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// No try before this instant (unix seconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<i64>,
    /// The CA named this instant as the end of a limit (unix seconds): no `renew-now` value overrides it. The account
    /// of a limit on a domain or a name has nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limited_until: Option<i64>,
    /// When the last failure was (unix seconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<i64>,
    /// The last `renew-now` value, hashed, that was tried without success: it overrides no further back-off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tried: Option<u64>,
    /// The settings of the last failure, if other settings may succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tried_with: Option<TriedWith>,
    /// Instants of issues that no clock asked for, oldest first, at most a week old.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unscheduled: Vec<i64>,
    /// Instants of issues that the clock asked for and that the CA did not count as a replacement, likewise. A single
    /// one is not worth an entry: it is kept in memory only, and the CA's own limit is one higher than ours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scheduled: Vec<i64>,
    /// Lifetime of the last certificate in seconds, which scales the week of the budgets. Stored with issues that
    /// count, and never taken from a certificate that another writer may have put into a Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u64>,
    /// Namespace of the Secret that changed it last: decides whose entries go first when the ledger is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Box<str>>,
    /// Number of next tries that go to staging first.
    #[serde(skip_serializing_if = "is_zero")]
    pub rehearsals: u32,
    /// Until when the CA counts as unreachable (unix seconds), so that a fallback may be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable_until: Option<i64>,
    /// Instants of failed validations of a name, oldest first, at most an hour old. Only the account of a single name
    /// has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub invalid: Vec<i64>,
    /// The name was validated after those: the CA still counts them, but they are not worth an entry.
    #[serde(skip)]
    pub proven: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The settings of a failed renewal: once they change, it is tried again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedWith {
    /// Issuers, solvers and DNS of the config, hashed.
    pub config: u64,
    /// The Secret, hashed: others with the same names have their own settings.
    pub subject: u64,
    /// Its annotations, hashed.
    pub settings: u64,
}

/// A certificate that a CA has issued, as its account counts it.
#[derive(Clone, Copy, Debug)]
pub struct Issue {
    /// When it was ordered: identifies an issue that is reported twice.
    pub ordered: UnixTime,
    /// Whether the clock, or the CA itself, asked for it.
    pub expected: bool,
    /// Whether the CA counts it as the replacement of another, which no limit applies to.
    pub replaced: bool,
    /// Its lifetime, if it could be read.
    pub lifetime: Option<Duration>,
}

/// A failed renewal, as its account counts it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Failed<'a> {
    /// The readable certificate in the Secret: the less life is left, the sooner is the next try.
    pub leaf: Option<&'a Leaf>,
    /// Whether the CA counted a failed validation.
    pub validation: bool,
    /// The CA's Retry-After.
    pub at_least: Option<UnixTime>,
    /// The `renew-now` value, hashed, with which it was tried.
    pub wish: Option<u64>,
    /// The settings, if other ones may succeed.
    pub tried_with: Option<TriedWith>,
}

impl IssuanceHistory {
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

    /// Whether none of it counts any more: every back-off passed longer ago than any lasts, and every issue too.
    #[must_use]
    pub fn is_over(&self, now: UnixTime) -> bool {
        let instants = self.retry_at.iter().chain(&self.unavailable_until);
        let instants = instants.chain(&self.limited_until);
        let mut instants = instants.chain(&self.unscheduled).chain(&self.scheduled);
        let mut invalid = self.invalid.iter();
        instants.all(|at| UnixTime(*at) + WEEK <= now)
            && invalid.all(|at| UnixTime(*at) + HOUR <= now)
    }

    /// The last instant before now in it; an account with an older one matters less.
    #[must_use]
    pub fn changed_at(&self, now: UnixTime) -> UnixTime {
        let failed = self.failed_at.iter().chain(&self.invalid);
        let instants = failed.chain(&self.unscheduled).chain(&self.scheduled);
        let latest = instants.max().copied().map(UnixTime);
        // A limit has no instant but its end.
        let limited = self.limited_until(now).map(|_| now);
        latest.max(limited).unwrap_or_default()
    }

    /// No try before this instant. A `renew-now` value that was not tried yet (`wish`, hashed) overrides the back-off,
    /// never the budgets. A back-off that began in the future comes from a wrong clock.
    #[must_use]
    pub fn retry_at(&self, now: UnixTime, wish: Option<u64>) -> Option<UnixTime> {
        let forgotten = wish.is_some() && wish != self.tried;
        let ahead = self.failed_at.is_some_and(|at| UnixTime(at) > now + AHEAD);
        self.retry_at.filter(|_| !forgotten && !ahead).map(UnixTime)
    }

    /// Until when the CA limits this account, if it does. No limit lasts longer than a week: a longer one was recorded
    /// by a wrong clock.
    #[must_use]
    pub fn limited_until(&self, now: UnixTime) -> Option<UnixTime> {
        let until = self.limited_until.map(UnixTime);
        until.filter(|until| *until > now && *until <= now + WEEK + AHEAD)
    }

    /// Counts a failure and returns when to try again.
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

    /// The CA asks for no request before `until`: that says nothing about the certificate, so it is no failure, and
    /// lasts no longer than the CA said.
    pub fn limited(&mut self, until: UnixTime, wish: Option<u64>) {
        self.tried = wish.or(self.tried);
        self.tried_with = None;
        self.retry_at = Some(until.0);
        self.limited_until = Some(until.0);
    }

    /// Counts a failed validation of the name of this account.
    pub fn invalid(&mut self, now: UnixTime, backoff: &Backoff) {
        self.prune_invalid(now, backoff);
        self.invalid.push(now.0);
        self.proven = false;
    }

    /// The name was validated.
    pub fn proven(&mut self, now: UnixTime, backoff: &Backoff) {
        self.prune_invalid(now, backoff);
        self.proven = !self.invalid.is_empty();
    }

    fn prune_invalid(&mut self, now: UnixTime, backoff: &Backoff) {
        let hour = backoff.hour();
        self.invalid.retain(|at| UnixTime(*at) + hour > now);
    }

    /// When the name may be validated again, with `under_way` running validations that may still fail; `None` is now.
    #[must_use]
    pub fn validates_at(
        &self,
        now: UnixTime,
        backoff: &Backoff,
        under_way: usize,
    ) -> Option<UnixTime> {
        let hour = backoff.hour();
        let failed = recent(now, hour, &self.invalid);
        // The oldest of the excess ones must leave the hour first.
        let oldest = (failed.len() + under_way).checked_sub(FAILED_VALIDATIONS)?;
        let leaves = failed.get(oldest).map(|at| *at + hour);
        Some(leaves.unwrap_or(now + UNDER_WAY))
    }

    /// How much of a week's certificates these names have used, and how much of those that no clock asked for.
    #[must_use]
    pub fn issues(&self, now: UnixTime) -> [Usage; 2] {
        let window = self.window();
        let unscheduled = recent(now, window, &self.unscheduled);
        let mut all = recent(now, window, &self.scheduled);
        all.extend(&unscheduled);
        all.sort_unstable();
        [
            Usage::of(&all, ISSUES_A_WEEK, window),
            Usage::of(&unscheduled, UNSCHEDULED_A_WEEK, window),
        ]
    }

    /// How many validations of the name of this account have failed.
    #[must_use]
    pub fn failed_validations(&self, now: UnixTime, backoff: &Backoff) -> Usage {
        let hour = backoff.hour();
        Usage::of(&recent(now, hour, &self.invalid), FAILED_VALIDATIONS, hour)
    }

    /// The span in which its issues are counted: a week, or less if the certificate that we had issued lives for less than
    /// ten days. One that somebody put there does not count.
    #[must_use]
    pub fn window(&self) -> Duration {
        let lifetime = self.lifetime.map(Duration::from_secs);
        lifetime.map_or(WEEK, scaled_week)
    }

    /// The part to keep across restarts.
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

    /// Drops the back-off of a failure if `is_mended` says that its settings have changed. The CA's own limits stay.
    pub fn mend(&mut self, is_mended: impl Fn(&TriedWith) -> bool) {
        if self.tried_with.as_ref().is_some_and(is_mended) {
            self.retry_at = None;
        }
    }

    /// Interval of issues that fill the week evenly.
    #[must_use]
    pub fn spacing(&self) -> Duration {
        self.window() / u32::try_from(ISSUES_A_WEEK).unwrap_or(u32::MAX)
    }

    /// Counts an issue that is in use, and clears the failures before it.
    pub fn issued(&mut self, now: UnixTime, issue: Issue) {
        self.failures = 0;
        self.failed_at = None;
        self.retry_at = None;
        self.tried_with = None;
        // An issue by another CA does not end this one's limit.
        self.limited_until = self.limited_until(now).map(|until| until.0);
        self.tried = None;
        self.rehearsals = 0;
        self.unavailable_until = None;
        self.count(now, issue);
    }

    /// Counts an issue that is not used: the CA has counted it, and would count the next replacement of the same
    /// certificate.
    pub fn wasted(&mut self, now: UnixTime, issue: Issue) {
        let replaced = false;
        self.count(now, Issue { replaced, ..issue });
    }

    /// The instant recorded for an order made now: issues are identified by their second, and each counts.
    #[must_use]
    pub fn order_at(&self, now: UnixTime) -> UnixTime {
        let mut at = now;
        while self.unscheduled.contains(&at.0) || self.scheduled.contains(&at.0) {
            at = at + Duration::from_secs(1);
        }
        at
    }

    /// An issue that counts for a limit of CAs is kept for a week. Reported twice, as after a restart, it counts once.
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
        // No budget looks at more, and a week may have many certificates of minutes.
        counted.drain(..counted.len().saturating_sub(ISSUES_A_WEEK));
    }
}

/// The instants within the window before now, without those in the future, which come from a wrong clock.
pub(super) fn recent(now: UnixTime, window: Duration, issues: &[i64]) -> Vec<UnixTime> {
    issues
        .iter()
        .map(|at| UnixTime(*at))
        .filter(|at| *at + window > now && *at <= now + AHEAD)
        .collect()
}

//! What may be asked of a CA: back-off after failures, and the budgets of invariant 6.
//!
//! One [`Account`] a set of names and issuer, whoever asks: Secrets that share their names share it,
//! and replacing or deleting a Secret does not reset it. Pure; the ledger in `cluster` keeps it across restarts.

mod account;
mod backoff;
mod urgency;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use account::{Account, FAILED_VALIDATIONS, Failed, TriedWith, account_of, account_of_name};
pub use backoff::Backoff;
pub use urgency::{runs_short, runs_short_at};

use crate::certificate::Leaf;
use crate::schedule::due::Reason;
use crate::time::UnixTime;
use account::{AHEAD, WEEK, recent};

/// The fifth certificate in a week for one set of names is the one that is not asked for.
pub const ISSUES_A_WEEK: usize = 4;
/// Issues that no clock asked for, for one set of names in a week: more means that somebody undoes our work.
pub const UNSCHEDULED_A_WEEK: usize = 3;
/// Lifetimes under ten days scale the week down, as a week would starve six-day certificates.
const SHORT_LIVED: Duration = Duration::from_secs(10 * 86_400);

/// A renewal that is due, as the budgets look at it.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Why it is due.
    pub reason: Reason,
    /// The `renew-now` value, hashed, that was not served yet.
    pub wish: Option<u64>,
    /// The readable certificate that is there.
    pub leaf: Option<&'a Leaf>,
    /// When we wrote that, if we did.
    pub written: Option<UnixTime>,
}

/// Why a due renewal has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It failed a while ago.
    BackOff {
        /// Until then.
        until: UnixTime,
    },
    /// The present certificate is younger than a tenth of its lifetime.
    TooYoung {
        /// Until then.
        until: UnixTime,
    },
    /// Somebody keeps undoing the Secret: no further unscheduled issue before `until`.
    KeepsComingBack {
        /// Until then.
        until: UnixTime,
    },
    /// There were [`ISSUES_A_WEEK`] certificates for these names, and CAs count them.
    TooMany {
        /// Until then.
        until: UnixTime,
    },
}

impl Hold {
    /// The instant from which the renewal may go on.
    #[must_use]
    pub fn until(self) -> UnixTime {
        match self {
            Self::BackOff { until }
            | Self::TooYoung { until }
            | Self::KeepsComingBack { until }
            | Self::TooMany { until } => until,
        }
    }
}

impl Claim<'_> {
    /// Why the renewal may not start now, if it may not.
    #[must_use]
    pub fn hold(&self, now: UnixTime, account: &Account) -> Option<Hold> {
        let retry_at = { account.retry_at(now, self.wish) }.filter(|until| *until > now);
        if let Some(until) = account.limited_until(now).or(retry_at) {
            return Some(Hold::BackOff { until });
        }
        let window = self.leaf.map_or(WEEK, |leaf| scaled_week(leaf.lifetime()));
        if self.is_expected(now) {
            let all = [&*account.unscheduled, &*account.scheduled].concat();
            let mut all = recent(now, window, &all);
            all.sort_unstable();
            let until = leaves_room(&all, ISSUES_A_WEEK, window);
            return until.map(|until| Hold::TooMany { until });
        }
        if let Some(until) = self.grows_up(now) {
            return Some(Hold::TooYoung { until });
        }
        let limit = match self.reason {
            Reason::RenewNow | Reason::Revoked => ISSUES_A_WEEK,
            _ => UNSCHEDULED_A_WEEK,
        };
        let issues = recent(now, window, &account.unscheduled);
        let until = leaves_room(&issues, limit, window);
        until.map(|until| Hold::KeepsComingBack { until })
    }

    /// Whether the clock asked for it. A CA that wants a certificate back at once, again and again, is held like anybody,
    /// and so is a clock by which what the CA gives is old already.
    #[must_use]
    pub fn is_expected(&self, now: UnixTime) -> bool {
        let young = |since: UnixTime| {
            let within = |leaf: &Leaf| now < since + leaf.lifetime() / 10;
            since <= now + AHEAD && self.leaf.is_some_and(within)
        };
        let just_written = self.written.is_some_and(young);
        let just_issued = || self.leaf.is_some_and(|leaf| young(leaf.not_before));
        match self.reason {
            Reason::Lifetime => !just_written,
            Reason::RenewalInfo => !just_written && !just_issued(),
            _ => false,
        }
    }

    /// When a certificate that is valid and younger than a tenth of its lifetime will be older, if that matters.
    fn grows_up(&self, now: UnixTime) -> Option<UnixTime> {
        if let Reason::MissingName | Reason::RenewalInfo | Reason::Revoked = self.reason {
            return None;
        }
        let leaf = self
            .leaf
            .filter(|leaf| !leaf.self_signed && leaf.is_valid_at(now))?;
        let since = { self.written }.map_or(leaf.not_before, |at| at.max(leaf.not_before));
        let until = since + leaf.lifetime() / 10;
        (until > now && since <= now + AHEAD).then_some(until)
    }
}

/// When the oldest of the last `limit` issues leaves the window, where there are so many.
fn leaves_room(issues: &[UnixTime], limit: usize, window: Duration) -> Option<UnixTime> {
    let oldest = issues.len().checked_sub(limit)?;
    Some(issues[oldest] + window)
}

fn scaled_week(lifetime: Duration) -> Duration {
    if lifetime < SHORT_LIVED {
        lifetime * 7 / 10
    } else {
        WEEK
    }
}

//! What may be requested from a CA: back-off after failures, and the budgets of invariant 6.
//!
//! One [`IssuanceHistory`] for each set of names and issuer: Secrets with the same names share it, and replacing or
//! deleting a Secret does not reset it. Pure; the ledger in `cluster` keeps it across restarts.

mod backoff;
mod history;
mod urgency;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use backoff::Backoff;
pub use history::{
    AccountId, FAILED_VALIDATIONS, Failed, IssuanceHistory, Issue, TriedWith, account_of,
    account_of_name,
};
pub use urgency::{runs_short, runs_short_at};

use crate::certificate::Leaf;
use crate::schedule::due::{Reason, YOUNG_SHARE};
use crate::time::UnixTime;
use history::{AHEAD, WEEK, recent};

/// Most certificates for one set of names in a week; the fifth is not requested.
pub const ISSUES_A_WEEK: usize = 4;
/// Most issues in a week for one set of names that no clock asked for: more means that another writer undoes ours.
pub const UNSCHEDULED_A_WEEK: usize = 3;
/// Lifetimes below this scale the week down, as a week would starve six-day certificates.
const SHORT_LIVED: Duration = Duration::from_secs(10 * 86_400);

/// A due renewal, as the budgets see it.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Why it is due.
    pub reason: Reason,
    /// The `renew-now` value, hashed, if it was not served yet.
    pub wish: Option<u64>,
    /// Whether `wish` has its own cause: the Secret names another issuer than the last one, or the value forces the
    /// renewal.
    pub caused: bool,
    /// The readable certificate in the Secret.
    pub leaf: Option<&'a Leaf>,
    /// When we wrote that certificate, if we did.
    pub written: Option<UnixTime>,
    /// When its lifetime alone makes it due.
    pub by_lifetime: Option<UnixTime>,
}

/// How much of a limit is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// How many are used.
    pub used: usize,
    /// How many there are.
    pub most: usize,
    /// The span in which they are counted.
    pub within: Duration,
    /// When one is free again, where all are used.
    pub until: Option<UnixTime>,
}

impl Usage {
    /// Of `most` within this span, by the instants of those that are used, oldest first.
    #[must_use]
    pub fn of(used: &[UnixTime], most: usize, within: Duration) -> Self {
        Self {
            used: used.len(),
            most,
            within,
            until: leaves_room(used, most, within),
        }
    }
}

/// Why a due renewal has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It failed recently.
    BackOff {
        /// Until then.
        until: UnixTime,
    },
    /// The present certificate is younger than a tenth of its lifetime.
    TooYoung {
        /// Until then.
        until: UnixTime,
    },
    /// Another writer keeps undoing the Secret: no further unscheduled issue before `until`.
    KeepsComingBack {
        /// Until then.
        until: UnixTime,
    },
    /// The CA asks to replace each new certificate at once: no further one before `until`.
    WantedBack {
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
    /// The instant from which the renewal may start.
    #[must_use]
    pub fn until(self) -> UnixTime {
        match self {
            Self::BackOff { until }
            | Self::TooYoung { until }
            | Self::KeepsComingBack { until }
            | Self::WantedBack { until }
            | Self::TooMany { until } => until,
        }
    }
}

impl Claim<'_> {
    /// Why the renewal may not start now, if so.
    #[must_use]
    pub fn hold(&self, now: UnixTime, account: &IssuanceHistory) -> Option<Hold> {
        let retry_at = { account.retry_at(now, self.wish) }.filter(|until| *until > now);
        if let Some(until) = account.limited_until(now).or(retry_at) {
            return Some(Hold::BackOff { until });
        }
        if let Some(until) = self.grows_up(now) {
            return Some(Hold::TooYoung { until });
        }
        let window = account.window();
        let room = |issues: &[i64], limit| leaves_room(&recent(now, window, issues), limit, window);
        let mut all = [&*account.unscheduled, &*account.scheduled].concat();
        all.sort_unstable();
        if self.reason == Reason::RenewalInfo
            && !self.is_expected(now)
            && let Some(until) = room(&all, UNSCHEDULED_A_WEEK)
        {
            // Its lifetime still counts, whatever the CA said before. If the lifetime of a just issued certificate has
            // passed, the clock is wrong.
            let own = self.by_lifetime.filter(|due| *due > now);
            let until = own.map_or(until, |due| due.min(until));
            return Some(Hold::WantedBack { until });
        }
        if self.is_undone(now)
            && let Some(until) = room(&account.unscheduled, UNSCHEDULED_A_WEEK)
        {
            return Some(Hold::KeepsComingBack { until });
        }
        room(&all, ISSUES_A_WEEK).map(|until| Hold::TooMany { until })
    }

    /// Whether it is due because our certificate is missing: another writer has undone it, or our clock was wrong.
    fn is_undone(&self, now: UnixTime) -> bool {
        match self.reason {
            Reason::NoCertificate | Reason::Unreadable | Reason::Placeholder => true,
            Reason::Lifetime | Reason::IssuerEnds => !self.is_expected(now),
            _ => false,
        }
    }

    /// Whether an issue counts as requested by the clock or the CA, not by a person.
    #[must_use]
    pub fn is_scheduled(&self, now: UnixTime) -> bool {
        self.reason == Reason::RenewalInfo || self.is_expected(now)
    }

    /// Whether the clock asked for it. A CA that asks for replacement at once, again and again, gets no exemption from
    /// the limits, nor does a clock by which new certificates are old.
    #[must_use]
    pub fn is_expected(&self, now: UnixTime) -> bool {
        let young = |since: UnixTime| {
            let within = |leaf: &Leaf| now < since + leaf.lifetime() / YOUNG_SHARE;
            since <= now + AHEAD && self.leaf.is_some_and(within)
        };
        let just_written = self.written.is_some_and(young);
        let just_issued = || self.leaf.is_some_and(|leaf| young(leaf.not_before));
        match self.reason {
            Reason::Lifetime | Reason::IssuerEnds => !just_written,
            Reason::RenewalInfo => !just_written && !just_issued(),
            _ => false,
        }
    }

    /// When a valid certificate younger than a tenth of its lifetime will be older, if that matters: a renewal with a
    /// cause is no loop.
    fn grows_up(&self, now: UnixTime) -> Option<UnixTime> {
        match self.reason {
            Reason::RenewNow if !self.caused => {}
            Reason::Lifetime | Reason::IssuerEnds if !self.is_expected(now) => {}
            _ => return None,
        }
        young_until(now, self.leaf?, self.written)
    }
}

/// When a valid certificate, written at that time if we wrote it, will be older than a tenth of its lifetime, if it is
/// not yet.
#[must_use]
pub fn young_until(now: UnixTime, leaf: &Leaf, written: Option<UnixTime>) -> Option<UnixTime> {
    if !leaf.is_valid_at(now) || leaf.self_signed.get() {
        return None;
    }
    let since = begins(leaf.not_before, written);
    let until = grown_up(leaf.not_before, leaf.not_after, written);
    (until > now && since <= now + AHEAD).then_some(until)
}

/// When a certificate of that validity, written at that time if we wrote it, is older than a tenth of its lifetime.
#[must_use]
pub fn grown_up(not_before: UnixTime, not_after: UnixTime, written: Option<UnixTime>) -> UnixTime {
    begins(not_before, written) + not_after.since(not_before) / YOUNG_SHARE
}

/// From when on the age of a certificate counts.
fn begins(not_before: UnixTime, written: Option<UnixTime>) -> UnixTime {
    written.map_or(not_before, |at| at.max(not_before))
}

/// When the oldest of the last `limit` issues leaves the window, if there are that many.
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

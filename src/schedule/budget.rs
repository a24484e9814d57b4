//! What may be asked of a CA: back-off after failures, and the budgets of invariant 6.
//!
//! One [`Account`] a set of names and issuer, whoever asks: Secrets that share their names share it,
//! and replacing or deleting a Secret does not reset it. Pure; the ledger in `cluster` keeps it across restarts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::certificate::Leaf;
use crate::name::Name;
use crate::schedule::due::Reason;
use crate::time::UnixTime;

/// Let's Encrypt counts issues of one set of names over a week; so do we.
const WEEK: Duration = Duration::from_secs(7 * 86_400);
/// The fifth certificate in a week for one set of names is the one that is not asked for.
pub const ISSUES_A_WEEK: usize = 4;
/// Issues that no clock asked for, for one set of names in a week: more means that somebody undoes our work.
pub const UNSCHEDULED_A_WEEK: usize = 3;
/// A CA's limit of failed validations is five an hour for a name: one in twelve minutes keeps to it for ever.
const FAILED_VALIDATION_SPACING: Duration = Duration::from_secs(12 * 60);
/// So many may follow each other faster, for example where sets of names share a name that cannot be validated.
pub const FAILED_VALIDATIONS: usize = 5;
/// One that may fail and be the one too many is awaited so long.
const UNDER_WAY: Duration = Duration::from_secs(30);
/// With less than this share of the lifetime left, a failure waits no longer than [`URGENT_RETRY`].
const URGENT_SHARE: u32 = 6;
/// Back-off when little life is left, still within the CA's limit of failed validations.
const URGENT_RETRY: Duration = Duration::from_secs(20 * 60);
/// What was written so long after now was written by a clock that was wrong, and is not believed; replicas may differ by
/// less.
const AHEAD: Duration = Duration::from_secs(3_600);
/// Lifetimes under ten days scale the week down, as a week would starve six-day certificates.
const SHORT_LIVED: Duration = Duration::from_secs(10 * 86_400);

/// The account of a set of names at an issuer: 64 bits of a SHA-256.
#[must_use]
pub fn account_of<'a>(issuer: &str, names: impl IntoIterator<Item = &'a Name>) -> u64 {
    let mut names: Vec<String> = names.into_iter().map(Name::to_string).collect();
    names.sort_unstable();
    names.dedup();
    hash(&format!("{issuer}\n{}", names.join("\n")))
}

/// The account of one name at an issuer, which failed validations are counted on whatever else was asked for with it.
/// A wildcard is counted on the name that it stands under: both are proven there.
#[must_use]
pub fn account_of_name(issuer: &str, name: &Name) -> u64 {
    let text = name.to_string();
    let bare = text.strip_prefix("*.").unwrap_or(&text);
    hash(&format!("{issuer}\n{bare}"))
}

/// The first 64 bits of the SHA-256 of a text.
#[must_use]
pub fn hash(text: &str) -> u64 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest
        .as_ref()
        .iter()
        .take(8)
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Delays after the first, second, third … failure; from the config, so that tests and private CAs may scale it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay after the first failure.
    pub base: Duration,
    /// Each further failure multiplies by this.
    pub factor: u32,
    /// Never longer than this.
    pub max: Duration,
}

impl Default for Backoff {
    /// What Let's Encrypt asks of clients: 1, 10, 100 minutes, then once a day.
    fn default() -> Self {
        Self {
            base: Duration::from_secs(60),
            factor: 10,
            max: Duration::from_secs(86_400),
        }
    }
}

impl Backoff {
    /// The wait after so many failures in a row; zero after none.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let scale = self.factor.checked_pow(doublings);
        scale
            .and_then(|scale| self.base.checked_mul(scale))
            .map_or(self.max, |wait| wait.min(self.max))
    }

    /// Back-off that a private CA's config has scaled down says that there is no such limit.
    fn validation_spacing(&self) -> Duration {
        FAILED_VALIDATION_SPACING.min(self.max)
    }

    /// The span in which [`FAILED_VALIDATIONS`] of one name may fail: an hour, unless scaled down likewise.
    fn hour(&self) -> Duration {
        self.validation_spacing() * 5
    }
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
    /// Instants of issues that no clock asked for, oldest first, at most a week old.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unscheduled: Vec<i64>,
    /// Instants of issues that the clock asked for and that the CA did not count as a replacement, likewise. One alone
    /// is not worth an entry: it is kept in memory only, and the CA's own limit is one higher than ours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scheduled: Vec<i64>,
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

/// Whether a renewal for `reason` may start now. `leaf` is the readable certificate that is there, `written` when we wrote
/// it, if we did.
#[must_use]
pub fn hold(
    now: UnixTime,
    reason: Reason,
    wish: Option<u64>,
    leaf: Option<&Leaf>,
    written: Option<UnixTime>,
    account: &Account,
) -> Option<Hold> {
    let retry_at = account.retry_at(now, wish).filter(|until| *until > now);
    if let Some(until) = account.limited_until(now).or(retry_at) {
        return Some(Hold::BackOff { until });
    }
    let window = leaf.map_or(WEEK, |leaf| scaled_week(leaf.lifetime()));
    if is_expected(now, reason, leaf, written) {
        let all = [&*account.unscheduled, &*account.scheduled].concat();
        let mut all = recent(now, window, &all);
        all.sort_unstable();
        // The oldest of the last four has to leave the window first.
        let oldest = all.len().checked_sub(ISSUES_A_WEEK)?;
        return Some(Hold::TooMany {
            until: all[oldest] + window,
        });
    }
    if let Some(leaf) = leaf.filter(|leaf| !leaf.self_signed && leaf.is_valid_at(now))
        && !matches!(
            reason,
            Reason::MissingName | Reason::RenewalInfo | Reason::Revoked
        )
    {
        let since = written.map_or(leaf.not_before, |at| at.max(leaf.not_before));
        let until = since + leaf.lifetime() / 10;
        if until > now && since <= now + AHEAD {
            return Some(Hold::TooYoung { until });
        }
    }
    let recent: Vec<UnixTime> = recent(now, window, &account.unscheduled);
    let limit = if matches!(reason, Reason::RenewNow | Reason::Revoked) {
        ISSUES_A_WEEK
    } else {
        UNSCHEDULED_A_WEEK
    };
    // The oldest of the last `limit` issues has to leave the window first.
    recent
        .len()
        .checked_sub(limit)
        .map(|oldest| Hold::KeepsComingBack {
            until: recent[oldest] + window,
        })
}

/// Whether so little is left that a fallback is asked: no certificate, or the last sixth of one's life.
#[must_use]
pub fn runs_short(now: UnixTime, leaf: Option<&Leaf>) -> bool {
    leaf.is_none_or(|leaf| leaf.self_signed || runs_short_at(leaf) <= now)
}

/// When the last sixth of a certificate's life begins.
#[must_use]
pub fn runs_short_at(leaf: &Leaf) -> UnixTime {
    leaf.not_after - leaf.lifetime() / URGENT_SHARE
}

/// Whether the clock asked for it. A CA that wants a certificate back at once, again and again, is held like anybody, and
/// so is a clock by which what the CA gives is old already.
#[must_use]
pub fn is_expected(
    now: UnixTime,
    reason: Reason,
    leaf: Option<&Leaf>,
    written: Option<UnixTime>,
) -> bool {
    let young = |since: UnixTime| {
        let within = |leaf: &Leaf| now < since + leaf.lifetime() / 10;
        since <= now + AHEAD && leaf.is_some_and(within)
    };
    let just_written = written.is_some_and(young);
    match reason {
        Reason::Lifetime => !just_written,
        Reason::RenewalInfo => !just_written && !leaf.is_some_and(|leaf| young(leaf.not_before)),
        _ => false,
    }
}

fn recent(now: UnixTime, window: Duration, issues: &[i64]) -> Vec<UnixTime> {
    issues
        .iter()
        .map(|at| UnixTime(*at))
        .filter(|at| *at + window > now && *at <= now + AHEAD)
        .collect()
}

fn scaled_week(lifetime: Duration) -> Duration {
    if lifetime < SHORT_LIVED {
        lifetime * 7 / 10
    } else {
        WEEK
    }
}

impl Account {
    /// Whether nothing is left to remember.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether nothing of it counts any more: every back-off has passed for longer than any lasts, every issue too.
    #[must_use]
    pub fn is_over(&self, now: UnixTime) -> bool {
        let instants = self.retry_at.iter().chain(&self.unavailable_until);
        let instants = instants.chain(&self.limited_until);
        let mut instants = instants.chain(&self.unscheduled).chain(&self.scheduled);
        instants.all(|at| UnixTime(*at) + WEEK <= now)
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
    ///
    /// `at_least` is the CA's own word (Retry-After); `validation` means that the CA counted a failed validation.
    pub fn failed(
        &mut self,
        now: UnixTime,
        backoff: &Backoff,
        leaf: Option<&Leaf>,
        validation: bool,
        at_least: Option<UnixTime>,
        wish: Option<u64>,
    ) -> UnixTime {
        self.tried = wish.or(self.tried);
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now.0);
        let delay = backoff.wait(self.failures);
        let urgent =
            leaf.is_some_and(|leaf| leaf.not_after.since(now) < leaf.lifetime() / URGENT_SHARE);
        let delay = if urgent {
            delay.min(URGENT_RETRY)
        } else {
            delay
        };
        let delay = if validation && self.failures > 1 {
            delay.max(backoff.validation_spacing())
        } else {
            delay
        };
        let until = at_least.map_or(now + delay, |until| until.max(now + delay));
        self.retry_at = Some(until.0);
        until
    }

    /// The CA asks for nothing before `until`: that says nothing of the certificate, and is neither a failure nor longer
    /// than the CA said.
    pub fn limited(&mut self, until: UnixTime, wish: Option<u64>) {
        self.tried = wish.or(self.tried);
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
        kept
    }

    /// Counts an issue, which was ordered at that instant; `replaced` where the CA counts it as a replacement. Failures
    /// are forgotten; an issue that a limit of CAs counts is remembered for a week. Told twice, as after a restart, it
    /// counts once.
    pub fn issued(&mut self, now: UnixTime, ordered: UnixTime, expected: bool, replaced: bool) {
        self.failures = 0;
        self.failed_at = None;
        self.retry_at = None;
        // What another CA has issued meanwhile is not this one's leave.
        self.limited_until = self.limited_until(now).map(|until| until.0);
        self.tried = None;
        self.rehearsals = 0;
        self.unavailable_until = None;
        for issues in [&mut self.unscheduled, &mut self.scheduled] {
            *issues = recent(now, WEEK, issues)
                .into_iter()
                .map(|at| at.0)
                .collect();
        }
        let counted = match (expected, replaced) {
            (false, _) => &mut self.unscheduled,
            (true, false) => &mut self.scheduled,
            (true, true) => return,
        };
        if !counted.contains(&ordered.0) {
            counted.push(ordered.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(from: i64, until: i64) -> Leaf {
        Leaf {
            fingerprint: crate::certificate::Fingerprint([1; 32]),
            not_before: UnixTime(from),
            not_after: UnixTime(until),
            names: Vec::new(),
            self_signed: false,
            key_type: None,
            public_key: Box::default(),
            issuer: b"CA".as_slice().into(),
            serial: Box::default(),
            authority_key_id: None,
        }
    }

    #[test]
    fn failures_wait_longer_and_longer() {
        let mut account = Account::default();
        let delays: Vec<i64> = (0..5)
            .map(|_| {
                account
                    .failed(UnixTime(0), &Backoff::default(), None, false, None, None)
                    .0
            })
            .collect();
        assert_eq!(delays, [60, 600, 6_000, 60_000, 86_400]);
        account.issued(UnixTime(0), UnixTime(0), true, true);
        assert!(account.is_empty());
    }

    #[test]
    fn there_is_no_fifth_certificate_in_a_week_unless_it_is_a_replacement() {
        let day = 86_400;
        for (lifetime, week) in [(90 * day, 7 * day), (5 * day, 5 * day * 7 / 10)] {
            let leaf = leaf(-lifetime, 0);
            let held = |account: &Account, now: i64| {
                hold(
                    UnixTime(now),
                    Reason::Lifetime,
                    None,
                    Some(&leaf),
                    None,
                    account,
                )
                .map(Hold::until)
            };
            let mut account = Account::default();
            let issued = |account: &mut Account, hour: i64, expected: bool, replaced: bool| {
                let at = UnixTime(hour * 3_600);
                account.issued(at, at, expected, replaced);
                // The same, told again after a restart.
                account.issued(at + Duration::from_secs(1), at, expected, replaced);
            };
            issued(&mut account, 0, false, false);
            for hour in 1..=3 {
                assert_eq!(held(&account, hour * 3_600), None);
                issued(&mut account, hour, true, false);
            }
            assert_eq!(held(&account, 4 * 3_600), Some(UnixTime(week)));
            assert_eq!(held(&account, week), None);
            let mut account = Account::default();
            for hour in 0..9 {
                assert_eq!(held(&account, hour * 3_600), None);
                issued(&mut account, hour, true, true);
            }
            assert!(account.is_empty());
        }
    }

    #[test]
    fn what_nobody_tries_any_more_is_over_in_a_week() {
        let week = 7 * 86_400;
        let mut account = Account::default();
        let until = account.failed(UnixTime(0), &Backoff::default(), None, true, None, None);
        assert!(!account.is_over(until) && !account.is_over(UnixTime(week)));
        assert!(account.is_over(until + WEEK));
        let mut account = Account::default();
        account.issued(UnixTime(100), UnixTime(100), false, false);
        assert!(!account.is_over(UnixTime(week + 99)) && account.is_over(UnixTime(week + 100)));
    }

    #[test]
    fn one_scheduled_issue_is_no_entry_of_the_ledger() {
        let mut account = Account::default();
        account.issued(UnixTime(0), UnixTime(0), true, false);
        assert!(account.kept().is_empty() && !account.is_empty());
        account.issued(UnixTime(1), UnixTime(1), true, false);
        assert_eq!(account.kept(), account);
    }

    #[test]
    fn no_name_fails_validation_more_than_five_times_an_hour() {
        // Little life left is when back-off is shortest.
        let leaf = leaf(0, 90 * 86_400);
        let mut now = UnixTime(90 * 86_400 - 3_600);
        let mut account = Account::default();
        let mut tries = Vec::new();
        for _ in 0..20 {
            tries.push(now.0);
            now = account.failed(now, &Backoff::default(), Some(&leaf), true, None, None);
        }
        for window in tries.windows(6) {
            assert!(window[5] - window[0] > 3_600, "{window:?}");
        }
    }

    #[test]
    fn a_name_fails_five_times_an_hour_whoever_asks_and_however_eagerly() {
        let backoff = Backoff::default();
        let (mut account, mut failed) = (Account::default(), Vec::new());
        for minute in 0..180 {
            let now = UnixTime(minute * 60);
            if account.validates_at(now, &backoff, 0).is_none() {
                account.invalid(now, &backoff);
                failed.push(minute);
            }
            // As after a restart.
            let kept = serde_json::to_string(&account.kept()).unwrap();
            account = serde_json::from_str(&kept).unwrap();
        }
        assert_eq!(
            failed,
            [0, 1, 2, 3, 4, 60, 61, 62, 63, 64, 120, 121, 122, 123, 124]
        );
        let now = UnixTime(200 * 60);
        assert_eq!(account.validates_at(now, &backoff, 4), None);
        assert!(
            account
                .validates_at(now, &backoff, 5)
                .is_some_and(|at| at > now)
        );
        account.invalid(now, &backoff);
        assert!(account.validates_at(now, &backoff, 4).is_some());
        // What a proof is about is no entry any more, but it counts in this process.
        account.proven(now, &backoff);
        assert!(account.kept().is_empty() && account.validates_at(now, &backoff, 4).is_some());
        let scaled = Backoff {
            max: Duration::from_secs(1),
            ..backoff
        };
        let later = now + Duration::from_secs(5);
        assert_eq!(account.validates_at(later, &scaled, 4), None);
        let names = ["*.a.example", "a.example"].map(|name| name.parse().unwrap());
        let [wild, bare] = names.map(|name: Name| account_of_name("le", &name));
        assert_eq!(wild, bare);
        assert_eq!(bare, account_of("le", &["a.example".parse().unwrap()]));
    }

    #[test]
    fn what_the_ca_asks_for_is_kept_to() {
        let mut account = Account::default();
        let until = account.failed(
            UnixTime(0),
            &Backoff::default(),
            None,
            false,
            Some(UnixTime(7_200)),
            Some(6),
        );
        assert_eq!(until, UnixTime(7_200));
        let held = hold(
            UnixTime(7_199),
            Reason::Lifetime,
            None,
            None,
            None,
            &account,
        );
        assert_eq!(held, Some(Hold::BackOff { until }));
        assert_eq!(
            hold(
                UnixTime(7_200),
                Reason::Lifetime,
                None,
                None,
                None,
                &account
            ),
            None
        );
        assert_eq!(
            hold(UnixTime(1), Reason::RenewNow, Some(7), None, None, &account),
            None,
            "renew-now forgets the back-off"
        );
        assert_eq!(
            hold(UnixTime(1), Reason::RenewNow, Some(6), None, None, &account),
            Some(Hold::BackOff { until }),
            "but once for each value"
        );
    }

    #[test]
    fn no_wish_forgets_a_limit_of_the_ca_and_it_lasts_no_longer_than_it_said() {
        let mut account = Account::default();
        account.limited(UnixTime(100), Some(6));
        let held = |now, wish| hold(UnixTime(now), Reason::RenewNow, wish, None, None, &account);
        let until = UnixTime(100);
        for wish in [None, Some(6), Some(7)] {
            assert_eq!(held(99, wish), Some(Hold::BackOff { until }));
            assert_eq!(held(100, wish), None);
        }
        let week = i64::try_from(WEEK.as_secs()).unwrap();
        assert!(!account.is_over(UnixTime(99 + week)) && account.is_over(UnixTime(100 + week)));
        // By a clock that was ahead.
        assert_eq!(account.limited_until(UnixTime(-2 * week)), None);
        // A fallback helps out; the limit stays.
        account.issued(UnixTime(50), UnixTime(50), true, true);
        assert_eq!(account.limited_until(UnixTime(99)), Some(until));
        account.issued(UnixTime(100), UnixTime(100), true, true);
        assert!(account.is_empty());
    }

    #[test]
    fn a_secret_that_is_wiped_over_and_over_gets_three_certificates_a_week() {
        let mut account = Account::default();
        let (mut now, mut issued) = (UnixTime(0), 0);
        while now.0 < 7 * 86_400 {
            if hold(now, Reason::NoCertificate, None, None, None, &account).is_none() {
                account.issued(
                    now,
                    now,
                    is_expected(now, Reason::NoCertificate, None, None),
                    false,
                );
                account.issued(now + Duration::from_secs(1), now, false, false);
                issued += 1;
            }
            now = now + Duration::from_secs(60);
        }
        assert_eq!(issued, UNSCHEDULED_A_WEEK);
    }

    #[test]
    fn a_ca_that_wants_each_new_certificate_back_gets_three() {
        let mut account = Account::default();
        let mut issued = 0;
        for hour in 0..24 {
            let now = UnixTime(hour * 3_600);
            let leaf = leaf(now.0 - 60, now.0 + 90 * 86_400);
            if hold(now, Reason::RenewalInfo, None, Some(&leaf), None, &account).is_none() {
                account.issued(
                    now,
                    now,
                    is_expected(now, Reason::RenewalInfo, Some(&leaf), None),
                    false,
                );
                issued += 1;
            }
        }
        assert_eq!(issued, UNSCHEDULED_A_WEEK);
        let old = leaf(-80 * 86_400, 10 * 86_400);
        assert_eq!(
            hold(
                UnixTime(86_400),
                Reason::RenewalInfo,
                None,
                Some(&old),
                None,
                &account
            ),
            None
        );
    }

    #[test]
    fn by_a_clock_that_is_ahead_no_new_certificate_is_old_already() {
        let (day, lifetime) = (86_400, 90 * 86_400);
        for (reason, most) in [
            (Reason::Lifetime, 1),
            (Reason::RenewalInfo, 1 + UNSCHEDULED_A_WEEK),
        ] {
            let mut account = Account::default();
            let (mut written, mut issued) = (None, 0);
            for minute in 0..24 * 60 {
                // The CA's clock is right, ours is seventy days ahead.
                let right = UnixTime(minute * 60);
                let now = right + Duration::from_secs(70 * 86_400);
                let leaf = match written {
                    None => leaf(right.0 - 10 * day, right.0 - 10 * day + lifetime),
                    Some(at) => leaf(at, at + lifetime),
                };
                let at = written.map(|at: i64| UnixTime(at) + Duration::from_secs(70 * 86_400));
                if hold(now, reason, None, Some(&leaf), at, &account).is_none() {
                    let expected = is_expected(now, reason, Some(&leaf), at);
                    account.issued(now, now, expected, true);
                    (written, issued) = (Some(right.0), issued + 1);
                }
            }
            assert_eq!(issued, most, "{reason:?}");
        }
    }

    #[test]
    fn what_a_clock_noted_that_was_ahead_is_not_believed() {
        let (now, ahead) = (UnixTime(0), UnixTime(70 * 86_400));
        let mut account = Account {
            unscheduled: vec![ahead.0; UNSCHEDULED_A_WEEK],
            ..Account::default()
        };
        account.failed(ahead, &Backoff::default(), None, false, None, None);
        let held = |now| hold(now, Reason::NoCertificate, None, None, None, &account);
        assert!(matches!(held(ahead), Some(Hold::BackOff { .. })));
        assert_eq!(account.retry_at(now, None), None);
        assert_eq!(held(now), None);
    }

    #[test]
    fn renew_now_in_a_loop_gets_no_second_certificate_within_a_tenth_of_the_lifetime() {
        let leaf = leaf(0, 90 * 86_400);
        let held = hold(
            UnixTime(86_400),
            Reason::RenewNow,
            Some(7),
            Some(&leaf),
            None,
            &Account::default(),
        );
        assert_eq!(
            held,
            Some(Hold::TooYoung {
                until: UnixTime(9 * 86_400)
            })
        );
        assert_eq!(
            hold(
                UnixTime(9 * 86_400),
                Reason::RenewNow,
                Some(7),
                Some(&leaf),
                None,
                &Account::default()
            ),
            None
        );
    }

    #[test]
    fn an_account_is_a_set_of_names_at_an_issuer() {
        let names = |texts: &[&str]| -> Vec<Name> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let account = account_of("le", &names(&["a.example", "b.example"]));
        assert_eq!(
            account,
            account_of("le", &names(&["b.example", "a.example", "A.example"]))
        );
        assert_ne!(account, account_of("le", &names(&["a.example"])));
        assert_ne!(
            account,
            account_of("other", &names(&["a.example", "b.example"]))
        );
    }
}

//! How the new orders that an issuer allows in three hours are shared among namespaces.
//!
//! Input: who asks, when, and the limit. Output: yes, or an instant to ask again, a different one for each who waits,
//! so that ten thousand do not come back together. Pure, and in memory only: after a restart the certificates that are
//! there say what was ordered lately.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::time::UnixTime;

/// Let's Encrypt counts new orders of an account over this long.
const PERIOD: Duration = Duration::from_secs(3 * 3_600);
/// No namespace takes more than this share while others wait.
const SHARE: usize = 4;
/// Let's Encrypt dates certificates so far back, that clocks which are slow take them.
const BACKDATED: Duration = Duration::from_secs(3_600);
/// One who was told to come back and has not after this no longer waits.
const GRACE: Duration = Duration::from_secs(120);

/// The orders of one issuer.
#[derive(Debug, Default)]
pub struct Quota {
    /// Within the period, oldest first.
    taken: VecDeque<(UnixTime, Arc<str>)>,
    /// Who was told to come back when; the number tells those of one second apart.
    promised: BTreeSet<(UnixTime, u64, Arc<str>)>,
    count: u64,
}

/// Whether a certificate that is valid from then on may have been ordered within the period.
#[must_use]
pub fn is_recent(now: UnixTime, from: UnixTime) -> bool {
    from + BACKDATED + PERIOD > now
}

impl Quota {
    /// Counts orders of a former leader, by the instant from which each certificate is valid and its namespace. Where
    /// more were counted here, those are the truth.
    pub fn recall(
        &mut self,
        now: UnixTime,
        issued: impl IntoIterator<Item = (UnixTime, Arc<str>)>,
    ) {
        let ordered = issued.into_iter().map(|(from, namespace)| {
            // The latest that it may have been: rather too few orders than too many.
            ((from + BACKDATED).min(now), namespace)
        });
        let mut ordered: Vec<_> = ordered.collect();
        ordered.retain(|(at, _)| *at + PERIOD > now);
        ordered.sort_unstable();
        self.taken.retain(|(at, _)| *at + PERIOD > now);
        if ordered.len() > self.taken.len() {
            self.taken = ordered.into();
        }
    }

    /// Counts an order for `namespace`, if `limit` allows for it.
    ///
    /// # Errors
    /// With the instant at which to ask again.
    pub fn take(
        &mut self,
        now: UnixTime,
        namespace: &Arc<str>,
        limit: u32,
    ) -> Result<(), UnixTime> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).max(1);
        while self
            .taken
            .front()
            .is_some_and(|(at, _)| *at + PERIOD <= now)
        {
            self.taken.pop_front();
        }
        while self
            .promised
            .first()
            .is_some_and(|(at, ..)| *at + GRACE <= now)
        {
            self.promised.pop_first();
        }
        let own = self
            .taken
            .iter()
            .filter(|(_, other)| other == namespace)
            .count();
        let others_wait = self.promised.iter().any(|(_, _, other)| other != namespace);
        let greedy = own >= (limit / SHARE).max(1) && others_wait;
        if self.taken.len() < limit && !greedy {
            self.taken.push_back((now, Arc::clone(namespace)));
            let kept = self
                .promised
                .iter()
                .find(|(at, _, other)| *at <= now && other == namespace);
            if let Some(kept) = kept.cloned() {
                self.promised.remove(&kept);
            }
            return Ok(());
        }
        // The one after all who wait already gets the place that comes free after theirs.
        let place = self.promised.len();
        let frees = self.taken.get(place % self.taken.len().max(1));
        let turns = u32::try_from(place / self.taken.len().max(1)).unwrap_or(u32::MAX);
        let until =
            frees.map_or(now, |(at, _)| *at) + PERIOD.saturating_mul(turns.saturating_add(1));
        let until = until.max(now + Duration::from_secs(1));
        self.count += 1;
        self.promised
            .insert((until, self.count, Arc::clone(namespace)));
        Err(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn no_more_than_the_limit_in_three_hours_and_each_who_waits_has_an_instant_of_its_own() {
        let mut quota = Quota::default();
        let a = name("a");
        for second in 0..4 {
            assert_eq!(quota.take(UnixTime(second), &a, 4), Ok(()));
        }
        let told: Vec<i64> = (0..5)
            .map(|_| quota.take(UnixTime(10), &a, 4).unwrap_err().0)
            .collect();
        assert_eq!(told, [10_800, 10_801, 10_802, 10_803, 21_600]);
        assert_eq!(quota.take(UnixTime(10_800), &a, 4), Ok(()));
        assert!(quota.take(UnixTime(10_800), &a, 4).is_err());
    }

    #[test]
    fn certificates_of_the_last_hours_count_after_a_restart() {
        let now = UnixTime(100_000);
        let (a, b) = (name("a"), name("b"));
        let mut quota = Quota::default();
        let young = [now - Duration::from_secs(60), now - 2 * BACKDATED];
        let old = now - PERIOD - BACKDATED;
        quota.recall(now, young.map(|at| (at, a.clone())));
        quota.recall(now, [(old, a.clone())]);
        assert_eq!(quota.take(now, &b, 3), Ok(()));
        // The older of the two was ordered an hour ago at the latest.
        assert_eq!(quota.take(now, &b, 3), Err(now - BACKDATED + PERIOD));
        let mut quota = Quota::default();
        quota.recall(now, [(old, a)]);
        assert_eq!(quota.take(now, &b, 1), Ok(()));
    }

    #[test]
    fn while_others_wait_no_namespace_takes_more_than_a_quarter() {
        let mut quota = Quota::default();
        let (greedy, modest) = (name("greedy"), name("modest"));
        for _ in 0..8 {
            quota.take(UnixTime(0), &greedy, 8).unwrap();
        }
        assert_eq!(quota.take(UnixTime(5), &modest, 8), Err(UnixTime(10_800)));
        let now = UnixTime(10_800);
        quota.take(now, &greedy, 8).unwrap();
        quota.take(now, &greedy, 8).unwrap();
        assert!(quota.take(now, &greedy, 8).is_err(), "a quarter of 8 is 2");
        assert_eq!(quota.take(now, &modest, 8), Ok(()));
        assert_eq!(quota.take(now, &greedy, 8), Ok(()), "nobody waits any more");
    }
}

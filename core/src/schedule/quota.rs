//! How the new orders that an issuer allows in three hours are shared among namespaces.
//!
//! Input: which namespace wants an order, which asks, when, and the limit. Output: yes, or an instant to ask again, a
//! different one for each, so that ten thousand do not come back together. Slots are handed out round-robin across
//! waiting namespaces, so a late request is not queued behind a large namespace; free slots go to the namespace with
//! the fewest orders. Pure, and in memory only: after a restart the present certificates show the recent orders, and
//! what is due shows who waits. Users can put any number of certificates there: those of one namespace leave a quarter of
//! the limit to the others, and those of all together an eighth to each that has none.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::schedule::rate_limits::Usage;
use crate::time::UnixTime;

/// Period over which Let's Encrypt counts new orders of an account.
const PERIOD: Duration = Duration::from_secs(3 * 3_600);
/// Largest share of the limit for one namespace while others wait.
const SHARE: usize = 4;
/// The share of the limit that certificates of all others leave to a namespace. It may be ordered beyond the limit if all
/// of them were real: 250 and an eighth are less than the 300 that Let's Encrypt takes.
const LEFT: usize = 8;
/// How far back Let's Encrypt dates certificates, so that slow clocks accept them.
const BACKDATED: Duration = Duration::from_secs(3_600);
/// A request that has not come back this long after its instant no longer waits.
const GRACE: Duration = Duration::from_secs(120);
/// Delay of a request that yields to others that are about to ask.
const STAND_BACK: Duration = Duration::from_secs(10);

/// The orders of one issuer.
#[derive(Debug, Default)]
pub struct Quota {
    /// Orders within the period, oldest first.
    taken: VecDeque<(UnixTime, Arc<str>)>,
    /// Number of those by namespace.
    had: HashMap<Arc<str>, usize>,
    /// Number of the oldest that are counted by certificates, and of those by namespace.
    recalled: usize,
    recalled_of: HashMap<Arc<str>, usize>,
    /// Waiting requests by namespace.
    waiting: BTreeMap<Arc<str>, Waiting>,
    count: u64,
}

/// The waiting requests of one namespace.
#[derive(Debug, Default)]
struct Waiting {
    /// The instants at which they ask again; the number distinguishes those of one second.
    told: BTreeSet<(UnixTime, u64)>,
    /// Since when each is expected to ask.
    asking: VecDeque<UnixTime>,
}

impl Waiting {
    fn len(&self) -> usize {
        self.told.len() + self.asking.len()
    }

    /// Requests that may ask now.
    fn ready(&self, now: UnixTime) -> usize {
        self.asking.len() + self.come(now)
    }

    /// Requests whose instant has come.
    fn come(&self, now: UnixTime) -> usize {
        self.told.iter().take_while(|(at, _)| *at <= now).count()
    }

    /// When the first one asks.
    fn soonest(&self) -> Option<UnixTime> {
        let told = self.told.first().map(|(at, _)| *at);
        self.asking.front().copied().or(told)
    }

    /// Whether one asks now, or within a moment.
    fn asks_soon(&self, now: UnixTime) -> bool {
        self.soonest().is_some_and(|at| at <= now + STAND_BACK)
    }

    /// A request that was given an instant asks again.
    fn comes(&mut self, now: UnixTime) {
        if { self.told.first() }.is_some_and(|(at, _)| *at <= now) {
            self.told.pop_first();
        }
    }

    /// Drops requests that have not come in time.
    fn forget(&mut self, now: UnixTime) {
        while { self.told.first() }.is_some_and(|(at, _)| *at + GRACE <= now) {
            self.told.pop_first();
        }
        while { self.asking.front() }.is_some_and(|at| *at + GRACE <= now) {
            self.asking.pop_front();
        }
    }
}

/// Whether a certificate that is valid from `from` may have been ordered within the period.
#[must_use]
pub fn is_recent(now: UnixTime, from: UnixTime) -> bool {
    from + BACKDATED + PERIOD > now
}

impl Quota {
    /// Counts orders of a former leader, given the namespace and the start of validity of each certificate. If more
    /// were counted here, that number holds.
    pub fn recall(
        &mut self,
        now: UnixTime,
        issued: impl IntoIterator<Item = (UnixTime, Arc<str>)>,
    ) {
        let ordered = issued.into_iter().map(|(from, namespace)| {
            // The latest possible instant: rather too few orders than too many.
            ((from + BACKDATED).min(now), namespace)
        });
        let mut ordered: Vec<_> = ordered.collect();
        ordered.retain(|(at, _)| *at + PERIOD > now);
        ordered.sort_unstable();
        self.forget(now);
        if ordered.len() > self.taken.len() {
            self.taken = ordered.into();
            self.recalled = self.taken.len();
            self.recalled_of.clear();
            for (_, namespace) in &self.taken {
                *self.recalled_of.entry(Arc::clone(namespace)).or_default() += 1;
            }
        }
        self.had.clear();
        for (_, namespace) in &self.taken {
            *self.had.entry(Arc::clone(namespace)).or_default() += 1;
        }
    }

    /// A renewal of `namespace` is due and will ask soon.
    pub fn expect(&mut self, now: UnixTime, namespace: &Arc<str>) {
        self.forget(now);
        let waiting = self.waiting.entry(Arc::clone(namespace)).or_default();
        waiting.comes(now);
        waiting.asking.push_back(now);
    }

    /// A renewal of `namespace` that was expected to ask has ended without it.
    pub fn leave(&mut self, namespace: &str) {
        if let Some(waiting) = self.waiting.get_mut(namespace) {
            waiting.asking.pop_front();
            if waiting.len() == 0 {
                self.waiting.remove(namespace);
            }
        }
    }

    /// A request of `namespace` that was to ask again at `until` will not, or asks earlier.
    pub fn withdraw(&mut self, namespace: &str, until: UnixTime) {
        if let Some(waiting) = self.waiting.get_mut(namespace) {
            let mut told = waiting.told.range((until, 0)..=(until, u64::MAX));
            if let Some(one) = told.next().copied() {
                waiting.told.remove(&one);
            }
            if waiting.len() == 0 {
                self.waiting.remove(namespace);
            }
        }
    }

    /// Counts an order for `namespace`, if `limit` allows it.
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
        if let Some(waiting) = self.waiting.get_mut(namespace)
            && waiting.asking.pop_front().is_none()
        {
            waiting.comes(now);
        }
        self.forget(now);
        let own = self.had(namespace);
        let others = || self.waiting.iter().filter(|(it, _)| *it != namespace);
        // Two with equal numbers do not wait for each other.
        let less = || others().filter(|(other, _)| self.had(other) < own);
        let free = limit.saturating_sub(self.counted(namespace, limit));
        // One that asks hours from now loses nothing by what is free until then, and may never ask.
        let others_ask = || less().any(|(_, waiting)| waiting.asks_soon(now));
        let greedy = own >= (limit / SHARE).max(1) && others_ask();
        let ahead = less().map(|(other, waiting)| waiting.ready(now).min(own - self.had(other)));
        if !greedy && free > ahead.sum() {
            self.taken.push_back((now, Arc::clone(namespace)));
            *self.had.entry(Arc::clone(namespace)).or_default() += 1;
            return Ok(());
        }
        let until = if free > 0 {
            let soonest = less().filter_map(|(_, waiting)| waiting.soonest()).min();
            match soonest {
                Some(at) if at > now => at + Duration::from_secs(1),
                _ => now + STAND_BACK,
            }
        } else {
            // Round-robin: the second request of one namespace comes after the first of each other.
            let mine = self.waiting.get(namespace);
            let mine = mine.map_or(0, |waiting| waiting.told.len() - waiting.come(now));
            let theirs = others().map(|(_, waiting)| waiting.len().min(mine + 1));
            let place = mine + theirs.sum::<usize>();
            let frees = self.taken[place % self.taken.len()].0;
            let turns = u32::try_from(place / self.taken.len()).unwrap_or(u32::MAX);
            let until = frees + PERIOD.saturating_mul(turns.saturating_add(1));
            until.max(now + Duration::from_secs(1))
        };
        self.count += 1;
        let waiting = self.waiting.entry(Arc::clone(namespace)).or_default();
        waiting.told.insert((until, self.count));
        Err(until)
    }

    /// The last order that was counted for `namespace` was not made.
    pub fn give_back(&mut self, namespace: &str) {
        let last = self.taken.iter().rposition(|(_, it)| **it == *namespace);
        let Some(last) = last.filter(|last| *last >= self.recalled) else {
            return;
        };
        self.taken.remove(last);
        if let Some(count) = self.had.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                self.had.remove(namespace);
            }
        }
    }

    /// How many of the orders that `limit` allows are taken.
    #[must_use]
    pub fn usage(&self, now: UnixTime, limit: u32) -> Usage {
        let taken = self.taken.iter().map(|(at, _)| *at);
        let taken: Vec<UnixTime> = taken.filter(|at| *at + PERIOD > now).collect();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).max(1);
        Usage::of(&taken, limit, PERIOD)
    }

    fn forget(&mut self, now: UnixTime) {
        while { self.taken.front() }.is_some_and(|(at, _)| *at + PERIOD <= now)
            && let Some((_, namespace)) = self.taken.pop_front()
        {
            let counts = [&mut self.had, &mut self.recalled_of];
            for counts in counts.into_iter().take(1 + usize::from(self.recalled > 0)) {
                if let Some(count) = counts.get_mut(&namespace) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&namespace);
                    }
                }
            }
            self.recalled = self.recalled.saturating_sub(1);
        }
        self.waiting.retain(|_, waiting| {
            waiting.forget(now);
            waiting.len() > 0
        });
    }

    /// Orders within the period, as far as they count for a namespace: what only certificates of others show leaves some
    /// of the limit, whether one other namespace has them or many.
    fn counted(&self, namespace: &str, limit: usize) -> usize {
        let (of_one, of_all) = (limit - limit / SHARE, limit - limit / LEFT);
        let others = self
            .recalled_of
            .iter()
            .filter(|(it, _)| ***it != *namespace);
        let (mut all, mut counts) = (0, 0);
        for (_, count) in others {
            all += count;
            counts += count.min(&of_one);
        }
        self.taken.len() - all + counts.min(of_all)
    }

    /// Orders of a namespace within the period.
    fn had(&self, namespace: &str) -> usize {
        self.had.get(namespace).copied().unwrap_or(0)
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
    fn what_is_used_and_when_one_is_free_again_can_be_told() {
        let mut quota = Quota::default();
        let shop: Arc<str> = "shop".into();
        let at = |seconds: i64| UnixTime(1_800_000_000 + seconds);
        let told = |quota: &Quota, seconds: i64| {
            let usage = quota.usage(at(seconds), 2);
            (usage.used, usage.most, usage.until)
        };
        assert_eq!(told(&quota, 0), (0, 2, None));
        quota.take(at(0), &shop, 2).unwrap();
        assert_eq!(told(&quota, 5), (1, 2, None));
        quota.take(at(10), &shop, 2).unwrap();
        assert_eq!(told(&quota, 20), (2, 2, Some(at(0) + PERIOD)));
        assert_eq!(told(&quota, 10_800), (1, 2, None));
    }

    #[test]
    fn an_order_that_was_not_made_leaves_its_place_to_others() {
        let now = UnixTime(100_000);
        let (shop, hostile) = (name("shop"), name("hostile"));
        let mut quota = Quota::default();
        assert_eq!(quota.take(now, &shop, 2), Ok(()));
        for _ in 0..100 {
            assert_eq!(quota.take(now, &hostile, 2), Ok(()));
            quota.give_back(&hostile);
        }
        quota.give_back(&hostile);
        assert_eq!(quota.usage(now, 2).used, 1, "that of the shop counts");
        assert_eq!(quota.take(now, &shop, 2), Ok(()));
        // What a certificate shows was made.
        let mut quota = Quota::default();
        quota.recall(now, [(now - Duration::from_secs(60), hostile.clone())]);
        quota.give_back(&hostile);
        assert_eq!(quota.usage(now, 2).used, 1);
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
    fn certificates_that_somebody_puts_there_leave_a_quarter_to_the_others() {
        let now = UnixTime(100_000);
        let (hostile, modest) = (name("hostile"), name("modest"));
        let mut quota = Quota::default();
        quota.recall(now, (0..1_000).map(|_| (now, hostile.clone())));
        assert_eq!(quota.take(now, &modest, 8), Ok(()));
        assert_eq!(quota.take(now, &modest, 8), Ok(()));
        assert!(quota.take(now, &modest, 8).is_err());
        assert!(quota.take(now, &hostile, 8).is_err());
        let then = now + PERIOD;
        assert_eq!(quota.take(then, &hostile, 8), Ok(()));
        assert_eq!((quota.recalled, quota.recalled_of.len()), (0, 0));
    }

    #[test]
    fn certificates_of_several_namespaces_leave_an_eighth_to_the_others() {
        let now = UnixTime(100_000);
        let modest = name("modest");
        let mut quota = Quota::default();
        let hostile = |number: usize| (now, name(&format!("hostile-{}", number % 3)));
        quota.recall(now, (0..1_000).map(hostile));
        for _ in 0..2 {
            assert_eq!(quota.take(now, &modest, 16), Ok(()));
        }
        assert!(quota.take(now, &modest, 16).is_err());
        // What any Secret has ordered since counts in full.
        assert!(quota.take(now, &name("another"), 16).is_err());
        assert!(quota.take(now, &name("hostile-1"), 16).is_err());
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
        let soon = quota.take(now, &greedy, 8).unwrap_err();
        assert_eq!(soon, now + STAND_BACK, "a quarter of 8 is 2");
        assert_eq!(quota.take(now, &modest, 8), Ok(()));
        assert_eq!(
            quota.take(now, &greedy, 8),
            Ok(()),
            "nobody else waits any more"
        );
    }

    #[test]
    fn who_is_expected_and_leaves_keeps_nobody_back() {
        let mut quota = Quota::default();
        let (large, refused) = (name("large"), name("refused"));
        for second in 0..2 {
            quota.take(UnixTime(second), &large, 8).unwrap();
        }
        let now = UnixTime(10);
        (0..3).for_each(|_| quota.expect(now, &refused));
        for _ in 0..3 {
            assert_eq!(quota.take(now, &large, 8), Err(now + STAND_BACK));
            quota.leave(&refused);
        }
        quota.leave(&refused);
        assert_eq!(quota.take(now, &large, 8), Ok(()));
    }

    #[test]
    fn who_asks_in_hours_or_never_keeps_nobody_back_until_then() {
        let mut quota = Quota::default();
        let (large, gone) = (name("large"), name("gone"));
        for _ in 0..8 {
            quota.take(UnixTime(0), &large, 8).unwrap();
        }
        for _ in 0..1_000 {
            quota.take(UnixTime(5), &gone, 8).unwrap_err();
        }
        // Eight of those were to ask when all is free again, and have not.
        let now = UnixTime(10_800) + GRACE + STAND_BACK;
        for _ in 0..8 {
            assert_eq!(quota.take(now, &large, 8), Ok(()));
        }
    }

    /// Lets all of `wants` ask for their orders from a given second on, each again at its instant. Returns when each
    /// namespace had its last one, and the number of orders.
    fn run(quota: &mut Quota, wants: &[(i64, &str, usize)], limit: u32) -> BTreeMap<String, i64> {
        let mut queue = BTreeSet::new();
        let mut number = 0;
        for (at, namespace, count) in wants {
            for _ in 0..*count {
                number += 1;
                queue.insert((UnixTime(*at), number, name(namespace)));
                quota.expect(UnixTime(*at), &name(namespace));
            }
        }
        let (mut last, mut ordered) = (BTreeMap::new(), Vec::new());
        while let Some((now, number, namespace)) = queue.pop_first() {
            match quota.take(now, &namespace, limit) {
                Ok(()) => {
                    ordered.push(now);
                    last.insert(namespace.to_string(), now.0);
                }
                Err(until) => {
                    assert!(until > now);
                    queue.insert((until, number, namespace));
                }
            }
        }
        let limit = usize::try_from(limit).unwrap();
        for window in ordered.windows(limit + 1) {
            assert!(window[0] + PERIOD <= window[limit], "the limit is kept to");
        }
        last
    }

    #[test]
    fn who_asks_last_does_not_wait_for_all_that_another_namespace_wants() {
        let mut quota = Quota::default();
        // Due at the same time: the first to ask gets no more than its share.
        let last = run(&mut quota, &[(0, "a", 1_000), (0, "b", 20)], 100);
        assert!(last["b"] < 60, "{last:?}");
        assert!(
            last["a"] <= 10_800 * 10 + 600,
            "no place is left free: {last:?}"
        );
        let mut quota = Quota::default();
        let last = run(&mut quota, &[(0, "a", 500), (0, "b", 500)], 100);
        let end = last.values().max().unwrap();
        // Ten periods are the minimum.
        assert!(*end <= 10_800 * 11 + 600, "nor many by courtesy: {last:?}");
        // Due when all slots are taken: in the first round that becomes free.
        let mut quota = Quota::default();
        for _ in 0..100 {
            quota.take(UnixTime(0), &name("a"), 100).unwrap();
        }
        for _ in 0..900 {
            quota.take(UnixTime(1), &name("a"), 100).unwrap_err();
        }
        assert_eq!(
            quota.take(UnixTime(2), &name("b"), 100),
            Err(UnixTime(10_800))
        );
    }

    #[test]
    fn many_that_want_much_have_the_same() {
        let mut quota = Quota::default();
        let names = ["a", "b", "c", "d", "e", "f"];
        let wants = names.map(|name| (0, name, 200));
        run(&mut quota, &wants[..5], 100);
        // As after a fail-over: earlier orders are counted by their certificates, and all ask again.
        let mut other = Quota::default();
        let now = UnixTime(10_000_000);
        other.recall(now, (0..50).map(|_| (now, name("a"))));
        for (_, namespace, count) in wants {
            for _ in 0..count {
                other.expect(now, &name(namespace));
            }
        }
        let mut had = BTreeMap::<_, usize>::new();
        for namespace in names.iter().cycle().take(1_200) {
            if other.take(now, &name(namespace), 100).is_ok() {
                *had.entry(*namespace).or_default() += 1;
            }
        }
        let had: Vec<_> = had.into_iter().collect();
        assert_eq!(had, [("b", 10), ("c", 10), ("d", 10), ("e", 10), ("f", 10)]);
    }
}

//! Which Secrets the keeper looks at next: a lane for each namespace, so that one whose writes hang or fail delays no other.
//!
//! A namespace has one batch under way. After a failure that may pass it pauses, longer each time, and after many looks it
//! waits for its allowance. Pure; the clock is an argument.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cert_renew_core::schedule::token_bucket::TokenBucket;
use cert_renew_core::secret::SecretRef;

/// Most looks in one namespace at once, then one a second: a user who may write ConfigMaps can make any number of them.
const AT_ONCE: u32 = 300;
/// Most Secrets of a batch, so that the places go round.
const BATCH: usize = 20;
/// First and longest pause of a namespace after a failure that may pass.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The lanes of all namespaces in which something is to be looked at.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: HashMap<Arc<str>, Lane>,
    allowance: TokenBucket,
    turns: u64,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: BTreeSet<SecretRef>,
    is_running: bool,
    /// Not before this.
    from: Option<Instant>,
    failures: u32,
    /// The turn in which it ran last.
    turn: u64,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self {
            lanes: HashMap::new(),
            allowance: TokenBucket::new(AT_ONCE),
            turns: 0,
        }
    }

    /// These are to be looked at.
    pub(super) fn add(&mut self, keys: impl IntoIterator<Item = SecretRef>) {
        for key in keys {
            let lane = self.lanes.entry(Arc::clone(&key.namespace)).or_default();
            lane.waiting.insert(key);
        }
    }

    /// A batch of the namespace that has waited longest, if one may run now.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Arc<str>, Vec<SecretRef>)> {
        loop {
            let may = |lane: &Lane| !lane.is_running && lane.from.is_none_or(|from| from <= now);
            let ready = self.lanes.iter_mut().filter(|(_, lane)| may(lane));
            let (namespace, lane) = ready.min_by_key(|(_, lane)| lane.turn)?;
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && !lane.waiting.is_empty()
                && self.allowance.take(now, namespace)
            {
                batch.extend(lane.waiting.pop_first());
            }
            self.turns += 1;
            lane.turn = self.turns;
            if batch.is_empty() {
                // It has used up its allowance: a token comes back each second.
                lane.from = Some(now + Duration::from_secs(1));
                continue;
            }
            lane.is_running = true;
            return Some((Arc::clone(namespace), batch));
        }
    }

    /// A batch is over: what is left of it, and whether it ended by a failure that may pass.
    pub(super) fn done(
        &mut self,
        now: Instant,
        namespace: &Arc<str>,
        left: Vec<SecretRef>,
        failed: bool,
    ) {
        self.add(left);
        let lane = self.lanes.entry(Arc::clone(namespace)).or_default();
        lane.is_running = false;
        lane.failures = if failed { lane.failures + 1 } else { 0 };
        let pause = FIRST_PAUSE.saturating_mul(1 << lane.failures.saturating_sub(1).min(10));
        lane.from = failed.then(|| now + pause.min(LONGEST_PAUSE));
        if lane.waiting.is_empty() {
            self.lanes.remove(namespace);
        }
    }

    /// When a namespace that pauses may go on.
    pub(super) fn goes_on(&self) -> Option<Instant> {
        let paused = self.lanes.values().filter(|lane| !lane.is_running);
        paused.filter_map(|lane| lane.from).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(namespace: &str, count: usize) -> Vec<SecretRef> {
        (0..count)
            .map(|i| SecretRef::new(namespace, format!("s{i:04}")))
            .collect()
    }

    #[test]
    fn a_namespace_that_fails_delays_itself_and_no_other() {
        let (mut lanes, now) = (Lanes::new(), Instant::now());
        lanes.add(keys("bad", 50));
        let (bad, batch) = lanes.next(now).unwrap();
        assert_eq!(batch.len(), BATCH);
        lanes.add(keys("good", 1));
        let (good, one) = lanes.next(now).unwrap();
        assert_eq!((&*good, one.len()), ("good", 1));
        assert_eq!(lanes.next(now), None, "one batch at a time");
        lanes.done(now, &good, Vec::new(), false);
        let (mut now, mut pauses) = (now, Vec::new());
        let mut left = batch;
        for _ in 0..8 {
            lanes.done(now, &bad, left, true);
            lanes.add(keys("good", 1));
            assert_eq!(lanes.next(now).unwrap().0, good);
            lanes.done(now, &good, Vec::new(), false);
            let from = lanes.goes_on().unwrap();
            pauses.push(from.duration_since(now).as_secs());
            now = from;
            left = lanes.next(now).unwrap().1;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn many_declarations_of_one_namespace_wait_for_its_allowance() {
        let (mut lanes, now) = (Lanes::new(), Instant::now());
        lanes.add(keys("many", 1_000));
        let mut looked = 0;
        while let Some((namespace, batch)) = lanes.next(now) {
            looked += batch.len();
            lanes.done(now, &namespace, Vec::new(), false);
        }
        assert_eq!(looked, AT_ONCE as usize);
        let later = lanes.goes_on().unwrap() + Duration::from_secs(1);
        assert!(lanes.next(later).is_some());
    }
}

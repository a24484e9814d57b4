//! How long a Secret waits after the hosts of routes have changed: until they rest, so that hosts that come one after the
//! other are asked for by one order. What never rests is waited for no longer than [`AT_MOST`] times that, and what else
//! has changed is not waited for: a pause, or that a key is revoked.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::secret::SecretRef;

/// How many times the time of rest is waited for at most, from the first change on.
pub const AT_MOST: u32 = 10;

/// The Secrets that wait, or have waited and are not as they are declared yet.
#[derive(Debug, Default)]
pub(super) struct Settling {
    waits: HashMap<SecretRef, Wait>,
    /// Those that wait no more, whatever they wait for.
    urgent: HashSet<SecretRef>,
}

#[derive(Debug)]
struct Wait {
    /// Digest of what is waited for.
    of: u64,
    first: Instant,
    last: Instant,
    is_over: bool,
}

impl Wait {
    fn ends(&self, settle: Duration) -> Instant {
        let latest = self.first + settle.saturating_mul(AT_MOST);
        latest.min(self.last + settle)
    }
}

impl Settling {
    /// Whether what is declared for a Secret, by its digest, has rested for so long.
    pub(super) fn has_rested(
        &mut self,
        key: &SecretRef,
        of: u64,
        now: Instant,
        settle: Duration,
    ) -> bool {
        let new = || Wait {
            of,
            first: now,
            last: now,
            is_over: false,
        };
        let wait = self.waits.entry(key.clone()).or_insert_with(new);
        if wait.of != of {
            wait.first = if wait.is_over { now } else { wait.first };
            (wait.of, wait.last, wait.is_over) = (of, now, false);
        }
        let is_urgent = self.urgent.remove(key);
        wait.is_over |= is_urgent || wait.ends(settle) <= now;
        wait.is_over
    }

    /// More than hosts has changed of what is declared for a Secret: all of it is taken at once.
    pub(super) fn hurry(&mut self, key: &SecretRef) {
        self.urgent.insert(key.clone());
    }

    /// Those whose time has come and that were not taken yet.
    pub(super) fn rested(&self, now: Instant, settle: Duration) -> Vec<SecretRef> {
        let rested =
            { self.waits.iter() }.filter(|(_, wait)| !wait.is_over && wait.ends(settle) <= now);
        rested.map(|(key, _)| key.clone()).collect()
    }

    /// When the next one has rested.
    pub(super) fn next(&self, settle: Duration) -> Option<Instant> {
        let waiting = self.waits.values().filter(|wait| !wait.is_over);
        waiting.map(|wait| wait.ends(settle)).min()
    }

    /// A Secret is as it is declared, or is nothing's any more.
    pub(super) fn forget(&mut self, key: &SecretRef) {
        self.waits.remove(key);
        self.urgent.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(60);

    fn key() -> SecretRef {
        SecretRef::new("shop", "tls")
    }

    #[test]
    fn what_changes_once_is_waited_for_once() {
        let (mut settling, start) = (Settling::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!settling.has_rested(&key(), 1, start, SETTLE));
        assert_eq!(settling.next(SETTLE), Some(after(60)));
        assert!(
            !settling.has_rested(&key(), 2, after(50), SETTLE),
            "it changes again"
        );
        assert_eq!(settling.next(SETTLE), Some(after(110)));
        assert!(settling.rested(after(109), SETTLE).is_empty());
        assert_eq!(settling.rested(after(110), SETTLE), [key()]);
        assert!(settling.has_rested(&key(), 2, after(110), SETTLE));
        assert_eq!(settling.next(SETTLE), None);
        assert!(
            settling.rested(after(500), SETTLE).is_empty(),
            "it was taken"
        );
        assert!(
            settling.has_rested(&key(), 2, after(111), SETTLE),
            "a second look waits for nothing"
        );
        // The next change is another one.
        assert!(!settling.has_rested(&key(), 3, after(2_000), SETTLE));
        assert!(settling.has_rested(&key(), 3, after(2_060), SETTLE));
        settling.forget(&key());
        assert!(!settling.has_rested(&key(), 3, after(2_061), SETTLE));
        assert!(settling.has_rested(&key(), 3, after(2_061), Duration::ZERO));
    }

    #[test]
    fn what_is_urgent_is_not_waited_for() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        assert!(!settling.has_rested(&key(), 1, now, SETTLE));
        settling.hurry(&key());
        assert!(settling.has_rested(&key(), 2, now, SETTLE));
        assert_eq!(settling.next(SETTLE), None);
        assert!(
            settling.has_rested(&key(), 2, now, SETTLE),
            "a second look waits for nothing"
        );
        assert!(
            !settling.has_rested(&key(), 3, now, SETTLE),
            "the next change is another one"
        );
        settling.hurry(&key());
        settling.forget(&key());
        assert!(!settling.has_rested(&key(), 4, now, SETTLE));
    }

    #[test]
    fn what_never_rests_is_not_waited_for_for_ever() {
        let (mut settling, start) = (Settling::default(), Instant::now());
        let changes = (0..100).map(|i| (i, start + Duration::from_secs(30 * i)));
        let taken: Vec<u64> = changes
            .filter(|(of, now)| settling.has_rested(&key(), *of, *now, SETTLE))
            .map(|(of, _)| of)
            .collect();
        assert_eq!(taken, [20, 41, 62, 83]);
    }
}

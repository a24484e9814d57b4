//! Counts the recent patches of each workload, so that a workload over which two writers fight is not patched for ever.
//!
//! Pure: the instant is an argument. Leaves that are new to a workload never count, so certificates may be as
//! short-lived as they like; only leaves that it was patched for before do.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use cert_renew_core::rollout::types::Step;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::text::hash::hash;
use cert_renew_core::time::duration::human;
use tokio::time::Instant;

/// Most patches of a workload within [`LOOP_WINDOW`] for leaves that it had been patched for before. More of them means
/// a fight: somebody removes the annotation again, or two owners write the Secret in turn. A real renewal brings a new
/// leaf, and never counts.
const LOOP_LIMIT: usize = 10;
const LOOP_WINDOW: Duration = Duration::from_secs(3_600);

/// The patches of each workload within [`LOOP_WINDOW`], by namespace.
#[derive(Debug, Default)]
pub(super) struct History(HashMap<(Box<str>, WorkloadRef), VecDeque<Patched>>);

/// A patch of a workload.
#[derive(Debug)]
struct Patched {
    at: Instant,
    /// The leaves that it wrote, hashed with their Secrets.
    leaves: HashSet<u64>,
    /// All of its leaves had been written before.
    repeats: bool,
}

impl History {
    /// Notes that a workload is about to be patched; false where it was recently patched for the same leaves too often.
    pub(super) fn may_patch(&mut self, now: Instant, namespace: &str, step: &Step) -> bool {
        self.0.retain(|_, patches| {
            while patches
                .front()
                .is_some_and(|patch| now.duration_since(patch.at) >= LOOP_WINDOW)
            {
                patches.pop_front();
            }
            !patches.is_empty()
        });
        let id = step.workload.id.clone();
        let patches = self.0.entry((namespace.into(), id)).or_default();
        let leaves = step.leaves.iter();
        let leaves: HashSet<u64> = leaves
            .map(|due| hash(&format!("{} {}", due.secret, due.value())))
            .collect();
        let repeats = leaves
            .iter()
            .all(|leaf| patches.iter().any(|patch| patch.leaves.contains(leaf)));
        let may = !repeats || patches.iter().filter(|it| it.repeats).count() < LOOP_LIMIT;
        if may {
            patches.push_back(Patched {
                at: now,
                leaves,
                repeats,
            });
        }
        may
    }
}

/// Why [`History::may_patch`] says no.
pub(super) fn fought_over() -> String {
    format!(
        "restarted {LOOP_LIMIT} times within {} for certificates that it had before: somebody takes its annotation away or writes the Secret again and again",
        human(LOOP_WINDOW)
    )
}

#[cfg(test)]
mod tests {
    use cert_renew_core::certificate::Fingerprint;

    use super::*;

    /// Rolls Deployment web for the leaves of these Secrets.
    fn step(leaves: &[(&str, u32)]) -> Step {
        let leaf = |number: u32| Fingerprint::of(&number.to_be_bytes());
        let leaves = leaves.iter().map(|(secret, it)| (*secret, leaf(*it)));
        cert_renew_core::testing::step("web", &leaves.collect::<Vec<_>>())
    }

    #[test]
    fn honest_renewals_never_count_however_many_they_are() {
        let (mut history, start) = (History::default(), Instant::now());
        // A certificate of four minutes beside one of a day, for an hour and a half.
        for number in 0..90 {
            let now = start + Duration::from_secs(60 * u64::from(number));
            assert!(
                history.may_patch(now, "shop", &step(&[("short", number)])),
                "{number}"
            );
        }
        // A proxy with 120 Secrets, all of which are renewed within one hour, one restart each.
        for number in 0..120 {
            let secret = format!("tls-{number}");
            assert!(
                history.may_patch(start, "shop", &step(&[(&secret, 1)])),
                "{number}"
            );
        }
    }

    #[test]
    fn what_it_had_before_counts_and_is_forgotten_after_an_hour() {
        let (mut history, start) = (History::default(), Instant::now());
        let may = |history: &mut History, seconds: u64, leaf: u32| {
            let now = start + Duration::from_secs(seconds);
            history.may_patch(now, "shop", &step(&[("tls", leaf)]))
        };
        // Two owners write it in turn: the leaf of each is new once, and may come ten times more.
        let turns = (0..20).take_while(|turn| may(&mut history, 60 * u64::from(*turn), turn % 2));
        assert_eq!(turns.count(), 2 + LOOP_LIMIT);
        assert!(may(&mut history, 1_300, 2), "an honest one goes out");
        assert!(!may(&mut history, 1_310, 0));
        let elsewhere = step(&[("tls", 0)]);
        assert!(history.may_patch(start, "other", &elsewhere));
        assert!(may(&mut history, 3_600 + 120, 0), "an hour after the first");
    }
}

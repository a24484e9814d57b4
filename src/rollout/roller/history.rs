//! Counts the recent patches of each workload, so that a workload over which two writers fight is not patched for ever.
//!
//! Pure: the instant is an argument. Leaves that are new to a workload never count, so certificates may be as
//! short-lived as they like; only leaves that it was patched for before do.

use std::collections::HashMap;
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
/// Most bytes that are remembered, which is room for some ten thousand workloads. Where there is more, the namespace that
/// has most is forgotten: its own fights are counted from zero.
const MOST: usize = 4 * 1024 * 1024;
/// Time between two searches for what is older than [`LOOP_WINDOW`].
const SWEEP: Duration = Duration::from_secs(60);

/// The patches of each workload within [`LOOP_WINDOW`], by namespace.
#[derive(Debug, Default)]
pub(super) struct History {
    namespaces: HashMap<Box<str>, Namespace>,
    /// Bytes of all namespaces.
    bytes: usize,
    swept: Option<Instant>,
}

/// The workloads of one namespace.
#[derive(Debug, Default)]
struct Namespace {
    workloads: HashMap<WorkloadRef, Patches>,
    bytes: usize,
}

/// The patches of a workload.
#[derive(Debug, Default)]
struct Patches {
    /// When each leaf was last written to it, hashed with its Secret.
    leaves: HashMap<u64, Instant>,
    /// The patches all of whose leaves had been written before; at most [`LOOP_LIMIT`].
    repeats: Vec<Instant>,
}

impl History {
    /// Notes that a workload is about to be patched; false where it was recently patched for the same leaves too often.
    pub(super) fn may_patch(&mut self, now: Instant, namespace: &str, step: &Step) -> bool {
        if self.swept.is_none_or(|at| now.duration_since(at) >= SWEEP) {
            self.sweep(now);
        }
        let id = &step.workload.id;
        let mut patches = self.take(namespace, id).unwrap_or_default();
        let leaves = step.leaves.iter();
        let leaves: Vec<u64> = leaves
            .map(|due| hash(&format!("{} {}", due.secret, due.value())))
            .collect();
        let had = |leaf: &u64| patches.leaves.get(leaf).is_some_and(|at| recent(now, *at));
        let repeats = leaves.iter().all(had);
        patches.repeats.retain(|at| recent(now, *at));
        let may = !repeats || patches.repeats.len() < LOOP_LIMIT;
        if may {
            let written = leaves.into_iter().map(|leaf| (leaf, now));
            patches.leaves.extend(written);
            patches.repeats.extend(repeats.then_some(now));
        }
        self.put(namespace, id, patches);
        may
    }

    /// Forgets what is older than [`LOOP_WINDOW`].
    fn sweep(&mut self, now: Instant) {
        let mut total = 0;
        self.namespaces.retain(|namespace, all| {
            all.workloads.retain(|_, patches| {
                patches.leaves.retain(|_, at| recent(now, *at));
                patches.leaves.shrink_to_fit();
                !patches.leaves.is_empty()
            });
            let workloads = all.workloads.iter();
            all.bytes = workloads
                .map(|(id, patches)| patches.weight(namespace, id))
                .sum();
            total += all.bytes;
            !all.workloads.is_empty()
        });
        self.bytes = total;
        self.swept = Some(now);
    }

    fn take(&mut self, namespace: &str, id: &WorkloadRef) -> Option<Patches> {
        let all = self.namespaces.get_mut(namespace)?;
        let patches = all.workloads.remove(id)?;
        let weight = patches.weight(namespace, id);
        all.bytes -= weight;
        self.bytes -= weight;
        if all.workloads.is_empty() {
            self.namespaces.remove(namespace);
        }
        Some(patches)
    }

    /// Puts in what is not there. The namespace that has most makes room.
    fn put(&mut self, namespace: &str, id: &WorkloadRef, patches: Patches) {
        let weight = patches.weight(namespace, id);
        let all = self.namespaces.entry(namespace.into()).or_default();
        all.workloads.insert(id.clone(), patches);
        all.bytes += weight;
        self.bytes += weight;
        while self.bytes > MOST {
            let most = { self.namespaces.iter() }.max_by_key(|(_, all)| all.bytes);
            let Some(most) = most.map(|(namespace, _)| namespace.clone()) else {
                return;
            };
            let gone = self.namespaces.remove(&most);
            self.bytes -= gone.map_or(0, |all| all.bytes);
        }
    }
}

impl Patches {
    /// Bytes in memory, without the allocator's overhead.
    fn weight(&self, namespace: &str, id: &WorkloadRef) -> usize {
        let Self { leaves, repeats } = self;
        let texts = namespace.len() + id.name.len();
        let lists = leaves.capacity() * size_of::<(u64, Instant)>()
            + repeats.capacity() * size_of::<Instant>();
        size_of::<(Box<str>, Namespace)>() + size_of::<(WorkloadRef, Self)>() + texts + lists
    }
}

fn recent(now: Instant, at: Instant) -> bool {
    now.duration_since(at) < LOOP_WINDOW
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
    use cert_renew_core::testing::slower_than_linear_in;

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

    /// The same step for another Deployment.
    fn of_another(number: usize, leaves: &[(&str, u32)]) -> Step {
        let mut step = step(leaves);
        step.workload.id.name = format!("web-{number}").into();
        step
    }

    #[test]
    fn a_namespace_with_very_many_leaves_has_no_fight_of_others_forgotten() {
        let (mut history, now) = (History::default(), Instant::now());
        let fought = step(&[("tls", 1)]);
        for number in 0..=LOOP_LIMIT {
            assert!(history.may_patch(now, "shop", &fought), "{number}");
        }
        let secrets: Vec<String> = (0..1_000).map(|it| format!("tls-{it}")).collect();
        let leaves: Vec<(&str, u32)> = secrets.iter().map(|it| (it.as_str(), 1)).collect();
        let (mut loud, mut most) = (step(&leaves), 0);
        for number in 0..300 {
            loud.workload.id.name = format!("web-{number}").into();
            assert!(history.may_patch(now, "loud", &loud));
            let counted: usize = history.namespaces.values().map(|all| all.bytes).sum();
            assert_eq!(history.bytes, counted);
            most = most.max(counted);
        }
        assert!((MOST / 2..=MOST).contains(&most), "{most}");
        assert!(!history.may_patch(now, "shop", &fought));
        // An hour later nothing is left of all that.
        let later = now + LOOP_WINDOW;
        assert!(history.may_patch(later, "shop", &fought));
        assert_eq!(history.namespaces.len(), 1);
    }

    #[test]
    fn a_patch_costs_no_more_where_very_many_others_are_remembered() {
        let now = Instant::now();
        let slow = slower_than_linear_in(
            |length| {
                let all = (0..length / 256).map(|number| of_another(number, &[("tls", 1)]));
                all.collect::<Vec<_>>()
            },
            |steps| {
                let mut history = History::default();
                let may = |step| history.may_patch(now, "shop", step);
                assert!(steps.iter().all(may));
            },
        );
        assert_eq!(slow, None);
    }
}

//! Which pods have answered a reload, so that the next look at a rollout asks only the others.
//!
//! In memory only: after a restart every pod is asked once more and reloads once more. No other effect.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use crate::certificate::Fingerprint;
use crate::secret::parts::ChainAndCa;
use crate::secret::workload::WorkloadRef;

/// Most workloads that are remembered. Each is forgotten when its rollout is done; this bounds those whose Secret was
/// deleted before. Where there are more, those of the namespace that has most are forgotten.
const MOST: usize = 4_096;

/// What the pods of a workload are asked for: the Secrets, and the content of each.
pub type Leaves = Vec<(Box<str>, (Fingerprint, ChainAndCa))>;

/// The pods that have answered, by workload.
#[derive(Debug, Default)]
pub struct Answered(Mutex<HashMap<(Box<str>, WorkloadRef), Answers>>);

#[derive(Debug, Default)]
struct Answers {
    leaves: Leaves,
    /// By round and uid: if nothing verifies what they serve, all are asked twice.
    pods: BTreeSet<(Round, Box<str>)>,
    /// How often pods that serve an earlier leaf were due for another request.
    stale: u32,
}

/// The first or the second request to the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Round {
    /// After the usual delay of the kubelet.
    First,
    /// After the longest delay of a kubelet.
    Second,
}

impl Answered {
    /// Whether a pod has answered in this round.
    pub fn has(&self, of: (&str, &WorkloadRef), leaves: &Leaves, round: Round, uid: &str) -> bool {
        self.with(of, leaves, |it| it.pods.contains(&(round, uid.into())))
    }

    /// Records the answer of a pod in this round.
    pub fn note(&self, of: (&str, &WorkloadRef), leaves: &Leaves, round: Round, uid: &str) {
        self.with(of, leaves, |it| _ = it.pods.insert((round, uid.into())));
    }

    /// Whether pods that still serve an earlier leaf are asked once more at this look: at the first, the second, the
    /// fourth, the eighth and so on, so that pods that do not reload get few requests.
    pub fn may_help(&self, of: (&str, &WorkloadRef), leaves: &Leaves) -> bool {
        self.with(of, leaves, |it| {
            it.stale = it.stale.saturating_add(1);
            it.stale.is_power_of_two()
        })
    }

    /// Forgets a workload whose rollout is done.
    pub fn forget(&self, namespace: &str, workload: &WorkloadRef) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(namespace.into(), workload.clone()));
    }

    fn with<T>(
        &self,
        (namespace, workload): (&str, &WorkloadRef),
        leaves: &Leaves,
        then: impl FnOnce(&mut Answers) -> T,
    ) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.into(), workload.clone());
        if all.len() >= MOST && !all.contains_key(&key) {
            let mut counts: HashMap<&str, usize> = HashMap::new();
            for (namespace, _) in all.keys() {
                *counts.entry(namespace).or_default() += 1;
            }
            let most = counts.into_iter().max_by_key(|(_, count)| *count);
            let most: Option<Box<str>> = most.map(|(namespace, _)| namespace.into());
            all.retain(|(namespace, _), _| Some(namespace) != most.as_ref());
        }
        let answers = all.entry(key).or_default();
        if answers.leaves != *leaves {
            *answers = Answers {
                leaves: leaves.clone(),
                ..Answers::default()
            };
        }
        then(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_asked_once_in_each_round_until_there_is_another_leaf() {
        let answered = Answered::default();
        let web: WorkloadRef = "deployment/web".parse().unwrap();
        let leaves = |leaf: &[u8]| {
            let held = (Fingerprint::of(leaf), ChainAndCa::NONE);
            vec![("tls".into(), held)]
        };
        let has =
            |leaf: &[u8], round, uid: &str| answered.has(("shop", &web), &leaves(leaf), round, uid);
        answered.note(("shop", &web), &leaves(b"1"), Round::First, "a");
        assert!(has(b"1", Round::First, "a"));
        assert!(!has(b"1", Round::Second, "a") && !has(b"1", Round::First, "b"));
        assert!(!has(b"2", Round::First, "a") && !has(b"1", Round::First, "a"));
        let asks = |times: usize| -> Vec<bool> {
            let ask = |_| answered.may_help(("shop", &web), &leaves(b"1"));
            (0..times).map(ask).collect()
        };
        assert_eq!(asks(5), [true, true, false, true, false]);
        answered.forget("shop", &web);
        assert_eq!(asks(1), [true]);
    }

    #[test]
    fn a_namespace_with_very_many_workloads_has_no_pod_of_others_asked_again() {
        let answered = Answered::default();
        let web: WorkloadRef = "deployment/web".parse().unwrap();
        let leaves = Leaves::new();
        answered.note(("shop", &web), &leaves, Round::First, "a");
        for number in 0..3 * MOST {
            let workload = format!("deployment/web-{number}").parse().unwrap();
            answered.note(("loud", &workload), &leaves, Round::First, "a");
        }
        assert!(answered.has(("shop", &web), &leaves, Round::First, "a"));
        assert!(answered.0.lock().unwrap().len() <= MOST);
    }
}

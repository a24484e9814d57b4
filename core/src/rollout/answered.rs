//! Which pods have answered a reload, so that the next look at a rollout asks only the others.
//!
//! In memory only: after a restart every pod is asked once more and reloads once more. No other effect.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};

use super::types::Step;
use crate::secret::workload::WorkloadRef;

/// Most bytes that are remembered. A workload is forgotten when its rollout is done; this bounds those whose Secret was
/// deleted before, and those with very many pods. Where there is more, the namespace that has most is forgotten.
const MOST: usize = 4 * 1024 * 1024;

/// What the pods of a workload are asked for: a digest of the Secrets, and of the content of each. A workload may use
/// thousands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaves([u8; 16]);

/// The pods that have answered.
#[derive(Debug, Default)]
pub struct Answered(Mutex<ByNamespace>);

#[derive(Debug, Default)]
struct ByNamespace(HashMap<Box<str>, Namespace>);

/// The workloads of one namespace.
#[derive(Debug, Default)]
struct Namespace {
    workloads: HashMap<WorkloadRef, Answers>,
    bytes: usize,
}

#[derive(Debug)]
struct Answers {
    leaves: Leaves,
    /// By round and uid: if nothing verifies what they serve, all are asked twice.
    pods: BTreeSet<(Round, Box<str>)>,
    /// Bytes of the pods.
    bytes: usize,
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

/// A workload with its namespace.
type Of<'a> = (&'a str, &'a WorkloadRef);

impl Leaves {
    /// What the pods of a step are asked for.
    #[must_use]
    pub fn of(step: &Step) -> Self {
        let mut digest = Context::new(&SHA256);
        for due in &step.leaves {
            // A name has no NUL, and all that follows it has a fixed length.
            digest.update(due.secret.as_bytes());
            digest.update(&[0]);
            digest.update(&due.leaf.0);
            digest.update(&due.with.chain.to_be_bytes());
            digest.update(&due.with.ca.to_be_bytes());
        }
        let mut first = [0; 16];
        let digest = digest.finish();
        first
            .iter_mut()
            .zip(digest.as_ref())
            .for_each(|(to, from)| *to = *from);
        Self(first)
    }
}

impl Answered {
    /// Whether a pod has answered in this round. What was answered for other leaves is forgotten.
    pub fn has(&self, of: Of<'_>, leaves: Leaves, round: Round, uid: &str) -> bool {
        let mut all = self.all();
        let Some(answers) = all.get(of) else {
            return false;
        };
        if answers.leaves != leaves {
            all.take(of);
            return false;
        }
        answers.pods.contains(&(round, uid.into()))
    }

    /// Records the answer of a pod in this round.
    pub fn note(&self, of: Of<'_>, leaves: Leaves, round: Round, uid: &str) {
        self.with(of, leaves, |it| {
            if it.pods.insert((round, uid.into())) {
                it.bytes += size_of::<(Round, Box<str>)>() + uid.len();
            }
        });
    }

    /// Whether pods that still serve an earlier leaf are asked once more at this look: at the first, the second, the
    /// fourth, the eighth and so on, so that pods that do not reload get few requests.
    pub fn may_help(&self, of: Of<'_>, leaves: Leaves) -> bool {
        self.with(of, leaves, |it| {
            it.stale = it.stale.saturating_add(1);
            it.stale.is_power_of_two()
        })
    }

    /// Forgets a workload whose rollout is done.
    pub fn forget(&self, namespace: &str, workload: &WorkloadRef) {
        self.all().take((namespace, workload));
    }

    fn with<T>(&self, of: Of<'_>, leaves: Leaves, then: impl FnOnce(&mut Answers) -> T) -> T {
        let mut all = self.all();
        let known = all.take(of).filter(|it| it.leaves == leaves);
        let mut answers = known.unwrap_or_else(|| Answers::to(leaves));
        let result = then(&mut answers);
        all.put(of, answers);
        result
    }

    fn all(&self) -> MutexGuard<'_, ByNamespace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers {
    /// None yet.
    fn to(leaves: Leaves) -> Self {
        Self {
            leaves,
            pods: BTreeSet::new(),
            bytes: 0,
            stale: 0,
        }
    }

    /// Bytes in memory, without the allocator's overhead.
    fn weight(&self, (namespace, workload): Of<'_>) -> usize {
        let texts = namespace.len() + workload.name.len();
        size_of::<(Box<str>, Namespace)>() + size_of::<(WorkloadRef, Self)>() + texts + self.bytes
    }
}

impl ByNamespace {
    fn get(&self, (namespace, workload): Of<'_>) -> Option<&Answers> {
        self.0.get(namespace)?.workloads.get(workload)
    }

    fn take(&mut self, of: Of<'_>) -> Option<Answers> {
        let (namespace, workload) = of;
        let all = self.0.get_mut(namespace)?;
        let answers = all.workloads.remove(workload)?;
        all.bytes -= answers.weight(of);
        if all.workloads.is_empty() {
            self.0.remove(namespace);
        }
        Some(answers)
    }

    /// Puts in what is not there. The namespace that has most makes room.
    fn put(&mut self, of: Of<'_>, answers: Answers) {
        let (namespace, workload) = of;
        let all = self.0.entry(namespace.into()).or_default();
        all.bytes += answers.weight(of);
        all.workloads.insert(workload.clone(), answers);
        while self.bytes() > MOST {
            let most = { self.0.iter() }.max_by_key(|(_, all)| all.bytes);
            if let Some(most) = most.map(|(namespace, _)| namespace.clone()) {
                self.0.remove(&most);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.0.values().map(|all| all.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::{self, Write as _};

    use super::*;
    use crate::certificate::Fingerprint;
    use crate::testing::{of_secrets, step};

    /// Counts the bytes of a text.
    struct Counted(usize);

    impl fmt::Write for Counted {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 += text.len();
            Ok(())
        }
    }

    /// The length of all that is held, as text.
    fn length(answered: &Answered) -> usize {
        let mut counted = Counted(0);
        write!(counted, "{answered:?}").unwrap();
        counted.0
    }

    fn named(number: usize) -> WorkloadRef {
        format!("deployment/web-{number}").parse().unwrap()
    }

    fn number_of_workloads(answered: &Answered) -> usize {
        let all = answered.all();
        all.0.values().map(|all| all.workloads.len()).sum()
    }

    #[test]
    fn a_pod_is_asked_once_in_each_round_until_there_is_another_leaf() {
        let answered = Answered::default();
        let web: WorkloadRef = "deployment/web".parse().unwrap();
        let leaves = |leaf: &[u8]| Leaves::of(&step("web", &[("tls", Fingerprint::of(leaf))]));
        let has =
            |leaf: &[u8], round, uid: &str| answered.has(("shop", &web), leaves(leaf), round, uid);
        answered.note(("shop", &web), leaves(b"1"), Round::First, "a");
        assert!(has(b"1", Round::First, "a"));
        assert!(!has(b"1", Round::Second, "a") && !has(b"1", Round::First, "b"));
        assert!(!has(b"2", Round::First, "a") && !has(b"1", Round::First, "a"));
        let asks = |times: usize| -> Vec<bool> {
            let ask = |_| answered.may_help(("shop", &web), leaves(b"1"));
            (0..times).map(ask).collect()
        };
        assert_eq!(asks(5), [true, true, false, true, false]);
        answered.forget("shop", &web);
        assert_eq!(asks(1), [true]);
    }

    #[test]
    fn other_secrets_or_other_content_are_other_leaves() {
        let (one, other) = (Fingerprint::of(b"1"), Fingerprint::of(b"2"));
        let mut with_ca = step("web", &[("a", one)]);
        with_ca.leaves[0].with.ca = 1;
        let all = [
            Leaves::of(&step("web", &[])),
            Leaves::of(&step("web", &[("a", one)])),
            Leaves::of(&step("web", &[("b", one)])),
            Leaves::of(&step("web", &[("a", other)])),
            Leaves::of(&step("web", &[("a", one), ("b", one)])),
            Leaves::of(&with_ca),
        ];
        for (number, leaves) in all.iter().enumerate() {
            assert!(!all[..number].contains(leaves), "{number}");
        }
        assert_eq!(all[1], Leaves::of(&step("api", &[("a", one)])));
    }

    #[test]
    fn a_namespace_with_very_many_workloads_has_no_pod_of_others_asked_again() {
        let answered = Answered::default();
        let web: WorkloadRef = "deployment/web".parse().unwrap();
        let leaves = Leaves::of(&of_secrets("web", &["tls"]));
        answered.note(("shop", &web), leaves, Round::First, "a");
        let mut most = 0;
        for number in 0..50_000 {
            answered.note(("loud", &named(number)), leaves, Round::First, "a");
            most = most.max(number_of_workloads(&answered));
        }
        assert!(answered.has(("shop", &web), leaves, Round::First, "a"));
        assert!((4_096..25_000).contains(&most), "{most}");
    }

    #[test]
    fn workloads_that_use_very_many_secrets_take_no_more_than_others() {
        let names: Vec<String> = (0..1_000).map(|it| format!("tls-{it}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let held = |secrets: &[&str]| {
            let answered = Answered::default();
            let leaves = Leaves::of(&of_secrets("web", secrets));
            for number in 0..4_096 {
                answered.note(("loud", &named(number)), leaves, Round::First, "a");
            }
            assert_eq!(number_of_workloads(&answered), 4_096);
            length(&answered)
        };
        let (few, many) = (held(&names[..1]), held(&names));
        assert!(many < few + few / 4, "{many} {few}");
    }

    #[test]
    fn workloads_of_very_many_pods_have_no_pod_of_others_asked_again() {
        let answered = Answered::default();
        let web: WorkloadRef = "deployment/web".parse().unwrap();
        let leaves = Leaves::of(&of_secrets("web", &["tls"]));
        answered.note(("shop", &web), leaves, Round::First, "a");
        let mut most = 0;
        for pod in 0..200_000 {
            let (of, uid) = (named(pod / 50_000), format!("{pod:036}"));
            answered.note(("loud", &of), leaves, Round::First, &uid);
            most = most.max(answered.all().bytes());
        }
        assert!((MOST / 2..=MOST).contains(&most), "{most}");
        let (length, bytes) = (length(&answered), answered.all().bytes());
        assert!((bytes / 2..2 * bytes).contains(&length), "{length} {bytes}");
        assert!(answered.has(("shop", &web), leaves, Round::First, "a"));
    }

    #[test]
    fn nothing_is_kept_of_a_workload_that_was_only_looked_at_or_is_done() {
        let answered = Answered::default();
        let leaves = Leaves::of(&of_secrets("web", &["tls"]));
        assert!(!answered.has(("shop", &named(1)), leaves, Round::First, "a"));
        assert!(answered.all().0.is_empty());
        answered.note(("shop", &named(1)), leaves, Round::First, "a");
        answered.note(("shop", &named(2)), leaves, Round::First, "a");
        answered.forget("shop", &named(1));
        let bytes = answered.all().bytes();
        answered.note(("shop", &named(2)), leaves, Round::First, "a");
        assert_eq!(answered.all().bytes(), bytes, "one answer counts once");
        answered.forget("shop", &named(2));
        assert!(answered.all().0.is_empty());
    }
}

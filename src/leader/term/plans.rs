//! Which namespaces have rollouts that are due, and whose turn it is to be planned.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::secret::SecretRef;
use tokio::time::Instant;

/// Most namespaces whose workloads are listed at the same time.
const PLANNERS: usize = 8;
/// Most plans that start without delay within [`GATHER`], in the whole cluster. More of them are a burst: a list costs
/// the same for one Secret as for all of a namespace, so the further Secrets wait for their neighbours.
const AT_ONCE: usize = 4;
/// How long they wait.
pub(super) const GATHER: Duration = Duration::from_millis(500);

/// The rollouts that are due, by namespace; all of a namespace that wait are planned together.
#[derive(Debug, Default)]
pub(super) struct Plans {
    /// A namespace stays here until its turn, even if none of its Secrets waits any more: it is queued once.
    due: HashMap<Arc<str>, BTreeSet<SecretRef>>,
    /// The namespaces of those that wait for nothing else, longest first: none is passed over.
    ready: VecDeque<Arc<str>>,
    /// Namespaces that wait for others to become due, and those that have waited.
    gathering: HashSet<Arc<str>>,
    gathered: HashSet<Arc<str>>,
    planning: HashSet<Arc<str>>,
    pace: Pace,
}

/// What is to be done for a namespace.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// [`Plans::gathered`] is called for it after [`GATHER`].
    Gather(Arc<str>),
    /// These are planned; [`Plans::planned`] is called after that.
    Plan(Arc<str>, BTreeSet<SecretRef>),
}

impl Plans {
    /// The rollout of a Secret is due.
    pub(super) fn add(&mut self, key: SecretRef) {
        let namespace = Arc::clone(&key.namespace);
        if let Some(of) = self.due.get_mut(&namespace) {
            of.insert(key);
            return;
        }
        self.due
            .insert(Arc::clone(&namespace), BTreeSet::from([key]));
        self.queue(namespace);
    }

    /// Takes out a rollout that waits to be planned; false if it does not.
    pub(super) fn leave(&mut self, key: &SecretRef) -> bool {
        let of = self.due.get_mut(&key.namespace);
        of.is_some_and(|of| of.remove(key))
    }

    /// Number of rollouts that wait, and of turns that namespaces wait for.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        let waiting = self.due.values().map(BTreeSet::len).sum();
        (waiting, self.ready.len())
    }

    pub(super) fn gathered(&mut self, namespace: &Arc<str>) {
        self.gathering.remove(namespace);
        self.gathered.insert(Arc::clone(namespace));
        self.queue(Arc::clone(namespace));
    }

    pub(super) fn planned(&mut self, namespace: &Arc<str>) {
        self.planning.remove(namespace);
        self.queue(Arc::clone(namespace));
    }

    fn queue(&mut self, namespace: Arc<str>) {
        let waits = self.planning.contains(&namespace) || self.gathering.contains(&namespace);
        if !waits && self.due.contains_key(&namespace) {
            self.ready.push_back(namespace);
        }
    }

    /// The next namespace, if there is one and a place for it.
    pub(super) fn next(&mut self, now: Instant) -> Option<Next> {
        if self.planning.len() >= PLANNERS {
            return None;
        }
        let namespace = self.next_ready()?;
        if !self.gathered.remove(&namespace) && !self.pace.may_start(now) {
            self.gathering.insert(Arc::clone(&namespace));
            return Some(Next::Gather(namespace));
        }
        let keys = self.due.remove(&namespace).unwrap_or_default();
        self.planning.insert(Arc::clone(&namespace));
        Some(Next::Plan(namespace, keys))
    }

    /// The next namespace whose turn it is; those where nothing waits any more are passed over.
    fn next_ready(&mut self) -> Option<Arc<str>> {
        loop {
            let namespace = self.ready.pop_front()?;
            if self.due.get(&namespace).is_some_and(|of| !of.is_empty()) {
                return Some(namespace);
            }
            self.due.remove(&namespace);
            self.gathered.remove(&namespace);
        }
    }
}

/// When the last plans were started without waiting for others.
#[derive(Debug, Default)]
struct Pace(VecDeque<Instant>);

impl Pace {
    /// Whether a plan may start now; if so, it is counted.
    fn may_start(&mut self, now: Instant) -> bool {
        while self
            .0
            .front()
            .is_some_and(|at| now.duration_since(*at) >= GATHER)
        {
            self.0.pop_front();
        }
        let may = self.0.len() < AT_ONCE;
        if may {
            self.0.push_back(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_plans_start_at_once_and_a_burst_gathers() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let started = |pace: &mut Pace, after| {
            let now = start + Duration::from_millis(after);
            (0..10).filter(|_| pace.may_start(now)).count()
        };
        assert_eq!(started(&mut pace, 0), AT_ONCE);
        assert_eq!(started(&mut pace, 499), 0);
        assert_eq!(started(&mut pace, 500), AT_ONCE);
        // One plan every fifth of a second never waits.
        assert!((5..50).all(|turn| pace.may_start(start + Duration::from_millis(200) * turn)));
    }

    #[test]
    fn namespaces_that_are_due_again_and_again_pass_no_other_over() {
        let (mut plans, mut now) = (Plans::default(), Instant::now());
        let hostile: Vec<String> = (0..100).map(|it| format!("hostile-{it}")).collect();
        let (before, after) = hostile.split_at(50);
        let shop = "shop".to_owned();
        for namespace in before.iter().chain([&shop]).chain(after) {
            plans.add(SecretRef::new(&**namespace, "tls"));
        }
        let mut planned = Vec::new();
        while !planned.contains(&shop) {
            assert!(planned.len() < 2 * hostile.len(), "it is passed over");
            now += GATHER;
            let mut begun = Vec::new();
            while let Some(next) = plans.next(now) {
                begun.push(next);
            }
            for next in begun {
                match next {
                    Next::Gather(namespace) => plans.gathered(&namespace),
                    Next::Plan(namespace, keys) => {
                        assert_eq!(keys.len(), 1);
                        planned.push(namespace.to_string());
                        // It is due again before it has ended.
                        plans.add(SecretRef::new(&*namespace, "tls"));
                        plans.planned(&namespace);
                    }
                }
            }
        }
    }

    #[test]
    fn all_of_a_namespace_that_are_due_are_planned_together() {
        let (mut plans, now) = (Plans::default(), Instant::now());
        plans.add(SecretRef::new("shop", "a"));
        plans.add(SecretRef::new("shop", "b"));
        let both = [SecretRef::new("shop", "a"), SecretRef::new("shop", "b")].into();
        assert_eq!(plans.next(now), Some(Next::Plan("shop".into(), both)));
        plans.add(SecretRef::new("shop", "c"));
        assert_eq!(plans.next(now), None, "it is being planned");
        plans.planned(&"shop".into());
        let one = [SecretRef::new("shop", "c")].into();
        assert_eq!(plans.next(now), Some(Next::Plan("shop".into(), one)));
        plans.planned(&"shop".into());
        assert_eq!(plans.next(now), None);
    }

    #[test]
    fn a_namespace_whose_secrets_come_and_go_is_queued_once() {
        let (mut plans, mut now) = (Plans::default(), Instant::now());
        let others: Vec<String> = (0..PLANNERS).map(|it| format!("other-{it}")).collect();
        for other in &others {
            plans.add(SecretRef::new(&**other, "tls"));
            now += GATHER;
            assert!(matches!(plans.next(now), Some(Next::Plan(..))));
        }
        let key = SecretRef::new("shop", "tls");
        for _ in 0..1_000 {
            plans.add(key.clone());
            assert!(plans.leave(&key));
        }
        assert!(!plans.leave(&key), "it waits no longer");
        assert_eq!(plans.len(), (0, 1));
        plans.planned(&others[0].as_str().into());
        assert_eq!(plans.next(now), None);
        assert_eq!((plans.due.len(), plans.len()), (0, (0, 0)));
        plans.add(key.clone());
        let one = Next::Plan("shop".into(), [key].into());
        assert_eq!(plans.next(now + GATHER), Some(one));
    }
}

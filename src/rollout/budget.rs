//! Places for workloads that roll: so many in the cluster, so many in each namespace, the most urgent first.
//!
//! One queue for all, in memory; a place is given back when it is dropped, or as soon as its workload stands still.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::time::UnixTime;

/// What all rollouts share.
#[derive(Debug)]
pub(super) struct Budget {
    per_namespace: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Places taken, by namespace; none is kept at zero.
    taken: HashMap<Box<str>, usize>,
    /// By urgency, then by arrival.
    waiting: BTreeMap<(UnixTime, u64), Waiter>,
    arrivals: u64,
}

#[derive(Debug)]
struct Waiter {
    namespace: Box<str>,
    called: oneshot::Sender<Place>,
}

/// The right to roll one workload of a namespace.
#[derive(Debug)]
pub(super) struct Place {
    /// None once it was given back.
    of: Option<(Arc<Budget>, Box<str>)>,
}

impl Budget {
    pub(super) fn new(concurrency: usize, per_namespace: usize) -> Self {
        // Zero would roll nothing for ever; the config's reader refuses it too.
        let state = State {
            free: concurrency.max(1),
            taken: HashMap::new(),
            waiting: BTreeMap::new(),
            arrivals: 0,
        };
        Self {
            per_namespace: per_namespace.max(1),
            state: Mutex::new(state),
        }
    }

    /// Waits for a place. Whoever waits for the sake of a certificate that ends sooner is called first; who waits for a
    /// place of its namespace keeps nobody of another one waiting.
    pub(super) async fn place(self: &Arc<Self>, namespace: &str, urgency: UnixTime) -> Place {
        let (called, call) = oneshot::channel();
        {
            let mut state = self.state();
            state.arrivals += 1;
            let key = (urgency, state.arrivals);
            state.waiting.insert(
                key,
                Waiter {
                    namespace: namespace.into(),
                    called,
                },
            );
        }
        self.call();
        // The sender is dropped only with a budget that nobody can wait for any more.
        call.await.unwrap_or(Place { of: None })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls everyone for whom there is a place.
    fn call(self: &Arc<Self>) {
        loop {
            // A statement of its own: the lock is free again before a place may be dropped.
            let next = self.state().next(self.per_namespace);
            let Some(waiter) = next else { return };
            let place = Place {
                of: Some((Arc::clone(self), waiter.namespace)),
            };
            // Who no longer waits hands the place back by dropping it: that calls the next one.
            let _ = waiter.called.send(place);
        }
    }
}

impl State {
    /// Takes the first who may have a place out of the queue, and takes the place for them.
    fn next(&mut self, per_namespace: usize) -> Option<Waiter> {
        let taken = |waiter: &Waiter| self.taken.get(&waiter.namespace).copied().unwrap_or(0);
        let mut queue = self.waiting.iter();
        let key = *queue
            .find(|(_, waiter)| self.free > 0 && taken(waiter) < per_namespace)?
            .0;
        let waiter = self.waiting.remove(&key)?;
        self.free -= 1;
        *self.taken.entry(waiter.namespace.clone()).or_default() += 1;
        Some(waiter)
    }
}

impl Place {
    /// Gives the place to others, once.
    pub(super) fn give_back(&mut self) {
        let Some((budget, namespace)) = self.of.take() else {
            return;
        };
        {
            let mut state = budget.state();
            state.free += 1;
            if let Some(taken) = state.taken.get_mut(&namespace) {
                *taken -= 1;
                if *taken == 0 {
                    state.taken.remove(&namespace);
                }
            }
        }
        budget.call();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// Who has a place, of those that wait as (namespace, urgency), after the first `left` who had one gave it back.
    #[test]
    fn the_most_urgent_that_may_goes_first() {
        let waiting = [("a", 9), ("a", 8), ("a", 1), ("b", 5), ("b", 2), ("c", 7)];
        for (concurrency, per_namespace, expected) in [
            (6, 6, "012345"),
            (3, 1, "035"),
            (2, 2, "01"),
            (4, 2, "0134"),
        ] {
            let budget = Arc::new(Budget::new(concurrency, per_namespace));
            let mut futures: Vec<_> = waiting
                .iter()
                .map(|(namespace, urgency)| Box::pin(budget.place(namespace, UnixTime(*urgency))))
                .collect();
            let mut places: BTreeMap<usize, Place> = BTreeMap::new();
            let mut poll = |places: &mut BTreeMap<usize, Place>| {
                for (number, future) in futures.iter_mut().enumerate() {
                    if !places.contains_key(&number)
                        && let Some(place) = future.now_or_never()
                    {
                        places.insert(number, place);
                    }
                }
                places.keys().map(ToString::to_string).collect::<String>()
            };
            assert_eq!(poll(&mut places), expected, "{concurrency} {per_namespace}");
            if (concurrency, per_namespace) == (3, 1) {
                // One of a leaves, and the most urgent of a comes, although it came last.
                places.get_mut(&0).unwrap().give_back();
                assert_eq!(poll(&mut places), "0235");
                // Nobody else of a may come; one of b may when b's has gone.
                places.get_mut(&3).unwrap().give_back();
                assert_eq!(poll(&mut places), "02345");
            }
        }
    }

    #[test]
    fn who_no_longer_waits_takes_no_place() {
        let budget = Arc::new(Budget::new(1, 1));
        let first = budget.place("a", UnixTime(0)).now_or_never().unwrap();
        let mut gone = Box::pin(budget.place("b", UnixTime(0)));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut next = Box::pin(budget.place("c", UnixTime(9)));
        assert!(next.as_mut().now_or_never().is_none());
        drop(gone);
        drop(first);
        assert!(next.now_or_never().is_some());
        assert_eq!(budget.state().free, 1);
        assert!(budget.state().taken.is_empty());
    }
}

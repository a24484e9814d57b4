//! Places for concurrent work, shared fairly: a limit for all, and one for each namespace.
//!
//! The next place goes to the namespace that has the fewest; within it, to the certificate that ends soonest. Urgency
//! is worth a bounded lead, since anybody who may edit a Secret may forge it, and no waiting caller is overtaken for
//! ever. A place is given back when it is dropped, or as soon as its workload makes no progress; one that is held for
//! very long is passed on although its workload still moves. A few holders of each namespace may wait on without it.
//! Rollouts, and what they ask pods and the API server for, share such places; so do lookups of users' hosts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::time::UnixTime;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// Lead of the most urgent over the least urgent. Nobody overtakes a caller that has waited for longer.
const LEAD: Duration = Duration::from_secs(600);
/// Longest time that a place is held while others wait; then it counts as given back. Most workloads take less; a
/// namespace of workloads that take hours each would keep all others waiting.
const TURN: Duration = Duration::from_secs(600);
/// Most holders of a namespace that wait on after their place was given back or passed on, or twice as many as have a
/// place at once if that is more. Each has a watch, with a buffer of up to 256 KiB.
pub(crate) const WITHOUT_PLACE: usize = 20;

/// The places that all share.
#[derive(Debug)]
pub(crate) struct Budget {
    per_namespace: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    places: usize,
    /// Most holders of a namespace that wait on without a place.
    most_waiting_on: usize,
    /// Places that are held, oldest first.
    held: BTreeMap<u64, Held>,
    /// Number of held places by namespace; no entry is zero.
    taken: HashMap<Box<str>, usize>,
    /// Former places whose holders wait on, and their number by namespace; no number is zero.
    without_place: HashMap<u64, Box<str>>,
    waiting_on: HashMap<Box<str>, usize>,
    /// Waiting callers by namespace; no entry is empty.
    waiting: BTreeMap<Box<str>, Waiting>,
    numbers: u64,
}

/// The waiting callers of one namespace.
type Waiting = BTreeMap<Key, oneshot::Sender<HeldPlace>>;

/// Rank and then arrival.
type Key = (UnixTime, u64);

/// Takes a caller out of the queue when it no longer waits: thousands may stop waiting at once.
struct Queued<'a> {
    budget: &'a Budget,
    namespace: &'a str,
    key: Key,
}

#[derive(Debug)]
struct Held {
    namespace: Box<str>,
    since: Instant,
}

/// A place that is held for one piece of work of a namespace, as a workload that is rolled.
#[derive(Debug)]
pub(crate) struct HeldPlace {
    /// `None` once it is given back.
    of: Option<(Arc<Budget>, u64)>,
}

impl Budget {
    pub(crate) fn new(concurrency: usize, per_namespace: usize) -> Self {
        // Zero would never begin anything; the config's reader refuses it too.
        let state = State {
            places: concurrency.max(1),
            most_waiting_on: WITHOUT_PLACE.max(per_namespace.saturating_mul(2)),
            held: BTreeMap::new(),
            taken: HashMap::new(),
            without_place: HashMap::new(),
            waiting_on: HashMap::new(),
            waiting: BTreeMap::new(),
            numbers: 0,
        };
        Self {
            per_namespace: per_namespace.max(1),
            state: Mutex::new(state),
        }
    }

    /// Waits for a place. `urgency` is the end of the certificate that the work is for.
    pub(crate) async fn place(self: &Arc<Self>, namespace: &str, urgency: UnixTime) -> HeldPlace {
        let (called, mut call) = oneshot::channel();
        let _queued = self.queue(namespace, urgency, called);
        self.call();
        loop {
            let passed_on = self.state().passed_on();
            tokio::select! {
                biased;
                // The sender is dropped only with a budget that has no callers any more.
                place = &mut call => return place.unwrap_or(HeldPlace { of: None }),
                () = sleep_until(passed_on) => self.call(),
            }
        }
    }

    fn queue<'a>(
        &'a self,
        namespace: &'a str,
        urgency: UnixTime,
        called: oneshot::Sender<HeldPlace>,
    ) -> Queued<'a> {
        let (now, mut state) = (UnixTime::now(), self.state());
        state.numbers += 1;
        let key = (rank(now, urgency), state.numbers);
        let of = state.waiting.entry(namespace.into()).or_default();
        of.insert(key, called);
        Queued {
            budget: self,
            namespace,
            key,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Hands out all free places.
    fn call(self: &Arc<Self>) {
        loop {
            // A statement of its own: the lock is released before a place may be dropped.
            let next = self.state().next(self.per_namespace);
            let Some((number, called)) = next else { return };
            let place = HeldPlace {
                of: Some((Arc::clone(self), number)),
            };
            // The caller has just stopped waiting. Dropping the place would call the next one from within this call.
            if let Err(mut place) = called.send(place) {
                place.of = None;
                self.state().give_back(number);
            }
        }
    }
}

/// The rank of a caller that arrives now.
fn rank(now: UnixTime, urgency: UnixTime) -> UnixTime {
    urgency.max(now).min(now + LEAD)
}

impl State {
    /// Takes the first caller that may have a place out of the queue, and takes the place for it.
    fn next(&mut self, per_namespace: usize) -> Option<(u64, oneshot::Sender<HeldPlace>)> {
        if self.waiting.is_empty() {
            return None;
        }
        while let Some((number, held)) = self.held.first_key_value()
            && held.since.elapsed() >= TURN
        {
            let number = *number;
            self.pass_on(number);
        }
        if self.held.len() >= self.places {
            return None;
        }
        let taken = |namespace: &str| self.taken.get(namespace).copied().unwrap_or(0);
        let heads = self.waiting.iter();
        let heads = heads.filter_map(|(namespace, of)| Some((namespace, of.first_key_value()?.0)));
        let free = heads.filter(|(namespace, _)| taken(namespace) < per_namespace);
        let (namespace, _) = free.min_by_key(|(namespace, key)| (taken(namespace), **key))?;
        let namespace = namespace.clone();
        let of = self.waiting.get_mut(&namespace)?;
        let (_, called) = of.pop_first()?;
        if of.is_empty() {
            self.waiting.remove(&namespace);
        }
        self.numbers += 1;
        *self.taken.entry(namespace.clone()).or_default() += 1;
        let since = Instant::now();
        self.held.insert(self.numbers, Held { namespace, since });
        Some((self.numbers, called))
    }

    /// Takes a caller out of the queue, unless it was called.
    fn leave(&mut self, namespace: &str, key: Key) {
        let Some(of) = self.waiting.get_mut(namespace) else {
            return;
        };
        of.remove(&key);
        if of.is_empty() {
            self.waiting.remove(namespace);
        }
    }

    /// Frees a place; false where it was passed on before.
    fn give_back(&mut self, number: u64) -> bool {
        if let Some(namespace) = self.without_place.remove(&number) {
            one_less(&mut self.waiting_on, &namespace);
        }
        self.free(number).is_some()
    }

    /// Frees a place whose holder waits on, unless too many of its namespace do; false where it was passed on before.
    fn pass_on(&mut self, number: u64) -> bool {
        let Some(namespace) = self.free(number) else {
            return false;
        };
        let waiting = self.waiting_on.entry(namespace.clone()).or_default();
        if *waiting < self.most_waiting_on {
            *waiting += 1;
            self.without_place.insert(number, namespace);
        }
        true
    }

    fn free(&mut self, number: u64) -> Option<Box<str>> {
        let Held { namespace, .. } = self.held.remove(&number)?;
        one_less(&mut self.taken, &namespace);
        Some(namespace)
    }

    /// When the place that is held longest is passed on.
    fn passed_on(&self) -> Instant {
        let oldest = self.held.first_key_value().map(|(_, held)| held.since);
        oldest.unwrap_or_else(Instant::now) + TURN
    }
}

fn one_less(counts: &mut HashMap<Box<str>, usize>, namespace: &str) {
    if let Some(count) = counts.get_mut(namespace) {
        *count -= 1;
        if *count == 0 {
            counts.remove(namespace);
        }
    }
}

impl HeldPlace {
    /// Frees the place, if it has not been passed on: whether its holder may wait on without it.
    pub(crate) fn wait_on(&mut self) -> bool {
        if let Some((budget, number)) = &self.of {
            let is_freed = budget.state().pass_on(*number);
            if is_freed {
                budget.call();
            }
        }
        self.may_wait()
    }

    /// Whether its holder may wait on: it has its place, or is one of the few of its namespace that wait without one.
    pub(crate) fn may_wait(&self) -> bool {
        let Some((budget, number)) = &self.of else {
            return true;
        };
        let state = budget.state();
        state.held.contains_key(number) || state.without_place.contains_key(number)
    }

    /// Most holders of its namespace that wait on without a place.
    pub(crate) fn most_waiting_on(&self) -> usize {
        let of = self.of.as_ref();
        of.map_or(WITHOUT_PLACE, |(budget, _)| budget.state().most_waiting_on)
    }

    /// Frees the place, once.
    pub(crate) fn give_back(&mut self) {
        if let Some((budget, number)) = self.of.take()
            && budget.state().give_back(number)
        {
            budget.call();
        }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.budget.state().leave(self.namespace, self.key);
    }
}

impl Drop for HeldPlace {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    use super::*;

    /// Waiting callers, each as (namespace, seconds until its certificate ends), and the places that they have.
    struct Scene {
        futures: Vec<BoxFuture<'static, HeldPlace>>,
        places: BTreeMap<usize, HeldPlace>,
        budget: Arc<Budget>,
    }

    impl Scene {
        fn new(concurrency: usize, per_namespace: usize) -> Self {
            Self {
                futures: Vec::new(),
                places: BTreeMap::new(),
                budget: Arc::new(Budget::new(concurrency, per_namespace)),
            }
        }

        fn waits(&mut self, namespace: &'static str, urgency: UnixTime) {
            let budget = Arc::clone(&self.budget);
            let place = async move { budget.place(namespace, urgency).await };
            self.futures.push(place.boxed());
            self.have();
        }

        fn leaves(&mut self, number: usize) {
            self.places.get_mut(&number).unwrap().give_back();
        }

        /// The numbers of all callers that have ever had a place.
        fn have(&mut self) -> String {
            for (number, future) in self.futures.iter_mut().enumerate() {
                if !self.places.contains_key(&number)
                    && let Some(place) = future.now_or_never()
                {
                    self.places.insert(number, place);
                }
            }
            self.places.keys().map(ToString::to_string).collect()
        }
    }

    fn ends_in(seconds: i64) -> UnixTime {
        UnixTime(UnixTime::now().0 + seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn the_most_urgent_of_the_namespace_with_the_fewest_places_goes_first() {
        let waiting = [
            ("a", 90),
            ("a", 80),
            ("a", 10),
            ("b", 50),
            ("b", 20),
            ("c", 70),
        ];
        for (concurrency, per_namespace, expected) in [
            (6, 6, "012345"),
            (3, 1, "035"),
            (2, 2, "01"),
            (4, 2, "0134"),
        ] {
            let mut scene = Scene::new(concurrency, per_namespace);
            for (namespace, urgency) in waiting {
                scene.waits(namespace, ends_in(urgency));
            }
            assert_eq!(scene.have(), expected, "{concurrency} {per_namespace}");
            if (concurrency, per_namespace) == (3, 1) {
                // One caller of a leaves, and the most urgent of a gets its place, although it came last.
                scene.leaves(0);
                assert_eq!(scene.have(), "0235");
                // No other caller of a gets a place; one of b does when b's has left.
                scene.leaves(3);
                assert_eq!(scene.have(), "02345");
            }
            if (concurrency, per_namespace) == (2, 2) {
                scene.leaves(0);
                assert_eq!(scene.have(), "014", "b has none yet");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn urgency_is_worth_a_bounded_lead() {
        let mut scene = Scene::new(1, 1);
        scene.waits("first", ends_in(0));
        let long_ago = UnixTime(i64::MIN);
        let (now, lead) = (UnixTime::now(), i64::try_from(LEAD.as_secs()).unwrap());
        assert_eq!(rank(now, long_ago), now, "expired long ago is expired");
        assert_eq!(rank(now, UnixTime::NEVER), UnixTime(now.0 + lead));
        // A caller that arrives after the lead overtakes nobody, however urgent.
        assert!(rank(UnixTime(now.0 + lead + 1), long_ago) > rank(now, UnixTime::NEVER));
        scene.waits("calm", UnixTime::NEVER);
        scene.waits("urgent", long_ago);
        scene.leaves(0);
        assert_eq!(scene.have(), "02");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_not_held_for_ever_by_what_merely_moves() {
        let mut scene = Scene::new(2, 2);
        scene.waits("greedy", ends_in(0));
        scene.waits("greedy", ends_in(0));
        scene.waits("greedy", ends_in(0));
        scene.waits("other", UnixTime::NEVER);
        assert_eq!(scene.have(), "01");
        tokio::time::advance(TURN).await;
        // Both places are passed on: one to each namespace.
        assert_eq!(scene.have(), "0123");
        let state = scene.budget.state();
        let taken: BTreeMap<&str, usize> = state
            .taken
            .iter()
            .map(|(of, taken)| (&**of, *taken))
            .collect();
        assert_eq!(taken, BTreeMap::from([("greedy", 1), ("other", 1)]));
        drop(state);
        // The end of the first ones changes nothing.
        scene.leaves(0);
        scene.waits("late", UnixTime::NEVER);
        assert_eq!(scene.have(), "0123");
    }

    #[tokio::test(start_paused = true)]
    async fn who_no_longer_waits_takes_no_place() {
        let budget = Arc::new(Budget::new(1, 1));
        let first = budget.place("a", UnixTime(0)).now_or_never().unwrap();
        let mut gone = Box::pin(budget.place("b", UnixTime(0)));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut next = Box::pin(budget.place("c", UnixTime(9)));
        assert!(next.as_mut().now_or_never().is_none());
        drop(gone);
        drop(first);
        assert!(next.now_or_never().is_some());
        assert!(budget.state().held.is_empty());
        assert!(budget.state().taken.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn few_of_a_namespace_wait_on_without_a_place() {
        for (per_namespace, most) in [(1, WITHOUT_PLACE), (10, WITHOUT_PLACE), (30, 60)] {
            wait_on_without_a_place(per_namespace, most).await;
        }
    }

    /// One place for all namespaces; `most` tasks of one namespace wait on without it.
    async fn wait_on_without_a_place(per_namespace: usize, most: usize) {
        let budget = Arc::new(Budget::new(1, per_namespace));
        let place = |namespace| {
            let place = budget.place(namespace, UnixTime(0)).now_or_never();
            place.unwrap()
        };
        let mut waiting = Vec::new();
        for _ in 0..most {
            let mut place = place("a");
            assert!(place.wait_on() && place.wait_on() && place.may_wait());
            waiting.push(place);
        }
        let mut late = place("a");
        assert!(late.may_wait() && !late.wait_on() && !late.may_wait());
        assert_eq!(late.most_waiting_on(), most);
        let mut other = place("b");
        assert!(other.wait_on());
        drop(waiting.pop());
        let mut next = place("a");
        assert!(next.wait_on(), "there is room again");
        // One whose place is passed on waits without it too.
        let held = place("a");
        tokio::time::advance(TURN).await;
        let later = place("b");
        assert!(!held.may_wait() && later.may_wait());
        drop((waiting, late, other, next, held, later));
        let state = budget.state();
        assert!(state.without_place.is_empty() && state.waiting_on.is_empty());
    }

    /// Runs a test on a thread with a small stack, with timers.
    fn on_a_small_stack(test: impl AsyncFnOnce() + Send + 'static) {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime.unwrap().block_on(test());
        };
        let thread = std::thread::Builder::new().stack_size(256 * 1024);
        thread.spawn(run).unwrap().join().unwrap();
    }

    /// What the budget keeps of its callers: those that wait, those that have a place, namespaces with places.
    fn kept(budget: &Budget) -> [usize; 3] {
        let state = budget.state();
        let waiting = state.waiting.values().map(BTreeMap::len);
        [waiting.sum(), state.held.len(), state.taken.len()]
    }

    #[test]
    fn very_many_that_no_longer_wait_take_neither_stack_nor_memory() {
        on_a_small_stack(async || {
            let budget = Arc::new(Budget::new(1, 1));
            let first = budget.place("a", UnixTime(0)).now_or_never().unwrap();
            let mut waiting = Vec::new();
            for _ in 0..100_000 {
                let mut place = Box::pin(budget.place("a", UnixTime(0)));
                assert!(place.as_mut().now_or_never().is_none());
                waiting.push(place);
            }
            assert_eq!(kept(&budget), [100_000, 1, 1]);
            drop(waiting);
            assert_eq!(kept(&budget), [0, 1, 1]);
            drop(first);
            assert_eq!(kept(&budget), [0, 0, 0]);
        });
    }

    #[test]
    fn very_many_that_stop_waiting_while_they_are_called_take_no_stack() {
        on_a_small_stack(async || {
            let budget = Arc::new(Budget::new(1, 1));
            let first = budget.place("a", UnixTime(0)).now_or_never().unwrap();
            for number in 0..100_000 {
                let (called, _) = oneshot::channel();
                let mut state = budget.state();
                let of = state.waiting.entry("a".into()).or_default();
                of.insert((UnixTime(0), number), called);
            }
            drop(first);
            assert_eq!(kept(&budget), [0, 0, 0]);
        });
    }
}

//! Secrets that wait for a look of their own: at the pair, by [`crate::leader::pairs`], or at what is written on them for
//! people, by [`crate::leader::notes`].
//!
//! Several namespaces are looked at at once, one Secret of each, and the one that has waited longest comes next: a
//! namespace whose looks take long, or that has thousands, delays itself. The room is bounded in all; where it is full,
//! the namespace that has most makes room.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::secret::SecretRef;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Most Secrets that wait for a look; one that made room is looked at when it changes again.
const MOST: usize = 4_096;
/// Delay of a look: enough for a writer that sends certificate and key in two requests.
const SETTLE: Duration = Duration::from_secs(5);
/// Most namespaces that are looked at at once.
const AT_ONCE: usize = 4;

/// Secrets that wait for a look.
#[derive(Debug, Default)]
pub struct Doubts {
    waiting: Mutex<Waiting>,
    told: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    count: usize,
    of: HashMap<Arc<str>, Namespace>,
}

/// The Secrets of one namespace.
#[derive(Debug)]
struct Namespace {
    /// By the instant of the look.
    order: BTreeSet<(Instant, Arc<str>)>,
    at: HashMap<Arc<str>, Instant>,
    /// One of them is being looked at.
    busy: bool,
    /// When its last look ended.
    looked: Instant,
}

/// A Secret that is being looked at. Until this is dropped, no other one of its namespace is.
#[derive(Debug)]
struct Turn<'a> {
    key: SecretRef,
    all: &'a Doubts,
}

impl Doubts {
    /// Adds a Secret, to be looked at after a moment.
    pub fn add(&self, key: &SecretRef) {
        self.add_after(key, SETTLE);
    }

    /// Adds a Secret, to be looked at after the delay, or earlier if it waits already.
    pub fn add_after(&self, key: &SecretRef, delay: Duration) {
        self.waiting.lock().add(key, Instant::now() + delay);
        self.told.notify_one();
    }

    /// Removes a Secret that needs no look any more.
    pub fn remove(&self, key: &SecretRef) {
        self.waiting.lock().remove(key);
    }

    /// Looks at each Secret as its turn comes. Does not end, and may be dropped at any time.
    pub async fn each<F: Future<Output = ()>>(&self, look: impl Fn(SecretRef) -> F) {
        let look = &look;
        let turns = (0..AT_ONCE).map(|_| async move {
            loop {
                let turn = self.next().await;
                look(turn.key.clone()).await;
            }
        });
        join_all(turns).await;
    }

    /// Waits for the Secret whose turn is next, and takes it.
    async fn next(&self) -> Turn<'_> {
        loop {
            let told = self.told.notified();
            let next = self.waiting.lock().next(Instant::now());
            match next {
                Ok(key) => return Turn { key, all: self },
                Err(Some(at)) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = told => {}
                },
                Err(None) => told.await,
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut waiting = self.all.waiting.lock();
        waiting.looked(Instant::now(), &self.key.namespace);
        drop(waiting);
        self.all.told.notify_one();
    }
}

impl Waiting {
    fn add(&mut self, key: &SecretRef, at: Instant) {
        let known = { self.of.get(&key.namespace) }.and_then(|it| it.at.get(&key.name));
        match known.copied() {
            Some(known) if known <= at => return,
            Some(_) => self.remove(key),
            None if self.count >= MOST && !self.make_room(&key.namespace) => return,
            None => {}
        }
        let own = self.of.entry(Arc::clone(&key.namespace));
        let own = own.or_insert_with(|| Namespace::at(at));
        own.order.insert((at, Arc::clone(&key.name)));
        own.at.insert(Arc::clone(&key.name), at);
        self.count += 1;
    }

    /// Drops the last one of the namespace that has most, if that is more than this one has.
    fn make_room(&mut self, namespace: &str) -> bool {
        let own = self.of.get(namespace).map_or(0, |it| it.at.len());
        let most = self.of.iter().max_by_key(|(_, it)| it.at.len());
        let most = most.filter(|(_, it)| it.at.len() > own);
        let last = most.and_then(|(it, of)| {
            let (_, name) = of.order.last()?;
            Some(SecretRef::new(Arc::clone(it), Arc::clone(name)))
        });
        if let Some(last) = &last {
            self.remove(last);
        }
        last.is_some()
    }

    fn remove(&mut self, key: &SecretRef) {
        if let Some(own) = self.of.get_mut(&key.namespace)
            && let Some(at) = own.at.remove(&key.name)
        {
            own.order.remove(&(at, Arc::clone(&key.name)));
            self.count -= 1;
            self.forget(&key.namespace);
        }
    }

    /// Takes the first Secret of the namespace that has waited longest.
    ///
    /// # Errors
    /// With the instant at which one can be taken, if nothing changes until then.
    fn next(&mut self, now: Instant) -> Result<SecretRef, Option<Instant>> {
        let free = self.of.iter().filter(|(_, it)| !it.busy);
        let free = free.filter_map(|(namespace, it)| {
            let (at, name) = it.order.first()?;
            let key = SecretRef::new(Arc::clone(namespace), Arc::clone(name));
            Some((*at, it.looked.max(*at), key))
        });
        let (mut longest, mut soonest) = (None, None);
        for (at, since, key) in free {
            let is_longer = |it: &(Instant, SecretRef)| since < it.0;
            if at > now {
                soonest = Some(soonest.map_or(at, |it: Instant| it.min(at)));
            } else if longest.as_ref().is_none_or(is_longer) {
                longest = Some((since, key));
            }
        }
        let (_, key) = longest.ok_or(soonest)?;
        if let Some(own) = self.of.get_mut(&key.namespace) {
            own.busy = true;
        }
        self.remove(&key);
        Ok(key)
    }

    fn looked(&mut self, now: Instant, namespace: &str) {
        if let Some(own) = self.of.get_mut(namespace) {
            (own.busy, own.looked) = (false, now);
        }
        self.forget(namespace);
    }

    /// Forgets a namespace of which nothing waits.
    fn forget(&mut self, namespace: &str) {
        let is_idle = |it: &Namespace| it.at.is_empty() && !it.busy;
        if self.of.get(namespace).is_some_and(is_idle) {
            self.of.remove(namespace);
        }
    }
}

impl Namespace {
    fn at(at: Instant) -> Self {
        Self {
            order: BTreeSet::new(),
            at: HashMap::new(),
            busy: false,
            looked: at,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn key(namespace: &str, name: usize) -> SecretRef {
        SecretRef::new(namespace, name.to_string())
    }

    /// A namespace whose looks never end holds one place, and one that fills the room gives way.
    #[tokio::test(start_paused = true)]
    async fn a_namespace_delays_only_its_own_looks() {
        let doubts = Doubts::default();
        for number in 0..2 * MOST {
            doubts.add(&key("hostile", number));
        }
        for namespace in ["shop", "blog", "wiki", "mail", "news"] {
            (0..3).for_each(|number| doubts.add(&key(namespace, number)));
        }
        assert_eq!(doubts.waiting.lock().count, MOST);
        let looked = Mutex::new(Vec::new());
        let look = |key: SecretRef| {
            looked.lock().push(key.clone());
            async move {
                if *key.namespace == *"hostile" {
                    pending::<()>().await;
                }
            }
        };
        let enough = tokio::time::sleep(2 * SETTLE);
        tokio::select! {
            () = doubts.each(look) => {}
            () = enough => {}
        }
        let looked = looked.lock();
        let of = |namespace: &str| {
            looked
                .iter()
                .filter(|it| *it.namespace == *namespace)
                .count()
        };
        assert_eq!([of("hostile"), of("shop"), of("news")], [1, 3, 3]);
        // What was cut off leaves nothing busy.
        assert!(doubts.waiting.lock().of.values().all(|it| !it.busy));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_is_looked_at_once_at_the_earlier_instant() {
        let doubts = Doubts::default();
        let start = Instant::now();
        doubts.add_after(&key("shop", 1), 10 * SETTLE);
        doubts.add(&key("shop", 1));
        doubts.add_after(&key("shop", 1), 10 * SETTLE);
        doubts.add(&key("shop", 2));
        doubts.remove(&key("shop", 2));
        let turn = doubts.next().await;
        assert_eq!(
            (&turn.key, Instant::now() - start),
            (&key("shop", 1), SETTLE)
        );
        drop(turn);
        assert!(doubts.waiting.lock().of.is_empty(), "nothing is kept");
    }

    #[test]
    fn the_namespace_that_waits_longest_is_next() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        for number in 0..3 {
            waiting.add(&key("many", number), start);
        }
        waiting.add(&key("few", 0), start + SETTLE);
        let now = start + 2 * SETTLE;
        let mut next = || {
            let key = waiting.next(now)?;
            waiting.looked(now, &key.namespace);
            Ok::<_, Option<Instant>>(key)
        };
        let order: Vec<_> = std::iter::from_fn(|| next().ok()).collect();
        let expected = [
            key("many", 0),
            key("few", 0),
            key("many", 1),
            key("many", 2),
        ];
        assert_eq!(order, expected);
        assert_eq!((waiting.count, waiting.of.len()), (0, 0));
    }
}

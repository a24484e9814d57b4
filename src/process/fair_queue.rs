//! What is to be done for each namespace, one after the other: several namespaces at once, in turn. One whose work takes long,
//! or that has much, delays itself. The room is bounded in all; where it is full, the namespace that has most makes room.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Most namespaces that are served at once.
const AT_ONCE: usize = 4;

/// Work of all namespaces.
#[derive(Debug)]
pub struct FairQueue<T> {
    waiting: Mutex<Waiting<T>>,
    told: Notify,
}

#[derive(Debug)]
struct Waiting<T> {
    most: usize,
    count: usize,
    of: HashMap<Arc<str>, VecDeque<T>>,
    /// Namespaces whose turn comes, the next one first. One that is being served is not among them.
    turns: VecDeque<Arc<str>>,
}

/// A namespace that is being served; it is the last in turn when this is dropped.
struct Turn<'a, T> {
    namespace: Arc<str>,
    all: &'a FairQueue<T>,
}

impl<T> FairQueue<T> {
    /// Nothing waits yet, and never more than `most`.
    #[must_use]
    pub fn of_at_most(most: usize) -> Self {
        let waiting = Waiting {
            most,
            count: 0,
            of: HashMap::new(),
            turns: VecDeque::new(),
        };
        Self {
            waiting: Mutex::new(waiting),
            told: Notify::new(),
        }
    }

    /// Adds work of a namespace; false if there is no room for it, or some of another one went for it.
    pub fn add(&self, namespace: &str, work: T) -> bool {
        let all_fit = self.waiting.lock().add(namespace, work);
        self.told.notify_one();
        all_fit
    }

    /// Does all of it, as its turn comes. Does not end, and may be dropped at any time: what was begun is lost then.
    pub async fn each<F: Future<Output = ()>>(&self, serve: impl Fn(T) -> F) {
        let serve = &serve;
        let turns = (0..AT_ONCE).map(|_| async move {
            loop {
                let (work, turn) = self.next().await;
                serve(work).await;
                drop(turn);
            }
        });
        join_all(turns).await;
    }

    async fn next(&self) -> (T, Turn<'_, T>) {
        loop {
            let told = self.told.notified();
            let next = self.waiting.lock().next();
            if let Some((namespace, work)) = next {
                let turn = Turn {
                    namespace,
                    all: self,
                };
                return (work, turn);
            }
            told.await;
        }
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        self.all.waiting.lock().served(&self.namespace);
        self.all.told.notify_one();
    }
}

impl<T> Waiting<T> {
    fn add(&mut self, namespace: &str, work: T) -> bool {
        let is_full = self.count >= self.most;
        if is_full && !self.make_room(namespace) {
            return false;
        }
        if let Some(own) = self.of.get_mut(namespace) {
            own.push_back(work);
        } else {
            let namespace: Arc<str> = namespace.into();
            self.turns.push_back(Arc::clone(&namespace));
            self.of.insert(namespace, [work].into());
        }
        self.count += 1;
        !is_full
    }

    /// Drops the latest work of the namespace that has most, if that is more than this one has.
    fn make_room(&mut self, namespace: &str) -> bool {
        let own = self.of.get(namespace).map_or(0, VecDeque::len);
        let most = self.of.values_mut().max_by_key(|of| of.len());
        let most = most.filter(|of| of.len() > own);
        let gone = most.and_then(VecDeque::pop_back).is_some();
        self.count -= usize::from(gone);
        gone
    }

    fn next(&mut self) -> Option<(Arc<str>, T)> {
        while let Some(namespace) = self.turns.pop_front() {
            if let Some(work) = self.of.get_mut(&namespace).and_then(VecDeque::pop_front) {
                self.count -= 1;
                return Some((namespace, work));
            }
            self.of.remove(&namespace);
        }
        None
    }

    fn served(&mut self, namespace: &Arc<str>) {
        if self.of.get(namespace).is_some_and(|own| !own.is_empty()) {
            self.turns.push_back(Arc::clone(namespace));
        } else {
            self.of.remove(namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_namespace_whose_work_hangs_delays_itself() {
        let queue = FairQueue::of_at_most(100);
        for number in 0..200 {
            queue.add("hostile", number);
        }
        assert!(!queue.add("shop", 1_000), "one of the other went");
        for number in 1_001..1_010 {
            queue.add("shop", number);
        }
        let (done, finished) = (Mutex::new(Vec::new()), Notify::new());
        let serve = |number: usize| {
            let (done, finished) = (&done, &finished);
            async move {
                done.lock().push(number);
                if number < 1_000 {
                    pending::<()>().await;
                }
                if number == 1_009 {
                    finished.notify_one();
                }
            }
        };
        tokio::select! {
            () = queue.each(serve) => {}
            () = finished.notified() => {}
        }
        let expected: Vec<usize> = [0].into_iter().chain(1_000..1_010).collect();
        assert_eq!(*done.lock(), expected, "in order, and one of the other");
        // What was cut off blocks nothing: its namespace comes again.
        let mut waiting = queue.waiting.lock();
        assert_eq!(waiting.next().map(|(_, number)| number), Some(1));
        assert_eq!((waiting.count, waiting.turns.len()), (88, 0));
    }

    #[test]
    fn a_namespace_without_work_is_forgotten() {
        let queue = FairQueue::of_at_most(2);
        queue.add("shop", 1);
        let (namespace, _) = queue.waiting.lock().next().unwrap();
        queue.waiting.lock().served(&namespace);
        assert!(queue.waiting.lock().of.is_empty());
        assert!(queue.add("shop", 2) && queue.add("blog", 3));
        assert!(!queue.add("blog", 4), "both have as many: none makes room");
        assert_eq!(queue.waiting.lock().next().map(|(_, it)| it), Some(2));
    }
}

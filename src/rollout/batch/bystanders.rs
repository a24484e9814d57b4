//! The looks for the pods and Jobs that nothing restarts, and that keep an earlier leaf. Nothing waits for them or depends
//! on them.
//!
//! A look lists all pods, Jobs and workloads of a namespace, which may take seconds and megabytes, and a namespace may
//! have several batches a second. So looks take turns, one of a namespace at a time, and at most one more of it waits:
//! that one looks for the Secrets of all batches that come meanwhile. What a look could not find out, because it failed
//! or took too long, is looked for with the namespace's next batch.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::rollout::Request;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::process::budget::Budget;
use crate::rollout::Error;

/// Most namespaces that are looked at at the same time, each of which takes some MiB, and most looks of one of them.
const PLACES: usize = 2;
const PLACES_PER_NAMESPACE: usize = 1;
/// Longest time for one look.
const LOOK: Duration = Duration::from_secs(60);
/// Most bytes of the Secrets of one namespace that wait for its next look: some five hundred Secrets.
const OF_NAMESPACE: usize = 256 * 1024;
/// Most bytes of the Secrets of all namespaces.
const OF_ALL: usize = 16 * OF_NAMESPACE;
/// Said of Secrets for which there is no room.
const LEFT_OUT: &str = "the pods and Jobs that nothing restarts are not named for some Secrets, as too many wait for that";

/// The looks for what nothing restarts, of all batches.
#[derive(Debug)]
pub(in crate::rollout) struct Bystanders {
    places: Arc<Budget>,
    waiting: Mutex<HashMap<Arc<str>, Waiting>>,
}

/// The Secrets of a namespace that wait for its next look.
#[derive(Debug, Default)]
struct Waiting {
    requests: BTreeMap<Box<str>, Request>,
    bytes: usize,
    /// Whether a batch waits for the place of that look.
    has_turn: bool,
}

/// The next look of a namespace, which waits for its place. If it ends before, its Secrets wait on.
struct Turn<'a> {
    of: &'a Bystanders,
    namespace: &'a Arc<str>,
    begun: bool,
}

impl Default for Bystanders {
    fn default() -> Self {
        Self {
            places: Arc::new(Budget::new(PLACES, PLACES_PER_NAMESPACE)),
            waiting: Mutex::default(),
        }
    }
}

impl Bystanders {
    /// Looks for these Secrets, and for all that wait, in turn; not at all if another batch is about to.
    pub(super) async fn look<F>(
        &self,
        namespace: &Arc<str>,
        requests: Vec<Request>,
        look: impl FnOnce(Arc<[Request]>) -> F,
    ) where
        F: Future<Output = Result<(), Error>>,
    {
        let Some(turn) = self.wait(namespace, requests) else {
            return;
        };
        let _place = self.places.place(namespace, UnixTime::NEVER).await;
        let requests: Arc<[Request]> = turn.begin().into();
        let error = match timeout(LOOK, look(Arc::clone(&requests))).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error_chain(&error),
            Err(_) => format!("it took more than {} s", LOOK.as_secs()),
        };
        tracing::info!(%namespace, error, "the pods and Jobs that nothing restarts could not be listed: they are looked for with the next rollout of the namespace");
        self.put_back(namespace, &requests);
    }

    /// Adds Secrets to those that wait; the turn of their look, unless another batch has it.
    fn wait<'a>(&'a self, namespace: &'a Arc<str>, requests: Vec<Request>) -> Option<Turn<'a>> {
        let mut all = self.waiting.lock();
        add(&mut all, namespace, requests);
        let of = all.get_mut(namespace)?;
        let is_first = !mem::replace(&mut of.has_turn, true);
        // Not `then_some`: to drop a turn takes the lock.
        is_first.then(|| Turn {
            of: self,
            namespace,
            begun: false,
        })
    }

    /// Lets Secrets wait again, unless they wait by now with what they hold since.
    fn put_back(&self, namespace: &Arc<str>, requests: &[Request]) {
        let mut all = self.waiting.lock();
        let newer = all.get(namespace);
        let waits = |request: &&Request| {
            newer.is_some_and(|newer| newer.requests.contains_key(&request.secret))
        };
        let requests = requests.iter().filter(|it| !waits(it)).cloned().collect();
        add(&mut all, namespace, requests);
    }
}

/// Adds Secrets of a namespace. If there is no room for all, the namespace that has most makes room.
fn add(all: &mut HashMap<Arc<str>, Waiting>, namespace: &Arc<str>, requests: Vec<Request>) {
    let of = all.entry(Arc::clone(namespace)).or_default();
    let added = requests.into_iter().map(|request| of.add(request));
    let left_out = added.filter(|added| !added).count();
    if left_out > 0 {
        tracing::info!(%namespace, secrets = left_out, "{LEFT_OUT}");
    }
    while all.values().map(|of| of.bytes).sum::<usize>() > OF_ALL
        && let Some((namespace, most)) = all.iter_mut().max_by_key(|(_, of)| of.bytes)
    {
        let secrets = mem::take(&mut most.requests).len();
        most.bytes = 0;
        tracing::info!(%namespace, secrets, "{LEFT_OUT}");
    }
    all.retain(|_, of| of.has_turn || !of.requests.is_empty());
}

impl Waiting {
    /// Adds a Secret, in place of what it held before: whether there is room for it.
    fn add(&mut self, request: Request) -> bool {
        if let Some(before) = self.requests.remove(&request.secret) {
            self.bytes -= before.weight();
        }
        let bytes = request.weight();
        if self.bytes + bytes > OF_NAMESPACE {
            return false;
        }
        self.bytes += bytes;
        self.requests.insert(request.secret.clone(), request);
        true
    }
}

impl Turn<'_> {
    /// The Secrets of the look, which begins: those that come later wait for another one.
    fn begin(mut self) -> Vec<Request> {
        self.begun = true;
        let waiting = self.of.waiting.lock().remove(self.namespace);
        let waiting = waiting.unwrap_or_default();
        waiting.requests.into_values().collect()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.begun {
            return;
        }
        if let Some(waiting) = self.of.waiting.lock().get_mut(self.namespace) {
            waiting.has_turn = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt as _;

    use super::*;

    fn requests(names: &[&str]) -> Vec<Request> {
        let request = |name: &&str| Request::first_sight(name, "u", None);
        names.iter().map(request).collect()
    }

    fn names(requests: &[Request]) -> Vec<&str> {
        requests.iter().map(|it| &*it.secret).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_look_of_a_namespace_runs_and_one_waits_which_takes_all_with_it() {
        let all = Bystanders::default();
        let (shop, other): (Arc<str>, Arc<str>) = ("shop".into(), "other".into());
        let mut first = Box::pin(all.look(&shop, requests(&["a"]), |_| pending()));
        assert!(first.as_mut().now_or_never().is_none());
        let looked = Mutex::new(Vec::new());
        let look = |requests: Arc<[Request]>| {
            looked.lock().push(names(&requests).join(" "));
            ready(Ok(()))
        };
        let mut second = Box::pin(all.look(&shop, requests(&["b"]), look));
        assert!(second.as_mut().now_or_never().is_none());
        for name in ["c", "d", "b"] {
            let merged = all.look(&shop, requests(&[name]), look);
            assert!(merged.now_or_never().is_some(), "nothing else waits");
        }
        let theirs = all.look(&other, requests(&["x"]), look);
        assert!(
            theirs.now_or_never().is_some(),
            "another namespace has its place"
        );
        // The first one takes too long: its Secret waits for a later look.
        first.await;
        second.await;
        assert_eq!(*looked.lock(), ["x", "a b c d"]);
        assert!(all.waiting.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_look_could_not_find_out_is_looked_for_with_the_next_batch() {
        let (all, shop) = (Bystanders::default(), Arc::<str>::from("shop"));
        all.look(&shop, requests(&["a", "b"]), |_| pending()).await;
        // A batch that ends while it waits takes nothing with it.
        drop(all.wait(&shop, requests(&["c"])));
        let looked = Mutex::new(Vec::new());
        let look = |requests: Arc<[Request]>| {
            looked.lock().push(names(&requests).join(" "));
            ready(Ok(()))
        };
        all.look(&shop, requests(&["d"]), look).await;
        assert_eq!(*looked.lock(), ["a b c d"]);
    }

    #[test]
    fn what_waits_for_looks_is_bounded_and_the_namespace_that_has_most_makes_room() {
        let all = Bystanders::default();
        let many: Vec<String> = (0..5_000).map(|it| format!("tls-{it}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let quiet: Arc<str> = "quiet".into();
        let quiet_turn = all.wait(&quiet, requests(&["tls"])).unwrap();
        for number in 0..40 {
            let loud: Arc<str> = format!("loud-{number}").into();
            drop(all.wait(&loud, requests(&many)));
            let waiting = all.waiting.lock();
            assert!(waiting.values().all(|of| of.bytes <= OF_NAMESPACE));
            let bytes: usize = waiting.values().map(|of| of.bytes).sum();
            assert!(bytes <= OF_ALL, "{bytes}");
            let weight = |of: &Waiting| of.requests.values().map(Request::weight).sum::<usize>();
            assert_eq!(waiting.values().map(weight).sum::<usize>(), bytes);
        }
        assert_eq!(names(&quiet_turn.begin()), ["tls"]);
    }
}

//! Whose turn it is to be asked about: each namespace has a queue of its own, and they take turns, so that one with many
//! new certificates, or with some about which the CA is slow to answer, delays itself.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::secret::SecretRef;
use cert_renew_core::time::UnixTime;

use super::BEAT;
use super::poller::CONCURRENCY;

/// Most questions about certificates of one namespace at the same time: half of all.
const OF_A_NAMESPACE: usize = CONCURRENCY / 2;

/// The certificates to ask about, except those that are being asked about.
#[derive(Debug, Default)]
pub(super) struct Queues {
    of: HashMap<Arc<str>, Queue>,
    /// Counts the questions.
    turn: u64,
}

#[derive(Debug)]
struct Queue {
    /// By the instant of the next question, then by due date.
    order: BTreeSet<(UnixTime, UnixTime, Arc<str>)>,
    /// The turn of its last question.
    turn: u64,
    /// Number of questions that are under way.
    asking: usize,
}

impl Queues {
    pub(super) fn insert(&mut self, again: UnixTime, due: UnixTime, key: &SecretRef) {
        let turn = self.turn;
        let of = self.of.entry(Arc::clone(&key.namespace));
        let queue = of.or_insert_with(|| Queue {
            order: BTreeSet::new(),
            turn,
            asking: 0,
        });
        queue.order.insert((again, due, Arc::clone(&key.name)));
    }

    pub(super) fn remove(&mut self, again: UnixTime, due: UnixTime, key: &SecretRef) {
        if let Some(queue) = self.of.get_mut(&key.namespace) {
            queue.order.remove(&(again, due, Arc::clone(&key.name)));
            self.forget(&key.namespace);
        }
    }

    /// Takes the first certificate of the namespace that was asked about longest ago.
    ///
    /// # Errors
    /// With the time until one can be taken, if nothing changes until then.
    pub(super) fn next(&mut self, now: UnixTime) -> Result<SecretRef, Duration> {
        let (mut first, mut soonest) = (None, None);
        let free = { self.of.iter() }.filter(|(_, queue)| queue.asking < OF_A_NAMESPACE);
        for (namespace, queue) in free {
            let Some((again, due, _)) = queue.order.first() else {
                continue;
            };
            let place = (queue.turn, *due, namespace);
            if *again > now {
                soonest = Some(soonest.map_or(*again, |it: UnixTime| it.min(*again)));
            } else if first.is_none_or(|first| place < first) {
                first = Some(place);
            }
        }
        let wait = soonest.map_or(BEAT, |at| at.since(now).min(BEAT));
        let namespace = Arc::clone(first.ok_or(wait)?.2);
        self.turn += 1;
        let queue = self.of.get_mut(&namespace).ok_or(wait)?;
        let (_, _, name) = queue.order.pop_first().ok_or(wait)?;
        queue.turn = self.turn;
        queue.asking += 1;
        Ok(SecretRef { namespace, name })
    }

    /// A question about a certificate of this namespace has ended.
    pub(super) fn asked(&mut self, namespace: &str) {
        if let Some(queue) = self.of.get_mut(namespace) {
            queue.asking = queue.asking.saturating_sub(1);
            self.forget(namespace);
        }
    }

    fn forget(&mut self, namespace: &str) {
        let is_idle = |it: &Queue| it.order.is_empty() && it.asking == 0;
        if self.of.get(namespace).is_some_and(is_idle) {
            self.of.remove(namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, number: usize) -> SecretRef {
        SecretRef::new(namespace, number.to_string())
    }

    #[test]
    fn a_namespace_with_many_new_certificates_delays_itself() {
        let mut queues = Queues::default();
        let now = UnixTime(1_000);
        for number in 0..1_000 {
            queues.insert(UnixTime(0), UnixTime(0), &key("hostile", number));
        }
        for namespace in ["shop", "blog"] {
            (0..3).for_each(|number| queues.insert(UnixTime(900), now, &key(namespace, number)));
        }
        let mut asked = Vec::new();
        for number in 1_000..1_009 {
            asked.push(queues.next(now).unwrap().namespace.to_string());
            queues.asked(asked.last().unwrap());
            queues.insert(UnixTime(0), UnixTime(0), &key("hostile", number));
        }
        asked.sort_unstable();
        let each = |namespace| asked.iter().filter(|it| **it == namespace).count();
        assert_eq!([each("shop"), each("blog"), each("hostile")], [3, 3, 3]);
    }

    #[test]
    fn certificates_about_which_the_ca_is_slow_leave_half_of_the_questions_to_others() {
        let mut queues = Queues::default();
        let now = UnixTime(1_000);
        (0..100).for_each(|number| queues.insert(now, now, &key("slow", number)));
        for _ in 0..OF_A_NAMESPACE {
            assert_eq!(*queues.next(now).unwrap().namespace, *"slow");
        }
        assert_eq!(queues.next(now), Err(BEAT));
        queues.insert(now + Duration::from_secs(9), now, &key("shop", 0));
        assert_eq!(queues.next(now), Err(Duration::from_secs(9)));
        let then = now + Duration::from_secs(9);
        assert_eq!(*queues.next(then).unwrap().namespace, *"shop");
        queues.asked("slow");
        assert_eq!(*queues.next(then).unwrap().namespace, *"slow");
        queues.asked("shop");
        assert_eq!(
            queues.of.len(),
            1,
            "a namespace of which nothing waits is forgotten"
        );
    }
}

//! The steps of a batch in order: which may begin, which have begun, and which Secrets still wait for some.
//!
//! A step may begin when no step of an earlier phase is left that serves one of its Secrets. Pure. A namespace may have
//! thousands of workloads: each change costs what it touches, not the whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::types::{Phase, Step};

/// Number of variants of [`Phase`].
const PHASES: usize = 3;

/// The steps of a plan in the order in which they may begin: canaries first, then each phase after the one before.
pub struct Queue {
    steps: Vec<Arc<Step>>,
    stands: Vec<Stands>,
    /// By step: the number of its Secrets that still wait.
    waits: Vec<usize>,
    /// Secrets that still wait for steps.
    open: BTreeMap<Box<str>, Open>,
    /// Steps that may have become free to begin.
    candidates: Vec<usize>,
    /// Secrets whose steps have all ended.
    closed: Vec<Box<str>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    Waiting,
    Running,
    Over,
}

/// The steps of one Secret.
#[derive(Default)]
struct Open {
    steps: Vec<usize>,
    /// Steps that have not ended, by phase.
    left: [usize; PHASES],
}

impl Open {
    fn before(&self, phase: Phase) -> usize {
        self.left[..place(phase)].iter().sum()
    }

    fn after(&self, phase: Phase) -> usize {
        self.left[place(phase) + 1..].iter().sum()
    }
}

fn place(phase: Phase) -> usize {
    match phase {
        Phase::Canary => 0,
        Phase::Rest => 1,
        Phase::Last => 2,
    }
}

impl Queue {
    /// A queue of which nothing has begun.
    pub fn new<S: Into<Arc<Step>>>(secrets: &[Box<str>], steps: Vec<S>) -> Self {
        let steps: Vec<Arc<Step>> = steps.into_iter().map(Into::into).collect();
        let named = secrets
            .iter()
            .map(|secret| (secret.clone(), Open::default()));
        let mut open: BTreeMap<Box<str>, Open> = named.collect();
        let mut waits = vec![0; steps.len()];
        for (number, step) in steps.iter().enumerate() {
            for due in &step.leaves {
                if let Some(of) = open.get_mut(&due.secret) {
                    of.steps.push(number);
                    of.left[place(step.phase)] += 1;
                    waits[number] += 1;
                }
            }
        }
        let idle = open.extract_if(.., |_, of| of.steps.is_empty());
        let closed = idle.map(|(secret, _)| secret).collect();
        Self {
            candidates: (0..steps.len()).collect(),
            stands: vec![Stands::Waiting; steps.len()],
            waits,
            steps,
            open,
            closed,
        }
    }

    /// A step by its number.
    #[must_use]
    pub fn step(&self, number: usize) -> &Arc<Step> {
        &self.steps[number]
    }

    /// The steps that begin now, in order.
    pub fn begin(&mut self) -> Vec<usize> {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.sort_unstable();
        candidates.dedup();
        candidates.retain(|number| {
            self.stands[*number] == Stands::Waiting && {
                let step = &self.steps[*number];
                self.open_of(step).all(|of| of.before(step.phase) == 0)
            }
        });
        for number in &candidates {
            self.stands[*number] = Stands::Running;
        }
        candidates
    }

    /// Whether a step of a later phase waits for this one.
    pub fn is_followed(&self, number: usize) -> bool {
        let step = &self.steps[number];
        self.open_of(step).any(|of| of.after(step.phase) > 0)
    }

    fn open_of<'a>(&'a self, step: &'a Step) -> impl Iterator<Item = &'a Open> {
        step.leaves
            .iter()
            .filter_map(|due| self.open.get(&due.secret))
    }

    /// Ends a step, or one that will not begin.
    pub fn end(&mut self, number: usize) {
        if std::mem::replace(&mut self.stands[number], Stands::Over) == Stands::Over {
            return;
        }
        let step = Arc::clone(&self.steps[number]);
        for due in &step.leaves {
            let Some(of) = self.open.get_mut(&due.secret) else {
                continue;
            };
            let left = &mut of.left[place(step.phase)];
            *left -= 1;
            if *left > 0 {
                continue;
            }
            if of.left.iter().sum::<usize>() == 0 {
                self.remove(&due.secret);
            } else {
                let waiting = of.steps.iter().copied();
                self.candidates
                    .extend(waiting.filter(|it| self.stands[*it] == Stands::Waiting));
            }
        }
    }

    /// Removes a Secret that waits no longer; returns its steps.
    fn remove(&mut self, secret: &str) -> Vec<usize> {
        let Some(of) = self.open.remove(secret) else {
            return Vec::new();
        };
        for number in &of.steps {
            self.waits[*number] -= 1;
        }
        self.closed.push(secret.into());
        of.steps
    }

    /// The steps of a Secret that have not begun.
    pub fn waiting_for(&self, secret: &str) -> Vec<usize> {
        let of = self.open.get(secret);
        let steps = of.into_iter().flat_map(|of| of.steps.iter().copied());
        steps
            .filter(|it| self.stands[*it] == Stands::Waiting)
            .collect()
    }

    /// Ends the wait of this Secret; returns the running steps that serve no other.
    pub fn close(&mut self, secret: &str) -> Vec<usize> {
        let mut idle = self.remove(secret);
        idle.retain(|number| self.stands[*number] == Stands::Running && self.waits[*number] == 0);
        idle
    }

    /// The Secrets whose last step has ended since the previous call.
    pub fn take_closed(&mut self) -> Vec<Box<str>> {
        std::mem::take(&mut self.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::of_secrets;
    use crate::testing::slower_than_linear_in;

    fn step(name: &str, phase: Phase, secrets: &[&str]) -> Step {
        Step {
            phase,
            ..of_secrets(name, secrets)
        }
    }

    fn closed(queue: &mut Queue) -> String {
        queue.take_closed().concat()
    }

    #[test]
    fn a_step_begins_when_no_earlier_one_of_its_secrets_is_left() {
        use Phase::{Canary, Last, Rest};
        let secrets = ["a", "b", "idle"].map(Box::from);
        let steps = vec![
            step("canary", Canary, &["a"]),
            step("rest of a", Rest, &["a"]),
            step("of both", Rest, &["a", "b"]),
            step("of b", Rest, &["b"]),
            step("last of a", Last, &["a"]),
        ];
        let mut queue = Queue::new(&secrets, steps);
        assert_eq!(closed(&mut queue), "idle");
        assert_eq!(queue.begin(), [0, 3]);
        assert!(queue.is_followed(0) && !queue.is_followed(3));
        queue.end(3);
        assert_eq!(queue.begin(), [0; 0]);
        queue.end(0);
        assert_eq!(queue.begin(), [1, 2]);
        queue.end(2);
        queue.end(2);
        assert_eq!(closed(&mut queue), "b");
        assert_eq!(queue.waiting_for("a"), [4]);
        queue.end(1);
        assert_eq!(queue.begin(), [4]);
        queue.end(4);
        assert_eq!(closed(&mut queue), "a");
    }

    #[test]
    fn what_runs_for_a_closed_secret_alone_is_idle() {
        let secrets = ["a", "b"].map(Box::from);
        let steps = vec![
            step("of a", Phase::Rest, &["a"]),
            step("of both", Phase::Rest, &["a", "b"]),
        ];
        let mut queue = Queue::new(&secrets, steps);
        assert_eq!(queue.begin(), [0, 1]);
        assert_eq!(queue.close("a"), [0]);
        assert_eq!(closed(&mut queue), "a");
        queue.end(0);
        queue.end(1);
        assert_eq!(closed(&mut queue), "b", "a is not closed twice");
    }

    #[test]
    fn thousands_of_workloads_take_no_longer_than_they_must() {
        let rolled = |steps: usize| {
            let canary = step("web", Phase::Canary, &["a"]);
            let rest = std::iter::repeat_n(step("web", Phase::Rest, &["a"]), steps);
            let steps = std::iter::once(canary).chain(rest).collect();
            let mut queue = Queue::new(&["a".into()], steps);
            while let begun = queue.begin()
                && !begun.is_empty()
            {
                for number in begun {
                    queue.end(number);
                    assert!(number == 0 || queue.begin().is_empty());
                }
            }
            assert_eq!(closed(&mut queue), "a");
        };
        // One workload for each 64 bytes of length.
        let slow = slower_than_linear_in(|length| length / 64, |steps| rolled(*steps));
        assert_eq!(slow, None);
    }

    #[test]
    fn very_many_secrets_that_wait_no_longer_take_no_longer_than_they_must() {
        // One Secret for each 64 bytes of length; one step serves them all.
        let made = |length: usize| -> Vec<Box<str>> {
            (0..length / 64)
                .map(|it| format!("tls-{it:05}").into())
                .collect()
        };
        let slow = slower_than_linear_in(made, |secrets| {
            let names: Vec<&str> = secrets.iter().map(|it| &**it).collect();
            let mut queue = Queue::new(secrets, vec![step("web", Phase::Rest, &names)]);
            assert_eq!(queue.begin(), [0]);
            let idle = names.iter().flat_map(|name| queue.close(name));
            assert_eq!(idle.collect::<Vec<_>>(), [0]);
        });
        assert_eq!(slow, None);
    }
}

//! The gate that every request passes which changes something, at the API server or at a CA.
//!
//! ```text
//! lease ──grant until──► gate ◄──adopt── the term whose tasks run
//!                         │ is checked whenever a request is about to go on
//! ```
//! It is open while the lease lets this replica act, by a clock that also counts while process or machine are stopped,
//! and only for the tasks of the present term: those of a former one are gone before the next is adopted. It sends
//! nothing and decides nothing about a request.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use cert_renew_core::time::BootTime;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::timeout;

/// The gate is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this replica does not hold the lease: nothing more is sent")]
pub struct Closed;

/// The gate; clones share everything. The default is closed.
#[derive(Clone, Debug, Default)]
pub struct WriteGate(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a step or a request has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The lease's present term, and until when it lets us act.
    granted: Option<(u64, BootTime)>,
    /// The term whose tasks run.
    adopted: Option<u64>,
    entrance: Entrance,
    steps: usize,
    requests: usize,
}

/// What may begin; what is running goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Entrance {
    #[default]
    All,
    /// Single requests, but no step of several.
    Requests,
    Nothing,
}

/// A step of several requests; a handover waits a limited time for its end.
#[derive(Debug)]
pub struct Step(WriteGate);

/// One running request.
struct Passing<'a>(&'a WriteGate);

impl WriteGate {
    /// A gate that is always open: for commands that run once, or alone.
    #[must_use]
    pub fn open() -> Self {
        let gate = Self::default();
        gate.grant(0, BootTime::NEVER);
        gate.adopt(0);
        gate
    }

    /// Opens the gate for `term`: the lease lets us act until then.
    pub fn grant(&self, term: u64, until: BootTime) {
        self.0.state.lock().granted = Some((term, until));
    }

    /// Closes the gate: we no longer hold the lease.
    pub fn withdraw(&self) {
        self.0.state.lock().granted = None;
    }

    /// Admits the tasks of `term`; those of a former one have ended.
    pub fn adopt(&self, term: u64) {
        let mut state = self.0.state.lock();
        state.adopted = Some(term);
        state.entrance = Entrance::All;
    }

    /// Admits no tasks any more: those of the term are to end.
    pub fn leave(&self) {
        self.0.state.lock().adopted = None;
    }

    /// Lets running steps and then running requests end, each kind for `patience` at most, and no others begin.
    pub async fn park(&self, patience: Duration) {
        self.0.state.lock().entrance = Entrance::Requests;
        self.wait(|state| state.steps == 0, patience).await;
        self.0.state.lock().entrance = Entrance::Nothing;
        self.wait(|state| state.requests == 0, patience).await;
    }

    /// Whether something may be sent now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.state.lock().is_open(BootTime::now())
    }

    /// Begins a step of several requests.
    ///
    /// # Errors
    /// When the gate is closed, or about to be.
    pub fn step(&self) -> Result<Step, Closed> {
        let mut state = self.0.state.lock();
        if !state.is_open(BootTime::now()) || state.entrance != Entrance::All {
            return Err(Closed);
        }
        state.steps += 1;
        Ok(Step(self.clone()))
    }

    /// Carries out a request. The gate is checked each time that the request can go on: the process may have been
    /// stopped while it was connecting, or between two tries.
    ///
    /// # Errors
    /// When the gate is closed: what had been sent by then may have taken effect.
    pub async fn pass<T>(&self, request: impl Future<Output = T>) -> Result<T, Closed> {
        let _passing = self.enter()?;
        let mut request = pin!(request);
        poll_fn(|context| {
            if self.is_open() {
                request.as_mut().poll(context).map(Ok)
            } else {
                Poll::Ready(Err(Closed))
            }
        })
        .await
    }

    fn enter(&self) -> Result<Passing<'_>, Closed> {
        let mut state = self.0.state.lock();
        if !state.is_open(BootTime::now()) || state.entrance == Entrance::Nothing {
            return Err(Closed);
        }
        state.requests += 1;
        Ok(Passing(self))
    }

    async fn wait(&self, done: impl Fn(&State) -> bool, patience: Duration) {
        let wait = async {
            loop {
                let ended = self.0.ended.notified();
                if done(&self.0.state.lock()) {
                    return;
                }
                ended.await;
            }
        };
        if timeout(patience, wait).await.is_err() {
            tracing::debug!("what is under way is not waited for any longer");
        }
    }
}

impl State {
    fn is_open(&self, now: BootTime) -> bool {
        self.granted
            .is_some_and(|(term, until)| self.adopted == Some(term) && now < until)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.0.0.state.lock().steps -= 1;
        self.0.0.ended.notify_waiters();
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        self.0.0.state.lock().requests -= 1;
        self.0.0.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn leading() -> WriteGate {
        let gate = WriteGate::default();
        gate.grant(1, BootTime::now() + LONG);
        gate.adopt(1);
        gate
    }

    #[test]
    fn it_is_open_for_the_term_that_was_granted_and_adopted_until_the_deadline() {
        let now = BootTime(LONG);
        let state = |granted, adopted| State {
            granted,
            adopted,
            ..State::default()
        };
        let later = now + Duration::from_nanos(1);
        for (granted, adopted, open) in [
            (None, None, false),
            (Some((1, later)), None, false),
            (Some((1, later)), Some(1), true),
            (Some((1, now)), Some(1), false),
            (Some((2, later)), Some(1), false),
            (None, Some(1), false),
        ] {
            assert_eq!(
                state(granted, adopted).is_open(now),
                open,
                "{granted:?} {adopted:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_request_under_way_goes_no_further_once_the_lease_is_gone() {
        let gate = leading();
        assert_eq!(gate.pass(ready(7)).await, Ok(7));
        let mut sent = 0;
        let request = async {
            for _ in 0..2 {
                sent += 1;
                tokio::task::yield_now().await;
            }
        };
        let mut passing = Box::pin(gate.pass(request));
        assert_eq!((&mut passing).now_or_never(), None);
        gate.withdraw();
        assert_eq!(passing.await, Err(Closed));
        assert_eq!(sent, 1);
        assert_eq!(gate.pass(ready(7)).await, Err(Closed));
    }

    #[tokio::test]
    async fn handing_over_waits_for_the_step_in_hand_and_lets_no_other_begin() {
        let gate = leading();
        let step = gate.step().unwrap();
        let mut parked = Box::pin(gate.park(LONG));
        assert_eq!((&mut parked).now_or_never(), None);
        assert_eq!(gate.step().err(), Some(Closed));
        assert_eq!(gate.pass(ready(7)).await, Ok(7), "a request of the step");
        let mut passing = Box::pin(gate.pass(pending::<()>()));
        assert_eq!((&mut passing).now_or_never(), None);
        drop(step);
        assert_eq!((&mut parked).now_or_never(), None, "a request is under way");
        assert_eq!(gate.pass(ready(7)).await, Err(Closed));
        drop(passing);
        parked.await;
        gate.leave();
        assert!(!gate.is_open());
        gate.adopt(1);
        assert!(gate.step().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_is_not_waited_for_for_ever() {
        let gate = leading();
        let _step = gate.step().unwrap();
        gate.park(LONG).await;
    }
}

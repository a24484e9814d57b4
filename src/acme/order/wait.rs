//! Waits until the CA has validated the names of an order, or issued its certificate, and gathers what it says of each
//! (the states of an order and its authorizations: RFC 8555, section 7.1.6).

use std::time::Duration;

use cert_renew_core::time::UnixTime;
use instant_acme::{AuthorizationStatus, OrderStatus};
use tokio::time::{Instant, sleep_until};

use super::Order;
use crate::acme::client::{Client, RequestError, permitted, unasked};
use crate::acme::error::problem::{Class, Problem, Subproblem};
use crate::acme::error::{Action, Error, Kind};
use crate::acme::order::authorization;
use crate::acme::transport::poll_interval;
use crate::process::permit::Permit;

/// Age of a pending order at which its authorizations are checked: CAs validate in seconds.
const UNUSUAL: Duration = Duration::from_secs(10);
/// Longest time between two such checks; each interval is twice the one before.
const LONGEST_UNUSUAL: Duration = Duration::from_secs(60);
/// Most repeated posts to a CA that would look at a proof again: with the first, no more failed validations than CAs
/// allow in an hour.
const REPEATS: u32 = 3;

/// The intervals of a wait's polls.
struct Rhythm {
    action: Action,
    started: Instant,
    pause: Duration,
    next_pause: Duration,
    /// Number of polls so far; None once the CA sets the time.
    polls: Option<u32>,
}

impl Rhythm {
    fn of(client: &Client, action: Action) -> Self {
        Self {
            action,
            started: Instant::now(),
            pause: client.pace(action).first(),
            next_pause: poll_interval::SECOND,
            polls: Some(0),
        }
    }
}

impl Order {
    /// Waits until all names are validated. If it takes longer than usual, fetches the CA's report about each name, and
    /// sends it to `said` at once where the CA may check again; such a challenge is posted again, a few times.
    ///
    /// # Errors
    /// With the CA's report about each name when a proof has failed; when `deadline` comes first.
    pub async fn wait_validated(
        &mut self,
        deadline: Instant,
        said: impl FnMut(Error) + Send,
    ) -> Result<(), Error> {
        let validated = self.validated(deadline, said, unasked).await;
        validated.map_err(RequestError::into_error)
    }

    /// [`Self::wait_validated`], with a permit for each time that a challenge is about to be posted again, as for
    /// [`Client::new_order_if`].
    ///
    /// # Errors
    /// As `may`, and as [`Self::wait_validated`].
    pub async fn wait_validated_if<R, F>(
        &mut self,
        deadline: Instant,
        said: impl FnMut(Error) + Send,
        may: impl Fn() -> F,
    ) -> Result<(), RequestError<R>>
    where
        F: Future<Output = Result<Permit<()>, R>>,
    {
        let host = self.host.clone();
        let before = || permitted(Action::Challenge, &host, may());
        self.validated(deadline, said, before).await
    }

    async fn validated<R, F>(
        &mut self,
        deadline: Instant,
        mut said: impl FnMut(Error) + Send,
        before: impl Fn() -> F,
    ) -> Result<(), RequestError<R>>
    where
        F: Future<Output = Result<(), RequestError<R>>>,
    {
        let done = |status| status != OrderStatus::Pending;
        let (mut rhythm, mut pause) = (Rhythm::of(&self.client, Action::Authorization), UNUSUAL);
        for look in 0.. {
            let now = Instant::now();
            // The CA's own time has priority over our checks.
            let next = self
                .not_before
                .map_or(now + pause, |at| at.max(now + pause));
            let until = deadline.min(next);
            let waited = self.wait(&mut rhythm, until, done).await;
            let Err(error) = waited else { return Ok(()) };
            let is_pending = self.state.status == OrderStatus::Pending && !error.is_gone();
            if !is_pending || error.class() != Class::Transient {
                return Err(error.into());
            }
            if until == deadline {
                let asked = error.retry_after().is_none();
                let found = if asked { self.found().await } else { None };
                return Err(found.unwrap_or(error).into());
            }
            self.look_closely(look, &mut said, &before).await?;
            pause = (pause * 2).min(LONGEST_UNUSUAL);
        }
        Ok(())
    }

    /// Fetches the CA's report about each name of an order that is still pending.
    ///
    /// # Errors
    /// When a name has failed for good, or too often; as `before`.
    async fn look_closely<R, F>(
        &mut self,
        look: u32,
        said: &mut (impl FnMut(Error) + Send),
        before: &impl Fn() -> F,
    ) -> Result<(), RequestError<R>>
    where
        F: Future<Output = Result<(), RequestError<R>>>,
    {
        let (mut again, mut failed) = (Vec::new(), false);
        let mut report = CaReport::of(self.own_problem());
        for url in &self.state.authorizations {
            let state = match self.authorization(url).await {
                Ok(state) => state,
                Err(error) => {
                    tracing::debug!(order = self.url, %error, "an authorization cannot be looked at");
                    // It may have failed.
                    report.was_tried = true;
                    continue;
                }
            };
            report.add(&state);
            failed |= state.failure().is_some();
            if state.status == AuthorizationStatus::Pending {
                again.extend(state.retryable().map(ToOwned::to_owned));
            }
        }
        let given_up = look >= REPEATS && !again.is_empty();
        if failed || given_up {
            report.was_tried |= given_up;
            return Err(self.invalid(Action::Authorization, report).into());
        }
        if !again.is_empty() && !report.problem.subproblems.is_empty() {
            // There may be no receiver.
            said(self.invalid(Action::Authorization, report));
        }
        for url in again {
            tracing::debug!(
                order = self.url,
                challenge = url,
                "the CA is asked to look again"
            );
            let client = &self.client;
            let posted = client.post_after(Action::Challenge, &url, b"{}", before);
            match posted.await {
                Ok(answer) => self.note_retry_after(&answer),
                Err(RequestError::Failed(error)) => {
                    tracing::debug!(order = self.url, %error, "it will not");
                }
                Err(refused @ RequestError::Refused(_)) => return Err(refused),
            }
        }
        Ok(())
    }

    /// The CA's report about the names of a pending order, if there is one.
    async fn found(&mut self) -> Option<Error> {
        let error = self.why_invalid(Action::Authorization).await;
        let said = error.problem().is_some_and(|it| !it.subproblems.is_empty());
        said.then_some(error)
    }

    /// Waits until the certificate is issued.
    ///
    /// # Errors
    /// When the order becomes invalid; when `deadline` comes first.
    pub async fn wait_issued(&mut self, deadline: Instant) -> Result<(), Error> {
        let done = |status| status == OrderStatus::Valid;
        let mut rhythm = Rhythm::of(&self.client, Action::Finalize);
        self.wait(&mut rhythm, deadline, done).await
    }

    async fn wait(
        &mut self,
        rhythm: &mut Rhythm,
        deadline: Instant,
        done: impl Fn(OrderStatus) -> bool,
    ) -> Result<(), Error> {
        let client = self.client.clone();
        let pace = client.pace(rhythm.action);
        let mut trouble = None;
        loop {
            match self.state.status {
                OrderStatus::Invalid => return Err(self.why_invalid(rhythm.action).await),
                status if done(status) => {
                    match rhythm.polls {
                        Some(1) => pace.in_time(),
                        Some(2..) => pace.too_early(rhythm.started.elapsed()),
                        _ => {}
                    }
                    return Ok(());
                }
                _ => {}
            }
            let now = Instant::now();
            let not_before = self.not_before.filter(|it| *it > now);
            if now >= deadline || not_before.is_some_and(|it| it > deadline) {
                let until =
                    not_before.map(|it| UnixTime::now() + (it - now) + Duration::from_secs(1));
                let unfinished =
                    || Error::new(rhythm.action, &self.host, Kind::Unfinished).retry_at(until);
                return Err(trouble.unwrap_or_else(unfinished));
            }
            self.not_before = None;
            sleep_until(not_before.unwrap_or_else(|| (now + rhythm.pause).min(deadline))).await;
            rhythm.polls = { rhythm.polls }
                .filter(|_| not_before.is_none())
                .map(|polls| polls + 1);
            rhythm.pause = rhythm.next_pause;
            rhythm.next_pause = (rhythm.next_pause * 2).min(poll_interval::LONGEST);
            trouble = match self.refresh().await {
                // A failed poll costs only time, which the deadline bounds.
                Err(error) if error.class() == Class::Transient && !error.is_gone() => Some(error),
                result => result.map(|()| None)?,
            };
        }
    }

    /// The order's own error with the report of each authorization.
    pub(super) async fn why_invalid(&self, action: Action) -> Error {
        let mut report = CaReport::of(self.own_problem());
        report.was_tried = self.state.authorizations.is_empty();
        for url in &self.state.authorizations {
            match self.authorization(url).await {
                Ok(state) => report.add(&state),
                // What cannot be looked at may have failed.
                Err(_) => report.was_tried = true,
            }
        }
        self.invalid(action, report)
    }

    /// The CA's report about the order itself.
    fn own_problem(&self) -> Problem {
        let own = self.state.error.as_ref().and_then(Problem::from_json);
        own.unwrap_or_default()
    }

    /// The error of an invalid order. It is a failed validation ([`Error::is_failed_validation`]) only if the CA has
    /// tried one.
    fn invalid(&self, action: Action, report: CaReport) -> Error {
        let action = match action {
            Action::Authorization if !report.is_of_validation() => Action::Order,
            action => action,
        };
        let mut problem = report.told();
        if problem == Problem::default() {
            "the CA gives no reason".clone_into(&mut problem.detail);
        }
        if problem.kind.is_empty() {
            let first = problem.subproblems.first();
            problem.kind = first.map(|it| it.kind.clone()).unwrap_or_default();
        }
        Error::new(action, &self.host, Kind::Invalid(Box::new(problem)))
    }
}

/// What the CA reports about an order and its names.
struct CaReport {
    problem: Problem,
    /// The names whose authorization has ended without being tried.
    lapsed: Vec<Subproblem>,
    /// Whether the CA has, or may have, tried to validate a name and failed.
    was_tried: bool,
}

impl CaReport {
    /// Begins with what the CA says of the order itself.
    fn of(problem: Problem) -> Self {
        Self {
            problem,
            lapsed: Vec::new(),
            was_tried: false,
        }
    }

    /// Adds the CA's report about one name, unless that name has one already.
    fn add(&mut self, state: &authorization::State) {
        if !state.was_tried() {
            self.lapsed.extend(state.failure());
            return;
        }
        self.was_tried = true;
        for found in state.problems().chain(state.failure()) {
            // Pebble repeats the text of the one authorization, without its name.
            if self.problem.detail == found.detail {
                self.problem.detail.clear();
            }
            let is_known = |it: &Subproblem| it.name == found.name;
            if !self.problem.subproblems.iter().any(is_known) {
                self.problem.subproblems.push(found);
            }
        }
    }

    /// Whether a validation has failed. An order without a word about its names may be invalid for its own error.
    fn is_of_validation(&self) -> bool {
        self.was_tried || self.lapsed.is_empty() && self.problem != Problem::default()
    }

    /// All of it in one problem. Names that have lapsed are told where nothing else has ended the order.
    fn told(mut self) -> Problem {
        if self.problem.subproblems.is_empty() {
            self.problem.subproblems.extend(self.lapsed);
        }
        self.problem
    }
}

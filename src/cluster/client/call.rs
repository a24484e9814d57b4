//! How every call on the API server is made: with a deadline, and repeated only where the caller says so.
//!
//! A write is not repeated blindly: whether it was done is unknown without an answer.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};

use super::error::Error;

/// Longest wait for an answer: the API server normally answers in milliseconds, and kube sets no read timeout.
pub(in crate::cluster) const DEADLINE: Duration = Duration::from_secs(30);

/// Pauses between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// How long one attempt of a call may take, and how often it is repeated where that can help.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    deadline: Duration,
    retries: usize,
}

impl Call {
    /// One attempt.
    pub const ONCE: Self = Self::within(DEADLINE);
    /// A read that a rollout waits for: the biggest is a page of workloads, which a loaded server gives within seconds.
    /// With its pauses this outlasts a restart of one API server behind a balancer; for anything longer the caller plans
    /// again.
    pub const READ: Self = Self {
        deadline: Duration::from_secs(15),
        retries: 4,
    };

    /// One attempt of this length at the most.
    #[must_use]
    pub const fn within(deadline: Duration) -> Self {
        Self {
            deadline,
            retries: 0,
        }
    }

    /// Makes the call; `request` is started again for each attempt, and `what` names it in an error.
    ///
    /// # Errors
    /// That of the last attempt.
    pub async fn repeat<T, F>(
        self,
        what: impl Fn() -> String,
        request: impl Fn() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let attempt = || async { self.once(&what, request()).await };
        let pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_max_times(self.retries)
            .with_jitter();
        attempt.retry(pauses).when(Error::is_passing).await
    }

    /// Makes one attempt.
    ///
    /// # Errors
    /// When the API server refuses or does not answer in time.
    pub async fn once<T>(
        self,
        what: impl FnOnce() -> String,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(self.deadline, request).await {
            Ok(answer) => answer.map_err(|error| Error::from_kube(what(), error)),
            Err(_) => Err(Error::Deadline { what: what() }),
        }
    }
}

/// What a read has found; `None` if there is no such object.
pub(in crate::cluster) fn if_any<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes one attempt of a call, as [`Call::ONCE`].
pub(in crate::cluster) async fn call<T>(
    what: impl FnOnce() -> String,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    Call::ONCE.once(what, request).await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::core::Status;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_passing_failures_are_tried_again() {
        for (status, succeeds, reason) in [
            (500, true, ""),
            (503, true, ""),
            (409, false, "Conflict"),
            (403, false, "Forbidden"),
            (422, false, "Refused"),
        ] {
            let tried = AtomicUsize::new(0);
            let what = || "reading deployment/web".to_owned();
            let answer = Call::READ.repeat(what, || async {
                if tried.fetch_add(1, Ordering::Relaxed) > 0 {
                    return Ok(());
                }
                let status = Status::failure("words", "Reason").with_code(status);
                Err(kube::Error::Api(status.boxed()))
            });
            let answer = answer.await;
            assert_eq!(answer.is_ok(), succeeds, "{status}");
            if let Err(error) = answer {
                assert_eq!((error.reason(), error.code()), (reason, Some(status)));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_has_a_deadline() {
        let never = std::future::pending::<kube::Result<()>>();
        let asked = Call::READ.once(|| "listing pods".into(), never);
        let error = asked.await.unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }) && error.is_passing());
    }
}

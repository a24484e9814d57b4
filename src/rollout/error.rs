//! Errors of calls to the API server, and the one way in which this module calls it.
//!
//! Every call has a deadline and is repeated a few times where that can help. An error never contains a body, only the
//! status that the API server gave.

use std::fmt::Display;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use thiserror::Error;

use crate::cluster::{is_denial, is_too_large};

/// Longest wait for one answer. The client itself has no read timeout, so a hung server would block us for ever; the
/// biggest answer here is a page of workloads, which a loaded server gives within seconds.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// Most attempts after the first. With the delays below this outlasts a restart of one API server behind a balancer;
/// for anything longer the caller plans again.
const RETRIES: usize = 4;
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(3);

/// A call to the API server that failed.
#[derive(Debug, Error)]
pub enum Error {
    /// Something else than a missing right says no: admission, a quota, a namespace that ends.
    #[error("{verb} {what} in namespace {namespace} was denied, not for lack of a right")]
    Denied {
        /// What was tried, for example `patch`.
        verb: &'static str,
        /// The resource, in words.
        what: String,
        /// The namespace.
        namespace: Box<str>,
        /// The API server's words.
        source: Box<kube::Error>,
    },
    /// RBAC forbids it.
    #[error(
        "not allowed to {verb} {what} in namespace {namespace}: expected the rights of rbac/clusterrole.yaml"
    )]
    Forbidden {
        /// What was tried, for example `list`.
        verb: &'static str,
        /// The resource, in words.
        what: String,
        /// The namespace.
        namespace: Box<str>,
        /// The API server's words.
        source: Box<kube::Error>,
    },
    /// No answer came in time.
    #[error("no answer to {verb} {what} in namespace {namespace} within {}s", deadline.as_secs())]
    NoAnswer {
        /// What was tried.
        verb: &'static str,
        /// The resource, in words.
        what: String,
        /// The namespace.
        namespace: Box<str>,
        /// The longest wait.
        deadline: Duration,
    },
    /// The objects of the namespace refer to more than is kept in memory.
    #[error(
        "what pods of namespace {namespace} refer to takes more than {most} bytes: too much to plan its rollouts"
    )]
    TooMuch {
        /// The namespace.
        namespace: Box<str>,
        /// The limit in bytes.
        most: usize,
    },
    /// Anything else.
    #[error("cannot {verb} {what} in namespace {namespace}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// The resource, in words.
        what: String,
        /// The namespace.
        namespace: Box<str>,
        /// The API server's words.
        source: Box<kube::Error>,
    },
}

impl Error {
    /// Stable name for Events and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Forbidden { .. } => "Forbidden",
            Self::Denied { .. } => "Denied",
            Self::NoAnswer { .. } => "ApiServerSilent",
            Self::TooMuch { .. } => "TooMuch",
            Self::Api { .. } => "ApiServerError",
        }
    }

    /// The HTTP status of the answer, where there was one.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Forbidden { source, .. }
            | Self::Denied { source, .. }
            | Self::Api { source, .. } => code(source),
            Self::NoAnswer { .. } | Self::TooMuch { .. } => None,
        }
    }

    /// Whether the same call may succeed a moment later: no answer, a broken connection, or an overloaded server.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Api { source, .. } if is_too_large(source) => false,
            _ => self.code().is_none_or(|code| code >= 500),
        }
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Calls the API server; `call` is started again for each attempt.
pub(super) async fn call<T, F>(
    verb: &'static str,
    what: &(dyn Display + Sync),
    namespace: &str,
    call: impl Fn() -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let attempt = || async { once(verb, what, namespace, CALL_DEADLINE, call()).await };
    let delays = ExponentialBuilder::default()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(LONGEST_DELAY)
        .with_max_times(RETRIES)
        .with_jitter();
    attempt.retry(delays).when(Error::is_passing).await
}

fn is_denied(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if is_denial(&status.message))
}

/// One attempt with a deadline of its own.
pub(super) async fn once<T>(
    verb: &'static str,
    what: &(dyn Display + Sync),
    namespace: &str,
    deadline: Duration,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    let about = || (what.to_string(), Box::from(namespace));
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => {
            let ((what, namespace), source) = (about(), Box::new(source));
            if code(&source) == Some(403) && is_denied(&source) {
                Err(Error::Denied {
                    verb,
                    what,
                    namespace,
                    source,
                })
            } else if code(&source) == Some(403) {
                Err(Error::Forbidden {
                    verb,
                    what,
                    namespace,
                    source,
                })
            } else {
                Err(Error::Api {
                    verb,
                    what,
                    namespace,
                    source,
                })
            }
        }
        Err(_) => {
            let (what, namespace) = about();
            Err(Error::NoAnswer {
                verb,
                what,
                namespace,
                deadline,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::core::Status;

    use super::*;

    #[tokio::test]
    async fn only_passing_failures_are_tried_again() {
        for (status, succeeds, reason) in [
            (500, true, ""),
            (503, true, ""),
            (409, false, "ApiServerError"),
            (403, false, "Forbidden"),
        ] {
            let tried = AtomicUsize::new(0);
            let answer = call("get", &"deployment/web", "shop", || async {
                if tried.fetch_add(1, Ordering::Relaxed) > 0 {
                    return Ok(());
                }
                let status = Status::failure("words", "Reason").with_code(status);
                Err(kube::Error::Api(status.boxed()))
            })
            .await;
            assert_eq!(answer.is_ok(), succeeds, "{status}");
            if let Err(error) = answer {
                assert_eq!(error.reason(), reason);
                assert!(!error.to_string().contains("words"), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn a_silent_server_has_a_deadline() {
        let deadline = Duration::from_millis(20);
        let never = std::future::pending::<Result<(), _>>();
        let error = once("list", &"deployments", "shop", deadline, never)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "no answer to list deployments in namespace shop within 0s"
        );
        assert!(error.is_passing());
    }
}

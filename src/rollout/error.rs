//! Why a call to the API server brought nothing, and the one way in which this module calls it.
//!
//! Every call has a deadline and is repeated a few times where that can help. What a body says is never part of an
//! error: only the status that the API server gave.

use std::fmt::Display;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use thiserror::Error;

/// Longest wait for one answer. The client itself has no read timeout, so that a hung server would hold us for ever;
/// the biggest answer here is a page of workloads, which a loaded server gives within seconds.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// Attempts after the first. With the delays below this outlasts a restart of one API server behind a balancer;
/// for anything longer the caller plans anew.
const RETRIES: usize = 4;
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(3);

/// A call to the API server that failed.
#[derive(Debug, Error)]
pub enum Error {
    /// RBAC or an admission policy forbids it.
    #[error(
        "not allowed to {verb} {what} in namespace {namespace}: expected the rights of rbac/clusterrole.yaml"
    )]
    Forbidden {
        /// What was tried, for example `list`.
        verb: &'static str,
        /// On what.
        what: String,
        /// Where.
        namespace: Box<str>,
        /// The API server's words.
        source: Box<kube::Error>,
    },
    /// Nothing came back within [`CALL_DEADLINE`].
    #[error("no answer to {verb} {what} in namespace {namespace} within {}s", CALL_DEADLINE.as_secs())]
    NoAnswer {
        /// What was tried.
        verb: &'static str,
        /// On what.
        what: String,
        /// Where.
        namespace: Box<str>,
    },
    /// Anything else.
    #[error("cannot {verb} {what} in namespace {namespace}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// On what.
        what: String,
        /// Where.
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
            Self::NoAnswer { .. } => "ApiServerSilent",
            Self::Api { .. } => "ApiServerError",
        }
    }

    /// The HTTP status of the answer, where there was one.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Forbidden { source, .. } | Self::Api { source, .. } => code(source),
            Self::NoAnswer { .. } => None,
        }
    }

    /// Whether the same call may succeed a moment later: no answer, a broken connection, or a server in trouble.
    fn is_passing(&self) -> bool {
        self.code().is_none_or(|code| code >= 500)
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Calls the API server: `call` is started anew for each attempt.
pub(super) async fn call<T, F>(
    verb: &'static str,
    what: &(dyn Display + Sync),
    namespace: &str,
    call: impl Fn() -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let attempt = || async {
        match tokio::time::timeout(CALL_DEADLINE, call()).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => {
                let (what, namespace, source) =
                    (what.to_string(), namespace.into(), Box::new(source));
                if code(&source) == Some(403) {
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
            Err(_) => Err(Error::NoAnswer {
                verb,
                what: what.to_string(),
                namespace: namespace.into(),
            }),
        }
    };
    let delays = ExponentialBuilder::default()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(LONGEST_DELAY)
        .with_max_times(RETRIES)
        .with_jitter();
    attempt.retry(delays).when(Error::is_passing).await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::core::Status;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_passing_failures_are_tried_again() {
        for (status, attempts, reason) in [
            (500, 1 + RETRIES, "ApiServerError"),
            (503, 1 + RETRIES, "ApiServerError"),
            (409, 1, "ApiServerError"),
            (403, 1, "Forbidden"),
        ] {
            let tried = AtomicUsize::new(0);
            let error = call("get", &"deployment/web", "shop", || async {
                tried.fetch_add(1, Ordering::Relaxed);
                let status = Status::failure("words", "Reason").with_code(status);
                Err::<(), _>(kube::Error::Api(status.boxed()))
            })
            .await
            .unwrap_err();
            assert_eq!(
                (tried.into_inner(), error.reason()),
                (attempts, reason),
                "{status}"
            );
            assert!(!error.to_string().contains("words"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_has_a_deadline() {
        let error = call(
            "list",
            &"deployments",
            "shop",
            std::future::pending::<Result<(), _>>,
        )
        .await
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "no answer to list deployments in namespace shop within 15s"
        );
    }
}

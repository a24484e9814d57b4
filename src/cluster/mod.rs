//! The Kubernetes side: watches, guarded writes, Events, the lease, the ledger, order records, account keys.
//!
//! Every call has a deadline and ends in an [`enum@Error`] that names the attempted action. It decides nothing; other
//! modules decide what is read and written.

pub mod accounts;
mod bounded;
pub mod challenge_routes;
pub mod events;
mod gated;
pub mod lease;
pub mod ledger;
pub mod namespaces;
mod observe;
pub mod order_records;
pub(crate) mod pages;
mod recent_events;
pub mod review;
pub mod secrets;
mod transport;
pub mod watch;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use thiserror::Error;

pub(crate) use bounded::is_too_large;
use cert_renew_core::text::error_chain;
pub use transport::Unreachable;

use crate::process::write_gate::{Closed, WriteGate};
use crate::telemetry::metrics::Metrics;

/// Longest wait for an answer: the API server normally answers in milliseconds, and kube sets no read timeout.
const DEADLINE: Duration = Duration::from_secs(30);

/// The kubeconfig, its context, and whom to impersonate; all defaults are kubectl's.
#[derive(Clone, Debug, Default)]
pub struct Way {
    /// The kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// The context.
    pub context: Option<String>,
    /// The user to impersonate.
    pub user: Option<String>,
    /// The groups to impersonate.
    pub groups: Vec<String>,
    /// Each request is sent once: what cannot be had now is not waited for.
    pub once: bool,
}

impl Way {
    async fn config(&self) -> Result<kube::Config, NoWay> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let file = Kubeconfig::read_from(file)?;
                kube::Config::from_custom_kubeconfig(file, &options).await?
            }
            None if self.context.is_some() => kube::Config::from_kubeconfig(&options).await?,
            None => kube::Config::infer().await?,
        };
        config.default_retry &= !self.once;
        if self.user.is_some() {
            config.auth_info.impersonate.clone_from(&self.user);
            config.auth_info.impersonate_groups =
                Some(self.groups.clone()).filter(|groups| !groups.is_empty());
        }
        Ok(config)
    }
}

/// The client for reads and for the lease: by kubeconfig, else by the pod's service account.
///
/// `HTTPS_PROXY` is the proxy for the CAs, but kube would use it for the API server too; a proxy in the kubeconfig
/// itself is refused.
///
/// Requests are counted if there are `metrics`.
///
/// # Errors
/// When neither says where the API server is.
pub async fn connect(way: &Way, metrics: Option<Arc<Metrics>>) -> Result<Client, NoWay> {
    let builder = transport::builder(config(way).await?)?;
    Ok(match metrics {
        Some(metrics) => builder.with_layer(&observe::Counting(metrics)).build(),
        None => builder.build(),
    })
}

/// The client for everything else: as [`connect`], and writes go through the gate.
///
/// # Errors
/// When neither kubeconfig nor pod says where the API server is.
pub async fn connect_behind(gate: WriteGate, metrics: Arc<Metrics>) -> Result<Client, NoWay> {
    let builder = transport::builder(config(&Way::default()).await?)?
        .with_layer(&observe::Counting(metrics))
        // Outermost: kube's own retries are inside.
        .with_layer(&gated::Gating(gate));
    Ok(builder.build())
}

/// Why the API server cannot be connected.
pub type NoWay = Box<dyn std::error::Error + Send + Sync>;

async fn config(way: &Way) -> Result<kube::Config, NoWay> {
    let config = way.config().await?;
    let of_environment = |proxy: &http::Uri| {
        let values = ["HTTPS_PROXY", "https_proxy"].map(|name| std::env::var(name).ok());
        let mut parsed = values
            .into_iter()
            .flatten()
            .filter_map(|value| value.parse::<http::Uri>().ok());
        parsed.any(|value| value == *proxy)
    };
    let own = config.proxy_url.as_ref().filter(|url| !of_environment(url));
    if let Some(proxy) = own {
        let host = proxy.host().unwrap_or_default();
        return Err(format!("the kubeconfig says proxy-url, {host}: cert-renew goes to the API server without a proxy, remove it").into());
    }
    Ok(config)
}

/// Why a call on the API server failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The object was modified concurrently (409, or 422 for another uid).
    #[error("{what}: the object has changed meanwhile")]
    Conflict {
        /// The attempted action and its object.
        what: String,
    },
    /// An object of that name exists already.
    #[error("{what}: it exists already")]
    AlreadyExists {
        /// The attempted action and its object.
        what: String,
    },
    /// The object is gone.
    #[error("{what}: not found")]
    NotFound {
        /// The attempted action and its object.
        what: String,
    },
    /// The role lacks the right.
    #[error("{what}: forbidden ({message}); compare the installed role with rbac/")]
    Forbidden {
        /// The attempted action and its object.
        what: String,
        /// The API server's message.
        message: String,
    },
    /// The role has the right; something else says no: admission, a quota, a namespace that ends.
    #[error(
        "{what}: denied, not for lack of a right: {message}{}",
        after_denial(message)
    )]
    Denied {
        /// The attempted action and its object.
        what: String,
        /// The API server's message.
        message: String,
    },
    /// The API server refuses the content.
    #[error("{what}: refused ({message})")]
    Refused {
        /// The attempted action and its object.
        what: String,
        /// The API server's message.
        message: String,
    },
    /// This replica does not lead: nothing, or nothing more, was sent.
    #[error("{what}: {}", Closed)]
    NotLeading {
        /// The attempted action and its object.
        what: String,
    },
    /// No answer in time.
    #[error("{what}: no answer from the API server in time")]
    Deadline {
        /// The attempted action and its object.
        what: String,
    },
    /// The answer has more bytes than the bound.
    #[error("{what}: the answer is too large and was not read")]
    TooLarge {
        /// The attempted action and its object.
        what: String,
    },
    /// The API server, or the connection to it, has a problem.
    #[error("{what}: the API server cannot be used now ({message})")]
    Unavailable {
        /// The attempted action and its object.
        what: String,
        /// Known details of the problem.
        message: String,
    },
}

impl Error {
    /// Stable name for Events, logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "Conflict",
            Self::AlreadyExists { .. } => "AlreadyExists",
            Self::NotFound { .. } => "NotFound",
            Self::Forbidden { .. } => "Forbidden",
            Self::Denied { .. } => "Denied",
            Self::Refused { .. } => "Refused",
            Self::NotLeading { .. } => "NotLeading",
            Self::Deadline { .. } => "ApiDeadline",
            Self::TooLarge { .. } => "AnswerTooLarge",
            Self::Unavailable { .. } => "ApiUnavailable",
        }
    }

    /// Whether the action may have been done: no answer excludes it.
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        matches!(
            self,
            Self::Deadline { .. } | Self::TooLarge { .. } | Self::Unavailable { .. }
        )
    }

    fn from_kube(what: String, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let message = status.message.clone();
                match (status.code, status.reason.as_str()) {
                    (409, "AlreadyExists") => Self::AlreadyExists { what },
                    (409, _) => Self::Conflict { what },
                    // A merge patch with another uid is refused as an edit of an immutable field.
                    (422, _) if message.contains("metadata.uid") => Self::Conflict { what },
                    (404, _) => Self::NotFound { what },
                    (403, _) if is_denial(&message) => Self::Denied { what, message },
                    (403, _) => Self::Forbidden { what, message },
                    (400 | 413 | 422, _) => Self::Refused { what, message },
                    _ => Self::Unavailable { what, message },
                }
            }
            // The text of a decoding error may quote its input.
            kube::Error::SerdeError(_) => Self::Unavailable {
                what,
                message: "its answer is not what was asked for".into(),
            },
            kube::Error::Service(error) if error.is::<Closed>() => Self::NotLeading { what },
            error if is_too_large(&error) => Self::TooLarge { what },
            // kube's own text repeats that of its source, behind the name of a type.
            other => Self::Unavailable {
                what,
                message: std::error::Error::source(&other)
                    .map_or_else(|| other.to_string(), error_chain),
            },
        }
    }
}

/// Whether a 403 has another reason than a missing right. The API server's authorizer says `User "…" cannot patch resource
/// "secrets" …`; admission and quota, which come after it, use words of their own.
#[must_use]
pub fn is_denial(message: &str) -> bool {
    let by_role = message.contains("\" cannot ") && message.contains(" resource \"");
    !by_role && DENIALS.iter().any(|(words, _)| message.contains(words))
}

/// What a denial says, and what to do then.
const DENIALS: [(&str, &str); 5] = [
    ("exceeded quota", "; raise the namespace's ResourceQuota"),
    ("failed quota", "; raise the namespace's ResourceQuota"),
    ("being terminated", "; the namespace is being deleted"),
    (
        "denied the request",
        "; the webhook that it names has to let it through",
    ),
    (
        "denied request",
        "; the admission policy that it names has to let it through",
    ),
];

fn after_denial(message: &str) -> &'static str {
    let found = DENIALS.iter().find(|(words, _)| message.contains(words));
    found.map_or("", |(_, hint)| hint)
}

/// Runs one call with the deadline of all calls.
async fn call<T>(
    what: impl FnOnce() -> String,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Error::from_kube(what(), error)),
        Err(_) => Err(Error::Deadline { what: what() }),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_denial_is_told_from_a_missing_right() {
        let told = |message: &str| {
            let status = Status::failure(message, "Forbidden").with_code(403);
            Error::from_kube(
                "writing Secret a/b".into(),
                kube::Error::Api(status.boxed()),
            )
            .to_string()
        };
        let role = "compare the installed role with rbac/";
        for message in [
            r#"secrets "b" is forbidden: User "system:serviceaccount:cert-renew:cert-renew" cannot patch resource "secrets" in API group "" in the namespace "a""#,
            "unknown words",
        ] {
            assert!(told(message).contains(role), "{}", told(message));
        }
        for (message, hint) in [
            (
                r#"admission webhook "validate.kyverno.svc" denied the request: no"#,
                "the webhook that it names",
            ),
            (
                r#"admission webhook "w" denied the request: images of "x" cannot be of "latest""#,
                "the webhook that it names",
            ),
            (
                "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
                "the admission policy that it names",
            ),
            (
                r#"secrets "b" is forbidden: exceeded quota: q, requested: secrets=1, used: secrets=5, limited: secrets=5"#,
                "raise the namespace's ResourceQuota",
            ),
            (
                r#"secrets "b" is forbidden: unable to create new content in namespace a because it is being terminated"#,
                "the namespace is being deleted",
            ),
        ] {
            let told = told(message);
            assert!(!told.contains(role) && told.contains(message), "{told}");
            assert!(told.ends_with(hint) || told.contains(hint), "{told}");
        }
    }
}

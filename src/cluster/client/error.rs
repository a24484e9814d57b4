//! What may go wrong with a call on the API server, told by its answer once and for all callers.
//!
//! The server's own words are quoted, as they name what is missing; the text of an answer that cannot be decoded is not,
//! as it may hold the content of a Secret.

use cert_renew_core::text::error_chain;
use thiserror::Error;

use super::bounded::is_too_large;
use crate::process::write_gate::Closed;

/// Why a call on the API server failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The object was modified concurrently (409, or 422 for another uid).
    #[error("{what}: the object has been changed by another writer")]
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
        /// The status of its answer, where there was one.
        code: Option<u16>,
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
        /// The status of its answer, where there was one.
        code: Option<u16>,
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

    /// The HTTP status of the answer, where there was one.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Conflict { .. } | Self::AlreadyExists { .. } => Some(409),
            Self::NotFound { .. } => Some(404),
            Self::Forbidden { .. } | Self::Denied { .. } => Some(403),
            Self::Refused { code, .. } | Self::Unavailable { code, .. } => *code,
            Self::NotLeading { .. } | Self::Deadline { .. } | Self::TooLarge { .. } => None,
        }
    }

    /// Whether the same call may succeed a moment later: no answer, a broken connection, or an overloaded server.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Deadline { .. } => true,
            Self::Unavailable { code, .. } => code.is_none_or(|code| code >= 500),
            _ => false,
        }
    }

    pub(in crate::cluster) fn from_kube(what: String, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let message = status.message.clone();
                let code = Some(status.code);
                match (status.code, status.reason.as_str()) {
                    (409, "AlreadyExists") => Self::AlreadyExists { what },
                    (409, _) => Self::Conflict { what },
                    // A merge patch with another uid is refused as an edit of an immutable field.
                    (422, _) if message.contains("metadata.uid") => Self::Conflict { what },
                    (404, _) => Self::NotFound { what },
                    (403, _) if is_denial(&message) => Self::Denied { what, message },
                    (403, _) => Self::Forbidden { what, message },
                    (400 | 413 | 422, _) => Self::Refused {
                        what,
                        message,
                        code,
                    },
                    _ => Self::Unavailable {
                        what,
                        message,
                        code,
                    },
                }
            }
            // The text of a decoding error may quote its input.
            kube::Error::SerdeError(_) => Self::Unavailable {
                what,
                message: "its answer is not what was asked for".into(),
                code: None,
            },
            kube::Error::Service(error) if error.is::<Closed>() => Self::NotLeading { what },
            error if is_too_large(&error) => Self::TooLarge { what },
            // kube's own text repeats that of its source, behind the name of a type.
            other => Self::Unavailable {
                what,
                message: std::error::Error::source(&other)
                    .map_or_else(|| other.to_string(), error_chain),
                code: None,
            },
        }
    }
}

/// Whether a 403 has another reason than a missing right. The API server's authorizer says `User "…" cannot patch resource
/// "secrets" …`; admission and quota, which come after it, use words of their own.
fn is_denial(message: &str) -> bool {
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

//! Errors of rollouts: those of the API server, and a namespace that is too much to plan or to wait for.

use thiserror::Error;

use crate::cluster;

/// Why workloads or pods cannot be listed, read or written.
#[derive(Debug, Error)]
pub enum Error {
    /// The API server.
    #[error(transparent)]
    Api(#[from] cluster::Error),
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
    /// Too many workloads of the namespace wait without a place.
    #[error(
        "{most} other workloads of namespace {namespace} make no progress or take long: it is waited for again later"
    )]
    Crowded {
        /// The namespace.
        namespace: Box<str>,
        /// How many are waited for at the same time.
        most: usize,
    },
}

impl Error {
    /// Stable name for Events and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::TooMuch { .. } => "TooMuch",
            Self::Crowded { .. } => "Crowded",
        }
    }

    /// Whether a right is missing.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Api(cluster::Error::Forbidden { .. }))
    }

    /// The HTTP status of the answer, where there was one.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => error.code(),
            Self::TooMuch { .. } | Self::Crowded { .. } => None,
        }
    }
}

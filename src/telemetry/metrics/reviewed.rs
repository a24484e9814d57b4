//! What came of tokens that were shown on the metrics port: the label of their metric.

/// What came of a token that somebody showed to see the metrics or the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reviewed {
    /// They may see it.
    Allowed,
    /// The API server knows them, and they lack the right.
    Forbidden,
    /// The API server does not take the token.
    Unknown,
    /// The API server could not be asked.
    Failed,
    /// It was not asked: too many tokens are shown.
    TooMany,
}

impl Reviewed {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Allowed,
        Self::Forbidden,
        Self::Unknown,
        Self::Failed,
        Self::TooMany,
    ];

    /// Its value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Forbidden => "forbidden",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
            Self::TooMany => "too_many",
        }
    }
}

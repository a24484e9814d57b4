//! By whose word a Secret is renewed, or why it never is: the one vocabulary of command, page, JSON, Events and the line
//! on the Secret.

use crate::schedule::due::{AriPolicy, Due, Never, Reason};
use crate::secret::settings::Blocks;

/// By whose word a Secret is renewed, or why it never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The reason of the due instant.
    Due(Reason),
    /// `renew-before` of the Secret or the config.
    RenewBefore,
    /// An invalid annotation holds it up.
    LittleLifeLeft,
    /// It is never renewed.
    Never(Never),
}

impl Why {
    /// All of them.
    const ALL: [Self; 26] = [
        Self::Due(Reason::Lifetime),
        Self::Due(Reason::IssuerEnds),
        Self::RenewBefore,
        Self::Due(Reason::RenewalInfo),
        Self::LittleLifeLeft,
        Self::Due(Reason::NoCertificate),
        Self::Due(Reason::Unreadable),
        Self::Due(Reason::Placeholder),
        Self::Due(Reason::MissingName),
        Self::Due(Reason::ProfileChanged),
        Self::Due(Reason::LifetimeChanged),
        Self::Due(Reason::KeyTypeChanged),
        Self::Due(Reason::OutputsChanged),
        Self::Due(Reason::Staging),
        Self::Due(Reason::Revoked),
        Self::Due(Reason::RenewNow),
        Self::Never(Never::External),
        Self::Never(Never::NotAnnotated),
        Self::Never(Never::Paused),
        Self::Never(Never::AllPaused),
        Self::Never(Never::NoNames),
        Self::Never(Never::UnknownIssuer),
        Self::Never(Never::NotAllowed),
        Self::Never(Never::OwnedByAnother),
        Self::Never(Never::Immutable),
        Self::Never(Never::Undeclared),
    ];

    /// Of what was decided about a Secret.
    #[must_use]
    pub fn of(renewal: Result<Due, Never>, heed: AriPolicy, blocked: Blocks) -> Self {
        match renewal {
            Ok(due) if due.reason != Reason::Lifetime => Self::Due(due.reason),
            Ok(_) if blocked.issue() => Self::LittleLifeLeft,
            // The Secret's own instant, or its namespace's, is preferred to the CA's only where there is one.
            Ok(_) if heed == AriPolicy::Past => Self::RenewBefore,
            Ok(due) => Self::Due(due.reason),
            Err(never) => Self::Never(never),
        }
    }

    /// Its word: that of `renewsWhy`, and of the column WHY.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Due(reason) => reason.as_str(),
            Self::RenewBefore => "RenewBefore",
            Self::LittleLifeLeft => "LittleLifeLeft",
            Self::Never(never) => never.as_str(),
        }
    }

    /// That of a word; none of a word of another version.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|why| why.as_str() == word)
    }

    /// The meaning of a word.
    #[must_use]
    pub fn meaning(word: &str) -> &'static str {
        Self::of_word(word).map_or("a word of another version", Self::in_words)
    }

    /// Whether the clock decides: it is renewed in its time, and not because something asks for a new certificate.
    #[must_use]
    pub fn is_by_the_clock(self) -> bool {
        match self {
            Self::Due(Reason::Lifetime | Reason::IssuerEnds | Reason::RenewalInfo)
            | Self::RenewBefore => true,
            Self::Due(
                Reason::NoCertificate
                | Reason::Unreadable
                | Reason::Placeholder
                | Reason::MissingName
                | Reason::ProfileChanged
                | Reason::LifetimeChanged
                | Reason::KeyTypeChanged
                | Reason::OutputsChanged
                | Reason::Staging
                | Reason::Revoked
                | Reason::RenewNow,
            )
            | Self::LittleLifeLeft
            | Self::Never(_) => false,
        }
    }

    /// For people: a clause, or "by" something where the clock decides.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Due(Reason::Lifetime) => "by its lifetime",
            Self::Due(Reason::IssuerEnds) => "by the end of its issuer's certificate",
            Self::Due(Reason::RenewalInfo) => "by the CA's window (ARI)",
            Self::RenewBefore => "by renew-before",
            Self::LittleLifeLeft => "an annotation holds it up until little life is left",
            Self::Due(Reason::NoCertificate) => "the Secret holds no certificate",
            Self::Due(Reason::Unreadable) => "what the Secret holds is no certificate",
            Self::Due(Reason::Placeholder) => {
                "the certificate is self-signed, and the issuer is a CA"
            }
            Self::Due(Reason::MissingName) => "the certificate lacks a name of cert-renew.io/names",
            Self::Due(Reason::ProfileChanged) => "cert-renew.io/profile has changed",
            Self::Due(Reason::LifetimeChanged) => "cert-renew.io/lifetime has changed",
            Self::Due(Reason::KeyTypeChanged) => "cert-renew.io/key-type has changed",
            Self::Due(Reason::OutputsChanged) => {
                "cert-renew.io/outputs has changed: written again, no CA is asked"
            }
            Self::Due(Reason::Staging) => "the certificate is from a staging CA",
            Self::Due(Reason::Revoked) => "the certificate is revoked",
            Self::Due(Reason::RenewNow) => "cert-renew.io/renew-now asks for it",
            Self::Never(Never::External) => "another program is to renew it (issuer: external)",
            Self::Never(Never::NotAnnotated) => "nobody has annotated it",
            Self::Never(Never::Paused) => "cert-renew.io/paused is set",
            Self::Never(Never::AllPaused) => "the config pauses everything",
            Self::Never(Never::NoNames) => "the names to ask for are unknown",
            Self::Never(Never::UnknownIssuer) => "the config has no such issuer",
            Self::Never(Never::NotAllowed) => "the config does not grant the namespace these names",
            Self::Never(Never::OwnedByAnother) => "another program writes the Secret",
            Self::Never(Never::Immutable) => {
                "the Secret is immutable, so that no new certificate can be written into it"
            }
            Self::Never(Never::Undeclared) => "what declared the certificate is gone",
        }
    }

    /// The same as the end of a sentence that says when.
    #[must_use]
    pub fn after(self) -> String {
        let words = self.in_words();
        if self.is_by_the_clock() {
            format!(" {words}")
        } else {
            format!(": {words}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_and_each_meaning_is_there_once() {
        for (number, why) in Why::ALL.into_iter().enumerate() {
            assert_eq!(Why::meaning(why.as_str()), why.in_words());
            assert_eq!(why.is_by_the_clock(), why.in_words().starts_with("by "));
            for other in &Why::ALL[..number] {
                assert_ne!(why.as_str(), other.as_str());
                assert_ne!(why.in_words(), other.in_words());
            }
        }
        assert_eq!(Why::meaning("Later"), "a word of another version");
        let at = crate::time::UnixTime(0);
        for (reason, blocked, expected) in [
            (Reason::Lifetime, Blocks::Nothing, " by its lifetime"),
            (
                Reason::Staging,
                Blocks::Nothing,
                ": the certificate is from a staging CA",
            ),
            (
                Reason::Lifetime,
                Blocks::Issue,
                ": an annotation holds it up until little life is left",
            ),
        ] {
            let why = Why::of(Ok(Due { at, reason }), AriPolicy::Any, blocked);
            assert_eq!(why.after(), expected);
        }
    }
}

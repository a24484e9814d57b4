//! How the certificate of a Secret stands, on what declares it: `kubectl get -L`, Argo CD and Flux look there.
//!
//! It repeats what stands on the Secret itself, and one word as a label. Nothing of it is ever read as a setting.

use std::collections::BTreeMap;

use crate::secret::keys;
use crate::secret::object::head::Head;
use crate::text::hash::hash;
use crate::verdict::State;

/// The word of a declaration that is not followed.
pub const REFUSED: &str = "refused";

/// What stands on a declaration for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    /// The state in one word, a label.
    pub word: Option<String>,
    /// The state in one line.
    pub line: Option<String>,
    /// What is wrong, one text a line.
    pub problems: Option<String>,
    /// The error of the last renewal.
    pub error: Option<String>,
}

impl Mirror {
    /// What stands on an object.
    #[must_use]
    pub fn of_object(
        annotations: &BTreeMap<String, String>,
        labels: &BTreeMap<String, String>,
    ) -> Self {
        Self {
            word: labels.get(keys::STATE).cloned(),
            line: annotations.get(keys::STATE).cloned(),
            problems: annotations.get(keys::PROBLEMS).cloned(),
            error: annotations.get(keys::LAST_ERROR).cloned(),
        }
    }

    /// What the declaration is to show of a Secret in this state.
    #[must_use]
    pub fn of_secret(head: &Head, state: Option<State>) -> Self {
        let text = |key| head.annotation(key).map(ToOwned::to_owned);
        let otherwise = match head.annotation(keys::ISSUED_BY) {
            None => "absent; the Secret is there and waits for its first certificate",
            Some(_) => "the certificate is in the Secret",
        };
        Self {
            word: Some(name(state).to_owned()),
            line: text(keys::STATE).or_else(|| Some(otherwise.to_owned())),
            problems: text(keys::PROBLEMS),
            error: text(keys::LAST_ERROR),
        }
    }

    /// What is to stand on a declaration that is not followed.
    #[must_use]
    pub fn refused(why: &str) -> Self {
        Self {
            word: Some(REFUSED.to_owned()),
            line: Some(format!("{REFUSED}; {why}")),
            problems: Some(why.to_owned()),
            error: None,
        }
    }

    /// The same with what is wrong with the declaration itself.
    #[must_use]
    pub fn with(mut self, own: &[String]) -> Self {
        let all = own.iter().cloned().chain(self.problems.take());
        let all: Vec<String> = all.collect();
        self.problems = (!all.is_empty()).then(|| all.join("\n"));
        self
    }

    /// Its annotations.
    #[must_use]
    pub fn annotations(&self) -> [(&'static str, Option<&str>); 3] {
        [
            (keys::STATE, self.line.as_deref()),
            (keys::PROBLEMS, self.problems.as_deref()),
            (keys::LAST_ERROR, self.error.as_deref()),
        ]
    }

    /// Its label.
    #[must_use]
    pub fn label(&self) -> (&'static str, Option<&str>) {
        (keys::STATE, self.word.as_deref())
    }

    /// A digest, to compare two of them.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let Self {
            word,
            line,
            problems,
            error,
        } = self;
        Digest {
            texts: hash(&format!("{line:?}{problems:?}{error:?}")),
            word: hash(word.as_deref().unwrap_or_default()),
        }
    }
}

/// A digest of what stands on a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    texts: u64,
    /// That of its word, which moves without the texts.
    pub(super) word: u64,
}

/// The word for a state; a Secret whose state is not known yet is new.
fn name(state: Option<State>) -> &'static str {
    state.map_or("absent", State::as_str)
}

/// Digest of the word for a state.
pub(super) fn word(state: Option<State>) -> u64 {
    hash(name(state))
}

//! Since when a Secret is in its state.
//!
//! What the clock decides follows from dates. The beginning of other states is written on the Secret when it is seen, in
//! [`keys::SINCE`], with a write that happens anyway; for people only. Where neither is known, nothing is said.

use super::{State, little_left_from};
use crate::index::Entry;
use crate::schedule::due::AT_ONCE;
use crate::secret::keys;
use crate::secret::object::head::Head;
use crate::time::UnixTime;

/// A change of the annotation.
type Change = (&'static str, Option<String>);

/// Since when, by the dates, or by what is written on the Secret.
pub(super) fn since(
    entry: &Entry,
    state: State,
    written: Option<&str>,
    now: UnixTime,
) -> Option<UnixTime> {
    let leaf = entry.observed.leaf.ok();
    match state {
        State::Expired => leaf.map(|leaf| leaf.not_after),
        State::Expiring => leaf.map(|leaf| little_left_from(&leaf)),
        State::Due => {
            let due = entry.observed.due().ok()?;
            Some(due.at).filter(|at| *at != AT_ONCE)
        }
        _ => {
            let (word, at) = written?.split_once(' ')?;
            let at = at.parse().ok().filter(|at| *at <= now);
            at.filter(|_| word == state.as_str())
        }
    }
}

/// The value of the annotation; none where the dates say it, and for a Secret that is well.
fn value(state: State, at: UnixTime) -> Option<String> {
    match state {
        State::Expired | State::Expiring | State::Due | State::Ok => None,
        _ => Some(format!("{} {at}", state.as_str())),
    }
}

/// The change to write with one that takes a Secret from one state to another; `before` is none for one that is seen for
/// the first time.
#[must_use]
pub fn moved(now: UnixTime, before: Option<State>, after: State) -> Option<Change> {
    let value = value(after, now);
    let is_news = match before {
        None => value.is_some(),
        Some(before) => before != after,
    };
    is_news.then_some((keys::SINCE, value))
}

/// The change to write beside a new line on a Secret in this state, by what is written there.
#[must_use]
pub fn beside(now: UnixTime, state: State, head: &Head) -> Option<Change> {
    let first = |key: &str, ends: &[char]| {
        let text = head.annotation(key)?;
        text.split(|c| ends.contains(&c)).next()
    };
    let written = first(keys::SINCE, &[' ']);
    let value = value(state, now);
    let line = first(keys::STATE, &[':', ';']);
    match (&value, written) {
        (None, None) => None,
        (Some(_), Some(word)) if word == state.as_str() => None,
        // It was in that state before anybody wrote since when.
        (Some(_), None) if line == Some(state.as_str()) => None,
        _ => Some((keys::SINCE, value)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::secret::object::thin::ThinSecret;
    use crate::testing::entries::{self, NOW};

    #[test]
    fn dates_say_it_or_the_secret_does_or_nobody() {
        let index = entries::index();
        let of = |name: &str, written: Option<&str>| {
            let entries = index.iter();
            let named =
                entries.filter(|(row, _)| index.key_of(*row).is_some_and(|key| *key.name == *name));
            let (_, entry) = named.last().unwrap();
            since(&entry, State::of(&entry, NOW), written, NOW)
        };
        let written = "paused 2023-11-01T00:00:00Z";
        let at: UnixTime = "2023-11-01T00:00:00Z".parse().unwrap();
        assert_eq!(of("paused", Some(written)), Some(at));
        assert_eq!(of("paused", None), None);
        assert_eq!(of("nameless", Some(written)), None, "of another state");
        assert_eq!(of("paused", Some("paused 2033-11-01T00:00:00Z")), None);
        assert_eq!(of("paused", Some("paused then")), None);
        assert_eq!(of("healthy", None), None);
        let expired = index.iter().find_map(|(_, entry)| {
            let leaf = entry.observed.leaf.ok()?;
            (leaf.not_after < NOW).then_some(leaf.not_after)
        });
        assert_eq!(of("expired", Some(written)), expired);
        assert_eq!(of("due", None), Some(UnixTime(NOW.0 - 86_400)));
        assert!(of("expiring", None).is_some_and(|at| at < NOW));
    }

    #[test]
    fn it_is_written_when_the_state_is_another() {
        let secret = |annotations: serde_json::Value| -> ThinSecret {
            let text = json!({"metadata": {"namespace": "shop", "name": "tls", "annotations": annotations}});
            serde_json::from_str(&text.to_string()).unwrap()
        };
        let written = |state, annotations: serde_json::Value| {
            beside(NOW, state, &secret(annotations).head).map(|(_, value)| value)
        };
        let at = |word: &str| Some(Some(format!("{word} {NOW}")));
        assert_eq!(written(State::Blocked, json!({})), at("blocked"));
        assert_eq!(written(State::Ok, json!({})), None);
        let blocked = json!({keys::SINCE: "blocked 2023-11-01T00:00:00Z"});
        assert_eq!(written(State::Blocked, blocked.clone()), None);
        assert_eq!(written(State::Held, blocked.clone()), at("held"));
        assert_eq!(written(State::Ok, blocked.clone()), Some(None));
        assert_eq!(written(State::Expired, blocked), Some(None));
        let line = json!({keys::STATE: "blocked: by nobody"});
        assert_eq!(written(State::Blocked, line), None);
        let moves = |before, after| moved(NOW, before, after).map(|(_, value)| value);
        assert_eq!(moves(Some(State::Due), State::Due), None);
        let failing = State::RenewalFailing;
        assert_eq!(moves(Some(State::Due), failing), at("renewal_failing"));
        assert_eq!(moves(None, State::Held), at("held"));
        assert_eq!(moves(None, State::Ok), None);
        assert_eq!(moves(Some(failing), State::Ok), Some(None));
    }
}

//! The rows of the status page and its JSON, and the selection by a query.
//!
//! Input is the index and a query string; pure. The index is locked only while the rows are copied.

use std::cmp::Ordering;
use std::fmt::Display;
use std::sync::Arc;

use cert_renew_core::index::{Entry, Index, Observed, Shown};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::used_by::UsedBy;
use cert_renew_core::time::UnixTime;
use serde::{Serialize, Serializer};

use crate::telemetry::metrics::certificates::{State, moves, renew_at, unrolled};

/// Most rows of one answer: more are unreadable, and a filter reaches all of them.
pub(super) const MOST: usize = 10_000;
/// Most bytes of error texts in one answer. A common problem writes the same text on every Secret; at 900 bytes each,
/// the first few hundred are complete.
const MOST_ERROR_BYTES: usize = 256 * 1024;
/// Replaces the texts of errors beyond the limit.
const CUT: &str = "too many errors to show all texts: filter for this Secret";

/// The progress of the certificate's rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Rollout {
    /// Continues only after a person has looked.
    Halted,
    /// In progress.
    Pending,
    /// Waits for a change window, a renewal or a person.
    Waits,
    /// Nothing is recorded yet, or there is no certificate.
    None,
    /// The workloads have it.
    Done,
}

impl Rollout {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Halted => "halted",
            Self::Pending => "pending",
            Self::Waits => "waits",
            Self::None => "none",
            Self::Done => "done",
        }
    }

    fn of(entry: &Entry, now: UnixTime) -> Self {
        match (unrolled(entry), &entry.observed.leaf, entry.rolled_out()) {
            _ if entry.observed.halted => Self::Halted,
            (true, ..) if moves(entry, now) => Self::Pending,
            (true, ..) => Self::Waits,
            (false, Err(_), _) | (false, _, None) => Self::None,
            (false, Ok(_), Some(_)) => Self::Done,
        }
    }
}

/// One certificate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    #[serde(serialize_with = "shown")]
    pub(super) namespace: Arc<str>,
    #[serde(serialize_with = "shown")]
    pub(super) name: Arc<str>,
    #[serde(serialize_with = "as_word")]
    pub(super) state: State,
    #[serde(serialize_with = "shown")]
    pub(super) issuer: Arc<str>,
    /// As in the index: comma-separated and cut if there are very many.
    pub(super) names: Box<str>,
    #[serde(serialize_with = "as_text")]
    pub(super) not_before: Option<UnixTime>,
    #[serde(serialize_with = "as_text")]
    pub(super) not_after: Option<UnixTime>,
    /// According to the Secret; an instant in the past means that it is due.
    #[serde(serialize_with = "as_text")]
    pub(super) renews: Option<UnixTime>,
    pub(super) rollout: Rollout,
    /// End of what the workloads have, if that is another certificate.
    #[serde(serialize_with = "as_text")]
    pub(super) served_until: Option<UnixTime>,
    /// The workloads that use it, according to the last rollout.
    pub(super) used_by: Option<UsedBy>,
    /// Pods that serve an earlier certificate although every step finished.
    pub(super) stale_pods: u32,
    pub(super) failures: u32,
    /// Set if the last try failed.
    #[serde(serialize_with = "as_text")]
    pub(super) next_try: Option<UnixTime>,
    pub(super) last_error: Option<Box<str>>,
    pub(super) annotation_problems: u16,
}

fn as_word<S: Serializer>(state: &State, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(state.as_str())
}

fn shown<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_text<S: Serializer>(at: &Option<UnixTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(at),
        None => serializer.serialize_none(),
    }
}

/// The order of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Most urgent first: the worst state, then the nearest end.
    #[default]
    State,
    Secret,
    From,
    Renews,
    Ends,
    Issuer,
    Rollout,
}

impl Sort {
    pub(super) const ALL: [Self; 7] = [
        Self::Secret,
        Self::State,
        Self::From,
        Self::Renews,
        Self::Ends,
        Self::Issuer,
        Self::Rollout,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Secret => "secret",
            Self::From => "from",
            Self::Renews => "renews",
            Self::Ends => "ends",
            Self::Issuer => "issuer",
            Self::Rollout => "rollout",
        }
    }

    fn compare(self, one: &Row, other: &Row) -> Ordering {
        // No renewal or no end sorts last.
        let late = |at: Option<UnixTime>| at.unwrap_or(UnixTime::NEVER);
        let main = match self {
            Self::State => one.state.cmp(&other.state),
            Self::Secret => Ordering::Equal,
            Self::From => late(one.not_before).cmp(&late(other.not_before)),
            Self::Renews => late(one.renews).cmp(&late(other.renews)),
            Self::Ends => late(one.not_after).cmp(&late(other.not_after)),
            Self::Issuer => one.issuer.cmp(&other.issuer),
            Self::Rollout => one.rollout.cmp(&other.rollout),
        };
        let end = match self {
            Self::Secret => Ordering::Equal,
            _ => late(one.not_after).cmp(&late(other.not_after)),
        };
        let place = || (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name));
        main.then(end).then_with(place)
    }
}

/// The query of the query string. Unknown parameters are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// In lower case; searched in namespace, name, names, issuer, workloads and error.
    pub(super) text: String,
    pub(super) which: Which,
    pub(super) sort: Sort,
    pub(super) descending: bool,
}

/// The selected states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Which {
    #[default]
    All,
    /// All that need attention.
    Trouble,
    One(State),
}

impl Which {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::All => "",
            Self::Trouble => "trouble",
            Self::One(state) => state.as_str(),
        }
    }

    fn takes(self, state: State) -> bool {
        match self {
            Self::All => true,
            Self::Trouble => state.is_trouble(),
            Self::One(one) => one == state,
        }
    }
}

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        let mut asked = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "q" => asked.text = value.trim().to_lowercase(),
                "state" => {
                    let one = State::ALL.into_iter().find(|state| state.as_str() == value);
                    asked.which = match one {
                        Some(state) => Which::One(state),
                        None if value == "trouble" => Which::Trouble,
                        None => Which::All,
                    };
                }
                "sort" => {
                    let name = value.strip_prefix('-');
                    asked.descending = name.is_some();
                    let name = name.unwrap_or(&value);
                    let known = Sort::ALL.into_iter().find(|sort| sort.as_str() == name);
                    asked.sort = known.unwrap_or_default();
                }
                _ => {}
            }
        }
        asked
    }

    /// Whether the query selects every certificate.
    pub(super) fn takes_all(&self) -> bool {
        self.text.is_empty() && self.which == Which::All
    }

    fn takes(&self, row: &Row) -> bool {
        let holds = |text: &str| text.to_lowercase().contains(&self.text);
        self.which.takes(row.state)
            && (self.text.is_empty()
                || holds(&format!("{}/{}", row.namespace, row.name))
                || holds(&row.names)
                || holds(&row.issuer)
                || row.used_by.as_ref().is_some_and(|it| holds(&it.in_words()))
                || row.last_error.as_deref().is_some_and(holds))
    }
}

/// The answer to a query.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    #[serde(serialize_with = "shown")]
    pub(super) as_of: UnixTime,
    /// For all certificates, selected or not; the worst state first.
    #[serde(skip)]
    pub(super) states: [usize; State::ALL.len()],
    /// Number of certificates that the query selects.
    pub(super) matching: usize,
    /// Number of selected ones that are not shown.
    pub(super) left_out: usize,
    pub(super) certificates: Vec<Row>,
}

/// Copies the state of the index at `now`; `failures` gives the failures of a Secret in a row.
pub(super) fn copy(now: UnixTime, index: &Index, failures: &dyn Fn(&Observed) -> u32) -> Vec<Row> {
    index
        .iter()
        .filter_map(|(at, entry)| {
            let (key, shown) = (index.key_of(at)?, index.shown(at));
            Some(row(now, key, shown, entry, failures))
        })
        .collect()
}

fn row(
    now: UnixTime,
    key: SecretRef,
    shown: Option<&Shown>,
    entry: Entry,
    failures: &dyn Fn(&Observed) -> u32,
) -> Row {
    let leaf = entry.observed.leaf.ok();
    let state = State::of(&entry, now);
    let served = entry.rolled_out().filter(|_| unrolled(&entry));
    let tries = match state {
        State::RolloutFailing => Some(entry.roll_at),
        _ => Some(entry.renew_at).filter(|_| entry.renewal_error.is_some()),
    };
    Row {
        namespace: key.namespace,
        name: key.name,
        state,
        issuer: Arc::clone(&entry.observed.issuer),
        names: shown.map(|it| it.names.clone()).unwrap_or_default(),
        not_before: leaf.map(|leaf| leaf.not_before),
        not_after: leaf.map(|leaf| leaf.not_after),
        renews: renew_at(&entry),
        rollout: Rollout::of(&entry, now),
        served_until: match served {
            Some(RolledOut::Leaf { not_after, .. }) => Some(not_after),
            _ => None,
        },
        used_by: shown.and_then(|it| it.used_by.as_deref()?.parse().ok()),
        stale_pods: entry.stale_pods,
        failures: failures(&entry.observed),
        next_try: tries.filter(|at| *at != UnixTime::NEVER),
        last_error: entry.last_error(),
        annotation_problems: entry.observed.problems,
    }
}

/// Selects, sorts and cuts the rows.
pub(super) fn answer(now: UnixTime, mut rows: Vec<Row>, query: &Query) -> Answer {
    let mut states = [0; State::ALL.len()];
    for row in &rows {
        states[row.state as usize] += 1;
    }
    rows.retain(|row| query.takes(row));
    let matching = rows.len();
    rows.sort_unstable_by(|one, other| {
        let order = query.sort.compare(one, other);
        if query.descending {
            order.reverse()
        } else {
            order
        }
    });
    rows.truncate(MOST);
    let mut bytes = 0;
    for error in rows.iter_mut().filter_map(|row| row.last_error.as_mut()) {
        bytes += error.len();
        if bytes > MOST_ERROR_BYTES {
            *error = CUT.into();
        }
    }
    Answer {
        as_of: now,
        states,
        matching,
        left_out: matching - rows.len(),
        certificates: rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::certificates::fixture;

    fn names(query: &str) -> Vec<String> {
        let index = fixture::index();
        let rows = copy(fixture::NOW, &index, &|_| 2);
        let answer = answer(fixture::NOW, rows, &Query::parse(query));
        let rows = answer.certificates.iter();
        rows.map(|row| row.name.to_string()).collect()
    }

    #[test]
    fn the_worst_stands_first_and_the_query_narrows() {
        let all = names("");
        assert_eq!(
            all[..5],
            ["expired", "failing", "absent", "garbled", "failing-rollout"]
        );
        assert_eq!(names("q=SHOP%2Fpau"), ["paused"]);
        assert_eq!(names("q=c%0Ad"), ["odd"], "the issuer is searched too");
        assert_eq!(names("q=statefulset/DB"), ["healthy"], "and who uses it");
        assert_eq!(names("state=due"), ["due"]);
        assert_eq!(names("state=trouble").len(), 7);
        assert_eq!(names("state=nonsense&x=y&sort=what").len(), all.len());
        assert_eq!(names("sort=secret")[0], "absent");
        assert_eq!(names("sort=-secret")[0], "windowed");
        assert_eq!(names("sort=ends")[..2], ["expired", "six-days"]);
    }

    #[test]
    fn a_query_that_is_no_text_is_no_trouble() {
        for hostile in ["%", "q=%ff%fe", "q=%00", "&&&=", "state=%F0%9F", "sort=--"] {
            let _ = names(hostile);
        }
    }

    #[test]
    fn the_rollout_is_told_in_a_word() {
        let index = fixture::index();
        let rows = copy(fixture::NOW, &index, &|_| 0);
        let of = |name: &str| rows.iter().find(|row| *row.name == *name).unwrap().rollout;
        for (name, expected) in [
            ("healthy", Rollout::Done),
            ("rolling", Rollout::Pending),
            ("windowed", Rollout::Waits),
            ("halted", Rollout::Halted),
            ("first-sight", Rollout::None),
            ("absent", Rollout::None),
        ] {
            assert_eq!(of(name), expected, "{name}");
        }
    }

    #[test]
    fn texts_of_errors_are_limited_as_a_whole() {
        let index = fixture::index();
        let row = copy(fixture::NOW, &index, &|_| 0).remove(0);
        let failing = Row {
            last_error: Some("x".repeat(900).into()),
            ..row
        };
        let rows = vec![failing; 1_000];
        let answer = answer(fixture::NOW, rows, &Query::default());
        let texts = answer
            .certificates
            .iter()
            .filter_map(|row| row.last_error.as_deref());
        let bytes: usize = texts.map(str::len).sum();
        assert!(bytes < MOST_ERROR_BYTES + 1_000 * CUT.len(), "{bytes}");
    }
}

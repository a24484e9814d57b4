//! The rows of the status page and its JSON, and the selection by a query.
//!
//! Input is the index and a query string; pure. The index is locked only while the rows are copied.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Duration;

use cert_renew_core::index::{Index, Observed};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::{UnixTime, duration};
use cert_renew_core::verdict::detail::{Detail, Remembered};
use cert_renew_core::verdict::{Beside, Report, State, Verdict};

use super::budget;

/// Most rows of one answer: more are unreadable, and a filter reaches all of them.
pub(super) const MOST: usize = 10_000;
/// Most namespaces, and most issuers, that the page lists: the find field reaches all of them.
const GROUPS: usize = 200;

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

    fn compare(self, one: &Verdict, other: &Verdict) -> Ordering {
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

/// The query of the query string. Unknown parameters are ignored, unknown values are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// The one namespace that is asked for.
    pub(super) namespace: Option<String>,
    /// The one name that is asked for.
    name: Option<String>,
    /// The one issuer that is asked for.
    pub(super) issuer: Option<String>,
    /// In lower case; searched in namespace, name, names, issuer, workloads and error.
    pub(super) text: String,
    pub(super) which: Which,
    /// How soon it ends.
    pub(super) within: Option<Within>,
    pub(super) sort: Sort,
    pub(super) descending: bool,
    /// Whether the beginning of what is wrong is enough.
    briefly: bool,
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

/// The time within which a certificate is to end; one that has ended is among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Within {
    /// As it was asked for.
    pub(super) text: String,
    time: Duration,
}

impl Within {
    /// Thirty days: what is asked most.
    pub(super) fn a_month() -> Self {
        Self {
            text: "30d".to_owned(),
            time: Duration::from_secs(30 * 86_400),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let time = duration::parse(text).map_err(|error| format!("within: {error}\n"))?;
        Ok(Self {
            text: text.trim().to_owned(),
            time,
        })
    }

    fn takes(&self, now: UnixTime, row: &Verdict) -> bool {
        row.not_after.is_some_and(|at| at <= now + self.time)
    }
}

impl Query {
    /// # Errors
    /// When a value is not one of those that there are: names them.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "q" => asked.text = value.trim().to_lowercase(),
                "namespace" if !value.is_empty() => asked.namespace = Some(value.into()),
                "name" if !value.is_empty() => asked.name = Some(value.into()),
                "issuer" if !value.is_empty() => asked.issuer = Some(value.into()),
                "within" if !value.is_empty() => asked.within = Some(Within::parse(&value)?),
                "texts" => asked.briefly = one_of(&key, &value, [false, true], texts)?,
                "state" => {
                    let all = State::ALL.into_iter().map(Which::One);
                    let all = [Which::All, Which::Trouble].into_iter().chain(all);
                    asked.which = one_of(&key, &value, all, Which::as_str)?;
                }
                "sort" => {
                    let name = value.strip_prefix('-');
                    asked.descending = name.is_some();
                    let name = name.unwrap_or(&value);
                    asked.sort = one_of(&key, name, Sort::ALL, Sort::as_str)?;
                }
                _ => {}
            }
        }
        Ok(asked)
    }

    /// Whether the query selects every certificate.
    pub(super) fn takes_all(&self) -> bool {
        *self
            == Self {
                sort: self.sort,
                descending: self.descending,
                briefly: self.briefly,
                ..Self::default()
            }
    }

    /// The one Secret that is asked for, if it is one.
    pub(super) fn one(&self) -> Option<SecretRef> {
        let (namespace, name) = (self.namespace.as_deref()?, self.name.as_deref()?);
        Some(SecretRef {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    /// The query string of the same selection in another order.
    pub(super) fn sorted(&self, sort: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("sort", sort);
        let others = self.parameters().into_iter();
        query.extend_pairs(others.filter(|(key, _)| *key != "sort"));
        query.finish()
    }

    /// The address of the page with this selection changed.
    pub(super) fn link(&self, change: impl FnOnce(&mut Self)) -> String {
        let mut other = self.clone();
        change(&mut other);
        let parameters = other.parameters();
        if parameters.is_empty() {
            return ".".into();
        }
        let mut query = form_urlencoded::Serializer::for_suffix("?".to_owned(), 1);
        query.extend_pairs(parameters);
        query.finish()
    }

    /// What a form has to send beside the text and the state to keep this selection.
    pub(super) fn beside_the_form(&self) -> Vec<(&'static str, String)> {
        let mut parameters = self.parameters();
        parameters.retain(|(key, _)| !matches!(*key, "q" | "state"));
        parameters
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let minus = if self.descending { "-" } else { "" };
        let is_default = self.sort == Sort::default() && !self.descending;
        let sort = (!is_default).then(|| format!("{minus}{}", self.sort.as_str()));
        let all = [
            ("sort", sort),
            ("state", Some(self.which.as_str().to_owned())),
            ("q", Some(self.text.clone())),
            ("namespace", self.namespace.clone()),
            ("name", self.name.clone()),
            ("issuer", self.issuer.clone()),
            ("within", self.within.as_ref().map(|it| it.text.clone())),
        ];
        let all = all.into_iter();
        let all = all.filter_map(|(key, value)| Some((key, value?)));
        all.filter(|(_, value)| !value.is_empty()).collect()
    }

    /// Whether a row is of the namespace and the issuer that are asked for.
    fn covers(&self, row: &Verdict) -> bool {
        let is = |asked: &Option<String>, value: &str| {
            { asked.as_deref() }.is_none_or(|asked| asked == value)
        };
        is(&self.namespace, &row.namespace) && is(&self.issuer, &row.issuer)
    }

    /// Whether a Secret is in the namespace, and has the name, that are asked for.
    pub(super) fn is_about(&self, key: &SecretRef) -> bool {
        let is = |asked: &Option<String>, value: &str| {
            { asked.as_deref() }.is_none_or(|asked| asked == value)
        };
        is(&self.namespace, &key.namespace) && is(&self.name, &key.name)
    }

    /// Whether a row ends as soon as is asked for.
    fn ends_in_time(&self, now: UnixTime, row: &Verdict) -> bool {
        self.within.as_ref().is_none_or(|it| it.takes(now, row))
    }

    fn takes(&self, now: UnixTime, row: &Verdict) -> bool {
        let holds = |text: &str| text.to_lowercase().contains(&self.text);
        let is = |asked: &Option<String>, value: &str| {
            { asked.as_deref() }.is_none_or(|asked| asked == value)
        };
        self.which.takes(row.state)
            && self.covers(row)
            && self.ends_in_time(now, row)
            && is(&self.name, &row.name)
            && (self.text.is_empty()
                || holds(&format!("{}/{}", row.namespace, row.name))
                || holds(&row.names.join(", "))
                || holds(&row.issuer)
                || row.used_by.as_ref().is_some_and(|it| holds(&it.in_words()))
                || row.problems.iter().any(|it| holds(it))
                || row.last_error.as_deref().is_some_and(holds))
    }
}

/// The values of `texts`.
fn texts(briefly: bool) -> &'static str {
    if briefly { "short" } else { "full" }
}

/// The value of a parameter, if it is one of those that there are.
fn one_of<T: Copy>(
    key: &str,
    value: &str,
    all: impl IntoIterator<Item = T>,
    name: fn(T) -> &'static str,
) -> Result<T, String> {
    let all: Vec<T> = all.into_iter().collect();
    let found = all.iter().copied().find(|it| name(*it) == value);
    found.ok_or_else(|| {
        let names = all.iter().map(|it| name(*it));
        let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
        format!("{key}: expected one of {}\n", names.join(", "))
    })
}

/// The certificates of a namespace, or of an issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: Box<str>,
    pub(super) total: usize,
    /// How many of them are in trouble.
    pub(super) trouble: usize,
}

/// The groups with most trouble, at most [`GROUPS`] of them.
fn groups(rows: &[Verdict], name: fn(&Verdict) -> &str) -> Vec<Group> {
    let mut counts: HashMap<&str, (usize, usize)> = HashMap::new();
    // An issuer that is not named cannot be asked for.
    for row in rows.iter().filter(|row| !name(row).is_empty()) {
        let (total, trouble) = counts.entry(name(row)).or_default();
        *total += 1;
        *trouble += usize::from(row.state.is_trouble());
    }
    let all = counts.into_iter().map(|(name, (total, trouble))| Group {
        name: name.into(),
        total,
        trouble,
    });
    let mut all: Vec<Group> = all.collect();
    all.sort_unstable_by(|one, other| {
        let trouble = other.trouble.cmp(&one.trouble);
        trouble.then_with(|| one.name.cmp(&other.name))
    });
    all.truncate(GROUPS);
    all
}

/// The answer to a query.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// For all certificates of the namespace and the issuer that are asked for, and that end as soon; the worst state
    /// first.
    pub(super) states: [usize; State::ALL.len()],
    /// For all certificates of the namespace and the issuer that are asked for: those that end within a month.
    pub(super) within_a_month: usize,
    /// For all certificates: those of each namespace.
    pub(super) namespaces: Vec<Group>,
    /// For all certificates: those of each issuer.
    pub(super) issuers: Vec<Group>,
    /// What is shown; as JSON, all of it.
    pub(super) report: Report,
}

/// Copies the verdicts on the index at `now`; `failures` gives the failures of a Secret in a row.
pub(super) fn copy(
    now: UnixTime,
    index: &Index,
    failures: &dyn Fn(&Observed) -> u32,
) -> Vec<Verdict> {
    index
        .iter()
        .filter_map(|(row, entry)| {
            let problems = index.problems(row);
            let beside = Beside {
                shown: index.shown(row),
                problems: problems.as_deref(),
                looked_up: index.looked_up(row),
                failures: failures(&entry.observed),
            };
            Some(Verdict::of(now, &index.key_of(row)?, &entry, beside))
        })
        .collect()
}

/// Adds to one row what is told of one Secret alone.
pub(super) fn detail(
    index: &Index,
    rows: &mut [Verdict],
    key: &SecretRef,
    remembered: &dyn Fn(&SecretRef, &Observed, &[Name]) -> Remembered,
) {
    let is_it = |it: &&mut Verdict| *it.namespace == *key.namespace && *it.name == *key.name;
    if let (Some(row), Some(found)) = (rows.iter_mut().find(is_it), index.row_of(key))
        && let Some((_, entry)) = index.row(found)
    {
        let names = row.names.iter().filter_map(|name| name.parse().ok());
        let names: Vec<Name> = names.collect();
        let remembered = remembered(key, &entry.observed, &names);
        row.detail = Detail::of_row(index, found, remembered).map(Box::new);
    }
}

/// Selects, sorts and cuts the rows, and adds them to the report.
pub(super) fn answer(report: Report, mut rows: Vec<Verdict>, query: &Query) -> Answer {
    let now = report.as_of;
    let (mut states, mut within_a_month) = ([0; State::ALL.len()], 0);
    let month = Within::a_month();
    for row in rows.iter().filter(|row| query.covers(row)) {
        states[row.state as usize] += usize::from(query.ends_in_time(now, row));
        within_a_month += usize::from(month.takes(now, row));
    }
    let namespaces = groups(&rows, |row| &row.namespace);
    let issuers = groups(&rows, |row| &row.issuer);
    rows.retain(|row| query.takes(now, row));
    let matching = rows.len();
    rows.sort_unstable_by(|one, other| {
        let order = query.sort.compare(one, other);
        if query.descending {
            order.reverse()
        } else {
            order
        }
    });
    budget::fewer(&mut rows, MOST);
    if query.briefly {
        budget::shorten(&mut rows);
    }
    budget::fit(&mut rows, query.briefly);
    let report = Report {
        matching,
        left_out: matching - rows.len(),
        certificates: rows,
        ..report
    };
    Answer {
        states,
        within_a_month,
        namespaces,
        issuers,
        report,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use cert_renew_core::testing::entries;
    use cert_renew_core::verdict::Leader;
    use cert_renew_core::verdict::unmanaged::Unmanaged;

    use super::*;

    /// A report without certificates.
    pub(in super::super) fn report() -> Report {
        Report {
            version: None,
            class: None,
            operator_namespace: None,
            replica: Some("pod-<1>".into()),
            leader: Leader::default(),
            as_of: entries::NOW,
            notices: Vec::new(),
            unmanaged: Unmanaged::default(),
            matching: 0,
            left_out: 0,
            certificates: Vec::new(),
        }
    }

    fn names(query: &str) -> Vec<String> {
        let rows = copy(entries::NOW, &entries::index(), &|_| 2);
        let answer = answer(report(), rows, &Query::parse(query).unwrap());
        let rows = answer.report.certificates.iter();
        rows.map(|row| row.name.to_string()).collect()
    }

    #[test]
    fn the_worst_stands_first_and_the_query_narrows() {
        let all = names("");
        assert_eq!(
            all[..5],
            ["expired", "failing", "absent", "garbled", "expiring"]
        );
        assert_eq!(names("q=SHOP%2Fpau"), ["paused"]);
        assert_eq!(names("q=c%0Ad"), ["odd"], "the issuer is searched too");
        assert_eq!(names("q=statefulset/DB"), ["healthy"], "and who uses it");
        assert_eq!(names("state=due"), ["due"]);
        assert_eq!(names("state=trouble").len(), 10);
        assert_eq!(names("state=&x=y").len(), all.len());
        assert_eq!(names("namespace=shop").len(), all.len());
        assert_eq!(names("namespace=sho").len(), 0);
        assert_eq!(names("namespace=shop&name=held"), ["held"]);
        assert_eq!(names("issuer=nobody").len(), 0);
        assert_eq!(
            names("q=KEY-type"),
            ["odd"],
            "the problems are searched too"
        );
        assert_eq!(names("sort=secret")[0], "absent");
        assert_eq!(names("sort=-secret")[0], "windowed");
        assert_eq!(names("sort=ends")[..2], ["expired", "expiring"]);
    }

    #[test]
    fn what_ends_soon_is_selected_and_counted() {
        let soon = names("within=30d&sort=ends");
        assert_eq!(soon[..3], ["expired", "expiring", "six-days"]);
        assert!(soon.contains(&"due".into()) && !soon.contains(&"healthy".into()));
        // Nobody knows when what holds no certificate ends.
        assert!(!soon.contains(&"absent".into()));
        assert_eq!(names("within=5d&sort=ends"), soon[..3]);
        assert_eq!(names("within="), names(""));
        let rows = copy(entries::NOW, &entries::index(), &|_| 2);
        let query = Query::parse("within=5d&q=nothing").unwrap();
        let answer = answer(report(), rows, &query);
        assert_eq!(answer.states.iter().sum::<usize>(), 3);
        assert_eq!(answer.within_a_month, soon.len());
        assert_eq!(query.sorted("ends"), "sort=ends&q=nothing&within=5d");
    }

    #[test]
    fn a_query_that_is_no_text_is_no_trouble() {
        for hostile in ["%", "q=%ff%fe", "q=%00", "&&&=", "name=%ff"] {
            let _ = names(hostile);
        }
    }

    #[test]
    fn the_groups_count_all_and_those_in_trouble_stand_first() {
        let mut rows = copy(entries::NOW, &entries::index(), &|_| 2);
        let trouble = rows.iter().filter(|row| row.state.is_trouble()).count();
        let (all, mut quiet) = (rows.len(), rows[0].clone());
        (quiet.namespace, quiet.state) = ("a".into(), State::Ok);
        rows.push(quiet);
        let query = Query::parse("namespace=a").unwrap();
        let answer = answer(report(), rows, &query);
        let group = |name: &str, total, trouble| Group {
            name: name.into(),
            total,
            trouble,
        };
        assert_eq!(
            answer.namespaces,
            [group("shop", all, trouble), group("a", 1, 0)]
        );
        assert_eq!(answer.report.matching, 1);
        assert_eq!(query.sorted("-ends"), "sort=-ends&namespace=a");
    }

    #[test]
    fn what_is_no_state_and_no_column_is_refused_and_those_that_there_are_are_named() {
        for (query, expected) in [
            (
                "state=zzz",
                "state: expected one of trouble, expired, renewal_failing, ",
            ),
            ("state=%F0%9F", "state: expected one of "),
            ("sort=zzz", "sort: expected one of secret, state, "),
            ("sort=--", "sort: expected one of "),
            ("within=soon", "within: expected a duration such as 30d"),
        ] {
            let refused = Query::parse(query).unwrap_err();
            assert!(refused.starts_with(expected), "{query}: {refused}");
        }
    }
}

//! Which workloads use a Secret and whether they have its certificate, according to the last rollout.
//!
//! Written beside `rolled-out`, in the same patch, and read by people: in the Secret's description, on the status page
//! and by `cert-renew status`. It decides one thing: a workload that an earlier look found unhealthy before the rollout
//! neither halts the others nor is reported again. So a forged value misleads its reader, and lets the other workloads
//! of this one Secret be rolled, which `cert-renew resume` does too. Pure; a value that cannot be read counts as
//! absent.

use std::fmt;
use std::str::FromStr;

use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::secret::settings::ServicePort;
use crate::secret::state::Foreign;
use crate::secret::workload::WorkloadRef;
use crate::time::UnixTime;

/// Most workloads that are named; the rest is a number.
const NAMED: usize = 8;
/// Most workloads named that were unhealthy before, as the next look needs them.
const UNWELL: usize = 64;
/// Most bytes of workloads that people are shown of one Secret: users who may edit it can write long names.
const SHOWN: usize = 1024;

/// Value of [`crate::secret::keys::USED_BY`], words with blanks between: an instant, the workloads (`deployment/web`,
/// or `deployment/web=failed`, `deployment/web=lacks:<instant>`), the number of others (`+3`), what was verified behind
/// a Service (`web:443=2/3`). Words of a later version are skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedBy {
    /// When it was observed.
    pub at: UnixTime,
    /// The first few, those with problems first.
    pub workloads: Vec<(WorkloadRef, Has)>,
    /// Number of other workloads.
    pub more: usize,
    /// What pods were seen to serve, if the Secret asks for it.
    pub proven: Option<Proven>,
}

/// The state of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Has {
    /// It did not take up the certificate.
    Failed,
    /// Since this instant pods without the certificate are left: it was unhealthy before, or holds pods back.
    Lacks(UnixTime),
    /// It has the former certificate: the rollout was halted before its turn.
    Kept,
    /// It has the certificate, but was not available before the rollout, nor after it.
    Unavailable,
    /// It has the certificate.
    It,
}

/// What the pods behind a Service were seen to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The Service and its port.
    pub service: ServicePort,
    /// Pods that serve the certificate.
    pub served: usize,
    /// Pods that were probed. It is unknown what the others serve.
    pub asked: usize,
}

impl Has {
    /// A word, for JSON and people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Lacks(_) => "lacks",
            Self::Kept => "kept",
            Self::Unavailable => "unavailable",
            Self::It => "has",
        }
    }

    /// What follows the workload's name in a sentence.
    #[must_use]
    pub fn in_words(self) -> String {
        match self {
            Self::Failed => "did not take it up".into(),
            Self::Lacks(since) => format!("has pods without it since {since}"),
            Self::Kept => "keeps the former one".into(),
            Self::Unavailable => "has it, and is not available".into(),
            Self::It => "has it".into(),
        }
    }

    /// Since when the workload lacks the certificate.
    #[must_use]
    pub fn lacks_since(self) -> Option<UnixTime> {
        match self {
            Self::Lacks(since) => Some(since),
            _ => None,
        }
    }

    fn read(value: &str) -> Self {
        if let Some(since) = value.strip_prefix("lacks:").and_then(|at| at.parse().ok()) {
            return Self::Lacks(since);
        }
        let known = [Self::Failed, Self::Kept, Self::Unavailable].into_iter();
        { known }
            .find(|has| has.as_str() == value)
            .unwrap_or(Self::It)
    }
}

impl UsedBy {
    /// The value for these workloads; `None` if there are none.
    #[must_use]
    pub fn new(
        at: UnixTime,
        mut workloads: Vec<(WorkloadRef, Has)>,
        proven: Option<Proven>,
    ) -> Option<Self> {
        if workloads.is_empty() {
            return None;
        }
        workloads.sort_by(|(one, had), (other, has)| (had, one).cmp(&(has, other)));
        // Sorted before those that have it.
        let trouble = workloads.iter().filter(|(_, has)| *has != Has::It).count();
        let named = trouble.clamp(NAMED, UNWELL);
        let more = workloads.len().saturating_sub(named);
        workloads.truncate(named);
        Some(Self {
            at,
            workloads,
            more,
            proven,
        })
    }

    /// Bytes in memory, without the allocator's overhead.
    #[must_use]
    pub fn weight(&self) -> usize {
        let workloads = self.workloads.iter();
        let workloads = workloads.map(|(it, _)| size_of::<(WorkloadRef, Has)>() + it.name.len());
        size_of::<Self>() + workloads.sum::<usize>()
    }

    /// What people are shown of it: the first few workloads, at most [`NAMED`] and [`SHOWN`] bytes; the others are
    /// counted.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        let mut bytes = 0;
        let fits = |(workload, _): &&(WorkloadRef, Has)| {
            bytes += workload.to_string().len();
            bytes <= SHOWN
        };
        let named = self.workloads.iter().take(NAMED).take_while(fits).count();
        let others = self.workloads.len() - named;
        self.more = self.more.saturating_add(others);
        self.workloads.truncate(named);
        self
    }

    /// The same with no workload named.
    #[must_use]
    pub fn counted(mut self) -> Self {
        self.more = self.more.saturating_add(self.workloads.len());
        self.workloads.clear();
        self
    }

    /// Since when a workload lacks the certificate.
    #[must_use]
    pub fn lacks_since(&self, workload: &WorkloadRef) -> Option<UnixTime> {
        let mut all = self.workloads.iter();
        all.find(|(it, _)| it == workload)?.1.lacks_since()
    }

    /// The workloads that were unhealthy before the rollout.
    pub fn unwell(&self) -> impl Iterator<Item = &WorkloadRef> {
        let unwell = |has: &Has| matches!(has, Has::Lacks(_) | Has::Unavailable);
        let all = self.workloads.iter().filter(move |(_, has)| unwell(has));
        all.map(|(workload, _)| workload)
    }

    /// The workloads in words: `deployment/web, deployment/api (failed) and 3 more`.
    #[must_use]
    pub fn in_words(&self) -> String {
        let named = self.workloads.iter().map(|(workload, has)| match has {
            Has::It => workload.to_string(),
            Has::Lacks(since) => format!("{workload} (lacks it since {since})"),
            has => format!("{workload} ({})", has.as_str()),
        });
        let named = named.collect::<Vec<_>>().join(", ");
        match self.more {
            0 => named,
            more if named.is_empty() => format!("{more} workloads"),
            more => format!("{named} and {more} more"),
        }
    }
}

impl Proven {
    /// For example `2 of 3 pods behind web:443 serve it`.
    #[must_use]
    pub fn in_words(&self) -> String {
        let Self {
            service,
            served,
            asked,
        } = self;
        let s = if *asked == 1 { "" } else { "s" };
        let verb = if *served == 1 { "serves" } else { "serve" };
        format!("{served} of {asked} pod{s} behind {service} {verb} it")
    }
}

impl fmt::Display for UsedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.at)?;
        for (workload, has) in &self.workloads {
            match has {
                Has::It => write!(f, " {workload}")?,
                Has::Lacks(since) => write!(f, " {workload}=lacks:{since}")?,
                has => write!(f, " {workload}={}", has.as_str())?,
            }
        }
        if self.more > 0 {
            write!(f, " +{}", self.more)?;
        }
        if let Some(Proven {
            service,
            served,
            asked,
        }) = &self.proven
        {
            write!(f, " {service}={served}/{asked}")?;
        }
        Ok(())
    }
}

impl FromStr for UsedBy {
    type Err = Foreign;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut words = s.split(' ');
        let at = words.next().and_then(|at| at.parse().ok()).ok_or(Foreign)?;
        let mut used = Self {
            at,
            workloads: Vec::new(),
            more: 0,
            proven: None,
        };
        // A value written by hand may be long.
        for word in words.take(UNWELL + 2) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            if let Some(more) = word.strip_prefix('+') {
                used.more = more.parse().map_err(|_| Foreign)?;
            } else if let Ok(workload) = name.parse() {
                used.workloads.push((workload, Has::read(value)));
            } else if let Ok(service) = name.parse()
                && let Some((served, asked)) = value.split_once('/')
            {
                used.proven = Some(Proven {
                    service,
                    served: served.parse().map_err(|_| Foreign)?,
                    asked: asked.parse().map_err(|_| Foreign)?,
                });
            }
        }
        Ok(used)
    }
}

/// The same facts as in the annotation, as named fields.
impl Serialize for UsedBy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct One {
            workload: String,
            state: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            since: Option<String>,
        }
        #[derive(Serialize)]
        struct Behind {
            service: String,
            served: usize,
            asked: usize,
        }
        let one = |(workload, has): &(WorkloadRef, Has)| One {
            workload: workload.to_string(),
            state: has.as_str(),
            since: has.lacks_since().map(|since| since.to_string()),
        };
        let behind = |proven: &Proven| Behind {
            service: proven.service.to_string(),
            served: proven.served,
            asked: proven.asked,
        };
        let mut fields = serializer.serialize_struct("UsedBy", 4)?;
        fields.serialize_field("asOf", &self.at.to_string())?;
        let workloads: Vec<One> = self.workloads.iter().map(one).collect();
        fields.serialize_field("workloads", &workloads)?;
        fields.serialize_field("more", &self.more)?;
        fields.serialize_field("proven", &self.proven.as_ref().map(behind))?;
        fields.end()
    }
}

/// From those fields; what a later version names is skipped.
impl<'de> Deserialize<'de> for UsedBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct One {
            workload: String,
            state: String,
            since: Option<UnixTime>,
        }
        #[derive(Deserialize)]
        struct Behind {
            service: String,
            served: usize,
            asked: usize,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields {
            as_of: UnixTime,
            workloads: Vec<One>,
            more: usize,
            proven: Option<Behind>,
        }
        let fields = Fields::deserialize(deserializer)?;
        let one = |it: One| {
            let has = match it.since {
                Some(since) => Has::Lacks(since),
                None => Has::read(&it.state),
            };
            Some((it.workload.parse().ok()?, has))
        };
        Ok(Self {
            at: fields.as_of,
            workloads: fields.workloads.into_iter().filter_map(one).collect(),
            more: fields.more,
            proven: fields.proven.and_then(|it| {
                Some(Proven {
                    service: it.service.parse().ok()?,
                    served: it.served,
                    asked: it.asked,
                })
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_700_000_000);

    fn workload(name: &str) -> WorkloadRef {
        format!("deployment/{name}").parse().unwrap()
    }

    #[test]
    fn it_comes_back_as_it_was_written() {
        for text in [
            "2023-11-14T22:13:20Z deployment/web",
            "2023-11-14T22:13:20Z deployment/api=failed statefulset/db=kept deployment/web",
            "2023-11-14T22:13:20Z statefulset/db=lacks:2023-11-14T20:00:00Z deployment/api=unavailable deployment/web",
            "2023-11-14T22:13:20Z deployment/web +3 web:443=2/3",
        ] {
            let used: UsedBy = text.parse().unwrap();
            assert_eq!(used.to_string(), text);
            let json = serde_json::to_string(&used).unwrap();
            assert_eq!(serde_json::from_str::<UsedBy>(&json).unwrap(), used);
        }
    }

    #[test]
    fn those_in_trouble_are_named_and_the_others_counted() {
        let mut workloads: Vec<_> = (0..12)
            .map(|number| (workload(&format!("w{number:02}")), Has::It))
            .collect();
        workloads[11].1 = Has::Failed;
        let used = UsedBy::new(NOW, workloads, None).unwrap();
        assert_eq!((used.workloads.len(), used.more), (8, 4));
        let words = used.in_words();
        assert!(
            words.starts_with("deployment/w11 (failed), deployment/w00, ")
                && words.ends_with(" and 4 more"),
            "{words}"
        );
        assert_eq!(UsedBy::new(NOW, Vec::new(), None), None);
    }

    #[test]
    fn people_are_shown_few_workloads_and_few_bytes_and_none_is_lost() {
        let written = |name: &str, more: usize| {
            let all = format!(" deployment/{name}").repeat(64);
            format!("2023-11-14T22:13:20Z{all} +{more}")
        };
        let shown = |text: &str| text.parse::<UsedBy>().unwrap().shortened();
        let short = shown(&written("web", 3));
        assert_eq!((short.workloads.len(), short.more), (8, 59));
        let long = shown(&written(&"w".repeat(253), 0));
        assert_eq!((long.workloads.len(), long.more), (3, 61));
        assert!(long.to_string().len() < SHOWN + 64);
        let most = shown(&written("web", usize::MAX));
        assert_eq!(most.more, usize::MAX);
    }

    #[test]
    fn words_of_a_later_version_are_passed_over_and_a_foreign_value_is_absent() {
        let newer = "2023-11-14T22:13:20Z deployment/web=warm fleet/web <b> rev:7";
        let used: UsedBy = newer.parse().unwrap();
        assert_eq!(used.to_string(), "2023-11-14T22:13:20Z deployment/web");
        for foreign in ["", "deployment/web", "now", "2023-11-14T22:13:20Z +x"] {
            assert_eq!(foreign.parse::<UsedBy>(), Err(Foreign), "{foreign}");
        }
        let many = format!("2023-11-14T22:13:20Z{}", " deployment/web".repeat(1_000));
        assert!(many.parse::<UsedBy>().unwrap().workloads.len() <= UNWELL + 2);
    }
}

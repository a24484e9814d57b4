//! What is told of one Secret alone, beyond its verdict: its chain, its issuer's limits, the pods that were asked, the last
//! renewals, what is under way, and what was told lately.
//!
//! Nothing is stored for it: each part is read from the certificate, the annotations, the ledger, or what the replica that
//! leads remembers since it leads.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::assess;
use crate::certificate::above::Link;
use crate::index::{Entry, Index, Row};
use crate::schedule::rate_limits::Usage;
use crate::secret::used_by::UsedBy;
use crate::time::UnixTime;
use crate::time::duration::human;

/// An Event this near to a moment that is known otherwise tells of the same.
const SAME: Duration = Duration::from_secs(60);
/// Most moments of the past that are told, the latest.
const MOMENTS: usize = 12;

/// What is told of one Secret where it alone is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Detail {
    /// The certificates of its file, the leaf first; empty where they are not kept.
    pub chain: Vec<Link>,
    /// When cert-renew last wrote a certificate into it; none where it never has.
    pub renewed: Option<UnixTime>,
    /// What is done about it now.
    pub under_way: Option<UnderWay>,
    /// The limits of its issuer, as the operator counts them for its names; none where another replica leads.
    pub limits: Option<Vec<Limit>>,
    /// Its pods, as the last rollout asked them; none where none was asked since the replica leads.
    pub pods: Option<Pods>,
    /// Its last renewals and rollouts, as far as they are known, the latest last.
    pub past: Vec<Moment>,
    /// The last Events about it that the replica has published, the latest last; none where another one leads.
    pub events: Option<Vec<Told>>,
}

/// A limit that counts for the names of one Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Which: `orders`, `certificates`, `unscheduled` or `validations`, which are counted here; `ca` for one that the CA
    /// has named itself.
    pub what: Box<str>,
    /// What it is about: an issuer, or a name.
    pub of: Box<str>,
    /// How many are used of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<usize>,
    /// How many it allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<usize>,
    /// The span in which they are counted, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_seconds: Option<u64>,
    /// When one is free again, where all are used; when the CA's own limit ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixTime>,
}

impl Limit {
    /// One that is counted here.
    #[must_use]
    pub fn counted(what: &str, of: &str, usage: Usage) -> Self {
        let Usage {
            used,
            most,
            within,
            until,
        } = usage;
        Self {
            what: what.into(),
            of: of.into(),
            used: Some(used),
            most: Some(most),
            within_seconds: Some(within.as_secs()),
            until,
        }
    }

    /// One that the CA has named.
    #[must_use]
    pub fn of_the_ca(of: &str, until: UnixTime) -> Self {
        Self {
            what: "ca".into(),
            of: of.into(),
            used: None,
            most: None,
            within_seconds: None,
            until: Some(until),
        }
    }

    /// In words; the instant is told apart.
    #[must_use]
    pub fn in_words(&self) -> String {
        let Self { what, of, .. } = self;
        let (Some(used), Some(most)) = (self.used, self.most) else {
            return format!("the CA takes no orders for {of}");
        };
        let within = self.within_seconds.unwrap_or_default();
        let within = human(Duration::from_secs(within));
        let what = match &**what {
            "orders" => format!("orders of issuer {of}"),
            "certificates" => "certificates for these names".into(),
            "unscheduled" => "certificates for these names that no clock asked for".into(),
            "validations" => format!("failed validations of {of}"),
            other => other.to_owned(),
        };
        format!("{used} of {most} {what} within {within}")
    }
}

/// The pods behind the Service of `cert-renew.io/verify`, as they were asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pods {
    /// When.
    pub at: UnixTime,
    /// The Service, with its port.
    pub service: Box<str>,
    /// The first of them: what helps to find one that lags comes first.
    pub asked: Vec<Pod>,
    /// Number of pods beside those.
    pub more: usize,
}

/// A pod that was asked what it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its name; the Service's where it leads to no pod.
    pub name: Box<str>,
    /// What it serves.
    pub serves: Serves,
    /// Why that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Box<str>>,
}

/// What a pod serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Serves {
    /// An earlier certificate.
    Earlier,
    /// That is not known.
    Unknown,
    /// The one that the Secret held then.
    It,
}

impl Pod {
    /// What it serves, in words.
    #[must_use]
    pub fn in_words(&self) -> String {
        match (self.serves, &self.why) {
            (Serves::It, _) => "serves it".into(),
            (Serves::Earlier, _) => "serves an earlier one".into(),
            (Serves::Unknown, Some(why)) => format!("not known: {why}"),
            (Serves::Unknown, None) => "not known".into(),
        }
    }
}

/// Something that has happened to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// When.
    pub at: UnixTime,
    /// What, in words.
    pub what: Box<str>,
    /// By what that is known: `certificate`, `secret` (its annotations), `ledger` or `event`.
    pub by: Box<str>,
}

impl Moment {
    /// Something that has happened.
    #[must_use]
    pub fn new(at: UnixTime, what: &str, by: &str) -> Self {
        Self {
            at,
            what: what.into(),
            by: by.into(),
        }
    }

    /// By what it is known, in words.
    #[must_use]
    pub fn by_in_words(&self) -> &str {
        match &*self.by {
            "certificate" => "by the certificate",
            "secret" => "by the Secret's annotations",
            "ledger" => "by the failure history",
            "event" => "by an Event",
            other => other,
        }
    }
}

/// Work on a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnderWay {
    /// `renewal`, `order` (open at the CA, and nobody works on it now) or `rollout`.
    pub what: Box<str>,
    /// The last step that ended, by its name in the log.
    pub step: Option<LastStep>,
}

/// A step that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastStep {
    /// Its name in the log.
    pub name: Box<str>,
    /// When it ended.
    pub at: UnixTime,
    /// URL of the order at the CA.
    pub order: Option<Box<str>>,
}

/// An Event that was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// When.
    pub at: UnixTime,
    /// `Normal` or `Warning`.
    pub kind: Box<str>,
    /// Its reason.
    pub reason: Box<str>,
    /// What it says.
    pub message: Box<str>,
}

/// What the process remembers of a Secret beside the index.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    /// The last step that ended.
    pub step: Option<LastStep>,
    /// The last Events about it; none where this replica does not lead.
    pub events: Option<Vec<Told>>,
    /// The limits of its issuer; likewise.
    pub limits: Option<Vec<Limit>>,
    /// Its pods, as they were asked last.
    pub pods: Option<Pods>,
    /// What the ledger has of its names.
    pub past: Vec<Moment>,
}

impl Detail {
    /// Of a row of the index.
    #[must_use]
    pub fn of_row(index: &Index, row: Row, remembered: Remembered) -> Option<Self> {
        let (_, entry) = index.row(row)?;
        let shown = index.shown(row);
        let chain = shown.zip(entry.observed.leaf.ok()).and_then(|(it, leaf)| {
            let (names, _) = assess::unlisted(&it.names);
            let name = names.first().map_or("", |name| name);
            Some(it.chain.as_ref()?.links(name, leaf.not_after))
        });
        let Remembered {
            step,
            events,
            limits,
            pods,
            mut past,
        } = remembered;
        let used_by = shown.and_then(|it| it.used_by.as_deref()?.parse().ok());
        past.extend(known_past(&entry, used_by.as_ref()));
        for told in events.iter().flatten().filter_map(Told::moment) {
            // What ledger or Secret have of the same is kept longer.
            let is_known = |it: &Moment| {
                it.what == told.what && it.at.since(told.at).max(told.at.since(it.at)) <= SAME
            };
            if !past.iter().any(is_known) {
                past.push(told);
            }
        }
        past.sort_by_key(|it| it.at);
        let early = past.len().saturating_sub(MOMENTS);
        Some(Self {
            limits,
            pods,
            past: past.split_off(early),
            chain: chain.unwrap_or_default(),
            renewed: entry.observed.renewed,
            under_way: under_way(&entry).map(|what| UnderWay {
                what: what.into(),
                step,
            }),
            events,
        })
    }
}

/// What certificate and annotations tell of the past.
fn known_past(entry: &Entry, used_by: Option<&UsedBy>) -> Vec<Moment> {
    let leaf = entry.observed.leaf.ok();
    let begins = leaf.map(|leaf| {
        let what = "the certificate begins to be valid";
        Moment::new(leaf.not_before, what, "certificate")
    });
    let renewed = entry.observed.renewed;
    let renewed = renewed.map(|at| Moment::new(at, "a new certificate was written", "secret"));
    let seen =
        used_by.map(|it| Moment::new(it.at, "what the workloads have was recorded", "secret"));
    [begins, renewed, seen].into_iter().flatten().collect()
}

impl Told {
    /// As a moment of the past, if it tells how a renewal or a rollout went.
    #[must_use]
    pub fn moment(&self) -> Option<Moment> {
        let what = match &*self.reason {
            "Renewed" => "a new certificate was written",
            "RenewalFailed" => "a renewal failed",
            "RolledOut" => "the rollout was done",
            "RolloutFailed" => "a step of the rollout failed",
            "RolloutHalted" => "the rollout was halted",
            _ => return None,
        };
        Some(Moment::new(self.at, what, "event"))
    }
}

fn under_way(entry: &Entry) -> Option<&'static str> {
    if entry.renewing.is_some() {
        Some("renewal")
    } else if entry.order_open {
        Some("order")
    } else {
        entry.rolling.is_some().then_some("rollout")
    }
}

impl UnderWay {
    /// In words.
    #[must_use]
    pub fn in_words(&self) -> &str {
        match &*self.what {
            "renewal" => "a renewal is under way",
            "order" => "an order is open at the CA",
            "rollout" => "a rollout is under way",
            other => other,
        }
    }
}

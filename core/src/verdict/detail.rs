//! What is told of one Secret alone, beyond its verdict: its chain, what is under way, and what was told lately.

use serde::{Deserialize, Serialize};

use crate::assess;
use crate::certificate::above::Link;
use crate::index::{Entry, Index, Row};
use crate::time::UnixTime;

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
    /// The last Events about it that the replica has published, the latest last; none where another one leads.
    pub events: Option<Vec<Told>>,
}

/// Work on a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnderWay {
    /// `renewal`, `order` (open at the CA, and nobody works on it now) or `rollout`.
    pub what: Box<str>,
    /// The last step that ended, by its name in the log.
    pub step: Option<Step>,
}

/// A step that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
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
    pub step: Option<Step>,
    /// The last Events about it; none where this replica does not lead.
    pub events: Option<Vec<Told>>,
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
        let Remembered { step, events } = remembered;
        Some(Self {
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

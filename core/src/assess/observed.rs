//! What the index and people keep of an assessment.

use std::sync::Arc;

use super::{Assessment, EXTERNAL, facts};
use crate::certificate::{Leaf, Unreadable};
use crate::index::{NoLeaf, Observed, Shown};
use crate::schedule::due::{AriPolicy, Never, Suggestion};
use crate::secret::SecretRef;
use crate::secret::data::data_keys::TLS_TYPE;
use crate::secret::declared::DeclaredBy;
use crate::secret::keys;
use crate::secret::object::head::Head;
use crate::secret::object::thin::{CertificateState, ThinSecret};
use crate::secret::parts::ChainAndCa;
use crate::secret::settings::{Blocks, IssuerRef};
use crate::secret::used_by::UsedBy;
use crate::text::hash::hash;
use crate::text::name::Name;

/// Most bytes of names that the status page shows of one certificate; some have a hundred names.
const MOST_NAMES: usize = 160;
/// Longest URL of an account that is kept.
const LONGEST_ACCOUNT: usize = 256;
/// Longest text about since when a Secret is in its state: the longest state and an instant.
const LONGEST_SINCE: usize = 40;
/// Most problems of one Secret that are told: a Secret may have thousands of annotations.
const MOST_TOLD: usize = 10;
/// Precedes the number of names that are left out.
const AND: &str = " and ";
/// Follows it.
const MORE: &str = " more";

impl Assessment {
    /// The texts of the first problems.
    #[must_use]
    pub fn problem_texts(&self) -> Vec<String> {
        let told = self.problems.iter().take(MOST_TOLD);
        told.map(ToString::to_string).collect()
    }

    /// What people are shown of the Secret beside its state.
    #[must_use]
    pub fn shown(&self, head: &Head) -> Shown {
        let used_by = head.annotation(keys::USED_BY);
        let used_by = used_by.and_then(|text| text.parse::<UsedBy>().ok());
        let key = SecretRef::new(head.namespace(), head.name());
        let account = { self.issued_by.as_ref() }.and_then(|by| by.account.as_deref());
        Shown {
            names: self.listed_names(),
            used_by: used_by.map(|used_by| used_by.shortened().to_string().into()),
            account: account
                .filter(|it| it.len() <= LONGEST_ACCOUNT)
                .map(Into::into),
            // That of another Secret says nothing of its copy.
            since: head
                .annotation(keys::SINCE)
                .filter(|it| it.len() <= LONGEST_SINCE && !self.copied_record)
                .map(Into::into),
            chain: None,
            declared: DeclaredBy::read(&key, head).map(Box::new),
        }
    }

    /// The names for the status page, comma-separated: those in the certificate, or those to ask for if there is none.
    #[must_use]
    pub fn listed_names(&self) -> Box<str> {
        let names = match &self.leaf {
            Ok(leaf) => &leaf.names,
            Err(_) => &self.names,
        };
        listed(names)
    }

    /// What the index keeps of the Secret.
    #[must_use]
    pub fn observed(&self, uid: &str, resource_version: &str) -> Observed {
        let leaf = match &self.leaf {
            Ok(leaf) => Ok(facts(leaf, self.with)),
            Err(Unreadable::Empty) => Err(NoLeaf::Absent),
            Err(_) => Err(NoLeaf::Unreadable),
        };
        let texts: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        Observed {
            uid: uid.into(),
            resource_version: resource_version.into(),
            issuer: match &self.settings.issuer {
                IssuerRef::External => EXTERNAL.into(),
                IssuerRef::Named(name) => Arc::clone(name),
            },
            leaf,
            rolled_out: self.rolled_out,
            renewal: self.renewal,
            heed: self.heed,
            suggestion: Suggestion::Unasked,
            window: self.opens,
            account: self.account,
            wish: self.wish(),
            rollout_blocked: self.rollout_blocked,
            pauses_itself: self.pauses_itself,
            blocked: self.blocked,
            held_until: self.held_until,
            copied_record: self.copied_record,
            halted: self.halted.as_ref().is_some_and(|note| !note.resumed),
            renewed: self.issued_by.as_ref().and_then(|by| Some(by.written?.1)),
            problems: u16::try_from(texts.len()).unwrap_or(u16::MAX),
            problem_texts: if texts.is_empty() {
                0
            } else {
                hash(&texts.join("\n"))
            },
        }
    }
}

/// What the index keeps of a Secret without annotations, for `watch.observe: all`: validity and names.
/// Nothing is ever due for it, neither a renewal nor a rollout.
#[must_use]
pub fn bystander(secret: &ThinSecret) -> Option<(Observed, Leaf)> {
    let head = &secret.head;
    let CertificateState::Leaf(leaf) = secret.certificate() else {
        return None;
    };
    if head.deleting || secret.kind != TLS_TYPE {
        return None;
    }
    let observed = Observed {
        uid: head.uid().into(),
        resource_version: head.resource_version().into(),
        issuer: "".into(),
        leaf: Ok(facts(&leaf, ChainAndCa::NONE)),
        rolled_out: None,
        renewal: Err(Never::NotAnnotated),
        heed: AriPolicy::Nothing,
        suggestion: Suggestion::None,
        window: None,
        account: 0.into(),
        wish: None,
        rollout_blocked: true,
        pauses_itself: false,
        blocked: Blocks::Nothing,
        held_until: None,
        copied_record: false,
        halted: false,
        renewed: None,
        problems: 0,
        problem_texts: 0,
    };
    Some((observed, *leaf))
}

/// Names for the status page, comma-separated and cut where there are very many.
#[must_use]
pub fn listed(names: &[Name]) -> Box<str> {
    let mut list = String::new();
    for (number, name) in names.iter().enumerate() {
        if list.len() >= MOST_NAMES {
            list += &format!("{AND}{}{MORE}", names.len() - number);
            break;
        }
        if number > 0 {
            list.push_str(", ");
        }
        list += &name.to_string();
    }
    list.into()
}

/// The names in a text of [`listed`], and the number of those that were left out.
#[must_use]
pub fn unlisted(list: &str) -> (Vec<Box<str>>, usize) {
    let cut = list.strip_suffix(MORE).and_then(|it| it.rsplit_once(AND));
    let cut = cut.and_then(|(names, more)| Some((names, more.parse().ok()?)));
    let (names, more) = cut.unwrap_or((list, 0));
    let names = names.split(", ").filter(|name| !name.is_empty());
    (names.map(Into::into).collect(), more)
}

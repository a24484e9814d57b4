//! How many declarations of a namespace are followed: the oldest ones, as many as there is room for.
//!
//! Which they are does not depend on the order in which they are seen, except that one is taken up only by the next list
//! where an older one has gone. Of the others nothing is kept but that there are some.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Brief, Source};
use crate::time::UnixTime;

/// Most declarations of a namespace that are followed. Each takes about a kilobyte, and whoever may write ConfigMaps can
/// make any number of them; a namespace with so many certificates is not known.
pub const MOST_OF_NAMESPACE: usize = 5_000;

/// Something that is not followed, because its namespace has too many declarations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The declaration by which there were too many.
    pub by: Source,
    /// Its uid.
    pub uid: Box<str>,
    /// The one that is not followed: the youngest.
    pub refused: Source,
}

/// The declarations that are followed, by namespace.
#[derive(Debug, Default)]
pub(super) struct Room(HashMap<Arc<str>, Place>);

#[derive(Debug, Default)]
struct Place {
    /// By age.
    followed: BTreeSet<(UnixTime, Source)>,
    /// The last one that had no room since the list began.
    refusal: Option<Refusal>,
    /// Whether that there are such is reported.
    is_told: bool,
}

impl Room {
    /// Takes in a declaration that is not followed yet; the one that has no room then, which may be this one.
    pub(super) fn admit(
        &mut self,
        namespace: &Arc<str>,
        brief: &Brief,
        uid: &str,
    ) -> Option<Source> {
        let place = self.0.entry(Arc::clone(namespace)).or_default();
        place.followed.insert((brief.created, brief.source.clone()));
        if place.followed.len() <= MOST_OF_NAMESPACE {
            return None;
        }
        let (_, refused) = place.followed.pop_last()?;
        place.refusal = Some(Refusal {
            namespace: Arc::clone(namespace),
            by: brief.source.clone(),
            uid: uid.into(),
            refused: refused.clone(),
        });
        Some(refused)
    }

    /// Whether there are declarations of a namespace that are not followed.
    pub(super) fn leaves_out(&self, namespace: &str) -> bool {
        { self.0.get(namespace) }.is_some_and(|place| place.refusal.is_some())
    }

    /// One is not followed any more.
    pub(super) fn leave(&mut self, namespace: &str, brief: &Brief) {
        let Some(place) = self.0.get_mut(namespace) else {
            return;
        };
        place
            .followed
            .remove(&(brief.created, brief.source.clone()));
        if place.followed.is_empty() && place.refusal.is_none() {
            self.0.remove(namespace);
        }
    }

    /// A list begins there: it names what has no room once more.
    pub(super) fn begin(&mut self, is_here: impl Fn(&str) -> bool) {
        let here = self
            .0
            .iter_mut()
            .filter(|(namespace, _)| is_here(namespace));
        here.for_each(|(_, place)| place.refusal = None);
    }

    /// A list has ended there.
    pub(super) fn listed(&mut self, is_here: impl Fn(&str) -> bool) {
        self.0.retain(|namespace, place| {
            if is_here(namespace) {
                place.is_told &= place.refusal.is_some();
            }
            !place.followed.is_empty() || place.refusal.is_some()
        });
    }

    /// Forgets namespaces that nothing lists any more.
    pub(super) fn keep(&mut self, is_listed: impl Fn(&str) -> bool) {
        self.0.retain(|namespace, _| is_listed(namespace));
    }

    /// Whether there is room for some that had none.
    pub(super) fn is_free_again(&self, is_here: impl Fn(&str) -> bool) -> bool {
        let mut here = self.0.iter().filter(|(namespace, _)| is_here(namespace));
        here.any(|(_, place)| place.refusal.is_some() && place.followed.len() < MOST_OF_NAMESPACE)
    }

    /// What is to be reported, once for each namespace.
    pub(super) fn take_untold(&mut self) -> Vec<Refusal> {
        let untold = self.0.values_mut().filter(|place| !place.is_told);
        let refusals = untold.filter_map(|place| {
            let refusal = place.refusal.clone()?;
            place.is_told = true;
            Some(refusal)
        });
        refusals.collect()
    }
}

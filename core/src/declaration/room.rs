//! How many declarations are followed: of each namespace the oldest ones, as many as there is room for, and where there is
//! none left for all, the namespace that has most makes it.
//!
//! Which they are does not depend on the order in which they are seen, except that one is taken up only by the next list
//! where an older one has gone. Of the others nothing is kept but that there are some.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Brief, Kind, Source};
use crate::time::UnixTime;

/// Most declarations of a namespace that are followed. Each takes about a kilobyte, and a user who may write ConfigMaps or
/// Ingresses can make any number of them; no namespace with this number of certificates is known.
pub const MOST_OF_NAMESPACE: usize = 5_000;
/// Most declarations of all namespaces that are followed: whoever has some namespaces fills no more than this.
pub const MOST: usize = 20_000;

/// Something that is not followed, because its namespace has too many declarations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The declaration of the namespace by which there were too many, or the one that made room for another namespace's.
    pub by: Source,
    /// Its uid, where it is known.
    pub uid: Box<str>,
    /// The one that is not followed: the youngest.
    pub refused: Source,
    /// Whether all namespaces together have too many, this one the most of them.
    pub of_all: bool,
}

/// The declarations that are followed, by namespace.
#[derive(Debug, Default)]
pub(super) struct Room {
    places: HashMap<Arc<str>, Place>,
    /// How many are followed of all.
    count: usize,
}

/// One declaration: its object, and its Secret.
pub(super) type One = (Source, Arc<str>);

#[derive(Debug, Default)]
struct Place {
    /// By age.
    followed: BTreeSet<(UnixTime, One)>,
    /// The last one of each kind that had no room since the list of that kind began.
    refusals: BTreeMap<Kind, Refusal>,
    /// Whether that there are such is reported.
    is_told: bool,
}

impl Room {
    /// Takes in a declaration that is not followed yet; the one that has no room then, with its namespace, which may be
    /// this one.
    pub(super) fn admit(
        &mut self,
        namespace: &Arc<str>,
        brief: &Brief,
        uid: &str,
    ) -> Option<(Arc<str>, One)> {
        let place = self.places.entry(Arc::clone(namespace)).or_default();
        let is_new = place.followed.insert(place_of(brief));
        let of_all = place.followed.len() <= MOST_OF_NAMESPACE;
        self.count += usize::from(is_new);
        if of_all && self.count <= MOST {
            return None;
        }
        let full = if of_all {
            self.that_has_most()?
        } else {
            Arc::clone(namespace)
        };
        let place = self.places.get_mut(&full)?;
        let (_, refused) = place.followed.pop_last()?;
        self.count -= 1;
        let (source, _) = &refused;
        let (by, uid) = if full == *namespace {
            (&brief.source, uid)
        } else {
            (source, "")
        };
        let refusal = Refusal {
            namespace: Arc::clone(&full),
            by: by.clone(),
            uid: uid.into(),
            refused: source.clone(),
            of_all,
        };
        place.refusals.insert(source.kind, refusal);
        Some((full, refused))
    }

    /// The namespace of which most are followed.
    fn that_has_most(&self) -> Option<Arc<str>> {
        let places = self.places.iter();
        let sizes = places.map(|(namespace, place)| (place.followed.len(), namespace));
        sizes.max().map(|(_, namespace)| Arc::clone(namespace))
    }

    /// Whether there are declarations of a namespace that are not followed.
    pub(super) fn leaves_out(&self, namespace: &str) -> bool {
        { self.places.get(namespace) }.is_some_and(|place| !place.refusals.is_empty())
    }

    /// One is not followed any more.
    pub(super) fn leave(&mut self, namespace: &str, brief: &Brief) {
        let Some(place) = self.places.get_mut(namespace) else {
            return;
        };
        self.count -= usize::from(place.followed.remove(&place_of(brief)));
        if place.followed.is_empty() && place.refusals.is_empty() {
            self.places.remove(namespace);
        }
    }

    /// A list of a kind begins there: it names what has no room once more.
    pub(super) fn begin(&mut self, kind: Kind, is_here: impl Fn(&str) -> bool) {
        let places = self.places.iter_mut();
        let here = places.filter(|(namespace, _)| is_here(namespace));
        here.for_each(|(_, place)| _ = place.refusals.remove(&kind));
    }

    /// A list has ended there.
    pub(super) fn listed(&mut self, is_here: impl Fn(&str) -> bool) {
        self.places.retain(|namespace, place| {
            if is_here(namespace) {
                place.is_told &= !place.refusals.is_empty();
            }
            !place.followed.is_empty() || !place.refusals.is_empty()
        });
    }

    /// Forgets namespaces that nothing lists any more.
    pub(super) fn keep(&mut self, is_listed: impl Fn(&str) -> bool) {
        self.places.retain(|namespace, _| is_listed(namespace));
        self.count = self.places.values().map(|it| it.followed.len()).sum();
    }

    /// Whether there is room for some of a kind that had none.
    pub(super) fn is_free_again(&self, kind: Kind, is_here: impl Fn(&str) -> bool) -> bool {
        let places = self.places.iter();
        let mut here = places.filter(|(namespace, _)| is_here(namespace));
        let is_free = |place: &Place| place.followed.len() < MOST_OF_NAMESPACE;
        let lacked = |place: &Place| place.refusals.contains_key(&kind);
        self.count < MOST && here.any(|(_, place)| lacked(place) && is_free(place))
    }

    /// What is to be reported, once for each namespace.
    pub(super) fn take_untold(&mut self) -> Vec<Refusal> {
        let untold = self.places.values_mut().filter(|place| !place.is_told);
        let refusals = untold.filter_map(|place| {
            let refusal = place.refusals.values().next()?.clone();
            place.is_told = true;
            Some(refusal)
        });
        refusals.collect()
    }
}

/// By its age, as what is followed is kept.
fn place_of(brief: &Brief) -> (UnixTime, One) {
    let one = (brief.source.clone(), Arc::clone(&brief.secret));
    (brief.created, one)
}

//! Which objects declare which Secrets, in a few words each, and which Secrets need a look. Synchronous, one owner at a time.
//!
//! The watches on declarations and the watch on Secrets both tell it what they bring. It keeps digests only: a look
//! reads everything afresh. A Secret needs a look if what was given to it is not what is declared, or if what stands on a
//! declaration is not what stands on its Secret. So a start at which all is as it should be reads nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::mirror::{self, Mirror};
use super::room::{Refusal, Room};
use super::{Brief, Declaration, MOST_OF_SECRET, Source, digest};
use crate::secret::SecretRef;
use crate::secret::declared::{DeclaredMark, is_marked};
use crate::secret::keys;
use crate::secret::object::head::Head;
use crate::secret::settings::DEFAULT_CLASS;
use crate::verdict::State;

/// What is known of all declarations.
#[derive(Debug, Default)]
pub struct Register {
    scopes: Vec<Scope>,
    secrets: HashMap<SecretRef, Known>,
    /// The Secret that each declares and what is kept of it, by namespace and object.
    of: HashMap<(Arc<str>, Source), (SecretRef, Brief)>,
    waiting: HashSet<SecretRef>,
    room: Room,
}

/// One watch on declarations.
#[derive(Debug)]
struct Scope {
    /// Where it watches; `None` for all namespaces.
    namespace: Option<Arc<str>>,
    /// Whether it has named all that there are, and still works.
    listed: bool,
    /// Those that were named since the list began; `None` while it only follows changes.
    named: Option<HashSet<(Arc<str>, Source)>>,
}

#[derive(Debug, Default)]
struct Known {
    /// By age. Anybody may make any number, so whatever happens for each event goes by the age of one, or through
    /// [`MOST_OF_SECRET`] of them.
    declarations: BTreeSet<Brief>,
    made: Option<Made>,
}

/// What is kept of a Secret that was made for its declarations, or handed over to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    of: u64,
    is_intact: bool,
    is_gone: bool,
    told: mirror::Digest,
}

impl Made {
    /// `None` if the settings of the Secret come from elsewhere, or it is for an installation of another class. Only of
    /// others is the state asked for: most Secrets are declared by nothing.
    #[must_use]
    pub fn read(
        key: &SecretRef,
        head: &Head,
        state: impl FnOnce() -> Option<State>,
        class: &str,
    ) -> Option<Self> {
        let own = head
            .annotation(keys::CLASS)
            .map_or(DEFAULT_CLASS, str::trim);
        if !is_marked(head) || own != class {
            return None;
        }
        let record = DeclaredMark::read(key, head)?;
        Some(Self {
            of: record.of,
            is_intact: record.is_intact(head),
            is_gone: record.gone.is_some(),
            told: Mirror::of_secret(head, state()).digest(),
        })
    }
}

impl Register {
    /// The watches are opened in these places; `None` for all namespaces. What is known of others is forgotten.
    pub fn open(&mut self, places: impl IntoIterator<Item = Option<Arc<str>>>) {
        let scope = |namespace| Scope {
            namespace,
            listed: false,
            named: None,
        };
        self.scopes = places.into_iter().map(scope).collect();
        let elsewhere = self.of.keys().filter(|(namespace, _)| {
            let mut scopes = self.scopes.iter();
            !scopes.any(|scope| scope.covers(namespace))
        });
        for (namespace, source) in elsewhere.cloned().collect::<Vec<_>>() {
            self.gone(&namespace, &source);
        }
        let scopes = &self.scopes;
        self.room
            .keep(|namespace| scopes.iter().any(|scope| scope.covers(namespace)));
    }

    /// A watch begins to name what there is.
    pub fn begin(&mut self, scope: usize) {
        if let Some(scope) = self.scopes.get_mut(scope) {
            scope.named = Some(HashSet::new());
            self.room.begin(|namespace| scope.covers(namespace));
        }
    }

    /// A watch has named all that there are: what it did not name is gone, and Secrets that nothing declares are looked at.
    pub fn listed(&mut self, scope: usize) {
        let Some(scope) = self.scopes.get_mut(scope) else {
            return;
        };
        let Some(named) = scope.named.take() else {
            return;
        };
        scope.listed = true;
        let place = scope.namespace.clone();
        let is_here = |namespace: &str| place.as_deref().is_none_or(|it| it == namespace);
        let unnamed = self
            .of
            .keys()
            .filter(|it| is_here(&it.0) && !named.contains(*it));
        for (namespace, source) in unnamed.cloned().collect::<Vec<_>>() {
            self.gone(&namespace, &source);
        }
        self.room.listed(is_here);
        let here = self.secrets.keys().filter(|key| is_here(&key.namespace));
        for key in here.cloned().collect::<Vec<_>>() {
            self.wait(&key);
        }
    }

    /// A watch cannot be had: what it would name is not known to be gone.
    pub fn blind(&mut self, scope: usize) {
        if let Some(scope) = self.scopes.get_mut(scope) {
            scope.listed = false;
        }
    }

    /// Whether all declarations of a namespace are known.
    #[must_use]
    pub fn is_listed(&self, namespace: &str) -> bool {
        let mut scopes = self.scopes.iter();
        scopes.any(|scope| scope.listed && scope.covers(namespace))
    }

    /// A watch has brought a declaration. Where its namespace has too many, the youngest is not followed; where all have,
    /// the youngest of the namespace that has most.
    pub fn declared(&mut self, scope: usize, namespace: &Arc<str>, declaration: &Declaration) {
        let brief = declaration.brief();
        let place = (Arc::clone(namespace), brief.source.clone());
        if let Some((_, was)) = self.of.get(&place) {
            self.room.leave(namespace, was);
        }
        match self.room.admit(namespace, &brief, &declaration.uid) {
            None => {}
            Some(refused) if refused == place => return self.gone(namespace, &brief.source),
            Some(refused) => {
                self.gone(&refused.0, &refused.1);
                let named = self.scopes.iter_mut().filter_map(|it| it.named.as_mut());
                named.for_each(|named| _ = named.remove(&refused));
            }
        }
        if let Some(named) = { self.scopes.get_mut(scope) }.and_then(|it| it.named.as_mut()) {
            named.insert(place.clone());
        }
        let key = declaration.key(Arc::clone(namespace));
        let before = self.of.insert(place, (key.clone(), brief.clone()));
        if let Some((before, was)) = before {
            self.remove(&before, &was);
            if before != key {
                self.wait(&before);
            }
        }
        let known = self.secrets.entry(key.clone()).or_default();
        known.declarations.insert(brief);
        self.wait(&key);
    }

    /// An object is gone, or declares nothing any more.
    pub fn gone(&mut self, namespace: &Arc<str>, source: &Source) {
        let place = (Arc::clone(namespace), source.clone());
        if let Some((key, was)) = self.of.remove(&place) {
            self.room.leave(namespace, &was);
            self.remove(&key, &was);
            self.wait(&key);
        }
    }

    /// Whether a list by this watch would name declarations that had no room and may have some now.
    #[must_use]
    pub fn has_room_again(&self, scope: usize) -> bool {
        let scope = self.scopes.get(scope);
        scope.is_some_and(|scope| self.room.is_free_again(|namespace| scope.covers(namespace)))
    }

    /// What is not followed because a namespace has too many declarations: one of each such namespace, once.
    pub fn refusals(&mut self) -> Vec<Refusal> {
        self.room.take_untold()
    }

    /// A Secret has been seen, or is gone: `made` if its settings come from declarations.
    pub fn secret(&mut self, key: &SecretRef, made: Option<Made>) {
        match (self.secrets.get_mut(key), made) {
            (None, None) => return,
            (None, made) => {
                let known = Known {
                    made,
                    ..Known::default()
                };
                self.secrets.insert(key.clone(), known);
            }
            (Some(known), made) => known.made = made,
        }
        self.tidy(key);
        self.wait(key);
    }

    /// A Secret is in this state now.
    pub fn state(&mut self, key: &SecretRef, state: State) {
        let made = { self.secrets.get_mut(key) }.and_then(|it| it.made.as_mut());
        if let Some(made) = made {
            made.told.word = mirror::word(Some(state));
            self.wait(key);
        }
    }

    /// The declarations of a Secret that count, the oldest first.
    #[must_use]
    pub fn sources(&self, key: &SecretRef) -> Vec<Source> {
        let known = self.secrets.get(key).into_iter();
        let briefs = known.flat_map(Known::that_count);
        briefs.map(|it| it.source.clone()).collect()
    }

    /// Whether a Secret is not as what is known of it asks for.
    #[must_use]
    pub fn is_outdated(&self, key: &SecretRef) -> bool {
        let Some(known) = self.secrets.get(key) else {
            return false;
        };
        match known.made {
            None => !known.declarations.is_empty(),
            Some(made) if known.declarations.is_empty() => {
                !made.is_gone && self.is_listed(&key.namespace)
            }
            Some(made) => {
                made.is_gone
                    || !made.is_intact
                    || known.that_count().any(|it| it.told != made.told)
                    || made.of != digest(key, known.that_count())
            }
        }
    }

    /// Has all looked at that are outdated. What seems to be declared no more is left alone where not all declarations are
    /// followed: its own may be one of those.
    pub fn doubt(&mut self) {
        let may_be_left_out = |key: &SecretRef, known: &Known| {
            known.declarations.is_empty() && self.room.leaves_out(&key.namespace)
        };
        let all = self.secrets.iter();
        let all = all.filter(|(key, known)| !may_be_left_out(key, known) && self.is_outdated(key));
        let all: Vec<SecretRef> = all.map(|(key, _)| key.clone()).collect();
        self.waiting.extend(all);
    }

    /// Has a Secret looked at once more.
    pub fn again(&mut self, key: SecretRef) {
        self.waiting.insert(key);
    }

    /// Takes all that wait for a look.
    pub fn take(&mut self) -> HashSet<SecretRef> {
        std::mem::take(&mut self.waiting)
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    fn wait(&mut self, key: &SecretRef) {
        if self.is_outdated(key) {
            self.waiting.insert(key.clone());
        }
    }

    fn remove(&mut self, key: &SecretRef, was: &Brief) {
        if let Some(known) = self.secrets.get_mut(key) {
            known.declarations.remove(was);
        }
        self.tidy(key);
    }

    fn tidy(&mut self, key: &SecretRef) {
        let is_empty = |it: &Known| it.declarations.is_empty() && it.made.is_none();
        if self.secrets.get(key).is_some_and(is_empty) {
            self.secrets.remove(key);
            self.waiting.remove(key);
        }
    }
}

impl Known {
    fn that_count(&self) -> impl Iterator<Item = &Brief> {
        self.declarations.iter().take(MOST_OF_SECRET)
    }
}

impl Scope {
    fn covers(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|it| it == namespace)
    }
}

//! Which objects declare which Secrets, in a few words each, and which Secrets need a look. Synchronous, one owner at a time.
//!
//! The watches on declarations and the watch on Secrets both tell it what they bring. It keeps digests only: a look
//! reads everything afresh. A Secret needs a look if what was given to it is not what is declared, or if what stands on a
//! declaration is not what stands on its Secret. So a start at which all is as it should be reads nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mirror::{self, Mirror};
use super::room::{One, Refusal, Room};
use super::settling::Settling;
use super::{Brief, Declaration, Kind, MOST_OF_SECRET, Source, digest};
use crate::secret::SecretRef;
use crate::secret::declared::{DeclaredMark, is_marked};
use crate::secret::keys;
use crate::secret::object::head::Head;
use crate::secret::settings::DEFAULT_CLASS;
use crate::text::hash::hash;
use crate::verdict::State;

/// What is known of all declarations.
#[derive(Debug, Default)]
pub struct Register {
    scopes: Vec<Scope>,
    secrets: HashMap<SecretRef, Known>,
    /// What each declares, by namespace and object.
    of: HashMap<(Arc<str>, Source), Vec<Followed>>,
    waiting: HashSet<SecretRef>,
    settling: Settling,
    room: Room,
}

/// What is kept of a declaration.
#[derive(Debug)]
struct Followed {
    brief: Brief,
    /// Digest of what its object was told last to be wrong, if that is a route.
    said: Option<u64>,
}

/// One watch on declarations.
#[derive(Debug)]
struct Scope {
    kind: Kind,
    /// Where it watches; `None` for all namespaces.
    namespace: Option<Arc<str>>,
    /// Whether it has named all that there are, and still works.
    listed: bool,
    /// Whether it was refused, and names nothing.
    blind: bool,
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
    /// Whether its record names objects of a kind, in the order of [`Kind::ALL`].
    by: [bool; Kind::ALL.len()],
    /// Whether it names objects of a kind that only a later version follows.
    by_others: bool,
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
        let texts = record.by.iter().take(MOST_OF_SECRET);
        let is_other = |text: &str| {
            let kind = text.split_once('/').map(|(kind, _)| kind);
            kind.is_some_and(|kind| Kind::ALL.iter().all(|it| it.as_str() != kind))
        };
        let by_others = texts.clone().any(|it| is_other(it));
        let by: Vec<Source> = texts.filter_map(|it| Source::read(it)).collect();
        let is_by = |kind: Kind| by.iter().any(|it| it.kind == kind);
        Some(Self {
            of: record.of,
            is_intact: record.is_intact(head),
            is_gone: record.gone.is_some(),
            by: Kind::ALL.map(is_by),
            by_others,
            told: Mirror::of_secret(head, state()).digest(),
        })
    }
}

impl Register {
    /// These watches are opened, each on a kind and in a place; `None` for all namespaces. What is known of others is
    /// forgotten.
    pub fn open(&mut self, places: impl IntoIterator<Item = (Kind, Option<Arc<str>>)>) {
        let scope = |(kind, namespace)| Scope {
            kind,
            namespace,
            listed: false,
            blind: false,
            named: None,
        };
        self.scopes = places.into_iter().map(scope).collect();
        let elsewhere = self.of.keys().filter(|(namespace, source)| {
            let mut scopes = self.scopes.iter();
            !scopes.any(|scope| scope.kind == source.kind && scope.covers(namespace))
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
            let kind = scope.kind;
            self.room.begin(kind, |namespace| scope.covers(namespace));
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
        (scope.listed, scope.blind) = (true, false);
        let (kind, place) = (scope.kind, scope.namespace.clone());
        let is_here = |namespace: &str| place.as_deref().is_none_or(|it| it == namespace);
        let unnamed = self
            .of
            .keys()
            .filter(|it| it.1.kind == kind && is_here(&it.0) && !named.contains(*it));
        for (namespace, source) in unnamed.cloned().collect::<Vec<_>>() {
            self.gone(&namespace, &source);
        }
        self.room.listed(is_here);
        self.wait_for_all(is_here);
    }

    /// A watch cannot be had: what it would name is not known to be gone, and nothing else waits for it.
    pub fn blind(&mut self, scope: usize) {
        let Some(scope) = self.scopes.get_mut(scope) else {
            return;
        };
        scope.listed = false;
        if std::mem::replace(&mut scope.blind, true) {
            return;
        }
        let place = scope.namespace.clone();
        self.wait_for_all(|namespace| place.as_deref().is_none_or(|it| it == namespace));
    }

    fn wait_for_all(&mut self, is_here: impl Fn(&str) -> bool) {
        let here = self.secrets.keys().filter(|key| is_here(&key.namespace));
        for key in here.cloned().collect::<Vec<_>>() {
            self.wait(&key);
        }
    }

    /// Whether all is known that may declare a Secret of this namespace: each watch there has named all that there are or
    /// is refused, and those on the kinds of objects that have declared it are there, and are not refused.
    #[must_use]
    pub fn is_known(&self, namespace: &str, made: &Made) -> bool {
        let here = self.scopes.iter().filter(|it| it.covers(namespace));
        let here: Vec<&Scope> = here.collect();
        let is_listed = |kind: Kind| here.iter().any(|it| it.kind == kind && it.listed);
        let is_open = here.iter().any(|it| !it.listed && !it.blind);
        // A record that names nothing is none of ours: it stays as it was before there were other kinds.
        let is_by_none = made.by.iter().all(|it| !it);
        let mut kinds = Kind::ALL.into_iter().zip(made.by);
        let all = kinds.all(|(kind, is_by)| !is_by || is_listed(kind));
        !is_open && all && !made.by_others && (!is_by_none || is_listed(Kind::ConfigMap))
    }

    /// A watch has brought an object, with all that it declares. Where its namespace has too many declarations, the
    /// youngest is not followed; where all have, the youngest of the namespace that has most.
    pub fn declared(
        &mut self,
        scope: usize,
        namespace: &Arc<str>,
        source: &Source,
        declarations: &[Declaration],
    ) {
        let place = (Arc::clone(namespace), source.clone());
        let before = self.of.remove(&place).unwrap_or_default();
        for it in &before {
            self.room.leave(namespace, &it.brief);
        }
        let mut followed = Vec::<Followed>::new();
        for declaration in declarations {
            let brief = declaration.brief();
            let refused = self.room.admit(namespace, &brief, &declaration.uid);
            let was = before.iter().find(|it| it.brief.secret == brief.secret);
            let said = was.and_then(|it| it.said);
            followed.push(Followed { brief, said });
            match refused {
                None => {}
                Some((full, (of, secret))) if full == *namespace && of == *source => {
                    followed.retain(|it| it.brief.secret != secret);
                }
                Some((full, one)) => self.leave_out(full, one),
            }
        }
        for was in &before {
            let key = was.brief.key(namespace);
            self.remove(&key, &was.brief);
            if !followed.iter().any(|it| it.brief.secret == key.name) {
                self.hurry(&key, !source.kind.is_route());
                self.wait(&key);
            }
        }
        for Followed { brief, .. } in &followed {
            let key = brief.key(namespace);
            let known = self.secrets.entry(key.clone()).or_default();
            known.declarations.insert(brief.clone());
            let was = before.iter().find(|it| it.brief.secret == brief.secret);
            let is_urgent = match was {
                Some(was) => was.brief.urgent != brief.urgent,
                None => !source.kind.is_route(),
            };
            self.hurry(&key, is_urgent);
            self.wait(&key);
        }
        if followed.is_empty() {
            return;
        }
        if let Some(named) = { self.scopes.get_mut(scope) }.and_then(|it| it.named.as_mut()) {
            named.insert(place.clone());
        }
        self.of.insert(place, followed);
    }

    /// An object is gone, or declares nothing any more.
    pub fn gone(&mut self, namespace: &Arc<str>, source: &Source) {
        let place = (Arc::clone(namespace), source.clone());
        for Followed { brief, .. } in self.of.remove(&place).unwrap_or_default() {
            let key = brief.key(namespace);
            self.room.leave(namespace, &brief);
            self.remove(&key, &brief);
            self.hurry(&key, !source.kind.is_route());
            self.wait(&key);
        }
    }

    /// A declaration of another object has no room any more.
    fn leave_out(&mut self, namespace: Arc<str>, (source, secret): One) {
        let place = (namespace, source);
        let Some(followed) = self.of.get_mut(&place) else {
            return;
        };
        let Some(at) = followed.iter().position(|it| it.brief.secret == secret) else {
            return;
        };
        let Followed { brief, .. } = followed.swap_remove(at);
        if followed.is_empty() {
            self.of.remove(&place);
            let named = self.scopes.iter_mut().filter_map(|it| it.named.as_mut());
            named.for_each(|named| _ = named.remove(&place));
        }
        let key = brief.key(&place.0);
        self.remove(&key, &brief);
        self.wait(&key);
    }

    /// Whether a list by this watch would name declarations that had no room and may have some now.
    #[must_use]
    pub fn has_room_again(&self, scope: usize) -> bool {
        let scope = self.scopes.get(scope);
        scope.is_some_and(|scope| {
            self.room
                .is_free_again(scope.kind, |namespace| scope.covers(namespace))
        })
    }

    /// What is not followed because a namespace has too many declarations: one of each such namespace, once.
    pub fn refusals(&mut self) -> Vec<Refusal> {
        self.room.take_untold()
    }

    /// Whether it is news to a route what is wrong about a Secret that it declares; it is told then. Nothing keeps it
    /// beyond the life of the process.
    pub fn is_news(&mut self, key: &SecretRef, source: &Source, problems: &str) -> bool {
        let said = (!problems.is_empty()).then(|| hash(problems));
        let place = (Arc::clone(&key.namespace), source.clone());
        let mut followed = self.of.get_mut(&place).into_iter().flatten();
        let of_it = followed.find(|it| it.brief.secret == key.name);
        of_it.is_some_and(|it| std::mem::replace(&mut it.said, said) != said && said.is_some())
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
        if self.unsettled(key).is_none() {
            self.settling.forget(key);
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
                !made.is_gone && self.is_known(&key.namespace, &made)
            }
            Some(made) => {
                // Nothing is written on a route.
                let mut told = known.that_count().filter(|it| !it.source.kind.is_route());
                made.is_gone
                    || !made.is_intact
                    || told.any(|it| it.told != made.told)
                    || made.of != digest(key, known.that_count())
            }
        }
    }

    /// Has all looked at that are outdated. What seems to be declared no more is left alone where not all declarations are
    /// followed: its own may be one of those. So is what routes declare that may not be read now, until a list names them.
    pub fn doubt(&mut self) {
        let may_be_left_out = |key: &SecretRef, known: &Known| {
            known.declarations.is_empty() && self.room.leaves_out(&key.namespace)
        };
        let all = self.secrets.iter();
        let all = all.filter(|(key, known)| !may_be_left_out(key, known) && self.is_outdated(key));
        let all = all.filter(|(key, known)| !self.is_hidden(key, known));
        let all: Vec<SecretRef> = all.map(|(key, _)| key.clone()).collect();
        self.waiting.extend(all);
    }

    /// Whether a route declares a Secret, and routes of its kind may not be read there.
    fn is_hidden(&self, key: &SecretRef, known: &Known) -> bool {
        let by = known.made.map(|it| it.by).unwrap_or_default();
        let is_by = |kind: Kind| {
            let mut recorded = Kind::ALL.into_iter().zip(by);
            recorded.any(|it| it == (kind, true))
                || known.that_count().any(|it| it.source.kind == kind)
        };
        let refused = |it: &Scope| it.blind && it.kind.is_route() && it.covers(&key.namespace);
        let mut scopes = self.scopes.iter();
        scopes.any(|it| refused(it) && is_by(it.kind))
    }

    /// Has a Secret looked at once more.
    pub fn again(&mut self, key: SecretRef) {
        self.waiting.insert(key);
    }

    /// Takes all that wait for a look. Where the hosts of routes have changed, or a route has come or gone, a Secret that is
    /// made waits until that has rested for so long.
    pub fn take(&mut self, now: Instant, settle: Duration) -> HashSet<SecretRef> {
        let mut taken = std::mem::take(&mut self.waiting);
        for key in self.settling.rested(now, settle) {
            if self.is_outdated(&key) {
                taken.insert(key);
            } else {
                self.settling.forget(&key);
            }
        }
        taken.retain(|key| match self.unsettled(key) {
            Some(of) => self.settling.has_rested(key, of, now, settle),
            None => {
                self.settling.forget(key);
                true
            }
        });
        taken
    }

    /// When the next one has rested that [`Register::take`] has left.
    #[must_use]
    pub fn rests(&self, settle: Duration) -> Option<Instant> {
        self.settling.next(settle)
    }

    /// Digest of what routes and others declare for a Secret that is made, if something else was declared when it was
    /// looked at, and nothing is to be put back on it.
    fn unsettled(&self, key: &SecretRef) -> Option<u64> {
        let known = self.secrets.get(key)?;
        let made = known.made.filter(|it| !it.is_gone && it.is_intact)?;
        if !known.that_count().any(|it| it.source.kind.is_route()) {
            return None;
        }
        let of = digest(key, known.that_count());
        (made.of != of).then_some(of)
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// More than hosts of routes has changed of what is declared for a Secret, if `is_urgent`: it waits for no rest.
    fn hurry(&mut self, key: &SecretRef, is_urgent: bool) {
        if is_urgent && self.unsettled(key).is_some() {
            self.settling.hurry(key);
        }
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
            self.settling.forget(key);
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

//! The Secrets that seem to be meant for cert-renew and are not managed: each is told once, and counted.
//!
//! Nothing of them is written, and nothing is asked. Their number is bounded, in all and by namespace, and so are the
//! Events: users who may edit Secrets can make any number of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use cert_renew_core::index::Source;
use cert_renew_core::schedule::token_bucket::TokenBucket;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::stray::{Stray, StrayReason};
use cert_renew_core::time::UnixTime;
use tokio::time::Instant;

use crate::telemetry::metrics::Metrics;

/// Most that are remembered, each a series of the metric.
const MOST: usize = 1_000;
/// Most of one namespace, so that none hides those of the others. Where many namespaces fill the list, the one that has
/// most makes room.
const MOST_OF_NAMESPACE: usize = 100;
/// Most Events at once in one namespace, then one a second.
const AT_ONCE: u32 = 50;
/// How long a Secret of another class is left to the installation that may serve it before its owner is told, and one that
/// was handed over to what declares it: a new one takes a list and a first look at each.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a Secret counts that has lost its opt-in with all that said so.
const REMEMBERED: Duration = Duration::from_secs(86_400);

/// The known ones.
#[derive(Debug)]
pub struct Strays {
    known: HashMap<SecretRef, Known>,
    /// How many of them each namespace has, none of none.
    counts: HashMap<Arc<str>, usize>,
    allowance: TokenBucket,
    metrics: Arc<Metrics>,
    /// The same for the status page.
    shown: Shown,
}

/// The known ones, as the status page and its JSON show them.
type Shown = Arc<RwLock<BTreeMap<SecretRef, Stray>>>;

#[derive(Debug)]
struct Known {
    uid: Box<str>,
    stray: Stray,
    told: bool,
    /// When it was first seen to be one.
    since: Instant,
    /// The watch that brings it, and whether it has since the list began.
    source: Source,
    listed: bool,
    /// Set if nothing on the Secret says that it was managed: it counts until then.
    until: Option<UnixTime>,
}

/// Something to tell.
#[derive(Debug, PartialEq, Eq)]
pub struct StrayNotice {
    /// The Secret.
    pub key: SecretRef,
    /// Its uid.
    pub uid: Box<str>,
    /// The text.
    pub text: String,
}

impl Strays {
    /// None is known yet.
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>, shown: &Shown) -> Self {
        Self {
            known: HashMap::new(),
            counts: HashMap::new(),
            allowance: TokenBucket::new(AT_ONCE),
            metrics: Arc::clone(metrics),
            shown: Arc::clone(shown),
        }
    }

    /// A watch has brought a Secret that is not managed; `stray` if it seems to be meant.
    pub fn see(&mut self, key: &SecretRef, uid: &str, stray: Option<Stray>, source: Source) {
        match stray {
            Some(stray) => self.add(key, uid, stray, source, None),
            None => {
                let remembered = |it: &&mut Known| it.until.is_some() && *it.uid == *uid;
                match self.known.get_mut(key).filter(remembered) {
                    Some(known) => (known.source, known.listed) = (source, true),
                    None => self.forget(key),
                }
            }
        }
    }

    /// A Secret has lost its opt-in, and nothing on it says that it was managed.
    pub fn lost(&mut self, key: &SecretRef, uid: &str, stray: Stray, source: Source) {
        let until = UnixTime::now() + REMEMBERED;
        self.add(key, uid, stray, source, Some(until));
    }

    fn add(
        &mut self,
        key: &SecretRef,
        uid: &str,
        stray: Stray,
        source: Source,
        until: Option<UnixTime>,
    ) {
        let before = self.known.get(key);
        // The text of a lost one says who issued it only as long as that is known.
        let is_told = |it: &Known| {
            let same = it.stray == stray
                || (it.stray.why, stray.why) == (StrayReason::Lost, StrayReason::Lost);
            it.told && same && *it.uid == *uid
        };
        let told = before.is_some_and(is_told);
        let same = before.filter(|it| it.stray.why == stray.why && *it.uid == *uid);
        let since = same.map_or_else(Instant::now, |it| it.since);
        if before.is_none() && !self.make_room(&key.namespace) {
            return;
        }
        self.forget(key);
        let why = stray.why.as_str();
        self.metrics.unmanaged(&key.namespace, &key.name, why, true);
        self.show(key, Some(stray.clone()));
        let known = Known {
            uid: uid.into(),
            stray,
            told,
            since,
            source,
            listed: true,
            until,
        };
        self.known.insert(key.clone(), known);
        *self.counts.entry(Arc::clone(&key.namespace)).or_default() += 1;
    }

    /// Whether there is room for another one of this namespace. In a full list the namespace that has most, at least two
    /// more than this one, loses one.
    fn make_room(&mut self, namespace: &str) -> bool {
        let count = self.counts.get(namespace).copied().unwrap_or_default();
        if count >= MOST_OF_NAMESPACE {
            return false;
        }
        if self.known.len() < MOST {
            return true;
        }
        let most = self
            .counts
            .iter()
            .max_by_key(|(namespace, count)| (**count, *namespace));
        let Some((most, _)) = most.filter(|(_, most)| **most > count + 1) else {
            return false;
        };
        let of_most = self.known.keys().filter(|key| key.namespace == *most);
        let Some(last) = of_most.max().cloned() else {
            return false;
        };
        self.forget(&last);
        true
    }

    /// A Secret is gone, managed, or no longer meant.
    pub fn forget(&mut self, key: &SecretRef) {
        if self.known.is_empty() {
            return;
        }
        if let Some(known) = self.known.remove(key) {
            let count = self.counts.get(&key.namespace);
            match count.map_or(0, |count| count.saturating_sub(1)) {
                0 => self.counts.remove(&key.namespace),
                left => self.counts.insert(Arc::clone(&key.namespace), left),
            };
            let why = known.stray.why.as_str();
            self.metrics
                .unmanaged(&key.namespace, &key.name, why, false);
            self.show(key, None);
        }
    }

    fn show(&self, key: &SecretRef, stray: Option<Stray>) {
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        match stray {
            Some(stray) => drop(shown.insert(key.clone(), stray)),
            None => drop(shown.remove(key)),
        }
    }

    /// What was not told yet and may be told now.
    pub fn take_untold(&mut self, now: Instant) -> Vec<StrayNotice> {
        let mut told = Vec::new();
        for (key, known) in self.known.iter_mut().filter(|(_, it)| it.is_due(now)) {
            if self.allowance.take(now.into_std(), &key.namespace) {
                known.told = true;
                told.push(StrayNotice {
                    key: key.clone(),
                    uid: known.uid.clone(),
                    text: known.stray.text.clone(),
                });
            }
        }
        told
    }

    /// A watch begins a new list.
    pub fn begin(&mut self, source: Source) {
        let of_source = self.known.values_mut().filter(|it| it.source == source);
        of_source.for_each(|it| it.listed = false);
    }

    /// A watch has listed all Secrets: those that it did not name are gone.
    pub fn finish(&mut self, source: Source) {
        self.drop_if(|it| it.source == source && !it.listed);
    }

    /// All watches restart, perhaps with other selectors.
    pub fn invalidate_all(&mut self) {
        self.known.values_mut().for_each(|it| it.listed = false);
    }

    /// All watches have listed all Secrets.
    pub fn finish_all(&mut self) {
        self.drop_if(|it| !it.listed);
    }

    /// Drops those that have counted long enough.
    pub fn expire(&mut self, now: UnixTime) {
        self.drop_if(|it| it.until.is_some_and(|until| until <= now));
    }

    fn drop_if(&mut self, gone: impl Fn(&Known) -> bool) {
        let gone = self.known.iter().filter(|(_, known)| gone(known));
        let gone: Vec<SecretRef> = gone.map(|(key, _)| key.clone()).collect();
        gone.iter().for_each(|key| self.forget(key));
    }
}

impl Known {
    /// Whether it is to be told.
    fn is_due(&self, now: Instant) -> bool {
        let is_new = matches!(
            self.stray.why,
            StrayReason::Unserved | StrayReason::Undeclared
        );
        let waits = is_new && now < self.since + PATIENCE;
        !self.told && !waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Source = Source(0);

    fn key(namespace: &str, number: usize) -> SecretRef {
        SecretRef {
            namespace: namespace.into(),
            name: format!("tls-{number}").into(),
        }
    }

    fn stray(text: &str) -> Stray {
        Stray {
            why: StrayReason::NoIssuer,
            text: text.into(),
        }
    }

    fn strays() -> (Strays, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        (Strays::new(&metrics, &Shown::default()), metrics)
    }

    fn series(metrics: &Metrics) -> usize {
        let index = cert_renew_core::index::Index::default();
        let text = metrics.render(UnixTime(0), &index, &|_| 0, true);
        let of_it = |line: &&str| line.starts_with("cert_renew_unmanaged_annotated_secrets{");
        text.lines().filter(of_it).count()
    }

    #[test]
    fn each_text_is_told_once() {
        let (mut strays, metrics) = strays();
        let (key, now) = (key("shop", 1), Instant::now());
        strays.see(&key, "u", Some(stray("a")), ONE);
        assert_eq!(strays.take_untold(now).len(), 1);
        strays.see(&key, "u", Some(stray("a")), ONE);
        assert_eq!(strays.take_untold(now), []);
        strays.see(&key, "u", Some(stray("b")), ONE);
        assert_eq!(strays.take_untold(now)[0].text, "b");
        strays.see(&key, "another", Some(stray("b")), ONE);
        assert_eq!(
            strays.take_untold(now).len(),
            1,
            "a Secret of the same name"
        );
        assert_eq!(series(&metrics), 1);
        let shown = strays.shown.read().unwrap().get(&key).cloned();
        assert_eq!(shown, Some(stray("b")));
        strays.see(&key, "another", None, ONE);
        assert_eq!(series(&metrics), 0);
        assert!(strays.shown.read().unwrap().is_empty());
    }

    #[test]
    fn the_installation_of_another_class_has_time_before_its_owner_is_told() {
        let (mut strays, metrics) = strays();
        let (key, before) = (key("shop", 1), Instant::now());
        let unserved = |text: &str| Stray {
            why: StrayReason::Unserved,
            text: text.into(),
        };
        strays.see(&key, "u", Some(unserved("a")), ONE);
        // The page names it at once.
        assert_eq!(
            (strays.shown.read().unwrap().len(), series(&metrics)),
            (1, 1)
        );
        assert_eq!(strays.take_untold(Instant::now()), []);
        // Another edit does not begin the wait again.
        let late = Instant::now() + PATIENCE;
        strays.see(&key, "u", Some(unserved("b")), ONE);
        assert!(strays.take_untold(before + PATIENCE / 2).is_empty());
        assert_eq!(strays.take_untold(late)[0].text, "b");
        assert_eq!(strays.take_untold(late), []);
    }

    #[test]
    fn one_namespace_neither_fills_the_list_nor_floods_events() {
        let (mut strays, metrics) = strays();
        let now = Instant::now();
        for number in 0..2 * MOST {
            strays.see(&key("hostile", number), "u", Some(stray("a")), ONE);
        }
        strays.see(&key("shop", 0), "u", Some(stray("a")), ONE);
        assert_eq!(series(&metrics), MOST_OF_NAMESPACE + 1);
        let told = strays.take_untold(now);
        assert!(told.iter().any(|it| &*it.key.namespace == "shop"));
        assert!(
            told.len() <= usize::try_from(AT_ONCE).unwrap() + 1,
            "{}",
            told.len()
        );
    }

    #[test]
    fn many_namespaces_that_fill_the_list_make_room_for_another() {
        let (mut strays, metrics) = strays();
        let of = |strays: &Strays, namespace: &str| {
            let of_namespace = strays.known.keys().filter(|it| *it.namespace == *namespace);
            assert_eq!(
                strays.counts.get(namespace).copied().unwrap_or_default(),
                of_namespace.clone().count()
            );
            of_namespace.count()
        };
        for number in 0..2 * MOST {
            let namespace = format!("hostile-{}", number % 10);
            strays.see(&key(&namespace, number), "u", Some(stray("a")), ONE);
        }
        assert_eq!(series(&metrics), MOST, "it is full");
        for number in 0..2 * MOST_OF_NAMESPACE {
            strays.see(&key("shop", number), "u", Some(stray("a")), ONE);
        }
        assert_eq!(series(&metrics), MOST);
        // Eleven have a share each.
        let share = MOST / 11;
        assert_eq!(of(&strays, "shop"), share);
        for number in 0..10 {
            let namespace = format!("hostile-{number}");
            assert!(of(&strays, &namespace) >= share, "{namespace}");
        }
        // Who was left out is not let in again by another edit.
        strays.see(&key("hostile-9", 2 * MOST), "u", Some(stray("a")), ONE);
        assert_eq!(of(&strays, "shop"), share);
        assert!(strays.known.contains_key(&key("shop", 0)));
        for number in 0..2 * MOST {
            strays.forget(&key(&format!("hostile-{}", number % 10), number));
        }
        assert_eq!(strays.counts.len(), 1);
    }

    #[test]
    fn what_a_list_does_not_name_is_gone() {
        let (mut strays, metrics) = strays();
        for number in 0..3 {
            strays.see(&key("shop", number), "u", Some(stray("a")), ONE);
        }
        strays.begin(ONE);
        strays.see(&key("shop", 0), "u", Some(stray("a")), ONE);
        strays.finish(ONE);
        assert_eq!(series(&metrics), 1);
        strays.invalidate_all();
        strays.finish_all();
        assert_eq!(series(&metrics), 0);
    }

    #[test]
    fn a_lost_opt_in_counts_for_a_day_although_nothing_says_so() {
        let (mut strays, metrics) = strays();
        let key = key("shop", 1);
        strays.lost(&key, "u", stray("lost"), ONE);
        strays.see(&key, "u", None, ONE);
        strays.expire(UnixTime::now());
        assert_eq!(series(&metrics), 1);
        strays.expire(UnixTime::now() + REMEMBERED);
        assert_eq!(series(&metrics), 0);
        strays.lost(&key, "u", stray("lost"), ONE);
        strays.see(&key, "another", None, ONE);
        assert_eq!(series(&metrics), 0, "made again");
    }
}

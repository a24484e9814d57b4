//! The state of the watches on Secrets: which have listed everything, which cannot, which are broken. Pure.
//!
//! Work begins when all have listed. A namespace that cannot be listed does not delay the others: it is passed over,
//! and its known Secrets are kept until its list works.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::index::Source;
use tokio::time::Instant;

/// Time after which a namespace is passed over whose list neither succeeds nor is refused: an API server that decrypts
/// with a lost key, for example, fails for one namespace and answers for all others.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time without a failure after which a broken watch counts as working again, even if it has brought nothing. A broken
/// watch is tried again every 30 s at least.
const QUIET: Duration = Duration::from_secs(120);

/// The state of all watches.
#[derive(Debug)]
pub struct Sources {
    opened: Instant,
    /// Whether work has begun since the watches were opened.
    begun: bool,
    all: Vec<Standing>,
}

#[derive(Debug)]
struct Standing {
    /// Where it watches; `None` for all namespaces.
    namespace: Option<Arc<str>>,
    listed: bool,
    trouble: Option<Trouble>,
}

#[derive(Clone, Copy, Debug)]
struct Trouble {
    last: Instant,
    /// The API server refused, rather than failed.
    refused: bool,
}

/// How an error changes the state of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It worked before.
    Broke,
    /// It worked before, or failed in another way; now it is refused.
    Refused,
    /// It fails as before.
    Again,
}

impl Sources {
    /// The state of watches that were just opened, by the namespaces that they watch.
    #[must_use]
    pub fn opened(scopes: Vec<Option<Arc<str>>>, now: Instant) -> Self {
        let standing = |namespace| Standing {
            namespace,
            listed: false,
            trouble: None,
        };
        Self {
            opened: now,
            begun: false,
            all: scopes.into_iter().map(standing).collect(),
        }
    }

    /// Applies the failure of a watch.
    pub fn failed(&mut self, source: Source, refused: bool, now: Instant) -> Failed {
        let Some(standing) = self.standing(source) else {
            return Failed::Again;
        };
        let before = standing.trouble;
        standing.trouble = Some(Trouble { last: now, refused });
        match before {
            Some(before) if before.refused || !refused => Failed::Again,
            _ if refused => Failed::Refused,
            _ => Failed::Broke,
        }
    }

    /// Applies a change that a watch has brought.
    pub fn works(&mut self, source: Source) {
        if let Some(standing) = self.standing(source) {
            standing.trouble = None;
        }
    }

    /// Applies that a watch has listed everything. True if the work had begun without it.
    pub fn listed(&mut self, source: Source) -> bool {
        let begun = self.begun;
        let Some(standing) = self.standing(source) else {
            return false;
        };
        let late = begun && !standing.listed;
        standing.listed = true;
        standing.trouble = None;
        late
    }

    /// Whether the work is to begin now; true once.
    pub fn begins(&mut self, now: Instant) -> bool {
        if self.begun {
            return false;
        }
        let patient = now.saturating_duration_since(self.opened) < PATIENCE;
        // A single watch on all namespaces has nothing else to begin with.
        let awaited = |standing: &Standing| {
            !standing.listed && !standing.is_refused() && (patient || standing.namespace.is_none())
        };
        self.begun =
            self.all.iter().any(|standing| standing.listed) && !self.all.iter().any(awaited);
        self.begun
    }

    /// Where a watch watches; `None` for all namespaces.
    #[must_use]
    pub fn namespace(&self, source: Source) -> Option<Arc<str>> {
        self.all.get(usize::from(source.0))?.namespace.clone()
    }

    /// Whether the work has begun.
    #[must_use]
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Forgets failures that are over.
    pub fn settle(&mut self, now: Instant) {
        for standing in &mut self.all {
            let over = |trouble: &mut Trouble| now.saturating_duration_since(trouble.last) >= QUIET;
            // A watch that has not listed yet reports when it has.
            if standing.listed {
                standing.trouble.take_if(over);
            }
        }
    }

    /// Whether a namespace may contain Secrets that were never seen.
    #[must_use]
    pub fn is_blind(&self, namespace: &str) -> bool {
        self.all.iter().any(|standing| {
            let covers = standing
                .namespace
                .as_deref()
                .is_none_or(|it| it == namespace);
            covers && (!standing.listed || standing.is_refused())
        })
    }

    /// The namespaces that are passed over; `None` for all of them. Before the work begins there are none.
    #[must_use]
    pub fn passed_over(&self) -> BTreeSet<Option<Arc<str>>> {
        let passed_over = |standing: &&Standing| !standing.listed || standing.is_refused();
        let found = self.all.iter().filter(passed_over);
        let found = found.map(|standing| standing.namespace.clone());
        if self.begun {
            found.collect()
        } else {
            BTreeSet::new()
        }
    }

    /// Whether each watch works, except those that are passed over, which cannot be all.
    #[must_use]
    pub fn are_up(&self) -> bool {
        let fails = |standing: &Standing| standing.trouble.is_some();
        if !self.all.is_empty() && self.all.iter().all(fails) {
            return false;
        }
        let works = |standing: &Standing| match standing.trouble {
            None => true,
            Some(_) => self.begun && (!standing.listed || standing.is_refused()),
        };
        self.all.iter().all(works)
    }

    fn standing(&mut self, source: Source) -> Option<&mut Standing> {
        self.all.get_mut(usize::from(source.0))
    }
}

impl Standing {
    fn is_refused(&self) -> bool {
        self.trouble.is_some_and(|trouble| trouble.refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: Source = Source(0);
    const PAY: Source = Source(1);

    fn two() -> (Sources, Instant) {
        let now = Instant::now();
        let scopes = vec![Some("shop".into()), Some("pay".into())];
        (Sources::opened(scopes, now), now)
    }

    #[test]
    fn a_namespace_that_is_refused_is_passed_over_until_it_is_listed() {
        let (mut sources, now) = two();
        assert_eq!(sources.failed(PAY, true, now), Failed::Refused);
        assert!(!sources.begins(now), "nothing is listed at all");
        assert!(
            !sources.are_up(),
            "before the work begins a refusal is an outage"
        );
        assert!(!sources.listed(SHOP));
        assert!(sources.begins(now) && !sources.begins(now), "once");
        assert_eq!(sources.failed(PAY, true, now), Failed::Again);
        assert!(sources.is_blind("pay") && !sources.is_blind("shop"));
        assert_eq!(sources.passed_over(), [Some("pay".into())].into());
        assert!(sources.are_up(), "all others are");
        assert!(sources.listed(PAY), "late");
        assert!(!sources.is_blind("pay") && sources.passed_over().is_empty());
    }

    #[test]
    fn a_namespace_that_fails_is_waited_for_and_then_passed_over() {
        let (mut sources, now) = two();
        sources.listed(SHOP);
        assert_eq!(sources.failed(PAY, false, now), Failed::Broke);
        assert!(!sources.begins(now + PATIENCE / 2));
        assert!(!sources.are_up());
        assert!(sources.begins(now + PATIENCE));
        assert!(sources.is_blind("pay"));
    }

    #[test]
    fn whoever_watches_all_namespaces_begins_when_both_kinds_are_listed() {
        let now = Instant::now();
        let mut sources = Sources::opened(vec![None, None], now);
        sources.listed(Source(0));
        sources.failed(Source(1), false, now);
        assert!(!sources.begins(now + PATIENCE * 10));
        // A watch whose selector the API server refuses is no reason to do nothing.
        sources.failed(Source(1), true, now);
        assert!(sources.begins(now));
        assert!(sources.is_blind("any"));
        assert_eq!(sources.passed_over(), [None].into());
    }

    #[test]
    fn a_watch_that_is_refused_later_is_told_and_is_up_again_when_it_has_been_quiet() {
        let (mut sources, now) = two();
        sources.listed(SHOP);
        sources.listed(PAY);
        assert!(sources.begins(now));
        assert_eq!(sources.failed(PAY, false, now), Failed::Broke);
        assert!(!sources.are_up());
        assert_eq!(sources.failed(PAY, true, now), Failed::Refused);
        assert!(sources.are_up() && sources.is_blind("pay"));
        sources.failed(SHOP, true, now);
        assert!(!sources.are_up(), "nothing is seen at all");
        sources.works(SHOP);
        sources.settle(now + QUIET / 2);
        assert!(sources.is_blind("pay"));
        sources.settle(now + QUIET);
        assert!(!sources.is_blind("pay") && sources.passed_over().is_empty());
        // A change of the kind of failure is reported at once.
        sources.failed(PAY, false, now);
        sources.works(PAY);
        assert!(sources.are_up());
    }
}

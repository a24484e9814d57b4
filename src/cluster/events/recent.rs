//! The Events that this process has published lately, for the view of one Secret: no watch, and no right to read Events.
//!
//! Bounded in all; where they are full, those of the namespace that has most make room, so that none hides another's.

use std::collections::{HashMap, VecDeque};

use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::detail::Told;

/// Most Events that are kept, of all Secrets.
const MOST: usize = 1_000;
/// Most of one Secret that are shown.
const SHOWN: usize = 8;
/// Longest text that is kept, in bytes.
const LONGEST: usize = 400;

/// The last Events, the latest last.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Recent {
    events: VecDeque<(Place, Told)>,
    /// How many each namespace has.
    counts: HashMap<Box<str>, usize>,
}

/// Namespace and name.
type Place = (Box<str>, Box<str>);

impl Recent {
    /// Adds an Event on a Secret.
    pub(in crate::cluster) fn add(&mut self, (namespace, name): (&str, &str), told: Told) {
        let message = told.message.floor_char_boundary(LONGEST);
        let told = Told {
            message: told.message[..message].into(),
            ..told
        };
        if self.events.len() >= MOST {
            self.make_room();
        }
        *self.counts.entry(namespace.into()).or_default() += 1;
        self.events
            .push_back(((namespace.into(), name.into()), told));
    }

    /// Drops the oldest of the namespace that has most.
    fn make_room(&mut self) {
        let counts = self.counts.iter();
        let Some((most, _)) = counts.max_by_key(|(_, count)| **count) else {
            return;
        };
        let oldest = self.events.iter().position(|((it, _), _)| it == most);
        let Some(((namespace, _), _)) = oldest.and_then(|at| self.events.remove(at)) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&namespace) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&namespace);
            }
        }
    }

    /// The last ones of a Secret; what was said again is there once, with its last time.
    pub(in crate::cluster) fn of(&self, namespace: &str, name: &str) -> Vec<Told> {
        let mut found: Vec<Told> = Vec::new();
        let of_it = self.events.iter().rev();
        let of_it = of_it.filter(|((space, it), _)| **space == *namespace && **it == *name);
        for (_, told) in of_it {
            let is_known = |it: &Told| it.reason == told.reason && it.message == told.message;
            if found.len() < SHOWN && !found.iter().any(is_known) {
                found.push(told.clone());
            }
        }
        found.reverse();
        found
    }
}

/// An Event as it is kept.
pub(in crate::cluster) fn told(at: UnixTime, kind: &str, reason: &str, message: &str) -> Told {
    Told {
        at,
        kind: kind.into(),
        reason: reason.into(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_each_secret_are_kept_and_no_namespace_hides_another() {
        let mut recent = Recent::default();
        let event = |at: usize, text: &str| {
            let at = UnixTime(i64::try_from(at).unwrap());
            told(at, "Warning", "RenewalFailed", text)
        };
        recent.add(("shop", "tls"), event(1, "no"));
        recent.add(("shop", "tls"), event(2, "no"));
        recent.add(("shop", "tls"), event(3, &"ä".repeat(LONGEST)));
        for at in 0..3 * MOST {
            recent.add(("loud", "tls"), event(at, &at.to_string()));
        }
        let kept = recent.of("shop", "tls");
        assert_eq!(kept.iter().map(|it| it.at.0).collect::<Vec<_>>(), [2, 3]);
        assert!(kept[1].message.len() <= LONGEST);
        assert_eq!(recent.events.len(), MOST);
        let loud = recent.of("loud", "tls");
        assert_eq!(loud.len(), SHOWN);
        assert_eq!(*loud[SHOWN - 1].message, *(3 * MOST - 1).to_string());
        assert_eq!(recent.of("shop", "other"), []);
    }
}

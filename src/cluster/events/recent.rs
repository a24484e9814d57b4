//! The Events that this process has published lately, for the view of one Secret: no watch, and no right to read Events.

use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::detail::Told;

use crate::process::fair::Fair;

/// Most Events that are kept, of all Secrets.
const MOST: usize = 1_000;
/// Most of one Secret that are shown.
const SHOWN: usize = 8;
/// Longest text that is kept, in bytes.
const LONGEST: usize = 400;

/// The last Events, the latest last.
#[derive(Debug)]
pub(in crate::cluster) struct Recent(Fair<Told>);

impl Default for Recent {
    fn default() -> Self {
        Self(Fair::of_at_most(MOST))
    }
}

impl Recent {
    /// Adds an Event on a Secret.
    pub(in crate::cluster) fn add(&mut self, place: (&str, &str), told: Told) {
        let message = told.message.floor_char_boundary(LONGEST);
        let told = Told {
            message: told.message[..message].into(),
            ..told
        };
        self.0.add(place, told);
    }

    /// The last ones of a Secret; what was said again is there once, with its last time.
    pub(in crate::cluster) fn of(&self, namespace: &str, name: &str) -> Vec<Told> {
        let mut found: Vec<Told> = Vec::new();
        for told in self.0.of((namespace, name)) {
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
        assert_eq!(recent.0.len(), MOST);
        let loud = recent.of("loud", "tls");
        assert_eq!(loud.len(), SHOWN);
        assert_eq!(*loud[SHOWN - 1].message, *(3 * MOST - 1).to_string());
        assert_eq!(recent.of("shop", "other"), []);
    }
}

//! What holds a renewal up that is due or asked for, and until when, in words.
//!
//! For where an instant alone would be read as an ordinary date. Pure.

use super::{State, Verdict, Why};
use crate::assess::Assessment;
use crate::time::UnixTime;

/// The certificate is young.
pub(super) fn while_young(until: UnixTime) -> String {
    format!(
        "a new certificate is asked for, and the present one is younger than a tenth of its lifetime: it is held until \
         {until}"
    )
}

/// The change window is shut.
pub(super) fn while_shut(opens: UnixTime) -> String {
    format!("it waits for the change window, which opens at {opens}")
}

/// An annotation cannot be followed.
pub(super) fn while_misread(until: UnixTime) -> String {
    format!("an annotation is invalid: it is renewed only when little life is left, at {until}")
}

impl Verdict {
    /// What holds its renewal up, and until when; none where it is renewed as soon as it is due, or never.
    #[must_use]
    pub fn held_up(&self, now: UnixTime) -> Option<String> {
        let until = self.renews.filter(|at| *at > now)?;
        if *self.renews_why == *Why::LittleLifeLeft.as_str() {
            let problem = self.problems.first();
            let problem = problem.map_or_else(String::new, |it| format!("; {it}"));
            return Some(while_misread(until) + &problem);
        }
        match (self.state, &self.last_error) {
            (State::Held | State::Due, _) => Some(self.reason.to_string()),
            // Their reason, and their error, are about something else.
            (State::RolloutFailing | State::PairBroken | State::Blocked, _) => {
                let why = Why::of_word(&self.renews_why);
                let is_asked_for = !why.is_some_and(Why::is_by_the_clock);
                is_asked_for.then(|| format!("a new certificate is due, and waits until {until}"))
            }
            (_, Some(error)) if self.next_try == Some(until) => {
                Some(format!("the next try is at {until}: {error}"))
            }
            (State::Expired | State::Absent | State::Unreadable, _) => {
                Some(self.reason.to_string())
            }
            _ => None,
        }
    }
}

/// The same by what a Secret says itself, of which no operator was asked.
#[must_use]
pub fn of_assessment(now: UnixTime, assessment: &Assessment) -> Option<String> {
    let due = assessment.renewal.ok()?;
    if let Some(until) = assessment.blocked_until(now) {
        let problem = assessment.problems.iter().find(|it| it.blocks.issue());
        let problem = problem.map_or_else(String::new, |it| format!("; {it}"));
        return Some(while_misread(until) + &problem);
    }
    if due.at > now {
        return None;
    }
    let young = assessment.held_until.map(while_young);
    young.or_else(|| assessment.opens.map(while_shut))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::assess;
    use crate::config::Config;
    use crate::index::{Index, Observed};
    use crate::schedule::due::{AT_ONCE, Due, Reason};
    use crate::secret::SecretRef;
    use crate::secret::object::thin::ThinSecret;
    use crate::secret::settings::Blocks;
    use crate::testing::entries::{self, NOW};

    fn held_up(change: impl FnOnce(&mut Observed)) -> Option<String> {
        let (mut index, mut observed) = (Index::default(), entries::healthy());
        change(&mut observed);
        entries::add(&mut index, "tls", observed);
        let (row, _) = index.iter().next().unwrap();
        Verdict::of_row(NOW, &index, row, 0).unwrap().held_up(NOW)
    }

    fn due(observed: &mut Observed) {
        observed.renewal = Ok(Due {
            at: AT_ONCE,
            reason: Reason::RenewNow,
        });
    }

    #[test]
    fn what_holds_a_renewal_up_is_told_with_its_end() {
        assert_eq!(held_up(|_| {}), None, "it is not due");
        assert_eq!(held_up(due), None, "it is renewed now");
        let later = NOW + Duration::from_secs(86_400);
        let young = held_up(|it| {
            due(it);
            it.held_until = Some(later);
        });
        assert_eq!(young, Some(while_young(later)));
        let shut = held_up(|it| {
            due(it);
            it.window = Some(later);
        });
        let shut = shut.unwrap();
        assert!(
            shut.ends_with("it waits for the change window, which opens at 2023-11-15T22:13:20Z"),
            "{shut}"
        );
        let all = entries::index();
        let of = |name: &str| {
            let rows: Vec<_> = all.iter().map(|(row, _)| row).collect();
            let verdicts = rows.into_iter();
            let mut verdicts = verdicts.filter_map(|row| Verdict::of_row(NOW, &all, row, 1));
            verdicts.find(|it| *it.name == *name).unwrap().held_up(NOW)
        };
        let failing = of("failing").unwrap();
        assert_eq!(failing, "the next try is at 2023-11-15T22:13:20Z: no");
        assert!(of("misread").unwrap().contains("at 2023-12-14T22:13:20Z"));
        // What is misread holds its rollouts up, and not its renewal.
        let misread = held_up(|it| it.blocked = Blocks::Rollout);
        assert_eq!(misread, None);
        let both = held_up(|it| {
            due(it);
            (it.blocked, it.held_until) = (Blocks::Rollout, Some(later));
        });
        let waits = "a new certificate is due, and waits until 2023-11-15T22:13:20Z";
        assert_eq!(both.as_deref(), Some(waits));
        for name in ["healthy", "paused", "due", "halted", "expiring"] {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn a_secret_says_the_same_without_an_operator() {
        use base64::Engine as _;
        let config = "issuers: {le: {directory: 'https://ca.example/', allow: [{namespaces: [shop], \
                      names: ['**.example.com', 'example.com', '0.0.0.0/0', '::/0']}]}}";
        let config = Config::parse(config).unwrap();
        let certificate = base64::prelude::BASE64_STANDARD.encode(crate::testing::file("good.pem"));
        let of = |now: &str, more: serde_json::Value| {
            let mut annotations = json!({"cert-renew.io/issuer": "le"});
            let all = annotations.as_object_mut().unwrap();
            all.extend(more.as_object().unwrap().clone());
            let metadata = json!({"namespace": "shop", "name": "tls", "annotations": annotations});
            let text = format!(
                r#"{{"metadata": {metadata}, "type": "kubernetes.io/tls", "data": {{"tls.crt": "{certificate}"}}}}"#
            );
            let secret: ThinSecret = serde_json::from_str(&text).unwrap();
            let (now, key) = (now.parse().unwrap(), SecretRef::new("shop", "tls"));
            of_assessment(now, &assess::of_thin(now, &key, &secret, &config).unwrap())
        };
        let (young, grown) = ("2026-01-02T00:00:00Z", "2026-02-01T00:00:00Z");
        let asked = json!({"cert-renew.io/renew-now": "today"});
        let held = of(young, asked.clone()).unwrap();
        assert!(held.contains("it is held until 2026-01-"), "{held}");
        assert_eq!(of(grown, asked), None);
        assert_eq!(of(young, json!({})), None);
        let shut = json!({"cert-renew.io/renew-now": "today",
            "cert-renew.io/change-window": "Mon 00:00-00:01 UTC"});
        let shut = of(grown, shut).unwrap();
        assert!(shut.contains("opens at 2026-02-02T00:00:00Z"), "{shut}");
        let misread = of(grown, json!({"cert-renew.io/key-type": "rsa"})).unwrap();
        assert!(
            misread.contains("little life is left, at 2026-")
                && misread.contains("cert-renew.io/key-type: \"rsa\""),
            "{misread}"
        );
    }
}

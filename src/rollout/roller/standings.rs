//! The progress of each Secret of a batch while the steps run.

use std::collections::BTreeMap;

use cert_renew_core::rollout::types::Step;
use cert_renew_core::text::error_chain;
use parking_lot::Mutex;

use super::looks::Withdrawal;
use super::outcome::{Consequence, Ended, Outcome};
use crate::rollout::error::Error;

/// The progress of each Secret of a batch while the steps run.
pub(in crate::rollout) struct Standings(Mutex<BTreeMap<Box<str>, Standing>>);

/// The progress of one Secret.
#[derive(Debug, Default)]
struct Standing {
    /// Its outcome so far, unless that is `Done`.
    outcome: Option<Outcome>,
    /// No further step is started for it.
    stopped: bool,
}

impl Standings {
    /// Nothing has ended yet.
    pub(super) fn new(secrets: &[Box<str>]) -> Self {
        let all = secrets
            .iter()
            .map(|secret| (secret.clone(), Standing::default()));
        Self(Mutex::new(all.collect()))
    }

    /// The outcome of a Secret all of whose steps have ended.
    pub(super) fn take(&self, secret: &str) -> Outcome {
        let standing = self.0.lock().remove(secret);
        standing.and_then(|it| it.outcome).unwrap_or(Outcome::Done)
    }

    /// Whether a step may no longer start because one of its Secrets is stopped. A restart would roll out that Secret's
    /// leaf too, so the step's other Secrets stay without it as well, and end the same way.
    pub(in crate::rollout) fn is_stopped(&self, step: &Step) -> bool {
        let mut standing = self.0.lock();
        let leaves = step.leaves.iter();
        let mut secrets = leaves.filter_map(|due| Some((&due.secret, standing.get(&due.secret)?)));
        let Some((secret, stopped)) = secrets.find(|(_, it)| it.stopped) else {
            return false;
        };
        let outcome = match &stopped.outcome {
            None => return false,
            Some(Outcome::Withdrawn(_)) => {
                let id = &step.workload.id;
                Outcome::Beside(format!("{id} uses Secret {secret} too, which has changed"))
            }
            Some(other) => other.clone(),
        };
        for due in &step.leaves {
            if let Some(other) = standing.get_mut(&due.secret) {
                other.outcome.get_or_insert_with(|| outcome.clone());
            }
        }
        true
    }

    /// Stops a Secret that was withdrawn. What it holds says more than how the rollout went.
    pub(super) fn withdraw(&self, secret: &str, withdrawal: Withdrawal) {
        if let Some(it) = self.0.lock().get_mut(secret) {
            it.stopped = true;
            it.outcome = Some(Outcome::Withdrawn(withdrawal));
        }
    }

    /// Applies the end of a step to its Secrets, and returns those that it stops. A halt outweighs a deferral, and that
    /// outweighs pods that lack the leaf.
    pub(super) fn conclude(&self, step: &Step, result: &Result<Ended, Error>) -> Vec<Box<str>> {
        let id = &step.workload.id;
        let (outcome, stops) = match result {
            Ok(
                Ended::Rolled(_)
                | Ended::Reloaded(_)
                | Ended::Unchanged
                | Ended::Unavailable(_)
                | Ended::Skipped,
            ) => return Vec::new(),
            Ok(Ended::Incomplete(why)) => {
                (Outcome::Incomplete(vec![(id.clone(), why.clone())]), false)
            }
            Ok(Ended::Failed(why, weight)) => (
                Outcome::Halted(id.clone(), why.clone()),
                *weight == Consequence::Stops,
            ),
            Ok(Ended::Deferred(why)) => (Outcome::Deferred(why.clone()), false),
            Ok(Ended::Withdrawn(secret, withdrawal)) => {
                self.withdraw(secret, withdrawal.clone());
                self.is_stopped(step);
                return vec![secret.clone()];
            }
            // The state of the workload is unknown: until it is known, no other follows it.
            Err(error) => (
                Outcome::Interrupted(format!("{id}: {}", error_chain(error))),
                true,
            ),
        };
        let (mut standing, mut stopped) = (self.0.lock(), Vec::new());
        for due in &step.leaves {
            let Some(it) = standing.get_mut(&due.secret) else {
                continue;
            };
            if stops {
                it.stopped = true;
                stopped.push(due.secret.clone());
            }
            match (&mut it.outcome, &outcome) {
                (Some(Outcome::Halted(..) | Outcome::Withdrawn(_)), _)
                | (
                    Some(Outcome::Deferred(_) | Outcome::Interrupted(_) | Outcome::Beside(_)),
                    Outcome::Incomplete(_),
                ) => {}
                (Some(Outcome::Incomplete(all)), Outcome::Incomplete(more)) => {
                    all.extend(more.iter().cloned());
                }
                (it, _) => *it = Some(outcome.clone()),
            }
        }
        stopped
    }
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::of_secrets as step;
    use cert_renew_core::time::UnixTime;
    use std::time::Duration;

    use super::*;
    use crate::cluster;

    /// The progress of Secrets a, b and c: `-` open, `h` halted, `d` deferred, `i` interrupted,
    /// else how many workloads lack the leaf; upper case when stopped.
    fn stands(standings: &Standings) -> String {
        let letter = |it: &Standing| {
            let letter = match &it.outcome {
                None | Some(Outcome::Done) => '-',
                Some(Outcome::Incomplete(lacking)) => {
                    char::from_digit(u32::try_from(lacking.len()).unwrap(), 10).unwrap()
                }
                Some(Outcome::Halted(..)) => 'h',
                Some(Outcome::Deferred(_)) => 'd',
                Some(Outcome::Interrupted(_)) => 'i',
                Some(Outcome::Withdrawn(_)) => 'w',
                Some(Outcome::Beside(_)) => 'b',
            };
            if it.stopped {
                letter.to_ascii_uppercase()
            } else {
                letter
            }
        };
        standings.0.lock().values().map(letter).collect()
    }

    fn withdrawal() -> Withdrawal {
        Withdrawal {
            at: UnixTime(0),
            why: None,
            superseded: false,
            shut: false,
        }
    }

    fn standings() -> Standings {
        Standings::new(&["a", "b", "c"].map(Box::from))
    }

    #[test]
    fn a_failure_stops_the_secrets_that_it_concerns_and_no_others() {
        let why = || String::from("why");
        for (ended, expected) in [
            (Ok(Ended::Rolled(Duration::ZERO)), "---"),
            (Ok(Ended::Reloaded(2)), "---"),
            (Ok(Ended::Unchanged), "---"),
            (Ok(Ended::Unavailable(why())), "---"),
            (Ok(Ended::Incomplete(why())), "11-"),
            (Ok(Ended::Failed(why(), Consequence::Alone)), "hh-"),
            (Ok(Ended::Failed(why(), Consequence::Stops)), "HH-"),
            (Ok(Ended::Deferred(why())), "dd-"),
            (Err(cluster::Error::Deadline { what: why() }.into()), "II-"),
            (Ok(Ended::Withdrawn("a".into(), withdrawal())), "Wb-"),
        ] {
            let standings = standings();
            standings.conclude(&step("web", &["a", "b"]), &ended);
            assert_eq!(stands(&standings), expected, "{ended:?}");
        }
    }

    #[test]
    fn a_halt_outweighs_what_is_put_off() {
        let standings = standings();
        let halted = Ok(Ended::Failed("first".into(), Consequence::Alone));
        standings.conclude(&step("web", &["a"]), &Ok(Ended::Deferred("paused".into())));
        standings.conclude(&step("web", &["a"]), &halted);
        standings.conclude(&step("web", &["a"]), &Ok(Ended::Deferred("paused".into())));
        assert_eq!(stands(&standings), "h--");
    }

    #[test]
    fn those_that_lack_the_leaf_are_gathered_and_outweighed_by_what_is_put_off() {
        let standings = standings();
        for name in ["web", "db"] {
            let lacks = Ok(Ended::Incomplete("1 pod".into()));
            standings.conclude(&step(name, &["a", "b"]), &lacks);
        }
        assert_eq!(stands(&standings), "22-");
        for (ended, expected) in [
            (Ended::Deferred("paused".into()), "d2-"),
            (Ended::Incomplete("1 pod".into()), "d2-"),
            (Ended::Failed("why".into(), Consequence::Alone), "h2-"),
            (Ended::Incomplete("1 pod".into()), "h2-"),
        ] {
            standings.conclude(&step("other", &["a"]), &Ok(ended));
            assert_eq!(stands(&standings), expected);
        }
    }

    #[test]
    fn a_workload_is_not_restarted_for_one_secret_while_another_of_its_is_stopped() {
        let standings = standings();
        standings.conclude(
            &step("web", &["a"]),
            &Ok(Ended::Failed("why".into(), Consequence::Stops)),
        );
        assert!(!standings.is_stopped(&step("other", &["b", "c"])));
        assert!(standings.is_stopped(&step("shared", &["a", "b"])));
        // b's other workloads may go on, but b is not done.
        assert_eq!(stands(&standings), "Hh-");
        assert!(!standings.is_stopped(&step("other", &["b"])));
    }
}

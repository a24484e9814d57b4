//! How a renewal ends that did not fail, and how a due one that is held back is reported.

pub(super) mod failure;
mod on_failure;
pub(super) mod secret_failures;
mod words;

use std::time::Duration;

use cert_renew_core::index::Stuck;
use cert_renew_core::schedule::due::Never;
use cert_renew_core::schedule::rate_limits::{self, Hold};
use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::settings::Problem;
use cert_renew_core::time::{UnixTime, duration};

use super::renewals::Renewal;
use super::target::RenewalTarget;
use crate::cluster::events;
use crate::renewal::limits::validations::ValidationHold;
use crate::renewal::outcome::failure::Failure;

/// Delay for a Secret that another program writes; the watch brings it sooner when it changes.
const OWNED: Duration = Duration::from_secs(3_600);

/// How a renewal ended that did not fail.
pub(super) enum Outcome {
    /// The new pair is in the Secret.
    Renewed,
    /// A former run had written it already; only the record remained.
    Tidied,
    /// Not to be renewed before then.
    Later(UnixTime, Option<Box<str>>),
    /// Retrying will not help; a person has to act.
    Stuck(UnixTime, Stuck, Box<str>),
}

/// How far an order got.
pub(super) enum Progress {
    /// It is finished.
    Ended(Outcome),
    /// It goes on at this instant.
    Waits(UnixTime),
}

/// Why the next step of an order is not taken.
pub(super) enum NotTaken {
    /// The Secret may not change before this instant.
    Waits(UnixTime),
    /// It no longer asks for the order, or cannot be looked at.
    Failed(Box<Failure>),
}

impl From<Failure> for NotTaken {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl NotTaken {
    /// What becomes of the order.
    ///
    /// # Errors
    /// With the failure, if there is one.
    pub(super) fn progress(self) -> Result<Progress, Failure> {
        match self {
            Self::Waits(until) => Ok(Progress::Waits(until)),
            Self::Failed(failure) => Err(*failure),
        }
    }
}

impl Renewal<'_> {
    /// Leaves a Secret alone until then because a rate limit says no, and reports that once.
    pub(super) fn held_by_budget(self, fresh: &RenewalTarget, hold: Hold) -> Outcome {
        let until = hold.until();
        let ours = fresh.assessment.issued_by.is_some();
        let undone = ours && matches!(hold, Hold::KeepsComingBack { .. });
        let account = self.shared.ledger.get(fresh.assessment.account);
        let window = duration::human(account.window());
        let note = match hold {
            Hold::BackOff { .. } => {
                return Outcome::Later(until, self.shared.renewal_error(self.key));
            }
            Hold::TooYoung { .. } => {
                let renew = format!("cert-renew renew --force {}", self.key);
                format!(
                    "the certificate is younger than a tenth of its lifetime; a new one is asked for after {until} ({} asks \
                 at once, within the number of certificates a week that CAs allow)",
                    self.shared.command(&renew)
                )
            }
            Hold::TooMany { .. } => format!(
                "{} certificates for these names were issued within {window}, and CAs count them; the next one is asked for \
             after {until}",
                rate_limits::ISSUES_A_WEEK
            ),
            Hold::WantedBack { .. } => format!(
                "the CA's renewal window says that each new certificate is to be replaced at once: {} were issued within \
             {window} and no more is asked for before {until}. Is this machine's clock right?",
                rate_limits::UNSCHEDULED_A_WEEK
            ),
            // A Secret that was deleted and created again holds nothing of ours that could have been undone.
            Hold::KeepsComingBack { .. } if !ours => format!(
                "{} certificates for these names were issued within {window} because the Secret had none, and no more is \
             asked for before {until}. Is the Secret deleted and made again and again?",
                rate_limits::UNSCHEDULED_A_WEEK
            ),
            Hold::KeepsComingBack { .. } => {
                let owners = other_writers(&fresh.secret).join(", ");
                let owners = if owners.is_empty() {
                    "somebody".to_owned()
                } else {
                    owners
                };
                format!(
                    "{owners} keeps replacing the certificate: {} were issued within {window} and no more is asked for \
                 before {until}. Keep the data out of what {owners} applies (Flux: annotation \
                 kustomize.toolkit.fluxcd.io/ssa: IfNotPresent; Argo CD: ignoreDifferences on /data)",
                    rate_limits::UNSCHEDULED_A_WEEK
                )
            }
        };
        self.not_now(
            fresh,
            (until, undone.then_some(Stuck::OtherOwner)),
            events::Reason::RenewalHeld,
            note,
        )
    }

    /// Holds a name that must not fail validation once more now.
    pub(super) fn unproven(self, fresh: &RenewalTarget, held: ValidationHold) -> Outcome {
        match held {
            ValidationHold::UnderWay(name, until) => {
                let note = format!("waits until other orders have proven {name}");
                tracing::debug!(secret = %self.key, %until, note, "the renewal waits");
                Outcome::Later(until, Some(note.into()))
            }
            ValidationHold::Failed(name, until) => {
                let note = format!(
                    "{} validations of {name} have failed within an hour, as many as CAs let pass; the next try is after \
                 {until}",
                    rate_limits::FAILED_VALIDATIONS
                );
                self.not_now(fresh, (until, None), events::Reason::RenewalHeld, note)
            }
        }
    }

    /// Leaves a Secret alone that another program writes, or that nobody can change.
    pub(super) fn left_alone(
        self,
        fresh: &RenewalTarget,
        never: Never,
        problem: &Problem,
    ) -> Outcome {
        let reason = match never {
            Never::OwnedByAnother => events::Reason::OwnedByAnother,
            _ => events::Reason::RenewalHeld,
        };
        let until = UnixTime::now() + OWNED;
        let stuck = (until, Some(Stuck::OtherOwner));
        self.not_now(fresh, stuck, reason, format!("not renewed: {problem}"))
    }

    /// Leaves the Secret alone until then, and reports once why.
    pub(super) fn not_now(
        self,
        fresh: &RenewalTarget,
        (until, stuck): (UnixTime, Option<Stuck>),
        reason: events::Reason,
        note: String,
    ) -> Outcome {
        if !self.shared.renewal_said(self.key, &note) {
            tracing::warn!(secret = %self.key, %until, note, "the renewal is held back");
            self.tell(fresh.uid(), reason, &note);
        }
        match stuck {
            Some(stuck) => Outcome::Stuck(until, stuck, note.into()),
            None => Outcome::Later(until, Some(note.into())),
        }
    }
}

/// The other field managers that write the data, the first few: each writer chooses its own name.
fn other_writers(secret: &FullSecret) -> Vec<&str> {
    const NAMED: usize = 5;
    let managers = secret.managers.iter();
    let others = managers.filter(|it| it.owns_data && it.name != keys::FIELD_MANAGER);
    let mut names = Vec::new();
    for manager in others {
        if names.len() < NAMED && !names.contains(&manager.name.as_str()) {
            names.push(manager.name.as_str());
        }
    }
    names
}

//! Whether asking for a renewal would do anything, and if not, why. Pure.

use cert_renew_core::assess::{self, Assessment};
use cert_renew_core::config::{Config, Labels};
use cert_renew_core::schedule::due::{Never, Reason};
use cert_renew_core::schedule::rate_limits::{self, AccountId, Claim, Hold, IssuanceHistory};
use cert_renew_core::secret::data::data_keys::TLS_TYPE;
use cert_renew_core::secret::declared;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::settings::{IssuerRef, NamespaceDefaults, Problem, Settings};
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::text::hash::hash;
use cert_renew_core::time::{UnixTime, duration};
use cert_renew_core::verdict::Why;

use crate::cli::change::passed_over::{OfClass, PassedOver, passed_over};

/// A request for a renewal that is about to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    /// The value of `renew-now`; none where something else asks for it, which forgets no back-off.
    pub(super) value: Option<&'a str>,
    /// Whether the value forces the renewal.
    pub(super) force: bool,
    /// Whether key and certificate do not belong together, or no server can load them: a good cause.
    pub(super) is_broken: bool,
}

/// What will be done about a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::change) enum Verdict {
    /// It is renewed, for all that can be known here.
    Renews,
    /// It is renewed when its change window opens.
    Waits(UnixTime),
    /// Nothing is known against it, as this part of the operator cannot be read.
    Unknown(&'static str),
    /// Nothing would happen before this instant, and why.
    NotBefore(UnixTime, String),
    /// It is left to another installation.
    OfClass(OfClass),
    /// Nothing would happen, and why.
    Nothing(String),
}

impl Verdict {
    /// Why nothing would happen now, or not by this installation.
    pub(super) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Renews | Self::Waits(_) | Self::Unknown(_) => None,
            Self::NotBefore(_, why) | Self::OfClass(OfClass { why, .. }) | Self::Nothing(why) => {
                Some(why)
            }
        }
    }
}

impl From<PassedOver> for Verdict {
    fn from(why: PassedOver) -> Self {
        match why {
            PassedOver::Nothing(why) => Self::Nothing(why),
            PassedOver::OfClass(of) => Self::OfClass(of),
        }
    }
}

/// Judges a wish by the Secret, and by as much of the operator as is known.
pub(super) fn verdict(
    now: UnixTime,
    secret: &ThinSecret,
    wish: Wish<'_>,
    (config, labels): (Option<&Config>, Labels<'_>),
    account: impl Fn(AccountId) -> Option<IssuanceHistory>,
) -> Verdict {
    let nothing = |why: String| Verdict::Nothing(why);
    let head = &secret.head;
    if head.deleting {
        return nothing("it is being deleted".into());
    }
    let none = std::collections::BTreeMap::new();
    let annotations = head.annotations().unwrap_or(&none);
    let unset = NamespaceDefaults::default();
    let defaults = config.map_or(&unset, |config| config.namespace(head.namespace()));
    let (settings, problems) = Settings::read(annotations, head.managed, defaults);
    let settings = match settings {
        Some(settings) if head.concerns_us() => settings,
        _ => return nothing(not_annotated(secret, config.is_some())),
    };
    if let Some(why) = passed_over(secret, &settings, config) {
        return why.into();
    }
    if let Some(why) = left_alone(head).filter(|_| settings.issuer != IssuerRef::External) {
        return nothing(why);
    }
    let Some(config) = config else {
        return match undeclared(head).or_else(|| of_settings(&settings, &problems)) {
            Some(why) => nothing(why),
            None => Verdict::Unknown("its config"),
        };
    };
    let key = SecretRef {
        namespace: head.namespace().into(),
        name: head.name().into(),
    };
    let view = (config, labels);
    let Some(assessment) = assess::of_thin_labelled(now, &key, secret, view) else {
        return nothing(not_annotated(secret, true));
    };
    if let Some(why) = of_settings(&assessment.settings, &assessment.problems) {
        match assessment.renewal {
            // Close to its end it is renewed although an annotation is invalid.
            Ok(due) if due.at <= now && assessment.leaf.is_ok() => {}
            Ok(due) if assessment.leaf.is_ok() => {
                let why = format!(
                    "{why}; it is renewed only when little life is left, at {}",
                    due.at
                );
                return Verdict::NotBefore(due.at, why);
            }
            _ => return nothing(why),
        }
    }
    if let Err(never) = assessment.renewal {
        return nothing(of_never(never, &assessment));
    }
    let account = account(assessment.account);
    let unread = account.is_none();
    let mut account = account.unwrap_or_default();
    // With other settings than those that failed it is tried at once.
    let (subject, settings) = (hash(&key.to_string()), head.digest());
    account.mend(|tried| tried.subject == subject && tried.settings != settings);
    match held(now, &assessment, wish, &account) {
        Some((until, why)) => Verdict::NotBefore(until, why),
        None if unread => Verdict::Unknown("its failure history"),
        None => assessment.opens.map_or(Verdict::Renews, Verdict::Waits),
    }
}

/// What its annotations alone say against it.
fn of_settings(settings: &Settings, problems: &[Problem]) -> Option<String> {
    if settings.issuer == IssuerRef::External {
        return Some(format!(
            "{}: external means that somebody else renews it",
            keys::ISSUER
        ));
    }
    if settings.paused {
        return Some(format!("it is paused, by {}", keys::PAUSED));
    }
    let mut blocking = problems.iter().filter(|problem| problem.blocks.issue());
    let first = blocking.next()?;
    let mut why = format!("an annotation is invalid: {first}");
    for problem in blocking {
        why += &format!("; {problem}");
    }
    Some(why)
}

/// Why it is not written, whatever it asks for.
fn left_alone(head: &Head) -> Option<String> {
    let (never, problem) = assess::left_alone(head)?;
    let why = Why::Never(never).in_words();
    Some(format!("{why}: {}", problem.expected))
}

/// That nothing declares it any more, which the Secret says itself.
fn undeclared(head: &Head) -> Option<String> {
    let key = SecretRef::new(head.namespace(), head.name());
    let is = declared::is_undeclared(&key, head);
    is.then(|| Why::Never(Never::Undeclared).in_words().into())
}

fn not_annotated(secret: &ThinSecret, defaults_are_known: bool) -> String {
    let issuer = keys::ISSUER;
    let default = if defaults_are_known {
        ", and its namespace has no default issuer"
    } else {
        ""
    };
    let label = if secret.kind == TLS_TYPE {
        String::new()
    } else {
        format!(
            "; a Secret of another type than kubernetes.io/tls needs the label {}: \"true\" too",
            keys::MANAGED_LABEL
        )
    };
    format!("cert-renew does not manage it: it has no annotation {issuer}{default}{label}")
}

fn of_never(never: Never, assessment: &Assessment) -> String {
    match never {
        Never::NoNames => format!(
            "nobody knows which names to ask for: it holds no certificate that has any, so write {}",
            keys::NAMES
        ),
        Never::UnknownIssuer => format!(
            "the config has no issuer {}",
            assess::issuer_name(&assessment.settings.issuer)
        ),
        never => Why::Never(never).in_words().into(),
    }
}

/// The hold that would stop the renewal, and its end.
fn held(
    now: UnixTime,
    assessment: &Assessment,
    wish: Wish<'_>,
    account: &IssuanceHistory,
) -> Option<(UnixTime, String)> {
    let reason = match assessment.renewal {
        // Another cause comes before the wish.
        Ok(due)
            if due.at <= now
                && !due.reason.is_scheduled()
                && due.reason != Reason::OutputsChanged =>
        {
            due.reason
        }
        _ => Reason::RenewNow,
    };
    let own = assessment.claim(reason);
    // A new value takes the place of an earlier one, which may have forced a renewal.
    let caused = match wish.value {
        Some(_) => assessment.has_moved(),
        None => own.caused,
    };
    let claim = Claim {
        wish: wish.value.map(hash).or(own.wish),
        caused: caused || wish.force || wish.is_broken,
        ..own
    };
    let hold = claim.hold(now, account)?;
    let window = duration::human(account.window());
    let until = hold.until();
    let why = match hold {
        Hold::TooYoung { .. } => {
            let lifetime = assessment.leaf.as_ref().map_or_else(
                |_| String::new(),
                |leaf| format!(" of {}", duration::human(leaf.lifetime())),
            );
            format!(
                "its certificate is younger than a tenth of its lifetime{lifetime}; from {until} on a new one can be asked \
                 for. --force asks now, and counts against the {} certificates within {window} that CAs allow",
                rate_limits::ISSUES_A_WEEK
            )
        }
        Hold::BackOff { .. } => {
            format!("its last renewals failed or the CA has limited it; the next try is at {until}")
        }
        Hold::TooMany { .. } => format!(
            "{} certificates for its names were issued within {window}, as many as CAs allow; the next one can be asked \
             for from {until} on",
            rate_limits::ISSUES_A_WEEK
        ),
        Hold::KeepsComingBack { .. } | Hold::WantedBack { .. } => format!(
            "{} certificates for its names were issued within {window} although none was due; the next one can be asked \
             for from {until} on",
            rate_limits::UNSCHEDULED_A_WEEK
        ),
    };
    Some((until, why))
}

#[cfg(test)]
mod tests;

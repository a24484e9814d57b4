//! When a Secret's certificate is due for renewal, and why.
//!
//! Input: what the certificate, the annotations and the CA's renewal information say.
//! Output: an instant, or the reason why there is none.
//! It takes no `now`: the answer changes only with its inputs, so an index can keep it for months.

use std::time::Duration;

use crate::certificate::{Leaf, Unreadable};
use crate::secret::settings::{IssuerRef, KeyRotation, RenewBefore, Settings};
use crate::secret::state::IssuedBy;
use crate::text::name::Covering;
use crate::time::UnixTime;

/// Below this lifetime, half of it may be left at renewal, as Let's Encrypt's integration guide asks.
const SHORT_LIVED: Duration = Duration::from_secs(10 * 86_400);
/// Share of the lifetime over which renewals of one day are spread, up to [`MAX_JITTER`].
const JITTER_SHARE: u64 = 60;
/// Longest spread of renewals: half a day puts 10,000 certificates of one minute four seconds apart.
const MAX_JITTER: Duration = Duration::from_secs(12 * 3_600);
/// A certificate younger than this share of its lifetime is not replaced without a good cause.
pub const YOUNG_SHARE: u32 = 10;
/// A setting that does not parse delays a renewal until this share of the lifetime is left.
const EMERGENCY_SHARE: u32 = 6;

/// Why a renewal is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The Secret holds no certificate.
    NoCertificate,
    /// The certificate cannot be read.
    Unreadable,
    /// A self-signed placeholder, although the issuer is a CA.
    Placeholder,
    /// One of the wanted names is not in the certificate.
    MissingName,
    /// The `profile` annotation changed since the last issue.
    ProfileChanged,
    /// The `lifetime` annotation changed since the last issue.
    LifetimeChanged,
    /// The `key-type` annotation differs from the present key.
    KeyTypeChanged,
    /// `outputs` changed since the pair was written: the outputs are written again, and no CA is asked.
    OutputsChanged,
    /// It is from a staging CA, which no client trusts, although the issuer is not one.
    Staging,
    /// `revoked` names the present leaf.
    Revoked,
    /// `renew-now` carries a value that was not served yet.
    RenewNow,
    /// The CA's renewal information (RFC 9773) asks for it.
    RenewalInfo,
    /// The lifetime has come to the point of renewal.
    Lifetime,
    /// The certificate that signed it ends sooner than itself: the same point before that end.
    IssuerEnds,
}

impl Reason {
    /// Stable name for Events, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "NoCertificate",
            Self::Unreadable => "Unreadable",
            Self::Placeholder => "Placeholder",
            Self::MissingName => "MissingName",
            Self::ProfileChanged => "ProfileChanged",
            Self::LifetimeChanged => "LifetimeChanged",
            Self::KeyTypeChanged => "KeyTypeChanged",
            Self::OutputsChanged => "OutputsChanged",
            Self::Staging => "Staging",
            Self::Revoked => "Revoked",
            Self::RenewNow => "RenewNow",
            Self::RenewalInfo => "RenewalInfo",
            Self::Lifetime => "Lifetime",
            Self::IssuerEnds => "IssuerEnds",
        }
    }

    /// Whether the clock (ours or the CA's) asked for it; renewals after an edit are budgeted (invariant 6).
    #[must_use]
    pub fn is_scheduled(self) -> bool {
        matches!(self, Self::Lifetime | Self::IssuerEnds | Self::RenewalInfo)
    }
}

/// An instant and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Not before this; [`AT_ONCE`] if there is nothing to wait for.
    pub at: UnixTime,
    /// Why.
    pub reason: Reason,
}

impl Due {
    /// The same, or what the CA suggests. A CA does not say when its own certificate ends, so its suggestion delays no
    /// renewal for that.
    #[must_use]
    pub fn or_suggested(self, suggested: Option<Self>) -> Self {
        let counts = |it: &Self| self.reason != Reason::IssuerEnds || it.at < self.at;
        suggested.filter(counts).unwrap_or(self)
    }
}

/// Why nothing will be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Never {
    /// `issuer: external`: another program renews.
    External,
    /// It has no annotations: it is only observed, by `watch.observe: all`.
    NotAnnotated,
    /// `paused: true` on the Secret.
    Paused,
    /// `paused: true` in the config.
    AllPaused,
    /// No certificate and no `names`: it is unknown what to ask for.
    NoNames,
    /// The config has no such issuer.
    UnknownIssuer,
    /// The config does not grant the namespace all of the names.
    NotAllowed,
    /// Another program writes it, such as cert-manager.
    OwnedByAnother,
    /// `immutable: true`: the API server refuses every change of its data.
    Immutable,
    /// What declared it is gone.
    Undeclared,
}

impl Never {
    /// Whether it ends by itself when a pause ends.
    #[must_use]
    pub fn is_pause(self) -> bool {
        matches!(self, Self::Paused | Self::AllPaused)
    }

    /// Stable name, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::External => "External",
            Self::NotAnnotated => "NotAnnotated",
            Self::Paused => "Paused",
            Self::AllPaused => "AllPaused",
            Self::NoNames => "NoNames",
            Self::UnknownIssuer => "UnknownIssuer",
            Self::NotAllowed => "NotAllowed",
            Self::OwnedByAnother => "OwnedByAnother",
            Self::Immutable => "Immutable",
            Self::Undeclared => "Undeclared",
        }
    }
}

/// What a CA's renewal information may change about an instant of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AriPolicy {
    /// Nothing: something other than the clock decides.
    #[default]
    Nothing,
    /// `renew-before` replaces the ordinary instant only: a window in the past still means now.
    Past,
    /// All of it.
    Any,
}

/// What a CA's renewal information says of a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Suggestion {
    /// Not asked yet: until then, our own rule alone renews nothing.
    #[default]
    Unasked,
    /// Asked, without a valid answer: our own rule holds.
    None,
    /// The instant chosen in its window.
    At(UnixTime),
}

impl Suggestion {
    /// The instant, if there is one.
    #[must_use]
    pub fn instant(self) -> Option<UnixTime> {
        match self {
            Self::At(at) => Some(at),
            Self::Unasked | Self::None => None,
        }
    }
}

impl AriPolicy {
    /// The suggested instant for a certificate of this validity, if it counts.
    #[must_use]
    pub fn takes(self, at: UnixTime, not_before: UnixTime, not_after: UnixTime) -> Option<Due> {
        let lifetime = not_after.since(not_before);
        let counts = match self {
            Self::Nothing => false,
            Self::Past => at < not_before + lifetime / 10,
            Self::Any => true,
        };
        // A window that reaches to the end leaves no time for a second try.
        let latest = not_after - lifetime / EMERGENCY_SHARE;
        counts.then(|| Due {
            at: at.min(latest),
            reason: Reason::RenewalInfo,
        })
    }
}

/// How far the clock, and with it the CA's renewal information, decides about a Secret.
#[must_use]
pub fn heed(due: Result<Due, Never>, settings: &Settings, blocked: bool) -> AriPolicy {
    match due {
        Ok(due) if due.reason.is_scheduled() && !blocked => match settings.renew_before {
            None => AriPolicy::Any,
            Some(_) => AriPolicy::Past,
        },
        _ => AriPolicy::Nothing,
    }
}

/// The instant of what is due at once.
pub const AT_ONCE: UnixTime = UnixTime(0);

/// The inputs of the decision.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The leaf in the Secret.
    pub leaf: Result<&'a Leaf, &'a Unreadable>,
    /// The annotations.
    pub settings: &'a Settings,
    /// Whether an annotation that governs issuing does not parse.
    pub blocked: bool,
    /// Whether the leaf is from a staging CA although the issuer is not.
    pub staged: bool,
    /// What the last renewal by cert-renew was made with.
    pub issued_by: Option<&'a IssuedBy>,
    /// The last `renew-now` value that was served.
    pub renewed_for: Option<&'a str>,
    /// The instant chosen in the CA's suggested window.
    pub renewal_info: Option<UnixTime>,
    /// A number specific to the Secret: spreads renewals of one day.
    pub seed: u64,
}

/// Decides when to renew.
///
/// # Errors
/// [`Never`] when there is nothing to wait for.
pub fn due(inputs: &Inputs<'_>) -> Result<Due, Never> {
    let settings = inputs.settings;
    if settings.issuer == IssuerRef::External {
        return Err(Never::External);
    }
    if settings.paused {
        return Err(Never::Paused);
    }
    let leaf = match inputs.leaf {
        Ok(leaf) => leaf,
        Err(unreadable) => {
            let reason = if matches!(unreadable, Unreadable::Empty) {
                Reason::NoCertificate
            } else {
                Reason::Unreadable
            };
            let issued = inputs.issued_by.is_some_and(|it| !it.names.is_empty());
            return if settings.names.is_some() || issued {
                Ok(Due {
                    at: AT_ONCE,
                    reason,
                })
            } else {
                Err(Never::NoNames)
            };
        }
    };
    if settings.names.is_none() && leaf.names.is_empty() {
        return Err(Never::NoNames);
    }
    let timed = by_time(leaf, inputs);
    if inputs.blocked {
        let emergency = leaf.accepted_until() - leaf.lifetime() / EMERGENCY_SHARE;
        return Ok(Due {
            at: timed.at.max(emergency),
            reason: Reason::Lifetime,
        });
    }
    // Last, as it checks a signature where the names of issuer and subject are the same.
    let edited = edited(leaf, inputs);
    Ok(edited.map_or(timed, |reason| Due {
        at: AT_ONCE,
        reason,
    }))
}

/// What makes a renewal due at once, independent of the clock.
fn edited(leaf: &Leaf, inputs: &Inputs<'_>) -> Option<Reason> {
    let settings = inputs.settings;
    if settings.revoked == Some(leaf.fingerprint) {
        return Some(Reason::Revoked);
    }
    if leaf.self_signed.get() {
        return Some(Reason::Placeholder);
    }
    if inputs.staged {
        return Some(Reason::Staging);
    }
    let lacks = |names: &Vec<_>| {
        let held = Covering::by(&leaf.names);
        names.iter().any(|wanted| !held.covers(wanted))
    };
    if settings.names.as_ref().is_some_and(lacks) {
        return Some(Reason::MissingName);
    }
    // Only the Secret's own settings count: a changed default re-issues nothing at once.
    if let Some(issued) = inputs.issued_by
        && settings.profile.is_some()
        && settings.profile.as_deref() != issued.profile.as_deref()
    {
        return Some(Reason::ProfileChanged);
    }
    // Compares with what was asked for, not with what the CA issued.
    if let Some(issued) = inputs.issued_by
        && settings.lifetime.is_some()
        && settings.lifetime != issued.lifetime
    {
        return Some(Reason::LifetimeChanged);
    }
    // A key that is kept stays, whatever type new ones should have.
    if settings.key_rotation == KeyRotation::Always
        && settings.key_type.is_some()
        && settings.key_type != leaf.key_type
        // If a CA or an older version made another type of it, it is not asked for the same again.
        && inputs.issued_by.is_none_or(|issued| issued.key_type != settings.key_type)
    {
        return Some(Reason::KeyTypeChanged);
    }
    // A cause has priority over `renew-now`: it does not wait until the certificate is older.
    if settings.renew_now.is_some() && settings.renew_now.as_deref() != inputs.renewed_for {
        return Some(Reason::RenewNow);
    }
    if let Some(issued) = inputs.issued_by
        && issued.wrote(leaf.fingerprint).is_some()
        && issued.outputs != settings.outputs_digest()
    {
        return Some(Reason::OutputsChanged);
    }
    None
}

fn by_time(leaf: &Leaf, inputs: &Inputs<'_>) -> Due {
    let lifetime = leaf.lifetime();
    let heed = match inputs.settings.renew_before {
        None => AriPolicy::Any,
        Some(_) => AriPolicy::Past,
    };
    let suggested =
        { inputs.renewal_info }.and_then(|at| heed.takes(at, leaf.not_before, leaf.not_after));
    let before = renew_before(inputs.settings.renew_before, lifetime);
    let spread = (lifetime.as_secs() / JITTER_SHARE).min(MAX_JITTER.as_secs());
    let jitter = Duration::from_secs(if spread == 0 { 0 } else { inputs.seed % spread });
    let own = Due {
        at: leaf.not_after - before - jitter,
        reason: Reason::Lifetime,
    };
    let by_issuer = leaf.issuer_ends.map(|ends| {
        // The CA may sign with the same certificate again.
        let written = { inputs.issued_by }.and_then(|it| it.wrote(leaf.fingerprint));
        let since = written.unwrap_or_default().max(leaf.not_before);
        Due {
            at: (ends - before - jitter).max(since + lifetime / YOUNG_SHARE),
            reason: Reason::IssuerEnds,
        }
    });
    let own = by_issuer.filter(|it| it.at < own.at).unwrap_or(own);
    own.or_suggested(suggested)
}

/// Share of the lifetime that is left when the renewal is due: never more than half.
#[must_use]
pub fn renew_before(setting: Option<RenewBefore>, lifetime: Duration) -> Duration {
    match setting {
        Some(RenewBefore::Before(before)) => before.min(lifetime / 2),
        Some(RenewBefore::Share(percent)) => lifetime * u32::from(percent.min(50)) / 100,
        None if lifetime < SHORT_LIVED => lifetime / 2,
        None => lifetime / 3,
    }
}

#[cfg(test)]
mod tests;

//! The results of looks at Secrets.

use cert_renew_core::index::Entry;
use cert_renew_core::rollout::Request;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::used_by::UsedBy;
use cert_renew_core::time::UnixTime;

use crate::process::permit;
use crate::rollout::Proof;

/// A Secret that is being planned, beside its request.
pub(super) struct Held {
    pub(super) head: Head,
    /// It holds no certificate.
    pub(super) is_empty: bool,
    /// What is to be proven after the rollout.
    pub(super) proof: Option<Proof>,
    /// The look by which it is planned.
    pub(super) look: Option<permit::Look>,
    /// The change window is closed until then, but is overruled.
    pub(super) overruled: Option<UnixTime>,
    /// The workloads that use it and what they have, by the last rollout.
    pub(super) used_by: Option<UsedBy>,
    /// How old its certificate is; `None` where nothing is to be rolled.
    pub(super) age: Option<Age>,
}

/// The result of a look at a Secret.
pub(super) enum Look {
    /// To be planned.
    Due(Box<(Request, Held)>),
    /// Not now.
    Not(Not),
}

/// What is known of a Secret before the workloads are listed.
pub(super) enum Glance {
    Judged(Look),
    /// It has no record: the workloads' templates show whether it is new.
    Unrecorded(Box<Entry>),
    /// The record was lost but its content is remembered, or it lacks chain and CA.
    Lost(Box<Entry>, RolledOut),
}

/// A Secret that is not to be rolled out now: when to look again, and why.
pub(super) struct Not {
    pub(super) at: UnixTime,
    pub(super) why: Option<Box<str>>,
    /// The change window is closed until then.
    pub(super) shut: bool,
}

impl Not {
    pub(super) fn until(at: UnixTime, why: Option<Box<str>>) -> Self {
        let shut = false;
        Self { at, why, shut }
    }

    pub(super) fn shut(opens: UnixTime) -> Self {
        Self {
            at: opens,
            why: None,
            shut: true,
        }
    }
}

/// What is known of the age of the certificate in a Secret, in addition to its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    pub(super) not_before: UnixTime,
    /// When the certificate that the workloads have expires.
    pub(super) had_until: Option<UnixTime>,
    /// When we wrote it, according to the Secret.
    pub(super) ours: Option<UnixTime>,
}

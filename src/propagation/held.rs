//! What looks at Secrets find.

use cert_renew_core::index::Entry;
use cert_renew_core::rollout::Request;
use cert_renew_core::secret::head::Head;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::used_by::UsedBy;
use cert_renew_core::time::UnixTime;

use crate::rollout::{Proof, permit};

/// A Secret that is being planned, beside its request.
pub(super) struct Held {
    pub(super) head: Head,
    /// What is to be proven after the rollout.
    pub(super) proof: Option<Proof>,
    /// The look by which it is planned.
    pub(super) look: Option<permit::Look>,
    /// The change window is shut until then and does not count.
    pub(super) overruled: Option<UnixTime>,
    /// Which workloads use it and what they have, by the last rollout.
    pub(super) used_by: Option<UsedBy>,
    /// How old its certificate is; none where nothing is to be rolled.
    pub(super) age: Option<Age>,
}

/// What a look at a Secret says.
pub(super) enum Look {
    /// To be planned.
    Due(Box<(Request, Held)>),
    /// Not now.
    Not(Not),
}

/// What can be said of a Secret before the workloads are listed.
pub(super) enum Glance {
    Judged(Look),
    /// Nothing is on record: what the workloads carry says whether it is new.
    Unrecorded(Box<Entry>),
    /// The record was lost and what it said is remembered, or it says nothing of chain and CA.
    Lost(Box<Entry>, RolledOut),
}

/// Not to be rolled onto now: when to look again, and why.
pub(super) struct Not {
    pub(super) at: UnixTime,
    pub(super) why: Option<Box<str>>,
    /// The change window is shut until then.
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

/// What is known of the age of the certificate in a Secret, beside its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    pub(super) not_before: UnixTime,
    /// When what the workloads have ends.
    pub(super) had_until: Option<UnixTime>,
    /// When we wrote it, by the Secret's own word.
    pub(super) ours: Option<UnixTime>,
}

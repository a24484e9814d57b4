//! The results of looks at Secrets.

use cert_renew_core::index::Entry;
use cert_renew_core::rollout::Request;
use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::used_by::UsedBy;
use cert_renew_core::time::UnixTime;

use crate::process::permit;
use crate::rollout::Proof;

/// A Secret that is being planned, beside its request.
pub(super) struct Held {
    /// Its identity: all Secrets of a batch are held at once, and annotations may be large.
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

impl Held {
    /// What is held of a Secret with this head, of which nothing is known beside.
    pub(super) fn of(head: &Head) -> Self {
        Self {
            head: head.identity(),
            is_empty: false,
            proof: None,
            look: None,
            overruled: None,
            used_by: used_by_of(head),
            age: None,
        }
    }
}

/// Which workloads use a Secret and what they have, by its own annotation.
pub(super) fn used_by_of(head: &Head) -> Option<UsedBy> {
    head.annotation(keys::USED_BY)?.parse().ok()
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

#[cfg(test)]
mod tests {
    use cert_renew_core::secret::object::full::FullSecret;
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn annotations_are_not_held_while_a_batch_is_rolled() {
        let annotations = json!({
            "cert-renew.io/issuer": "external", "cert-renew.io/x": "x".repeat(200_000),
            keys::USED_BY: "2023-11-14T22:13:20Z deployment/web",
        });
        let secret: FullSecret = from_value(json!({
            "metadata": {"name": "tls", "namespace": "shop", "uid": "u", "resourceVersion": "7", "annotations": annotations},
        }))
        .unwrap();
        let Held { head, used_by, .. } = Held::of(&secret.head);
        assert_eq!(head.annotations(), None);
        assert_eq!(
            (head.place().as_str(), head.uid(), head.resource_version()),
            ("shop/tls", "u", "7")
        );
        assert_eq!(used_by.unwrap().in_words(), "deployment/web");
    }
}

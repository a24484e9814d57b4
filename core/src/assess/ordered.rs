//! What a Secret says by now of an order that was made for it.
//!
//! Pure. The order may have been made by another replica and long ago, and its record may have come late.

use std::time::Duration;

use super::Assessment;
use crate::certificate::Leaf;
use crate::secret::settings::KeyRotation;
use crate::text::name::{self, Name};
use crate::time::UnixTime;

/// Longest time by which a certificate predates its order: CAs backdate by an hour at most, and the clocks of two
/// replicas differ by less.
const BACKDATED: Duration = Duration::from_secs(2 * 3_600);

/// The part of an order's record that its Secret is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Ordered<'a> {
    /// The names that were ordered.
    pub names: &'a [Name],
    /// When it was made.
    pub created: UnixTime,
    /// Whether the CA's renewal information asked for it: that is asked for again after each start.
    pub by_the_ca: bool,
}

impl Assessment {
    /// The names to ask for, without those that a wildcard among them covers, as CAs refuse redundant names.
    #[must_use]
    pub fn names_to_order(&self) -> Vec<Name> {
        name::needed(&self.names).into_iter().cloned().collect()
    }

    /// Whether the Secret already holds the order's certificate, which is for this public key.
    #[must_use]
    pub fn holds(&self, order: Ordered<'_>, public_key: &[u8]) -> bool {
        let Ok(leaf) = &self.leaf else {
            return false;
        };
        let written = { self.issued_by.as_ref() }.and_then(|it| it.wrote(leaf.fingerprint));
        let since = written.is_some_and(|at| at >= order.created);
        // A new key proves as much, unless it is not new: the order was made while the key was to be kept.
        let is_young = leaf.not_before + BACKDATED >= order.created;
        let rotates = self.settings.key_rotation == KeyRotation::Always;
        is_for(leaf, public_key) && (since || rotates && is_young)
    }

    /// Whether the Secret still asks for a certificate with the order's names.
    #[must_use]
    pub fn still_wants(&self, order: Ordered<'_>) -> bool {
        self.renewal.is_ok()
            // Without `names` they are read from the certificate, which may have been emptied concurrently.
            && (self.names.is_empty() || self.names_to_order() == order.names)
    }

    /// Whether the order is still to be finalized: the Secret is due. It may not be any more, if somebody has put a
    /// certificate there, or if the order's record came so late that another order has taken its place.
    #[must_use]
    pub fn awaits(&self, now: UnixTime, order: Ordered<'_>) -> bool {
        let written = self.issued_by.as_ref().and_then(|it| it.written);
        let was_written = written.is_some_and(|(_, at)| at >= order.created);
        self.renewal.is_ok_and(|due| due.at <= now) || order.by_the_ca && !was_written
    }
}

fn is_for(leaf: &Leaf, public_key: &[u8]) -> bool {
    *leaf.public_key == *public_key
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{from_value, json};

    use super::*;
    use crate::assess::of_thin_alone;
    use crate::certificate;
    use crate::secret::SecretRef;
    use crate::secret::object::thin::ThinSecret;
    use crate::testing::file;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn an_order_ends_where_the_secret_is_no_longer_due() {
        let pem = file("good.pem");
        let leaf = certificate::leaf(&pem).unwrap();
        let (new, old) = (leaf.not_before + DAY, leaf.not_after - DAY);
        let awaits = |now, written: Option<UnixTime>, by_the_ca| {
            let issued_by = written.map(|at| {
                let leaf = leaf.fingerprint.to_string();
                json!({"issuer": "ca", "names": [], "leaf": leaf, "at": at.to_string()}).to_string()
            });
            let annotations =
                json!({"cert-renew.io/issuer": "ca", "state.cert-renew.io/issued-by": issued_by});
            let secret: ThinSecret = from_value(json!({
                "metadata": {"name": "tls", "namespace": "shop", "uid": "u", "annotations": annotations},
                "data": {"tls.crt": STANDARD.encode(&pem)},
                "type": "kubernetes.io/tls",
            }))
            .unwrap();
            let key = SecretRef::new("shop", "tls");
            let assessment = of_thin_alone(now, &key, &secret).unwrap();
            let names = assessment.names_to_order();
            let order = Ordered {
                names: &names,
                created: new,
                by_the_ca,
            };
            assert!(assessment.still_wants(order));
            assessment.awaits(now, order)
        };
        assert!(awaits(old, None, false));
        assert!(!awaits(new, None, false), "somebody has put it there");
        // What the CA has asked for is not known after a start.
        assert!(awaits(new, None, true));
        assert!(awaits(new, Some(new - DAY / 2), true));
        assert!(!awaits(new, Some(new), true), "written by another order");
    }
}

//! When a certificate is so close to expiry that rules which spare the CA give way.

use crate::certificate::Leaf;
use crate::time::UnixTime;

/// Share of the lifetime that counts as close to expiry.
const URGENT_SHARE: u32 = 6;

/// Whether a fallback is asked: there is no certificate, or it is in the last sixth of its lifetime.
#[must_use]
pub fn runs_short(now: UnixTime, leaf: Option<&Leaf>) -> bool {
    leaf.is_none_or(|leaf| runs_short_at(leaf) <= now || leaf.self_signed.get())
}

/// When the last sixth of a certificate's life begins; as much before the end of its issuer's, if that comes first.
#[must_use]
pub fn runs_short_at(leaf: &Leaf) -> UnixTime {
    leaf.accepted_until() - leaf.lifetime() / URGENT_SHARE
}

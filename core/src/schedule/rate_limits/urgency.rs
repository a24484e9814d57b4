//! When so little of a certificate's life is left that rules which spare the CA give way.

use crate::certificate::Leaf;
use crate::time::UnixTime;

/// The share of the lifetime that is little.
const URGENT_SHARE: u32 = 6;

/// Whether so little is left that a fallback is asked: no certificate, or the last sixth of one's life.
#[must_use]
pub fn runs_short(now: UnixTime, leaf: Option<&Leaf>) -> bool {
    leaf.is_none_or(|leaf| leaf.self_signed || runs_short_at(leaf) <= now)
}

/// When the last sixth of a certificate's life begins.
#[must_use]
pub fn runs_short_at(leaf: &Leaf) -> UnixTime {
    leaf.not_after - leaf.lifetime() / URGENT_SHARE
}

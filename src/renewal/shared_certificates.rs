//! Copies: Secrets with the same names and issuer that hold the same leaf share one order.
//!
//! ```text
//! twenty due ──lowest key──► one order ──► its Secret, then every other that held the same leaf with its key
//! ```
//! A new key goes only to Secrets that held the old one, proven by the pair in the Secret itself, and only where
//! `allow`, pause, change window and invalid annotations permit it. A Secret that is left out orders
//! for itself when it is due.
//!
//! A Secret with a copied certificate may keep others waiting on purpose: each waits for a bounded time.

use std::time::Duration;

use cert_renew_core::certificate::Fingerprint;
use cert_renew_core::certificate::pair::{self, Chain};
use cert_renew_core::config::Labels;
use cert_renew_core::index::Entry;
use cert_renew_core::schedule::due::Suggestion;
use cert_renew_core::schedule::rate_limits::{self, AccountId};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::time::UnixTime;
use tokio::time::Instant;

use super::renewals::Renewal;
use super::target::RenewalTarget;
use crate::cluster::events::Reason;
use crate::cluster::namespaces;
use crate::cluster::order_records::Record;
use crate::process::permit::Look;
use crate::renewal::outcome::failure::Failure;

/// Delay until a copy checks again whether the Secret that orders for it has finished.
const FOLLOW: Duration = Duration::from_secs(30);
/// Longest wait of a copy whose certificate runs short: an order that works takes less.
const FOLLOW_SHORT: Duration = Duration::from_secs(120);
/// Most Secrets whose namespaces are looked at before a Secret orders for itself: each look is a request.
const LEADERS: usize = 4;

impl Renewal<'_> {
    /// Other Secrets that use the same account of the ledger and hold this leaf.
    fn copies(
        self,
        account: AccountId,
        leaf: Fingerprint,
        wanted: impl Fn(&SecretRef, &Entry) -> bool,
    ) -> Vec<SecretRef> {
        let index = self.shared.read_index();
        let same = |(other, entry): &(SecretRef, Entry)| {
            let held = entry.observed.leaf.ok().map(|facts| facts.fingerprint);
            held == Some(leaf) && other != self.key && wanted(other, entry)
        };
        let drawing = index.drawing_on(account).filter(same);
        drawing.map(|(other, _)| other).collect()
    }

    /// When to look again, if another Secret orders for this one: the due Secret with the lowest key does.
    pub(super) async fn follows(self, fresh: &RenewalTarget, now: UnixTime) -> Option<UnixTime> {
        // A Secret whose key is revoked waits for no other, and takes no pair from another.
        if fresh.assessment.settings.revoked.is_some() {
            return None;
        }
        let leaf = fresh.leaf()?;
        for leader in self.leaders(fresh, now).iter().take(LEADERS) {
            if self.may_lead(leader, fresh).await {
                let short = rate_limits::runs_short(now, Some(leaf));
                let longest = if short {
                    FOLLOW_SHORT
                } else {
                    self.all.longest
                };
                let followers = &self.all.followers;
                let may_wait = followers.may_wait(now, self.key, leaf.fingerprint, longest);
                return may_wait.then(|| now + FOLLOW);
            }
        }
        None
    }

    /// The other Secrets that could order for this one, as far as the index knows, the lowest key first.
    fn leaders(self, fresh: &RenewalTarget, now: UnixTime) -> Vec<SecretRef> {
        let Some(leaf) = fresh.leaf() else {
            return Vec::new();
        };
        let leads = |other: &SecretRef, entry: &Entry| {
            let open = entry.observed.window.is_none_or(|window| window <= now);
            // A deferred Secret cannot be the one that orders. One that only awaits its ARI answer can.
            let asking = entry.observed.suggestion == Suggestion::Unasked;
            let soon = asking || entry.renewing.is_some() || entry.renew_at <= now + FOLLOW;
            // A Secret that fails by itself would pass its back-off on to the others.
            let able = self.all.secret_failures.count(&entry.observed.uid) == 0;
            other < self.key && open && soon && able && entry.renewal_due(now)
        };
        let account = fresh.assessment.account;
        let mut leaders = self.copies(account, leaf.fingerprint, leads);
        leaders.sort_unstable();
        leaders
    }
}

impl Renewal<'_> {
    /// Whether `allow` grants the names to the other Secret's namespace as it is labelled now; the index has checked
    /// all but the labels.
    async fn may_lead(self, leader: &SecretRef, fresh: &RenewalTarget) -> bool {
        let config = self.shared.config();
        if !config.needs_namespace_labels() {
            return true;
        }
        let (Some(issuer), Ok(labels)) = (
            config.issuer(&fresh.home),
            namespaces::labels(&self.shared.client, &leader.namespace).await,
        ) else {
            return false;
        };
        let labels = Labels::Are(&labels);
        let mut names = fresh.assessment.names.iter();
        names.all(|name| issuer.allows(&leader.namespace, labels, name))
    }
}

impl Renewal<'_> {
    /// Writes the new pair into every copy of the renewed Secret. `had` is the leaf that it held, and `fresh` the
    /// Secret before the write.
    pub(super) async fn share(
        self,
        fresh: &RenewalTarget,
        had: Fingerprint,
        record: &Record,
        chain: &Chain,
    ) {
        let account = rate_limits::account_of(&fresh.home, &fresh.assessment.names);
        // A stolen key may be in a Secret of the thief too: the new key must not go to Secrets that prove the old one.
        if fresh.assessment.settings.revoked == Some(had) {
            return;
        }
        // Require proof of possession: otherwise a Secret with a copied certificate would supply the key for the
        // others.
        if !holds(fresh, had, UnixTime::now()) {
            return;
        }
        // A Secret that may not be renewed, because of its namespace or otherwise, is not even read.
        let now = UnixTime::now();
        let may = |_: &SecretRef, entry: &Entry| {
            let blocked = entry.observed.blocked.issue() && !entry.renewal_due(now);
            entry.observed.renewal.is_ok() && !blocked
        };
        for copy in self.copies(account, had, may) {
            match self
                .all
                .of(&copy)
                .copy_from(fresh, had, record, chain)
                .await
            {
                Ok(true) => {
                    tracing::info!(secret = %copy, from = %self.key, "a copy is renewed with it");
                }
                Ok(false) => {
                    tracing::debug!(secret = %copy, from = %self.key, "no copy: it orders for itself");
                }
                Err(error) => {
                    tracing::info!(secret = %copy, from = %self.key, %error, "the copy is not written: it orders for itself");
                }
            }
        }
    }
}

/// Whether the Secret holds this leaf and its key. An expired pair proves possession as well.
fn holds(fresh: &RenewalTarget, had: Fingerprint, now: UnixTime) -> bool {
    let (certificate, private_key) = fresh.secret.pair();
    fresh.leaf().is_some_and(|leaf| {
        let then = now.min(leaf.not_after);
        leaf.fingerprint == had && pair::check_pair(certificate, private_key, then).is_ok()
    })
}

impl Renewal<'_> {
    async fn copy_from(
        self,
        of: &RenewalTarget,
        had: Fingerprint,
        record: &Record,
        chain: &Chain,
    ) -> Result<bool, Failure> {
        let now = UnixTime::now();
        let waited = Instant::now();
        let (look, fresh) = Look::take(self.read(now)).await?;
        let Some(fresh) = fresh else {
            return Ok(false);
        };
        let (mine, theirs) = (&fresh.assessment, &of.assessment);
        let alike = fresh.home == of.home
            && fresh.names_to_order() == record.order.names
            && mine.settings.revoked.is_none()
            && mine.settings.profile == theirs.settings.profile
            && mine.settings.lifetime == theirs.settings.lifetime
            && mine.settings.key_type == theirs.settings.key_type
            && mine.settings.key_rotation == theirs.settings.key_rotation;
        // As for a renewal of its own: an invalid annotation may be a pause or another class.
        let may = mine.renewal.is_ok() && fresh.shut_until(now).is_none() && !fresh.is_left_alone();
        let held = holds(&fresh, had, now);
        if !(alike && may && held) {
            return Ok(false);
        }
        let fresh = fresh.at(&self.shared.config(), &record.order.issuer);
        let changes = self.changes(&fresh, (record, true), chain)?;
        let permit = Look::permit([&look], waited, ()).ok_or(Failure::Outdated)?;
        self.patch(permit, &fresh, &changes).await?;
        let note = format!(
            "valid until {}, one order with {}",
            chain.leaf.not_after,
            record.order.subject()
        );
        self.tell(fresh.uid(), Reason::Renewed, &note);
        Ok(true)
    }
}

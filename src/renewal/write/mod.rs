//! The one patch of a renewal: checks, writes and counts the CA's certificate.

mod changes;
mod key_choice;

use std::time::Duration;

use cert_renew_core::certificate::Leaf;
use cert_renew_core::certificate::key::PrivateKey;
use cert_renew_core::certificate::pair::{self, ExpectedPair};
use cert_renew_core::schedule::due::Reason;
use cert_renew_core::schedule::rate_limits::{self, AccountId, Issue};
use cert_renew_core::time::UnixTime;
use cert_renew_core::time::duration::human;
use tokio::time::Instant;

use super::outcome::{Outcome, Progress};
use super::renewals::Renewal;
use super::target::{Readiness, RenewalTarget};
use crate::acme;
use crate::cluster::events;
use crate::cluster::order_records::{self, Record};
use crate::cluster::secrets::{self, Changes};
use crate::process::permit::Permit;
use crate::renewal::limits::validations;
use crate::renewal::order::timing::took;
use crate::renewal::outcome::failure::Failure;
use crate::telemetry::metrics::{RenewalResult, RenewalStep};
use crate::telemetry::stage::Stage;

/// Divisor for the share of the requested lifetime by which a certificate may end earlier: CAs round the end to a day
/// or an hour.
const LIFETIME_SLACK: u32 = 10;

impl Renewal<'_> {
    /// Checks the CA's certificate and writes it into the Secret, in one patch.
    pub(super) async fn write(
        self,
        (record, client): (&Record, &acme::Client),
        pem: &str,
        reason: Reason,
    ) -> Result<Progress, Failure> {
        let (started, now) = (Instant::now(), UnixTime::now());
        let (permit, fresh) = match self.look(record).await? {
            Readiness::Go(permit, fresh) => (permit, fresh),
            Readiness::Waits(until) => return Ok(Progress::Waits(until)),
        };
        let new_key = PrivateKey::from_pem(record.key.as_bytes())?;
        if !fresh.may_take(&new_key) {
            return Err(Failure::Unwanted);
        }
        let old = fresh.leaf();
        // A pair that is no longer due is not replaced by one that ends sooner, if the clock asked for the renewal. A
        // pair that is due is replaced: the CA issues shorter ones now, and rejecting them brings no longer one.
        let is_due = { fresh.assessment.renewal }.is_ok_and(|due| due.at <= now);
        let by_the_clock = reason == Reason::Lifetime && fresh.is_at_home();
        let asked = ExpectedPair {
            key: &new_key,
            names: &record.order.names,
            not_sooner_than: old.filter(|_| by_the_clock && !is_due),
            staging: !self.shared.config().is_production(&fresh.issuer_name),
        };
        let pem = acme::in_order(pem, &new_key.public_key());
        let chain = pair::check_issued(pem.as_bytes(), &asked, now);
        let chain = chain.map_err(|rejected| Failure::rejected(rejected, now))?;
        let ordered = record.order.profile.as_deref();
        let asked_lifetime = fresh.lifetime().map(|it| it.as_secs());
        let is_as_asked = asked_lifetime == record.order.lifetime
            && fresh.takes_profile(client, ordered).await.unwrap_or(true);
        let changes = self.changes(&fresh, (record, is_as_asked), &chain)?;
        // The ledger must record the certificate too.
        let step = self.shared.gate.step().map_err(|_| Failure::Stopped)?;
        self.patch(permit, &fresh, &changes).await?;
        self.shared
            .metrics
            .renewal(&fresh.issuer_name, RenewalResult::Renewed, "");
        let lasted = now.since(UnixTime(record.order.created));
        self.shared.metrics.renewal_took(&fresh.issuer_name, lasted);
        self.count_issue(&fresh, record, Some(chain.leaf.lifetime()))
            .await;
        drop(step);
        took(&self.shared.metrics, record, RenewalStep::Write, started);
        let leaf = &chain.leaf;
        tracing::info!(
            secret = %self.key, step = Stage::Write.name(), issuer = %fresh.issuer_name, order = record.order.url,
            not_after = %leaf.not_after, leaf = %leaf.fingerprint, seconds = lasted.as_secs(), "renewed"
        );
        if let Some(old) = old {
            self.share(&fresh, old.fingerprint, record, &chain).await;
            self.tell_lost(fresh.uid(), (old, leaf));
            if by_the_clock && leaf.not_after < old.not_after && leaf.issuer == old.issuer {
                let note = format!(
                    "the new certificate ends at {}, sooner than the one it replaces, at {}: the CA issues for a shorter time \
                 than before",
                    leaf.not_after, old.not_after
                );
                let reason = events::Reason::EndsSooner;
                self.tell(fresh.uid(), reason, &note);
            }
        }
        self.tell_other_lifetime(&fresh, record, leaf);
        let mut note = format!("valid until {}, issued by {}", leaf.not_after, leaf.issuer);
        let window = fresh.assessment.settings.change_window.as_ref();
        if let Some(opens) = window
            .map(|window| window.next_open(now))
            .filter(|it| *it > now)
        {
            note += &format!(
                "; written outside of the change window, which opens at {opens}: what was there is revoked, or would have had less \
             than a tenth of its lifetime left by then"
            );
        }
        self.tell(fresh.uid(), events::Reason::Renewed, &note);
        Ok(Progress::Ended(Outcome::Renewed))
    }

    /// Writes a pair into the Secret that was looked at.
    pub(super) async fn patch(
        self,
        permit: Permit<()>,
        fresh: &RenewalTarget,
        changes: &Changes<'_>,
    ) -> Result<(), Failure> {
        permit.spend().ok_or(Failure::Outdated)?;
        secrets::patch(&self.shared.client, &fresh.secret.head, changes).await?;
        Ok(())
    }

    /// Reports, with the first such certificate, that the CA has given another lifetime than requested.
    fn tell_other_lifetime(self, fresh: &RenewalTarget, record: &Record, leaf: &Leaf) {
        let Some(asked) = record.order.lifetime.map(Duration::from_secs) else {
            return;
        };
        let before =
            { fresh.assessment.issued_by.as_ref() }.filter(|it| it.lifetime == Some(asked));
        let told = fresh.leaf().is_some_and(|old| {
            let since = before.and_then(|it| it.wrote(old.fingerprint));
            since.is_some_and(|since| !lasts(old, since, asked))
        });
        let ordered = UnixTime(record.order.created);
        if told || lasts(leaf, ordered, asked) {
            return;
        }
        let note = format!(
            "cert-renew.io/lifetime asks for {}, and the CA has issued a certificate that ends at {}, {} after it was ordered: \
         it is used, and renewed by its own end. Look at what the CA allows, or take the annotation away",
            human(asked),
            leaf.not_after,
            human(leaf.not_after.since(ordered)),
        );
        let reason = events::Reason::OtherLifetime;
        self.tell(fresh.uid(), reason, &note);
    }
}

/// Whether a certificate that was issued at `since` lasts about as long as requested.
fn lasts(leaf: &Leaf, since: UnixTime, asked: Duration) -> bool {
    let (end, slack) = (since + asked, asked / LIFETIME_SLACK);
    end.since(leaf.not_after).max(leaf.not_after.since(end)) <= slack
}

impl Renewal<'_> {
    /// Reports what the previous certificate could do and this one cannot: ACME cannot ask for it.
    fn tell_lost(self, uid: &str, (old, new): (&Leaf, &Leaf)) {
        let lost = old.abilities.lost_in(new.abilities);
        if lost.is_empty() || old.self_signed.get() {
            return;
        }
        let note = format!(
            "the new certificate lacks what the one before had: {}; clients that rely on it will fail",
            lost.join(", ")
        );
        let reason = events::Reason::CertificateProblem;
        self.tell(uid, reason, &note);
    }
}

/// What the ledger counts of the record's order.
fn issue(record: &Record, lifetime: Option<Duration>) -> Issue {
    let order_records::Order {
        created,
        expected,
        replaced,
        ..
    } = record.order;
    Issue {
        ordered: UnixTime(created),
        expected,
        replaced,
        lifetime,
    }
}

impl Renewal<'_> {
    /// Counts in the ledger a certificate that was issued but is not used.
    pub(super) async fn count_wasted(
        self,
        account: AccountId,
        record: &Record,
        lifetime: Option<Duration>,
    ) {
        let (now, issue) = (UnixTime::now(), issue(record, lifetime));
        let counted = self
            .shared
            .ledger
            .update(&self.key.namespace, account, |account| {
                account.wasted(now, issue);
            });
        self.note_ledger(counted.await);
    }

    /// Counts in the ledger a certificate that was issued and written.
    pub(super) async fn count_issue(
        self,
        fresh: &RenewalTarget,
        record: &Record,
        lifetime: Option<Duration>,
    ) {
        let (now, issue) = (UnixTime::now(), issue(record, lifetime));
        let (backoff, own) = (self.shared.config().retry, fresh.assessment.account);
        // Few names have ever failed.
        let names = validations::accounts(&fresh.issuer_name, &record.order.names).into_keys();
        let failed =
            names.filter(|id| *id != own && !self.shared.ledger.get(*id).invalid.is_empty());
        let accounts: Vec<AccountId> = failed.chain([own]).collect();
        let issued = self
            .shared
            .ledger
            .update_all(&self.key.namespace, accounts, |id, account| {
                if id == own {
                    account.issued(now, issue);
                }
                account.proven(now, &backoff);
            })
            .await;
        let home = rate_limits::account_of(&fresh.home, &fresh.assessment.names);
        // The fallback has succeeded: the next renewal begins with the Secret's own issuer again.
        let home = self
            .shared
            .ledger
            .update(&self.key.namespace, home, |account| {
                if !fresh.is_at_home() {
                    let (expected, replaced, lifetime) = (true, true, None);
                    account.issued(
                        now,
                        Issue {
                            expected,
                            replaced,
                            lifetime,
                            ..issue
                        },
                    );
                }
            });
        self.note_ledger(issued.and(home.await));
    }
}

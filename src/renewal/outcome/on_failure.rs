//! What a failed renewal means for the next try, and where it is reported.

use std::collections::BTreeSet;
use std::time::Duration;

use cert_renew_core::certificate::Leaf;
use cert_renew_core::index::{Finished, Stuck};
use cert_renew_core::schedule::rate_limits::{
    self, AccountId, Backoff, Failed, IssuanceHistory, TriedWith,
};
use cert_renew_core::secret::keys;
use cert_renew_core::text::error_chain;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use cert_renew_core::time::duration::human;

use super::failure::{Failure, FailureContext};
use super::words::{route_hint, told_once, without_them};
use crate::acme::{self, Class, Scope};
use crate::cluster;
use crate::cluster::events::Reason;
use crate::cluster::secrets::{self, Changes};
use crate::renewal::issuers;
use crate::renewal::limits::{ca, validations};
use crate::renewal::renewals::Renewal;
use crate::telemetry::metrics::RenewalResult;
use crate::telemetry::stage::Stage;

/// Delay after a write conflict: the watch brings the change, and this is soon enough if it does not.
const AFTER_CONFLICT: Duration = Duration::from_secs(5);
/// Delay until the zone's servers, or the route, are checked again.
const WAITING: Duration = Duration::from_secs(10);
/// Delay for an order whose issuer is not in the config; a changed config is applied at once.
const NO_ISSUER: Duration = Duration::from_secs(3_600);
/// Longest error text that is written on the Secret and, with reason and time, in an Event of 1,000 bytes: a link with
/// which the reader ends a pause of the CA is some hundred characters long.
const LONGEST: usize = 900;
/// Most rehearsals after a failed validation; then the real CA is asked again whatever their result.
const REHEARSALS: u32 = 3;
/// Shortest time until an unreachable issuer is asked again while its fallback is used.
const OUT_OF_REACH: Duration = Duration::from_secs(3_600);

impl Renewal<'_> {
    /// Counts a failure, reports it, and returns the instant of the next try.
    pub(in crate::renewal) async fn on_failure(self, failure: Failure) -> Finished {
        let (now, key) = (UnixTime::now(), self.key);
        if !self.shared.gate.is_open() || failure.is_handing_over() {
            // This replica no longer leads: this says nothing about the certificate, and the next leader starts over.
            tracing::debug!(secret = %key, error = %failure, "the renewal is left to the next leader");
            return Finished::Later(now + AFTER_CONFLICT, self.shared.renewal_error(key));
        }
        let (what, of) = match failure {
            Failure::About { what, of } => (*what, of),
            Failure::NoIssuer(_) => {
                return Finished::Later(now + NO_ISSUER, Some(failure.to_string().into()));
            }
            // Only a read of the Secret or the record can fail before it is known what the Secret asks for.
            other => {
                let reason = other.reason();
                tracing::warn!(secret = %key, step = Stage::Failed.name(), reason, error = %other, "the renewal could not begin");
                return Finished::Later(now + AFTER_CONFLICT * 6, Some(other.to_string().into()));
            }
        };
        if let Some(finished) = self.excused(now, &what, &of).await {
            return finished;
        }
        let retry_at = if is_of_the_secret(&what, &of) {
            let failed = Failed {
                leaf: of.leaf.as_ref(),
                wish: of.wish,
                tried_with: Some(of.tried_with),
                ..Failed::default()
            };
            self.failed_by_itself(&of.uid, now, failed)
        } else {
            let verdict = Verdict::of(&what, &of);
            self.tell_issuer(&verdict, &of.issuer).await;
            self.count(&verdict, now, &of).await
        };
        let refused = what.refused_lifetime(&of);
        let hint = refused.map(lifetime_hint).unwrap_or_default();
        let text = format!("{}{hint}", cut(&what.to_string()));
        self.tell_failure(&of, &what, &text, retry_at).await;
        match &what {
            Failure::Acme(error) if error.class() == Class::Paused => {
                Finished::Stuck(retry_at, Stuck::Paused, text.into())
            }
            _ => Finished::Later(retry_at, Some(text.into())),
        }
    }

    /// Notes with the issuer's client what a failure says of the whole issuer.
    async fn tell_issuer(self, verdict: &Verdict, issuer: &str) {
        if let Some(until) = verdict.issuer_limited {
            self.all.issuers.limit(issuer, until);
        }
        if verdict.account_gone
            && let Err(error) = self.all.issuers.account_gone(issuer).await
        {
            let error = error_chain(&error);
            tracing::warn!(
                issuer,
                error,
                "the account could not be registered again now"
            );
        }
    }

    /// Counts a failure in the ledger, and returns the instant of the next try.
    async fn count(self, verdict: &Verdict, now: UnixTime, of: &FailureContext) -> UnixTime {
        let backoff = self.shared.config().retry;
        let mut retry_at = now;
        let mut accounts = verdict.invalid.clone();
        accounts.insert(of.account);
        accounts.extend(verdict.limited);
        let counted =
            self.shared
                .ledger
                .update_all(&self.key.namespace, accounts, |id, account| {
                    if verdict.invalid.contains(&id) {
                        account.invalid(now, &backoff);
                    }
                    if verdict.limited == Some(id) {
                        account.limited_until = verdict.until.map(|until| until.0);
                    }
                    if id == of.account {
                        retry_at = verdict.charge(account, now, &backoff, of);
                    }
                });
        self.note_ledger(counted.await);
        retry_at
    }

    /// Reports a ledger that could not be written. What was counted is right in memory.
    pub(in crate::renewal) fn note_ledger(self, written: Result<(), cluster::Error>) {
        if let Err(error) = written {
            tracing::warn!(secret = %self.key, %error, "the failure history could not be written; it is right in memory");
        }
    }
}

/// Whether others that ask for the same names would fare better.
fn is_of_the_secret(what: &Failure, of: &FailureContext) -> bool {
    let refused = |error: &acme::Error| matches!(error.class(), Class::FixIt | Class::Permanent);
    what.is_of_the_secret()
        || matches!(what, Failure::Acme(error) if refused(error) && what.refused_lifetime(of).is_some())
}

/// What to do where the CA accepts no requested lifetime, or not this one.
fn lifetime_hint(asked: Duration) -> String {
    let asked = human(asked);
    format!(
        "; the order asks for a lifetime of {asked} by cert-renew.io/lifetime: if that is what the CA refuses, ask for \
         another or take the annotation away"
    )
}

impl Renewal<'_> {
    /// Ends a renewal that took too long: the Secret waits for its next turn as after a failure of its own.
    pub(in crate::renewal) fn took_too_long(self) -> Finished {
        let (now, text) = (
            UnixTime::now(),
            "the renewal did not end in time; it goes on later",
        );
        tracing::warn!(secret = %self.key, "{text}");
        let entry = self.shared.entry(self.key);
        let at = entry.map_or(now + WAITING, |entry| {
            let failed = Failed {
                wish: entry.observed.wish,
                ..Failed::default()
            };
            self.failed_by_itself(&entry.observed.uid.to_string(), now, failed)
        });
        Finished::Later(at, Some(text.into()))
    }

    /// Counts a failure of the Secret by itself, and returns the instant of the next try.
    fn failed_by_itself(self, uid: &str, now: UnixTime, failed: Failed<'_>) -> UnixTime {
        let failures = &self.all.secret_failures;
        let retry_at = failures.failed(uid, now, &self.shared.config().retry, failed);
        // What forgets a Secret that is gone may have run before this.
        let known = self.shared.entry(self.key).map(|entry| entry.observed.uid);
        let uid = uid.into();
        if known.is_none_or(|known| known != uid) {
            failures.forget(&uid);
        }
        retry_at
    }

    /// When to look again after a failure that is not the certificate's and is not counted.
    async fn excused(self, now: UnixTime, what: &Failure, of: &FailureContext) -> Option<Finished> {
        match what {
            Failure::Unwanted
            | Failure::Outdated
            | Failure::Cluster(
                cluster::Error::Conflict { .. } | cluster::Error::AlreadyExists { .. },
            ) => {
                tracing::info!(secret = %self.key, reason = what.reason(), "the Secret has changed: looked at again");
                let said = self.shared.renewal_error(self.key);
                Some(Finished::Later(now + AFTER_CONFLICT, said))
            }
            Failure::NoIssuer(_) => Some(Finished::Later(
                now + NO_ISSUER,
                Some(what.to_string().into()),
            )),
            Failure::TooEarly(at) => {
                let text = what.to_string();
                if !self.shared.renewal_said(self.key, &text) {
                    tracing::warn!(secret = %self.key, until = %at, note = text, "the renewal is held back");
                    let reason = Reason::RenewalHeld;
                    self.tell(&of.uid, reason, &text);
                }
                Some(Finished::Later(*at, Some(text.into())))
            }
            Failure::Waiting(what) => {
                let text = self.waits(&of.uid, what).await;
                Some(Finished::Later(now + WAITING, Some(text.into())))
            }
            Failure::Acme(error) if error.may_be_the_key() => {
                let changed = self.all.issuers.account_is_new(&of.issuer).await;
                changed.unwrap_or(false).then(|| {
                tracing::info!(secret = %self.key, issuer = %of.issuer, "the account is another one now: tried again with it");
                Finished::Later(now, None)
            })
            }
            // The CA was not asked.
            Failure::Issuer(issuers::Error::Limited(limit)) => {
                let leaf = of.leaf.as_ref();
                let at = self
                    .after_limit(of.account, leaf, of.has_fallback, *limit)
                    .await;
                Some(Finished::Later(at, Some(what.to_string().into())))
            }
            _ => None,
        }
    }

    /// Reports once what an order waits for, and returns that.
    pub(in crate::renewal) async fn waits(self, uid: &str, what: &Failure) -> String {
        let text = cut(&what.to_string()).to_owned();
        tracing::info!(secret = %self.key, what = text, "the order waits");
        if !self.shared.renewal_said(self.key, &text) {
            let note = format!("{}: {text}; looked at again and again", what.reason());
            self.tell(uid, Reason::RenewalWaits, &note);
            self.inscribe(uid, &text, UnixTime::now() + WAITING).await;
        }
        text
    }
}

/// When the certificate is close enough to expiry that a fallback is asked.
fn short_at(of: &FailureContext, now: UnixTime) -> UnixTime {
    of.leaf.as_ref().map_or(now, rate_limits::runs_short_at)
}

/// What a failure is counted for.
#[derive(Default)]
struct Verdict {
    /// The CA asks for no request before this instant.
    until: Option<UnixTime>,
    /// The CA asks for no request of this issuer's account before this instant.
    issuer_limited: Option<UnixTime>,
    /// The CA does not know the account any more.
    account_gone: bool,
    /// It is a limit of the CA.
    is_limit: bool,
    /// The CA cannot be reached, or not now.
    is_outage: bool,
    /// The CA has counted a failed validation.
    is_validation: bool,
    /// The failed validation was the rehearsal's.
    is_rehearsal: bool,
    /// The settings, where others may succeed.
    tried_with: Option<TriedWith>,
    /// The issued certificate is unusable.
    is_rejected: bool,
    /// The accounts of the names that could not be proven.
    invalid: BTreeSet<AccountId>,
    /// The account of the limited domain or name.
    limited: Option<AccountId>,
}

impl Verdict {
    /// What a failure says of its issuer and of the names.
    fn of(what: &Failure, of: &FailureContext) -> Self {
        let mut verdict = Self {
            tried_with: (what.may_be_the_settings() || what.refused_lifetime(of).is_some())
                .then_some(of.tried_with),
            is_rehearsal: matches!(what, Failure::Rehearsal(_)),
            is_rejected: matches!(what, Failure::Rejected(_)),
            ..Self::default()
        };
        let Failure::Acme(error) = what else {
            return verdict;
        };
        verdict.until = error.retry_after();
        match error.class() {
            Class::Transient => verdict.is_outage = true,
            Class::RateLimited { until, scope } => {
                verdict.issuer_limited = (scope == Scope::Issuer).then_some(until);
                verdict.until = Some(until);
                verdict.is_limit = true;
                let about = error.problem().and_then(acme::Problem::limited);
                verdict.limited = about.map(|it| ca::account(&of.issuer, &of.directory, &it));
            }
            Class::FixIt if error.is_failed_validation() => {
                verdict.is_validation = true;
                verdict.invalid = invalid(error, of);
            }
            Class::AccountGone => verdict.account_gone = true,
            _ => {}
        }
        verdict
    }

    /// Applies it to the account of the Secret's names, and returns when they are tried again.
    fn charge(
        &self,
        account: &mut IssuanceHistory,
        now: UnixTime,
        backoff: &Backoff,
        of: &FailureContext,
    ) -> UnixTime {
        let mut retry_at = match self.until {
            Some(until) if self.is_limit => {
                account.limited(until, of.wish);
                until
            }
            until => {
                // Each try costs a certificate: while one serves, the next waits for its share of the week.
                let serves =
                    |leaf: &Leaf| leaf.is_valid_at(now) && rate_limits::runs_short_at(leaf) > now;
                let spaced = self.is_rejected && of.leaf.as_ref().is_some_and(serves);
                let until = until.or_else(|| spaced.then(|| now + account.spacing()));
                let failed = Failed {
                    leaf: of.leaf.as_ref(),
                    validation: self.is_validation,
                    at_least: until,
                    wish: of.wish,
                    tried_with: self.tried_with,
                };
                account.failed(now, backoff, failed)
            }
        };
        if self.is_rehearsal {
            account.rehearsals = account.rehearsals.saturating_sub(1);
        } else if self.is_validation && of.has_staging {
            account.rehearsals = REHEARSALS;
        }
        // A single failed answer is no outage; a limit counts at once.
        if of.has_fallback && (self.is_limit || self.is_outage && account.failures > 1) {
            let until = retry_at.max(now + OUT_OF_REACH);
            account.unavailable_until = Some(until.0);
            retry_at = retry_at.min(short_at(of, now).max(now));
            account.retry_at = Some(retry_at.0);
        }
        retry_at
    }
}

impl Renewal<'_> {
    /// Reports the error in all places where a reader may look: log, metric, Event, and the Secret itself.
    async fn tell_failure(
        self,
        of: &FailureContext,
        what: &Failure,
        text: &str,
        retry_at: UnixTime,
    ) {
        let reason = what.reason();
        tracing::warn!(
            secret = %self.key, step = Stage::Failed.name(), issuer = %of.issuer, order = of.order.as_deref(), reason, error = text, %retry_at,
            "the renewal failed"
        );
        self.shared
            .metrics
            .renewal(&of.issuer, RenewalResult::Failed, reason);
        let event = match what {
            Failure::Rehearsal(_) => Reason::RehearsalFailed,
            _ => Reason::RenewalFailed,
        };
        let hint = without_them(self.key, what, of).unwrap_or_default();
        let route = route_hint(what).unwrap_or_default();
        let text_of = told_once(reason, text);
        let note = format!("{text_of}; next try at {retry_at}{route}{hint}");
        self.tell(&of.uid, event, &note);
        self.inscribe(&of.uid, text, retry_at).await;
    }
}

/// The accounts of the names that could not be proven: those that the CA names, else all.
fn invalid(error: &acme::Error, of: &FailureContext) -> BTreeSet<AccountId> {
    let named = error.problem().map_or(&[][..], |it| &it.subproblems);
    let named: Vec<Name> = named.iter().filter_map(|it| it.name.parse().ok()).collect();
    let names = if named.is_empty() { &of.names } else { &named };
    validations::accounts(&of.issuer, names)
        .into_keys()
        .collect()
}

impl Renewal<'_> {
    /// Writes the error onto the Secret; where that fails, Event and log have it.
    async fn inscribe(self, uid: &str, text: &str, retry_at: UnixTime) {
        let written = async {
            // Nothing else of it is held until the API server has answered.
            let head = secrets::head(&self.shared.client, self.key)
                .await?
                .identity();
            let mut annotations = vec![
                (keys::LAST_ERROR, Some(text.to_owned())),
                (keys::RETRY_AT, Some(retry_at.to_string())),
            ];
            annotations.extend(self.shared.state_note(self.key, |facts| {
                facts.entry.renewal_error = Some(text.into());
                facts.entry.renew_at = retry_at;
            }));
            let changes = Changes::of(annotations);
            if head.uid() != uid {
                return Ok(());
            }
            secrets::patch(&self.shared.client, &head, &changes)
                .await
                .map(|_| ())
        };
        if let Err(error) = written.await {
            tracing::debug!(secret = %self.key, %error, "the error could not be written onto the Secret");
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

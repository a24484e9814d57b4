//! Takes an order from its record to the written Secret, whether it was made a moment ago or by a former run.
//!
//! The record says which order it is. What is asked for, how the names are proven and whether the Secret may change now
//! is judged again at each try, and after the last wait before each irreversible step.

use std::time::Duration;

use cert_renew_core::certificate::key::PrivateKey;
use cert_renew_core::certificate::{self, Leaf};
use cert_renew_core::config;
use cert_renew_core::schedule::due::{Never, Reason};
use cert_renew_core::time::UnixTime;
use tokio::time::Instant;

use super::record::give_back;
use super::timing::took;
use crate::acme::{self, OrderStatus, Preference};
use crate::cluster::order_records::Record;
use crate::process::permit::Permit;
use crate::renewal::challenges::Patience;
use crate::renewal::challenges::ways::ProofPlan;
use crate::renewal::outcome::failure::Failure;
use crate::renewal::outcome::{NotTaken, Outcome, Progress};
use crate::renewal::renewals::{Renewal, Renewals};
use crate::renewal::target::{Readiness, RenewalTarget};
use crate::telemetry::metrics::RenewalStep;
use crate::telemetry::stage::Stage;

/// Longest wait for a certificate after finalize: some CAs take a minute.
const ISSUE: Duration = Duration::from_secs(5 * 60);
/// Number of tries to read an order before it is given up.
const UNREADABLE_TRIES: u32 = 2;

/// A running order.
pub(in crate::renewal) struct Begun {
    /// Its record, from which a restart resumes.
    pub(in crate::renewal) record: Record,
    /// Its state at the CA.
    pub(in crate::renewal) order: acme::Order,
    /// How its names are proven, if that was found out a moment ago.
    pub(in crate::renewal) plan: Option<ProofPlan>,
}

impl Renewal<'_> {
    /// Resumes an order that a former run, or a former attempt, has begun.
    pub(in crate::renewal) async fn resume(
        self,
        fresh: RenewalTarget,
        record: Record,
    ) -> Result<Outcome, Failure> {
        let fresh = fresh.at(&self.shared.config(), &record.order.issuer);
        let new_key = PrivateKey::from_pem(record.key.as_bytes()).ok();
        if new_key.as_ref().is_some_and(|key| {
            fresh
                .assessment
                .holds(record.order.ordered(), &key.public_key())
        }) {
            let lifetime = fresh.leaf().map(Leaf::lifetime);
            self.count_issue(&fresh, &record, lifetime).await;
            self.all.remove(&record).await?;
            return Ok(Outcome::Tidied);
        }
        if fresh.assessment.renewal.is_err_and(Never::is_pause) {
            return Ok(Outcome::Later(UnixTime::NEVER, None));
        }
        let Some(new_key) = new_key.filter(|_| fresh.still_wants(&record)) else {
            return self.give_up_unwanted(&record).await;
        };
        if let Some(opens) = fresh.shut_until(UnixTime::now()) {
            return Ok(Outcome::Later(opens, None));
        }
        let ours = |error| Failure::from(error).about(&fresh);
        let client = self
            .all
            .issuers
            .ready(&fresh.issuer_name, &fresh.issuer)
            .await
            .map_err(ours)?;
        let order = match client
            .resume(&record.order.url, &record.order.authorizations)
            .await
        {
            Ok(order) => order,
            Err(error) => {
                let is_gone = error.is_gone();
                let failure = Failure::from(error);
                if is_gone || self.all.is_lost(&fresh, &record, &failure) {
                    self.all.remove(&record).await?;
                }
                return Err(failure.about(&fresh));
            }
        };
        if matches!(order.status(), OrderStatus::Pending | OrderStatus::Ready) {
            let ordered = record.order.profile.as_deref();
            let fits = fresh.takes_profile(&client, ordered).await;
            let fits = fits.map_err(|error| Failure::from(error).about(&fresh))?
                && fresh.awaits(&record.order, UnixTime::now());
            if !fits || !fresh.asks_for(&new_key) {
                give_back(&order).await;
                return self.give_up_unwanted(&record).await;
            }
        }
        let _proving = self
            .all
            .validations
            .join(&fresh.issuer_name, &record.order.names);
        let (issuer, url) = (&fresh.issuer_name, &record.order.url);
        tracing::info!(
            secret = %self.key, step = Stage::Wait.name(), %issuer, order = url, status = ?order.status(), "the order is taken up again"
        );
        let reason = fresh
            .assessment
            .renewal
            .map_or(Reason::Lifetime, |due| due.reason);
        let begun = Begun {
            record,
            order,
            plan: None,
        };
        self.proceed(fresh, begun, reason).await
    }
}

impl Renewals {
    /// Whether an order cannot succeed any more, whatever the reason: it is past its end, or several tries could not
    /// read it.
    fn is_lost(&self, fresh: &RenewalTarget, record: &Record, failure: &Failure) -> bool {
        let failures = self.shared.ledger.failures(fresh.assessment.account);
        let is_unreadable = matches!(failure, Failure::Acme(error) if error.is_unreadable());
        record.order.is_over(UnixTime::now()) || is_unreadable && failures >= UNREADABLE_TRIES
    }
}

impl Renewal<'_> {
    /// Gives up the order of a Secret that asks for something else; the Secret is looked at again at once.
    async fn give_up_unwanted(self, record: &Record) -> Result<Outcome, Failure> {
        tracing::info!(
            secret = %self.key, order = record.order.url, "the order is given up: the Secret, or the config, asks for something else"
        );
        self.all.give_up(record).await?;
        Ok(Outcome::Later(UnixTime::now(), None))
    }

    /// Takes an order to the written Secret. The record is removed once it cannot succeed any more, else kept for a
    /// retry.
    pub(in crate::renewal) async fn proceed(
        self,
        fresh: RenewalTarget,
        mut begun: Begun,
        reason: Reason,
    ) -> Result<Outcome, Failure> {
        let mut lifetime = None;
        // On the heap: all steps of an order, each with looks and requests of its own, are in it.
        let finished = Box::pin(self.finish(&mut begun, (reason, &mut lifetime)));
        match finished.await {
            Ok(Progress::Ended(outcome)) => {
                self.all.remove(&begun.record).await?;
                Ok(outcome)
            }
            Ok(Progress::Waits(until)) => Ok(Outcome::Later(until, None)),
            Err(failure) => {
                let Begun { record, order, .. } = &begun;
                if failure.ends_order(order) || self.all.is_lost(&fresh, record, &failure) {
                    if order.status() == OrderStatus::Valid {
                        // The CA has issued it, but it will not be used.
                        let account = fresh.assessment.account;
                        self.count_wasted(account, record, lifetime).await;
                    }
                    give_back(order).await;
                    self.all.remove(record).await?;
                }
                Err(failure.about(&fresh).in_order(&record.order.url))
            }
        }
    }

    async fn finish(
        self,
        begun: &mut Begun,
        (reason, lifetime): (Reason, &mut Option<Duration>),
    ) -> Result<Progress, Failure> {
        let Begun {
            record,
            order,
            plan,
        } = begun;
        let mut started = Instant::now();
        if order.status() == OrderStatus::Pending {
            let manner = (plan.take(), Patience::Briefly);
            let plan = self.prepare_challenges(record, order, manner).await?;
            let record = &*record;
            let may = move || self.may_validate(record);
            let validated = self.validate(&record.order.uid, order, &plan, may);
            if let Err(not_taken) = validated.await {
                return not_taken.progress();
            }
            took(&self.shared.metrics, record, RenewalStep::Prove, started);
            tracing::info!(
                secret = %self.key, step = Stage::Prove.name(), issuer = record.order.issuer, order = record.order.url, "validated"
            );
        }
        let record = &*record;
        let (issuer, url) = (&record.order.issuer, &record.order.url);
        if order.status() == OrderStatus::Ready {
            let new_key = PrivateKey::from_pem(record.key.as_bytes())?;
            let config = self.shared.config();
            let common_name = { config.issuer(issuer) }.is_some_and(|it| it.common_name);
            let request = new_key.csr(&record.order.names, common_name)?;
            started = Instant::now();
            // Before the request has its place in the CA's queue: to fetch it there would need another place.
            let directory = order.client().directory().await?;
            let directory = &*directory;
            let may = move || self.may_finalize(record, directory);
            match order.finalize_if(&request, may).await {
                Ok(()) => {}
                Err(acme::RequestError::Refused(not_taken)) => return not_taken.progress(),
                Err(acme::RequestError::Failed(error)) => return Err(error.into()),
            }
        }
        if order.status() != OrderStatus::Valid {
            order.wait_issued(Instant::now() + ISSUE).await?;
            took(&self.shared.metrics, record, RenewalStep::Finalize, started);
            tracing::info!(secret = %self.key, step = Stage::Finalize.name(), %issuer, order = url, "issued");
        }
        let config = self.shared.config();
        let chain = config
            .issuer(&record.order.issuer)
            .and_then(|issuer| issuer.chain.as_ref());
        let preference = match chain {
            None => Preference::Default,
            Some(config::PreferredChain::Root(name)) => Preference::Root(name.clone()),
            Some(config::PreferredChain::Shortest) => Preference::Shortest,
        };
        started = Instant::now();
        let pem = order.certificate(&preference).await?;
        took(&self.shared.metrics, record, RenewalStep::Download, started);
        *lifetime = certificate::leaf(pem.as_bytes())
            .ok()
            .map(|leaf| leaf.lifetime());
        self.write((record, order.client()), &pem, reason).await
    }
}

impl Renewal<'_> {
    /// Permission to have the CA validate a name of the order: the Secret still wants the order, and may change now.
    ///
    /// # Errors
    /// With what becomes of the order otherwise.
    async fn may_validate(self, record: &Record) -> Result<Permit<()>, NotTaken> {
        match self.look(record).await? {
            Readiness::Go(permit, _) => Ok(permit),
            Readiness::Waits(until) => Err(NotTaken::Waits(until)),
        }
    }

    /// Permission to have the CA issue the certificate: the Secret still asks for it, and for this key, and may change
    /// now.
    ///
    /// # Errors
    /// With what becomes of the order otherwise.
    async fn may_finalize(
        self,
        record: &Record,
        directory: &acme::Directory,
    ) -> Result<Permit<()>, NotTaken> {
        let (permit, fresh) = match self.look(record).await? {
            Readiness::Go(permit, fresh) => (permit, fresh),
            Readiness::Waits(until) => return Err(NotTaken::Waits(until)),
        };
        let ordered = record.order.profile.as_deref();
        let takes = fresh.takes_profile_of(directory, ordered);
        let new_key = PrivateKey::from_pem(record.key.as_bytes()).map_err(Failure::from)?;
        let fits = takes && fresh.awaits(&record.order, UnixTime::now());
        if fits && fresh.asks_for(&new_key) {
            Ok(permit)
        } else {
            Err(Failure::Unwanted.into())
        }
    }
}

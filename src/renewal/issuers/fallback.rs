//! Where an order goes: to the Secret's issuer; to its fallback while that issuer is unreachable and the certificate is
//! close to expiry; and after a failed validation first to its staging CA, so that a broken route does not use up the
//! real CA's limits.
//!
//! No certificate is requested from a staging CA: a rehearsal ends when the names are proven.

use std::time::Duration;

use cert_renew_core::certificate::KeyType;
use cert_renew_core::certificate::key::PrivateKey;
use cert_renew_core::config::{Config, Issuer, Staging};
use cert_renew_core::schedule::rate_limits;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use tokio::time::timeout;

use crate::acme::{Class, OrderRequest};
use crate::cluster::order_records;
use crate::process::permit::Permit;
use crate::renewal::challenges::Patience;
use crate::renewal::challenges::ways::ProofPlan;
use crate::renewal::order::record::give_back;
use crate::renewal::outcome::failure::Failure;
use crate::renewal::renewals::Renewal;
use crate::renewal::target::RenewalTarget;

/// Longest rehearsal. It keeps the renewal's place; a proof that is not in place by then is waited for with the real
/// order, which gives its place back while it waits.
const REHEARSAL: Duration = Duration::from_secs(5 * 60);

/// An issuer's fallbacks, in order.
fn fallbacks<'a>(config: &'a Config, issuer: &str) -> impl Iterator<Item = (&'a str, &'a Issuer)> {
    let next = |name: &str| {
        let name = config.issuer(name)?.fallback.as_deref()?;
        Some((name, config.issuer(name)?))
    };
    std::iter::successors(next(issuer), move |(name, _)| next(name))
}

impl RenewalTarget {
    /// Switches to the issuer that an order runs at, if it is among the Secret's fallbacks.
    pub(in crate::renewal) fn at(self, config: &Config, issuer: &str) -> Self {
        let found = fallbacks(config, &self.issuer_name).find(|(name, _)| *name == issuer);
        match found {
            Some((name, issuer)) => self.turned(name, issuer),
            None => self,
        }
    }

    fn turned(mut self, name: &str, issuer: &Issuer) -> Self {
        self.assessment.account = rate_limits::account_of(name, &self.assessment.names);
        self.issuer_name = name.into();
        self.issuer = issuer.clone();
        self
    }
}

impl Renewal<'_> {
    /// Switches to the first issuer that is not known to be unreachable, if the certificate is close to expiry.
    pub(in crate::renewal) fn at_hand(self, fresh: RenewalTarget, now: UnixTime) -> RenewalTarget {
        let out_of_reach = |account| {
            let account = self.shared.ledger.get(account);
            let away = { account.unavailable_until }.is_some_and(|until| until > now.0);
            away || account.limited_until(now).is_some()
        };
        let leaf = fresh.leaf();
        if !rate_limits::runs_short(now, leaf) || !out_of_reach(fresh.assessment.account) {
            return fresh;
        }
        let config = self.shared.config();
        let names = &fresh.assessment.names;
        let found = fallbacks(&config, &fresh.issuer_name).find(|(name, issuer)| {
            let labels = fresh.labels();
            let may = |name| issuer.allows(&self.key.namespace, labels, name);
            names.iter().all(may) && !out_of_reach(rate_limits::account_of(name, names))
        });
        match found {
            Some((name, issuer)) => {
                tracing::info!(secret = %self.key, issuer = %fresh.issuer_name, fallback = name, "out of reach: the fallback is asked");
                fresh.turned(name, issuer)
            }
            None => fresh,
        }
    }

    /// Proves the names to the staging CA after a failed validation, as often as the ledger still asks for it.
    ///
    /// # Errors
    /// When the proof fails there too; an outage of the staging CA is no error.
    pub(in crate::renewal) async fn rehearse(
        self,
        fresh: &RenewalTarget,
        names: &[Name],
    ) -> Result<(), Failure> {
        let account = fresh.assessment.account;
        let leaf = fresh.leaf();
        let urgent = leaf.is_some() && rate_limits::runs_short(UnixTime::now(), leaf);
        if self.shared.ledger.get(account).rehearsals == 0 || urgent {
            return Ok(());
        }
        let (name, issuer) = match &fresh.issuer.staging {
            None => return Ok(()),
            Some(Staging::Directory(directory)) => {
                let issuer = Issuer {
                    directory: directory.clone(),
                    eab: None,
                    ..fresh.issuer.clone()
                };
                // No issuer's name has a dot.
                (format!("{}.staging", fresh.issuer_name), issuer)
            }
            Some(Staging::Issuer(name)) => match self.shared.config().issuer(name) {
                Some(issuer) => (name.clone(), issuer.clone()),
                None => return Ok(()),
            },
        };
        match self.rehearsed(fresh, (&name, &issuer), names).await {
            Ok(()) => {
                tracing::info!(secret = %self.key, staging = name, "the rehearsal has passed");
                let passed = self
                    .shared
                    .ledger
                    .update(&self.key.namespace, account, |account| {
                        account.rehearsals = 0;
                    });
                Ok(passed.await?)
            }
            Err(Failure::Acme(error)) if error.class() == Class::FixIt => {
                Err(Failure::Rehearsal(error))
            }
            Err(
                error @ (Failure::Cluster(_)
                | Failure::NoSolver(_)
                | Failure::Dns01(_)
                | Failure::Route(_)
                | Failure::RouteRefused(..)
                | Failure::Unwanted
                | Failure::Outdated),
            ) => Err(error),
            Err(error) => {
                tracing::info!(secret = %self.key, staging = name, %error, "staging cannot be used: no rehearsal");
                Ok(())
            }
        }
    }

    /// Permission to order at the staging CA and to have the names validated: the Secret still asks for them, and may
    /// change now.
    pub(in crate::renewal) async fn may_still_rehearse(
        self,
        fresh: &RenewalTarget,
        names: &[Name],
    ) -> Result<Permit<()>, Failure> {
        let asks = |it: RenewalTarget, now| {
            it.uid() == fresh.uid()
                && it.assessment.renewal.is_ok_and(|due| due.at <= now)
                && !it.is_left_alone()
                && it.shut_until(now).is_none()
                && it.names_to_order() == names
        };
        self.permitted(asks).await
    }

    async fn rehearsed(
        self,
        fresh: &RenewalTarget,
        (name, issuer): (&str, &Issuer),
        names: &[Name],
    ) -> Result<(), Failure> {
        let client = self.all.issuers.ready(name, issuer).await?;
        let may = move || self.may_still_rehearse(fresh, names);
        let request = OrderRequest::default();
        let mut order = Box::pin(client.new_order_if(names, request, may)).await?;
        let begun = async {
            let plan =
                ProofPlan::make(&self.shared.config(), order.authorizations().await?).await?;
            let stored = order_records::Order {
                namespace: self.key.namespace.to_string(),
                name: self.key.name.to_string(),
                uid: fresh.uid().to_owned(),
                issuer: name.to_owned(),
                directory: Some(issuer.directory.clone()),
                account: client.account_url(),
                url: order.url().to_owned(),
                names: names.to_vec(),
                profile: None,
                lifetime: None,
                expected: true,
                replaced: true,
                reason: "Rehearsal".to_owned(),
                created: UnixTime::now().0,
                authorizations: order.authorization_urls().to_vec(),
                expires: order.expires().map(|at| at.0),
                txt: plan.txt().cloned().collect(),
                routes: plan.routes().cloned().collect(),
            };
            // The record lets every replica answer. A restart drops it, as its issuer is not the Secret's.
            let unused = PrivateKey::generate(KeyType::EcdsaP256)?.to_pem()?;
            let record = order_records::create(
                &self.shared.client,
                &self.shared.namespace,
                stored,
                unused,
                plan.challenges()?,
            );
            Ok::<_, Failure>((record.await?, plan))
        };
        let (mut record, plan) = match begun.await {
            Ok(begun) => begun,
            Err(failure) => {
                give_back(&order).await;
                return Err(failure);
            }
        };
        let count = record.order.names.len();
        self.all.running_orders.insert(self.key, count);
        let manner = (Some(plan), Patience::ToTheEnd);
        let proving = async {
            let plan = self
                .prepare_challenges(&mut record, &mut order, manner)
                .await?;
            self.validate(fresh.uid(), &mut order, &plan, may).await
        };
        let result = timeout(REHEARSAL, Box::pin(proving))
            .await
            .unwrap_or_else(|_| {
                let late =
                    Failure::NoSolver("the names were not proven within five minutes".into());
                Err(Failure::Waiting(Box::new(late)))
            });
        give_back(&order).await;
        self.all.remove(&record).await?;
        result
    }
}

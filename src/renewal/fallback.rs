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
use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use tokio::time::timeout;

use super::challenges::{self, Wait};
use super::failure::Failure;
use super::record;
use super::target::RenewalTarget;
use super::ways::Plan;
use crate::acme::{Class, OrderRequest};
use crate::cluster::order_records;
use crate::context::Context;

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
    pub(super) fn at(self, context: &Context, issuer: &str) -> Self {
        let config = context.config();
        let found = fallbacks(&config, &self.issuer_name).find(|(name, _)| *name == issuer);
        match found {
            Some((name, issuer)) => self.turned(name, issuer),
            None => self,
        }
    }

    /// Switches to the first issuer that is not known to be unreachable, if the certificate is close to expiry.
    pub(super) fn at_hand(self, context: &Context, key: &SecretRef, now: UnixTime) -> Self {
        let out_of_reach = |account| {
            let account = context.ledger.get(account);
            let away = { account.unavailable_until }.is_some_and(|until| until > now.0);
            away || account.limited_until(now).is_some()
        };
        let leaf = self.leaf();
        if !rate_limits::runs_short(now, leaf) || !out_of_reach(self.assessment.account) {
            return self;
        }
        let config = context.config();
        let names = &self.assessment.names;
        let found = fallbacks(&config, &self.issuer_name).find(|(name, issuer)| {
            let labels = self.labels();
            let may = |name| issuer.allows(&key.namespace, labels, name);
            names.iter().all(may) && !out_of_reach(rate_limits::account_of(name, names))
        });
        match found {
            Some((name, issuer)) => {
                tracing::info!(secret = %key, issuer = %self.issuer_name, fallback = name, "out of reach: the fallback is asked");
                self.turned(name, issuer)
            }
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

/// Proves the names to the staging CA after a failed validation, as often as the ledger still asks for it.
///
/// # Errors
/// When the proof fails there too; an outage of the staging CA is no error.
pub(super) async fn rehearse(
    context: &Context,
    key: &SecretRef,
    fresh: &RenewalTarget,
    names: &[Name],
) -> Result<(), Failure> {
    let account = fresh.assessment.account;
    let leaf = fresh.leaf();
    let urgent = leaf.is_some() && rate_limits::runs_short(UnixTime::now(), leaf);
    if context.ledger.get(account).rehearsals == 0 || urgent {
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
        Some(Staging::Issuer(name)) => match context.config().issuer(name) {
            Some(issuer) => (name.clone(), issuer.clone()),
            None => return Ok(()),
        },
    };
    match proven(context, key, fresh, (&name, &issuer), names).await {
        Ok(()) => {
            tracing::info!(secret = %key, staging = name, "the rehearsal has passed");
            let passed = context
                .ledger
                .update(&key.namespace, account, |account| account.rehearsals = 0);
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
            | Failure::RouteRefused(..)),
        ) => Err(error),
        Err(error) => {
            tracing::info!(secret = %key, staging = name, %error, "staging cannot be used: no rehearsal");
            Ok(())
        }
    }
}

async fn proven(
    context: &Context,
    key: &SecretRef,
    fresh: &RenewalTarget,
    (name, issuer): (&str, &Issuer),
    names: &[Name],
) -> Result<(), Failure> {
    let client = context.issuers.ready(name, issuer).await?;
    let mut order = client.new_order(names, OrderRequest::default()).await?;
    let plan = Plan::make(context, order.authorizations().await?).await?;
    let stored = order_records::Order {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
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
        &context.client,
        &context.namespace,
        stored,
        unused,
        plan.challenges()?,
    );
    let mut record = record.await?;
    context.known.insert(key);
    let manner = (Some(plan), Wait::ToTheEnd);
    let proving = async {
        let plan = challenges::prepare(context, key, &mut record, &mut order, manner).await?;
        challenges::tell(context, (key, fresh.uid()), &mut order, &plan).await
    };
    let result = timeout(REHEARSAL, proving).await.unwrap_or_else(|_| {
        let late = Failure::NoSolver("the names were not proven within five minutes".into());
        Err(Failure::Waiting(Box::new(late)))
    });
    record::give_back(&order).await;
    record::remove(context, &record).await?;
    result
}

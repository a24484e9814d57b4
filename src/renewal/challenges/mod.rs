//! Takes a pending order to the state in which the CA has validated all of its names.
//!
//! A proof is written into the record before it is put in place, and removed before the record is.

pub mod dns_persist01;
pub mod sync;
pub(super) mod ways;

use std::pin::pin;
use std::time::Duration;

use cert_renew_core::time::UnixTime;
use futures::future::try_join_all;
use futures::stream::{self, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::renewals::{Renewal, Renewals};
use crate::acme;
use crate::cluster::challenge_routes::{self, RouteStatus};
use crate::cluster::order_records::{self, Record, Txt};
use crate::net::dns::ResolverSet;
use crate::net::egress::Nearby;
use crate::process::permit::Permit;
use crate::renewal::challenges::ways::{ProofMethod, ProofPlan, ProofStep, name_of};
use crate::renewal::order::cleanup::CHANGES;
use crate::renewal::outcome::failure::Failure;
use crate::solver::{dns01, http01_self_check};

/// Longest wait for a validation, which takes seconds as a rule. After it the order stays, and the CA is asked later.
const VALIDATION: Duration = Duration::from_secs(5 * 60);
/// Longest time that a renewal keeps its place while it waits for a zone's servers. It goes on from the record later.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for a route: load balancers of some clouds take minutes to apply a new one.
const ROUTE: Duration = Duration::from_secs(10 * 60);
/// Time between two checks of a route.
const LOOK: Duration = Duration::from_secs(1);
/// Most hosts of one order that are checked at the same time.
const LOOKS: usize = 16;
/// Most places to clean up for each name of an order. An order whose config or DNS has changed more often is given up.
const PLACES_A_NAME: usize = 5;

/// How long a wait for records or a route of challenges may last.
#[derive(Clone, Copy)]
pub(super) enum Patience {
    /// For [`PATIENCE`]; then [`Failure::Waiting`], and the record stays.
    Briefly,
    /// As long as the config allows.
    ToTheEnd,
}

impl Renewal<'_> {
    /// Puts the proofs in place by the config and DNS of now, and waits until each is reachable. `plan` is one that was
    /// made a moment ago for this record.
    pub(super) async fn prepare_challenges(
        self,
        record: &mut Record,
        order: &mut acme::Order,
        (plan, wait): (Option<ProofPlan>, Patience),
    ) -> Result<ProofPlan, Failure> {
        let plan = match plan {
            Some(plan) => plan,
            None => {
                let plan =
                    ProofPlan::make(&self.shared.config(), order.authorizations().await?).await?;
                self.all.note(record, &plan).await?;
                plan
            }
        };
        self.all.answer(&record.name, record.challenges.clone());
        let steps = &plan.steps;
        // The user's part first: nothing is put in place before it is done.
        let persistent =
            { steps.iter() }.filter(|step| matches!(step.way, ProofMethod::Persistent));
        dns_persist01::check_records(
            &self.shared.config(),
            order,
            persistent.map(|step| &step.authorization),
        )
        .await?;
        let txt: Vec<&Txt> = plan.txt().collect();
        let since = UnixTime(record.order.created);
        let manner = (order.nearby(), wait);
        self.place_txt(&txt, since, manner).await?;
        self.open_routes(record, &plan, manner).await?;
        Ok(plan)
    }

    /// Reports to the CA that the proofs are in place, and waits until it has validated them. Reports at once what the CA
    /// says of a name that it will try again: the user may have to fix something first. `may` looks at the Secret right
    /// before each report, after the wait for the CA's other requests.
    pub(super) async fn validate<R, F>(
        self,
        uid: &str,
        order: &mut acme::Order,
        plan: &ProofPlan,
        may: impl Fn() -> F,
    ) -> Result<(), R>
    where
        R: From<Failure>,
        F: Future<Output = Result<Permit<()>, R>>,
    {
        for step in &plan.steps {
            let told = order.set_ready_if(step.challenge()?, &may).await;
            told.map_err(refused_or_failed)?;
        }
        let (said, mut heard) = mpsc::unbounded_channel();
        let send = move |error| drop(said.send(error));
        let deadline = Instant::now() + VALIDATION;
        let mut validated = pin!(order.wait_validated_if(deadline, send, &may));
        loop {
            tokio::select! {
                result = &mut validated => return result.map_err(refused_or_failed),
                Some(error) = heard.recv() => {
                    self.waits(uid, &Failure::Acme(error)).await;
                }
            }
        }
    }
}

fn refused_or_failed<R: From<Failure>>(error: acme::RequestError<R>) -> R {
    match error {
        acme::RequestError::Refused(refused) => refused,
        acme::RequestError::Failed(error) => Failure::from(error).into(),
    }
}

impl Renewals {
    /// Writes into the record what is about to be put in place and is not in it yet, because the config or DNS has
    /// changed since the order was begun. What an earlier plan put in place stays in the record, to be removed with the
    /// order; routes that are no longer wanted are removed at once.
    ///
    /// # Errors
    /// [`Failure::Unwanted`] where the record has collected too many places.
    async fn note(&self, record: &mut Record, plan: &ProofPlan) -> Result<(), Failure> {
        let mut is_other = false;
        for txt in plan.txt() {
            if !record.order.txt.iter().any(|it| it.is_placed_as(txt)) {
                record.order.txt.push(txt.clone());
                is_other = true;
            }
        }
        for (token, proof) in plan.challenges()? {
            is_other |= record.challenges.insert(token, proof.clone()) != Some(proof);
        }
        let (wanted, stale): (Vec<_>, Vec<_>) = { record.order.routes.drain(..) }
            .partition(|routed| plan.routes().any(|it| it == routed));
        record.order.routes = wanted;
        for routed in plan.routes() {
            if !record.order.routes.contains(routed) {
                record.order.routes.push(routed.clone());
                is_other = true;
            }
        }
        for routed in &stale {
            self.close(record, routed).await?;
        }
        if record.order.txt.len() > PLACES_A_NAME * record.order.names.len() {
            return Err(Failure::Unwanted);
        }
        if is_other {
            tracing::info!(
                secret = %record.order.subject(), order = record.order.url,
                "the names are proven in another way than at the last try"
            );
            order_records::update(&self.shared.client, &self.shared.namespace, record).await?;
        }
        Ok(())
    }
}

impl Renewal<'_> {
    /// Sets the TXT records and waits until all servers of their zones serve them.
    async fn place_txt(
        self,
        records: &[&Txt],
        since: UnixTime,
        (nearby, wait): (Nearby, Patience),
    ) -> Result<(), Failure> {
        if records.is_empty() {
            return Ok(());
        }
        stream::iter(records.iter().map(Ok))
            .try_for_each_concurrent(CHANGES, |txt| self.all.dns01.add(txt))
            .await?;
        let (config, resolvers) = (self.shared.config(), ResolverSet::default());
        let places = dns01::LookPlaces::default();
        let started = Instant::now();
        let seen = records.iter().map(|txt| {
            let resolver = resolvers.get(config.resolvers(txt.of.parse().ok().as_ref()));
            let patience = match wait {
                Patience::Briefly => PATIENCE.min(txt.solver.propagation.timeout),
                Patience::ToTheEnd => txt.solver.propagation.timeout,
            };
            let manner = (nearby, &places);
            async move { dns01::seen(manner, &resolver?, txt, started + patience).await }
        });
        match try_join_all(seen).await {
            Ok(_) => {
                tracing::info!(secret = %self.key, records = records.len(), "the TXT records are seen everywhere");
                Ok(())
            }
            Err(error @ dns01::Error::NotSeen { .. }) => {
                let timeouts = records.iter().map(|txt| txt.solver.propagation.timeout);
                let end = since + timeouts.max().unwrap_or_default();
                match wait {
                    Patience::Briefly if UnixTime::now() < end => Err(waiting(error.into())),
                    _ => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn waiting(failure: Failure) -> Failure {
    Failure::Waiting(Box::new(failure))
}

impl Renewal<'_> {
    /// Creates the routes, and waits until a request for each token would reach us.
    async fn open_routes(
        self,
        record: &Record,
        plan: &ProofPlan,
        (nearby, wait): (Nearby, Patience),
    ) -> Result<(), Failure> {
        let config = self.shared.config();
        for routed in plan.routes() {
            self.all.routes.hold(&record.uid, &routed.name());
            challenge_routes::create(&self.shared.client, &self.shared.namespace, routed).await?;
        }
        let checked = |step: &&ProofStep| {
            matches!(
                step.way,
                ProofMethod::Http {
                    self_check: true,
                    ..
                }
            )
        };
        let lookups = self.all.user_lookups.of(&self.key.namespace);
        let from = (nearby, &lookups);
        let mut checks = Vec::new();
        for step in plan.steps.iter().filter(checked) {
            let name = name_of(&step.authorization)?;
            let resolvers = config.resolvers(Some(&name));
            checks.push((name.to_string(), resolvers, step.challenge()?));
        }
        let started = Instant::now();
        let end = UnixTime(record.order.created) + ROUTE;
        let patience = match wait {
            Patience::Briefly => PATIENCE,
            Patience::ToTheEnd => ROUTE,
        };
        loop {
            for routed in plan.routes() {
                let standing =
                    challenge_routes::standing(&self.shared.client, &self.shared.namespace, routed);
                if let RouteStatus::Refused(why) = standing.await? {
                    return Err(Failure::RouteRefused(routed.host.clone(), why));
                }
            }
            let looks = stream::iter(checks.iter().map(Ok));
            let looked = looks.try_for_each_concurrent(LOOKS, |(host, resolvers, challenge)| {
                let (token, proof) = (&challenge.token, &challenge.key_authorization);
                http01_self_check::reaches_us(from, resolvers, host, token, proof)
            });
            let Err(error) = looked.await else { break };
            if started.elapsed() + LOOK > patience {
                let failure = Failure::Route(error);
                return match wait {
                    Patience::Briefly if UnixTime::now() < end => Err(waiting(failure)),
                    _ => Err(failure),
                };
            }
            sleep(LOOK).await;
        }
        if !checks.is_empty() {
            tracing::info!(secret = %self.key, hosts = checks.len(), "the route of each host leads to us");
        }
        Ok(())
    }
}

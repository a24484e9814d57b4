//! Shared handles of all tasks of a running operator.

pub mod doubts;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cert_renew_core::config::Config;
use cert_renew_core::index::{self, Entry, Index, Observed};
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::state_line::{self, Facts};
use cert_renew_core::time::UnixTime;
use kube::Client;
use tokio::sync::{Notify, watch};

use crate::cluster::events::Events;
use crate::cluster::ledger::Ledger;
use crate::context::doubts::Doubts;
use crate::process::write_gate::WriteGate;
use crate::renewal::info::RenewalInfo;
use crate::renewal::issuers::Issuers;
use crate::renewal::running_orders::RunningOrders;
use crate::renewal::secret_failures::SecretFailures;
use crate::renewal::validation_limits::Validations;
use crate::rollout::Roller;
use crate::solver::dns01;
use crate::solver::http01::ChallengeStore;
use crate::solver::http01_self_check::Held;
use crate::telemetry::metrics::Metrics;

/// Shared handles for all tasks. Cheap to share. Contains no logic.
pub struct Context {
    /// The API server, behind the gate.
    pub client: Client,
    /// Open while this replica leads.
    pub gate: WriteGate,
    /// The operator's own namespace.
    pub namespace: Arc<str>,
    /// The present config.
    pub config: watch::Receiver<Arc<Config>>,
    /// Publishes Events.
    pub events: Events,
    /// Failures and budgets.
    pub ledger: Arc<Ledger>,
    /// Failures of single Secrets.
    pub secret_failures: SecretFailures,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Key authorizations that the challenge port answers with.
    pub challenges: ChallengeStore,
    /// Sets and removes TXT records.
    pub dns01: dns01::Solver,
    /// The Ingresses and HTTPRoutes of ours, with their users.
    pub routes: Held,
    /// ACME clients by issuer, made when first needed.
    pub issuers: Issuers,
    /// The renewal information of the CAs.
    pub renewal_info: RenewalInfo,
    /// Known order records.
    pub known: RunningOrders,
    /// Names under validation.
    pub validations: Validations,
    /// Secrets whose pair must be checked.
    pub doubts: Doubts,
    /// Secrets on which the line for people may be outdated, or whose annotations are to be checked in the cluster.
    pub notes: Doubts,
    /// Namespaces whose Secrets were compared with the record of their workloads, once after the start.
    pub compared: Mutex<BTreeSet<Arc<str>>>,
    /// Shared state of rollouts: concurrency and the like.
    pub roller: RwLock<Arc<Roller>>,
    /// All annotated Secrets; only the controller writes.
    pub index: Arc<RwLock<Index>>,
    /// When the controller's loop last ran, unix seconds.
    pub beat: Arc<AtomicI64>,
    /// Whether every watch has been listed once.
    pub ready: Arc<AtomicBool>,
    /// Signals that every watch has been listed.
    pub listed: Arc<Notify>,
    /// Tells the watches to list again: they would miss what has happened.
    pub anew: watch::Sender<()>,
}

impl Context {
    /// The context of an operator in `namespace` that knows nothing yet. All its writes go through `gate`.
    #[must_use]
    pub fn new(
        client: Client,
        gate: WriteGate,
        namespace: Arc<str>,
        config: watch::Receiver<Arc<Config>>,
        events: Events,
        metrics: Arc<Metrics>,
    ) -> Self {
        let roller = Roller::new(client.clone(), &config.borrow().rollout);
        Self {
            ledger: Arc::new(Ledger::new(&client, &namespace)),
            roller: RwLock::new(Arc::new(roller)),
            issuers: Issuers::new(
                client.clone(),
                Arc::clone(&namespace),
                Arc::clone(&metrics),
                gate.clone(),
            ),
            dns01: dns01::Solver::new(client.clone(), Arc::clone(&namespace), gate.clone()),
            renewal_info: RenewalInfo::default(),
            known: RunningOrders::default(),
            secret_failures: SecretFailures::default(),
            validations: Validations::default(),
            doubts: Doubts::default(),
            notes: Doubts::default(),
            compared: Mutex::default(),
            challenges: ChallengeStore::default(),
            routes: Held::default(),
            index: Arc::default(),
            beat: Arc::default(),
            ready: Arc::default(),
            listed: Arc::default(),
            anew: watch::Sender::new(()),
            client,
            gate,
            namespace,
            config,
            events,
            metrics,
        }
    }

    /// The present config.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// The rollouts' shared state under the present config.
    #[must_use]
    pub fn roller(&self) -> Arc<Roller> {
        let roller = self.roller.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&roller)
    }

    /// Earliest instant of the next try after a failure: for these names, or for this Secret alone.
    #[must_use]
    pub fn retry_at(&self, now: UnixTime, observed: &Observed) -> Option<UnixTime> {
        let Observed {
            uid, account, wish, ..
        } = observed;
        let of_names = self.ledger.retry_at(now, *account, *wish);
        of_names.max(self.secret_failures.retry_at(now, uid, *wish))
    }

    /// Failed renewals of a Secret in a row.
    #[must_use]
    pub fn failures(&self, observed: &Observed) -> u32 {
        let of_names = self.ledger.failures(observed.account);
        of_names.max(self.secret_failures.count(&observed.uid))
    }

    /// The index entry of a Secret.
    #[must_use]
    pub fn entry(&self, key: &SecretRef) -> Option<Entry> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.get(key)
    }

    /// What is known of a Secret, for its line.
    #[must_use]
    pub fn facts(&self, key: &SecretRef) -> Option<Facts> {
        self.entry(key).map(Facts::of)
    }

    /// The annotation with the line of a Secret, by what is known of it and what is about to be written.
    #[must_use]
    pub fn state_note(
        &self,
        key: &SecretRef,
        change: impl FnOnce(&mut Facts),
    ) -> Option<(&'static str, Option<String>)> {
        let mut facts = self.facts(key)?;
        change(&mut facts);
        let line = state_line::line(UnixTime::now(), key, &facts);
        Some((keys::STATE, Some(line.text().to_owned())))
    }

    /// The error of the last renewal of a Secret.
    #[must_use]
    pub fn renewal_error(&self, key: &SecretRef) -> Option<Box<str>> {
        self.entry(key)?.renewal_error
    }

    /// Whether the last renewal of a Secret ended with this error.
    #[must_use]
    pub fn renewal_said(&self, key: &SecretRef, error: &str) -> bool {
        self.renewal_error(key).as_deref() == Some(index::kept(error))
    }

    /// Whether the last rollout of a Secret, or the last check of its pair, ended with this error.
    #[must_use]
    pub fn rollout_said(&self, key: &SecretRef, error: &str) -> bool {
        let entry = self.entry(key);
        entry.is_some_and(|entry| entry.rollout_error.as_deref() == Some(index::kept(error)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::convert::Infallible;
    use std::future::pending;

    use http::{Request, Response};
    use kube::client::Body;
    use tower::service_fn;

    use super::*;

    /// The context of an operator whose API server accepts every request and never answers, with the sender of its
    /// config.
    pub(crate) fn without_an_answer() -> (Arc<Context>, watch::Sender<Arc<Config>>) {
        let silent = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
        let client = Client::new(silent, "cert-renew");
        let metrics = Arc::new(Metrics::new().unwrap());
        let events = Events::start(client.clone(), None, &metrics);
        let config = Config::parse("issuers: {}").unwrap();
        let (in_force, config) = watch::channel(Arc::new(config));
        let gate = WriteGate::default();
        let context = Context::new(client, gate, "cert-renew".into(), config, events, metrics);
        (Arc::new(context), in_force)
    }
}

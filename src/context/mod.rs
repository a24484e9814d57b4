//! What every task of a running operator shares.

pub mod doubts;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cert_renew_core::config::Config;
use cert_renew_core::index::{self, Entry, Index, Observed};
use cert_renew_core::secret::SecretRef;
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

/// See the module's documentation. Cheap to share, nothing in it is decided here.
pub struct Context {
    /// The API server, behind the gate.
    pub client: Client,
    /// Open while this replica leads.
    pub gate: WriteGate,
    /// The operator's own namespace.
    pub namespace: Arc<str>,
    /// The config that is in force.
    pub config: watch::Receiver<Arc<Config>>,
    /// Where Events go.
    pub events: Events,
    /// Failures and budgets.
    pub ledger: Arc<Ledger>,
    /// Failures that are of one Secret alone.
    pub secret_failures: SecretFailures,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Key authorizations that the challenge port answers with.
    pub challenges: ChallengeStore,
    /// Sets and removes TXT records.
    pub dns01: dns01::Solver,
    /// Who needs which Ingress or HTTPRoute of ours.
    pub routes: Held,
    /// ACME clients, one an issuer, made when first needed.
    pub issuers: Issuers,
    /// What the CAs suggest about when to renew.
    pub renewal_info: RenewalInfo,
    /// Order records that are known to exist.
    pub known: RunningOrders,
    /// Names that are being proven.
    pub validations: Validations,
    /// Secrets whose pair is to be looked at.
    pub doubts: Doubts,
    /// Namespaces whose Secrets were compared with what their workloads carry, once after the start.
    pub compared: Mutex<BTreeSet<Arc<str>>>,
    /// What rollouts share: concurrency and the like.
    pub roller: RwLock<Arc<Roller>>,
    /// All annotated Secrets; only the controller writes.
    pub index: Arc<RwLock<Index>>,
    /// When the controller's loop last turned, unix seconds.
    pub beat: Arc<AtomicI64>,
    /// Whether every watch has been listed once.
    pub ready: Arc<AtomicBool>,
    /// Wakes the one who waits for that.
    pub listed: Arc<Notify>,
    /// Tells those who watch that they have to list anew: a watch would not bring what has happened.
    pub anew: watch::Sender<()>,
}

impl Context {
    /// Of an operator in `namespace` that knows nothing yet. Everything that it writes goes through `gate`.
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

    /// The config as it is now.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// What rolls, as the config has it now.
    #[must_use]
    pub fn roller(&self) -> Arc<Roller> {
        let roller = self.roller.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&roller)
    }

    /// No renewal is tried before this instant, since one has failed: for these names, or by this Secret alone.
    #[must_use]
    pub fn retry_at(&self, now: UnixTime, observed: &Observed) -> Option<UnixTime> {
        let Observed {
            uid, account, wish, ..
        } = observed;
        let of_names = self.ledger.retry_at(now, *account, *wish);
        of_names.max(self.secret_failures.retry_at(now, uid, *wish))
    }

    /// Renewals of a Secret that failed in a row.
    #[must_use]
    pub fn failures(&self, observed: &Observed) -> u32 {
        let of_names = self.ledger.failures(observed.account);
        of_names.max(self.secret_failures.count(&observed.uid))
    }

    /// What the index knows of a Secret.
    #[must_use]
    pub fn entry(&self, key: &SecretRef) -> Option<Entry> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.get(key)
    }

    /// The error with which the last renewal of a Secret ended.
    #[must_use]
    pub fn renewal_error(&self, key: &SecretRef) -> Option<Box<str>> {
        self.entry(key)?.renewal_error
    }

    /// Whether the last renewal of a Secret ended with this error.
    #[must_use]
    pub fn renewal_said(&self, key: &SecretRef, error: &str) -> bool {
        self.renewal_error(key).as_deref() == Some(index::kept(error))
    }

    /// Whether the last rollout of a Secret, or the last look at its pair, ended with this error.
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

    /// Of an operator whose API server takes every request and never answers; and who may change its config.
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

//! What all tasks of a running operator share: renewals, rollouts, and the controller.

pub mod doubts;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cert_renew_core::config::Config;
use cert_renew_core::index::{self, Entry, Index};
use cert_renew_core::secret::stray::Stray;
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::state_line::{self, Facts};
use cert_renew_core::verdict::{State, for_operator_in, since};
use kube::Client;
use tokio::sync::{Notify, watch};

use crate::acme::Carrier;
use crate::cluster::events::Events;
use crate::cluster::ledger::Ledger;
use crate::context::doubts::Doubts;
use crate::process::write_gate::WriteGate;
use crate::telemetry::metrics::Metrics;

/// What all tasks share. Contains no logic.
pub struct Shared {
    /// The API server, behind the gate.
    pub client: Client,
    /// Carries the requests to CAs; `None`: connections to each.
    pub carrier: Option<Carrier>,
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
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Secrets whose pair must be checked.
    pub doubts: Doubts,
    /// All annotated Secrets; only the controller writes.
    pub index: Arc<RwLock<Index>>,
    /// Secrets that seem to be meant and are not managed; only the controller writes.
    pub strays: Arc<RwLock<BTreeMap<SecretRef, Stray>>>,
    /// How far the process has come, and whether it still moves.
    pub health: Health,
}

/// How far the process has come, and whether it still moves.
pub struct Health {
    /// When the controller's loop last ran, unix seconds.
    pub heartbeat: Arc<AtomicI64>,
    /// Whether every watch has been listed once.
    pub ready: Arc<AtomicBool>,
    /// Signals that every watch has been listed once.
    pub first_list: Notify,
    /// Tells the watches to list again: they would miss what has happened.
    pub relist: watch::Sender<()>,
}

impl Shared {
    /// What the tasks of an operator in `namespace` share that knows nothing yet. All its writes go through `gate`.
    #[must_use]
    pub fn new(
        client: Client,
        gate: WriteGate,
        namespace: Arc<str>,
        config: watch::Receiver<Arc<Config>>,
        events: Events,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            ledger: Arc::new(Ledger::new(&client, &namespace)),
            doubts: Doubts::default(),
            index: Arc::default(),
            strays: Arc::default(),
            health: Health {
                heartbeat: Arc::default(),
                ready: Arc::default(),
                first_list: Notify::new(),
                relist: watch::Sender::new(()),
            },
            client,
            carrier: None,
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

    /// The index, to be read; a lock that a panic has poisoned is taken as it is.
    pub fn read_index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index, to be changed; only the controller and its terms do.
    pub fn write_index(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index entry of a Secret.
    #[must_use]
    pub fn entry(&self, key: &SecretRef) -> Option<Entry> {
        self.read_index().get(key)
    }

    /// What is known of a Secret, for its line.
    #[must_use]
    pub fn facts(&self, key: &SecretRef) -> Option<Facts> {
        let facts = self.entry(key).map(Facts::of)?;
        Some(facts.told_in(&self.namespace))
    }

    /// A command of ours, as it reaches this operator.
    #[must_use]
    pub fn command(&self, command: &str) -> String {
        for_operator_in(&self.namespace, command)
    }

    /// The annotations with the line of a Secret and since when it is in its state, by what is known of it and what is
    /// about to be written.
    #[must_use]
    pub fn state_note(
        &self,
        key: &SecretRef,
        change: impl FnOnce(&mut Facts),
    ) -> Vec<(&'static str, Option<String>)> {
        let Some(mut facts) = self.facts(key) else {
            return Vec::new();
        };
        let now = UnixTime::now();
        // Without a record of its workloads it is seen for the first time.
        let is_known = facts.entry.rolled_out().is_some();
        let before = is_known.then(|| State::of(&facts.entry, now));
        change(&mut facts);
        let line = state_line::line(now, key, &facts);
        let moved = since::moved(now, before, State::of(&facts.entry, now));
        let mut written = vec![(keys::STATE, Some(line.text().to_owned()))];
        written.extend(moved);
        written
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

    /// What the tasks of an operator share whose API server accepts every request and never answers, with the sender of
    /// its config.
    pub(crate) fn without_an_answer() -> (Arc<Shared>, watch::Sender<Arc<Config>>) {
        let silent = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
        with(Client::new(silent, "cert-renew"))
    }

    /// The same with this client.
    pub(crate) fn with(client: Client) -> (Arc<Shared>, watch::Sender<Arc<Config>>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        let events = Events::start(client.clone(), None, &metrics);
        let config = Config::parse("issuers: {}").unwrap();
        let (in_force, config) = watch::channel(Arc::new(config));
        let gate = WriteGate::default();
        let shared = Shared::new(client, gate, "cert-renew".into(), config, events, metrics);
        (Arc::new(shared), in_force)
    }
}

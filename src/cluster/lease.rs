//! The Lease of the leader: reads, watches, claims and releases it.
//!
//! Every write is a merge patch with uid and resourceVersion, or a create: of two replicas one succeeds.
//! [`cert_renew_core::election`] decides the next step; its clock is the time since boot. The times in the object are
//! for people.

use std::future::Future;
use std::time::Duration;

use cert_renew_core::election::{Election, LeaseRecord, LeaseWrite, Move, Times};
use cert_renew_core::time::{BootTime, UnixTime};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, WatchEvent, WatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::cluster::client::params;
use crate::cluster::{Call, Error};
use crate::process::write_gate::WriteGate;

/// Name of the Lease.
pub const NAME: &str = "cert-renew";
/// Longest wait for the release at the end of a process; without it the lease expires by itself.
const RELEASE: Duration = Duration::from_secs(3);

type Changes = BoxStream<'static, kube::Result<WatchEvent<Lease>>>;

/// The last sign of a leader: a renewal of the Lease that this replica saw or made.
#[derive(Clone, Debug)]
pub struct Sign {
    /// Who held it; None once it was released.
    pub holder: Option<String>,
    /// When it was seen, by this machine's clock.
    pub at: UnixTime,
    /// How long it holds from then on.
    pub lasts: Duration,
    /// The Lease's resourceVersion.
    version: String,
}

impl Sign {
    /// The sign of a replica that leads without a Lease.
    #[must_use]
    pub fn alone(holder: String) -> Self {
        Self {
            holder: Some(holder),
            at: UnixTime::now(),
            lasts: Duration::MAX,
            version: String::new(),
        }
    }
}

/// A replica that takes part in the election.
pub struct Candidate {
    calls: Calls,
    election: Election,
    gate: WriteGate,
    /// The term in which this replica leads, if it does.
    leads: watch::Sender<Option<u64>>,
    /// Signals that the cluster state went back in time.
    relist: watch::Sender<()>,
    /// The last sign of a leader, for people.
    signs: watch::Sender<Option<Sign>>,
    terms: u64,
    /// The Lease's changes, while another replica holds it.
    changes: Option<Changes>,
    /// Whether the last request failed: reported once.
    in_trouble: bool,
}

/// The requests to the API server.
struct Calls {
    api: Api<Lease>,
    identity: String,
    times: Times,
}

/// The result of a step.
enum Outcome {
    Saw(Option<LeaseRecord>),
    Claimed(LeaseRecord),
    Refused,
    Failed(Error),
    /// The watch ended normally.
    Ended,
    /// Time has passed.
    Nothing,
}

impl Candidate {
    /// A candidate that sends nothing before [`Self::run`]. The client must bypass the gate.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        election: Election,
        gate: WriteGate,
        leads: watch::Sender<Option<u64>>,
        relist: watch::Sender<()>,
        signs: watch::Sender<Option<Sign>>,
    ) -> Self {
        let calls = Calls {
            api: Api::namespaced(client, namespace),
            identity: election.identity().to_owned(),
            times: *election.times(),
        };
        Self {
            calls,
            election,
            gate,
            leads,
            relist,
            signs,
            terms: 0,
            changes: None,
            in_trouble: false,
        }
    }

    /// Takes part until `released`, and then releases the lease if this replica holds it.
    pub async fn run(mut self, released: impl Future<Output = ()>) {
        let mut released = std::pin::pin!(released);
        loop {
            tokio::select! {
                biased;
                () = &mut released => break,
                () = self.turn() => {}
            }
        }
        self.gate.withdraw();
        let release = timeout(RELEASE, self.calls.release()).await;
        match release.unwrap_or_else(|_| {
            Err(Error::Deadline {
                what: "releasing the lease".into(),
            })
        }) {
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "the lease is not given back: it ends by itself"),
        }
    }

    /// One step. It may be dropped at any time: the next read shows what it has done.
    async fn turn(&mut self) {
        let sent = BootTime::now();
        self.publish(sent);
        let next = self.election.next(sent);
        let leads_until = self.election.leads_until(sent);
        if !matches!(next, Move::Wait(_)) {
            self.changes = None;
        }
        let outcome = match (next, leads_until) {
            // Never past the instant at which the replica must stop.
            (next, Some(until)) => {
                let rest = until.since(sent);
                timeout(rest, self.carry_out(next, true))
                    .await
                    .unwrap_or(Outcome::Nothing)
            }
            (next, None) => self.carry_out(next, false).await,
        };
        // A leader must write: a successful read of the lease proves nothing.
        let works = match outcome {
            Outcome::Claimed(_) => true,
            Outcome::Failed(_) | Outcome::Nothing => false,
            Outcome::Saw(_) | Outcome::Refused | Outcome::Ended => leads_until.is_none(),
        };
        if works && self.in_trouble {
            self.in_trouble = false;
            tracing::info!("the lease can be used again");
        }
        if let Outcome::Saw(Some(record)) | Outcome::Claimed(record) = &outcome
            && self.election.is_past(&record.version)
        {
            tracing::warn!(
                version = record.version,
                "the state of the cluster went back in time, as after a restore of etcd: everything is listed again"
            );
            self.relist.send_replace(());
        }
        self.note(&outcome);
        match outcome {
            Outcome::Saw(record) => self.election.saw(BootTime::now(), record),
            Outcome::Claimed(record) => self.election.claimed(sent, record),
            Outcome::Refused => self.election.refused(sent),
            Outcome::Ended => self.election.failed(sent),
            Outcome::Failed(error) => {
                self.election.failed(sent);
                if !self.in_trouble {
                    self.in_trouble = true;
                    tracing::warn!(%error, "the lease cannot be used now");
                }
            }
            Outcome::Nothing => {}
        }
    }

    /// Notes the last sign of a leader. A Lease that has not changed is none.
    fn note(&self, outcome: &Outcome) {
        let record = match outcome {
            Outcome::Saw(record) => record.as_ref(),
            Outcome::Claimed(record) => Some(record),
            _ => return,
        };
        self.signs.send_if_modified(|sign| {
            let known = sign.as_ref().map(|sign| &*sign.version);
            let another = known != record.map(|record| &*record.version);
            if another {
                *sign = record.map(|record| Sign {
                    holder: record.holder.clone(),
                    at: UnixTime::now(),
                    lasts: record.lasts,
                    version: record.version.clone(),
                });
            }
            another
        });
    }

    /// Publishes the state to gate and controller.
    fn publish(&mut self, now: BootTime) {
        let leads = *self.leads.borrow();
        match (self.election.leads_until(now), leads) {
            (Some(until), Some(term)) => self.gate.grant(term, until),
            (Some(until), None) => {
                self.terms += 1;
                tracing::info!(
                    identity = self.election.identity(),
                    term = self.terms,
                    "leading"
                );
                self.gate.grant(self.terms, until);
                self.leads.send_replace(Some(self.terms));
            }
            (None, Some(term)) => {
                self.gate.withdraw();
                let holder = self.election.holder();
                tracing::warn!(
                    term,
                    holder,
                    "no longer leading: the lease was not renewed in time, or is another one's"
                );
                self.leads.send_replace(None);
            }
            (None, None) => {}
        }
    }

    async fn carry_out(&mut self, next: Move, leads: bool) -> Outcome {
        match next {
            Move::Wait(time) if !leads => self.wait(time).await,
            Move::Wait(time) | Move::Rest(time) => {
                sleep(time).await;
                Outcome::Nothing
            }
            Move::Look => match self.calls.look().await {
                Ok(record) => Outcome::Saw(record),
                Err(error) => Outcome::Failed(error),
            },
            Move::Create => outcome(self.calls.create().await),
            Move::Claim(claim) => outcome(self.calls.claim(&claim).await),
        }
    }

    /// Waits for `time`, or until the Lease changes.
    async fn wait(&mut self, time: Duration) -> Outcome {
        let Some(version) = self.election.version().map(ToOwned::to_owned) else {
            sleep(time).await;
            return Outcome::Nothing;
        };
        if self.changes.is_none() {
            match self.calls.watch(&version).await {
                Ok(changes) => self.changes = Some(changes),
                Err(error) => return Outcome::Failed(error),
            }
        }
        let Some(changes) = &mut self.changes else {
            return Outcome::Ended;
        };
        let outcome = match timeout(time, changes.next()).await {
            Err(_) | Ok(Some(Ok(WatchEvent::Bookmark(_)))) => return Outcome::Nothing,
            Ok(Some(Ok(WatchEvent::Added(lease) | WatchEvent::Modified(lease)))) => {
                return Outcome::Saw(Some(self.calls.read(lease)));
            }
            Ok(Some(Ok(WatchEvent::Deleted(_)))) => Outcome::Saw(None),
            // The answer is an Error if the version is too old; the watch ends by itself after some minutes.
            Ok(Some(Ok(WatchEvent::Error(_)) | Err(_)) | None) => Outcome::Ended,
        };
        self.changes = None;
        outcome
    }
}

impl Calls {
    async fn watch(&self, version: &str) -> Result<Changes, Error> {
        let params = WatchParams::default().fields(&format!("metadata.name={NAME}"));
        let opening = self.api.watch(&params, version);
        Ok(self.call("watching", opening).await?.boxed())
    }

    async fn look(&self) -> Result<Option<LeaseRecord>, Error> {
        let found = self.call("reading", self.api.get_opt(NAME)).await?;
        Ok(found.map(|lease| self.read(lease)))
    }

    async fn create(&self) -> Result<LeaseRecord, Error> {
        let now = MicroTime(Timestamp::now());
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                labels: Some(params::labels([])),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(self.seconds()),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            }),
        };
        let params = params::post();
        let made = self
            .call("making", self.api.create(&params, &lease))
            .await?;
        Ok(self.read(made))
    }

    async fn claim(&self, claim: &LeaseWrite) -> Result<LeaseRecord, Error> {
        let now = MicroTime(Timestamp::now());
        let mut spec = json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.seconds(),
            "renewTime": now,
            "leaseTransitions": claim.transitions,
        });
        if claim.takes_over {
            spec["acquireTime"] = json!(now);
        }
        self.patch("renewing", &claim.uid, &claim.version, spec)
            .await
    }

    /// Releases the lease, so that another replica can begin at once.
    async fn release(&self) -> Result<(), Error> {
        let ours = |record: &LeaseRecord| record.holder.as_deref() == Some(self.identity.as_str());
        // A claim may still be in flight: then the first try is too late.
        loop {
            let Some(record) = self.look().await?.filter(ours) else {
                return Ok(());
            };
            let nobody = json!({"holderIdentity": null, "renewTime": MicroTime(Timestamp::now())});
            match self
                .patch("releasing", &record.uid, &record.version, nobody)
                .await
            {
                Err(Error::Conflict { .. }) => {}
                other => {
                    other?;
                    tracing::info!("the lease is given back");
                    return Ok(());
                }
            }
        }
    }

    async fn patch(
        &self,
        doing: &'static str,
        uid: &str,
        version: &str,
        spec: serde_json::Value,
    ) -> Result<LeaseRecord, Error> {
        let body = json!({"metadata": {"uid": uid, "resourceVersion": version}, "spec": spec});
        let params = params::patch();
        let patch = Patch::Merge(&body);
        let patched = self
            .call(doing, self.api.patch(NAME, &params, &patch))
            .await?;
        Ok(self.read(patched))
    }

    async fn call<T>(
        &self,
        doing: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let what = || format!("{doing} Lease {NAME}");
        Call::within(self.times.request()).once(what, request).await
    }

    fn read(&self, lease: Lease) -> LeaseRecord {
        let spec = lease.spec.unwrap_or_default();
        let seconds = spec
            .lease_duration_seconds
            .and_then(|it| u64::try_from(it).ok());
        LeaseRecord {
            uid: lease.metadata.uid.unwrap_or_default(),
            version: lease.metadata.resource_version.unwrap_or_default(),
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            lasts: seconds.map_or_else(|| self.times.lease(), Duration::from_secs),
            transitions: spec.lease_transitions.unwrap_or_default(),
        }
    }

    fn seconds(&self) -> i32 {
        i32::try_from(self.times.lease().as_secs()).unwrap_or(i32::MAX)
    }
}

fn outcome(claimed: Result<LeaseRecord, Error>) -> Outcome {
    match claimed {
        Ok(record) => Outcome::Claimed(record),
        Err(Error::Conflict { .. } | Error::AlreadyExists { .. } | Error::NotFound { .. }) => {
            Outcome::Refused
        }
        Err(error) => Outcome::Failed(error),
    }
}

//! `rollout: post:<port>/<path>`: asks the pods of a workload to reload instead of replacing them.
//!
//! Nothing is written, so there is nothing to resume after a crash: a pod that is asked twice reloads twice. A pod is
//! asked once the kubelet has had the time to write the new leaf into it, at its own address, over plain HTTP and
//! without following redirects. A pod that is not Ready then is waited for: it may serve the old leaf again a moment
//! later. It needs the rights of rbac/addons/verify.yaml.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use cert_renew_core::rollout::answered::{Leaves, Round};
use cert_renew_core::rollout::types::{Ask, Step};
use cert_renew_core::rollout::workload::Workload;
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::time::UnixTime;
use futures::StreamExt as _;
use futures::stream;
use rustls::RootCertStore;
use tokio::time::{Duration, Instant, sleep};

use crate::net::https;
use crate::process::budget::HeldPlace;
use crate::process::permit::Permit;
use crate::rollout::error::Error;
use crate::rollout::listing::api::get;
use crate::rollout::listing::pods::{self, RunningPod};
use crate::rollout::roller::looks::{Judge, Looks, Withdrawal};
use crate::rollout::roller::wait::GLANCE;
use crate::rollout::roller::{Batch, Consequence, Ended, Roller};
use crate::rollout::verify::{Pod, some_of};

/// Most pods of one workload that are asked at the same time: a reload may cost each of them a moment.
const AT_ONCE: usize = 4;
/// Longest time from the first packet to the status line. A reload that waits for connections to drain answers first.
const DEADLINE: Duration = Duration::from_secs(15);
/// Most attempts to ask one pod before it counts as one that does not reload.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// How long pods of the same workload share a look at the Secret: there may be hundreds of them.
const SHARED: Duration = Duration::from_secs(1);

/// Shortest and longest time until pods that are not Ready are listed again; our rights do not allow to watch them.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN_AT_LAST: Duration = Duration::from_secs(16);
/// How far in the future a Secret's write time may be and still count: it is in managedFields, which users may write.
const SKEW: Duration = Duration::from_secs(300);

/// How many pods reloaded, and which did not, with the reason.
#[derive(Debug, Default)]
pub struct ReloadResult {
    /// Pods that answered with success.
    pub reloaded: usize,
    /// Pods that did not, each with the reason.
    pub failed: Vec<String>,
    /// Pods that were not asked because they are not Ready.
    pub missing: Vec<String>,
    /// The Secret that was withdrawn before the next pod could be asked.
    pub withdrawn: Option<(Box<str>, Withdrawal)>,
}

/// The uids of pods that answered with success, the failures with their reasons, and why asking stopped early.
#[derive(Default)]
struct Answers {
    answered: Vec<Box<str>>,
    failed: Vec<String>,
    withdrawn: Option<(Box<str>, Withdrawal)>,
}

/// Why a pod did not reload.
enum NotAsked {
    Failed(String),
    Withdrawn(Box<str>, Withdrawal),
}

/// Shared arguments for asking the pods of one workload.
struct Asking<'a, 'j> {
    namespace: &'a str,
    client: &'a reqwest::Client,
    step: &'a Step,
    looks: &'a Looks<'j>,
    /// When the last wait of the step ended.
    waited: Instant,
}

impl ReloadResult {
    /// The pods that did not reload, in words.
    #[must_use]
    pub fn failed_text(&self) -> String {
        some_of(&self.failed)
    }

    /// The pods that were not asked, in words.
    #[must_use]
    pub fn missing_text(&self) -> String {
        let what = match self.missing.len() {
            1 => "was not Ready and is still to be asked to reload",
            _ => "were not Ready and are still to be asked to reload",
        };
        format!("{} {what}", some_of(&self.missing))
    }
}

/// When pods may be asked: once the kubelet has had this time to write what the Secrets hold.
pub(super) fn not_before(now: UnixTime, step: &Step, wait: Duration) -> UnixTime {
    let written = step.leaves.iter().map(|due| due.written.unwrap_or(now));
    let written = written.max().unwrap_or(now).min(now + SKEW);
    (written + wait).max(step.not_before)
}

impl Roller {
    /// Asks the pods of one workload that has its place.
    pub(super) async fn reload(
        &self,
        batch: &Batch<'_>,
        step: &Step,
        asks: &[Ask],
        waited: Instant,
        place: &mut HeldPlace,
    ) -> Result<Ended, Error> {
        let namespace = batch.namespace;
        let current = get(&self.client, namespace, &step.workload.id).await?;
        let Some(current) = current.filter(|current| !current.opted_out) else {
            return Ok(Ended::Unchanged);
        };
        // As it was listed: the template that a Rollout takes from elsewhere is not on the Rollout itself.
        let (looks, first) = (&batch.looks, Round::First);
        let asked = self.ask_all((namespace, step), asks, looks, waited, first, || {
            place.give_back();
        });
        Ok(match asked.await {
            Ok(ReloadResult {
                withdrawn: Some((secret, withdrawal)),
                ..
            }) => Ended::Withdrawn(secret, withdrawal),
            Ok(asked) if !asked.failed.is_empty() => {
                let why = format!("not reloaded: {}", asked.failed_text());
                if step.halts || step.degraded {
                    Ended::Failed(why, Consequence::Stops)
                } else {
                    Ended::Incomplete(why)
                }
            }
            Ok(asked) if !asked.missing.is_empty() => Ended::Incomplete(asked.missing_text()),
            Ok(ReloadResult { reloaded: 0, .. }) => Ended::Unchanged,
            Ok(asked) => Ended::Reloaded(asked.reloaded),
            Err(error) if error.is_forbidden() => Ended::Failed(
                format!(
                    "the pods of {} may not be listed: kubectl apply -f rbac/addons/verify.yaml",
                    current.id
                ),
                Consequence::Alone,
            ),
            Err(error) => return Err(error),
        })
    }

    /// Asks all pods of a step's workload that have not answered in this round, each after a look at its Secrets: Ready
    /// pods at once, the others when they become Ready. Pods that were created after the Secrets were written are not
    /// waited for: they have read nothing else. `waits` is called once no pod is left to ask at once.
    async fn ask_all(
        &self,
        (namespace, step): (&str, &Step),
        asks: &[Ask],
        looks: &Looks<'_>,
        mut waited: Instant,
        round: Round,
        mut waits: impl FnMut() + Send,
    ) -> Result<ReloadResult, Error> {
        let (of, leaves) = ((namespace, &step.workload.id), Leaves::of(step));
        let written: Option<Vec<UnixTime>> = step.leaves.iter().map(|due| due.written).collect();
        let written = written.and_then(|all| all.into_iter().max());
        // It was not well before: this check is repeated by later ones.
        let patience = if step.halts {
            self.progress_timeout
        } else {
            self.progress_timeout.min(GLANCE)
        };
        let mut asked = ReloadResult::default();
        let (mut last, mut fewest, mut pause) = (Instant::now(), usize::MAX, LOOK_AGAIN);
        loop {
            let list = self.place_for_list(namespace).await;
            let pods = self.pods_of(namespace, &step.workload).await?;
            let answered = |pod: &RunningPod| self.answered.has(of, leaves, round, &pod.uid);
            let (ready, waiting): (Vec<RunningPod>, Vec<RunningPod>) = { pods.into_iter() }
                .filter(|pod| !answered(pod))
                .partition(|pod| pod.ready);
            let ready = (namespace, ready);
            let now = self.ask(ready, step, asks, looks, waited).await;
            for uid in &now.answered {
                self.answered.note(of, leaves, round, uid);
            }
            asked.reloaded += now.answered.len();
            (asked.failed, asked.withdrawn) = (now.failed, now.withdrawn);
            let newer = |pod: &RunningPod| pod.is_newer_than(written);
            let waiting = waiting.into_iter().filter(|pod| !newer(pod));
            let waiting: Vec<String> = waiting.map(|pod| pod.name.into()).collect();
            drop(list);
            if waiting.is_empty() || !asked.failed.is_empty() || asked.withdrawn.is_some() {
                return Ok(asked);
            }
            if waiting.len() < fewest {
                (last, fewest) = (Instant::now(), waiting.len());
            } else if last.elapsed() >= patience {
                asked.missing = waiting;
                return Ok(asked);
            }
            waits();
            sleep(pause.min(patience)).await;
            waited = Instant::now();
            pause = (pause * 2).min(LOOK_AGAIN_AT_LAST);
        }
    }

    /// Asks the pods of a step's workload for the second time.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn ask_again(
        &self,
        namespace: &str,
        step: &Step,
        asks: &[Ask],
        judge: &dyn Judge,
    ) -> Result<ReloadResult, Error> {
        let (looks, waited) = (Looks::new(judge, BTreeMap::new()), Instant::now());
        let second = Round::Second;
        self.ask_all((namespace, step), asks, &looks, waited, second, || {})
            .await
    }

    /// Asks the named pods of a workload once more, unless that was done too often recently.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn ask_some(
        &self,
        namespace: &str,
        step: &Step,
        asks: &[Ask],
        judge: &dyn Judge,
        some: &[Pod],
    ) -> Result<ReloadResult, Error> {
        let (looks, waited) = (Looks::new(judge, BTreeMap::new()), Instant::now());
        let _list = self.place_for_list(namespace).await;
        let mut pods = self.pods_of(namespace, &step.workload).await?;
        pods.retain(|pod| pod.ready && some.iter().any(|named| named.uid == pod.uid));
        let of = (namespace, &step.workload.id);
        if pods.is_empty() || !self.answered.may_help(of, Leaves::of(step)) {
            return Ok(ReloadResult::default());
        }
        let Answers {
            answered,
            failed,
            withdrawn,
        } = self
            .ask((namespace, pods), step, asks, &looks, waited)
            .await;
        Ok(ReloadResult {
            reloaded: answered.len(),
            failed,
            missing: Vec::new(),
            withdrawn,
        })
    }

    /// Forgets which pods have answered, once a rollout by reloads is done.
    pub fn forget(&self, namespace: &str, workload: &WorkloadRef) {
        self.answered.forget(namespace, workload);
    }

    /// Whether one of these pods belongs to the workload.
    ///
    /// # Errors
    /// When its pods cannot be listed.
    pub async fn has_any(
        &self,
        namespace: &str,
        workload: &Workload,
        some: &[Pod],
    ) -> Result<bool, Error> {
        let _list = self.place_for_list(namespace).await;
        let pods = self.pods_of(namespace, workload).await?;
        let is_named = |pod: &RunningPod| some.iter().any(|named| named.uid == pod.uid);
        Ok(pods.iter().any(|pod| pod.ready && is_named(pod)))
    }

    /// The running pods of a workload. Many conclusions may want those of the same one: its caller has a place for a list.
    async fn pods_of(
        &self,
        namespace: &str,
        workload: &Workload,
    ) -> Result<Vec<RunningPod>, Error> {
        let _place = self.place_for_request(namespace).await;
        pods::running(&self.client, namespace, &workload.selector, None).await
    }

    async fn ask(
        &self,
        (namespace, pods): (&str, Vec<RunningPod>),
        step: &Step,
        asks: &[Ask],
        looks: &Looks<'_>,
        waited: Instant,
    ) -> Answers {
        let client = match client() {
            Ok(client) => client,
            Err(why) => {
                return Answers {
                    failed: vec![why.to_owned()],
                    ..Answers::default()
                };
            }
        };
        let client = &client;
        let answers = stream::iter(pods)
            .map(|pod| async move {
                let asking = Asking {
                    namespace,
                    client,
                    step,
                    looks,
                    waited,
                };
                let mut answer = Ok(());
                for ask in asks {
                    if answer.is_ok() {
                        answer = self.ask_one(&asking, &pod, ask).await;
                    }
                }
                (pod, answer)
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<(RunningPod, Result<(), NotAsked>)>>()
            .await;
        let mut all = Answers::default();
        for (pod, answer) in answers {
            match answer {
                Ok(()) => all.answered.push(pod.uid),
                Err(NotAsked::Failed(why)) => all.failed.push(format!("{}: {why}", pod.name)),
                Err(NotAsked::Withdrawn(secret, withdrawal)) => {
                    all.withdrawn = Some((secret, withdrawal));
                }
            }
        }
        all.failed.sort();
        all
    }

    async fn ask_one(
        &self,
        asking: &Asking<'_, '_>,
        pod: &RunningPod,
        ask: &Ask,
    ) -> Result<(), NotAsked> {
        let address = pod
            .address
            .map_err(|why| NotAsked::Failed(why.to_owned()))?;
        let url = format!("http://{}{}", SocketAddr::new(address, ask.port), ask.path);
        let mut why = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(PAUSE).await;
            }
            let connection = self.connections.place(asking.namespace, UnixTime::NEVER);
            let _connection = connection.await;
            let permit = asking.permit().await?;
            match post(permit, asking.client, &url).await {
                None => why = "the API server is too slow".into(),
                Some(Ok(answer)) if answer.status().is_success() => return Ok(()),
                Some(Ok(answer)) => why = format!("it answered {}", answer.status()),
                Some(Err(error)) => why = error_chain(&error.without_url()),
            }
        }
        Err(NotAsked::Failed(why))
    }
}

impl Asking<'_, '_> {
    /// Permission to ask; pods that are asked within a moment share a look.
    async fn permit(&self) -> Result<Permit<&Step>, NotAsked> {
        let shared = Instant::now().checked_sub(SHARED).unwrap_or(self.waited);
        let permit = self.looks.permit(self.step, self.waited.max(shared)).await;
        permit.map_err(|(secret, withdrawal)| NotAsked::Withdrawn(secret, withdrawal))
    }
}

async fn post(
    permit: Permit<&Step>,
    client: &reqwest::Client,
    url: &str,
) -> Option<reqwest::Result<reqwest::Response>> {
    permit.spend()?;
    Some(client.post(url).send().await)
}

fn client() -> Result<reqwest::Client, &'static str> {
    // Only plain HTTP is used; without a TLS config of its own the client would look for the machine's roots.
    https::client(RootCertStore::empty(), |client| {
        let agent = concat!("cert-renew/", env!("CARGO_PKG_VERSION"));
        client.user_agent(agent).no_proxy().timeout(DEADLINE)
    })
}

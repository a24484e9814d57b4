//! `rollout: post:<port>/<path>`: asks the pods of a workload to reload instead of replacing them.
//!
//! Nothing is written, so that there is nothing to take up after a crash: whoever is asked twice reloads twice. A pod is
//! asked once the kubelet has had the time to write the new leaf into it, at its own address, over plain HTTP and without
//! following redirects. It needs the rights of rbac/addons/verify.yaml.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream;
use reqwest::redirect::Policy;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Duration, Instant, sleep};

use super::error::Error;
use super::looks::{Judge, Looks, Withdrawal};
use super::pods::{self, ReadyPod};
use super::run::{Batch, Ended, Roller, Weight, is_stopped};
use super::steps::{Ask, Step};
use super::verify::{Pod, some_of};
use super::workload::{Workload, get};
use crate::cluster::chain;
use crate::permit::Permit;
use crate::time::UnixTime;

/// Pods of one workload that are asked at the same time: a reload may cost each of them a moment.
const AT_ONCE: usize = 4;
/// From the first packet to the status line. A reload that waits for connections to drain answers first or takes long.
const DEADLINE: Duration = Duration::from_secs(15);
/// How often one pod is asked before it counts as one that does not reload.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// How long a look at the Secret serves the next pods of the same workload: there may be hundreds of them.
const SHARED: Duration = Duration::from_secs(1);

/// How many reloaded, and which did not, with the reason.
#[derive(Debug, Default)]
pub struct Asked {
    /// Pods that answered with success.
    pub reloaded: usize,
    /// Pods that did not, each with the reason.
    pub failed: Vec<String>,
    /// The Secret that was not to be reloaded any more when the next pod was to be asked.
    pub withdrawn: Option<(Box<str>, Withdrawal)>,
}

/// Why a pod did not reload.
enum NotAsked {
    Failed(String),
    Withdrawn(Box<str>, Withdrawal),
}

/// What asking the pods of one workload takes.
struct Asking<'a, 'j> {
    client: &'a reqwest::Client,
    step: &'a Step,
    looks: &'a Looks<'j>,
    /// When the last wait of the step ended.
    waited: Instant,
}

impl Asked {
    /// The pods that did not reload, in words.
    #[must_use]
    pub fn failed_text(&self) -> String {
        some_of(&self.failed)
    }
}

impl Roller {
    /// Asks the pods of one workload, when its turn has come.
    pub(super) async fn reload(
        &self,
        batch: &Batch<'_>,
        step: &Step,
        asks: &[Ask],
        released: Instant,
    ) -> Result<Ended, Error> {
        let namespace = batch.namespace;
        let now = UnixTime::now();
        let written = step.leaves.iter().map(|due| due.written.unwrap_or(now));
        let reached = written.max().unwrap_or(now) + self.reload_wait;
        let (not_before, mut waited) = (reached.max(step.not_before), released);
        let _place = self.turn(namespace, step, not_before, &mut waited).await;
        if is_stopped(step, &batch.standings) {
            return Ok(Ended::Skipped);
        }
        let current = get(&self.client, namespace, &step.workload.id).await?;
        let Some(current) = current.filter(|current| !current.opted_out) else {
            return Ok(Ended::Unchanged);
        };
        let weight = if step.halts {
            Weight::Stops
        } else {
            Weight::None
        };
        // As it was listed: what a Rollout takes from elsewhere does not stand on itself.
        let asked = self.ask_all(namespace, step, asks, &batch.looks, waited);
        Ok(match asked.await {
            Ok(Asked {
                withdrawn: Some((secret, withdrawal)),
                ..
            }) => Ended::Withdrawn(secret, withdrawal),
            Ok(asked) if asked.failed.is_empty() => Ended::Reloaded(asked.reloaded),
            Ok(asked) => Ended::Failed(format!("not reloaded: {}", asked.failed_text()), weight),
            Err(Error::Forbidden { .. }) => Ended::Failed(
                format!(
                    "the pods of {} may not be listed: kubectl apply -f rbac/addons/verify.yaml",
                    current.id
                ),
                Weight::Alone,
            ),
            Err(error) => return Err(error),
        })
    }

    async fn ask_all(
        &self,
        namespace: &str,
        step: &Step,
        asks: &[Ask],
        looks: &Looks<'_>,
        waited: Instant,
    ) -> Result<Asked, Error> {
        let pods = pods::ready(&self.client, namespace, &step.workload.selector).await?;
        Ok(self.ask(pods, step, asks, looks, waited).await)
    }

    /// Asks the Ready pods of a step's workload again, each after a look at its Secrets: all, or those that are named.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn ask_again(
        &self,
        namespace: &str,
        step: &Step,
        asks: &[Ask],
        judge: &dyn Judge,
        some: Option<&[Pod]>,
    ) -> Result<Asked, Error> {
        let (looks, waited) = (Looks::new(judge, BTreeMap::new()), Instant::now());
        let mut pods = pods::ready(&self.client, namespace, &step.workload.selector).await?;
        pods.retain(|pod| some.is_none_or(|some| some.iter().any(|named| named.uid == pod.uid)));
        Ok(self.ask(pods, step, asks, &looks, waited).await)
    }

    /// Whether one of these pods is the workload's.
    ///
    /// # Errors
    /// When its pods cannot be listed.
    pub async fn has_any(
        &self,
        namespace: &str,
        workload: &Workload,
        some: &[Pod],
    ) -> Result<bool, Error> {
        let pods = pods::ready(&self.client, namespace, &workload.selector).await?;
        Ok(pods
            .iter()
            .any(|pod| some.iter().any(|named| named.uid == pod.uid)))
    }

    async fn ask(
        &self,
        pods: Vec<ReadyPod>,
        step: &Step,
        asks: &[Ask],
        looks: &Looks<'_>,
        waited: Instant,
    ) -> Asked {
        let client = match client() {
            Ok(client) => client,
            Err(why) => {
                return Asked {
                    failed: vec![why],
                    ..Asked::default()
                };
            }
        };
        let client = &client;
        let answers = stream::iter(pods)
            .map(|pod| async move {
                let asking = Asking {
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
            .collect::<Vec<(ReadyPod, Result<(), NotAsked>)>>()
            .await;
        let mut asked = Asked::default();
        for (pod, answer) in answers {
            match answer {
                Ok(()) => asked.reloaded += 1,
                Err(NotAsked::Failed(why)) => asked.failed.push(format!("{}: {why}", pod.name)),
                Err(NotAsked::Withdrawn(secret, withdrawal)) => {
                    asked.withdrawn = Some((secret, withdrawal));
                }
            }
        }
        asked.failed.sort();
        asked
    }

    async fn ask_one(
        &self,
        asking: &Asking<'_, '_>,
        pod: &ReadyPod,
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
            // It is never closed.
            let _connection = self.connections.acquire().await;
            let permit = asking.permit().await?;
            match post(permit, asking.client, &url).await {
                None => why = "the API server is too slow".into(),
                Some(Ok(answer)) if answer.status().is_success() => return Ok(()),
                Some(Ok(answer)) => why = format!("it answered {}", answer.status()),
                Some(Err(error)) => why = chain(&error.without_url()),
            }
        }
        Err(NotAsked::Failed(why))
    }
}

impl Asking<'_, '_> {
    /// Pods that are asked within a moment share a look.
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

fn client() -> Result<reqwest::Client, String> {
    // Only plain HTTP is spoken; without a TLS config of its own the client would look for the machine's roots.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("cert-renew/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(Policy::none())
        .timeout(DEADLINE)
        .build()
        .map_err(|error| chain(&error))
}

//! `rollout: post:<port>/<path>`: asks the pods of a workload to reload instead of replacing them.
//!
//! Nothing is written, so that there is nothing to take up after a crash: whoever is asked twice reloads twice. A pod is
//! asked once the kubelet has had the time to write the new leaf into it, at its own address, over plain HTTP and without
//! following redirects. It needs the rights of rbac/addons/verify.yaml.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream;
use reqwest::redirect::Policy;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Duration, sleep};

use super::error::Error;
use super::pods::{self, ReadyPod};
use super::run::{Ended, Roller, Standings, Weight, is_stopped};
use super::steps::{Ask, Step};
use super::verify::{Pod, some_of};
use super::workload::{Workload, get};
use crate::cluster::chain;
use crate::time::UnixTime;

/// Pods of one workload that are asked at the same time: a reload may cost each of them a moment.
const AT_ONCE: usize = 4;
/// From the first packet to the status line. A reload that waits for connections to drain answers first or takes long.
const DEADLINE: Duration = Duration::from_secs(15);
/// How often one pod is asked before it counts as one that does not reload.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// How many reloaded, and which did not, with the reason.
#[derive(Debug, Default)]
pub struct Asked {
    /// Pods that answered with success.
    pub reloaded: usize,
    /// Pods that did not, each with the reason.
    pub failed: Vec<String>,
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
        namespace: &str,
        step: &Step,
        asks: &[Ask],
        standings: &Standings,
    ) -> Result<Ended, Error> {
        let now = UnixTime::now();
        let written = step.leaves.iter().map(|due| due.written.unwrap_or(now));
        let reached = written.max().unwrap_or(now) + self.reload_wait;
        sleep(reached.max(step.not_before).since(now)).await;
        let _place = self.budget.place(namespace, step.urgency).await;
        if is_stopped(step, standings) {
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
        Ok(match self.ask_all(namespace, &step.workload, asks).await {
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

    /// Asks all Ready pods of a workload.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn ask_all(
        &self,
        namespace: &str,
        workload: &Workload,
        asks: &[Ask],
    ) -> Result<Asked, Error> {
        let pods = pods::ready(&self.client, namespace, &workload.selector).await?;
        Ok(self.ask(pods, asks).await)
    }

    /// Asks those pods of a workload that are named.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn ask_some(
        &self,
        namespace: &str,
        workload: &Workload,
        asks: &[Ask],
        some: &[Pod],
    ) -> Result<Asked, Error> {
        let mut pods = pods::ready(&self.client, namespace, &workload.selector).await?;
        pods.retain(|pod| some.iter().any(|named| named.uid == pod.uid));
        Ok(self.ask(pods, asks).await)
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

    async fn ask(&self, pods: Vec<ReadyPod>, asks: &[Ask]) -> Asked {
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
                let mut answer = Ok(());
                for ask in asks {
                    answer = answer.and(self.ask_one(client, &pod, ask).await);
                }
                answer.map_err(|why| format!("{}: {why}", pod.name))
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<Result<(), String>>>()
            .await;
        let mut asked = Asked::default();
        for answer in answers {
            match answer {
                Ok(()) => asked.reloaded += 1,
                Err(why) => asked.failed.push(why),
            }
        }
        asked.failed.sort();
        asked
    }

    async fn ask_one(
        &self,
        client: &reqwest::Client,
        pod: &ReadyPod,
        ask: &Ask,
    ) -> Result<(), String> {
        let address = pod.address.map_err(ToOwned::to_owned)?;
        let url = format!("http://{}{}", SocketAddr::new(address, ask.port), ask.path);
        let mut why = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(PAUSE).await;
            }
            // It is never closed.
            let _permit = self.connections.acquire().await;
            match client.post(&url).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => why = format!("it answered {}", answer.status()),
                Err(error) => why = chain(&error.without_url()),
            }
        }
        Err(why)
    }
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

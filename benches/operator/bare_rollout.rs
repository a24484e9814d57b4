//! A client that lists, reads and patches with nothing in between: the measure for the operator's way from a changed Secret
//! to its workloads.
//!
//! It is the operator's own client, with its rights: it watches TLS Secrets, and where a certificate is another one than
//! before, it asks for the Secret and for the workloads of its namespace, all at once, and patches those that mount it.
//! It keeps a digest of each certificate and nothing else, checks nothing, and records nothing.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use cert_renew::cluster::{KubeConfigSource, connect};
use futures::StreamExt as _;
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use test_bench::{Error, Operator, Result};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::propagation::template;

/// Starts it as the operator, which does not run meanwhile; it works until the task is aborted, and has seen all Secrets
/// when this returns.
pub(crate) async fn start(operator: &Operator<'_>) -> Result<JoinHandle<()>> {
    let way = KubeConfigSource {
        kubeconfig: Some(operator.kubeconfig().to_owned()),
        ..KubeConfigSource::default()
    };
    let client = connect(&way, None).await;
    let client = client.map_err(|error| Error::msg(error.to_string()))?;
    let (seen, all_seen) = oneshot::channel();
    let task = tokio::spawn(follow(client, seen));
    all_seen.await?;
    Ok(task)
}

async fn follow(client: Client, seen: oneshot::Sender<()>) {
    let config = watcher::Config::default().fields("type=kubernetes.io/tls");
    let mut events = std::pin::pin!(watcher(Api::<Secret>::all(client.clone()), config));
    let (mut seen, mut known) = (Some(seen), HashMap::new());
    while let Some(event) = events.next().await {
        let secret = match event {
            Ok(Event::Apply(secret) | Event::InitApply(secret)) => secret,
            Ok(Event::InitDone) => {
                if let Some(seen) = seen.take() {
                    // Who waits for it may have given up.
                    let _ = seen.send(());
                }
                continue;
            }
            _ => continue,
        };
        let key = (
            secret.metadata.namespace.clone().unwrap_or_default(),
            secret.metadata.name.clone().unwrap_or_default(),
        );
        let digest = digest(&secret);
        let before = known.insert(key.clone(), digest);
        if before.is_some_and(|before| before != digest) {
            let client = client.clone();
            tokio::spawn(async move {
                let (namespace, name) = key;
                if let Err(error) = roll(&client, &namespace, &name).await {
                    eprintln!("  the bare client: {namespace}/{name}: {error:#}");
                }
            });
        }
    }
}

async fn roll(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    // The benchmark has none of these, which only a list tells.
    let stateful_sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default();
    let (secret, listed, _, _) = tokio::try_join!(
        secrets.get(name),
        deployments.list(&params),
        stateful_sets.list(&params),
        daemon_sets.list(&params),
    )?;
    let patch = Patch::Merge(template(name, &digest(&secret).to_string()));
    let names = listed.items.into_iter().filter(|it| mounts(it, name));
    let names: Vec<String> = names.filter_map(|it| it.metadata.name).collect();
    let params = PatchParams::default();
    let mut patches = Vec::new();
    for name in &names {
        patches.push(deployments.patch(name, &params, &patch));
    }
    try_join_all(patches).await?;
    Ok(())
}

/// Whether a Deployment mounts a Secret, as those of the benchmark do.
fn mounts(deployment: &Deployment, secret: &str) -> bool {
    let spec = deployment.spec.as_ref();
    let pod = spec.and_then(|spec| spec.template.spec.as_ref());
    let volumes = pod.and_then(|pod| pod.volumes.as_ref()).into_iter();
    let mut named = volumes
        .flatten()
        .filter_map(|volume| volume.secret.as_ref()?.secret_name.as_deref());
    named.any(|it| it == secret)
}

fn digest(secret: &Secret) -> u64 {
    let certificate = secret.data.as_ref().and_then(|data| data.get("tls.crt"));
    let mut hasher = DefaultHasher::new();
    certificate.map(|it| &it.0).hash(&mut hasher);
    hasher.finish()
}

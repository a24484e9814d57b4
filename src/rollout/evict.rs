//! Replaces the pods of a workload whose controller does not: one at a time, by eviction.
//!
//! ReplicationControllers, and StatefulSets and DaemonSets with `OnDelete`. Old pods are told by their own annotation,
//! so that it may be cut off and taken up again; a PodDisruptionBudget that says no is waited for.
//! It needs the rights of rbac/addons/eviction.yaml.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, EvictParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt as _};
use tokio::time::{Instant, timeout};

use super::error::{Error, call};
use super::steps::Step;
use super::run::Places;
use super::wait::Waited;
use super::workload::{Workload, leaf_annotation};

/// How soon a budget that said no is asked again when no pod has changed meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A pod as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    old: bool,
    ready: bool,
    leaving: bool,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Next<'a> {
    Done,
    Evict(&'a str),
    Wait,
}

/// Evicts old pods one by one, each replacement awaited.
pub(super) async fn replace(
    client: &Client,
    namespace: &str,
    workload: &Workload,
    step: &Step,
    patience: Duration,
    places: &mut Places,
    stalled: Duration,
) -> Result<Waited, Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let config = watcher::Config::default().labels(&workload.selector);
    let mut events = std::pin::pin!(watcher(api.clone(), config).default_backoff());
    let mut pods: BTreeMap<String, Seen> = BTreeMap::new();
    let mut listed = false;
    let (mut last, mut best) = (Instant::now(), (usize::MAX, 0));
    loop {
        if listed {
            match next(&pods, workload.status.wanted) {
                Next::Done => return Ok(Waited::Done),
                Next::Evict(name) => evict(&api, namespace, name).await?,
                Next::Wait => {}
            }
            let old = pods.values().filter(|pod| pod.old).count();
            let ready = pods.values().filter(|pod| pod.ready).count();
            if old < best.0 || (old == best.0 && ready > best.1) {
                (last, best) = (Instant::now(), (old, ready));
            } else if last.elapsed() >= patience {
                let why = format!(
                    "no progress for {}: {old} old pods, {ready} ready",
                    crate::duration::human(patience)
                );
                return Ok(Waited::Failed(why));
            } else if last.elapsed() >= stalled {
                places.stalled();
            }
        }
        let event = match timeout(ASK_AGAIN, events.next()).await {
            Ok(Some(Ok(event))) => event,
            Ok(Some(Err(error))) => {
                if let watcher::Error::InitialListFailed(kube::Error::Api(status)) = &error
                    && status.code == 403
                {
                    return Ok(Waited::Failed(missing_right(&workload.id)));
                }
                continue;
            }
            Ok(None) => return Ok(Waited::Gone),
            Err(_) => continue,
        };
        match event {
            watcher::Event::Init => {
                pods.clear();
                listed = false;
            }
            watcher::Event::InitDone => listed = true,
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                if belongs(&pod, workload) {
                    pods.insert(pod.name_any(), see(&pod, step));
                }
            }
            watcher::Event::Delete(pod) => {
                pods.remove(&pod.name_any());
            }
        }
    }
}

fn missing_right(workload: &crate::secret::workload::WorkloadRef) -> String {
    format!(
        "the pods of {workload} may not be replaced: kubectl apply -f rbac/addons/eviction.yaml"
    )
}

/// One pod at a time, and only while all that should be there are ready.
fn next(pods: &BTreeMap<String, Seen>, wanted: i64) -> Next<'_> {
    let staying = pods.values().filter(|pod| !pod.leaving);
    let ready = i64::try_from(staying.filter(|pod| pod.ready).count()).unwrap_or(i64::MAX);
    let mut old = pods.iter().filter(|(_, pod)| pod.old);
    let leaving = pods.values().any(|pod| pod.leaving);
    // An old pod that is not ready serves nobody: it goes first and waits for nobody.
    let broken = pods
        .iter()
        .find(|(_, pod)| pod.old && !pod.ready && !pod.leaving);
    match (broken, old.next()) {
        (_, None) if !leaving && ready >= wanted => Next::Done,
        (Some((name, _)), _) => Next::Evict(name),
        (None, Some(_)) if !leaving && ready >= wanted => {
            let first = pods.iter().find(|(_, pod)| pod.old && !pod.leaving);
            first.map_or(Next::Wait, |(name, _)| Next::Evict(name))
        }
        _ => Next::Wait,
    }
}

fn belongs(pod: &Pod, workload: &Workload) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    owners.into_iter().any(|owner| *owner.uid == *workload.uid)
        && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn see(pod: &Pod, step: &Step) -> Seen {
    let annotations = pod.annotations();
    let has = |(key, leaf): (String, String)| annotations.get(&key) == Some(&leaf);
    let conditions = pod
        .status
        .iter()
        .filter_map(|status| status.conditions.as_ref())
        .flatten();
    Seen {
        old: !step
            .leaves
            .iter()
            .map(|due| (leaf_annotation(&due.secret), due.leaf.to_string()))
            .all(has),
        ready: { conditions }
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        leaving: pod.metadata.deletion_timestamp.is_some(),
    }
}

/// Asks for an eviction; a budget that says no (429) and a pod that is gone (404) are no errors.
async fn evict(api: &Api<Pod>, namespace: &str, name: &str) -> Result<(), Error> {
    let params = EvictParams::default();
    let evicted = call("evict", &name, namespace, || api.evict(name, &params)).await;
    match evicted {
        Err(error) if matches!(error.code(), Some(404 | 429)) => Ok(()),
        other => other.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_goes_at_a_time_and_only_while_the_others_are_ready() {
        let pod = |old, ready, leaving| Seen {
            old,
            ready,
            leaving,
        };
        let (old, new, starting, leaving, broken) = (
            pod(true, true, false),
            pod(false, true, false),
            pod(false, false, false),
            pod(true, true, true),
            pod(true, false, false),
        );
        for (pods, expected) in [
            (vec![old, old], Next::Evict("0")),
            (vec![leaving, old], Next::Wait),
            (vec![new, old], Next::Evict("1")),
            (vec![starting, old], Next::Wait),
            (vec![new, new], Next::Done),
            (vec![new, starting], Next::Wait),
            (vec![old, broken], Next::Evict("1")),
            (vec![], Next::Wait),
        ] {
            let names = (0..).map(|number: usize| number.to_string());
            let pods: BTreeMap<String, Seen> = names.zip(pods).collect();
            assert_eq!(next(&pods, 2), expected, "{pods:?}");
        }
        assert_eq!(next(&BTreeMap::new(), 0), Next::Done);
    }
}

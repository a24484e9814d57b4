//! Replaces the pods of a workload whose controller does not: one at a time, by eviction.
//!
//! ReplicationControllers, and StatefulSets and DaemonSets with `OnDelete`. Old pods are told by their own annotation,
//! so that it may be cut off and taken up again; a PodDisruptionBudget that says no is waited for.
//! It needs the rights of rbac/addons/eviction.yaml.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, EvictParams, Preconditions};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use tokio::time::{Instant, timeout};

use super::error::{Error, once};
use super::looks::Looks;
use super::steps::{Due, Step};
use super::wait::{Wait, Waited, stalled};
use super::workload::{Workload, get, leaf_annotation};
use crate::duration::human;
use crate::permit::Permit;

/// How soon a budget that said no is asked again when no pod has changed meanwhile. Budgets cannot be watched with the
/// rights that there are, and the eviction is the one question that tells.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Longest wait for the answer to one eviction. The client repeats a 429 by itself for minutes, and a budget's no is
/// one: no answer within this time is taken for a no.
const EVICTION_DEADLINE: Duration = Duration::from_secs(3);

/// Evictions beyond the number of old pods that there were: pods that were made from the old template just before its
/// controller heard of the new one. More of them means that replacements come without the annotation, for ever.
const SPARE: usize = 3;

/// What a budget's no adds to how a rollout stands.
const REFUSED: &str = ", evictions are refused: a PodDisruptionBudget does not allow any";

/// A pod as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    uid: Box<str>,
    old: bool,
    ready: bool,
    leaving: bool,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Next<'a> {
    Done,
    Evict(&'a str, &'a Seen),
    Wait,
}

/// Evicts old pods one by one, each replacement awaited.
///
/// # Errors
/// When the API server fails in another way than by forbidding it.
pub(super) async fn replace(
    wait: Wait<'_>,
    step: &Step,
    looks: &Looks<'_>,
) -> Result<Waited, Error> {
    let Wait {
        client,
        namespace,
        workload,
        patience,
        place,
    } = wait;
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let config = watcher::Config::default().labels(&workload.selector);
    let mut events = std::pin::pin!(watcher(api.clone(), config).default_backoff());
    let mut pods: BTreeMap<String, Seen> = BTreeMap::new();
    let mut wanted = workload.status.wanted;
    let mut listed = false;
    let mut refused = "";
    let mut evictions: Option<usize> = None;
    let (mut last, mut best) = (Instant::now(), (usize::MAX, 0));
    loop {
        let old = pods.values().filter(|pod| pod.old).count();
        let ready = pods.values().filter(|pod| pod.ready).count();
        if listed {
            let left = evictions.get_or_insert(old + SPARE);
            match next(&pods, wanted) {
                Next::Done => return Ok(Waited::Done),
                Next::Evict(..) if *left == 0 => return Ok(Waited::Reverted),
                Next::Evict(name, pod) => {
                    let permit = match looks.permit(step, Instant::now()).await {
                        Ok(permit) => permit,
                        Err((secret, withdrawal)) => {
                            return Ok(Waited::Withdrawn(secret, withdrawal));
                        }
                    };
                    match evict(permit, &api, namespace, name, pod).await {
                        Ok(true) => (refused, *left) = ("", *left - 1),
                        Ok(false) => refused = REFUSED,
                        Err(Error::Forbidden { .. }) => {
                            return Ok(Waited::Forbidden(missing_right(workload)));
                        }
                        Err(error) => return Err(error),
                    }
                }
                Next::Wait => {}
            }
        }
        if listed && (old < best.0 || (old == best.0 && ready > best.1)) {
            tracing::debug!(namespace, workload = %workload.id, "{old} old pods left, {ready} ready");
            (last, best) = (Instant::now(), (old, ready));
        } else if last.elapsed() >= patience {
            match get(client, namespace, &workload.id).await? {
                None => return Ok(Waited::Gone),
                Some(now) if now.uid != workload.uid => return Ok(Waited::Gone),
                // Scaled meanwhile: what is missing was not to be waited for.
                Some(now) if now.status.wanted != wanted => {
                    (wanted, last) = (now.status.wanted, Instant::now());
                }
                Some(_) => {
                    let stands = format!("{old} old pods left, {ready} of {wanted} ready{refused}");
                    return Ok(Waited::Failed(format!(
                        "no progress for {}: {stands}",
                        human(patience)
                    )));
                }
            }
        } else if last.elapsed() >= stalled(patience) {
            place.give_back();
        }
        match timeout(ASK_AGAIN.min(patience), events.next()).await {
            Ok(Some(Ok(watcher::Event::Init))) => {
                pods.clear();
                listed = false;
            }
            Ok(Some(Ok(watcher::Event::InitDone))) => listed = true,
            Ok(Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)))) => {
                if belongs(&pod, workload) {
                    pods.insert(pod.name_any(), see(&pod, step));
                } else {
                    pods.remove(&pod.name_any());
                }
            }
            Ok(Some(Ok(watcher::Event::Delete(pod)))) => {
                pods.remove(&pod.name_any());
            }
            Ok(Some(Err(watcher::Error::InitialListFailed(kube::Error::Api(status)))))
                if status.code == 403 =>
            {
                return Ok(Waited::Forbidden(missing_right(workload)));
            }
            Ok(Some(Err(_)) | None) | Err(_) => {}
        }
    }
}

fn missing_right(workload: &Workload) -> String {
    format!(
        "the pods of {} may not be replaced: kubectl apply -f rbac/addons/eviction.yaml",
        workload.id
    )
}

/// One pod at a time, and only while all that should be there are ready.
fn next(pods: &BTreeMap<String, Seen>, wanted: i64) -> Next<'_> {
    // Pods that are leaving serve nobody and are not waited for: they may take hours.
    let staying = || pods.iter().filter(|(_, pod)| !pod.leaving);
    let ready = i64::try_from(staying().filter(|(_, pod)| pod.ready).count()).unwrap_or(i64::MAX);
    // An old pod that is not ready serves nobody: it goes first and waits for nobody.
    let broken = staying().find(|(_, pod)| pod.old && !pod.ready);
    let first = staying().find(|(_, pod)| pod.old);
    match (broken, first) {
        (Some((name, pod)), _) => Next::Evict(name, pod),
        (None, Some((name, pod))) if ready >= wanted => Next::Evict(name, pod),
        (None, None) if ready >= wanted => Next::Done,
        _ => Next::Wait,
    }
}

/// Whether the workload is responsible for the pod, and the pod has not ended.
fn belongs(pod: &Pod, workload: &Workload) -> bool {
    let owned = pod
        .owner_references()
        .iter()
        .any(|owner| *owner.uid == *workload.uid);
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    owned && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn see(pod: &Pod, step: &Step) -> Seen {
    let annotations = pod.annotations();
    let has = |due: &Due| {
        let value = annotations.get(&leaf_annotation(&due.secret));
        value.is_some_and(|value| due.is_said_by(value))
    };
    let conditions = pod
        .status
        .iter()
        .filter_map(|status| status.conditions.as_ref())
        .flatten();
    Seen {
        uid: pod.uid().unwrap_or_default().into(),
        old: !step.leaves.iter().all(has),
        ready: { conditions }
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        leaving: pod.metadata.deletion_timestamp.is_some(),
    }
}

/// Asks for the eviction of exactly this pod; false where a budget says no. One that is gone or was replaced meanwhile
/// is no error: the watch will tell.
async fn evict(
    permit: Permit<&Step>,
    api: &Api<Pod>,
    namespace: &str,
    name: &str,
    pod: &Seen,
) -> Result<bool, Error> {
    if permit.spend().is_none() {
        return Ok(false);
    }
    let preconditions = Preconditions {
        uid: Some(pod.uid.to_string()),
        resource_version: None,
    };
    let params = EvictParams {
        delete_options: Some(DeleteParams {
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        }),
        ..EvictParams::default()
    };
    let what = format!("pod/{name}");
    match once(
        "evict",
        &what,
        namespace,
        EVICTION_DEADLINE,
        api.evict(name, &params),
    )
    .await
    {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(true),
        Err(Error::NoAnswer { .. }) => Ok(false),
        // 500 is what the API server says where several budgets cover one pod.
        Err(error) if matches!(error.code(), Some(429 | 500)) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_goes_at_a_time_and_only_while_the_others_are_ready() {
        // By letter: old, new, starting, leaving, broken.
        let pod = |letter: char| Seen {
            uid: "".into(),
            old: "olb".contains(letter),
            ready: "onl".contains(letter),
            leaving: letter == 'l',
        };
        for (pods, expected) in [
            ("oo", "evict 0"),
            ("lo", "wait"),
            ("lno", "evict 2"),
            ("no", "evict 1"),
            ("so", "wait"),
            ("nn", "done"),
            ("lnn", "done"),
            ("ns", "wait"),
            ("ob", "evict 1"),
            ("sb", "evict 1"),
            ("", "wait"),
        ] {
            let named = pods
                .chars()
                .enumerate()
                .map(|(number, letter)| (number.to_string(), pod(letter)));
            let seen: BTreeMap<String, Seen> = named.collect();
            let said = match next(&seen, 2) {
                Next::Done => "done".to_owned(),
                Next::Wait => "wait".to_owned(),
                Next::Evict(name, _) => format!("evict {name}"),
            };
            assert_eq!(said, expected, "{pods}");
        }
        assert_eq!(next(&BTreeMap::new(), 0), Next::Done);
    }
}

//! Replaces the pods of a workload whose controller does not: one at a time, by eviction.
//!
//! Used for ReplicationControllers, and for StatefulSets and DaemonSets with `OnDelete`. Old pods are recognised by
//! their own annotation, so the work may be cut off and resumed. It waits while a PodDisruptionBudget refuses. A pod
//! that was not ready before is replaced like the others, and the others do not wait for it. It needs the rights of
//! rbac/addons/eviction.yaml.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cert_renew_core::rollout::progress::Numbers;
use cert_renew_core::rollout::types::{Due, Step};
use cert_renew_core::rollout::workload::{Workload, leaf_annotation};
use cert_renew_core::time::UnixTime;
use cert_renew_core::time::duration::human;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::looks::Looks;
use super::wait::{Wait, Waited, stalled};
use crate::rollout::error::{Error, once};
use crate::rollout::listing::api::get;
use crate::rollout::permit::Permit;

/// Time until an eviction is asked for again that a disruption budget refused, whatever the pods do. Our rights do not
/// allow to watch budgets, so only an eviction shows whether one permits it.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Time until an eviction is asked for again that found no pod: the watch is about to show the current pod.
const MISSED: Duration = Duration::from_secs(1);
/// Longest wait for the answer to one eviction. The client repeats a 429, with which a budget refuses, by itself for
/// minutes: no answer within this time counts as a refusal.
const EVICTION_DEADLINE: Duration = Duration::from_secs(3);

/// Most evictions beyond the number of old pods at the beginning, for pods created from the old template just before
/// its controller saw the new one. More of them means that replacements always come without the annotation.
const SPARE: usize = 3;
/// Number of times that a workload may be scaled while its pods are replaced and still get more time for it.
const SCALED: usize = 3;

/// Text added to the state of a rollout while a budget refuses.
const REFUSED: &str = ", evictions are refused: a PodDisruptionBudget does not allow any";

/// What this module needs of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    uid: Box<str>,
    old: bool,
    ready: bool,
    leaving: bool,
    /// It should have ended by now: its node is dead, as a rule.
    hung: bool,
}

/// The next action.
#[derive(Debug, PartialEq, Eq)]
enum Next<'a> {
    Done,
    Evict(&'a str, &'a Seen),
    Wait,
}

/// The result of asking for an eviction.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// The pod is being deleted.
    Accepted,
    /// A disruption budget does not allow it now, or the API server cannot say.
    Refused,
    /// The pod no longer exists.
    Missed,
}

/// Evicts old pods one by one, and waits for each replacement.
///
/// # Errors
/// When the API server fails other than by forbidding it.
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
    // Pods whose eviction was accepted: the watch may be late to show that they leave.
    let mut evicted: BTreeSet<Box<str>> = BTreeSet::new();
    let mut not_before = Instant::now();
    let (mut scaled, mut lost) = (0, None);
    let (mut last, mut best) = (Instant::now(), (i64::MAX, 0));
    loop {
        for pod in pods.values_mut() {
            pod.leaving |= evicted.contains(&pod.uid);
        }
        let (old, ready) = (count(&pods, |pod| pod.old), ready(&pods));
        if listed {
            let left = evictions.get_or_insert(pods.len() + SPARE);
            let floor = wanted - *lost.get_or_insert_with(|| wanted - served(&pods));
            match next(&pods, wanted, floor, workload.ordered) {
                Next::Done => return Ok(Waited::Done(0)),
                Next::Evict(..) if *left == 0 => return Ok(Waited::Reverted),
                Next::Evict(..) if Instant::now() < not_before => {}
                Next::Evict(name, pod) => {
                    let permit = match looks.permit(step, Instant::now()).await {
                        Ok(permit) => permit,
                        Err((secret, withdrawal)) => {
                            return Ok(Waited::Withdrawn(secret, withdrawal));
                        }
                    };
                    match evict(permit, &api, namespace, name, &pod.uid).await {
                        Ok(Asked::Accepted) => {
                            (refused, *left) = ("", *left - 1);
                            evicted.insert(pod.uid.clone());
                            continue;
                        }
                        Ok(Asked::Refused) => {
                            (refused, not_before) = (REFUSED, Instant::now() + ASK_AGAIN);
                        }
                        Ok(Asked::Missed) => not_before = Instant::now() + MISSED,
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
                // The workload was scaled: the missing pods did not hold it up.
                Some(now) if now.status.wanted != wanted && scaled < SCALED => {
                    (wanted, last) = (now.status.wanted, Instant::now());
                    scaled += 1;
                }
                Some(_) => {
                    let numbers = Numbers {
                        target: wanted,
                        updated: count(&pods, |pod| !pod.old),
                        available: ready,
                        older: old,
                    };
                    let why = format!("no progress for {}: {numbers}{refused}", human(patience));
                    return Ok(Waited::Failed(numbers, why));
                }
            }
        } else if last.elapsed() >= stalled(patience) {
            place.give_back();
        }
        let pause = not_before.saturating_duration_since(Instant::now());
        let pause = if pause.is_zero() { ASK_AGAIN } else { pause };
        match timeout(pause.min(patience), events.next()).await {
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

fn count(pods: &BTreeMap<String, Seen>, of: impl Fn(&Seen) -> bool) -> i64 {
    i64::try_from(pods.values().filter(|pod| of(pod)).count()).unwrap_or(i64::MAX)
}

/// Pods that serve: those that are being deleted do not, and may take hours to go.
fn ready(pods: &BTreeMap<String, Seen>) -> i64 {
    count(pods, |pod| pod.ready && !pod.leaving)
}

/// The number at the end of a name.
fn ordinal(name: &str) -> Option<u32> {
    name.rsplit_once('-')?.1.parse().ok()
}

/// Pods that serve at the beginning, or are about to: a replacement that starts may be from our earlier run.
fn served(pods: &BTreeMap<String, Seen>) -> i64 {
    count(pods, |pod| match pod.leaving {
        true => !pod.hung,
        false => pod.ready || !pod.old,
    })
}

/// Evicts one pod at a time, and only while as many are ready as at the beginning (`floor`). A pod of an `ordered`
/// StatefulSet goes only while all of lower ordinals are ready: it would not come back before.
fn next(pods: &BTreeMap<String, Seen>, wanted: i64, floor: i64, ordered: bool) -> Next<'_> {
    let comes_back = |name: &str| {
        let mut lower = pods.iter().filter(|(it, _)| ordinal(it) < ordinal(name));
        !ordered || lower.all(|(_, pod)| pod.ready && !pod.leaving)
    };
    let staying = || pods.iter().filter(|(_, pod)| !pod.leaving);
    let ready = ready(pods);
    // An old pod that is not ready serves nobody: it goes first, and at once.
    let broken = staying().find(|(_, pod)| pod.old && !pod.ready);
    let first = staying().find(|(name, pod)| pod.old && comes_back(name));
    let all_new = !staying().any(|(_, pod)| pod.old);
    match (broken, first) {
        (Some((name, pod)), _) => Next::Evict(name, pod),
        (None, Some((name, pod))) if ready >= floor => Next::Evict(name, pod),
        (None, None) if all_new && ready >= wanted => Next::Done,
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
    // When it should have ended, including its grace period.
    let ends = pod.metadata.deletion_timestamp.as_ref();
    let ends = ends.map(|ends| UnixTime(ends.0.as_second()));
    Seen {
        uid: pod.uid().unwrap_or_default().into(),
        old: !step.leaves.iter().all(has),
        ready: { conditions }
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        leaving: ends.is_some(),
        hung: ends.is_some_and(|ends| ends < UnixTime::now()),
    }
}

/// Asks for the eviction of exactly this pod, not of a later one of the same name.
async fn evict(
    permit: Permit<&Step>,
    api: &Api<Pod>,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Asked, Error> {
    if permit.spend().is_none() {
        return Ok(Asked::Missed);
    }
    // kube 5.0 writes `delete_options`, which the API server ignores, and with it the precondition.
    let body = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
        "deleteOptions": {"preconditions": {"uid": uid}},
    });
    let what = format!("pod/{name}");
    let params = PostParams::default();
    let asked = api.create_subresource::<_, serde_json::Value>("eviction", name, &params, &body);
    match once("evict", &what, namespace, EVICTION_DEADLINE, asked).await {
        Ok(_) => Ok(Asked::Accepted),
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(Asked::Missed),
        Err(Error::NoAnswer { .. }) => Ok(Asked::Refused),
        // The API server answers 500 if several budgets cover one pod, 504 if a budget was modified concurrently.
        Err(error) if matches!(error.code(), Some(429 | 500 | 504)) => Ok(Asked::Refused),
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
            hung: false,
        };
        for (pods, floor, expected) in [
            ("oo", 2, "evict db-0"),
            ("lo", 2, "wait"),
            ("lno", 2, "evict db-2"),
            ("no", 2, "evict db-1"),
            ("so", 2, "wait"),
            ("nn", 2, "done"),
            ("lnn", 2, "done"),
            ("ns", 2, "wait"),
            ("ob", 2, "evict db-1"),
            ("sb", 2, "evict db-1"),
            ("", 2, "wait"),
            // One was not ready before: the other one does not wait for it, but nothing is done without it.
            ("lo", 1, "evict db-1"),
            ("so", 1, "evict db-1"),
            ("ln", 1, "wait"),
            ("sn", 1, "wait"),
            ("sl", 1, "wait"),
            ("l", 0, "wait"),
        ] {
            let named = pods
                .chars()
                .enumerate()
                .map(|(number, letter)| (format!("db-{number}"), pod(letter)));
            let seen: BTreeMap<String, Seen> = named.collect();
            let said = match next(&seen, 2, floor, false) {
                Next::Done => "done".to_owned(),
                Next::Wait => "wait".to_owned(),
                Next::Evict(name, _) => format!("evict {name}"),
            };
            assert_eq!(said, expected, "{pods}");
            // A controller that creates pods in order creates none while a lower one is missing.
            let kept = ["lo", "lno", "so"].contains(&pods);
            if let Next::Evict(..) = next(&seen, 2, floor, true) {
                assert!(!kept, "{pods}");
            }
        }
        assert_eq!(next(&BTreeMap::new(), 0, 0, true), Next::Done);
    }
}

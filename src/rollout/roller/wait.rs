//! Waits for a workload by watching it: no polling, and a limit on time without progress instead of on time.

use std::time::Duration;

use cert_renew_core::rollout::decode::Object;
use cert_renew_core::rollout::progress::{Best, Numbers, Progress, is_rolling, progress};
use cert_renew_core::rollout::types::Step;
use cert_renew_core::rollout::workload::{Status, Workload};
use cert_renew_core::secret::workload::{Kind, WorkloadRef};
use cert_renew_core::text::error_chain;
use cert_renew_core::time::duration::human;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use kube::Client;
use kube::api::{Api, WatchEvent, WatchParams};
use tokio::time::{Instant, sleep, timeout_at};

use super::looks::Withdrawal;
use crate::process::budget::HeldPlace;
use crate::rollout::error::Error;
use crate::rollout::listing::api::{api, get};

/// Delay before a watch that broke is opened again.
const AGAIN: Duration = Duration::from_secs(1);

/// Longest time without progress once only pods of dead nodes are left to replace: they may still move.
const RESTS: Duration = Duration::from_secs(10);
/// Longest time without progress for each look at a workload that was not well before and has been rolled already.
pub(in crate::rollout) const GLANCE: Duration = Duration::from_secs(30);

/// Time without progress after which a workload gives its place to others; it is still waited for.
///
/// Shorter than the patience, so that a stuck workload keeps no other waiting; longer than nearly every pod takes to
/// become ready, so that workloads that really roll hardly ever exceed the concurrency. A short wait keeps its place until
/// it ends: without one it would end as crowded in a namespace where many wait.
pub(super) fn stalled(patience: Duration) -> Duration {
    const STALLED: Duration = Duration::from_secs(120);
    if patience <= GLANCE {
        return patience;
    }
    STALLED.min(patience / 2)
}

/// Gives the place back to others once a workload `stalls`. A few of a namespace are waited for without a place, and so
/// are those whose place was passed on because they take long.
///
/// # Errors
/// When too many are: the rollout is interrupted, and goes on later.
pub(super) fn wait_on(place: &mut HeldPlace, namespace: &str, stalls: bool) -> Result<(), Error> {
    let may_wait = if stalls {
        place.wait_on()
    } else {
        place.may_wait()
    };
    if may_wait {
        return Ok(());
    }
    Err(Error::Crowded {
        namespace: namespace.into(),
        most: place.most_waiting_on(),
    })
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// The wait succeeded; this many pods are not available, as before.
    Done(i64),
    /// Its controller has replaced all pods that it replaces for now; pods of an older template are left, in words.
    /// This many pods are not available.
    Held(i64, String),
    /// The workload is gone, or was replaced by another of the same name.
    Gone,
    /// Somebody removed the annotation from the template again.
    Reverted,
    /// It makes no progress: its numbers, and in words.
    Failed(Numbers, String),
    /// A right is missing, in words.
    Forbidden(String),
    /// It has more pods than are replaced, in words.
    TooMany(String),
    /// This Secret was withdrawn.
    Withdrawn(Box<str>, Withdrawal),
}

/// Arguments of every wait.
pub(super) struct Wait<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
    /// The workload as it was patched.
    pub(super) workload: &'a Workload,
    /// Longest time without progress.
    pub(super) patience: Duration,
    /// The place, given back when nothing moves.
    pub(super) place: &'a mut HeldPlace,
}

/// The judgement on one observation.
enum Judged {
    Ended(Waited),
    /// Not yet; whether this is the best observation so far, and its numbers.
    Waits(bool, Numbers),
    /// The same, with little left to wait for.
    Rests(bool, Numbers),
}

/// Waits until every pod has the template and is available.
///
/// # Errors
/// When the API server does not report the state.
pub(super) async fn available(
    wait: Wait<'_>,
    step: &Step,
    missing_before: i64,
) -> Result<Waited, Error> {
    let mut best = Best::default();
    observe(wait, |seen| {
        if !step.is_carried_by(seen) {
            return Judged::Ended(Waited::Reverted);
        }
        match progress(seen, missing_before) {
            Progress::Done => Judged::Ended(Waited::Done(short(seen))),
            Progress::Held(numbers) if seen.id.kind == Kind::StatefulSet => {
                let pods = pods(numbers.older);
                let why = format!("{pods} below its partition, with an earlier certificate");
                Judged::Ended(Waited::Held(short(seen), why))
            }
            Progress::Held(numbers) => Judged::Rests(moved(&mut best, seen, numbers), numbers),
            Progress::Stuck(numbers) => {
                let why = format!("its progress deadline is exceeded: {numbers}");
                Judged::Ended(Waited::Failed(numbers, why))
            }
            Progress::Moving(numbers) => Judged::Waits(moved(&mut best, seen, numbers), numbers),
        }
    })
    .await
}

/// Waits until the replacement of the workload's pods has ended.
///
/// # Errors
/// When the API server does not report the state.
pub(super) async fn settled(wait: Wait<'_>) -> Result<Waited, Error> {
    let mut best = Best::default();
    observe(wait, |seen| {
        if !is_rolling(seen) {
            return Judged::Ended(Waited::Done(0));
        }
        match progress(seen, 0) {
            Progress::Moving(numbers) => Judged::Waits(moved(&mut best, seen, numbers), numbers),
            Progress::Done | Progress::Held(_) | Progress::Stuck(_) => {
                Judged::Ended(Waited::Done(0))
            }
        }
    })
    .await
}

/// Whether an observation is the best so far. Until its controller has seen the new template, a workload reports the
/// pods of the old one as updated: no later observation would ever be better.
fn moved(best: &mut Best, seen: &Workload, numbers: Numbers) -> bool {
    let restarting = seen.id.kind == Kind::Rollout && !seen.status.revision_reached;
    match seen.status.observed {
        true if restarting => best.risen_by(numbers),
        observed => observed && best.surpassed_by(numbers),
    }
}

async fn observe(
    wait: Wait<'_>,
    mut judge: impl FnMut(&Workload) -> Judged,
) -> Result<Waited, Error> {
    let Wait {
        client,
        namespace,
        workload,
        patience,
        place,
    } = wait;
    let id = &workload.id;
    let mut versions = Versions::since(client, namespace, workload);
    let mut last = Instant::now();
    let mut seen = workload.clone();
    loop {
        if seen.uid != workload.uid {
            return Ok(Waited::Gone);
        }
        let (moved, stands, rests) = match judge(&seen) {
            Judged::Ended(how) => return Ok(how),
            Judged::Waits(moved, stands) => (moved, stands, false),
            Judged::Rests(moved, stands) => (moved, stands, true),
        };
        let patience = if rests { RESTS.min(patience) } else { patience };
        if moved {
            tracing::debug!(namespace, workload = %id, "{stands}");
            last = Instant::now();
        } else if last.elapsed() >= patience {
            return Ok(if rests {
                Waited::Held(short(&seen), stands.to_string())
            } else {
                let paused = if seen.paused { "it is paused; " } else { "" };
                let why = format!("{paused}no progress for {}: {stands}", human(patience));
                Waited::Failed(stands, why)
            });
        }
        wait_on(place, namespace, false)?;
        seen = loop {
            let limit = if last.elapsed() < stalled(patience) {
                stalled(patience)
            } else {
                patience
            };
            match timeout_at(last + limit, versions.next()).await {
                Ok(Some(next)) => break next,
                Ok(None) => return Ok(Waited::Gone),
                Err(_) if last.elapsed() < patience => wait_on(place, namespace, true)?,
                // Read the workload before it counts as stuck: the watch may have been silent for another reason.
                Err(_) => match versions.read().await? {
                    Some(next) => break next,
                    None => return Ok(Waited::Gone),
                },
            }
        };
    }
}

/// Pods that are not available.
pub(super) fn short(workload: &Workload) -> i64 {
    let Status {
        wanted, available, ..
    } = workload.status;
    (wanted - available).max(0)
}

/// A number of pods, in words.
pub(super) fn pods(count: i64) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} pod{s}")
}

/// The later versions of a known workload: a watch that begins at its version, so nothing is listed.
struct Versions<'a> {
    client: &'a Client,
    namespace: &'a str,
    id: &'a WorkloadRef,
    api: Api<Object>,
    /// The last version that is known.
    version: Box<str>,
    watch: Option<BoxStream<'static, kube::Result<WatchEvent<Object>>>>,
}

impl<'a> Versions<'a> {
    fn since(client: &'a Client, namespace: &'a str, known: &'a Workload) -> Self {
        Self {
            client,
            namespace,
            id: &known.id,
            api: api(client, namespace, known.id.kind),
            version: known.resource_version.clone(),
            watch: None,
        }
    }

    /// The next version, however long that takes; `None` once the workload is gone. May be dropped and called again.
    async fn next(&mut self) -> Option<Workload> {
        loop {
            let error = match self.event().await {
                Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    let next = object.read(self.id.kind);
                    self.version.clone_from(&next.resource_version);
                    return Some(next);
                }
                Ok(Some(WatchEvent::Deleted(_))) => return None,
                Ok(Some(WatchEvent::Bookmark(mark))) => {
                    self.version = mark.metadata.resource_version.into();
                    continue;
                }
                // The watch has reached its normal end.
                Ok(None) => {
                    self.watch = None;
                    sleep(AGAIN).await;
                    continue;
                }
                // As a rule, the version is too old.
                Ok(Some(WatchEvent::Error(status))) => kube::Error::Api(status),
                Err(error) => error,
            };
            let (namespace, workload) = (self.namespace, self.id);
            tracing::debug!(namespace, %workload, error = %error_chain(&error), "its watch is interrupted");
            self.watch = None;
            sleep(AGAIN).await;
            if let Ok(read) = self.read().await {
                return read;
            }
        }
    }

    /// The workload as it is now. Its watch is opened again after that: one that nobody polls may hold a place for
    /// large answers.
    async fn read(&mut self) -> Result<Option<Workload>, Error> {
        self.watch = None;
        let read = get(self.client, self.namespace, self.id).await?;
        if let Some(next) = &read {
            self.version.clone_from(&next.resource_version);
        }
        Ok(read)
    }

    async fn event(&mut self) -> kube::Result<Option<WatchEvent<Object>>> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            None => {
                let only =
                    WatchParams::default().fields(&format!("metadata.name={}", self.id.name));
                let watch = self.api.watch(&only, &self.version).await?;
                self.watch.insert(watch.boxed())
            }
        };
        watch.next().await.transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use cert_renew_core::testing;
    use cert_renew_core::time::UnixTime;
    use http::{Request, Response};
    use hyper::body::{Body as HttpBody, Frame};
    use kube::client::Body;
    use serde_json::json;
    use tower::service_fn;

    use super::*;
    use crate::process::budget::{Budget, WITHOUT_PLACE};

    /// An answer that brings a part and then nothing, and says when it is dropped.
    struct Answer(Option<Bytes>, Option<Arc<AtomicBool>>);

    impl HttpBody for Answer {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match (self.0.take(), &self.1) {
                (Some(part), _) => Poll::Ready(Some(Ok(Frame::data(part)))),
                (None, Some(_)) => Poll::Pending,
                (None, None) => Poll::Ready(None),
            }
        }
    }

    impl Drop for Answer {
        fn drop(&mut self) {
            if let Some(ended) = &self.1 {
                ended.store(true, Ordering::Relaxed);
            }
        }
    }

    /// A part of a large answer holds a place among such answers, and the read waits for one.
    #[tokio::test(start_paused = true)]
    async fn a_silent_watch_is_dropped_before_the_workload_is_read() {
        let deployment = |updated: i64| {
            json!({
                "metadata": {"name": "web", "uid": "u", "resourceVersion": "7", "generation": 2},
                "spec": {"replicas": 1},
                "status": {"observedGeneration": 2, "replicas": 1, "updatedReplicas": updated, "availableReplicas": 1}})
        };
        let ended = Arc::new(AtomicBool::new(false));
        let (is_over, come) = (Arc::clone(&ended), deployment(1).to_string());
        let server = service_fn(move |request: Request<Body>| {
            let is_watch = { request.uri().query() }.is_some_and(|it| it.contains("watch="));
            let answer = if is_watch {
                let part = Bytes::from_static(b"{\"type\":\"MODIFIED\",\"object\":{");
                Answer(Some(part), Some(Arc::clone(&is_over)))
            } else {
                assert!(is_over.load(Ordering::Relaxed), "the watch is still held");
                Answer(Some(Bytes::from(come.clone())), None)
            };
            async move { Ok::<_, Infallible>(Response::new(answer)) }
        });
        let client = Client::new(server, "shop");
        let workload = testing::workload(Kind::Deployment, deployment(0));
        let budget = Arc::new(Budget::new(1, 1));
        let mut place = budget.place("shop", UnixTime::NEVER).await;
        let wait = Wait {
            client: &client,
            namespace: "shop",
            workload: &workload,
            patience: Duration::from_secs(60),
            place: &mut place,
        };
        assert_eq!(settled(wait).await.unwrap(), Waited::Done(0));
        assert!(ended.load(Ordering::Relaxed));
    }
    #[tokio::test(start_paused = true)]
    async fn few_workloads_of_a_namespace_are_waited_for_without_a_place() {
        let deployment = json!({
            "metadata": {"name": "web", "uid": "u", "resourceVersion": "7", "generation": 2},
            "spec": {"replicas": 1},
            "status": {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 0, "availableReplicas": 1}});
        let (ended, come) = (Arc::new(AtomicBool::new(false)), deployment.to_string());
        let server = service_fn(move |request: Request<Body>| {
            let is_watch = { request.uri().query() }.is_some_and(|it| it.contains("watch="));
            let answer = match is_watch {
                true => Answer(None, Some(Arc::clone(&ended))),
                false => Answer(Some(Bytes::from(come.clone())), None),
            };
            async move { Ok::<_, Infallible>(Response::new(answer)) }
        });
        let client = Client::new(server, "shop");
        let workload = testing::workload(Kind::Deployment, deployment);
        let budget = Arc::new(Budget::new(1, 1));
        let mut others = Vec::new();
        for _ in 0..WITHOUT_PLACE {
            let mut place = budget.place("shop", UnixTime::NEVER).await;
            assert!(place.wait_on());
            others.push(place);
        }
        for (seconds, is_crowded, ends) in [(60, true, false), (30, true, true), (60, false, true)]
        {
            if !is_crowded {
                drop(others.pop());
            }
            let mut place = budget.place("shop", UnixTime::NEVER).await;
            let wait = Wait {
                client: &client,
                namespace: "shop",
                workload: &workload,
                patience: Duration::from_secs(seconds),
                place: &mut place,
            };
            match settled(wait).await {
                Ok(Waited::Failed(..)) => assert!(ends, "{seconds} {is_crowded}"),
                Err(Error::Crowded { most, .. }) => {
                    assert!(!ends && most == WITHOUT_PLACE, "{seconds} {is_crowded}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

//! Waits for a workload by watching it: no polling, and a limit on time without progress instead of on time.

use std::time::Duration;

use futures::StreamExt as _;
use kube::Client;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use tokio::time::{Instant, timeout_at};

use super::error::Error;
use super::progress::{Best, Progress, progress};
use super::run::Places;
use super::workload::{Workload, api};

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// What was waited for is so.
    Done,
    /// The workload is gone.
    Gone,
    /// It will not be so.
    Failed(String),
}

/// Waits until every pod has the template and is available.
pub(super) async fn available(
    client: &Client,
    namespace: &str,
    workload: &Workload,
    missing_before: i64,
    patience: Duration,
    places: &mut Places,
    stalled: Duration,
) -> Result<Waited, Error> {
    let mut best = Best::default();
    observe(
        client,
        namespace,
        workload,
        patience,
        places,
        stalled,
        |seen| match progress(seen, missing_before) {
            Progress::Done => Verdict::Done,
            Progress::Stuck(numbers) => {
                Verdict::Failed(format!("its progress deadline is exceeded: {numbers}"))
            }
            Progress::Moving(numbers) => Verdict::Wait {
                moved: best.surpassed_by(numbers),
                now: numbers.to_string(),
            },
        },
    )
    .await
}

/// Waits until a condition holds; that it does not in time is no failure.
pub(super) async fn until(
    client: &Client,
    namespace: &str,
    workload: &Workload,
    patience: Duration,
    places: &mut Places,
    stalled: Duration,
    holds: impl Fn(&Workload) -> bool,
) -> Result<Waited, Error> {
    observe(
        client,
        namespace,
        workload,
        patience,
        places,
        stalled,
        |seen| {
            if holds(seen) {
                Verdict::Done
            } else {
                Verdict::Wait {
                    moved: false,
                    now: String::new(),
                }
            }
        },
    )
    .await
}

enum Verdict {
    Done,
    Failed(String),
    Wait { moved: bool, now: String },
}

async fn observe(
    client: &Client,
    namespace: &str,
    workload: &Workload,
    patience: Duration,
    places: &mut Places,
    stalled: Duration,
    mut judge: impl FnMut(&Workload) -> Verdict,
) -> Result<Waited, Error> {
    let id = &workload.id;
    let config = watcher::Config::default().fields(&format!("metadata.name={}", id.name));
    let events = watcher_of(client, namespace, workload, config);
    let mut events = std::pin::pin!(events.default_backoff());
    let mut last = Instant::now();
    let mut now = String::from("nothing was heard of it");
    let mut gave_way = false;
    loop {
        let deadline = if gave_way {
            last + patience
        } else {
            last + patience.min(stalled)
        };
        let event = match timeout_at(deadline, events.next()).await {
            Ok(event) => event,
            Err(_) if last.elapsed() >= patience => {
                let why = format!(
                    "no progress for {}: {now}",
                    crate::duration::human(patience)
                );
                return Ok(Waited::Failed(why));
            }
            Err(_) => {
                places.stalled();
                gave_way = true;
                continue;
            }
        };
        let seen = match event {
            Some(Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                object.read(id.kind)
            }
            Some(Ok(watcher::Event::Delete(_))) | None => return Ok(Waited::Gone),
            Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => continue,
            Some(Err(error)) => {
                tracing::debug!(workload = %id, namespace, error = %crate::cluster::chain(&error), "its watch is interrupted");
                continue;
            }
        };
        if seen.uid != workload.uid {
            return Ok(Waited::Gone);
        }
        match judge(&seen) {
            Verdict::Done => return Ok(Waited::Done),
            Verdict::Failed(why) => return Ok(Waited::Failed(why)),
            Verdict::Wait { moved, now: heard } => {
                if moved {
                    last = Instant::now();
                }
                now = heard;
            }
        }
    }
}

fn watcher_of(
    client: &Client,
    namespace: &str,
    workload: &Workload,
    config: watcher::Config,
) -> impl futures::Stream<Item = watcher::Result<watcher::Event<super::workload::Object>>> + use<> {
    watcher(api(client, namespace, workload.id.kind), config)
}

//! Supervises tasks that live as long as the process or a term: one that panics is counted, reported, and restarted.
//!
//! A task that dies unseen takes its part of the work with it, while everything else looks well: no challenge is
//! answered, no Event is written, no renewal information is asked for. So every long-lived task is spawned from here; a
//! test reads the sources for that. The lease and the config file have a task each that cannot be restarted: when one
//! of them ends, the process ends, and another replica leads.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::telemetry::metrics::Metrics;
use crate::telemetry::metrics::Part;

/// First and longest pause before a task is restarted: each is twice the one before.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Spawns what [`supervised`] runs.
pub fn spawn<F>(
    part: Part,
    metrics: &Arc<Metrics>,
    begin: impl FnMut() -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(supervised(part, Arc::clone(metrics), begin))
}

/// Runs what `begin` makes until it ends by itself; after a panic, begins again after a pause.
pub async fn supervised<F>(part: Part, metrics: Arc<Metrics>, mut begin: impl FnMut() -> F)
where
    F: Future<Output = ()>,
{
    let mut pause = FIRST;
    loop {
        let began = Instant::now();
        // Nothing that a panic leaves half done is trusted later: poisoned locks are taken as they are, and what they
        // guard is changed in single steps.
        let run = AssertUnwindSafe(async { begin().await }).catch_unwind();
        if run.await.is_ok() {
            return;
        }
        metrics.task_panicked(part);
        tracing::error!(
            task = part.as_str(),
            "a task has panicked and is begun again; this is a bug"
        );
        if began.elapsed() > LONGEST {
            pause = FIRST;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use cert_renew_core::index::Index;
    use cert_renew_core::time::UnixTime;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_counted_and_begun_again() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let begun = Arc::new(AtomicU32::new(0));
        let begin = {
            let begun = Arc::clone(&begun);
            move || {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                async move {
                    tokio::task::yield_now().await;
                    assert!(number >= 3, "the {number}th run panics");
                }
            }
        };
        spawn(Part::ChallengeServer, &metrics, begin).await.unwrap();
        assert_eq!(begun.load(Ordering::Relaxed), 4);
        let shown = metrics.render(UnixTime(0), &Index::default(), &|_| 0, true);
        let line = "cert_renew_task_panics_total{task=\"challenge_server\"} 3\n";
        assert!(shown.contains(line), "{shown}");
        // Create the series of all parts, so that their first panic is an increase.
        for part in Part::ALL {
            assert!(shown.contains(&format!("{{task=\"{}\"}}", part.as_str())));
        }
    }

    /// Tasks that are spawned elsewhere, and what notices their end.
    const ELSEWHERE: [(&str, usize, &str); 5] = [
        (
            "src/cli/run.rs",
            2,
            "the lease's and the config file's, whose ends the controller sees",
        ),
        (
            "src/cluster/client/bounded/lines.rs",
            1,
            "a large line's, which ends with the line or after ten seconds",
        ),
        (
            "src/leader/term/mod.rs",
            6,
            "two supervised, one of them for six tasks, and four of one Secret or namespace, whose tickets tell",
        ),
        ("src/net/bounded.rs", 1, "a connection's own"),
        (
            "src/net/dns/server.rs",
            1,
            "a connection's own, which its questions wait for with a deadline",
        ),
    ];

    #[test]
    fn nothing_that_lives_long_is_spawned_unsupervised() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut directories, mut found) = (vec![root.join("src")], Vec::new());
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                if path.ends_with("tests.rs") {
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]").next().unwrap();
                let count = text.matches("tokio::spawn(").count()
                    + text.matches("tasks.spawn(").count()
                    + text.matches("            .spawn(").count();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                if count > 0 && name != "src/process/supervise.rs" {
                    found.push((name.to_owned(), count));
                }
            }
        }
        found.sort();
        let allowed = ELSEWHERE.map(|(name, count, _)| (name.to_owned(), count));
        assert_eq!(found, allowed, "spawn it by supervise::spawn");
    }
}

//! A changed Secret on its way to its workload, step by step, as the audit log tells it: its one clock has microseconds.
//!
//! The steps follow each other without a gap, so that their sum is the whole way, but for the time between the answer to
//! the change and the instant at which its client has it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use test_bench::Result;

use crate::audit::Request;
use crate::report::Report;

/// The client that changes Secrets.
const CHANGER: &str = "admin";
/// What comes this long after the new template was seen still belongs to the change: the next one in the same namespace
/// comes later.
const AFTER: i64 = 1_000_000;

/// A change of one Secret.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) namespace: String,
    pub(crate) secret: String,
    /// One of the Deployments that use it.
    pub(crate) deployment: String,
    /// When it was asked for.
    pub(crate) began: Instant,
    /// When the API server had answered.
    pub(crate) answered: Instant,
    /// When the last of the Deployments was seen patched.
    pub(crate) seen: Instant,
}

impl Change {
    /// From the answer until the new template was seen.
    pub(crate) fn took(&self) -> Duration {
        self.seen.saturating_duration_since(self.answered)
    }
}

/// The steps of one change, milliseconds; and when the change had been received and answered.
struct Steps {
    received: i64,
    written: i64,
    each: [(&'static str, f64); 6],
}

/// Adds the median of each step to the report, and prints which requests of the user a change takes, and when.
pub(crate) fn add(
    report: &mut Report,
    requests: &[Request],
    user: &str,
    changes: &[Change],
) -> Result<()> {
    let (wall, now) = (
        SystemTime::now().duration_since(UNIX_EPOCH)?,
        Instant::now(),
    );
    let wall_at = |instant| wall.saturating_sub(now.saturating_duration_since(instant));
    let mut steps: BTreeMap<(usize, &str), Vec<f64>> = BTreeMap::new();
    let mut kinds: BTreeMap<(&str, &str), Vec<(f64, f64)>> = BTreeMap::new();
    for change in changes {
        let seen = i64::try_from(wall_at(change.seen).as_micros())?;
        let here = |it: &&Request| it.user == user && it.namespace == change.namespace;
        let ours: Vec<&Request> = requests.iter().filter(here).collect();
        let Some(of) = steps_of(change, requests, &ours, seen) else {
            continue;
        };
        for (number, (step, took)) in of.each.into_iter().enumerate() {
            steps.entry((number, step)).or_default().push(took);
        }
        for it in ours {
            // Not what the changes before and after this one took.
            if (of.received..seen + AFTER).contains(&it.received) {
                let kind = (it.verb.as_str(), it.resource.as_str());
                let times = (
                    milliseconds(of.written, it.received),
                    milliseconds(it.received, it.answered),
                );
                kinds.entry(kind).or_default().push(times);
            }
        }
    }
    for ((_, step), took) in steps {
        report.add(
            format!("propagation.step_{step}_p50_ms"),
            median(took),
            "ms",
        );
    }
    for ((verb, resource), times) in kinds {
        let each = times.len() as f64 / changes.len() as f64;
        let (begins, takes): (Vec<f64>, Vec<f64>) = times.into_iter().unzip();
        eprintln!(
            "  {verb:<6} {resource:<24} {each:>5.2} a change, {:>7.1} ms after it, {:>7.1} ms each",
            median(begins),
            median(takes)
        );
    }
    Ok(())
}

/// `None` where the log does not have the whole of it.
fn steps_of(change: &Change, requests: &[Request], ours: &[&Request], seen: i64) -> Option<Steps> {
    let write = requests.iter().rfind(|it| {
        it.user == CHANGER
            && (&*it.verb, &*it.resource) == ("patch", "secrets")
            && (&it.namespace, &it.name) == (&change.namespace, &change.secret)
    })?;
    // The watch may tell before the answer to the change is written.
    let since = |it: &&&Request| it.received >= write.received;
    let patch = ours.iter().filter(since).rfind(|it| {
        (&*it.verb, &*it.resource) == ("patch", "deployments") && it.name == change.deployment
    })?;
    let is_look =
        |it: &&&Request| matches!(&*it.verb, "get" | "list") && it.answered <= patch.received;
    let looks: Vec<_> = ours.iter().filter(since).filter(is_look).collect();
    let first = looks.iter().map(|it| it.received).min()?;
    let last = looks.iter().map(|it| it.answered).max()?;
    let slowest = looks
        .iter()
        .map(|it| milliseconds(it.received, it.answered))
        .fold(0.0, f64::max);
    Some(Steps {
        received: write.received,
        written: write.answered,
        each: [
            ("told", milliseconds(write.answered, first)),
            ("looked", milliseconds(first, last)),
            // Within the step before: what the API server took for the slowest of these requests.
            ("looked_slowest_request", slowest),
            ("planned", milliseconds(last, patch.received)),
            ("patched", milliseconds(patch.received, patch.answered)),
            ("seen", milliseconds(patch.answered, seen)),
        ],
    })
}

fn milliseconds(from: i64, to: i64) -> f64 {
    (to - from) as f64 / 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

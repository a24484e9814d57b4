//! What was asked of the API server since a mark, by its audit log.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};

use jiff::Timestamp;
use serde_json::Value;
use test_bench::{Bench, Operator, Result};

/// The last stage of a request.
const ANSWERED: &str = "ResponseComplete";

/// A place in the audit log.
pub(crate) struct Mark(u64);

/// Requests by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Everything but watches, leases and Events.
    pub(crate) requests: usize,
    /// Lists.
    pub(crate) lists: usize,
    /// Creates, patches, updates and deletes, Events aside.
    pub(crate) writes: usize,
    /// Writes of Events.
    pub(crate) events: usize,
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) user: String,
    pub(crate) verb: String,
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// When the API server had received it, in microseconds of Unix time.
    pub(crate) received: i64,
    /// When it had been answered.
    pub(crate) answered: i64,
}

/// The end of the log as it is now.
pub(crate) fn mark(bench: &Bench) -> Result<Mark> {
    Ok(Mark(
        std::fs::metadata(bench.directory().join("audit.log"))?.len(),
    ))
}

/// The Kubernetes user name of an operator.
pub(crate) fn user(operator: &Operator<'_>) -> String {
    format!("system:serviceaccount:{}:cert-renew", operator.namespace())
}

/// What the operator has asked for since.
pub(crate) fn since(bench: &Bench, operator: &Operator<'_>, mark: &Mark) -> Result<Counts> {
    since_by(bench, &user(operator), mark)
}

/// What a user has asked for since.
pub(crate) fn since_by(bench: &Bench, user: &str, mark: &Mark) -> Result<Counts> {
    let mut counts = Counts::default();
    each(bench, mark, user, |event| {
        let verb = event["verb"].as_str().unwrap_or_default();
        let write = matches!(verb, "create" | "update" | "patch" | "delete");
        match event["objectRef"]["resource"].as_str().unwrap_or_default() {
            "events" => counts.events += usize::from(write),
            "leases" => {}
            _ if verb == "watch" => {}
            _ => {
                counts.requests += 1;
                counts.lists += usize::from(verb == "list");
                counts.writes += usize::from(write);
            }
        }
    })?;
    Ok(counts)
}

/// What everybody has asked for since, in the order of the answers.
pub(crate) fn requests(bench: &Bench, mark: &Mark) -> Result<Vec<Request>> {
    let mut requests = Vec::new();
    each(bench, mark, ANSWERED, |event| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let at = |key: &str| {
            Some(
                event[key]
                    .as_str()?
                    .parse::<Timestamp>()
                    .ok()?
                    .as_microsecond(),
            )
        };
        let times = at("requestReceivedTimestamp").zip(at("stageTimestamp"));
        if let Some((received, answered)) = times.filter(|_| event["stage"] == ANSWERED) {
            let object = &event["objectRef"];
            requests.push(Request {
                user: text(&event["user"]["username"]),
                verb: text(&event["verb"]),
                resource: text(&object["resource"]),
                namespace: text(&object["namespace"]),
                name: text(&object["name"]),
                received,
                answered,
            });
        }
    })?;
    Ok(requests)
}

/// Calls `each` with what stands in the lines since the mark that contain a text.
fn each(bench: &Bench, mark: &Mark, text: &str, mut each: impl FnMut(&Value)) -> Result<()> {
    let mut file = File::open(bench.directory().join("audit.log"))?;
    file.seek(SeekFrom::Start(mark.0))?;
    for line in BufReader::new(file).lines() {
        let line = line?;
        if !line.contains(text) {
            continue;
        }
        // The last line may be half written.
        if let Ok(event) = serde_json::from_str::<Value>(&line) {
            each(&event);
        }
    }
    Ok(())
}

//! What was asked of the API server since a mark, by its audit log.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};

use serde_json::Value;
use test_bench::{Bench, Operator, Result};

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

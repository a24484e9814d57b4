//! Helpers for the tests of both crates. Compiled for tests only.

pub mod entries;
pub mod forge;
#[cfg(test)]
mod layers;
mod linear;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

pub use linear::{FACTOR, LENGTHS, slower_than_linear, slower_than_linear_in};

use crate::certificate::Fingerprint;
use crate::rollout::decode::Object;
use crate::rollout::workload::Workload;
use crate::rollout::{DueLeaf, How, Phase, RolloutReason, Step};
use crate::secret::parts::{ChainAndCa, Parts};
use crate::secret::workload::Kind;
use crate::time::UnixTime;

/// A certificate or key of the test data.
pub fn file(name: &str) -> Vec<u8> {
    let path = format!(
        "{}/../testdata/certificates/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The contents of a directory of the repository; empty if there is none.
pub fn files(directory: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(directory);
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    let read = paths.into_iter().filter(|path| path.is_file());
    read.filter_map(|path| fs::read(path).ok()).collect()
}

/// The workload from a JSON object of this kind.
#[must_use]
pub fn workload(kind: Kind, object: Value) -> Workload {
    let object: Object = serde_json::from_value(object).expect("any JSON object is one");
    object.read(kind)
}

/// Restarts a Deployment for these leaves, each with its Secret.
#[must_use]
pub fn step(name: &str, leaves: &[(&str, Fingerprint)]) -> Step {
    let due = |(secret, leaf): &(&str, Fingerprint)| DueLeaf {
        secret: (*secret).into(),
        leaf: *leaf,
        with: ChainAndCa::NONE,
        changed: Parts::ALL,
        written: None,
        why: RolloutReason::Named,
        again: false,
    };
    Step {
        workload: workload(Kind::Deployment, json!({"metadata": {"name": name}})),
        how: How::Restart,
        phase: Phase::Rest,
        halts: true,
        degraded: false,
        unwell: false,
        leaves: leaves.iter().map(due).collect(),
        urgency: UnixTime(0),
        not_before: UnixTime(0),
    }
}

/// The same for the same leaf of each of these Secrets.
#[must_use]
pub fn of_secrets(name: &str, secrets: &[&str]) -> Step {
    let leaves = secrets.iter().map(|secret| (*secret, Fingerprint([0; 32])));
    step(name, &leaves.collect::<Vec<_>>())
}

//! Rollouts: every workload that uses a Secret gets the leaf that the Secret holds, once, and is seen to be well.
//!
//! ```text
//! list ──► plan (pure) ──► roll: canary, then the rest ──► outcome for each Secret ──► the caller records it
//!                            └─ step: patch the template ─► watch until available (pods evicted where nobody replaces them)
//! ```
//! Inputs: the due Secrets of one namespace whose pairs were just found good ([`Request`]).
//! Pods and Jobs that nobody can roll are named by `bystanders`.
//! `verify` asks the pods behind a Service what they serve once all that is done; `reload` asks pods instead of replacing them.
//!
//! The one thing written is `state.cert-renew.io/leaf.<secret>` on pod templates (on an Argo Rollout: on itself, with
//! `spec.restartAt`), by guarded patches; the truth of how far a rollout has come stands there, so that it may be cut off
//! at any instant and planned again.

mod answered;
mod budget;
mod bystanders;
mod error;
mod evict;
mod handshake;
mod history;
mod lean;
mod listing;
mod looks;
mod plan;
mod pods;
mod progress;
mod queue;
mod references;
mod reload;
mod run;
mod state;
mod step;
mod steps;
mod verify;
mod wait;
mod wire;
mod workload;

pub use bystanders::{Bystander, by_secret, bystanders, leaves_behind, left_behind, unseen};
pub use error::{CALL_DEADLINE, Error};
pub use listing::list;
pub use looks::{Judge, Withdrawal};
pub use plan::{plan, using};
pub use progress::{Numbers, Progress, is_rolling, progress};
pub use references::{ChangedKeys, Reference, Via};
pub use reload::Asked;
pub use run::{Happening, Outcome, Roller, Rollout, Turn};
pub use state::{HaltNote, NotAHaltNote};
pub use steps::{Ask, Due, How, Phase, Plan, Remark, Request, Step, Verdict, Why};
pub use verify::{Pod, Proof, Verified, some_of};
pub use workload::{Carried, Status, Strategy, Workload, leaf_annotation};

/// Reads a workload or a pod of anybody's.
#[cfg(test)]
pub(crate) fn read(input: &[u8]) {
    use crate::secret::workload::Kind;
    for kind in [Kind::Deployment, Kind::Rollout] {
        let _ = serde_json::from_slice::<wire::Object>(input).map(|object| object.read(kind));
    }
    let _ = serde_json::from_slice::<pods::PodWire>(input).map(pods::PodWire::see);
    let _ = serde_json::from_slice::<bystanders::PodWire>(input).map(bystanders::PodWire::read);
}

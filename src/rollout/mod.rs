//! Rollouts: every workload that uses a Secret gets the leaf that the Secret holds, once, and is seen to be well.
//!
//! ```text
//! list ──► plan (pure) ──► roll: canary, then the rest ──► outcome for each Secret ──► the caller records it
//!                            └─ step: patch the template ─► watch until available (pods evicted where nobody replaces them)
//! ```
//! Inputs: the due Secrets of one namespace whose pairs were just found good ([`Request`](cert_renew_core::rollout::Request)).
//! `unmanaged` names the pods and Jobs that nothing can roll.
//! `verify` asks the pods behind a Service what they serve; `reload` asks pods to reload instead of replacing them.
//!
//! The only thing written is `state.cert-renew.io/leaf.<secret>` on pod templates (on an Argo Rollout: on itself, with
//! `spec.restartAt`), by guarded patches. It records how far a rollout has come, so that a rollout may be cut off at
//! any instant and planned again.

mod api;
mod concurrency;
mod error;
mod evict;
mod history;
mod listing;
mod looks;
pub mod permit;
mod pods;
mod reload;
mod run;
mod step;
mod tls_probe;
mod unmanaged;
mod verify;
mod wait;

pub use error::{CALL_DEADLINE, Error};
pub use listing::list;
pub use looks::{Judge, Withdrawal};
pub use reload::Asked;
pub use run::{Happening, Outcome, Roller, Rollout, Turn};
pub use unmanaged::{Unmanaged, by_secret, bystanders, leaves_behind, left_behind, unseen};
pub use verify::{Pod, Proof, Verified, some_of};

/// Decodes a workload or a pod from any input.
#[cfg(test)]
pub(crate) fn read(input: &[u8]) {
    use cert_renew_core::secret::workload::Kind;
    for kind in [Kind::Deployment, Kind::Rollout] {
        let _ = serde_json::from_slice::<cert_renew_core::rollout::decode::Object>(input)
            .map(|object| object.read(kind));
    }
    let _ = serde_json::from_slice::<pods::PodWire>(input).map(pods::PodWire::see);
    let _ = serde_json::from_slice::<unmanaged::PodWire>(input).map(unmanaged::PodWire::read);
}

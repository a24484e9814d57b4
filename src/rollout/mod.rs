//! Rollouts: every workload that uses a Secret gets the leaf that the Secret holds, once, and is seen to be well.
//!
//! ```text
//! batch: list and look ──► plan (pure) ──► roller: canary, then the rest ──► conclude each Secret and record it
//!                                            └─ step: patch the template ─► watch until available
//! ```
//! A batch is the rollouts of one namespace that are due together. `listing` reads its workloads and names the pods and
//! Jobs that nothing can roll. `verify` asks the pods behind a Service what they serve; `reload` asks pods to reload
//! instead of replacing them.
//!
//! The only thing written is `state.cert-renew.io/leaf.<secret>` on pod templates (on an Argo Rollout: on itself, with
//! `spec.restartAt`), by guarded patches. It records how far a rollout has come, so that a rollout may be cut off at
//! any instant and planned again.

mod batch;
mod error;
mod listing;
mod reload;
mod roller;
mod rollouts;
mod tls_probe;
mod verify;

pub use error::Error;
pub use listing::list;
pub use listing::unmanaged::{
    Unmanaged, by_id, by_secret, bystanders, leaves_behind, left_behind, unseen,
};
pub use reload::ReloadResult;
pub use roller::looks::{Judge, Withdrawal};
pub use roller::{Happening, Outcome, Roller, Rollout, Turn};
pub use rollouts::Rollouts;
pub use verify::{Pod, Proof, Verified, some_of};

/// Decodes a workload, a pod or a Job from any input.
#[cfg(test)]
pub(crate) fn read(input: &[u8]) {
    use cert_renew_core::secret::workload::Kind;
    for kind in [Kind::Deployment, Kind::Rollout] {
        let _ = serde_json::from_slice::<cert_renew_core::rollout::decode::Object>(input)
            .map(|object| object.read(kind));
    }
    let _ = serde_json::from_slice::<listing::pods::PodWire>(input).map(|pod| pod.see(Some("tls")));
    let _ = serde_json::from_slice::<listing::unmanaged::UnmanagedPodWire>(input)
        .map(listing::unmanaged::UnmanagedPodWire::read);
    let _ = serde_json::from_slice::<listing::unmanaged::JobWire>(input)
        .map(listing::unmanaged::JobWire::read);
}

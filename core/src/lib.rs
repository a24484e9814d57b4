//! What cert-renew decides, without doing anything: from the bytes of a Secret to facts, from facts to what is due, and
//! from workloads to a plan.
//!
//! Nothing here does I/O, and no runtime, HTTP client or Kubernetes client is among the dependencies: the compiler keeps
//! the plan. `now` is an argument; only the operator reads a clock.
//!
//! ```text
//! text, time ◄─ certificate ◄─ secret ◄─ schedule ◄─ config ◄─ index, rollout ◄─ assess
//! ```
//! Each module uses what stands to its left.

pub mod assess;
pub mod certificate;
pub mod config;
pub mod election;
pub mod index;
#[cfg(test)]
mod layers;
pub mod rollout;
pub mod schedule;
pub mod secret;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod time;

//! The decisions of cert-renew, without any effects: from the bytes of a Secret to facts, from facts to what is due,
//! and from workloads to a plan.
//!
//! Nothing here does I/O, and no runtime, HTTP client or Kubernetes client is among the dependencies, so the compiler
//! enforces it. `now` is an argument; only the operator reads a clock.
//!
//! ```text
//! text, time ◄─ certificate ◄─ secret ◄─ schedule ◄─ config ◄─ index, rollout ◄─ assess ◄─ verdict ◄─ declaration
//! ```
//! Each module uses only those to its left.

pub mod assess;
pub mod certificate;
pub mod config;
pub mod declaration;
pub mod election;
pub mod index;
pub mod rollout;
pub mod schedule;
pub mod secret;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod time;
pub mod verdict;

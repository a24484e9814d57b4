//! The pure half of rollouts: which workloads use a Secret, what to do about each, and how far it has come.
//!
//! ```text
//! wire ──► workload ──► plan: steps in phases ──► queue ──► progress
//! ```
//! The operator lists, patches and watches; nothing here does.

pub mod answered;
pub mod decode;
pub mod lean;
pub mod plan;
pub mod progress;
pub mod queue;
pub mod references;
pub mod state;
pub mod types;
pub mod workload;

pub use plan::allowance::Allowance;
pub use plan::{Lookup, plan, plan_within, users_of, using};
pub use progress::{Numbers, Progress, is_rolling, progress};
pub use references::{ChangedKeys, Reference, Via};
pub use state::{HaltNote, NotAHaltNote};
pub use types::{Ask, Decision, DueLeaf, How, Phase, Plan, Remark, Request, RolloutReason, Step};
pub use workload::{Carried, Status, Strategy, Workload, leaf_annotation};

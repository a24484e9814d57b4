//! How many bytes a plan may take: what a Secret adds is weighed before it is planned.
//!
//! A thousand Secrets may each name the same hundred workloads: what they name is bounded, the plan is their product.

use crate::rollout::types::{DueLeaf, Remark, Request, RolloutReason, Step};
use crate::rollout::workload::Workload;
use crate::secret::workload::{RolloutMode, WorkloadRef};

/// How many bytes a plan may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes for all Secrets of the plan together.
    pub for_all: usize,
    /// Bytes if one Secret alone is rolled out: its workloads cannot be divided.
    pub for_one: usize,
}

impl Allowance {
    /// For a plan of which only texts are made.
    pub const UNBOUNDED: Self = Self {
        for_all: usize::MAX,
        for_one: usize::MAX,
    };
}

/// What a plan takes so far.
pub(super) struct Taken {
    allowance: Allowance,
    bytes: usize,
}

impl Taken {
    pub(super) fn of(allowance: Allowance) -> Self {
        Self {
            allowance,
            bytes: 0,
        }
    }

    /// Takes room for one more Secret, the `first` that is rolled out or not: whether there is any.
    pub(super) fn take(&mut self, bytes: usize, first: bool) -> bool {
        let all = self.bytes.saturating_add(bytes);
        let fits = all <= self.allowance.for_all || (first && all <= self.allowance.for_one);
        if fits {
            self.bytes = all;
        }
        fits
    }
}

/// Bytes of the workloads that use a Secret, without the allocator's overhead.
#[must_use]
pub fn of_users(users: &[WorkloadRef]) -> usize {
    let each = users.iter().map(|it| it.name.len());
    each.map(|name| size_of::<WorkloadRef>() + name).sum()
}

/// Bytes of the remarks on a plan.
pub(super) fn of_remarks(remarks: &[Remark]) -> usize {
    remarks.iter().map(Remark::weight).sum()
}

/// Bytes that the steps of a Secret add to a plan: `is_new` says for which of its workloads there is no step yet.
pub(super) fn of_steps(
    request: &Request,
    concerned: &[(&Workload, RolloutReason)],
    is_new: impl Fn(&Workload) -> bool,
) -> usize {
    // A reload may have to be a restart, with a remark that says why.
    let way = match &request.mode {
        RolloutMode::Post { path, .. } => 2 * Step::of_ask(path) + size_of::<Remark>(),
        RolloutMode::Restart | RolloutMode::None => 0,
    };
    let each = concerned.iter().map(|(workload, why)| {
        let step = if is_new(workload) {
            Step::bare(workload)
        } else {
            0
        };
        step + DueLeaf::weight_of(&request.secret, why) + way
    });
    each.sum()
}

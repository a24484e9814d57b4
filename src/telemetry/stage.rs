//! What a log line of a renewal or a rollout says in its field `step`: traces and the view of one Secret read it there.

/// The step that has just ended, or how the work has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A renewal begins.
    Due,
    /// A recorded order is resumed.
    Wait,
    /// The order is made and recorded.
    Order,
    /// The CA has validated the names.
    Prove,
    /// The CA has issued the certificate.
    Finalize,
    /// The pair is in the Secret.
    Write,
    /// Further outputs are written from the pair that is there.
    Outputs,
    /// The pair is written in a form that servers can load.
    Rewritten,
    /// A rollout begins.
    Roll,
    /// A workload has the certificate, or failed.
    Workload,
    /// A workload, or a Secret, is not rolled yet.
    Waits,
    /// The pods are asked what they serve.
    Verify,
    /// All workloads have the certificate.
    Done,
    /// The Secret is seen for the first time: its workloads are recorded to have its certificate.
    Recorded,
    /// Some pods do not have the certificate yet.
    Incomplete,
    /// A workload failed, and the others keep their pods.
    Halted,
    /// The Secret has changed: this rollout is given up.
    Withdrawn,
    /// The renewal failed.
    Failed,
}

impl Stage {
    const ALL: [Self; 18] = [
        Self::Due,
        Self::Wait,
        Self::Order,
        Self::Prove,
        Self::Finalize,
        Self::Write,
        Self::Outputs,
        Self::Rewritten,
        Self::Roll,
        Self::Workload,
        Self::Waits,
        Self::Verify,
        Self::Done,
        Self::Recorded,
        Self::Incomplete,
        Self::Halted,
        Self::Withdrawn,
        Self::Failed,
    ];

    /// As the field `step` has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Wait => "wait",
            Self::Order => "order",
            Self::Prove => "prove",
            Self::Finalize => "finalize",
            Self::Write => "write",
            Self::Outputs => "outputs",
            Self::Rewritten => "rewritten",
            Self::Roll => "roll",
            Self::Workload => "workload",
            Self::Waits => "waits",
            Self::Verify => "verify",
            Self::Done => "done",
            Self::Recorded => "recorded",
            Self::Incomplete => "incomplete",
            Self::Halted => "halted",
            Self::Withdrawn => "withdrawn",
            Self::Failed => "failed",
        }
    }

    /// The stage of that name.
    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Whether nothing is under way after it.
    pub(super) fn is_last(self) -> bool {
        matches!(
            self,
            Self::Done
                | Self::Recorded
                | Self::Incomplete
                | Self::Halted
                | Self::Withdrawn
                | Self::Failed
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_stage_is_found_by_its_name() {
        let names: BTreeSet<_> = Stage::ALL.map(Stage::name).into();
        assert_eq!(names.len(), Stage::ALL.len());
        for stage in Stage::ALL {
            assert_eq!(Stage::of(stage.name()), Some(stage));
        }
        assert_eq!(Stage::of("later"), None);
    }
}

//! How far a workload's rollout has come, as its controller reports it.
//!
//! Pure. It judges one observation; the caller judges how long nothing may move.

use std::fmt;

use super::workload::{Status, Strategy, Workload};
use crate::secret::workload::Kind;

/// What one observation of a workload says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No pod of an older template is left, and as many are available as should be.
    Done,
    /// Everything that its controller replaces for now is replaced and available. Pods of an older template are left:
    /// those below a StatefulSet's partition, or on nodes that were dead before.
    Held(Numbers),
    /// Not finished yet.
    Moving(Numbers),
    /// The Deployment's controller has given up: `ProgressDeadlineExceeded`.
    Stuck(Numbers),
}

/// The pods of a rollout, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Number of pods that should have the present template.
    pub target: i64,
    /// Number of pods that have it.
    pub updated: i64,
    /// Number of pods that are available, of either template.
    pub available: i64,
    /// Number of pods of an older template. A ReplicationController and a ReplicaSet do not know them; for a Rollout,
    /// all pods before the end of its restart.
    pub older: i64,
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            target,
            updated,
            available,
            older,
        } = self;
        write!(f, "{updated} of {target} updated, {available} available")?;
        if *older > 0 {
            write!(f, ", {older} with an earlier certificate")
        } else {
            Ok(())
        }
    }
}

/// Judges one observation.
///
/// `missing_before` pods of a DaemonSet were unavailable before the rollout began and are not waited for: those of dead
/// nodes, which cannot be replaced.
#[must_use]
pub fn progress(workload: &Workload, missing_before: i64) -> Progress {
    let numbers = numbers(workload);
    let Numbers {
        target,
        updated,
        available,
        older,
    } = numbers;
    let Status {
        observed,
        wanted,
        total,
        revision_reached,
        deadline_exceeded,
        ..
    } = workload.status;
    let rests = match workload.id.kind {
        Kind::Deployment => updated >= target && older == 0 && available >= wanted,
        // While a partition holds pods back, or with OnDelete, the current revision stays the old one.
        Kind::StatefulSet => {
            let whole = target == wanted && target > 0 && workload.strategy != Strategy::OnDelete;
            updated >= target && available >= wanted && (revision_reached || !whole)
        }
        Kind::DaemonSet => {
            updated >= target - missing_before
                && available >= wanted - missing_before
                && older <= missing_before
        }
        Kind::ReplicationController | Kind::ReplicaSet => total == wanted && available >= wanted,
        Kind::Rollout => revision_reached && available >= wanted,
    };
    match (observed, rests, deadline_exceeded) {
        (true, true, _) if older == 0 => Progress::Done,
        (true, true, _) => Progress::Held(numbers),
        (true, false, true) => Progress::Stuck(numbers),
        _ => Progress::Moving(numbers),
    }
}

/// Whether the workload's controller is replacing pods now, for any reason. For a Rollout only a restart counts: a new
/// version may wait for approval for days.
#[must_use]
pub fn is_rolling(workload: &Workload) -> bool {
    if workload.strategy == Strategy::OnDelete || workload.paused {
        return false;
    }
    let Numbers {
        target,
        updated,
        older,
        ..
    } = numbers(workload);
    let Status {
        observed,
        deadline_exceeded,
        ..
    } = workload.status;
    let replacing = updated < target || (workload.id.kind == Kind::Deployment && older > 0);
    !observed || (replacing && !deadline_exceeded)
}

/// The numbers of pods that the controller reports.
#[must_use]
pub fn numbers(workload: &Workload) -> Numbers {
    let Status {
        observed,
        wanted,
        total,
        updated,
        available,
        ..
    } = workload.status;
    // Until the controller has seen the template, it counts the pods of the former one.
    let updated = if observed { updated } else { 0 };
    let held = match workload.strategy {
        Strategy::Rolling { partition } => partition,
        Strategy::OnDelete => 0,
    };
    let older = match workload.id.kind {
        Kind::Rollout if observed && workload.status.revision_reached => 0,
        _ => (total - updated).max(0),
    };
    Numbers {
        target: (wanted - held).max(0),
        updated,
        available,
        older,
    }
}

/// The best observation of a rollout so far. Only a better one is progress, so a pod that keeps crashing and coming
/// back is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Best {
    seen: Option<Numbers>,
    /// Pods that have become available one after another during the restart.
    risen: i64,
    /// Available pods at the last look.
    available: i64,
}

impl Best {
    /// Adds an observation; returns whether it is better than all before it in any respect. The first one is.
    pub fn surpassed_by(&mut self, seen: Numbers) -> bool {
        let Some(best) = self.seen else {
            self.seen = Some(seen);
            return true;
        };
        let now = Numbers {
            target: seen.target,
            updated: best.updated.max(seen.updated),
            available: best.available.max(seen.available),
            older: best.older.min(seen.older),
        };
        self.seen = Some(now);
        now != Numbers {
            target: seen.target,
            ..best
        }
    }

    /// The same for a Rollout that restarts. It does not report how many pods are left, only that some are missing and
    /// then back: each that comes back is progress, at most as often as there are pods.
    pub fn risen_by(&mut self, seen: Numbers) -> bool {
        let first = self.seen.is_none();
        let more = (seen.available - self.available).max(0);
        self.available = seen.available;
        if first {
            self.seen = Some(seen);
            return true;
        }
        let before = self.risen;
        self.risen += more;
        self.risen > before && before < seen.target
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::workload;

    /// The verdict for an object with this spec and status: `done`, `moving` or `stuck`.
    fn judged(kind: Kind, spec: Value, status: Value, missing: i64) -> &'static str {
        let object =
            json!({"metadata": {"name": "x", "generation": 2}, "spec": spec, "status": status});
        match progress(&workload(kind, object), missing) {
            Progress::Done => "done",
            Progress::Held(_) => "held",
            Progress::Moving(_) => "moving",
            Progress::Stuck(_) => "stuck",
        }
    }

    #[test]
    fn deployments() {
        let status = |observed: i64, total: i64, updated: i64, available: i64| json!({"observedGeneration": observed, "replicas": total, "updatedReplicas": updated, "availableReplicas": available});
        for (status, expected) in [
            (status(1, 3, 3, 3), "moving"),
            (status(2, 3, 2, 3), "moving"),
            (status(2, 4, 3, 3), "moving"),
            (status(2, 3, 3, 2), "moving"),
            (status(2, 3, 3, 3), "done"),
        ] {
            assert_eq!(
                judged(Kind::Deployment, json!({"replicas": 3}), status.clone(), 0),
                expected,
                "{status}"
            );
        }
        let gone = json!({"observedGeneration": 2});
        assert_eq!(
            judged(Kind::Deployment, json!({"replicas": 0}), gone, 0),
            "done"
        );
        // Its controller still reports the former template.
        let seen = json!({"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status(1, 3, 3, 3)});
        let numbers = numbers(&workload(Kind::Deployment, seen));
        assert_eq!((numbers.updated, numbers.older), (0, 3));
        let given_up = |observed: i64| {
            json!({"observedGeneration": observed, "replicas": 4, "updatedReplicas": 1, "availableReplicas": 3, "conditions": [
                {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]})
        };
        assert_eq!(
            judged(Kind::Deployment, json!({"replicas": 3}), given_up(2), 0),
            "stuck"
        );
        // The controller's report on the former generation is no verdict on this one.
        assert_eq!(
            judged(Kind::Deployment, json!({"replicas": 3}), given_up(1), 0),
            "moving"
        );
    }

    #[test]
    fn stateful_sets() {
        let status = |updated: i64, available: i64, reached: bool| {
            json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": updated, "availableReplicas": available,
                "currentRevision": "a", "updateRevision": if reached { "a" } else { "b" }})
        };
        let spec = |strategy: Value| json!({"replicas": 3, "updateStrategy": strategy});
        let partition =
            |n: i64| spec(json!({"type": "RollingUpdate", "rollingUpdate": {"partition": n}}));
        for (spec, status, expected) in [
            (partition(0), status(2, 3, false), "moving"),
            (partition(0), status(3, 3, false), "moving"),
            (partition(0), status(3, 2, true), "moving"),
            (partition(0), status(3, 3, true), "done"),
            (partition(2), status(0, 3, false), "moving"),
            (partition(2), status(1, 2, false), "moving"),
            (partition(2), status(1, 3, false), "held"),
            (partition(9), status(0, 3, false), "held"),
            // All have the template although the partition would have held some back.
            (partition(2), status(3, 3, true), "done"),
            (
                spec(json!({"type": "OnDelete"})),
                status(2, 3, false),
                "moving",
            ),
            (
                spec(json!({"type": "OnDelete"})),
                status(3, 3, false),
                "done",
            ),
        ] {
            assert_eq!(
                judged(Kind::StatefulSet, spec.clone(), status.clone(), 0),
                expected,
                "{spec} {status}"
            );
        }
        let none = json!({"observedGeneration": 2, "currentRevision": "a", "updateRevision": "b"});
        assert_eq!(
            judged(Kind::StatefulSet, json!({"replicas": 0}), none, 0),
            "done"
        );
    }

    #[test]
    fn daemon_sets() {
        let status = |updated: i64, available: i64| {
            json!({"observedGeneration": 2, "desiredNumberScheduled": 5, "currentNumberScheduled": 5,
                "updatedNumberScheduled": updated, "numberAvailable": available})
        };
        for (status, missing, expected) in [
            (status(4, 5), 0, "moving"),
            (status(5, 4), 0, "moving"),
            (status(5, 5), 0, "done"),
            (status(4, 4), 0, "moving"),
            (status(4, 4), 1, "held"),
            (status(5, 4), 1, "done"),
            (status(4, 3), 1, "moving"),
            // None was available before: that says nothing about their certificate.
            (status(0, 0), 5, "held"),
            (status(5, 0), 5, "done"),
        ] {
            assert_eq!(
                judged(Kind::DaemonSet, json!({}), status.clone(), missing),
                expected,
                "{status} {missing}"
            );
        }
        assert_eq!(
            judged(
                Kind::DaemonSet,
                json!({}),
                json!({"observedGeneration": 2}),
                0
            ),
            "done"
        );
    }

    #[test]
    fn replication_controllers_and_replica_sets() {
        for (total, available, expected) in [
            (2, 2, "done"),
            (1, 1, "moving"),
            (2, 1, "moving"),
            (3, 3, "moving"),
        ] {
            let status =
                json!({"observedGeneration": 2, "replicas": total, "availableReplicas": available});
            for kind in [Kind::ReplicationController, Kind::ReplicaSet] {
                let judged = judged(kind, json!({"replicas": 2}), status.clone(), 0);
                assert_eq!(judged, expected);
            }
        }
    }

    #[test]
    fn rollouts_of_argo() {
        let at = |minute: u8| format!("2026-01-01T00:0{minute}:00Z");
        let spec = |asked: u8| json!({"replicas": 3, "restartAt": at(asked), "paused": true});
        let status = |observed: &str, available: i64, restarted: u8| {
            json!({"observedGeneration": observed, "replicas": 4, "updatedReplicas": 1, "availableReplicas": available,
                "restartedAt": at(restarted)})
        };
        for (spec, status, expected) in [
            (spec(2), status("2", 3, 1), "moving"),
            (spec(2), status("1", 3, 2), "moving"),
            (spec(2), status("8c4f", 3, 2), "moving"),
            (spec(2), status("2", 2, 2), "moving"),
            (spec(2), status("2", 3, 2), "done"),
            // Never restarted; a new version that waits for its next step does not matter here.
            (
                json!({"replicas": 3}),
                json!({"observedGeneration": "2", "availableReplicas": 3}),
                "done",
            ),
        ] {
            let judged = judged(Kind::Rollout, spec.clone(), status.clone(), 0);
            assert_eq!(judged, expected, "{spec} {status}");
        }
    }

    #[test]
    fn a_rollout_by_somebody_else_is_seen() {
        let deployment = |spec: Value, updated: i64, total: i64, observed: i64| {
            let status = json!({"observedGeneration": observed, "replicas": total, "updatedReplicas": updated, "availableReplicas": 3});
            workload(
                Kind::Deployment,
                json!({"metadata": {"generation": 2}, "spec": spec, "status": status}),
            )
        };
        let spec = || json!({"replicas": 3});
        for (updated, total, observed, expected) in [
            (3, 3, 2, false),
            (1, 3, 2, true),
            (3, 4, 2, true),
            (3, 3, 1, true),
        ] {
            let seen = is_rolling(&deployment(spec(), updated, total, observed));
            assert_eq!(seen, expected, "{updated} {total} {observed}");
        }
        assert!(!is_rolling(&deployment(
            json!({"replicas": 3, "paused": true}),
            1,
            3,
            2
        )));
    }

    #[test]
    fn only_a_new_best_is_progress() {
        let numbers = |updated, available, older| Numbers {
            target: 3,
            updated,
            available,
            older,
        };
        let mut best = Best::default();
        for (seen, expected) in [
            (numbers(0, 3, 0), true),
            (numbers(0, 3, 0), false),
            (numbers(1, 2, 1), true),
            // A crash loop: available pods go down and come back to the same number.
            (numbers(1, 3, 1), false),
            (numbers(1, 2, 1), false),
            (numbers(2, 2, 1), true),
            (numbers(2, 2, 2), false),
        ] {
            assert_eq!(best.surpassed_by(seen), expected, "{seen:?}");
        }
        // A restarting Rollout: one pod after another is missing and back; an endlessly flapping one is soon no
        // progress.
        let mut best = Best::default();
        for (available, expected) in [
            (3, true),
            (3, false),
            (2, false),
            (3, true),
            (2, false),
            (2, false),
            (3, true),
            (1, false),
            (2, true),
            (3, false),
            (2, false),
            (3, false),
        ] {
            assert_eq!(
                best.risen_by(numbers(0, available, 3)),
                expected,
                "{available}"
            );
        }
    }
}

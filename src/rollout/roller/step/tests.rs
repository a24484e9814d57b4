use cert_renew_core::certificate::Fingerprint;
use cert_renew_core::rollout::{Phase, RolloutReason};
use cert_renew_core::secret::parts::{ChainAndCa, Parts};
use cert_renew_core::testing::workload;

use super::*;

#[test]
fn what_rolls_for_an_earlier_leaf_of_ours_is_not_waited_for() {
    let (leaf, earlier) = (Fingerprint::of(b"leaf"), Fingerprint::of(b"earlier"));
    let managed = |minute: u8, fields: Value| json!({"manager": "m", "time": format!("2026-01-01T00:0{minute}:00Z"), "fieldsV1": {"f:spec": {"f:template": fields}}});
    let ours = |minute| {
        let key = "f:state.cert-renew.io/leaf.tls";
        managed(minute, json!({"f:metadata": {"f:annotations": {key: {}}}}))
    };
    let theirs = |minute| managed(minute, json!({"f:spec": {}}));
    for (carries, fields, expected) in [
        (Some(earlier), vec![theirs(1), ours(2)], true),
        (Some(earlier), vec![theirs(3), ours(2)], false),
        (Some(leaf), vec![theirs(1), ours(2)], false),
        (None, vec![theirs(1), ours(2)], false),
    ] {
        let key = leaf_annotation("tls");
        let annotations = carries.map(|leaf| json!({key: leaf.to_string()}));
        let object = json!({"metadata": {"name": "web", "managedFields": fields},
            "spec": {"template": {"metadata": {"annotations": annotations}}}});
        let step = Step {
            workload: workload(Kind::Deployment, object),
            how: How::Restart,
            phase: Phase::Rest,
            halts: true,
            degraded: false,
            unwell: false,
            leaves: vec![DueLeaf {
                secret: "tls".into(),
                leaf,
                with: ChainAndCa::NONE,
                changed: Parts::ALL,
                written: None,
                why: RolloutReason::Named,
                again: false,
            }],
            urgency: UnixTime(0),
            not_before: UnixTime(0),
        };
        assert_eq!(
            rolls_for_an_earlier(&step, &step.workload),
            expected,
            "{carries:?}"
        );
    }
}

/// The patch of a workload for Secrets that were written then, by our clock `now`.
fn patch(kind: Kind, now: i64, written: &[Option<i64>]) -> Value {
    let due = |(number, written): (usize, &Option<i64>)| DueLeaf {
        secret: format!("tls-{number}").into(),
        leaf: Fingerprint::of(b"leaf"),
        with: ChainAndCa::NONE,
        changed: Parts::ALL,
        written: written.map(UnixTime),
        why: RolloutReason::Named,
        again: false,
    };
    let object = json!({"metadata": {"name": "web", "uid": "u", "resourceVersion": "7"}});
    let step = Step {
        workload: workload(kind, object),
        how: How::Restart,
        phase: Phase::Rest,
        halts: true,
        degraded: false,
        unwell: false,
        leaves: written.iter().enumerate().map(due).collect(),
        urgency: UnixTime(0),
        not_before: UnixTime(0),
    };
    body(&step, &step.workload, UnixTime(now))
}

#[test]
fn a_rollout_is_restarted_and_all_others_get_a_new_template() {
    let value = format!("{}.0000000000000000", Fingerprint::of(b"leaf"));
    let annotations = json!({"state.cert-renew.io/leaf.tls-0": value});
    let guarded = json!({"uid": "u", "resourceVersion": "7"});
    assert_eq!(
        patch(Kind::ReplicaSet, 9, &[Some(5)]),
        json!({"metadata": guarded, "spec": {"template": {"metadata": {"annotations": annotations}}}})
    );
    for (now, written, restart_at) in [
        (9, None, "1970-01-01T00:00:09Z"),
        (9, Some(5), "1970-01-01T00:00:09Z"),
        (9, Some(9), "1970-01-01T00:00:11Z"),
        (9, Some(12), "1970-01-01T00:00:14Z"),
        (9, Some(4_070_908_800), "1970-01-01T00:00:09Z"),
    ] {
        let metadata = json!({"uid": "u", "resourceVersion": "7", "annotations": annotations});
        assert_eq!(
            patch(Kind::Rollout, now, &[written]),
            json!({"metadata": metadata, "spec": {"restartAt": restart_at}})
        );
    }
}

/// Argo Rollouts restarts nothing before `restartAt`: anybody who may edit a Secret could put that off for ever.
#[test]
fn a_rollout_is_not_put_off_by_a_write_of_the_far_future_nor_is_what_was_written_beside_it_lost() {
    let lie = Some(4_070_908_800);
    for (written, restart_at) in [
        // Five minutes are believed, and not a second more.
        (vec![Some(309)], "1970-01-01T00:05:11Z"),
        (vec![Some(310)], "1970-01-01T00:00:09Z"),
        // The lie of one Secret hides no other one, whichever is first.
        (vec![lie, Some(12)], "1970-01-01T00:00:14Z"),
        (vec![Some(12), lie], "1970-01-01T00:00:14Z"),
    ] {
        let patched = patch(Kind::Rollout, 9, &written);
        assert_eq!(patched["spec"]["restartAt"], restart_at, "{written:?}");
    }
}

/// Otherwise it would halt again after each `resume`, although a person has replaced all pods.
#[test]
fn a_workload_of_too_many_pods_is_done_once_all_of_them_were_started_since() {
    let took = Duration::from_secs(7);
    let older = || Ended::Incomplete("too many".into());
    let newer = || Ended::Unavailable("too many; all of them were started since".into());
    let ended = not_evicted(older(), 0, took);
    assert!(matches!(ended, Ended::Failed(why, Consequence::Alone) if why == "too many"));
    let ended = not_evicted(newer(), 0, took);
    assert!(matches!(ended, Ended::Rolled(it) if it == took));
    let ended = not_evicted(newer(), 2, took);
    let expected = "2 pods not available; all were started since";
    assert!(matches!(ended, Ended::Unavailable(why) if why == expected));
}

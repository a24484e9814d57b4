//! What holds a rollout: a halt until it ends, and the rest between two rollouts of a workload.

use super::*;

#[test]
fn a_halt_stands_until_one_of_its_ends() {
    let note = |resumed: bool, text: &str| {
        Some(HaltNote {
            workload: "deployment/a".parse().unwrap(),
            leaf: leaf(text),
            with: None,
            resumed,
        })
    };
    let failed = || broken(web("a", &["tls"], &[("tls", "new")]));
    let recovered = || web("a", &["tls"], &[("tls", "new")]);
    let other = || web("b", &["tls"], &[]);
    for (why, halted, rolled_out, objects, stands) in [
        (
            "as it was",
            note(false, "new"),
            served("old", 9),
            vec![failed(), other()],
            true,
        ),
        (
            "what is served is unknown",
            note(false, "new"),
            Some(RolledOut::None),
            vec![failed(), other()],
            true,
        ),
        (
            "resumed",
            note(true, "new"),
            served("old", 9),
            vec![failed(), other()],
            false,
        ),
        (
            "a newer leaf",
            note(false, "newer"),
            served("old", 9),
            vec![failed(), other()],
            false,
        ),
        (
            "another CA beside it",
            note(false, "new").map(|note| HaltNote {
                with: Some(ChainAndCa { chain: 1, ca: 3 }),
                ..note
            }),
            served("old", 9),
            vec![failed(), other()],
            false,
        ),
        (
            "what was tried, as this version notes it",
            note(false, "new").map(|note| HaltNote {
                with: Some(BESIDE),
                ..note
            }),
            served("old", 9),
            vec![failed(), other()],
            true,
        ),
        (
            "the others serve an expired one",
            note(false, "new"),
            served("old", 0),
            vec![failed(), other()],
            false,
        ),
        (
            "recovered",
            note(false, "new"),
            served("old", 9),
            vec![recovered(), other()],
            false,
        ),
        (
            "gone",
            note(false, "new"),
            served("old", 9),
            vec![other()],
            false,
        ),
    ] {
        let due = Request {
            halted: halted.clone(),
            ..request("tls", "new", rolled_out)
        };
        let expected = if stands {
            Decision::Halted(halted.unwrap())
        } else {
            Decision::Roll
        };
        assert_eq!(verdict_of(due, objects), expected, "{why}");
    }
    // Once overruled, the failed one is tried last and stops no others.
    let due = Request {
        halted: note(true, "new"),
        ..request("tls", "new", served("old", 9))
    };
    let plan = planned(&[due], vec![failed(), other()]);
    assert_eq!(names(&plan), [("b", Phase::Rest), ("a", Phase::Last)]);
    assert!(!plan.steps[1].halts);
}

#[test]
fn a_workload_rests_between_two_rollouts() {
    let managed = json!([{"time": "2026-01-03T00:00:00Z", "fieldsV1": {"f:spec": {"f:template": {
        "f:metadata": {"f:annotations": {"f:state.cert-renew.io/leaf.tls": {}}}}}}}]);
    let object = with(
        web("a", &["tls"], &[("tls", "old")]),
        &[("/metadata/managedFields", managed)],
    );
    let plan = planned(&[request("tls", "new", served("old", 9))], vec![object]);
    assert_eq!(plan.steps[0].not_before.to_string(), "2026-01-03T00:05:00Z");
}

#[test]
fn what_failed_with_an_earlier_leaf_does_not_rest_before_the_one_that_mends_it() {
    let rolled_at = NOW - Duration::from_secs(10);
    let of = |updated: i64, total: i64, available: i64, failed: Option<&str>| {
        let mut web = workload(Kind::Deployment, web("a", &["tls"], &[("tls", "bad")]));
        web.rolled_at = Some(rolled_at);
        web.status.updated = updated;
        web.status.total = total;
        web.status.available = available;
        let halted = failed.map(|name| HaltNote {
            workload: format!("deployment/{name}").parse().unwrap(),
            leaf: leaf("bad"),
            with: None,
            resumed: false,
        });
        let due = [Request {
            halted,
            ..request("tls", "new", served("old", 9))
        }];
        let plan = plan(NOW, &due, &[web], &RolloutConfig::default());
        plan.steps[0].not_before
    };
    let rested = rolled_at + Duration::from_secs(300);
    assert_eq!(of(2, 2, 2, None), rested, "it came up");
    assert_eq!(of(1, 3, 3, None), rested, "one pod came up");
    assert_eq!(of(1, 3, 2, None), rolled_at + UNPROVEN, "none came up yet");
    assert_eq!(of(1, 3, 2, Some("a")), NOW, "it halted the rollout");
    assert_eq!(of(2, 2, 2, Some("b")), rested, "another one did");
}

/// Users may write managedFields.
#[test]
fn a_workload_that_says_it_was_rolled_in_the_future_rests_no_longer_than_others() {
    let config = RolloutConfig {
        canary_bake: Duration::from_secs(3_600),
        ..RolloutConfig::default()
    };
    let mut web = [("a", "new"), ("b", "old")]
        .map(|(name, had)| workload(Kind::Deployment, web(name, &["tls"], &[("tls", had)])));
    for (at, waits) in [(NOW, 3_600), (UnixTime(4_070_908_800), 3_600)] {
        web[0].rolled_at = Some(at);
        let due = [request("tls", "new", served("old", 9))];
        let plan = plan(NOW, &due, &web, &config);
        assert_eq!(plan.steps[0].not_before, UnixTime(NOW.0 + waits), "{at}");
    }
    web[1].rolled_at = Some(UnixTime(4_070_908_800));
    let due = [request("tls", "new", served("old", 9))];
    let plan = plan(NOW, &due, &web[1..], &RolloutConfig::default());
    assert_eq!(plan.steps[0].not_before, UnixTime(NOW.0 + 300));
}

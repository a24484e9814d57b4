//! Which workload goes first, which are awaited, and what was not well before.

use super::*;

#[test]
fn a_canary_goes_on_baking_after_a_restart_of_the_operator() {
    let bake = Duration::from_secs(300);
    let config = RolloutConfig {
        canary_bake: bake,
        ..RolloutConfig::default()
    };
    let mut canary = workload(Kind::Deployment, web("a", &["tls"], &[("tls", "new")]));
    canary.rolled_at = Some(NOW);
    let rest = workload(Kind::Deployment, web("b", &["tls"], &[]));
    let request = request("tls", "new", served("old", 9));
    let plan = plan(NOW, &[request], &[canary, rest], &config);
    let waits: Vec<UnixTime> = plan.steps.iter().map(|step| step.not_before).collect();
    assert_eq!(waits, [NOW + bake]);
}

/// Anybody who may edit a Secret may take its record away, or write that there is none.
#[test]
fn a_secret_without_a_record_is_not_urgent() {
    let requests = [
        request("a", "new", None),
        request("b", "new", Some(RolledOut::None)),
        request("c", "new", served("old", 9)),
    ];
    let urgent: Vec<bool> = requests
        .iter()
        .map(|request| request.served_until() < UnixTime::NEVER)
        .collect();
    assert_eq!(urgent, [false, false, true]);
    let objects = ["a", "b", "c"].map(|name| web(name, &[name], &[(name, "older")]));
    let plan = planned(&requests, objects.into());
    let order: Vec<&str> = plan.steps.iter().map(|it| &*it.workload.id.name).collect();
    assert_eq!(order.first(), Some(&"c"), "{order:?}");
    assert_eq!(plan.steps[1].urgency, UnixTime::NEVER);
}

#[test]
fn one_canary_then_the_rest_then_the_broken() {
    let objects = vec![
        broken(web("a-broken", &["tls"], &[])),
        with(
            web("b-empty", &["tls"], &[]),
            &[
                ("/spec/replicas", json!(0)),
                ("/status", json!({"observedGeneration": 1})),
            ],
        ),
        web("c", &["tls"], &[]),
        web("d", &["tls"], &[]),
        with(
            web("e-paused", &["tls"], &[]),
            &[("/spec/paused", json!(true))],
        ),
        web("f-other", &["x"], &[]),
    ];
    let plan = planned(&[request("tls", "new", served("old", 9))], objects);
    let expected = [
        ("c", Phase::Canary),
        ("b-empty", Phase::Rest),
        ("d", Phase::Rest),
        ("a-broken", Phase::Last),
        ("e-paused", Phase::Last),
    ];
    assert_eq!(names(&plan), expected);
    let halting: Vec<bool> = plan.steps.iter().map(|step| step.halts).collect();
    assert_eq!(halting, [true, true, true, false, false]);
}

#[test]
fn one_restart_serves_all_its_secrets() {
    let requests = [
        request("one", "n1", served("o1", 9)),
        request("two", "n2", served("o2", 3)),
    ];
    let objects = vec![
        web("a", &["one"], &[]),
        web("b", &["one", "two"], &[]),
        web("c", &["two"], &[]),
    ];
    let plan = planned(&requests, objects);
    // The one that serves both is the canary of both; then the nearer expiry goes first.
    assert_eq!(
        names(&plan),
        [("b", Phase::Canary), ("c", Phase::Rest), ("a", Phase::Rest)]
    );
    let served: Vec<&str> = plan.steps[0]
        .leaves
        .iter()
        .map(|due| &*due.secret)
        .collect();
    assert_eq!(served, ["one", "two"]);
    assert_eq!(plan.steps[0].urgency, UnixTime(NOW.0 + 3 * 3_600));
}

#[test]
fn what_was_rolled_before_a_crash_is_awaited_not_repeated() {
    let rolling = with(
        web("b", &["tls"], &[("tls", "new")]),
        &[("/status/updatedReplicas", json!(1))],
    );
    let objects = vec![
        web("a", &["tls"], &[]),
        rolling.clone(),
        web("c", &["tls"], &[("tls", "new")]),
    ];
    let due = || request("tls", "new", served("old", 9));
    let plan = planned(&[due()], objects);
    assert_eq!(names(&plan), [("b", Phase::Canary), ("a", Phase::Rest)]);
    assert!(plan.steps[0].is_carried_by(&plan.steps[0].workload) && plan.steps[0].halts);
    // Unavailable before the Secret was written: known even after a crash, by its condition.
    for (since, phase) in [
        ("2026-01-01T00:00:00Z", Phase::Last),
        ("2029-01-01T00:00:00Z", Phase::Canary),
    ] {
        let condition =
            json!([{"type": "Available", "status": "False", "lastTransitionTime": since}]);
        let plan = planned(
            &[due()],
            vec![with(rolling.clone(), &[("/status/conditions", condition)])],
        );
        assert_eq!(names(&plan), [("b", phase)]);
    }
    // Everything was done before the crash: only the record is left.
    let plan = planned(&[due()], vec![web("c", &["tls"], &[("tls", "new")])]);
    assert_eq!(
        (plan.steps.len(), &plan.verdicts[0].1),
        (0, &Decision::Roll)
    );
}

#[test]
fn where_none_was_well_before_the_first_goes_alone_all_the_same() {
    let due = || request("tls", "new", served("old", 9));
    let unwell = |name: &str| broken(web(name, &["tls"], &[]));
    let paused = with(unwell("a"), &[("/spec/paused", json!(true))]);
    let said = |plan: &Plan| -> Vec<(String, Phase, bool)> {
        let steps = plan.steps.iter();
        let said = steps.map(|it| (it.workload.id.name.to_string(), it.phase, it.degraded));
        said.collect()
    };
    let row = |name: &str, phase, degraded| (name.to_owned(), phase, degraded);
    let plan = planned(&[due()], vec![paused, unwell("b"), unwell("c")]);
    let expected = [
        row("b", Phase::Canary, true),
        row("a", Phase::Last, false),
        row("c", Phase::Last, false),
    ];
    assert_eq!(said(&plan), expected);
    assert!(plan.steps.iter().all(|step| !step.halts));
    // No workload follows, or a healthy one goes first.
    let plan = planned(&[due()], vec![unwell("b")]);
    assert_eq!(said(&plan), [row("b", Phase::Last, false)]);
    let plan = planned(&[due()], vec![unwell("b"), web("c", &["tls"], &[])]);
    let expected = [row("c", Phase::Canary, false), row("b", Phase::Last, false)];
    assert_eq!(said(&plan), expected);
    // An earlier look found it unhealthy: once is enough.
    let known = Request {
        unwell: vec!["deployment/b".parse().unwrap()],
        ..due()
    };
    let plan = planned(&[known], vec![unwell("b"), unwell("c")]);
    let expected = [row("c", Phase::Canary, true), row("b", Phase::Last, false)];
    assert_eq!(said(&plan), expected);
}

#[test]
fn what_was_not_well_before_is_not_taken_for_a_failure_at_a_later_look() {
    let carrying = |updated: i64| {
        let status = json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": updated, "availableReplicas": 1,
            "currentRevision": "a", "updateRevision": "b"});
        let object = with(
            web("db", &["tls"], &[("tls", "new")]),
            &[("/status", status)],
        );
        workload(Kind::StatefulSet, object)
    };
    let steps = |unwell: &[&str], updated: i64| {
        let due = Request {
            unwell: unwell.iter().map(|name| name.parse().unwrap()).collect(),
            ..request("tls", "new", served("old", 9))
        };
        let plan = plan(NOW, &[due], &[carrying(updated)], &RolloutConfig::default());
        plan.steps.iter().map(|step| step.halts).collect::<Vec<_>>()
    };
    assert_eq!(steps(&[], 1), [true]);
    assert_eq!(steps(&["statefulset/db"], 1), [false]);
    // No pod without the leaf is left, and it need not become healthy.
    assert!(steps(&["statefulset/db"], 2).is_empty());
    assert_eq!(steps(&[], 2), [true]);
}

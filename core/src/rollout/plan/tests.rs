//! Plans of small batches, and the reasons.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::rollout::workload::leaf_annotation;
use crate::secret::parts::{ChainAndCa, Parts};
use crate::testing::workload;

const NOW: UnixTime = UnixTime(1_800_000_000);
const BESIDE: ChainAndCa = ChainAndCa { chain: 1, ca: 2 };

fn leaf(text: &str) -> Fingerprint {
    Fingerprint::of(text.as_bytes())
}

fn served(text: &str, hours_left: i64) -> Option<RolledOut> {
    Some(RolledOut::Leaf {
        fingerprint: leaf(text),
        not_after: UnixTime(NOW.0 + 3_600 * hours_left),
        with: Some(BESIDE),
    })
}

fn request(secret: &str, new: &str, rolled_out: Option<RolledOut>) -> Request {
    Request {
        secret: secret.into(),
        uid: "uid".into(),
        leaf: leaf(new),
        with: BESIDE,
        not_after: UnixTime(NOW.0 + 1_000_000),
        rolled_out,
        remembered: None,
        halted: None,
        mode: RolloutMode::Restart,
        workloads: Vec::new(),
        changed: Parts::ALL,
        keys: ChangedKeys::any(),
        written: Some(NOW),
        unwell: Vec::new(),
    }
}

/// A healthy Deployment of two that mounts these Secrets, with these template annotations.
fn web(name: &str, secrets: &[&str], carried: &[(&str, &str)]) -> Value {
    let volumes: Vec<Value> = secrets
        .iter()
        .map(|secret| json!({"name": secret, "secret": {"secretName": secret}}))
        .collect();
    let annotations: BTreeMap<String, String> = carried
        .iter()
        .map(|(secret, text)| (leaf_annotation(secret), leaf(text).to_string()))
        .collect();
    json!({
        "metadata": {"name": name, "uid": name, "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"replicas": 2, "template": {"metadata": {"annotations": annotations}, "spec": {"volumes": volumes}}},
        "status": {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}})
}

fn with(mut object: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    object
}

fn broken(object: Value) -> Value {
    with(object, &[("/status/availableReplicas", json!(1))])
}

fn planned(requests: &[Request], objects: Vec<Value>) -> Plan {
    let workloads: Vec<Workload> = objects
        .into_iter()
        .map(|object| workload(Kind::Deployment, object))
        .collect();
    plan(NOW, requests, &workloads, &RolloutConfig::default())
}

fn verdict_of(request: Request, objects: Vec<Value>) -> Verdict {
    planned(&[request], objects).verdicts.remove(0).1
}

fn names(plan: &Plan) -> Vec<(&str, Phase)> {
    plan.steps
        .iter()
        .map(|step| (&*step.workload.id.name, step.phase))
        .collect()
}

#[test]
fn what_the_workloads_have_decides() {
    let carrying = |text: &str| web("a", &["tls"], &[("tls", text)]);
    let plain = || web("a", &["tls"], &[]);
    let remembers = |text: &str| Request {
        remembered: Some(leaf(text)),
        ..request("tls", "new", None)
    };
    let mode = |mode| Request {
        mode,
        ..request("tls", "new", served("old", 9))
    };
    for (why, request, object, expected) in [
        (
            "recorded",
            request("tls", "new", served("new", 9)),
            plain(),
            Verdict::UpToDate,
        ),
        (
            "another leaf",
            request("tls", "new", served("old", 9)),
            plain(),
            Verdict::Roll,
        ),
        (
            "first certificate",
            request("tls", "new", Some(RolledOut::None)),
            plain(),
            Verdict::Roll,
        ),
        (
            "first sight",
            request("tls", "new", None),
            plain(),
            Verdict::FirstSight,
        ),
        (
            "first sight, remembered",
            remembers("new"),
            plain(),
            Verdict::FirstSight,
        ),
        (
            "recreated with another",
            remembers("old"),
            plain(),
            Verdict::Roll,
        ),
        (
            "template knows another",
            request("tls", "new", None),
            carrying("old"),
            Verdict::Roll,
        ),
        (
            "template knows this one",
            request("tls", "new", None),
            carrying("new"),
            Verdict::FirstSight,
        ),
        (
            "nobody uses it",
            request("tls", "new", served("old", 9)),
            web("a", &["x"], &[]),
            Verdict::NothingRefers,
        ),
        (
            "nobody uses it at first sight",
            request("tls", "new", None),
            web("a", &["x"], &[]),
            Verdict::NothingRefers,
        ),
        (
            "rollout: none",
            mode(RolloutMode::None),
            plain(),
            Verdict::NothingRefers,
        ),
        (
            "rollout: post",
            mode(RolloutMode::Post {
                port: 80,
                path: "/r".into(),
            }),
            plain(),
            Verdict::Roll,
        ),
    ] {
        assert_eq!(verdict_of(request, vec![object]), expected, "{why}");
    }
}

#[test]
fn who_cannot_reload_is_restarted_and_said() {
    let post = |secret: &str, port| Request {
        mode: RolloutMode::Post {
            port,
            path: "/r".into(),
        },
        ..request(secret, "new", served("old", 9))
    };
    let spec = |pointer: &str| format!("/spec/template/spec/{pointer}");
    let sub_path = json!([{"name": "c", "volumeMounts": [{"name": "tls", "subPath": "x"}]}]);
    let env = json!([{"name": "c", "envFrom": [{"secretRef": {"name": "tls"}}]}]);
    let objects = vec![
        web("a", &["tls"], &[]),
        with(web("b", &["tls"], &[]), &[(&spec("containers"), sub_path)]),
        with(web("c", &["tls"], &[]), &[(&spec("containers"), env)]),
        with(
            web("d", &["tls"], &[]),
            &[(&spec("hostNetwork"), json!(true))],
        ),
        web("e", &["tls", "other"], &[]),
        web("f", &["tls", "restarts"], &[]),
    ];
    let restarts = request("restarts", "new", served("old", 9));
    let plan = planned(&[post("tls", 80), post("other", 81), restarts], objects);
    let mut done: Vec<(&str, String)> = plan
        .steps
        .iter()
        .map(|step| {
            let how = match &step.how {
                How::Restart => "restart".to_owned(),
                How::Reload(asks) => asks.iter().map(|ask| ask.port.to_string()).collect(),
            };
            (&*step.workload.id.name, how)
        })
        .collect();
    done.sort();
    let expected = [
        ("a", "80"),
        ("b", "restart"),
        ("c", "restart"),
        ("d", "restart"),
        ("e", "8081"),
        ("f", "restart"),
    ];
    assert_eq!(done, expected.map(|(name, how)| (name, how.to_owned())));
    let said: Vec<String> = plan.remarks.iter().map(ToString::to_string).collect();
    let expected = [
        "deployment/b is restarted, not asked to reload: volume tls (subPath) never changes in a running pod",
        "deployment/c is restarted, not asked to reload: envFrom of container c never changes in a running pod",
        "deployment/d is restarted, not asked to reload: its pods are on the host's network",
    ];
    assert_eq!(said, expected);
}

#[test]
fn what_verify_asks_for_once_more_is_another_value_of_the_same_leaf() {
    let request = request("tls", "new", served("old", 9));
    let carrying = |value: String| {
        let mut object = web("a", &["tls"], &[]);
        object["spec"]["template"]["metadata"]["annotations"] =
            json!({leaf_annotation("tls"): value});
        workload(Kind::Deployment, object)
    };
    let once = carrying(leaf("new").to_string());
    let twice = carrying(format!("{}.2", leaf("new")));
    let again = Step::again(once.clone(), &request, NOW);
    assert!(!again.is_carried_by(&once) && again.is_carried_by(&twice));
    // The plan of a later run counts both as rolled.
    for workload in [once, twice] {
        let plan = plan(
            NOW,
            std::slice::from_ref(&request),
            &[workload],
            &RolloutConfig::default(),
        );
        assert_eq!(plan.steps, []);
    }
}

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
    assert_eq!((plan.steps.len(), &plan.verdicts[0].1), (0, &Verdict::Roll));
}

#[test]
fn named_workloads_roll_and_missing_ones_are_told() {
    let named = |names: &[&str]| Request {
        workloads: names.iter().map(|name| name.parse().unwrap()).collect(),
        ..request("tls", "new", served("old", 9))
    };
    let plan = planned(
        &[named(&[
            "deployment/reads-api",
            "deployment/gone",
            "statefulset/reads-api",
        ])],
        vec![web("reads-api", &[], &[]), web("other", &[], &[])],
    );
    assert_eq!(names(&plan), [("reads-api", Phase::Canary)]);
    assert_eq!(
        plan.steps[0].leaves[0].why.to_string(),
        "named by the Secret"
    );
    let told: Vec<String> = plan.remarks.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "deployment/gone does not exist",
            "statefulset/reads-api does not exist"
        ]
    );
}

#[test]
fn some_workloads_are_left_alone() {
    let of = |changes: &[(&str, Value)]| {
        let plan = planned(
            &[request("tls", "new", served("old", 9))],
            vec![with(web("a", &["tls"], &[]), changes)],
        );
        (
            plan.steps.len(),
            plan.remarks.first().map(ToString::to_string),
            plan.verdicts[0].1.clone(),
        )
    };
    let opted_out = json!({"cert-renew.io/rollout": "none"});
    for (changes, remark) in [
        (
            [("/metadata/annotations", opted_out)],
            Some("deployment/a has opted out of rollouts"),
        ),
        (
            [("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"))],
            None,
        ),
    ] {
        assert_eq!(
            of(&changes),
            (0, remark.map(str::to_owned), Verdict::NothingRefers),
            "{changes:?}"
        );
    }
    // A workload created since may have adopted older pods: their age is read before it is rolled.
    let later = [("/metadata/creationTimestamp", json!("2029-01-01T00:00:00Z"))];
    assert_eq!(of(&later), (1, None, Verdict::Roll));
}

#[test]
fn what_was_made_since_proves_nothing() {
    let later = |name: &str| {
        let at = [("/metadata/creationTimestamp", json!("2029-01-01T00:00:00Z"))];
        with(web(name, &["tls"], &[]), &at)
    };
    let objects = vec![later("a"), web("b", &["tls"], &[])];
    let plan = planned(&[request("tls", "new", served("old", 9))], objects);
    assert_eq!(names(&plan), [("b", Phase::Canary), ("a", Phase::Rest)]);
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

#[test]
fn references_to_other_keys_do_not_count() {
    let items = |key: &str| json!([{"name": "v", "secret": {"secretName": "tls", "items": [{"key": key, "path": "p"}]}}]);
    for (key, steps) in [("ca.crt", 0), ("tls.crt", 1)] {
        let object = with(
            web("a", &[], &[]),
            &[("/spec/template/spec/volumes", items(key))],
        );
        let due = Request {
            keys: ChangedKeys::only(["tls.crt".into(), "tls.key".into()]),
            ..request("tls", "new", served("old", 9))
        };
        assert_eq!(planned(&[due], vec![object]).steps.len(), steps, "{key}");
    }
}

/// By key: which of these workloads are restarted, and which use the Secret.
fn of_keys(request: &Request, carried: Option<&str>) -> (Vec<String>, Vec<String>) {
    let items = |name: &str, keys: &[&str]| {
        let items: Vec<Value> = { keys.iter() }
            .map(|key| json!({"key": key, "path": key}))
            .collect();
        let volume = json!([{"name": "v", "secret": {"secretName": "tls", "items": items}}]);
        let key = leaf_annotation("tls");
        let said = json!(carried.map(|value| BTreeMap::from([(key, value)])));
        with(
            web(name, &[], &[]),
            &[
                ("/spec/template/spec/volumes", volume),
                ("/spec/template/metadata/annotations", said),
            ],
        )
    };
    let objects = vec![
        items("all", &[]),
        items("ca", &["ca.crt"]),
        items("pair", &["tls.crt", "tls.key"]),
    ];
    let plan = planned(std::slice::from_ref(request), objects);
    let names = |all: &mut dyn Iterator<Item = &WorkloadRef>| {
        let mut all: Vec<String> = all.map(|it| it.name.to_string()).collect();
        all.sort();
        all
    };
    let users = &plan.users[0].1;
    (
        names(&mut plan.steps.iter().map(|it| &it.workload.id)),
        names(&mut users.iter()),
    )
}

#[test]
fn each_is_restarted_for_what_it_takes_and_counts_as_a_user_in_any_case() {
    let due = |changed: Parts, keys: ChangedKeys| Request {
        changed,
        keys,
        ..request("tls", "new", served("old", 9))
    };
    let (pair, ca) = (
        Parts {
            ca: false,
            ..Parts::ALL
        },
        || "ca.crt".into(),
    );
    let only_ca = Parts {
        ca: true,
        ..Parts::NONE
    };
    for (why, request, expected) in [
        (
            "a pair",
            due(pair, ChangedKeys::all_but([ca()])),
            vec!["all", "pair"],
        ),
        (
            "a CA",
            due(only_ca, ChangedKeys::only([ca()])),
            vec!["all", "ca"],
        ),
        (
            "all",
            due(Parts::ALL, ChangedKeys::any()),
            vec!["all", "ca", "pair"],
        ),
        (
            "nothing that counts",
            due(Parts::NONE, ChangedKeys::only([])),
            vec![],
        ),
    ] {
        let (steps, users) = of_keys(&request, None);
        assert_eq!(steps, expected, "{why}");
        assert_eq!(users, ["all", "ca", "pair"], "{why}");
    }
}

#[test]
fn a_template_says_what_it_was_rolled_for_as_far_as_the_workload_uses_it() {
    let (new, old) = (leaf("new"), leaf("old"));
    let value = |leaf: Fingerprint, chain: u32, ca: u32| {
        Some(format!("{leaf}.{}", ChainAndCa { chain, ca }))
    };
    let due = |changed: Parts| Request {
        changed,
        ..request("tls", "new", served("old", 9))
    };
    let beside = Parts {
        leaf: false,
        ..Parts::ALL
    };
    for (why, request, said, expected) in [
        ("all of it", due(Parts::ALL), value(new, 1, 2), vec![]),
        (
            "another chain",
            due(Parts::ALL),
            value(new, 3, 2),
            vec!["all", "pair"],
        ),
        (
            "another CA",
            due(Parts::ALL),
            value(new, 1, 3),
            vec!["all", "ca"],
        ),
        (
            "another leaf",
            due(Parts::ALL),
            value(old, 1, 2),
            vec!["all", "pair"],
        ),
        // Begun by an earlier version.
        (
            "the new leaf alone",
            due(Parts::ALL),
            Some(new.to_string()),
            vec![],
        ),
        (
            "a leaf that it had before",
            due(beside),
            Some(new.to_string()),
            vec!["all", "ca", "pair"],
        ),
        (
            "nonsense",
            due(Parts::ALL),
            Some(format!("{new}.x")),
            vec!["all", "ca", "pair"],
        ),
    ] {
        let (steps, _) = of_keys(&request, said.as_deref());
        assert_eq!(steps, expected, "{why}");
    }
}

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
            Verdict::Halted(halted.unwrap())
        } else {
            Verdict::Roll
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

//! Which workloads use a Secret, and what of it.

use super::*;

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
            (0, remark.map(str::to_owned), Decision::NothingRefers),
            "{changes:?}"
        );
    }
    // A workload created since may have adopted older pods: their age is read before it is rolled.
    let later = [("/metadata/creationTimestamp", json!("2029-01-01T00:00:00Z"))];
    assert_eq!(of(&later), (1, None, Decision::Roll));
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
fn the_workloads_that_use_a_secret_are_copied_without_their_references() {
    let of = |name: &str| workload(Kind::Deployment, web(name, &["tls", "other"], &[]));
    let all = [of("web"), of("api")];
    assert!(all.iter().all(|it| it.references.len() == 2));
    let found = using(&request("tls", "new", None), &all);
    let names: Vec<&str> = found.iter().map(|it| &*it.id.name).collect();
    assert_eq!(names, ["web", "api"]);
    assert!(found.iter().all(|it| it.references.is_empty()));
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

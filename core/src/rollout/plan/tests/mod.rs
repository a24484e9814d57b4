//! Plans of small batches, and the reasons.

mod held;
mod order;
mod users;

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::rollout::workload::leaf_annotation;
use crate::secret::parts::{ChainAndCa, Parts};
use crate::testing::{slower_than_linear_in, workload};

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
        leaf: leaf(new),
        with: BESIDE,
        not_after: UnixTime(NOW.0 + 1_000_000),
        rolled_out,
        written: Some(NOW),
        ..Request::first_sight(secret, "uid", None)
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

fn verdict_of(request: Request, objects: Vec<Value>) -> Decision {
    planned(&[request], objects).verdicts.remove(0).1
}

fn names(plan: &Plan) -> Vec<(&str, Phase)> {
    plan.steps
        .iter()
        .map(|step| (&*step.workload.id.name, step.phase))
        .collect()
}

#[test]
fn very_many_secrets_and_workloads_are_planned_in_linear_time() {
    planned_in_linear_time(false);
}

#[test]
fn very_many_workloads_that_are_not_well_are_planned_in_linear_time() {
    planned_in_linear_time(true);
}

/// Very many Secrets, of one workload or of one `each`.
fn planned_in_linear_time(each: bool) {
    let all_of = |secrets: &[String], each: bool| -> Vec<Workload> {
        let names: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let objects: Vec<Value> = match each {
            false => vec![web("web", &names, &[]), web("api", &[], &[])],
            true => { names.iter() }
                .map(|name| broken(web(name, &[name], &[])))
                .collect(),
        };
        let objects = objects.into_iter();
        objects
            .map(|object| workload(Kind::Deployment, object))
            .collect()
    };
    // One Secret for each 256 bytes of length. What is planned is made once for each length.
    let made = |length: usize| {
        let secrets: Vec<String> = (0..length / 256).map(|it| format!("tls-{it}")).collect();
        let requests = secrets.iter();
        let requests: Vec<Request> = requests
            .map(|it| request(it, "new", served("old", 9)))
            .collect();
        (requests, all_of(&secrets, each))
    };
    let slow = slower_than_linear_in(made, |(requests, workloads)| {
        let plan = plan(NOW, requests, workloads, &RolloutConfig::default());
        assert_eq!(plan.verdicts.len(), requests.len());
        assert!(plan.steps[0].workload.references.is_empty());
    });
    assert_eq!(slow, None, "{each}");
}

/// By itself: what a plan takes for each Secret would hide for long what grows with their square.
#[test]
fn very_many_ways_to_reload_one_workload_are_joined_in_linear_time() {
    let ask = |it: usize| Ask {
        port: 80,
        path: format!("/reload-{it:09}").into(),
    };
    let made = |length: usize| (0..length / 32).map(ask).collect::<Vec<Ask>>();
    let slow = slower_than_linear_in(made, |asks| {
        let (mut all, mut known) = (How::Reload(vec![]), HashSet::new());
        // Each twice, as two Secrets may ask for the same.
        for ask in asks.iter().chain(asks) {
            join(&mut all, How::Reload(vec![ask.clone()]), &mut known);
        }
        assert_eq!(all, How::Reload(asks.clone()));
    });
    assert_eq!(slow, None);
}

/// What users name is bounded for each Secret, and a plan is its product with the Secrets.
#[test]
fn a_plan_takes_no_more_than_it_may_and_puts_the_rest_off() {
    let names = |of: &str, count: usize| -> Vec<String> {
        (0..count).map(|it| format!("{of}-{it:03}")).collect()
    };
    let (secrets, present, missing) = (names("tls", 500), names("web", 50), names("none", 50));
    let named = present.iter().chain(&missing);
    let named: Vec<WorkloadRef> = { named }
        .map(|name| format!("deployment/{name}").parse().unwrap())
        .collect();
    let requests = secrets.iter().map(|secret| Request {
        workloads: named.clone(),
        ..request(secret, "new", served("old", 9))
    });
    let requests: Vec<Request> = requests.collect();
    let workloads = present
        .iter()
        .map(|name| workload(Kind::Deployment, web(name, &[], &[])));
    let workloads: Vec<Workload> = workloads.collect();
    let planned = |allowance| {
        let (all, config) = (Lookup::of(&workloads), RolloutConfig::default());
        let plan = plan_within(allowance, NOW, &requests, &all, &config);
        let steps = plan.steps.iter().map(Step::weight).sum::<usize>();
        let users = plan.users.iter().map(|(_, all)| allowance::of_users(all));
        let remarks = allowance::of_remarks(&plan.remarks);
        let bytes = steps + users.sum::<usize>() + remarks;
        let rolled = { plan.verdicts.iter() }.filter(|(_, verdict)| *verdict == Decision::Roll);
        let put_off = { plan.verdicts.iter() }.filter(|(_, verdict)| *verdict == Decision::PutOff);
        assert_eq!(rolled.clone().count() + put_off.count(), secrets.len());
        (bytes, rolled.count())
    };
    let (most, all) = planned(Allowance::UNBOUNDED);
    assert_eq!(all, secrets.len());
    let (bytes, rolled) = planned(Allowance {
        for_all: most / 4,
        for_one: most / 4,
    });
    assert!((most / 5..=most / 4).contains(&bytes), "{bytes} of {most}");
    assert!(
        (secrets.len() / 5..secrets.len() / 3).contains(&rolled),
        "{rolled}"
    );
    // One Secret cannot be divided.
    let (_, rolled) = planned(Allowance {
        for_all: 0,
        for_one: most / 4,
    });
    assert_eq!(rolled, 1);
    let nothing = Allowance {
        for_all: 0,
        for_one: 0,
    };
    assert_eq!(planned(nothing), (0, 0));
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
            Decision::UpToDate,
        ),
        (
            "another leaf",
            request("tls", "new", served("old", 9)),
            plain(),
            Decision::Roll,
        ),
        (
            "first certificate",
            request("tls", "new", Some(RolledOut::None)),
            plain(),
            Decision::Roll,
        ),
        (
            "first sight",
            request("tls", "new", None),
            plain(),
            Decision::FirstSight,
        ),
        (
            "first sight, remembered",
            remembers("new"),
            plain(),
            Decision::FirstSight,
        ),
        (
            "recreated with another",
            remembers("old"),
            plain(),
            Decision::Roll,
        ),
        (
            "template knows another",
            request("tls", "new", None),
            carrying("old"),
            Decision::Roll,
        ),
        (
            "template knows this one",
            request("tls", "new", None),
            carrying("new"),
            Decision::FirstSight,
        ),
        (
            "nobody uses it",
            request("tls", "new", served("old", 9)),
            web("a", &["x"], &[]),
            Decision::NothingRefers,
        ),
        (
            "nobody uses it at first sight",
            request("tls", "new", None),
            web("a", &["x"], &[]),
            Decision::NothingRefers,
        ),
        (
            "rollout: none",
            mode(RolloutMode::None),
            plain(),
            Decision::NothingRefers,
        ),
        (
            "rollout: post",
            mode(RolloutMode::Post {
                port: 80,
                path: "/r".into(),
            }),
            plain(),
            Decision::Roll,
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
fn what_was_made_since_proves_nothing() {
    let later = |name: &str| {
        let at = [("/metadata/creationTimestamp", json!("2029-01-01T00:00:00Z"))];
        with(web(name, &["tls"], &[]), &at)
    };
    let objects = vec![later("a"), web("b", &["tls"], &[])];
    let plan = planned(&[request("tls", "new", served("old", 9))], objects);
    assert_eq!(names(&plan), [("b", Phase::Canary), ("a", Phase::Rest)]);
    // By two clocks that differ by a second it may be older than the write.
    for (after, first) in [(1, "a"), (2, "b")] {
        let made = json!((NOW + Duration::from_secs(after)).to_string());
        let at = [("/metadata/creationTimestamp", made)];
        let objects = vec![with(web("a", &["tls"], &[]), &at), web("b", &["tls"], &[])];
        let plan = planned(&[request("tls", "new", served("old", 9))], objects);
        assert_eq!(names(&plan)[0], (first, Phase::Canary), "{after} s later");
    }
}

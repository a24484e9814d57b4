use crate::testing::workload;
use serde_json::{Value, json};

use super::*;
use crate::certificate::Fingerprint;

#[test]
fn an_object_on_the_wire_becomes_thin() {
    let leaf = Fingerprint::of(b"leaf");
    let web = workload(
        Kind::Deployment,
        json!({
            "metadata": {
                "name": "web", "uid": "u", "resourceVersion": "7", "generation": 4,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"cert-renew.io/rollout": "none", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
                "managedFields": [
                    {"manager": "helm", "time": "2026-01-02T00:00:00Z", "fieldsV1": {
                        "f:metadata": {"f:annotations": {"f:a": {}}},
                        "f:spec": {"f:replicas": {}, "f:template": {"f:metadata": {"f:annotations": {".": {}}}}}}},
                    {"manager": "cert-renew", "time": "2026-01-03T00:00:00Z", "fieldsV1": {
                        "f:spec": {"f:template": {"f:metadata": {"f:annotations": {"f:state.cert-renew.io/leaf.tls": {}}}}}}},
                    {"manager": "scaler", "time": "2026-01-04T00:00:00Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]},
            "spec": {
                "replicas": 2, "paused": true,
                "selector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]},
                "template": {
                    "metadata": {"creationTimestamp": null, "annotations": {
                        "other": "x", "state.cert-renew.io/leaf.tls": leaf.to_string()}},
                    "spec": {"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "tls"}}]}]}}},
            "status": {"observedGeneration": 3, "replicas": 2, "conditions": [
                {"type": "Available", "status": "False", "lastTransitionTime": "2026-01-05T00:00:00Z"},
                {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}
        }),
    );
    let at = |day: u8| format!("2026-01-0{day}T00:00:00Z").parse().ok();
    assert_eq!(web.id.to_string(), "deployment/web");
    assert_eq!(
        (web.created, web.template_touched, web.rolled_at),
        (at(1), at(3), at(3))
    );
    assert!(web.opted_out && web.paused && !web.deleting);
    assert_eq!(&*web.selector, "app=web,tier");
    assert!(
        web.carries("tls", leaf)
            && !web.carries("tls", Fingerprint::of(b"other"))
            && !web.carries("x", leaf)
    );
    assert_eq!(web.references.len(), 1);
    let Status {
        observed,
        wanted,
        deadline_exceeded,
        unavailable_since,
        ..
    } = web.status;
    assert_eq!(
        (observed, wanted, deadline_exceeded, unavailable_since),
        (false, 2, true, at(5))
    );
}

#[test]
fn a_rollout_carries_its_leaves_itself_and_only_with_a_restart() {
    let leaf = Fingerprint::of(b"leaf");
    let rollout = |spec: Value| {
        let annotations = json!({"other": "x", "cert-renew.io/rollout": "none", "state.cert-renew.io/leaf.tls": leaf.to_string()});
        let ours = json!({"f:metadata": {"f:annotations": {"f:state.cert-renew.io/leaf.tls": {}}}, "f:spec": {"f:restartAt": {}}});
        let managers =
            json!([{"manager": "cert-renew", "time": "2026-01-03T00:00:00Z", "fieldsV1": ours}]);
        let metadata =
            json!({"name": "shop", "annotations": annotations, "managedFields": managers});
        workload(Kind::Rollout, json!({"metadata": metadata, "spec": spec}))
    };
    let restarted = rollout(json!({"paused": true, "restartAt": "2026-01-03T00:00:00Z"}));
    assert!(restarted.carries("tls", leaf) && restarted.opted_out && !restarted.paused);
    let at = "2026-01-03T00:00:00Z".parse().ok();
    assert_eq!((restarted.template_touched, restarted.rolled_at), (at, at));
    assert!(!rollout(json!({})).carries("tls", leaf));
}

#[test]
fn nobody_replaces_the_pods_of_some() {
    let on_delete = json!({"spec": {"updateStrategy": {"type": "OnDelete"}}});
    let legacy = workload(
        Kind::ReplicationController,
        json!({"spec": {"selector": {"app": "legacy"}}}),
    );
    assert_eq!(
        (legacy.strategy, &*legacy.selector),
        (Strategy::OnDelete, "app=legacy")
    );
    let bare = workload(
        Kind::ReplicaSet,
        json!({"spec": {"selector": {"matchLabels": {"app": "bare"}}}}),
    );
    assert_eq!(
        (bare.strategy, &*bare.selector),
        (Strategy::OnDelete, "app=bare")
    );
    assert_eq!(
        workload(Kind::DaemonSet, on_delete.clone()).strategy,
        Strategy::OnDelete
    );
    assert_eq!(
        workload(Kind::StatefulSet, on_delete).strategy,
        Strategy::OnDelete
    );
    assert_eq!(
        workload(Kind::StatefulSet, json!({})).strategy,
        Strategy::Rolling { partition: 0 }
    );
}

#[test]
fn what_a_large_object_leaves_in_memory_is_small() {
    let many = || 0..50_000;
    let env: Vec<Value> = many().map(|_| json!({"name": "A", "value": "b"})).collect();
    let labels: BTreeMap<String, String> =
        many().map(|it| (it.to_string(), String::new())).collect();
    let volumes: Vec<Value> = many().map(|it| json!({"name": it.to_string()})).collect();
    let managers: Vec<Value> = many()
        .map(|_| json!({"fieldsV1": {"f:status": {}}}))
        .collect();
    let mounts: Vec<Value> = many().map(|_| json!({"name": "v"})).collect();
    let mut containers: Vec<Value> = many().map(|_| json!({"name": "c"})).collect();
    containers.push(json!({"name": "main", "env": env, "volumeMounts": mounts}));
    let template = json!({
        "metadata": {"annotations": labels},
        "spec": {"containers": containers, "volumes": volumes}});
    let object = json!({
        "metadata": {"name": "web", "managedFields": managers, "annotations": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": template}});
    let object: Object = serde_json::from_value(object).unwrap();
    let pod = object.wire.spec.template.as_ref().unwrap();
    assert!(pod.spec.as_ref().unwrap().is_empty());
    assert!(object.wire.metadata.managed_fields.is_empty());
    let weight = object.read(Kind::Deployment).weight();
    assert!(weight < 1024, "{weight}");
}

//! On the workloads of users.

use serde_json::{Value, json};

use super::{Try, no_note, note, without};

/// On each kind of workload `web`, and on the Rollout `shop`.
pub(in crate::stolen_token) fn workloads() -> Vec<Try> {
    let leaf = || json!({"metadata": {"annotations": {"state.cert-renew.io/leaf.tls": "00"}}});
    let former = "state.cert-renew.io/leaf.former";
    let template = |body: Value| json!({"spec": {"template": body}});
    let image = || template(json!({"spec": {"containers": [{"name": "main", "image": "evil"}]}}));
    let leaves_only = Some("state.cert-renew.io/leaf. only");
    let annotations_only = Some("of a pod template, cert-renew changes annotations only");
    let template_only = Some("annotations of the pod template only");
    let no_metadata = Some("nothing of a workload's own metadata");
    let restart_only = Some("restartAt only");
    let of_rollout = Some("of a Rollout's own metadata");
    let mut tries = Vec::new();
    for kind in [
        "deployments",
        "statefulsets",
        "daemonsets",
        "replicationcontrollers",
        "replicasets",
    ] {
        let bodies = [
            (template(leaf()), None),
            (template(no_note(former)), None),
            (image(), annotations_only),
            (
                template(json!({"metadata": {"labels": {"x": "y"}}})),
                annotations_only,
            ),
            (
                template(json!({"metadata": {"labels": {"example.com/team": null}}})),
                annotations_only,
            ),
            (template(without("name")), annotations_only),
            (template(note("x")), leaves_only),
            (template(no_note("sidecar.istio.io/inject")), leaves_only),
            (json!({"spec": {"minReadySeconds": 9}}), template_only),
            (json!({"spec": {"minReadySeconds": null}}), template_only),
            (note("x"), no_metadata),
            (no_note("example.com/kept"), no_metadata),
            (without("labels"), no_metadata),
        ];
        tries.extend(bodies.map(|(body, refusal)| ("patch", kind, "web", body, refusal)));
    }
    let bodies = [
        (json!({"spec": {"restartAt": "2026-01-01T00:00:00Z"}}), None),
        (leaf(), None),
        (no_note(former), None),
        (json!({"spec": {"paused": true}}), restart_only),
        (json!({"spec": {"strategy": null}}), restart_only),
        (note("x"), of_rollout),
        (no_note("example.com/kept"), of_rollout),
        (without("labels"), of_rollout),
    ];
    tries.extend(bodies.map(|(body, refusal)| ("patch", "rollouts", "shop", body, refusal)));
    tries
}

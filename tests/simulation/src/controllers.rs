//! The controllers and the kubelet: Deployments roll, pods start, read their Secrets and become ready.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::clock;
use crate::objects::{Key, PODS, REPLICA_SETS, SECRETS, timestamp};
use crate::world::{State, World};

/// Looks after one Deployment for as long as there is one.
pub async fn look_after(world: World, key: Key) {
    let mut changed = world.now().objects.changes_of(key.kind);
    loop {
        changed.mark_unchanged();
        let Some(object) = world.now().objects.get(&key).cloned() else {
            return;
        };
        let Some(pause) = step(&world, &key, &object) else {
            // At rest: only a change of the Deployment itself is one.
            let version = object["metadata"]["resourceVersion"].clone();
            loop {
                if changed.changed().await.is_err() {
                    return;
                }
                let now = world.now();
                let found = now.objects.get(&key);
                if found.is_none_or(|found| found["metadata"]["resourceVersion"] != version) {
                    break;
                }
            }
            continue;
        };
        sleep(pause).await;
    }
}

/// Makes one step towards what the Deployment asks for; `None` if it has come to rest.
fn step(world: &World, key: &Key, object: &Value) -> Option<Duration> {
    let mut now = world.now();
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    let wanted = object["spec"]["replicas"].as_u64().unwrap_or(1);
    let wanted = usize::try_from(wanted).unwrap_or(1);
    let hash = revision(&mut now, key, object);
    let pods = pods_of(&now, key);
    let is_new = |pod: &Value| pod["metadata"]["labels"]["pod-template-hash"] == hash.as_str();
    let is_ready = |pod: &Value| pod["status"]["conditions"][0]["status"] == "True";
    let (new, old): (Vec<_>, Vec<_>) = pods.iter().cloned().partition(|(_, pod)| is_new(pod));
    let ready_new = new.iter().filter(|(_, pod)| is_ready(pod)).count();
    let ready = pods.iter().filter(|(_, pod)| is_ready(pod)).count();
    let observed = object["status"]["observedGeneration"].as_i64();
    let pause =
        |now: &mut State, least, most| Some(Duration::from_millis(now.chance.between(least, most)));
    let status = json!({
        "observedGeneration": generation, "replicas": pods.len(), "updatedReplicas": new.len(),
        "readyReplicas": ready, "availableReplicas": ready,
    });
    let told = object["status"] == status;
    if !told {
        now.objects.set(key, |object| object["status"] = status);
    }
    if observed != Some(generation) {
        return pause(&mut now, 50, 1_500);
    }
    // One pod more than wanted at the most, as with maxSurge 1 and maxUnavailable 0.
    if new.len() < wanted && pods.len() < wanted + 1 {
        start(&mut now, key, object, &hash);
        return pause(&mut now, 1_000, 9_000);
    }
    let unready = new.iter().find(|(_, pod)| !is_ready(pod));
    if let Some((of, _)) = unready.filter(|_| !now.broken.contains(key)) {
        now.objects
            .set(of, |pod| pod["status"] = ready_status(true));
        return pause(&mut now, 10, 300);
    }
    if let Some((of, _)) = old
        .first()
        .filter(|_| ready_new > wanted.saturating_sub(old.len()))
    {
        // It is gone by its name, or it was gone before.
        let _ = now.objects.delete(of, &Value::Null);
        return pause(&mut now, 10, 300);
    }
    if new.len() > wanted
        && let Some((of, _)) = new.last()
    {
        let _ = now.objects.delete(of, &Value::Null);
        return pause(&mut now, 10, 300);
    }
    (!told).then_some(Duration::from_millis(10))
}

fn pods_of(now: &State, key: &Key) -> Vec<(Key, Value)> {
    let pods = now.objects.list(&PODS, Some(&key.namespace));
    let ours = pods.filter(|(_, pod)| pod["metadata"]["labels"]["app"] == key.name.as_str());
    ours.map(|(of, pod)| (of.clone(), Value::clone(pod)))
        .collect()
}

/// The ReplicaSet of the present template, by its number.
fn revision(now: &mut State, key: &Key, object: &Value) -> String {
    let template = &object["spec"]["template"];
    let sets = now.objects.list(&REPLICA_SETS, Some(&key.namespace));
    let ours: Vec<&Value> = sets
        .map(|(_, set)| &**set)
        .filter(|set| set["metadata"]["labels"]["app"] == key.name.as_str())
        .collect();
    let known = ours.iter().find(|set| set["spec"]["template"] == *template);
    if let Some(hash) =
        known.and_then(|set| set["metadata"]["labels"]["pod-template-hash"].as_str())
    {
        return hash.to_owned();
    }
    let hash = format!("r{}", ours.len() + 1);
    let set = Key::new(
        &REPLICA_SETS,
        &key.namespace,
        &format!("{}-{hash}", key.name),
    );
    let metadata = json!({
        "labels": {"app": key.name, "pod-template-hash": hash},
        "ownerReferences": owned_by("Deployment", &key.name, &object["metadata"]["uid"]),
    });
    let made = json!({"metadata": metadata, "spec": {"template": template}, "status": {}});
    let made = now.objects.create(&set, made);
    made.unwrap_or_else(|refusal| panic!("{}", refusal.message));
    hash
}

fn owned_by(kind: &str, name: &str, uid: &Value) -> Value {
    json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true}])
}

fn ready_status(ready: bool) -> Value {
    let status = if ready { "True" } else { "False" };
    json!({
        "phase": "Running", "podIP": "10.0.0.1",
        "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": timestamp(clock::now())}],
    })
}

/// Starts a pod: it reads its Secrets as they are now.
fn start(now: &mut State, key: &Key, object: &Value, hash: &str) {
    let set = Key::new(
        &REPLICA_SETS,
        &key.namespace,
        &format!("{}-{hash}", key.name),
    );
    let set_uid = { now.objects.get(&set) }.map(|set| set["metadata"]["uid"].clone());
    let mut annotations = json!({});
    for secret in secrets_of(object) {
        let secret = Key::new(&SECRETS, &key.namespace, &secret);
        let leaf = now.objects.get(&secret).cloned();
        let leaf = leaf.and_then(|secret| now.leaf_in(&secret));
        let served = leaf.map_or_else(|| "none".to_owned(), |leaf| leaf.to_string());
        annotations[format!("served/{}", secret.name)] = json!(served);
    }
    let metadata = json!({
        "labels": {"app": key.name, "pod-template-hash": hash},
        "annotations": annotations,
        "ownerReferences": owned_by("ReplicaSet", &set.name, &set_uid.unwrap_or_default()),
    });
    let pod = json!({
        "metadata": metadata, "spec": object["spec"]["template"]["spec"], "status": ready_status(false),
    });
    let mut number = now.objects.version();
    loop {
        let of = Key::new(
            &PODS,
            &key.namespace,
            &format!("{}-{hash}-{number:06}", key.name),
        );
        if now.objects.create(&of, pod.clone()).is_ok() {
            return;
        }
        number += 1;
    }
}

/// The Secrets that a Deployment mounts.
fn secrets_of(object: &Value) -> Vec<String> {
    let volumes = &object["spec"]["template"]["spec"]["volumes"];
    let volumes = volumes.as_array().into_iter().flatten();
    volumes
        .filter_map(|volume| Some(volume["secret"]["secretName"].as_str()?.to_owned()))
        .collect()
}

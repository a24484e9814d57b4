//! The simulated API server against the real one: the same operations, the same answers. A difference is a fault of the
//! simulation, which may then prove what does not hold.

use std::io::Write as _;
use std::sync::Arc;

use cert_renew::cluster::connect_over;
use cert_renew::process::write_gate::WriteGate;
use cert_renew::telemetry::metrics::Metrics;
use http::{Method, Request};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use simulation::operator::Way;
use simulation::story::Story;
use simulation::world::World;
use test_bench::objects::Space;
use test_bench::report::Report;
use test_bench::{Bench, Context as _, Result};

/// One request: method, path below the namespace, and body; a list patches as a JSON patch, all else merges. `$uid` and `$version` stand for those of the last object
/// that was answered, `$old` for the version before, and `$continue` for the last list's token.
type Operation = (&'static str, &'static str, Value);

fn operations() -> Vec<Operation> {
    let secret = |name: &str, data: Value| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": data,
            "metadata": {"name": name, "labels": {"app": name}, "annotations": {"example.com/a": "1"}},
        })
    };
    let whole = |name: &str, uid: &str, version: &str| {
        let mut secret = secret(name, json!({"tls.crt": "YQ==", "tls.key": "ZA=="}));
        secret["metadata"]["uid"] = json!(uid);
        secret["metadata"]["resourceVersion"] = json!(version);
        secret
    };
    let both = || json!({"tls.crt": "YQ==", "tls.key": "Yg=="});
    let annotated = |value: Value| json!({"metadata": {"annotations": {"example.com/a": value}}});
    let template = |value: &str| json!({"spec": {"template": {"metadata": {"annotations": {"state.cert-renew.io/leaf.tls": value}}}}});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web"}]},
            },
        },
    });
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "lease"},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 0},
    });
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": {"a": "1"}});
    let (secrets, deployments) = ("api/v1/*/secrets", "apis/apps/v1/*/deployments");
    let leases = "apis/coordination.k8s.io/v1/*/leases";
    let preconditions =
        |of: Value| json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": of});
    vec![
        ("GET", "api/v1/*/secrets/a", Value::Null),
        ("POST", secrets, secret("a", json!({"tls.crt": "YQ=="}))),
        ("POST", secrets, secret("a", both())),
        ("POST", secrets, secret("a", both())),
        ("GET", "api/v1/*/secrets/a", Value::Null),
        // A change, the same once more, and one of a version that is over.
        ("PATCH", "api/v1/*/secrets/a", annotated(json!("2"))),
        ("PATCH", "api/v1/*/secrets/a", annotated(json!("2"))),
        ("PATCH", "api/v1/*/secrets/a", annotated(json!("3"))),
        (
            "PATCH",
            "api/v1/*/secrets/a",
            json!({"metadata": {"uid": "$uid", "resourceVersion": "$old", "annotations": {"example.com/a": "4"}}}),
        ),
        ("GET", "api/v1/*/secrets/a", Value::Null),
        (
            "PATCH",
            "api/v1/*/secrets/a",
            json!({"metadata": {"uid": "$uid", "resourceVersion": "$version", "annotations": {"example.com/a": "5"}}}),
        ),
        // Another object's uid, with a version and without.
        (
            "PATCH",
            "api/v1/*/secrets/a",
            json!({"metadata": {"uid": "another"}}),
        ),
        (
            "PATCH",
            "api/v1/*/secrets/a",
            json!({"metadata": {"uid": "another", "resourceVersion": "$version"}}),
        ),
        (
            "PATCH",
            "api/v1/*/secrets/a",
            json!({"metadata": {"uid": "another", "resourceVersion": "1"}}),
        ),
        ("PATCH", "api/v1/*/secrets/a", annotated(Value::Null)),
        (
            "PATCH",
            "api/v1/*/secrets/a",
            json!({"data": {"tls.key": null}}),
        ),
        (
            "PATCH",
            "api/v1/*/secrets/a",
            json!({"data": {"more": "Yw=="}}),
        ),
        ("PATCH", "api/v1/*/secrets/a", json!({"type": "Opaque"})),
        ("PATCH", "api/v1/*/secrets/a", json!({"immutable": true})),
        (
            "PATCH",
            "api/v1/*/secrets/a",
            json!({"data": {"more": "ZA=="}}),
        ),
        ("PATCH", "api/v1/*/secrets/a", annotated(json!("6"))),
        ("PATCH", "api/v1/*/secrets/nothing", annotated(json!("6"))),
        // Lists: by label, by type, in pages.
        ("POST", secrets, secret("b", both())),
        ("POST", secrets, secret("c", both())),
        ("GET", "api/v1/*/secrets?labelSelector=app%3Db", Value::Null),
        ("GET", "api/v1/*/secrets?labelSelector=!app", Value::Null),
        (
            "GET",
            "api/v1/*/secrets?labelSelector=app,app!%3Db",
            Value::Null,
        ),
        (
            "GET",
            "api/v1/*/secrets?fieldSelector=type%3Dkubernetes.io/tls",
            Value::Null,
        ),
        (
            "GET",
            "api/v1/*/secrets?fieldSelector=type!%3Dkubernetes.io/tls",
            Value::Null,
        ),
        (
            "GET",
            "api/v1/*/secrets?fieldSelector=metadata.name%3Dc",
            Value::Null,
        ),
        ("GET", "api/v1/*/secrets?limit=2", Value::Null),
        (
            "GET",
            "api/v1/*/secrets?limit=2&continue=$continue",
            Value::Null,
        ),
        (
            "GET",
            "api/v1/*/secrets?limit=2&continue=nonsense",
            Value::Null,
        ),
        // What a template's change is to a Deployment, and what an annotation of its own.
        ("POST", deployments, deployment),
        ("PATCH", "apis/apps/v1/*/deployments/web", template("1")),
        ("PATCH", "apis/apps/v1/*/deployments/web", template("1")),
        (
            "PATCH",
            "apis/apps/v1/*/deployments/web",
            annotated(json!("1")),
        ),
        ("PATCH", "apis/apps/v1/*/deployments/web", template("2")),
        // The Lease and the ledger.
        (
            "PATCH",
            "apis/coordination.k8s.io/v1/*/leases/lease",
            json!({"spec": {"holderIdentity": "b"}}),
        ),
        ("POST", leases, lease.clone()),
        ("POST", leases, lease),
        (
            "PATCH",
            "apis/coordination.k8s.io/v1/*/leases/lease",
            json!({"metadata": {"uid": "$uid", "resourceVersion": "$version"}, "spec": {"holderIdentity": null}}),
        ),
        (
            "PATCH",
            "api/v1/*/configmaps/map",
            json!({"data": {"a": "2"}}),
        ),
        ("POST", "api/v1/*/configmaps", map),
        (
            "PATCH",
            "api/v1/*/configmaps/map",
            json!({"data": {"a": null, "b": "2"}}),
        ),
        // Deletions: of another object, of this one, of nothing.
        (
            "DELETE",
            "api/v1/*/secrets/b",
            preconditions(json!({"uid": "another"})),
        ),
        ("GET", "api/v1/*/secrets/b", Value::Null),
        (
            "DELETE",
            "api/v1/*/secrets/b",
            preconditions(json!({"uid": "$uid"})),
        ),
        ("GET", "api/v1/*/secrets/b", Value::Null),
        ("DELETE", "api/v1/*/secrets/b", Value::Null),
        // A whole object in place of another: of a version that is over, of another uid, of none, and of nothing.
        ("GET", "api/v1/*/secrets/c", Value::Null),
        ("PATCH", "api/v1/*/secrets/c", annotated(json!("2"))),
        ("PUT", "api/v1/*/secrets/c", whole("c", "$uid", "$old")),
        (
            "PUT",
            "api/v1/*/secrets/c",
            whole("c", "another", "$version"),
        ),
        ("PUT", "api/v1/*/secrets/c", whole("c", "$uid", "$version")),
        ("PUT", "api/v1/*/secrets/c", secret("c", both())),
        ("PUT", "api/v1/*/secrets/c", secret("c", both())),
        (
            "PUT",
            "api/v1/*/secrets/c",
            secret("c", json!({"tls.crt": "YQ=="})),
        ),
        ("PUT", "api/v1/*/secrets/nothing", secret("nothing", both())),
        // JSON patches: with tests that hold and that do not, of what is not there, and of a version that is over.
        (
            "PATCH",
            "api/v1/*/secrets/c",
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "$version"},
                {"op": "replace", "path": "/metadata/annotations/example.com~1a", "value": "3"},
            ]),
        ),
        (
            "PATCH",
            "api/v1/*/secrets/c",
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "$old"},
                {"op": "remove", "path": "/metadata/annotations"},
            ]),
        ),
        (
            "PATCH",
            "api/v1/*/secrets/c",
            json!([{"op": "add", "path": "/data/more", "value": "Yw=="}]),
        ),
        (
            "PATCH",
            "api/v1/*/secrets/c",
            json!([{"op": "remove", "path": "/data/more"}]),
        ),
        (
            "PATCH",
            "api/v1/*/secrets/c",
            json!([{"op": "remove", "path": "/data/more"}]),
        ),
        (
            "PATCH",
            "api/v1/*/secrets/c",
            json!([{"op": "replace", "path": "/metadata/resourceVersion", "value": "$old"}]),
        ),
        (
            "PATCH",
            "api/v1/*/secrets/c",
            json!([{"op": "replace", "path": "/metadata/uid", "value": "another"}]),
        ),
        ("GET", "api/v1/*/secrets/c", Value::Null),
        // A group that nobody has, and a kind that its group has not.
        ("GET", "apis/nobody.example.com/v1/*/things", Value::Null),
        ("GET", "apis/apps/v1/*/things", Value::Null),
        // What a watch says that begins before the last three changes.
        ("GET", "api/v1/*/secrets/c", Value::Null),
        ("PATCH", "api/v1/*/secrets/c", annotated(json!("7"))),
        (
            "PATCH",
            "api/v1/*/secrets/c",
            json!({"metadata": {"labels": {"app": "d"}}}),
        ),
        ("DELETE", "api/v1/*/secrets/c", Value::Null),
        (
            "GET",
            "api/v1/*/secrets?watch=true&timeoutSeconds=3&labelSelector=app%3Dc&resourceVersion=$first",
            Value::Null,
        ),
        (
            "GET",
            "api/v1/*/secrets?watch=true&timeoutSeconds=3&resourceVersion=$first",
            Value::Null,
        ),
        // A watch that begins with what there is, and says where that ends.
        (
            "GET",
            "api/v1/*/secrets?watch=true&timeoutSeconds=3&allowWatchBookmarks=true&sendInitialEvents=true\
             &resourceVersionMatch=NotOlderThan",
            Value::Null,
        ),
    ]
}

/// What stands for something in the next request.
#[derive(Default)]
struct Known {
    uid: String,
    version: String,
    old: String,
    first: String,
    token: String,
}

impl Known {
    fn fill(&self, text: &str) -> String {
        text.replace("$uid", &self.uid)
            .replace("$version", &self.version)
            .replace("$old", &self.old)
            .replace("$first", &self.first)
            .replace("$continue", &self.token)
    }

    fn learn(&mut self, answer: &Value) {
        let text = |path: &str| {
            answer
                .pointer(path)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        if let Some(token) = text("/metadata/continue") {
            self.token = token;
        }
        if let (Some(uid), Some(version)) =
            (text("/metadata/uid"), text("/metadata/resourceVersion"))
            && self.version != version
        {
            self.old = std::mem::replace(&mut self.version, version);
            if self.uid != uid {
                self.first.clone_from(&self.version);
            }
            self.uid = uid;
        }
    }
}

/// Carries the operations out one after the other; what is left of each answer is what has to be the same.
async fn answers(client: &Client, namespace: &str) -> Result<Vec<String>> {
    let mut known = Known::default();
    let mut all = Vec::new();
    for (method, path, body) in operations() {
        let target = format!(
            "/{}",
            known
                .fill(path)
                .replace('*', &format!("namespaces/{namespace}"))
        );
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes())?)
            .uri(target);
        let kind = match method {
            "PATCH" if body.is_array() => "application/json-patch+json",
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        request = request.header(http::header::CONTENT_TYPE, kind);
        let text = if body.is_null() {
            String::new()
        } else {
            known.fill(&body.to_string())
        };
        let answer = client
            .send(request.body(Body::from(text.into_bytes()))?)
            .await?;
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect_bytes().await?;
        let before = known.version.clone();
        let seen: Vec<String> = if path.contains("watch=") {
            bytes
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .map(serde_json::from_slice::<Value>)
                .collect::<Result<Vec<_>, _>>()?
                .iter()
                // The server sends other bookmarks when it likes.
                .filter(|event| {
                    let annotations = &event["object"]["metadata"]["annotations"];
                    event["type"] != "BOOKMARK" || !annotations.is_null()
                })
                .map(|event| format!("{} {}", event["type"], kept(&event["object"])))
                .collect()
        } else {
            // Of a group that it does not know the server says so in plain text.
            let plain = || Value::from(String::from_utf8_lossy(&bytes).trim());
            let answer: Value = serde_json::from_slice(&bytes).unwrap_or_else(|_| plain());
            known.learn(&answer);
            vec![kept(&answer).to_string()]
        };
        // The controllers write the status of Deployments, and so change their versions.
        let changed = known.version != before && !path.contains("/deployments");
        all.push(format!(
            "{method} {path} {body}: {status} changed={changed} {}",
            seen.join(" ")
        ));
    }
    Ok(all)
}

/// What has to be the same: not what the server fills in by itself.
fn kept(answer: &Value) -> Value {
    if answer.is_string() {
        return answer.clone();
    }
    if answer["kind"] == "Status" {
        // By this word the operator knows that the object is another one.
        let of_uid = { answer["message"].as_str() }.is_some_and(|it| it.contains("metadata.uid"));
        return json!({
            "code": answer["code"], "reason": answer["reason"], "status": answer["status"], "ofUid": of_uid,
        });
    }
    if let Some(items) = answer["items"].as_array() {
        let items: Vec<Value> = items.iter().map(kept).collect();
        let more = answer["metadata"]["continue"]
            .as_str()
            .is_some_and(|it| !it.is_empty());
        return json!({"kind": answer["kind"], "items": items, "more": more});
    }
    let metadata = &answer["metadata"];
    let mut annotations = metadata["annotations"].clone();
    if let Some(all) = annotations.as_object_mut() {
        // The controller of Deployments counts their templates there.
        all.remove("deployment.kubernetes.io/revision");
        if all.is_empty() {
            annotations = Value::Null;
        }
    }
    let template = &answer["spec"]["template"]["metadata"]["annotations"];
    let managers = metadata["managedFields"].as_array().into_iter().flatten();
    let of_leaf = managers
        .filter(|it| it["fieldsV1"].to_string().contains("leaf.tls"))
        .count();
    json!({
        "kind": answer["kind"], "name": metadata["name"], "labels": metadata["labels"], "annotations": annotations,
        "generation": metadata["generation"], "type": answer["type"], "data": answer["data"],
        "immutable": answer["immutable"], "template": template, "ofLeaf": of_leaf,
        "holder": answer["spec"]["holderIdentity"], "replicas": answer["spec"]["replicas"],
    })
}

#[tokio::test]
async fn the_simulated_api_server_answers_as_the_real_one_does() -> Result<()> {
    let bench = Bench::shared().await?;
    let space = Space::new(bench.client()?, "simulated", "nobody").await?;
    let world = World::new(1, Story::new(false));
    let way = Way::new(&world, "a1");
    let clients = connect_over(way, WriteGate::open(), &Arc::new(Metrics::new()?));
    let (client, _) = clients.map_err(test_bench::Error::from_boxed)?;
    let (real, simulated) = tokio::try_join!(
        answers(&space.client, &space.name),
        answers(&client, &space.name)
    )?;
    let differences: Vec<String> = { real.iter().zip(&simulated) }
        .filter(|(real, simulated)| real != simulated)
        .map(|(real, simulated)| format!("real       {real}\nsimulated  {simulated}"))
        .collect();
    let (count, left) = (real.len(), differences.len());
    // Not `eprintln`, which the harness keeps to itself unless the test fails.
    writeln!(
        std::io::stderr(),
        "simulation: {count} operations compared, {left} differences"
    )?;
    let mut report = Report::new("simulated", "make integration");
    report.count("simulation.operations", count, "operations")?;
    report.count("simulation.differences", left, "differences")?;
    report.finish()?;
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    assert_eq!(real.len(), simulated.len());
    { operations().len() > 70 }
        .then_some(())
        .context("too few operations")
}

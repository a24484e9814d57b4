//! What somebody can do who has stolen the operator's token: each right of `rbac/` and each rule of
//! `deploy/admission/operator*.yaml` is tried with it, and docs/threat-model.md lists what is left.

mod set_up;
mod tries;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use http::{Method, Request};
use kube::Client;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use test_bench::objects::{Reference, Space, workload};
use test_bench::{Bench, Context as _, Operator, Result, bail, ensure, eventually};

use crate::argo::Argo;
use crate::renewal::{SOON, options};
use set_up::{foreign, set_up};
use tries::at_home::at_home;
use tries::elsewhere::elsewhere;
use tries::workloads::workloads;
use tries::{OURS, PATH, ingress, labelled, merge, named};

/// All roles, in the order in which the threat model lists them; those of single namespaces are the same.
const ROLES: [&str; 11] = [
    "rbac/clusterrole.yaml",
    "rbac/role.yaml",
    "rbac/addons/access.yaml",
    "rbac/addons/argo-rollouts.yaml",
    "rbac/addons/declarations.yaml",
    "rbac/addons/eviction.yaml",
    "rbac/addons/namespace-labels.yaml",
    "rbac/addons/route-gateway.yaml",
    "rbac/addons/route-ingress.yaml",
    "rbac/addons/routes.yaml",
    "rbac/addons/verify.yaml",
];

/// Verbs that change something.
const WRITES: [&str; 3] = ["create", "patch", "delete"];

/// Long enough for an answer, once the policies are in force.
const SETTLED: Duration = Duration::from_secs(5);

/// Reviews: no policy sees them, since the API server leaves them out, and they change nothing.
const UNSEEN: [&str; 2] = ["tokenreviews", "subjectaccessreviews"];

/// A rule of a role.
struct Rule {
    file: &'static str,
    resources: Vec<String>,
    verbs: Vec<String>,
    names: Vec<String>,
}

impl Rule {
    /// Whether it holds in the operator's own namespace only.
    fn at_home(&self) -> bool {
        self.file == ROLES[1] || self.file.contains("/route-")
    }
}

fn rules() -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for file in ROLES {
        let text = fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR")))?;
        for role in serde_saphyr::from_multiple::<Value>(&text)? {
            for rule in role["rules"].as_array().into_iter().flatten() {
                let texts = |key: &str| -> Result<Vec<String>> {
                    match rule.get(key) {
                        Some(list) => Ok(serde_json::from_value(list.clone())?),
                        None => Ok(Vec::new()),
                    }
                };
                rules.push(Rule {
                    file,
                    resources: texts("resources")?,
                    verbs: texts("verbs")?,
                    names: texts("resourceNames")?,
                });
            }
        }
    }
    Ok(rules)
}

/// Where a resource stands.
fn group(resource: &str) -> &'static str {
    match resource {
        "deployments" | "statefulsets" | "daemonsets" | "replicasets" => "apis/apps/v1",
        "leases" => "apis/coordination.k8s.io/v1",
        "events" => "apis/events.k8s.io/v1",
        "ingresses" => "apis/networking.k8s.io/v1",
        "httproutes" => "apis/gateway.networking.k8s.io/v1",
        "rollouts" => "apis/argoproj.io/v1alpha1",
        "jobs" => "apis/batch/v1",
        "tokenreviews" => "apis/authentication.k8s.io/v1",
        "subjectaccessreviews" => "apis/authorization.k8s.io/v1",
        "clusterroles" | "roles" | "rolebindings" => "apis/rbac.authorization.k8s.io/v1",
        _ => "api/v1",
    }
}

/// What the API server says.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    /// The role does not give it.
    Forbidden,
    /// A policy refuses it, and says why.
    Refused(String),
}

/// Asks for something; what would be changed is not kept.
async fn ask(client: &Client, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
    let reads = method == Method::GET;
    let dry = if reads { "" } else { "?dryRun=All" };
    let kind = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
    let request = Request::builder()
        .method(method)
        .uri(format!("/{path}{dry}"))
        .header("content-type", kind)
        .body(body)?;
    match client.request_text(request).await {
        Ok(_) => Ok(Answer::Done),
        Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy") => {
            Ok(Answer::Refused(status.message.clone()))
        }
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Answer::Forbidden),
        // What does not exist may be asked for. Whether a pod exists is looked at after the policies.
        Err(kube::Error::Api(status))
            if status.code == 404 && (reads || path.ends_with("/eviction")) =>
        {
            Ok(Answer::Done)
        }
        Err(error) => Err(error.into()),
    }
}

/// What the policies say of it.
const NO_WORKLOADS: &str = "neither makes nor deletes workloads";

/// What no role gives, in which namespace or in none, so that no policy is needed.
const NEVER: [(&str, &str, &str, &str); 10] = [
    ("PATCH", "home", "leases", "another"),
    ("PATCH", "home", "ingresses", "route"),
    ("POST", "home", "pods", ""),
    ("POST", "home", "serviceaccounts/token", "cert-renew"),
    ("DELETE", "space", "secrets", "tls"),
    ("POST", "space", "ingresses", ""),
    ("POST", "space", "pods", ""),
    ("DELETE", "space", "pods", "any"),
    ("GET", "space", "pods/exec", "any"),
    ("POST", "space", "rolebindings", ""),
];

/// The path of a resource, or of one of its objects.
fn path(namespace: &str, resource: &str, name: &str) -> String {
    let (resource, sub) = match resource.split_once('/') {
        Some((resource, sub)) => (resource, format!("/{sub}")),
        None => (resource, String::new()),
    };
    let at = if resource == "namespaces" || UNSEEN.contains(&resource) {
        String::new()
    } else {
        format!("namespaces/{namespace}/")
    };
    let name = if name.is_empty() {
        String::new()
    } else {
        format!("/{name}")
    };
    format!("{}/{at}{resource}{name}{sub}", group(resource))
}

/// With the kind that the API server asks for.
fn typed(resource: &str, mut object: Value) -> Value {
    let kind = match resource {
        "secrets" => "Secret",
        "configmaps" => "ConfigMap",
        "leases" => "Lease",
        "ingresses" => "Ingress",
        "httproutes" => "HTTPRoute",
        "events" => "Event",
        "tokenreviews" => "TokenReview",
        "subjectaccessreviews" => "SubjectAccessReview",
        _ => return object,
    };
    let group = group(resource);
    let version = group
        .strip_prefix("apis/")
        .or_else(|| group.strip_prefix("api/"));
    merge(&mut object, json!({"apiVersion": version, "kind": kind}));
    object
}

#[tokio::test]
async fn each_right_and_each_rule_is_tried() -> Result<()> {
    let bench = Bench::shared().await?;
    bench.install_gateway_api().await?;
    let mut options = options();
    options.addons = ROLES[2..].iter().map(|file| (*file).to_owned()).collect();
    let operator = Operator::install(bench, options).await?;
    let space = Space::new(bench.client()?, "stolen", operator.namespace()).await?;
    set_up(&operator, &space).await?;
    let _argo = Argo::start(bench, &space, "tls").await?;
    let rollouts = Argo::rollouts(&space);
    let (params, others) = (PatchParams::default(), Patch::Merge(foreign()));
    rollouts.patch("shop", &params, &others).await?;
    let thief = operator.client().await?;
    let home = operator.namespace();

    // Reading is narrowed by the roles alone.
    let rules = rules()?;
    for rule in &rules {
        let namespace = if rule.at_home() { home } else { &space.name };
        let name = rule.names.first().map_or("any", |name| name);
        for resource in &rule.resources {
            for verb in &rule.verbs {
                let asked = match verb.as_str() {
                    "get" if resource == "namespaces" => path("", resource, &space.name),
                    "get" => path(namespace, resource, name),
                    "list" => path(namespace, resource, ""),
                    "watch" if rule.names.is_empty() => {
                        path(namespace, resource, "") + "?watch=1&timeoutSeconds=1"
                    }
                    "watch" => {
                        let fields =
                            format!("?watch=1&timeoutSeconds=1&fieldSelector=metadata.name={name}");
                        path(namespace, resource, "") + &fields
                    }
                    _ => continue,
                };
                let answer = ask(&thief, Method::GET, &asked, None).await?;
                ensure!(answer == Answer::Done, "{verb} {resource}: {answer:?}");
            }
        }
    }
    for (method, place, resource, name) in NEVER {
        let namespace = if place == "home" { home } else { &space.name };
        let asked = path(namespace, resource, name);
        let body = typed(resource, named("new", json!({})));
        let body = (method != "GET").then_some(&body);
        let answer = ask(&thief, method.parse()?, &asked, body).await?;
        ensure!(answer == Answer::Forbidden, "{method} {asked}: {answer:?}");
    }

    // Writing is narrowed by the policies: for each right something that the operator does, and something that it does not.
    let mut outcomes: BTreeMap<(bool, &str, &str), BTreeSet<bool>> = BTreeMap::new();
    let (mut said, mut wrong) = (String::new(), Vec::new());
    let tries = at_home().into_iter().map(|it| (true, it));
    let in_the_space = elsewhere(&space.name).into_iter().chain(workloads());
    let tries = tries.chain(in_the_space.map(|it| (false, it)));
    for (is_home, (verb, resource, name, body, refusal)) in tries {
        let namespace = if is_home { home } else { &space.name };
        let method = match verb {
            "create" => Method::POST,
            "patch" => Method::PATCH,
            _ => Method::DELETE,
        };
        let body = match (verb, body) {
            (_, Value::Null) => None,
            ("create", body) => Some(typed(resource, body)),
            (_, body) => Some(body),
        };
        let asked = path(namespace, resource, name);
        // A policy is in force a moment after it is made, and what it reads a moment after that. Once one answer is wrong, that
        // has passed: one run says which others are.
        let patience = if wrong.is_empty() { SOON } else { SETTLED };
        let answered = eventually(patience, "it is answered as it should be", async || {
            let answer = match ask(&thief, method.clone(), &asked, body.as_ref()).await {
                // What is there already was let through.
                Err(error) if error.to_string().contains("already exists") => Answer::Done,
                other => other?,
            };
            match (&answer, refusal) {
                (Answer::Done, None) => Ok(()),
                (Answer::Refused(why), Some(part)) if why.contains(part) => Ok(()),
                _ => bail!("{verb} {asked} {body:?}: {answer:?}, expected {refusal:?}"),
            }
        })
        .await;
        wrong.extend(answered.err().map(|error| format!("{error:#}")));
        if let Some(part) = refusal {
            said += part;
            said += "\n";
        }
        outcomes
            .entry((is_home, verb, resource))
            .or_default()
            .insert(refusal.is_none());
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    for rule in &rules {
        for resource in &rule.resources {
            for verb in rule
                .verbs
                .iter()
                .filter(|verb| WRITES.contains(&verb.as_str()))
            {
                let tried = outcomes.get(&(rule.at_home(), verb.as_str(), resource.as_str()));
                let ways = if UNSEEN.contains(&&**resource) { 1 } else { 2 };
                ensure!(
                    tried.is_some_and(|tried| tried.len() == ways),
                    "{verb} {resource} of {} is not tried both ways",
                    rule.file
                );
            }
        }
    }
    widened(&operator, &space, &thief).await?;
    said += NO_WORKLOADS;
    // Every rule has refused something.
    let untried: Vec<String> = messages()?
        .into_iter()
        .filter(|message| !said.lines().any(|part| message.contains(part)))
        .collect();
    ensure!(untried.is_empty(), "{untried:#?}");
    Ok(())
}

/// What no role of ours gives: the policies hold where somebody has widened one.
async fn widened(operator: &Operator<'_>, space: &Space, thief: &Client) -> Result<()> {
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let kinds = [
        "deployments",
        "statefulsets",
        "daemonsets",
        "replicasets",
        "replicationcontrollers",
        "rollouts",
    ];
    let rules = [
        rule(&["", "apps", "argoproj.io"], &kinds, &["create", "delete"]),
        rule(&["argoproj.io"], &["rollouts/status"], &["patch"]),
        rule(&["networking.k8s.io"], &["ingresses"], &["create"]),
        rule(&[""], &["secrets"], &["delete"]),
    ];
    let subject =
        json!({"kind": "ServiceAccount", "name": "cert-renew", "namespace": operator.namespace()});
    let role_ref =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "widened"});
    for (resource, object) in [
        ("roles", json!({"kind": "Role", "rules": rules})),
        (
            "rolebindings",
            json!({"kind": "RoleBinding", "roleRef": role_ref, "subjects": [subject]}),
        ),
    ] {
        let mut object = named("widened", object);
        object["apiVersion"] = json!("rbac.authorization.k8s.io/v1");
        let request = Request::post(format!("/{}", path(&space.name, resource, "")))
            .header("content-type", "application/json")
            .body(object.to_string().into_bytes())?;
        space.client.request_text(request).await?;
    }
    let status = path(&space.name, "rollouts/status", "shop");
    let route = typed("ingresses", labelled("new", ingress(PATH, OURS)));
    let own_metadata = "of a Rollout's own metadata";
    let mut tries = vec![
        (
            Method::DELETE,
            path(&space.name, "secrets", "record"),
            None,
            "makes and deletes nothing but its account keys and order records",
        ),
        (
            Method::POST,
            path(&space.name, "ingresses", ""),
            Some(route),
            "makes and deletes only routes of its own",
        ),
        (
            Method::PATCH,
            status.clone(),
            Some(json!({"status": {"x": "y"}})),
            own_metadata,
        ),
        (
            Method::PATCH,
            status,
            Some(json!({"status": null})),
            own_metadata,
        ),
    ];
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "ReplicationController",
        "Rollout",
    ] {
        let resource = kind.to_lowercase() + "s";
        let mut made = match kind {
            "Rollout" => workload("Deployment", "new", 1, Reference::Env, "tls"),
            _ => workload(kind, "new", 1, Reference::Env, "tls"),
        };
        let mut there = "web";
        if kind == "Rollout" {
            let typed = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": kind});
            merge(&mut made, typed);
            there = "shop";
        }
        tries.extend([
            (
                Method::POST,
                path(&space.name, &resource, ""),
                Some(made),
                NO_WORKLOADS,
            ),
            (
                Method::DELETE,
                path(&space.name, &resource, there),
                None,
                NO_WORKLOADS,
            ),
        ]);
    }
    for (method, asked, body, refusal) in tries {
        eventually(SOON, "a widened role is narrowed", async || {
            match ask(thief, method.clone(), &asked, body.as_ref()).await? {
                Answer::Refused(why) if why.contains(refusal) => Ok(()),
                answer => bail!("{method} {asked} {body:?}: {answer:?}"),
            }
        })
        .await?;
    }
    Ok(())
}

/// What the policies for the operator say when they refuse.
fn messages() -> Result<Vec<String>> {
    let mut messages = Vec::new();
    for file in ["operator.yaml", "operator-others.yaml"] {
        let path = format!("{}/deploy/admission/{file}", env!("CARGO_MANIFEST_DIR"));
        for manifest in serde_saphyr::from_multiple::<Value>(&fs::read_to_string(path)?)? {
            let validations = manifest["spec"]["validations"].as_array();
            for validation in validations.into_iter().flatten() {
                messages.push(
                    validation["message"]
                        .as_str()
                        .context("no message")?
                        .to_owned(),
                );
            }
        }
    }
    Ok(messages)
}

/// The list of what is left is the roles, each rule once and in their order.
#[test]
fn the_threat_model_lists_every_right() -> Result<()> {
    let text = include_str!("../docs/threat-model.md");
    let (_, list) = text
        .split_once("### What a stolen token can still do")
        .context("no list")?;
    let rows = list.lines().filter(|line| line.starts_with("| `rbac/"));
    let listed: Vec<[String; 3]> = rows
        .map(|row| {
            let mut cells = row
                .trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().replace('`', ""));
            [(); 3].map(|()| cells.next().unwrap_or_default())
        })
        .collect();
    let rights: Vec<[String; 3]> = rules()?
        .into_iter()
        .map(|rule| {
            let names = rule.names.iter().map(|name| format!(" {name}"));
            let resources = rule.resources.join(", ") + &names.collect::<String>();
            [rule.file.to_owned(), resources, rule.verbs.join(", ")]
        })
        .collect();
    assert_eq!(listed, rights);
    Ok(())
}

//! The objects of the cluster, as an API server keeps them: versions, guarded writes, and what has changed since.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::clock;
use crate::patches;

/// What of an object's metadata no writer changes.
const KEPT: [&str; 6] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
];
/// Most changes of a kind that a watch can catch up on; older ones are gone (410).
const REMEMBERED: usize = 400;

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A kind of objects.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// As in paths.
    pub plural: &'static str,
    /// Group and version, as in objects.
    pub api: &'static str,
    /// Its name.
    pub name: &'static str,
}

const fn kind(plural: &'static str, api: &'static str, name: &'static str) -> Kind {
    Kind { plural, api, name }
}

/// The Secrets' kind.
pub static SECRETS: Kind = kind("secrets", "v1", "Secret");
/// The ConfigMaps' kind.
pub static CONFIG_MAPS: Kind = kind("configmaps", "v1", "ConfigMap");
/// The pods' kind.
pub static PODS: Kind = kind("pods", "v1", "Pod");
/// The Deployments' kind.
pub static DEPLOYMENTS: Kind = kind("deployments", "apps/v1", "Deployment");
/// The ReplicaSets' kind.
pub static REPLICA_SETS: Kind = kind("replicasets", "apps/v1", "ReplicaSet");
/// The Leases' kind.
pub static LEASES: Kind = kind("leases", "coordination.k8s.io/v1", "Lease");
/// The Events' kind: they are answered and not kept.
pub static EVENTS: Kind = kind("events", "events.k8s.io/v1", "Event");

static EMPTY: [Kind; 7] = [
    kind("namespaces", "v1", "Namespace"),
    kind("services", "v1", "Service"),
    kind("replicationcontrollers", "v1", "ReplicationController"),
    kind("statefulsets", "apps/v1", "StatefulSet"),
    kind("daemonsets", "apps/v1", "DaemonSet"),
    kind("jobs", "batch/v1", "Job"),
    kind("ingresses", "networking.k8s.io/v1", "Ingress"),
];

impl Kind {
    /// The kind of a path's plural and group.
    #[must_use]
    pub fn of(api: &str, plural: &str) -> Option<&'static Self> {
        Self::all().find(|kind| kind.plural == plural && kind.api == api)
    }

    /// Whether this path, from the group on, is within a group and version that there are.
    #[must_use]
    pub fn has_group(path: &str) -> bool {
        Self::all().any(|kind| {
            let rest = path.strip_prefix("api/").unwrap_or(path);
            let rest = rest.strip_prefix(kind.api);
            rest.is_some_and(|rest| rest.starts_with('/'))
        })
    }

    fn all() -> impl Iterator<Item = &'static Self> {
        let used = [
            &SECRETS,
            &CONFIG_MAPS,
            &PODS,
            &DEPLOYMENTS,
            &REPLICA_SETS,
            &LEASES,
            &EVENTS,
        ];
        used.into_iter().chain(&EMPTY)
    }
}

impl Key {
    /// An object of this kind.
    #[must_use]
    pub fn new(kind: &'static Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind.plural, self.namespace, self.name)
    }
}

/// A change of an object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The cluster's version with it.
    pub version: u64,
    /// Which object.
    pub key: Key,
    /// The object before it.
    pub before: Option<Arc<Value>>,
    /// The object after it; of a deletion with the deletion's version.
    pub after: Arc<Value>,
    /// Whether it is a deletion.
    pub deleted: bool,
}

/// Why a write is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub code: u16,
    /// In one word.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

impl Refusal {
    /// With this status.
    #[must_use]
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code,
            reason,
            message,
        }
    }
}

/// The changes of one kind, as the API server's watch cache has them: a kind that rests is not crowded out by another.
#[derive(Debug)]
struct Changes {
    kept: VecDeque<Change>,
    /// The version of the last one that is not kept any more.
    gone: u64,
    told: watch::Sender<u64>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            kept: VecDeque::new(),
            gone: 0,
            told: watch::Sender::new(0),
        }
    }
}

/// All objects.
#[derive(Debug)]
pub struct Objects {
    version: u64,
    made: u64,
    all: BTreeMap<Key, Arc<Value>>,
    changes: BTreeMap<&'static Kind, Changes>,
    /// Changes before this version are forgotten.
    compacted: u64,
}

impl Default for Objects {
    fn default() -> Self {
        Self {
            version: 1,
            made: 0,
            all: BTreeMap::new(),
            changes: BTreeMap::new(),
            compacted: 1,
        }
    }
}

impl Objects {
    /// The cluster's version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.all.get(key)
    }

    /// The objects of a kind, in all namespaces or one, by name.
    pub fn list<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let first = Key::new(kind, namespace.unwrap_or_default(), "");
        self.all.range(first..).take_while(move |(key, _)| {
            key.kind == kind && namespace.is_none_or(|namespace| key.namespace == namespace)
        })
    }

    /// What of a kind has changed after this version; `None` if that is not known any more.
    #[must_use]
    pub fn since(&self, kind: &'static Kind, version: u64) -> Option<Vec<Change>> {
        if version < self.compacted {
            return None;
        }
        let Some(changes) = self.changes.get(kind) else {
            return Some(Vec::new());
        };
        if version < changes.gone {
            return None;
        }
        let later = changes.kept.iter().rev();
        let later = later.take_while(|change| change.version > version);
        let mut later: Vec<Change> = later.cloned().collect();
        later.reverse();
        Some(later)
    }

    /// Tells of changes of a kind.
    pub fn changes_of(&mut self, kind: &'static Kind) -> watch::Receiver<u64> {
        self.changes.entry(kind).or_default().told.subscribe()
    }

    /// Forgets what has changed: every watch has to list again.
    pub fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
        for changes in self.changes.values_mut() {
            changes.kept.clear();
            changes.told.send_replace(self.version);
        }
    }

    /// Makes an object.
    ///
    /// # Errors
    /// 409 if there is one, 422 if it cannot be.
    pub fn create(&mut self, key: &Key, mut object: Value) -> Result<Arc<Value>, Refusal> {
        if self.all.contains_key(key) {
            let message = format!("{} {:?} already exists", key.kind.plural, key.name);
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        self.made += 1;
        let uid = format!("00000000-0000-4000-8000-{:012x}", self.made);
        let made = timestamp(clock::now());
        let metadata = metadata(&mut object);
        metadata.insert("namespace".into(), json!(key.namespace));
        metadata.insert("name".into(), json!(key.name));
        metadata.insert("uid".into(), json!(uid));
        metadata.insert("creationTimestamp".into(), json!(made));
        if key.kind.api == "apps/v1" {
            metadata.insert("generation".into(), json!(1));
        }
        object["apiVersion"] = json!(key.kind.api);
        object["kind"] = json!(key.kind.name);
        valid(key, None, &object)?;
        Ok(self.put(key, None, object, false))
    }

    /// Changes an object by a merge patch (RFC 7386), whose uid and resourceVersion have to fit.
    ///
    /// # Errors
    /// 404, 409 and 422.
    pub fn merge(
        &mut self,
        key: &Key,
        patch: &Value,
        manager: &str,
    ) -> Result<Arc<Value>, Refusal> {
        let merged = |object: &mut Value| {
            merge(object, patch);
            Ok(())
        };
        let managed = |object: &mut Value| manage(object, patch, manager);
        self.change(key, 422, merged, managed)
    }

    /// Changes an object by a JSON patch (RFC 6902).
    ///
    /// # Errors
    /// 400, 404, 409 and 422.
    pub fn patch(&mut self, key: &Key, operations: &Value) -> Result<Arc<Value>, Refusal> {
        let patched = |object: &mut Value| patches::apply(object, operations);
        self.change(key, 422, patched, |_| {})
    }

    /// Puts another in the place of an object, which has to be of the version that it names, if it names one.
    ///
    /// # Errors
    /// 404, 409 and 422.
    pub fn replace(&mut self, key: &Key, whole: Value) -> Result<Arc<Value>, Refusal> {
        let put = |object: &mut Value| {
            *object = whole;
            Ok(())
        };
        self.change(key, 409, put, |_| {})
    }

    /// A guarded change: what the server keeps itself stays, and what changes nothing is none. `of_uid` is the status
    /// for the uid of another object, `managed` notes who has changed a `spec`.
    fn change(
        &mut self,
        key: &Key,
        of_uid: u16,
        change: impl FnOnce(&mut Value) -> Result<(), Refusal>,
        managed: impl FnOnce(&mut Value),
    ) -> Result<Arc<Value>, Refusal> {
        let before = Arc::clone(self.all.get(key).ok_or_else(|| missing(key))?);
        let mut object = Value::clone(&before);
        change(&mut object)?;
        fits(key, &before, &object["metadata"], of_uid)?;
        object["apiVersion"] = json!(key.kind.api);
        object["kind"] = json!(key.kind.name);
        let metadata = metadata(&mut object);
        for field in KEPT {
            if let Some(value) = before["metadata"].get(field) {
                metadata.insert(field.into(), value.clone());
            }
        }
        if object == *before {
            return Ok(before);
        }
        valid(key, Some(&before), &object)?;
        count(key, &before, &mut object);
        if key.kind.api == "apps/v1" && object["spec"] != before["spec"] {
            managed(&mut object);
        }
        Ok(self.put(key, Some(before), object, false))
    }

    /// Replaces an object as its controller or its user does, whatever its version.
    pub fn set(&mut self, key: &Key, change: impl FnOnce(&mut Value)) {
        let Some(before) = self.all.get(key).cloned() else {
            return;
        };
        let mut object = Value::clone(&before);
        change(&mut object);
        if object == *before {
            return;
        }
        count(key, &before, &mut object);
        self.put(key, Some(before), object, false);
    }

    /// Deletes an object, if uid and resourceVersion fit.
    ///
    /// # Errors
    /// 404 and 409.
    pub fn delete(&mut self, key: &Key, preconditions: &Value) -> Result<Arc<Value>, Refusal> {
        let before = Arc::clone(self.all.get(key).ok_or_else(|| missing(key))?);
        fits(key, &before, preconditions, 409)?;
        let object = Value::clone(&before);
        Ok(self.put(key, Some(before), object, true))
    }

    fn put(
        &mut self,
        key: &Key,
        before: Option<Arc<Value>>,
        mut object: Value,
        deleted: bool,
    ) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let after = Arc::new(object);
        if deleted {
            self.all.remove(key);
        } else {
            self.all.insert(key.clone(), Arc::clone(&after));
        }
        let changes = self.changes.entry(key.kind).or_default();
        if changes.kept.len() == REMEMBERED
            && let Some(first) = changes.kept.pop_front()
        {
            changes.gone = first.version;
        }
        changes.kept.push_back(Change {
            version: self.version,
            key: key.clone(),
            before,
            after: Arc::clone(&after),
            deleted,
        });
        changes.told.send_replace(self.version);
        after
    }
}

fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]
        .as_object_mut()
        .unwrap_or_else(|| unreachable!("it was just made one"))
}

/// A change of what a workload asks for is a generation of it; of a Deployment, one of its annotations is too.
fn count(key: &Key, before: &Value, object: &mut Value) {
    let annotated = object["metadata"]["annotations"] != before["metadata"]["annotations"];
    let counts = object["spec"] != before["spec"] || key.kind == &DEPLOYMENTS && annotated;
    if key.kind.api == "apps/v1" && counts {
        let generation = before["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
        object["metadata"]["generation"] = json!(generation);
    }
}

fn missing(key: &Key) -> Refusal {
    let message = format!("{} {:?} not found", key.kind.plural, key.name);
    Refusal::new(404, "NotFound", message)
}

/// Whether uid and version, where they are given, are the object's.
fn fits(key: &Key, object: &Value, wanted: &Value, of_uid: u16) -> Result<(), Refusal> {
    let differs = |field: &str| {
        let value = &wanted[field];
        !value.is_null() && *value != object["metadata"][field]
    };
    // A changed uid in a patch is one of an immutable field; the API server looks at the version first.
    if differs("uid") && of_uid == 422 && !differs("resourceVersion") {
        let message = format!("{key} is invalid: metadata.uid: Invalid value: field is immutable");
        return Err(Refusal::new(422, "Invalid", message));
    }
    if differs("uid") {
        let message = format!("{key}: the uid in the precondition is another");
        return Err(Refusal::new(409, "Conflict", message));
    }
    if differs("resourceVersion") {
        let message = format!("{key}: the object has been modified");
        return Err(Refusal::new(409, "Conflict", message));
    }
    Ok(())
}

/// What the API server checks of the kinds that are written.
fn valid(key: &Key, before: Option<&Value>, object: &Value) -> Result<(), Refusal> {
    let invalid = |message: &str| Err(Refusal::new(422, "Invalid", format!("{key}: {message}")));
    if key.kind.plural == "ingresses" {
        return admitted(object);
    }
    if key.kind == &SECRETS {
        if object["type"] == "kubernetes.io/tls" {
            let has = |name: &str| !object["data"][name].is_null();
            if !has("tls.crt") || !has("tls.key") {
                return invalid("tls.crt and tls.key are required");
            }
        }
        if let Some(before) = before {
            if before["type"] != object["type"] {
                return invalid("type is immutable");
            }
            if before["immutable"] == true && before["data"] != object["data"] {
                return invalid("data is immutable when `immutable` is set");
            }
        }
    }
    Ok(())
}

/// What ingress-nginx's webhook refuses: a path with a full stop that is not up to the implementation.
fn admitted(ingress: &Value) -> Result<(), Refusal> {
    let rules = ingress["spec"]["rules"].as_array().into_iter().flatten();
    let paths = rules.filter_map(|rule| rule["http"]["paths"].as_array());
    let refused = paths.flatten().find(|it| {
        let has_stop = it["path"].as_str().is_some_and(|path| path.contains('.'));
        it["pathType"] != "ImplementationSpecific" && has_stop
    });
    match refused {
        None => Ok(()),
        Some(it) => {
            let (path, kind) = (&it["path"], &it["pathType"]);
            let message = format!(
                "admission webhook \"validate.nginx.ingress.kubernetes.io\" denied the request: ingress contains invalid \
                 paths: path {path} cannot be used with pathType {kind}"
            );
            Err(Refusal::new(400, "BadRequest", message))
        }
    }
}

/// RFC 7386.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(target) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Notes who has changed the annotations of a template, and when.
fn manage(object: &mut Value, patch: &Value, manager: &str) {
    let Some(changed) = patch["spec"]["template"]["metadata"]["annotations"].as_object() else {
        return;
    };
    let fields: Map<String, Value> = changed
        .keys()
        .map(|name| (format!("f:{name}"), json!({})))
        .collect();
    let fields = json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": fields}}}});
    let entry = json!({
        "manager": manager, "operation": "Update", "apiVersion": "apps/v1",
        "time": timestamp(clock::now()), "fieldsType": "FieldsV1", "fieldsV1": fields,
    });
    let mut managers = match object["metadata"]["managedFields"].take() {
        Value::Array(managers) => managers,
        _ => Vec::new(),
    };
    managers.retain(|it| it["manager"] != manager);
    managers.push(entry);
    object["metadata"]["managedFields"] = Value::Array(managers);
}

/// As in objects.
#[must_use]
pub fn timestamp(seconds: i64) -> String {
    cert_renew_core::time::UnixTime(seconds).to_string()
}

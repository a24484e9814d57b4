//! Pods and Jobs that use a Secret and that nothing can roll, and pods that use one although their workload's template
//! does not say so, because an admission webhook adds it. They are named, never touched.
//!
//! A pod without a controller and a Job keep their template for life. Pods of a CronJob are left out: its next run has
//! the new leaf. It needs the rights of rbac/addons/eviction.yaml; without them nothing is named.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use cert_renew_core::rollout::decode::{Condition, Meta, Object, Template};
use cert_renew_core::rollout::lean::Kept;
use cert_renew_core::rollout::references::{PodSpec, Reference};
use cert_renew_core::rollout::types::{Decision, Request as Wanted};
use cert_renew_core::rollout::workload::Workload;
use cert_renew_core::secret::workload::{Kind, RolloutMode, WorkloadRef};
use cert_renew_core::time::UnixTime;
use kube::api::ListParams;
use kube::{Client, Resource as _};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::rollout::error::Error;
use crate::rollout::listing::{Absent, List, Weight};
use crate::rollout::roller::Roller;

/// Most objects of a page: a pod is some 10 KB of JSON.
const PAGE: u32 = 100;
/// Selects running pods: those that have ended use nothing, and those that have not started will have the new leaf.
const ALIVE: &str = "status.phase=Running";

/// A pod or a Job that nothing replaces, or a pod of a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Unmanaged {
    kind: &'static str,
    name: Box<str>,
    created: Option<UnixTime>,
    references: Vec<Reference>,
    /// The object that it belongs to: possibly one of these, the last one by its own kind and name. `None`: no owner.
    of: Option<Vec<WorkloadRef>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(in crate::rollout) struct UnmanagedPodWire {
    metadata: Meta,
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(in crate::rollout) struct JobWire {
    metadata: Meta,
    spec: JobSpec,
    status: JobStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JobSpec {
    suspend: Option<bool>,
    template: Template,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JobStatus {
    conditions: Kept<Condition>,
}

impl Roller {
    /// [`bystanders`], without asking each time for what cannot be listed.
    ///
    /// # Errors
    /// As [`bystanders`].
    pub async fn bystanders(&self, namespace: &str) -> Result<Vec<Unmanaged>, Error> {
        all(&self.absent, &self.client, namespace).await
    }
}

/// The pods and Jobs of a namespace that nothing replaces; none of a kind that we may not list.
///
/// # Errors
/// When the API server does not answer.
pub async fn bystanders(client: &Client, namespace: &str) -> Result<Vec<Unmanaged>, Error> {
    all(&Absent::default(), client, namespace).await
}

async fn all(absent: &Absent, client: &Client, namespace: &str) -> Result<Vec<Unmanaged>, Error> {
    let weight = Weight::default();
    let of = |group, plural, fields| List {
        client,
        group,
        plural,
        namespace,
        params: ListParams::default().fields(fields),
        limit: PAGE,
    };
    let pods = read(
        of("/api/v1", "pods", ALIVE),
        &weight,
        UnmanagedPodWire::read,
    );
    let pods = absent.unless("pods", namespace, pods).await?;
    let jobs = read(of("/apis/batch/v1", "jobs", ""), &weight, JobWire::read);
    let jobs = absent.unless("jobs", namespace, jobs).await?;
    Ok(pods.into_iter().chain(jobs).collect())
}

async fn read<T: DeserializeOwned>(
    list: List<'_>,
    weight: &Weight,
    read: fn(T) -> Option<Unmanaged>,
) -> Result<Vec<Unmanaged>, Error> {
    let mut found = Vec::new();
    let each = |object: T| {
        let bystander = read(object);
        let references = bystander.iter().flat_map(|it| &it.references);
        weight.add(list.namespace, references.map(Reference::weight).sum())?;
        found.extend(bystander);
        Ok(())
    };
    list.each(each).await?;
    Ok(found)
}

impl UnmanagedPodWire {
    pub(in crate::rollout) fn read(self) -> Option<Unmanaged> {
        let of = self.metadata.controller().map(of);
        // Pods of a Job are covered by the Job; others belong to kinds that we do not know.
        if of.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        bystander(self.metadata, "pod", &self.spec, of)
    }
}

impl JobWire {
    pub(in crate::rollout) fn read(self) -> Option<Unmanaged> {
        let mut conditions = self.status.conditions.iter();
        let ended = conditions.any(|it| it.is_true("Complete") || it.is_true("Failed"));
        if ended || self.spec.suspend == Some(true) {
            return None;
        }
        let spec = self.spec.template.spec.unwrap_or_default();
        // The next run of a CronJob has the new leaf.
        if self.metadata.is_controlled() {
            return None;
        }
        bystander(self.metadata, "job", &spec, None)
    }
}

fn bystander(
    meta: Meta,
    kind: &'static str,
    spec: &PodSpec,
    of: Option<Vec<WorkloadRef>>,
) -> Option<Unmanaged> {
    let references = spec.references();
    let concerned = !references.is_empty() && !meta.is_leaving() && !meta.has_opted_out();
    concerned.then(|| Unmanaged {
        kind,
        created: meta.created(),
        name: meta.name,
        references,
        of,
    })
}

/// The workloads that a pod's controller may belong to: a ReplicaSet `web-6f9c` to the Deployment or the Rollout `web`.
fn of((kind, name): (&str, &str)) -> Vec<WorkloadRef> {
    let workload = |kind: Kind, name: &str| WorkloadRef {
        kind,
        name: name.into(),
    };
    let owner = Kind::ALL.into_iter().find(|it| Object::kind(it) == kind);
    let Some(owner) = owner else {
        return Vec::new();
    };
    let made = name.rsplit_once('-').filter(|_| owner == Kind::ReplicaSet);
    let makers = made
        .into_iter()
        .flat_map(|(name, _)| [Kind::Deployment, Kind::Rollout].map(|kind| workload(kind, name)));
    makers.chain([workload(owner, name)]).collect()
}

impl Unmanaged {
    /// Whether it refers to one of these Secrets.
    pub(in crate::rollout) fn refers_to_any(&self, secrets: &HashSet<&str>) -> bool {
        let mut references = self.references.iter();
        references.any(|reference| secrets.contains(&*reference.secret))
    }

    /// Whether it uses the Secret by one of these references to it, and has an earlier leaf of it.
    fn uses(&self, request: &Wanted, references: &[&Reference]) -> bool {
        let newer = |written| { self.created }.is_some_and(|at| at.is_certainly_after(written));
        let mut references = references.iter();
        !request.written.is_some_and(newer) && references.any(|it| it.takes(&request.keys))
    }
}

impl fmt::Display for Unmanaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// Whether there may be something to name: the leaf has changed, and its users do not reload by themselves.
#[must_use]
pub fn leaves_behind(request: &Wanted, verdict: &Decision) -> bool {
    let changed = || request.rolled_out.is_some() && !request.keys.is_none();
    request.mode != RolloutMode::None
        && match verdict {
            Decision::Roll => true,
            Decision::NothingRefers => changed(),
            Decision::UpToDate | Decision::FirstSight | Decision::Halted(_) | Decision::PutOff => {
                false
            }
        }
}

/// Pods and Jobs by the Secrets that they refer to, with those references.
pub(crate) type BySecret<'a> = HashMap<&'a str, Vec<(&'a Unmanaged, Vec<&'a Reference>)>>;

/// Pods and Jobs by the Secrets that they refer to.
#[must_use]
pub fn by_secret(all: &[Unmanaged]) -> BySecret<'_> {
    let mut found = BySecret::new();
    for bystander in all {
        let mut own: BTreeMap<&str, Vec<&Reference>> = BTreeMap::new();
        for reference in &bystander.references {
            own.entry(&reference.secret).or_default().push(reference);
        }
        for (secret, references) in own {
            let of = found.entry(secret).or_default();
            of.push((bystander, references));
        }
    }
    found
}

/// The workloads of a namespace by kind and name, and the Secrets that they refer to.
pub(crate) type ById<'a> = BTreeMap<&'a WorkloadRef, HashSet<&'a str>>;

/// These workloads by kind and name.
#[must_use]
pub fn by_id(all: &[Workload]) -> ById<'_> {
    let with_secrets = all.iter().map(|it| {
        let secrets = it.references.iter().map(|of| &*of.secret);
        (&it.id, secrets.collect())
    });
    with_secrets.collect()
}

/// Those that keep an earlier leaf of this Secret.
#[must_use]
pub fn left_behind(request: &Wanted, all: &BySecret<'_>) -> Vec<String> {
    let using = all.get(&*request.secret).into_iter().flatten();
    let using = using.filter(|(it, references)| it.of.is_none() && it.uses(request, references));
    using.map(|(it, _)| it.to_string()).collect()
}

/// The workloads whose pods use this Secret and have an earlier leaf, although neither their template nor the Secret
/// says so.
#[must_use]
pub fn unseen(request: &Wanted, all: &BySecret<'_>, workloads: &ById<'_>) -> Vec<String> {
    let known = |id: &WorkloadRef| {
        let refers = |secrets: &HashSet<&str>| secrets.contains(&*request.secret);
        request.workloads.contains(id) || workloads.get(id).is_some_and(refers)
    };
    let exists = |id: &&WorkloadRef| workloads.contains_key(*id);
    let using = all.get(&*request.secret).into_iter().flatten();
    let using = using.filter(|(it, references)| it.uses(request, references));
    let unseen = using.filter_map(|(it, _)| {
        let of = it.of.as_ref().filter(|of| !of.iter().any(known))?;
        of.iter().find(exists).or_else(|| of.last())
    });
    unseen
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(ToString::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use cert_renew_core::certificate::Fingerprint;
    use cert_renew_core::testing::{slower_than_linear_in, workload};
    use serde_json::{Value, json};

    use super::*;

    fn pod(metadata: Value) -> Option<Unmanaged> {
        let spec = json!({"volumes": [{"name": "v", "secret": {"secretName": "tls"}}]});
        let pod = json!({"metadata": metadata, "spec": spec});
        serde_json::from_value::<UnmanagedPodWire>(pod)
            .unwrap()
            .read()
    }

    /// What a Secret `tls` wants.
    fn wanted() -> Wanted {
        Wanted {
            leaf: Fingerprint::of(b"leaf"),
            not_after: UnixTime::NEVER,
            ..Wanted::first_sight("tls", "", None)
        }
    }

    fn job(owners: Value, suspend: bool, condition: &str) -> Option<Unmanaged> {
        let env = json!([{"secretRef": {"name": "tls"}}]);
        let template = json!({"spec": {"containers": [{"name": "c", "envFrom": env}]}});
        let job = json!({
            "metadata": {"name": "import", "ownerReferences": owners},
            "spec": {"suspend": suspend, "template": template},
            "status": {"conditions": [{"type": condition, "status": "True"}]}});
        serde_json::from_value::<JobWire>(job).unwrap().read()
    }

    #[test]
    fn a_pod_that_was_started_within_a_second_of_the_write_may_have_the_earlier_certificate() {
        let uses = |after: i64| {
            let at = UnixTime(1_800_000_000 + after);
            let pod = pod(json!({"name": "web", "creationTimestamp": at.to_string()})).unwrap();
            let wanted = Wanted {
                written: Some(UnixTime(1_800_000_000)),
                ..wanted()
            };
            let references: Vec<&Reference> = pod.references.iter().collect();
            pod.uses(&wanted, &references)
        };
        assert_eq!([-5, 0, 1, 2].map(uses), [true, true, true, false]);
    }

    #[test]
    fn very_many_pods_and_workloads_are_compared_in_linear_time() {
        let one = pod(json!({"name": "web"})).unwrap();
        let other = workload(Kind::Deployment, json!({"metadata": {"name": "web"}}));
        let id = |number: usize| WorkloadRef {
            kind: Kind::Deployment,
            name: format!("web-{number}").into(),
        };
        // One pod and one workload for each 256 bytes of length.
        let made = |length: usize| -> (Vec<Unmanaged>, Vec<Workload>) {
            let each = 0..length / 256;
            let pod = |number| Unmanaged {
                of: Some(vec![WorkloadRef {
                    kind: Kind::StatefulSet,
                    ..id(number)
                }]),
                ..one.clone()
            };
            let workload = |number| Workload {
                id: id(number),
                ..other.clone()
            };
            (
                each.clone().map(pod).collect(),
                each.map(workload).collect(),
            )
        };
        let slow = slower_than_linear_in(made, |(all, workloads)| {
            let told = unseen(&wanted(), &by_secret(all), &by_id(workloads));
            assert_eq!(told.len(), all.len());
        });
        assert_eq!(slow, None);
    }

    #[test]
    fn a_pod_of_very_many_secrets_is_compared_in_linear_time() {
        // One Secret for each 256 bytes of length.
        let made = |length: usize| -> (Vec<Wanted>, Vec<Unmanaged>, Vec<Workload>) {
            let names = (0..length / 256).map(|it| format!("tls-{it}"));
            let names: Vec<String> = names.collect();
            let volume = |name: &String| json!({"name": "v", "secret": {"secretName": name}});
            let volumes: Vec<Value> = names.iter().map(volume).collect();
            let spec = json!({"volumes": volumes, "containers": []});
            let meta = json!({"name": "web"});
            let object = json!({"metadata": meta, "spec": {"template": {"spec": spec}}});
            let web = workload(Kind::Deployment, object);
            let pod = json!({"metadata": meta, "spec": spec});
            let pod = Unmanaged {
                of: Some(vec![web.id.clone()]),
                ..serde_json::from_value::<UnmanagedPodWire>(pod)
                    .unwrap()
                    .read()
                    .unwrap()
            };
            let wanted = |name: String| Wanted {
                secret: name.into(),
                ..wanted()
            };
            let all = names.into_iter().map(wanted);
            (all.collect(), vec![pod], vec![web])
        };
        let slow = slower_than_linear_in(made, |(all, pods, workloads)| {
            let (pods, workloads) = (by_secret(pods), by_id(workloads));
            for request in all {
                assert!(unseen(request, &pods, &workloads).is_empty());
                assert!(left_behind(request, &pods).is_empty());
            }
        });
        assert_eq!(slow, None);
    }

    #[test]
    fn nobody_replaces_a_bare_pod_or_a_job() {
        let named = |found: Option<Unmanaged>| found.map(|it| it.to_string());
        assert_eq!(
            named(pod(json!({"name": "debug"}))).as_deref(),
            Some("pod/debug")
        );
        assert_eq!(
            named(job(json!(null), false, "SuccessCriteriaMet")).as_deref(),
            Some("job/import")
        );
        let owned = json!([{"kind": "X", "name": "x", "controller": true}]);
        for (why, found) in [
            (
                "owned",
                pod(json!({"name": "web", "ownerReferences": owned})),
            ),
            (
                "leaving",
                pod(json!({"name": "web", "deletionTimestamp": "2026-01-01T00:00:00Z"})),
            ),
            (
                "opted out",
                pod(json!({"name": "web", "annotations": {"cert-renew.io/rollout": "none"}})),
            ),
            ("of a CronJob", job(owned, false, "")),
            ("suspended", job(json!(null), true, "")),
            ("ended well", job(json!(null), false, "Complete")),
            ("ended badly", job(json!(null), false, "Failed")),
        ] {
            assert_eq!(found, None, "{why}");
        }
    }

    #[test]
    fn a_pod_that_uses_what_no_template_names_is_told_by_its_workload() {
        let owned = |name: &str, kind: &str, owner: &str| {
            let owners = json!([{"kind": kind, "name": owner, "controller": true}]);
            pod(json!({"name": name, "ownerReferences": owners}))
        };
        let all: Vec<Unmanaged> = [
            owned("web-6f9c-x", "ReplicaSet", "web-6f9c"),
            owned("web-6f9c-y", "ReplicaSet", "web-6f9c"),
            owned("says-so-6f9c-x", "ReplicaSet", "says-so-6f9c"),
            owned("named-0", "StatefulSet", "named"),
            owned("bare-x", "ReplicaSet", "bare"),
            owned("import-x", "Job", "import"),
            pod(json!({"name": "debug"})),
        ]
        .into_iter()
        .flatten()
        .collect();
        let volumes = json!([{"name": "v", "secret": {"secretName": "tls"}}]);
        let deployment = |name: &str, volumes: &Value| {
            let spec = json!({"template": {"spec": {"volumes": volumes}}});
            workload(
                Kind::Deployment,
                json!({"metadata": {"name": name}, "spec": spec}),
            )
        };
        let workloads = [
            deployment("web", &json!([])),
            deployment("says-so", &volumes),
        ];
        let request = Wanted {
            workloads: vec!["statefulset/named".parse().unwrap()],
            ..wanted()
        };
        let all = by_secret(&all);
        let told = unseen(&request, &all, &by_id(&workloads));
        assert_eq!(told, ["deployment/web", "replicaset/bare"]);
        assert_eq!(left_behind(&request, &all), ["pod/debug"]);
    }
}

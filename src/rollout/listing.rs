//! The workloads of a namespace: a consistent list, also where not every kind can be listed.
//!
//! The lists are never served from a cache that lags behind (no resourceVersion): a workload that is missed is a rollout
//! that is lost. For the same reason one kind that cannot be listed fails the whole; but for the kinds that a cluster
//! need not have or that take an add-on role, which are then left out. Nothing here writes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use kube::Client;
use kube::Resource as _;
use kube::api::{Api, ListParams};
use tokio::time::Instant;

use super::error::{Error, call};
use super::run::Roller;
use super::wire::Object;
use super::workload::{Workload, api};
use crate::secret::workload::Kind;

/// Objects asked for at a time. A Deployment is some 5 to 10 KB of JSON, so that a page stays under 1 MB.
const PAGE: u32 = 100;
/// Lists started over because their continue token had expired (410), which takes a list of more than five minutes.
const RESTARTS: usize = 3;
/// How long it is believed that something cannot be listed. Short, since what is installed meanwhile is missed for so long;
/// long enough for a fleet of renewals to ask once.
const ABSENT: Duration = Duration::from_secs(60);
/// ReplicaSets that belong to nobody. Those of Deployments and Rollouts are many times as many and carry these labels,
/// which their controllers set (Kubernetes, "Deployments: pod-template-hash label").
const BARE: &str = "!pod-template-hash,!rollouts-pod-template-hash";

/// A resource by its plural, and a namespace; everywhere where there is none.
type Place = (String, Option<Box<str>>);

/// What cannot be listed, and since when.
#[derive(Debug, Default)]
pub(super) struct Absent(Mutex<HashMap<Place, Instant>>);

impl Absent {
    /// Lists what need not be there: nothing where the cluster does not know the kind or the right is missing.
    pub(super) async fn unless<T>(
        &self,
        plural: &str,
        namespace: &str,
        list: impl Future<Output = Result<Vec<T>, Error>>,
    ) -> Result<Vec<T>, Error> {
        let key = |namespace: Option<&str>| (plural.to_owned(), namespace.map(Box::from));
        {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, since| since.elapsed() < ABSENT);
            if known.contains_key(&key(None)) || known.contains_key(&key(Some(namespace))) {
                return Ok(Vec::new());
            }
        }
        let listed = list.await;
        // Rights may be a namespace's own; which kinds there are is the same for all.
        let absent = match listed.as_ref().err().and_then(Error::code) {
            Some(404) => key(None),
            Some(403) => key(Some(namespace)),
            _ => return listed,
        };
        tracing::debug!(
            namespace,
            "{plural} are left alone: there are none, or an add-on of rbac/addons is missing"
        );
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(absent, Instant::now());
        Ok(Vec::new())
    }
}

impl Roller {
    /// [`list`], but what cannot be listed is not asked for each time.
    ///
    /// # Errors
    /// As [`list`].
    pub async fn list(&self, namespace: &str) -> Result<Vec<Workload>, Error> {
        all(&self.absent, &self.client, namespace).await
    }
}

/// All workloads of a namespace that have pods of their own, in the order of [`Kind::ALL`].
///
/// # Errors
/// When a list is forbidden or fails; nothing was changed.
pub async fn list(client: &Client, namespace: &str) -> Result<Vec<Workload>, Error> {
    all(&Absent::default(), client, namespace).await
}

async fn all(absent: &Absent, client: &Client, namespace: &str) -> Result<Vec<Workload>, Error> {
    let lists = Kind::ALL.map(async |kind| {
        let list = whole(client, namespace, kind);
        match kind {
            Kind::ReplicaSet | Kind::Rollout => {
                absent.unless(&Object::plural(&kind), namespace, list).await
            }
            _ => list.await,
        }
    });
    let workloads = try_join_all(lists).await?.into_iter().flatten().collect();
    Ok(resolved(workloads))
}

async fn whole(client: &Client, namespace: &str, kind: Kind) -> Result<Vec<Workload>, Error> {
    let api = api(client, namespace, kind);
    let mut objects = pages(&api, namespace, kind).await;
    for _ in 0..RESTARTS {
        if objects.as_ref().err().and_then(Error::code) != Some(410) {
            break;
        }
        objects = pages(&api, namespace, kind).await;
    }
    objects
}

async fn pages(api: &Api<Object>, namespace: &str, kind: Kind) -> Result<Vec<Workload>, Error> {
    let mut params = ListParams::default().limit(PAGE);
    if kind == Kind::ReplicaSet {
        params = params.labels(BARE);
    }
    let mut workloads = Vec::new();
    loop {
        let what = Object::plural(&kind);
        let page = call("list", &what, namespace, || api.list(&params)).await?;
        let ours = |object: &Object| kind != Kind::ReplicaSet || !object.is_controlled();
        let ours = page.items.into_iter().filter(ours);
        workloads.extend(ours.map(|object| object.read(kind)));
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            _ => return Ok(workloads),
        }
    }
}

/// Gives Rollouts with `workloadRef` the template that they name. A Deployment that is scaled to zero for the sake of such
/// a Rollout is left out: it has no pods, and a change of its template would be a new version to the Rollout.
fn resolved(mut workloads: Vec<Workload>) -> Vec<Workload> {
    let named = workloads.iter().filter_map(|it| it.template_of.as_ref());
    let templates: Vec<Workload> = named
        .filter_map(|id| workloads.iter().find(|it| it.id == *id))
        .cloned()
        .collect();
    for workload in &mut workloads {
        let of = { templates.iter() }.find(|it| workload.template_of.as_ref() == Some(&it.id));
        if let Some(of) = of {
            workload.references.clone_from(&of.references);
            workload.selector.clone_from(&of.selector);
            workload.host_network = of.host_network;
        }
    }
    let is_template = |it: &Workload| templates.iter().any(|template| template.id == it.id);
    workloads.retain(|it| it.status.wanted > 0 || !is_template(it));
    workloads
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rollout::wire::tests::workload;

    #[test]
    fn a_rollout_may_take_the_template_of_a_deployment() {
        let deployment = |replicas: i64| {
            let template = json!({"spec": {"hostNetwork": true, "volumes": [{"name": "v", "secret": {"secretName": "tls"}}]}});
            let spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template});
            workload(
                Kind::Deployment,
                json!({"metadata": {"name": "web"}, "spec": spec}),
            )
        };
        let rollout = || {
            let of = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
            workload(
                Kind::Rollout,
                json!({"metadata": {"name": "shop"}, "spec": {"workloadRef": of}}),
            )
        };
        for (replicas, expected) in [
            (0, vec!["rollout/shop"]),
            (2, vec!["deployment/web", "rollout/shop"]),
        ] {
            let all = resolved(vec![deployment(replicas), rollout()]);
            let names: Vec<String> = all.iter().map(|it| it.id.to_string()).collect();
            assert_eq!(names, expected);
            for it in all {
                assert_eq!(
                    (it.references.len(), &*it.selector, it.host_network),
                    (1, "app=web", true)
                );
            }
        }
        assert_eq!(
            resolved(vec![deployment(0)]).len(),
            1,
            "nobody takes its template"
        );
        assert_eq!(resolved(vec![rollout()]).len(), 1);
    }

    #[tokio::test]
    async fn what_cannot_be_listed_is_asked_once_for_a_while() {
        let absent = Absent::default();
        let asked = std::cell::Cell::new(0);
        let list = async |plural: &str, namespace: &'static str, code: u16| {
            let answer = async {
                asked.set(asked.get() + 1);
                let status = kube::core::Status::failure("words", "Reason").with_code(code);
                call("list", &"things", namespace, || async {
                    Err::<Vec<()>, _>(kube::Error::Api(status.clone().boxed()))
                })
                .await
            };
            absent.unless(plural, namespace, answer).await.is_ok()
        };
        for (plural, namespace, code, expected, times) in [
            ("rollouts", "a", 404, true, 1),
            ("rollouts", "b", 404, true, 1),
            ("jobs", "a", 403, true, 2),
            ("jobs", "a", 403, true, 2),
            ("jobs", "b", 403, true, 3),
            ("pods", "a", 410, false, 4),
            ("pods", "a", 410, false, 5),
        ] {
            let row = format!("{plural} {namespace}");
            assert_eq!(list(plural, namespace, code).await, expected, "{row}");
            assert_eq!(asked.get(), times, "{row}");
        }
    }
}

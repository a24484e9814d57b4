//! The workloads of a namespace: a consistent list, even where not every kind can be listed.
//!
//! The lists are never served from a cache that lags behind (no resourceVersion): a missed workload is a lost rollout.
//! For the same reason, one kind that cannot be listed fails the whole list, except for kinds that a cluster need not
//! have or that require an add-on role, which are left out. Nothing here writes.

pub(super) mod api;
pub(super) mod pods;
mod services;
pub(super) mod unmanaged;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cert_renew_core::rollout::decode::Object;
use cert_renew_core::rollout::workload::Workload;
use cert_renew_core::secret::workload::{Kind, WorkloadRef};
use futures::future::try_join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::Client;
use kube::Resource as _;
use kube::api::ListParams;
use kube::core::{Request, request};
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::cluster::Call;
use crate::cluster::client::pages::Pages;
use crate::rollout::error::Error;

/// Most objects of a page. A Deployment is some 5 to 10 KB of JSON, so a page stays under 1 MB; where it does not, the
/// client asks for smaller ones.
const PAGE: u32 = 100;
/// Most bytes kept of the objects of one namespace while its rollouts are planned: some ten thousand workloads. Up to
/// eight namespaces are planned at a time, and after a start four more are looked at for restored backups.
const MOST_KEPT: usize = 8 * 1024 * 1024;
/// Most restarts of a list whose continue token expired (410), which takes a list of more than five minutes.
const RESTARTS: usize = 3;
/// How long something counts as impossible to list. Short, since what is installed in that time is missed; long enough
/// for a fleet of renewals to ask once.
const ABSENT: Duration = Duration::from_secs(60);
/// Selector of standalone ReplicaSets. Those of Deployments and Rollouts are many times as many and carry these labels,
/// which their controllers set (Kubernetes, "Deployments: pod-template-hash label").
const BARE: &str = "!pod-template-hash,!rollouts-pod-template-hash";

/// A resource by its plural, and a namespace; `None` for all namespaces.
type Place = (String, Option<Box<str>>);

/// What cannot be listed, and since when.
#[derive(Debug, Default)]
pub(super) struct Absent(Mutex<HashMap<Place, Instant>>);

impl Absent {
    /// Lists what need not exist: nothing where the cluster does not know the kind or the right is missing.
    pub(super) async fn unless<T>(
        &self,
        plural: &str,
        namespace: &str,
        list: impl Future<Output = Result<Vec<T>, Error>>,
    ) -> Result<Vec<T>, Error> {
        let key = |namespace: Option<&str>| (plural.to_owned(), namespace.map(Box::from));
        {
            let mut known = self.0.lock();
            known.retain(|_, since| since.elapsed() < ABSENT);
            if known.contains_key(&key(None)) || known.contains_key(&key(Some(namespace))) {
                return Ok(Vec::new());
            }
        }
        let listed = list.await;
        // Rights may differ by namespace; the kinds are the same for all.
        let absent = match listed.as_ref().err().and_then(Error::code) {
            Some(404) => key(None),
            Some(403) => key(Some(namespace)),
            _ => return listed,
        };
        tracing::debug!(
            namespace,
            "{plural} are left alone: there are none, or an add-on of rbac/addons is missing"
        );
        let mut known = self.0.lock();
        known.insert(absent, Instant::now());
        Ok(Vec::new())
    }
}

/// All workloads of a namespace that have pods of their own, in the order of [`Kind::ALL`].
///
/// # Errors
/// When a list is forbidden or fails; nothing was changed.
pub async fn list(client: &Client, namespace: &str) -> Result<Vec<Workload>, Error> {
    all(&Absent::default(), client, namespace).await
}

pub(super) async fn all(
    absent: &Absent,
    client: &Client,
    namespace: &str,
) -> Result<Vec<Workload>, Error> {
    let weight = Weight::default();
    let lists = Kind::ALL.map(async |kind| {
        let list = whole(client, namespace, kind, &weight);
        match kind {
            Kind::ReplicaSet | Kind::Rollout => {
                absent.unless(&Object::plural(&kind), namespace, list).await
            }
            _ => list.await,
        }
    });
    let workloads = try_join_all(lists).await?.into_iter().flatten().collect();
    resolved(namespace, workloads, &weight)
}

async fn whole(
    client: &Client,
    namespace: &str,
    kind: Kind,
    weight: &Weight,
) -> Result<Vec<Workload>, Error> {
    let mut objects = pages(client, namespace, kind, weight).await;
    for _ in 0..RESTARTS {
        if objects.as_ref().err().and_then(Error::code) != Some(410) {
            break;
        }
        objects = pages(client, namespace, kind, weight).await;
    }
    objects
}

async fn pages(
    client: &Client,
    namespace: &str,
    kind: Kind,
    weight: &Weight,
) -> Result<Vec<Workload>, Error> {
    let mut params = ListParams::default();
    if kind == Kind::ReplicaSet {
        params = params.labels(BARE);
    }
    let group = match &*Object::api_version(&kind) {
        "v1" => "/api/v1".to_owned(),
        group => format!("/apis/{group}"),
    };
    let list = List {
        client,
        group: &group,
        plural: &Object::plural(&kind),
        namespace,
        params,
        limit: PAGE,
    };
    let mut workloads = Vec::new();
    let each = |object: Object| {
        if kind == Kind::ReplicaSet && object.is_controlled() {
            return Ok(());
        }
        let workload = object.read(kind);
        weight.add(namespace, workload.weight())?;
        workloads.push(workload);
        Ok(())
    };
    let listed = list.each(each).await;
    if let Err(error) = listed {
        // The list may start over.
        weight.less(workloads.iter().map(Workload::weight).sum());
        return Err(error);
    }
    Ok(workloads)
}

/// A list of the objects in a namespace, each decoded as the thin type that its reader asks for.
pub(super) struct List<'a> {
    pub(super) client: &'a Client,
    /// Its path up to the version, for example `/apis/apps/v1`.
    pub(super) group: &'a str,
    pub(super) plural: &'a str,
    pub(super) namespace: &'a str,
    pub(super) params: ListParams,
    /// Most objects of a page.
    pub(super) limit: u32,
}

#[derive(Deserialize)]
struct Page<T> {
    metadata: ListMeta,
    items: Option<Vec<T>>,
}

/// An object of which only the metadata was asked for.
#[derive(Deserialize)]
struct OfMetadata<T> {
    metadata: T,
}

/// How a page is asked for.
type AskForPage = fn(&Request, &ListParams) -> Result<http::Request<Vec<u8>>, request::Error>;

impl List<'_> {
    /// Calls `each` with each object.
    ///
    /// # Errors
    /// When a page cannot be read, and the errors of `each`.
    pub(super) async fn each<T: DeserializeOwned>(
        &self,
        mut each: impl FnMut(T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let each = |object: T| match each(object) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        };
        match self.follow(Request::list, each).await? {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(error) => Err(error),
        }
    }

    /// Calls `each` with the metadata of each object, until it breaks; nothing else of the objects is sent.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub(super) async fn each_metadata<T: DeserializeOwned>(
        &self,
        mut each: impl FnMut(T) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let each = |object: OfMetadata<T>| each(object.metadata);
        self.follow(Request::list_metadata, each).await
    }

    async fn follow<T: DeserializeOwned, B>(
        &self,
        ask: AskForPage,
        mut each: impl FnMut(T) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, Error> {
        let (group, plural, namespace) = (self.group, self.plural, self.namespace);
        let path = format!("{group}/namespaces/{namespace}/{plural}");
        let mut pages = Pages::of(self.params.clone(), self.limit);
        while let Some(params) = pages.next() {
            let list = || async {
                let request = ask(&Request::new(&path), params);
                let request = request.map_err(kube::Error::BuildRequest)?;
                self.client.request::<Page<T>>(request).await
            };
            let what = || format!("listing {plural} of namespace {namespace}");
            let page = Call::READ.repeat(what, list).await?;
            let flow = page.items.into_iter().flatten().try_for_each(&mut each);
            if flow.is_break() {
                return Ok(flow);
            }
            pages.came(&page.metadata);
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Bytes kept of a namespace's objects, all kinds together.
#[derive(Debug, Default)]
pub(super) struct Weight(AtomicUsize);

impl Weight {
    /// Adds the size of an object that is kept.
    ///
    /// # Errors
    /// When the sum exceeds what is kept of one namespace.
    pub(super) fn add(&self, namespace: &str, bytes: usize) -> Result<(), Error> {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > MOST_KEPT {
            return Err(Error::TooMuch {
                namespace: namespace.into(),
                most: MOST_KEPT,
            });
        }
        Ok(())
    }

    fn less(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Gives Rollouts with `workloadRef` the template that they name. A Deployment that such a Rollout has scaled to zero
/// is left out: it has no pods, and a change of its template would be a new version to the Rollout.
///
/// # Errors
/// When the templates are more than is kept of one namespace: any number of Rollouts may name a large one.
fn resolved(
    namespace: &str,
    mut workloads: Vec<Workload>,
    weight: &Weight,
) -> Result<Vec<Workload>, Error> {
    let named = workloads.iter().filter_map(|it| it.template_of.as_ref());
    let named: BTreeSet<&WorkloadRef> = named.collect();
    let templates = workloads.iter().filter(|it| named.contains(&it.id));
    let templates: BTreeMap<WorkloadRef, Workload> =
        templates.map(|it| (it.id.clone(), it.clone())).collect();
    for workload in &mut workloads {
        let of = workload.template_of.as_ref();
        if let Some(of) = of.and_then(|of| templates.get(of)) {
            weight.add(namespace, of.weight())?;
            workload.references.clone_from(&of.references);
            workload.selector.clone_from(&of.selector);
            workload.host_network = of.host_network;
        }
    }
    workloads.retain(|it| it.status.wanted > 0 || !templates.contains_key(&it.id));
    Ok(workloads)
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::workload;
    use serde_json::json;

    use super::*;

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
        let resolved = |all| resolved("shop", all, &Weight::default()).unwrap();
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

    #[test]
    fn rollouts_that_share_a_large_template_keep_no_more_than_others() {
        let volume =
            |number: usize| json!({"name": "v", "secret": {"secretName": format!("tls-{number}")}});
        let volumes: Vec<_> = (0..1_000).map(volume).collect();
        let template = json!({"spec": {"volumes": volumes}});
        let deployment = workload(
            Kind::Deployment,
            json!({"metadata": {"name": "web"}, "spec": {"replicas": 0, "template": template}}),
        );
        let rollout = |number: usize| {
            let of = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
            let name = format!("shop-{number}");
            let spec = json!({"workloadRef": of});
            workload(
                Kind::Rollout,
                json!({"metadata": {"name": name}, "spec": spec}),
            )
        };
        let all = |rollouts: usize| {
            let rollouts = (0..rollouts).map(rollout);
            let all = std::iter::once(deployment.clone()).chain(rollouts);
            resolved("shop", all.collect(), &Weight::default())
        };
        assert_eq!(all(10).unwrap().len(), 10);
        let most = MOST_KEPT / deployment.weight();
        assert_eq!(all(most + 1).unwrap_err().reason(), "TooMuch");
    }

    #[tokio::test]
    async fn what_cannot_be_listed_is_asked_once_for_a_while() {
        let absent = Absent::default();
        let asked = std::cell::Cell::new(0);
        let list = async |plural: &str, namespace: &'static str, code: u16| {
            let answer = async {
                asked.set(asked.get() + 1);
                let status = kube::core::Status::failure("words", "Reason").with_code(code);
                let answer = || async { Err(kube::Error::Api(status.clone().boxed())) };
                let what = || "listing things".to_owned();
                let listed: Vec<()> = Call::READ.repeat(what, answer).await?;
                Ok(listed)
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

    #[test]
    fn more_than_is_kept_of_a_namespace_is_an_error_of_its_own() {
        let weight = Weight::default();
        assert!(weight.add("shop", MOST_KEPT).is_ok());
        weight.less(1);
        assert!(weight.add("shop", 1).is_ok());
        let error = weight.add("shop", 1).unwrap_err();
        assert_eq!(error.reason(), "TooMuch");
        assert!(error.to_string().contains("namespace shop"), "{error}");
    }
}

//! Ingresses and HTTPRoutes in the operator's own namespace, which send a host's challenges to our Service.
//!
//! Each is for one host and path; its name is derived from them, so that creating it twice makes one. All carry a label
//! that identifies those of an earlier run.

use std::collections::BTreeMap;

use cert_renew_core::config::{Http01, PathType, Route};
use cert_renew_core::text::hash::hash;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cluster::Error;
use crate::cluster::client::pages::Pages;
use crate::cluster::client::{call, params};

const LABEL: &str = "cert-renew.io/challenge-route";
/// The Service of the challenge port in `deploy/`.
const SERVICE: &str = "cert-renew-challenge";
const PORT: u16 = 80;
/// Objects in a page: only their names are used.
const PAGE: u32 = 200;

/// A route for a host's challenges, with everything needed to remove it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Routed {
    /// The host.
    pub host: String,
    /// The path, complete or a prefix.
    pub path: String,
    /// The solver as configured when the route was made.
    pub solver: Http01,
}

/// A controller's verdict on a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteStatus {
    /// No objections.
    Fine,
    /// Refused, for this reason.
    Refused(String),
}

impl Routed {
    /// The object's name. Other settings make another object.
    #[must_use]
    pub fn name(&self) -> String {
        let Self { host, path, solver } = self;
        let route = format!("{:?}", solver.route);
        format!(
            "cert-renew-challenge-{:016x}",
            hash(&format!("{host}{path} {route}"))
        )
    }

    /// Its kind; none if the user has arranged the route.
    fn resource(&self) -> Option<ApiResource> {
        resource(&self.solver.route)
    }

    fn object(&self) -> Option<Value> {
        let (api_version, kind, annotations, spec) = match &self.solver.route {
            Route::Shared => return None,
            Route::Ingress {
                class,
                annotations,
                path_type,
            } => {
                let backend = json!({"service": {"name": SERVICE, "port": {"number": PORT}}});
                let path_type = match path_type {
                    PathType::Prefix => "Prefix",
                    PathType::Exact => "Exact",
                    PathType::ImplementationSpecific => "ImplementationSpecific",
                };
                let path = json!({"path": self.path, "pathType": path_type, "backend": backend});
                let mut spec = json!({"rules": [{"host": self.host, "http": {"paths": [path]}}]});
                if let Some(class) = class {
                    spec["ingressClassName"] = class.as_str().into();
                }
                ("networking.k8s.io/v1", "Ingress", annotations.clone(), spec)
            }
            Route::Gateway { parents } => {
                let parents: Vec<Value> = parents
                    .iter()
                    .map(|parent| {
                        let mut reference = json!({"name": parent.name});
                        if let Some(namespace) = &parent.namespace {
                            reference["namespace"] = namespace.as_str().into();
                        }
                        if let Some(section) = &parent.section_name {
                            reference["sectionName"] = section.as_str().into();
                        }
                        reference
                    })
                    .collect();
                let rule = json!({
                    "matches": [{"path": {"type": "PathPrefix", "value": self.path}}],
                    "backendRefs": [{"name": SERVICE, "port": PORT}],
                });
                let spec =
                    json!({"parentRefs": parents, "hostnames": [self.host], "rules": [rule]});
                let annotations = BTreeMap::new();
                (
                    "gateway.networking.k8s.io/v1",
                    "HTTPRoute",
                    annotations,
                    spec,
                )
            }
        };
        Some(json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {
                "name": self.name(),
                "labels": {"app.kubernetes.io/name": "cert-renew", LABEL: "true"},
                "annotations": annotations,
            },
            "spec": spec,
        }))
    }
}

fn resource(route: &Route) -> Option<ApiResource> {
    let (group, kind, plural) = match route {
        Route::Shared => return None,
        Route::Ingress { .. } => ("networking.k8s.io", "Ingress", "ingresses"),
        Route::Gateway { .. } => ("gateway.networking.k8s.io", "HTTPRoute", "httproutes"),
    };
    let kind = GroupVersionKind::gvk(group, "v1", kind);
    Some(ApiResource::from_gvk_with_plural(&kind, plural))
}

/// Creates the object of a route; succeeds if it already exists.
///
/// # Errors
/// Those of every call.
pub async fn create(client: &Client, namespace: &str, routed: &Routed) -> Result<(), Error> {
    let (Some(resource), Some(object)) = (routed.resource(), routed.object()) else {
        return Ok(());
    };
    let what = || {
        format!(
            "making {} {} for {}",
            resource.kind,
            routed.name(),
            routed.host
        )
    };
    let object: DynamicObject = serde_json::from_value(object).map_err(|error| Error::Refused {
        what: what(),
        message: error.to_string(),
        code: None,
    })?;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let post = params::post();
    match call(what, api.create(&post, &object)).await {
        Ok(_) | Err(Error::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes the object of a route; succeeds if it is already gone.
///
/// # Errors
/// Those of every call.
pub async fn delete(client: &Client, namespace: &str, routed: &Routed) -> Result<(), Error> {
    let Some(resource) = routed.resource() else {
        return Ok(());
    };
    remove(client, namespace, &resource, &routed.name()).await
}

async fn remove(
    client: &Client,
    namespace: &str,
    resource: &ApiResource,
    name: &str,
) -> Result<(), Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let what = || format!("deleting {} {name}", resource.kind);
    match call(what, api.delete(name, &DeleteParams::default())).await {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The verdict of a Gateway's controllers on its route. An Ingress has no such status.
///
/// # Errors
/// Those of every call.
pub async fn standing(
    client: &Client,
    namespace: &str,
    routed: &Routed,
) -> Result<RouteStatus, Error> {
    let (Route::Gateway { .. }, Some(resource)) = (&routed.solver.route, routed.resource()) else {
        return Ok(RouteStatus::Fine);
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let name = routed.name();
    let what = || format!("reading {} {name}", resource.kind);
    Ok(standing_of(&call(what, api.get(&name)).await?.data))
}

/// A route that one parent accepts is reachable; one that all refuse is not.
fn standing_of(route: &Value) -> RouteStatus {
    let mut refusals = Vec::new();
    let parents = route["status"]["parents"].as_array();
    for parent in parents.into_iter().flatten() {
        let conditions = parent["conditions"].as_array().into_iter().flatten();
        for condition in conditions.filter(|it| it["type"] == "Accepted") {
            if condition["status"] == "True" {
                return RouteStatus::Fine;
            }
            let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
            let gateway = parent["parentRef"]["name"].as_str().unwrap_or_default();
            refusals.push(format!(
                "Gateway {gateway}: {}: {}",
                text("reason"),
                text("message")
            ));
        }
    }
    if refusals.is_empty() {
        RouteStatus::Fine
    } else {
        RouteStatus::Refused(refusals.join("; "))
    }
}

/// One of our objects, from a list.
pub struct Left {
    kind: ApiResource,
    name: String,
}

impl Left {
    /// The object's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Deletes it.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn delete(&self, client: &Client, namespace: &str) -> Result<(), Error> {
        remove(client, namespace, &self.kind, &self.name).await
    }
}

/// The present objects of the kinds of `routes`.
///
/// # Errors
/// Those of every call.
pub async fn list(client: &Client, namespace: &str, routes: &[&Route]) -> Result<Vec<Left>, Error> {
    let mut kinds: Vec<ApiResource> = routes.iter().filter_map(|route| resource(route)).collect();
    kinds.sort_by(|a, b| a.kind.cmp(&b.kind));
    kinds.dedup_by(|a, b| a.kind == b.kind);
    let mut found = Vec::new();
    for kind in kinds {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
        let what = || format!("listing the {} of challenges", kind.plural);
        let mut pages = Pages::of(ListParams::default().labels(LABEL), PAGE);
        while let Some(params) = pages.next() {
            let page = call(what, api.list_metadata(params)).await?;
            found.extend(page.items.into_iter().map(|object| Left {
                kind: kind.clone(),
                name: object.metadata.name.unwrap_or_default(),
            }));
            pages.came(&page.metadata);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use cert_renew_core::config::ParentRef;

    use super::*;

    fn routed(route: Route) -> Routed {
        Routed {
            host: "shop.example".into(),
            path: "/.well-known/acme-challenge/".into(),
            solver: Http01 {
                route,
                self_check: true,
            },
        }
    }

    #[test]
    fn the_objects_are_what_the_config_says() {
        let ingress = routed(Route::Ingress {
            class: Some("nginx".into()),
            annotations: BTreeMap::from([("a.example/b".into(), "c".into())]),
            path_type: PathType::ImplementationSpecific,
        });
        let object = ingress.object().unwrap();
        assert_eq!(object["metadata"]["annotations"]["a.example/b"], "c");
        assert_eq!(object["spec"]["ingressClassName"], "nginx");
        let path = &object["spec"]["rules"][0]["http"]["paths"][0];
        assert_eq!(path["pathType"], "ImplementationSpecific");
        assert_eq!(path["backend"]["service"]["name"], SERVICE);

        let gateway = routed(Route::Gateway {
            parents: vec![ParentRef {
                name: "public".into(),
                namespace: Some("gateways".into()),
                section_name: None,
            }],
        });
        let object = gateway.object().unwrap();
        let parents = json!([{"name": "public", "namespace": "gateways"}]);
        assert_eq!(object["spec"]["parentRefs"], parents);
        assert_eq!(object["spec"]["hostnames"], json!(["shop.example"]));
        assert_ne!(ingress.name(), gateway.name());
        assert_eq!(routed(Route::Shared).object(), None);
    }

    #[test]
    fn a_refusal_of_all_parents_is_told() {
        let parent = |status: &str| {
            json!({"parentRef": {"name": "public"}, "conditions": [
                {"type": "ResolvedRefs", "status": "True"},
                {"type": "Accepted", "status": status, "reason": "NotAllowedByListeners", "message": "no"}]})
        };
        let of = |parents: &[Value]| standing_of(&json!({"status": {"parents": parents}}));
        assert_eq!(standing_of(&json!({})), RouteStatus::Fine);
        assert_eq!(of(&[parent("False"), parent("True")]), RouteStatus::Fine);
        let refused = "Gateway public: NotAllowedByListeners: no";
        assert_eq!(of(&[parent("False")]), RouteStatus::Refused(refused.into()));
    }
}

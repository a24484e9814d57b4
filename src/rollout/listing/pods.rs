//! The pods that a new leaf has to reach: which of them can be asked, and where.
//!
//! Input: a namespace, a label selector or a Service. Output: the running pods, each with whether it is Ready, and its
//! own address or the reason why we do not connect to it. Endpoints are never read: anybody who may write them could
//! direct us anywhere. It needs the rights of rbac/addons/verify.yaml.

use std::net::IpAddr;
use std::ops::ControlFlow;

use cert_renew_core::rollout::decode::Condition;
use cert_renew_core::rollout::lean::{Kept, Matters};
use cert_renew_core::secret::settings::ServicePort;
use cert_renew_core::time::UnixTime;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Client;
use kube::api::ListParams;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::net::egress;
use crate::rollout::error::Error;
use crate::rollout::listing::services::{OfferedPort, offered};
use crate::rollout::listing::{List, Weight};

/// Most pods of a page: some 10 KB of JSON each.
const PAGE: u32 = 100;

/// Reason for addresses that we never connect to.
const NOT_A_POD_ADDRESS: &str =
    "its address is a loopback, link-local or metadata one, which is no pod's";
const HOST_NETWORK: &str = "it is on the host's network, which is not asked";
const NO_ADDRESS: &str = "it has no address";

/// A running pod that is not being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::rollout) struct RunningPod {
    pub(in crate::rollout) name: Box<str>,
    pub(in crate::rollout) uid: Box<str>,
    pub(in crate::rollout) ready: bool,
    /// When it was created, by the API server's clock.
    pub(in crate::rollout) created: Option<UnixTime>,
    /// Its address, or why it cannot be asked.
    pub(in crate::rollout) address: Result<IpAddr, &'static str>,
    /// Its port of the name that was asked for. A pod may name tens of thousands: no other is kept.
    named_port: Option<u16>,
}

/// The pods behind a port of a Service.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::rollout) enum Behind {
    /// The pods, and the port of each where it is known.
    Pods(Vec<(RunningPod, Option<u16>)>),
    /// Nothing that can be asked; the reason in words.
    Nothing(String),
}

/// The Ready pods that a selector finds, each with its port of this name.
///
/// # Errors
/// When they cannot be listed.
async fn ready(
    client: &Client,
    namespace: &str,
    selector: &str,
    port: Option<&str>,
) -> Result<Vec<RunningPod>, Error> {
    let mut pods = running(client, namespace, selector, port).await?;
    pods.retain(|pod| pod.ready);
    Ok(pods)
}

/// The running pods that a selector finds, each with its port of this name. Those that have not started will read the
/// Secret's current content.
///
/// # Errors
/// When they cannot be listed.
pub(in crate::rollout) async fn running(
    client: &Client,
    namespace: &str,
    selector: &str,
    port: Option<&str>,
) -> Result<Vec<RunningPod>, Error> {
    // An empty selector would select every pod of the namespace.
    if selector.is_empty() {
        return Ok(Vec::new());
    }
    let list = selected(client, namespace, selector);
    let (mut found, weight) = (Vec::new(), Weight::default());
    let each = |pod: PodWire| {
        let pod = pod.see(port);
        weight.add(namespace, pod.as_ref().map_or(0, RunningPod::weight))?;
        found.extend(pod);
        Ok(())
    };
    list.each(each).await?;
    Ok(found)
}

/// Whether a selector finds pods that stay, and all of these were created after that instant, by the API server's clock.
/// Of a pod, which may have a megabyte of managedFields, little more than two times is decoded.
///
/// # Errors
/// When they cannot be listed.
pub(in crate::rollout) async fn are_newer(
    client: &Client,
    namespace: &str,
    selector: &str,
    written: UnixTime,
) -> Result<bool, Error> {
    // As in `running`.
    if selector.is_empty() {
        return Ok(false);
    }
    let mut stays = false;
    let each = |pod: PodMeta| {
        if pod.deletion_timestamp.is_some() {
            return ControlFlow::Continue(());
        }
        stays = true;
        match pod.created() {
            Some(created) if created.is_certainly_after(written) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    };
    let list = selected(client, namespace, selector);
    let flow = list.each_metadata(each).await?;
    Ok(stays && flow.is_continue())
}

/// The pods that a selector finds.
fn selected<'a>(client: &'a Client, namespace: &'a str, selector: &str) -> List<'a> {
    List {
        client,
        group: "/api/v1",
        plural: "pods",
        namespace,
        params: ListParams::default().labels(selector),
        limit: PAGE,
    }
}

/// The Ready pods behind a port of a Service.
///
/// # Errors
/// When the API server does not answer.
pub(in crate::rollout) async fn behind(
    client: &Client,
    namespace: &str,
    to: &ServicePort,
) -> Result<Behind, Error> {
    let (selector, port) = match offered(client, namespace, to).await? {
        Ok(offered) => offered,
        Err(why) => return Ok(Behind::Nothing(why)),
    };
    let name = match &port.target_port {
        Some(IntOrString::String(name)) => Some(name.as_str()),
        Some(IntOrString::Int(_)) | None => None,
    };
    let pods = ready(client, namespace, &selector, name).await?;
    let with_port = |pod: RunningPod| {
        let port = pod.port(&port);
        (pod, port)
    };
    Ok(Behind::Pods(pods.into_iter().map(with_port).collect()))
}

impl RunningPod {
    /// Bytes that it takes in memory, without the allocator's overhead.
    fn weight(&self) -> usize {
        size_of::<Self>() + self.name.len() + self.uid.len()
    }

    /// Whether it was certainly started after a write, and so has nothing from before it; not where one of the two is
    /// unknown.
    pub(in crate::rollout) fn is_newer_than(&self, written: Option<UnixTime>) -> bool {
        let both = self.created.zip(written);
        both.is_some_and(|(created, written)| created.is_certainly_after(written))
    }

    /// The container port that a port of a Service leads to; where that has a name, it is the one that was asked for.
    fn port(&self, offered: &OfferedPort) -> Option<u16> {
        match &offered.target_port {
            None => u16::try_from(offered.port).ok(),
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
            Some(IntOrString::String(_)) => self.named_port,
        }
    }
}

/// The JSON of a pod: only what the pod is asked for and where.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(in crate::rollout) struct PodWire {
    metadata: PodMeta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodMeta {
    name: Box<str>,
    uid: Box<str>,
    creation_timestamp: Option<Box<str>>,
    deletion_timestamp: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    host_network: bool,
    containers: Kept<Container>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    ports: Kept<Port>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    name: Option<Box<str>>,
    container_port: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    #[serde(rename = "podIP")]
    address: Box<str>,
    phase: Box<str>,
    conditions: Kept<Condition>,
}

impl Matters for Container {
    fn matters(&self) -> bool {
        !self.ports.is_empty()
    }
}

impl Matters for Port {
    fn matters(&self) -> bool {
        self.name.is_some()
    }
}

impl PodMeta {
    fn created(&self) -> Option<UnixTime> {
        self.creation_timestamp.as_deref()?.parse().ok()
    }
}

impl PodWire {
    /// The pod with its port of this name, if it runs and is not being deleted.
    pub(in crate::rollout) fn see(self, port: Option<&str>) -> Option<RunningPod> {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let ready = status.conditions.iter().any(|it| it.is_true("Ready"));
        let runs = ready || &*status.phase == "Running";
        if !runs || metadata.deletion_timestamp.is_some() {
            return None;
        }
        let address = match status.address.parse::<IpAddr>() {
            _ if spec.host_network => Err(HOST_NETWORK),
            Err(_) => Err(NO_ADDRESS),
            Ok(address) if egress::is_elsewhere(address) => Ok(address),
            Ok(_) => Err(NOT_A_POD_ADDRESS),
        };
        let mut ports = spec.containers.iter().flat_map(|it| it.ports.iter());
        let named = ports.find(|it| port.is_some() && it.name.as_deref() == port);
        Some(RunningPod {
            created: metadata.created(),
            name: metadata.name,
            uid: metadata.uid,
            ready,
            address,
            named_port: named.and_then(|it| u16::try_from(it.container_port).ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::header::ACCEPT;
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::service_fn;

    use super::*;

    /// A client of an API server with this page of metadata, and nothing else.
    fn with_metadata(page: &Value) -> Client {
        let page = page.to_string();
        let server = service_fn(move |request: Request<Body>| {
            let accept = { request.headers().get(ACCEPT) }.and_then(|it| it.to_str().ok());
            let is_meant = accept.is_some_and(|it| it.contains("as=PartialObjectMetadataList"));
            let answer = if is_meant { &*page } else { "no other" };
            let answer = Response::new(Body::from(answer.as_bytes().to_vec()));
            async move { Ok::<_, Infallible>(answer) }
        });
        Client::new(server, "n")
    }

    fn pod(spec: Value, status: Value) -> Option<RunningPod> {
        let pod =
            json!({"metadata": {"name": "web-1", "uid": "u"}, "spec": spec, "status": status});
        let pod = serde_json::from_value::<PodWire>(pod).unwrap();
        pod.see(Some("tls"))
    }

    fn ready_at(address: &str) -> Value {
        json!({"podIP": address, "conditions": [{"type": "Ready", "status": "True"}]})
    }

    #[test]
    fn a_pod_that_was_started_within_a_second_of_the_write_may_have_loaded_the_earlier_certificate()
    {
        let seen = pod(json!({"containers": []}), ready_at("10.0.0.7")).unwrap();
        let newer = |created: Option<i64>, written: Option<i64>| {
            let pod = RunningPod {
                created: created.map(UnixTime),
                ..seen.clone()
            };
            pod.is_newer_than(written.map(UnixTime))
        };
        assert_eq!(
            [9, 10, 11, 12].map(|at| newer(Some(at), Some(10))),
            [false, false, false, true]
        );
        assert!(!newer(None, Some(10)) && !newer(Some(12), None));
    }

    #[tokio::test(start_paused = true)]
    async fn of_pods_that_are_only_compared_by_age_no_managed_fields_are_decoded() {
        let pod = |created: u32, leaves: bool| {
            let deleted = leaves.then_some("2026-01-01T00:20:00Z");
            // Not what the client library decodes.
            json!({"metadata": {
                "name": "web-1", "creationTimestamp": format!("2026-01-01T00:{created}:00Z"),
                "deletionTimestamp": deleted, "managedFields": "unread", "ownerReferences": "unread"}})
        };
        let written: UnixTime = "2026-01-01T00:15:00Z".parse().unwrap();
        for (pods, expected) in [
            (vec![], false),
            (vec![pod(16, false)], true),
            (vec![pod(14, false)], false),
            (vec![pod(15, false)], false),
            (vec![pod(16, false), pod(14, false)], false),
            (vec![pod(14, true), pod(16, false)], true),
            (vec![pod(16, true)], false),
        ] {
            let page = json!({"metadata": {"resourceVersion": "1"}, "items": pods});
            let client = with_metadata(&page);
            let newer = are_newer(&client, "shop", "app=web", written).await;
            assert_eq!(newer.unwrap(), expected, "{page}");
            assert!(!are_newer(&client, "shop", "", written).await.unwrap());
        }
    }

    #[test]
    fn only_a_pod_of_its_own_address_is_asked() {
        let plain = json!({"containers": []});
        for address in ["10.0.0.7", "192.168.1.1", "fd00::7", "100.64.0.1"] {
            let seen = pod(plain.clone(), ready_at(address)).unwrap();
            assert_eq!(seen.address, Ok(address.parse().unwrap()));
        }
        for address in [
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
        ] {
            let seen = pod(plain.clone(), ready_at(address)).unwrap();
            assert_eq!(seen.address, Err(NOT_A_POD_ADDRESS), "{address}");
        }
        let seen = pod(plain.clone(), ready_at("")).unwrap();
        assert_eq!(seen.address, Err(NO_ADDRESS));
        let host = json!({"containers": [], "hostNetwork": true});
        let seen = pod(host, ready_at("10.0.0.7")).unwrap();
        assert_eq!(seen.address, Err(HOST_NETWORK));
        assert_eq!(pod(plain, json!({"podIP": "10.0.0.7"})), None);
    }

    #[test]
    fn a_port_is_found_by_number_and_by_name() {
        let spec = json!({"containers": [{"name": "a", "ports": [{"name": "tls", "containerPort": 8443}]}]});
        let seen = pod(spec, ready_at("10.0.0.7")).unwrap();
        let without = pod(json!({"containers": []}), ready_at("10.0.0.7")).unwrap();
        for (offered, port, otherwise) in [
            (json!({"port": 443}), Some(443), Some(443)),
            (
                json!({"port": 443, "targetPort": 9443}),
                Some(9443),
                Some(9443),
            ),
            (json!({"port": 443, "targetPort": "tls"}), Some(8443), None),
        ] {
            let offered: OfferedPort = serde_json::from_value(offered).unwrap();
            assert_eq!(seen.port(&offered), port);
            assert_eq!(without.port(&offered), otherwise);
        }
    }

    #[test]
    fn of_the_ports_that_a_pod_names_the_one_that_is_asked_for_is_kept() {
        let port = |number: usize| json!({"name": format!("p{number}"), "containerPort": number});
        let ports: Vec<Value> = (1..=30_000).map(port).collect();
        let many = json!({"metadata": {"name": "web-1", "uid": "u"},
            "spec": {"containers": [{"name": "a", "ports": ports}]}, "status": ready_at("10.0.0.7")});
        let seen = |port: Option<&str>| {
            let pod: PodWire = serde_json::from_value(many.clone()).unwrap();
            pod.see(port).unwrap()
        };
        assert_eq!(seen(Some("p20000")).named_port, Some(20_000));
        assert_eq!(seen(Some("x")).named_port, None);
        assert_eq!(seen(None).named_port, None);
        let small = pod(json!({"containers": []}), ready_at("10.0.0.7")).unwrap();
        assert_eq!(seen(Some("p20000")).weight(), small.weight());
    }
}

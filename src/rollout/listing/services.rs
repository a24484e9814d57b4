//! Services: which pods one selects, and which of its ports leads where.
//!
//! Input: a namespace, and a Service with one of its ports. It needs the rights of rbac/addons/verify.yaml. Of a Service,
//! which anybody of the namespace may write, only its selector and the numbers of its ports are decoded.

use cert_renew_core::rollout::lean::{MOST_ENTRIES, Small};
use cert_renew_core::secret::settings::ServicePort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Client;
use kube::api::GetParams;
use kube::core::Request;
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::Call;
use crate::rollout::error::Error;
use crate::rollout::roller::Roller;

/// The JSON of a Service, which may have tens of thousands of ports and as many labels in its selector.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ServiceWire {
    spec: ServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ServiceSpec {
    selector: Option<Small>,
    ports: Option<Vec<OfferedPort>>,
}

/// A port of a Service. It takes less than its JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfferedPort {
    pub(super) port: i32,
    pub(super) target_port: Option<IntOrString>,
}

/// The selector of a Service and its port, or why they lead to no pod, in words.
///
/// # Errors
/// When the API server does not answer.
pub(super) async fn offered(
    client: &Client,
    namespace: &str,
    to: &ServicePort,
) -> Result<Result<(String, OfferedPort), String>, Error> {
    let path = format!("/api/v1/namespaces/{namespace}/services");
    let what = || format!("reading Service {} of namespace {namespace}", to.service);
    let get = || async {
        let request = Request::new(&path).get(&to.service, &GetParams::default());
        let request = request.map_err(kube::Error::BuildRequest)?;
        client.request::<ServiceWire>(request).await
    };
    match Call::READ.repeat(what, get).await {
        Ok(service) => Ok(service.offered(to)),
        Err(error) if error.code() == Some(404) => {
            Ok(Err(format!("there is no Service {}", to.service)))
        }
        Err(error) => Err(error.into()),
    }
}

impl Roller {
    /// Why a Service and its port lead to no pod, in words; `None` where they may.
    ///
    /// # Errors
    /// When the API server does not answer, or the right is missing.
    pub async fn missing(
        &self,
        namespace: &str,
        to: &ServicePort,
    ) -> Result<Option<String>, Error> {
        Ok(offered(&self.client, namespace, to).await?.err())
    }
}

impl ServiceWire {
    /// Its selector and its port of this number, or why they lead to no pod, in words.
    fn offered(self, to: &ServicePort) -> Result<(String, OfferedPort), String> {
        let ServiceSpec { selector, ports } = self.spec;
        let (name, number) = (&to.service, to.port);
        let mut ports = ports.into_iter().flatten();
        let port = ports.find(|offered| offered.port == i32::from(number));
        let port = port.ok_or_else(|| format!("Service {name} has no port {number}"))?;
        let Small(labels) = selector.unwrap_or(Small(Some(Value::Null)));
        let labels = labels.ok_or_else(|| {
            format!("Service {name} selects its pods by more than {MOST_ENTRIES} labels")
        })?;
        let labels = labels.as_object().into_iter().flatten();
        let labels = labels.map(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            format!("{key}={value}")
        });
        let labels: Vec<String> = labels.collect();
        if labels.is_empty() {
            return Err(format!("Service {name} selects no pods"));
        }
        Ok((labels.join(","), port))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Response, StatusCode};
    use kube::client::Body;
    use serde_json::json;
    use tower::service_fn;

    use super::*;

    /// A client of an API server that gives this answer.
    fn answered(answer: &Value) -> Client {
        let (text, code) = (answer.to_string(), answer["code"].as_u64());
        let server = service_fn(move |_: http::Request<Body>| {
            let mut answer = Response::new(Body::from(text.clone().into_bytes()));
            if code == Some(404) {
                *answer.status_mut() = StatusCode::NOT_FOUND;
            }
            async move { Ok::<_, Infallible>(answer) }
        });
        Client::new(server, "n")
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_service_its_selector_and_its_ports_are_decoded_and_nothing_else() {
        let to: ServicePort = "web:20000".parse().unwrap();
        let port = |number: usize| json!({"name": 7, "port": number, "targetPort": "tls"});
        let ports: Vec<Value> = (1..=30_000).map(port).collect();
        assert!(
            size_of::<OfferedPort>() <= 32,
            "{}",
            size_of::<OfferedPort>()
        );
        let labels = |count: usize| -> Value {
            let labels = (0..count).map(|number| (format!("l{number:03}"), json!("x")));
            Value::Object(labels.collect())
        };
        let selector = |count: usize| json!({"selector": labels(count), "ports": ports});
        let missing = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "none", "reason": "NotFound", "code": 404});
        // Not what the client library decodes.
        let service = |spec: Value| json!({"metadata": "unread", "spec": spec, "status": "unread"});
        for (answer, expected) in [
            (service(selector(2)), "l000=x,l001=x"),
            (
                service(selector(MOST_ENTRIES + 1)),
                "Service web selects its pods by more than 200 labels",
            ),
            (service(selector(0)), "Service web selects no pods"),
            (
                service(json!({"selector": null, "ports": ports})),
                "Service web selects no pods",
            ),
            (
                service(json!({"ports": ports})),
                "Service web selects no pods",
            ),
            (
                service(json!({"selector": labels(1), "ports": null})),
                "Service web has no port 20000",
            ),
            (missing, "there is no Service web"),
        ] {
            let client = answered(&answer);
            let said = match offered(&client, "shop", &to).await.unwrap() {
                Ok((selector, port)) => {
                    assert_eq!(port.port, 20_000);
                    assert_eq!(port.target_port, Some(IntOrString::String("tls".into())));
                    selector
                }
                Err(why) => why,
            };
            assert_eq!(said, expected);
        }
    }
}

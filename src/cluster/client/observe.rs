//! Counts the requests to the API server: a layer around the client's own service.
//!
//! Input: method, path and query of each request. Names and namespaces are dropped, to keep the number of series small.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use tower::{Layer, Service};

use crate::telemetry::metrics::Metrics;

/// Wraps a service so that its requests are counted.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Counting(pub(in crate::cluster) Arc<Metrics>);

#[derive(Clone, Debug)]
pub(in crate::cluster) struct Counted<S> {
    service: S,
    metrics: Arc<Metrics>,
}

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, service: S) -> Counted<S> {
        Counted {
            service,
            metrics: Arc::clone(&self.0),
        }
    }
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (verb, resource) = meaning(request.method(), request.uri());
        let resource = resource.to_owned();
        let metrics = Arc::clone(&self.metrics);
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            metrics.api_request(verb, &resource, status);
            answer
        })
    }
}

/// Verb and resource as RBAC names them; no resource for other paths, such as `/version`.
fn meaning<'a>(method: &Method, uri: &'a http::Uri) -> (&'static str, &'a str) {
    let mut parts = uri.path().trim_matches('/').split('/');
    // /api/v1/… and /apis/GROUP/VERSION/…
    match parts.next() {
        Some("api") => _ = parts.next(),
        Some("apis") => _ = (parts.next(), parts.next()),
        _ => return ("get", ""),
    }
    let mut rest: Vec<&str> = parts.collect();
    if let ["namespaces", _, _, ..] = *rest {
        rest.drain(..2);
    }
    let resource = match *rest {
        // Eviction is the only subresource in use; it is a right of its own.
        [_, _, "eviction", ..] => "pods/eviction",
        [resource, ..] => resource,
        [] => "",
    };
    let watches = || {
        uri.query()
            .is_some_and(|query| query.contains("watch=true"))
    };
    let verb = match *method {
        Method::GET if watches() => "watch",
        Method::GET if rest.len() < 2 => "list",
        Method::GET => "get",
        Method::POST => "create",
        Method::PATCH => "patch",
        Method::PUT => "update",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_rbac_calls_it() {
        for (method, uri, expected) in [
            (
                Method::GET,
                "/api/v1/secrets?&fieldSelector=type%3Dx",
                ("list", "secrets"),
            ),
            (
                Method::GET,
                "/api/v1/secrets?watch=true&x=y",
                ("watch", "secrets"),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/secrets/b",
                ("get", "secrets"),
            ),
            (Method::GET, "/api/v1/namespaces/a", ("get", "namespaces")),
            (
                Method::GET,
                "/api/v1/namespaces/a/secrets?limit=5",
                ("list", "secrets"),
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/b",
                ("patch", "deployments"),
            ),
            (
                Method::POST,
                "/api/v1/namespaces/a/pods/b/eviction",
                ("create", "pods/eviction"),
            ),
            (
                Method::POST,
                "/apis/events.k8s.io/v1/namespaces/a/events",
                ("create", "events"),
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/a/secrets/b",
                ("delete", "secrets"),
            ),
            (Method::GET, "/version", ("get", "")),
        ] {
            let uri = uri.parse().unwrap();
            assert_eq!(meaning(&method, &uri), expected, "{uri}");
        }
    }
}

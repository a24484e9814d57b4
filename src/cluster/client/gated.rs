//! The write gate for the API server: a layer around the client's own service.
//!
//! Reads always pass; all other requests only while this replica leads.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Method, Request};
use tower::{BoxError, Layer, Service};

use crate::process::write_gate::WriteGate;

/// Wraps a service so that writes go through the gate.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Gating(pub(in crate::cluster) WriteGate);

#[derive(Clone, Debug)]
pub(in crate::cluster) struct Gated<S> {
    service: S,
    gate: WriteGate,
}

impl<S> Layer<S> for Gating {
    type Service = Gated<S>;

    fn layer(&self, service: S) -> Gated<S> {
        Gated {
            service,
            gate: self.0.clone(),
        }
    }
}

impl<S, B> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        // The request is only sent when the future is polled.
        let answer = self.service.call(request);
        if reads {
            return Box::pin(answer);
        }
        let gate = self.gate.clone();
        Box::pin(async move { gate.pass(answer).await? })
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use tower::Service as _;

    use super::*;

    /// A server that answers every request.
    struct Server;

    impl Service<Request<()>> for Server {
        type Response = ();
        type Error = BoxError;
        type Future = Ready<Result<(), BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_standby_reads_and_changes_nothing() {
        for (gate, leads) in [(WriteGate::open(), true), (WriteGate::default(), false)] {
            let mut service = Gating(gate).layer(Server);
            for (method, reads) in [
                (Method::GET, true),
                (Method::HEAD, true),
                (Method::POST, false),
                (Method::PATCH, false),
                (Method::PUT, false),
                (Method::DELETE, false),
            ] {
                let request = Request::builder().method(&method).body(()).unwrap();
                let answer = service.call(request).await;
                assert_eq!(answer.is_ok(), reads || leads, "{method} {leads}");
            }
        }
    }
}

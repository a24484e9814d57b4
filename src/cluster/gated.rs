//! The gate before the API server: a layer around the client's own service.
//!
//! What only reads passes always; everything else only while this replica leads.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Method, Request};
use tower::{BoxError, Layer, Service};

use crate::gate::Gate;

/// Wraps a service so that what changes something goes through the gate.
#[derive(Clone, Debug)]
pub(super) struct Gating(pub(super) Gate);

#[derive(Clone, Debug)]
pub(super) struct Gated<S> {
    service: S,
    gate: Gate,
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
        // Nothing is sent before the future is polled.
        let answer = self.service.call(request);
        if reads {
            return Box::pin(answer);
        }
        let gate = self.gate.clone();
        Box::pin(async move { gate.pass(answer).await? })
    }
}

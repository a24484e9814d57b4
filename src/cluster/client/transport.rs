//! HTTP to the API server: kube's own builder with three changes.
//!
//! * `TCP_NODELAY`. kube does not set it; a request in two small segments, such as the first after a handshake, then
//!   waits 40 ms for the delayed ACK of the first (Nagle's algorithm, RFC 9293, 3.7.4).
//! * Watches have connections of their own. HTTP/1.1 can end a watch only with its connection, so each rollout would
//!   find one connection less, and wait for a handshake.
//! * Answers are bounded by bytes ([`super::bounded`]).
//! * A connection that cannot be made says to which address.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, Uri};
use hyper::body::{Body as HttpBody, Incoming};
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::TokioExecutor;
use kube::Config;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use tower::retry::RetryLayer;
use tower::{BoxError, Service, ServiceBuilder};

use super::bounded::{Answer, Bounded};

/// A builder like that of [`ClientBuilder::try_from`].
///
/// # Errors
/// When the config's certificates, its authentication, or its headers cannot be used.
pub(in crate::cluster) fn builder(
    config: Config,
) -> Result<
    ClientBuilder<
        impl Service<Request<Body>, Response = Answered, Error = BoxError, Future: Send + 'static>
        + Send
        + 'static,
    >,
    kube::Error,
> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(config.connect_timeout);
    let connector = Addressed(config.rustls_https_connector_with_connector(tcp)?);
    let client = || Client::builder(TokioExecutor::new()).build(connector.clone());
    let pools = Pools {
        requests: client(),
        watches: client(),
    };
    over(config, pools)
}

/// The same over any transport.
///
/// # Errors
/// When the config's authentication or headers cannot be used.
#[expect(clippy::type_complexity, reason = "an opaque type has no other name")]
pub(in crate::cluster) fn over<S, B>(
    config: Config,
    transport: S,
) -> Result<
    ClientBuilder<
        impl Service<
            Request<Body>,
            Response = Response<Answer<B>>,
            Error = BoxError,
            Future: Send + 'static,
        > + Send
        + 'static,
    >,
    kube::Error,
>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    let retry = config.default_retry.then(RetryPolicy::server_retry);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry.map(RetryLayer::new))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .service(Bounded::new(transport));
    Ok(ClientBuilder::new(
        service,
        config.default_namespace.clone(),
    ))
}

/// A bounded answer of the API server.
type Answered = Response<Answer<Incoming>>;

/// The API server cannot be reached.
#[derive(Debug)]
pub struct Unreachable {
    address: String,
    cause: BoxError,
}

impl Unreachable {
    /// Host and port of the API server.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether nothing listens there.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        let mut next: Option<&(dyn Error + 'static)> = Some(&*self.cause);
        while let Some(error) = next {
            let io = error.downcast_ref::<io::Error>();
            if io.is_some_and(|it| it.kind() == io::ErrorKind::ConnectionRefused) {
                return true;
            }
            next = error.source();
        }
        false
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no connection to {}", self.address)
    }
}

impl Error for Unreachable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}

/// A connector whose errors name the address.
#[derive(Clone)]
struct Addressed<C>(C);

impl<C> Service<Uri> for Addressed<C>
where
    C: Service<Uri, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = C::Response;
    type Error = Unreachable;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, Unreachable>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        self.0.poll_ready(context).map_err(|cause| Unreachable {
            address: "the API server".into(),
            cause: cause.into(),
        })
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let address = target
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        let connecting = self.0.call(target);
        Box::pin(async move {
            connecting.await.map_err(|cause| Unreachable {
                address,
                cause: cause.into(),
            })
        })
    }
}

/// Connections, by their use.
#[derive(Clone)]
struct Pools<C> {
    requests: Client<C, Body>,
    watches: Client<C, Body>,
}

impl<C: Connect + Clone + Send + Sync + 'static> Service<Request<Body>> for Pools<C> {
    type Response = Response<Incoming>;
    type Error = hyper_util::client::legacy::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // A pool is always ready: it opens connections on demand.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut parameters = { request.uri().query() }.unwrap_or_default().split('&');
        if parameters.any(|it| it.starts_with("watch=")) {
            self.watches.request(request)
        } else {
            self.requests.request(request)
        }
    }
}

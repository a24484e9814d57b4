//! HTTP to the API server: what kube's own builder makes, but for `TCP_NODELAY`.
//!
//! kube sets none. A request that is two small segments, as the first on a new connection is after the handshake, then
//! waits 40 ms for the delayed ACK of the first (Nagle's algorithm, RFC 9293, 3.7.4).

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Config;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use tower::retry::RetryLayer;
use tower::{BoxError, Service, ServiceBuilder};

/// A builder as [`ClientBuilder::try_from`] makes it.
///
/// # Errors
/// When the config's certificates, its way to log in, or its headers cannot be used.
pub(super) fn builder(
    config: Config,
) -> Result<
    ClientBuilder<
        impl Service<
            Request<Body>,
            Response = Response<Incoming>,
            Error = BoxError,
            Future: Send + 'static,
        > + Send
        + 'static,
    >,
    kube::Error,
> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(config.connect_timeout);
    let client = Client::builder(TokioExecutor::new())
        .build(config.rustls_https_connector_with_connector(tcp)?);
    let retry = config.default_retry.then(RetryPolicy::server_retry);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry.map(RetryLayer::new))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(ClientBuilder::new(service, config.default_namespace))
}

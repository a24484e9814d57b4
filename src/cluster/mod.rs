//! The Kubernetes side: watches, guarded writes, Events, the lease, the ledger, order records, account keys.
//!
//! Every call has a deadline and ends in an [`Error`] that names the attempted action. It decides nothing; other
//! modules decide what is read and written.

pub mod access;
pub mod accounts;
pub mod challenge_routes;
pub(crate) mod client;
pub mod declarations;
pub mod events;
pub mod lease;
pub mod ledger;
pub mod namespaces;
pub mod order_records;
pub mod secrets;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Body as HttpBody;
use kube::Client;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, Service};

use client::DEADLINE;

pub use self::client::call::Call;
pub use self::client::error::Error;
pub use self::client::transport::Unreachable;

use crate::process::write_gate::WriteGate;
use crate::telemetry::metrics::Metrics;

/// The kubeconfig, its context, and whom to impersonate; all defaults are kubectl's.
#[derive(Clone, Debug, Default)]
pub struct KubeConfigSource {
    /// The kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// The context.
    pub context: Option<String>,
    /// The user to impersonate.
    pub user: Option<String>,
    /// The groups to impersonate.
    pub groups: Vec<String>,
    /// Each request is sent once: what cannot be had now is not waited for.
    pub once: bool,
}

impl KubeConfigSource {
    async fn config(&self) -> Result<kube::Config, NoWay> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let file = Kubeconfig::read_from(file)?;
                kube::Config::from_custom_kubeconfig(file, &options).await?
            }
            None if self.context.is_some() => kube::Config::from_kubeconfig(&options).await?,
            None => kube::Config::infer().await?,
        };
        config.default_retry &= !self.once;
        if self.user.is_some() {
            config.auth_info.impersonate.clone_from(&self.user);
            config.auth_info.impersonate_groups =
                Some(self.groups.clone()).filter(|groups| !groups.is_empty());
        }
        Ok(config)
    }
}

/// The client for reads and for the lease: by kubeconfig, else by the pod's service account.
///
/// `HTTPS_PROXY` is the proxy for the CAs, but kube would use it for the API server too; a proxy in the kubeconfig
/// itself is refused.
///
/// Requests are counted if there are `metrics`.
///
/// # Errors
/// When neither says where the API server is.
pub async fn connect(
    way: &KubeConfigSource,
    metrics: Option<Arc<Metrics>>,
) -> Result<Client, NoWay> {
    let builder = client::transport::builder(config(way).await?)?;
    Ok(match metrics {
        Some(metrics) => builder
            .with_layer(&client::observe::Counting(metrics))
            .build(),
        None => builder.build(),
    })
}

/// The client for everything else: as [`connect`], and writes go through the gate.
///
/// # Errors
/// When neither kubeconfig nor pod says where the API server is.
pub async fn connect_behind(gate: WriteGate, metrics: Arc<Metrics>) -> Result<Client, NoWay> {
    let builder = client::transport::builder(config(&KubeConfigSource::default()).await?)?
        .with_layer(&client::observe::Counting(metrics))
        // Outermost: kube's own retries are inside.
        .with_layer(&client::gated::Gating(gate));
    Ok(builder.build())
}

/// Both clients, [`connect`]'s and [`connect_behind`]'s, over a transport that needs no connection.
///
/// # Errors
/// None of the transport's: they come with the requests.
pub fn connect_over<S, B>(
    transport: S,
    gate: WriteGate,
    metrics: &Arc<Metrics>,
) -> Result<(Client, Client), NoWay>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    let config = kube::Config::new(http::Uri::from_static("http://api-server"));
    let counting = || client::observe::Counting(Arc::clone(metrics));
    let builder = || Ok::<_, NoWay>(client::transport::over(config.clone(), transport.clone())?);
    let lease = builder()?.with_layer(&counting()).build();
    let behind = builder()?
        .with_layer(&counting())
        .with_layer(&client::gated::Gating(gate))
        .build();
    Ok((lease, behind))
}

/// Why the API server cannot be connected.
pub type NoWay = Box<dyn std::error::Error + Send + Sync>;

async fn config(way: &KubeConfigSource) -> Result<kube::Config, NoWay> {
    let config = way.config().await?;
    let of_environment = |proxy: &http::Uri| {
        let values = ["HTTPS_PROXY", "https_proxy"].map(|name| std::env::var(name).ok());
        let mut parsed = values
            .into_iter()
            .flatten()
            .filter_map(|value| value.parse::<http::Uri>().ok());
        parsed.any(|value| value == *proxy)
    };
    let own = config.proxy_url.as_ref().filter(|url| !of_environment(url));
    if let Some(proxy) = own {
        let host = proxy.host().unwrap_or_default();
        return Err(format!("the kubeconfig says proxy-url, {host}: cert-renew goes to the API server without a proxy, remove it").into());
    }
    Ok(config)
}

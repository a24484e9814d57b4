//! The HTTP edge: Pebble connects to it for HTTP-01, and it forwards `/.well-known/acme-challenge/` to the operators.
//!
//! It plays the Ingress controller or load balancer of a real cluster, so that `route: shared` goes through something.
//! Many operators share one edge in a test run: it sends each challenge to all of them at once, and returns the first
//! 200. If a bench is kept after the end of its process, a process of its own takes the edge over.

use std::env;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{HeaderMap, StatusCode, Uri, header};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::group::Group;
use crate::process::Process;
use crate::{ports, runtime};

/// The only path that is forwarded.
const CHALLENGES: &str = "/.well-known/acme-challenge/{token}";
/// Longest wait for an operator: less than the 10 s that a CA waits, so that one stopped operator fails no other.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(4);

/// Longest handover, which takes milliseconds.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(10);

/// Tells a process that it is the edge of a kept bench: its address, then the operators, separated by commas.
const ROLE: &str = "CERT_RENEW_BENCH_EDGE";

/// One request that the edge has served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Host header without the port.
    pub host: String,
    /// Path.
    pub path: String,
    /// Status of the answer.
    pub status: StatusCode,
}

/// The edge of one bench.
#[derive(Debug)]
pub struct Edge {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// `None` once it was handed over.
    server: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    http: reqwest::Client,
    state: Mutex<Routes>,
}

#[derive(Debug, Default)]
struct Routes {
    operators: Vec<SocketAddr>,
    hits: Vec<Hit>,
}

impl Edge {
    /// Listens on `port`, or on a free one.
    pub(crate) async fn start(port: Option<u16>) -> Result<Self> {
        if let Some(port) = port {
            return Self::listen((ports::address(), port).into(), Vec::new()).await;
        }
        ports::retry(async || Self::listen(ports::free()?, Vec::new()).await).await
    }

    async fn listen(address: SocketAddr, operators: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("the edge on {address}"))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(OPERATOR_TIMEOUT)
            .build()?;
        let state = Mutex::new(Routes {
            operators,
            hits: Vec::new(),
        });
        let shared = Arc::new(Shared { http, state });
        let router = Router::new()
            .route(CHALLENGES, axum::routing::get(forward))
            .with_state(Arc::clone(&shared));
        let server = runtime().spawn(async move {
            // Ends with the runtime only.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            address,
            shared,
            server: Mutex::new(Some(server)),
        })
    }

    /// Hands the port over to a process of the group that outlives this one: this same program, which must call
    /// [`serve_edge_if_asked`].
    pub(crate) async fn hand_over(&self, group: &Group) -> Result<()> {
        if let Some(server) = self.take_server() {
            server.abort();
            // An error is the cancellation that was requested.
            let _ = server.await;
        }
        let operators = self.shared.state().operators.clone();
        let role: Vec<_> = [self.address]
            .iter()
            .chain(&operators)
            .map(SocketAddr::to_string)
            .collect();
        let mut command = Command::new(env::current_exe()?);
        command.env(ROLE, role.join(","));
        let process = Process::spawn(group, "edge", command)?;
        let url = format!("http://{}/.well-known/acme-challenge/none", self.address);
        process
            .ready(HAND_OVER_DEADLINE, async || {
                self.shared.http.get(&url).send().await?;
                Ok(())
            })
            .await
    }

    fn take_server(&self) -> Option<JoinHandle<()>> {
        self.server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Its address, to which the CA connects.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends challenges to this operator too.
    pub fn add(&self, operator: SocketAddr) {
        self.shared.state().operators.push(operator);
    }

    /// Stops sending challenges to this operator.
    pub fn remove(&self, operator: SocketAddr) {
        self.shared
            .state()
            .operators
            .retain(|other| *other != operator);
    }

    /// The requests until now, in order.
    #[must_use]
    pub fn hits(&self) -> Vec<Hit> {
        self.shared.state().hits.clone()
    }
}

/// Serves as the edge of a kept bench, for ever, if this process was started for that; returns at once otherwise.
/// Must be the first call in `main` of a program that uses [`crate::Bench::keep`].
///
/// # Errors
/// When the role is invalid or the port is taken.
pub fn serve_edge_if_asked() -> Result<()> {
    let Ok(role) = env::var(ROLE) else {
        return Ok(());
    };
    let mut addresses = Vec::new();
    for address in role.split(',') {
        addresses.push(
            address
                .parse()
                .with_context(|| format!("{ROLE}: {address:?} is not an address"))?,
        );
    }
    let address = addresses.remove(0);
    runtime().block_on(async {
        let edge = Edge::listen(address, addresses).await?;
        edge.take_server()
            .context("the edge runs")?
            .await
            .context("the edge has ended")
    })
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Some(server) = self.take_server() {
            server.abort();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Routes> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn forward(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response {
    let operators = shared.state().operators.clone();
    let host = headers.get(header::HOST).cloned();
    let mut answers: FuturesUnordered<_> = operators
        .into_iter()
        .map(|operator| {
            let mut request = shared.http.get(format!("http://{operator}{}", uri.path()));
            if let Some(host) = &host {
                request = request.header(header::HOST, host);
            }
            async move {
                let response = request
                    .send()
                    .await
                    .ok()
                    .filter(|response| response.status() == StatusCode::OK)?;
                response.bytes().await.ok()
            }
        })
        .collect();
    let mut response = (
        StatusCode::NOT_FOUND,
        "no operator answers this challenge\n",
    )
        .into_response();
    while let Some(answer) = answers.next().await {
        if let Some(body) = answer {
            response = body.into_response();
            break;
        }
    }
    let host = host
        .as_ref()
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    shared.state().hits.push(Hit {
        host: host.split(':').next().unwrap_or_default().to_owned(),
        path: uri.path().to_owned(),
        status: response.status(),
    });
    response
}

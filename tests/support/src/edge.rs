//! The HTTP edge: where Pebble connects for HTTP-01, and what hands `/.well-known/acme-challenge/` on to the operators.
//!
//! It stands for the Ingress controller or load balancer of a real cluster, so that `route: shared` goes through
//! something. Many operators share one edge in a test run: each challenge is asked of all of them at once, and the
//! first 200 is the answer.

use std::net::SocketAddr;
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

use crate::{ports, runtime};

/// The only path that is handed on.
const CHALLENGES: &str = "/.well-known/acme-challenge/{token}";
/// Under the 10 s that a CA waits, so that one stopped operator spoils no other's validation.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(4);

/// One request that the edge has served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Host header without the port.
    pub host: String,
    /// Path.
    pub path: String,
    /// What was answered.
    pub status: StatusCode,
}

/// The edge of one bench.
#[derive(Debug)]
pub struct Edge {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
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
    /// Listens on a free port.
    pub(crate) async fn start() -> Result<Self> {
        let address = ports::free()?;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("the edge on {address}"))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(OPERATOR_TIMEOUT)
            .build()?;
        let shared = Arc::new(Shared {
            http,
            state: Mutex::default(),
        });
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
            server,
        })
    }

    /// Where the CA connects.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on challenges are asked of this operator too.
    pub fn add(&self, operator: SocketAddr) {
        self.shared.state().operators.push(operator);
    }

    /// No longer asks this operator.
    pub fn remove(&self, operator: SocketAddr) {
        self.shared
            .state()
            .operators
            .retain(|other| *other != operator);
    }

    /// What was asked for until now, in order.
    #[must_use]
    pub fn hits(&self) -> Vec<Hit> {
        self.shared.state().hits.clone()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.server.abort();
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

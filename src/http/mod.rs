//! The metrics port: `/metrics`, `/healthz`, `/readyz`, the status page, and nothing else.
//!
//! Read only, without credentials, for Prometheus, the kubelet and people; it holds nothing that is secret.
//! Whoever connects cannot slow the controller down: connections are few and short, and one scrape is rendered at a time.

pub mod bounded;
mod page;

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};

use crate::config::Config;
use crate::index::Index;
use crate::metrics::{Metrics, process};
use crate::time::UnixTime;

/// A loop that has not turned for so long is stuck: it turns at least once a minute when nothing is due.
const STUCK: Duration = Duration::from_secs(180);
/// Of the text format that `metrics` renders.
const EXPOSITION: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// What the port tells about.
#[derive(Clone)]
pub struct State {
    /// All annotated Secrets.
    pub index: Arc<RwLock<Index>>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// When the controller's loop turned last, unix seconds.
    pub beat: Arc<AtomicI64>,
    /// Whether the first list is done, and the replica is not about to end.
    pub ready: Arc<AtomicBool>,
    /// The config that is in force.
    pub config: watch::Receiver<Arc<Config>>,
    /// The failures in a row of an account of the ledger.
    pub failures: Arc<dyn Fn(u64) -> u32 + Send + Sync>,
    /// Whose view it is: the pod's name.
    pub replica: Arc<str>,
    /// When the process began.
    pub started: UnixTime,
}

struct Served {
    state: State,
    scraping: Mutex<()>,
    /// Apart from `scraping`: nobody who looks at the page delays Prometheus.
    paging: Mutex<()>,
}

/// Serves until `shutdown` resolves.
pub async fn serve(listener: TcpListener, state: State, shutdown: impl Future<Output = ()>) {
    bounded::serve(listener, router(state), shutdown).await;
}

fn router(state: State) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/", get(page::page))
        .route("/api/certificates", get(page::json))
        .fallback((
            StatusCode::NOT_FOUND,
            "there are /, /api/certificates, /metrics, /healthz and /readyz\n",
        ))
        .with_state(Arc::new(Served {
            state,
            scraping: Mutex::default(),
            paging: Mutex::default(),
        }))
}

async fn healthz(Shared(served): Shared<Arc<Served>>) -> (StatusCode, String) {
    let beat = UnixTime(served.state.beat.load(Ordering::Relaxed));
    let age = UnixTime::now().since(beat);
    if age < STUCK {
        (StatusCode::OK, "ok\n".into())
    } else {
        let note = format!("the loop has not turned for {} s\n", age.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, note)
    }
}

async fn readyz(Shared(served): Shared<Arc<Served>>) -> (StatusCode, &'static str) {
    if served.state.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        let note = "the first list of Secrets is not complete, or the replica is stopping\n";
        (StatusCode::SERVICE_UNAVAILABLE, note)
    }
}

async fn metrics(Shared(served): Shared<Arc<Served>>) -> Response {
    // Each scrape may take megabytes: several at once wait for each other, and their connection's deadline holds.
    let turn = served.scraping.lock().await;
    let state = served.state.clone();
    let rendered = tokio::task::spawn_blocking(move || {
        let per_certificate = state.config.borrow().metrics.per_certificate;
        let index = state.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut out =
            state
                .metrics
                .render(UnixTime::now(), &index, &*state.failures, per_certificate);
        drop(index);
        process::write(&mut out, state.started);
        out
    })
    .await;
    drop(turn);
    match rendered {
        Ok(body) => ([(CONTENT_TYPE, EXPOSITION)], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "a scrape could not be rendered");
            (StatusCode::INTERNAL_SERVER_ERROR, "see the log\n").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        // Reading to the end also shows that the connection is closed.
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn tells_what_the_state_says_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = |text| Arc::new(Config::parse(text).unwrap());
        let (configs, config_in_force) = watch::channel(config("issuers: {}"));
        let state = State {
            index: Arc::default(),
            metrics: Arc::new(Metrics::new().unwrap()),
            beat: Arc::new(AtomicI64::new(UnixTime::now().0)),
            ready: Arc::default(),
            config: config_in_force,
            failures: Arc::new(|_| 0),
            replica: "pod".into(),
            started: UnixTime(1),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, state.clone(), async {
            let _ = stopped.await;
        }));

        for (request, status, body) in [
            ("GET /healthz", 200, "ok"),
            ("GET /readyz", 503, "first list"),
            (
                "GET /metrics",
                200,
                "cert_renew_certificates{state=\"ok\"} 0",
            ),
            ("GET /metrics", 200, "process_start_time_seconds 1"),
            ("HEAD /metrics", 200, ""),
            ("POST /metrics", 405, ""),
            ("GET /", 200, "content-security-policy: default-src 'none'"),
            ("GET /?state=due&q=x", 200, "Nothing matches"),
            ("POST /", 405, ""),
            ("GET /api/certificates", 200, "\"certificates\":[]"),
            ("GET /index.html", 404, "/metrics"),
            ("GET /metrics/x", 404, "/metrics"),
            ("GET /%2e%2e/metrics", 404, "/metrics"),
        ] {
            let answer = ask(address, request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request}: {answer}"
            );
            assert!(answer.contains(body), "{request}: {answer}");
        }

        state.ready.store(true, Ordering::Relaxed);
        let late = UnixTime::now() - STUCK;
        state.beat.store(late.0, Ordering::Relaxed);
        assert!(ask(address, "GET /readyz").await.contains(" 200 "));
        assert!(
            ask(address, "GET /healthz")
                .await
                .contains("has not turned for")
        );

        configs.send_replace(config("{issuers: {}, metrics: {page: false}}"));
        for path in ["GET /", "GET /api/certificates"] {
            let answer = ask(address, path).await;
            assert!(answer.contains(" 404 ") && answer.contains("metrics.page"));
        }

        stop.send(()).unwrap();
        server.await.unwrap();
    }
}

//! The metrics port: `/metrics`, `/healthz`, `/readyz`, the status page, and nothing else.
//!
//! Read only, for Prometheus, the kubelet and people; it contains nothing secret. It takes no credentials, unless the config
//! closes it to all but viewers ([`access`]); probes are always answered. Clients cannot slow the controller or Prometheus
//! down: connections are few and short, one answer of a kind is rendered at a time, and few rendered answers are kept for
//! slow clients.

pub mod access;
mod page;
mod scrape;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::net::bounded::{self, Connection};
use crate::net::presented::Presented;
use access::Doorkeeper;
use axum::Extension;
use axum::Router;
use axum::extract::State as Shared;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cert_renew_core::config::Config;
use cert_renew_core::index::{Index, Observed};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::secret::stray::Stray;
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::Leader;
use cert_renew_core::verdict::detail::Remembered;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use scrape::Scrapes;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinError, spawn_blocking};

use crate::telemetry::metrics::{Metrics, process};

/// Time after which a silent controller loop counts as stuck: it runs at least once a minute.
const STUCK: Duration = Duration::from_secs(180);
/// Most rendered pages that are being read. One more closes the connection of the oldest.
const SENT: usize = 2;
/// Content type of the text format that `metrics` renders.
const EXPOSITION: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Reads the query and the token of a request from any input.
#[cfg(test)]
pub(crate) fn read(input: &[u8]) {
    page::read(input);
    access::read(input);
}

/// What the process remembers of a Secret with these names, beside the index.
pub type Recall = Arc<dyn Fn(&SecretRef, &Observed, &[Name]) -> Remembered + Send + Sync>;

/// The sources of the port's answers.
#[derive(Clone)]
pub struct State {
    /// All annotated Secrets.
    pub index: Arc<RwLock<Index>>,
    /// Secrets that seem to be meant and are not managed.
    pub strays: Arc<RwLock<BTreeMap<SecretRef, Stray>>>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// When the controller's loop last ran, unix seconds.
    pub beat: Arc<AtomicI64>,
    /// Whether the first list is done, and the replica is not about to stop.
    pub ready: Arc<AtomicBool>,
    /// The present config.
    pub config: watch::Receiver<Arc<Config>>,
    /// The failures of a Secret in a row.
    pub failures: Arc<dyn Fn(&Observed) -> u32 + Send + Sync>,
    /// What the process remembers of a Secret beside the index.
    pub remembered: Recall,
    /// Who leads at an instant.
    pub leader: Arc<dyn Fn(UnixTime) -> Leader + Send + Sync>,
    /// The operator's own namespace.
    pub namespace: Arc<str>,
    /// The name of this replica: the pod's name.
    pub replica: Arc<str>,
    /// When the process started.
    pub started: UnixTime,
    /// Asks the API server whether somebody is a viewer.
    pub review: access::Review,
    /// The certificate of the port.
    pub certificate: Presented,
}

struct Served {
    state: State,
    scraping: Scrapes,
    /// Separate from `scraping`, so that the page never delays Prometheus.
    paging: Renderer,
    doorkeeper: Doorkeeper,
}

/// Renders one page at a time, and bounds the pages in memory. A page may have megabytes.
#[derive(Default)]
struct Renderer {
    turn: Arc<Mutex<()>>,
    /// The connections of the last pages, sent or being sent.
    latest: std::sync::Mutex<VecDeque<Connection>>,
}

impl Renderer {
    /// Renders on a thread that may block. Concurrent requests wait, bounded by their connection's deadline.
    ///
    /// # Errors
    /// When `render` panics.
    async fn render<T: Send + 'static>(
        &self,
        connection: Option<Connection>,
        render: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let rendered = spawn_blocking(move || {
            let rendered = render();
            // Held here, as the rendering continues when its client is gone.
            drop(turn);
            rendered
        });
        let rendered = rendered.await?;
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.extend(connection);
        if latest.len() > SENT
            && let Some(slowest) = latest.pop_front()
        {
            slowest.close();
        }
        Ok(rendered)
    }
}

/// Serves until `shutdown` resolves.
pub async fn serve(listener: TcpListener, state: State, shutdown: impl Future<Output = ()>) {
    match state.certificate.acceptor() {
        Ok(tls) => bounded::serve_with_tls(listener, tls, router(state), shutdown).await,
        Err(error) => {
            tracing::error!(%error, "the metrics port does not speak TLS");
            bounded::serve(listener, router(state), shutdown).await;
        }
    }
}

fn router(state: State) -> Router {
    let served = Arc::new(Served {
        doorkeeper: Doorkeeper::new(Arc::clone(&state.review), Arc::clone(&state.metrics)),
        state,
        scraping: Scrapes::default(),
        paging: Renderer::default(),
    });
    let metrics = Router::new()
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(Arc::clone(&served), access::metrics));
    let page = Router::new()
        .route("/", get(page::page))
        .route("/api/certificates", get(page::json))
        .route_layer(from_fn_with_state(Arc::clone(&served), access::page));
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(metrics)
        .merge(page)
        .fallback((
            StatusCode::NOT_FOUND,
            "there are /, /api/certificates, /metrics, /healthz and /readyz\n",
        ))
        .with_state(served)
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

async fn metrics(
    Shared(served): Shared<Arc<Served>>,
    connection: Option<Extension<Connection>>,
) -> Response {
    let state = served.state.clone();
    let render = move || {
        let per_certificate = state.config.borrow().metrics.per_certificate;
        let index = state.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut out =
            state
                .metrics
                .render(UnixTime::now(), &index, &*state.failures, per_certificate);
        drop(index);
        process::write(&mut out, state.started);
        out
    };
    let connection = connection.map(|Extension(it)| it);
    match served.scraping.render(connection, render).await {
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

    /// The most renderings at a time, for many clients that leave while `render` renders for them.
    pub(crate) async fn most_at_a_time<F>(
        render: impl Fn(Box<dyn FnOnce() -> String + Send>) -> F,
    ) -> i64
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (running, most) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
        let work = || {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            Box::new(move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
                running.fetch_sub(1, Ordering::SeqCst);
                String::new()
            })
        };
        for _ in 0..24 {
            let load = tokio::spawn(render(work()));
            tokio::time::sleep(Duration::from_millis(1)).await;
            load.abort();
        }
        render(work()).await;
        most.load(Ordering::SeqCst)
    }

    #[tokio::test]
    async fn one_is_rendered_at_a_time_although_its_client_has_gone() {
        let renderer = Arc::new(Renderer::default());
        let render = |work| {
            let renderer = Arc::clone(&renderer);
            async move { drop(renderer.render(None, work).await.unwrap()) }
        };
        assert_eq!(most_at_a_time(render).await, 1);
    }

    #[tokio::test]
    async fn tells_what_the_state_says_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = |text| Arc::new(Config::parse(text).unwrap());
        let (configs, config_in_force) = watch::channel(config("issuers: {}"));
        let state = State {
            index: Arc::default(),
            strays: Arc::default(),
            metrics: Arc::new(Metrics::new().unwrap()),
            beat: Arc::new(AtomicI64::new(UnixTime::now().0)),
            ready: Arc::default(),
            config: config_in_force,
            failures: Arc::new(|_| 0),
            remembered: Arc::new(|_, _, _| Remembered::default()),
            leader: Arc::new(|_| Leader::default()),
            namespace: "ops".into(),
            replica: "pod".into(),
            started: UnixTime(1),
            review: Arc::new(|_| Box::pin(async { Err("nobody is to be asked".into()) })),
            certificate: Presented::default(),
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
            (
                "GET /api/certificates",
                200,
                "\"operatorNamespace\":\"ops\"",
            ),
            (
                "GET /api/certificates?state=zzz",
                400,
                "expected one of trouble",
            ),
            ("GET /?sort=zzz", 400, "expected one of secret"),
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

        // Closed: only probes are answered without TLS and a token.
        configs.send_replace(config(
            "{issuers: {}, metrics: {access: viewers, tls: {secret: a}}}",
        ));
        for path in ["GET /", "GET /api/certificates", "GET /metrics", "POST /"] {
            let request = format!("{path} HTTP/1.0\r\nAuthorization: Bearer a.b.c\r\nx:");
            for request in [path, &request] {
                let answer = ask(address, request).await;
                assert!(
                    answer.contains(" 403 ") && answer.contains("over TLS only"),
                    "{answer}"
                );
            }
        }
        assert!(ask(address, "GET /readyz").await.contains(" 200 "));

        stop.send(()).unwrap();
        server.await.unwrap();
    }
}

//! The fault proxies: between the operator and its API server and CA.
//!
//! Both count into one [`Proxies`], in the order in which the requests arrive; watches, the lease and Events are passed
//! on but not counted, since their number depends on the time. A rule decides what happens to each counted request. The
//! proxies only delay, break and count; they do not judge what is right.

mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::body::Body;
use futures::StreamExt as _;
use http::{HeaderValue, Response, StatusCode, header};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::serve::{Closed, acceptor, listen};
use crate::{Bench, Pebble};

/// Which server a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    /// kube-apiserver.
    Api,
    /// Pebble.
    Ca,
}

/// A counted request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Its number; the first is 1.
    pub number: usize,
    /// The server that it is for.
    pub server: Server,
    /// HTTP method.
    pub method: String,
    /// Path, without the query.
    pub path: String,
    /// Status of the server's answer; `None` when it was not passed on, or is not answered yet.
    pub status: Option<u16>,
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            server,
            method,
            path,
            ..
        } = self;
        write!(f, "{server:?} {method} {path}")
    }
}

/// Called at a request.
pub type Action = Arc<dyn Fn() + Send + Sync>;
/// Decides what happens to each counted request.
pub type Rule = Arc<dyn Fn(&Passed) -> Fault + Send + Sync>;

/// Makes alternative bodies of a request to the API server, each with a name: by method, path and body.
pub type Variants =
    Arc<dyn Fn(&str, &str, &serde_json::Value) -> Vec<(String, serde_json::Value)> + Send + Sync>;

/// What happens to a request.
#[derive(Clone)]
pub enum Fault {
    /// It is passed on.
    Pass,
    /// Calls the action and closes the connection; the server never sees the request.
    Before(Action),
    /// The server answers, then the action is called and the connection closed.
    After(Action),
    /// Calls the action, for example a concurrent edit, then passes the request on.
    Meanwhile(Action),
    /// The connection is closed.
    Refuse,
    /// It is passed on after a delay.
    Delay(Duration),
    /// It is never answered.
    Hang,
    /// Half of the server's answer arrives.
    Cut,
    /// The proxy answers in the server's place: status, headers, content type and body.
    Answer(u16, Option<(&'static str, String)>, &'static str, String),
}

impl Fault {
    /// A `Status` as the API server writes it, for example 409 `Conflict`.
    #[must_use]
    pub fn status(code: u16, reason: &str) -> Self {
        let body = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": format!("{reason}, says the fault proxy"), "reason": reason, "code": code,
        });
        Self::Answer(code, None, "application/json", body.to_string())
    }

    /// 429 with Retry-After.
    #[must_use]
    pub fn too_many(seconds: u32) -> Self {
        let Self::Answer(code, _, kind, body) = Self::status(429, "TooManyRequests") else {
            return Self::Refuse;
        };
        Self::Answer(code, Some(("retry-after", seconds.to_string())), kind, body)
    }

    /// The answer in the server's place; an error for any other fault.
    fn answer(self) -> Result<Response<Body>, Closed> {
        let Self::Answer(status, extra, kind, body) = self else {
            return Err(Closed);
        };
        let mut answer = Response::new(Body::from(body));
        *answer.status_mut() = StatusCode::from_u16(status).map_err(|_| Closed)?;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some((name, value)) = extra {
            let value = HeaderValue::from_str(&value).map_err(|_| Closed)?;
            headers.insert(name, value);
        }
        Ok(answer)
    }

    /// 503 with an HTML page, as load balancers send it.
    #[must_use]
    pub fn html() -> Self {
        let page = "<html><body><h1>503 Service Unavailable</h1></body></html>";
        Self::Answer(503, None, "text/html", page.into())
    }
}

/// A proxy in front of the API server and one in front of the CA.
pub struct Proxies {
    shared: Arc<Shared>,
    api: SocketAddr,
    ca: SocketAddr,
    servers: Vec<JoinHandle<()>>,
}

struct Shared {
    http: reqwest::Client,
    count: AtomicUsize,
    passed: Mutex<Vec<Passed>>,
    /// Number of requests that are not counted: watches, the lease, Events, the check of the operator's own rights.
    aside: AtomicUsize,
    rule: Mutex<Rule>,
    /// Variants that are sent before each request to the API server, including watches and the lease.
    variants: Mutex<Option<Variants>>,
    /// The API server's answers to those.
    answers: Mutex<BTreeMap<String, BTreeSet<u16>>>,
    /// Whether the API server is unreachable, including watches.
    gone: AtomicBool,
    /// Number of watches that are still to be told that their version is too old.
    expired: AtomicUsize,
    /// Number of times that the watches fell silent: those opened before the last time bring nothing more.
    silences: AtomicUsize,
    /// Number of watches from which something was withheld.
    withheld: AtomicUsize,
    /// Every connection ends when it changes.
    cut: watch::Sender<usize>,
}

impl Proxies {
    /// Starts both, passing everything on.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(bench: &Bench) -> Result<Self> {
        Self::before(bench, bench.pebble()).await
    }

    /// The same in front of another CA.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn before(bench: &Bench, pebble: &Pebble) -> Result<Self> {
        let directory = pebble.directory().strip_suffix("/dir");
        Self::before_origin(bench, directory.context("the directory ends in /dir")?).await
    }

    /// The same in front of any CA whose endpoint the bench trusts, by its URL without a path.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn before_origin(bench: &Bench, origin: &str) -> Result<Self> {
        let ca = reqwest::Certificate::from_pem(&std::fs::read(bench.ca_bundle())?)?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([ca])
            // HTTP/2 would lose the Host header on the way, from which Pebble builds its URLs.
            .http1_only()
            .build()?;
        let shared = Arc::new(Shared {
            http,
            count: AtomicUsize::new(0),
            passed: Mutex::default(),
            aside: AtomicUsize::new(0),
            rule: Mutex::new(Arc::new(|_| Fault::Pass)),
            variants: Mutex::default(),
            answers: Mutex::default(),
            gone: AtomicBool::new(false),
            expired: AtomicUsize::new(0),
            silences: AtomicUsize::new(0),
            withheld: AtomicUsize::new(0),
            cut: watch::Sender::new(0),
        });
        let api = format!("https://{}", bench.api_server());
        let (api, api_server) = listen(&shared, Server::Api, api, None).await?;
        // Pebble requires that its clients use https.
        let tls = Some(acceptor(&bench.authority().server("fault proxy")?)?);
        let (ca, ca_server) = listen(&shared, Server::Ca, origin.to_owned(), tls).await?;
        Ok(Self {
            shared,
            api,
            ca,
            servers: vec![api_server, ca_server],
        })
    }

    /// The API server's URL as the operator should see it.
    #[must_use]
    pub fn api_server(&self) -> String {
        format!("http://{}", self.api)
    }

    /// The ACME directory as the operator should see it.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{}/dir", self.origin())
    }

    /// The CA's URL, without a path, as the operator should see it.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("https://{}", self.ca)
    }

    /// Sets what happens to requests from now on.
    pub fn rule(&self, rule: impl Fn(&Passed) -> Fault + Send + Sync + 'static) {
        *lock(&self.shared.rule) = Arc::new(rule);
    }

    /// Sends these variants to the API server before each request, and the request itself afterwards.
    pub fn try_before(
        &self,
        variants: impl Fn(&str, &str, &serde_json::Value) -> Vec<(String, serde_json::Value)>
        + Send
        + Sync
        + 'static,
    ) {
        *lock(&self.shared.variants) = Some(Arc::new(variants));
    }

    /// The statuses of the API server's answers to those, by their names.
    #[must_use]
    pub fn answers(&self) -> BTreeMap<String, BTreeSet<u16>> {
        lock(&self.shared.answers).clone()
    }

    /// All counted requests until now.
    #[must_use]
    pub fn passed(&self) -> Vec<Passed> {
        lock(&self.shared.passed).clone()
    }

    /// Number of requests that are not counted: watches, the lease, Events; also refused connections.
    #[must_use]
    pub fn aside(&self) -> usize {
        self.shared.aside.load(Ordering::Relaxed)
    }

    /// Makes the API server unreachable, or reachable again. Running watches are cut.
    pub fn gone(&self, gone: bool) {
        self.shared.gone.store(gone, Ordering::Relaxed);
        if gone {
            self.cut();
        }
    }

    /// Closes every open connection, including watches.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Keeps all open watches open but lets them bring nothing more, like a network device that has forgotten them.
    pub fn silence(&self) {
        self.shared.silences.fetch_add(1, Ordering::SeqCst);
    }

    /// Number of watches from which this withheld something.
    #[must_use]
    pub fn withheld(&self) -> usize {
        self.shared.withheld.load(Ordering::SeqCst)
    }

    /// Makes the API server unreachable at a request.
    #[must_use]
    pub fn vanish(&self) -> Action {
        let shared = Arc::clone(&self.shared);
        Arc::new(move || {
            shared.gone.store(true, Ordering::Relaxed);
            shared.cut();
        })
    }

    /// Cuts every connection at a request; the next `watches` that continue from a version are told that it is too old
    /// (410, as after a compaction), so that everything is listed again.
    #[must_use]
    pub fn expire(&self, watches: usize) -> Action {
        let shared = Arc::clone(&self.shared);
        Arc::new(move || {
            shared.expired.store(watches, Ordering::Relaxed);
            shared.cut();
        })
    }

    /// Number of watches that are still to be told so.
    #[must_use]
    pub fn unexpired(&self) -> usize {
        self.shared.expired.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn cut(&self) {
        self.cut.send_modify(|epoch| *epoch += 1);
    }

    /// A watch's answer, of which nothing more arrives once the watches have fallen silent.
    fn until_silence(self: &Arc<Self>, answer: Response<Body>) -> Response<Body> {
        let (shared, opened) = (Arc::clone(self), self.silences.load(Ordering::SeqCst));
        answer.map(|body| {
            let chunks = body.into_data_stream().then(move |chunk| {
                let shared = Arc::clone(&shared);
                async move {
                    if shared.silences.load(Ordering::SeqCst) != opened {
                        shared.withheld.fetch_add(1, Ordering::SeqCst);
                        return std::future::pending().await;
                    }
                    chunk
                }
            });
            Body::from_stream(chunks)
        })
    }

    /// Whether to tell a watch that the version it continues from is too old.
    fn expires(&self, query: &str) -> bool {
        let goes_on = !query.contains("sendInitialEvents=true");
        let left = |count: usize| count.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        goes_on && self.expired.fetch_update(set, fetch, left).is_ok()
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
        self.cut();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The servers of both proxies: what becomes of one request, by the rule.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use axum::body::Body;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::{Action, Fault, Passed, Server, Shared, lock};
use crate::pki::Pair;
use crate::runtime;

/// Most bytes of a request, far more than the operator sends.
const LARGEST: usize = 16 << 20;
/// Headers that belong to one connection (RFC 9110, 7.6.1), and the length, which a truncated body contradicts.
const HOP: [HeaderName; 4] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::UPGRADE,
];

pub(super) async fn listen(
    shared: &Arc<Shared>,
    server: Server,
    upstream: String,
    tls: Option<TlsAcceptor>,
) -> Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?.into_std()?;
    let address = listener.local_addr()?;
    let (shared, upstream) = (Arc::clone(shared), Arc::<str>::from(upstream));
    let accept = async move {
        let Ok(listener) = TcpListener::from_std(listener) else {
            return;
        };
        while let Ok((stream, _)) = listener.accept().await {
            if server == Server::Api && shared.gone.load(Ordering::Relaxed) {
                shared.aside.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let (shared, upstream) = (Arc::clone(&shared), Arc::clone(&upstream));
            let tls = tls.clone();
            tokio::spawn(async move {
                match tls {
                    None => serve(shared, server, upstream, stream).await,
                    Some(tls) => {
                        // A client that does not finish its handshake was killed in it.
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(shared, server, upstream, stream).await;
                        }
                    }
                }
            });
        }
    };
    Ok((address, runtime().spawn(accept)))
}

pub(super) fn acceptor(pair: &Pair) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?,
        )?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(
    shared: Arc<Shared>,
    server: Server,
    upstream: Arc<str>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) {
    let mut cut = shared.cut.subscribe();
    let service = service_fn(|request| {
        let (shared, upstream) = (Arc::clone(&shared), Arc::clone(&upstream));
        async move { handle(&shared, server, &upstream, request).await }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // An error is a connection that either side has closed, which is intended.
        _ = connection => {}
        _ = cut.changed() => {}
    }
}

/// An error closes the connection without an answer.
async fn handle(
    shared: &Arc<Shared>,
    server: Server,
    upstream: &Arc<str>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Closed> {
    let request = try_before(shared, server, upstream, request.map(Body::new)).await?;
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default();
    let watches = query.contains("watch=true");
    if ["/leases", "/events", "/selfsubject"]
        .iter()
        .any(|it| path.contains(it))
        || watches
    {
        shared.aside.fetch_add(1, Ordering::Relaxed);
        if watches && shared.expires(query) {
            return Fault::status(410, "Expired").answer();
        }
        let answer = forward(shared, server, upstream, request).await?;
        return Ok(if watches {
            shared.until_silence(answer)
        } else {
            answer
        });
    }
    let seen = {
        let mut passed = lock(&shared.passed);
        let number = shared.count.fetch_add(1, Ordering::Relaxed) + 1;
        let seen = Passed {
            number,
            server,
            method: request.method().to_string(),
            path,
            status: None,
        };
        passed.push(seen.clone());
        seen
    };
    let rule = Arc::clone(&lock(&shared.rule));
    // Actions may block: they kill a process and wait for it.
    let fault = rule(&seen);
    let number = seen.number;
    let pass = async |request| {
        let (shared, upstream) = (Arc::clone(shared), Arc::clone(upstream));
        // A task of its own: what the server does is counted although the connection is cut concurrently.
        let passed = tokio::spawn(async move {
            let answer = forward(&shared, server, &upstream, request).await?;
            lock(&shared.passed)[number - 1].status = Some(answer.status().as_u16());
            Ok(answer)
        });
        passed.await.unwrap_or(Err(Closed))
    };
    let act = async |action: Action| {
        // A panic of the action is the test's; its thread has reported it.
        let _ = tokio::task::spawn_blocking(move || action()).await;
    };
    match fault {
        Fault::Pass => pass(request).await,
        Fault::Before(action) => {
            act(action).await;
            Err(Closed)
        }
        Fault::After(action) => {
            let answer = pass(request).await?;
            // The server is done once its whole answer is here.
            let _ = axum::body::to_bytes(answer.into_body(), LARGEST).await;
            act(action).await;
            Err(Closed)
        }
        Fault::Meanwhile(action) => {
            act(action).await;
            pass(request).await
        }
        Fault::Refuse => Err(Closed),
        Fault::Delay(duration) => {
            tokio::time::sleep(duration).await;
            pass(request).await
        }
        Fault::Hang => std::future::pending().await,
        Fault::Cut => {
            let (mut head, body) = pass(request).await?.into_parts();
            let body = axum::body::to_bytes(body, LARGEST)
                .await
                .map_err(|_| Closed)?;
            head.headers
                .insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
            let half = body.slice(..body.len() / 2);
            let pieces = stream::iter([Ok(half), Err(Closed)]);
            Ok(Response::from_parts(head, Body::from_stream(pieces)))
        }
        answer @ Fault::Answer(..) => answer.answer(),
    }
}

/// Sends the variants of a request to the API server; returns the request unchanged.
async fn try_before(
    shared: &Shared,
    server: Server,
    upstream: &str,
    request: Request<Body>,
) -> Result<Request<Body>, Closed> {
    let variants = lock(&shared.variants).clone();
    let Some(variants) = variants.filter(|_| server == Server::Api) else {
        return Ok(request);
    };
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, LARGEST)
        .await
        .map_err(|_| Closed)?;
    if let Ok(json) = serde_json::from_slice::<serde_json::Value>(&body) {
        for (name, other) in variants(head.method.as_str(), head.uri.path(), &json) {
            let other = Request::from_parts(head.clone(), Body::from(other.to_string()));
            let answer = forward(shared, server, upstream, other).await?;
            let status = answer.status().as_u16();
            lock(&shared.answers)
                .entry(name)
                .or_default()
                .insert(status);
        }
    }
    Ok(Request::from_parts(head, Body::from(body)))
}

/// Passes a request on; the answer is streamed, so that watches work.
async fn forward(
    shared: &Shared,
    server: Server,
    upstream: &str,
    request: Request<Body>,
) -> Result<Response<Body>, Closed> {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, LARGEST)
        .await
        .map_err(|_| Closed)?;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut headers = end_to_end(&head.headers);
    // Pebble builds its URLs from the Host header: they lead back to the proxy.
    if server == Server::Api {
        headers.remove(header::HOST);
    }
    let answer = shared
        .http
        .request(head.method, format!("{upstream}{path}"))
        .headers(headers)
        .body(body)
        .send()
        .await
        .map_err(|_| Closed)?;
    let (status, headers) = (answer.status(), end_to_end(answer.headers()));
    let chunks = stream::unfold(answer, async |mut answer| {
        let chunk = answer.chunk().await.transpose()?;
        Some((chunk.map_err(|_| Closed), answer))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in HOP {
        headers.remove(name);
    }
    headers
}

/// The connection is closed on purpose.
#[derive(Debug)]
pub(super) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed by the fault proxy")
    }
}

impl std::error::Error for Closed {}

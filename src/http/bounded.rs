//! Serving HTTP where strangers can connect: headers, connections and times are bounded.
//!
//! axum sets no deadline of its own; a client that sends one byte a minute would hold a connection for ever.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// What a CA, an ingress or Prometheus sends fits many times; hyper allows no less than 8 KiB.
pub(crate) const HEADERS: usize = 16 * 1024;
/// A proxy adds a dozen to the client's handful.
const HEADER_COUNT: usize = 64;
/// A client that takes longer for its headers holds a connection and nothing else.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// Out of file descriptors, accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

const LIMITS: Limits = Limits {
    // With 16 KiB each, 8 MiB at most.
    connections: 512,
    // A CA waits 10 s, Prometheus too by default.
    time: Duration::from_secs(15),
};

#[derive(Clone, Copy)]
struct Limits {
    /// Open at a time; the kernel's backlog holds the others.
    connections: usize,
    /// Longest life of a connection, whatever moves on it; each serves one request.
    time: Duration,
}

/// Serves `router` until `shutdown` resolves.
/// Connections that are open by then end on their own within 15 seconds.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    serve_within(LIMITS, listener, router, shutdown).await;
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    http.max_buf_size(HEADERS)
        .max_headers(HEADER_COUNT)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .keep_alive(false);
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, stream) = tokio::select! {
            () = &mut shutdown => return,
            (slot, accepted) = accepted => match accepted {
                Ok((stream, _)) => (slot, stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // What goes wrong on a stranger's connection is the stranger's business.
            let _ = timeout(limits.time, connection).await;
            drop(slot);
        });
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn started(limits: Limits) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || "here"));
        tokio::spawn(serve_within(
            limits,
            listener,
            router,
            std::future::pending(),
        ));
        address
    }

    async fn ask(stream: &mut TcpStream) -> String {
        let mut answer = String::new();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_client_that_trickles_is_cut_off() {
        let time = Duration::from_millis(200);
        let address = started(Limits {
            connections: 1,
            time,
        })
        .await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let trickle = async {
            while client.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(HEADER_TIME, trickle)
            .await
            .expect("it is still open");
    }

    #[tokio::test]
    async fn who_finds_no_place_waits_for_one() {
        let time = Duration::from_millis(300);
        let address = started(Limits {
            connections: 1,
            time,
        })
        .await;
        let _idle = TcpStream::connect(address).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let early = timeout(Duration::from_millis(50), second.readable()).await;
        assert!(early.is_err());
        let answer = timeout(HEADER_TIME, ask(&mut second)).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
    }
}

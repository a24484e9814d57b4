//! Serving HTTP where strangers can connect: headers, connections and times are bounded.
//!
//! axum sets no deadline of its own; a client that sends one byte a minute would hold a connection for ever.
//! Where all connections are taken the oldest is closed, first of those that have not asked for anything: a probe, or a
//! CA, that connects and asks at once is answered however many others hold connections open, or open more just then: what
//! a connection has sent by the time that it is looked at is read before it may be closed.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

/// What a CA, an ingress or Prometheus sends fits many times; hyper allows no less than 8 KiB.
pub(crate) const HEADERS: usize = 16 * 1024;
/// A proxy adds a dozen to the client's handful.
const HEADER_COUNT: usize = 64;
/// A client that takes longer for its headers holds a connection and nothing else.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// Out of file descriptors, accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Connections to a port that are open at a time. With 16 KiB each, 8 MiB at most. With half as many a flood of
/// connections closes those of a CA before they have asked.
pub(crate) const CONNECTIONS: usize = 512;

const LIMITS: Limits = Limits {
    connections: CONNECTIONS,
    // A CA waits 10 s, Prometheus too by default.
    time: Duration::from_secs(15),
};

#[derive(Clone, Copy)]
struct Limits {
    /// Open at a time.
    connections: usize,
    /// Longest life of a connection, whatever moves on it; each serves one request.
    time: Duration,
}

/// The connections that are open, the oldest first.
#[derive(Debug, Default)]
struct Open {
    count: u64,
    /// Those that have just been accepted: what they have sent is not read yet.
    new: BTreeSet<u64>,
    /// Whose request has not come whole.
    idle: BTreeMap<u64, Arc<Notify>>,
    /// Whose request is being answered.
    asked: BTreeMap<u64, Arc<Notify>>,
    /// Something has changed.
    changed: Arc<Notify>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    number: u64,
    open: Arc<Mutex<Open>>,
    end: Arc<Notify>,
}

impl Connection {
    fn new(open: &Arc<Mutex<Open>>) -> Self {
        let end: Arc<Notify> = Arc::default();
        let mut all = lock(open);
        all.count += 1;
        let number = all.count;
        all.new.insert(number);
        Self {
            number,
            open: Arc::clone(open),
            end,
        }
    }

    /// Its request has come.
    fn asks(&self) {
        let mut all = lock(&self.open);
        all.new.remove(&self.number);
        all.idle.remove(&self.number);
        all.asked.insert(self.number, Arc::clone(&self.end));
        all.changed.notify_one();
    }

    /// What it had sent is read.
    fn looked_at(&self) {
        let mut all = lock(&self.open);
        if all.new.remove(&self.number) {
            all.idle.insert(self.number, Arc::clone(&self.end));
            all.changed.notify_one();
        }
    }

    /// Is closed, whatever is still to be sent.
    pub(crate) fn close(&self) {
        self.end.notify_one();
    }

    fn closed(&self) {
        let mut all = lock(&self.open);
        all.new.remove(&self.number);
        all.idle.remove(&self.number);
        all.asked.remove(&self.number);
        all.changed.notify_one();
    }
}

impl Open {
    /// Closes the oldest, one that has not asked for anything where there is one; false where that is not known yet.
    fn close_oldest(&mut self) -> bool {
        let mut oldest = self.idle.pop_first();
        if oldest.is_none() && self.new.is_empty() {
            oldest = self.asked.pop_first();
        }
        if let Some((_, end)) = &oldest {
            end.notify_one();
        }
        oldest.is_some()
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves `router` until `shutdown` resolves.
/// Connections that are open by then end on their own within 15 seconds.
///
/// A request carries its [`Connection`] among its extensions.
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
    let open: Arc<Mutex<Open>> = Arc::default();
    let mut http = http1::Builder::new();
    http.max_buf_size(HEADERS)
        .max_headers(HEADER_COUNT)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .keep_alive(false);
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            let (stream, _) = listener.accept().await?;
            // Never left in the kernel's backlog, where the kubelet's probes would stand behind everybody else.
            Ok((stream, place(&slots, &open).await))
        };
        let (stream, slot) = tokio::select! {
            () = &mut shutdown => return,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    let error: std::io::Error = error;
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let connection = Connection::new(&open);
        let asking = connection.clone();
        let router = router
            .clone()
            .map_request(move |mut request: Request<Incoming>| {
                asking.asks();
                request.extensions_mut().insert(asking.clone());
                request
            });
        let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        tokio::spawn(async move {
            // What goes wrong on a stranger's connection is the stranger's business.
            let mut served = pin!(timeout(limits.time, served));
            let end = async {
                // What has come by now is known, and read, once the reactor had its turn.
                yield_now().await;
                yield_now().await;
                connection.looked_at();
                connection.end.notified().await;
            };
            tokio::select! {
                biased;
                _ = &mut served => {}
                () = end => {}
            }
            connection.closed();
            drop(slot);
        });
    }
}

/// A place for one more connection; where there is none, that of the oldest.
async fn place(slots: &Arc<Semaphore>, open: &Mutex<Open>) -> Option<OwnedSemaphorePermit> {
    if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
        return Some(slot);
    }
    let changed = Arc::clone(&lock(open).changed);
    let mut closes = lock(open).close_oldest();
    loop {
        tokio::select! {
            // Nobody closes the semaphore.
            slot = Arc::clone(slots).acquire_owned() => return slot.ok(),
            () = changed.notified(), if !closes => closes = lock(open).close_oldest(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

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
    async fn who_asks_is_answered_however_many_connect_and_ask_for_nothing() {
        let address = started(Limits {
            connections: 8,
            ..LIMITS
        })
        .await;
        let mut idle = Vec::new();
        for _ in 0..300 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..20 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let answer = timeout(HEADER_TIME, ask(&mut client)).await.unwrap();
            assert!(answer.ends_with("here"), "{answer}");
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        // Those that were open longest are closed.
        let mut byte = [0];
        assert_eq!(idle[0].read(&mut byte).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn who_asks_at_once_is_answered_in_a_flood_of_connections() {
        let address = started(Limits {
            connections: 8,
            ..LIMITS
        })
        .await;
        // On this thread, so that all of them are there before the first is accepted: fewer than any kernel lets wait.
        let mut clients = Vec::new();
        for _ in 0..100 {
            let mut client = std::net::TcpStream::connect(address).unwrap();
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap();
            client.set_nonblocking(true).unwrap();
            clients.push(TcpStream::from_std(client).unwrap());
        }
        for mut client in clients {
            let mut answer = String::new();
            let read = client.read_to_string(&mut answer);
            timeout(HEADER_TIME, read).await.unwrap().unwrap();
            assert!(answer.ends_with("here"), "{answer}");
        }
    }

    #[tokio::test]
    async fn who_has_asked_is_closed_last() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let go: Arc<Notify> = Arc::default();
        let (asked, answer) = (Arc::new(Notify::new()), Arc::clone(&go));
        let begun = Arc::clone(&asked);
        let slow = get(async move || {
            begun.notify_one();
            answer.notified().await;
            "late"
        });
        let limits = Limits {
            connections: 2,
            ..LIMITS
        };
        let router = Router::new().route("/", slow);
        tokio::spawn(serve_within(
            limits,
            listener,
            router,
            std::future::pending(),
        ));
        let mut client = TcpStream::connect(address).await.unwrap();
        let waiting = tokio::spawn(async move { ask(&mut client).await });
        asked.notified().await;
        let mut idle = Vec::new();
        for _ in 0..50 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        // The last but one is closed when the last is taken.
        let mut byte = [0];
        assert_eq!(idle[48].read(&mut byte).await.unwrap_or(0), 0);
        go.notify_one();
        assert!(waiting.await.unwrap().ends_with("late"));
    }
}

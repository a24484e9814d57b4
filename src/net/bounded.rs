//! Serves HTTP where strangers can connect: headers, connections and times are bounded.
//!
//! axum sets no deadline of its own; a client that sends one byte a minute would hold a connection for ever. A
//! connection that has sent nothing costs a socket and no place. If all places are taken, a connection with a request
//! gets that of one without: a probe, or a CA, is answered however many others hold connections open, or open more just
//! then. The address with the most connections loses its own first.
//!
//! A port may speak TLS beside plain HTTP: the first byte tells which. A handshake takes a place as a connection without a
//! request does, so that many of them keep nobody else waiting either. Each costs a signature, so each address has an
//! allowance of them, and so have all strangers together.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use cert_renew_core::schedule::token_bucket::TokenBucket;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// Longest headers in bytes, many times what a CA, an ingress or Prometheus sends; hyper allows no less than 8 KiB.
pub(crate) const HEADERS: usize = 16 * 1024;
/// Most headers of a request: a proxy adds a dozen to the client's handful.
const HEADER_COUNT: usize = 64;
/// Longest silence of a connection, and longest time for its headers from their first byte on.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// Pause after a failure to accept: without file descriptors, accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// First byte of a TLS handshake (RFC 8446, 5.1); no request begins with it.
const HANDSHAKE: u8 = 22;

/// Time until an address may begin one more TLS handshake. A signature takes a tenth of a millisecond with ECDSA and some
/// milliseconds with RSA 4096.
const HANDSHAKE_EACH: Duration = Duration::from_millis(100);
/// The same for all addresses together: with RSA 4096 a quarter of a core.
const HANDSHAKE_OF_ALL_EACH: Duration = Duration::from_millis(20);
/// Most addresses whose handshakes do not count among those of all.
const WELCOME: usize = 64;

/// Most connections to a port that are read or answered at a time. With 16 KiB each, 8 MiB at most.
pub(crate) const CONNECTIONS: usize = 512;

const LIMITS: Limits = Limits {
    connections: CONNECTIONS,
    // A CA's request comes a round trip after its connection, and honest clients never open this many in that time.
    silent: 2048,
    // A handshake takes two round trips. rustls reads 64 KiB of it at most, so that all have 8 MiB.
    handshakes: 128,
    // Viewers come through the API server's proxy, from its address.
    handshakes_at_once: 120,
    handshakes_of_all_at_once: 480,
    // A CA waits 10 s, Prometheus too by default.
    time: Duration::from_secs(15),
};

#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Most that are read or answered at a time.
    connections: usize,
    /// Most that are open at a time without having sent anything.
    silent: usize,
    /// Most TLS handshakes at a time.
    handshakes: usize,
    /// Handshakes that an address may begin at once; then one in each [`HANDSHAKE_EACH`].
    handshakes_at_once: u32,
    /// The same for all addresses together that are not welcome; then one in each [`HANDSHAKE_OF_ALL_EACH`].
    handshakes_of_all_at_once: u32,
    /// Longest life of a connection from its first byte on, whatever is sent; each serves one request.
    time: Duration,
}

/// The connections to a port.
#[derive(Debug)]
struct Open {
    limits: Limits,
    count: u64,
    /// Connections that have sent nothing yet.
    silent: Connections,
    /// Connections whose TLS handshake is not complete.
    handshakes: Connections,
    /// Handshakes that each network may still begin, and those that all may together.
    allowance: TokenBucket,
    allowance_of_all: TokenBucket,
    /// The networks that have shown a good token, the latest last.
    welcome: VecDeque<String>,
    /// Number of places taken: by the connections below, and by those whose request is not looked for yet.
    taken: usize,
    /// Connections whose request is incomplete.
    idle: Connections,
    /// Connections whose request is being answered.
    asked: Connections,
    /// Connections that have been told to end.
    ending: BTreeSet<u64>,
    /// Connections that wait for a place, in the order of their first bytes.
    queue: VecDeque<oneshot::Sender<()>>,
}

/// Connections by their remote address, or with IPv6 its network, the oldest first.
#[derive(Debug, Default)]
struct Connections {
    count: usize,
    from: BTreeMap<IpAddr, BTreeMap<u64, Arc<Notify>>>,
}

impl Connections {
    fn enter(&mut self, connection: &Connection) {
        let of = self.from.entry(prefix(connection.address)).or_default();
        of.insert(connection.number, Arc::clone(&connection.end));
        self.count += 1;
    }

    /// Removes a connection; false if it is not there, or was closed.
    fn leave(&mut self, connection: &Connection) -> bool {
        let address = prefix(connection.address);
        let Some(of) = self.from.get_mut(&address) else {
            return false;
        };
        let left = of.remove(&connection.number).is_some();
        if of.is_empty() {
            self.from.remove(&address);
        }
        self.count -= usize::from(left);
        left
    }

    fn has(&self, connection: &Connection) -> bool {
        let of = self.from.get(&prefix(connection.address));
        of.is_some_and(|of| of.contains_key(&connection.number))
    }

    /// Closes the oldest connection of the address that has the most: a flood pushes out its own. Among equals the
    /// address with the oldest connection loses.
    fn close_one(&mut self) -> Option<u64> {
        let first = |of: &BTreeMap<u64, Arc<Notify>>| of.keys().next().copied();
        let most = { self.from.iter_mut() }.max_by_key(|(_, of)| (of.len(), Reverse(first(of))));
        let (address, of) = most?;
        let (address, (number, end)) = (*address, of.pop_first()?);
        if of.is_empty() {
            self.from.remove(&address);
        }
        self.count -= 1;
        end.notify_one();
        Some(number)
    }
}

impl Open {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            count: 0,
            silent: Connections::default(),
            handshakes: Connections::default(),
            allowance: TokenBucket::every(limits.handshakes_at_once, HANDSHAKE_EACH),
            allowance_of_all: TokenBucket::every(
                limits.handshakes_of_all_at_once,
                HANDSHAKE_OF_ALL_EACH,
            ),
            welcome: VecDeque::new(),
            taken: 0,
            idle: Connections::default(),
            asked: Connections::default(),
            ending: BTreeSet::new(),
            queue: VecDeque::new(),
        }
    }

    /// Whether a network may begin a handshake. What it begins beyond its own allowance does not count for the others.
    fn may_shake_hands(&mut self, now: Instant, network: &str) -> bool {
        self.allowance.take(now, network)
            && (self.welcome.iter().any(|it| it == network) || self.allowance_of_all.take(now, ""))
    }

    /// Closes as many connections as wait for a place: first those without a request; none with a request while another
    /// may be without.
    fn make_room(&mut self) {
        while self.queue.len() > self.ending.len() {
            let known = self.idle.count + self.asked.count + self.ending.len();
            let mut closed = self.idle.close_one();
            if closed.is_none() && known >= self.taken {
                closed = self.asked.close_one();
            }
            let Some(number) = closed else { return };
            self.ending.insert(number);
        }
    }

    /// Gives a free place to the next that waits.
    fn hand_over(&mut self) {
        while let Some(next) = self.queue.pop_front() {
            if next.send(()).is_ok() {
                return;
            }
        }
        self.taken -= 1;
    }
}

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    number: u64,
    address: IpAddr,
    open: Arc<Mutex<Open>>,
    end: Arc<Notify>,
}

impl Connection {
    fn new(open: &Arc<Mutex<Open>>, address: IpAddr) -> Self {
        let mut all = lock(open);
        all.count += 1;
        let connection = Self {
            number: all.count,
            address,
            open: Arc::clone(open),
            end: Arc::default(),
        };
        if all.silent.count >= all.limits.silent {
            all.silent.close_one();
        }
        all.silent.enter(&connection);
        connection
    }

    /// Waits until something has come; its first byte, or nothing if it stays silent, or is closed to make room.
    async fn speaks(&self, stream: &TcpStream) -> Option<u8> {
        let mut first = [0];
        let spoke = tokio::select! {
            biased;
            come = timeout(HEADER_TIME, stream.peek(&mut first)) => matches!(come, Ok(Ok(1..))),
            () = self.end.notified() => false,
        };
        let [first] = first;
        (lock(&self.open).silent.leave(self) && spoke).then_some(first)
    }

    /// The address of the client.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Notes that its client may see what the port shows: its address is let in however many others knock.
    pub(crate) fn welcome(&self) {
        let network = network(self.address);
        let welcome = &mut lock(&self.open).welcome;
        welcome.retain(|it| *it != network);
        if welcome.len() >= WELCOME {
            welcome.pop_front();
        }
        welcome.push_back(network);
    }

    /// Waits for a place.
    async fn place(&self) -> Place {
        let turn = {
            let mut all = lock(&self.open);
            if all.taken < all.limits.connections {
                all.taken += 1;
                None
            } else {
                let (given, turn) = oneshot::channel();
                all.queue.push_back(given);
                all.make_room();
                Some(turn)
            }
        };
        if let Some(turn) = turn {
            // The sender is not dropped before it sends: a connection that leaves hands its place over.
            let _ = turn.await;
        }
        Place(self.clone())
    }

    /// Notes that its handshake begins, until the result is dropped. If there are too many, one is closed. Nothing if its
    /// address, or all together, have begun too many.
    fn shakes_hands(&self) -> Option<Handshake> {
        let mut all = lock(&self.open);
        if !all.may_shake_hands(Instant::now(), &network(self.address)) {
            return None;
        }
        if all.handshakes.count >= all.limits.handshakes {
            all.handshakes.close_one();
        }
        all.handshakes.enter(self);
        Some(Handshake(self.clone()))
    }

    /// Notes that its request has come.
    fn asks(&self) {
        let mut all = lock(&self.open);
        if !all.ending.contains(&self.number) {
            all.idle.leave(self);
            all.asked.enter(self);
            all.make_room();
        }
    }

    /// Notes that what it had sent is read.
    fn looked_at(&self) {
        let mut all = lock(&self.open);
        if !all.asked.has(self) && !all.ending.contains(&self.number) {
            all.idle.enter(self);
            all.make_room();
        }
    }

    /// Closes it, whatever is still to be sent.
    pub(crate) fn close(&self) {
        self.end.notify_one();
    }
}

/// Whom an address stands for: itself, or with IPv6 its /64, of which one machine may have every address.
pub(crate) fn network(address: IpAddr) -> String {
    match prefix(address) {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(network) => format!("{network}/64"),
    }
}

/// The first address of the network that an address stands for.
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

/// A connection's TLS handshake.
struct Handshake(Connection);

impl Drop for Handshake {
    fn drop(&mut self) {
        lock(&self.0.open).handshakes.leave(&self.0);
    }
}

/// A connection's place; dropping it gives it to the next that waits.
struct Place(Connection);

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = lock(&self.0.open);
        all.idle.leave(&self.0);
        all.asked.leave(&self.0);
        all.ending.remove(&self.0.number);
        all.hand_over();
        // A connection that was closed for another may have ended by itself.
        all.make_room();
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Marks a request that has come over TLS, among its extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encrypted;

/// Serves `router` until `shutdown` resolves.
/// Connections that are open by then end on their own within 20 seconds.
///
/// A request carries its [`Connection`] among its extensions.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    serve_within(LIMITS, listener, None, router, shutdown).await;
}

/// As [`serve`], over TLS too; a request over TLS carries [`Encrypted`] among its extensions.
pub(crate) async fn serve_with_tls(
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    serve_within(LIMITS, listener, Some(tls), router, shutdown).await;
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    let open = Arc::new(Mutex::new(Open::new(limits)));
    let mut http = http1::Builder::new();
    http.max_buf_size(HEADERS)
        .max_headers(HEADER_COUNT)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .keep_alive(false);
    let mut shutdown = pin!(shutdown);
    loop {
        // Accept at once: in the kernel's backlog the kubelet's probes would queue behind everybody else.
        let (stream, from) = tokio::select! {
            () = &mut shutdown => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let server = Server {
            http: http.clone(),
            router: router.clone(),
            connection: Connection::new(&open, from.ip()),
        };
        tokio::spawn(server.answer(limits.time, tls.clone(), stream));
    }
}

/// Answers the one request of a connection.
struct Server {
    http: http1::Builder,
    router: Router,
    connection: Connection,
}

impl Server {
    async fn answer(self, time: Duration, tls: Option<TlsAcceptor>, stream: TcpStream) {
        let connection = self.connection.clone();
        let Some(first) = connection.speaks(&stream).await else {
            return;
        };
        let _place = connection.place().await;
        let tls = tls.filter(|_| first == HANDSHAKE);
        let mut served = pin!(timeout(time, self.serve(tls, stream)));
        let end = async {
            // What has come by now was read by the first turn of `served`.
            connection.looked_at();
            connection.end.notified().await;
        };
        // Errors on client connections are not ours to report.
        tokio::select! {
            biased;
            _ = &mut served => {}
            () = end => {}
        }
    }

    async fn serve(self, tls: Option<TlsAcceptor>, stream: TcpStream) {
        let Some(tls) = tls else {
            return self.serve_over(stream, None).await;
        };
        let Some(shaking) = self.connection.shakes_hands() else {
            return;
        };
        let shaken = timeout(HEADER_TIME, tls.accept(stream)).await;
        drop(shaking);
        if let Ok(Ok(stream)) = shaken {
            self.serve_over(stream, Some(Encrypted)).await;
        }
    }

    async fn serve_over<S>(self, stream: S, encrypted: Option<Encrypted>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self {
            http,
            router,
            connection,
        } = self;
        let router = router.map_request(move |mut request: Request<Incoming>| {
            connection.asks();
            request.extensions_mut().insert(connection.clone());
            if let Some(encrypted) = encrypted {
                request.extensions_mut().insert(encrypted);
            }
            request
        });
        let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        let _ = served.await;
    }
}

#[cfg(test)]
mod tests;

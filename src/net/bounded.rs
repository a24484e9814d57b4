//! Serves HTTP where strangers can connect: headers, connections and times are bounded.
//!
//! axum sets no deadline of its own; a client that sends one byte a minute would hold a connection for ever. A
//! connection that has sent nothing costs a socket and no place. If all places are taken, a connection with a request
//! gets that of one without: a probe, or a CA, is answered however many others hold connections open, or open more just
//! then. The address with the most connections loses its own first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

/// Longest headers in bytes, many times what a CA, an ingress or Prometheus sends; hyper allows no less than 8 KiB.
pub(crate) const HEADERS: usize = 16 * 1024;
/// Most headers of a request: a proxy adds a dozen to the client's handful.
const HEADER_COUNT: usize = 64;
/// Longest silence of a connection, and longest time for its headers from their first byte on.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// Pause after a failure to accept: without file descriptors, accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Most connections to a port that are read or answered at a time. With 16 KiB each, 8 MiB at most.
pub(crate) const CONNECTIONS: usize = 512;

const LIMITS: Limits = Limits {
    connections: CONNECTIONS,
    // A CA's request comes a round trip after its connection, and honest clients never open this many in that time.
    silent: 2048,
    // A CA waits 10 s, Prometheus too by default.
    time: Duration::from_secs(15),
};

#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Most that are read or answered at a time.
    connections: usize,
    /// Most that are open at a time without having sent anything.
    silent: usize,
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

/// Connections by their remote address, the oldest first.
#[derive(Debug, Default)]
struct Connections {
    count: usize,
    from: BTreeMap<IpAddr, BTreeMap<u64, Arc<Notify>>>,
}

impl Connections {
    fn enter(&mut self, connection: &Connection) {
        let of = self.from.entry(connection.address).or_default();
        of.insert(connection.number, Arc::clone(&connection.end));
        self.count += 1;
    }

    /// Removes a connection; false if it is not there, or was closed.
    fn leave(&mut self, connection: &Connection) -> bool {
        let Some(of) = self.from.get_mut(&connection.address) else {
            return false;
        };
        let left = of.remove(&connection.number).is_some();
        if of.is_empty() {
            self.from.remove(&connection.address);
        }
        self.count -= usize::from(left);
        left
    }

    fn has(&self, connection: &Connection) -> bool {
        let of = self.from.get(&connection.address);
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
            taken: 0,
            idle: Connections::default(),
            asked: Connections::default(),
            ending: BTreeSet::new(),
            queue: VecDeque::new(),
        }
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

    /// Waits until something has come; false if it stays silent, or is closed to make room.
    async fn speaks(&self, stream: &TcpStream) -> bool {
        let mut first = [0];
        let spoke = tokio::select! {
            biased;
            come = timeout(HEADER_TIME, stream.peek(&mut first)) => matches!(come, Ok(Ok(1..))),
            () = self.end.notified() => false,
        };
        lock(&self.open).silent.leave(self) && spoke
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

/// Serves `router` until `shutdown` resolves.
/// Connections that are open by then end on their own within 20 seconds.
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
        let connection = Connection::new(&open, from.ip());
        tokio::spawn(answer(
            limits.time,
            http.clone(),
            router.clone(),
            connection,
            stream,
        ));
    }
}

/// Answers the one request of a connection.
async fn answer(
    time: Duration,
    http: http1::Builder,
    router: Router,
    connection: Connection,
    stream: TcpStream,
) {
    if !connection.speaks(&stream).await {
        return;
    }
    let _place = connection.place().await;
    let asking = connection.clone();
    let router = router.map_request(move |mut request: Request<Incoming>| {
        asking.asks();
        request.extensions_mut().insert(asking.clone());
        request
    });
    let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = pin!(timeout(time, served));
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

    /// A connection from another address than the others.
    async fn from_elsewhere(address: std::net::SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        socket.connect(address).await.unwrap()
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
            ..LIMITS
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
            silent: 8,
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
        // The oldest are closed.
        let mut byte = [0];
        assert_eq!(idle[0].read(&mut byte).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn who_has_connected_is_not_pushed_out_before_it_asks() {
        let address = started(Limits {
            connections: 8,
            ..LIMITS
        })
        .await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut others = Vec::new();
        for number in 0..300 {
            let mut other = TcpStream::connect(address).await.unwrap();
            if number % 2 == 0 {
                other.write_all(b"G").await.unwrap();
            }
            others.push(other);
        }
        // More have begun to ask than there are places.
        let mut byte = [0];
        assert_eq!(others[0].read(&mut byte).await.unwrap_or(0), 0);
        let answer = timeout(HEADER_TIME, ask(&mut client)).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
    }

    #[tokio::test]
    async fn who_floods_pushes_out_their_own_connections() {
        let address = started(Limits {
            silent: 8,
            ..LIMITS
        })
        .await;
        let mut client = from_elsewhere(address).await;
        let mut others = Vec::new();
        for _ in 0..300 {
            others.push(TcpStream::connect(address).await.unwrap());
        }
        let mut byte = [0];
        assert_eq!(others[0].read(&mut byte).await.unwrap_or(0), 0);
        let answer = timeout(HEADER_TIME, ask(&mut client)).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
    }

    #[test]
    fn of_addresses_that_have_as_many_the_oldest_connection_is_closed() {
        let open = Arc::new(Mutex::new(Open::new(LIMITS)));
        let of = |last| Connection::new(&open, IpAddr::from([10, 0, 0, last]));
        let _all = [1, 9, 5, 5].map(of);
        let mut all = lock(&open);
        let closed: Vec<u64> = std::iter::from_fn(|| all.silent.close_one()).collect();
        assert_eq!(closed, [3, 1, 2, 4]);
        assert_eq!((all.silent.count, all.silent.from.len()), (0, 0));
    }

    #[tokio::test]
    async fn who_is_told_to_end_as_soon_as_it_asks_is_counted_once() {
        let limits = Limits {
            connections: 1,
            ..LIMITS
        };
        let open = Arc::new(Mutex::new(Open::new(limits)));
        let [first, second] = [1, 2].map(|last| Connection::new(&open, [10, 0, 0, last].into()));
        let place = first.place().await;
        let waiting = tokio::spawn(async move { second.place().await });
        while lock(&open).queue.is_empty() {
            tokio::task::yield_now().await;
        }
        // If the first turn reads its request, this comes before it is known that it has not asked.
        first.asks();
        first.looked_at();
        let counted = {
            let all = lock(&open);
            (all.idle.count, all.asked.count, all.ending.len())
        };
        assert_eq!(counted, (0, 0, 1));
        drop(place);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_place_is_handed_on_and_none_is_lost() {
        let open = Arc::new(Mutex::new(Open::new(Limits {
            connections: 2,
            ..LIMITS
        })));
        let address = IpAddr::from([127, 0, 0, 1]);
        let connections: Vec<Connection> =
            (0..4).map(|_| Connection::new(&open, address)).collect();
        let first = connections[0].place().await;
        let second = connections[1].place().await;
        connections[0].asks();
        let third = tokio::spawn({
            let third = connections[2].clone();
            async move { third.place().await }
        });
        let fourth = tokio::spawn({
            let fourth = connections[3].clone();
            async move { fourth.place().await }
        });
        while lock(&open).queue.len() < 2 {
            tokio::task::yield_now().await;
        }
        // The second may not have asked yet: nothing is closed before that is known.
        assert!(lock(&open).ending.is_empty());
        connections[1].looked_at();
        connections[1].end.notified().await;
        connections[0].end.notified().await;
        drop((first, second));
        let (third, fourth) = (third.await.unwrap(), fourth.await.unwrap());
        let all = lock(&open);
        assert_eq!((all.taken, all.ending.len(), all.queue.len()), (2, 0, 0));
        drop(all);
        drop((third, fourth));
        assert_eq!(lock(&open).taken, 0);
    }

    #[tokio::test]
    async fn who_asks_at_once_is_answered_in_a_flood_of_connections() {
        let address = started(Limits {
            connections: 8,
            ..LIMITS
        })
        .await;
        // On this thread, so that all exist before the first is accepted: fewer than any kernel's backlog.
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

    /// A server with `connections` places that answers when told to; its first signal says that it was asked.
    async fn slow(connections: usize) -> (std::net::SocketAddr, Arc<Notify>, Arc<Notify>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, go): (Arc<Notify>, Arc<Notify>) = Default::default();
        let (begun, answer) = (Arc::clone(&asked), Arc::clone(&go));
        let slow = get(async move || {
            begun.notify_one();
            answer.notified().await;
            "late"
        });
        let limits = Limits {
            connections,
            ..LIMITS
        };
        let router = Router::new().route("/", slow);
        tokio::spawn(serve_within(
            limits,
            listener,
            router,
            std::future::pending(),
        ));
        (address, asked, go)
    }

    #[tokio::test]
    async fn who_asks_for_much_pushes_out_their_own_requests() {
        let (address, asked, go) = slow(4).await;
        let mut client = from_elsewhere(address).await;
        let waiting = tokio::spawn(async move { ask(&mut client).await });
        asked.notified().await;
        let mut others = Vec::new();
        for _ in 0..50 {
            let mut other = TcpStream::connect(address).await.unwrap();
            other
                .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                .await
                .unwrap();
            asked.notified().await;
            others.push(other);
        }
        go.notify_one();
        let answer = timeout(HEADER_TIME, waiting).await.unwrap().unwrap();
        assert!(answer.ends_with("late"), "{answer}");
    }

    #[tokio::test]
    async fn who_has_asked_is_closed_last() {
        let (address, asked, go) = slow(2).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let waiting = tokio::spawn(async move { ask(&mut client).await });
        asked.notified().await;
        let mut idle = Vec::new();
        for _ in 0..50 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"G").await.unwrap();
            idle.push(client);
        }
        // The last but one is closed when the last is accepted.
        let mut byte = [0];
        assert_eq!(idle[48].read(&mut byte).await.unwrap_or(0), 0);
        go.notify_one();
        assert!(waiting.await.unwrap().ends_with("late"));
    }
}

use std::io::Write as _;

use axum::Extension;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::net::presented::{self, Presented};

async fn started(limits: Limits) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", get(async || "here"));
    tokio::spawn(serve_within(
        limits,
        listener,
        None,
        router,
        std::future::pending(),
    ));
    address
}

/// One that speaks TLS too, with its certificate.
async fn started_with_tls(limits: Limits, router: Router) -> (std::net::SocketAddr, String) {
    let (certificate, key) = presented::tests::pair();
    let presented = Presented::default();
    presented
        .replace(certificate.as_bytes(), key.as_bytes())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Some(presented.acceptor().unwrap());
    tokio::spawn(serve_within(
        limits,
        listener,
        tls,
        router,
        std::future::pending(),
    ));
    (address, certificate)
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
    let connections: Vec<Connection> = (0..4).map(|_| Connection::new(&open, address)).collect();
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
        None,
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

#[tokio::test]
async fn handshakes_that_never_end_keep_nobody_waiting() {
    let seen = get(
        async |encrypted: Option<Extension<Encrypted>>| match encrypted {
            Some(_) => "here by TLS",
            None => "here",
        },
    );
    let router = Router::new().route("/", seen);
    let limits = Limits {
        connections: 16,
        handshakes: 4,
        handshakes_at_once: 1_000,
        ..LIMITS
    };
    let (address, certificate) = started_with_tls(limits, router).await;
    let mut others = Vec::new();
    for number in 0..300 {
        let mut other = TcpStream::connect(address).await.unwrap();
        // The beginning of a handshake, and no more.
        other.write_all(&[HANDSHAKE, 3, 1, 1]).await.unwrap();
        others.push(other);
        if number % 50 != 0 {
            continue;
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        let answer = timeout(HEADER_TIME, ask(&mut probe)).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
        let stream = from_elsewhere(address).await;
        let shaken = presented::tests::shake(stream, &certificate);
        let mut stream = timeout(HEADER_TIME, shaken).await.unwrap().unwrap();
        let mut answer = String::new();
        { stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") }
            .await
            .unwrap();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here by TLS"), "{answer}");
    }
    // The oldest are closed.
    let mut byte = [0];
    assert_eq!(others[0].read(&mut byte).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn an_address_begins_a_bounded_number_of_handshakes_and_others_begin_theirs() {
    let limits = Limits {
        handshakes_at_once: 3,
        ..LIMITS
    };
    let router = Router::new().route("/", get(async || "here"));
    let (address, certificate) = started_with_tls(limits, router).await;
    let mut shaken = 0;
    let started = Instant::now();
    for _ in 0..200 {
        let stream = TcpStream::connect(address).await.unwrap();
        let shake = presented::tests::shake(stream, &certificate).await;
        shaken += u128::from(shake.is_ok());
    }
    let most = 3 + started.elapsed().as_millis() / HANDSHAKE_EACH.as_millis() + 1;
    assert!((3..=most).contains(&shaken), "{shaken} of {most}");
    // Plain requests are answered, and so is another address.
    let mut probe = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut probe).await.ends_with("here"));
    let stream = from_elsewhere(address).await;
    presented::tests::shake(stream, &certificate).await.unwrap();
}

#[test]
fn many_addresses_together_begin_a_bounded_number_of_handshakes() {
    let open = Arc::new(Mutex::new(Open::new(LIMITS)));
    let address = |number: u32| IpAddr::from((0x0a00_0000 + number).to_be_bytes());
    let now = Instant::now();
    let begun = |now: Instant, numbers: std::ops::Range<u32>| {
        let mut open = lock(&open);
        let may = numbers.filter(|number| open.may_shake_hands(now, &network(address(*number))));
        u32::try_from(may.count()).unwrap()
    };
    assert_eq!(begun(now, 100..5_100), LIMITS.handshakes_of_all_at_once);
    assert_eq!(begun(now + Duration::from_secs(1), 10_000..11_000), 50);
}

#[test]
fn who_has_shown_a_good_token_begins_handshakes_however_many_others_do() {
    let limits = Limits {
        handshakes_of_all_at_once: 0,
        ..LIMITS
    };
    let open = Arc::new(Mutex::new(Open::new(limits)));
    let now = Instant::now();
    // A bucket gives the first to everybody.
    lock(&open).may_shake_hands(now, "first");
    let address = |number: u32| IpAddr::from((0x0a00_0000 + number).to_be_bytes());
    let begun = |now: Instant, numbers: std::ops::Range<u32>| {
        let mut open = lock(&open);
        let may = numbers.filter(|number| open.may_shake_hands(now, &network(address(*number))));
        may.count()
    };
    for number in 0..2 {
        Connection::new(&open, address(number)).welcome();
    }
    assert_eq!(begun(now, 0..3), 2);
    // The latest are known, and each once.
    for number in 1..=u32::try_from(WELCOME).unwrap() {
        Connection::new(&open, address(number)).welcome();
    }
    assert_eq!(begun(now, 0..3), 2);
    assert_eq!(lock(&open).welcome.len(), WELCOME);
}

#[test]
fn a_network_of_ipv6_counts_as_one_client() {
    let of = |address: &str| network(address.parse().unwrap());
    assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
    assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
}

#[test]
fn the_addresses_of_one_network_count_as_one() {
    let open = Arc::new(Mutex::new(Open::new(LIMITS)));
    let from = |address: &str| Connection::new(&open, address.parse().unwrap());
    let mut all = Connections::default();
    let ca = from("2001:db8:1::1");
    all.enter(&ca);
    let flood: Vec<_> = (0..100)
        .map(|it| from(&format!("2001:db8:2::{it:x}")))
        .collect();
    flood.iter().for_each(|it| all.enter(it));
    for _ in 0..99 {
        all.close_one();
    }
    assert!(all.has(&ca), "the flood pushes out its own");
    assert_eq!((all.count, all.from.len()), (2, 2));
}

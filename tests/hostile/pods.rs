//! Pods that are asked to reload: those of the hostile tenant answer late, never or without end, those of some others well.
//!
//! The scene runs where pods have addresses: a server here has a port at the address of each.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::json;
use test_bench::Result;
use test_bench::objects::{FRESH, Reference, Space, pair, workload};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::attack::{PAUSE, create, put};
use super::tally::{Count, Tally};

/// Deployments whose pods answer in the same way, and pods of each: all together are forty, and a namespace is asked at
/// sixteen at a time.
const DEPLOYMENTS: usize = 2;
const PODS: i64 = 5;
/// Between two other certificates of the Secrets, of which there are eight: each has one every eighty seconds.
const TURN: Duration = Duration::from_secs(10);
/// Of this number of requests to a pod the first is answered well: all of its workload are then asked for the second
/// time, for which a rollout needs no place. The others are the attempts of that.
const WELL_ONE_OF: usize = 4;
/// Longest time for an answer: more than the operator waits.
const LONGEST: Duration = Duration::from_secs(60);
/// A piece of an answer that does not end.
static PIECE: [u8; 16_384] = [b'x'; 16_384];

/// How a pod answers.
#[derive(Clone, Copy)]
enum Answer {
    Well,
    Never,
    /// A byte at a time.
    Slowly,
    /// With a header that does not end.
    LongHeader,
    /// With success, and a body that does not end.
    LongBody,
}

/// A reload endpoint in every pod, which answers well; its port.
pub(super) async fn well(tasks: &mut JoinSet<()>) -> Result<u16> {
    serve(Answer::Well, &Count::default(), tasks).await
}

/// Makes Deployments that are asked to reload, and gives their Secrets another certificate for as long as the set lives.
pub(super) async fn begin(space: &Space, tasks: &mut JoinSet<()>, tally: &Tally) -> Result<()> {
    let mut reloaded = Vec::new();
    for (answer, what) in [
        (Answer::Never, "reloads that a pod never answered"),
        (Answer::Slowly, "reloads answered a byte at a time"),
        (Answer::LongHeader, "reloads answered by an endless header"),
        (Answer::LongBody, "reloads answered by an endless body"),
    ] {
        let port = serve(answer, &tally.of(what), tasks).await?;
        for _ in 0..DEPLOYMENTS {
            let name = format!("reloads-{}", reloaded.len());
            let object = workload("Deployment", &name, PODS, Reference::Volume, &name);
            create(space, object).await?;
            reloaded.push((name, format!("post:{port}/reload")));
        }
    }
    // It is said that they have a certificate that ended long ago: nothing is more urgent.
    let ended = format!("{} 2020-01-01T00:00:00Z", "0".repeat(64));
    let first = pair(&["reloads.h.example"], FRESH)?;
    for (name, rollout) in &reloaded {
        space.available("Deployment", name).await?;
        let annotations = [
            ("issuer", "external"),
            ("rollout", &**rollout),
            ("state.cert-renew.io/rolled-out", &*ended),
        ];
        space.tls_secret(name, Some(&first), &annotations).await?;
    }
    let secrets = space.secrets();
    tasks.spawn(async move {
        for (name, _) in reloaded.iter().cycle() {
            sleep(TURN).await;
            if let Ok(next) = pair(&["reloads.h.example"], FRESH) {
                let state = json!({"state.cert-renew.io/rolled-out": ended});
                put(&secrets, name, &next, &state).await;
            }
        }
    });
    eprintln!("hostile: pods that answer late, never or without end");
    Ok(())
}

/// A server in every pod; counts the requests that it does not answer well.
async fn serve(answer: Answer, badly: &Count, tasks: &mut JoinSet<()>) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let port = listener.local_addr()?.port();
    let badly = badly.clone();
    tasks.spawn(async move {
        let (mut requests, mut open) = (HashMap::<IpAddr, usize>::new(), JoinSet::new());
        while let Ok((mut stream, _)) = listener.accept().await {
            while open.try_join_next().is_some() {}
            let Ok(pod) = stream.local_addr() else {
                continue;
            };
            let number = requests.entry(pod.ip()).or_default();
            let is_well = number.is_multiple_of(WELL_ONE_OF);
            *number += 1;
            let (answer, badly) = if is_well {
                (Answer::Well, Count::default())
            } else {
                (answer, badly.clone())
            };
            open.spawn(async move {
                if head(&mut stream).await.is_ok() {
                    badly.add_if(true);
                    // The other side hangs up, or has to.
                    let _ = timeout(LONGEST, answer.give(&mut stream)).await;
                }
            });
        }
    });
    Ok(port)
}

/// Reads the head of a request; one for a reload has no body.
async fn head(stream: &mut TcpStream) -> io::Result<()> {
    let mut last = [0; 4];
    while last != *b"\r\n\r\n" {
        last.rotate_left(1);
        last[3] = stream.read_u8().await?;
    }
    Ok(())
}

impl Answer {
    async fn give(self, stream: &mut TcpStream) -> io::Result<()> {
        let begin: &[u8] = match self {
            Self::Well => b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
            Self::Never => b"",
            Self::Slowly | Self::LongHeader => b"HTTP/1.1 200 OK\r\nx: ",
            Self::LongBody => b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n",
        };
        stream.write_all(begin).await?;
        match self {
            Self::Well => Ok(()),
            Self::Never => stream.read_u8().await.map(drop),
            Self::Slowly => loop {
                stream.write_all(b"x").await?;
                sleep(PAUSE).await;
            },
            Self::LongHeader | Self::LongBody => loop {
                stream.write_all(&PIECE).await?;
            },
        }
    }
}

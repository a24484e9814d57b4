//! All that a user of one namespace can do to the operator, at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use test_bench::Result;
use test_bench::certificates::{DAY, Template};
use test_bench::objects::{FRESH, OLD, Pair, Reference, Space, pair, workload};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::tally::Tally;
use super::{changes, copies, deleted, endless, many, pods};

/// Deployments, of a megabyte each.
const HUGE: usize = 100;
/// Names of a leaf: with nine characters each they are all that a Secret holds.
const NAMES: usize = 70_000;
/// Names whose DNS is slow, of [`LABELS`] labels each: a million labels, none of which two names have in common. An order
/// has no more names.
const DEEP: (usize, usize) = (84, 100);
const LABELS: usize = 120;
/// A server of a tenant's own zone answers as slowly as the operator's patience lets it.
const SLOW: Duration = Duration::from_secs(2);
/// Between two writes of one of the loops.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// Connections to each port: there are 512 places.
const CONNECTIONS: usize = 700;
/// Questions for unknown tokens that wait at a time: more than are looked for.
const TOKENS: usize = 200;
/// Page loads that are given up, each twenty times a second.
const GIVEN_UP: usize = 8;

/// How the namespace's name begins: of Secrets with the same certificate the first one orders, and this one is before the
/// others'.
pub(super) const NAMESPACE: &str = "evil";
/// What it may have certificates for.
pub(super) const ALLOWED: &str = "\"**.h.example\", \"**.h.x\", \"**.r.x\", \"**.w.x\"";

/// More orders than all of it makes in this time: those with slow DNS, some 150 that wait without end, and one for each
/// round of the Secrets that are deleted and made again.
pub(super) fn orders(lasts: Duration) -> u64 {
    300 + lasts.as_secs() / 4
}

/// Answers that there is nothing, of a name under `slow.` after a while, and where a name without a route is: where nobody
/// listens. The address.
pub(super) async fn slow_dns(tasks: &mut JoinSet<()>) -> Result<SocketAddr> {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    let address = socket.local_addr()?;
    tasks.spawn(async move {
        let mut buffer = [0; 1_500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            // The header, and one question: labels until an empty one, then type and class.
            let mut end = 12;
            while end < length && buffer[end] != 0 {
                end += 1 + usize::from(buffer[end]);
            }
            if end + 5 > length {
                continue;
            }
            let mut answer = buffer[..end + 5].to_vec();
            // A response, recursion available, no error, and nothing but the question.
            (answer[2], answer[3]) = (answer[2] | 0x80, 0x80);
            answer[6..12].fill(0);
            let slow = answer.windows(6).any(|it| it == b"\x04slow\x01");
            // Type A (RFC 1035, 3.2.2), of a name that the question has.
            if answer[end + 1..].starts_with(&[0, 1]) && answer[..end].ends_with(b"\x01w\x01x") {
                answer[7] = 1;
                answer.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x7f\x00\x00\x01");
            }
            let socket = Arc::clone(&socket);
            tokio::spawn(async move {
                if slow {
                    sleep(SLOW).await;
                }
                let _ = socket.send_to(&answer, from).await;
            });
        }
    });
    Ok(address)
}

/// Begins all of it, at the ports of metrics and of challenges; it goes on for as long as the set lives.
pub(super) async fn begin(
    space: &Space,
    others: &[Space],
    ports: [SocketAddr; 2],
    tally: &Tally,
) -> Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    pods::begin(space, &mut tasks, tally).await?;
    huge_workloads(space).await?;
    let names = long_leaves(space).await?;
    let texts = slow_texts(space).await?;
    deep_names(space).await?;
    slow_rollouts(space).await?;
    forged_state(space, &mut tasks).await?;
    many::begin(space, &mut tasks).await?;
    changes::begin(space, &mut tasks, tally).await?;
    endless::begin(space, &mut tasks, tally).await?;
    deleted::begin(space, &mut tasks, tally).await?;
    copies::begin(space, others, &mut tasks, tally).await?;
    let old = pair(&["wishes.h.example"], OLD)?;
    space
        .tls_secret("wishes", Some(&old), &[("issuer", "pebble")])
        .await?;
    // `renew-now` in a loop, of what is renewed at each and of what is large to look at.
    let small = ["wishes", "slow-0", "slow-1"].map(ToOwned::to_owned);
    wish(space, small.into(), &mut tasks);
    wish(space, [names, texts].concat(), &mut tasks);
    connections(ports, &mut tasks);
    let [metrics, challenges] = ports;
    page_loads(metrics, &mut tasks);
    unknown_tokens(challenges, &mut tasks);
    slow_scrapes(metrics, &mut tasks);
    eprintln!("hostile: the attack is complete");
    Ok(tasks)
}

/// Deployments of a megabyte each that nobody runs, and a Secret that makes the operator list them.
async fn huge_workloads(space: &Space) -> Result<()> {
    let bulk = "x".repeat(1_200_000);
    let made = futures::stream::iter(0..HUGE).map(|number| {
        let name = format!("huge-{number}");
        let mut object = workload("Deployment", &name, 0, Reference::Volume, "bulk");
        object["spec"]["template"]["spec"]["containers"][0]["env"] =
            json!([{"name": "BULK", "value": bulk}]);
        create(space, object)
    });
    made.buffer_unordered(2).try_collect::<()>().await?;
    let fresh = pair(&["bulk.h.example"], FRESH)?;
    let external = [("issuer", "external")];
    space.tls_secret("bulk", Some(&fresh), &external).await?;
    eprintln!("hostile: {HUGE} huge Deployments");
    Ok(())
}

/// Leaves of as many names as a Secret holds: some to be renewed, for others names are asked for, the rest is rolled out.
async fn long_leaves(space: &Space) -> Result<Vec<String>> {
    let names: Vec<String> = (0..NAMES)
        .map(|number| format!("{number:05}.h.x"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let many = Template::new(&names)
        .between(-80 * DAY, 10 * DAY)
        .self_signed()?;
    eprintln!("hostile: {} bytes of names", many.certificate.len());
    let mut made = Vec::new();
    for (number, annotations) in [
        [("issuer", "pebble"), ("renew-now", "1")],
        [("issuer", "pebble"), ("names", "many.h.example")],
        [("issuer", "external"), ("rollout", "restart")],
        [("issuer", "external"), ("renew-now", "1")],
    ]
    .iter()
    .enumerate()
    {
        let name = format!("many-{number}");
        space.tls_secret(&name, Some(&many), annotations).await?;
        made.push(name);
    }
    Ok(made)
}

/// Text that a reader of PEM could go through over and over.
async fn slow_texts(space: &Space) -> Result<Vec<String>> {
    let key = pair(&["pem.h.example"], FRESH)?.key;
    let mut made = Vec::new();
    for (name, certificate) in [
        ("pem-dashes", "x".to_owned() + &"-----BEGIN ".repeat(95_000)),
        ("pem-blocks", "-----BEGIN \u{1}-----".repeat(60_000)),
        ("pem-lines", "-----BEGIN CERTIFICATE-----\n".repeat(35_000)),
    ] {
        let key = key.clone();
        let odd = Pair { certificate, key };
        space
            .tls_secret(name, Some(&odd), &[("issuer", "external")])
            .await?;
        made.push(name.to_owned());
    }
    Ok(made)
}

/// A zone of a million labels whose DNS is slow: each name differs from the others from its highest label on.
async fn deep_names(space: &Space) -> Result<()> {
    let (secrets, names) = DEEP;
    for secret in 0..secrets {
        let name = |number: usize| {
            let number = secret * names + number;
            let labels = "a.".repeat(LABELS - 4);
            format!("{labels}{number}.slow.h.example")
        };
        let names: Vec<String> = (0..names).map(name).collect();
        let annotations = [("issuer", "pebble"), ("names", &*names.join(","))];
        let secret = format!("slow-{secret}");
        space.tls_secret(&secret, None, &annotations).await?;
    }
    eprintln!("hostile: {} labels", secrets * names * LABELS);
    Ok(())
}

/// Rollouts that move for as long as they can. `none` asks for a restart, and is worth no urgency.
async fn slow_rollouts(space: &Space) -> Result<()> {
    let fresh = pair(&["urgent.h.example"], FRESH)?;
    for number in 0..8 {
        let name = format!("urgent-{number}");
        let mut object = workload("Deployment", &name, 5, Reference::Volume, &name);
        object["spec"]["minReadySeconds"] = json!(30);
        object["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        create(space, object).await?;
        let annotations = [
            ("issuer", "external"),
            ("state.cert-renew.io/rolled-out", "none"),
        ];
        space.tls_secret(&name, Some(&fresh), &annotations).await?;
    }
    Ok(())
}

/// Forged state that is another one each time, and as long as annotations may be.
async fn forged_state(space: &Space, tasks: &mut JoinSet<()>) -> Result<()> {
    let fresh = pair(&["forged.h.example"], FRESH)?;
    space
        .tls_secret("forged", Some(&fresh), &[("issuer", "pebble")])
        .await?;
    let secrets = space.secrets();
    tasks.spawn(async move {
        for number in 0_u64.. {
            let issuer = format!("{number}{}", "i".repeat(200_000));
            let names = (0..number % 2_000).map(|name| format!("{name}.h.x"));
            let names: Vec<String> = names.collect();
            let issued_by = json!({"issuer": issuer, "names": names}).to_string();
            let state = json!({
                "state.cert-renew.io/issued-by": issued_by, "state.cert-renew.io/rolled-out": "none"});
            annotate(&secrets, "forged", &state).await;
            sleep(PAUSE).await;
        }
    });
    Ok(())
}

fn wish(space: &Space, names: Vec<String>, tasks: &mut JoinSet<()>) {
    let secrets = space.secrets();
    tasks.spawn(async move {
        for number in 0_u64.. {
            for name in &names {
                let wish = json!({"cert-renew.io/renew-now": number.to_string()});
                annotate(&secrets, name, &wish).await;
                sleep(PAUSE).await;
            }
        }
    });
}

/// Connections that say nothing, as many as there are places and more.
fn connections(ports: [SocketAddr; 2], tasks: &mut JoinSet<()>) {
    for address in ports {
        for _ in 0..CONNECTIONS {
            tasks.spawn(async move {
                loop {
                    if let Ok(mut stream) = TcpStream::connect(address).await {
                        let _ = stream.write_all(b"G").await;
                        sleep(Duration::from_secs(20)).await;
                    }
                    sleep(Duration::from_millis(500)).await;
                }
            });
        }
    }
}

/// Loads of the status page that are given up at once.
fn page_loads(metrics: SocketAddr, tasks: &mut JoinSet<()>) {
    for _ in 0..GIVEN_UP {
        tasks.spawn(async move {
            loop {
                if let Ok(mut stream) = TcpStream::connect(metrics).await {
                    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
    }
}

/// Questions for tokens of no order: each is looked for at the API server before it is answered.
fn unknown_tokens(challenges: SocketAddr, tasks: &mut JoinSet<()>) {
    for asker in 0..TOKENS {
        tasks.spawn(async move {
            for number in 0_u64.. {
                if let Ok(mut stream) = TcpStream::connect(challenges).await {
                    let token = format!("{asker:022}{number:021}");
                    let question = format!(
                        "GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: x\r\n\r\n"
                    );
                    let _ = stream.write_all(question.as_bytes()).await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
                sleep(PAUSE).await;
            }
        });
    }
}

/// Scrapes that are read a byte at a time.
fn slow_scrapes(metrics: SocketAddr, tasks: &mut JoinSet<()>) {
    for _ in 0..GIVEN_UP {
        tasks.spawn(async move {
            loop {
                if let Ok(mut stream) = TcpStream::connect(metrics).await {
                    let _ = stream
                        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                        .await;
                    while stream.read(&mut [0]).await.is_ok_and(|read| read > 0) {
                        sleep(PAUSE).await;
                    }
                }
                sleep(PAUSE).await;
            }
        });
    }
}

pub(super) async fn create(space: &Space, object: Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object)?;
    let deployments = space.workloads("Deployment");
    deployments.create(&PostParams::default(), &object).await?;
    Ok(())
}

/// Whether it succeeds is nobody's business: the next one will.
pub(super) async fn annotate(secrets: &Api<Secret>, name: &str, annotations: &Value) {
    let patch = json!({"metadata": {"annotations": annotations}});
    merge(secrets, name, patch).await;
}

/// Writes another pair into a Secret, with these annotations; whether that was done.
pub(super) async fn put(
    secrets: &Api<Secret>,
    name: &str,
    pair: &Pair,
    annotations: &Value,
) -> bool {
    let patch = json!({
        "metadata": {"annotations": annotations},
        "stringData": {"tls.crt": pair.certificate, "tls.key": pair.key},
    });
    merge(secrets, name, patch).await
}

/// Merges this into a Secret; whether that was done.
pub(super) async fn merge(secrets: &Api<Secret>, name: &str, patch: Value) -> bool {
    let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
    secrets.patch(name, &params, &patch).await.is_ok()
}

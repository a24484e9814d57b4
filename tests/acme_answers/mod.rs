//! Every answer that a CA may give, at every point of an order: RFC 8555 with 8738, 9773 and 9799, and the profiles draft.
//!
//! A scripted CA gives one strange answer and then goes on as it should. Whatever that was, the next try succeeds, and it
//! counts as a failed validation only where the CA has said so of a name.

mod rows;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use cert_renew::acme::{
    CertId, ChallengeType, Class, Client, Credentials, Error, OrderRequest, OrderStatus,
    Preference, RevocationReason,
};
use cert_renew_core::time::UnixTime;
use futures::StreamExt as _;
use serde_json::{Value, json};
use test_bench::report::Report;
use test_bench::{Result, ensure};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::rows::rows;
use crate::acme_faults::client_at;

/// Enough for a poll or two of a CA that answers at once.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Tries after the one with the strange answer: one may be spent on finding out that an order cannot be read.
const TRIES: usize = 4;
/// Rows that run at the same time.
const ROWS: usize = 16;

/// Where in an order an answer is given.
const POINTS: [&str; 15] = [
    "directory",
    "nonce",
    "account",
    "new-order",
    "authz",
    AGAIN,
    "challenge",
    "order-pending",
    "order-ready",
    "finalize",
    PROCESSING,
    "certificate",
    "ari",
    "revoke",
    "key-change",
];
/// The look at an authorization whose proof the CA has not judged for long.
const AGAIN: &str = "authz-again";
/// The look at an order while the CA is at work on its certificate.
const PROCESSING: &str = "order-processing";
/// Those of them that an order answers.
const OF_ORDERS: [&str; 5] = [
    "new-order",
    "order-pending",
    "order-ready",
    "finalize",
    PROCESSING,
];
/// What is asked for beside an order.
const BESIDE: [&str; 3] = ["ari", "revoke", "key-change"];

/// What is answered in place of the right answer, once.
#[derive(Clone, Debug)]
enum Strange {
    /// A member is left out, at this JSON pointer's end.
    Without(&'static str),
    /// A member has another value.
    With(&'static str, Value),
    /// An error of this status and type.
    Problem(u16, String),
    /// Another body altogether.
    Body(&'static str),
    /// Another status, which is a success too.
    Status(u16),
    /// A header has another value, or is left out.
    Header(&'static str, Option<&'static str>),
}

#[derive(Clone, Debug)]
struct Row {
    point: &'static str,
    strange: Strange,
    /// Whether the CA says by it that a name was not proven.
    is_failed_validation: bool,
}

/// A header that is another one in the strange answer.
type Changed = Option<(&'static str, Option<&'static str>)>;

struct Ca {
    base: String,
    row: Row,
    given: AtomicUsize,
    orders: AtomicUsize,
    /// Of the last order, as the two that follow.
    looks: AtomicUsize,
    polls: AtomicUsize,
    finalized: AtomicUsize,
}

impl Ca {
    fn right(&self, path: &str) -> (&'static str, u16, Value) {
        let base = &self.base;
        let number = self.orders.load(Ordering::SeqCst);
        let order = |status: &str| {
            json!({
                "status": status, "expires": "2099-01-01T00:00:00Z",
                "identifiers": [{"type": "dns", "value": "a.example"}],
                "authorizations": [format!("{base}/authz")], "finalize": format!("{base}/finalize"),
                "certificate": format!("{base}/certificate"), "profile": "default",
            })
        };
        match path {
            "/directory" => (
                "directory",
                200,
                json!({
                    "newNonce": format!("{base}/nonce"), "newAccount": format!("{base}/account"),
                    "newOrder": format!("{base}/new-order"), "revokeCert": format!("{base}/revoke"),
                    "keyChange": format!("{base}/key"), "renewalInfo": format!("{base}/ari"),
                    "meta": {"termsOfService": "https://ca.example/tos", "website": "https://ca.example",
                        "caaIdentities": ["ca.example"], "externalAccountRequired": false,
                        "profiles": {"default": "as usual"}},
                }),
            ),
            "/account" => (
                "account",
                201,
                json!({"status": "valid", "orders": format!("{base}/orders")}),
            ),
            "/new-order" => {
                self.orders.fetch_add(1, Ordering::SeqCst);
                self.looks.store(0, Ordering::SeqCst);
                self.polls.store(0, Ordering::SeqCst);
                self.finalized.store(0, Ordering::SeqCst);
                ("new-order", 201, order("pending"))
            }
            "/authz" => (
                if self.looks.fetch_add(1, Ordering::SeqCst) > 0 {
                    AGAIN
                } else {
                    "authz"
                },
                200,
                json!({
                    "status": "pending", "expires": "2099-01-01T00:00:00Z",
                    "identifier": {"type": "dns", "value": "a.example"}, "wildcard": false,
                    "challenges": [
                        {"type": "http-01", "url": format!("{base}/challenge"), "status": "pending",
                            "token": format!("token-{number}")},
                        {"type": "onion-csr-01", "url": format!("{base}/onion"), "status": "pending",
                            "nonce": "x", "authKey": {}},
                    ],
                }),
            ),
            "/challenge" => (
                "challenge",
                200,
                json!({"type": "http-01", "url": format!("{base}/challenge"), "status": "processing",
                    "token": "token"}),
            ),
            "/finalize" => {
                self.finalized.fetch_add(1, Ordering::SeqCst);
                let is_slow = self.row.point == PROCESSING;
                let status = if is_slow { "processing" } else { "valid" };
                ("finalize", 200, order(status))
            }
            "/certificate" => ("certificate", 200, json!("chain")),
            "/revoke" => ("revoke", 200, json!({})),
            "/key" => ("key-change", 200, json!({})),
            "/nonce" => ("nonce", 200, json!({})),
            _ if path.starts_with("/ari/") => (
                "ari",
                200,
                json!({"suggestedWindow": {"start": "2098-01-01T00:00:00Z", "end": "2098-01-02T00:00:00Z"},
                    "explanationURL": "https://ca.example/why"}),
            ),
            _ if self.finalized.load(Ordering::SeqCst) > 0 => (PROCESSING, 200, order("valid")),
            // Until the authorization is looked at again.
            _ if self.row.point == AGAIN && self.given.load(Ordering::SeqCst) == 0 => {
                ("order-pending", 200, order("pending"))
            }
            _ if self.polls.fetch_add(1, Ordering::SeqCst) == 0 => {
                ("order-pending", 200, order("pending"))
            }
            _ => ("order-ready", 200, order("ready")),
        }
    }

    fn answer(&self, path: &str) -> (u16, String, Changed) {
        let (point, status, mut body) = self.right(path);
        let is_here = point == self.row.point;
        if !is_here || self.given.fetch_add(1, Ordering::SeqCst) > 0 {
            return (status, body.to_string(), None);
        }
        match &self.row.strange {
            Strange::Without(pointer) => {
                let (parent, member) = pointer.rsplit_once('/').unwrap_or_default();
                if let Some(parent) = body.pointer_mut(parent).and_then(Value::as_object_mut) {
                    parent.remove(member);
                }
            }
            Strange::With(pointer, value) => {
                if let Some(place) = body.pointer_mut(pointer) {
                    value.clone_into(place);
                } else if let (Some(object), Some(member)) =
                    (body.as_object_mut(), pointer.strip_prefix('/'))
                {
                    object.insert(member.to_owned(), value.clone());
                }
            }
            Strange::Problem(status, kind) => {
                let body = json!({"type": kind, "detail": "said by the script", "status": status});
                return (*status, body.to_string(), None);
            }
            Strange::Body(body) => return (status, (*body).to_owned(), None),
            Strange::Status(status) => return (*status, body.to_string(), None),
            Strange::Header(name, value) => {
                return (status, body.to_string(), Some((name, *value)));
            }
        }
        (status, body.to_string(), None)
    }
}

async fn respond(State(ca): State<Arc<Ca>>, uri: Uri) -> Response {
    let (status, body, changed) = ca.answer(uri.path());
    let mut headers = HeaderMap::new();
    let location = match uri.path() {
        "/account" => format!("{}/account/1", ca.base),
        _ => format!("{}/order", ca.base),
    };
    for (name, value) in [("replay-nonce", "nonce"), ("location", &*location)] {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    // Or newNonce would never be asked.
    if uri.path() == "/directory" {
        headers.remove("replay-nonce");
    }
    if let Some((name, value)) = changed {
        headers.remove(name);
        if let Some(value) = value.and_then(|it| it.parse().ok()) {
            headers.insert(name, value);
        }
    }
    let status = StatusCode::from_u16(status).unwrap_or_default();
    (status, headers, body).into_response()
}

/// What is asked for beside an order: renewal information, a revocation, another key of the account.
async fn beside(client: &Client) -> std::result::Result<(), Error> {
    let certificate = CertId::new(b"issuer", b"serial");
    client
        .renewal_info(&certificate, 0, UnixTime::now())
        .await?;
    let reason = RevocationReason::KeyCompromise;
    client.revoke(b"certificate", reason).await?;
    let next = Credentials::generate(&client.settings().directory);
    client.change_key(&next.expect("randomness")).await?;
    Ok(())
}

/// One try, as a renewal makes it: a new order, or the one that is there.
async fn attempt(client: &Client, open: &mut Option<String>) -> std::result::Result<(), Error> {
    if client.account_url().is_none() {
        let fresh = Credentials::generate(&client.settings().directory);
        client.register(&fresh.expect("randomness")).await?;
    }
    let mut order = match open {
        Some(url) => client.resume(url, &[]).await?,
        None => {
            let names = ["a.example".parse().expect("a name")];
            let directory = client.directory().await?;
            let profile = { directory.meta.profiles.contains_key("default") }.then_some("default");
            client
                .new_order(
                    &names,
                    OrderRequest {
                        profile,
                        ..OrderRequest::default()
                    },
                )
                .await?
        }
    };
    *open = Some(order.url().to_owned());
    let proven = async {
        for authorization in order.authorizations().await? {
            let by_http = |it: &&cert_renew::acme::Challenge| it.kind == ChallengeType::Http01;
            if let Some(challenge) = authorization.challenges.iter().find(by_http) {
                order.set_ready(challenge).await?;
            }
        }
        order
            .wait_validated(Instant::now() + PATIENCE, |_| {})
            .await?;
        if order.status() == OrderStatus::Ready {
            order.finalize(b"request").await?;
        }
        order.wait_issued(Instant::now() + PATIENCE).await?;
        order.certificate(&Preference::Default).await.map(drop)
    };
    let result = proven.await;
    if let Err(error) = &result {
        use Class::{AccountGone, FixIt, Paused, Permanent};
        let is_lasting = matches!(error.class(), FixIt | Permanent | Paused | AccountGone);
        if is_lasting || error.is_gone() || order.status() == OrderStatus::Invalid {
            *open = None;
        }
    }
    result
}

/// The CA of a row, a client of it, and its server.
async fn served(row: &Row) -> Result<(Arc<Ca>, Client, JoinHandle<std::io::Result<()>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let ca = Arc::new(Ca {
        base: base.clone(),
        row: row.clone(),
        given: AtomicUsize::new(0),
        orders: AtomicUsize::new(0),
        looks: AtomicUsize::new(0),
        polls: AtomicUsize::new(0),
        finalized: AtomicUsize::new(0),
    });
    let router = Router::new().fallback(respond).with_state(Arc::clone(&ca));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let client = client_at(format!("{base}/directory"))?;
    Ok((ca, client, server))
}

async fn walk(row: Row) -> Result<()> {
    let (ca, client, server) = served(&row).await?;
    let (mut open, mut said) = (None, Vec::new());
    for number in 0..TRIES {
        let mut result = attempt(&client, &mut open).await;
        if result.is_ok() && BESIDE.contains(&row.point) {
            result = beside(&client).await;
        }
        let Err(error) = result else { break };
        ensure!(
            !error.is_failed_validation() || row.is_failed_validation,
            "it counts as a failed validation: {error}"
        );
        said.push(error.detail());
        // As a renewal does with an order that cannot be resumed for a while.
        if number + 2 >= TRIES {
            open = None;
        }
        ensure!(number + 1 < TRIES, "no try succeeds: {said:?}");
    }
    ensure!(ca.given.load(Ordering::SeqCst) > 0, "it was never asked");
    server.abort();
    Ok(())
}

#[tokio::test]
async fn after_any_answer_the_next_try_succeeds_and_none_counts_as_a_validation_that_was_none()
-> Result<()> {
    let rows = rows();
    let count = rows.len();
    let walked = futures::stream::iter(rows).map(|row| async move {
        let told = format!("{row:?}");
        walk(row)
            .await
            .err()
            .map(|error| format!("{told}: {error}"))
    });
    let wrong: Vec<String> = walked
        .buffer_unordered(ROWS)
        .filter_map(|it| async { it })
        .collect()
        .await;
    let mut report = Report::new(
        "acme-answers",
        "cargo test --test integration acme_answers::",
    );
    report.count("acme_answers.rows", count, "rows")?;
    report.count("acme_answers.failed", wrong.len(), "rows")?;
    eprintln!("{}", report.finish()?);
    ensure!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}

#[tokio::test]
async fn an_order_with_very_many_authorizations_is_refused() -> Result<()> {
    let urls = (0..13).map(|number| format!("https://ca.example/{number}"));
    let row = Row {
        point: "new-order",
        strange: Strange::With("/authorizations", json!(urls.collect::<Vec<_>>())),
        is_failed_validation: false,
    };
    let (_, client, server) = served(&row).await?;
    let mut open = None;
    let refused = attempt(&client, &mut open).await;
    let class = refused.as_ref().err().map(Error::class);
    // No outage: the next try would cost another order.
    ensure!(
        class == Some(Class::Permanent) && open.is_none(),
        "{refused:?} {open:?}"
    );
    let next = attempt(&client, &mut open).await;
    ensure!(next.is_ok(), "{next:?}");
    server.abort();
    Ok(())
}

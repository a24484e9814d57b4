//! What RFC 8555 allows and few CAs do, answer by answer: the client against a scripted CA.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use cert_renew::acme::{
    Class, Client, Credentials, Order, OrderRequest, Preference, RequestError, RevocationReason,
};
use serde_json::{Value, json};
use test_bench::{Context as _, Result, ensure};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::acme_faults::client_at;

/// Longer than three looks at what the CA says of each name.
const PATIENCE: Duration = Duration::from_secs(200);

/// How often each path was asked for, and what it answers.
struct Ca {
    base: String,
    asked: HashMap<&'static str, AtomicUsize>,
    answer: fn(&str, usize, &str) -> Option<(u16, Value)>,
}

const PATHS: [&str; 10] = [
    "/directory",
    "/account",
    "/new-order",
    "/order",
    "/authz/1",
    "/authz/2",
    "/challenge",
    "/certificate",
    "/revoke",
    "/alternate",
];

impl Ca {
    fn count(&self, path: &str) -> usize {
        self.asked
            .get(path)
            .map_or(0, |count| count.load(Ordering::SeqCst))
    }
}

async fn respond(State(ca): State<Arc<Ca>>, uri: Uri) -> Response {
    let (path, base) = (uri.path(), &ca.base);
    let count = ca
        .asked
        .get(path)
        .map_or(0, |count| count.fetch_add(1, Ordering::SeqCst));
    let usual = || match path {
        "/directory" => (
            200,
            json!({
                "newNonce": format!("{base}/nonce"), "newAccount": format!("{base}/account"),
                "newOrder": format!("{base}/new-order"), "revokeCert": format!("{base}/revoke"),
            }),
        ),
        "/account" => (201, json!({"status": "valid"})),
        "/new-order" => (201, order(base, "pending", &["/authz/1", "/authz/2"])),
        "/authz/1" => (200, authz(base, "a.example", "valid", json!([]))),
        "/authz/2" => (
            200,
            authz(
                base,
                "b.example",
                "pending",
                json!([challenge(base, "pending", Value::Null)]),
            ),
        ),
        "/challenge" => (200, challenge(base, "pending", Value::Null)),
        _ => (200, json!({})),
    };
    let (status, body) = (ca.answer)(path, count, base).unwrap_or_else(usual);
    let mut headers = HeaderMap::new();
    let location = match path {
        "/account" => format!("{base}/account/1"),
        _ => format!("{base}/order"),
    };
    let link = format!("<{base}/alternate>;rel=\"alternate\"");
    for (name, value) in [
        ("replay-nonce", "nonce"),
        ("location", &*location),
        ("link", &*link),
    ] {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    let body = body
        .as_str()
        .map_or_else(|| body.to_string(), ToOwned::to_owned);
    let status = StatusCode::from_u16(status).unwrap_or_default();
    (status, headers, body).into_response()
}

fn order(base: &str, status: &str, authorizations: &[&str]) -> Value {
    let authorizations: Vec<String> = authorizations
        .iter()
        .map(|it| format!("{base}{it}"))
        .collect();
    json!({"status": status, "authorizations": authorizations, "finalize": format!("{base}/finalize"),
        "certificate": format!("{base}/certificate")})
}

fn authz(_: &str, name: &str, status: &str, challenges: Value) -> Value {
    json!({"status": status, "identifier": {"type": "dns", "value": name}, "challenges": challenges})
}

fn challenge(base: &str, status: &str, error: Value) -> Value {
    json!({"type": "http-01", "url": format!("{base}/challenge"), "status": status, "token": "token", "error": error})
}

/// A name whose challenge the CA has looked at in vain, and would look at again.
fn pending(base: &str) -> Value {
    let refused = serde_json::from_str(REFUSED).unwrap_or_default();
    let challenges = json!([challenge(base, "pending", refused)]);
    authz(base, "b.example", "pending", challenges)
}

/// A registered client, and its CA, which answers as usual where the script says nothing.
async fn scripted(
    answer: fn(&str, usize, &str) -> Option<(u16, Value)>,
) -> Result<(Client, Arc<Ca>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let ca = Arc::new(Ca {
        base: base.clone(),
        asked: PATHS.map(|path| (path, AtomicUsize::new(0))).into(),
        answer,
    });
    let router = Router::new().fallback(respond).with_state(Arc::clone(&ca));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = client_at(format!("{base}/directory"))?;
    let credentials = Credentials::generate(&client.settings().directory)?;
    client.register(&credentials).await?;
    Ok((client, ca))
}

/// An order whose proof is said to be in place.
async fn told(client: &Client) -> Result<Order> {
    let names = ["a.example".parse()?, "b.example".parse()?];
    let mut order = client.new_order(&names, OrderRequest::default()).await?;
    for authorization in order.authorizations().await? {
        let challenge = authorization.challenges.first().context("no challenge")?;
        order.set_ready(challenge).await?;
    }
    Ok(order)
}

#[tokio::test]
async fn a_name_that_failed_is_named_although_the_order_no_longer_lists_it() -> Result<()> {
    let (client, _) = scripted(|path, count, base| match path {
        "/order" => Some((
            200,
            json!({"status": "invalid", "authorizations": null, "error": null}),
        )),
        "/authz/2" if count > 0 => Some((200, authz(base, "b.example", "invalid", json!(null)))),
        _ => None,
    })
    .await?;
    let mut order = told(&client).await?;
    let error = order
        .wait_validated(Instant::now() + PATIENCE, |_| {})
        .await
        .unwrap_err();
    let said = error.detail();
    ensure!(
        said.contains("b.example: its authorization is invalid") && !said.contains("a.example"),
        "{said}"
    );
    ensure!(
        error.is_failed_validation() && error.class() == Class::FixIt,
        "{error}"
    );
    Ok(())
}

/// An authorization ends by its time too, and when one of both sides takes it back (RFC 8555, section 7.1.6).
#[tokio::test]
async fn an_authorization_that_has_ended_is_a_failed_validation_only_if_the_ca_has_looked()
-> Result<()> {
    const STATES: [(&str, &str); 5] = [
        ("invalid", "invalid"),
        ("invalid", "expired"),
        ("invalid", "deactivated"),
        ("invalid", "revoked"),
        ("pending", "expired"),
    ];
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    for (number, (_, state)) in STATES.into_iter().enumerate() {
        NUMBER.store(number, Ordering::SeqCst);
        let (client, _) = scripted(|path, count, base| {
            let (of_order, state) = STATES[NUMBER.load(Ordering::SeqCst)];
            match path {
                "/order" => Some((200, order(base, of_order, &["/authz/1", "/authz/2"]))),
                "/authz/2" if count > 0 => Some((200, authz(base, "b.example", state, json!([])))),
                _ => None,
            }
        })
        .await?;
        let mut order = told(&client).await?;
        let error = order
            .wait_validated(Instant::now() + PATIENCE, |_| {})
            .await
            .unwrap_err();
        let said = error.detail();
        ensure!(
            said.contains(&format!("b.example: its authorization is {state}")),
            "{said}"
        );
        assert_eq!(error.is_failed_validation(), state == "invalid", "{said}");
        assert_eq!(error.class(), Class::FixIt, "{said}");
    }
    Ok(())
}

/// What cannot be looked at may be what the CA has tried.
#[tokio::test]
async fn an_authorization_that_has_ended_beside_one_that_cannot_be_read_is_a_failed_validation()
-> Result<()> {
    for (number, of_order) in ["invalid", "pending"].into_iter().enumerate() {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        NUMBER.store(number, Ordering::SeqCst);
        let (client, _) = scripted(|path, count, base| {
            let of_order = ["invalid", "pending"][NUMBER.load(Ordering::SeqCst)];
            match path {
                "/order" => Some((200, order(base, of_order, &["/authz/1", "/authz/2"]))),
                "/authz/1" if count > 0 => Some((500, json!({}))),
                "/authz/2" if count > 0 => {
                    Some((200, authz(base, "b.example", "expired", json!([]))))
                }
                _ => None,
            }
        })
        .await?;
        let mut order = told(&client).await?;
        let error = order
            .wait_validated(Instant::now() + PATIENCE, |_| {})
            .await
            .unwrap_err();
        ensure!(error.is_failed_validation(), "{of_order}: {error}");
    }
    Ok(())
}

/// What has only ended beside it is not counted, and so not named.
#[tokio::test]
async fn of_names_that_end_together_those_are_named_that_the_ca_has_looked_at() -> Result<()> {
    let (client, _) = scripted(|path, count, base| match path {
        "/order" => Some((200, order(base, "invalid", &["/authz/1", "/authz/2"]))),
        "/authz/1" if count > 0 => Some((200, authz(base, "a.example", "deactivated", json!([])))),
        "/authz/2" if count > 0 => Some((200, authz(base, "b.example", "invalid", json!([])))),
        _ => None,
    })
    .await?;
    let mut order = told(&client).await?;
    let error = order
        .wait_validated(Instant::now() + PATIENCE, |_| {})
        .await
        .unwrap_err();
    let said = error.detail();
    ensure!(error.is_failed_validation(), "{said}");
    ensure!(
        said.contains("b.example") && !said.contains("a.example"),
        "{said}"
    );
    Ok(())
}

const REFUSED: &str =
    r#"{"type": "urn:ietf:params:acme:error:connection", "detail": "connection refused"}"#;

#[tokio::test]
async fn a_challenge_that_the_ca_would_look_at_again_is_posted_again() -> Result<()> {
    // The CA is satisfied once it was asked twice.
    static POSTED: AtomicUsize = AtomicUsize::new(0);
    let (client, ca) = scripted(|path, count, base| match path {
        "/challenge" => {
            POSTED.store(count + 1, Ordering::SeqCst);
            None
        }
        "/authz/2" if count > 0 => Some((200, pending(base))),
        "/order" => {
            let status = if POSTED.load(Ordering::SeqCst) > 1 {
                "ready"
            } else {
                "pending"
            };
            Some((200, order(base, status, &["/authz/1", "/authz/2"])))
        }
        _ => None,
    })
    .await?;
    let mut order = told(&client).await?;
    order
        .wait_validated(Instant::now() + PATIENCE, |_| {})
        .await?;
    assert_eq!(ca.count("/challenge"), 2);
    Ok(())
}

#[tokio::test]
async fn a_challenge_is_not_posted_again_without_permission() -> Result<()> {
    let (client, ca) = scripted(|path, count, base| match path {
        "/authz/2" if count > 0 => Some((200, pending(base))),
        "/order" => Some((200, order(base, "pending", &["/authz/1", "/authz/2"]))),
        _ => None,
    })
    .await?;
    let mut order = told(&client).await?;
    let may_not = || async { Err("it is gone") };
    let deadline = Instant::now() + PATIENCE;
    let refused = order.wait_validated_if(deadline, |_| {}, may_not).await;
    ensure!(
        matches!(refused, Err(RequestError::Refused("it is gone"))),
        "{refused:?}"
    );
    assert_eq!(ca.count("/challenge"), 1, "the one that reported it");
    Ok(())
}

#[tokio::test]
async fn what_the_ca_says_of_a_pending_challenge_is_told() -> Result<()> {
    let (client, ca) = scripted(|path, count, base| match path {
        "/authz/2" if count > 0 => Some((200, pending(base))),
        "/order" => Some((200, order(base, "pending", &["/authz/1", "/authz/2"]))),
        _ => None,
    })
    .await?;
    let mut order = told(&client).await?;
    // Before the last of its looks the deadline comes.
    let deadline = Instant::now() + Duration::from_secs(15);
    let error = order.wait_validated(deadline, |_| {}).await.unwrap_err();
    let said = error.detail();
    ensure!(
        said.contains("b.example: connection refused (connection)"),
        "{said}"
    );
    assert_eq!(
        ca.count("/challenge"),
        2,
        "told once, and asked to look again once"
    );
    Ok(())
}

#[tokio::test]
async fn an_alternate_chain_that_is_not_there_is_passed_over() -> Result<()> {
    let (client, ca) = scripted(|path, _, base| match path {
        "/new-order" => Some((201, order(base, "valid", &[]))),
        "/certificate" => Some((200, json!("the default chain"))),
        "/alternate" => Some((404, json!({"type": "about:blank", "detail": "not here"}))),
        _ => None,
    })
    .await?;
    let order = client
        .new_order(&["a.example".parse()?], OrderRequest::default())
        .await?;
    let chain = order
        .certificate(&Preference::Root("Wanted".into()))
        .await?;
    assert_eq!(chain, "the default chain");
    assert_eq!(ca.count("/alternate"), 1);
    Ok(())
}

/// Else it would be a day until the next look at the directory.
#[tokio::test]
async fn a_directory_is_fetched_again_where_what_it_names_is_not_there() -> Result<()> {
    let (client, ca) = scripted(|path, count, base| match (path, count) {
        ("/directory", 0) => Some((
            200,
            json!({
                "newNonce": format!("{base}/nonce"), "newAccount": format!("{base}/account"),
                "newOrder": format!("{base}/moved"),
            }),
        )),
        ("/moved", _) => Some((404, json!({"type": "about:blank", "detail": "not here"}))),
        _ => None,
    })
    .await?;
    let names = ["b.example".parse()?];
    let refused = client.new_order(&names, OrderRequest::default()).await;
    ensure!(refused.is_err(), "there is an order");
    client.new_order(&names, OrderRequest::default()).await?;
    assert_eq!(ca.count("/directory"), 2);
    Ok(())
}

#[tokio::test]
async fn a_ca_that_takes_no_reason_is_asked_to_revoke_without_one() -> Result<()> {
    let (client, ca) = scripted(|path, count, _| match (path, count) {
        ("/revoke", 0) => {
            let kind = "urn:ietf:params:acme:error:badRevocationReason";
            Some((400, json!({"type": kind, "detail": "no reasons here"})))
        }
        _ => None,
    })
    .await?;
    client
        .revoke(b"certificate", RevocationReason::KeyCompromise)
        .await?;
    assert_eq!(ca.count("/revoke"), 2);
    Ok(())
}

/// A CA that takes accounts with RSA keys only says so by a list (Dogtag: pki #4638, acme.sh #5277).
#[tokio::test]
async fn a_refusal_of_an_order_is_no_failed_validation_and_the_algorithms_are_named() -> Result<()>
{
    for (kind, said) in [
        ("Verification failed: key", ""),
        ("urn:ietf:params:acme:error:unauthorized", ""),
        (
            "urn:ietf:params:acme:error:badSignatureAlgorithm",
            "RS256, RS512",
        ),
    ] {
        static KIND: std::sync::Mutex<String> = std::sync::Mutex::new(String::new());
        if let Ok(mut current) = KIND.lock() {
            kind.clone_into(&mut current);
        }
        let (client, _) = scripted(|path, _, _| {
            let kind = KIND.lock().map(|kind| kind.clone()).unwrap_or_default();
            (path == "/new-order").then(|| {
                (
                    403,
                    json!({"type": kind, "detail": "no", "algorithms": ["RS256", "RS512"]}),
                )
            })
        })
        .await?;
        let error = client
            .new_order(&["a.example".parse()?], OrderRequest::default())
            .await
            .unwrap_err();
        ensure!(!error.is_failed_validation(), "{kind}: {error}");
        ensure!(
            error.may_be_the_key() || kind.contains("Algorithm"),
            "{kind}: {error}"
        );
        ensure!(error.detail().contains(said), "{kind}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_not_base64url_is_refused() -> Result<()> {
    let (client, _) = scripted(|path, _, base| {
        let with = |token: &str| json!({"type": "http-01", "url": base, "status": "pending", "token": token});
        let all = json!([with("good-_Token1"), with(""), with("a/b"), with("a b"), with("}; proxy_pass x;"),
            with("ü"), with(&"x".repeat(257))]);
        (path == "/authz/2").then(|| (200, authz(base, "b.example", "pending", all)))
    })
    .await?;
    let names = ["b.example".parse()?];
    let mut order = client.new_order(&names, OrderRequest::default()).await?;
    let authorizations = order.authorizations().await?;
    let challenges = &authorizations
        .first()
        .context("none is pending")?
        .challenges;
    let sound: Vec<bool> = challenges.iter().map(|it| it.has_sound_token()).collect();
    assert_eq!(sound, [true, false, false, false, false, false, false]);
    Ok(())
}

//! The ACME client against answers that no real CA gives on demand.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::routing::{get, post};
use cert_renew::acme::{
    CertId, Class, Client, Credentials, IssuerSettings, OrderRequest, OrderStatus, RateLimiter,
    RequestError, Scope,
};
use cert_renew::process::permit::Look;
use cert_renew::process::write_gate::WriteGate;
use cert_renew_core::time::UnixTime;
use futures::StreamExt as _;
use serde_json::json;
use test_bench::Result;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// An issuer whose CA answers `routes`.
async fn client(routes: Router) -> Result<Client> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let directory = format!(
        r#"{{"newNonce": "http://{address}/nonce", "newAccount": "http://{address}/account",
             "newOrder": "http://{address}/order", "renewalInfo": "http://{address}/ari"}}"#
    );
    let routes = routes.route("/directory", get(|| async { directory }));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    client_at(format!("http://{address}/directory"))
}

/// An issuer whose CA has its directory there.
pub(crate) fn client_at(directory: String) -> Result<Client> {
    let settings = IssuerSettings {
        name: "fake".into(),
        directory,
        contact: Vec::new(),
        ca_bundle: None,
        eab: None,
        concurrency: 2,
        rate_limiter: RateLimiter::default(),
    };
    Ok(Client::new(settings, Arc::new(|_| {}), WriteGate::open())?)
}

fn certificate() -> CertId {
    CertId::new(b"issuer", b"serial")
}

#[tokio::test]
async fn a_maintenance_page_keeps_its_status_and_retry_after() -> Result<()> {
    let page = || async {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            [("Retry-After", "120")],
            "<html>back soon</html>",
        )
    };
    let client = client(Router::new().route("/nonce", get(page))).await?;
    let now = UnixTime::now();
    let fresh = Credentials::generate(&client.settings().directory)?;
    let error = client.register(&fresh).await.unwrap_err();
    let Class::RateLimited {
        until,
        scope: Scope::Issuer,
    } = error.class()
    else {
        panic!("{error}: {:?}", error.class());
    };
    assert!((120..=123).contains(&until.since(now).as_secs()), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_body_without_end_is_cut() -> Result<()> {
    let endless = || async {
        Body::from_stream(futures::stream::repeat(Ok::<_, std::convert::Infallible>(
            Bytes::from_static(&[b' '; 4096]),
        )))
    };
    let client = client(Router::new().route("/ari/{id}", get(endless))).await?;
    let poll = client
        .renewal_info(&certificate(), 0, UnixTime::now())
        .await?;
    let trouble = format!("{:?}", poll.and_then(|poll| poll.trouble));
    assert!(trouble.contains("1 MiB"), "{trouble}");
    Ok(())
}

#[tokio::test]
async fn redirects_are_followed_within_the_scheme_and_not_for_ever() -> Result<()> {
    let to = |target: &'static str| {
        get(move || async move { (StatusCode::FOUND, [("Location", target)]) })
    };
    let window =
        r#"{"suggestedWindow": {"start": "2030-01-01T00:00:00Z", "end": "2030-01-02T00:00:00Z"}}"#;
    let moved = Router::new().route("/ari/{id}", to("/moved")).route(
        "/moved",
        get(move || async move { ([("Retry-After", "3600")], window) }),
    );
    let poll = client(moved)
        .await?
        .renewal_info(&certificate(), 0, UnixTime::now())
        .await?;
    assert!(poll.is_some_and(|poll| poll.window.is_some()));

    for target in [
        "/ari/again",
        "https://127.0.0.1:1/ari",
        "http://ca.example/ari",
        "ftp://127.0.0.1/",
    ] {
        let client = client(Router::new().route("/ari/{id}", to(target))).await?;
        let poll = client
            .renewal_info(&certificate(), 0, UnixTime::now())
            .await?;
        assert!(
            poll.is_some_and(|poll| poll.window.is_none() && poll.trouble.is_some()),
            "{target}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_the_issuer_allows() -> Result<()> {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let highest = Arc::clone(&most);
    let slow = move || {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            StatusCode::NOT_FOUND
        }
    };
    let client = client(Router::new().route("/ari/{id}", get(slow))).await?;
    let ask = |_| async {
        client
            .renewal_info(&certificate(), 0, UnixTime::now())
            .await
            .is_ok()
    };
    let asked = futures::stream::iter(0..20)
        .map(ask)
        .buffer_unordered(20)
        .collect::<Vec<_>>()
        .await;
    assert!(asked.into_iter().all(|it| it));
    assert_eq!(highest.load(Ordering::SeqCst), 2);
    Ok(())
}

#[tokio::test]
async fn every_request_names_the_program() -> Result<()> {
    let echo = |headers: HeaderMap| async move {
        let agent = headers
            .get("user-agent")
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default();
        format!(r#"{{"explanationURL": "{agent}"}}"#)
    };
    let client = client(Router::new().route("/ari/{id}", get(echo))).await?;
    let poll = client
        .renewal_info(&certificate(), 0, UnixTime::now())
        .await?;
    let agent = poll.and_then(|poll| poll.explanation);
    assert_eq!(
        agent.as_deref(),
        Some(concat!("cert-renew/", env!("CARGO_PKG_VERSION")))
    );
    Ok(())
}

/// Status, Retry-After and body of an answer to a signed request.
type Step = (u16, Option<&'static str>, &'static str);

const PENDING: &str = r#"{"status": "pending", "finalize": "http://127.0.0.1/f"}"#;
const READY: &str = r#"{"status": "ready", "finalize": "http://127.0.0.1/f"}"#;
const BAD_NONCE: &str = r#"{"type": "urn:ietf:params:acme:error:badNonce"}"#;
const LIMITED: &str =
    r#"{"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many new orders"}"#;

/// An issuer whose CA answers signed requests in this order, after the one for the account.
/// With it the number of requests that were answered.
async fn scripted(steps: &'static [Step]) -> Result<(Client, Arc<AtomicUsize>)> {
    let count = Arc::new(AtomicUsize::new(0));
    let answered = Arc::clone(&count);
    let signed = move || {
        let step = steps.get(answered.fetch_add(1, Ordering::SeqCst)).copied();
        async move {
            let (status, retry_after, body) = step.unwrap_or((500, None, "the script has ended"));
            let mut headers = HeaderMap::new();
            headers.insert("replay-nonce", HeaderValue::from_static("nonce"));
            headers.insert("location", HeaderValue::from_static("/order"));
            if let Some(retry_after) = retry_after {
                headers.insert("retry-after", HeaderValue::from_static(retry_after));
            }
            (
                StatusCode::from_u16(status).unwrap_or_default(),
                headers,
                body,
            )
        }
    };
    let with_nonce = || async { [("replay-nonce", "nonce")] };
    let account = || async { (StatusCode::CREATED, [("location", "/account/1")], "{}") };
    let routes = Router::new()
        .route("/nonce", get(with_nonce))
        .route("/account", post(account))
        .route("/order", post(signed));
    let client = client(routes).await?;
    client
        .register(&Credentials::generate(&client.settings().directory)?)
        .await?;
    Ok((client, count))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[tokio::test]
async fn polls_outlast_trouble_and_keep_to_retry_after() -> Result<()> {
    let (client, _) = scripted(&[
        (201, None, PENDING),
        (502, None, "<html>bad gateway</html>"),
        (200, Some("1"), PENDING),
        (200, None, READY),
    ])
    .await?;
    let started = Instant::now();
    let mut order = client.new_order(&[], OrderRequest::default()).await?;
    order.wait_validated(soon(), |_| {}).await?;
    assert_eq!(order.status(), OrderStatus::Ready);
    assert!(
        started.elapsed() >= Duration::from_millis(1_300),
        "{:?}",
        started.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn a_retry_after_beyond_the_deadline_is_handed_to_the_caller() -> Result<()> {
    let (client, count) = scripted(&[(201, Some("3600"), PENDING)]).await?;
    let mut order = client.new_order(&[], OrderRequest::default()).await?;
    let (started, now) = (Instant::now(), UnixTime::now());
    let error = order.wait_validated(soon(), |_| {}).await.unwrap_err();
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "it waited all the same"
    );
    let wait = error.retry_after().map(|until| until.since(now).as_secs());
    assert!(
        wait.is_some_and(|wait| (3_600..3_604).contains(&wait)),
        "{error}"
    );
    assert_eq!(count.load(Ordering::SeqCst), 1);
    Ok(())
}

#[tokio::test]
async fn a_limit_is_not_asked_again_and_a_rejected_nonce_is_ten_times() -> Result<()> {
    let (client, count) = scripted(&[(429, Some("5"), LIMITED)]).await?;
    let replaced = certificate();
    let error = client
        .new_order(
            &[],
            OrderRequest {
                replaces: Some(&replaced),
                ..OrderRequest::default()
            },
        )
        .await
        .unwrap_err();
    assert!(
        matches!(error.class(), Class::RateLimited { .. }),
        "{error}"
    );
    assert_eq!(count.load(Ordering::SeqCst), 1, "not even without replaces");

    let (client, count) = scripted(&[(400, None, BAD_NONCE); 20]).await?;
    let error = client
        .new_order(&[], OrderRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason(), error.class()),
        ("BadNonce", Class::Transient)
    );
    assert_eq!(count.load(Ordering::SeqCst), 10);
    Ok(())
}

/// Least time between two requests of which one is sent in a second, less that by which the first may be late.
const APART: Duration = Duration::from_millis(250);

#[tokio::test]
async fn permission_for_a_request_is_asked_after_its_last_wait_each_time_it_is_sent() -> Result<()>
{
    let told: Arc<Mutex<Vec<(&str, Instant)>>> = Arc::default();
    let tell = {
        let told = Arc::clone(&told);
        move |what| told.lock().unwrap().push((what, Instant::now()))
    };
    let take = || -> (Vec<&str>, Vec<Instant>) { told.lock().unwrap().drain(..).unzip() };
    let nonce = {
        let tell = tell.clone();
        move || {
            tell("nonce");
            async { [("replay-nonce", "nonce")] }
        }
    };
    let count = Arc::new(AtomicUsize::new(0));
    let order = {
        let tell = tell.clone();
        move |headers: HeaderMap| {
            tell("order");
            let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                let location = [("location", "/order")];
                if is_first {
                    (StatusCode::BAD_REQUEST, location, BAD_NONCE.to_owned())
                } else {
                    let host = headers.get("host").and_then(|it| it.to_str().ok());
                    let host = host.unwrap_or_default();
                    let body = json!({
                        "status": "pending", "authorizations": [format!("http://{host}/proof")],
                        "finalize": format!("http://{host}/finalize"),
                    });
                    (StatusCode::CREATED, location, body.to_string())
                }
            }
        }
    };
    let proof = |headers: HeaderMap| async move {
        let host = headers.get("host").and_then(|it| it.to_str().ok());
        let url = format!("http://{}/challenge", host.unwrap_or_default());
        let offered = json!([{"type": "http-01", "url": url, "token": "token"}]);
        json!({"status": "pending", "challenges": offered}).to_string()
    };
    let challenge = {
        let tell = tell.clone();
        move || {
            tell("challenge");
            async { "{}" }
        }
    };
    let finalize = {
        let tell = tell.clone();
        move || {
            tell("finalize");
            async { r#"{"status": "processing"}"# }
        }
    };
    let account = || async { (StatusCode::CREATED, [("location", "/account/1")], "{}") };
    let routes = Router::new()
        .route("/nonce", get(nonce))
        .route("/account", post(account))
        .route("/order", post(order))
        .route("/proof", post(proof))
        .route("/challenge", post(challenge))
        .route("/finalize", post(finalize));
    let settings = IssuerSettings {
        rate_limiter: RateLimiter::default().per_second(1),
        ..client(routes).await?.settings().clone()
    };
    let client = Client::new(settings, Arc::new(|_| {}), WriteGate::open())?;
    client
        .register(&Credentials::generate(&client.settings().directory)?)
        .await?;
    take();
    let may = || async {
        let began = Instant::now();
        tell("look");
        let (look, ()) = Look::take(async { Ok::<_, &str>(()) }).await?;
        Look::permit([&look], began, ()).ok_or("late")
    };
    let request = OrderRequest::default();
    let mut made = client.new_order_if(&[], request, may).await.unwrap();
    let (what, when) = take();
    assert_eq!(
        what,
        ["nonce", "look", "order", "nonce", "look", "order"],
        "the wait for the nonce comes before, and a rejected one needs another look"
    );
    for two in [0, 3] {
        let waited = when[two + 1] - when[two];
        assert!(waited >= APART, "the rate limit too: {waited:?}");
    }
    let may_not = || async { Err("it is gone") };
    let refused = client.new_order_if(&[], request, may_not).await;
    assert!(
        matches!(refused, Err(RequestError::Refused("it is gone"))),
        "{refused:?}"
    );
    assert_eq!(take().0, ["nonce"], "nothing is ordered");
    let pending = made.authorizations().await?;
    let offered = &pending[0].challenges[0];
    take();
    let refused = made.set_ready_if(offered, may_not).await;
    assert!(
        matches!(refused, Err(RequestError::Refused("it is gone"))),
        "{refused:?}"
    );
    assert_eq!(take().0, ["nonce"], "nothing is validated");
    made.set_ready_if(offered, may).await.unwrap();
    assert_eq!(take().0, ["nonce", "look", "challenge"]);
    let refused = made.finalize_if(b"request", may_not).await;
    assert!(
        matches!(refused, Err(RequestError::Refused("it is gone"))),
        "{refused:?}"
    );
    assert_eq!(take().0, ["nonce"], "nothing is issued");
    made.finalize_if(b"request", may).await.unwrap();
    assert_eq!(take().0, ["nonce", "look", "finalize"]);
    Ok(())
}

//! DNS-01 by acme-dns: a stand-in with the answers of the real one, whose records a real DNS server serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use dns_update::{DnsRecord, DnsRecordType};
use serde_json::{Value, json};
use test_bench::objects::Space;
use test_bench::{Bench, Context as _, Nameserver, Result, Zone, ensure, eventually};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::dns01::{operator_by, pebble, updater, values};
use crate::renewal::{SOON, annotation, leaf, renewed};

const USER: &str = "eabcdb41-d89f-4580-826f-3e62e9755ef2";
const PASSWORD: &str = "pbAXVjlIOE01xbut7YnAbkhMQIkcwoHO0ek2j4Q0";
const SUBDOMAIN: &str = "d420c923";
const ZONE: &str = "box.example";
/// Long enough for another change to come meanwhile.
const SLOW: Duration = Duration::from_millis(500);

/// Keeps the last two values of the one account, as acme-dns does, and takes what looks like a challenge only.
/// Takes its time, and counts the changes that it is asked for at once.
async fn acme_dns(server: SocketAddr) -> Result<(SocketAddr, Arc<AtomicUsize>)> {
    let updater = updater(server)?;
    let kept = Arc::new(Mutex::new(Vec::<String>::new()));
    let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let update = move |headers: HeaderMap, body: String| async move {
        let now = under_way.fetch_add(1, Ordering::Relaxed) + 1;
        seen.fetch_max(now, Ordering::Relaxed);
        tokio::time::sleep(SLOW).await;
        under_way.fetch_sub(1, Ordering::Relaxed);
        let is = |name: &str, expected: &str| headers.get(name).is_some_and(|it| it == expected);
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        let known = is("x-api-user", USER) && is("x-api-key", PASSWORD);
        if !known || body["subdomain"] != SUBDOMAIN {
            let said = json!({"error": "forbidden"});
            return (StatusCode::UNAUTHORIZED, said.to_string());
        }
        let value = body["txt"].as_str().unwrap_or_default().to_owned();
        if value.len() != 43 {
            return (
                StatusCode::BAD_REQUEST,
                json!({"error": "bad_txt"}).to_string(),
            );
        }
        let mut kept = kept.lock().await;
        kept.push(value.clone());
        let oldest = kept.len().saturating_sub(2);
        let gone: Vec<String> = kept.drain(..oldest).collect();
        let name = || format!("{SUBDOMAIN}.{ZONE}");
        let kind = DnsRecordType::TXT;
        for value in gone {
            let records = vec![DnsRecord::TXT(value)];
            let _ = updater.remove_from_rrset(name(), kind, records, ZONE).await;
        }
        let records = vec![DnsRecord::TXT(value.clone())];
        match updater.add_to_rrset(name(), kind, 1, records, ZONE).await {
            Ok(()) => (StatusCode::OK, json!({"txt": value}).to_string()),
            Err(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                json!({"error": "db_error"}).to_string(),
            ),
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/update", post(update));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((address, most))
}

#[tokio::test]
async fn acme_dns_proves_apex_and_wildcard_one_after_the_other_and_no_name_that_is_covered()
-> Result<()> {
    let bench = Bench::shared().await?;
    let address = Nameserver::address_of_its_own()?;
    let mut zone = Zone::new(ZONE);
    zone.records = format!("_acme-challenge CNAME {SUBDOMAIN}.{ZONE}.\n");
    let _server = Nameserver::start(bench, "knot-box", address, &[zone]).await?;
    let pebble = pebble(bench, "pebble-box", address).await?;
    let (host, most) = acme_dns(address).await?;
    let provider = format!("provider: acme-dns, settings: {{server: \"http://{host}\"}}");
    let account = |password: &str| {
        let account = json!({"username": USER, "password": password, "subdomain": SUBDOMAIN,
            "fulldomain": format!("{SUBDOMAIN}.{ZONE}"), "allowfrom": []});
        json!({ZONE: account}).to_string()
    };
    let (right, wrong) = (account(PASSWORD), account("another-password-that-is-wrong"));
    let credentials = ("acmedns.json", &*right);
    let operator = operator_by(bench, &pebble, &[address], address, &provider, credentials).await?;
    let space = Space::new(bench.client()?, "box", operator.namespace()).await?;
    let apex = [("issuer", "pebble"), ("names", "box.example")];
    let names = "*.box.example, www.box.example";
    let wild = [("issuer", "pebble"), ("names", names)];
    // Both are proven at one place, and at the same time.
    space.tls_secret("apex", None, &apex).await?;
    space.tls_secret("wild", None, &wild).await?;
    renewed(&space, "apex", "").await?;
    let found = leaf(&renewed(&space, "wild", "").await?)?.names;
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["*.box.example"], "CAs refuse the redundant");
    assert_eq!(most.load(Ordering::Relaxed), 1, "changes at once");
    let left = values(address, &format!("{SUBDOMAIN}.{ZONE}")).await?;
    ensure!(left.len() == 2, "{left:?}");
    // What the wildcard serves is not missing.
    let log = operator.log()?;
    assert_eq!(log.matches("\"message\":\"ordered\"").count(), 2);

    let credentials = ("acmedns.json", &*wrong);
    let operator = operator_by(bench, &pebble, &[address], address, &provider, credentials).await?;
    let space = Space::new(bench.client()?, "box", operator.namespace()).await?;
    space.tls_secret("refused", None, &apex).await?;
    eventually(SOON, "the refusal is told", async || {
        let secret = space.secrets().get("refused").await?;
        let said = annotation(&secret, "state.cert-renew.io/last-error");
        let said = said.context("no error yet")?;
        ensure!(said.contains("401") && said.contains("forbidden"), "{said}");
        Ok(())
    })
    .await?;
    assert!(
        !operator.log()?.contains("another-password"),
        "the password is in the log"
    );
    Ok(())
}

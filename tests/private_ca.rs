//! A scripted CA that really issues: for what private CAs do and Pebble does not.
//!
//! It asks for no proof, and looks at no signature.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use cert_renew_core::time::UnixTime;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PublicKeyData, SignatureAlgorithm,
};
use serde_json::{Value, json};
use test_bench::{Context as _, Result};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use x509_cert::der::Decode as _;

/// What becomes of the end that an order asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetimes {
    /// The certificate has it.
    Kept,
    /// It is passed over.
    Ignored,
    /// The order is refused, as Let's Encrypt does.
    RefusedAtOnce,
    /// The order is made, and its certificate not issued, as step-ca does.
    RefusedAtTheEnd,
}

/// How the CA behaves; it may change while it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    /// See there.
    pub(crate) lifetimes: Lifetimes,
    /// How long a certificate is valid where nothing is asked for, in seconds.
    pub(crate) lifetime: i64,
    /// What a new order is: `ready`, or `pending` until it is looked at again.
    pub(crate) status: &'static str,
    /// Whether a request has to name a common name.
    pub(crate) common_name: bool,
    /// Whether certificates are for clients too.
    pub(crate) for_clients: bool,
    /// In how many seconds its own certificate ends; it is made again with the same key at each issue.
    pub(crate) own_end: Option<i64>,
    /// What it hands out for a leaf and its own certificate, both PEM.
    pub(crate) chain: fn(&str, &str) -> String,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            lifetimes: Lifetimes::Kept,
            lifetime: 90 * 86_400,
            status: "ready",
            common_name: false,
            for_clients: false,
            own_end: None,
            chain: |leaf, ca| format!("{leaf}{ca}"),
        }
    }
}

/// An order as it was made.
#[derive(Clone, Default)]
struct Made {
    names: Vec<String>,
    not_after: Option<String>,
    chain: Option<String>,
}

struct Ca {
    base: String,
    manners: Mutex<Manners>,
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    params: CertificateParams,
    orders: Mutex<Vec<Made>>,
    /// Requests for anything that proves a name.
    proofs: AtomicUsize,
}

/// A running CA.
pub(crate) struct PrivateCa(Arc<Ca>);

/// The key of a certificate request.
struct Requested(Vec<u8>);

impl PublicKeyData for Requested {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl PrivateCa {
    /// Starts one whose certificate has this name.
    pub(crate) async fn start(name: &str, manners: Manners) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let ca = Arc::new(Ca {
            base: format!("http://{}", listener.local_addr()?),
            manners: Mutex::new(manners),
            issuer: Issuer::new(params.clone(), key),
            params,
            orders: Mutex::default(),
            proofs: AtomicUsize::default(),
        });
        let router = Router::new().fallback(respond).with_state(Arc::clone(&ca));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self(ca))
    }

    pub(crate) fn directory(&self) -> String {
        format!("{}/directory", self.0.base)
    }

    /// From now on.
    pub(crate) fn change(&self, change: impl Fn(&mut Manners)) {
        change(&mut lock(&self.0.manners));
    }

    /// How many orders were made.
    pub(crate) fn orders(&self) -> usize {
        lock(&self.0.orders).len()
    }

    /// How many certificates were issued.
    pub(crate) fn issued(&self) -> usize {
        let orders = lock(&self.0.orders);
        orders.iter().filter(|made| made.chain.is_some()).count()
    }

    /// How often it was asked for a challenge.
    pub(crate) fn proofs(&self) -> usize {
        self.0.proofs.load(Ordering::SeqCst)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn problem(status: u16, kind: &str, detail: &str) -> (u16, Value) {
    let kind = format!("urn:ietf:params:acme:error:{kind}");
    (status, json!({"type": kind, "detail": detail}))
}

/// What a signed request says.
fn payload(body: &[u8]) -> Option<Value> {
    let signed: Value = serde_json::from_slice(body).ok()?;
    let payload = BASE64.decode(signed.get("payload")?.as_str()?).ok()?;
    serde_json::from_slice(&payload).ok()
}

impl Ca {
    fn order(&self, number: usize, status: &str) -> Value {
        let base = &self.base;
        let made = lock(&self.orders).get(number).cloned().unwrap_or_default();
        let names = made.names.iter();
        let identifiers: Vec<Value> = names
            .map(|name| json!({"type": "dns", "value": name}))
            .collect();
        let mut order = json!({
            "status": status, "expires": "2099-01-01T00:00:00Z", "identifiers": identifiers,
            "authorizations": [format!("{base}/authz/{number}")], "finalize": format!("{base}/finalize/{number}"),
        });
        if made.chain.is_some() {
            order["status"] = "valid".into();
            order["certificate"] = format!("{base}/certificate/{number}").into();
        }
        order
    }

    fn made(&self, asked: &Value) -> (u16, Value) {
        let manners = *lock(&self.manners);
        let names = asked["identifiers"].as_array().into_iter().flatten();
        let names = names.filter_map(|it| Some(it["value"].as_str()?.to_owned()));
        let not_after = asked["notAfter"].as_str().map(ToOwned::to_owned);
        if not_after.is_some() && manners.lifetimes == Lifetimes::RefusedAtOnce {
            let why = "NotBefore and NotAfter are not supported";
            return problem(400, "malformed", why);
        }
        let number = {
            let mut orders = lock(&self.orders);
            orders.push(Made {
                names: names.collect(),
                not_after,
                chain: None,
            });
            orders.len() - 1
        };
        (201, self.order(number, manners.status))
    }

    fn issue(&self, number: usize, asked: &Value) -> Result<(u16, Value)> {
        let manners = *lock(&self.manners);
        let made = lock(&self.orders).get(number).cloned();
        let made = made.context("no such order")?;
        let asked_for = made.not_after.as_deref();
        if asked_for.is_some() && manners.lifetimes == Lifetimes::RefusedAtTheEnd {
            return Ok(problem(
                500,
                "serverInternal",
                "The server experienced an internal error",
            ));
        }
        let request = BASE64.decode(asked["csr"].as_str().context("no csr")?)?;
        let request = x509_cert::request::CertReq::from_der(&request)?;
        if manners.common_name && request.info.subject.is_empty() {
            return Ok(problem(400, "badCSR", "the subject needs a common name"));
        }
        let key = request.info.public_key.subject_public_key.raw_bytes();
        let now = UnixTime::now();
        let kept = asked_for.filter(|_| manners.lifetimes == Lifetimes::Kept);
        let end = match kept {
            Some(end) => end.parse::<UnixTime>()?.0,
            None => now.0 + manners.lifetime,
        };
        let mut params = CertificateParams::new(made.names)?;
        params.not_before = OffsetDateTime::from_unix_timestamp(now.0 - 60)?;
        params.not_after = OffsetDateTime::from_unix_timestamp(end)?;
        params.use_authority_key_identifier_extension = true;
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
        if manners.for_clients {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        let leaf = params.signed_by(&Requested(key.to_owned()), &self.issuer)?;
        let mut own = self.params.clone();
        if let Some(seconds) = manners.own_end {
            own.not_after = OffsetDateTime::from_unix_timestamp(now.0 + seconds)?;
        }
        let own = own.self_signed(self.issuer.key())?;
        let chain = (manners.chain)(&leaf.pem(), &own.pem());
        if let Some(made) = lock(&self.orders).get_mut(number) {
            made.chain = Some(chain);
        }
        Ok((200, self.order(number, "valid")))
    }

    fn answer(&self, path: &str, asked: &Value) -> (u16, Value) {
        let base = &self.base;
        let (what, number) = path[1..]
            .split_once('/')
            .unwrap_or_else(|| (&path[1..], ""));
        let number: usize = number.parse().unwrap_or_default();
        match what {
            "directory" => (
                200,
                json!({
                    "newNonce": format!("{base}/nonce"), "newAccount": format!("{base}/account"),
                    "newOrder": format!("{base}/new-order"), "revokeCert": format!("{base}/revoke"),
                }),
            ),
            "account" => (201, json!({"status": "valid"})),
            "new-order" => self.made(asked),
            "order" => (200, self.order(number, "ready")),
            // Nothing is left to prove, and no way to prove anything is offered.
            "authz" => {
                let made = lock(&self.orders).get(number).cloned().unwrap_or_default();
                let name = made.names.first();
                (
                    200,
                    json!({"status": "valid", "identifier": {"type": "dns", "value": name}, "challenges": []}),
                )
            }
            "finalize" => self
                .issue(number, asked)
                .unwrap_or_else(|error| problem(400, "badCSR", &error.to_string())),
            "certificate" => {
                let made = lock(&self.orders).get(number).cloned().unwrap_or_default();
                (200, Value::String(made.chain.unwrap_or_default()))
            }
            "challenge" => {
                self.proofs.fetch_add(1, Ordering::SeqCst);
                problem(404, "malformed", "there is none")
            }
            _ => (200, json!({})),
        }
    }
}

async fn respond(State(ca): State<Arc<Ca>>, uri: Uri, body: Bytes) -> Response {
    let (path, base) = (uri.path(), &ca.base);
    let asked = payload(&body).unwrap_or_default();
    let (status, body) = ca.answer(path, &asked);
    let made = lock(&ca.orders).len().saturating_sub(1);
    let location = match path {
        "/account" => format!("{base}/account/1"),
        _ => format!("{base}/order/{made}"),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in [("replay-nonce", "nonce"), ("location", &*location)] {
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

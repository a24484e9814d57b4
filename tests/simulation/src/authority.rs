//! The CA, by RFC 8555 and RFC 9773, with the limits of Let's Encrypt. Signatures of requests are believed; nonces,
//! states, lifetimes and limits are kept to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use axum::body::to_bytes;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use der::Decode as _;
use http::{Method, Request, Response, header};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    SerialNumber, SignatureAlgorithm,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::sleep;
use tower::ServiceExt as _;
use x509_cert::request::CertReq;

use crate::chance::Chance;
use crate::clock;
use crate::objects::timestamp;
use crate::weather::Fate;
use crate::world::{State, World};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;
/// Where everything of the CA is.
const BASE: &str = "https://ca.test";
/// URL of the directory.
pub const DIRECTORY: &str = "https://ca.test/directory";
/// The key identifier of the intermediate.
const AUTHORITY: [u8; 20] = *b"the simulated issuer";

/// Certificates for the same set of names in a week, replacements excepted.
const DUPLICATES: usize = 5;
/// New orders of an account in three hours.
const ORDERS: usize = 300;
/// Failed validations of a name in an hour.
const FAILURES: usize = 5;

/// The CA.
pub struct Authority {
    chance: Chance,
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Seconds that a certificate lasts.
    pub lifetime: i64,
    /// Whether it has renewal information.
    pub has_info: bool,
    /// Whether a validated name stays validated for a month.
    pub reuses: bool,
    nonces: BTreeSet<String>,
    accounts: BTreeMap<String, String>,
    orders: Vec<Order>,
    authorizations: Vec<Authorization>,
    /// All certificates, by number.
    pub issued: Vec<Issued>,
    /// No new order before this instant, as it has told a replica.
    closed: BTreeMap<String, i64>,
    failures: Vec<(i64, String)>,
}

/// A certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Its names, sorted.
    pub names: Vec<String>,
    /// When it begins.
    pub not_before: i64,
    /// When it ends.
    pub not_after: i64,
    /// SHA-256 of it, in hexadecimal.
    pub fingerprint: String,
    /// Its public key.
    pub key: Vec<u8>,
    /// The leaf's PEM block.
    pub leaf: String,
    /// Leaf and intermediate, PEM.
    pub chain: String,
    /// When it was issued.
    pub at: i64,
    /// When its order was made.
    pub ordered: i64,
    /// Whether it replaced another one, as the CA accepted.
    pub replaces: bool,
    /// From when on the CA wants it renewed, if not by the ordinary window.
    pub wanted_back: Option<i64>,
    /// Whether its replacement was ordered.
    replaced: bool,
}

struct Order {
    account: String,
    names: Vec<String>,
    status: &'static str,
    authorizations: Vec<usize>,
    made: i64,
    expires: i64,
    replaces: Option<usize>,
    certificate: Option<usize>,
}

struct Authorization {
    account: String,
    name: String,
    token: String,
    status: &'static str,
    challenge: &'static str,
    until: i64,
}

/// The public key of a certificate request.
struct Requested {
    algorithm: &'static SignatureAlgorithm,
    key: Vec<u8>,
}

impl PublicKeyData for Requested {
    fn der_bytes(&self) -> &[u8] {
        &self.key
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl Authority {
    /// A CA that has issued nothing.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let params = |role: &str| {
            let mut params = CertificateParams::default();
            let mut name = DistinguishedName::new();
            name.push(DnType::CommonName, format!("Simulated {role}"));
            params.distinguished_name = name;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.key_identifier_method = KeyIdMethod::PreSpecified(AUTHORITY.to_vec());
            params
        };
        let key = || KeyPair::generate().unwrap_or_else(|error| panic!("{error}"));
        let root = CertifiedIssuer::self_signed(params("root"), key());
        let root = root.unwrap_or_else(|error| panic!("{error}"));
        let issuer = CertifiedIssuer::signed_by(params("intermediate"), key(), &root);
        Self {
            chance: Chance::new(seed),
            issuer: issuer.unwrap_or_else(|error| panic!("{error}")),
            lifetime: 90 * DAY,
            has_info: true,
            reuses: false,
            nonces: BTreeSet::new(),
            accounts: BTreeMap::new(),
            orders: Vec::new(),
            authorizations: Vec::new(),
            issued: Vec::new(),
            closed: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    /// The certificate in a Secret's `tls.crt`, by number.
    #[must_use]
    pub fn find(&self, chain: &str) -> Option<usize> {
        let leaf = first_block(chain)?;
        self.issued.iter().rposition(|it| it.leaf == leaf)
    }

    /// The certificate with this fingerprint.
    #[must_use]
    pub fn by_fingerprint(&self, fingerprint: &str) -> Option<usize> {
        self.issued
            .iter()
            .rposition(|it| it.fingerprint == fingerprint)
    }

    /// Issues a certificate beside ACME, as it was before the run, and gives its key.
    pub fn give(&mut self, names: &[String], not_before: i64, not_after: i64) -> (usize, String) {
        let key = KeyPair::generate().unwrap_or_else(|error| panic!("{error}"));
        let public = Requested {
            algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
            key: key.der_bytes().to_vec(),
        };
        let number = self.issue(names, &public, (not_before, not_after), not_before, None);
        self.issued[number].at = not_before;
        (number, key.serialize_pem())
    }

    /// Wants all certificates of this number back from now on.
    pub fn wants_back(&mut self, number: usize) {
        self.issued[number].wanted_back = Some(clock::now());
    }

    fn issue(
        &mut self,
        names: &[String],
        key: &Requested,
        (not_before, not_after): (i64, i64),
        ordered: i64,
        replaces: Option<usize>,
    ) -> usize {
        let number = self.issued.len();
        let mut params = CertificateParams::new(names).unwrap_or_else(|error| panic!("{error}"));
        params.distinguished_name = DistinguishedName::new();
        let at = |seconds| {
            OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
        };
        (params.not_before, params.not_after) = (at(not_before), at(not_after));
        let serial = (number as u64 + 1).to_be_bytes();
        params.serial_number = Some(SerialNumber::from(serial.to_vec()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer);
        let leaf = leaf.unwrap_or_else(|error| panic!("{error}"));
        let digest = digest(&SHA256, leaf.der());
        let fingerprint = digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let pem = leaf.pem();
        self.issued.push(Issued {
            names: names.to_vec(),
            not_before,
            not_after,
            fingerprint,
            key: key.key.clone(),
            leaf: first_block(&pem).unwrap_or_default().to_owned(),
            chain: format!("{pem}{}", self.issuer.pem()),
            at: clock::now(),
            ordered,
            replaces: replaces.is_some(),
            wanted_back: None,
            replaced: false,
        });
        number
    }

    /// Until when it has asked a replica for no order.
    #[must_use]
    pub fn closed_for(&self, replica: &str) -> Option<i64> {
        self.closed.get(replica).copied()
    }

    fn nonce(&mut self) -> String {
        let nonce = format!("{:016x}", self.chance.draw());
        self.nonces.insert(nonce.clone());
        nonce
    }

    fn order_body(&self, number: usize) -> Value {
        let order = &self.orders[number];
        let identifiers: Vec<Value> = order
            .names
            .iter()
            .map(|name| json!({"type": "dns", "value": name}))
            .collect();
        let authorizations: Vec<String> = { order.authorizations.iter() }
            .map(|it| format!("{BASE}/authz/{it}"))
            .collect();
        let mut body = json!({
            "status": order.status, "expires": timestamp(order.expires), "identifiers": identifiers,
            "authorizations": authorizations, "finalize": format!("{BASE}/finalize/{number}"),
        });
        if let Some(certificate) = order.certificate.filter(|_| order.status == "valid") {
            body["certificate"] = json!(format!("{BASE}/cert/{certificate}"));
        }
        if let Some(replaced) = order.replaces {
            body["replaces"] = json!(identifier(replaced));
        }
        body
    }

    fn authorization_body(&self, number: usize) -> Value {
        let it = &self.authorizations[number];
        let mut challenge = json!({
            "type": "http-01", "url": format!("{BASE}/challenge/{number}"), "token": it.token, "status": it.challenge,
        });
        if it.challenge == "invalid" {
            challenge["error"] = json!({
                "type": "urn:ietf:params:acme:error:unauthorized", "detail": "the answer was another", "status": 403,
            });
        }
        json!({
            "identifier": {"type": "dns", "value": it.name}, "status": it.status, "expires": timestamp(it.until),
            "challenges": [challenge],
        })
    }

    /// Brings the states of an order up to date.
    fn settle(&mut self, number: usize) {
        let now = clock::now();
        let order = &self.orders[number];
        let states: Vec<&str> = { order.authorizations.iter() }
            .map(|it| self.authorizations[*it].status)
            .collect();
        let order = &mut self.orders[number];
        let over = now > order.expires && matches!(order.status, "pending" | "ready");
        if over
            || order.status == "pending"
                && states.iter().any(|it| !matches!(*it, "pending" | "valid"))
        {
            order.status = "invalid";
        } else if order.status == "pending" && states.iter().all(|it| *it == "valid") {
            order.status = "ready";
        }
    }

    /// Orders that are neither done nor failed.
    #[must_use]
    pub fn open_orders(&mut self) -> usize {
        for number in 0..self.orders.len() {
            self.settle(number);
        }
        let open = |order: &&Order| matches!(order.status, "pending" | "ready" | "processing");
        self.orders.iter().filter(open).count()
    }
}

/// The certificate identifier of RFC 9773, 4.1.
fn identifier(number: usize) -> String {
    // A serial's leading zeros are left out in DER, but for the one that keeps it positive.
    let serial = (number as u64 + 1).to_be_bytes();
    let first = serial.iter().position(|byte| *byte != 0).unwrap_or(7);
    let mut digits = serial[first..].to_vec();
    if digits.first().is_some_and(|byte| *byte >= 0x80) {
        digits.insert(0, 0);
    }
    format!("{}.{}", BASE64.encode(AUTHORITY), BASE64.encode(digits))
}

/// The first PEM block of a text, without what is around it.
#[must_use]
pub fn first_block(text: &str) -> Option<&str> {
    let begin = text.find("-----BEGIN CERTIFICATE-----")?;
    let end = text[begin..].find("-----END CERTIFICATE-----")?;
    Some(text[begin..begin + end].trim_end())
}

/// An answer of the CA.
struct Said {
    code: u16,
    body: Vec<u8>,
    headers: Vec<(header::HeaderName, String)>,
}

impl Said {
    fn json(code: u16, body: &Value) -> Self {
        Self {
            code,
            body: body.to_string().into_bytes(),
            headers: vec![(header::CONTENT_TYPE, "application/json".into())],
        }
    }

    fn problem(code: u16, kind: &str, detail: &str) -> Self {
        let body = json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": code});
        Self {
            headers: vec![(header::CONTENT_TYPE, "application/problem+json".into())],
            ..Self::json(code, &body)
        }
    }

    fn with(mut self, name: header::HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn limited(seconds: i64, detail: &str) -> Self {
        Self::problem(429, "rateLimited", detail).with(header::RETRY_AFTER, seconds.to_string())
    }
}

/// Answers a request of a replica, as far as the weather lets it through.
///
/// # Errors
/// When the request or its answer is lost.
pub async fn answer(
    world: World,
    replica: Arc<str>,
    request: reqwest::Request,
) -> Result<reqwest::Response, reqwest::Error> {
    let (method, path) = (request.method().clone(), request.url().path().to_owned());
    let body = request
        .body()
        .and_then(reqwest::Body::as_bytes)
        .unwrap_or_default();
    let body = Bytes::copy_from_slice(body);
    let (fate, there, back) = {
        let mut now = world.now();
        now.requests.ca += 1;
        (
            now.weather.of_ca(),
            now.weather.way() * 10,
            now.weather.way() * 10,
        )
    };
    if fate != Fate::Fair && world.now().weather.ca_up {
        world.tell(
            &replica,
            format_args!("CA {method} {}: {fate:?}", told(&path)),
        );
    }
    sleep(there).await;
    match fate {
        Fate::LostBefore => return Err(lost()),
        Fate::DiesBefore => return world.die(&replica).await,
        Fate::Late(late) => sleep(late).await,
        Fate::Refused(429) => {
            let seconds = i64::try_from(world.now().chance.between(60, 20_000)).unwrap_or(60);
            let mut now = world.now();
            if path == "/new-order" {
                now.ca
                    .closed
                    .insert(replica.to_string(), clock::now() + seconds);
            }
            let mut said = Said::limited(seconds, "as the weather is");
            if now.planted_is("retry-after") {
                said.headers
                    .retain(|(name, _)| *name != header::RETRY_AFTER);
            }
            return Ok(response(&mut now, said));
        }
        Fate::Refused(code) => {
            let said = Said::problem(code, "serverInternal", "as the weather is");
            return Ok(response(&mut world.now(), said));
        }
        Fate::Fair | Fate::LostAfter | Fate::DiesAfter => {}
    }
    let answer = {
        let mut now = world.now();
        let said = carry_out(&world, &mut now, &replica, &method, &path, &body);
        response(&mut now, said)
    };
    match fate {
        Fate::LostAfter => return Err(lost()),
        Fate::DiesAfter => return world.die(&replica).await,
        _ => {}
    }
    sleep(back).await;
    Ok(answer)
}

/// A path without the certificate's identifier.
fn told(path: &str) -> &str {
    if path.starts_with("/info/") {
        "/info"
    } else {
        path
    }
}

/// The error of a client that gets no answer: one of its own kind cannot be made.
fn lost() -> reqwest::Error {
    let nowhere = Request::builder().uri("/").body("");
    let nowhere = nowhere.unwrap_or_else(|error| panic!("{error}"));
    match reqwest::Request::try_from(nowhere) {
        Ok(_) => panic!("a URL without a host is none"),
        Err(error) => error,
    }
}

fn response(now: &mut State, said: Said) -> reqwest::Response {
    let mut answer = Response::builder()
        .status(said.code)
        .header("replay-nonce", now.ca.nonce());
    for (name, value) in said.headers {
        answer = answer.header(name, value);
    }
    let answer = answer.body(said.body);
    answer.unwrap_or_else(|error| panic!("{error}")).into()
}

fn carry_out(
    world: &World,
    now: &mut State,
    replica: &Arc<str>,
    method: &Method,
    path: &str,
    body: &Bytes,
) -> Said {
    let mut parts = path.trim_matches('/').split('/');
    let (what, number) = (parts.next().unwrap_or_default(), parts.next());
    let number: usize = match (what, number.map(str::parse)) {
        ("info", _) => return info(now, path),
        (_, Some(Ok(number))) => number,
        _ => 0,
    };
    match (method.as_str(), what) {
        ("GET", "directory") => return directory(now),
        ("HEAD", "new-nonce") => return Said::json(200, &Value::Null),
        ("POST", _) => {}
        _ => return Said::problem(405, "malformed", "no such method"),
    }
    let (account, payload) = match signed(&mut now.ca, body) {
        Ok(signed) => signed,
        Err(said) => return said,
    };
    let ca = &mut now.ca;
    match what {
        "new-account" => new_account(ca, &account, &payload),
        "account" => Said::json(200, &json!({"status": "valid"})),
        "new-order" => {
            let replica = replica.to_string();
            let (said, names) = new_order(ca, account, &payload);
            now.ordered(&replica, &names, said.code);
            said
        }
        "order" if number < ca.orders.len() => {
            ca.settle(number);
            let said = Said::json(200, &ca.order_body(number));
            match ca.orders[number].status {
                "processing" => said.with(header::RETRY_AFTER, "3"),
                _ => said,
            }
        }
        "authz" if number < ca.authorizations.len() => {
            if payload["status"] == "deactivated" {
                ca.authorizations[number].status = "deactivated";
            }
            let it = &mut ca.authorizations[number];
            if it.status == "pending" && clock::now() > it.until {
                it.status = "expired";
            }
            Said::json(200, &ca.authorization_body(number))
        }
        "challenge" if number < ca.authorizations.len() => {
            let it = &mut ca.authorizations[number];
            if it.status == "pending" && it.challenge == "pending" {
                it.challenge = "processing";
                tokio::spawn(validate(world.clone(), number));
            }
            let body = ca.authorization_body(number)["challenges"][0].clone();
            let up = format!("<{BASE}/authz/{number}>;rel=\"up\"");
            Said::json(200, &body).with(header::LINK, up)
        }
        "finalize" if number < ca.orders.len() => finalize(world, now, replica, number, &payload),
        "cert" if number < ca.issued.len() => Said {
            code: 200,
            body: ca.issued[number].chain.clone().into_bytes(),
            headers: vec![(
                header::CONTENT_TYPE,
                "application/pem-certificate-chain".into(),
            )],
        },
        _ => Said::problem(404, "malformed", "no such thing"),
    }
}

fn directory(now: &State) -> Said {
    let mut body = json!({
        "newNonce": format!("{BASE}/new-nonce"), "newAccount": format!("{BASE}/new-account"),
        "newOrder": format!("{BASE}/new-order"), "revokeCert": format!("{BASE}/revoke"),
        "keyChange": format!("{BASE}/key-change"), "meta": {},
    });
    if now.ca.has_info {
        body["renewalInfo"] = json!(format!("{BASE}/info"));
    }
    Said::json(200, &body)
}

/// The account or its new key, and the payload of a request whose nonce is good.
fn signed(ca: &mut Authority, body: &Bytes) -> Result<(String, Value), Said> {
    let malformed = || Said::problem(400, "malformed", "no JWS");
    let body: Value = serde_json::from_slice(body).map_err(|_| malformed())?;
    let part = |name: &str| BASE64.decode(body[name].as_str()?).ok();
    let protected = part("protected").ok_or_else(malformed)?;
    let protected: Value = serde_json::from_slice(&protected).map_err(|_| malformed())?;
    let nonce = protected["nonce"].as_str().unwrap_or_default();
    if !ca.nonces.remove(nonce) {
        return Err(Said::problem(400, "badNonce", "used, or never given"));
    }
    let account = match protected["kid"].as_str() {
        Some(kid) if ca.accounts.values().any(|url| url == kid) => kid.to_owned(),
        Some(_) => return Err(Said::problem(400, "accountDoesNotExist", "unknown")),
        None => thumbprint(&protected["jwk"]),
    };
    let payload = part("payload").ok_or_else(malformed)?;
    let payload = match payload.len() {
        0 => Value::Null,
        _ => serde_json::from_slice(&payload).map_err(|_| malformed())?,
    };
    Ok((account, payload))
}

/// RFC 7638.
fn thumbprint(jwk: &Value) -> String {
    let text = |name: &str| jwk[name].as_str().unwrap_or_default().to_owned();
    let (crv, kty, x, y) = (text("crv"), text("kty"), text("x"), text("y"));
    let canonical = format!(r#"{{"crv":"{crv}","kty":"{kty}","x":"{x}","y":"{y}"}}"#);
    BASE64.encode(digest(&SHA256, canonical.as_bytes()))
}

fn new_account(ca: &mut Authority, key: &str, payload: &Value) -> Said {
    let known = ca.accounts.get(key).cloned();
    if known.is_none() && payload["onlyReturnExisting"] == true {
        return Said::problem(400, "accountDoesNotExist", "unknown");
    }
    let code = if known.is_some() { 200 } else { 201 };
    let url = known.unwrap_or_else(|| format!("{BASE}/account/{}", ca.accounts.len()));
    ca.accounts.insert(key.to_owned(), url.clone());
    Said::json(code, &json!({"status": "valid"})).with(header::LOCATION, url)
}

fn new_order(ca: &mut Authority, account: String, payload: &Value) -> (Said, Vec<String>) {
    let now = clock::now();
    let names = payload["identifiers"].as_array().into_iter().flatten();
    let names = names.filter_map(|it| Some(it["value"].as_str()?.to_owned()));
    let names: BTreeSet<String> = names.collect();
    let names: Vec<String> = names.into_iter().collect();
    let replaced = payload["replaces"].as_str();
    let replaced = replaced.and_then(|id| (0..ca.issued.len()).find(|it| identifier(*it) == id));
    if replaced.is_some_and(|it| ca.issued[it].replaced) {
        return (
            Said::problem(409, "alreadyReplaced", "it was replaced"),
            names,
        );
    }
    let of_account = ca.orders.iter().filter(|it| it.account == account);
    let recent = of_account.filter(|it| it.made > now - 3 * HOUR).count();
    if recent >= ORDERS {
        return (Said::limited(HOUR, "too many new orders recently"), names);
    }
    for name in &names {
        let failed = ca
            .failures
            .iter()
            .filter(|(at, of)| *at > now - HOUR && of == name);
        if failed.count() >= FAILURES {
            let detail = format!("too many failed authorizations recently: {name}");
            return (Said::limited(HOUR, &detail), names);
        }
    }
    let same = { ca.issued.iter() }.filter(|it| it.names == names && it.at > now - WEEK);
    let same = same.filter(|it| !it.replaces).count();
    if replaced.is_none() && same >= DUPLICATES {
        return (
            Said::limited(
                DAY,
                "too many certificates for this exact set of identifiers",
            ),
            names,
        );
    }
    let mut authorizations = Vec::new();
    for name in &names {
        let known = ca.authorizations.iter().position(|it| {
            ca.reuses
                && it.account == account
                && it.name == *name
                && it.status == "valid"
                && it.until > now
        });
        authorizations.push(known.unwrap_or_else(|| {
            let token = format!("{:022x}{:016x}", ca.chance.draw(), ca.chance.draw());
            ca.authorizations.push(Authorization {
                account: account.clone(),
                name: name.clone(),
                token,
                status: "pending",
                challenge: "pending",
                until: now + WEEK,
            });
            ca.authorizations.len() - 1
        }));
    }
    if let Some(replaced) = replaced {
        ca.issued[replaced].replaced = true;
    }
    let number = ca.orders.len();
    ca.orders.push(Order {
        account,
        names: names.clone(),
        status: "pending",
        authorizations,
        made: now,
        expires: now + WEEK,
        replaces: replaced,
        certificate: None,
    });
    ca.settle(number);
    let said = Said::json(201, &ca.order_body(number));
    (
        said.with(header::LOCATION, format!("{BASE}/order/{number}")),
        names,
    )
}

/// Fetches a proof, as HTTP-01 has it, from whichever replica the way leads to.
async fn validate(world: World, number: usize) {
    let pause = Duration::from_millis(world.now().ca.chance.between(200, 4_000));
    sleep(pause).await;
    let (token, name, expected, port) = {
        let now = world.now();
        let it = &now.ca.authorizations[number];
        let key = { now.ca.accounts.iter() }.find(|(_, url)| **url == it.account);
        let key = key.map(|(key, _)| key.as_str()).unwrap_or_default();
        let ports: Vec<&axum::Router> = now.ports.values().collect();
        let port = ports.get(number % ports.len().max(1)).copied().cloned();
        (
            it.token.clone(),
            it.name.clone(),
            format!("{}.{key}", it.token),
            port,
        )
    };
    let found = match port {
        None => String::new(),
        Some(port) => {
            let uri = format!("/.well-known/acme-challenge/{token}");
            let request = Request::builder().uri(uri).body(axum::body::Body::empty());
            let request = request.unwrap_or_else(|error| panic!("{error}"));
            let answer = tokio::time::timeout(Duration::from_secs(10), port.oneshot(request)).await;
            match answer {
                Ok(Ok(answer)) => {
                    let bytes = to_bytes(answer.into_body(), 10_000)
                        .await
                        .unwrap_or_default();
                    String::from_utf8_lossy(&bytes).into_owned()
                }
                _ => String::new(),
            }
        }
    };
    let mut now = world.now();
    let at = clock::now();
    let it = &mut now.ca.authorizations[number];
    if it.status != "pending" {
        return;
    }
    let verdict = if found == expected {
        "valid"
    } else {
        "invalid"
    };
    (it.status, it.challenge) = (verdict, verdict);
    if verdict == "valid" {
        it.until = at + 30 * DAY;
    } else {
        now.ca.failures.push((at, name.clone()));
    }
    now.story.tell("ca", format_args!("{name}: {verdict}"));
}

fn finalize(
    world: &World,
    now: &mut State,
    replica: &Arc<str>,
    number: usize,
    payload: &Value,
) -> Said {
    let ca = &mut now.ca;
    ca.settle(number);
    if ca.orders[number].status != "ready" {
        return Said::problem(403, "orderNotReady", ca.orders[number].status);
    }
    let csr = payload["csr"]
        .as_str()
        .and_then(|csr| BASE64.decode(csr).ok());
    let csr = csr.unwrap_or_default();
    let Ok(csr) = CertReq::from_der(&csr) else {
        return Said::problem(400, "badCSR", "it cannot be read");
    };
    let key = csr.info.public_key.subject_public_key.raw_bytes().to_vec();
    let algorithm = match key.len() {
        65 => &rcgen::PKCS_ECDSA_P256_SHA256,
        97 => &rcgen::PKCS_ECDSA_P384_SHA384,
        _ => &rcgen::PKCS_RSA_SHA256,
    };
    let (names, ordered) = (ca.orders[number].names.clone(), ca.orders[number].made);
    let begins = clock::now() - HOUR;
    let (replaces, lasts) = (ca.orders[number].replaces, ca.lifetime);
    let key = Requested { algorithm, key };
    let certificate = ca.issue(&names, &key, (begins, begins + lasts), ordered, replaces);
    let order = &mut ca.orders[number];
    order.certificate = Some(certificate);
    let pause = ca.chance.below(4);
    if pause > 0 {
        order.status = "processing";
        let world = world.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(pause)).await;
            world.now().ca.orders[number].status = "valid";
        });
    } else {
        order.status = "valid";
    }
    let said = Said::json(200, &ca.order_body(number))
        .with(header::LOCATION, format!("{BASE}/order/{number}"));
    now.issued(replica, certificate);
    said
}

/// RFC 9773: the window begins when a third of the lifetime is left.
fn info(now: &mut State, path: &str) -> Said {
    let id = path.trim_start_matches("/info/");
    let number = (0..now.ca.issued.len()).find(|it| identifier(*it) == id);
    let Some(number) = number.filter(|_| now.ca.has_info) else {
        return Said::problem(404, "malformed", "no such certificate");
    };
    let it = &now.ca.issued[number];
    let lifetime = it.not_after - it.not_before;
    let start = it.not_after - lifetime / 3;
    let (start, end) = match it.wanted_back {
        Some(at) => (at - 2 * HOUR, at - HOUR),
        None => (start, start + (lifetime / 45).max(HOUR)),
    };
    let window = json!({"suggestedWindow": {"start": timestamp(start), "end": timestamp(end)}});
    Said::json(200, &window).with(header::RETRY_AFTER, "43200")
}

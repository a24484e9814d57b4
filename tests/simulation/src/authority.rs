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

mod requests;

pub use self::requests::answer;

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
    /// Whether it lists only valid authorizations in an order that is over, and null where there are none, as some do.
    pub forgets: bool,
    /// Whether its validations reach the operator.
    pub reaches: bool,
    nonces: BTreeSet<String>,
    accounts: BTreeMap<String, String>,
    orders: Vec<Order>,
    authorizations: Vec<Authorization>,
    /// Orders, authorizations and certificates before these numbers are forgotten.
    wiped: [usize; 3],
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
            forgets: false,
            reaches: true,
            nonces: BTreeSet::new(),
            accounts: BTreeMap::new(),
            orders: Vec::new(),
            authorizations: Vec::new(),
            wiped: [0; 3],
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

    /// The number of the certificate with this identifier (RFC 9773, 4.1).
    fn identified(&self, id: &str) -> Option<usize> {
        let (_, serial) = id.split_once('.')?;
        let serial = BASE64.decode(serial).ok()?;
        let serial = { serial.iter() }.fold(0_u64, |all, byte| (all << 8) | u64::from(*byte));
        let number = usize::try_from(serial.checked_sub(1)?).ok()?;
        (self.knows("cert", number) && identifier(number) == id).then_some(number)
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

    /// Forgets all accounts, orders and certificates, as one that is set up again with its old key.
    pub fn wipe(&mut self) {
        self.accounts.clear();
        self.nonces.clear();
        let (orders, authorizations) = (self.orders.len(), self.authorizations.len());
        self.wiped = [orders, authorizations, self.issued.len()];
    }

    /// Whether it knows what has this number in a path.
    fn knows(&self, what: &str, number: usize) -> bool {
        let [orders, authorizations, certificates] = self.wiped;
        match what {
            "order" | "finalize" => (orders..self.orders.len()).contains(&number),
            "authz" | "challenge" => (authorizations..self.authorizations.len()).contains(&number),
            "cert" => (certificates..self.issued.len()).contains(&number),
            _ => true,
        }
    }

    /// Wants a certificate replaced at once, from now on.
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
        let is_over = matches!(order.status, "valid" | "invalid");
        let authorizations: Vec<String> = { order.authorizations.iter() }
            .filter(|it| !self.forgets || !is_over || self.authorizations[**it].status == "valid")
            .map(|it| format!("{BASE}/authz/{it}"))
            .collect();
        let mut body = json!({
            "status": order.status, "expires": timestamp(order.expires), "identifiers": identifiers,
            "authorizations": authorizations, "finalize": format!("{BASE}/finalize/{number}"),
        });
        if self.forgets && authorizations.is_empty() {
            body["authorizations"] = Value::Null;
        }
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
        self.orders[self.wiped[0]..].iter().filter(open).count()
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

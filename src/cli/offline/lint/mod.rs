//! `cert-renew check`: the problems of a certificate file or a Secret's manifest, with remedies.
//!
//! Input is the bytes of one file (PEM, one DER, or YAML and JSON manifests of Secrets) and the time.
//! Pure: the caller reads and prints. No finding quotes the input, nor the parser's own message, since a manifest
//! contains keys.

use std::collections::BTreeMap;
use std::error::Error;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cert_renew_core::assess::{EXTERNAL, listed};
use cert_renew_core::certificate::key::{KeyError, PrivateKey};
use cert_renew_core::certificate::loader::{self, Refusal};
use cert_renew_core::certificate::pair::Chain;
use cert_renew_core::certificate::{Leaf, Remark, Unreadable, pem, x509};
use cert_renew_core::secret::data::data_keys::{DataKeys, TLS_TYPE};
use cert_renew_core::secret::keys;
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::object::lenient::{Fill, Shape};
use cert_renew_core::time::{UnixTime, duration};
use serde::de::{DeserializeSeed as _, MapAccess};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

/// Share of the lifetime left at which a certificate should have been renewed: a third, as for renewals.
const LATE: u32 = 3;

/// The severity of a finding; the worst one decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// No problem.
    Note,
    /// It works, or will until something changes.
    Warning,
    /// It does not work.
    Error,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The severity.
    pub severity: Severity,
    /// The place in the file, for example `Secret shop/shop-tls, tls.crt`.
    pub place: String,
    /// What was found.
    pub message: String,
    /// How to fix it; empty for notes.
    pub remedy: String,
}

/// Checks one file.
#[must_use]
pub fn check(bytes: &[u8], now: UnixTime) -> Vec<Finding> {
    let text = str::from_utf8(bytes)
        .ok()
        .filter(|text| looks_like_manifest(text));
    let Some(text) = text else {
        return check_file(bytes, now);
    };
    // The parser's message would show the surrounding lines, which may contain keys.
    let parsed = serde_saphyr::from_multiple::<Manifest>(text);
    let secrets =
        parsed.map(|documents| documents.into_iter().flat_map(secrets).collect::<Vec<_>>());
    match secrets {
        Ok(secrets) if secrets.is_empty() => {
            let remedy = "check takes Secrets, a List of them, or PEM";
            vec![finding(
                Severity::Warning,
                "file",
                "no Secret is in this manifest",
                remedy,
            )]
        }
        Ok(secrets) => secrets
            .into_iter()
            .flat_map(|secret| check_secret(secret, now))
            .collect(),
        Err(error) => {
            let at = error
                .location()
                .map(|at| format!(" at line {}, column {}", at.line(), at.column()));
            let message = format!(
                "the manifest is neither YAML nor JSON{}",
                at.unwrap_or_default()
            );
            vec![finding(
                Severity::Error,
                "file",
                &message,
                "correct the file there",
            )]
        }
    }
}

/// Whether a file holds certificates and no key.
#[must_use]
pub fn holds_certificate_alone(bytes: &[u8]) -> bool {
    Chain::read(bytes).is_ok() && !pem::blocks(bytes).any(|block| block.is_private_key())
}

/// Whether a file holds a key and no certificate.
#[must_use]
pub fn holds_key_alone(bytes: &[u8]) -> bool {
    PrivateKey::from_pem(bytes).is_ok() && Chain::read(bytes).is_err()
}

/// To which of the certificates, each with the name of its file, a key belongs, as a finding on the key's file.
#[must_use]
pub fn pair(certificates: &[(&str, &[u8])], key: &[u8]) -> Option<Finding> {
    let key = PrivateKey::from_pem(key).ok()?.public_key();
    let chains = certificates.iter();
    let chains = chains.filter_map(|(name, bytes)| Some((*name, Chain::read(bytes).ok()?)));
    let (own, foreign): (Vec<_>, Vec<_>) =
        chains.partition(|(_, chain)| x509::same_key(&chain.leaf.public_key, &key));
    let names = |of: &[(&str, Chain)]| {
        let names: Vec<&str> = of.iter().map(|(name, _)| *name).collect();
        names.join(" and ")
    };
    let (severity, message, remedy) = match (&own[..], &foreign[..]) {
        ([], []) => return None,
        ([], [(name, _)]) => (
            Severity::Error,
            format!("it is not the key of the certificate in {name}"),
            "put the key here that belongs to it",
        ),
        ([], all) => (
            Severity::Error,
            format!(
                "it is the key of none of the certificates in {}",
                names(all)
            ),
            "put the key here that belongs to one of them",
        ),
        (own, _) => (
            Severity::Note,
            format!("it is the key of the certificate in {}", names(own)),
            "",
        ),
    };
    Some(finding(severity, "private key", &message, remedy))
}

/// Exit code for the worst of all findings: 0 for notes, 1 for warnings, 2 for errors.
#[must_use]
pub fn exit_code(worst: Option<Severity>) -> u8 {
    match worst {
        Some(Severity::Error) => 2,
        Some(Severity::Warning) => 1,
        Some(Severity::Note) | None => 0,
    }
}

fn finding(severity: Severity, place: &str, message: &str, remedy: &str) -> Finding {
    Finding {
        severity,
        place: place.into(),
        message: message.into(),
        remedy: remedy.into(),
    }
}

fn looks_like_manifest(text: &str) -> bool {
    let object = text.trim_start().starts_with('{');
    object
        || text
            .lines()
            .any(|line| line.starts_with("kind:") || line.starts_with("apiVersion:"))
}

/// Checks a file of certificates, of a key, or of both.
fn check_file(bytes: &[u8], now: UnixTime) -> Vec<Finding> {
    match PrivateKey::from_pem(bytes) {
        Ok(key) => match Chain::read(bytes) {
            Err(Unreadable::OnlyKey | Unreadable::NoCertificate) => {
                let message = format!("a private key ({}) and no certificate", kind(&key));
                let mut findings = vec![finding(Severity::Note, "private key", &message, "")];
                findings.extend(refused("private key", loader::of_key(bytes)));
                findings
            }
            _ => check_pair(("certificate", bytes), ("private key", bytes), now),
        },
        Err(KeyError::Empty | KeyError::NoKey | KeyError::TooLarge(_)) => {
            check_chain("certificate", bytes, now).1
        }
        Err(_) => check_pair(("certificate", bytes), ("private key", bytes), now),
    }
}

fn check_secret(manifest: Manifest, now: UnixTime) -> Vec<Finding> {
    let Manifest {
        secret,
        data,
        plain,
        ..
    } = manifest;
    let place = format!("Secret {}", secret.head.place());
    let mut findings = Vec::new();
    let mut values = BTreeMap::new();
    for (key, text) in data.0 {
        // Ignores line ends in base64, as the API server does.
        let packed = Zeroizing::new(text.replace(['\r', '\n'], ""));
        match STANDARD.decode(packed.as_bytes()) {
            Ok(value) => drop(values.insert(key, Zeroizing::new(value))),
            Err(_) => findings.push(finding(
                Severity::Error,
                &format!("{place}, {key}"),
                "the value under data is not base64",
                "encode it, or put the plain text under stringData",
            )),
        }
    }
    let plain = plain.0.into_iter();
    values.extend(plain.map(|(key, text)| (key, Zeroizing::new(text.as_bytes().to_vec()))));

    if secret.kind != TLS_TYPE && secret.head.annotations().is_some() && !secret.head.managed {
        findings.push(finding(
            Severity::Warning,
            &place,
            "it has annotations of cert-renew, but neither the type kubernetes.io/tls nor the label",
            "add the label cert-renew.io/managed: \"true\", else it is not seen",
        ));
    }
    let renewed = secret.head.annotation(keys::ISSUER);
    if secret.head.immutable && renewed.is_some_and(|issuer| issuer != EXTERNAL) {
        findings.push(finding(
            Severity::Warning,
            &place,
            "it is immutable, so that no new certificate can be written into it",
            "delete it and create it again without immutable: true",
        ));
    }
    let DataKeys {
        certificate, key, ..
    } = secret.place();
    let value = |key: &str| values.get(key).map_or(&[][..], |value| value.as_slice());
    let (chain, private) = (value(&certificate), value(&key));
    if chain.is_empty() && private.is_empty() {
        let message = "it holds no certificate yet";
        findings.push(finding(Severity::Note, &place, message, ""));
        return findings;
    }
    if certificate != key && pem::blocks(chain).any(|block| block.is_private_key()) {
        findings.push(finding(
            Severity::Warning,
            &format!("{place}, {certificate}"),
            "it holds a private key beside the certificate",
            "leave the key in its own entry: what reads certificates may show them",
        ));
    }
    let at = |key: &str| format!("{place}, {key}");
    findings.extend(check_pair(
        (&at(&certificate), chain),
        (&at(&key), private),
        now,
    ));
    findings
}

/// Checks a certificate and its key, each with its place.
fn check_pair(certificate: (&str, &[u8]), key: (&str, &[u8]), now: UnixTime) -> Vec<Finding> {
    let (chain, mut findings) = check_chain(certificate.0, certificate.1, now);
    match (PrivateKey::from_pem(key.1), chain) {
        (Err(error), _) => {
            let remedy = match error {
                KeyError::Encrypted => {
                    "decrypt it, for example with openssl pkey -in FILE -out NEW"
                }
                KeyError::Unsupported(_) => {
                    "servers may well take it; cert-renew cannot compare it with the certificate"
                }
                _ => "put the key here that the certificate was requested with, in PEM",
            };
            findings.push(finding(Severity::Error, key.0, &chain_of(&error), remedy));
        }
        (Ok(own), Some(chain)) if !x509::same_key(&chain.leaf.public_key, &own.public_key()) => {
            let message = "the private key is not the one of the certificate";
            let remedy = "put the key here that belongs to it";
            findings.push(finding(Severity::Error, key.0, message, remedy));
        }
        _ => {}
    }
    if !key.1.trim_ascii().is_empty() {
        findings.extend(refused(key.0, loader::of_key(key.1)));
    }
    findings
}

/// A library's refusal, as a finding.
fn refused(place: &str, refusal: Option<Refusal>) -> Option<Finding> {
    let refusal = refusal?;
    let (message, remedy) = (refusal.reason(), refusal.remedy());
    Some(finding(Severity::Error, place, &message, &remedy))
}

/// Checks a chain alone.
fn check_chain(place: &str, bytes: &[u8], now: UnixTime) -> (Option<Chain>, Vec<Finding>) {
    let chain = match Chain::read(bytes) {
        Ok(chain) => chain,
        Err(reason) => {
            let remedy = remedy(bytes, &reason);
            return (
                None,
                vec![finding(Severity::Error, place, &chain_of(&reason), remedy)],
            );
        }
    };
    let Leaf {
        not_before,
        not_after,
        ref names,
        ref self_signed,
        ref issuer,
        ref remarks,
        ..
    } = chain.leaf;
    let self_signed = self_signed.get();
    let mut findings = Vec::new();
    let mut add = |severity, message: &str, remedy: &str| {
        findings.push(finding(severity, place, message, remedy));
    };
    let left = not_after.since(now);
    if now < not_before {
        add(
            Severity::Error,
            &format!("it is not valid before {not_before}"),
            "wait, or check the clock",
        );
    } else if now > not_after {
        add(
            Severity::Error,
            &format!("it expired at {not_after}"),
            "renew it",
        );
    } else if left < chain.leaf.lifetime() / LATE {
        let message = format!("it expires at {not_after}, in {}", duration::human(left));
        add(Severity::Warning, &message, "renew it");
    } else {
        let kind = chain
            .leaf
            .key_type
            .map_or("another key type", |kind| kind.as_str());
        let names = match names.as_slice() {
            [] => "no name".into(),
            names => listed(names),
        };
        let message = format!("valid until {not_after} for {names} ({kind}, issued by {issuer})");
        add(Severity::Note, &message, "");
    }
    let leaf = x509::Certificate::parse(chain.leaf_der());
    let disordered = remarks
        .iter()
        .any(|it| matches!(it, Remark::NotFirst { .. }));
    if leaf.as_ref().is_ok_and(x509::Certificate::is_ca) && !self_signed {
        add(
            Severity::Error,
            "it is the certificate of a CA, and the file has no server certificate",
            "put the server certificate first, then its issuers",
        );
    } else if names.is_empty() {
        add(
            Severity::Error,
            "it is for no name",
            "request one with subject alternative names",
        );
    } else if !leaf.is_ok_and(|leaf| leaf.has_alternative_names()) {
        let message = "its name is only in the common name, which clients ignore (RFC 9525, 2)";
        add(
            Severity::Warning,
            message,
            "request one with subject alternative names",
        );
    }
    if self_signed {
        add(
            Severity::Warning,
            "it is self-signed, so clients do not trust it",
            "request one from a CA",
        );
    } else if chain.issuers_pem().is_empty() {
        let message = "the intermediate certificates are missing, so some clients cannot verify it";
        add(
            Severity::Warning,
            message,
            "append them in the order in which each certifies the one before",
        );
    }
    for remark in remarks {
        let (severity, remedy) = match remark {
            Remark::NotFirst { .. } => (
                Severity::Error,
                "put the server certificate first, then its issuers",
            ),
            Remark::EndsSooner { .. } => (
                Severity::Warning,
                "take a chain from the CA that lasts as long as the certificate",
            ),
            Remark::Unreadable(_) => (Severity::Error, "put the whole chain here"),
            Remark::OddNames { .. } | Remark::ManyNames { .. } => (
                Severity::Warning,
                "name those to ask for in cert-renew.io/names: a renewal would lose them",
            ),
        };
        add(severity, &remark.to_string(), remedy);
    }
    if let Some(refusal) = loader::of_certificate(bytes) {
        add(Severity::Error, &refusal.reason(), &refusal.remedy());
    }
    if !disordered && let Err(fault) = chain.check_order() {
        add(
            Severity::Error,
            &chain_of(&fault),
            "put the server certificate first, then its issuers, in order",
        );
    }
    (Some(chain), findings)
}

/// The remedy for bytes that are not a certificate, for common mistakes.
fn remedy(bytes: &[u8], reason: &Unreadable) -> &'static str {
    let holds = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    let packed: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let decoded = STANDARD.decode(packed).map(Zeroizing::new);
    if holds(bytes, b"-----\\n") {
        "the line ends are the two characters \\n: write real line ends"
    } else if decoded.is_ok_and(|inner| holds(&inner, b"-----BEGIN ")) {
        "it is base64 of PEM, so it was encoded twice: encode it once"
    } else if matches!(reason, Unreadable::X509 { .. }) {
        "it is damaged, or no certificate: take it again from where it came from"
    } else if matches!(reason, Unreadable::Other("PKCS#7")) {
        "openssl pkcs7 -print_certs writes it as PEM (with -inform DER where it is DER)"
    } else if matches!(reason, Unreadable::Other("a certificate request")) {
        "send it to the CA, and put here what comes back"
    } else if matches!(reason, Unreadable::Other("text in UTF-16")) {
        "write it as ASCII: iconv -f UTF-16 -t ASCII"
    } else {
        "put PEM here: the server certificate first, then its issuers"
    }
}

fn kind(key: &PrivateKey) -> &'static str {
    key.key_type()
        .map_or("of another type", |kind| kind.as_str())
}

/// An error with its causes, on one line.
fn chain_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// One document of a manifest: a Secret, or a list of them.
#[derive(Default)]
struct Manifest {
    kind: String,
    items: Vec<Self>,
    secret: FullSecret,
    data: Texts,
    /// `stringData`, which overrides `data`.
    plain: Texts,
}

#[derive(Default)]
struct Texts(BTreeMap<String, Zeroizing<String>>);

/// All Secrets in a document; items of a `SecretList` may omit their kind.
fn secrets(manifest: Manifest) -> Vec<Manifest> {
    match manifest.kind.as_str() {
        "Secret" => vec![manifest],
        "List" => manifest
            .items
            .into_iter()
            .filter(|item| item.kind == "Secret")
            .collect(),
        "SecretList" => manifest.items,
        _ => Vec::new(),
    }
}

impl<'de> Deserialize<'de> for Manifest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut manifest = Self::default();
        Fill(&mut manifest).deserialize(deserializer)?;
        Ok(manifest)
    }
}

impl Shape for Manifest {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "kind" => map.next_value_seed(Fill(&mut self.kind)),
            "items" => map.next_value_seed(Fill(&mut self.items)),
            "data" => map.next_value_seed(Fill(&mut self.data)),
            "stringData" => map.next_value_seed(Fill(&mut self.plain)),
            _ => self.secret.member(key, map),
        }
    }
}

impl Shape for Texts {
    fn member<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let mut value: Option<Zeroizing<String>> = None;
        map.next_value_seed(Fill(&mut value))?;
        self.0.extend(value.map(|value| (key.to_owned(), value)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;

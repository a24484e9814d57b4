//! An ACME CA: where it is, who may ask it for what, and how hard it may be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use http::Uri;

use super::allow::{Allow, Labels};
use super::reader::{Fields, KeyPath};
use crate::secret::settings::IssuerRef;
use crate::secret::settings::values::{is_label, is_profile};
use crate::text::name::Name;

/// Requests to one CA in flight, unless configured: a CA answers eight in parallel as quickly as one, and sixty-four
/// would look like an attack.
const CONCURRENCY: u32 = 8;

/// New orders in 3 hours, unless configured: Let's Encrypt allows an account 300, the rest is for people.
pub(super) const ORDERS_PER_3H: u32 = 250;

/// Requests a second, unless configured: Let's Encrypt allows an address 20 new nonces, and more of the other requests
/// of a renewal. The orders that it allows an account make less than one.
const REQUESTS_PER_SECOND: u32 = 20;

/// Upper bound of each of these settings.
const MAX_ORDERS: u32 = 1_000_000;
const MAX_CONCURRENCY: u32 = 256;
const MAX_REQUESTS: u32 = 100_000;

/// Longest text that is sent to a CA or compared with one from it, in characters.
const MAX_TEXT: usize = 256;

/// One issuer of the config file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Issuer {
    /// URL of the ACME directory (RFC 8555, 7.1.1); https, or http to loopback.
    pub directory: String,
    /// `mailto:` URLs for the account (RFC 8555, 7.3).
    pub contact: Vec<String>,
    /// Who may ask for what; nobody if empty.
    pub allow: Vec<Allow>,
    /// ACME profile of Secrets that name none.
    pub profile: Option<String>,
    /// PEM file with roots for the CA's own endpoint, beside the public ones; an absolute path.
    pub ca_bundle: Option<PathBuf>,
    /// External account binding (RFC 8555, 7.3.4).
    pub eab: Option<EabConfig>,
    /// Requests in flight, 1 to 256; an order that waits for DNS uses none.
    pub concurrency: u32,
    /// Requests in any second, 1 to 100,000; shared with the other issuers at the same host.
    pub requests_per_second: u32,
    /// New orders in any 3 hours, at least 1.
    pub orders_per_3h: u32,
    /// Where a failed validation is rehearsed before this CA is asked again.
    pub staging: Option<Staging>,
    /// Name of the issuer that is asked when this one is down and the certificate is close to expiry. It exists, and
    /// the chain of fallbacks ends.
    pub fallback: Option<String>,
    /// Which of the offered chains to take; the CA's default if absent.
    pub chain: Option<PreferredChain>,
    /// Whether requests have a common name, for CAs that refuse an empty subject.
    pub common_name: bool,
}

/// External account binding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EabConfig {
    /// Key identifier that the CA gave.
    pub kid: String,
    /// Where the MAC key is stored, base64url as the CA gave it.
    pub hmac_key: SecretKey,
}

/// A key of a Secret in the operator's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretKey {
    /// The Secret.
    pub secret: String,
    /// The key of its data.
    pub key: String,
}

/// Where to rehearse a failed validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Staging {
    /// A directory, used with the settings of the issuer itself.
    Directory(String),
    /// Another issuer of the config file; it exists.
    Issuer(String),
}

/// Which chain to take if a CA offers alternates (RFC 8555, 7.4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreferredChain {
    /// The one whose last certificate was issued by this common name.
    Root(String),
    /// The one with the fewest certificates.
    Shortest,
}

impl Issuer {
    /// `known` are the names of all issuers.
    pub(super) fn read(place: &KeyPath<'_>, known: &BTreeSet<&str>) -> Self {
        place.fields(|fields| Self {
            directory: fields.required("directory").parse(url).unwrap_or_default(),
            contact: fields
                .get("contact")
                .one_or_more(|item| item.parse(contact)),
            allow: fields.get("allow").list(|item| Some(Allow::read(item))),
            profile: fields.get("profile").parse(profile),
            ca_bundle: fields.get("caBundle").parse(absolute),
            eab: EabConfig::read(&fields.get("eab")),
            concurrency: fields
                .get("concurrency")
                .count(1..=MAX_CONCURRENCY, CONCURRENCY),
            requests_per_second: fields
                .get("requestsPerSecond")
                .count(1..=MAX_REQUESTS, REQUESTS_PER_SECOND),
            orders_per_3h: fields
                .get("ordersPer3h")
                .count(1..=MAX_ORDERS, ORDERS_PER_3H),
            staging: fields.get("staging").parse(|text| {
                if text.contains("://") {
                    return url(text).map(Staging::Directory);
                }
                existing(text, known).map(Staging::Issuer)
            }),
            fallback: fields.get("fallback").parse(|text| existing(text, known)),
            chain: PreferredChain::read(&fields.get("chain")),
            common_name: fields.get("commonName").flag(false),
        })
    }

    /// What the rules for a namespace allow, in the words of the config.
    pub fn granted(&self, namespace: &str, labels: Labels<'_>) -> impl Iterator<Item = String> {
        let rules = self.allow.iter();
        let rules = rules.filter(move |allow| allow.concerns(namespace, labels));
        rules.flat_map(|allow| allow.names.iter().map(ToString::to_string))
    }

    /// Whether the namespace may ask for `name`.
    #[must_use]
    pub fn allows(&self, namespace: &str, labels: Labels<'_>, name: &Name) -> bool {
        self.allow.iter().any(|allow| {
            allow.names.iter().any(|pattern| pattern.matches(name))
                && allow.concerns(namespace, labels)
        })
    }
}

impl EabConfig {
    fn read(place: &KeyPath<'_>) -> Option<Self> {
        (!place.is_absent()).then(|| {
            place.fields(|fields| Self {
                kid: fields.required("kid").parse(text).unwrap_or_default(),
                hmac_key: SecretKey::read(&fields.required("hmacKey")),
            })
        })
    }
}

impl SecretKey {
    /// Never shows the value: it might be the secret itself.
    fn read(place: &KeyPath<'_>) -> Self {
        place.fields(|fields| Self {
            secret: object_name(fields, "secret"),
            key: data_key(fields, "key"),
        })
    }
}

impl PreferredChain {
    fn read(place: &KeyPath<'_>) -> Option<Self> {
        place.fields(|fields| {
            let (root, shortest) = (fields.get("root"), fields.get("shortest"));
            match (root.parse(text), shortest.flag(false)) {
                (Some(_), true) => {
                    shortest.fault("expected either root or shortest");
                    None
                }
                (Some(root), false) => Some(Self::Root(root)),
                (None, shortest) => shortest.then_some(Self::Shortest),
            }
        })
    }
}

/// Reports each issuer whose chain of fallbacks is circular, and a staging that is the issuer itself.
pub(super) fn check_circles(issuers: &BTreeMap<String, Issuer>, place: &KeyPath<'_>) {
    for (name, issuer) in issuers {
        let mut next = issuer.fallback.as_ref();
        // A circle further on is reported for its own members.
        for _ in 0..issuers.len() {
            if next == Some(name) {
                place
                    .child(name)
                    .child("fallback")
                    .fault("expected no circle of fallbacks");
                break;
            }
            next = next.and_then(|next| issuers.get(next)?.fallback.as_ref());
        }
        if issuer
            .staging
            .as_ref()
            .is_some_and(|staging| *staging == Staging::Issuer(name.clone()))
        {
            place
                .child(name)
                .child("staging")
                .fault("expected another issuer");
        }
    }
}

/// The issuer of defaults: one that exists, or `external`.
pub(super) fn issuer_ref(text: &str, known: &BTreeSet<&str>) -> Result<IssuerRef, String> {
    match text.parse() {
        Ok(IssuerRef::External) => Ok(IssuerRef::External),
        _ => existing(text, known).map(|name| IssuerRef::Named(name.into())),
    }
}

fn existing(text: &str, known: &BTreeSet<&str>) -> Result<String, String> {
    if known.contains(text) {
        return Ok(text.to_string());
    }
    let usable = |name: &&str| matches!(name.parse(), Ok(IssuerRef::Named(_)));
    let known: Vec<&str> = known.iter().copied().filter(usable).collect();
    Err(format!(
        "expected an issuer of this file ({})",
        known.join(", ")
    ))
}

/// An https URL, or http to loopback.
fn url(text: &str) -> Result<String, String> {
    let expected = || "expected an https URL (http only to loopback)".to_string();
    // `Uri` drops a fragment silently.
    let uri = text
        .parse::<Uri>()
        .ok()
        .filter(|_| !text.contains('#'))
        .ok_or_else(expected)?;
    let host = uri.host().unwrap_or_default();
    let loopback = || {
        let address = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    };
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => loopback(),
        _ => false,
    };
    let userinfo = uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'));
    if secure && !host.is_empty() && !userinfo {
        Ok(text.to_string())
    } else {
        Err(expected())
    }
}

/// An email address, with `mailto:` or without; one, and no header fields (RFC 8555, 7.3).
fn contact(text: &str) -> Result<String, &'static str> {
    let address = text.strip_prefix("mailto:").unwrap_or(text);
    let sound = address.len() <= MAX_TEXT
        && address
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b",?#<>\"".contains(&b))
        && address.split_once('@').is_some_and(|(user, host)| {
            !user.is_empty() && matches!(host.parse(), Ok(Name::Dns(_)))
        });
    if sound {
        Ok(format!("mailto:{address}"))
    } else {
        Err("expected a mail address such as ops@example.com")
    }
}

fn profile(text: &str) -> Result<String, &'static str> {
    if is_profile(text) {
        Ok(text.to_string())
    } else {
        Err("expected a profile's name")
    }
}

pub(super) fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("expected an absolute path")
    }
}

/// Text that is neither empty nor long and has no control characters.
pub(super) fn text(text: &str) -> Result<String, &'static str> {
    let sound = (1..=MAX_TEXT).contains(&text.len()) && !text.chars().any(char::is_control);
    if sound {
        Ok(text.to_string())
    } else {
        Err("expected 1 to 256 characters, none of them control characters")
    }
}

/// The name of a Kubernetes object; `expected` does not quote the value, which may be a secret put in the wrong place.
pub(super) fn object_name(fields: &Fields<'_, '_>, key: &'static str) -> String {
    unseen(
        &fields.required(key),
        "expected the name of a Secret in the operator's namespace",
        |text| (1..=253).contains(&text.len()) && text.split('.').all(is_label),
    )
}

fn data_key(fields: &Fields<'_, '_>, key: &'static str) -> String {
    unseen(
        &fields.required(key),
        "expected a key of the Secret's data",
        crate::secret::data::outputs::is_data_key,
    )
}

fn unseen(place: &KeyPath<'_>, expected: &str, fits: impl Fn(&str) -> bool) -> String {
    let text = place.text_unseen();
    if !place.is_absent() && !text.is_some_and(fits) {
        place.fault_unseen(expected);
    }
    text.unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_https_or_at_home() {
        for good in [
            "https://acme-v02.api.letsencrypt.org/directory",
            "https://ca.internal:8443/acme/acme/directory",
            "http://127.0.0.1:14000/dir",
            "http://[::1]:14000/dir",
            "http://localhost/dir",
        ] {
            assert_eq!(url(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "acme.example",
            "/dir",
            "http://ca.internal/dir",
            "http://127.0.0.1.example/dir",
            "ftp://a.example",
            "https://",
            "https://user:pass@a.example/dir",
            "https://a.example/dir#x",
            "https://a b/",
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn contacts_are_mail_addresses() {
        assert_eq!(
            contact("ops@example.com").as_deref(),
            Ok("mailto:ops@example.com")
        );
        assert_eq!(
            contact("mailto:ops@example.com").as_deref(),
            Ok("mailto:ops@example.com")
        );
        for bad in [
            "",
            "ops",
            "@example.com",
            "ops@",
            "a@b.example,c@d.example",
            "a@b.example?cc=x",
            "tel:+1",
            "a b@c.example",
        ] {
            assert!(contact(bad).is_err(), "{bad}");
        }
    }
}

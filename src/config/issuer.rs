//! `issuers`: the certificate authorities, and who may ask them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use reqwest::Url;

use super::allow::Allow;
use super::reader::Place;
use crate::name::Name;
use crate::secret::settings::IssuerRef;
use crate::secret::values::{is_label, is_profile};

/// Requests in flight at a CA unless the file says otherwise: what Let's Encrypt's nonce limit bears.
const CONCURRENCY: u32 = 8;
/// Let's Encrypt allows 300 orders in three hours; the rest is left to other users of the account.
const ORDERS: u32 = 250;

/// A certificate authority, and who may ask it for what.
#[derive(Clone, Debug, PartialEq)]
pub struct Issuer {
    /// URL of its ACME directory.
    pub directory: String,
    /// Contacts that it is told, as URIs or mail addresses.
    pub contact: Vec<String>,
    /// Who may ask for what; empty means nobody.
    pub allow: Vec<Allow>,
    /// Profile of orders whose Secret names none.
    pub profile: Option<String>,
    /// PEM file with roots to trust beside the public ones.
    pub ca_bundle: Option<PathBuf>,
    /// For CAs that issue to their customers only.
    pub eab: Option<Eab>,
    /// Requests in flight at once.
    pub concurrency: usize,
    /// Orders in any three hours.
    pub orders_per_3h: u32,
    /// Directory of the CA's rehearsal stage.
    pub staging: Option<String>,
    /// Who issues instead when this one cannot and life runs short.
    pub fallback: Option<String>,
    /// Which of several chains is taken.
    pub chain: Chain,
}

/// An external account binding (RFC 8555, 7.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eab {
    /// The CA's name for the key.
    pub kid: String,
    /// Where the key stands.
    pub hmac_key: SecretKey,
}

/// A data key of a Secret in the operator's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretKey {
    /// The Secret.
    pub secret: String,
    /// The key.
    pub key: String,
}

/// Which of several chains is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chain {
    /// The CA's own choice.
    #[default]
    Default,
    /// The one whose topmost certificate is issued by this root.
    Root(String),
    /// The one with the fewest certificates.
    Shortest,
}

impl Issuer {
    /// Whether a namespace may have a name from this issuer.
    #[must_use]
    pub fn allows(&self, namespace: &str, name: &Name) -> bool {
        self.allow
            .iter()
            .filter(|rule| rule.concerns(namespace, None))
            .any(|rule| rule.names.iter().any(|pattern| pattern.matches(name)))
    }

    /// Whether the directory is a well-known CA's rehearsal stage, by the user's own wish.
    #[must_use]
    pub fn is_staging(&self) -> bool {
        self.directory.contains("staging")
    }
}

/// Reads all issuers and what they say of each other.
pub(super) fn read_all(place: &Place<'_>) -> BTreeMap<String, Issuer> {
    let entries = place.entries();
    let issuers: BTreeMap<String, Issuer> = entries
        .iter()
        .map(|(name, place)| {
            // Its account's Secret is named after it.
            if !is_label(name) || matches!(name.parse(), Ok(IssuerRef::External)) {
                place.fault_unseen(
                    "expected a name of lower-case letters, digits and '-', other than external",
                );
            }
            ((*name).to_owned(), read(place))
        })
        .collect();
    for (name, place) in &entries {
        let Some(fallback) = issuers
            .get(*name)
            .and_then(|issuer| issuer.fallback.as_deref())
        else {
            continue;
        };
        if !issuers.contains_key(fallback) {
            place
                .child("fallback")
                .fault("expected another issuer of this file");
        } else if circle(&issuers, name) {
            place
                .child("fallback")
                .fault("expected fallbacks that do not lead back to this issuer");
        }
    }
    issuers
}

/// Whether following the fallbacks from `name` comes back to it.
fn circle(issuers: &BTreeMap<String, Issuer>, name: &str) -> bool {
    let mut at = name;
    for _ in 0..=issuers.len() {
        match issuers
            .get(at)
            .and_then(|issuer| issuer.fallback.as_deref())
        {
            None => return false,
            Some(next) if next == name => return true,
            Some(next) => at = next,
        }
    }
    // A circle further on, which its own members report.
    false
}

fn read(place: &Place<'_>) -> Issuer {
    let number = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    place.fields(|fields| Issuer {
        directory: fields
            .required("directory")
            .parse(directory)
            .unwrap_or_default(),
        contact: fields
            .get("contact")
            .one_or_more(|item| item.parse(contact)),
        allow: fields.get("allow").list(|item| Some(Allow::read(item))),
        profile: fields.get("profile").parse(|text| {
            let known = is_profile(text).then(|| text.to_owned());
            known.ok_or("expected a profile's name of at most 64 letters, digits, '-', '_' and '.'")
        }),
        ca_bundle: fields.get("caBundle").parse(|text| {
            let path = PathBuf::from(text);
            if path.is_absolute() {
                Ok(path)
            } else {
                Err("expected the absolute path of a PEM file")
            }
        }),
        eab: eab(&fields.get("eab")),
        concurrency: number(fields.get("concurrency").count(1..=1_000, CONCURRENCY)),
        orders_per_3h: fields.get("ordersPer3h").count(1..=1_000_000, ORDERS),
        staging: fields.get("staging").parse(directory),
        fallback: fields
            .get("fallback")
            .parse(|text| Ok::<_, &str>(text.to_owned())),
        chain: chain(&fields.get("chain")),
    })
}

fn chain(place: &Place<'_>) -> Chain {
    place.fields(|fields| {
        let root = fields
            .get("root")
            .parse(|text| Ok::<_, &str>(text.to_owned()));
        let prefer = fields.get("prefer");
        let shortest = prefer.choice(&[("shortest", true)], false);
        match root {
            Some(_) if shortest => {
                prefer.fault("expected root or prefer, not both");
                Chain::Default
            }
            Some(root) => Chain::Root(root),
            None if shortest => Chain::Shortest,
            None => Chain::Default,
        }
    })
}

fn eab(place: &Place<'_>) -> Option<Eab> {
    if place.is_absent() {
        return None;
    }
    place.fields(|fields| {
        let kid = fields.required("kid").parse(some_text);
        let hmac_key = secret_key(&fields.required("hmacKey"));
        Some(Eab {
            kid: kid?,
            hmac_key: hmac_key?,
        })
    })
}

fn secret_key(place: &Place<'_>) -> Option<SecretKey> {
    if place.is_absent() {
        return None;
    }
    place.fields(|fields| {
        let secret = fields.required("secret").parse(some_text);
        let key = fields.required("key").parse(some_text);
        Some(SecretKey {
            secret: secret?,
            key: key?,
        })
    })
}

fn some_text(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        Err("expected text")
    } else {
        Ok(text.to_owned())
    }
}

/// An https URL, or http to this very machine.
fn directory(text: &str) -> Result<String, &'static str> {
    const EXPECTED: &str = "expected the https URL of an ACME directory";
    let url = Url::parse(text).map_err(|_| EXPECTED)?;
    let loopback = match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|ip| ip.is_loopback()),
        None => false,
    };
    let fits = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    match url.scheme() {
        "https" if fits && url.has_host() => Ok(text.to_owned()),
        "http" if fits && loopback => Ok(text.to_owned()),
        _ => Err(EXPECTED),
    }
}

fn contact(text: &str) -> Result<String, &'static str> {
    let address = text.strip_prefix("mailto:").unwrap_or(text);
    match address.split_once('@') {
        Some((user, host))
            if !user.is_empty()
                && host.parse::<Name>().is_ok()
                && !text.contains(char::is_whitespace) =>
        {
            Ok(format!("mailto:{address}"))
        }
        _ => Err("expected a mail address"),
    }
}

//! DNS-01 (RFC 8555, section 8.4): TXT records at the host of a zone.
//!
//! ```text
//! name ─► _acme-challenge.name ─CNAMEs─► its record ─SOA─► zone            (before the order record is made)
//!      ─► added by value ─► seen on every server of the zone ─► the CA is told ─► removed by value
//! ```
//! A record is added to what is there and removed by its value: the apex and the wildcard of a domain share one name,
//! and so do two orders. Some hosts' APIs replace a whole set, so changes to one name wait for each other. Everything
//! has a deadline. Credentials are read from the operator's namespace when they are needed, are not kept, and never
//! appear in an error.

mod acme_dns;
mod cloud;
#[cfg(test)]
mod contract;
mod hosts;
mod http;
mod look;
mod needs;
mod provider;
mod rfc2136;
mod site;
mod webhook;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use cert_renew_core::config::Dns01;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::shown;
use cloud::identity::Environment;
use kube::Client;
use look::stands;
pub use look::{LookPlaces, seen};
use needs::HostCredentials;
use provider::Provider;
pub use site::{Site, site};
use thiserror::Error;
use tokio::time::{sleep, timeout};

use crate::cluster::order_records::Txt;
use crate::cluster::{self, secrets};
use crate::net::dns::{self, Resolver};
use crate::net::egress::Nearby;
use crate::process::write_gate::{Closed, WriteGate};

/// Longest change at one host: some take several requests, and wait for a limit between them.
const CHANGE: Duration = Duration::from_secs(60);
/// Longest wait for other changes of the same name.
const TURN: Duration = Duration::from_secs(180);
/// TTL of our TXT records in seconds; many hosts refuse lower values.
const TTL: u32 = 60;
/// Longest time between two looks at the zone's servers, and the time between two attempts to remove a record.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Most attempts to remove a record.
const REMOVALS: usize = 3;

/// Why a TXT record cannot be set, seen or removed.
#[derive(Debug, Error)]
pub enum Error {
    /// DNS failed.
    #[error("DNS-01: {0}")]
    Dns(#[from] dns::Error),
    /// The Secret with the credentials cannot be read.
    #[error("DNS-01 by {provider}: {source}")]
    Cluster {
        /// The provider.
        provider: String,
        /// Why.
        source: cluster::Error,
    },
    /// The credentials do not have the form that the provider needs.
    #[error("DNS-01 by {provider}: Secret {secret}: {expected}")]
    Credentials {
        /// The provider.
        provider: String,
        /// The Secret, with its namespace.
        secret: String,
        /// What was expected, and where.
        expected: String,
    },
    /// The config does not have the form that the provider needs.
    #[error("DNS-01 by {provider}: {expected}")]
    Settings {
        /// The provider.
        provider: String,
        /// What was expected, and where.
        expected: String,
    },
    /// The host of the zone refused, or did not answer.
    #[error("DNS-01 by {provider}: {what} TXT {at} in zone {zone}: {why}")]
    Host {
        /// The provider.
        provider: String,
        /// What was attempted.
        what: &'static str,
        /// The name of the record.
        at: String,
        /// The zone.
        zone: String,
        /// The host's error text.
        why: String,
    },
    /// Not all servers of the zone have the record.
    #[error("DNS-01: TXT {at} is not seen: {}", unseen(.lacking, .silent))]
    NotSeen {
        /// The name of the record.
        at: String,
        /// Servers that answer without it, each with its answer.
        lacking: Vec<(String, String)>,
        /// Servers that do not answer, each with the error.
        silent: Vec<(String, String)>,
    },
    /// A CNAME leads out of the solver's zones.
    #[error(
        "DNS-01: the CNAME of {asked} leads to {at}, which is in none of the solver's zones ({zones}): add its zone there \
         if that is meant"
    )]
    Outside {
        /// The name at which the CA looks.
        asked: String,
        /// The name to which that leads.
        at: String,
        /// The solver's zones.
        zones: String,
    },
    /// This replica no longer leads.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// No server can be asked.
    #[error(
        "DNS-01: zone {0} has no NS record whose address is known; name its servers in propagation.servers"
    )]
    NoAuthority(String),
}

impl Error {
    /// Stable name for Events, logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Dns(_) | Self::NoAuthority(_) => "DnsLookup",
            Self::Cluster { source, .. } => source.reason(),
            Self::Credentials { .. } => "DnsCredentials",
            Self::Settings { .. } | Self::Outside { .. } => "DnsSettings",
            Self::Host { .. } => "DnsHost",
            Self::NotSeen { .. } => "DnsPropagation",
            Self::Closed(_) => "NotLeading",
        }
    }
}

/// Sets and removes the TXT records of all DNS-01 solvers.
pub struct Solver {
    kube: Client,
    namespace: Arc<str>,
    gate: WriteGate,
    /// Names that are being changed.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The TXT value of a key authorization (RFC 8555, section 8.4).
#[must_use]
pub fn value(key_authorization: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, key_authorization.as_bytes()))
}

impl Solver {
    /// Creates it; nothing is asked yet.
    #[must_use]
    pub fn new(kube: Client, namespace: Arc<str>, gate: WriteGate) -> Self {
        Self {
            kube,
            namespace,
            gate,
            turns: Mutex::default(),
        }
    }

    /// Checks that a solver's settings and credentials suffice to begin; nothing is changed.
    ///
    /// # Errors
    /// When they do not.
    pub async fn check(&self, solver: &Dns01) -> Result<(), Error> {
        self.provider(solver, None).await.map(drop)
    }

    /// Sets a TXT record beside the existing ones; a record that exists already is no error.
    ///
    /// # Errors
    /// When the host refuses or does not answer.
    pub async fn add(&self, txt: &Txt) -> Result<(), Error> {
        let provider = self.provider(&txt.solver, Some(&txt.zone)).await?;
        self.change(txt, "adding", provider.add(txt, TTL)).await
    }

    /// Removes a TXT record but no other of its name; a record that is gone already is no error. If the host refuses,
    /// the zone's servers are asked by way of `resolver`: what was never set needs no removing.
    ///
    /// # Errors
    /// When the host refuses or does not answer, several times.
    pub async fn remove(
        &self,
        txt: &Txt,
        (resolver, nearby): (Option<&Resolver>, Nearby),
    ) -> Result<(), Error> {
        let mut result = Ok(());
        for attempt in 0..REMOVALS {
            if attempt > 0 {
                sleep(LONGEST_PAUSE).await;
            }
            result = match self.provider(&txt.solver, Some(&txt.zone)).await {
                Ok(provider) => self.change(txt, "removing", provider.remove(txt)).await,
                Err(error) => Err(error),
            };
            if matches!(result, Ok(()) | Err(Error::Closed(_))) {
                break;
            }
            if let Some(resolver) = resolver
                && matches!(stands(nearby, resolver, txt).await, Ok(false))
            {
                return Ok(());
            }
        }
        result
    }

    async fn change(
        &self,
        txt: &Txt,
        what: &'static str,
        change: impl Future<Output = Result<(), String>>,
    ) -> Result<(), Error> {
        let host = |why: String| Error::Host {
            provider: txt.solver.provider.clone(),
            what,
            at: txt.at.clone(),
            zone: txt.zone.clone(),
            why,
        };
        let turn = self.turn(&txt.at);
        let held = timeout(TURN, turn.lock())
            .await
            .map_err(|_| host("other changes of this name take too long".to_owned()))?;
        let result = self.gate.pass(timeout(CHANGE, change)).await?;
        drop(held);
        match result {
            Ok(result) => result.map_err(host),
            Err(_) => Err(host(format!("no answer within {} s", CHANGE.as_secs()))),
        }
    }

    fn turn(&self, at: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock();
        // Drop the locks that only the map still holds.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(at.to_owned()).or_default())
    }

    /// The client that changes records of a zone, where one is named.
    async fn provider(&self, solver: &Dns01, zone: Option<&str>) -> Result<Provider, Error> {
        let credentials = self.credentials(solver).await?;
        match zone {
            None => Provider::new(solver, &credentials),
            Some(zone) => {
                let solver = cloud::route53::with_zone(solver, zone, &credentials).await;
                Provider::new(&solver, &credentials)
            }
        }
    }

    async fn credentials(&self, solver: &Dns01) -> Result<HostCredentials, Error> {
        let Some(secret) = &solver.credentials else {
            return Ok(identity(solver).await?.unwrap_or_default());
        };
        let key = SecretRef::new(Arc::clone(&self.namespace), secret.as_str());
        let found = secrets::get(&self.kube, &key).await;
        let found = found.map_err(|source| Error::Cluster {
            provider: solver.provider.clone(),
            source,
        })?;
        Ok(HostCredentials::new(key.to_string(), found.data))
    }
}

/// Adds a value to a record set that others may use too; true if that changes it.
fn put(values: &mut Vec<String>, value: &str) -> bool {
    let there = values.iter().any(|it| it == value);
    if !there {
        values.push(value.to_owned());
    }
    !there
}

/// Removes a value from such a record set; true if that changes it.
fn take(values: &mut Vec<String>, value: &str) -> bool {
    let before = values.len();
    values.retain(|it| it != value);
    values.len() < before
}

/// The credentials from the pod's identity, if the provider uses it.
async fn identity(solver: &Dns01) -> Result<Option<HostCredentials>, Error> {
    if solver.provider != "route53" {
        return Ok(None);
    }
    let setting = |key: &str| solver.settings.get(key).map(String::as_str);
    let environment = Environment::of_process();
    let found =
        cloud::aws::credentials(&environment, setting("role"), setting("stsEndpoint")).await;
    let found = found.map_err(|expected| Error::Settings {
        provider: solver.provider.clone(),
        expected,
    })?;
    let cloud::aws::Temporary {
        access_key_id,
        secret_access_key,
        session_token,
    } = found;
    let data = [
        (needs::ACCESS_KEY_ID, access_key_id),
        (needs::SECRET_ACCESS_KEY, secret_access_key),
        (needs::SESSION_TOKEN, session_token),
    ];
    Ok(Some(HostCredentials::of_identity(data)))
}

fn unseen(lacking: &[(String, String)], silent: &[(String, String)]) -> String {
    let lacking =
        { lacking.iter() }.map(|(name, what)| format!("{name} does not have it ({what})"));
    let silent = { silent.iter() }
        .map(|(name, what)| format!("{name} does not answer for the zone ({what})"));
    lacking.chain(silent).collect::<Vec<_>>().join("; ")
}

/// A host's error text without secrets, short and on one line.
fn cleaned(words: &str, secrets: &[&str]) -> String {
    let mut words = words.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        words = words.replace(secret, "***");
    }
    shown(&words)
}

/// Reads an answer of a DNS host from any input.
#[cfg(test)]
pub(crate) fn read(input: &[u8]) {
    cloud::read(input);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_the_hash_of_the_key_authorization() {
        // sha256("") in base64url.
        assert_eq!(value(""), "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU");
    }

    #[test]
    fn a_hosts_words_hold_no_secret() {
        let words = "GET https://a.example/?token=t0ken failed\nbecause of t0ken";
        let cleaned = cleaned(words, &["t0ken", ""]);
        assert!(
            !cleaned.contains("t0ken") && cleaned.contains("token=***") && !cleaned.contains('\n')
        );
    }
}

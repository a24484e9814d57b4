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
mod needs;
mod provider;
mod rfc2136;
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
use cert_renew_core::text::name::Name;
use cert_renew_core::text::shown;
use cloud::identity::Environment;
use kube::Client;
use needs::Credentials;
use provider::Provider;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::order_records::Txt;
use crate::cluster::{self, secrets};
use crate::net::dns::{self, Authority, RecordType, Resolver, Sight};
use crate::net::egress::Nearby;
use crate::process::write_gate::{Closed, WriteGate};

/// Label below the name at which the CA looks (RFC 8555, section 8.4).
const LABEL: &str = "_acme-challenge";
/// A sibling of that label at which no record exists, except those of a wildcard.
const NOBODY: &str = "_cert-renew-sees-a-wildcard";
/// Longest change at one host: some take several requests, and wait for a limit between them.
const CHANGE: Duration = Duration::from_secs(60);
/// Longest wait for other changes of the same name.
const TURN: Duration = Duration::from_secs(180);
/// TTL of our TXT records in seconds; many hosts refuse lower values.
const TTL: u32 = 60;
/// Shortest time between two looks at the zone's servers; it is short for the sake of quick ones.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Most attempts to remove a record.
const REMOVALS: usize = 3;
/// Longest wait for servers that do not answer once all others have the record: a dead one must not delay everything,
/// and a slow one may still answer.
const SILENCE: Duration = Duration::from_secs(20);
/// Most sockets that one order has for its looks at the same time: each look has one for each server of the zone, and a
/// server that does not answer holds it for ten seconds. Of a zone with four servers, 64 records are looked at at a time.
const SOCKETS: u32 = 256;

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

/// Places for the looks at the records of one order. A look has one for each server while it asks, and none while it waits
/// to ask again.
#[derive(Debug)]
pub struct LookPlaces(Semaphore);

impl Default for LookPlaces {
    fn default() -> Self {
        Self(Semaphore::new(SOCKETS as usize))
    }
}

/// The TXT value of a key authorization (RFC 8555, section 8.4).
#[must_use]
pub fn value(key_authorization: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, key_authorization.as_bytes()))
}

/// The place of the proof for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The name at which the CA looks first.
    pub asked: String,
    /// The name of the record: the same, or where its CNAMEs lead.
    pub at: String,
    /// The zone that holds it.
    pub zone: String,
}

/// Finds the place of the proof for a name.
///
/// A CNAME at the name at which the CA looks is followed: the zone delegates its challenges. A CNAME that comes only
/// from a wildcard (`*.example.com`) is not meant for that, and a record of our own hides it.
///
/// # Errors
/// When DNS gives no answer.
pub async fn site(resolver: &Resolver, name: &Name) -> Result<Site, dns::Error> {
    let bare = name.to_string();
    let bare = bare.strip_prefix("*.").unwrap_or(&bare);
    let asked = dns::name(&format!("{LABEL}.{bare}"))?;
    let mut at = resolver.follow(&asked).await?;
    if at != asked {
        let neighbour = dns::name(&format!("{NOBODY}.{bare}"))?;
        let first = |name| resolver.records(name, RecordType::CNAME);
        if first(&neighbour).await? == first(&asked).await? {
            at = asked.clone();
        }
    }
    let zone = resolver.zone(&at).await?;
    Ok(Site {
        asked: dns::text(&asked),
        at: dns::text(&at),
        zone: dns::text(&zone),
    })
}

impl Site {
    /// Checks that the record is within the solver's zones. The owner of a name's zone decides where its CNAMEs lead,
    /// and the credentials may be good for more zones than intended: if a solver names its zones, no record is set
    /// outside of them.
    ///
    /// # Errors
    /// When the CNAMEs lead out of them.
    pub fn is_within(&self, zones: &[Box<str>], solver: &Dns01) -> Result<(), Error> {
        let within = |zone: &str| {
            let rest = self.at.strip_suffix(zone);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        // acme-dns writes only below the names that it has assigned to us.
        let is_bound = solver.provider != "acme-dns" && self.at != self.asked;
        if !is_bound || zones.is_empty() || zones.iter().any(|zone| within(zone)) {
            return Ok(());
        }
        Err(Error::Outside {
            asked: self.asked.clone(),
            at: self.at.clone(),
            zones: zones.join(", "),
        })
    }
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

    async fn credentials(&self, solver: &Dns01) -> Result<Credentials, Error> {
        let Some(secret) = &solver.credentials else {
            return Ok(identity(solver).await?.unwrap_or_default());
        };
        let key = SecretRef::new(Arc::clone(&self.namespace), secret.as_str());
        let found = secrets::get(&self.kube, &key).await;
        let found = found.map_err(|source| Error::Cluster {
            provider: solver.provider.clone(),
            source,
        })?;
        Ok(Credentials::new(key.to_string(), found.data))
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
async fn identity(solver: &Dns01) -> Result<Option<Credentials>, Error> {
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
    Ok(Some(Credentials::of_identity(data)))
}

/// Waits until `deadline` for every server of the zone to have the record, or every resolver where the servers cannot
/// be asked; `nearby` is where the CA is, which asks the same servers. Servers that do not answer are skipped after
/// a while, as long as another one has it. All records of an order share `places`; one that has waited for the first
/// place until after `deadline` is looked at once.
///
/// # Errors
/// When some do not have it by then, or the servers cannot be found.
pub async fn seen(
    (nearby, places): (Nearby, &LookPlaces),
    resolver: &Resolver,
    txt: &Txt,
    deadline: Instant,
) -> Result<(), Error> {
    let propagation = &txt.solver.propagation;
    if propagation.check {
        // It is never closed.
        let held = places.0.acquire().await;
        let started = Instant::now();
        let silence = SILENCE.min(deadline.duration_since(started) / 2);
        let mut authorities = authorities(nearby, resolver, txt).await?;
        drop(held);
        let at = dns::name(&txt.at)?;
        let mut pause = FIRST_LOOK;
        let mut has_any = false;
        loop {
            let sockets = u32::try_from(authorities.len()).unwrap_or(SOCKETS);
            let held = places.0.acquire_many(sockets.clamp(1, SOCKETS)).await;
            let found = dns::look(&authorities, &at, &txt.value).await;
            drop(held);
            let (mut lacking, mut silent) = (Vec::new(), Vec::new());
            for (name, sight) in found {
                match sight {
                    Sight::Has => has_any = true,
                    Sight::Lacks(what) => lacking.push((name, what)),
                    Sight::Silent(what) => silent.push((name, what)),
                }
            }
            if lacking.is_empty() && silent.is_empty() {
                break;
            }
            if lacking.is_empty() && has_any && started.elapsed() >= silence {
                let servers: Vec<&str> = silent.iter().map(|(name, _)| &**name).collect();
                let servers = servers.join(", ");
                tracing::warn!(
                    at = txt.at,
                    zone = txt.zone,
                    servers,
                    "servers of the zone do not answer for it and are skipped: all others have the TXT record"
                );
                break;
            }
            if Instant::now() + pause > deadline {
                return Err(Error::NotSeen {
                    at: txt.at.clone(),
                    lacking,
                    silent,
                });
            }
            let is_left = |name: &str| {
                let mut left = lacking.iter().chain(&silent);
                left.any(|(left, _)| *left == name)
            };
            authorities.retain(|it| is_left(&it.name));
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
    sleep(propagation.wait).await;
    Ok(())
}

/// Whether any server of the zone has the record.
///
/// # Errors
/// When none of them answers, or they cannot be found.
pub async fn stands(nearby: Nearby, resolver: &Resolver, txt: &Txt) -> Result<bool, Error> {
    let authorities = authorities(nearby, resolver, txt).await?;
    let found = dns::look(&authorities, &dns::name(&txt.at)?, &txt.value).await;
    if { found.iter() }.all(|(_, sight)| matches!(sight, Sight::Silent(_))) {
        return Err(Error::NoAuthority(txt.zone.clone()));
    }
    Ok(found.iter().any(|(_, sight)| *sight == Sight::Has))
}

async fn authorities(
    nearby: Nearby,
    resolver: &Resolver,
    txt: &Txt,
) -> Result<Vec<Authority>, Error> {
    let named = &txt.solver.propagation.servers;
    if !named.is_empty() {
        return Ok(named.iter().copied().map(Authority::at).collect());
    }
    let found = resolver.authorities(nearby, &dns::name(&txt.zone)?).await?;
    if found.iter().all(|authority| authority.addresses.is_empty()) {
        return Err(Error::NoAuthority(txt.zone.clone()));
    }
    Ok(found)
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
    use std::collections::HashSet;

    use cert_renew_core::config::Propagation;
    use futures::future::try_join_all;
    use tokio::net::UdpSocket;

    use super::*;

    #[tokio::test]
    async fn the_records_of_an_order_are_looked_at_by_a_bounded_number_of_sockets() {
        let mut silent = Vec::new();
        for _ in 0..4 {
            silent.push(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        }
        let servers = silent.iter().map(|it| it.local_addr().unwrap());
        let servers: Vec<_> = servers.collect();
        let record = |number: usize| Txt {
            of: format!("n{number}.example"),
            at: format!("_acme-challenge.n{number}.example"),
            zone: "example".into(),
            value: "proof".into(),
            solver: Dns01 {
                provider: "webhook".into(),
                credentials: None,
                settings: Default::default(),
                propagation: Propagation {
                    servers: servers.clone(),
                    ..Propagation::default()
                },
            },
        };
        let records: Vec<Txt> = (0..100).map(record).collect();
        let resolver = Resolver::new(&servers[..1]).unwrap();
        let (places, until) = (LookPlaces::default(), Instant::now() + SILENCE);
        let looks = records
            .iter()
            .map(|txt| seen((Nearby::Open, &places), &resolver, txt, until));
        // Sooner than any of them asks again.
        let looked = timeout(Duration::from_millis(200), try_join_all(looks)).await;
        assert!(looked.is_err(), "nothing is answered");
        // Sockets of two servers may have the same port.
        let mut asked = HashSet::new();
        for (server, socket) in silent.iter().enumerate() {
            let mut packet = [0; 512];
            while let Ok((_, from)) = socket.try_recv_from(&mut packet) {
                asked.insert((server, from));
            }
        }
        // Of a question that is sent again, both count.
        let most = usize::try_from(SOCKETS).unwrap();
        assert!((most..=2 * most).contains(&asked.len()), "{}", asked.len());
    }

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

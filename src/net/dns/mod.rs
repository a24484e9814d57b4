//! Questions to DNS servers: which zone a name is in, where a CNAME leads, what every server of the zone says.
//!
//! Input: the resolvers of the config, else the system's. Each question has a deadline. Nothing is cached, because the
//! answers must show a record that was just set. Nothing is changed: that is for the solvers.
//!
//! A zone's own servers are asked on port 53. A resolver over TLS or HTTPS is configured where that port is closed, so
//! with such a resolver no server of a zone is asked: the resolvers are asked instead.

mod server;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cert_renew_core::config::{ResolverAddress, Resolvers};
use futures::future::join_all;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::Record;
pub use hickory_proto::rr::{Name, RData, RecordType};
use parking_lot::Mutex;
use rustls::ClientConfig;
pub use server::Server;
use thiserror::Error;

use crate::net::egress::Nearby;
use crate::net::https;

/// Most CNAMEs followed from one name; more is a mistake.
const CNAMES: usize = 8;
/// Most servers asked of a zone, and most addresses used of each: the owner of a zone may name as many as fit into an
/// answer, and each is asked at once, from a socket of its own. The root has thirteen.
const MOST_SERVERS: usize = 16;
const MOST_ADDRESSES: usize = 4;
/// Port of DNS servers.
const PORT: u16 = 53;
/// The system's resolver.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why DNS gives no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// No server is known.
    #[error("no DNS server: dns.nameservers is empty and {RESOLV_CONF} names none")]
    NoServer,
    /// The root certificates for encrypted resolvers cannot be read.
    #[error("dns.caBundle: {0}")]
    Roots(String),
    /// Not a name that DNS knows.
    #[error("{0}: not a name that DNS can hold")]
    Name(String),
    /// No server answered.
    #[error("{kind} {name}: no answer from {server}: {why}")]
    Unanswered {
        /// The name.
        name: String,
        /// The type of record.
        kind: RecordType,
        /// The server that was asked last.
        server: String,
        /// The error.
        why: String,
    },
    /// The server reports a failure.
    #[error("{kind} {name}: {server} answers {}{}", answer_of(*code), if *code == ResponseCode::ServFail { " (broken DNSSEC looks like this)" } else { "" })]
    Failed {
        /// The name.
        name: String,
        /// The type of record.
        kind: RecordType,
        /// The server.
        server: String,
        /// Its answer.
        code: ResponseCode,
    },
    /// CNAMEs that lead in a circle, or too far.
    #[error("{0}: its CNAME records lead in a circle, or over more than {CNAMES} names")]
    Circle(String),
    /// No zone holds the name.
    #[error("{0}: no zone was found for it (no SOA record at or above it)")]
    NoZone(String),
}

impl Error {
    /// The answer, or what came instead.
    fn answered(&self) -> String {
        match self {
            Self::Unanswered { why, .. } => why.clone(),
            Self::Failed { code, .. } => answer_of(*code),
            other => other.to_string(),
        }
    }
}

/// The recursive servers that are asked first.
#[derive(Clone, Debug)]
pub struct Resolver {
    servers: Vec<Server>,
}

impl Resolver {
    /// The configured servers, else those of the system as they are now.
    ///
    /// # Errors
    /// When there are none, or the root certificates for them cannot be read.
    pub fn new(configured: impl Into<Resolvers>) -> Result<Self, Error> {
        let Resolvers {
            mut addresses,
            ca_bundle,
        } = configured.into();
        if addresses.is_empty() {
            let system = nameservers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default());
            addresses = system.into_iter().map(Into::into).collect();
        }
        if addresses.is_empty() {
            return Err(Error::NoServer);
        }
        let tls = if addresses.iter().any(ResolverAddress::is_encrypted) {
            let read = |path: &std::path::PathBuf| {
                std::fs::read(path)
                    .map_err(|error| Error::Roots(format!("reading {}: {error}", path.display())))
            };
            let bundle = ca_bundle.as_ref().map(read).transpose()?;
            Some(tls(bundle.as_deref())?)
        } else {
            None
        };
        let servers = addresses.into_iter();
        Ok(Self {
            servers: { servers.map(|address| Server::new(address, tls.clone())) }.collect(),
        })
    }

    /// Whether one of them is asked over TLS or HTTPS. Then all of these are asked, and a zone's own servers are not.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.servers.iter().any(Server::is_encrypted)
    }

    /// The answer of the first server that has one; NXDOMAIN is an answer too.
    ///
    /// # Errors
    /// When no server answers.
    pub async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, Error> {
        let mut last = Error::NoServer;
        for server in &self.servers {
            match server.ask(name, kind).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The records of this type at exactly this name, CNAMEs not followed.
    ///
    /// # Errors
    /// When no server answers.
    pub async fn records(&self, name: &Name, kind: RecordType) -> Result<Vec<RData>, Error> {
        let answer = self.ask(name, kind).await?;
        let found = answer.answers.into_iter();
        Ok(found
            .filter(|record| record.record_type() == kind && same(&record.name, name))
            .map(|record| record.data)
            .collect())
    }

    /// Where the CNAMEs from this name end; the name itself where it has none.
    ///
    /// # Errors
    /// When they lead in a circle, or no server answers.
    pub async fn follow(&self, name: &Name) -> Result<Name, Error> {
        let mut seen = HashSet::from([name.to_lowercase()]);
        let mut at = name.clone();
        loop {
            let next = self.records(&at, RecordType::CNAME).await?;
            let Some(RData::CNAME(next)) = next.into_iter().next() else {
                return Ok(at);
            };
            at = next.0;
            if seen.len() > CNAMES || !seen.insert(at.to_lowercase()) {
                return Err(Error::Circle(text(name)));
            }
        }
    }

    /// The zone that holds a name: the nearest SOA record at or above it.
    ///
    /// # Errors
    /// When there is none, or no server answers.
    pub async fn zone(&self, name: &Name) -> Result<Name, Error> {
        let mut at = name.clone();
        while !at.is_root() {
            let answer = self.ask(&at, RecordType::SOA).await?;
            if let Some(zone) = soa_owner(&answer, &at) {
                return Ok(zone);
            }
            at = at.base_name();
        }
        Err(Error::NoZone(text(name)))
    }

    /// The addresses of a host, at the end of its CNAMEs. Where one family cannot be looked up, those of the other, as CAs do
    /// it.
    ///
    /// # Errors
    /// When no server answers for either family, or none for one and the other has no address.
    pub async fn addresses(&self, name: &Name) -> Result<Vec<IpAddr>, Error> {
        let (mut addresses, mut failed) = (Vec::new(), None);
        for kind in [RecordType::A, RecordType::AAAA] {
            let answer = match self.ask(name, kind).await {
                Ok(answer) => answer,
                Err(error) => {
                    failed.get_or_insert(error);
                    continue;
                }
            };
            for record in answer.answers {
                match record.data {
                    RData::A(address) => addresses.push(IpAddr::V4(address.0)),
                    RData::AAAA(address) => addresses.push(IpAddr::V6(address.0)),
                    _ => {}
                }
            }
        }
        match failed {
            Some(error) if addresses.is_empty() => Err(error),
            _ => Ok(addresses),
        }
    }

    /// Why a host cannot be reached, if DNS is the reason: there is no such name, or it has no address.
    pub async fn why_unreachable(&self, host: &str) -> Option<String> {
        let name = name(host).ok()?;
        let server = self.servers.first()?;
        let answer = match self.ask(&name, RecordType::A).await {
            Ok(answer) => answer,
            Err(error) => return Some(error.to_string()),
        };
        if answer.metadata.response_code == ResponseCode::NXDomain {
            return Some(format!("{host} does not exist (NXDOMAIN, asked {server})"));
        }
        let addresses = self.addresses(&name).await.ok()?;
        let none = addresses.is_empty();
        none.then(|| format!("{host} has no address (no A or AAAA record, asked {server})"))
    }

    /// The servers of a zone by their names, each with its addresses, up to a limit. The owner of the zone
    /// names them, and the zone may be a user's: addresses that `nearby` does not allow are left out.
    ///
    /// The resolvers themselves, if port 53 is assumed to be closed: [`Self::is_encrypted`].
    ///
    /// # Errors
    /// When no server answers.
    pub async fn authorities(&self, nearby: Nearby, zone: &Name) -> Result<Vec<Authority>, Error> {
        if self.is_encrypted() {
            return Ok(self.servers.iter().map(Authority::resolver).collect());
        }
        let mut authorities = Vec::new();
        let servers = self.records(zone, RecordType::NS).await?.into_iter();
        for data in servers.take(MOST_SERVERS) {
            let RData::NS(name) = data else { continue };
            // A server whose name does not resolve counts as one that does not answer.
            let addresses = self.addresses(&name.0).await;
            authorities.push(Authority {
                name: text(&name.0),
                kind: Kind::Own,
                addresses: { addresses.into_iter().flatten() }
                    .filter(|ip| nearby.allows(*ip))
                    .map(|ip| SocketAddr::new(ip, PORT).into())
                    .take(MOST_ADDRESSES)
                    .collect(),
            });
        }
        Ok(authorities)
    }
}

/// Resolvers by the config's settings for a name: those with the same servers share their connections.
#[derive(Debug, Default)]
pub struct ResolverSet(Mutex<Vec<(Resolvers, Resolver)>>);

impl ResolverSet {
    /// The resolver for these servers.
    ///
    /// # Errors
    /// As [`Resolver::new`].
    pub fn get(&self, resolvers: Resolvers) -> Result<Resolver, Error> {
        let mut made = self.0.lock();
        if let Some((_, resolver)) = made.iter().find(|(known, _)| *known == resolvers) {
            return Ok(resolver.clone());
        }
        let resolver = Resolver::new(resolvers.clone())?;
        made.push((resolvers, resolver.clone()));
        Ok(resolver)
    }
}

/// A server that a zone's NS records name, or a resolver that is asked in its place.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Its name.
    pub name: String,
    /// Its addresses; one that answers is enough.
    pub addresses: Vec<Server>,
    kind: Kind,
}

/// What an [`Authority`] is, and so what its answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A server of the zone: only what it says with authority counts.
    Own,
    /// A server that the config names: whatever it says counts.
    Named,
    /// A resolver. It caches that there was no record.
    Resolver,
}

impl Authority {
    /// A server that is known by its address.
    #[must_use]
    pub fn at(address: SocketAddr) -> Self {
        Self {
            name: address.to_string(),
            addresses: vec![address.into()],
            kind: Kind::Named,
        }
    }

    fn resolver(server: &Server) -> Self {
        Self {
            name: server.to_string(),
            addresses: vec![server.clone()],
            kind: Kind::Resolver,
        }
    }

    /// The TXT values that it has at this name; `None` where it does not answer.
    pub async fn texts(&self, name: &Name) -> Option<Vec<String>> {
        let answer = self.answer(name).await.ok()?;
        Some(answer.answers.iter().filter_map(txt).collect())
    }

    /// Its answer, or what came instead. A lame server, that the zone names and that does not have the zone, says nothing
    /// about what is not there: it refers to others, or passes on what it has cached.
    async fn answer(&self, name: &Name) -> Result<Message, String> {
        let mut last = "no address of it is known, or none that may be asked".to_owned();
        for server in &self.addresses {
            match server.ask(name, RecordType::TXT).await {
                Ok(answer) if self.speaks(&answer) => return Ok(answer),
                Ok(_) => last = "it does not have the zone: its answer has no authority".to_owned(),
                Err(error) => last = error.answered(),
            }
        }
        Err(last)
    }

    fn speaks(&self, answer: &Message) -> bool {
        let has_any = answer.answers.iter().any(|it| txt(it).is_some());
        self.kind != Kind::Own || answer.metadata.authoritative || has_any
    }

    async fn sight(&self, name: &Name, value: &str) -> Sight {
        let answer = match self.answer(name).await {
            Ok(answer) => answer,
            Err(what) => return Sight::Silent(what),
        };
        if answer.answers.iter().filter_map(txt).any(|it| it == value) {
            return Sight::Has;
        }
        let mut what = absence(&answer);
        if let Some(seconds) = remembered(&answer).filter(|_| self.kind == Kind::Resolver) {
            what += &format!(", which it may go on answering for {seconds} s");
        }
        Sight::Lacks(what)
    }
}

/// A server's view of a TXT record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It has the record.
    Has,
    /// It answers without the record; with its answer.
    Lacks(String),
    /// It does not answer for the zone; with what came instead.
    Silent(String),
}

/// The view of each of `authorities`, by name, of the TXT record.
pub async fn look(authorities: &[Authority], name: &Name, value: &str) -> Vec<(String, Sight)> {
    let asked = { authorities.iter() }
        .map(|it| async move { (it.name.clone(), it.sight(name, value).await) });
    join_all(asked).await
}

/// The usual name of a response code.
fn answer_of(code: ResponseCode) -> String {
    match code {
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        code => code.to_string(),
    }
}

/// Describes an answer without the record.
fn absence(answer: &Message) -> String {
    if answer.metadata.response_code == ResponseCode::NXDomain {
        return answer_of(ResponseCode::NXDomain);
    }
    match answer.answers.iter().filter_map(txt).count() {
        0 => "NODATA".to_owned(),
        1 => "another value".to_owned(),
        count => format!("{count} other values"),
    }
}

/// How long a resolver may cache this answer (RFC 2308, 5), in seconds, at least one.
fn remembered(answer: &Message) -> Option<u32> {
    let records = answer.answers.iter().chain(&answer.authorities);
    records.map(|it| it.ttl).min().filter(|ttl| *ttl > 0)
}

/// The TLS config for encrypted resolvers.
fn tls(bundle: Option<&[u8]>) -> Result<Arc<ClientConfig>, Error> {
    let config = https::roots(bundle).and_then(https::tls);
    let config = config.map_err(|expected| Error::Roots(expected.to_owned()))?;
    Ok(Arc::new(config))
}

/// The text as a DNS name.
///
/// # Errors
/// When it is no valid DNS name.
pub fn name(text: &str) -> Result<Name, Error> {
    let wrong = |_| Error::Name(text.to_owned());
    let mut name = Name::from_ascii(text).map_err(wrong)?;
    name.set_fqdn(true);
    Ok(name)
}

/// The name as people write it: without the dot at the end.
#[must_use]
pub fn text(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn same(one: &Name, other: &Name) -> bool {
    one.eq_ignore_root(other)
}

/// The text of a TXT record: its strings are joined.
fn txt(record: &Record) -> Option<String> {
    let RData::TXT(txt) = &record.data else {
        return None;
    };
    Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned())
}

/// The zone that an answer to a SOA question names: in the answer for a zone's own name, else among the authorities.
fn soa_owner(answer: &Message, asked: &Name) -> Option<Name> {
    let soa = |record: &&Record| record.record_type() == RecordType::SOA;
    let own = answer
        .answers
        .iter()
        .filter(soa)
        .find(|it| same(&it.name, asked));
    // Ignore the SOA of a CNAME's target, which is not above the name, and the root's, which only means NXDOMAIN.
    let above = answer.authorities.iter().filter(soa);
    let above = above
        .filter(|it| !it.name.is_root() && it.name.zone_of(asked))
        .max_by_key(|it| it.name.num_labels());
    own.or(above).map(|it| it.name.clone())
}

fn nameservers(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    lines
        .filter_map(|address| address.parse().ok())
        .map(|ip: IpAddr| SocketAddr::new(ip, PORT))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;

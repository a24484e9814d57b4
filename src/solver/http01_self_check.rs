//! Tries the way of a CA's HTTP-01 request to our port before the CA does.
//!
//! The request goes where the CA's would: to port 80 of the address that DNS gives for the name, over redirects, and
//! with any certificate accepted, as the one that is to be renewed may have expired. The answer is compared, never
//! shown. Users name the host and hold its DNS: whatever DNS and redirects say, we connect where a CA would, and not to
//! what only we can reach.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::config::Resolvers;
use parking_lot::Mutex;
use reqwest::Client;
use reqwest::Url;
use reqwest::dns::{Name as DnsName, Resolve, Resolving};
use reqwest::redirect::Policy;
use thiserror::Error;

use super::http01::PATH;
use crate::net::dns::{self, Resolver};
use crate::net::egress::Nearby;
use crate::net::user_lookups::{NamespaceLookups, UserLookups};

/// Longest request; CAs wait 10 s for the whole answer.
const REQUEST: Duration = Duration::from_secs(10);
/// Longest wait for a connection; after it the address is unreachable.
const CONNECT: Duration = Duration::from_secs(5);
/// Most redirects followed, as by Let's Encrypt.
const REDIRECTS: usize = 10;
/// Ports to which CAs follow redirects (Let's Encrypt refuses others).
const PORTS: [u16; 2] = [80, 443];
/// Most bytes read of an answer, which has some hundred.
const BODY: usize = 4_096;
/// Most addresses of a host that are asked: its DNS may list any number.
const MOST_ADDRESSES: usize = 8;
/// Token that our port always answers.
const HEALTH: &str = "health";
/// The answer to [`HEALTH`].
const HEALTHY: &str = "OK";

/// Why a request would not reach us.
#[derive(Debug, Error)]
#[error("{what} ({url})")]
pub struct Error {
    url: String,
    what: String,
}

/// Resolves names by the system's resolver, where the config names none.
struct BySystem(NamespaceLookups, Nearby);

impl Resolve for BySystem {
    fn resolve(&self, name: DnsName) -> Resolving {
        let (lookups, nearby) = (self.0.clone(), self.1);
        Box::pin(async move {
            let addresses = lookups.addresses(name.as_str()).await?;
            Ok(nearby.of_host(name.as_str(), addresses)?)
        })
    }
}

/// Resolves names by the config's resolvers.
struct ByConfig(Arc<Resolver>, Nearby);

impl Resolve for ByConfig {
    fn resolve(&self, name: DnsName) -> Resolving {
        let (resolver, nearby) = (Arc::clone(&self.0), self.1);
        Box::pin(async move {
            let addresses = resolver.addresses(&dns::name(name.as_str())?).await?;
            Ok(nearby.of_host(name.as_str(), addresses)?)
        })
    }
}

/// Which orders need which route: two orders for one host share its object.
#[derive(Debug, Default)]
pub struct SharedRoutes(Mutex<HashMap<String, HashSet<String>>>);

impl SharedRoutes {
    /// Notes that an order, by the uid of its record, needs a route.
    pub fn hold(&self, record: &str, route: &str) {
        let mut held = self.0.lock();
        held.entry(route.to_owned())
            .or_default()
            .insert(record.to_owned());
    }

    /// Notes that it no longer does; true if no order needs the route any more.
    pub fn release(&self, record: &str, route: &str) -> bool {
        let mut held = self.0.lock();
        let Some(records) = held.get_mut(route) else {
            return true;
        };
        records.remove(record);
        let free = records.is_empty();
        if free {
            held.remove(route);
        }
        free
    }
}

/// Whether a redirect is followed.
fn follows(so_far: usize, to: &Url, nearby: Nearby) -> Result<(), String> {
    nearby.check(to).map_err(|closed| closed.to_string())?;
    let port = to.port_or_known_default().unwrap_or_default();
    if nearby == Nearby::Closed && !PORTS.contains(&port) {
        return Err(format!(
            "a redirect to port {port}; CAs follow to 80 and 443 only"
        ));
    }
    if so_far > REDIRECTS {
        return Err(format!("more than {REDIRECTS} redirects"));
    }
    Ok(())
}

/// Checks that a request for this token of `host` reaches us: the answer is the key authorization. `nearby` is where
/// the CA is: one on this machine sees what is here. The system's resolver, where the config names none, is asked by way
/// of `lookups`.
///
/// Each address of the host is asked, as a CA may connect to any of them. An address that is unreachable from here says
/// nothing where another one answers: a cluster without IPv6 reaches no AAAA.
///
/// # Errors
/// What was answered instead.
pub async fn reaches_us(
    (nearby, lookups): (Nearby, &NamespaceLookups),
    resolvers: &Resolvers,
    host: &str,
    token: &str,
    expected: &str,
) -> Result<(), Error> {
    let url = match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("http://[{address}]{PATH}{token}"),
        Err(_) => format!("http://{host}{PATH}{token}"),
    };
    let wrong = |what: String| Error {
        url: url.clone(),
        what,
    };
    let parsed = Url::parse(&url).map_err(|error| wrong(error.to_string()))?;
    nearby
        .check(&parsed)
        .map_err(|closed| wrong(closed.to_string()))?;
    let by_config = || Resolver::new(resolvers.clone()).map_err(|error| wrong(error.to_string()));
    let is_named = !resolvers.addresses.is_empty();
    let resolver = is_named.then(by_config).transpose()?;
    let resolver = resolver.map(Arc::new);
    let request = Request {
        nearby,
        resolver: resolver.clone(),
        lookups,
        url: &url,
        host,
        expected,
    };
    let addresses = addresses((nearby, lookups), resolver.as_deref(), host).await;
    let (first, several) = match *addresses {
        // DNS says why.
        [] => (request.send(None).await, false),
        [first] => (request.send(Some(first)).await, false),
        [..] => {
            let answers = addresses.iter().map(|at| request.send(Some(*at)));
            let answers = futures::future::join_all(answers).await;
            (worst(&addresses, answers), true)
        }
    };
    match first {
        Answer::Ours => Ok(()),
        Answer::Wrong(what) => Err(wrong(what)),
        Answer::None(what) if several => Err(wrong(what)),
        Answer::None(what) => {
            let resolver = Resolver::new(resolvers.clone()).ok();
            let is_name = host.parse::<IpAddr>().is_err();
            let why = match resolver.filter(|_| is_name) {
                Some(resolver) => resolver.why_unreachable(host).await,
                None => None,
            };
            Err(wrong(why.unwrap_or(what)))
        }
    }
}

/// The result of a request.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// cert-renew answered.
    Ours,
    /// Something else answered.
    Wrong(String),
    /// No answer came.
    None(String),
}

/// One request of a self-check.
struct Request<'a> {
    nearby: Nearby,
    /// The config's resolver; the system's where there is none.
    resolver: Option<Arc<Resolver>>,
    lookups: &'a NamespaceLookups,
    url: &'a str,
    host: &'a str,
    expected: &'a str,
}

impl Request<'_> {
    /// Sends it to this address of the host, or to any that the client chooses.
    async fn send(&self, to: Option<IpAddr>) -> Answer {
        let nearby = self.nearby;
        let redirects = Policy::custom(move |attempt| {
            match follows(attempt.previous().len(), attempt.url(), nearby) {
                Ok(()) => attempt.follow(),
                Err(why) => attempt.error(why),
            }
        });
        let mut builder = Client::builder()
            .no_proxy()
            .user_agent(concat!(
                "cert-renew/",
                env!("CARGO_PKG_VERSION"),
                " self-check"
            ))
            .connect_timeout(CONNECT)
            .timeout(REQUEST)
            .redirect(redirects)
            .dns_resolver(Arc::new(BySystem(self.lookups.clone(), nearby)))
            .tls_danger_accept_invalid_certs(true);
        if let Some(resolver) = &self.resolver {
            builder = builder.dns_resolver(Arc::new(ByConfig(Arc::clone(resolver), nearby)));
        }
        if let Some(address) = to {
            // The port is the URL's.
            builder = builder.resolve(self.host, SocketAddr::new(address, 0));
        }
        let client = match builder.build() {
            Ok(client) => client,
            Err(error) => return Answer::Wrong(cert_renew_core::text::error_chain(&error)),
        };
        let is_address = to.is_some() || self.host.parse::<IpAddr>().is_ok();
        let told = |error: reqwest::Error| match is_address.then(|| timed_out(&error)).flatten() {
            Some(told) => told,
            None => cert_renew_core::text::error_chain(&error.without_url()),
        };
        let mut response = match client.get(self.url).send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Answer::None(told(error)),
            Err(error) => return Answer::Wrong(told(error)),
        };
        let status = response.status();
        let last = response.url().to_string();
        let by = if last == self.url {
            String::new()
        } else {
            format!(" (redirected to {last:.200})")
        };
        if !status.is_success() {
            return Answer::Wrong(format!(
                "answers {status}{by}, expected 200 from cert-renew"
            ));
        }
        let mut body = Vec::new();
        while body.len() <= BODY {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(error) => return Answer::Wrong(told(error)),
            }
        }
        if String::from_utf8_lossy(&body).trim() == self.expected {
            return Answer::Ours;
        }
        Answer::Wrong(format!(
            "somebody else answers{by}: expected the answer of cert-renew, found {} bytes of another",
            body.len()
        ))
    }
}

/// That an address does not answer, if so: the client has several words for it.
fn timed_out(error: &reqwest::Error) -> Option<String> {
    let (what, within) = match error.is_connect() {
        true => ("connection", CONNECT),
        false => ("answer", REQUEST),
    };
    let told = || format!("timed out: no {what} within {} s", within.as_secs());
    error.is_timeout().then(told)
}

/// The addresses of a host that may be connected to; none where DNS gives none, or the host is an address.
async fn addresses(
    (nearby, lookups): (Nearby, &NamespaceLookups),
    resolver: Option<&Resolver>,
    host: &str,
) -> Vec<IpAddr> {
    if host.parse::<IpAddr>().is_ok() {
        return Vec::new();
    }
    let found = match resolver {
        Some(resolver) => found_by(resolver, host).await,
        None => match lookups.addresses(host).await {
            Ok(found) => found,
            // A name that is not found in time counts as one without addresses.
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Vec::new(),
            // The image's C library gives a name up where one family alone cannot be looked up; CAs do not.
            Err(_) => match Resolver::new(Resolvers::default()) {
                Ok(resolver) => found_by(&resolver, host).await,
                Err(_) => Vec::new(),
            },
        },
    };
    let mut known = HashSet::new();
    let open = found.into_iter().filter(|it| nearby.allows(*it));
    let once = open.filter(|it| known.insert(*it));
    once.take(MOST_ADDRESSES).collect()
}

async fn found_by(resolver: &Resolver, host: &str) -> Vec<IpAddr> {
    match dns::name(host) {
        Ok(name) => resolver.addresses(&name).await.unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

/// The result for all addresses of one host: the first wrong answer, else whether any is ours.
fn worst(addresses: &[IpAddr], answers: Vec<Answer>) -> Answer {
    let any_is_ours = answers.contains(&Answer::Ours);
    let mut nobody = None;
    for (address, answer) in addresses.iter().zip(answers) {
        match answer {
            Answer::Ours => {}
            Answer::Wrong(what) => {
                let count = addresses.len();
                return Answer::Wrong(format!(
                    "at {address}, one of its {count} addresses: {what}"
                ));
            }
            Answer::None(what) => {
                nobody.get_or_insert_with(|| Answer::None(format!("{address}: {what}")));
            }
        }
    }
    nobody.filter(|_| !any_is_ours).unwrap_or(Answer::Ours)
}

/// Checks that challenges of `host` reach an operator, by a token that every operator answers. Run on the user's
/// machine.
///
/// # Errors
/// What was answered instead.
pub async fn check(resolvers: &Resolvers, host: &str) -> Result<(), Error> {
    let from = (Nearby::Open, &Arc::<UserLookups>::default().of(""));
    reaches_us(from, resolvers, host, HEALTH, HEALTHY).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::dns::tests::{address, serving};

    #[test]
    fn a_route_goes_with_the_last_order_that_needs_it() {
        let held = SharedRoutes::default();
        held.hold("a", "route");
        held.hold("a", "route");
        held.hold("b", "route");
        assert!(!held.release("a", "route"));
        assert!(held.release("b", "route"));
        assert!(held.release("unknown", "route"));
    }

    /// DNS is followed as far as a CA would, never to ourselves or to metadata.
    #[tokio::test]
    async fn what_dns_says_leads_neither_to_this_machine_nor_to_metadata() {
        let records = vec![
            address("own.example", "127.0.0.1"),
            address("metadata.example", "169.254.169.254"),
        ];
        let dns = Resolvers::from(&[serving(records).await]);
        let refused = async |nearby: Nearby, host: &str| {
            let from = (nearby, &Arc::<UserLookups>::default().of("shop"));
            let error = reaches_us(from, &dns, host, "token", "proof").await;
            error.unwrap_err().to_string()
        };
        for host in [
            "own.example",
            "metadata.example",
            "127.0.0.1",
            "169.254.169.254",
            "::1",
            "fe80::1",
        ] {
            let said = refused(Nearby::Closed, host).await;
            assert!(said.contains("metadata address"), "{host}: {said}");
        }
        for host in ["metadata.example", "169.254.169.254", "fe80::1"] {
            let said = refused(Nearby::Open, host).await;
            assert!(said.contains("metadata address"), "{host}: {said}");
        }
        // The name of this machine is refused before it is resolved.
        let said = refused(Nearby::Closed, "localhost").await;
        assert!(said.contains("metadata address"), "{said}");
    }

    #[test]
    fn each_address_of_a_host_has_to_lead_to_us_and_one_that_is_out_of_reach_says_nothing() {
        let addresses: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|it| it.parse().unwrap());
        let wrong = || Answer::Wrong("answers 404".into());
        let nobody = || Answer::None("refused".into());
        for (answers, expected) in [
            ([Answer::Ours, Answer::Ours], None),
            ([Answer::Ours, nobody()], None),
            ([nobody(), Answer::Ours], None),
            (
                [Answer::Ours, wrong()],
                Some("at 2001:db8::1, one of its 2"),
            ),
            ([wrong(), nobody()], Some("at 192.0.2.1")),
            ([nobody(), nobody()], Some("192.0.2.1: refused")),
        ] {
            let told = match worst(&addresses, answers.into()) {
                Answer::Ours => None,
                Answer::Wrong(what) | Answer::None(what) => Some(what),
            };
            assert_eq!(told.is_some(), expected.is_some(), "{told:?}");
            let expected = expected.unwrap_or_default();
            assert!(told.unwrap_or_default().starts_with(expected), "{expected}");
        }
    }

    /// Two clusters behind one name, of which one has no operator (kube-cert-manager #102).
    #[tokio::test]
    async fn a_host_with_an_address_that_leads_elsewhere_is_told_with_that_address() {
        let serve = async |address: &str, body: &'static str| {
            let listener = tokio::net::TcpListener::bind((address, 80)).await.ok()?;
            let router = axum::Router::new().fallback(move || async move { body });
            Some(tokio::spawn(
                async move { axum::serve(listener, router).await },
            ))
        };
        let (here, there) = ("127.93.0.1", "127.93.0.2");
        let (Some(ours), Some(other)) = (serve(here, "proof").await, serve(there, "no").await)
        else {
            eprintln!("not run: a self-check comes to port 80, which this user may not listen on");
            return;
        };
        let records = vec![
            address("both.example", here),
            address("both.example", there),
            address("one.example", here),
        ];
        let dns = Resolvers::from(&[serving(records).await]);
        let told = async |host: &str| {
            let from = (Nearby::Open, &Arc::<UserLookups>::default().of("shop"));
            let reached = reaches_us(from, &dns, host, "token", "proof").await;
            reached.err().map(|error| error.to_string())
        };
        assert_eq!(told("one.example").await, None);
        let both = told("both.example").await.unwrap();
        assert!(
            both.contains(&format!("at {there}, one of its 2 addresses")),
            "{both}"
        );
        other.abort();
        let _ = other.await;
        assert_eq!(told("both.example").await, None, "nobody is there any more");
        ours.abort();
    }

    /// It is what a NetworkPolicy makes of it, for which docs/troubleshooting.md has a row.
    #[tokio::test(start_paused = true)]
    async fn an_address_that_takes_no_connection_is_told_in_one_way() {
        // A queue for one connection, from which nobody takes it.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(0).unwrap();
        let address = full.local_addr().unwrap();
        let _first = std::net::TcpStream::connect(address).unwrap();
        let lookups = Arc::<UserLookups>::default().of("shop");
        let request = Request {
            nearby: Nearby::Open,
            resolver: None,
            lookups: &lookups,
            url: &format!("http://{address}/"),
            host: "127.0.0.1",
            expected: "proof",
        };
        let expected = Answer::None("timed out: no connection within 5 s".into());
        assert_eq!(request.send(None).await, expected);
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/troubleshooting.md");
        let page = std::fs::read_to_string(page).unwrap();
        let row = page.lines().find(|line| line.starts_with("| `timed out` "));
        let row = row.unwrap();
        for part in [
            "NetworkPolicy `cert-renew`",
            "#the-self-check-and-the-networkpolicy",
        ] {
            assert!(row.contains(part), "{part}: {row}");
        }
    }

    #[test]
    fn redirects_are_followed_as_far_as_a_ca_follows_them() {
        for (url, so_far, closed, open) in [
            ("https://other.example/x", 1, true, true),
            ("http://other.example:80/x", REDIRECTS, true, true),
            ("http://other.example/x", REDIRECTS + 1, false, false),
            ("http://other.example:8080/x", 1, false, true),
            ("https://10.0.0.1:6443/api", 1, false, true),
            ("http://localhost/x", 1, false, true),
            ("http://127.0.0.1/x", 1, false, true),
            ("http://169.254.169.254/latest/", 1, false, false),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(
                follows(so_far, &url, Nearby::Closed).is_ok(),
                closed,
                "{url}"
            );
            assert_eq!(follows(so_far, &url, Nearby::Open).is_ok(), open, "{url}");
        }
    }
}

//! The way of a CA's HTTP-01 request to our port, tried by ourselves before the CA is.
//!
//! The request goes where the CA's would: to port 80 of the address that DNS gives for the name, over redirects, and
//! through whatever certificate stands there, as the one that is to be renewed may have expired. What comes back is
//! compared, never shown.
//! Users name the host and hold its DNS: whatever that and redirects say, we go where a CA would go and not to what only
//! we can reach.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Client;
use reqwest::Url;
use reqwest::dns::{Name as DnsName, Resolve, Resolving};
use reqwest::redirect::Policy;
use thiserror::Error;

use super::http01::PATH;
use crate::dns::{self, Resolver};
use crate::reach::{Nearby, System};

/// CAs wait 10 s for the whole answer.
const REQUEST: Duration = Duration::from_secs(10);
/// Let's Encrypt follows so many.
const REDIRECTS: usize = 10;
/// Where CAs follow redirects to (Let's Encrypt refuses others).
const PORTS: [u16; 2] = [80, 443];
/// An answer is some hundred bytes.
const BODY: usize = 4_096;
/// The token that our port always answers.
const HEALTH: &str = "health";
/// The answer to it.
const HEALTHY: &str = "OK";

/// Why a request would not reach us.
#[derive(Debug, Error)]
#[error("{what} ({url})")]
pub struct Error {
    url: String,
    what: String,
}

/// Asks DNS as the config says.
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
pub struct Held(Mutex<HashMap<String, HashSet<String>>>);

impl Held {
    /// An order, by the uid of its record, needs a route.
    pub fn hold(&self, record: &str, route: &str) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.entry(route.to_owned())
            .or_default()
            .insert(record.to_owned());
    }

    /// It needs it no longer; says whether nobody does.
    pub fn release(&self, record: &str, route: &str) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Whether a request for this token of `host` reaches us: the answer is the key authorization. `nearby` is where the CA
/// is: one on this machine sees what is here.
///
/// # Errors
/// With what came instead.
pub async fn reaches_us(
    nearby: Nearby,
    nameservers: &[SocketAddr],
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
        .timeout(REQUEST)
        .redirect(redirects)
        .dns_resolver(Arc::new(System(nearby)))
        .tls_danger_accept_invalid_certs(true);
    if !nameservers.is_empty() {
        let resolver = Resolver::new(nameservers).map_err(|error| wrong(error.to_string()))?;
        builder = builder.dns_resolver(Arc::new(ByConfig(Arc::new(resolver), nearby)));
    }
    let client = builder.build();
    let client = client.map_err(|error| wrong(crate::cluster::chain(&error)))?;
    let told = |error: reqwest::Error| wrong(crate::cluster::chain(&error.without_url()));
    let mut response = match client.get(&url).send().await {
        Ok(response) => response,
        Err(error) => {
            let resolver = Resolver::new(nameservers).ok();
            let is_name = host.parse::<std::net::IpAddr>().is_err();
            let why = match resolver.filter(|_| is_name && error.is_connect()) {
                Some(resolver) => resolver.why_unreachable(host).await,
                None => None,
            };
            return Err(why.map_or_else(|| told(error), wrong));
        }
    };
    let status = response.status();
    let last = response.url().to_string();
    let by = if last == url {
        String::new()
    } else {
        format!(" (redirected to {last:.200})")
    };
    if !status.is_success() {
        return Err(wrong(format!(
            "answers {status}{by}, expected 200 from cert-renew"
        )));
    }
    let mut body = Vec::new();
    while body.len() <= BODY
        && let Some(chunk) = response.chunk().await.map_err(told)?
    {
        body.extend_from_slice(&chunk);
    }
    if String::from_utf8_lossy(&body).trim() == expected {
        return Ok(());
    }
    Err(wrong(format!(
        "somebody else answers{by}: expected the answer of cert-renew, found {} bytes of another",
        body.len()
    )))
}

/// Whether challenges of `host` reach an operator, by a token that every one answers. Whoever calls it asks from his own
/// machine.
///
/// # Errors
/// With what came instead.
pub async fn check(nameservers: &[SocketAddr], host: &str) -> Result<(), Error> {
    reaches_us(Nearby::Open, nameservers, host, HEALTH, HEALTHY).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::tests::{address, serving};

    #[test]
    fn a_route_goes_with_the_last_order_that_needs_it() {
        let held = Held::default();
        held.hold("a", "route");
        held.hold("a", "route");
        held.hold("b", "route");
        assert!(!held.release("a", "route"));
        assert!(held.release("b", "route"));
        assert!(held.release("unknown", "route"));
    }

    /// Where DNS leads, we follow as far as a CA would, and never to ourselves or to metadata.
    #[tokio::test]
    async fn what_dns_says_leads_neither_to_this_machine_nor_to_metadata() {
        let records = vec![
            address("own.example", "127.0.0.1"),
            address("metadata.example", "169.254.169.254"),
        ];
        let dns = [serving(records).await];
        let refused = async |nearby: Nearby, host: &str| {
            let error = reaches_us(nearby, &dns, host, "token", "proof").await;
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
        // The name of this machine is refused before anybody is asked where it is.
        let said = refused(Nearby::Closed, "localhost").await;
        assert!(said.contains("metadata address"), "{said}");
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

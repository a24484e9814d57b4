//! The way of a CA's HTTP-01 request to our port, tried by ourselves before the CA is.
//!
//! The request goes where the CA's would: to port 80 of the address that DNS gives for the name, over redirects, and
//! through whatever certificate stands there, as the one that is to be renewed may have expired. What comes back is
//! compared, never shown.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Client;
use reqwest::dns::{Addrs, Name as DnsName, Resolve, Resolving};
use reqwest::redirect::Policy;
use thiserror::Error;

use super::http01::PATH;
use crate::dns::{self, Resolver};

/// CAs wait 10 s for the whole answer.
const REQUEST: Duration = Duration::from_secs(10);
/// Let's Encrypt follows so many.
const REDIRECTS: usize = 10;
/// An answer is some hundred bytes.
const BODY: usize = 4_096;
/// The token that our port always answers.
const HEALTH: &str = "health";
/// The answer to it.
const HEALTHY: &str = "OK";

/// Why a request would not reach us.
#[derive(Debug, Error)]
#[error("{url}: {what}")]
pub struct Error {
    url: String,
    what: String,
}

/// Asks DNS as the config says.
struct ByConfig(Arc<Resolver>);

impl Resolve for ByConfig {
    fn resolve(&self, name: DnsName) -> Resolving {
        let resolver = Arc::clone(&self.0);
        Box::pin(async move {
            let addresses = resolver.addresses(&dns::name(name.as_str())?).await?;
            let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses.collect::<Vec<_>>().into_iter()) as Addrs)
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

/// Whether a request for this token of `host` reaches us: the answer is the key authorization.
///
/// # Errors
/// With what came instead.
pub async fn reaches_us(
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
    let mut builder = Client::builder()
        .no_proxy()
        .user_agent(concat!(
            "cert-renew/",
            env!("CARGO_PKG_VERSION"),
            " self-check"
        ))
        .timeout(REQUEST)
        .redirect(Policy::limited(REDIRECTS))
        .tls_danger_accept_invalid_certs(true);
    if !nameservers.is_empty() {
        let resolver = Resolver::new(nameservers).map_err(|error| wrong(error.to_string()))?;
        builder = builder.dns_resolver(Arc::new(ByConfig(Arc::new(resolver))));
    }
    let client = builder.build();
    let client = client.map_err(|error| wrong(crate::cluster::chain(&error)))?;
    let told = |error: reqwest::Error| wrong(crate::cluster::chain(&error.without_url()));
    let mut response = client.get(&url).send().await.map_err(told)?;
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

/// Whether challenges of `host` reach an operator, by a token that every one answers.
///
/// # Errors
/// With what came instead.
pub async fn check(nameservers: &[SocketAddr], host: &str) -> Result<(), Error> {
    reaches_us(nameservers, host, HEALTH, HEALTHY).await
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

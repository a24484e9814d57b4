//! Addresses that others must not direct us to: this machine, and those where clouds give out credentials.
//!
//! Users name hosts, the owner of a zone sets their addresses, servers redirect, and a pod's status names its address.
//! Any of these may point at our own ports, at a side-car, or at a metadata server. What the administrator has written
//! (the config, the environment) is not checked here. Pure, except for the lookups, which ask DNS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::{fs, io};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use thiserror::Error;
use tokio::task::spawn_blocking;

/// Metadata servers that are not link-local: AWS by IPv6, Azure, Alibaba Cloud.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// Names that this machine knows without DNS, in a pod its `hostAliases`.
const HOSTS: &str = "/etc/hosts";

/// The address may not be connected to.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0} is, or stands for, a loopback, link-local or metadata address; nobody is asked there on the word of DNS, a \
     redirect or a CA"
)]
pub struct Closed(pub String);

/// Whether this machine may be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nearby {
    /// It may not.
    Closed,
    /// It may: the administrator has named a server there (a CA in a side-car, a test).
    Open,
}

impl Nearby {
    /// Open if this URL, which the administrator wrote, is on this machine itself.
    #[must_use]
    pub fn of(url: &str) -> Self {
        let url = Url::parse(url).ok();
        let here = url.as_ref().and_then(Url::host_str).is_some_and(|host| {
            is_localhost(host) || address(host).is_some_and(|it| it.to_canonical().is_loopback())
        });
        if here { Self::Open } else { Self::Closed }
    }

    /// Whether an address may be connected to.
    #[must_use]
    pub fn allows(self, address: IpAddr) -> bool {
        is_elsewhere(address) || self == Self::Open && address.to_canonical().is_loopback()
    }

    /// Checks that a URL may be followed, as far as it contains an address; names are for a resolver to judge.
    ///
    /// # Errors
    /// When it may not.
    pub fn check(self, url: &Url) -> Result<(), Closed> {
        let host = url.host_str().unwrap_or_default();
        let allowed = match address(host) {
            Some(address) => self.allows(address),
            None => self == Self::Open || !is_localhost(host),
        };
        if allowed {
            Ok(())
        } else {
            Err(Closed(host.to_owned()))
        }
    }

    /// The addresses of a host that may be connected to, for an HTTP client.
    ///
    /// # Errors
    /// When it has addresses, but none that may.
    pub fn of_host(
        self,
        host: &str,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Addrs, Closed> {
        let (open, closed): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|it| self.allows(*it));
        if open.is_empty() && !closed.is_empty() {
            return Err(Closed(host.to_owned()));
        }
        let ports = open.into_iter().map(|ip| SocketAddr::new(ip, 0));
        Ok(Box::new(ports.collect::<Vec<_>>().into_iter()))
    }
}

/// The system's resolver, for hosts that the administrator names.
#[derive(Clone, Copy, Debug)]
pub struct Absolute;

impl Resolve for Absolute {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = lookup(name.as_str()).await?.into_iter();
            let addresses: Addrs = Box::new(found.map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}

/// The system's resolver, without the addresses that are closed.
#[derive(Clone, Copy, Debug)]
pub struct System(pub Nearby);

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        let nearby = self.0;
        Box::pin(async move {
            let host = name.as_str();
            let found = lookup(host).await?;
            // A URL of that name is refused before; only a proxy of the environment may still have it.
            let nearby = if is_localhost(host) {
                Nearby::Open
            } else {
                nearby
            };
            Ok(nearby.of_host(host, found)?)
        })
    }
}

/// The addresses that the system's resolver has for a host.
///
/// A name with two dots or more is asked for as it is first, as outside of Kubernetes. Pods have `ndots: 5` and search
/// domains, of which one may have a wildcard, and then every CA and every user's host would be found there. Names such as
/// `ca.pki.svc` do not exist as they are, and are looked for in the search domains next.
///
/// # Errors
/// When it has none, or no server answers.
pub async fn lookup(host: &str) -> io::Result<Vec<IpAddr>> {
    let host = host.to_owned();
    let found = spawn_blocking(move || lookup_and_block(&host)).await;
    found.map_err(io::Error::other)?
}

/// The same on this thread, which is blocked until the system's resolver answers or gives up.
///
/// # Errors
/// As [`lookup`].
pub fn lookup_and_block(host: &str) -> io::Result<Vec<IpAddr>> {
    let resolved = |host: &str| -> io::Result<Vec<IpAddr>> {
        let found = (host, 0).to_socket_addrs()?;
        Ok(found.map(|it| it.ip()).collect())
    };
    // The file's names have no dot at the end.
    if could_be_lengthened(host)
        && !names(&fs::read_to_string(HOSTS).unwrap_or_default(), host)
        && let Ok(found) = resolved(&format!("{host}."))
    {
        return Ok(found);
    }
    resolved(host)
}

/// Whether search domains may be added to a host that is more than the name of a Service with its namespace.
fn could_be_lengthened(host: &str) -> bool {
    host.matches('.').count() > 1 && !host.ends_with('.') && address(host).is_none()
}

/// Whether the text of a hosts file has this host.
fn names(hosts: &str, host: &str) -> bool {
    let lines = hosts.lines().filter_map(|line| line.split('#').next());
    let mut known = lines.flat_map(|line| line.split_whitespace().skip(1));
    known.any(|known| known.eq_ignore_ascii_case(host))
}

/// Whether an address can belong to another host, for example a pod.
#[must_use]
pub fn is_elsewhere(address: IpAddr) -> bool {
    let address = embedded(address);
    let own = match address {
        IpAddr::V4(v4) => {
            v4.octets()[0] == 0 || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast()
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_loopback() || v6.is_unicast_link_local(),
    };
    !own && !address.is_multicast() && !METADATA.contains(&address)
}

/// The IPv4 address that an IPv6 address contains: mapped, or behind NAT64 (RFC 6052).
fn embedded(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            let [.., a, b, c, d] = v6.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        other => other,
    }
}

fn address(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: [&str; 18] = [
        "127.0.0.1",
        "127.8.8.8",
        "169.254.169.254",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "100.100.100.200",
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b::127.0.0.1",
    ];
    const OPEN: [&str; 6] = [
        "10.0.0.7",
        "192.168.1.1",
        "100.64.0.1",
        "203.0.113.1",
        "fd00::7",
        "2001:db8::1",
    ];

    #[test]
    fn neither_this_machine_nor_metadata_is_elsewhere() {
        for (list, expected) in [(&CLOSED[..], false), (&OPEN[..], true)] {
            for text in list {
                assert_eq!(is_elsewhere(text.parse().unwrap()), expected, "{text}");
            }
        }
    }

    #[test]
    fn what_search_domains_may_be_added_to_is_asked_for_as_it_is() {
        for (host, expected) in [
            ("acme.ca.example", true),
            ("ca.pki.svc", true),
            ("ca.pki", false),
            ("localhost", false),
            ("acme.ca.example.", false),
            ("10.0.0.1", false),
            ("[::ffff:10.0.0.1]", false),
        ] {
            assert_eq!(could_be_lengthened(host), expected, "{host}");
        }
        let hosts = "127.0.0.1 localhost\n10.0.0.7\tacme.corp.example ACME # www.corp.example\n";
        for (host, expected) in [
            ("acme.corp.example", true),
            ("Acme", true),
            ("10.0.0.7", false),
            ("www.corp.example", false),
            ("corp.example", false),
        ] {
            assert_eq!(names(hosts, host), expected, "{host}");
        }
    }

    #[test]
    fn a_url_is_followed_to_where_its_host_may_be() {
        let allowed = |url: &str, nearby: Nearby| nearby.check(&Url::parse(url).unwrap()).is_ok();
        for (url, closed, open) in [
            ("http://a.example/x", true, true),
            ("https://10.0.0.1:6443/", true, true),
            ("http://localhost/x", false, true),
            ("http://a.LOCALHOST./x", false, true),
            ("http://127.0.0.1:9402/metrics", false, true),
            // The notations of an address.
            ("http://2130706433/", false, true),
            ("http://0x7f.1/", false, true),
            ("http://[::1]/", false, true),
            ("http://[::ffff:7f00:1]/", false, true),
            ("http://169.254.169.254/latest/meta-data/", false, false),
            ("http://[fe80::1]/", false, false),
            ("http://[fd00:ec2::254]/", false, false),
            ("http://0.0.0.0/", false, false),
        ] {
            assert_eq!(allowed(url, Nearby::Closed), closed, "{url}");
            assert_eq!(allowed(url, Nearby::Open), open, "{url}");
        }
    }

    #[test]
    fn of_the_addresses_of_a_host_the_closed_ones_are_left_out() {
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let mixed = addresses(&["127.0.0.1", "10.0.0.7", "169.254.169.254"]);
        let found = |nearby: Nearby, list: &[IpAddr]| -> Vec<String> {
            let found = nearby.of_host("a.example", list.to_vec()).unwrap();
            found.map(|it| it.ip().to_string()).collect()
        };
        assert_eq!(found(Nearby::Closed, &mixed), ["10.0.0.7"]);
        assert_eq!(found(Nearby::Open, &mixed), ["127.0.0.1", "10.0.0.7"]);
        assert_eq!(found(Nearby::Closed, &[]), [""; 0]);
        let refused = Nearby::Closed.of_host("a.example", addresses(&["127.0.0.1"]));
        assert!(refused.is_err_and(|closed| closed.0 == "a.example"));
    }

    #[test]
    fn only_the_administrators_own_url_opens_this_machine() {
        for url in [
            "https://localhost:9000/acme",
            "http://127.0.0.1:14000/dir",
            "https://[::1]/dir",
        ] {
            assert_eq!(Nearby::of(url), Nearby::Open, "{url}");
        }
        for url in [
            "https://ca.example/dir",
            "https://localhost.example/",
            "https://10.0.0.1/",
            "x",
        ] {
            assert_eq!(Nearby::of(url), Nearby::Closed, "{url}");
        }
    }

    #[tokio::test]
    async fn what_the_system_resolves_to_this_machine_is_closed() {
        let resolved = async |name: &str, nearby: Nearby| {
            let name = name.parse().unwrap();
            let found = System(nearby).resolve(name).await;
            found.map(|mut it| it.next().is_some())
        };
        // A resolver reads an address literally; DNS is not asked.
        assert!(resolved("127.0.0.1", Nearby::Closed).await.is_err());
        assert!(resolved("169.254.169.254", Nearby::Open).await.is_err());
        assert!(resolved("127.0.0.1", Nearby::Open).await.unwrap());
        assert!(resolved("10.0.0.7", Nearby::Closed).await.unwrap());
        assert!(resolved("localhost", Nearby::Closed).await.unwrap());
    }
}

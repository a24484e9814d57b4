//! Which DNS resolvers are asked, and how: on port 53, over TLS (RFC 7858) or over HTTPS (RFC 8484).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

use crate::text::name::Name;

/// Port of a DNS server without one.
const DNS_PORT: u16 = 53;
/// Port of DNS over TLS (RFC 7858, 3.1).
const TLS_PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;

const EXPECTED: &str = "expected an address such as 10.0.0.10, 10.0.0.10:53 or [fd00::a]:53, or a URL such as \
    tls://10.0.0.10, tls://dns.example:853 or https://dns.example/dns-query, #NAME at its end where its certificate has \
    another name";

/// The resolvers for the checks of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// In the order in which they are asked; the system's if empty.
    pub addresses: Vec<ResolverAddress>,
    /// PEM file with roots for those asked over TLS and HTTPS, beside the public ones; an absolute path.
    pub ca_bundle: Option<PathBuf>,
}

/// A resolver, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolverAddress {
    /// `10.0.0.53`, `[fd00::53]:5353`: by UDP, and by TCP if the answer does not fit.
    Plain(SocketAddr),
    /// `tls://dns.example`: DNS over TLS.
    Tls(ResolverHost),
    /// `https://dns.example/dns-query`: DNS over HTTPS, with the path.
    Https(ResolverHost, Box<str>),
}

/// Host of a resolver that shows a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverHost {
    /// A name, which the system's resolver looks up, or an address without brackets.
    pub host: Box<str>,
    /// Its port.
    pub port: u16,
    /// The name in its certificate, if it differs from the host.
    pub certificate_name: Option<Box<str>>,
}

impl ResolverAddress {
    /// Whether it is asked over TLS or HTTPS.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

impl ResolverHost {
    /// The name that its certificate must have: a name, or an address without brackets.
    #[must_use]
    pub fn server_name(&self) -> &str {
        self.certificate_name.as_deref().unwrap_or(&self.host)
    }

    fn read(url: &Url, default_port: u16) -> Option<Self> {
        let is_bare =
            url.username().is_empty() && url.password().is_none() && url.query().is_none();
        let host = host(url.host_str()?).filter(|_| is_bare)?;
        let certificate_name = match url.fragment() {
            Some(name) => Some(self::host(name)?),
            None => None,
        };
        Some(Self {
            host,
            port: url.port().unwrap_or(default_port),
            certificate_name,
        })
    }
}

/// A name or an address, as in a URL.
fn host(text: &str) -> Option<Box<str>> {
    let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    match bare.unwrap_or(text).parse() {
        Ok(name @ Name::Dns(_)) if !name.is_wildcard() => Some(name.to_string().into()),
        Ok(name @ Name::Ip(_)) => Some(name.to_string().into()),
        _ => None,
    }
}

impl FromStr for ResolverAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.contains("://") {
            return nameserver(text).map(Self::Plain).map_err(|_| EXPECTED);
        }
        let url = Url::parse(text).map_err(|_| EXPECTED)?;
        match url.scheme() {
            "tls" if matches!(url.path(), "" | "/") => {
                let host = ResolverHost::read(&url, TLS_PORT).ok_or(EXPECTED)?;
                Ok(Self::Tls(host))
            }
            "https" if url.path().len() > 1 && !url.path().contains('%') => {
                let host = ResolverHost::read(&url, HTTPS_PORT).ok_or(EXPECTED)?;
                if host.server_name().parse::<Ipv6Addr>().is_ok() {
                    return Err(
                        "expected #NAME after a URL with an IPv6 address: the name in the certificate",
                    );
                }
                Ok(Self::Https(host, url.path().into()))
            }
            _ => Err(EXPECTED),
        }
    }
}

impl fmt::Display for ResolverAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, at, default_port, path) = match self {
            Self::Plain(address) => return address.fmt(f),
            Self::Tls(at) => ("tls", at, TLS_PORT, ""),
            Self::Https(at, path) => ("https", at, HTTPS_PORT, &**path),
        };
        match at.host.parse() {
            Ok(IpAddr::V6(address)) => write!(f, "{scheme}://[{address}]")?,
            _ => write!(f, "{scheme}://{}", at.host)?,
        }
        if at.port != default_port {
            write!(f, ":{}", at.port)?;
        }
        f.write_str(path)?;
        match &at.certificate_name {
            Some(name) => write!(f, "#{name}"),
            None => Ok(()),
        }
    }
}

impl From<SocketAddr> for ResolverAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Plain(address)
    }
}

impl From<&[SocketAddr]> for Resolvers {
    fn from(addresses: &[SocketAddr]) -> Self {
        Self {
            addresses: addresses.iter().copied().map(Into::into).collect(),
            ca_bundle: None,
        }
    }
}

impl<const N: usize> From<&[SocketAddr; N]> for Resolvers {
    fn from(addresses: &[SocketAddr; N]) -> Self {
        addresses.as_slice().into()
    }
}

/// A DNS server's address, with a port or without.
pub(super) fn nameserver(text: &str) -> Result<SocketAddr, &'static str> {
    let address = text
        .parse::<IpAddr>()
        .map(|ip| SocketAddr::new(ip, DNS_PORT));
    address
        .or_else(|_| text.parse::<SocketAddr>())
        .map_err(|_| "expected an address such as 10.0.0.10, 10.0.0.10:53 or [fd00::a]:53")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_is_an_address_or_a_url_and_is_told_as_it_was_written() {
        for text in [
            "10.0.0.53:53",
            "[fd00::53]:5353",
            "tls://1.1.1.1",
            "tls://dns.example:8853",
            "tls://[fd00::53]",
            "tls://10.0.0.53#dns.example",
            "https://dns.example/dns-query",
            "https://10.0.0.53:8443/dns-query",
            "https://[fd00::53]/dns-query#dns.example",
        ] {
            let read: ResolverAddress = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
            assert_eq!(read.is_encrypted(), text.contains("://"), "{text}");
        }
        let read: ResolverAddress = "tls://DNS.example:853/#10.0.0.1".parse().unwrap();
        assert_eq!(read.to_string(), "tls://dns.example#10.0.0.1");
        let ResolverAddress::Tls(at) = read else {
            panic!("expected TLS")
        };
        assert_eq!((at.port, at.server_name()), (853, "10.0.0.1"));
        for text in ["10.0.0.53", "fd00::53"] {
            let read: ResolverAddress = text.parse().unwrap();
            assert!(read.to_string().ends_with(":53"), "{read}");
        }
    }

    #[test]
    fn what_is_no_resolver_is_refused() {
        for text in [
            "",
            "dns.example",
            "udp://10.0.0.53",
            "http://dns.example/dns-query",
            "https://dns.example",
            "https://dns.example/",
            "https://dns.example/dns-query{?dns}",
            "https://dns.example/dns-query?dns=x",
            "https://user@dns.example/dns-query",
            "https://user:word@dns.example/dns-query",
            "https://[fd00::53]/dns-query",
            "tls://",
            "tls://*.dns.example",
            "tls://dns.example/dns-query",
            "tls://dns.example#",
            "tls://dns.example#*.example",
            "tls://dns.example:99999",
        ] {
            let read = text.parse::<ResolverAddress>();
            assert!(read.is_err(), "{text}: {read:?}");
        }
    }

    #[test]
    fn nameservers_have_a_port() {
        for (text, address) in [
            ("10.0.0.10", "10.0.0.10:53"),
            ("10.0.0.10:5353", "10.0.0.10:5353"),
            ("fd00::a", "[fd00::a]:53"),
            ("[fd00::a]:54", "[fd00::a]:54"),
        ] {
            assert_eq!(nameserver(text).unwrap().to_string(), address);
        }
        for bad in ["", "dns.example", "10.0.0.10:", "[fd00::a]"] {
            assert!(nameserver(bad).is_err(), "{bad}");
        }
    }
}

//! What public CAs are known to refuse without saying so in a directory. Pure.
//!
//! Contains only certain and lasting rules; of other CAs nothing is assumed.

use std::net::IpAddr;

use cert_renew_core::certificate::KeyType;
use cert_renew_core::text::name::Name;

/// A public CA, by its directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ca {
    LetsEncrypt,
    /// A CA of which only the general rules are known.
    Other(&'static str),
    /// Has a directory for each kind of key.
    SslCom,
    Actalis,
    Buypass,
}

/// Suffixes of the hosts of directories, and their CAs.
const CAS: [(&str, Ca); 6] = [
    ("letsencrypt.org", Ca::LetsEncrypt),
    ("pki.goog", Ca::Other("Google Trust Services")),
    ("zerossl.com", Ca::Other("ZeroSSL")),
    ("ssl.com", Ca::SslCom),
    ("actalis.com", Ca::Actalis),
    ("buypass.com", Ca::Buypass),
];
/// Most names in a certificate, for every CA that allows more than one.
const NAMES: usize = 100;
/// Let's Encrypt's short profiles, which allow fewer names.
const SHORT_PROFILES: [&str; 2] = ["tlsserver", "shortlived"];
const SHORT_PROFILE_NAMES: usize = 25;
/// Let's Encrypt's profile for addresses.
const ADDRESSES: &str = "shortlived";
/// Top-level names that are reserved (RFC 6761, 6762, 8375; ICANN has set `internal` aside), and some in private use.
const RESERVED: [&str; 12] = [
    "alt",
    "arpa",
    "corp",
    "example",
    "home",
    "internal",
    "invalid",
    "lan",
    "local",
    "localhost",
    "onion",
    "test",
];

/// Why the CA of this directory would refuse, a sentence each.
pub(in crate::renewal) fn refuses(
    directory: &str,
    names: &[Name],
    profile: Option<&str>,
    key: Option<KeyType>,
) -> Vec<String> {
    let Some(ca) = of(directory) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let short = ca == Ca::LetsEncrypt && profile.is_some_and(|it| SHORT_PROFILES.contains(&it));
    let most = match ca {
        Ca::Actalis => 1,
        _ if short => SHORT_PROFILE_NAMES,
        _ => NAMES,
    };
    if names.len() > most {
        let by = profile
            .filter(|_| short)
            .map_or_else(String::new, |it| format!(" by the profile {it}"));
        found.push(format!(
            "{} names, {} takes at most {most}{by}",
            names.len(),
            ca.name()
        ));
    }
    for name in names {
        match name {
            Name::Dns(dns) if is_reserved(dns) => found.push(format!(
                "{name}: no public CA issues for it, it is a name of one's own network"
            )),
            Name::Ip(address) if !is_public(*address) => found.push(format!(
                "{name}: no public CA issues for it, it is an address of one's own network"
            )),
            Name::Ip(_) if ca == Ca::LetsEncrypt && profile != Some(ADDRESSES) => found.push(
                "Let's Encrypt issues for addresses by the profile shortlived only".to_owned(),
            ),
            _ => {}
        }
    }
    let rsa = key.map(|key| !matches!(key, KeyType::EcdsaP256 | KeyType::EcdsaP384));
    let takes_rsa = !directory.contains("-ecc");
    if ca == Ca::SslCom && rsa.is_some_and(|rsa| rsa != takes_rsa) {
        let (kind, other) = if takes_rsa {
            ("RSA", "-ecc")
        } else {
            ("ECDSA", "-rsa")
        };
        found.push(format!(
            "this directory of SSL.com takes {kind} keys only: set key-type, or use the one that ends in {other}"
        ));
    }
    if ca == Ca::Buypass {
        found.push("Buypass issues no certificates any more (since October 2025)".to_owned());
    }
    found.dedup();
    found
}

/// Why the CA of this directory would refuse any requested lifetime.
pub(in crate::renewal) fn refuses_lifetimes(directory: &str) -> Option<String> {
    (of(directory)? == Ca::LetsEncrypt).then(|| {
        "Let's Encrypt takes no requested lifetime: take cert-renew.io/lifetime away; cert-renew.io/profile: shortlived \
         gives six days"
            .to_owned()
    })
}

/// Whether the directory is that of a public CA, which wants each name proven.
pub(in crate::renewal) fn is_public_ca(directory: &str) -> bool {
    of(directory).is_some()
}

fn of(directory: &str) -> Option<Ca> {
    let uri: http::Uri = directory.parse().ok()?;
    let host = uri.host()?;
    let within = |of: &str| {
        let rest = host.strip_suffix(of);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    CAS.iter().find(|(of, _)| within(of)).map(|(_, ca)| *ca)
}

impl Ca {
    fn name(self) -> &'static str {
        match self {
            Self::LetsEncrypt => "Let's Encrypt",
            Self::Other(name) => name,
            Self::SslCom => "SSL.com",
            Self::Actalis => "Actalis",
            Self::Buypass => "Buypass",
        }
    }
}

fn is_reserved(name: &str) -> bool {
    match name.rsplit_once('.') {
        // A single label, or the wildcard under one.
        None | Some(("*", _)) => true,
        Some((_, top)) => RESERVED.contains(&top),
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => {
            let [a, b, ..] = it.octets();
            // RFC 6598: shared by carriers.
            let shared = a == 100 && (64..128).contains(&b);
            !(it.is_private()
                || it.is_loopback()
                || it.is_link_local()
                || it.is_documentation()
                || it.is_unspecified()
                || it.is_multicast()
                || it.is_broadcast()
                || shared)
        }
        // RFC 4291: global unicast.
        IpAddr::V6(it) => it.segments()[0] & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LE: &str = "https://acme-v02.api.letsencrypt.org/directory";

    fn names(texts: &str) -> Vec<Name> {
        texts.split(' ').map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_a_public_ca_would_refuse_is_told_and_nothing_of_others() {
        let many: String = (0..26).map(|n| format!("n{n}.a.org ")).collect();
        let many = many.trim_end();
        let ecc = "https://acme.ssl.com/sslcom-dv-ecc";
        let rsa = "https://acme.ssl.com/sslcom-dv-rsa";
        let actalis = "https://acme-api.actalis.com/acme/directory";
        for (directory, asked, profile, key, told) in [
            (
                LE,
                "a.org *.a.org xn--bcher-kva.de",
                None,
                Some(KeyType::Rsa4096),
                "",
            ),
            (LE, many, None, None, ""),
            (
                LE,
                many,
                Some("tlsserver"),
                None,
                "26 names, Let's Encrypt takes at most 25 by the profile tlsserver",
            ),
            (LE, "1.1.1.1", Some("shortlived"), None, ""),
            (
                LE,
                "1.1.1.1 2606:4700::1",
                Some("classic"),
                None,
                "profile shortlived only",
            ),
            (
                LE,
                "10.1.2.3",
                Some("shortlived"),
                None,
                "10.1.2.3: no public CA",
            ),
            (
                LE,
                "fd00::1",
                Some("shortlived"),
                None,
                "fd00::1: no public CA",
            ),
            (
                LE,
                "web.shop.svc.cluster.local",
                None,
                None,
                "cluster.local: no public CA",
            ),
            (LE, "intranet", None, None, "intranet: no public CA"),
            (LE, "*.internal", None, None, "*.internal: no public CA"),
            (
                "https://dv.acme-v02.api.pki.goog/directory",
                "a.lan",
                None,
                None,
                "a.lan: no public CA",
            ),
            (
                ecc,
                "a.org",
                None,
                Some(KeyType::Rsa2048),
                "ECDSA keys only",
            ),
            (ecc, "a.org", None, Some(KeyType::EcdsaP384), ""),
            (
                rsa,
                "a.org",
                None,
                Some(KeyType::EcdsaP256),
                "RSA keys only",
            ),
            (rsa, "a.org", None, None, ""),
            (
                actalis,
                "a.org b.org",
                None,
                None,
                "2 names, Actalis takes at most 1",
            ),
            (
                "https://api.buypass.com/acme/directory",
                "a.org",
                None,
                None,
                "any more",
            ),
            // A private CA, and one whose name only looks alike.
            (
                "https://ca.internal/acme/directory",
                "10.1.2.3 intranet",
                None,
                None,
                "",
            ),
            (
                "https://notletsencrypt.org/directory",
                "intranet",
                None,
                None,
                "",
            ),
        ] {
            let found = refuses(directory, &names(asked), profile, key).join("; ");
            let expected = found.contains(told) && found.is_empty() == told.is_empty();
            assert!(
                expected,
                "{directory} {asked}: {found:?}, expected {told:?}"
            );
        }
    }
}

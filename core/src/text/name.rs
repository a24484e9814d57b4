//! A name to request a certificate for: a DNS name or an IP address.
//!
//! DNS names are kept as lower-case A-labels (RFC 5890, 2.3.2.1), so that two spellings of one name are equal.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

/// A DNS name (lower-case A-labels, possibly `*.` in front) or an IP address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// For example `shop.example.com` or `*.example.com`; never empty, no trailing dot.
    Dns(Box<str>),
    /// RFC 8738 calls this an IP identifier.
    Ip(IpAddr),
}

/// Why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected a DNS name such as shop.example.com or *.example.com, or an IP address")]
pub struct NotAName;

impl Name {
    /// The text in an ACME identifier and a SAN.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        matches!(self, Self::Dns(name) if name.starts_with("*."))
    }

    /// Whether a certificate for `self` also serves `other` (RFC 9525, 6.3: a wildcard matches one label).
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if self == other {
            return true;
        }
        match (self, other) {
            (Self::Dns(own), Self::Dns(other)) => own.strip_prefix("*.").is_some_and(|zone| {
                other
                    .split_once('.')
                    .is_some_and(|(label, rest)| label != "*" && rest == zone)
            }),
            _ => false,
        }
    }
}

/// The names of an order: without those that a wildcard among them covers, as CAs refuse redundant names. One pass for
/// the wildcards and one for the rest.
#[must_use]
pub fn needed<'a>(all: impl IntoIterator<Item = &'a Name>) -> Vec<&'a Name> {
    let mut all: Vec<&Name> = all.into_iter().collect();
    let zones: HashSet<&str> = all.iter().copied().filter_map(zone).collect();
    all.retain(|name| match name {
        Name::Dns(name) => { name.split_once('.') }
            .is_none_or(|(label, rest)| label == "*" || !zones.contains(rest)),
        Name::Ip(_) => true,
    });
    all
}

/// Names by which it is quickly told which others they cover: certificates of two parties may have a thousand each.
#[derive(Debug)]
pub struct Covering<'a> {
    names: HashSet<&'a Name>,
    /// What stands behind the star of each wildcard.
    zones: HashSet<&'a str>,
}

impl<'a> Covering<'a> {
    /// Of these names.
    #[must_use]
    pub fn by(names: &'a [Name]) -> Self {
        Self {
            names: names.iter().collect(),
            zones: names.iter().filter_map(zone).collect(),
        }
    }

    /// Whether one of them covers this name, as [`Name::covers`] says.
    #[must_use]
    pub fn covers(&self, name: &Name) -> bool {
        let by_wildcard = || match name {
            Name::Dns(name) => { name.split_once('.') }
                .is_some_and(|(label, rest)| label != "*" && self.zones.contains(rest)),
            Name::Ip(_) => false,
        };
        self.names.contains(name) || by_wildcard()
    }
}

/// The zone of a wildcard.
fn zone(name: &Name) -> Option<&str> {
    match name {
        Name::Dns(name) => name.strip_prefix("*."),
        Name::Ip(_) => None,
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let s = s.trim();
        if let Ok(ip) = s.parse::<IpAddr>() {
            return Ok(Self::Ip(ip.to_canonical()));
        }
        let (star, rest) = match s.strip_prefix("*.") {
            Some(rest) => ("*.", rest),
            None => ("", s),
        };
        let ascii = idna::domain_to_ascii_strict(rest.strip_suffix('.').unwrap_or(rest))
            .map_err(|_| NotAName)?;
        // RFC 1034, 3.1: 255 octets on the wire are 253 characters of text.
        let plausible = !ascii.is_empty()
            && ascii.len() + star.len() <= 253
            && ascii.split('.').all(|label| !label.is_empty() && label.len() <= 63)
            // A name whose last label is a number is a misspelt address, and no CA issues for it.
            && !ascii.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if plausible {
            Ok(Self::Dns(format!("{star}{ascii}").into()))
        } else {
            Err(NotAName)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::slower_than_linear;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn spellings_of_one_name_are_equal() {
        assert_eq!(name("Shop.Example.COM."), name("shop.example.com"));
        assert_eq!(name("bücher.example").to_string(), "xn--bcher-kva.example");
        assert_eq!(name("::ffff:10.0.0.1"), name("10.0.0.1"));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "*",
            "*.",
            "a..b",
            "*.*.a",
            "a b",
            "999.1.1.1",
            "-a.example",
            "a/b",
            "foo.*.bar",
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} parsed");
        }
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        assert!(name("*.example.com").covers(&name("a.example.com")));
        assert!(!name("*.example.com").covers(&name("a.b.example.com")));
        assert!(!name("*.example.com").covers(&name("example.com")));
        assert!(!name("*.example.com").covers(&name("*.a.example.com")));
        assert!(name("10.0.0.1").covers(&name("10.0.0.1")));
    }

    #[test]
    fn many_names_cover_what_one_of_them_covers() {
        let all = ["a.example", "*.b.example", "10.0.0.1", "*.c.b.example"].map(name);
        let covering = Covering::by(&all);
        for other in [
            "a.example",
            "x.a.example",
            "b.example",
            "x.b.example",
            "*.b.example",
            "*.x.b.example",
            "x.c.b.example",
            "10.0.0.1",
            "10.0.0.2",
        ]
        .map(name)
        {
            let expected = all.iter().any(|it| it.covers(&other));
            assert_eq!(covering.covers(&other), expected, "{other}");
        }
    }

    #[test]
    fn a_name_that_a_wildcard_covers_is_not_asked_for() {
        let all = [
            "a.example",
            "*.a.example",
            "b.a.example",
            "c.b.a.example",
            "10.0.0.1",
        ]
        .map(name);
        let asked: Vec<String> = needed(&all).into_iter().map(Name::to_string).collect();
        assert_eq!(
            asked,
            ["a.example", "*.a.example", "c.b.a.example", "10.0.0.1"]
        );
    }

    #[test]
    fn many_names_are_compared_in_linear_time() {
        let many = |length: usize| -> Vec<u8> { vec![b'x'; length] };
        let slow = slower_than_linear(many, |input| {
            let all: Vec<Name> = (0..input.len() / 16)
                .map(|it| match it % 2 {
                    0 => Name::Dns(format!("n{it}.example").into()),
                    _ => Name::Dns(format!("*.w{it}.example").into()),
                })
                .collect();
            assert_eq!(needed(&all).len(), all.len());
            let covering = Covering::by(&all);
            assert!(all.iter().all(|name| covering.covers(name)));
        });
        assert_eq!(slow, None);
    }
}

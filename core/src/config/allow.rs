//! Which namespaces may ask an issuer for which names.
//!
//! The only guard between the users of a cluster and the names that its CA account can get: a request that no rule
//! allows is refused before the CA is asked. Pure; a namespace's labels come from the caller.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use kube_core::{Selector, SelectorExt as _};
use thiserror::Error;

use super::reader::KeyPath;
use super::selector;
use crate::text::name::Name;

/// Longest namespace, in characters (RFC 1123 label).
const MAX_NAMESPACE: usize = 63;

/// A rule: these namespaces may ask for these names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Any of these, if there are some; if there is also a selector, both must match.
    pub namespaces: Vec<Glob>,
    /// The namespace's labels, which need a separate right to change.
    pub selector: Option<Selector>,
    /// Any of these.
    pub names: Vec<NamePattern>,
}

/// What is known of a namespace's labels.
#[derive(Clone, Copy, Debug)]
pub enum Labels<'a> {
    /// Not read yet, so any selector may match: enough to decide what is worth asking for, never to ask a CA.
    NotAsked,
    /// The present labels.
    Are(&'a BTreeMap<String, String>),
}

/// A namespace's name in which `*` matches any characters, including none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Box<str>);

/// Names that an issuer may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// This name exactly.
    Exact(Name),
    /// `*.x`: one label under x, and the name `*.x` itself.
    OneLabel(Box<str>),
    /// `**.x`: any number of labels under x, wildcards included, but not x.
    AnyDepth(Box<str>),
    /// The addresses of a network.
    Network {
        /// First address.
        address: IpAddr,
        /// Leading bits that all have in common.
        bits: u32,
    },
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotAPattern {
    /// Not a [`Glob`].
    #[error("expected a namespace, in which * stands for any characters")]
    Namespace,
    /// Not a [`NamePattern`].
    #[error(
        "expected a DNS name, *.name (one label more), **.name (any number more), an IP address or a CIDR"
    )]
    Name,
    /// Not a network.
    #[error("expected a CIDR without bits after the prefix, such as 10.0.0.0/8 or fd00::/8")]
    Network,
}

impl Allow {
    pub(super) fn read(place: &KeyPath<'_>) -> Self {
        place.fields(|fields| {
            let namespaces = fields.get("namespaces");
            let selector = fields.get("namespaceSelector");
            if namespaces.is_absent() && selector.is_absent() {
                place.fault_unseen("expected namespaces or namespaceSelector");
            }
            let names = fields.required("names");
            Self {
                namespaces: namespaces.list(|item| item.parse(Glob::from_str)),
                selector: (!selector.is_absent()).then(|| selector::read(&selector)),
                names: names.list(|item| item.parse(NamePattern::from_str)),
            }
        })
    }

    /// Whether the rule is for this namespace.
    #[must_use]
    pub fn concerns(&self, namespace: &str, labels: Labels<'_>) -> bool {
        let by_name = self.namespaces.iter().any(|glob| glob.matches(namespace));
        match &self.selector {
            None => by_name,
            Some(selector) => {
                (by_name || self.namespaces.is_empty())
                    && match labels {
                        Labels::NotAsked => true,
                        Labels::Are(labels) => selector.matches(labels),
                    }
            }
        }
    }
}

impl Glob {
    /// Whether the whole of `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let mut pieces = self.0.split('*');
        let first = pieces.next().unwrap_or("");
        let Some(mut rest) = text.strip_prefix(first) else {
            return false;
        };
        let Some(last) = pieces.next_back() else {
            return rest.is_empty();
        };
        for piece in pieces {
            // The earliest match leaves the most for the pieces that follow.
            let Some(at) = rest.find(piece) else {
                return false;
            };
            rest = &rest[at + piece.len()..];
        }
        rest.ends_with(last)
    }
}

impl FromStr for Glob {
    type Err = NotAPattern;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-*".contains(&b);
        let sound = (1..=MAX_NAMESPACE).contains(&s.len()) && s.bytes().all(fits);
        if sound {
            Ok(Self(s.into()))
        } else {
            Err(NotAPattern::Namespace)
        }
    }
}

impl NamePattern {
    /// A wildcard that it allows, if it allows any.
    #[must_use]
    pub fn wildcard(&self) -> Option<Name> {
        match self {
            Self::OneLabel(zone) | Self::AnyDepth(zone) => format!("*.{zone}").parse().ok(),
            Self::Exact(_) | Self::Network { .. } => None,
        }
    }

    /// Whether `name` may be asked for.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        let under = |zone: &str, name: &str| {
            name.strip_suffix(zone)
                .and_then(|rest| rest.strip_suffix('.'))
                .map(|rest| !rest.contains('.'))
        };
        match (self, name) {
            (Self::Exact(allowed), _) => allowed == name,
            (Self::OneLabel(zone), Name::Dns(name)) => under(zone, name) == Some(true),
            (Self::AnyDepth(zone), Name::Dns(name)) => under(zone, name).is_some(),
            (Self::Network { address, bits }, Name::Ip(ip)) => masked(*ip, *bits) == Some(*address),
            _ => false,
        }
    }
}

/// As in the config file.
impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::OneLabel(zone) => write!(f, "*.{zone}"),
            Self::AnyDepth(zone) => write!(f, "**.{zone}"),
            Self::Network { address, bits } => write!(f, "{address}/{bits}"),
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NamePattern {
    type Err = NotAPattern;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if let Some((address, bits)) = s.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| NotAPattern::Network)?;
            let bits = bits.parse().map_err(|_| NotAPattern::Network)?;
            // Names hold mapped addresses as IPv4, so a mapped network would match none.
            let sound = address.to_canonical() == address && masked(address, bits) == Some(address);
            return if sound {
                Ok(Self::Network { address, bits })
            } else {
                Err(NotAPattern::Network)
            };
        }
        let zone = |text: &str| match text.parse() {
            Ok(Name::Dns(zone)) if !zone.starts_with('*') => Ok(zone),
            _ => Err(NotAPattern::Name),
        };
        match (s.strip_prefix("**."), s.strip_prefix("*.")) {
            (Some(rest), _) => zone(rest).map(Self::AnyDepth),
            (None, Some(rest)) => zone(rest).map(Self::OneLabel),
            (None, None) => s.parse().map(Self::Exact).map_err(|_| NotAPattern::Name),
        }
    }
}

/// The address with all but its leading `bits` cleared; `None` if it has fewer.
fn masked(address: IpAddr, bits: u32) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(bits)?).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128_u32.checked_sub(bits)?)
                .unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_the_docs_say() {
        for (pattern, allowed, refused) in [
            (
                "shop.example.com",
                "shop.example.com Shop.Example.Com.",
                "a.shop.example.com *.shop.example.com example.com",
            ),
            (
                "*.x.example",
                "a.x.example *.x.example",
                "x.example a.b.x.example *.a.x.example ax.example a.x.example.org",
            ),
            (
                "**.x.example",
                "a.x.example a.b.x.example *.x.example *.a.x.example",
                "x.example ax.example a.xx.example 10.0.0.1",
            ),
            (
                "*.bücher.example",
                "a.xn--bcher-kva.example a.BÜCHER.example",
                "a.bucher.example",
            ),
            (
                "10.0.0.0/8",
                "10.0.0.0 10.255.255.255 ::ffff:10.1.2.3",
                "11.0.0.0 9.255.255.255 ::a00:1 a.example",
            ),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.2"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
            ("fd00::/8", "fd00::1 fdff::1", "fe00::1 10.0.0.1"),
            ("::/0", "::1 2001:db8::1", "10.0.0.1 ::ffff:10.0.0.1"),
            ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("*.com", "example.com", "com a.example.com"),
        ] {
            let parsed: NamePattern = pattern.parse().unwrap();
            assert_eq!(parsed.to_string().parse(), Ok(parsed.clone()), "{pattern}");
            for (list, expected) in [(allowed, true), (refused, false)] {
                for name in list.split(' ') {
                    assert_eq!(
                        parsed.matches(&name.parse().unwrap()),
                        expected,
                        "{pattern} and {name}"
                    );
                }
            }
        }
    }

    #[test]
    fn other_patterns_are_refused() {
        for bad in [
            "",
            "*",
            "**",
            "*.",
            "**.",
            "*.*.x",
            "***.x",
            "a.*.x",
            "*.10.0.0.1",
            "a*.x",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "fd00::/129",
            "::ffff:10.0.0.0/104",
            "x/8",
            "https://a.example",
        ] {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad}");
        }
        for bad in ["", "Shop", "a.b", "a?", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<Glob>().is_err(), "{bad}");
        }
    }

    #[test]
    fn globs_match_whole_names() {
        for (glob, fits, misses) in [
            ("shop", "shop", "shops ashop"),
            ("shop-*", "shop- shop-a shop-a-b", "shop ashop-a"),
            ("*", "a kube-system", ""),
            ("*-prod", "a-prod", "a-prod-2"),
            ("a*b*c", "abc aXbYc abbcc ab-b-c", "ab acb abcd"),
            ("a*a", "aa aba", "a"),
            ("a**b", "ab axb", "a"),
        ] {
            let parsed: Glob = glob.parse().unwrap();
            for (list, expected) in [(fits, true), (misses, false)] {
                for text in list.split(' ').filter(|text| !text.is_empty()) {
                    assert_eq!(parsed.matches(text), expected, "{glob} and {text}");
                }
            }
        }
    }
}

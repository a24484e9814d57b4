//! The parts of a Secret that restart workloads: the leaf, the chain behind it, the CA certificates beside it.
//!
//! Chain and CA count as sets of certificates: another order, form or comment is no change and restarts nothing. Pure;
//! the digests are of public certificates.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::annotations::SEPARATORS;
use crate::certificate::{self, set_digest};

/// The data key of CA certificates, with which a workload checks its peers.
pub const CA_KEY: &str = "ca.crt";

/// Parts of a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The certificate of the server itself.
    pub leaf: bool,
    /// The other certificates in the leaf's file: the intermediates.
    pub chain: bool,
    /// The certificates in [`CA_KEY`].
    pub ca: bool,
}

/// Why a text names no [`Parts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected one or more of leaf, chain, ca")]
pub struct NotParts;

/// The certificates beside the leaf, and those in [`CA_KEY`]: a 32-bit digest of each set, 0 if there is none. A
/// collision needs write access to the Secret, and only keeps its own workloads from a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainAndCa {
    /// The chain.
    pub chain: u32,
    /// The CA certificates.
    pub ca: u32,
}

/// The digest of the content of [`CA_KEY`]; `None` if it is empty or any of its certificates cannot be read: no
/// workload can use that.
#[must_use]
pub fn ca_digest(bytes: &[u8]) -> Option<u32> {
    let ders = certificate::certificates(bytes).ok()?;
    Some(set_digest(ders.iter().map(Vec::as_slice)))
}

impl Parts {
    /// All of them.
    pub const ALL: Self = Self {
        leaf: true,
        chain: true,
        ca: true,
    };
    /// None of them.
    pub const NONE: Self = Self {
        leaf: false,
        chain: false,
        ca: false,
    };

    /// The parts of either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            leaf: self.leaf || other.leaf,
            chain: self.chain || other.chain,
            ca: self.ca || other.ca,
        }
    }

    /// The changed parts of a Secret, for people.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self { leaf: true, .. } => "certificate",
            Self {
                chain: true,
                ca: true,
                ..
            } => "chain and ca.crt",
            Self { chain: true, .. } => "chain",
            Self { ca: true, .. } => "ca.crt",
            Self::NONE => "certificate",
        }
    }
}

impl Default for Parts {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromStr for Parts {
    type Err = NotParts;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = Self::NONE;
        let items = text.split(SEPARATORS).map(str::trim);
        for item in items.filter(|item| !item.is_empty()) {
            match item {
                "leaf" => parts.leaf = true,
                "chain" => parts.chain = true,
                "ca" => parts.ca = true,
                _ => return Err(NotParts),
            }
        }
        if parts == Self::NONE {
            return Err(NotParts);
        }
        Ok(parts)
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [(self.leaf, "leaf"), (self.chain, "chain"), (self.ca, "ca")];
        let named = all.iter().filter(|(is, _)| *is).map(|(_, name)| *name);
        f.write_str(&named.collect::<Vec<_>>().join(","))
    }
}

impl ChainAndCa {
    /// Nothing beside the leaf.
    pub const NONE: Self = Self { chain: 0, ca: 0 };

    /// The chain and CA of a Secret that count: a part that `on` leaves out, or that cannot be read, counts as in the
    /// record `had`, so that nothing is due for it.
    #[must_use]
    pub fn counting(chain: u32, ca: Option<u32>, on: Parts, had: Option<Self>) -> Self {
        let had_or =
            |on: bool, now: u32, had: Option<u32>| if on { now } else { had.unwrap_or(now) };
        let had_ca = had.map(|had| had.ca);
        Self {
            chain: had_or(on.chain, chain, had.map(|had| had.chain)),
            ca: ca.map_or_else(|| had_ca.unwrap_or(0), |ca| had_or(on.ca, ca, had_ca)),
        }
    }
}

impl fmt::Display for ChainAndCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}{:08x}", self.chain, self.ca)
    }
}

impl FromStr for ChainAndCa {
    type Err = NotParts;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = |text: Option<&str>| {
            let text = text.filter(|it| it.bytes().all(|b| b.is_ascii_hexdigit()));
            u32::from_str_radix(text?, 16).ok()
        };
        let (chain, ca) = (
            hex(text.get(..8)),
            hex(text.get(8..).filter(|it| it.len() == 8)),
        );
        match (chain, ca) {
            (Some(chain), Some(ca)) => Ok(Self { chain, ca }),
            _ => Err(NotParts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::file;

    #[test]
    fn the_setting_is_a_list_of_three_words() {
        for (text, expected) in [
            ("leaf", Some("leaf")),
            ("ca, leaf", Some("leaf,ca")),
            ("chain\nca,chain,", Some("chain,ca")),
            ("leaf,chain,ca", Some("leaf,chain,ca")),
            ("", None),
            (" , ", None),
            ("none", None),
            ("Leaf", None),
            ("leaf ca", None),
            ("leaf,ca.crt", None),
        ] {
            let parsed = text.parse::<Parts>().ok().map(|it| it.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text:?}");
        }
        assert_eq!(Parts::default(), Parts::ALL);
    }

    #[test]
    fn another_order_or_form_of_the_same_certificates_is_no_change() {
        let (one, two) = (file("intermediate.pem"), file("root.pem"));
        let bundle = |parts: &[&[u8]]| ca_digest(&parts.concat());
        let both = bundle(&[&one, &two]);
        assert!(both.is_some());
        assert_eq!(bundle(&[b"# ours\n", &two, b"\n\n", &one, &two]), both);
        assert_ne!(bundle(&[&one]), both);
        assert_ne!(bundle(&[&one]), bundle(&[&two]));
        for (what, bytes) in [
            ("nothing", &b""[..]),
            ("blanks", b" \n"),
            ("no certificate", b"ca"),
            ("one that is cut", &[&one, &two[..two.len() / 2]].concat()),
        ] {
            assert_eq!(ca_digest(bytes), None, "{what}");
        }
        assert_eq!(set_digest([]), 0);
    }

    #[test]
    fn what_does_not_count_is_as_the_workloads_have_it() {
        let pair = |chain, ca| ChainAndCa { chain, ca };
        let had = Some(pair(1, 2));
        let on = |text: &str| text.parse::<Parts>().unwrap();
        for (why, ca, on, had, expected) in [
            ("all counts", Some(4), Parts::ALL, had, pair(3, 4)),
            (
                "nothing is on record",
                Some(4),
                on("leaf"),
                None,
                pair(3, 4),
            ),
            ("the chain alone", Some(4), on("chain"), had, pair(3, 2)),
            ("the CA alone", Some(4), on("ca"), had, pair(1, 4)),
            ("the leaf alone", Some(4), on("leaf"), had, pair(1, 2)),
            ("no CA can be read", None, Parts::ALL, had, pair(3, 2)),
            ("none ever could", None, Parts::ALL, None, pair(3, 0)),
        ] {
            assert_eq!(ChainAndCa::counting(3, ca, on, had), expected, "{why}");
        }
    }

    #[test]
    fn its_digits_come_back() {
        let some = ChainAndCa {
            chain: 0x0102_0304,
            ca: 0xff,
        };
        assert_eq!(some.to_string(), "01020304000000ff");
        assert_eq!(some.to_string().parse(), Ok(some));
        for bad in [
            "",
            "01020304",
            "01020304000000f",
            "01020304000000ffa",
            "+1020304000000ff",
            "äääääääääää",
        ] {
            assert_eq!(bad.parse::<ChainAndCa>(), Err(NotParts), "{bad}");
        }
    }
}

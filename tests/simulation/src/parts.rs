//! The parts of a run that can be left out: faults, outages, acts of users, Secrets. A run that is lived again with all
//! of its parts is the same to the byte; with fewer it shows whether what failed needs those that were left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::weather::Fate;

/// A part of a run, by its number among those of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A Secret with its Deployment.
    Secret(u64),
    /// Something that a user does.
    Act(u64),
    /// A time without API server or CA.
    Outage(u64),
    /// What happens to a request to the API server.
    Api(u64, Fate),
    /// What happens to a request to the CA.
    Ca(u64, Fate),
}

/// The fates of requests, by their numbers.
pub type Fates = BTreeMap<u64, Fate>;

/// The fates among parts: of requests to the API server, and to the CA.
#[must_use]
pub fn fates(parts: &BTreeSet<Part>) -> (Fates, Fates) {
    let (mut api, mut ca) = (Fates::new(), Fates::new());
    for part in parts {
        match *part {
            Part::Api(number, fate) => _ = api.insert(number, fate),
            Part::Ca(number, fate) => _ = ca.insert(number, fate),
            Part::Secret(_) | Part::Act(_) | Part::Outage(_) => {}
        }
    }
    (api, ca)
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(number) => write!(f, "secret {number}"),
            Self::Act(number) => write!(f, "act {number}"),
            Self::Outage(number) => write!(f, "outage {number}"),
            Self::Api(number, fate) => write!(f, "api {number} {fate}"),
            Self::Ca(number, fate) => write!(f, "ca {number} {fate}"),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fair => f.write_str("fair"),
            Self::LostBefore => f.write_str("lost-before"),
            Self::LostAfter => f.write_str("lost-after"),
            Self::Late(late) => write!(f, "late {}", late.as_millis()),
            Self::Refused(code) => write!(f, "refused {code}"),
            Self::DiesBefore => f.write_str("dies-before"),
            Self::DiesAfter => f.write_str("dies-after"),
        }
    }
}

/// A line that is no part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoPart(String);

impl fmt::Display for NoPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no part of a run", self.0)
    }
}

impl std::error::Error for NoPart {}

impl FromStr for Part {
    type Err = NoPart;

    fn from_str(line: &str) -> Result<Self, NoPart> {
        read(line).ok_or_else(|| NoPart(line.to_owned()))
    }
}

fn read(line: &str) -> Option<Part> {
    let mut words = line.split_whitespace();
    let (kind, number) = (words.next()?, words.next()?.parse().ok()?);
    let rest: Vec<&str> = words.collect();
    let fate = match *rest.as_slice() {
        [] => None,
        ["lost-before"] => Some(Fate::LostBefore),
        ["lost-after"] => Some(Fate::LostAfter),
        ["late", late] => Some(Fate::Late(Duration::from_millis(late.parse().ok()?))),
        ["refused", code] => Some(Fate::Refused(code.parse().ok()?)),
        ["dies-before"] => Some(Fate::DiesBefore),
        ["dies-after"] => Some(Fate::DiesAfter),
        _ => return None,
    };
    match (kind, fate) {
        ("secret", None) => Some(Part::Secret(number)),
        ("act", None) => Some(Part::Act(number)),
        ("outage", None) => Some(Part::Outage(number)),
        ("api", Some(fate)) => Some(Part::Api(number, fate)),
        ("ca", Some(fate)) => Some(Part::Ca(number, fate)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_read_as_it_is_written() {
        let fates = [
            Fate::LostBefore,
            Fate::LostAfter,
            Fate::Late(Duration::from_millis(1_500)),
            Fate::Refused(429),
            Fate::DiesBefore,
            Fate::DiesAfter,
        ];
        let of_requests = fates
            .iter()
            .flat_map(|fate| [Part::Api(7, *fate), Part::Ca(0, *fate)]);
        let others = [Part::Secret(1), Part::Act(2), Part::Outage(3)];
        for part in of_requests.chain(others) {
            assert_eq!(part.to_string().parse(), Ok(part));
        }
        for line in [
            "",
            "act",
            "act 1 lost-before",
            "api 1",
            "api 1 fair",
            "user 1",
        ] {
            assert!(line.parse::<Part>().is_err(), "{line}");
        }
    }
}

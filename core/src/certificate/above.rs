//! The chain of a certificate for people: who signed the leaf, and what else the file holds.
//!
//! Names are kept as they are encoded and rendered only when shown, as most Secrets have one of few chains.

use serde::{Deserialize, Serialize};

use super::x509::{Certificate, DistinguishedName};
use super::{decoded, leaf_of, parsed};
use crate::time::UnixTime;

/// Most certificates that are kept beside the leaf.
const MOST: usize = 6;
/// Longest name that is kept, in bytes of DER.
const LONGEST: usize = 512;

/// One certificate of a chain, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Whose certificate it is; of the leaf its first name.
    pub subject: Box<str>,
    /// Who signed it, as it says.
    pub issuer: Box<str>,
    /// Its last second.
    pub not_after: UnixTime,
}

/// The part of a file that many Secrets have alike: the issuer of the leaf, and the other certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Above {
    issuer: Box<[u8]>,
    others: Box<[Other]>,
}

/// A certificate beside the leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Other {
    subject: Box<[u8]>,
    issuer: Box<[u8]>,
    not_after: UnixTime,
}

/// What is above the leaf of a file; `None` if that cannot be read, or a name is too long to be kept.
#[must_use]
pub fn above(bytes: &[u8]) -> Option<Above> {
    let (ders, end) = decoded(bytes);
    let (all, _) = parsed(&ders, end);
    let at = leaf_of(&all);
    let leaf = all.get(at)?;
    let others = (0..).zip(&all).filter(|(number, _)| *number != at);
    let others: Option<Box<[Other]>> = others.take(MOST).map(|(_, it)| Other::of(it)).collect();
    Some(Above {
        issuer: kept(leaf.issuer)?,
        others: others?,
    })
}

fn kept(name: &[u8]) -> Option<Box<[u8]>> {
    (name.len() <= LONGEST).then(|| name.into())
}

impl Other {
    fn of(certificate: &Certificate<'_>) -> Option<Self> {
        Some(Self {
            subject: kept(certificate.subject)?,
            issuer: kept(certificate.issuer)?,
            not_after: certificate.not_after,
        })
    }
}

impl Above {
    /// The chain of a leaf with this name and end.
    #[must_use]
    pub fn links(&self, name: &str, not_after: UnixTime) -> Vec<Link> {
        let text = |name: &[u8]| DistinguishedName::from(name).to_string().into();
        let leaf = Link {
            subject: name.into(),
            issuer: text(&self.issuer),
            not_after,
        };
        let others = self.others.iter().map(|it| Link {
            subject: text(&it.subject),
            issuer: text(&it.issuer),
            not_after: it.not_after,
        });
        std::iter::once(leaf).chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::file;

    #[test]
    fn a_chain_is_told_from_the_leaf_on() {
        let good = above(&file("good.pem")).unwrap();
        let leaf = super::super::leaf(&file("good.pem")).unwrap();
        let links = good.links("shop.example", leaf.not_after);
        assert_eq!(&*links[0].subject, "shop.example");
        assert_eq!(*links[0].issuer, *leaf.issuer.to_string());
        for pair in links.windows(2) {
            assert_eq!(pair[0].issuer, pair[1].subject);
        }
        assert_eq!(above(&file("broken-text.pem")), None);
        assert_eq!(above(b""), None);
    }

    #[test]
    fn a_file_of_many_certificates_is_cut() {
        let mut many = file("good.pem");
        for _ in 0..50 {
            many.push(b'\n');
            many.extend(file("intermediate.pem"));
        }
        let links = above(&many).unwrap().links("a", UnixTime(0));
        assert_eq!(links.len(), 1 + MOST);
    }
}

//! Which of the chains that a CA offers is used (RFC 8555, section 7.4.2).
//!
//! Input: chains as PEM, the CA's default first. Pure; a chain that cannot be read is never preferred.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_cert::Certificate;
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Decode, Encode, EncodePem};

/// The preference of the config file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// The CA's default.
    #[default]
    Default,
    /// The chain that leads to the root with this common name.
    Root(String),
    /// The chain with the fewest certificates; of equals the CA's first.
    Shortest,
}

impl Preference {
    /// Whether the alternates can change the choice.
    #[must_use]
    pub fn wants_more_than(&self, chain: &str) -> bool {
        match self {
            Self::Default => false,
            Self::Root(name) => !leads_to(chain, name),
            // Nothing is shorter than a leaf and one intermediate.
            Self::Shortest => certificates(chain).is_none_or(|chain| chain.len() > 2),
        }
    }

    /// The position of the chain to use; 0, the CA's default, if none matches.
    #[must_use]
    pub fn choose(&self, chains: &[String]) -> usize {
        let chosen = match self {
            Self::Default => None,
            Self::Root(name) => chains.iter().position(|chain| leads_to(chain, name)),
            Self::Shortest => (0..chains.len())
                .filter_map(|position| Some((certificates(&chains[position])?.len(), position)))
                .min()
                .map(|(_, position)| position),
        };
        chosen.unwrap_or(0)
    }
}

/// Whether the topmost certificate was issued by the root with that common name, or is that root.
fn leads_to(chain: &str, root: &str) -> bool {
    certificates(chain)
        .and_then(|chain| chain.into_iter().next_back())
        .and_then(|top| top.tbs_certificate().issuer().common_name().ok()?)
        .is_some_and(|name| name.value() == root)
}

fn certificates(chain: &str) -> Option<Vec<Certificate>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(|der| Certificate::from_der(&der.ok()?).ok())
        .collect::<Option<_>>()?;
    (!chain.is_empty()).then_some(chain)
}

/// Most certificates of a chain that is put in order: no CA has as many, and each is compared with every other.
const LONGEST: usize = 32;

/// The chain in order: from the certificate with this public key (`subjectPublicKeyInfo`, DER), each followed by its
/// issuer, without duplicates. Unchanged if the order cannot be determined.
#[must_use]
pub fn in_order(chain: &str, public_key: &[u8]) -> String {
    ordered(chain, public_key).unwrap_or_else(|| chain.to_owned())
}

fn ordered(chain: &str, public_key: &[u8]) -> Option<String> {
    let mut left = certificates(chain).filter(|all| all.len() <= LONGEST)?;
    let is_leaf = |it: &Certificate| {
        let key = it.tbs_certificate().subject_public_key_info().to_der();
        key.is_ok_and(|key| key == public_key)
    };
    let position = left.iter().position(is_leaf)?;
    let mut ordered = vec![left.remove(position)];
    while let Some(last) = ordered.last() {
        let issuer = last.tbs_certificate().issuer();
        let is_issuer = |it: &Certificate| it.tbs_certificate().subject() == issuer;
        let Some(position) = left.iter().position(is_issuer) else {
            break;
        };
        let next = left.remove(position);
        if !ordered.contains(&next) {
            ordered.push(next);
        }
    }
    let pem = ordered.iter().map(|it| it.to_pem(LineEnding::LF).ok());
    pem.collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    /// The certificate of each subject, issued by the next one; the last is self-signed.
    fn chain(subjects: &[&str], with_root: bool) -> String {
        let mut issuer: Option<Issuer<'static, KeyPair>> = None;
        let mut pems = Vec::new();
        for subject in subjects.iter().rev() {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([]).unwrap();
            params
                .distinguished_name
                .push(DnType::OrganizationName, "Example, Inc.");
            params.distinguished_name.push(DnType::CommonName, *subject);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = match &issuer {
                Some(issuer) => params.signed_by(&key, issuer).unwrap(),
                None => params.self_signed(&key).unwrap(),
            };
            pems.insert(0, certificate.pem());
            issuer = Some(Issuer::new(params, key));
        }
        pems.truncate(if with_root {
            pems.len()
        } else {
            pems.len() - 1
        });
        pems.concat()
    }

    #[test]
    fn a_chain_is_put_in_order_and_each_certificate_stands_in_it_once() {
        let right = chain(&["leaf", "R1", "ISRG Root X1"], true);
        let end = "-----END CERTIFICATE-----\n";
        let parts: Vec<String> = right.split_inclusive(end).map(ToOwned::to_owned).collect();
        let leaf = certificates(&right).unwrap().swap_remove(0);
        let key = leaf.tbs_certificate().subject_public_key_info().to_der();
        let key = key.unwrap();
        for order in [&[0, 1, 2][..], &[0, 2, 1], &[1, 0, 2], &[0, 1, 1, 2, 0]] {
            let sent: String = order.iter().map(|at| &*parts[*at]).collect();
            let again = certificates(&in_order(&sent, &key)).unwrap();
            assert_eq!(again, certificates(&right).unwrap(), "{order:?}");
        }
        for other in ["no certificate", ""] {
            assert_eq!(in_order(other, &key), other);
        }
        assert_eq!(in_order(&right, b"another key"), right);
    }

    #[test]
    fn chains_are_chosen_by_root_and_by_length() {
        let chains = [
            chain(&["leaf", "R1", "X1", "Old Root"], false),
            chain(&["leaf", "R1", "ISRG Root X1"], false),
            chain(&["leaf", "R1", "Third Root"], true),
            "no certificate".to_owned(),
        ];
        let root = |name: &str| Preference::Root(name.to_owned());
        let cases = [
            (Preference::Default, 0),
            (Preference::Shortest, 1),
            (root("ISRG Root X1"), 1),
            (root("Third Root"), 2),
            (root("Old Root"), 0),
            (root("X1"), 0),
            (root("nobody's"), 0),
        ];
        for (preference, position) in cases {
            assert_eq!(preference.choose(&chains), position, "{preference:?}");
        }
        assert!(!Preference::Default.wants_more_than(&chains[0]));
        assert!(
            Preference::Shortest.wants_more_than(&chains[0])
                && !Preference::Shortest.wants_more_than(&chains[1])
        );
        assert!(
            root("Old Root").wants_more_than(&chains[1])
                && !root("Old Root").wants_more_than(&chains[0])
        );
        assert_eq!(Preference::Shortest.choose(&[]), 0);
    }
}

//! Whether a certificate is signed by its own key.
//!
//! The names decide first: where issuer and subject differ, it is not. Where they are the same its signature decides. To
//! check that takes many times as long as to read the certificate, so it is done once, and only if somebody asks: at the
//! start of a large cluster nobody does for the Secrets that another program renews.

use std::sync::OnceLock;

use super::MOST_KEPT;
use super::x509::Certificate;

/// The answer, or what it takes to give it. That of a certificate whose names differ is the default.
#[derive(Clone, Debug, Default)]
pub struct SelfSigned(Option<SameName>);

#[derive(Clone, Debug)]
struct SameName {
    /// The certificate, DER; empty if it is too long to keep, and was checked at once.
    der: Box<[u8]>,
    answer: OnceLock<bool>,
}

impl SelfSigned {
    pub(super) fn of(certificate: &Certificate<'_>) -> Self {
        if certificate.issuer != certificate.subject {
            return Self::default();
        }
        if certificate.der.len() > MOST_KEPT {
            return has_own_signature(certificate).into();
        }
        Self(Some(SameName {
            der: certificate.der.into(),
            answer: OnceLock::new(),
        }))
    }

    /// Whether it is signed by its own key; the first call may take a fraction of a millisecond.
    #[must_use]
    pub fn get(&self) -> bool {
        let check =
            |it: &SameName| Certificate::parse(&it.der).is_ok_and(|it| has_own_signature(&it));
        let answer = |it: &SameName| *it.answer.get_or_init(|| check(it));
        self.0.as_ref().is_some_and(answer)
    }

    /// Whether the signature was checked.
    #[cfg(test)]
    pub(crate) fn is_checked(&self) -> bool {
        let checked = |it: &SameName| it.answer.get().is_some();
        self.0.as_ref().is_some_and(checked)
    }
}

/// Equal names decide if the signature cannot be checked.
fn has_own_signature(certificate: &Certificate<'_>) -> bool {
    certificate.is_signed_by(certificate) != Some(false)
}

impl From<bool> for SelfSigned {
    fn from(answer: bool) -> Self {
        let known = || SameName {
            der: Box::default(),
            answer: answer.into(),
        };
        Self(answer.then(known))
    }
}

impl PartialEq for SelfSigned {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for SelfSigned {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::leaf;
    use crate::testing::file;
    use crate::testing::forge::{Forged, common_name};

    #[test]
    fn the_signature_is_checked_once_somebody_asks_and_the_names_are_the_same() {
        for (name, own) in [("self-signed", true), ("root", true), ("good", false)] {
            let leaf = leaf(&file(&format!("{name}.pem"))).unwrap();
            assert!(!leaf.self_signed.is_checked(), "{name}");
            assert_eq!(leaf.self_signed.get(), own, "{name}");
            assert_eq!(leaf.self_signed.is_checked(), own, "{name}");
            assert_eq!(leaf.self_signed.clone().get(), own, "{name}");
        }
    }

    #[test]
    fn equal_names_are_not_enough_where_the_signature_can_be_checked() {
        let name = || common_name(0x0c, b"forged");
        let forged = Forged {
            issuer: name(),
            subject: name(),
            ..Forged::default()
        };
        let unsigned = leaf(&forged.der()).unwrap().self_signed;
        assert!(!unsigned.get());
        assert!(unsigned.is_checked());
    }

    #[test]
    fn a_certificate_that_is_too_long_to_keep_is_checked_at_once() {
        let long = || common_name(0x0c, &vec![b'x'; MOST_KEPT]);
        let forged = Forged {
            issuer: long(),
            subject: long(),
            ..Forged::default()
        };
        let der = forged.der();
        let checked = SelfSigned::of(&Certificate::parse(&der).unwrap());
        assert!(!checked.get());
        assert!(checked.0.is_none(), "nothing of it is kept");
    }
}

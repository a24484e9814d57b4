//! Distinguished names (RFC 5280, 4.1.2.4): kept as DER, rendered (RFC 4514) only when shown.

use std::fmt;

use der::asn1::Any;
use der::{Decode, Tag};
use memchr::memchr_iter;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::name::RelativeDistinguishedName;

/// Longest distinguished name that is shown, in characters; it is for people and comparison.
const MAX_DN: usize = 1_000;

/// A distinguished name, DER. It is rendered (RFC 4514) only when shown, as that takes longer than reading the rest of
/// a certificate, and the issuer's name of every Secret is kept.
#[derive(Clone)]
pub struct DistinguishedName(Box<[u8]>);

impl From<&[u8]> for DistinguishedName {
    fn from(der: &[u8]) -> Self {
        Self(der.into())
    }
}

impl DistinguishedName {
    /// Its bytes of DER.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// Whether one of its values has this text in it, which is ASCII: in one byte for each character or, in a
    /// `BMPString`, in two. Nothing is rendered.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        let Some(first) = text.bytes().next() else {
            return true;
        };
        let begins = |at: usize| {
            let narrow = self.0[at..].starts_with(text.as_bytes());
            let mut wide = self.0[at.saturating_sub(1)..].chunks_exact(2);
            narrow || text.bytes().all(|byte| wide.next() == Some(&[0, byte]))
        };
        memchr_iter(first, &self.0).any(begins)
    }

    fn text(&self) -> Option<String> {
        let name = x509_cert::name::Name::from_der(&self.0).ok()?;
        // RFC 4514, 2.1: the last comes first.
        let sequence: Vec<String> = name.iter_rdn().map(relative_name).collect();
        let reversed = sequence.iter().rev().map(String::as_str);
        Some(reversed.collect::<Vec<_>>().join(","))
    }
}

/// One step of a distinguished name. String types that x509-cert shows in hexadecimal are converted to UTF-8 first, so
/// that a name equals itself in another type.
fn relative_name(step: &RelativeDistinguishedName) -> String {
    let attribute = |attribute: &AttributeTypeAndValue| {
        let readable = string(&attribute.value)
            .and_then(|text| Any::new(Tag::Utf8String, text.into_bytes()).ok())
            .map(|value| AttributeTypeAndValue {
                oid: attribute.oid,
                value,
            });
        readable.as_ref().unwrap_or(attribute).to_string()
    };
    let attributes: Vec<String> = step.iter().map(attribute).collect();
    attributes.join("+")
}

/// A `DirectoryString` (X.520) of another type than UTF-8: `BMPString`, and `TeletexString`, which in practice is
/// Latin-1.
pub(super) fn string(value: &Any) -> Option<String> {
    let bytes = value.value();
    match value.header().tag() {
        Tag::BmpString => {
            let units = bytes.chunks_exact(2);
            let units = units.map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        Tag::TeletexString => Some(bytes.iter().copied().map(char::from).collect()),
        _ => None,
    }
}

/// Cut to [`MAX_DN`] characters.
impl fmt::Display for DistinguishedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        let text = match text.as_deref() {
            None => "(unreadable name)",
            // Nearly always the issuer of something; the name of a server is in the SAN.
            Some("") => "a CA without a name",
            Some(text) => text,
        };
        let end = text.char_indices().nth(MAX_DN);
        f.write_str(&text[..end.map_or(text.len(), |(at, _)| at)])
    }
}

impl fmt::Debug for DistinguishedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The same text may have two encodings and differ in case (RFC 5280, 7.1).
impl PartialEq for DistinguishedName {
    fn eq(&self, other: &Self) -> bool {
        let same = |(text, other): (String, String)| text.eq_ignore_ascii_case(&other);
        self.0 == other.0 || self.text().zip(other.text()).is_some_and(same)
    }
}

impl Eq for DistinguishedName {}

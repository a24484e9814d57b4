//! A walk over the DER of one certificate (RFC 5280, 4.1) that keeps what it finds and judges nothing.
//!
//! Input is any bytes.
//! `x509_cert::Certificate` refuses whole certificates for a serial that is too long, a year before
//! 1970 or one odd extension; such certificates exist in Secrets and must be watched like any other.
//! So this module walks the frame field by field with the reader of `der`. The outer frame, the times and the key must
//! be there; all else may be missing or broken. It must never panic, and never reports success for anything but one
//! complete certificate.

mod distinguished_name;
mod keys;
mod validity;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier};
use der::oid::db::{rfc4519, rfc5280, rfc5912, rfc8410};
use der::{Decode, Reader, SliceReader, Tag, TagNumber};
use x509_cert::attr::AttributeTypeAndValue;

pub use self::distinguished_name::DistinguishedName;
use self::distinguished_name::string;
use self::keys::rsa_key;
pub use self::keys::same_key;
pub(crate) use self::keys::{container, key_parts, modulus_bits, second_tag, unsupported_key};
use self::validity::times;
use crate::text::name::Name;
use crate::text::shown;
use crate::time::UnixTime;

/// Longest DNS name, in characters (RFC 1034, 3.1); a longer one names no host.
const MAX_DNS_NAME: usize = 253;

/// Most names kept of one certificate: ten times the largest profile of a public CA. A Secret holds about 70,000, and
/// every loop over them would be as long.
pub const MAX_NAMES: usize = 1_000;

/// Longest serial number and key identifier, in octets: RFC 5280 allows 20, and a digest has at most 64.
const MAX_IDENTIFIER: usize = 64;

/// Most SAN entries without a host name that are quoted.
const MAX_ODD: usize = 3;

/// The names of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// At most [`MAX_NAMES`], each once, in the order of the certificate.
    pub list: Vec<Name>,
    /// Number of entries that are DNS names or addresses, valid or not.
    pub entries: usize,
    /// Number of entries that cannot be asked for.
    pub odd: usize,
    /// The first [`MAX_ODD`] of those, escaped for display.
    pub shown: Vec<String>,
}

/// Other uses of a certificate than the DNS names and addresses of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent of each other")]
pub struct Abilities {
    /// Client authentication.
    client: bool,
    /// It has email addresses.
    mail: bool,
    /// It has URIs, such as those of SPIFFE.
    uri: bool,
    /// It has names of another type.
    other: bool,
}

impl Abilities {
    /// The uses that `new` lacks, in words.
    #[must_use]
    pub fn lost_in(self, new: Self) -> Vec<&'static str> {
        let all = [
            (self.client, new.client, "use by clients (clientAuth)"),
            (self.mail, new.mail, "addresses of mail"),
            (self.uri, new.uri, "URIs"),
            (self.other, new.other, "names of other types"),
        ];
        let lost = all.into_iter().filter(|(had, has, _)| *had && !*has);
        lost.map(|(_, _, what)| what).collect()
    }
}

/// The fields of one certificate, as slices of its DER.
#[derive(Clone)]
pub struct Certificate<'a> {
    /// The whole certificate, without trailing bytes.
    pub der: &'a [u8],
    /// `tbsCertificate`: what is signed.
    tbs: &'a [u8],
    /// Content octets of `serialNumber`, as encoded.
    pub serial: &'a [u8],
    /// `issuer`, DER.
    pub issuer: &'a [u8],
    /// `subject`, DER.
    pub subject: &'a [u8],
    /// The first instant at which it is valid.
    pub not_before: UnixTime,
    /// The last instant at which it is valid.
    pub not_after: UnixTime,
    /// `subjectPublicKeyInfo`, DER.
    pub public_key: &'a [u8],
    /// What is looked at of its extensions.
    extensions: Extensions<'a>,
    /// `signatureAlgorithm`, DER.
    algorithm: &'a [u8],
    /// The bits of `signatureValue`.
    signature: &'a [u8],
}

/// The extensions that are looked at, each the first of its kind.
#[derive(Clone, Default)]
struct Extensions<'a> {
    alternative_names: Extension<'a>,
    key_usage: Extension<'a>,
    basic_constraints: Extension<'a>,
    authority_key_id: Extension<'a>,
}

/// Whether there is one, and then its value, if that can be read.
type Extension<'a> = Option<Option<&'a [u8]>>;

// === impl Certificate ===

impl<'a> Certificate<'a> {
    /// Reads the certificate at the start of `bytes`; ignores what follows it, as in a `TRUSTED CERTIFICATE` block.
    ///
    /// # Errors
    /// The name of the first field that is missing or broken.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, &'static str> {
        const FRAME: &str = "outer SEQUENCE";
        let mut reader = SliceReader::new(bytes).map_err(|_| FRAME)?;
        let der = reader.tlv_bytes().map_err(|_| FRAME)?;
        let mut outer = inside(der, Tag::Sequence).ok_or(FRAME)?;
        let tbs = outer.tlv_bytes().map_err(|_| "tbsCertificate")?;
        let mut fields = inside(tbs, Tag::Sequence).ok_or("tbsCertificate")?;

        let version = TagNumber(0).context_specific(true);
        if Tag::peek(&fields).is_ok_and(|tag| tag == version) {
            fields.tlv_bytes().map_err(|_| "version")?;
        }
        let serial: AnyRef<'_> = fields.decode().map_err(|_| "serialNumber")?;
        if serial.header().tag() != Tag::Integer {
            return Err("serialNumber");
        }
        fields.tlv_bytes().map_err(|_| "signature")?;
        let issuer = fields.tlv_bytes().map_err(|_| "issuer")?;
        let validity = fields.tlv_bytes().map_err(|_| "validity")?;
        let (not_before, not_after) = times(validity).ok_or("validity")?;
        let subject = fields.tlv_bytes().map_err(|_| "subject")?;
        let public_key = fields.tlv_bytes().map_err(|_| "subjectPublicKeyInfo")?;
        key_parts(public_key).ok_or("subjectPublicKeyInfo")?;

        let algorithm = outer.tlv_bytes().map_err(|_| "signatureAlgorithm")?;
        let signature: BitStringRef<'_> = outer.decode().map_err(|_| "signatureValue")?;
        Ok(Self {
            der,
            tbs,
            serial: serial.value(),
            issuer,
            subject,
            not_before,
            not_after,
            public_key,
            extensions: extensions(&mut fields).map_or_else(Extensions::default, Extensions::read),
            algorithm,
            signature: signature.raw_bytes(),
        })
    }

    /// The names that the certificate is for: those of the SAN (RFC 5280, 4.2.1.6) if it has one, else the common name
    /// if that is a host name.
    pub fn names(&self) -> Names {
        let Some(value) = self.extensions.alternative_names.flatten() else {
            let name = common_name(self.subject).and_then(|name| name.parse().ok());
            let list: Vec<Name> = name.into_iter().collect();
            return Names {
                entries: list.len(),
                list,
                ..Names::default()
            };
        };
        alternative_names(value)
    }

    /// Other uses than the names.
    pub fn abilities(&self) -> Abilities {
        /// id-kp-clientAuth and anyExtendedKeyUsage (RFC 5280, 4.2.1.12).
        const CLIENT: [&[u8]; 2] = [b"\x2b\x06\x01\x05\x05\x07\x03\x02", b"\x55\x1d\x25\x00"];
        let mut abilities = Abilities {
            // Without the extension, all uses are allowed.
            client: true,
            ..Abilities::default()
        };
        if let Some(value) = self.extensions.key_usage.flatten() {
            let mut list = inside(value, Tag::Sequence);
            let purposes = std::iter::from_fn(|| list.as_mut()?.decode::<AnyRef<'_>>().ok());
            abilities.client = { purposes }.any(|it| CLIENT.contains(&it.value()));
        }
        let value = self.extensions.alternative_names.flatten();
        let mut list = value.and_then(|value| inside(value, Tag::Sequence));
        while let Some(Ok(entry)) = list.as_mut().map(SliceReader::decode::<AnyRef<'_>>) {
            let tag = entry.header().tag();
            let is = |number, constructed| tag == TagNumber(number).context_specific(constructed);
            abilities.other |= is(0, true);
            abilities.mail |= is(1, false);
            abilities.uri |= is(6, false);
        }
        abilities
    }

    /// Whether there is a SAN at all.
    pub fn has_alternative_names(&self) -> bool {
        self.extensions.alternative_names.flatten().is_some()
    }

    /// Content octets of the serial number; empty if it is too long to keep.
    pub fn short_serial(&self) -> &'a [u8] {
        if self.serial.len() > MAX_IDENTIFIER {
            return &[];
        }
        self.serial
    }

    /// Whether it may certify others (RFC 5280, 4.2.1.9).
    pub fn is_ca(&self) -> bool {
        let value = self
            .extensions
            .basic_constraints
            .flatten()
            .unwrap_or_default();
        inside(value, Tag::Sequence).is_some_and(|mut fields| fields.decode() == Ok(true))
    }

    /// `keyIdentifier` of the authority key identifier (RFC 5280, 4.2.1.1); none if it is too long to keep.
    pub fn authority_key_id(&self) -> Option<&'a [u8]> {
        let value = self.extensions.authority_key_id.flatten()?;
        let first: AnyRef<'_> = inside(value, Tag::Sequence)?.decode().ok()?;
        let wanted = TagNumber(0).context_specific(false);
        let id = (first.header().tag() == wanted).then(|| first.value());
        id.filter(|id| id.len() <= MAX_IDENTIFIER)
    }

    /// Whether the key in `issuer` made the signature of this certificate; none if the algorithm or the size of the key
    /// is not supported (RSASSA-PSS, Ed448, post-quantum ones, RSA of 16384 bits).
    pub fn is_signed_by(&self, issuer: &Certificate<'_>) -> Option<bool> {
        let (_, parameters, key) = key_parts(issuer.public_key)?;
        let oid: ObjectIdentifier = inside(self.algorithm, Tag::Sequence)?.decode().ok()?;
        let curve = parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let verifier = verifier(oid, curve)?;
        // Unsupported is not wrong: the library takes only these key sizes.
        if let Some((least, most)) = rsa_bits(oid)
            && !rsa_key(key).is_some_and(|(bits, exponent)| {
                (least..=most).contains(&bits) && exponent <= MAX_EXPONENT
            })
        {
            return None;
        }
        let verified = UnparsedPublicKey::new(verifier, key).verify(self.tbs, self.signature);
        Some(verified.is_ok())
    }
}

// === impl Extensions ===

impl<'a> Extensions<'a> {
    /// Reads the content of the sequence, up to the first that is broken.
    fn read(list: &'a [u8]) -> Self {
        let mut found = Self::default();
        let Ok(mut list) = SliceReader::new(list) else {
            return found;
        };
        while let Ok(Some(mut fields)) = list.tlv_bytes().map(|it| inside(it, Tag::Sequence))
            && let Ok(oid) = fields.decode::<AnyRef<'_>>()
        {
            if let Some(kind) = found.of_kind(oid.value()) {
                kind.get_or_insert_with(|| value(&mut fields));
            }
        }
        found
    }

    fn of_kind(&mut self, oid: &[u8]) -> Option<&mut Extension<'a>> {
        [
            (rfc5280::ID_CE_SUBJECT_ALT_NAME, &mut self.alternative_names),
            (rfc5280::ID_CE_EXT_KEY_USAGE, &mut self.key_usage),
            (
                rfc5280::ID_CE_BASIC_CONSTRAINTS,
                &mut self.basic_constraints,
            ),
            (
                rfc5280::ID_CE_AUTHORITY_KEY_IDENTIFIER,
                &mut self.authority_key_id,
            ),
        ]
        .into_iter()
        .find_map(|(kind, value)| (kind.as_bytes() == oid).then_some(value))
    }
}

/// The value of an extension, which is its last field; `critical` may precede it.
fn value<'a>(fields: &mut SliceReader<'a>) -> Option<&'a [u8]> {
    let mut value: AnyRef<'_> = fields.decode().ok()?;
    if value.header().tag() == Tag::Boolean {
        value = fields.decode().ok()?;
    }
    (value.header().tag() == Tag::OctetString).then(|| value.value())
}

/// A reader over the content of the one value in `der`, if it has this tag.
fn inside(der: &[u8], tag: Tag) -> Option<SliceReader<'_>> {
    let any = SliceReader::new(der).ok()?.decode::<AnyRef<'_>>().ok()?;
    (any.header().tag() == tag).then(|| SliceReader::new(any.value()).ok())?
}

/// Content of the sequence of extensions, after the two unique identifiers, which are unused.
fn extensions<'a>(fields: &mut SliceReader<'a>) -> Option<&'a [u8]> {
    let wanted = TagNumber(3).context_specific(true);
    loop {
        let field: AnyRef<'a> = fields.decode().ok()?;
        if field.header().tag() == wanted {
            let list = AnyRef::from_der(field.value()).ok()?;
            return (list.header().tag() == Tag::Sequence).then(|| list.value());
        }
    }
}

fn alternative_names(value: &[u8]) -> Names {
    let mut names = Names::default();
    let Some(mut list) = inside(value, Tag::Sequence) else {
        return names;
    };
    let (dns, ip) = (
        TagNumber(2).context_specific(false),
        TagNumber(7).context_specific(false),
    );
    let mut seen = HashSet::new();
    while let Ok(entry) = list.decode::<AnyRef<'_>>() {
        let tag = entry.header().tag();
        let name = if tag == dns {
            dns_name(entry.value())
        } else if tag == ip {
            ip_address(entry.value()).map(Name::Ip)
        } else {
            continue;
        };
        names.entries += 1;
        match name {
            Some(name) if names.list.len() < MAX_NAMES => {
                if seen.insert(name.clone()) {
                    names.list.push(name);
                }
            }
            Some(_) => {}
            None => {
                names.odd += 1;
                if names.odd <= MAX_ODD {
                    names
                        .shown
                        .push(shown(&String::from_utf8_lossy(entry.value())));
                }
            }
        }
    }
    names
}

/// A `dNSName` as it is, in lower case. It is parsed less strictly than user input: `_sip.example.com` is the
/// certificate's name, and a renewal must not lose it silently. A name in Unicode, against RFC 5280, becomes its
/// A-label, as in a common name.
fn dns_name(bytes: &[u8]) -> Option<Name> {
    let text = str::from_utf8(bytes).ok()?;
    if !text.is_ascii() {
        // At most four octets a character: a longer text is no host name, and conversion takes more than linear time.
        if text.len() > 4 * MAX_DNS_NAME {
            return None;
        }
        return text
            .parse()
            .ok()
            .filter(|name| matches!(name, Name::Dns(_)));
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    let plain = (1..=MAX_DNS_NAME).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b',');
    plain.then(|| Name::Dns(text.to_ascii_lowercase().into()))
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into());
    let v6 = <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into());
    v4.or(v6).ok()
}

/// The last common name, which is the most specific one.
fn common_name(subject: &[u8]) -> Option<String> {
    let name = x509_cert::name::Name::from_der(subject).ok()?;
    let common = |attribute: &&AttributeTypeAndValue| attribute.oid == rfc4519::COMMON_NAME;
    let value = &name.iter().filter(common).last()?.value;
    string(value).or_else(|| String::from_utf8(value.value().to_vec()).ok())
}

/// Largest RSA exponent that aws-lc takes, in octets (33 bits).
const MAX_EXPONENT: usize = 5;

/// The sizes of RSA keys that [`verifier`] takes, in bits.
fn rsa_bits(algorithm: ObjectIdentifier) -> Option<(usize, usize)> {
    match algorithm {
        rfc5912::SHA_256_WITH_RSA_ENCRYPTION | rfc5912::SHA_512_WITH_RSA_ENCRYPTION => {
            Some((1024, 8192))
        }
        rfc5912::SHA_384_WITH_RSA_ENCRYPTION => Some((2048, 8192)),
        _ => None,
    }
}

fn verifier(
    algorithm: ObjectIdentifier,
    curve: Option<ObjectIdentifier>,
) -> Option<&'static dyn VerificationAlgorithm> {
    let (p256, p384) = (Some(rfc5912::SECP_256_R_1), Some(rfc5912::SECP_384_R_1));
    Some(match algorithm {
        rfc5912::SHA_256_WITH_RSA_ENCRYPTION => {
            &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY
        }
        rfc5912::SHA_384_WITH_RSA_ENCRYPTION => &signature::RSA_PKCS1_2048_8192_SHA384,
        rfc5912::SHA_512_WITH_RSA_ENCRYPTION => {
            &signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY
        }
        rfc5912::ECDSA_WITH_SHA_256 if curve == p256 => &signature::ECDSA_P256_SHA256_ASN1,
        rfc5912::ECDSA_WITH_SHA_384 if curve == p256 => &signature::ECDSA_P256_SHA384_ASN1,
        rfc5912::ECDSA_WITH_SHA_512 if curve == p256 => &signature::ECDSA_P256_SHA512_ASN1,
        rfc5912::ECDSA_WITH_SHA_256 if curve == p384 => &signature::ECDSA_P384_SHA256_ASN1,
        rfc5912::ECDSA_WITH_SHA_384 if curve == p384 => &signature::ECDSA_P384_SHA384_ASN1,
        rfc5912::ECDSA_WITH_SHA_512 if curve == p384 => &signature::ECDSA_P384_SHA512_ASN1,
        rfc8410::ID_ED_25519 => &signature::ED25519,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;

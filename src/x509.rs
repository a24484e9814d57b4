//! A walk over the DER of one certificate (RFC 5280, 4.1) that keeps what it finds and judges nothing.
//!
//! Input is any bytes.
//! `x509_cert::Certificate` refuses whole certificates for a serial that is too long, a year before
//! 1970 or one odd extension; such certificates exist in Secrets and must be watched like any other.
//! So the frame is walked here, field by field, with the reader of `der`; the outer frame, the times and
//! the key must be there, and all else may be missing or broken.
//! It must never panic, and never reports success for what is not one complete certificate.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier};
use der::oid::db::{rfc4519, rfc5280, rfc5912, rfc8410};
use der::{Decode, Reader, SliceReader, Tag, TagNumber};
use jiff::civil::DateTime;
use x509_cert::attr::AttributeTypeAndValue;

use crate::name::Name;
use crate::time::UnixTime;

/// Longest rendered distinguished name that is kept, in characters: it is for people and comparison.
const MAX_DN: usize = 1_000;

/// DNS names have at most 253 characters (RFC 1034, 3.1); a longer one names no host.
const MAX_DNS_NAME: usize = 253;

/// A distinguished name, DER. Written out after RFC 4514 when it is shown, which takes longer than to read the rest of a
/// certificate: the name of every Secret's issuer is kept, and hardly ever asked for.
#[derive(Clone)]
pub struct DistinguishedName(Box<[u8]>);

/// The fields of one certificate, as slices of its DER.
#[derive(Clone)]
pub(crate) struct Certificate<'a> {
    /// The whole certificate, without what may follow it.
    pub(crate) der: &'a [u8],
    /// `tbsCertificate`: what is signed.
    tbs: &'a [u8],
    /// Content octets of `serialNumber`, as encoded.
    pub(crate) serial: &'a [u8],
    /// `issuer`, DER.
    pub(crate) issuer: &'a [u8],
    /// `subject`, DER.
    pub(crate) subject: &'a [u8],
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    /// `subjectPublicKeyInfo`, DER.
    pub(crate) public_key: &'a [u8],
    /// Content of the sequence of extensions; empty when there is none.
    extensions: &'a [u8],
    /// `signatureAlgorithm`, DER.
    algorithm: &'a [u8],
    /// The bits of `signatureValue`.
    signature: &'a [u8],
}

// === impl DistinguishedName ===

impl From<&[u8]> for DistinguishedName {
    fn from(der: &[u8]) -> Self {
        Self(der.into())
    }
}

impl DistinguishedName {
    fn text(&self) -> Option<String> {
        let name = x509_cert::name::Name::from_der(&self.0).ok()?;
        let mut text = String::new();
        write!(text, "{name}").ok()?;
        Some(text)
    }
}

/// Cut to [`MAX_DN`] characters.
impl fmt::Display for DistinguishedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        let text = text.as_deref().unwrap_or("(unreadable name)");
        let end = text.char_indices().nth(MAX_DN);
        f.write_str(&text[..end.map_or(text.len(), |(at, _)| at)])
    }
}

impl fmt::Debug for DistinguishedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The same text may be encoded in two ways, and in capitals or not (RFC 5280, 7.1).
impl PartialEq for DistinguishedName {
    fn eq(&self, other: &Self) -> bool {
        let same = |(text, other): (String, String)| text.eq_ignore_ascii_case(&other);
        self.0 == other.0 || self.text().zip(other.text()).is_some_and(same)
    }
}

impl Eq for DistinguishedName {}

// === impl Certificate ===

impl<'a> Certificate<'a> {
    /// Reads the certificate at the start of `bytes`; what follows it is ignored, as in a
    /// `TRUSTED CERTIFICATE` block.
    ///
    /// # Errors
    /// The name of the first field that is missing or broken.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, &'static str> {
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
            extensions: extensions(&mut fields).unwrap_or_default(),
            algorithm,
            signature: signature.raw_bytes(),
        })
    }

    /// The names that the certificate is for: of the SAN (RFC 5280, 4.2.1.6) when it has one,
    /// else the common name when that is a host name. In the order of the certificate, each once.
    pub(crate) fn names(&self) -> Vec<Name> {
        let mut names = match self.extension(rfc5280::ID_CE_SUBJECT_ALT_NAME) {
            Some(value) => alternative_names(value),
            None => common_name(self.subject)
                .and_then(|name| name.parse().ok())
                .into_iter()
                .collect(),
        };
        if names.len() > 1 {
            let mut seen = std::collections::HashSet::new();
            names.retain(|name| seen.insert(name.clone()));
        }
        names
    }

    /// Whether there is a SAN at all.
    pub(crate) fn has_alternative_names(&self) -> bool {
        self.extension(rfc5280::ID_CE_SUBJECT_ALT_NAME).is_some()
    }

    /// Whether it may certify others (RFC 5280, 4.2.1.9).
    pub(crate) fn is_ca(&self) -> bool {
        let value = self
            .extension(rfc5280::ID_CE_BASIC_CONSTRAINTS)
            .unwrap_or_default();
        inside(value, Tag::Sequence).is_some_and(|mut fields| fields.decode() == Ok(true))
    }

    /// `keyIdentifier` of the authority key identifier (RFC 5280, 4.2.1.1).
    pub(crate) fn authority_key_id(&self) -> Option<&'a [u8]> {
        let value = self.extension(rfc5280::ID_CE_AUTHORITY_KEY_IDENTIFIER)?;
        let first: AnyRef<'_> = inside(value, Tag::Sequence)?.decode().ok()?;
        let wanted = TagNumber(0).context_specific(false);
        (first.header().tag() == wanted).then(|| first.value())
    }

    /// Whether the key in `issuer` made the signature of this certificate; none where the algorithm
    /// is one that we cannot check (RSASSA-PSS, Ed448, post-quantum ones).
    pub(crate) fn is_signed_by(&self, issuer: &Certificate<'_>) -> Option<bool> {
        let (_, parameters, key) = key_parts(issuer.public_key)?;
        let oid: ObjectIdentifier = inside(self.algorithm, Tag::Sequence)?.decode().ok()?;
        let curve = parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let verifier = verifier(oid, curve)?;
        let verified = UnparsedPublicKey::new(verifier, key).verify(self.tbs, self.signature);
        Some(verified.is_ok())
    }

    /// Value of the first extension of this kind.
    fn extension(&self, wanted: ObjectIdentifier) -> Option<&'a [u8]> {
        let mut list = SliceReader::new(self.extensions).ok()?;
        while let Ok(extension) = list.tlv_bytes() {
            let mut fields = inside(extension, Tag::Sequence)?;
            let oid: AnyRef<'_> = fields.decode().ok()?;
            if oid.value() != wanted.as_bytes() {
                continue;
            }
            // `critical` may stand between; the value is the last field.
            let mut value: AnyRef<'_> = fields.decode().ok()?;
            if value.header().tag() == Tag::Boolean {
                value = fields.decode().ok()?;
            }
            return (value.header().tag() == Tag::OctetString).then(|| value.value());
        }
        None
    }
}

/// Algorithm, its parameters and the key bits of a `subjectPublicKeyInfo`.
pub(crate) fn key_parts(spki: &[u8]) -> Option<(ObjectIdentifier, Option<AnyRef<'_>>, &[u8])> {
    let mut fields = inside(spki, Tag::Sequence)?;
    let mut algorithm = inside(fields.tlv_bytes().ok()?, Tag::Sequence)?;
    let oid = algorithm.decode().ok()?;
    let parameters = algorithm.decode().ok();
    let bits: BitStringRef<'_> = fields.decode().ok()?;
    Some((oid, parameters, bits.raw_bytes()))
}

/// Whether two `subjectPublicKeyInfo` hold one key; the parameters of RSA may be NULL or absent
/// (RFC 4055, 1.2 against older software).
pub(crate) fn same_key(left: &[u8], right: &[u8]) -> bool {
    let key = |spki| key_parts(spki).map(|(algorithm, _, key)| (algorithm, key));
    left == right || key(left).is_some_and(|found| Some(found) == key(right))
}

/// Bits of the modulus of an `RSAPublicKey` (RFC 8017, A.1.1).
pub(crate) fn modulus_bits(key: &[u8]) -> Option<usize> {
    let modulus: AnyRef<'_> = inside(key, Tag::Sequence)?.decode().ok()?;
    let digits = modulus.value();
    let start = digits.iter().position(|byte| *byte != 0)?;
    Some((digits.len() - start) * 8 - digits[start].leading_zeros() as usize)
}

/// A reader over the content of the one value in `der`, when it has this tag.
fn inside(der: &[u8], tag: Tag) -> Option<SliceReader<'_>> {
    let any = SliceReader::new(der).ok()?.decode::<AnyRef<'_>>().ok()?;
    (any.header().tag() == tag).then(|| SliceReader::new(any.value()).ok())?
}

/// Content of the sequence of extensions, past the two unique identifiers that nobody uses.
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

fn alternative_names(value: &[u8]) -> Vec<Name> {
    let mut names = Vec::new();
    let Some(mut list) = inside(value, Tag::Sequence) else {
        return names;
    };
    let (dns, ip) = (
        TagNumber(2).context_specific(false),
        TagNumber(7).context_specific(false),
    );
    while let Ok(name) = list.decode::<AnyRef<'_>>() {
        let tag = name.header().tag();
        if tag == dns {
            names.extend(dns_name(name.value()));
        } else if tag == ip {
            names.extend(ip_address(name.value()).map(Name::Ip));
        }
    }
    names
}

/// A `dNSName` as it stands, in lower case. It is not parsed as strictly as what a user writes:
/// `_sip.example.com` is the certificate's name, and a renewal must not lose it silently.
fn dns_name(bytes: &[u8]) -> Option<Name> {
    let text = str::from_utf8(bytes).ok()?;
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
    if value.header().tag() == Tag::BmpString {
        let units = value
            .value()
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        return char::decode_utf16(units).collect::<Result<_, _>>().ok();
    }
    String::from_utf8(value.value().to_vec()).ok()
}

/// `Validity`: two times.
fn times(validity: &[u8]) -> Option<(UnixTime, UnixTime)> {
    let mut fields = inside(validity, Tag::Sequence)?;
    let mut next = || fields.decode::<AnyRef<'_>>().ok().and_then(time);
    Some((next()?, next()?))
}

/// `Time` (RFC 5280, 4.1.2.5): a `UTCTime` has two digits for the years 1950 to 2049.
/// Seconds may be missing, as in certificates older than that rule.
fn time(any: AnyRef<'_>) -> Option<UnixTime> {
    let text = str::from_utf8(any.value()).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match any.header().tag() {
        Tag::UtcTime => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i16 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        Tag::GeneralizedTime => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let field =
        |at: RangeInclusive<usize>| rest.get(at).map_or(Some(0), |two| two.parse::<i8>().ok());
    if rest.len() != 8 && rest.len() != 10 {
        return None;
    }
    let date = DateTime::new(
        year,
        field(0..=1)?,
        field(2..=3)?,
        field(4..=5)?,
        field(6..=7)?,
        // A leap second is counted with the second before it, as POSIX time does.
        field(8..=9)?.min(59),
        0,
    );
    let epoch = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    // Civil arithmetic, since a timestamp of jiff ends a day before 9999-12-31T23:59:59Z,
    // the time that RFC 5280, 4.1.2.5 gives certificates without an end.
    Some(UnixTime(date.ok()?.duration_since(epoch).as_secs()))
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

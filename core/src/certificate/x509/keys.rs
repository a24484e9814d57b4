//! Public keys as certificates hold them, and other content in the place of a certificate or a private key.

use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier};
use der::oid::db::{rfc5912, rfc8410};
use der::{Decode, Reader, Tag, TagNumber};

use super::inside;

/// Algorithm, its parameters and the key bits of a `subjectPublicKeyInfo`.
pub(crate) fn key_parts(spki: &[u8]) -> Option<(ObjectIdentifier, Option<AnyRef<'_>>, &[u8])> {
    let mut fields = inside(spki, Tag::Sequence)?;
    let mut algorithm = inside(fields.tlv_bytes().ok()?, Tag::Sequence)?;
    let oid = algorithm.decode().ok()?;
    let parameters = algorithm.decode().ok();
    let bits: BitStringRef<'_> = fields.decode().ok()?;
    Some((oid, parameters, bits.raw_bytes()))
}

/// Whether two `subjectPublicKeyInfo` hold one key. The parameters of RSA may be NULL or absent (RFC 4055, 1.2 against
/// older software), and a point on a curve may be compressed (RFC 5480, 2.2).
pub fn same_key(left: &[u8], right: &[u8]) -> bool {
    if left == right {
        return true;
    }
    let Some(((algorithm, _, left), (other, _, right))) = key_parts(left).zip(key_parts(right))
    else {
        return false;
    };
    let curve = algorithm == rfc5912::ID_EC_PUBLIC_KEY;
    let same =
        left == right || (curve && (is_compressed(left, right) || is_compressed(right, left)));
    algorithm == other && same
}

/// Whether `short` is the compressed form of the point `long` (SEC 1, 2.3.3): the first coordinate, and the lowest bit
/// of the second.
fn is_compressed(short: &[u8], long: &[u8]) -> bool {
    let (Some((form, x)), Some((4, both))) = (short.split_first(), long.split_first()) else {
        return false;
    };
    let odd = both.last().map_or(0, |byte| byte & 1);
    both.len() == 2 * x.len() && both.starts_with(x) && *form == 2 + odd
}

/// Bits of the modulus of an `RSAPublicKey` (RFC 8017, A.1.1).
pub(crate) fn modulus_bits(key: &[u8]) -> Option<usize> {
    let modulus: AnyRef<'_> = inside(key, Tag::Sequence)?.decode().ok()?;
    bits(modulus.value())
}

/// Bits of a positive number.
fn bits(digits: &[u8]) -> Option<usize> {
    let start = digits.iter().position(|byte| *byte != 0)?;
    Some((digits.len() - start) * 8 - digits[start].leading_zeros() as usize)
}

/// Bits of the modulus and octets of the exponent of an `RSAPublicKey`.
pub(super) fn rsa_key(key: &[u8]) -> Option<(usize, usize)> {
    let mut fields = inside(key, Tag::Sequence)?;
    fields.tlv_bytes().ok()?;
    let exponent: AnyRef<'_> = fields.decode().ok()?;
    Some((modulus_bits(key)?, exponent.value().len()))
}

/// The tag of the second field in a sequence.
pub(crate) fn second_tag(der: &[u8]) -> Option<u8> {
    let mut fields = inside(der, Tag::Sequence)?;
    fields.tlv_bytes().ok()?;
    fields.tlv_bytes().ok()?.first().copied()
}

/// The kind of a private key that the crypto library does not support, by algorithm or size; none if it is broken.
pub(crate) fn unsupported_key(der: &[u8]) -> Option<String> {
    let rsa = |bits: usize| (!(2048..=8192).contains(&bits)).then(|| format!("RSA of {bits} bits"));
    let curve = |parameters: Option<ObjectIdentifier>| {
        let known = [
            rfc5912::SECP_256_R_1,
            rfc5912::SECP_384_R_1,
            rfc5912::SECP_521_R_1,
        ];
        let other = parameters.is_none_or(|curve| !known.contains(&curve));
        other.then(|| "on an elliptic curve other than P-256, P-384 and P-521".to_owned())
    };
    let mut fields = inside(der, Tag::Sequence)?;
    fields.tlv_bytes().ok()?;
    let second = fields.tlv_bytes().ok()?;
    match second.first()? {
        // PrivateKeyInfo (RFC 5958, 2).
        0x30 => {
            let mut algorithm = inside(second, Tag::Sequence)?;
            let oid: ObjectIdentifier = algorithm.decode().ok()?;
            let parameters = algorithm.decode::<AnyRef<'_>>().ok();
            match oid {
                rfc5912::RSA_ENCRYPTION => {
                    let key: AnyRef<'_> = fields.decode().ok()?;
                    unsupported_key(key.value())
                }
                rfc5912::ID_RSASSA_PSS => Some("RSA-PSS".to_owned()),
                rfc5912::ID_EC_PUBLIC_KEY => curve(parameters.and_then(|it| it.decode_as().ok())),
                rfc8410::ID_ED_25519 => None,
                rfc8410::ID_ED_448 => Some("Ed448".to_owned()),
                rfc5912::ID_DSA => Some("DSA".to_owned()),
                _ => Some(format!("of the algorithm {oid}")),
            }
        }
        // RSAPrivateKey (RFC 8017, A.1.2).
        0x02 => rsa(bits(AnyRef::from_der(second).ok()?.value())?),
        // ECPrivateKey (RFC 5915, 3).
        0x04 => {
            let parameters = TagNumber(0).context_specific(true);
            let field: AnyRef<'_> = fields.decode().ok()?;
            let oid = (field.header().tag() == parameters).then(|| field.value());
            curve(oid.and_then(|oid| ObjectIdentifier::from_der(oid).ok()))
        }
        _ => None,
    }
}

/// What a DER file holds if it is not a certificate, by its beginning.
pub(crate) fn container(der: &[u8]) -> Option<&'static str> {
    let mut fields = inside(der, Tag::Sequence)?;
    let first: AnyRef<'_> = fields.decode().ok()?;
    match (first.header().tag(), first.value()) {
        // signedData (RFC 5652, 5.1).
        (Tag::ObjectIdentifier, b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02") => Some("PKCS#7"),
        // PFX (RFC 7292, 4) begins with its version, followed by a sequence with its content type.
        (Tag::Integer, [3]) => Some("PKCS#12"),
        _ => None,
    }
}

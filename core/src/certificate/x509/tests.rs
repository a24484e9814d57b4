use super::*;
use crate::testing::forge::{Forged, POINT, public_key, tlv};

#[test]
fn a_compressed_point_is_the_same_key() {
    let whole = public_key(POINT);
    // The second coordinate of the base point is odd.
    let compressed = |form: u8| public_key(&[&[form], &POINT[1..33]].concat());
    assert!(same_key(&whole, &whole));
    assert!(same_key(&whole, &compressed(3)) && same_key(&compressed(3), &whole));
    assert!(!same_key(&whole, &compressed(2)));
    assert!(!same_key(&whole, &public_key(&[3])));
    let mut other = compressed(3);
    *other.last_mut().unwrap() ^= 1;
    assert!(!same_key(&whole, &other));
}

/// Unsupported is not wrong: a CA's key of a size that the library does not take.
#[test]
fn a_signature_by_a_key_of_unusual_size_is_not_said_to_be_wrong() {
    let rsa = |bits: usize| {
        let modulus = [&[0, 0x80], &*vec![1; bits / 8 - 1]].concat();
        let key = tlv(
            0x30,
            &[tlv(0x02, &modulus), b"\x02\x03\x01\0\x01".to_vec()].concat(),
        );
        let algorithm = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\0";
        tlv(
            0x30,
            &[algorithm.to_vec(), tlv(0x03, &[b"\0", &*key].concat())].concat(),
        )
    };
    let verdict = |bits: usize, hash: u8| {
        let oid = [
            b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01".as_slice(),
            &[hash],
        ]
        .concat();
        let forged = Forged {
            algorithm: [&*oid, b"\x05\0"].concat(),
            key: rsa(bits),
            ..Forged::default()
        };
        let der = forged.der();
        let certificate = Certificate::parse(&der).unwrap();
        certificate.is_signed_by(&certificate)
    };
    let (sha256, sha384) = (11, 12);
    assert_eq!(verdict(512, sha256), None);
    assert_eq!(verdict(16_384, sha256), None);
    assert_eq!(verdict(1024, sha384), None);
    assert_eq!(verdict(2048, sha256), Some(false));
}

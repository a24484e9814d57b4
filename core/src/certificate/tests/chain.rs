//! The ends of the certificates above a leaf.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::super::*;
use crate::testing::forge;

#[test]
fn a_chain_that_ends_sooner_than_its_leaf_is_remarked() {
    let until = |year: &str| {
        let time = |text: &str| forge::tlv(0x17, text.as_bytes());
        forge::Forged {
            validity: [time("200101000000Z"), time(&format!("{year}0101000000Z"))],
            ..forge::Forged::default()
        }
        .pem()
    };
    let read = |parts: &[&str]| {
        let whole: String = parts.iter().map(|year| until(year)).collect();
        leaf(whole.as_bytes()).unwrap().remarks
    };
    assert_eq!(*read(&["30", "40"]), []);
    let at = "2026-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(
        *read(&["30", "40", "26", "28"]),
        [Remark::EndsSooner { number: 3, at }]
    );
}

/// A leaf lasts no longer than the certificate that signed it. What is above that may have expired long ago, as the
/// cross-signed root at the end of the chains of Let's Encrypt had.
#[test]
fn the_certificate_that_signed_a_leaf_ends_it_and_no_other_of_its_chain_does() {
    let params = |name: &str, until: i32| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params
    };
    let ca = |name: &str, until: i32| {
        let mut params = params(name, until);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let key = || KeyPair::generate().unwrap();
    let (root, middle, other, own) = (key(), key(), key(), key());
    let by_root = Issuer::new(ca("root", 2050), &root);
    // The same key until another year, and another key under the same name.
    let intermediate = |key: &KeyPair, until: i32| {
        let params = ca("middle", until);
        params.signed_by(key, &by_root).unwrap().pem()
    };
    let cross_signed = |until: i32| {
        let old = key();
        let by_old = Issuer::new(ca("old root", 2050), &old);
        ca("root", until).signed_by(&root, &by_old).unwrap().pem()
    };
    let by_middle = Issuer::new(ca("middle", 2050), &middle);
    let signed = params("leaf", 2030).signed_by(&own, &by_middle);
    let signed = signed.unwrap().pem();
    let year = |year: i32| {
        format!("{year}-01-01T00:00:00Z")
            .parse::<UnixTime>()
            .unwrap()
    };
    for (what, above, ends) in [
        ("alone", vec![], None),
        (
            "an intermediate that lasts",
            vec![intermediate(&middle, 2040)],
            None,
        ),
        (
            "one that does not",
            vec![intermediate(&middle, 2027)],
            Some(2027),
        ),
        (
            "a cross-signed root that has expired",
            vec![intermediate(&middle, 2040), cross_signed(2021)],
            None,
        ),
        (
            "two for one key",
            vec![intermediate(&middle, 2027), intermediate(&middle, 2040)],
            None,
        ),
        (
            "another key of that name",
            vec![intermediate(&other, 2040), intermediate(&middle, 2028)],
            Some(2028),
        ),
        (
            "another key of that name that ends",
            vec![intermediate(&other, 2027), intermediate(&middle, 2040)],
            None,
        ),
    ] {
        for front in [true, false] {
            let mut file = above.concat();
            file.insert_str(if front { 0 } else { file.len() }, &signed);
            let found = leaf(file.as_bytes()).unwrap();
            assert_eq!(found.not_after, year(2030), "{what}");
            assert_eq!(found.issuer_ends, ends.map(year), "{what}");
            assert_eq!(found.accepted_until(), year(ends.unwrap_or(2030)), "{what}");
        }
    }
}

use super::*;
use crate::certificate::KeyType;
use crate::testing::file;

/// Within the validity of the fixtures, 2026-01-01 to 2026-04-01.
fn now() -> UnixTime {
    "2026-02-01T00:00:00Z".parse().unwrap()
}

#[test]
fn a_pair_is_judged_by_its_first_fault() {
    let at = |text: &str| text.parse::<UnixTime>().unwrap();
    let check =
        |certificate: &str, key: &str, now| check_pair(&file(certificate), &file(key), now).err();
    for (certificate, key, now, fault) in [
        ("good.pem", "good.key", now(), None),
        ("good.pem", "sec1.key", now(), None),
        ("key-last.pem", "key-first.pem", now(), None),
        ("rsa-2048.pem", "pkcs1.key", now(), None),
        ("ed25519.pem", "ed25519.key", now(), None),
        ("good.pem", "good.key", at("2026-04-01T00:00:00Z"), None),
        (
            "broken-empty.pem",
            "good.key",
            now(),
            Some(PairFault::Empty),
        ),
        (
            "good.pem",
            "broken-blank.pem",
            now(),
            Some(PairFault::Empty),
        ),
        ("good.pem", "p384.key", now(), Some(PairFault::Mismatch)),
        (
            "broken-text.pem",
            "good.key",
            now(),
            Some(PairFault::Certificate(Unreadable::NoCertificate)),
        ),
        (
            "good.pem",
            "good.pem",
            now(),
            Some(PairFault::Key(KeyError::NoKey)),
        ),
        (
            "good.pem",
            "good.key",
            at("2025-12-31T23:59:59Z"),
            Some(PairFault::NotYetValid(at("2026-01-01T00:00:00Z"))),
        ),
        (
            "good.pem",
            "good.key",
            at("2026-04-01T00:00:01Z"),
            Some(PairFault::Expired(at("2026-04-01T00:00:00Z"))),
        ),
    ] {
        assert_eq!(
            check(certificate, key, now),
            fault,
            "{certificate} {key} {now}"
        );
    }
}

#[test]
fn a_pair_that_a_server_cannot_load_is_not_rolled_onto() {
    let check = |certificate: &[u8], key: &[u8], look| {
        check_rollable(certificate, key, now(), look).map(|it| it.unproven)
    };
    let (good, key) = (file("good.pem"), file("good.key"));
    let usual = Strictness::default();
    assert_eq!(check(&good, &key, usual), Ok(None));
    for name in ["glued.pem", "indented.pem", "bare.der"] {
        let fault = check(&file(name), &key, usual);
        assert!(
            matches!(fault, Err(PairFault::Unservable(_))),
            "{name}: {fault:?}"
        );
    }
    let fault = check(&good, &file("indented.key"), usual);
    assert!(matches!(fault, Err(PairFault::Unservable(_))), "{fault:?}");
    let der = Strictness { der: true, ..usual };
    assert_eq!(check(&file("bare.der"), &file("pkcs8.der"), der), Ok(None));
    // A leaf that is not first was put there on purpose.
    let disordered = [file("intermediate.pem"), good.clone()].concat();
    assert_eq!(check(&disordered, &key, usual), Ok(None));
}

#[test]
fn a_key_that_cannot_be_read_is_somebody_elses_business() {
    let (good, external) = (
        file("good.pem"),
        Strictness {
            external: true,
            ..Strictness::default()
        },
    );
    for name in [
        "encrypted.key",
        "encrypted-legacy.key",
        "ed448.key",
        "rsa-pss.key",
    ] {
        let rolled = check_rollable(&good, &file(name), now(), external);
        assert!(rolled.is_ok_and(|it| it.unproven.is_some()), "{name}");
        let ours = check_rollable(&good, &file(name), now(), Strictness::default());
        assert!(matches!(ours, Err(PairFault::Key(_))), "{name}");
    }
    let other = check_rollable(&good, &file("p384.key"), now(), external);
    assert_eq!(other, Err(PairFault::Mismatch));
    let late = "2027-01-01T00:00:00Z".parse().unwrap();
    let expired = check_rollable(&good, &file("encrypted.key"), late, external);
    assert!(matches!(expired, Err(PairFault::Expired(_))));
}

#[test]
fn a_leaf_that_does_not_stand_first_is_put_there() {
    let read = |parts: &[&str]| {
        let whole: Vec<u8> = parts.iter().flat_map(|name| file(name)).collect();
        Chain::read(&whole).unwrap()
    };
    let (leaf, intermediate, root) = ("x509-label.pem", "intermediate.pem", "root.pem");
    let whole = read(&[leaf, intermediate, root]);
    assert_eq!(whole.check_order(), Ok(()));
    for parts in [[root, intermediate, leaf], [intermediate, root, leaf]] {
        assert_eq!(
            read(&parts),
            Chain {
                leaf: read(&parts).leaf,
                ..whole.clone()
            }
        );
    }
    let twice = read(&[intermediate, leaf, intermediate]);
    assert_eq!(twice.to_pem(), read(&[leaf, intermediate]).to_pem());
}

fn issued(parts: &[&str], asked: ExpectedPair<'_>) -> Result<Chain, Rejected> {
    let pem: Vec<u8> = parts.iter().flat_map(|name| file(name)).collect();
    check_issued(&pem, &asked, now())
}

/// Runs a test with what was asked for the good pair.
fn with_asked(test: impl FnOnce(ExpectedPair<'_>)) {
    let key = PrivateKey::from_pem(&file("good.key")).unwrap();
    let names = ["shop.example.com".parse().unwrap()];
    test(ExpectedPair {
        key: &key,
        names: &names,
        not_sooner_than: None,
        staging: false,
    });
}

#[test]
fn a_good_chain_passes_and_comes_out_clean() {
    with_asked(|asked| {
        for name in [
            "good",
            "crlf",
            "glued",
            "with-text",
            "key-first",
            "unwrapped",
            "indented",
        ] {
            let chain = issued(&[&format!("{name}.pem")], asked).unwrap();
            assert_eq!(chain.to_pem().as_bytes(), file("good.pem"), "{name}");
            assert_eq!(
                chain.issuers_pem().as_bytes(),
                file("intermediate.pem"),
                "{name}"
            );
            assert_eq!(chain.leaf_pem() + &chain.issuers_pem(), chain.to_pem());
        }
        assert_eq!(issued(&["bare.der"], asked).unwrap().issuers_pem(), "");
        assert!(issued(&["good.pem", "root.pem"], asked).is_ok());
    });
}

#[test]
fn what_the_ca_gave_is_refused_for_its_reason() {
    let order = |number, issuer: &str| Rejected::Order {
        number,
        issuer: issuer.to_owned(),
    };
    with_asked(|asked| {
        let names = ["other.example.com", "10.0.0.1"].map(|name| name.parse().unwrap());
        assert_eq!(
            issued(
                &["good.pem"],
                ExpectedPair {
                    names: &names,
                    ..asked
                }
            ),
            Err(Rejected::MissingNames(names[..1].to_vec()))
        );
        let fresh = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        assert_eq!(
            issued(
                &["good.pem"],
                ExpectedPair {
                    key: &fresh,
                    ..asked
                }
            ),
            Err(Rejected::Unusable(PairFault::Mismatch))
        );
        let twin = "other-intermediate-of-the-same-name.pem";
        for (parts, error) in [
            (
                ["good.pem", "intermediate.pem"],
                order(2, "CN=Test Root,O=Test"),
            ),
            (
                ["x509-label.pem", "root.pem"],
                order(1, "CN=Test Intermediate,O=Test"),
            ),
            (["x509-label.pem", twin], Rejected::Signature(1)),
            (
                ["broken-text.pem", "broken-blank.pem"],
                Rejected::Unreadable(Unreadable::NoCertificate),
            ),
            (
                ["staging.pem", "root.pem"],
                Rejected::Staging("CN=(STAGING) Wannabe,O=(STAGING) Test".to_owned()),
            ),
        ] {
            assert_eq!(issued(&parts, asked), Err(error), "{parts:?}");
        }
        assert!(
            issued(
                &["staging.pem"],
                ExpectedPair {
                    staging: true,
                    ..asked
                }
            )
            .is_ok()
        );
    });
}

#[test]
fn a_leaf_in_use_is_not_given_up_for_a_shorter_one() {
    let mut old = Chain::read(&file("good.pem")).unwrap().leaf;
    with_asked(|asked| {
        let check = |old: &Leaf| {
            issued(
                &["good.pem"],
                ExpectedPair {
                    not_sooner_than: Some(old),
                    ..asked
                },
            )
        };
        assert!(check(&old).is_ok());
        let new = old.not_after;
        old.not_after.0 += 1;
        assert_eq!(
            check(&old),
            Err(Rejected::EndsSooner {
                new,
                old: old.not_after
            })
        );
        old.issuer = b"CN=Another".as_slice().into();
        assert!(check(&old).is_ok());
    });
}

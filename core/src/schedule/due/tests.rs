use std::collections::BTreeMap;

use super::*;
use crate::certificate::{Fingerprint, KeyType};
use crate::secret::keys;
use crate::secret::settings::NamespaceDefaults;

const DAY: i64 = 86_400;

fn leaf(days: i64) -> Leaf {
    Leaf {
        fingerprint: Fingerprint([1; 32]),
        not_before: UnixTime(0),
        not_after: UnixTime(days * DAY),
        names: vec![
            "shop.example".parse().unwrap(),
            "*.wild.example".parse().unwrap(),
        ],
        self_signed: false.into(),
        key_type: Some(KeyType::EcdsaP256),
        public_key: Box::default(),
        issuer: b"CA".as_slice().into(),
        serial: Box::default(),
        authority_key_id: None,
        abilities: Default::default(),
        issuer_ends: None,
        chain: 0,
        remarks: Box::default(),
    }
}

fn settings(annotations: &[(&str, &str)]) -> Settings {
    let mut all: BTreeMap<String, String> = annotations
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    all.entry(keys::ISSUER.into())
        .or_insert_with(|| "le".into());
    let (settings, problems) = Settings::read(&all, false, &NamespaceDefaults::default());
    assert_eq!(problems, [], "the test's own annotations are sound");
    settings.unwrap()
}

fn judge(leaf: Result<&Leaf, &Unreadable>, annotations: &[(&str, &str)]) -> Result<Due, Never> {
    let settings = settings(annotations);
    due(&Inputs {
        leaf,
        settings: &settings,
        blocked: false,
        staged: false,
        issued_by: None,
        renewed_for: None,
        renewal_info: None,
        seed: 0,
    })
}

#[test]
fn a_third_of_the_lifetime_is_left_or_half_of_a_short_one() {
    for (days, due_on) in [(90, 60), (45, 30), (6, 3), (1, 0)] {
        let due = judge(Ok(&leaf(days)), &[]).unwrap();
        assert_eq!(due.at.0 / DAY, due_on, "{days} days");
        assert_eq!(due.reason, Reason::Lifetime);
    }
}

#[test]
fn renew_before_is_kept_to_but_never_beyond_half_the_lifetime() {
    for (setting, due_on) in [("30d", 60), ("10%", 81), ("80d", 45), ("99%", 45)] {
        let due = judge(Ok(&leaf(90)), &[(keys::RENEW_BEFORE, setting)]).unwrap();
        assert_eq!(due.at.0 / DAY, due_on, "{setting}");
    }
}

#[test]
fn what_an_edit_asks_for_is_due_at_once() {
    let placeholder = Leaf {
        self_signed: true.into(),
        ..leaf(90)
    };
    let good = leaf(90);
    for (leaf, annotations, reason) in [
        (
            Err(&Unreadable::Empty),
            vec![(keys::NAMES, "a.example")],
            Reason::NoCertificate,
        ),
        (Ok(&placeholder), vec![], Reason::Placeholder),
        (
            Ok(&good),
            vec![(keys::NAMES, "shop.example, b.example")],
            Reason::MissingName,
        ),
        (
            Ok(&good),
            vec![(keys::KEY_TYPE, "rsa-2048")],
            Reason::KeyTypeChanged,
        ),
        (Ok(&good), vec![(keys::RENEW_NOW, "1")], Reason::RenewNow),
    ] {
        assert_eq!(
            judge(leaf, &annotations),
            Ok(Due {
                at: AT_ONCE,
                reason
            })
        );
    }
}

#[test]
fn what_the_certificate_has_already_is_not_due() {
    for annotations in [
        vec![(keys::NAMES, "shop.example")],
        vec![(keys::NAMES, "x.wild.example")],
        vec![(keys::KEY_TYPE, "ecdsa-p256")],
        vec![(keys::PROFILE, "tlsserver")],
    ] {
        let due = judge(Ok(&leaf(90)), &annotations).unwrap();
        assert_eq!(due.reason, Reason::Lifetime, "{annotations:?}");
    }
}

#[test]
fn another_lifetime_is_due_at_once_and_only_until_it_was_asked_for() {
    let leaf = leaf(90);
    let day = Duration::from_secs(86_400);
    for (setting, asked, reason) in [
        (Some("24h"), None, Reason::LifetimeChanged),
        (Some("1d"), Some(7 * day), Reason::LifetimeChanged),
        // The leaf lives for 90 days: the CA has ignored the setting, and is not asked again for it.
        (Some("1d"), Some(day), Reason::Lifetime),
        (None, Some(day), Reason::Lifetime),
        (None, None, Reason::Lifetime),
    ] {
        let annotations: Vec<_> = setting.map(|it| (keys::LIFETIME, it)).into_iter().collect();
        let settings = settings(&annotations);
        let issued = IssuedBy {
            issuer: "le".into(),
            directory: None,
            names: leaf.names.clone(),
            profile: None,
            lifetime: asked,
            key_type: None,
            written: None,
            account: None,
            outputs: None,
        };
        let due = due(&Inputs {
            leaf: Ok(&leaf),
            settings: &settings,
            blocked: false,
            staged: false,
            issued_by: Some(&issued),
            renewed_for: None,
            renewal_info: None,
            seed: 0,
        });
        assert_eq!(due.unwrap().reason, reason, "{setting:?} {asked:?}");
    }
    // No setting was requested yet: another program's certificate is not replaced for one.
    let due = judge(Ok(&leaf), &[(keys::LIFETIME, "24h")]);
    assert_eq!(due.unwrap().reason, Reason::Lifetime);
}

/// The certificate that signed the leaf ends before it: clients refuse the leaf from then on.
#[test]
fn a_leaf_is_renewed_in_time_before_its_issuers_certificate_ends() {
    let under = |ends: i64| Leaf {
        issuer_ends: Some(UnixTime(ends * DAY)),
        ..leaf(90)
    };
    for (ends, setting, due_on) in [
        // A third of the lifetime before that end.
        (80, None, 50),
        (80, Some("10d"), 70),
        // The CA had no other when it issued this one: at most one renewal each tenth of the lifetime.
        (35, None, 9),
        (3, None, 9),
    ] {
        let annotations: Vec<_> = setting
            .map(|it| (keys::RENEW_BEFORE, it))
            .into_iter()
            .collect();
        let due = judge(Ok(&under(ends)), &annotations).unwrap();
        assert_eq!((due.at.0 / DAY, due.reason), (due_on, Reason::IssuerEnds));
    }
    let with = |annotations: &[(&str, &str)], written: Option<i64>, suggested: Option<i64>| {
        let (leaf, settings) = (under(35), settings(annotations));
        let issued = written.map(|day| IssuedBy {
            issuer: "le".into(),
            directory: None,
            names: leaf.names.clone(),
            profile: None,
            lifetime: None,
            key_type: None,
            written: Some((leaf.fingerprint, UnixTime(day * DAY))),
            account: None,
            outputs: settings.outputs_digest(),
        });
        let blocked = !annotations.is_empty();
        let due = due(&Inputs {
            leaf: Ok(&leaf),
            settings: &settings,
            blocked,
            staged: false,
            issued_by: issued.as_ref(),
            renewed_for: None,
            renewal_info: suggested.map(|day| UnixTime(day * DAY)),
            seed: 0,
        });
        let due = due.unwrap();
        (due.at.0 / DAY, due.reason)
    };
    // A CA that backdates its certificates is asked no more often.
    assert_eq!(with(&[], Some(2), None), (11, Reason::IssuerEnds));
    // Its word on renewals brings them forward, and delays none.
    assert_eq!(with(&[], None, Some(60)), (9, Reason::IssuerEnds));
    assert_eq!(with(&[], None, Some(5)), (5, Reason::RenewalInfo));
    // An invalid annotation holds it up until little is left of that time.
    let other = [(keys::NAMES, "other.example")];
    assert_eq!(with(&other, None, None), (20, Reason::Lifetime));
}

#[test]
fn some_secrets_are_never_renewed() {
    let good = leaf(90);
    for (leaf, annotations, never) in [
        (Ok(&good), vec![(keys::ISSUER, "external")], Never::External),
        (Ok(&good), vec![(keys::PAUSED, "true")], Never::Paused),
        (Err(&Unreadable::Empty), vec![], Never::NoNames),
    ] {
        assert_eq!(judge(leaf, &annotations), Err(never));
    }
}

#[test]
fn a_broken_annotation_holds_back_until_little_life_is_left() {
    let (leaf, settings) = (leaf(90), settings(&[(keys::NAMES, "other.example")]));
    let due = due(&Inputs {
        leaf: Ok(&leaf),
        settings: &settings,
        blocked: true,
        staged: false,
        issued_by: None,
        renewed_for: None,
        renewal_info: None,
        seed: 0,
    });
    assert_eq!(due.unwrap().at.0 / DAY, 75);
}

#[test]
fn renewals_of_one_day_are_spread() {
    let (leaf, settings) = (leaf(90), settings(&[]));
    let at = |seed| {
        let inputs = Inputs {
            leaf: Ok(&leaf),
            settings: &settings,
            blocked: false,
            staged: false,
            issued_by: None,
            renewed_for: None,
            renewal_info: None,
            seed,
        };
        due(&inputs).unwrap().at
    };
    assert_ne!(at(1), at(20_000));
    assert!(at(0).since(at(u64::MAX)) <= MAX_JITTER);
}

#[test]
fn the_window_of_the_ca_is_kept_to() {
    let leaf = leaf(90);
    let at = |annotations, instant| {
        let settings = settings(annotations);
        due(&Inputs {
            leaf: Ok(&leaf),
            settings: &settings,
            blocked: false,
            staged: false,
            issued_by: None,
            renewed_for: None,
            renewal_info: Some(UnixTime(instant)),
            seed: 0,
        })
        .unwrap()
    };
    assert_eq!(
        at(&[], 50 * DAY),
        Due {
            at: UnixTime(50 * DAY),
            reason: Reason::RenewalInfo
        }
    );
    // `renew-before` replaces the ordinary instant, but a window in the past still means now.
    assert_eq!(at(&[(keys::RENEW_BEFORE, "10d")], 50 * DAY).at.0 / DAY, 80);
    assert_eq!(
        at(&[(keys::RENEW_BEFORE, "10d")], DAY).reason,
        Reason::RenewalInfo
    );
}

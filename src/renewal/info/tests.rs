use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::testing::forge;
use serde_json::json;

use super::*;

pub(super) fn certificate(due: i64, issuer: &str) -> Certificate {
    Certificate {
        leaf: Fingerprint([1; 32]),
        id: "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE".into(),
        uid: "uid".into(),
        issuer: issuer.into(),
        due: UnixTime(due),
        again: UnixTime(0),
        window: None,
        suggestion: Suggestion::Unasked,
        failures: 0,
    }
}

fn key(name: &str) -> SecretRef {
    SecretRef {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn poll(window: Option<(i64, i64)>, again: i64) -> Poll {
    Poll {
        window: window.map(|(start, end)| Window {
            start: UnixTime(start),
            end: UnixTime(end),
        }),
        explanation: Some("https://ca.example/incident".into()),
        again: UnixTime(again),
        trouble: None,
    }
}

/// A Secret whose certificate has a serial and a key identifier of its issuer of these sizes in octets.
fn secret(serial: usize, authority: usize) -> ThinSecret {
    let names = forge::alternative_names([(0x82, b"a.example".as_slice())]);
    let authority = forge::tlv(0x30, &forge::tlv(0x80, &vec![7; authority]));
    let forged = forge::Forged {
        serial: vec![5; serial],
        extensions: vec![names, forge::extension(35, &authority)],
        ..forge::Forged::default()
    };
    let secret = json!({
        "metadata": {"name": "a", "namespace": "shop", "uid": "u", "annotations": {"cert-renew.io/issuer": "le"}},
        "type": "kubernetes.io/tls", "data": {"tls.crt": STANDARD.encode(forged.pem())},
    });
    serde_json::from_value(secret).unwrap()
}

#[test]
fn a_certificate_without_an_identifier_is_not_asked_about() {
    let config = "issuers: {le: {directory: https://a.example/, allow: [{namespaces: [shop], names: [a.example]}]}}";
    let config = Config::parse(config).unwrap();
    let noted = |serial: usize, authority: usize| {
        let secret = secret(serial, authority);
        let now = UnixTime(1_800_000_000);
        let assessment = assess::of_thin(now, &key("a"), &secret, &config).unwrap();
        let info = RenewalInfo::default();
        (
            info.note(&key("a"), "u", &assessment, &config),
            info.next(now).is_ok(),
        )
    };
    assert_eq!(noted(16, 20), (Suggestion::Unasked, true));
    for (serial, authority) in [(65, 20), (10_000, 20), (16, 0), (16, 65)] {
        let expected = (Suggestion::None, false);
        assert_eq!(noted(serial, authority), expected, "{serial} {authority}");
    }
}

#[test]
fn the_soonest_due_is_asked_about_first_and_each_when_the_ca_wants_it() {
    let info = RenewalInfo::default();
    for (name, due) in [("late", 300), ("soon", 100), ("middle", 200)] {
        info.lock().insert(&key(name), certificate(due, "le"));
    }
    let mut order = Vec::new();
    while let Ok(question) = info.next(UnixTime(1)) {
        order.push(question.key.name.to_string());
        let answered = info.lock().answered(&question, &poll(Some((500, 501)), 60));
        let (suggested, _) = answered.unwrap();
        assert_eq!(suggested.suggestion, Suggestion::At(UnixTime(500)));
    }
    assert_eq!(order, ["soon", "middle", "late"]);
    assert_eq!(info.next(UnixTime(40)).err(), Some(Duration::from_secs(20)));
    assert!(info.next(UnixTime(60)).is_ok());
}

#[test]
fn a_window_stands_until_another_is_heard_of_and_a_move_is_told() {
    let info = RenewalInfo::default();
    info.lock().insert(&key("a"), certificate(100, "le"));
    let far = 40_000_000_000;
    let heard = |poll: Poll| {
        let question = info.next(UnixTime(i64::MAX - 1)).ok().unwrap();
        let (suggested, note) = info.lock().answered(&question, &poll).unwrap();
        (suggested.suggestion, note)
    };
    assert_eq!(heard(poll(None, 10)), (Suggestion::None, None));
    let first = Suggestion::At(UnixTime(far));
    assert_eq!(heard(poll(Some((far, far + 1)), 20)), (first, None));
    assert_eq!(heard(poll(None, 30)), (first, None));
    let (second, note) = heard(poll(Some((50, 51)), 40));
    assert_eq!(second, Suggestion::At(UnixTime(50)));
    assert!(note.unwrap().contains("https://ca.example/incident"));
}

#[test]
fn what_was_being_asked_when_a_term_ended_is_asked_in_the_next() {
    let info = RenewalInfo::default();
    info.lock().insert(&key("a"), certificate(100, "le"));
    assert!(info.next(UnixTime(1)).is_ok());
    assert!(info.next(UnixTime(1)).is_err());
    info.lock().requeue();
    assert_eq!(info.next(UnixTime(1)).ok().unwrap().key, key("a"));
}

#[test]
fn an_issuer_that_cannot_be_asked_keeps_nothing_waiting() {
    let info = RenewalInfo::default();
    for name in ["a", "b"] {
        info.lock().insert(&key(name), certificate(100, "down"));
    }
    info.lock().insert(&key("c"), certificate(100, "up"));
    assert_eq!(info.lock().put_off("down", UnixTime(50)).len(), 2);
    assert_eq!(info.next(UnixTime(1)).ok().unwrap().key, key("c"));
    assert!(info.next(UnixTime(1)).is_err());
    assert!(info.next(UnixTime(50)).is_ok());
}

#[test]
fn a_new_certificate_keeps_to_what_its_issuer_asked_for() {
    let config = "issuers: {le: {directory: https://a.example/, allow: [{namespaces: [shop], names: [a.example]}]}}";
    let config = Config::parse(config).unwrap();
    let now = UnixTime::now();
    let assessment = assess::of_thin(now, &key("a"), &secret(16, 20), &config).unwrap();
    let info = RenewalInfo::default();
    let again = now + Duration::from_secs(3_600);
    info.lock().put_off("le", again);
    let noted = info.note(&key("a"), "u", &assessment, &config);
    assert_eq!(noted, Suggestion::None, "nothing waits for it");
    assert_eq!(info.next(now).err(), Some(BEAT));
    assert!(info.next(again).is_ok());
}

#[test]
fn odd_certificates_of_one_namespace_put_off_themselves_and_an_outage_all_of_their_issuer() {
    let info = RenewalInfo::default();
    let of = |namespace: &str, name: &str| SecretRef::new(namespace, name);
    let silent = |key: SecretRef, issuer: &str| {
        let question = Question {
            key,
            leaf: Fingerprint([1; 32]),
            id: "".into(),
            issuer: issuer.into(),
            failures: 0,
        };
        info.lock().is_outage(&question, true)
    };
    for namespace in ["shop", "blog", "hostile"] {
        let key = of(namespace, "of-two");
        info.lock().insert(&key, certificate(100, "other"));
    }
    for number in 0..20 {
        let key = of("hostile", &number.to_string());
        info.lock().insert(&key, certificate(100, "other"));
        assert!(!silent(key, "other"), "one namespace is no outage");
    }
    assert!(!silent(of("shop", "of-two"), "other"));
    assert!(silent(of("blog", "of-two"), "other"));
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        info.lock().insert(&key(name), certificate(100, "le"));
    }
    let answers = |name: &str, failures, unreachable| {
        let question = Question {
            key: key(name),
            leaf: Fingerprint([1; 32]),
            id: "".into(),
            issuer: "le".into(),
            failures,
        };
        info.lock().is_outage(&question, unreachable)
    };
    // One certificate that never gets an answer and is asked about first each time.
    for failures in 0..5 {
        assert!(!answers("a", failures, true));
        assert!(!answers("a", 0, true), "nor by being made again");
    }
    assert!(!answers("b", 0, true));
    assert!(!answers("c", 0, false), "the CA works");
    assert!(!answers("b", 0, true));
    assert!(!answers("d", 0, true));
    assert!(answers("e", 0, true));
}

#[test]
fn once_a_ca_has_answered_only_certificates_that_it_knows_tell_of_an_outage() {
    let info = RenewalInfo::default();
    let question = |namespace: &str, name: &str| Question {
        key: SecretRef::new(namespace, name),
        leaf: Fingerprint([1; 32]),
        id: "".into(),
        issuer: "le".into(),
        failures: 0,
    };
    let answered = |namespace: &str, name: &str| {
        let answer = poll(Some((500, 501)), 60);
        let answered = info.lock().answered(&question(namespace, name), &answer);
        assert!(answered.is_some());
    };
    let silent =
        |namespace: &str, name: &str| info.lock().is_outage(&question(namespace, name), true);
    let hostile = ["hostile-1", "hostile-2", "hostile-3", "hostile-4"];
    for namespace in hostile.into_iter().chain(["shop"]) {
        for name in ["a", "b", "c"] {
            let key = SecretRef::new(namespace, name);
            info.lock().insert(&key, certificate(100, "le"));
        }
    }
    answered("shop", "a");
    for namespace in hostile {
        for name in ["a", "b", "c"] {
            assert!(!silent(namespace, name), "{namespace} {name}");
        }
    }
    answered("shop", "b");
    answered("shop", "c");
    assert!(!silent("shop", "a"));
    assert!(!silent("shop", "b"));
    assert!(silent("shop", "c"), "all of those that it knows");
    // Another namespace of which it knows one has to be silent too.
    answered("hostile-1", "a");
    for name in ["a", "b", "c"] {
        assert!(!silent("shop", name), "{name}");
    }
    assert!(silent("hostile-1", "a"));
}

#[test]
fn another_leaf_is_not_taken_for_the_one_that_was_asked_about() {
    let info = RenewalInfo::default();
    info.lock().insert(&key("a"), certificate(100, "le"));
    let question = info.next(UnixTime(1)).ok().unwrap();
    let renewed = Certificate {
        leaf: Fingerprint([2; 32]),
        ..certificate(900, "le")
    };
    info.lock().remove(&key("a"));
    info.lock().insert(&key("a"), renewed);
    assert!(info.lock().answered(&question, &poll(None, 60)).is_none());
    assert!(info.instant(&key("a"), Fingerprint([1; 32])).is_none());
}

use std::time::Duration;

use cert_renew_core::schedule::rate_limits::TriedWith;
use serde_json::json;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn config(more: &str) -> Config {
    let text = format!(
        "issuers: {{le: {{directory: \"https://ca.example/\", allow: [{{namespaces: [shop], names: [\"**.example\"]}}, \
         {{namespaceSelector: {{matchLabels: {{team: web}}}}, names: [\"**.labelled\"]}}]}}}}\n{more}"
    );
    Config::parse(&text).unwrap()
}

/// A Secret of `shop` with the certificate of a file, and when that begins to be valid.
fn secret(kind: &str, annotations: &[(&str, &str)]) -> (ThinSecret, UnixTime, Duration) {
    use base64::Engine as _;
    let pem = include_bytes!("../../../../../testdata/certificates/good.pem");
    let leaf = cert_renew_core::certificate::leaf(pem).unwrap();
    let annotations = annotations.iter().map(|(key, value)| {
        let key = format!("{}{key}", keys::PREFIX);
        (key, (*value).into())
    });
    let annotations: serde_json::Map<String, serde_json::Value> = annotations.collect();
    let data = base64::engine::general_purpose::STANDARD.encode(pem);
    let owners = match kind {
        "owned" => {
            json!([{"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "name": "shop"}])
        }
        _ => json!([]),
    };
    let immutable = kind == "immutable";
    let kind = if kind == "Opaque" {
        kind
    } else {
        "kubernetes.io/tls"
    };
    let json = json!({"metadata": {"namespace": "shop", "name": "tls", "uid": "1", "annotations": annotations,
        "ownerReferences": owners}, "immutable": immutable, "type": kind, "data": {"tls.crt": data}});
    let secret = serde_json::from_value(json).unwrap();
    (secret, leaf.not_before, leaf.lifetime())
}

fn judge(
    at: UnixTime,
    secret: &ThinSecret,
    force: bool,
    config: Option<&Config>,
    account: Option<&IssuanceHistory>,
) -> Verdict {
    let none = std::collections::BTreeMap::new();
    let wish = Wish {
        value: Some("now"),
        force,
        is_broken: false,
    };
    let view = (config, Labels::Are(&none));
    verdict(at, secret, wish, view, |_| account.cloned())
}

#[test]
fn what_nothing_declares_any_more_is_not_asked_for_whatever_is_known() {
    let key = SecretRef::new("shop", "tls");
    let record = declared::DeclaredMark {
        gone: Some(UnixTime(1_800_000_000)),
        ..declared::DeclaredMark::default()
    };
    let (secret, from, lifetime) = secret("kubernetes.io/tls", &[]);
    let annotations = [
        (keys::ISSUER, "le".to_owned()),
        (keys::NAMES, "shop.example".to_owned()),
        (keys::DECLARED, "true".to_owned()),
        (keys::DECLARATION, record.written_for(&key)),
    ];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value));
    let secret = secret.annotated(annotations.into());
    let known = config("class: default");
    for config in [None, Some(&known)] {
        let verdict = judge(from + lifetime / 2, &secret, true, config, None);
        let why = "what declared the certificate is gone";
        assert_eq!(verdict, Verdict::Nothing(why.into()), "{config:?}");
    }
}

#[test]
fn nothing_is_asked_where_nothing_would_happen() {
    let tls = "kubernetes.io/tls";
    let ours = ("issuer", "le");
    for (kind, annotations, more, expected) in [
        (tls, vec![], "", "no annotation cert-renew.io/issuer"),
        ("Opaque", vec![], "", "the label cert-renew.io/managed"),
        (tls, vec![("issuer", "external")], "", "somebody else"),
        (tls, vec![ours, ("paused", "true")], "", "it is paused"),
        (
            tls,
            vec![ours],
            "paused: true",
            "the config has paused: true",
        ),
        (
            tls,
            vec![ours, ("class", "edge")],
            "",
            "another installation",
        ),
        (tls, vec![ours, ("key-type", "dsa")], "", "key-type"),
        (
            tls,
            vec![("issuer", "nosuch")],
            "",
            "an issuer of the config (le)",
        ),
        (tls, vec![ours, ("names", "a.test")], "", "issuers.le.allow"),
        // Granted by the labels of the namespace, which has none.
        (
            tls,
            vec![ours, ("names", "a.labelled")],
            "",
            "issuers.le.allow",
        ),
        ("Opaque", vec![ours], "", "it is of type \"Opaque\""),
        (
            tls,
            vec![ours],
            "watch: {select: label}",
            "watch.select: label",
        ),
        (
            tls,
            vec![ours],
            "watch: {namespaces: [blog]}",
            "does not watch namespace shop",
        ),
        ("owned", vec![ours], "", "Certificate shop owns it"),
        ("immutable", vec![ours], "", "the Secret is immutable"),
    ] {
        let (secret, since, lifetime) = secret(kind, &annotations);
        let at = since + lifetime / 2;
        let config = config(more);
        let said = judge(
            at,
            &secret,
            false,
            Some(&config),
            Some(&IssuanceHistory::default()),
        );
        let Some(why) = said.refusal() else {
            panic!("{annotations:?} {more}: {said:?}");
        };
        assert!(why.contains(expected), "{annotations:?}: {why}");
    }
}

#[test]
fn a_young_certificate_is_kept_unless_it_is_forced() {
    let config = config("");
    let names = ("names", "a.example");
    let (secret, since, lifetime) = secret("kubernetes.io/tls", &[("issuer", "le"), names]);
    // Another name is a cause of its own, which the rule does not hold.
    let account = IssuanceHistory::default();
    let young = since + lifetime / 20;
    let said = judge(young, &secret, false, Some(&config), Some(&account));
    assert_eq!(said, Verdict::Renews);

    let (secret, ..) = self::secret("kubernetes.io/tls", &[("issuer", "le")]);
    let config = Config::parse(
        "issuers: {le: {directory: \"https://ca.example/\", allow: [{namespaces: [shop], names: [\"**.example\", \
         \"**.example.com\", \"example.com\", \"0.0.0.0/0\", \"::/0\"]}]}}",
    )
    .unwrap();
    let said = judge(young, &secret, false, Some(&config), Some(&account));
    let until = since + lifetime / 10;
    let Verdict::NotBefore(at, why) = &said else {
        panic!("{said:?}");
    };
    assert_eq!(*at, until);
    for part in [&until.to_string(), "--force", "tenth"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    for (at, force) in [(young, true), (until, false)] {
        let said = judge(at, &secret, force, Some(&config), Some(&account));
        assert_eq!(said, Verdict::Renews, "{at} {force}");
    }
    // An earlier value is replaced, whether it was served or not.
    let forced = ("renew-now", "force-2026-01-01T00:00:00Z");
    let (secret, ..) = self::secret("kubernetes.io/tls", &[("issuer", "le"), forced]);
    let said_of_forced = judge(young, &secret, false, Some(&config), Some(&account));
    assert_eq!(said_of_forced, said);
}

#[test]
fn a_spent_budget_is_told_and_force_does_not_pass_it() {
    let config = config("");
    let annotations = [("issuer", "le"), ("names", "a.example")];
    let (secret, since, lifetime) = secret("kubernetes.io/tls", &annotations);
    let at = since + lifetime / 2;
    let issues = (1..=4).map(|days| (at - DAY * days).0).rev();
    let account = IssuanceHistory {
        unscheduled: issues.collect(),
        ..IssuanceHistory::default()
    };
    for force in [false, true] {
        let said = judge(at, &secret, force, Some(&config), Some(&account));
        let Verdict::NotBefore(until, why) = &said else {
            panic!("{said:?}");
        };
        let free = at - DAY * 4 + DAY * 7;
        assert_eq!(*until, free);
        assert!(why.contains(&free.to_string()), "{why}");
    }
}

/// What asks for it without a value of `renew-now`, such as `revoked`, forgets no back-off.
#[test]
fn without_a_wish_a_back_off_holds_until_its_end() {
    let config = config("");
    let annotations = [("issuer", "le"), ("names", "a.example")];
    let (secret, since, lifetime) = secret("kubernetes.io/tls", &annotations);
    let (at, key) = (since + lifetime / 2, SecretRef::new("shop", "tls"));
    let until = at + DAY;
    let tried = |settings| TriedWith {
        config: 1,
        subject: hash(&key.to_string()),
        settings,
    };
    let own = secret.head.digest();
    for (value, tried_with, expected) in [
        (None, None, Some(until)),
        (None, Some(tried(own)), Some(until)),
        // The operator tries other settings at once.
        (None, Some(tried(own + 1)), None),
        (Some("now"), Some(tried(own)), None),
    ] {
        let account = IssuanceHistory {
            retry_at: Some(until.0),
            tried_with,
            ..IssuanceHistory::default()
        };
        let wish = Wish {
            value,
            force: true,
            is_broken: false,
        };
        let none = std::collections::BTreeMap::new();
        let view = (Some(&config), Labels::Are(&none));
        let said = match verdict(at, &secret, wish, view, |_| Some(account.clone())) {
            Verdict::NotBefore(until, _) => Some(until),
            Verdict::Renews => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(said, expected, "{value:?} {tried_with:?}");
    }
}

/// A misread annotation holds a renewal up as long as enough life is left.
#[test]
fn what_is_held_up_is_renewed_when_little_life_is_left() {
    let misread = [
        ("issuer", "le"),
        ("names", "a.example"),
        ("key-type", "dsa"),
    ];
    let (secret, since, lifetime) = secret("kubernetes.io/tls", &misread);
    let at = since + lifetime / 2;
    let account = IssuanceHistory::default();
    let said = judge(at, &secret, true, Some(&config("")), Some(&account));
    let Verdict::NotBefore(until, why) = said else {
        panic!("{said:?}");
    };
    assert!(until > at && until < since + lifetime, "{until}");
    let at = format!("at {until}");
    assert!(why.contains("key-type") && why.ends_with(&at), "{why}");
}

#[test]
fn what_cannot_be_read_is_said_and_stops_nothing() {
    let annotations = [("issuer", "le"), ("names", "a.example")];
    let (secret, since, lifetime) = secret("kubernetes.io/tls", &annotations);
    let at = since + lifetime / 2;
    let config = config("");
    let said = judge(at, &secret, false, Some(&config), None);
    assert_eq!(said, Verdict::Unknown("its failure history"));
    let said = judge(at, &secret, false, None, None);
    assert_eq!(said, Verdict::Unknown("its config"));
    let (external, ..) = self::secret("kubernetes.io/tls", &[("issuer", "external")]);
    let said = judge(at, &external, false, None, None);
    assert!(matches!(said, Verdict::Nothing(_)), "{said:?}");
}

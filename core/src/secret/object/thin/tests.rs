use kube_core::ObjectList;
use kube_core::WatchEvent;
use serde_json::{Value, from_slice, from_str, from_value, json};

use kube_core::Resource as _;

use super::*;
use crate::secret::object::full::FullSecret;
use crate::testing::file;

fn base64(name: &str) -> String {
    STANDARD.encode(file(name))
}

/// The JSON text with members in the order of API servers (serde_json sorts them).
fn wire(value: &Value) -> String {
    let Value::Object(members) = value else {
        return value.to_string();
    };
    let order = [
        "kind",
        "apiVersion",
        "metadata",
        "immutable",
        "data",
        "type",
    ];
    let members: Vec<_> = order
        .iter()
        .filter_map(|key| {
            members
                .get(*key)
                .map(|member| format!("\"{key}\":{member}"))
        })
        .collect();
    format!("{{{}}}", members.join(","))
}

fn thin(value: &Value) -> ThinSecret {
    from_str(&wire(value)).unwrap()
}

/// As an API server sends it; the key is in every place where a key has ever been found.
fn secret() -> Value {
    let key = base64("good.key");
    json!({
        "kind": "Secret", "apiVersion": "v1",
        "metadata": {
            "name": "shop-tls", "namespace": "shop", "uid": "u-1", "resourceVersion": "42",
            "labels": {"cert-renew.io/managed": "true", "app": "shop"},
            "annotations": {
                "cert-renew.io/issuer": "letsencrypt",
                "state.cert-renew.io/rolled-out": "x",
                "kubectl.kubernetes.io/last-applied-configuration": format!("{{\"tls.key\":\"{key}\"}}"),
                "cert-renew.io/outputs": "all.pem=key+fullchain",
            },
            "managedFields": [{
                "manager": "kustomize-controller", "operation": "Apply", "time": "2026-11-24T10:00:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:tls.key": {}}},
            }],
            "ownerReferences": [{"kind": "SealedSecret", "name": "shop-tls", "uid": "u-0"}],
        },
        "immutable": false,
        "data": {"tls.crt": base64("good.pem"), "tls.key": key, "all.pem": base64("key-first.pem")},
        "type": "kubernetes.io/tls",
    })
}

fn fingerprint(secret: &ThinSecret) -> Option<String> {
    match secret.certificate() {
        CertificateState::Leaf(leaf) => Some(leaf.fingerprint.to_string()),
        _ => None,
    }
}

#[test]
fn keeps_what_concerns_us() {
    let thin = thin(&secret());
    assert_eq!(
        (thin.head.namespace(), thin.head.name()),
        ("shop", "shop-tls")
    );
    assert_eq!(
        (thin.head.uid(), thin.head.resource_version()),
        ("u-1", "42")
    );
    assert_eq!((thin.head.managed, thin.head.deleting), (true, false));
    assert_eq!(thin.kind, "kubernetes.io/tls");
    let kept: Vec<_> = thin
        .head
        .annotations()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(kept, [keys::ISSUER, keys::OUTPUTS, keys::ROLLED_OUT]);
    let good = certificate::leaf(&file("good.pem")).unwrap();
    assert_eq!(thin.certificate(), CertificateState::Leaf(Box::new(good)));
    assert_eq!(
        ThinSecret::url_path(&(), Some("shop")),
        "/api/v1/namespaces/shop/secrets"
    );
}

#[test]
fn the_certificate_is_read_where_it_stands() {
    let mut value = secret();
    value["data"]["tls.crt"] = json!(base64("self-signed.pem"));
    let tls = thin(&value);
    value["type"] = json!("Opaque");
    let opaque = thin(&value);
    assert_ne!(fingerprint(&tls), fingerprint(&opaque));
    assert_eq!(fingerprint(&opaque), fingerprint(&thin(&secret())));

    for (text, state) in [
        (json!(""), CertificateState::Absent),
        (json!("IAo="), CertificateState::Absent),
        (Value::Null, CertificateState::Absent),
        (
            json!("?"),
            CertificateState::Unreadable(Unreadable::NotBase64),
        ),
        (
            json!(base64("good.key")),
            CertificateState::Unreadable(Unreadable::OnlyKey),
        ),
    ] {
        value["data"]["all.pem"] = text.clone();
        assert_eq!(thin(&value).certificate(), state, "{text}");
    }
}

#[test]
fn who_observes_all_keeps_every_certificate_and_no_key() {
    let value = json!({
        "metadata": {"namespace": "shop", "name": "tls"},
        "data": {"tls.crt": base64("good.pem"), "tls.key": base64("good.key")},
        "type": "kubernetes.io/tls",
    });
    let observed: ObservedSecret = from_str(&wire(&value)).unwrap();
    let certificate = observed.0.certificate();
    assert!(matches!(certificate, CertificateState::Leaf(_)));
    assert!(!observed.0.head.concerns_us());
    assert!(
        from_str::<ThinSecret>(&wire(&value))
            .unwrap()
            .certificate
            .is_none()
    );
    assert!(!format!("{observed:?}").contains(&base64("good.key")));
}

#[test]
fn a_secret_that_says_nothing_to_us_keeps_no_certificate() {
    for order in ["metadata first", "data first"] {
        let data = format!(
            r#""data":{{"tls.crt":"{}","tls.key":"x"}}"#,
            base64("good.pem")
        );
        let foreign = r#""metadata":{"name":"a","annotations":{"a":"b"}}"#;
        let ours = r#""metadata":{"name":"a","annotations":{"cert-renew.io/class":"b"}}"#;
        for (metadata, kept) in [(foreign, false), (ours, true)] {
            let (first, second) = if order == "data first" {
                (&*data, metadata)
            } else {
                (metadata, &*data)
            };
            let thin: ThinSecret = from_str(&format!("{{{first},{second}}}")).unwrap();
            assert_eq!(
                (thin.head.concerns_us(), thin.certificate.is_some()),
                (kept, kept),
                "{order}"
            );
        }
    }
}

/// All variants of `value` with one place replaced.
fn with_each_place_replaced(value: &Value, odd: &Value) -> Vec<Value> {
    let mut all = vec![odd.clone()];
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                for replaced in with_each_place_replaced(member, odd) {
                    let mut copy = members.clone();
                    copy.insert(key.clone(), replaced);
                    all.push(Value::Object(copy));
                }
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                for replaced in with_each_place_replaced(item, odd) {
                    let mut copy = items.clone();
                    copy[at] = replaced;
                    all.push(Value::Array(copy));
                }
            }
        }
        _ => {}
    }
    all
}

#[test]
fn no_shape_is_an_error() {
    let large = Value::String("A".repeat(1 << 20));
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    for odd in [
        Value::Null,
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(1.5e300),
        json!("\u{0}é"),
        json!([]),
        json!([1, "a", {}]),
        json!({}),
        json!({"a": {"b": []}}),
        deep,
        large,
    ] {
        for value in with_each_place_replaced(&secret(), &odd) {
            let text = wire(&value);
            for text in [&text, &value.to_string()] {
                let thin: ThinSecret = from_str(text).unwrap();
                let _ = (thin.certificate(), thin.head.place());
                let full: FullSecret = from_str(text).unwrap();
                let _ = full.pair();
            }
            if text.len() < 100_000 {
                // The tag may come after the content; then serde reads from a copy in memory.
                for event in [
                    format!(r#"{{"type":"MODIFIED","object":{text}}}"#),
                    format!(r#"{{"object":{text},"type":"ADDED"}}"#),
                ] {
                    assert!(from_str::<WatchEvent<ThinSecret>>(&event).is_ok());
                }
            }
        }
    }
}

#[test]
fn lists_and_events_hold_it() {
    let mut item = secret();
    for absent in ["kind", "apiVersion"] {
        item.as_object_mut().unwrap().remove(absent);
    }
    let list = json!({
        "kind": "SecretList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"},
        "items": [item, null, "odd", {}],
    });
    let list: ObjectList<ThinSecret> = from_slice(list.to_string().as_bytes()).unwrap();
    assert_eq!(list.items.len(), 4);
    let good = fingerprint(&list.items[0]);
    assert!(good.is_some());
    for event in [
        format!(r#"{{"type":"DELETED","object":{}}}"#, wire(&secret())),
        format!(r#"{{"object":{},"type":"DELETED"}}"#, wire(&secret())),
    ] {
        match from_str(&event).unwrap() {
            WatchEvent::Deleted(thin) => assert_eq!(fingerprint(&thin), good),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_full_secret_keeps_data_and_other_owners() {
    let mut value = secret();
    value["metadata"]["ownerReferences"][0]["apiVersion"] = json!("bitnami.com/v1alpha1");
    let full: FullSecret = from_value(value).unwrap();
    assert_eq!(full.pair(), (&*file("good.pem"), &*file("good.key")));
    assert_eq!(full.data.len(), 3);
    let [manager] = &full.managers[..] else {
        panic!("{:?}", full.managers)
    };
    assert_eq!(
        (&*manager.name, &*manager.operation),
        ("kustomize-controller", "Apply")
    );
    assert_eq!(manager.time, "2026-11-24T10:00:00Z".parse().ok());
    assert!(manager.owns_data && !full.head.immutable);
    assert_eq!(full.owners[0].kind, "SealedSecret");
}

/// Invariant 1, for everything here that can be printed.
#[test]
fn nothing_that_is_printed_holds_a_key() {
    // For this type, the bytes that are kept contain the key, since `outputs` puts it there.
    let mut value = secret();
    value["type"] = json!("Opaque");
    let text = wire(&value);
    let pem = String::from_utf8(file("good.key")).unwrap();
    let encoded = base64("good.key");
    let canaries = [pem.lines().nth(1).unwrap(), &encoded[40..80]];
    let thin = thin(&value);
    let full: FullSecret = from_str(&text).unwrap();
    assert!(
        thin.certificate
            .as_ref()
            .is_some_and(|kept| matches!(kept, Text::Mixed(text) if text.contains(canaries[1])))
    );
    let mut printed = format!("{thin:?} {thin:#?} {full:?} {:?}", thin.certificate());
    // Cut anywhere, it is no JSON and may fail, but must not quote.
    for end in 0..text.len() {
        if let Err(error) = from_str::<ThinSecret>(&text[..end]) {
            printed += &format!("{error} {error:?}\n");
        }
        let event = format!(r#"{{"type":"ADDED","object":{}"#, &text[..end]);
        if let Err(error) = from_str::<WatchEvent<ThinSecret>>(&event) {
            printed += &format!("{error} {error:?}\n");
        }
    }
    assert!(printed.contains("Secret(shop/shop-tls)"));
    assert!(!canaries.iter().any(|canary| printed.contains(canary)));
}

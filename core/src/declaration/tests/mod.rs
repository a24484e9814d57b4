mod register;

use serde_json::{Value, from_value, json};

use super::decide::{Decision, Wanted, decide, undeclare};
use super::mirror::Mirror;
use super::*;
use crate::config::Config;
use crate::secret::declared::is_undeclared;
use crate::secret::object::thin::ThinSecret;

const NOW: UnixTime = UnixTime(1_800_000_000);

fn config() -> Config {
    let text = "issuers: {le: {directory: https://ca.example/, allow: [{namespaces: [shop], names: ['*.shop.example']}]}}";
    Config::parse(text).unwrap()
}

fn key(name: &str) -> SecretRef {
    SecretRef::new("shop", name)
}

/// A ConfigMap of an age, with annotations under our prefix.
fn config_map(name: &str, age: u32, annotations: &[(&str, &str)]) -> Declaration {
    let annotations: BTreeMap<String, &str> = { annotations.iter() }
        .map(|(key, value)| (format!("cert-renew.io/{key}"), *value))
        .collect();
    let metadata = json!({
        "name": name, "namespace": "shop", "uid": name, "resourceVersion": "1",
        "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", 59 - age),
        "labels": {"cert-renew.io/certificate": "true"}, "annotations": annotations,
    });
    Declaration::of_config_map(&from_value(metadata).unwrap(), "default").unwrap()
}

const SOUND: [(&str, &str); 2] = [("issuer", "le"), ("names", "a.shop.example")];

fn secret(kind: &str, annotations: &BTreeMap<String, String>) -> ThinSecret {
    from_value(json!({
        "metadata": {"name": "tls", "namespace": "shop", "uid": "s", "resourceVersion": "1", "annotations": annotations},
        "type": kind, "data": {"tls.crt": "", "tls.key": ""},
    }))
    .unwrap()
}

fn decided(declarations: &[Declaration], secret: Option<&ThinSecret>) -> Decision {
    let wanted = Wanted::of(&key("tls"), declarations).unwrap();
    decide(NOW, &key("tls"), &wanted, secret, &config())
}

fn made(declarations: &[Declaration]) -> BTreeMap<String, String> {
    match decided(declarations, None) {
        Decision::Make(annotations) => annotations,
        other => panic!("{other:?}"),
    }
}

/// What the declaration of this name says in vain; the others say nothing in vain.
fn in_vain<'a>(wanted: &'a Wanted, all: &[Declaration], name: &str) -> &'a [String] {
    let (mut told, mut others) = (&[][..], 0);
    for declaration in all {
        let of_it = wanted.in_vain(&declaration.source);
        if &*declaration.source.name == name {
            told = of_it;
        } else {
            others += of_it.len();
        }
    }
    assert_eq!(others, 0, "{wanted:?}");
    told
}

/// The annotations of a Secret after a change.
fn changed(before: &BTreeMap<String, String>, decision: Decision) -> BTreeMap<String, String> {
    let Decision::Change(changes) = decision else {
        panic!("{decision:?}");
    };
    let mut after = before.clone();
    for (key, value) in changes {
        match value {
            Some(value) => _ = after.insert(key, value),
            None => _ = after.remove(&key),
        }
    }
    after
}

#[test]
fn a_secret_is_made_as_it_is_declared_and_kept_so() {
    let declared = config_map("tls", 9, &[SOUND[0], SOUND[1], ("renew-before", "30d")]);
    let before = made(std::slice::from_ref(&declared));
    assert_eq!(before["cert-renew.io/issuer"], "le");
    assert_eq!(before["cert-renew.io/declared"], "true");
    let as_made = secret("kubernetes.io/tls", &before);
    assert_eq!(decided(&[declared], Some(&as_made)), Decision::Nothing);

    // One setting is changed, one is gone; what stands on the Secret besides stays.
    let mut edited = before.clone();
    edited.insert("cert-renew.io/verify".into(), "web:443".into());
    let other = config_map("tls", 9, &[SOUND[0], ("names", "b.shop.example")]);
    let decision = decided(
        std::slice::from_ref(&other),
        Some(&secret("kubernetes.io/tls", &edited)),
    );
    let after = changed(&edited, decision);
    assert_eq!(after["cert-renew.io/names"], "b.shop.example");
    assert_eq!(after["cert-renew.io/verify"], "web:443");
    assert!(!after.contains_key("cert-renew.io/renew-before"));

    // What somebody has changed on the Secret is put back.
    let mut edited = after.clone();
    edited.insert("cert-renew.io/names".into(), "c.shop.example".into());
    let decision = decided(
        std::slice::from_ref(&other),
        Some(&secret("kubernetes.io/tls", &edited)),
    );
    assert_eq!(changed(&edited, decision), after);
}

#[test]
fn what_asks_for_something_once_is_asked_for_once() {
    let first = config_map("tls", 9, &[SOUND[0], SOUND[1], ("renew-now", "1")]);
    let mut on_secret = made(std::slice::from_ref(&first));
    assert_eq!(on_secret["cert-renew.io/renew-now"], "1");
    // By the command, on the Secret.
    on_secret.insert("cert-renew.io/renew-now".into(), "2".into());
    let is = secret("kubernetes.io/tls", &on_secret);
    assert_eq!(decided(&[first], Some(&is)), Decision::Nothing);
    let second = config_map("tls", 9, &[SOUND[0], SOUND[1], ("renew-now", "3")]);
    let after = changed(&on_secret, decided(&[second], Some(&is)));
    assert_eq!(after["cert-renew.io/renew-now"], "3");
}

#[test]
fn a_secret_of_others_is_left_alone_and_it_is_said_how_to_hand_it_over() {
    let declared = [config_map("tls", 9, &SOUND)];
    let refusal = |secret: &ThinSecret| match decided(&declared, Some(secret)) {
        Decision::Refuse(why) => why,
        other => panic!("{other:?}"),
    };
    let none = BTreeMap::new();
    let why = refusal(&secret("kubernetes.io/tls", &none));
    assert!(
        why.contains("kubectl -n shop annotate secret tls cert-renew.io/declared=true"),
        "{why}"
    );
    let annotated = BTreeMap::from([("cert-renew.io/issuer".to_owned(), "le".to_owned())]);
    assert!(refusal(&secret("kubernetes.io/tls", &annotated)).contains("was not made for this"));
    let marked = BTreeMap::from([("cert-renew.io/declared".to_owned(), "true".to_owned())]);
    assert!(refusal(&secret("Opaque", &marked)).contains("of the type \"Opaque\""));
    let after = changed(
        &marked,
        decided(&declared, Some(&secret("kubernetes.io/tls", &marked))),
    );
    assert_eq!(after["cert-renew.io/names"], "a.shop.example");
}

#[test]
fn a_hostile_declaration_changes_nothing() {
    let many = (0..5_000)
        .map(|i| format!("n{i}.shop.example"))
        .collect::<Vec<_>>()
        .join(",");
    let before = made(&[config_map("tls", 9, &SOUND)]);
    let is = secret("kubernetes.io/tls", &before);
    for (annotations, why) in [
        (
            &[("issuer", "le"), ("names", "victim.example")][..],
            "allow",
        ),
        (
            &[("issuer", "le"), ("names", many.as_str())],
            "expected at most",
        ),
        (&[("issuer", "le"), ("names", "a_b")], "cert-renew.io/names"),
        (&[("issuer", "le")], "cert-renew.io/names"),
        (
            &[("issuer", "none"), ("names", "a.shop.example")],
            "cert-renew.io/issuer",
        ),
        (
            &[("names", "a.shop.example")],
            "no annotation cert-renew.io/issuer",
        ),
        (&[("issuer", "external")], "external"),
        (&[("issuer", "le"), SOUND[1], ("paused", "true")], "is set"),
    ] {
        let declared = [config_map("tls", 9, annotations)];
        match decided(&declared, None) {
            Decision::Refuse(said) => assert!(said.contains(why), "{said}"),
            other => panic!("{annotations:?}: {other:?}"),
        }
        // A setting that is unknown as such keeps what was there.
        if !["external", "is set", "cert-renew.io/names"].contains(&why) {
            match decided(&declared, Some(&is)) {
                Decision::Refuse(said) => assert!(said.contains("keeps its settings"), "{said}"),
                other => panic!("{annotations:?}: {other:?}"),
            }
        }
    }
    let pasted = config_map(
        "tls",
        9,
        &[
            SOUND[0],
            SOUND[1],
            ("verify", "-----BEGIN PRIVATE KEY-----"),
        ],
    );
    assert!(pasted.fault.is_some());
    assert_eq!(Wanted::of(&key("tls"), &[pasted]), None);
    let misnamed = config_map("tls", 9, &[SOUND[0], SOUND[1], ("secret", "../x")]);
    assert!(misnamed.fault.is_some() && &*misnamed.secret == "tls");
}

#[test]
fn of_several_the_names_are_put_together_and_the_oldest_wins() {
    let old = config_map(
        "old",
        20,
        &[
            ("issuer", "le"),
            ("secret", "tls"),
            ("names", "a.shop.example, b.shop.example"),
        ],
    );
    let new = config_map(
        "new",
        10,
        &[
            ("issuer", "other"),
            ("secret", "tls"),
            ("names", "B.shop.example\nc.shop.example"),
            ("key-type", "rsa-2048"),
        ],
    );
    for all in [[old.clone(), new.clone()], [new, old]] {
        let wanted = Wanted::of(&key("tls"), &all).unwrap();
        assert_eq!(wanted.settings["cert-renew.io/issuer"], "le");
        assert_eq!(wanted.settings["cert-renew.io/key-type"], "rsa-2048");
        assert_eq!(
            wanted.settings["cert-renew.io/names"],
            "a.shop.example, b.shop.example, c.shop.example"
        );
        let [text] = in_vain(&wanted, &all, "new") else {
            panic!("{wanted:?}");
        };
        assert!(text.contains("cert-renew.io/issuer: \"other\""), "{text}");
    }
}

#[test]
fn a_misspelt_setting_is_told_on_the_object_that_has_it() {
    let mut annotations = SOUND.to_vec();
    annotations.push(("renw-before", "30d"));
    let declared = [
        config_map("old", 9, &SOUND),
        config_map("new", 1, &annotations),
    ];
    let wanted = Wanted::of(&key("tls"), &declared).unwrap();
    let [text] = in_vain(&wanted, &declared, "new") else {
        panic!("{wanted:?}");
    };
    assert!(
        text.contains("did you mean cert-renew.io/renew-before?"),
        "{text}"
    );
    assert!(!made(&declared).contains_key("cert-renew.io/renw-before"));
}

#[test]
fn a_secret_that_nothing_declares_stays_and_comes_back_without_a_change() {
    let declared = [config_map("tls", 9, &SOUND)];
    let before = made(&declared);
    let is = secret("kubernetes.io/tls", &before);
    let gone = changed(&before, undeclare(NOW, &key("tls"), &is));
    let is_gone = secret("kubernetes.io/tls", &gone);
    assert!(is_undeclared(&key("tls"), &is_gone.head));
    assert_eq!(
        undeclare(NOW, &key("tls"), &is_gone),
        Decision::Nothing,
        "once"
    );
    let judged = crate::assess::of_thin(NOW, &key("tls"), &is_gone, &config()).unwrap();
    assert_eq!(judged.renewal, Err(crate::schedule::due::Never::Undeclared));
    assert_eq!(changed(&gone, decided(&declared, Some(&is_gone))), before);
    // A copy in another namespace, and a Secret that was never declared, are nobody's.
    let copy = SecretRef::new("other", "tls");
    assert_eq!(undeclare(NOW, &copy, &is), Decision::Nothing);
}

#[test]
fn nothing_is_declared_by_what_only_looks_so() {
    let of = |metadata: Value, class: &str| {
        Declaration::of_config_map(&from_value(metadata).unwrap(), class)
    };
    let labels = json!({"cert-renew.io/certificate": "true"});
    let classed =
        json!({"name": "a", "labels": labels, "annotations": {"cert-renew.io/class": "edge"}});
    for (metadata, class, declares) in [
        (json!({"name": "a"}), "default", false),
        (
            json!({"name": "a", "labels": {"cert-renew.io/certificate": "yes"}}),
            "default",
            false,
        ),
        (json!({"name": "a", "labels": labels}), "default", true),
        (
            json!({"name": "a", "labels": labels, "deletionTimestamp": "2026-01-01T00:00:00Z"}),
            "default",
            false,
        ),
        (classed.clone(), "default", false),
        (classed, "edge", true),
    ] {
        assert_eq!(
            of(metadata.clone(), class).is_some(),
            declares,
            "{metadata} {class}"
        );
    }
}

#[test]
fn what_thousands_of_annotations_of_a_declaration_say_in_vain_is_told_of_some() {
    let others = |value: &str| -> Vec<(String, String)> {
        { 0..10_000 }
            .map(|number| (format!("{number:06}"), value.repeat(100)))
            .collect()
    };
    let (one, two) = (others("x"), others("y"));
    let settings = |others: &[(String, String)], key_type: &'static str| -> Declaration {
        let own = others
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        let known = [SOUND[0], SOUND[1], ("key-type", key_type)];
        let all: Vec<(&str, &str)> = own.chain(known).collect();
        config_map(key_type, 9, &all)
    };
    let (older, younger) = (settings(&one, "ecdsa-p256"), settings(&two, "rsa-2048"));
    assert!(older.settings.len() < 50, "{}", older.settings.len());
    let wanted = Wanted::of(&key("tls"), &[older.clone(), younger.clone()]).unwrap();
    for declaration in [&older, &younger] {
        let in_vain = wanted.in_vain(&declaration.source);
        assert!((1..=20).contains(&in_vain.len()), "{in_vain:?}");
        let told = Mirror::default().with(in_vain).problems.unwrap();
        assert!(told.len() < 10_000, "{told}");
    }
    // However many others there are, a setting in vain is told.
    let in_vain = wanted.in_vain(&younger.source);
    assert!(
        in_vain
            .iter()
            .any(|it| it.contains("cert-renew.io/key-type")),
        "{in_vain:?}"
    );
    // Settings are never among those that are passed over.
    assert_eq!(older.settings["cert-renew.io/key-type"], "ecdsa-p256");
}

#[test]
fn of_the_names_of_many_declarations_no_more_are_kept_than_are_refused() {
    let all: Vec<Declaration> = (0..32)
        .map(|age| {
            let names = (0..1_000).map(|name| format!("n{name}.d{age}.shop.example"));
            let names = names.collect::<Vec<_>>().join(",");
            config_map(&format!("d{age}"), age, &[SOUND[0], ("names", &names)])
        })
        .collect();
    let wanted = Wanted::of(&key("tls"), &all).unwrap();
    let names = &wanted.settings["cert-renew.io/names"];
    assert_eq!(names.split(", ").count(), 101);
    match decide(NOW, &key("tls"), &wanted, None, &config()) {
        Decision::Refuse(why) => assert!(why.contains("at most 100"), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// An Ingress of an age, for one Secret.
fn ingress(name: &str, age: u32, annotations: &[(&str, &str)], hosts: &[&str]) -> Declaration {
    let annotations: BTreeMap<String, &str> = { annotations.iter() }
        .map(|(key, value)| (format!("cert-renew.io/{key}"), *value))
        .collect();
    let object = json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": name, "resourceVersion": "1",
            "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", 59 - age), "annotations": annotations,
        },
        "spec": {"tls": [{"secretName": "tls", "hosts": hosts}]},
    });
    let mut all = Declaration::of_ingress(&from_value(object).unwrap(), "default");
    all.pop().unwrap()
}

#[test]
fn of_several_ingresses_the_hosts_are_put_together_and_both_hear_of_a_conflict() {
    let old = [("issuer", "le"), ("key-type", "ecdsa-p384")];
    let new = [("issuer", "le"), ("key-type", "rsa-2048")];
    let all = [
        ingress("new", 1, &new, &["b.shop.example", "a.shop.example"]),
        ingress("old", 9, &old, &["a.shop.example"]),
    ];
    let annotations = made(&all);
    assert_eq!(
        annotations["cert-renew.io/names"],
        "a.shop.example, b.shop.example"
    );
    assert_eq!(annotations["cert-renew.io/key-type"], "ecdsa-p384");
    let wanted = Wanted::of(&key("tls"), &all).unwrap();
    let [younger, older] = &all;
    let told = |it: &Declaration| (wanted.in_vain(&it.source), wanted.contested(&it.source));
    let ([in_vain], []) = told(younger) else {
        panic!("{wanted:?}");
    };
    assert!(
        in_vain.contains("cert-renew.io/key-type: \"rsa-2048\": an older object"),
        "{in_vain}"
    );
    let ([], [contested]) = told(older) else {
        panic!("{wanted:?}");
    };
    assert!(
        contested
            .contains("Ingress/new, which is younger, declares the same Secret with \"rsa-2048\""),
        "{contested}"
    );
}

#[test]
fn a_hostile_ingress_changes_nothing() {
    let many: Vec<String> = (0..5_000).map(|i| format!("n{i}.shop.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let issuer = [("issuer", "le")];
    let is = secret(
        "kubernetes.io/tls",
        &made(&[ingress("web", 9, &issuer, &["a.shop.example"])]),
    );
    for (hosts, why) in [
        (&["a.shop.example", "victim.example"][..], "allow"),
        (&many[..], "expected at most"),
    ] {
        let declared = [ingress("web", 9, &issuer, hosts)];
        for now in [None, Some(&is)] {
            match decided(&declared, now) {
                Decision::Refuse(said) => {
                    assert!(said.contains(why) && said.len() < 2_000, "{said}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let none = ingress("web", 9, &issuer, &[]);
    assert!(none.fault.is_some());
    let why = match decided(
        &[ingress("web", 9, &issuer, &["a.shop.example"])],
        Some(&secret("Opaque", &BTreeMap::new())),
    ) {
        Decision::Refuse(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(why.ends_with("name another in spec.tls"), "{why}");
}

/// A record of before there were other kinds is still the same.
#[test]
fn the_digest_of_what_a_config_map_declares_is_as_it_was() {
    let declared = config_map("tls", 9, &SOUND);
    let settings = BTreeMap::from([
        ("cert-renew.io/issuer".to_owned(), "le".to_owned()),
        (
            "cert-renew.io/names".to_owned(),
            "a.shop.example".to_owned(),
        ),
    ]);
    let fault: Option<String> = None;
    let digest_of_it = hash(&format!("{settings:?}{fault:?}"));
    let text = format!("shop/tls\nConfigMap/tls {digest_of_it:016x}");
    let wanted = Wanted::of(&key("tls"), &[declared]).unwrap();
    assert_eq!(wanted.of, hash(&text));
}

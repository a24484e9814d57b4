//! Which Secrets need a look.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::super::register::{Made, Register};
use super::super::room::{MOST, MOST_OF_NAMESPACE};
use super::*;
use crate::secret::declared::DeclaredMark;
use crate::testing::slower_than_linear_in;

/// The watch brings an object that declares one Secret.
fn bring(register: &mut Register, namespace: &Arc<str>, declaration: &Declaration) {
    let all = std::slice::from_ref(declaration);
    register.declared(0, namespace, &declaration.source, all);
}

/// What waits for a look, when what routes have changed is waited for no more.
fn take(register: &mut Register) -> HashSet<SecretRef> {
    register.take(Instant::now(), Duration::ZERO)
}

/// The Secret of a register, with what would be read of it.
fn seen(register: &mut Register, annotations: &BTreeMap<String, String>) {
    let secret = secret("kubernetes.io/tls", annotations);
    let made = Made::read(&key("tls"), &secret.head, || None, "default");
    register.secret(&key("tls"), made);
}

#[test]
fn the_register_wants_a_look_at_what_is_not_as_it_is_declared() {
    let shop: Arc<str> = "shop".into();
    let mut register = Register::default();
    register.open([(Kind::ConfigMap, None)]);
    register.begin(0);
    let mut declared = config_map("tls", 9, &SOUND);
    bring(&mut register, &shop, &declared);
    register.listed(0);
    assert_eq!(take(&mut register).len(), 1, "its Secret is not made");
    let before = made(std::slice::from_ref(&declared));
    seen(&mut register, &before);
    assert!(
        register.is_outdated(&key("tls")),
        "the declaration does not say how it stands"
    );
    let is = secret("kubernetes.io/tls", &before);
    declared.told = Mirror::of_secret(&is.head, None);
    bring(&mut register, &shop, &declared);
    assert!(!register.is_outdated(&key("tls")));
    take(&mut register);
    register.doubt();
    assert!(
        register.is_idle(),
        "a start at which all is as it should be reads nothing"
    );

    // It moves to another Secret: both are looked at.
    let told = declared.told.clone();
    let mut moved = config_map("tls", 9, &[SOUND[0], SOUND[1], ("secret", "other")]);
    moved.told = told;
    bring(&mut register, &shop, &moved);
    assert_eq!(take(&mut register), [key("tls"), key("other")].into());
    bring(&mut register, &shop, &declared);
    take(&mut register);

    // Somebody changes the Secret.
    let mut edited = before.clone();
    edited.insert("cert-renew.io/names".into(), "x.shop.example".into());
    seen(&mut register, &edited);
    assert_eq!(take(&mut register).len(), 1);
    seen(&mut register, &before);
    assert!(!register.is_outdated(&key("tls")));

    // A list that cannot be had says nothing; one that names it no more does.
    register.open([(Kind::ConfigMap, None)]);
    register.begin(0);
    register.blind(0);
    assert!(!register.is_outdated(&key("tls")));
    register.begin(0);
    register.listed(0);
    assert!(register.is_outdated(&key("tls")));
    let gone = changed(&before, undeclare(NOW, &key("tls"), &is));
    seen(&mut register, &gone);
    assert!(!register.is_outdated(&key("tls")));
    let record = DeclaredMark::read(&key("tls"), &secret("kubernetes.io/tls", &gone).head).unwrap();
    assert_eq!(record.by, ["ConfigMap/tls"]);
}

#[test]
fn a_list_that_is_begun_again_while_it_is_followed_forgets_nothing_that_it_names() {
    let shop: Arc<str> = "shop".into();
    let mut register = Register::default();
    register.open([(Kind::ConfigMap, Some(Arc::clone(&shop)))]);
    for _ in 0..2 {
        register.begin(0);
        bring(&mut register, &shop, &config_map("tls", 9, &SOUND));
        register.listed(0);
        assert_eq!(register.sources(&key("tls")).len(), 1);
    }
    register.open([(Kind::ConfigMap, Some("elsewhere".into()))]);
    assert!(register.sources(&key("tls")).is_empty());
}

/// This number of declarations of one Secret, each as old as its number.
fn many(number: usize) -> Vec<Declaration> {
    let mut first = config_map("tls", 9, &SOUND);
    first.secret = "tls".into();
    (0..number)
        .map(|age| Declaration {
            source: Source {
                name: format!("tls-{age}").into(),
                ..first.source.clone()
            },
            created: UnixTime(i64::try_from(age).unwrap()),
            ..first.clone()
        })
        .collect()
}

#[test]
fn of_more_declarations_of_a_secret_than_count_only_those_that_count_are_waited_for() {
    let shop: Arc<str> = "shop".into();
    let mut all = many(MOST_OF_SECRET + 1);
    let before = made(&all[..MOST_OF_SECRET]);
    let told = Mirror::of_secret(&secret("kubernetes.io/tls", &before).head, None);
    for declaration in &mut all[..MOST_OF_SECRET] {
        declaration.told = told.clone();
    }
    let mut register = Register::default();
    register.open([(Kind::ConfigMap, None)]);
    register.begin(0);
    for declaration in &all {
        bring(&mut register, &shop, declaration);
    }
    register.listed(0);
    seen(&mut register, &before);
    assert_eq!(register.sources(&key("tls")).len(), MOST_OF_SECRET);
    assert!(
        !register.is_outdated(&key("tls")),
        "nothing is ever told to the youngest"
    );
    // It counts when an older one goes.
    register.gone(&shop, &all[0].source);
    assert!(register.is_outdated(&key("tls")));
}

#[test]
fn of_very_many_declarations_of_a_namespace_the_oldest_are_followed_in_whatever_order_they_come() {
    let (shop, mut register): (Arc<str>, _) = ("shop".into(), Register::default());
    register.open([(Kind::ConfigMap, None)]);
    let mut all = many(MOST_OF_NAMESPACE + 3);
    for _ in 0..2 {
        // The youngest first, then the oldest first.
        all.reverse();
        register.begin(0);
        for declaration in &mut all {
            declaration.secret = Arc::clone(&declaration.source.name);
            bring(&mut register, &shop, declaration);
        }
        register.listed(0);
        let followed = |it: &&Declaration| !register.sources(&key(&it.secret)).is_empty();
        let refused = all.iter().filter(|it| !followed(it));
        let ages: Vec<i64> = refused.map(|it| it.created.0).collect();
        assert!(ages.len() == 3 && ages.iter().all(|it| *it >= 5_000));
    }
    assert_eq!(register.refusals().len(), 1, "one is told");
    assert!(register.refusals().is_empty() && !register.has_room_again(0));
    register.gone(&shop, &all[0].source);
    assert!(register.has_room_again(0));
}

#[test]
fn where_all_namespaces_have_too_many_the_one_that_has_most_makes_room() {
    let mut register = Register::default();
    register.open([(Kind::ConfigMap, None)]);
    register.begin(0);
    let name = |number: usize| -> Arc<str> { format!("loud-{number}").into() };
    let loud: Vec<Arc<str>> = (0..=MOST / MOST_OF_NAMESPACE).map(name).collect();
    let all = many(MOST_OF_NAMESPACE);
    for namespace in &loud {
        for declaration in &all {
            bring(&mut register, namespace, declaration);
        }
    }
    // It comes last, when there is no room left.
    let (shop, few): (Arc<str>, _) = ("shop".into(), many(10));
    for declaration in &few {
        let secret = Arc::clone(&declaration.source.name);
        let declaration = Declaration {
            secret,
            ..declaration.clone()
        };
        bring(&mut register, &shop, &declaration);
    }
    register.listed(0);
    for declaration in &few {
        let of = register.sources(&key(&declaration.source.name));
        assert_eq!(of.len(), 1, "{}", declaration.source);
    }
    let refusals = register.refusals();
    let is_loud = |it: &str| loud.iter().any(|namespace| **namespace == *it);
    assert!(!refusals.is_empty());
    assert!(
        refusals
            .iter()
            .all(|it| it.of_all && is_loud(&it.namespace))
    );
    assert!(!register.has_room_again(0));
    register.gone(&shop, &few[0].source);
    assert!(register.has_room_again(0));
}

#[test]
fn thousands_of_declarations_of_a_secret_take_no_more_than_linear_time() {
    let shop: Arc<str> = "shop".into();
    // A declaration for each 64 bytes of a text: at most 16,384.
    let made = |length: usize| many(length / 64);
    let before = self::made(&many(MOST_OF_SECRET));
    let slow = slower_than_linear_in(made, |all| {
        let mut register = Register::default();
        register.open([(Kind::ConfigMap, None)]);
        seen(&mut register, &before);
        // Twice: a list that begins again names all of them.
        for _ in 0..2 {
            register.begin(0);
            for declaration in all {
                bring(&mut register, &shop, declaration);
            }
            register.listed(0);
        }
        for declaration in all {
            register.gone(&shop, &declaration.source);
        }
    });
    assert_eq!(slow, None);
}

/// An Ingress of an age with an issuer, whose TLS entries each name a Secret and a host.
fn ingress(name: &str, age: u32, tls: &[(&str, &str)]) -> Vec<Declaration> {
    let tls: Vec<Value> = { tls.iter() }
        .map(|(secret, host)| json!({"secretName": secret, "hosts": [host]}))
        .collect();
    let object = json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": name, "resourceVersion": "1",
            "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", 59 - age),
            "annotations": {"cert-renew.io/issuer": "le"},
        },
        "spec": {"tls": tls},
    });
    Declaration::of_ingress(&from_value(object).unwrap(), "default")
}

fn web() -> Source {
    Source::read("Ingress/web").unwrap()
}

const BOTH: [(Kind, Option<Arc<str>>); 2] = [(Kind::ConfigMap, None), (Kind::Ingress, None)];

/// A register whose two watches have named all that there is: an Ingress of two Secrets.
fn routed() -> (Register, Arc<str>) {
    let (mut register, shop): (_, Arc<str>) = (Register::default(), "shop".into());
    register.open(BOTH);
    let all = ingress(
        "web",
        9,
        &[("tls", "a.shop.example"), ("other", "b.shop.example")],
    );
    for scope in 0..2 {
        register.begin(scope);
        if scope == 1 {
            register.declared(scope, &shop, &web(), &all);
        }
        register.listed(scope);
    }
    (register, shop)
}

#[test]
fn each_secret_of_an_ingress_is_looked_at_and_a_change_waits_until_it_rests() {
    let (mut register, shop) = routed();
    let (start, settle) = (Instant::now(), Duration::from_secs(60));
    let after = |seconds| start + Duration::from_secs(seconds);
    let taken = register.take(start, settle);
    assert_eq!(
        taken,
        [key("tls"), key("other")].into(),
        "a Secret is made at once"
    );
    let one = ingress("web", 9, &[("tls", "a.shop.example")]);
    seen(&mut register, &made(&one));
    assert!(
        !register.is_outdated(&key("tls")),
        "nothing is written on an Ingress"
    );

    // It has a host more, and one more again: they are asked for by one order, when they rest.
    let more = |hosts: &[&str]| -> Vec<Declaration> {
        let tls: Vec<(&str, &str)> = hosts.iter().map(|host| ("tls", *host)).collect();
        ingress("web", 9, &tls)
    };
    register.declared(
        1,
        &shop,
        &web(),
        &more(&["a.shop.example", "c.shop.example"]),
    );
    assert_eq!(register.take(after(1), settle), HashSet::new());
    let last = more(&["a.shop.example", "c.shop.example", "d.shop.example"]);
    register.declared(1, &shop, &web(), &last);
    assert_eq!(register.take(after(31), settle), HashSet::new());
    assert_eq!(register.rests(settle), Some(after(91)));
    assert_eq!(register.take(after(90), settle), HashSet::new());
    assert_eq!(register.take(after(91), settle), [key("tls")].into());
    assert_eq!((register.rests(settle), register.is_idle()), (None, true));
    seen(&mut register, &made(&last));
    assert!(!register.is_outdated(&key("tls")));

    // What somebody changes on the Secret is put back at once.
    let mut edited = made(&last);
    edited.insert("cert-renew.io/names".into(), "x.shop.example".into());
    seen(&mut register, &edited);
    assert_eq!(register.take(after(100), settle), [key("tls")].into());
}

#[test]
fn what_is_urgent_does_not_wait_until_the_hosts_of_an_ingress_rest() {
    let (mut register, shop) = routed();
    let (now, settle) = (Instant::now(), Duration::from_secs(60));
    register.take(now, settle);
    let one = ingress("web", 9, &[("tls", "a.shop.example")]);
    let before = made(&one);
    seen(&mut register, &before);
    let with = |hosts: &[&str], settings: &[(&str, &str)]| -> Vec<Declaration> {
        let tls: Vec<(&str, &str)> = hosts.iter().map(|host| ("tls", *host)).collect();
        let mut all = ingress("web", 9, &tls);
        for declaration in &mut all {
            let settings = settings.iter();
            let settings = settings.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            declaration.settings.extend(settings);
        }
        all
    };
    let paused = [("cert-renew.io/paused", "true")];
    let two = ["a.shop.example", "b.shop.example"];
    register.declared(1, &shop, &web(), &with(&two, &[]));
    assert_eq!(register.take(now, settle), HashSet::new(), "hosts wait");
    register.declared(1, &shop, &web(), &with(&two, &paused));
    assert_eq!(register.take(now, settle), [key("tls")].into(), "a pause");
    let three = ["a.shop.example", "b.shop.example", "c.shop.example"];
    register.declared(1, &shop, &web(), &with(&three, &paused));
    assert_eq!(
        register.take(now, settle),
        HashSet::new(),
        "hosts wait again"
    );

    // A ConfigMap that comes, changes and goes.
    let mut map = config_map("tls", 5, &SOUND);
    bring(&mut register, &shop, &map);
    assert_eq!(register.take(now, settle), [key("tls")].into(), "it comes");
    map.settings
        .insert(keys::NAMES.to_owned(), "d.shop.example".to_owned());
    bring(&mut register, &shop, &map);
    assert_eq!(
        register.take(now, settle),
        [key("tls")].into(),
        "it changes"
    );
    register.gone(&shop, &map.source);
    assert_eq!(register.take(now, settle), [key("tls")].into(), "it goes");

    // What somebody has changed on the Secret is put back, although hosts wait.
    register.declared(1, &shop, &web(), &with(&two, &paused));
    assert_eq!(register.take(now, settle), HashSet::new(), "hosts wait");
    let mut edited = before;
    edited.insert("cert-renew.io/issuer".into(), "other".into());
    seen(&mut register, &edited);
    assert_eq!(register.take(now, settle), [key("tls")].into());
}

#[test]
fn an_ingress_that_goes_lets_its_secrets_go_once_all_is_known_that_may_declare_them() {
    let (mut register, shop) = routed();
    let one = ingress("web", 9, &[("tls", "a.shop.example")]);
    seen(&mut register, &made(&one));
    register.gone(&shop, &web());
    assert!(register.is_outdated(&key("tls")));
    for (map, route, is_known) in [
        (Some(true), Some(true), true),
        // Without the add-on for the other kind.
        (Some(false), Some(true), true),
        (Some(true), Some(false), false),
        (None, Some(true), false),
        (Some(true), None, false),
    ] {
        register.open(BOTH);
        for (scope, state) in [map, route].into_iter().enumerate() {
            register.begin(scope);
            match state {
                Some(true) => register.listed(scope),
                Some(false) => register.blind(scope),
                None => {}
            }
        }
        let is = register.is_outdated(&key("tls"));
        assert_eq!(is, is_known, "{map:?} {route:?}");
        assert_eq!(take(&mut register).contains(&key("tls")), is_known);
    }
}

#[test]
fn what_an_ingress_declares_that_may_not_be_read_any_more_is_not_looked_at_again_and_again() {
    let (mut register, shop) = routed();
    take(&mut register);
    register.blind(1);
    take(&mut register);
    register.doubt();
    assert_eq!(take(&mut register), HashSet::new());
    bring(&mut register, &shop, &config_map("map", 9, &SOUND));
    for _ in 0..2 {
        assert_eq!(take(&mut register), [key("map")].into());
        register.doubt();
    }
}

/// As after the way back from a later version.
#[test]
fn a_secret_that_is_declared_by_a_kind_that_is_not_known_is_not_let_go() {
    let (mut register, shop) = routed();
    register.gone(&shop, &web());
    let before = made(&ingress("web", 9, &[("tls", "a.shop.example")]));
    for (by, is_let_go) in [("Ingress/web", true), ("Gateway/web", false)] {
        let mut annotations = before.clone();
        let record = annotations[keys::DECLARATION].replace("Ingress/web", by);
        annotations.insert(keys::DECLARATION.to_owned(), record);
        seen(&mut register, &annotations);
        assert_eq!(register.is_outdated(&key("tls")), is_let_go, "{by}");
    }
}

#[test]
fn an_ingress_is_told_once_what_is_wrong_with_each_of_its_secrets() {
    let (mut register, shop) = routed();
    assert!(!register.is_news(&key("tls"), &web(), ""));
    assert!(register.is_news(&key("tls"), &web(), "one"));
    assert!(!register.is_news(&key("tls"), &web(), "one"));
    assert!(register.is_news(&key("other"), &web(), "one"));
    // A list names it again.
    let all = ingress(
        "web",
        9,
        &[("tls", "a.shop.example"), ("other", "b.shop.example")],
    );
    register.declared(1, &shop, &web(), &all);
    assert!(!register.is_news(&key("tls"), &web(), "one"));
    assert!(register.is_news(&key("tls"), &web(), "two"));
    assert!(!register.is_news(&key("tls"), &web(), ""));
    assert!(
        register.is_news(&key("tls"), &web(), "two"),
        "it was mended in between"
    );
    register.gone(&shop, &web());
    assert!(
        !register.is_news(&key("tls"), &web(), "three"),
        "nothing is kept of it"
    );
}

#[test]
fn of_an_ingress_with_too_many_secrets_for_its_namespace_the_first_ones_are_followed() {
    let (shop, mut register): (Arc<str>, _) = ("shop".into(), Register::default());
    register.open(BOTH);
    for declaration in &mut many(MOST_OF_NAMESPACE - 1) {
        declaration.secret = Arc::clone(&declaration.source.name);
        bring(&mut register, &shop, declaration);
    }
    // The youngest of all: there is room for one of its Secrets.
    let all = ingress(
        "web",
        0,
        &[("b", "b.shop.example"), ("a", "a.shop.example")],
    );
    for _ in 0..2 {
        register.declared(1, &shop, &web(), &all);
        assert_eq!(register.sources(&key("a")), [web()]);
        assert!(register.sources(&key("b")).is_empty());
    }
    assert!(!register.has_room_again(1));
    register.gone(&shop, &many(1)[0].source);
    assert!(register.has_room_again(1) && !register.has_room_again(0));
}

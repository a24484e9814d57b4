//! What is to be looked at, and how many declarations are followed.

use super::super::register::{Made, Register};
use super::super::room::{MOST, MOST_OF_NAMESPACE};
use super::*;
use crate::testing::slower_than_linear_in;

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
    register.open([None]);
    register.begin(0);
    let mut declared = config_map("tls", 9, &SOUND);
    register.declared(0, &shop, &declared);
    register.listed(0);
    assert_eq!(register.take().len(), 1, "its Secret is not made");
    let before = made(std::slice::from_ref(&declared));
    seen(&mut register, &before);
    assert!(
        register.is_outdated(&key("tls")),
        "the declaration does not say how it stands"
    );
    let is = secret("kubernetes.io/tls", &before);
    declared.told = Mirror::of_secret(&is.head, None);
    register.declared(0, &shop, &declared);
    assert!(!register.is_outdated(&key("tls")));
    register.take();
    register.doubt();
    assert!(
        register.is_idle(),
        "a start at which all is as it should be reads nothing"
    );

    // It moves to another Secret: both are looked at.
    let told = declared.told.clone();
    let mut moved = config_map("tls", 9, &[SOUND[0], SOUND[1], ("secret", "other")]);
    moved.told = told;
    register.declared(0, &shop, &moved);
    assert_eq!(register.take(), [key("tls"), key("other")].into());
    register.declared(0, &shop, &declared);
    register.take();

    // Somebody changes the Secret.
    let mut edited = before.clone();
    edited.insert("cert-renew.io/names".into(), "x.shop.example".into());
    seen(&mut register, &edited);
    assert_eq!(register.take().len(), 1);
    seen(&mut register, &before);
    assert!(!register.is_outdated(&key("tls")));

    // A list that cannot be had says nothing; one that names it no more does.
    register.open([None]);
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
    register.open([Some(Arc::clone(&shop))]);
    for _ in 0..2 {
        register.begin(0);
        register.declared(0, &shop, &config_map("tls", 9, &SOUND));
        register.listed(0);
        assert_eq!(register.sources(&key("tls")).len(), 1);
    }
    register.open([Some("elsewhere".into())]);
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
    register.open([None]);
    register.begin(0);
    for declaration in &all {
        register.declared(0, &shop, declaration);
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
    register.open([None]);
    let mut all = many(MOST_OF_NAMESPACE + 3);
    for _ in 0..2 {
        // The youngest first, then the oldest first.
        all.reverse();
        register.begin(0);
        for declaration in &mut all {
            declaration.secret = Arc::clone(&declaration.source.name);
            register.declared(0, &shop, declaration);
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
    register.open([None]);
    register.begin(0);
    let name = |number: usize| -> Arc<str> { format!("loud-{number}").into() };
    let loud: Vec<Arc<str>> = (0..=MOST / MOST_OF_NAMESPACE).map(name).collect();
    let all = many(MOST_OF_NAMESPACE);
    for namespace in &loud {
        for declaration in &all {
            register.declared(0, namespace, declaration);
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
        register.declared(0, &shop, &declaration);
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
        register.open([None]);
        seen(&mut register, &before);
        // Twice: a list that begins again names all of them.
        for _ in 0..2 {
            register.begin(0);
            for declaration in all {
                register.declared(0, &shop, declaration);
            }
            register.listed(0);
        }
        for declaration in all {
            register.gone(&shop, &declaration.source);
        }
    });
    assert_eq!(slow, None);
}

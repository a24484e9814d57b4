use super::*;

#[test]
fn rolled_out_comes_back() {
    let hex = "0123456789abcdef".repeat(4);
    for text in ["none".to_string(), format!("{hex} 2027-01-31T12:00:00Z")] {
        assert_eq!(text.parse::<RolledOut>().unwrap().to_string(), text);
    }
    let leaf: RolledOut = format!("{hex} 2027-01-31T12:00:00Z").parse().unwrap();
    assert_eq!(leaf.fingerprint().unwrap().to_string(), hex);
}

#[test]
fn rolled_out_counts_for_the_secret_that_it_was_written_for() {
    let hex = "0123456789abcdef".repeat(4);
    let leaf = format!("{hex} 2027-01-31T12:00:00Z");
    for (value, read, another) in [
        ("none".to_owned(), Some("none"), false),
        ("none mine".to_owned(), Some("none"), false),
        ("none yours".to_owned(), None, true),
        (leaf.clone(), Some(&*leaf), false),
        (format!("{leaf} mine"), Some(&*leaf), false),
        (format!("{leaf} yours"), None, true),
        (format!("{leaf} mine "), None, true),
    ] {
        let annotations = BTreeMap::from([(keys::ROLLED_OUT.to_owned(), value.clone())]);
        let said = RolledOut::read(&annotations, "mine").map(|it| it.to_string());
        assert_eq!(said.as_deref(), read, "{value}");
        assert_eq!(RolledOut::is_of_another(&annotations, "mine"), another);
        if let Some(said) = RolledOut::read(&annotations, "mine") {
            let [(_, written), (_, with)] = said.written_for("mine");
            assert!(written.is_some_and(|it| it.starts_with(&value)));
            assert_eq!(with, None, "not on record");
        }
    }
}

#[test]
fn what_stands_beside_the_leaf_counts_for_that_leaf_and_that_secret() {
    let leaf = Fingerprint([1; 32]);
    let beside = ChainAndCa { chain: 1, ca: 2 };
    let had = RolledOut::Leaf {
        fingerprint: leaf,
        not_after: UnixTime(0),
        with: Some(beside),
    };
    let written = had.written_for("mine");
    let annotations = |of: &str, with: &str| {
        let value = |key: &str| {
            let found = written.iter().find(|(it, _)| *it == key);
            found
                .and_then(|(_, value)| value.clone())
                .unwrap_or_default()
        };
        BTreeMap::from([
            (keys::ROLLED_OUT.to_owned(), value(keys::ROLLED_OUT)),
            (
                keys::ROLLED_OUT_WITH.to_owned(),
                value(keys::ROLLED_OUT_WITH).replace(of, with),
            ),
        ])
    };
    let read = |of, with| RolledOut::read(&annotations(of, with), "mine");
    assert_eq!(read("", ""), Some(had));
    let unknown = RolledOut::Leaf {
        fingerprint: leaf,
        not_after: UnixTime(0),
        with: None,
    };
    for (of, with) in [
        ("mine", "yours"),
        ("0101", "0202"),
        ("0000000100000002", "1"),
    ] {
        assert_eq!(read(of, with), Some(unknown), "{of} {with}");
    }
    assert_eq!(unknown.noting(leaf, beside), had);
    let other = ChainAndCa { chain: 1, ca: 3 };
    assert_eq!(had.noting(leaf, other), had);
    assert_eq!(unknown.noting(Fingerprint([2; 32]), beside), unknown);
    assert!(had.is(leaf, beside) && unknown.is(leaf, other) && !had.is(leaf, other));
    // Earlier versions read this, and know nothing of the chain and CA.
    assert_eq!(written[0].1.as_deref(), Some(&*format!("{had} mine")));
}

#[test]
fn what_has_changed_is_known_by_the_record() {
    let (leaf, beside) = (Fingerprint([1; 32]), ChainAndCa { chain: 1, ca: 2 });
    let had = |byte: u8, with: Option<(u32, u32)>| {
        Some(RolledOut::Leaf {
            fingerprint: Fingerprint([byte; 32]),
            not_after: UnixTime(0),
            with: with.map(|(chain, ca)| ChainAndCa { chain, ca }),
        })
    };
    let on = |text: &str| text.parse::<Parts>().unwrap();
    for (why, had, on, external, expected) in [
        ("nothing", had(1, Some((1, 2))), Parts::ALL, true, ""),
        (
            "nothing that is on record",
            had(1, None),
            Parts::ALL,
            true,
            "",
        ),
        ("a leaf", had(2, Some((1, 2))), Parts::ALL, true, "leaf"),
        ("a leaf, of us", had(2, None), Parts::ALL, false, "leaf"),
        (
            "a leaf, and who knows what else",
            had(2, None),
            Parts::ALL,
            true,
            "leaf,ca",
        ),
        (
            "all",
            had(2, Some((3, 4))),
            Parts::ALL,
            false,
            "leaf,chain,ca",
        ),
        (
            "an intermediate",
            had(1, Some((3, 2))),
            Parts::ALL,
            false,
            "chain",
        ),
        ("a CA", had(1, Some((1, 4))), Parts::ALL, false, "ca"),
        (
            "both, the CA counts",
            had(1, Some((3, 4))),
            on("leaf,ca"),
            false,
            "ca",
        ),
        (
            "all, the leaf does not count",
            had(2, Some((3, 4))),
            on("ca"),
            true,
            "ca",
        ),
        (
            "the first certificate",
            Some(RolledOut::None),
            Parts::ALL,
            false,
            "leaf",
        ),
        (
            "the first of somebody else",
            Some(RolledOut::None),
            Parts::ALL,
            true,
            "leaf,ca",
        ),
        ("the record was lost", None, on("chain"), true, ""),
    ] {
        let changed = RolledOut::changed(had, (leaf, beside), on, external);
        assert_eq!(changed.to_string(), expected, "{why}");
    }
}

#[test]
fn issued_by_comes_back() {
    let hex = "01".repeat(32);
    let written = format!(
        r#"{{"issuer":"internal","directory":"https://ca/directory","names":[],"leaf":"{hex}","at":"1970-01-01T00:00:00Z","account":"https://ca/1","outputs":"00000000000000ff"}}"#
    );
    for text in [
        r#"{"issuer":"internal","names":[]}"#,
        r#"{"issuer":"letsencrypt","names":["shop.example.com","*.example.com","10.0.0.1"],"profile":"tlsserver","keyType":"rsa-2048"}"#,
        &written,
    ] {
        assert_eq!(text.parse::<IssuedBy>().unwrap().to_string(), text);
    }
    let leaf = Fingerprint([1; 32]);
    let read: IssuedBy = written.parse().unwrap();
    assert_eq!(read.wrote(leaf), Some(UnixTime(0)));
    assert_eq!(read.wrote(Fingerprint([2; 32])), None);
    let newer = r#"{"issuer":"a","names":["a.example"],"order":"https://ca/1"}"#;
    assert_eq!(&*newer.parse::<IssuedBy>().unwrap().issuer, "a");
}

#[test]
fn a_foreign_value_is_absent() {
    let hex = "0123456789abcdef".repeat(4);
    let long = "[".repeat(256 * 1024);
    for value in [
        "",
        "None",
        "none ",
        &hex,
        &format!("{hex} soon"),
        &format!("{hex}  2027-01-31T12:00:00Z"),
        "ä".repeat(32).as_str(),
        "{}",
        r#"{"issuer":1,"names":[]}"#,
        r#"{"issuer":"a","names":["a b"]}"#,
        r#"{"issuer":"a","names":[],"keyType":"dsa"}"#,
        "\0",
        &long,
    ] {
        let annotations = BTreeMap::from([
            (keys::ROLLED_OUT.to_string(), value.to_string()),
            (keys::ISSUED_BY.to_string(), value.to_string()),
        ]);
        assert_eq!(RolledOut::read(&annotations, "uid"), None, "{value:.80}");
        assert_eq!(IssuedBy::read(&annotations), None, "{value:.80}");
    }
}

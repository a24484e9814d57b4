use super::*;

fn entry() -> Entry {
    let leaf = LeafFacts {
        fingerprint: Fingerprint([7; 32]),
        not_before: UnixTime(1),
        not_after: UnixTime(90),
        with: ChainAndCa { chain: 1, ca: 2 },
    };
    Entry {
        observed: Observed {
            uid: "0f9d6a3e-1b2c-4d5e-8f70-a1b2c3d4e5f6".into(),
            resource_version: "123".into(),
            issuer: "letsencrypt".into(),
            leaf: Ok(leaf),
            rolled_out: Some(leaf.held()),
            renewal: Ok(Due {
                at: UnixTime(60),
                reason: Reason::Lifetime,
            }),
            heed: AriPolicy::Any,
            suggestion: Suggestion::At(UnixTime(55)),
            window: None,
            account: 42.into(),
            wish: None,
            rollout_blocked: false,
            pauses_itself: false,
            blocked: Blocks::Nothing,
            held_until: None,
            copied_record: false,
            halted: false,
            renewed: Some(UnixTime(2)),
            problems: 0,
            problem_texts: 0,
        },
        remembered: None,
        renew_at: UnixTime(55),
        roll_at: UnixTime::NEVER,
        renewing: None,
        rolling: None,
        renewal_error: None,
        rollout_error: None,
        stuck: None,
        stale_pods: 0,
        pair_broken: false,
        lacking: 0,
        order_open: false,
        generation: 3,
        source: Source(1),
    }
}

#[test]
fn an_entry_comes_back_as_it_was() {
    let usual = entry();
    let changes: [fn(&mut Entry); 22] = [
        |_| {},
        |it| it.observed.uid = "odd".into(),
        |it| it.observed.resource_version = "odd".into(),
        |it| it.observed.resource_version = "1099511627776".into(),
        |it| it.observed.leaf = Err(NoLeaf::Unreadable),
        |it| it.observed.rolled_out = None,
        |it| (it.observed.rolled_out, it.observed.copied_record) = (None, true),
        |it| it.observed.rolled_out = Some(RolledOut::None),
        |it| it.observed.rolled_out = it.observed.rolled_out.map(without),
        |it| {
            it.observed.leaf = it.observed.leaf.map(|leaf| LeafFacts {
                with: ChainAndCa::NONE,
                ..leaf
            });
        },
        |it| it.observed.renewal = Err(Never::Paused),
        |it| (it.observed.rollout_blocked, it.observed.pauses_itself) = (true, true),
        |it| it.observed.suggestion = Suggestion::None,
        |it| it.observed.window = Some(UnixTime(0)),
        |it| (it.observed.wish, it.observed.halted) = (Some(0), true),
        |it| it.stale_pods = 7,
        |it| it.lacking = 7,
        |it| (it.stuck, it.order_open) = (Some(Stuck::Paused), true),
        |it| it.observed.renewed = None,
        |it| (it.renewing, it.rolling) = (Some("odd".into()), Some("7".into())),
        |it| (it.renewal_error, it.remembered) = (Some("no".into()), Some(RolledOut::None)),
        |it| it.rollout_error = Some("no".into()),
    ];
    let mut table = Table::default();
    for (number, change) in changes.into_iter().enumerate() {
        let mut changed = usual.clone();
        change(&mut changed);
        let key = SecretRef {
            namespace: "shop".into(),
            name: format!("tls-{number}").into(),
        };
        let id = table.put(&key, &usual);
        assert_eq!(table.put(&key, &changed), id);
        let found = table.get(id).unwrap();
        assert_eq!(format!("{found:?}"), format!("{changed:?}"));
        assert_eq!(
            (table.find(&key), table.key(id)),
            (Some(id), Some(key.clone()))
        );
        let listed = (Source(2), 9);
        assert!(table.touch(&key, &changed.observed.resource_version, listed));
        assert!(!table.touch(&key, &"124".into(), listed));
        assert!(!table.touch(&key, &"odder".into(), listed));
    }
    assert_eq!(table.len(), 22);
}

#[test]
fn a_number_that_was_given_back_is_used_again() {
    let mut table = Table::default();
    let key = |name: &str| SecretRef {
        namespace: "shop".into(),
        name: name.into(),
    };
    let (a, b) = (
        table.put(&key("a"), &entry()),
        table.put(&key("b"), &entry()),
    );
    assert_eq!(table.remove(&key("a")).unwrap().0, a);
    assert!(table.get(a).is_none() && table.find(&key("a")).is_none());
    assert!(table.remove(&key("a")).is_none());
    assert_eq!(table.put(&key("c"), &entry()), a);
    assert_eq!(
        (table.find(&key("b")), table.find(&key("c"))),
        (Some(b), Some(a))
    );
}

/// The memory for a hundred thousand entries is a hundred thousand times this.
#[test]
fn an_entry_is_small() {
    assert!(
        size_of::<Option<Packed>>() <= 160,
        "{}",
        size_of::<Option<Packed>>()
    );
}

#[test]
fn words_that_no_entry_has_any_more_are_forgotten() {
    let mut table = Table::default();
    let key = |namespace: &str| SecretRef {
        namespace: namespace.into(),
        name: "tls".into(),
    };
    let id = table.put(&key("shop"), &entry());
    for number in 0..1_000 {
        let mut entry = entry();
        entry.observed.issuer = format!("issuer-{number}").into();
        table.set(id, &entry);
        table.put(&key("shop"), &entry);
        table.put(&key(&format!("namespace-{number}")), &entry);
        table.remove(&key(&format!("namespace-{number}")));
    }
    let entry = table.get(id).unwrap();
    assert_eq!(&*entry.observed.issuer, "issuer-999");
    assert_eq!(table.key(id), Some(key("shop")));
    assert_eq!(table.words.numbers.len(), 2);
    assert!(table.words.all.len() <= 4, "{:?}", table.words.all);
}

use cert_renew_core::testing::entries::{NOW, index};

use super::*;

fn wanted(namespace: Option<&str>, places: &[(&str, &str)]) -> Wanted {
    let places = places.iter();
    let places: BTreeSet<_> = places
        .map(|(namespace, name)| ((*namespace).to_owned(), (*name).to_owned()))
        .collect();
    Wanted {
        namespace: namespace.map(ToOwned::to_owned),
        places: (!places.is_empty()).then_some(places),
        shown: Shown::default(),
    }
}

#[test]
fn names_in_several_namespaces_are_asked_for_where_they_are() {
    assert_eq!(wanted(None, &[]).questions(), [(None, None)]);
    assert_eq!(wanted(Some("a"), &[]).questions(), [(Some("a"), None)]);
    let few = [("a", "one"), ("b", "two")];
    assert_eq!(
        wanted(None, &few).questions(),
        [(Some("a"), Some("one")), (Some("b"), Some("two"))]
    );
    let names: Vec<String> = (0..=FEW).map(|it| it.to_string()).collect();
    let many = names.iter().map(|name| ("a", &**name));
    let many: Vec<_> = many.chain([("b", "two")]).collect();
    assert_eq!(
        wanted(None, &many).questions(),
        [(Some("a"), None), (Some("b"), None)]
    );
}

#[test]
fn what_ends_later_than_asked_for_is_not_missing() {
    let index = index();
    let (row, _) = index.iter().next().unwrap();
    let mut last = Verdict::of_row(NOW, &index, row, 0).unwrap();
    last.not_after = Some(NOW + Duration::from_secs(1_000));
    let report = Report {
        version: None,
        class: None,
        replica: None,
        leader: verdict::Leader::default(),
        as_of: NOW,
        notices: Vec::new(),
        unmanaged: Unmanaged::default(),
        matching: 10_001,
        left_out: 1,
        certificates: vec![last],
    };
    let within = |seconds| Wanted {
        shown: Shown {
            within: Some(Duration::from_secs(seconds)),
            ..Shown::default()
        },
        ..Wanted::default()
    };
    assert!(within(999).is_complete(&report));
    assert!(!within(1_000).is_complete(&report));
    assert!(!Wanted::default().is_complete(&report));
}

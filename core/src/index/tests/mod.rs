//! What the index keeps of Secrets, what it forgets, and which of them roll.

mod tasks;

use super::entry::LONGEST_ERROR;
use super::*;
use crate::schedule::due::{AriPolicy, Due, Never, Reason};
use crate::secret::parts::ChainAndCa;
use crate::secret::settings::Blocks;

const TLS: Source = Source(0);
const BESIDE: ChainAndCa = ChainAndCa { chain: 1, ca: 2 };
const SETTLE: Duration = Duration::from_secs(10);

fn leaf(byte: u8) -> LeafFacts {
    LeafFacts {
        fingerprint: Fingerprint([byte; 32]),
        not_before: UnixTime(0),
        not_after: UnixTime(90),
        with: BESIDE,
    }
}

fn rolled(byte: u8) -> RolledOut {
    RolledOut::Leaf {
        fingerprint: Fingerprint([byte; 32]),
        not_after: UnixTime(90),
        with: Some(BESIDE),
    }
}

fn observed(
    version: &str,
    leaf: Result<LeafFacts, NoLeaf>,
    rolled_out: Option<RolledOut>,
) -> Observed {
    Observed {
        uid: "uid".into(),
        resource_version: version.into(),
        issuer: "le".into(),
        leaf,
        rolled_out,
        renewal: Ok(Due {
            at: UnixTime(60),
            reason: Reason::Lifetime,
        }),
        heed: AriPolicy::Any,
        suggestion: Suggestion::None,
        window: None,
        account: 1.into(),
        wish: None,
        rollout_blocked: false,
        pauses_itself: false,
        blocked: Blocks::Nothing,
        held_until: None,
        copied_record: false,
        halted: false,
        renewed: None,
        problems: 0,
        problem_texts: 0,
    }
}

fn apply(index: &mut Index, now: i64, observed: Observed) -> SecretRef {
    let key = index.key("shop", "tls");
    index.apply(UnixTime(now), &key, observed, TLS, SETTLE, None);
    key
}

#[test]
fn another_leaf_ends_what_was_said_of_the_one_before() {
    let mut index = Index::default();
    let key = apply(&mut index, 60, observed("1", Ok(leaf(2)), Some(rolled(1))));
    for task in [Task::Renew, Task::Roll] {
        // A Secret that is itself due for an issue is not rolled onto.
        if index.pop_due(UnixTime(70)).is_some() {
            let later = Finished::Later(UnixTime(500), Some("no".into()));
            index.finished(UnixTime(70), (task, &key), later, SETTLE, None);
        }
    }
    assert!(index.get(&key).unwrap().renewal_error.is_some());
    // Still due: the renewal keeps failing.
    apply(&mut index, 71, observed("2", Ok(leaf(3)), Some(rolled(1))));
    assert!(index.get(&key).unwrap().renewal_error.is_some());
    let mut mended = observed("3", Ok(leaf(4)), Some(rolled(1)));
    mended.renewal = Ok(Due {
        at: UnixTime(1_000),
        reason: Reason::Lifetime,
    });
    apply(&mut index, 72, mended);
    assert_eq!(index.get(&key).unwrap().last_error(), None);
}

#[test]
fn of_a_long_error_the_beginning_is_kept() {
    let long: Box<str> = "ä".repeat(100_000).into();
    let finishes: [fn(Box<str>) -> Finished; 3] = [
        |error| Finished::Later(UnixTime(120), Some(error)),
        |error| Finished::Stuck(UnixTime(120), Stuck::Paused, error),
        |error| Finished::Stale(UnixTime(120), 1, error),
    ];
    for finish in finishes {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        index.pop_due(UnixTime(60)).unwrap();
        index.finished(
            UnixTime(61),
            (Task::Renew, &key),
            finish(long.clone()),
            SETTLE,
            None,
        );
        let error = index.get(&key).unwrap().last_error().unwrap();
        assert_eq!(&*error, kept(&long));
        assert_eq!(error.len(), LONGEST_ERROR);
    }
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    index.recall(&key, Some(&long), None);
    assert_eq!(
        index.get(&key).unwrap().last_error().unwrap().len(),
        LONGEST_ERROR
    );
}

#[test]
fn a_secret_that_is_edited_all_the_time_rolls_when_its_leaf_has_settled() {
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    for second in 1..=10 {
        let version = second.to_string();
        apply(
            &mut index,
            second,
            observed(&version, Ok(leaf(2)), Some(rolled(1))),
        );
        assert_eq!(index.next_due(), Some(UnixTime(11)), "{second}");
    }
    apply(&mut index, 10, observed("b", Ok(leaf(3)), Some(rolled(1))));
    assert_eq!(index.next_due(), Some(UnixTime(20)), "another leaf");
    // The addition holds too.
    let mut shut = observed("c", Ok(leaf(3)), Some(rolled(1)));
    shut.window = Some(UnixTime(40));
    apply(&mut index, 11, shut);
    assert_eq!(index.get(&key).unwrap().roll_at, UnixTime(40));
}

#[test]
fn what_was_there_at_first_sight_is_known_whatever_is_shut() {
    for shut in ["window", "paused", "open"] {
        let mut index = Index::default();
        let see = |version: &str, leaf, rolled_out| {
            let mut seen = observed(version, Ok(leaf), rolled_out);
            seen.window = (shut == "window").then_some(UnixTime(500));
            seen.rollout_blocked = shut == "paused";
            seen.renewal = Err(Never::External);
            seen
        };
        let key = apply(&mut index, 0, see("1", leaf(1), None));
        assert_eq!(
            index.next_due(),
            Some(UnixTime(0)),
            "it is recorded: {shut}"
        );
        // It changes before the record is written: its former content is remembered, and recorded.
        apply(&mut index, 1, see("2", leaf(2), None));
        let entry = index.get(&key).unwrap();
        assert_eq!(entry.rolled_out(), Some(rolled(1)), "{shut}");
        assert_eq!(index.pop_due(UnixTime(1)), Some((Task::Roll, key.clone())));
        // The record waits for nothing; the rollout does.
        apply(&mut index, 2, see("3", leaf(2), Some(rolled(1))));
        let roll = (Task::Roll, &key);
        index.finished(UnixTime(2), roll, Finished::Wrote, SETTLE, None);
        let expected = match shut {
            "window" => Some(UnixTime(500)),
            "paused" => None,
            _ => Some(UnixTime(12)),
        };
        assert_eq!(index.next_due(), expected, "{shut}");
    }
    // A Secret without annotations is not written to.
    let mut index = Index::default();
    let mut bystander = observed("1", Ok(leaf(1)), None);
    bystander.renewal = Err(Never::NotAnnotated);
    bystander.rollout_blocked = true;
    apply(&mut index, 0, bystander);
    assert_eq!(index.next_due(), None);
}

#[test]
fn what_stands_beside_the_leaf_is_known_at_first_sight_and_rolled_when_it_changes() {
    let see = |version: &str, ca: u32, says: Option<Option<u32>>| {
        let beside = |ca| ChainAndCa { chain: 1, ca };
        let held = LeafFacts {
            with: beside(ca),
            ..leaf(1)
        };
        let says = says.map(|had| RolledOut::Leaf {
            fingerprint: held.fingerprint,
            not_after: held.not_after,
            with: had.map(beside),
        });
        let mut seen = observed(version, Ok(held), says);
        seen.renewal = Err(Never::External);
        seen
    };
    let mut index = Index::default();
    // An earlier version has written the record: it is completed at once, even in a closed window.
    let mut shut = see("1", 2, Some(None));
    shut.window = Some(UnixTime(500));
    let key = apply(&mut index, 0, shut);
    assert!(index.get(&key).unwrap().is_unrecorded());
    assert_eq!(index.next_due(), Some(UnixTime(0)));
    apply(&mut index, 1, see("2", 2, Some(Some(2))));
    assert_eq!(index.next_due(), None, "nothing is restarted for it");
    // Another CA is debounced like another leaf.
    apply(&mut index, 2, see("3", 3, Some(Some(2))));
    assert_eq!(index.next_due(), Some(UnixTime(12)));
    apply(&mut index, 3, see("4", 3, Some(Some(3))));
    assert_eq!(index.next_due(), None);
    // Another writer removes the record, or brings its own.
    for (version, says) in [("5", None), ("7", Some(None)), ("9", Some(Some(4)))] {
        apply(&mut index, 4, see(version, 4, says));
        let entry = index.get(&key).unwrap();
        let had = entry.rolled_out().and_then(RolledOut::with);
        assert_eq!(had.map(|had| had.ca), Some(3), "{version}");
        assert_eq!(index.next_due(), Some(UnixTime(4)), "it is put back");
        apply(&mut index, 5, see("b", 3, Some(Some(3))));
    }
}

#[test]
fn a_record_that_comes_with_another_leaf_is_not_believed() {
    let see = |version: &str, holds: u8, says: Option<u8>, copied: bool| {
        let mut seen = observed(version, Ok(leaf(holds)), says.map(rolled));
        seen.copied_record = copied;
        seen.renewal = Err(Never::External);
        seen
    };
    let mut index = Index::default();
    let key = apply(&mut index, 0, see("1", 1, Some(1), false));
    // Both at once: copied, or restored.
    apply(&mut index, 1, see("2", 2, Some(2), false));
    let entry = index.get(&key).unwrap();
    assert_eq!(
        (entry.observed.rolled_out, entry.remembered),
        (None, Some(rolled(1)))
    );
    assert_eq!(index.next_due(), Some(UnixTime(1)), "it is put back");
    // Edited before that was done, as while no replica leads.
    apply(&mut index, 2, see("2b", 2, Some(2), false));
    let entry = index.get(&key).unwrap();
    assert_eq!(entry.rolled_out(), Some(rolled(1)), "the doubt stays");
    // The record alone is ours.
    apply(&mut index, 2, see("3", 2, Some(1), false));
    apply(&mut index, 3, see("4", 2, Some(2), false));
    assert!(!index.get(&key).unwrap().rollout_due());
    // Written for another Secret: rolled after a while, and not written again after that.
    apply(&mut index, 4, see("5", 3, None, true));
    assert_eq!(index.next_due(), Some(UnixTime(14)));
    apply(&mut index, 20, see("6", 3, Some(3), false));
    apply(&mut index, 21, see("7", 3, None, true));
    assert_eq!(index.next_due(), None);
}

#[test]
fn a_secret_that_comes_back_with_another_certificate_rolls() {
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    assert!(index.remove(&key));
    assert_eq!(index.next_due(), None);
    apply(&mut index, 1, observed("9", Ok(leaf(2)), None));
    assert_eq!(index.get(&key).unwrap().rolled_out(), Some(rolled(1)));
    assert_eq!(index.pop_due(UnixTime(11)), Some((Task::Roll, key)));
}

#[test]
fn names_go_with_their_secret() {
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    let names = |index: &Index| {
        let (row, _) = index.iter().next()?;
        let shown = index.shown(row).cloned().unwrap_or_default();
        Some(shown.names.into_string())
    };
    assert_eq!(names(&index).as_deref(), Some(""));
    let shown = Shown {
        names: "shop.example".into(),
        ..Shown::default()
    };
    index.show(&key, shown);
    assert_eq!(names(&index).as_deref(), Some("shop.example"));
    index.remove(&key);
    apply(&mut index, 1, observed("2", Ok(leaf(1)), Some(rolled(1))));
    assert_eq!(
        names(&index).as_deref(),
        Some(""),
        "another Secret's number"
    );
}

#[test]
fn annotations_that_vanish_are_remembered() {
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    apply(&mut index, 1, observed("2", Ok(leaf(2)), None));
    assert_eq!(index.get(&key).unwrap().rolled_out(), Some(rolled(1)));
}

#[test]
fn other_eyes_look_into_every_secret_and_drop_what_no_watch_brings_any_more() {
    let mut index = Index::default();
    index.begin(TLS);
    let stays = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    let goes = index.key("ns", "goes");
    let seen = observed("1", Ok(leaf(1)), Some(rolled(1)));
    index.apply(UnixTime(0), &goes, seen.clone(), TLS, SETTLE, None);
    assert!(index.touch(&stays, "1", TLS));
    index.invalidate_all();
    index.begin(TLS);
    assert!(!index.touch(&stays, "1", TLS), "it is to be looked into");
    index.apply(UnixTime(1), &stays, seen, TLS, SETTLE, None);
    assert!(index.touch(&stays, "1", TLS));
    assert_eq!(index.len(), 2, "nothing is forgotten before all is listed");
    assert!(index.finish(TLS).is_empty());
    assert_eq!(index.drop_unnamed(|namespace| namespace == "ns"), []);
    assert_eq!(index.drop_unnamed(|_| false), [goes]);
    assert_eq!(index.len(), 1);
}

#[test]
fn what_a_watch_says_of_a_former_object_is_told_from_what_is_known() {
    let (mut index, opaque) = (Index::default(), Source(1));
    // The one of type kubernetes.io/tls has taken over the name; the other watch still reports the former one.
    let mut new = observed("20", Ok(leaf(1)), None);
    new.uid = "new".into();
    let key = apply(&mut index, 0, new);
    assert!(index.is_of(&key, "new") && !index.is_of(&key, "old"));
    assert!(index.is_former(&key, "old", "19", opaque));
    assert!(!index.is_former(&key, "old", "21", opaque), "it came later");
    assert!(
        !index.is_former(&key, "new", "19", opaque),
        "it is the same"
    );
    assert!(
        !index.is_former(&key, "old", "19", TLS),
        "one watch tells in order"
    );
    assert!(!index.is_former(&key, "old", "odd", opaque));
    index.invalidate_all();
    assert!(
        !index.is_former(&key, "old", "19", opaque),
        "a past may have come back"
    );
}

#[test]
fn a_relist_drops_what_it_does_not_name() {
    let mut index = Index::default();
    index.begin(TLS);
    let (kept, gone) = (index.key("a", "kept"), index.key("b", "gone"));
    for key in [&kept, &gone] {
        index.apply(
            UnixTime(0),
            key,
            observed("1", Ok(leaf(1)), None),
            TLS,
            SETTLE,
            None,
        );
    }
    index.finish(TLS);
    index.begin(TLS);
    assert!(index.touch(&kept, "1", TLS));
    assert!(!index.touch(&kept, "2", TLS));
    index.begin(Source(1));
    assert_eq!(
        index.finish(Source(1)),
        [],
        "another watch's relist says nothing of ours"
    );
    assert_eq!(index.finish(TLS), [gone]);
    assert_eq!(index.len(), 1);
}

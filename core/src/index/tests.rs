use super::entry::LONGEST_ERROR;
use super::*;
use crate::schedule::due::{Due, Heed, Never, Reason};
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
    leaf: Result<LeafFacts, Fault>,
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
        heed: Heed::Any,
        suggestion: Suggestion::None,
        window: None,
        account: 1.into(),
        wish: None,
        rollout_blocked: false,
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
fn a_window_that_has_shut_since_is_waited_for_and_known() {
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(2)), Some(rolled(1))));
    assert_eq!(index.pop_due(UnixTime(10)).map(|it| it.0), Some(Task::Roll));
    let ended = (Task::Roll, &key);
    let shut = Finished::Shut(UnixTime(50));
    index.finished(UnixTime(12), ended, shut, SETTLE, None);
    let entry = index.get(&key).unwrap();
    assert_eq!(entry.roll_at, UnixTime(50));
    assert_eq!(entry.rollout_error, None);
    assert!(entry.is_held(UnixTime(49)) && !entry.is_held(UnixTime(50)));
}

#[test]
fn what_only_a_person_ends_is_known_until_something_new_is_tried() {
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    let mut ends = |at: i64, finished: Finished| {
        index.pop_due(UnixTime(at)).unwrap();
        index.finished(UnixTime(at), (Task::Renew, &key), finished, SETTLE, None);
        index.get(&key).unwrap().stuck
    };
    let later = |at, text: &str| Finished::Later(UnixTime(at), Some(text.into()));
    let paused = Finished::Stuck(UnixTime(70), Stuck::Paused, "paused".into());
    assert_eq!(ends(60, paused.clone()), Some(Stuck::Paused));
    assert_eq!(ends(70, later(80, "paused")), Some(Stuck::Paused), "held");
    assert_eq!(ends(80, later(90, "no DNS")), None);
    assert_eq!(ends(90, paused), Some(Stuck::Paused));
    assert_eq!(ends(100, Finished::Wrote), None);
}

#[test]
fn a_secret_is_renewed_when_it_is_due_and_once() {
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    assert_eq!(index.next_due(), Some(UnixTime(60)));
    assert_eq!(index.pop_due(UnixTime(59)), None);
    assert_eq!(
        index.pop_due(UnixTime(60)),
        Some((Task::Renew, key.clone()))
    );
    assert_eq!(index.pop_due(UnixTime(70)), None, "it runs already");
    index.finished(
        UnixTime(61),
        (Task::Renew, &key),
        Finished::Wrote,
        SETTLE,
        None,
    );
    assert_eq!(
        index.pop_due(UnixTime(62)),
        None,
        "the watch has not said yet what was written"
    );
    let mut renewed = observed("2", Ok(leaf(2)), Some(rolled(1)));
    renewed.renewal = Ok(Due {
        at: UnixTime(600),
        reason: Reason::Lifetime,
    });
    apply(&mut index, 63, renewed);
    assert_eq!(index.pop_due(UnixTime(72)), None, "settling");
    assert_eq!(index.pop_due(UnixTime(73)), Some((Task::Roll, key)));
}

#[test]
fn an_echo_that_comes_before_the_task_ends_counts() {
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    index.pop_due(UnixTime(60)).unwrap();
    let mut renewed = observed("2", Ok(leaf(2)), Some(rolled(1)));
    renewed.renewal = Ok(Due {
        at: UnixTime(600),
        reason: Reason::Lifetime,
    });
    apply(&mut index, 61, renewed);
    assert_eq!(index.pop_due(UnixTime(70)), None, "settling");
    index.finished(
        UnixTime(62),
        (Task::Renew, &key),
        Finished::Wrote,
        SETTLE,
        None,
    );
    assert_eq!(index.pop_due(UnixTime(71)), Some((Task::Roll, key)));
}

#[test]
fn the_task_of_a_deleted_secret_is_no_task_of_the_next_one_of_its_name() {
    for task in [Task::Renew, Task::Roll] {
        let mut index = Index::default();
        let (now, first) = match task {
            Task::Renew => (60, observed("1", Ok(leaf(1)), Some(rolled(1)))),
            Task::Roll => (0, observed("1", Ok(leaf(2)), Some(rolled(1)))),
        };
        let key = apply(&mut index, now, first.clone());
        let begun = index.pop_due(UnixTime(now + 30));
        assert_eq!(begun, Some((task, key.clone())));
        index.remove(&key);
        let second = Observed {
            uid: Uid::from("another"),
            resource_version: Version::from("5"),
            ..first
        };
        apply(&mut index, now, second.clone());
        assert_eq!(index.pop_due(UnixTime(now + 30)), None, "it still runs");
        // The result is about the former Secret: no event of its own write follows, and its instant does not count.
        let ended = (task, &key);
        let later = Finished::Later(UnixTime(1_000), Some("no".into()));
        for said in [Finished::Wrote, later] {
            index.finished(UnixTime(now), ended, said, SETTLE, None);
            assert_eq!(index.get(&key).unwrap().last_error(), None);
            let next = index.pop_due(UnixTime(now + 30));
            assert_eq!(next, Some((task, key.clone())));
            index.remove(&key);
            apply(&mut index, now, second.clone());
        }
        // A task that ends before the name comes back holds nothing up.
        index.remove(&key);
        index.finished(UnixTime(now), ended, Finished::Wrote, SETTLE, None);
        apply(&mut index, now, second);
        let next = index.pop_due(UnixTime(now + 30));
        assert_eq!(next, Some((task, key.clone())));
    }
}

#[test]
fn what_changes_while_a_renewal_fails_does_not_wait_for_its_instant() {
    // The delay of the failure itself is in `retry_at`, which knows of the change.
    for (edited, held_until, renews_at) in [
        (false, None, 500),
        (true, None, 61),
        (true, Some(UnixTime(400)), 400),
    ] {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
        index.pop_due(UnixTime(61)).unwrap();
        if edited {
            apply(&mut index, 61, observed("2", Ok(leaf(1)), Some(rolled(1))));
        }
        let (task, later) = ((Task::Renew, &key), Finished::Later(UnixTime(500), None));
        index.finished(UnixTime(61), task, later, SETTLE, held_until);
        let renew_at = index.get(&key).unwrap().renew_at.max(UnixTime(61));
        assert_eq!(renew_at, UnixTime(renews_at), "{edited} {held_until:?}");
    }
}

#[test]
fn a_failed_task_waits_for_its_instant() {
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    index.pop_due(UnixTime(60)).unwrap();
    let later = Finished::Later(UnixTime(120), Some("no".into()));
    index.finished(UnixTime(61), (Task::Renew, &key), later, SETTLE, None);
    assert_eq!(index.next_due(), Some(UnixTime(120)));
    assert_eq!(
        index.get(&key).unwrap().renewal_error.as_deref(),
        Some("no")
    );
}

#[test]
fn the_end_of_a_rollout_says_nothing_of_the_renewal_nor_the_other_way_round() {
    for (ends_well, left) in [(Task::Roll, "no"), (Task::Renew, "web is paused")] {
        let mut index = Index::default();
        let key = apply(&mut index, 0, observed("1", Ok(leaf(2)), Some(rolled(1))));
        let mut ends = |at: i64, task: Task, finished: Finished| {
            assert_eq!(index.pop_due(UnixTime(at)), Some((task, key.clone())));
            index.finished(UnixTime(at), (task, &key), finished, SETTLE, None);
            let entry = index.get(&key).unwrap();
            (entry.last_error(), entry.stuck)
        };
        let waits = Finished::Later(UnixTime(70), Some("web is paused".into()));
        let (error, _) = ends(10, Task::Roll, waits);
        assert_eq!(error.as_deref(), Some("web is paused"));
        let stuck_at = if ends_well == Task::Roll { 80 } else { 65 };
        let stuck = Finished::Stuck(UnixTime(stuck_at), Stuck::Paused, "no".into());
        let (error, stuck) = ends(60, Task::Renew, stuck);
        let both = "renewal: no; rollout: web is paused";
        assert_eq!((error.as_deref(), stuck), (Some(both), Some(Stuck::Paused)));
        let (error, stuck) = ends(70, ends_well, Finished::Wrote);
        assert_eq!(error.as_deref(), Some(left));
        assert_eq!(stuck.is_some(), ends_well == Task::Roll);
    }
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
fn a_new_term_begins_what_a_former_one_left_running_and_heeds_what_it_has_read() {
    let mut index = Index::default();
    let key = apply(&mut index, 0, observed("1", Ok(leaf(1)), Some(rolled(1))));
    index.pop_due(UnixTime(60)).unwrap();
    index.restart(UnixTime(70), SETTLE, |_| None);
    assert_eq!(
        index.pop_due(UnixTime(70)),
        Some((Task::Renew, key.clone()))
    );
    // The ledger has a failure.
    index.restart(UnixTime(80), SETTLE, |_| Some(UnixTime(500)));
    assert_eq!(index.pop_due(UnixTime(499)), None);
    assert_eq!(index.pop_due(UnixTime(500)), Some((Task::Renew, key)));
}

#[test]
fn an_order_that_is_on_record_is_looked_after_whatever_comes_before() {
    let mut index = Index::default();
    let mut written = observed("1", Ok(leaf(2)), Some(rolled(1)));
    written.renewal = Ok(Due {
        at: UnixTime(600),
        reason: Reason::Lifetime,
    });
    let key = apply(&mut index, 0, written.clone());
    assert!(index.order_open(UnixTime(20), &key, true));
    let roll = Some((Task::Roll, key.clone()));
    assert_eq!(index.pop_due(UnixTime(20)), roll, "due for longer");
    let renew = Some((Task::Renew, key.clone()));
    assert_eq!(index.pop_due(UnixTime(20)), renew, "neither waits");
    let mut echo = written.clone();
    (echo.resource_version, echo.rolled_out) = ("2".into(), Some(rolled(2)));
    apply(&mut index, 21, echo);
    let rolling = (Task::Roll, &key);
    index.finished(UnixTime(21), rolling, Finished::Wrote, SETTLE, None);
    assert_eq!(index.pop_due(UnixTime(21)), None, "it runs");
    // The API server did not answer: the order is still there, and the changed Secret is read.
    let later = || Finished::Later(UnixTime(50), None);
    let renewing = (Task::Renew, &key);
    index.finished(UnixTime(22), renewing, later(), SETTLE, None);
    assert_eq!(index.pop_due(UnixTime(22)), renew);
    index.finished(UnixTime(22), renewing, later(), SETTLE, None);
    assert_eq!(index.pop_due(UnixTime(49)), None);
    assert_eq!(index.pop_due(UnixTime(50)), renew);
    index.order_open(UnixTime(51), &key, false);
    let over = Finished::Later(UnixTime(51), None);
    index.finished(UnixTime(51), renewing, over, SETTLE, None);
    assert_eq!(index.next_due(), Some(UnixTime(600)));
}

#[test]
fn a_rollout_that_runs_keeps_no_renewal_waiting_and_a_renewal_no_rollout() {
    let mut index = Index::default();
    let mut written = observed("1", Ok(leaf(2)), Some(rolled(1)));
    written.renewal = Ok(Due {
        at: UnixTime(600),
        reason: Reason::Lifetime,
    });
    let key = apply(&mut index, 0, written);
    assert_eq!(index.pop_due(UnixTime(10)), Some((Task::Roll, key.clone())));
    index.order_open(UnixTime(60), &key, true);
    assert_eq!(
        index.pop_due(UnixTime(60)),
        Some((Task::Renew, key.clone()))
    );
    // The renewal is delayed; the end of the rollout does not bring it forward, nor the other way round.
    let (later, roll) = (|at| Finished::Later(UnixTime(at), None), (Task::Roll, &key));
    index.finished(UnixTime(61), (Task::Renew, &key), later(500), SETTLE, None);
    index.finished(UnixTime(62), roll, later(300), SETTLE, None);
    let entry = index.get(&key).unwrap();
    assert_eq!((entry.renew_at.0, entry.roll_at.0), (500, 300));
    let next = Some((Task::Roll, key.clone()));
    assert_eq!(index.pop_due(UnixTime(300)), next);
    assert_eq!(
        index.pop_due(UnixTime(500)),
        Some((Task::Renew, key.clone()))
    );
    // A newer certificate comes while both run: it is rolled out after the rollout has ended.
    let mut newer = observed("2", Ok(leaf(3)), Some(rolled(1)));
    newer.renewal = Err(Never::External);
    apply(&mut index, 501, newer);
    assert_eq!(index.next_due(), None);
    index.finished(UnixTime(502), roll, later(502), SETTLE, None);
    assert_eq!(index.next_due(), Some(UnixTime(511)));
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
fn the_ca_is_asked_before_our_own_rule_counts_and_its_word_moves_the_instant() {
    let mut index = Index::default();
    let mut unasked = observed("1", Ok(leaf(1)), Some(rolled(1)));
    unasked.suggestion = Suggestion::Unasked;
    let key = apply(&mut index, 60, unasked);
    // A tenth of its ninety seconds.
    assert_eq!(index.next_due(), Some(UnixTime(69)));
    let mut suggest = |about: u8, suggestion| {
        let about = Fingerprint([about; 32]);
        let before = index.suggest(UnixTime(60), &key, about, suggestion, SETTLE, None);
        (before, index.next_due())
    };
    let at = |second| Some(UnixTime(second));
    assert_eq!(suggest(2, Suggestion::None).0, None, "another leaf");
    assert_eq!(
        suggest(1, Suggestion::None),
        (Some(Suggestion::Unasked), at(60))
    );
    let moved = Suggestion::At(UnixTime(30));
    assert_eq!(suggest(1, moved), (Some(Suggestion::None), at(30)));
    let end = Suggestion::At(UnixTime(90));
    assert_eq!(
        suggest(1, end),
        (Some(moved), at(75)),
        "a sixth of the lifetime is kept"
    );
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
        used_by: None,
        account: None,
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
fn what_waits_for_an_issue_is_not_rolled_onto() {
    let mut index = Index::default();
    let mut emptied = observed("2", Err(Fault::Absent), Some(rolled(1)));
    emptied.renewal = Ok(Due {
        at: UnixTime(0),
        reason: Reason::NoCertificate,
    });
    let key = apply(&mut index, 1, emptied);
    assert_eq!(index.pop_due(UnixTime(1)), Some((Task::Renew, key)));
    assert_eq!(index.pop_due(UnixTime(50)), None);
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
    index.doubt();
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
    index.doubt();
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

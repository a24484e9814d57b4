//! Which task falls due, when, and what its end means for the next one.

use super::*;

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
fn the_word_of_the_ca_delays_no_renewal_before_its_own_certificate_ends() {
    let mut index = Index::default();
    let mut under = observed("1", Ok(leaf(1)), Some(rolled(1)));
    under.renewal = Ok(Due {
        at: UnixTime(60),
        reason: Reason::IssuerEnds,
    });
    let key = apply(&mut index, 0, under);
    for (suggested, due) in [(75, 60), (30, 30), (80, 60)] {
        let suggested = Suggestion::At(UnixTime(suggested));
        let about = Fingerprint([1; 32]);
        index.suggest(UnixTime(1), &key, about, suggested, SETTLE, None);
        assert_eq!(index.next_due(), Some(UnixTime(due)), "{suggested:?}");
    }
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
fn what_waits_for_an_issue_is_not_rolled_onto() {
    let mut index = Index::default();
    let mut emptied = observed("2", Err(NoLeaf::Absent), Some(rolled(1)));
    emptied.renewal = Ok(Due {
        at: UnixTime(0),
        reason: Reason::NoCertificate,
    });
    let key = apply(&mut index, 1, emptied);
    assert_eq!(index.pop_due(UnixTime(1)), Some((Task::Renew, key)));
    assert_eq!(index.pop_due(UnixTime(50)), None);
}

#[test]
fn a_renewal_that_is_held_for_days_holds_no_rollout_up() {
    let asked = |version: &str, rolled_out, held_until| Observed {
        renewal: Ok(Due {
            at: UnixTime(0),
            reason: Reason::RenewNow,
        }),
        held_until,
        ..observed(version, Ok(leaf(2)), rolled_out)
    };
    let rolls_at = |rolled_out, held_until| {
        let mut index = Index::default();
        let key = apply(&mut index, 10, asked("1", rolled_out, held_until));
        index.get(&key).unwrap().roll_at
    };
    let held = Some(UnixTime(40));
    assert_eq!(rolls_at(Some(rolled(1)), None), UnixTime::NEVER);
    assert_eq!(rolls_at(Some(rolled(1)), held), UnixTime(10) + SETTLE);
    // The first sight is recorded at once.
    assert_eq!(rolls_at(None, held), UnixTime(10));
}

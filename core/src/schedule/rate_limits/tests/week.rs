//! How many certificates a week has room for, whatever causes them.

use super::*;

#[test]
fn there_is_no_fifth_certificate_in_a_week_unless_it_is_a_replacement() {
    let day = 86_400;
    for (lifetime, week) in [(90 * day, 7 * day), (5 * day, 5 * day * 7 / 10)] {
        let leaf = leaf(-lifetime, 0);
        let lasts = Some(Duration::from_secs(lifetime.try_into().unwrap()));
        let held = |account: &IssuanceHistory, now: i64| {
            let leaf = Some(&leaf);
            let claim = Claim {
                leaf,
                ..claim(Reason::Lifetime)
            };
            claim.hold(UnixTime(now), account).map(Hold::until)
        };
        let mut account = IssuanceHistory::default();
        let issued = |account: &mut IssuanceHistory, hour: i64, expected: bool, replaced: bool| {
            let at = UnixTime(hour * 3_600);
            let issue = Issue {
                lifetime: lasts,
                ..issue(at, expected, replaced)
            };
            account.issued(at, issue);
            // The same, reported again after a restart.
            account.issued(at + Duration::from_secs(1), issue);
        };
        issued(&mut account, 0, false, false);
        for hour in 1..=3 {
            assert_eq!(held(&account, hour * 3_600), None);
            issued(&mut account, hour, true, false);
        }
        assert_eq!(held(&account, 4 * 3_600), Some(UnixTime(week)));
        assert_eq!(held(&account, week), None);
        let mut account = IssuanceHistory::default();
        for hour in 0..9 {
            assert_eq!(held(&account, hour * 3_600), None);
            issued(&mut account, hour, true, true);
        }
        assert!(account.is_empty());
    }
}

#[test]
fn a_secret_that_is_wiped_over_and_over_gets_three_certificates_a_week() {
    let mut account = IssuanceHistory::default();
    let (mut now, mut issued) = (UnixTime(0), 0);
    while now.0 < 7 * 86_400 {
        if claim(Reason::NoCertificate).hold(now, &account).is_none() {
            let expected = claim(Reason::NoCertificate).is_expected(now);
            account.issued(now, issue(now, expected, false));
            account.issued(now + Duration::from_secs(1), issue(now, false, false));
            issued += 1;
        }
        now = now + Duration::from_secs(60);
    }
    assert_eq!(issued, UNSCHEDULED_A_WEEK);
}

#[test]
fn a_ca_that_wants_each_new_certificate_back_gets_three() {
    let mut account = IssuanceHistory::default();
    let mut issued = 0;
    for hour in 0..24 {
        let now = UnixTime(hour * 3_600);
        let leaf = leaf(now.0 - 60, now.0 + 90 * 86_400);
        let claim = Claim {
            leaf: Some(&leaf),
            ..claim(Reason::RenewalInfo)
        };
        if claim.hold(now, &account).is_none() {
            account.issued(now, issue(now, claim.is_expected(now), false));
            issued += 1;
        }
    }
    assert_eq!(issued, UNSCHEDULED_A_WEEK);
    let old = leaf(-80 * 86_400, 10 * 86_400);
    let claim = Claim {
        leaf: Some(&old),
        ..claim(Reason::RenewalInfo)
    };
    assert_eq!(claim.hold(UnixTime(86_400), &account), None);
}

#[test]
fn by_a_clock_that_is_ahead_no_new_certificate_is_old_already() {
    let (day, lifetime) = (86_400, 90 * 86_400);
    for (reason, most) in [
        (Reason::Lifetime, 1),
        (Reason::IssuerEnds, 1),
        (Reason::RenewalInfo, 1 + UNSCHEDULED_A_WEEK),
    ] {
        let mut account = IssuanceHistory::default();
        let (mut written, mut issued) = (None, 0);
        for minute in 0..24 * 60 {
            // The CA's clock is right, ours is seventy days ahead.
            let right = UnixTime(minute * 60);
            let now = right + Duration::from_secs(70 * 86_400);
            let leaf = match written {
                None => leaf(right.0 - 10 * day, right.0 - 10 * day + lifetime),
                Some(at) => leaf(at, at + lifetime),
            };
            let at = written.map(|at: i64| UnixTime(at) + Duration::from_secs(70 * 86_400));
            let claim = Claim {
                leaf: Some(&leaf),
                written: at,
                ..claim(reason)
            };
            if claim.hold(now, &account).is_none() {
                let expected = claim.is_expected(now);
                account.issued(now, issue(now, expected, true));
                (written, issued) = (Some(right.0), issued + 1);
            }
        }
        assert_eq!(issued, most, "{reason:?}");
    }
}

#[test]
fn renew_now_in_a_loop_gets_no_second_certificate_within_a_tenth_of_the_lifetime() {
    let leaf = leaf(0, 90 * 86_400);
    let claim = Claim {
        wish: Some(7),
        leaf: Some(&leaf),
        ..claim(Reason::RenewNow)
    };
    let held = claim.hold(UnixTime(86_400), &IssuanceHistory::default());
    assert_eq!(
        held,
        Some(Hold::TooYoung {
            until: UnixTime(9 * 86_400)
        })
    );
    assert_eq!(
        claim.hold(UnixTime(9 * 86_400), &IssuanceHistory::default()),
        None
    );
}

#[test]
fn weeks_scale_by_what_was_issued_and_not_by_what_somebody_put_there() {
    let (minute, day) = (60, 86_400);
    // A self-signed certificate of a minute is put into the Secret repeatedly; ours last for ninety days.
    let mut account = IssuanceHistory::default();
    let mut issued = 0;
    for now in (0..7 * day).step_by(42).map(UnixTime) {
        let placeholder = Leaf {
            self_signed: true.into(),
            ..leaf(now.0 - 1, now.0 + minute)
        };
        let claim = Claim {
            leaf: Some(&placeholder),
            written: Some(now),
            ..claim(Reason::Placeholder)
        };
        if claim.hold(now, &account).is_none() {
            account.issued(now, issue_for(now, 90 * day));
            issued += 1;
        }
    }
    assert_eq!(issued, UNSCHEDULED_A_WEEK);
    // Certificates of four minutes: a Secret without one does not wait for a week, also after a restart.
    let mut account = IssuanceHistory::default();
    for now in [0, 1, 2].map(UnixTime) {
        account.issued(now, issue_for(now, 4 * minute));
    }
    let kept = serde_json::to_string(&account.kept()).unwrap();
    let account: IssuanceHistory = serde_json::from_str(&kept).unwrap();
    let held = |now| claim(Reason::NoCertificate).hold(UnixTime(now), &account);
    let until = UnixTime(4 * minute * 7 / 10);
    assert_eq!(held(2), Some(Hold::KeepsComingBack { until }));
    assert_eq!(held(until.0), None);
    // A former version recorded no lifetime: a whole week counts, whatever is in the Secret.
    let account = IssuanceHistory {
        lifetime: None,
        ..account
    };
    let (short, now) = (leaf(-minute, minute), UnixTime(80));
    let holds = |written| Claim {
        leaf: Some(&short),
        written,
        ..claim(Reason::Unreadable)
    };
    assert!(holds(None).hold(now, &account).is_some());
    assert!(holds(Some(now)).hold(UnixTime(90), &account).is_some());
}

#[test]
fn what_is_issued_and_not_used_counts_even_as_a_replacement() {
    let mut account = IssuanceHistory::default();
    let old = leaf(-80 * 86_400, 10 * 86_400);
    let claim = Claim {
        leaf: Some(&old),
        ..claim(Reason::Lifetime)
    };
    let mut issued = 0;
    for now in (0..7 * 86_400).step_by(60).map(UnixTime) {
        if claim.hold(now, &account).is_none() {
            account.wasted(now, issue(now, true, true));
            account.failed(now, &Backoff::default(), Failed::default());
            issued += 1;
        }
    }
    assert_eq!(issued, ISSUES_A_WEEK);
    assert_eq!(account.spacing() * 4, WEEK);
}

#[test]
fn a_cause_is_not_held_for_a_tenth_of_the_lifetime_but_by_the_week() {
    let new = leaf(0, 90 * 86_400);
    for (reason, caused) in [
        (Reason::MissingName, false),
        (Reason::ProfileChanged, false),
        (Reason::KeyTypeChanged, false),
        (Reason::Staging, false),
        (Reason::Revoked, false),
        (Reason::RenewNow, true),
    ] {
        let mut account = IssuanceHistory::default();
        let claim = Claim {
            leaf: Some(&new),
            caused,
            ..claim(reason)
        };
        let mut issued = 0;
        for now in (60..7 * 86_400).step_by(60).map(UnixTime) {
            let hold = claim.hold(now, &account);
            if hold.is_none() {
                account.issued(now, issue(now, false, true));
                issued += 1;
            } else {
                assert!(matches!(hold, Some(Hold::TooMany { .. })), "{reason:?}");
            }
        }
        assert_eq!(issued, ISSUES_A_WEEK, "{reason:?}");
    }
}

#[test]
fn what_the_ca_wants_back_early_is_not_charged_to_the_user() {
    let mut account = IssuanceHistory::default();
    for hour in 0..3 {
        let now = UnixTime(hour * 3_600);
        let new = leaf(now.0 - 60, now.0 + 90 * 86_400);
        let claim = Claim {
            leaf: Some(&new),
            ..claim(Reason::RenewalInfo)
        };
        assert!(claim.is_scheduled(now) && !claim.is_expected(now));
        account.issued(now, issue(now, claim.is_scheduled(now), false));
    }
    let now = UnixTime(3 * 3_600);
    let early = leaf(now.0 - 60, now.0 + 90 * 86_400);
    let early = Claim {
        leaf: Some(&early),
        ..claim(Reason::RenewalInfo)
    };
    assert!(matches!(
        early.hold(now, &account),
        Some(Hold::WantedBack { .. })
    ));
    assert_eq!(claim(Reason::NoCertificate).hold(now, &account), None);
}

#[test]
fn what_the_ca_wants_back_again_and_again_is_renewed_when_its_lifetime_asks_for_it() {
    let hour = 3_600;
    let mut account = IssuanceHistory::default();
    for issued in [0, 1, 2] {
        let at = UnixTime(issued * 60);
        account.issued(at, issue_for(at, 10 * hour));
    }
    let new = leaf(120, 120 + 10 * hour);
    let due = new.not_after - Duration::from_secs(5 * 3_600);
    let held = |by_lifetime, now| {
        let claim = Claim {
            leaf: Some(&new),
            by_lifetime,
            ..claim(Reason::RenewalInfo)
        };
        claim.hold(now, &account)
    };
    let now = UnixTime(180);
    // The window of three issues ends later than that.
    let long = held(None, now).unwrap().until();
    assert!(long > due);
    assert_eq!(held(Some(due), now), Some(Hold::WantedBack { until: due }));
    assert_eq!(held(Some(due), due), None);
    // According to the Secret it was written just now, and is due: its own time says nothing, and nothing is delayed
    // until an instant that has passed.
    let claim = Claim {
        leaf: Some(&new),
        by_lifetime: Some(due),
        written: Some(due),
        ..claim(Reason::RenewalInfo)
    };
    assert!(!claim.is_expected(due));
    assert_eq!(
        claim.hold(due, &account),
        Some(Hold::WantedBack { until: long })
    );
}

#[test]
fn what_a_week_has_used_can_be_told() {
    let at = |hour: i64| UnixTime(hour * 3_600);
    let mut account = IssuanceHistory::default();
    account.issued(at(1), issue(at(1), false, false));
    account.issued(at(2), issue(at(2), true, false));
    let [all, unscheduled] = account.issues(at(3));
    assert_eq!((all.used, all.most, all.until), (2, ISSUES_A_WEEK, None));
    let told = (unscheduled.used, unscheduled.most, unscheduled.until);
    assert_eq!(told, (1, UNSCHEDULED_A_WEEK, None));
    for hour in [4, 5] {
        account.issued(at(hour), issue(at(hour), true, false));
    }
    let [all, _] = account.issues(at(6));
    assert_eq!(
        (all.used, all.until),
        (ISSUES_A_WEEK, Some(at(1) + all.within))
    );
    assert_eq!(account.issues(at(1) + all.within)[0].used, 3);
}

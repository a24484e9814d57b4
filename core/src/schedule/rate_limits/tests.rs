//! What the budgets allow, and what they delay.

use std::time::Duration;

use super::account::WEEK;
use super::*;
use crate::certificate::Fingerprint;
use crate::text::name::Name;

fn leaf(from: i64, until: i64) -> Leaf {
    Leaf {
        fingerprint: Fingerprint([1; 32]),
        not_before: UnixTime(from),
        not_after: UnixTime(until),
        names: Vec::new(),
        self_signed: false,
        key_type: None,
        public_key: Box::default(),
        issuer: b"CA".as_slice().into(),
        serial: Box::default(),
        authority_key_id: None,
        abilities: Default::default(),
        chain: 0,
        remarks: Box::default(),
    }
}

fn issue(ordered: UnixTime, expected: bool, replaced: bool) -> Issue {
    Issue {
        ordered,
        expected,
        replaced,
        lifetime: None,
    }
}

/// The same, for a certificate with this lifetime.
fn issue_for(ordered: UnixTime, lifetime: i64) -> Issue {
    Issue {
        lifetime: Some(Duration::from_secs(lifetime.try_into().unwrap())),
        ..issue(ordered, false, false)
    }
}

/// A claim on the budgets by a Secret without a certificate.
fn claim(reason: Reason) -> Claim<'static> {
    Claim {
        reason,
        wish: None,
        caused: false,
        leaf: None,
        written: None,
        by_lifetime: None,
    }
}

#[test]
fn failures_wait_longer_and_longer() {
    let mut account = Account::default();
    let delays: Vec<i64> = (0..5)
        .map(|_| {
            account
                .failed(UnixTime(0), &Backoff::default(), Failed::default())
                .0
        })
        .collect();
    assert_eq!(delays, [60, 600, 6_000, 60_000, 86_400]);
    account.issued(UnixTime(0), issue(UnixTime(0), true, true));
    assert!(account.is_empty());
}

#[test]
fn there_is_no_fifth_certificate_in_a_week_unless_it_is_a_replacement() {
    let day = 86_400;
    for (lifetime, week) in [(90 * day, 7 * day), (5 * day, 5 * day * 7 / 10)] {
        let leaf = leaf(-lifetime, 0);
        let lasts = Some(Duration::from_secs(lifetime.try_into().unwrap()));
        let held = |account: &Account, now: i64| {
            let leaf = Some(&leaf);
            let claim = Claim {
                leaf,
                ..claim(Reason::Lifetime)
            };
            claim.hold(UnixTime(now), account).map(Hold::until)
        };
        let mut account = Account::default();
        let issued = |account: &mut Account, hour: i64, expected: bool, replaced: bool| {
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
        let mut account = Account::default();
        for hour in 0..9 {
            assert_eq!(held(&account, hour * 3_600), None);
            issued(&mut account, hour, true, true);
        }
        assert!(account.is_empty());
    }
}

#[test]
fn what_nobody_tries_any_more_is_over_in_a_week() {
    let week = 7 * 86_400;
    let mut account = Account::default();
    let failed = Failed {
        validation: true,
        ..Failed::default()
    };
    let until = account.failed(UnixTime(0), &Backoff::default(), failed);
    assert!(!account.is_over(until) && !account.is_over(UnixTime(week)));
    assert!(account.is_over(until + WEEK));
    let mut account = Account::default();
    account.issued(UnixTime(100), issue(UnixTime(100), false, false));
    assert!(!account.is_over(UnixTime(week + 99)) && account.is_over(UnixTime(week + 100)));
    // Only failed validations are known of one name of a set.
    let mut account = Account::default();
    account.invalid(UnixTime(0), &Backoff::default());
    assert!(!account.is_over(UnixTime(3_599)) && account.is_over(UnixTime(3_600)));
}

#[test]
fn issues_of_one_second_are_told_apart() {
    let mut account = Account::default();
    for number in 0..4 {
        let at = account.order_at(UnixTime(100));
        assert_eq!(at, UnixTime(100 + number));
        account.wasted(at, issue(at, number > 1, false));
        // Reported once more, it counts once.
        account.wasted(at, issue(at, number > 1, false));
    }
    assert_eq!((account.unscheduled.len(), account.scheduled.len()), (2, 2));
}

#[test]
fn one_scheduled_issue_is_no_entry_of_the_ledger() {
    let mut account = Account::default();
    account.issued(UnixTime(0), issue(UnixTime(0), true, false));
    assert!(account.kept().is_empty() && !account.is_empty());
    account.issued(UnixTime(1), issue(UnixTime(1), true, false));
    assert_eq!(account.kept(), account);
}

#[test]
fn no_name_fails_validation_more_than_five_times_an_hour() {
    // Back-off is shortest close to expiry.
    let leaf = leaf(0, 90 * 86_400);
    let mut now = UnixTime(90 * 86_400 - 3_600);
    let mut account = Account::default();
    let mut tries = Vec::new();
    for _ in 0..20 {
        tries.push(now.0);
        let failed = Failed {
            leaf: Some(&leaf),
            validation: true,
            ..Failed::default()
        };
        now = account.failed(now, &Backoff::default(), failed);
    }
    for window in tries.windows(6) {
        assert!(window[5] - window[0] > 3_600, "{window:?}");
    }
}

#[test]
fn a_name_fails_five_times_an_hour_whoever_asks_and_however_eagerly() {
    let backoff = Backoff::default();
    let (mut account, mut failed) = (Account::default(), Vec::new());
    for minute in 0..180 {
        let now = UnixTime(minute * 60);
        if account.validates_at(now, &backoff, 0).is_none() {
            account.invalid(now, &backoff);
            failed.push(minute);
        }
        // As after a restart.
        let kept = serde_json::to_string(&account.kept()).unwrap();
        account = serde_json::from_str(&kept).unwrap();
    }
    assert_eq!(
        failed,
        [0, 1, 2, 3, 4, 60, 61, 62, 63, 64, 120, 121, 122, 123, 124]
    );
    let now = UnixTime(200 * 60);
    assert_eq!(account.validates_at(now, &backoff, 4), None);
    assert!(
        account
            .validates_at(now, &backoff, 5)
            .is_some_and(|at| at > now)
    );
    account.invalid(now, &backoff);
    assert!(account.validates_at(now, &backoff, 4).is_some());
    // Failures before a validation are no entry any more, but count in this process.
    account.proven(now, &backoff);
    assert!(account.kept().is_empty() && account.validates_at(now, &backoff, 4).is_some());
    let scaled = Backoff {
        max: Duration::from_secs(1),
        ..backoff
    };
    let later = now + Duration::from_secs(5);
    assert_eq!(account.validates_at(later, &scaled, 4), None);
    let names = ["*.a.example", "a.example"].map(|name| name.parse().unwrap());
    let [wild, bare] = names.map(|name: Name| account_of_name("le", &name));
    assert_eq!(wild, bare);
    assert_eq!(bare, account_of("le", &["a.example".parse().unwrap()]));
}

#[test]
fn what_the_ca_asks_for_is_kept_to() {
    let mut account = Account::default();
    let failed = Failed {
        at_least: Some(UnixTime(7_200)),
        wish: Some(6),
        ..Failed::default()
    };
    let until = account.failed(UnixTime(0), &Backoff::default(), failed);
    assert_eq!(until, UnixTime(7_200));
    let held = claim(Reason::Lifetime).hold(UnixTime(7_199), &account);
    assert_eq!(held, Some(Hold::BackOff { until }));
    assert_eq!(
        claim(Reason::Lifetime).hold(UnixTime(7_200), &account),
        None
    );
    let wish = |value| Claim {
        wish: Some(value),
        ..claim(Reason::RenewNow)
    };
    assert_eq!(
        wish(7).hold(UnixTime(1), &account),
        None,
        "renew-now forgets the back-off"
    );
    assert_eq!(
        wish(6).hold(UnixTime(1), &account),
        Some(Hold::BackOff { until }),
        "but once for each value"
    );
}

#[test]
fn no_wish_forgets_a_limit_of_the_ca_and_it_lasts_no_longer_than_it_said() {
    let mut account = Account::default();
    account.limited(UnixTime(100), Some(6));
    let held = |now, wish| {
        let claim = Claim {
            wish,
            ..claim(Reason::RenewNow)
        };
        claim.hold(UnixTime(now), &account)
    };
    let until = UnixTime(100);
    for wish in [None, Some(6), Some(7)] {
        assert_eq!(held(99, wish), Some(Hold::BackOff { until }));
        assert_eq!(held(100, wish), None);
    }
    let week = i64::try_from(WEEK.as_secs()).unwrap();
    assert!(!account.is_over(UnixTime(99 + week)) && account.is_over(UnixTime(100 + week)));
    // From a clock that was ahead.
    assert_eq!(account.limited_until(UnixTime(-2 * week)), None);
    // A fallback has issued; the limit stays.
    account.issued(UnixTime(50), issue(UnixTime(50), true, true));
    assert_eq!(account.limited_until(UnixTime(99)), Some(until));
    account.issued(UnixTime(100), issue(UnixTime(100), true, true));
    assert!(account.is_empty());
}

#[test]
fn a_secret_that_is_wiped_over_and_over_gets_three_certificates_a_week() {
    let mut account = Account::default();
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
    let mut account = Account::default();
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
        (Reason::RenewalInfo, 1 + UNSCHEDULED_A_WEEK),
    ] {
        let mut account = Account::default();
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
fn what_a_clock_noted_that_was_ahead_is_not_believed() {
    let (now, ahead) = (UnixTime(0), UnixTime(70 * 86_400));
    let mut account = Account {
        unscheduled: vec![ahead.0; UNSCHEDULED_A_WEEK],
        ..Account::default()
    };
    account.failed(ahead, &Backoff::default(), Failed::default());
    let held = |now| claim(Reason::NoCertificate).hold(now, &account);
    assert!(matches!(held(ahead), Some(Hold::BackOff { .. })));
    assert_eq!(account.retry_at(now, None), None);
    assert_eq!(held(now), None);
}

#[test]
fn renew_now_in_a_loop_gets_no_second_certificate_within_a_tenth_of_the_lifetime() {
    let leaf = leaf(0, 90 * 86_400);
    let claim = Claim {
        wish: Some(7),
        leaf: Some(&leaf),
        ..claim(Reason::RenewNow)
    };
    let held = claim.hold(UnixTime(86_400), &Account::default());
    assert_eq!(
        held,
        Some(Hold::TooYoung {
            until: UnixTime(9 * 86_400)
        })
    );
    assert_eq!(claim.hold(UnixTime(9 * 86_400), &Account::default()), None);
}

#[test]
fn an_account_is_a_set_of_names_at_an_issuer() {
    let names =
        |texts: &[&str]| -> Vec<Name> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    let account = account_of("le", &names(&["a.example", "b.example"]));
    assert_eq!(
        account,
        account_of("le", &names(&["b.example", "a.example", "A.example"]))
    );
    assert_ne!(account, account_of("le", &names(&["a.example"])));
    assert_ne!(
        account,
        account_of("other", &names(&["a.example", "b.example"]))
    );
    // A CA refuses names that a wildcard covers: they are not requested, and make no other set.
    assert_eq!(
        account_of("le", &names(&["*.a.example", "x.a.example"])),
        account_of("le", &names(&["*.a.example"]))
    );
}

#[test]
fn weeks_scale_by_what_was_issued_and_not_by_what_somebody_put_there() {
    let (minute, day) = (60, 86_400);
    // A self-signed certificate of a minute is put into the Secret repeatedly; ours last for ninety days.
    let mut account = Account::default();
    let mut issued = 0;
    for now in (0..7 * day).step_by(42).map(UnixTime) {
        let placeholder = Leaf {
            self_signed: true,
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
    let mut account = Account::default();
    for now in [0, 1, 2].map(UnixTime) {
        account.issued(now, issue_for(now, 4 * minute));
    }
    let kept = serde_json::to_string(&account.kept()).unwrap();
    let account: Account = serde_json::from_str(&kept).unwrap();
    let held = |now| claim(Reason::NoCertificate).hold(UnixTime(now), &account);
    let until = UnixTime(4 * minute * 7 / 10);
    assert_eq!(held(2), Some(Hold::KeepsComingBack { until }));
    assert_eq!(held(until.0), None);
    // A former version recorded no lifetime: that of our leaf counts.
    let account = Account {
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
    assert!(holds(Some(now)).hold(UnixTime(90), &account).is_none());
}

#[test]
fn what_is_issued_and_not_used_counts_even_as_a_replacement() {
    let mut account = Account::default();
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
        let mut account = Account::default();
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
    let mut account = Account::default();
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
    let mut account = Account::default();
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

//! What the budgets allow, and what they delay.

mod week;

use std::time::Duration;

use super::history::WEEK;
use super::*;
use crate::certificate::Fingerprint;
use crate::text::name::Name;

fn leaf(from: i64, until: i64) -> Leaf {
    Leaf {
        fingerprint: Fingerprint([1; 32]),
        not_before: UnixTime(from),
        not_after: UnixTime(until),
        names: Vec::new(),
        self_signed: false.into(),
        key_type: None,
        public_key: Box::default(),
        issuer: b"CA".as_slice().into(),
        serial: Box::default(),
        authority_key_id: None,
        abilities: Default::default(),
        issuer_ends: None,
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
    let mut account = IssuanceHistory::default();
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
fn what_nobody_tries_any_more_is_over_in_a_week() {
    let week = 7 * 86_400;
    let mut account = IssuanceHistory::default();
    let failed = Failed {
        validation: true,
        ..Failed::default()
    };
    let until = account.failed(UnixTime(0), &Backoff::default(), failed);
    assert!(!account.is_over(until) && !account.is_over(UnixTime(week)));
    assert!(account.is_over(until + WEEK));
    let mut account = IssuanceHistory::default();
    account.issued(UnixTime(100), issue(UnixTime(100), false, false));
    assert!(!account.is_over(UnixTime(week + 99)) && account.is_over(UnixTime(week + 100)));
    // Only failed validations are known of one name of a set.
    let mut account = IssuanceHistory::default();
    account.invalid(UnixTime(0), &Backoff::default());
    assert!(!account.is_over(UnixTime(3_599)) && account.is_over(UnixTime(3_600)));
}

#[test]
fn issues_of_one_second_are_told_apart() {
    let mut account = IssuanceHistory::default();
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
    let mut account = IssuanceHistory::default();
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
    let mut account = IssuanceHistory::default();
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
    let (mut account, mut failed) = (IssuanceHistory::default(), Vec::new());
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
    let mut account = IssuanceHistory::default();
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
    let mut account = IssuanceHistory::default();
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
fn what_a_clock_noted_that_was_ahead_is_not_believed() {
    let (now, ahead) = (UnixTime(0), UnixTime(70 * 86_400));
    let mut account = IssuanceHistory {
        unscheduled: vec![ahead.0; UNSCHEDULED_A_WEEK],
        ..IssuanceHistory::default()
    };
    account.failed(ahead, &Backoff::default(), Failed::default());
    let held = |now| claim(Reason::NoCertificate).hold(now, &account);
    assert!(matches!(held(ahead), Some(Hold::BackOff { .. })));
    assert_eq!(account.retry_at(now, None), None);
    assert_eq!(held(now), None);
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

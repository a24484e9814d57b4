use std::time::Duration;

use super::*;
use crate::index::{Index, LeafFacts, NoLeaf, Source};
use crate::schedule::due::{AT_ONCE, Due, Reason, Suggestion};
use crate::secret::state::RolledOut;
use crate::testing::entries::{self, NOW};

const DAY: Duration = Duration::from_secs(86_400);

/// A certificate of ninety days, thirty of them past, which its workloads have.
fn facts() -> Facts {
    let mut index = Index::default();
    let observed = entries::healthy();
    index.apply(NOW, &key(), observed, Source(0), Duration::ZERO, None);
    Facts::of(index.get(&key()).unwrap())
}

fn key() -> SecretRef {
    SecretRef {
        namespace: "shop".into(),
        name: "tls".into(),
    }
}

fn said(change: impl FnOnce(&mut Facts)) -> StateLine {
    let mut facts = facts();
    change(&mut facts);
    line(NOW, &key(), &facts)
}

fn is_due(facts: &mut Facts) {
    facts.entry.observed.renewal = Ok(Due {
        at: AT_ONCE,
        reason: Reason::MissingName,
    });
}

fn fails(facts: &mut Facts, error: &str) {
    is_due(facts);
    facts.entry.renewal_error = Some(error.into());
    facts.entry.renew_at = NOW + DAY;
}

fn is_unrolled(facts: &mut Facts) {
    facts.entry.observed.rolled_out = Some(RolledOut::None);
}

/// Changes a fact.
type Change = fn(&mut Facts);

#[test]
fn each_state_is_said_in_short_with_its_cause() {
    let cases: [(Change, &str, bool); 23] = [
        (
            |_| {},
            "ok; renews 2023-12-14T22:13Z by its lifetime",
            false,
        ),
        (
            |it| it.entry.observed.heed = AriPolicy::Past,
            "ok; renews 2023-12-14T22:13Z by renew-before",
            false,
        ),
        (
            |it| it.entry.observed.suggestion = Suggestion::At(NOW + DAY * 10),
            "ok; renews 2023-11-24T22:13Z by the CA's window (ARI)",
            false,
        ),
        (
            |it| it.entry.observed.problems = 1,
            "ok; renews 2023-12-14T22:13Z by its lifetime; see state.cert-renew.io/problems",
            false,
        ),
        (
            |it| it.entry.observed.renewal = Err(Never::External),
            "ok; another program is to renew it (issuer: external); ends 2024-01-13T22:13Z",
            false,
        ),
        (
            is_due,
            "due: renews now: the certificate lacks a name of cert-renew.io/names",
            false,
        ),
        (
            |it| {
                is_due(it);
                it.entry.observed.window = Some(NOW + DAY);
            },
            "due: the renewal waits for the change window; opens 2023-11-15T22:13Z",
            true,
        ),
        (
            |it| fails(it, "the CA says no"),
            "renewal_failing: the CA says no; next try 2023-11-15T22:13Z",
            true,
        ),
        (
            |it| {
                fails(it, "too young");
                it.entry.observed.held_until = Some(NOW + DAY);
            },
            "held: until 2023-11-15T22:13Z: the certificate is younger than a tenth of its lifetime",
            true,
        ),
        (
            |it| it.entry.observed.renewal = Err(Never::UnknownIssuer),
            "blocked: the config has no such issuer",
            true,
        ),
        (
            |it| {
                it.entry.observed.renewal = Err(Never::NotAllowed);
                it.blocked_by[0] = Some("cert-renew.io/names: no".into());
            },
            "blocked: cert-renew.io/names: no",
            true,
        ),
        (
            |it| {
                it.entry.observed.blocked = Blocks::Issue;
                it.blocked_by[0] = Some("cert-renew.io/names: no".into());
            },
            "blocked: until 2023-12-14T22:13Z: cert-renew.io/names: no",
            true,
        ),
        (
            |it| it.entry.observed.leaf = Err(NoLeaf::Unreadable),
            "unreadable: what is in it is no certificate",
            true,
        ),
        (
            |it| {
                it.entry.pair_broken = true;
                it.entry.rollout_error = Some("the key is another's".into());
            },
            "pair_broken: the key is another's",
            true,
        ),
        (
            |it| it.entry.observed.renewal = Err(Never::Paused),
            "paused: cert-renew.io/paused is set; ends 2024-01-13T22:13Z",
            true,
        ),
        (
            |it| it.entry.observed.renewal = Err(Never::AllPaused),
            "paused: the config pauses everything; ends 2024-01-13T22:13Z",
            true,
        ),
        (
            |it| {
                it.entry.observed.renewal = Err(Never::External);
                it.entry.observed.rollout_blocked = true;
            },
            "paused: no workload is restarted; ends 2024-01-13T22:13Z",
            true,
        ),
        (is_unrolled, RENEWED, false),
        (
            |it| {
                is_unrolled(it);
                it.entry.observed.window = Some(NOW + DAY);
            },
            "ok; restart of workloads waits for the change window; opens 2023-11-15T22:13Z",
            true,
        ),
        (
            |it| {
                is_unrolled(it);
                it.entry.observed.halted = true;
                it.halted_at = Some("deployment/web".into());
            },
            "rollout_failing: halted: deployment/web did not take the certificate up; then: cert-renew resume shop/tls",
            true,
        ),
        (
            |it| {
                is_unrolled(it);
                it.entry.observed.halted = true;
                it.halted_at = Some("deployment/web".into());
                it.operator = Some("ops".into());
            },
            "rollout_failing: halted: deployment/web did not take the certificate up; then: cert-renew resume shop/tls \
             --operator-namespace ops",
            true,
        ),
        (
            |it| {
                is_unrolled(it);
                it.entry.rollout_error = Some("deployment/web is paused".into());
            },
            "rollout_failing: deployment/web is paused",
            true,
        ),
        (
            |it| {
                it.entry.observed.renewal = Err(Never::External);
                let not_after = NOW - DAY;
                let leaf = LeafFacts {
                    not_after,
                    ..it.entry.observed.leaf.unwrap()
                };
                it.entry.observed.leaf = Ok(leaf);
                it.entry.observed.rolled_out = Some(leaf.held());
            },
            "expired: 2023-11-13T22:13Z; another program is to renew it (issuer: external)",
            true,
        ),
    ];
    for (change, expected, is_news) in cases {
        let line = said(change);
        assert_eq!(line.text(), expected);
        assert_eq!(line.is_news(None), is_news, "{expected}");
        assert!(!line.is_news(Some(expected)), "{expected}");
    }
}

#[test]
fn for_what_a_restart_waits_is_read_from_the_line_that_says_it() {
    let shut: Change = |it| it.entry.observed.window = Some(NOW + DAY);
    let paused: Change = |it| it.entry.observed.rollout_blocked = true;
    for (change, expected) in [(shut, "the change window"), (paused, "the end of a pause")] {
        let line = said(|it| {
            is_unrolled(it);
            change(it);
        });
        let said = restart_waits(line.text()).unwrap();
        assert!(said.contains(expected), "{said}");
    }
    for text in [said(|_| {}).text(), said(is_unrolled).text(), RENEWED, ""] {
        assert_eq!(restart_waits(text), None, "{text}");
    }
}

#[test]
fn the_first_word_is_the_state_that_everybody_shows() {
    let index = entries::index();
    for (row, entry) in index.iter() {
        let key = index.key_of(row).unwrap();
        let state = State::of(&entry, NOW).as_str();
        let line = line(NOW, &key, &Facts::of(entry));
        let first = line.text().split([':', ';']).next().unwrap();
        let passing = line.text() == RENEWED;
        assert!(first == state || passing, "{key}: {state}, {}", line.text());
        assert!(line.text().chars().count() <= LONGEST, "{}", line.text());
    }
}

#[test]
fn a_long_cause_is_cut_and_the_way_out_stays() {
    let line = said(|it| fails(it, &"ä\n".repeat(500)));
    assert_eq!(line.text().chars().count(), LONGEST);
    assert!(
        line.text().ends_with("…; next try 2023-11-15T22:13Z"),
        "{}",
        line.text()
    );
    assert!(!line.text().contains('\n'));
}

#[test]
fn a_date_is_no_news_and_another_cause_is() {
    let fails_at = |at: UnixTime, why: &'static str| {
        said(move |it| {
            fails(it, why);
            it.entry.renew_at = at;
        })
    };
    let written = fails_at(NOW + DAY, "too young").text().to_owned();
    assert!(!fails_at(NOW + DAY * 2, "too young").is_news(Some(&written)));
    assert!(fails_at(NOW + DAY, "too many").is_news(Some(&written)));
    // What is well again is told, and a healthy Secret without a line waits for its next write.
    assert!(said(|_| {}).is_news(Some(&written)));
    assert!(!said(|_| {}).is_news(None));
    assert!(!said(|_| {}).is_news(Some("ok; renews 2020-01-01T00:00Z by the CA's window")));
    // Work that is under way writes its own end.
    assert!(!said(is_due).is_news(Some(&written)));
    assert!(!said(is_unrolled).is_news(None));
}

#[test]
fn problems_are_one_a_line_and_bounded() {
    let problem = |value: &str| Problem {
        key: keys::NAMES.into(),
        value: value.into(),
        expected: "expected another".into(),
        blocks: Blocks::Nothing,
    };
    assert_eq!(problems(&[]), None);
    let two = problems(&[problem("a"), problem("b")]).unwrap();
    assert_eq!(two.lines().count(), 2);
    assert!(
        two.starts_with("cert-renew.io/names: a: expected another\n"),
        "{two}"
    );
    let long = problem(&"ä".repeat(LONGEST_PROBLEMS));
    let long = problems([&long]).unwrap();
    assert!(long.len() <= LONGEST_PROBLEMS + "…".len(), "{}", long.len());
}

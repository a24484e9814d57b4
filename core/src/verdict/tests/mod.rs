mod next;

use serde_json::json;

use super::*;
use crate::schedule::due::Suggestion;
use crate::testing::entries::{self, NOW, index};

const CONFIG: &str = "
issuers:
  le:
    directory: https://ca.example/dir
    allow: [{namespaces: [shop], names: ['shop.example.com', '*.shop.example.com']}]
";

fn verdicts() -> Vec<Verdict> {
    let index = index();
    let rows: Vec<Row> = index.iter().map(|(row, _)| row).collect();
    let rows = rows.into_iter();
    rows.filter_map(|row| Verdict::of_row(NOW, &index, row, 2))
        .collect()
}

fn verdict(name: &str) -> Verdict {
    let mut all = verdicts().into_iter();
    all.find(|it| *it.name == *name).unwrap()
}

#[test]
fn each_state_is_recognised() {
    for (name, expected) in [
        ("expired", State::Expired),
        ("failing", State::RenewalFailing),
        ("absent", State::Absent),
        ("garbled", State::Unreadable),
        ("expiring", State::Expiring),
        ("failing-rollout", State::RolloutFailing),
        ("halted", State::RolloutFailing),
        ("nameless", State::Blocked),
        ("misread", State::Blocked),
        ("due", State::Due),
        ("held", State::Held),
        ("paused", State::Paused),
        ("healthy", State::Ok),
        ("odd", State::Ok),
    ] {
        assert_eq!(verdict(name).state, expected, "{name}");
    }
}

#[test]
fn the_rollout_is_told_in_a_word() {
    for (name, expected) in [
        ("healthy", Rollout::Done),
        ("rolling", Rollout::Pending),
        ("windowed", Rollout::Waits),
        ("halted", Rollout::Halted),
        ("first-sight", Rollout::None),
        ("absent", Rollout::None),
    ] {
        assert_eq!(verdict(name).rollout, expected, "{name}");
    }
}

#[test]
fn each_says_why_when_and_what_to_do_next() {
    let in_days = |days: u32| Some(NOW + Duration::from_secs(86_400) * days);
    for (name, why, renews, renews_why, next) in [
        (
            "healthy",
            "renewed when it is due",
            in_days(30),
            "Lifetime",
            None,
        ),
        (
            "failing",
            "the CA has paused these names",
            in_days(1),
            "Lifetime",
            Some("kubectl -n shop events --for secret/failing"),
        ),
        ("due", "it waits for its turn", Some(NOW), "Lifetime", None),
        (
            "held",
            "it is held until 2023-11-22",
            in_days(8),
            "RenewNow",
            Some("cert-renew renew shop/held --force"),
        ),
        (
            "misread",
            "renewed only when little life is left, at 2023-12-14",
            in_days(30),
            "LittleLifeLeft",
            None,
        ),
        (
            "nameless",
            "never renewed: the names to ask for are unknown",
            None,
            "NoNames",
            Some("kubectl -n shop annotate secret nameless --overwrite cert-renew.io/names=NAMES"),
        ),
        (
            "paused",
            "cert-renew.io/paused is set",
            None,
            "Paused",
            Some("kubectl -n shop annotate secret paused --overwrite cert-renew.io/paused-"),
        ),
        (
            "expiring",
            "another program is to renew it",
            None,
            "External",
            Some(
                "kubectl -n shop get secret expiring -o jsonpath='{.metadata.managedFields[*].manager}'",
            ),
        ),
        (
            "halted",
            "its rollout is halted",
            in_days(30),
            "Lifetime",
            Some("cert-renew resume shop/halted"),
        ),
        (
            "odd",
            "another program is to renew it",
            None,
            "External",
            Some("kubectl -n shop annotate secret odd --overwrite cert-renew.io/key-type=VALUE"),
        ),
        (
            "windowed",
            "when the change window opens",
            in_days(30),
            "Lifetime",
            None,
        ),
    ] {
        let verdict = verdict(name);
        assert!(verdict.reason.contains(why), "{name}: {}", verdict.reason);
        assert_eq!(verdict.renews, renews, "{name}");
        assert_eq!(&*verdict.renews_why, renews_why, "{name}");
        assert_eq!(verdict.next.as_deref(), next, "{name}");
        let known = Why::meaning(&verdict.renews_why);
        assert!(!known.contains("another version"), "{name}");
    }
    // What is held is no error.
    assert_eq!(verdict("held").last_error, None);
}

#[test]
fn a_date_that_the_ca_moves_is_told_with_its_word() {
    let (mut index, mut observed) = (Index::default(), entries::healthy());
    let at = NOW + Duration::from_secs(86_400) * 10;
    observed.suggestion = Suggestion::At(at);
    entries::add(&mut index, "tls", observed);
    let (row, _) = index.iter().next().unwrap();
    let verdict = Verdict::of_row(NOW, &index, row, 0).unwrap();
    assert_eq!(
        (verdict.renews, &*verdict.renews_why),
        (Some(at), "RenewalInfo")
    );
    assert_eq!(
        Why::meaning(&verdict.renews_why),
        "by the CA's window (ARI)"
    );
}

#[test]
fn what_nothing_declares_any_more_is_blocked_with_and_without_a_certificate() {
    for (leaf, reason) in [
        (
            Ok(entries::leaf(30, 60)),
            "it is never renewed: what declared the certificate is gone",
        ),
        (
            Err(NoLeaf::Absent),
            "it is never renewed: what declared the certificate is gone",
        ),
    ] {
        let (mut index, mut observed) = (Index::default(), entries::healthy());
        (observed.renewal, observed.leaf) = (Err(Never::Undeclared), leaf);
        entries::add(&mut index, "tls", observed);
        let (row, _) = index.iter().next().unwrap();
        let verdict = Verdict::of_row(NOW, &index, row, 0).unwrap();
        assert_eq!((verdict.state, &*verdict.reason), (State::Blocked, reason));
    }
}

#[test]
fn what_is_never_renewed_says_so_although_its_rollouts_wait_too() {
    let (mut index, mut observed) = (Index::default(), entries::healthy());
    (observed.renewal, observed.blocked) = (Err(Never::UnknownIssuer), Blocks::Rollout);
    entries::add(&mut index, "tls", observed);
    let (row, _) = index.iter().next().unwrap();
    let verdict = Verdict::of_row(NOW, &index, row, 0).unwrap();
    assert_eq!(
        &*verdict.reason,
        "it is never renewed: the config has no such issuer; and an annotation is invalid: its rollouts wait \
         until that is fixed"
    );
}

#[test]
fn a_pause_is_told_of_what_another_program_renews_too() {
    let of = |blocked, itself| {
        let (mut index, mut observed) = (Index::default(), entries::healthy());
        (observed.renewal, observed.rollout_blocked) = (Err(Never::External), true);
        (observed.blocked, observed.rolled_out) = (blocked, Some(RolledOut::None));
        observed.pauses_itself = itself;
        entries::add(&mut index, "tls", observed);
        let (row, _) = index.iter().next().unwrap();
        Verdict::of_row(NOW, &index, row, 0).unwrap()
    };
    let paused = of(Blocks::Nothing, true);
    assert_eq!(
        (paused.state, paused.rollout),
        (State::Paused, Rollout::Waits)
    );
    assert_eq!(
        &*paused.reason,
        "no workload is restarted while it is paused; another program is to renew it (issuer: external)"
    );
    let by_itself = "kubectl -n shop annotate secret tls --overwrite cert-renew.io/paused-";
    assert_eq!(paused.next.as_deref(), Some(by_itself));
    let by_config = of(Blocks::Nothing, false).next.unwrap();
    assert!(by_config.ends_with("edit configmap cert-renew-config"));
    assert_eq!(of(Blocks::Rollout, false).state, State::Blocked);
    let now: UnixTime = "2026-02-01T00:00:00Z".parse().unwrap();
    let annotations = json!({"cert-renew.io/issuer": "external", "cert-renew.io/paused": "true"});
    let alone = of_secret(now, &secret(annotations), None).unwrap();
    assert_eq!(alone.state, State::Paused);
    assert_eq!(alone.next.as_deref(), Some(by_itself));
    let config = "
paused: true
issuers:
  letsencrypt:
    directory: https://ca.example/directory
    contact: ops@example.com
    allow: [{namespaces: [shop], names: ['*.shop.example']}]
";
    let config = Config::parse(config).unwrap();
    let external = secret(json!({"cert-renew.io/issuer": "external"}));
    let all = of_secret(now, &external, Some(&config)).unwrap();
    assert_eq!(all.state, State::Paused);
    assert_eq!(
        all.next.as_deref(),
        Some("kubectl -n OPERATOR-NAMESPACE edit configmap cert-renew-config")
    );
}

/// One place said that two of three pods serve the new certificate while they were still restarted for it.
#[test]
fn what_pods_were_seen_to_serve_is_told_of_their_certificate_alone() {
    let of = |rolled_out| {
        let (mut index, mut observed) = (Index::default(), entries::healthy());
        if let Some(record) = rolled_out {
            observed.rolled_out = Some(record);
        }
        let key = entries::add(&mut index, "tls", observed);
        let shown = Shown {
            used_by: Some("2023-11-14T22:13:20Z deployment/web web:443=2/3".into()),
            ..Shown::default()
        };
        index.show(&key, shown);
        let (row, _) = index.iter().next().unwrap();
        let used_by = Verdict::of_row(NOW, &index, row, 0).unwrap().used_by;
        used_by.unwrap()
    };
    assert_eq!(of(None).proven.map(|it| it.served), Some(2));
    let pending = of(Some(RolledOut::None));
    assert_eq!((pending.proven, pending.workloads.len()), (None, 1));
}

#[test]
fn a_report_comes_back_as_it_was_written() {
    let report = Report {
        version: Some("0.1.0".into()),
        class: Some("default".into()),
        operator_namespace: None,
        replica: Some("pod".into()),
        leader: Leader::at(NOW, Some("pod_0a"), NOW, Duration::from_secs(15)),
        as_of: NOW,
        notices: Vec::new(),
        unmanaged: Unmanaged::default(),
        matching: 3,
        left_out: 1,
        certificates: verdicts(),
    };
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    assert!(text.contains("\"leader\":{\"name\":\"pod\",\"silentSince\":null}"));
    let silent = Leader::at(
        NOW,
        Some("pod_0a"),
        NOW - Duration::from_secs(16),
        Duration::from_secs(15),
    );
    assert_eq!(
        (silent.name, silent.silent_since),
        (None, Some(NOW - Duration::from_secs(16)))
    );
}

fn secret(annotations: serde_json::Value) -> ThinSecret {
    use base64::Engine as _;
    let certificate = base64::prelude::BASE64_STANDARD.encode(crate::testing::file("good.pem"));
    let metadata = json!({"namespace": "shop", "name": "tls", "annotations": annotations});
    // In the API server's order: metadata first.
    let text = format!(
        r#"{{"metadata": {metadata}, "type": "kubernetes.io/tls", "data": {{"tls.crt": "{certificate}"}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

#[test]
fn what_a_secret_says_is_judged_by_the_same_rules_without_an_operator() {
    let now: UnixTime = "2026-02-01T00:00:00Z".parse().unwrap();
    let config = Config::parse(CONFIG).unwrap();
    let of = |annotations, config| of_secret(now, &secret(annotations), config);
    let le = json!({"cert-renew.io/issuer": "le"});
    assert_eq!(of(json!({}), Some(&config)), None);
    // Names that the config does not grant.
    assert_eq!(of(le.clone(), Some(&config)).unwrap().state, State::Blocked);
    // Nobody knows what the config says.
    let alone = of(le, None).unwrap();
    assert_eq!(
        (alone.state, alone.class.as_deref()),
        (State::Ok, Some("default"))
    );
    assert_eq!(alone.more_names + alone.names.len(), 4);
    let unknown = json!({"cert-renew.io/issuer": "nosuch"});
    let unknown = of(unknown, Some(&config)).unwrap();
    assert_eq!((unknown.state, unknown.class), (State::Blocked, None));
    assert!(unknown.problems[0].contains("expected an issuer of the config (le)"));
    let named = |more: serde_json::Value| {
        let mut all =
            json!({"cert-renew.io/issuer": "le", "cert-renew.io/names": "shop.example.com"});
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        of(all, Some(&config)).unwrap()
    };
    assert_eq!(named(json!({})).state, State::Ok);
    let misread = named(json!({"cert-renew.io/key-type": "rsa"}));
    assert_eq!(misread.state, State::Blocked);
    let next = misread.next.unwrap();
    assert!(
        next.ends_with("--overwrite cert-renew.io/key-type=VALUE"),
        "{next}"
    );
    // Asked for, and a month old: renewed at once.
    let asked = named(json!({"cert-renew.io/renew-now": "1"}));
    assert_eq!((asked.state, asked.renews), (State::Due, Some(now)));
    let other = named(json!({"cert-renew.io/class": "edge"}));
    assert_eq!(other.class.as_deref(), Some("edge"));
    // A day old: held, unless it is forced.
    let young: UnixTime = "2026-01-02T00:00:00Z".parse().unwrap();
    for (value, expected) in [("1", State::Held), ("force-1", State::Due)] {
        let annotations = json!({"cert-renew.io/issuer": "le", "cert-renew.io/renew-now": value});
        let verdict = of_secret(young, &secret(annotations), None).unwrap();
        assert_eq!(verdict.state, expected, "{value}");
    }
    let halted = of(
        json!({
            "cert-renew.io/issuer": "external",
            "state.cert-renew.io/rolled-out": format!("{} 2026-04-01T00:00:00Z", "ab".repeat(32)),
            "state.cert-renew.io/rollout-halted": format!("deployment/web {}", "cd".repeat(32)),
        }),
        None,
    );
    let halted = halted.unwrap();
    assert_eq!(
        (halted.state, halted.rollout),
        (State::RolloutFailing, Rollout::Halted)
    );
}

#[test]
fn the_past_is_told_in_order_and_nothing_twice() {
    use detail::{Moment, Told};
    let mut index = Index::default();
    let mut observed = entries::healthy();
    observed.renewed = Some(NOW - Duration::from_secs(5_000));
    let key = entries::add(&mut index, "tls", observed);
    let (row, _) = index.iter().next().unwrap();
    let told = |ago: u64, reason: &str| Told {
        at: NOW - Duration::from_secs(ago),
        kind: "Normal".into(),
        reason: reason.into(),
        message: "told".into(),
    };
    let remembered = Remembered {
        events: Some(vec![
            told(4_990, "Renewed"),
            told(2_000, "Renewed"),
            told(100, "RolledOut"),
            told(90, "Adopted"),
        ]),
        past: vec![Moment::new(
            NOW - Duration::from_secs(900),
            "a renewal failed",
            "ledger",
        )],
        ..Remembered::default()
    };
    let detail = Detail::of_row(&index, row, remembered).unwrap();
    let past: Vec<_> = { detail.past.iter() }
        .map(|it| (NOW.since(it.at).as_secs(), &*it.what, &*it.by))
        .collect();
    let written = "a new certificate was written";
    assert_eq!(
        past[1..],
        [
            (5_000, written, "secret"),
            (2_000, written, "event"),
            (900, "a renewal failed", "ledger"),
            (100, "the rollout was done", "event"),
        ],
        "{key}"
    );
    assert_eq!(past[0].2, "certificate");
}

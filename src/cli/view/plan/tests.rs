use cert_renew_core::testing::entries::{NOW, index};
use cert_renew_core::verdict::unmanaged::Unmanaged;
use cert_renew_core::verdict::{self, Leader, Report, Verdict};

use super::*;
use crate::cli::golden;

/// What an operator says of these.
pub(super) fn report(certificates: Vec<Verdict>) -> Report {
    Report {
        version: None,
        class: None,
        operator_namespace: None,
        replica: None,
        leader: Leader::default(),
        as_of: NOW,
        notices: Vec::new(),
        unmanaged: Unmanaged::default(),
        matching: certificates.len(),
        left_out: 0,
        certificates,
    }
}

#[test]
fn dates_for_which_the_answer_had_no_room_are_counted() {
    let index = index();
    let rows = index.iter().map(|(row, _)| row);
    let verdicts: Vec<Verdict> = { rows }
        .filter_map(|row| Verdict::of_row(NOW, &index, row, 0))
        .collect();
    let row = |it: &Verdict| Row {
        at: UnixTime::NEVER,
        secret: SecretRef::new(&*it.namespace, &*it.name),
        why: String::new(),
        held: None,
        names: Vec::new(),
        rollout: Vec::new(),
        more: 0,
        only_for_ca: Vec::new(),
        left_behind: Vec::new(),
        verify: None,
        against: Vec::new(),
    };
    let mut rows: Vec<Row> = verdicts.iter().map(row).collect();
    let answered = verdicts[2..].to_vec();
    for (left_out, expected) in [(2, 2), (0, 0)] {
        let report = Report {
            left_out,
            ..report(answered.clone())
        };
        assert_eq!(take(&report, &mut rows), expected);
    }
    let words: Vec<&str> = rows.iter().map(|row| &*row.why).collect();
    assert_eq!(words[..2], ["", ""]);
    assert!(words[2..].iter().all(|why| !why.is_empty()), "{words:?}");
}

#[test]
fn without_an_operator_a_plan_has_the_next_try_as_the_status_has() {
    use base64::Engine as _;
    let config = "issuers: {le: {directory: 'https://ca.example/', allow: [{namespaces: [shop], \
                  names: ['**.example.com', 'example.com', '0.0.0.0/0', '::/0']}]}}";
    let config = Config::parse(config).unwrap();
    let pem = include_bytes!("../../../../testdata/certificates/good.pem");
    let certificate = base64::prelude::BASE64_STANDARD.encode(pem);
    let annotations = serde_json::json!({
        "cert-renew.io/issuer": "le",
        "cert-renew.io/renew-now": "today",
        "state.cert-renew.io/last-error": "no way",
        "state.cert-renew.io/retry-at": "2026-02-01T00:10:00Z",
    });
    let metadata =
        serde_json::json!({"namespace": "shop", "name": "tls", "annotations": annotations});
    let text = format!(
        r#"{{"metadata": {metadata}, "type": "kubernetes.io/tls", "data": {{"tls.crt": "{certificate}"}}}}"#
    );
    let secret: ThinSecret = serde_json::from_str(&text).unwrap();
    let now: UnixTime = "2026-02-01T00:00:00Z".parse().unwrap();
    let key = SecretRef::new("shop", "tls");
    let assessment = assess::of_thin(now, &key, &secret, &config).unwrap();
    let status = verdict::of_secret(now, &secret, Some(&config)).unwrap();
    let (at, why, held) = due(now, &secret, &assessment, Some(&config));
    assert_eq!((Some(at), &*why), (status.renews, &*status.renews_why));
    let next = "the next try is at 2026-02-01T00:10:00Z: no way";
    assert_eq!(held.as_deref(), Some(next));
    // What would be with another file is another thing.
    let (at, why, held) = due(now, &secret, &assessment, None);
    assert!(
        at <= now && why == "RenewNow" && held.is_none(),
        "{at} {why} {held:?}"
    );
}

#[test]
fn the_plan_says_when_why_and_what_rolls() {
    let now: UnixTime = "2026-02-01T00:00:00Z".parse().unwrap();
    let row = |name: &str, at: &str, why: &str, workloads: &[&str]| Row {
        at: at.parse().unwrap_or(UnixTime::NEVER),
        secret: SecretRef {
            namespace: "shop".into(),
            name: name.into(),
        },
        why: why.into(),
        held: None,
        names: vec![format!("{name}.example")],
        rollout: workloads
            .iter()
            .map(|workload| Rolled {
                workload: (*workload).into(),
                how: Some("restart"),
                why: "volume tls".into(),
            })
            .collect(),
        more: 0,
        only_for_ca: if name == "later" {
            vec!["deployment/trust".into()]
        } else {
            Vec::new()
        },
        left_behind: if name == "due" {
            vec!["pod/debug".into(), "job/import".into()]
        } else {
            Vec::new()
        },
        verify: Some("web:443".into()).filter(|_| name == "due"),
        against: Vec::new(),
    };
    let rows = || {
        vec![
            row("paused", "never", "Paused", &[]),
            row(
                "later",
                "2026-03-01T00:00:00Z",
                "Lifetime",
                &["deployment/web"],
            ),
            row(
                "due",
                "2026-01-01T00:00:00Z",
                "MissingName",
                &["deployment/a", "daemonset/b"],
            ),
        ]
    };
    let expected = "\
NAMESPACE  NAME    RENEWS                WHY          NAMES           RESTARTS                                                            VERIFIES
shop       due     now                   MissingName  due.example     deployment/a(restart: volume tls),daemonset/b(restart: volume tls)  web:443
shop       later   2026-03-01T00:00:00Z  Lifetime     later.example   deployment/web(restart: volume tls)                                 -
shop       paused  never                 Paused       paused.example  -                                                                   -
Lifetime: by its lifetime
MissingName: the certificate lacks a name of cert-renew.io/names
Paused: cert-renew.io/paused is set
shop/due: nobody restarts pod/debug, job/import
shop/later: only another ca.crt restarts deployment/trust
";
    let pipe = Screen::default();
    let printed = text(now, rows(), Output::Table, pipe).unwrap();
    assert_eq!(printed, expected);
    let json = text(now, rows(), Output::Json, pipe).unwrap();
    golden("plan.json", &json);
    // The same facts as named fields.
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    for (line, row) in printed.lines().skip(1).zip(json.as_array().unwrap()) {
        let of = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        let (namespace, name) = (of(&row["namespace"]), of(&row["name"]));
        let mut facts = vec![namespace, name];
        facts.extend(["why", "verify"].map(|field| of(&row[field])));
        facts.push(match row["renews"].as_str() {
            Some("2026-02-01T00:00:00Z") => "now".into(),
            Some(at) => at.into(),
            None => "never".into(),
        });
        facts.extend(row["names"].as_array().unwrap().iter().map(of));
        for step in row["rollout"].as_array().unwrap() {
            let [workload, how, why] = ["workload", "how", "why"].map(|it| of(&step[it]));
            facts.push(format!("{workload}({how}: {why})"));
        }
        for fact in facts {
            assert!(line.contains(&fact), "{fact}: {line}");
        }
    }
    let terminal = Screen {
        columns: Some(100),
        ..pipe
    };
    let cut = text(now, rows(), Output::Table, terminal).unwrap();
    assert!(cut.contains("deployment/a(r") && cut.contains('…'), "{cut}");
    assert!(cut.lines().all(|line| line.chars().count() <= 100), "{cut}");
    let wide = text(now, rows(), Output::Wide, terminal).unwrap();
    assert_eq!(wide, expected, "wide is never cut");
}

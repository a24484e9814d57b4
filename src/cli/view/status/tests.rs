use base64::Engine as _;
use cert_renew_core::verdict::unmanaged::Unmanaged;
use cert_renew_core::verdict::{Leader, of_secret};
use serde_json::json;

use super::*;
use crate::cli::golden;

fn secret(name: &str, certificate: &str, annotations: &serde_json::Value) -> ThinSecret {
    let path = format!(
        "{}/testdata/certificates/{certificate}",
        env!("CARGO_MANIFEST_DIR")
    );
    let bytes = std::fs::read(path).unwrap_or_default();
    let crt = base64::prelude::BASE64_STANDARD.encode(bytes);
    // In the API server's order: metadata first.
    let text = format!(
        r#"{{"metadata": {}, "type": "kubernetes.io/tls", "data": {{"tls.crt": "{crt}"}}}}"#,
        json!({"namespace": "shop", "name": name, "annotations": annotations})
    );
    serde_json::from_str(&text).unwrap()
}

/// What is said of these Secrets without an operator.
fn report() -> Report {
    let now: UnixTime = "2026-02-01T00:00:00Z".parse().unwrap();
    let le = json!({"cert-renew.io/issuer": "letsencrypt"});
    let good = certificate_fingerprint();
    let certificates: Vec<_> = [
        secret(
            "new",
            "none",
            &json!({"cert-renew.io/issuer": "letsencrypt", "cert-renew.io/names": "a.example"}),
        ),
        secret(
            "fine",
            "good.pem",
            &json!({
                "cert-renew.io/issuer": "letsencrypt",
                "state.cert-renew.io/rolled-out": format!("{good} 2026-04-01T00:00:00Z"),
                "state.cert-renew.io/issued-by":
                    r#"{"issuer":"letsencrypt","names":[],"account":"https://ca.example/acct/7"}"#,
                "state.cert-renew.io/used-by": "2026-01-01T00:00:10Z deployment/web statefulset/db +2 web:443=3/4",
            }),
        ),
        secret(
            "failing",
            "good.pem",
            &json!({
                "cert-renew.io/issuer": "letsencrypt",
                "cert-renew.io/renew-now": "today",
                "state.cert-renew.io/last-error": "no\u{1b}[2J way",
                "state.cert-renew.io/retry-at": "2026-02-01T00:10:00Z",
                "state.cert-renew.io/rolled-out": "none",
                "state.cert-renew.io/issued-by":
                    r#"{"issuer":"letsencrypt","names":[],"account":"an\u001b account"}"#,
            }),
        ),
        secret(
            "watched",
            "good.pem",
            &json!({"cert-renew.io/issuer": "external"}),
        ),
        secret("unannotated", "good.pem", &json!({})),
        secret(
            "misspelt",
            "good.pem",
            &json!({"cert-renew.io/issuer": "letsencrypt", "cert-renew.io/key-type": "rsa"}),
        ),
        secret("other", "none", &le),
    ]
    .iter()
    .filter_map(|secret| of_secret(now, secret, None))
    // As for more than one.
    .map(|verdict| Verdict {
        detail: None,
        ..verdict
    })
    .collect();
    Report {
        version: None,
        class: None,
        operator_namespace: None,
        replica: None,
        leader: Leader::default(),
        as_of: now,
        notices: Vec::new(),
        unmanaged: Unmanaged::default(),
        matching: certificates.len(),
        left_out: 0,
        certificates,
    }
}

#[test]
fn the_table_says_what_the_verdicts_say() {
    let report = report();
    let pipe = Screen::default();
    golden("status.txt", &table(&report, Output::Table, pipe));
    let wide = table(&report, Output::Wide, pipe);
    golden("status-wide.txt", &wide);
    let json = Output::Json.of_program(&report).unwrap().unwrap();
    golden("status.json", &json);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let yaml = Output::Yaml.of_program(&report).unwrap().unwrap();
    let yaml: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(json, yaml);
    // The same facts, in words and as named fields.
    let rows = json["certificates"].as_array().unwrap();
    for (line, row) in wide.lines().skip(1).zip(rows) {
        let names = row["names"].as_array().unwrap().iter();
        let users = row["usedBy"]["workloads"].as_array().into_iter().flatten();
        let users = users.map(|it| &it["workload"]);
        let proven = &row["usedBy"]["proven"];
        let of = |field: &str| row[field].as_str();
        let facts = [
            "namespace",
            "name",
            "state",
            "issuer",
            "rollout",
            "renewsWhy",
            "notBefore",
            "nextTry",
        ];
        let facts = facts.into_iter().filter_map(of);
        let facts = facts.chain(names.chain(users).filter_map(|it| it.as_str()));
        for fact in facts.chain(proven["service"].as_str()) {
            assert!(line.contains(fact), "{fact}: {line}");
        }
        if let Some(error) = of("lastError") {
            assert!(line.ends_with(&*plain(error)), "{error}: {line}");
        }
        let is_now = of("renews") == Some(&*report.as_of.to_string());
        assert_eq!(is_now, line.contains("  now  "), "{line}");
    }
}

#[test]
fn a_terminal_gets_colours_and_lines_that_fit() {
    let report = report();
    let terminal = Screen {
        colours: false,
        columns: Some(80),
    };
    for line in table(&report, Output::Table, terminal).lines() {
        assert!(line.chars().count() <= 80 + 16, "{line}");
    }
    let wide = table(&report, Output::Wide, terminal);
    assert_eq!(wide, table(&report, Output::Wide, Screen::default()));
    let painted = Screen {
        colours: true,
        ..terminal
    };
    let coloured = table(&report, Output::Table, painted);
    assert!(
        coloured.contains("\u{1b}[31mrenewal_failing\u{1b}[0m"),
        "{coloured}"
    );
    let mut many = report.clone();
    many.certificates[0].names = (0..12)
        .map(|it| format!("host-{it}.example").into())
        .collect();
    let wide = table(&many, Output::Wide, terminal);
    let line = wide.lines().nth(1).unwrap();
    assert!(
        line.contains("host-0.example") && line.contains('…'),
        "{line}"
    );
}

#[test]
fn the_class_is_shown_only_where_there_are_several() {
    let mut report = report();
    let pipe = Screen::default();
    assert!(!table(&report, Output::Table, pipe).contains("CLASS"));
    report.certificates[1].class = Some("edge".into());
    let several = table(&report, Output::Table, pipe);
    assert!(
        several.contains("CLASS") && several.contains("edge"),
        "{several}"
    );
}

#[test]
fn the_flags_select_and_sort() {
    let ask = |flags: &[&str]| {
        let args = ["status"].into_iter().chain(flags.iter().copied());
        let args = Args::try_parse_from(args).unwrap();
        let mut report = report();
        args.select(&mut report);
        let names = report.certificates.iter().map(|it| it.name.to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(
        ask(&[]),
        ["failing", "fine", "misspelt", "new", "other", "watched"]
    );
    assert_eq!(ask(&["--sort-by", "state"])[0], "failing");
    assert_eq!(ask(&["--sort-by", "expires"])[4..], ["new", "other"]);
    assert_eq!(ask(&["--expiring", "30d"]), [""; 0]);
    assert_eq!(ask(&["--expiring", "60d"]).len(), 4);
    assert!(Args::try_parse_from(["status", "--expiring", "soon"]).is_err());
    // A watch asks the same of each Secret that changes.
    let report = report();
    let fine = report.certificates.iter().find(|it| *it.name == *"fine");
    for (flags, expected) in [(vec![], true), (vec!["--expiring", "30d"], false)] {
        let args = Args::try_parse_from([vec!["status"], flags].concat()).unwrap();
        assert_eq!(args.takes(report.as_of, fine.unwrap()), expected);
    }
}

#[test]
fn a_single_name_is_a_screen_unless_a_flag_asks_for_more() {
    let is_of_one = |flags: &[&str]| {
        let args = ["status", "shop/tls"].into_iter();
        let args = args.chain(flags.iter().copied());
        Args::try_parse_from(args).unwrap().is_of_one()
    };
    assert!(is_of_one(&[]));
    for flags in [
        &["--expiring", "30d"][..],
        &["-l", "a=b"],
        &["--watch"],
        &["--no-headers"],
        &["-o", "wide"],
        &["shop/other"],
    ] {
        assert!(!is_of_one(flags), "{flags:?}");
    }
}

fn certificate_fingerprint() -> String {
    let path = format!(
        "{}/testdata/certificates/good.pem",
        env!("CARGO_MANIFEST_DIR")
    );
    cert_renew_core::certificate::leaf(&std::fs::read(path).unwrap())
        .unwrap()
        .fingerprint
        .to_string()
}

/// Keys are not read here, nor is the config as a rule: the operator knows more.
#[test]
fn what_the_operator_said_last_is_told_where_the_secret_alone_shows_another_state() {
    let now: UnixTime = "2026-02-01T00:00:00Z".parse().unwrap();
    let told = |state: &str| {
        let annotations =
            json!({"cert-renew.io/issuer": "letsencrypt", "state.cert-renew.io/state": state});
        let verdict = of_secret(now, &secret("tls", "good.pem", &annotations), None).unwrap();
        assert_eq!(verdict.state, State::Ok);
        problem(&verdict).map(Cow::into_owned)
    };
    let broken = "pair_broken: servers cannot load the pair";
    assert_eq!(
        told(broken),
        Some(format!("the operator said last: {broken}"))
    );
    assert_eq!(told("ok; renews 2026-03-01T00:00Z by its lifetime"), None);
    assert_eq!(told("held: until 2026-03-01T00:00Z"), None);
    assert_eq!(told("nonsense: x"), None);
}

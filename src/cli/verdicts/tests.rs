use cert_renew_core::testing::entries::{NOW, index};
use clap::Parser as _;

use super::*;

fn wanted(namespace: Option<&str>, places: &[(&str, &str)]) -> Wanted {
    let places = places.iter();
    let places: BTreeSet<_> = places
        .map(|(namespace, name)| ((*namespace).to_owned(), (*name).to_owned()))
        .collect();
    Wanted {
        namespace: namespace.map(ToOwned::to_owned),
        places: (!places.is_empty()).then_some(places),
        shown: Shown::default(),
    }
}

#[test]
fn names_in_several_namespaces_are_asked_for_where_they_are() {
    assert_eq!(wanted(None, &[]).questions(), [(None, None)]);
    assert_eq!(wanted(Some("a"), &[]).questions(), [(Some("a"), None)]);
    let few = [("a", "one"), ("b", "two")];
    assert_eq!(
        wanted(None, &few).questions(),
        [(Some("a"), Some("one")), (Some("b"), Some("two"))]
    );
    let names: Vec<String> = (0..=FEW).map(|it| it.to_string()).collect();
    let many = names.iter().map(|name| ("a", &**name));
    let many: Vec<_> = many.chain([("b", "two")]).collect();
    assert_eq!(
        wanted(None, &many).questions(),
        [(Some("a"), None), (Some("b"), None)]
    );
}

#[test]
fn what_ends_later_than_asked_for_is_not_missing() {
    let index = index();
    let (row, _) = index.iter().next().unwrap();
    let mut last = Verdict::of_row(NOW, &index, row, 0).unwrap();
    last.not_after = Some(NOW + Duration::from_secs(1_000));
    let report = Report {
        version: None,
        class: None,
        operator_namespace: None,
        replica: None,
        leader: verdict::Leader::default(),
        as_of: NOW,
        notices: Vec::new(),
        unmanaged: Unmanaged::default(),
        matching: 10_001,
        left_out: 1,
        certificates: vec![last],
    };
    let within = |seconds| Wanted {
        shown: Shown {
            within: Some(Duration::from_secs(seconds)),
            ..Shown::default()
        },
        ..Wanted::default()
    };
    assert!(within(999).is_complete(&report));
    assert!(!within(1_000).is_complete(&report));
    assert!(!Wanted::default().is_complete(&report));
}

/// What the Secrets say by this config.
fn found(config: &str) -> Found {
    let config = Config::parse(config).unwrap();
    let report = Report {
        version: None,
        class: Some(config.class.as_str().into()),
        operator_namespace: None,
        replica: None,
        leader: verdict::Leader::default(),
        as_of: NOW,
        notices: Vec::new(),
        unmanaged: Unmanaged::default(),
        matching: 0,
        left_out: 0,
        certificates: Vec::new(),
    };
    Found {
        report,
        source: Source::Secrets(Some(Box::new(config))),
    }
}

fn secret(annotations: &[(&str, &str)]) -> ThinSecret {
    let annotations: std::collections::BTreeMap<_, _> = annotations.iter().copied().collect();
    let secret = serde_json::json!({"type": TLS_TYPE,
        "metadata": {"namespace": "shop", "name": "tls", "uid": "u", "annotations": annotations}});
    serde_json::from_value(secret).unwrap()
}

#[test]
fn what_its_namespace_opts_in_is_managed_and_no_stray() {
    let names = ("cert-renew.io/names", "a.example");
    let with_names = secret(&[names]);
    let with_record = secret(&[names, ("state.cert-renew.io/rolled-out", "none u")]);
    let issuers = "issuers: {le: {directory: \"https://ca.example/\"}}\n";
    let by_default = format!("{issuers}defaults: {{namespaces: {{shop: {{issuer: le}}}}}}");
    for secret in [&with_record, &with_names] {
        let found = found(&by_default);
        assert_eq!(found.stray(secret), None);
        let issuer = found.judge(secret).map(|it| it.issuer);
        assert_eq!(issuer.as_deref(), Some("le"));
    }
    for secret in [&with_record, &with_names] {
        let found = found(issuers);
        assert!(found.stray(secret).is_some());
        assert_eq!(found.judge(secret), None);
    }
}

/// `status` leaves out what is not managed, and so does `status --watch`.
#[test]
fn what_is_not_managed_has_no_verdict() {
    let found = found("issuers: {}");
    let misspelt = [
        ("cert-renew.io/issuer", "le"),
        ("cert-renew.io/class", "defualt"),
    ];
    let secret = secret(&misspelt);
    let own = verdict::of_secret(NOW, &secret, None);
    assert!(own.is_some() && found.stray(&secret).is_some());
    assert_eq!(found.judge(&secret), None);
}

#[test]
fn each_reason_why_a_secret_is_not_there_is_named() {
    let said = not_there("edge");
    for reason in [
        "no such Secret",
        "cert-renew.io/issuer",
        "another class than edge",
        "another type than kubernetes.io/tls",
        "watch.select: label",
        "not watched",
    ] {
        assert!(said.contains(reason), "{reason}: {said}");
    }
}

/// Only the API server knows of rights and of what is behind a Service; a proxy before it, or what it reached, may refuse for
/// reasons of its own.
#[test]
fn an_answer_of_a_proxy_is_no_word_of_the_api_server() {
    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        operator: Operator,
    }
    let Flags { operator } = Flags::parse_from(["cert-renew"]);
    let why = |code, reason: &str, message: &str| {
        let status = kube::core::Status {
            code,
            reason: reason.into(),
            message: message.into(),
            ..kube::core::Status::default()
        };
        operator.why_not(&kube::Error::Api(Box::new(status)))
    };
    let refused = why(
        403,
        "Forbidden",
        "services is forbidden: User \"joe\" cannot get",
    );
    assert!(refused.starts_with("as you may not get services/proxy"));
    // As kube gives an answer that is no Status.
    let no_status = "Failed to parse error data";
    for (code, message) in [
        (403, "blocked by policy"),
        (404, "no such page"),
        (503, "upstream connect error"),
    ] {
        let said = why(code, no_status, &format!("{message}\n"));
        assert_eq!(said, format!("as it answered {code}: {message}"));
    }
    let silent = why(
        503,
        "ServiceUnavailable",
        "no endpoints available for service \"cert-renew-metrics\"",
    );
    assert!(
        silent.starts_with("as no replica of it answers in namespace cert-renew (no endpoints"),
        "{silent}"
    );
    let none = why(404, "NotFound", "services \"cert-renew-metrics\" not found");
    assert!(none.starts_with("as there is no Service"), "{none}");
}

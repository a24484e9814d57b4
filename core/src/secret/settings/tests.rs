use super::*;
use crate::secret::settings::values::RenewBefore::{Before, Share};

fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| (format!("cert-renew.io/{key}"), (*value).into()))
        .collect()
}

fn read(pairs: &[(&str, &str)]) -> (Option<Settings>, Vec<Problem>) {
    Settings::read(&annotations(pairs), false, &NamespaceDefaults::default())
}

fn with_issuer(name: &str) -> NamespaceDefaults {
    NamespaceDefaults {
        issuer: Some(name.parse().unwrap()),
        ..Default::default()
    }
}

#[test]
fn reads_all_that_a_user_can_write() {
    let (settings, problems) = read(&[
        ("issuer", "letsencrypt"),
        (
            "names",
            "Shop.example.com, *.shop.example.com,\n10.0.0.1,shop.example.com.",
        ),
        ("renew-before", "33%"),
        ("profile", "tlsserver"),
        ("lifetime", "1d12h"),
        ("key-rotation", "never"),
        ("key-type", "rsa-3072"),
        ("outputs", "fullchain.pem=fullchain, tls.pem=key+fullchain"),
        ("pkcs12-password-key", "password"),
        ("rollout", "post:8080/-/reload"),
        ("rollout-on", "leaf, ca"),
        ("workloads", "deployment/web, rc/legacy"),
        ("change-window", "Mon-Fri 02:00-04:00 Europe/Berlin"),
        ("verify", "web:443"),
        ("paused", "true"),
        ("renew-now", "2026-11-23"),
        ("revoked", &"0a".repeat(32)),
        ("class", "edge"),
    ]);
    let settings = settings.unwrap();
    assert_eq!(problems, []);
    let texts =
        |items: &[&dyn ToString]| -> Vec<String> { items.iter().map(|i| i.to_string()).collect() };
    let names = settings.names.as_deref().unwrap();
    assert_eq!(
        names.iter().map(Name::to_string).collect::<Vec<_>>(),
        ["shop.example.com", "*.shop.example.com", "10.0.0.1"]
    );
    assert_eq!(
        texts(&[
            &settings.issuer,
            &settings.renew_before.unwrap(),
            settings.profile.as_ref().unwrap(),
            &settings.key_type.unwrap(),
            &settings.outputs[1],
            &settings.rollout,
            &settings.workloads[1],
            settings.change_window.as_ref().unwrap(),
            settings.verify.as_ref().unwrap(),
        ]),
        [
            "letsencrypt",
            "33%",
            "tlsserver",
            "rsa-3072",
            "tls.pem=key+fullchain",
            "post:8080/-/reload",
            "replicationcontroller/legacy",
            "Mon-Fri 02:00-04:00 Europe/Berlin",
            "web:443",
        ]
    );
    let lifetime = Duration::from_secs(36 * 3_600);
    assert_eq!(settings.lifetime, Some(lifetime));
    assert_eq!(settings.key_rotation, KeyRotation::Never);
    assert_eq!(settings.rollout_on.to_string(), "leaf,ca");
    assert_eq!(settings.pkcs12_password_key.as_deref(), Some("password"));
    assert_eq!(settings.renew_now.as_deref(), Some("2026-11-23"));
    assert_eq!(settings.revoked.unwrap().to_string(), "0a".repeat(32));
    assert!(settings.paused && settings.is_for("edge") && !settings.is_for(DEFAULT_CLASS));
}

#[test]
fn the_issuer_alone_is_enough() {
    let (settings, problems) = read(&[("issuer", "external")]);
    let settings = settings.unwrap();
    assert_eq!(problems, []);
    assert_eq!(settings.issuer, IssuerRef::External);
    assert_eq!(
        (settings.names, settings.rollout.clone()),
        (None, RolloutMode::Restart)
    );
    assert!(!settings.paused && settings.class.is_none());
}

#[test]
fn opting_in_takes_an_issuer_or_a_default_and_something_of_ours() {
    let foreign = BTreeMap::from([
        ("example.com/issuer".to_string(), "letsencrypt".to_string()),
        (keys::ROLLED_OUT.to_string(), "none".to_string()),
    ]);
    let ours = annotations(&[("rollout", "none")]);
    let named = annotations(&[("issuer", "zerossl")]);
    let misspelt = annotations(&[("isuer", "zerossl")]);
    let (none, some) = (NamespaceDefaults::default(), with_issuer("letsencrypt"));
    for (what, annotations, managed, defaults, issuer, problems) in [
        ("nothing of ours", &foreign, false, &some, None, 0),
        (
            "the label alone",
            &foreign,
            true,
            &some,
            Some("letsencrypt"),
            0,
        ),
        (
            "the label without a default",
            &foreign,
            true,
            &none,
            None,
            1,
        ),
        ("an annotation", &ours, false, &some, Some("letsencrypt"), 0),
        (
            "an annotation without a default",
            &ours,
            false,
            &none,
            None,
            1,
        ),
        ("its own issuer", &named, false, &some, Some("zerossl"), 0),
        ("a misspelt issuer", &misspelt, false, &some, None, 1),
    ] {
        let (settings, found) = Settings::read(annotations, managed, defaults);
        assert_eq!(
            settings.map(|s| s.issuer.to_string()).as_deref(),
            issuer,
            "{what}"
        );
        assert_eq!(found.len(), problems, "{what}: {found:?}");
    }
}

#[test]
fn the_namespace_fills_in_what_the_secret_does_not_say() {
    let defaults = NamespaceDefaults {
        renew_before: Some(Share(33)),
        change_window: Some("02:00-04:00 UTC".parse().unwrap()),
        rollout: Some(RolloutMode::None),
        rollout_on: "leaf".parse().ok(),
        ..with_issuer("letsencrypt")
    };
    let (settings, _) = Settings::read(&annotations(&[("names", "a.example")]), false, &defaults);
    let settings = settings.unwrap();
    assert_eq!(settings.renew_before, defaults.renew_before);
    assert_eq!(settings.change_window, defaults.change_window);
    assert_eq!(settings.rollout, RolloutMode::None);
    assert_eq!(settings.rollout_on.to_string(), "leaf");
    let own = annotations(&[
        ("renew-before", "12h"),
        ("rollout", "restart"),
        ("rollout-on", "chain"),
    ]);
    let settings = Settings::read(&own, false, &defaults).0.unwrap();
    assert_eq!(
        settings.renew_before,
        Some(Before(Duration::from_secs(12 * 3600)))
    );
    assert_eq!(settings.rollout, RolloutMode::Restart);
    assert_eq!(settings.rollout_on.to_string(), "chain");
}

#[test]
fn a_bad_value_blocks_only_what_it_governs() {
    use Blocks::{Both, Issue, Nothing, Rollout};
    let many = (0..=MAX_ITEMS)
        .map(|i| format!("n{i}.example,"))
        .collect::<String>();
    let long = "a".repeat(32 * 1024 + 1);
    let key = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----";
    for (name, value, blocks, message) in [
        (
            "issuer",
            "",
            Issue,
            "cert-renew.io/issuer: \"\": expected the name of an issuer in the config file, or external",
        ),
        ("issuer", "Let's", Issue, "\"Let's\": expected"),
        (
            "names",
            "a.example, b..example",
            Issue,
            "cert-renew.io/names: \"b..example\": expected a DNS name such as shop.example.com or *.example.com, or an IP address",
        ),
        ("names", " , ", Issue, "expected at least one"),
        ("names", &many, Issue, "expected at most 100"),
        ("names", &long, Issue, "expected at most 32768 bytes"),
        (
            "names",
            key,
            Issue,
            "a private key (not shown): expected no private key in an annotation",
        ),
        (
            "renew-before",
            "soon",
            Nothing,
            "expected a duration such as 30d",
        ),
        ("profile", "tls server", Issue, "expected a profile's name"),
        (
            "lifetime",
            "4m59s",
            Issue,
            "\"4m59s\": expected a lifetime from 5m to 3650d, such as 24h or 7d",
        ),
        ("lifetime", "3651d", Issue, "expected a lifetime from"),
        ("lifetime", "33%", Issue, "expected a lifetime from"),
        ("key-rotation", "yes", Issue, "expected always or never"),
        ("key-type", "ed25519", Issue, "expected one of ecdsa-p256"),
        (
            "outputs",
            "tls.pem=everything",
            Issue,
            "expected a part leaf",
        ),
        (
            "outputs",
            "a=key,a=leaf",
            Issue,
            "\"a=leaf\": expected each data key once",
        ),
        (
            "pkcs12-password-key",
            "a b",
            Issue,
            "expected a key of the Secret's data",
        ),
        (
            "rollout",
            "reload",
            Rollout,
            "expected restart, none, or post:",
        ),
        ("workloads", "pod/web", Rollout, "expected kind/name"),
        ("change-window", "at night", Both, "expected"),
        ("verify", "web.other:443", Rollout, "expected service:port"),
        ("paused", "yes", Both, "expected true or false"),
        ("renew-now", "", Nothing, "expected 1 to 256 bytes"),
        ("class", "a b", Both, "expected the class"),
        (
            "outptus",
            "\u{1b}[2J",
            Nothing,
            "cert-renew.io/outptus: \"\\u{1b}[2J\": expected a known annotation (issuer, names, ",
        ),
        ("managed", "true", Nothing, "expected it among the labels"),
    ] {
        let mut pairs = vec![("issuer", "letsencrypt")];
        pairs.retain(|(key, _)| *key != name);
        pairs.push((name, value));
        let (settings, problems) = read(&pairs);
        assert!(settings.is_some(), "{name}");
        let [problem] = &problems[..] else {
            panic!("{name} {value:.40}: {problems:?}")
        };
        assert_eq!(problem.blocks, blocks, "{name}");
        let text = problem.to_string();
        assert!(text.contains(message), "{name}: {text}");
        assert!(
            !text.contains("MIGH") && !text.chars().any(char::is_control),
            "{text}"
        );
    }
}

#[test]
fn what_is_not_kept_still_blocks() {
    let many = ["b..d"; 40].join(",");
    let (_, problems) = read(&[("issuer", "a"), ("names", &many), ("rollout", "?")]);
    assert_eq!(problems.len(), 20);
    assert!(
        problems.iter().any(|p| p.blocks.issue()) && problems.iter().any(|p| p.blocks.rollout())
    );
}

/// The same in every run: a failure can be repeated.
#[test]
fn hostile_values_never_panic() {
    let pieces = [
        "",
        ",",
        ";",
        "=",
        "+",
        ":",
        "/",
        "-",
        "%",
        "*.",
        "post:",
        "\0",
        "\u{1b}[31m",
        "\r\n",
        "\u{202e}",
        "\u{feff}",
        "ß",
        "İ",
        "\u{1f600}",
        "xn--",
        "a.example",
        "Mon",
        "-Fri ",
        "02:00",
        "-24:00 ",
        "UTC",
        "99999999999",
        "deployment/",
        "key",
        "pkcs12",
        "true",
        "::1",
        "\u{0301}",
        " ",
    ];
    let mut state: u32 = 1;
    let mut next = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    let names = [
        "issuer",
        "names",
        "renew-before",
        "profile",
        "lifetime",
        "key-rotation",
        "key-type",
        "outputs",
        "pkcs12-password-key",
        "rollout",
        "workloads",
        "change-window",
        "verify",
        "paused",
        "renew-now",
        "class",
        "\u{7f}",
    ];
    for round in 0..3_000 {
        let pairs: Vec<(&str, String)> = names
            .iter()
            .map(|name| {
                let text: String = (0..next(8)).map(|_| pieces[next(pieces.len())]).collect();
                // Some are as long as the API server allows.
                let repeat = if round % 100 == 0 {
                    256 * 1024 / text.len().max(1)
                } else {
                    1
                };
                (*name, text.repeat(repeat))
            })
            .collect();
        let pairs: Vec<(&str, &str)> = pairs
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let (settings, problems) = read(&pairs);
        assert!(settings.is_some());
        for problem in &problems {
            let text = problem.to_string();
            assert!(
                text.len() < 4096 && !text.chars().any(char::is_control),
                "{text}"
            );
        }
    }
}

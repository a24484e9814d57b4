//! The documents say what the config and the annotations take.

use super::*;

/// The YAML blocks of a page of the docs.
fn examples(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(directory(page)).unwrap();
    let blocks: Vec<String> = text
        .split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_string())
        .collect();
    assert!(!blocks.is_empty(), "{page}");
    blocks
}

#[test]
fn the_docs_hold_what_the_config_takes() {
    for example in examples("docs/configuration.md") {
        let whole = if example.contains("issuers:") {
            example
        } else {
            format!("issuers: {{}}\n{example}")
        };
        Config::parse(&whole).unwrap_or_else(|faults| panic!("{whole}\n{faults}"));
    }
    let private = examples("docs/private-cas.md").into_iter();
    for example in private.filter(|it| it.starts_with("issuers:")) {
        Config::parse(&example).unwrap_or_else(|faults| panic!("{example}\n{faults}"));
    }
    let page = std::fs::read_to_string(directory("docs/configuration.md")).unwrap();
    for provider in SUPPORTED_PROVIDERS.iter().chain(&UNTESTED_PROVIDERS) {
        assert!(page.contains(&format!("`{provider}`")), "{provider}");
    }
    // The message about an unknown key lists every key that is read.
    let faults = Config::parse(
        "x: 1\nissuers: {a: 1}\nsolvers: [{x: 1, http01: {x: 1, route: ingress, ingress: 1}}, {dns01: 1}]\n\
        defaults: 1\nretry: 1\nrollout: 1\ndns: 1\nwatch: 1\nmetrics: 1",
    );
    let faults = faults.unwrap_err();
    let lists = faults.list.iter().filter_map(|fault| {
        let list = fault.expected.strip_prefix("unknown, expected one of ");
        list.or_else(|| fault.expected.strip_prefix("expected a mapping with "))
    });
    let keys: BTreeSet<&str> = lists.flat_map(|list| list.split(", ")).collect();
    assert!(keys.len() > 40, "{keys:?}");
    for key in keys {
        assert!(
            page.contains(&format!("`{key}`")) || page.contains(&format!("{key}:")),
            "{key}"
        );
    }
}

/// docs/solvers.md lists each provider's tests and settings; the config warns of providers without tests.
#[test]
fn the_docs_say_of_each_provider_how_it_is_tested() {
    let page = std::fs::read_to_string(directory("docs/solvers.md")).unwrap();
    let rows = page
        .lines()
        .skip_while(|it| !it.starts_with("| provider | "));
    let rows = rows.skip(2).take_while(|it| it.starts_with('|'));
    let mut told = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, providers, settings, _, tested, _] = *cells else {
            panic!("{row}")
        };
        for provider in providers.split('`').skip(1).step_by(2) {
            let (required, optional) = provider::settings_of(provider);
            for key in required.iter().chain(optional) {
                assert!(settings.contains(&format!("`{key}`")), "{provider}: {key}");
            }
            let transcript = directory(&format!("testdata/dns-hosts/{provider}.txt"));
            let is_told = tested.contains("by a transcript");
            assert_eq!(is_told, transcript.exists(), "{provider}: {tested}");
            let twice = told.insert(provider, !tested.starts_with("not at all"));
            assert_eq!(twice, None, "{provider} has two rows");
        }
    }
    let known = { SUPPORTED_PROVIDERS.iter().map(|it| (*it, true)) }
        .chain(UNTESTED_PROVIDERS.iter().map(|it| (*it, false)));
    assert_eq!(told, known.collect());
}

#[test]
fn the_docs_hold_what_annotations_take() {
    use crate::secret::settings::Settings;
    let mut all = examples("docs/annotations.md");
    all.extend(examples("docs/private-cas.md"));
    for example in all.iter().filter(|it| it.contains("metadata:")) {
        let secret: serde_json::Value = serde_saphyr::from_str(example).unwrap();
        let annotations = &secret["metadata"]["annotations"];
        let annotations: BTreeMap<String, String> =
            serde_json::from_value(annotations.clone()).unwrap();
        let (settings, problems) =
            Settings::read(&annotations, false, &NamespaceDefaults::default());
        assert!(
            settings.is_some() && problems.is_empty(),
            "{example}\n{problems:?}"
        );
    }
    let page = std::fs::read_to_string(directory("docs/annotations.md")).unwrap();
    let unknown = BTreeMap::from([("cert-renew.io/x".to_string(), String::new())]);
    let (_, problems) = Settings::read(&unknown, false, &NamespaceDefaults::default());
    let (_, list) = problems[0].expected.split_once('(').unwrap();
    for name in list.trim_end_matches(')').split(", ") {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}

//! The example, `testdata/config/` and the docs, read as a user's file would be.

mod pages;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

fn directory(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(path)
}

fn files(prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory("testdata/config")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with(prefix)
    });
    files.sort();
    assert!(!files.is_empty(), "{prefix}");
    files
}

fn read(path: &Path) -> Result<Config, Faults> {
    let text = std::fs::read_to_string(path).unwrap();
    Config::parse(&text).map_err(|faults| Faults {
        file: Some(path.to_path_buf()),
        ..faults
    })
}

fn load(path: &str) -> Config {
    read(&directory(path)).unwrap_or_else(|faults| panic!("{faults}"))
}

/// A bad file lists the expected faults at its end, such as `# fault: 3: issuers.a.directory: missing`.
#[test]
fn every_fault_is_named() {
    for path in files("bad-") {
        let text = std::fs::read_to_string(&path).unwrap();
        let expected: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# fault: "))
            .collect();
        let printed = read(&path).unwrap_err().to_string();
        let found = printed.replace(&format!("{}:", path.display()), "");
        let found: Vec<&str> = found.lines().map(str::trim).collect();
        assert_eq!(found, expected, "{printed}");
        assert!(!printed.contains("c2VjcmV0"), "{printed}");
    }
}

#[test]
fn good_files_have_no_fault() {
    for path in files("good-") {
        read(&path).unwrap_or_else(|faults| panic!("{faults}"));
    }
}

/// The example with all its disabled parts enabled.
fn full_example() -> Config {
    let text = std::fs::read_to_string(directory("deploy/config.yaml")).unwrap();
    let on = text.lines().map(|line| {
        let off = line
            .trim_start()
            .strip_prefix('#')
            .filter(|rest| !rest.starts_with(' '));
        off.map_or_else(
            || line.to_string(),
            |rest| line[..line.len() - rest.len() - 1].to_string() + rest,
        )
    });
    let on: Vec<String> = on.collect();
    Config::parse(&on.join("\n")).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn the_example_installs_without_a_warning() {
    let config = load("deploy/config.yaml");
    assert_eq!(config.warnings(), [""; 0]);
    assert_eq!(config.issuers.len(), 1);
    assert_eq!(full_example().issuers.len(), 3);
}

#[test]
fn the_example_means_what_it_says() {
    let config = full_example();
    let least = load("testdata/config/good-least.yaml");
    // Its values, apart from the issuers, are the defaults.
    let parts = |config: &Config| {
        (
            config.class.clone(),
            config.rollout.clone(),
            config.retry,
            config.dns.clone(),
            config.watch.clone(),
            config.metrics.clone(),
        )
    };
    assert_eq!(parts(&config), parts(&least));
    let issuer = config.issuer("letsencrypt").unwrap();
    assert_eq!(issuer.contact, ["mailto:ops@example.com"]);
    assert_eq!(
        (
            issuer.concurrency,
            issuer.requests_per_second,
            issuer.orders_per_3h
        ),
        (8, 20, 250)
    );
    assert_eq!(
        issuer.chain,
        Some(PreferredChain::Root("ISRG Root X1".into()))
    );
    assert_eq!(issuer.fallback.as_deref(), Some("zerossl"));
    assert!(matches!(&issuer.staging, Some(Staging::Directory(url)) if url.contains("staging")));
    let eab = config.issuer("zerossl").unwrap().eab.as_ref().unwrap();
    assert_eq!(
        (eab.hmac_key.secret.as_str(), eab.hmac_key.key.as_str()),
        ("zerossl-eab", "hmac")
    );
    assert_eq!(config.issuer("nobody"), None);
    let payments = config.namespace("payments");
    assert_eq!(payments.issuer, Some("letsencrypt".parse().unwrap()));
    assert_eq!(
        payments.change_window.as_ref().unwrap().to_string(),
        "Sat 03:00-05:00 UTC"
    );
    assert_eq!(payments.renew_before, Some(RenewBefore::Share(33)));
    assert_eq!(config.namespace("other").issuer, None);
    assert_eq!(
        config.namespace("other").renew_before,
        Some(RenewBefore::Share(33))
    );
    let solver = |name: &str| &config.solver(&name.parse().unwrap()).unwrap().challenge;
    assert!(
        matches!(solver("*.shop.example.com"), Challenge::Dns01(dns01) if dns01.is_supported())
    );
    assert!(matches!(solver("www.example.com"), Challenge::Http01(http01) if http01.self_check));
}

#[test]
fn every_setting_arrives() {
    let config = load("testdata/config/good-all.yaml");
    let main = config.issuer("main").unwrap();
    assert_eq!(main.staging, Some(Staging::Issuer("rehearsal".into())));
    assert_eq!(main.chain, Some(PreferredChain::Shortest));
    assert_eq!(main.contact.len(), 2);
    let shop = config.namespace("shop");
    assert_eq!(shop.rollout, Some("post:8080/-/reload".parse().unwrap()));
    assert_eq!(shop.renew_before, Some("12h".parse().unwrap()));
    assert_eq!(config.namespace("web").issuer, Some(IssuerRef::External));
    assert_eq!(config.namespace("web").rollout, Some(RolloutMode::None));
    assert_eq!(
        config.namespace("web").rollout_on,
        "leaf,chain".parse().ok()
    );
    assert_eq!(shop.rollout_on, "ca".parse().ok());
    let challenge = |zone: &str| &config.solver(&zone.parse().unwrap()).unwrap().challenge;
    let Challenge::Dns01(dns01) = challenge("b.example") else {
        panic!()
    };
    assert_eq!(
        (
            dns01.credentials.as_deref(),
            dns01.settings["server"].as_str()
        ),
        (Some("tsig"), "10.0.0.53:53")
    );
    let propagation = &dns01.propagation;
    assert_eq!(propagation.servers, ["10.0.0.54:53".parse().unwrap()]);
    assert_eq!(propagation.timeout.as_secs(), 300);
    assert_eq!(propagation.wait.as_secs(), 10);
    let Challenge::DnsPersist01(persistent) = challenge("f.example") else {
        panic!()
    };
    assert!(!persistent.self_check);
    assert_eq!(persistent.servers, ["10.0.0.54:53".parse().unwrap()]);
    let Challenge::Http01(http01) = challenge("d.example") else {
        panic!()
    };
    assert!(!http01.self_check);
    assert!(
        matches!(&http01.route, Route::Ingress { class: Some(class), annotations, path_type: PathType::Exact }
        if class == "nginx" && annotations.len() == 1)
    );
    assert_eq!(PathType::default(), PathType::ImplementationSpecific);
    let Challenge::Http01(http01) = challenge("e.example") else {
        panic!()
    };
    assert!(
        matches!(&http01.route, Route::Gateway { parents } if parents[0].section_name.as_deref() == Some("http"))
    );
    assert_eq!(config.retry.wait(3), Duration::from_secs(4));
    assert_eq!(
        (config.rollout.settle, config.rollout.canary_workloads),
        (Duration::ZERO, 0)
    );
    let rollout = &config.rollout;
    assert_eq!(
        [
            rollout.canary_bake,
            rollout.verify_grace,
            rollout.reload_wait,
            rollout.reload_again
        ],
        [300, 60, 0, 120].map(Duration::from_secs)
    );
    assert_eq!(&*rollout.field_manager, "flux-client-side-apply");
    assert_eq!(config.dns.nameservers.len(), 2);
    for (name, resolvers, first) in [
        ("c.example", 4, "10.0.0.53:53"),
        ("d.example", 2, "10.0.0.10:53"),
    ] {
        let found = config.resolvers(Some(&name.parse().unwrap()));
        assert_eq!(found.addresses.len(), resolvers, "{name}");
        assert_eq!(found.addresses[0].to_string(), first);
        assert!(found.ca_bundle.is_some());
    }
    assert_eq!(config.watch.namespaces, ["shop", "web"]);
    assert_eq!(config.routes.settle, Duration::from_secs(300));
    assert_eq!(
        (config.watch.select, config.watch.observe),
        (Select::Label, Observe::All)
    );
    assert!(!config.metrics.per_certificate && !config.metrics.page);
    assert_eq!(
        (config.metrics.access, config.metrics.tls.as_deref()),
        (Access::Viewers, Some("status.tls"))
    );
    assert_eq!(config.class, "edge");
    // The rehearsal needs no allow of its own.
    assert!(
        !config
            .warnings()
            .iter()
            .any(|warning| warning.contains("issues for nobody"))
    );
}

#[test]
fn only_what_is_allowed_is_allowed() {
    let config = full_example();
    let labels = BTreeMap::from([("example.com/may-issue".to_string(), "true".to_string())]);
    let none = BTreeMap::new();
    for (issuer, namespace, labels, name, allowed) in [
        ("letsencrypt", "shop-eu", None, "www.shop.example.com", true),
        ("letsencrypt", "shop-eu", None, "*.shop.example.com", true),
        (
            "letsencrypt",
            "shop-eu",
            None,
            "a.b.shop.example.com",
            false,
        ),
        ("letsencrypt", "shop", None, "www.shop.example.com", false),
        ("letsencrypt", "any", None, "a.b.apps.example.com", false),
        (
            "letsencrypt",
            "any",
            Some(&labels),
            "a.b.apps.example.com",
            true,
        ),
        (
            "letsencrypt",
            "any",
            Some(&labels),
            "www.shop.example.com",
            false,
        ),
        (
            "letsencrypt",
            "any",
            Some(&BTreeMap::new()),
            "a.b.apps.example.com",
            false,
        ),
        ("internal", "any", None, "10.1.2.3", true),
        ("internal", "any", None, "11.1.2.3", false),
    ] {
        let labels = labels.unwrap_or(&none);
        let found = config.issuer(issuer).unwrap().allows(
            namespace,
            Labels::Are(labels),
            &name.parse().unwrap(),
        );
        assert_eq!(found, allowed, "{issuer} for {name} in {namespace}");
    }
    assert!(config.needs_namespace_labels());
    // Unknown labels allow a look at what may be asked for, and nothing else.
    let letsencrypt = config.issuer("letsencrypt").unwrap();
    for (name, worth) in [
        ("a.b.apps.example.com", true),
        ("www.shop.example.com", false),
    ] {
        let found = letsencrypt.allows("any", Labels::NotAsked, &name.parse().unwrap());
        assert_eq!(found, worth, "{name}");
    }
    // If both are given, both must match.
    let config = load("testdata/config/good-all.yaml");
    let (main, name) = (
        config.issuer("main").unwrap(),
        "shop.example.com".parse().unwrap(),
    );
    let team = |team: &str| BTreeMap::from([("team".to_string(), team.to_string())]);
    assert!(main.allows("shop", Labels::Are(&team("web")), &name));
    assert!(!main.allows("shop", Labels::Are(&team("other")), &name));
    assert!(!main.allows("web", Labels::Are(&team("web")), &name));
    assert!(!main.allows("web", Labels::NotAsked, &name));
}

#[test]
fn what_is_hardly_meant_is_a_warning() {
    let config = Config::parse(
        "issuers: {a: {directory: https://a.example/, chain: {shortest: true}}}\nsolvers: [{dns01: {provider: bunny}}, {dnsPersist01: {experimental: true}}]",
    );
    let warnings = config.unwrap().warnings();
    assert_eq!(
        warnings,
        [
            "issuers.a: it has no allow, so that it issues for nobody",
            "solvers[0]: the DNS provider bunny is untested",
            "solvers[1]: dns-persist-01 is an experiment: its draft still changes",
        ]
    );
    let warnings = |more: &str| {
        let text = format!("issuers: {{}}\n{more}");
        Config::parse(&text).unwrap().warnings()[1..].join("\n")
    };
    let cloudflare = warnings("solvers: [{dns01: {provider: cloudflare}}]");
    assert!(
        cloudflare.contains("solvers[0]: it has no credentials"),
        "{cloudflare}"
    );
    for solver in [
        "{provider: cloudflare, credentials: {secret: dns}}",
        "{provider: route53}",
    ] {
        let said = warnings(&format!("solvers: [{{dns01: {solver}}}]"));
        assert_eq!(said, "", "{solver}");
    }
    let warnings = Config::parse("issuers: {}\npaused: true")
        .unwrap()
        .warnings();
    assert!(
        warnings[0].starts_with("paused: nothing is renewed"),
        "{warnings:?}"
    );
    let warnings = Config::parse("issuers: {}").unwrap().warnings();
    assert_eq!(
        warnings,
        ["issuers: there are none, so that only Secrets of others are watched"]
    );
}

#[test]
fn a_manifest_is_no_config_and_says_so_once() {
    let manifest = "apiVersion: v1\nkind: ConfigMap\ndata: {config.yaml: \"issuers: {}\"}";
    let said = Config::parse(manifest).unwrap_err().to_string();
    assert!(said.contains("a manifest of Kubernetes"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn what_may_surprise_is_a_note() {
    let notes = |contact: &str, name: &str, solvers: &str| {
        let text = format!(
            "issuers: {{le: {{directory: https://a.example/, contact: {contact}, allow: [{{namespaces: [a], names: \
             [\"{name}\"]}}]}}}}\nsolvers: {solvers}"
        );
        Config::parse(&text).unwrap().notes().join("\n")
    };
    let http01 = "[{http01: {route: shared}}]";
    let dns01 = "[{dns01: {provider: route53}}]";
    for (contact, name, solvers, expected) in [
        ("ops@a.test", "a.test", http01, ""),
        ("ops@a.test", "*.a.test", dns01, ""),
        (
            "ops@example.com",
            "a.test",
            http01,
            "the address of an example",
        ),
        ("ops@a.test", "*.a.test", http01, "*.a.test allows wildcard"),
        ("ops@a.test", "a.test", "[]", "solvers: there are none"),
    ] {
        let said = notes(contact, name, solvers);
        assert_eq!(said.is_empty(), expected.is_empty(), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

/// Cuts and splices of good files and of inputs that are hard to parse: any answer is accepted, a panic is not.
#[test]
fn hostile_text_never_panics() {
    let example = std::fs::read_to_string(directory("testdata/config/good-all.yaml")).unwrap();
    let cuts = example.char_indices().map(|(i, _)| i).step_by(7);
    for cut in cuts {
        let _ = Config::parse(&example[..cut]);
        let _ = Config::parse(&example[cut..]);
        let _ = Config::parse(&format!(
            "{}\u{0}\t[{{&a *a : {}",
            &example[..cut],
            &example[cut..]
        ));
    }
    let bomb: String = (1..30)
        .map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1))
        .collect();
    let texts = [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        format!("a0: &a0 [x]\n{bomb}"),
        "issuers: &a {b: *a}".to_string(),
        "\u{feff}issuers: {}".to_string(),
        "? [a]\n: b".to_string(),
        "issuers: {1: {}, ~: {}, \"\\u202e\": {}, [a]: {}}".to_string(),
        format!("class: {}", "a".repeat(1 << 20)),
    ];
    for text in texts {
        if let Err(faults) = Config::parse(&text) {
            assert!(faults.to_string().lines().all(|line| line.len() < 4096));
        }
    }
}

//! What somebody meets first: the README has its parts in an order that readers know, pages and messages say it in ordinary
//! words, names of tests are for developers, and two pages say what one ingress controller each asks for.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use cert_renew_core::config::{Challenge, Config, PathType, Route};
use cert_renew_core::text::name::Name;
use serde_json::{Value, json};
use test_bench::{Context as _, Result, ensure};

use crate::command::said;
use crate::documents::{blocks, documents, files, is_test};
use crate::gitops::Scratch;

mod words;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const README: &str = include_str!("../README.md");

/// The README's parts, after its first line and its picture.
const PARTS: [&str; 7] = [
    "Quick start",
    "Install",
    "Documents",
    "What it never does",
    "How it compares",
    "Status and support",
    "Licence",
];
/// A screen and a half of a page, as a reader of a repository sees it.
const MOST_LINES: usize = 100;
const MOST_WORDS: usize = 750;

/// What each part of the README must say.
const SAID: [(&str, &str); 18] = [
    ("Quick start", "make demo"),
    ("Quick start", "KEEP=1"),
    ("Quick start", "KUBEBUILDER_ASSETS"),
    ("Quick start", "minutes on two cores"),
    ("Quick start", "](docs/start/first-certificate.md)"),
    ("Install", "](docs/install.md"),
    ("Install", "](docs/start/quick-start.md)"),
    ("Install", "helm install cert-renew"),
    ("Documents", "](docs/README.md)"),
    ("Documents", "](docs/troubleshooting.md"),
    ("How it compares", "Take cert-manager if"),
    ("How it compares", "Take Reloader if"),
    ("How it compares", "](docs/comparison.md)"),
    ("Status and support", "test cluster"),
    ("Status and support", "](RELEASING.md)"),
    ("Status and support", "](CONTRIBUTING.md)"),
    ("Status and support", "](SECURITY.md)"),
    ("Licence", "](LICENSE)"),
];

/// What the README claims, each with the tests that hold it.
const CLAIMS: [(&str, &[&str]); 9] = [
    (
        "one first, and the others once that one is available",
        &["propagation::halts::a_failing_canary_halts_and_a_mended_one_goes_on"],
    ),
    (
        "can prove that every pod serves the new one",
        &["verify::pods_are_asked_at_their_own_addresses"],
    ),
    (
        "no custom resources, no webhook",
        &["front_door::nothing_that_is_installed_is_a_kind_or_a_webhook_of_its_own"],
    ),
    (
        "* It never touches a Secret that is not annotated, nor a workload that uses no annotated Secret. Installing it \
         restarts nothing.",
        &["renewal::what_is_not_due_is_not_renewed_and_installing_restarts_nothing"],
    ),
    (
        "* It never replaces a certificate by one that does not match its key or is not valid, and never restarts \
         workloads for such a certificate.",
        &[
            "certificate::pair::tests::what_the_ca_gave_is_refused_for_its_reason",
            "propagation::a_bad_pair_is_never_rolled_onto",
        ],
    ),
    (
        "* It restarts a workload once for each certificate, chain or CA.",
        &[
            "propagation::killed_between_the_write_and_the_rollout_it_rolls_once",
            "chain::another_intermediate_restarts_who_reads_the_chain_unless_the_setting_says_otherwise",
            "chain::who_reads_ca_crt_alone_is_restarted_for_that_key_and_no_other",
            "fleet::who_applies_the_manifest_again_neither_reverts_nor_repeats_the_rollout",
        ],
    ),
    (
        "* It never deletes or replaces a Secret of yours. It patches it: labels, annotations, type and other data keys \
         are kept.",
        &[
            "renewal::what_is_due_is_renewed_and_its_workloads_roll",
            "rights::every_right_is_used_and_none_is_missing",
        ],
    ),
    (
        "* It never puts a private key into a log, an Event, a metric or an annotation.",
        &["secrecy::no_private_key_leaves_its_secret"],
    ),
    (
        "* It never asks a CA for a name that the config does not allow the namespace.",
        &["tenancy::names_of_others_are_refused_before_the_ca_is_asked"],
    ),
];

/// The text below a heading of the README.
fn part(heading: &str) -> Result<&'static str> {
    let below = README.split(&format!("\n## {heading}\n")).nth(1);
    let below = below.with_context(|| format!("no part {heading}"))?;
    Ok(below.split("\n## ").next().unwrap_or_default())
}

#[test]
fn the_readme_has_its_parts_in_order() -> Result<()> {
    let parts: Vec<&str> = { README.lines() }
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    assert_eq!(parts, PARTS);
    // What it is, in one line; then the picture.
    let (first, _) = README.split_once("\n## ").context("no parts")?;
    let mut lines = first.lines();
    assert_eq!(lines.next(), Some("# cert-renew"));
    let mut lines = lines.filter(|line| !line.is_empty());
    let what = lines.next().context("no first line")?;
    ensure!(what.len() < 200 && what.ends_with('.'), "{what}");
    ensure!(
        lines.next() == Some("```"),
        "no picture below the first line"
    );
    ensure!(first.contains("cert-renew.io/issuer="), "no annotation");
    // What one types, and right below it what one sees.
    let quick_start = part("Quick start")?;
    let blocks = blocks(quick_start);
    ensure!(
        blocks.len() == 2 && blocks[0].language == "sh" && blocks[1].is_output,
        "the quick start does not show what it prints"
    );
    for (heading, words) in SAID {
        ensure!(part(heading)?.contains(words), "{heading}: no {words}");
    }
    let never = part("What it never does")?;
    let never = never.lines().filter(|line| line.starts_with("* It "));
    ensure!(never.count() >= 5, "few promises");
    Ok(())
}

#[test]
fn what_the_readme_claims_has_its_tests() -> Result<()> {
    let never = part("What it never does")?;
    for line in never.lines().filter(|line| !line.is_empty()) {
        let is_held = CLAIMS.iter().any(|(claim, _)| line.starts_with(claim));
        ensure!(is_held, "no test holds: {line}");
    }
    for (claim, tests) in CLAIMS {
        ensure!(README.contains(claim), "it no longer claims: {claim}");
        for test in tests {
            ensure!(is_test(test), "no such test: {test}");
        }
    }
    Ok(())
}

#[test]
fn nothing_that_is_installed_is_a_kind_or_a_webhook_of_its_own() -> Result<()> {
    let root = Path::new(ROOT);
    let mut read = 0;
    for directory in ["deploy", "rbac"] {
        for file in files(&root.join(directory))? {
            if file.extension().is_none_or(|it| it != "yaml") {
                continue;
            }
            read += 1;
            let text = fs::read_to_string(&file)?;
            for kind in [
                "CustomResourceDefinition",
                "WebhookConfiguration",
                "APIService",
            ] {
                let is_there =
                    { text.lines() }.any(|line| line.starts_with("kind: ") && line.contains(kind));
                ensure!(!is_there, "{}: {kind}", file.display());
            }
        }
    }
    ensure!(read > 20, "only {read} manifests");
    Ok(())
}

/// What it needs, and how old it is, as the sources have it.
#[test]
fn the_readme_says_what_it_needs_and_how_mature_it_is() -> Result<()> {
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml"))?;
    let chart = fs::read_to_string(Path::new(ROOT).join("deploy/helm/Chart.yaml"))?;
    let module = include_str!("control-plane/go.mod");
    let of = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let value = line.map(|it| it.trim_matches('"').to_owned());
        value.with_context(|| key.to_owned())
    };
    let minor = |version: &str| version.split('.').take(2).collect::<Vec<_>>().join(".");
    let rust = of(&manifest, "rust-version = ")?;
    let go = minor(&of(module, "go ")?);
    let kubernetes = minor(of(&chart, "kubeVersion: ")?.trim_start_matches(">="));
    for (heading, words) in [
        ("Quick start", format!("Rust {rust}")),
        ("Quick start", format!("Go {go}")),
        ("Install", format!("Kubernetes {kubernetes} or later")),
        (
            "Status and support",
            format!("Version {}", of(&manifest, "version = ")?),
        ),
        ("Licence", of(&manifest, "license = ")?),
    ] {
        ensure!(part(heading)?.contains(&words), "{heading}: no {words}");
    }
    Ok(())
}

#[test]
fn the_readme_is_a_screen_and_a_half() {
    let is_word = |word: &&str| word.chars().any(char::is_alphanumeric);
    let (lines, words) = (
        README.lines().count(),
        README.split_whitespace().filter(is_word).count(),
    );
    assert!(lines <= MOST_LINES, "{lines} lines");
    assert!(words <= MOST_WORDS, "{words} words");
}

/// Whether a page is for users: not for those who change cert-renew.
fn is_for_users(page: &str) -> bool {
    page != "ARCHITECTURE.md" && page != "CONTRIBUTING.md"
}

/// The pages for users, by their paths in the repository.
fn pages() -> Result<Vec<(String, String)>> {
    let mut pages = Vec::new();
    for (path, text) in documents()? {
        let page = path.strip_prefix(ROOT)?.display().to_string();
        if is_for_users(&page) {
            pages.push((page, text));
        }
    }
    let chart = "deploy/helm/README.md";
    pages.push((
        chart.to_owned(),
        fs::read_to_string(Path::new(ROOT).join(chart))?,
    ));
    Ok(pages)
}

/// Names of tests are for developers: they are on pages of their own, or in a table at a page's end.
#[test]
fn pages_for_users_name_no_tests() -> Result<()> {
    let mut found = Vec::new();
    for (page, text) in pages()? {
        if page.ends_with("-tests.md") {
            continue;
        }
        let (text, last) = text
            .split_once("\n## The tests\n")
            .unwrap_or((text.as_str(), ""));
        ensure!(
            !last.contains("\n## "),
            "{page}: the tests are not at its end"
        );
        let is_path = |it: &&str| {
            let is_part =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
            it.contains("::")
                && it.starts_with(|c: char| c.is_ascii_lowercase())
                && it.chars().all(is_part)
        };
        let named = text.split('`').skip(1).step_by(2).filter(is_path);
        found.extend(named.map(|it| format!("{page}: {it}")));
        let files = text.split_whitespace().filter(|word| {
            let word = word.trim_start_matches(|c: char| !c.is_alphanumeric());
            word.starts_with("tests/")
        });
        found.extend(files.map(|it| format!("{page}: {it}")));
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// ingress-nginx refuses `/.well-known` in paths of the types `Prefix` and `Exact`.
#[test]
fn the_page_of_ingress_nginx_makes_paths_that_it_takes() -> Result<()> {
    let page = include_str!("../docs/how-to/ingress-nginx.md");
    let shown = blocks(page);
    let shown = shown.iter().find(|it| it.text.contains("route: ingress"));
    let shown = &shown.context("no config on the page")?.text;
    let example = include_str!("../examples/ingress-nginx/config.yaml");
    let name: Name = "shop.example.com".parse()?;
    for text in [shown.as_str(), example] {
        let config = Config::parse(text)?;
        let solver = config.solver(&name).context("no solver")?;
        let Challenge::Http01(http01) = &solver.challenge else {
            return Err(test_bench::Error::msg("another challenge than HTTP-01"));
        };
        let Route::Ingress {
            class, path_type, ..
        } = &http01.route
        else {
            return Err(test_bench::Error::msg("another route than an Ingress"));
        };
        ensure!(class.as_deref() == Some("nginx"), "{class:?}");
        ensure!(
            *path_type == PathType::ImplementationSpecific,
            "{path_type:?}"
        );
    }
    for words in [
        "Leave `pathType` out",
        "refuses the dot of `/.well-known` in paths of the types `Prefix` and `Exact`",
    ] {
        ensure!(page.contains(words), "the page does not say: {words}");
    }
    // Nor does another page say that one of these is right for it, or the default.
    let reference = include_str!("../docs/configuration.md");
    let row = reference
        .lines()
        .find(|it| it.starts_with("| `ingress` | "));
    let default = row.context("no row")?.trim_end_matches([' ', '|']);
    ensure!(default.ends_with("`ImplementationSpecific`"), "{default}");
    for (page, text) in pages()? {
        for block in blocks(&text) {
            let is_route = block.text.contains("route: ingress");
            let is_refused =
                block.text.contains("pathType: Prefix") || block.text.contains("pathType: Exact");
            ensure!(!is_route || !is_refused, "{page}:\n{}", block.text);
        }
    }
    Ok(())
}

/// Our own NetworkPolicy keeps the self-check from the port of Traefik's pods; the page opens it, for either way to install.
#[test]
fn the_page_of_traefik_lets_the_self_check_out() -> Result<()> {
    let parse = |text: &str| -> Result<Value> { Ok(serde_saphyr::from_str(text)?) };
    let page = include_str!("../docs/how-to/traefik.md");
    ensure!(page.contains("8000 for Traefik's chart"), "no port");
    let web = json!({"port": 8000, "protocol": "TCP"});
    let opens = |egress: &Value| {
        let rules = egress.as_array().into_iter().flatten();
        let mut ports = rules.filter_map(|rule| rule["ports"].as_array()).flatten();
        ports.any(|port| *port == web)
    };
    let own = parse(include_str!("../deploy/networkpolicy.yaml"))?;
    ensure!(!opens(&own["spec"]["egress"]), "the page is not needed");
    let more = parse(include_str!("../examples/traefik/networkpolicy.yaml"))?;
    ensure!(
        more["kind"] == "NetworkPolicy" && opens(&more["spec"]["egress"]),
        "{more}"
    );
    ensure!(more["spec"]["policyTypes"] == json!(["Egress"]), "{more}");
    // For the same pods.
    for field in ["/metadata/namespace", "/spec/podSelector"] {
        ensure!(more.pointer(field) == own.pointer(field), "{field}: {more}");
    }
    let shown = blocks(page);
    let of = |begin: &str| {
        let block = shown.iter().find(|it| it.text.starts_with(begin));
        block.with_context(|| begin.to_owned())
    };
    assert_eq!(
        parse(&of("# examples/traefik/networkpolicy.yaml\n")?.text)?,
        more
    );
    let values = parse(&of("# values.yaml\n")?.text)?;
    assert_eq!(values["networkPolicy"]["egress"], more["spec"]["egress"]);
    Ok(())
}

/// What `install.yaml` is made by does not depend on the machine.
#[test]
fn only_the_pinned_kubectl_renders_the_one_file() -> Result<()> {
    let module = include_str!("control-plane/go.mod");
    let pinned = module.lines().find_map(|line| {
        let line = line
            .trim()
            .strip_prefix("sigs.k8s.io/kustomize/kustomize/v5 v")?;
        line.split(' ').next()
    });
    let pinned = pinned.context("no kustomize")?;
    let scratch = Scratch::new("only-the-pinned-kubectl")?;
    fs::create_dir_all(scratch.0.join("tests"))?;
    let tools = scratch.0.join("tests/tools.sh");
    fs::copy(Path::new(ROOT).join("tests/tools.sh"), &tools)?;
    // By a shell, so that no other thread's child holds it open while it is run.
    let make = "mkdir -p bin && printf '#!/bin/sh\necho Kustomize Version: v%s\n' \"$0\" >bin/kubectl && chmod 755 bin/kubectl";
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", scratch.0.join("bin").display());
    let asked = |version: &str| -> Result<Output> {
        let mut shell = Command::new("sh");
        shell.args(["-c", make, version]).current_dir(&scratch.0);
        ensure!(shell.status()?.success(), "{make}");
        let output = Command::new("sh")
            .arg(&tools)
            .arg("kubectl")
            .env("PATH", &path)
            .env("CERT_RENEW_BENCH_CACHE", scratch.0.join("cache"))
            .output()?;
        Ok(output)
    };
    let taken = asked(pinned)?;
    ensure!(
        taken.status.success() && said(&taken).contains("bin/kubectl"),
        "{}",
        said(&taken)
    );
    // One of another version, and nothing here to build the right one from.
    let other = asked("5.0.0")?;
    let expected = format!("no kubectl here has kustomize {pinned}");
    ensure!(
        !other.status.success() && said(&other).contains(&expected),
        "{}",
        said(&other)
    );
    let dist = include_str!("../deploy/dist.sh");
    ensure!(
        dist.contains("\nkubectl=$(tests/tools.sh kubectl)\n"),
        "deploy/dist.sh takes another"
    );
    Ok(())
}

//! The documents say what is: links lead somewhere, tests that are named exist, configs that are shown are valid.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cert_renew::cli::Cli;
use cert_renew_core::config::Config;
use cert_renew_core::secret::keys::ISSUER;
use cert_renew_core::secret::settings::{NamespaceDefaults, Settings};
use clap::Parser as _;
use serde_json::Value;
use test_bench::{Context as _, Result, ensure};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The files below a directory of the repository.
pub(crate) fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

pub(crate) fn documents() -> Result<Vec<(PathBuf, String)>> {
    let root = fs::read_dir(ROOT)?.map(|entry| Ok(entry?.path()));
    let mut paths = root.collect::<Result<Vec<_>>>()?;
    for directory in ["docs", "examples"] {
        paths.extend(files(&Path::new(ROOT).join(directory))?);
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    let read = |path: PathBuf| Ok((path.clone(), fs::read_to_string(path)?));
    paths.into_iter().map(read).collect()
}

/// A block of code of a page.
pub(crate) struct Block<'a> {
    /// What stands behind the opening fence.
    pub(crate) language: &'a str,
    /// Its lines, each with its end.
    pub(crate) text: String,
    /// The last heading before it.
    pub(crate) section: &'a str,
    /// It is what the block before it prints: nothing stands between them.
    pub(crate) is_output: bool,
    /// The line before it.
    before: &'a str,
}

impl Block<'_> {
    /// The reason of a mark of this kind, in a comment on the line before the block.
    pub(crate) fn mark(&self, kind: &str) -> Option<&str> {
        let comment = self.before.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
        comment.strip_prefix(kind)?.strip_prefix(": ")
    }
}

pub(crate) fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut found = Vec::new();
    let (mut before, mut section, mut alone) = ("", "", true);
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let text = line.trim_start();
        if let Some(language) = text.strip_prefix("```") {
            let indent = line.len() - text.len();
            let inside = lines.by_ref().take_while(|it| it.trim() != "```");
            let inside = inside.map(|it| it.get(indent..).unwrap_or_default().to_owned() + "\n");
            found.push(Block {
                language,
                text: inside.collect(),
                section,
                is_output: language == "text" && !alone,
                before,
            });
            alone = false;
        } else if text.starts_with('#') {
            (section, alone) = (text, true);
        } else if !text.is_empty() {
            alone = true;
        }
        before = text;
    }
    found
}

/// What GitHub makes of a heading.
pub(crate) fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let mut broken = Vec::new();
    for (path, text) in documents()? {
        for part in text.split("](").skip(1) {
            let link = part.split(')').next().unwrap_or_default();
            if link.contains("://") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().context("no directory")?.join(file),
            };
            let headings = fs::read_to_string(&target).unwrap_or_default();
            let mut headings = headings.lines().filter(|line| line.starts_with('#'));
            if !target.exists()
                || !fragment.is_empty() && !headings.any(|heading| anchor(heading) == fragment)
            {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    Ok(())
}

/// What a document names by its path is in the file of that module.
#[test]
fn every_test_that_a_document_names_exists() -> Result<()> {
    let mut named = 0;
    for (path, text) in documents()? {
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_path = quoted
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_:".contains(&b));
            // A prefix of names ends in `::`.
            if !is_path || !quoted.contains("::") || quoted.ends_with("::") {
                continue;
            }
            named += 1;
            let path = path.display();
            assert!(before(quoted).is_some(), "{path}: {quoted}");
        }
    }
    assert!(named >= 40, "only {named} tests are named");
    Ok(())
}

/// What stands before a function in the file of its module, by the whole path by which a document names it.
fn before(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split("::").collect();
    let (name, modules) = parts.split_last()?;
    // The innermost modules may be in the file of an outer one.
    let mut files = (1..=modules.len()).rev().flat_map(|depth| {
        let path = modules[..depth].join("/");
        ["core/src", "src", "tests"]
            .into_iter()
            .flat_map(move |directory| {
                ["", "/mod"].map(|suffix| format!("{ROOT}/{directory}/{path}{suffix}.rs"))
            })
    });
    files.find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        let (before, _) = text.split_once(&format!("fn {name}("))?;
        Some(before.to_owned())
    })
}

/// Whether this is the whole path of a test.
pub(crate) fn is_test(path: &str) -> bool {
    // Attributes stand between the last blank line or brace and the function.
    before(path).is_some_and(|before| {
        let attributes = before.rsplit(['}', '{', ';']).next().unwrap_or_default();
        attributes.contains("#[test]") || attributes.contains("#[tokio::test")
    })
}

/// A line of the threat model that nothing shows is a hope.
#[test]
fn each_line_of_the_threat_model_has_its_test() -> Result<()> {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/threat-model-tests.md"))?;
    let mut lines = 0;
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        if row.starts_with("| wants ") {
            continue;
        }
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 2, "{row}");
        let tests: Vec<&str> = cells[1].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests {
            assert!(is_test(test), "no such test: {test}");
        }
        lines += 1;
    }
    assert!(lines > 30, "only {lines} lines");
    Ok(())
}

/// Of each block: a command is one that the shell and this command's own parser take, and a file is taken by what reads it.
/// A block without a language is what a program prints. `newcomer` runs the commands.
#[test]
fn every_block_of_code_is_read() -> Result<()> {
    let mut wrong = Vec::new();
    let mut read = 0;
    for (path, text) in documents()? {
        for block in &blocks(&text) {
            let result = match block.language {
                "sh" => commands(&block.text).and_then(|()| marks(block)),
                "" if is_command(&block.text) => Err(test_bench::Error::msg("not marked as sh")),
                "yaml" => yaml(&block.text),
                "json" => serde_json::from_str::<Value>(&block.text)
                    .map(drop)
                    .map_err(Into::into),
                "" | "text" => Ok(()),
                other => Err(test_bench::Error::msg(format!("language {other}"))),
            };
            read += 1;
            if let Err(error) = result {
                wrong.push(format!("{}: {error:#}\n{}", path.display(), block.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(read > 80, "only {read} blocks");
    Ok(())
}

/// A mark that keeps a block from being run has a reason.
fn marks(block: &Block<'_>) -> Result<()> {
    let marks = ["not run", "rendered", "refused"];
    let why = marks.iter().find_map(|kind| block.mark(kind));
    let is_comment = block.before.starts_with("<!--");
    ensure!(
        !is_comment || why.is_some_and(|why| why.split(' ').count() >= 2),
        "no mark with a reason: {}",
        block.before
    );
    Ok(())
}

const PROGRAMS: [&str; 7] = [
    "$ ",
    "cert-renew ",
    "kubectl ",
    "helm ",
    "make ",
    "oc ",
    "curl ",
];

fn is_command(text: &str) -> bool {
    PROGRAMS.iter().any(|program| text.starts_with(program))
}

fn commands(text: &str) -> Result<()> {
    let mut shell = Command::new("bash");
    let shell = shell.args(["-n", "-c", text]).output()?;
    ensure!(
        shell.status.success(),
        "{}",
        String::from_utf8_lossy(&shell.stderr)
    );
    let makefile = include_str!("../Makefile");
    let ends = ["|", "||", "&", "&&", ";", ">", "<"];
    for line in text.replace("\\\n", " ").lines() {
        let line = line.split(" #").next().unwrap_or_default();
        let words = words(line);
        for path in &words {
            let ours = ["deploy/", "rbac/", "examples/"];
            // kubectl's own way to name a Deployment.
            let is_object = path == "deploy/cert-renew";
            if ours.iter().any(|it| path.starts_with(it)) && !is_object {
                ensure!(Path::new(ROOT).join(path).exists(), "no {path}");
            }
        }
        for (at, word) in words.iter().enumerate() {
            let first = at == 0 || ["|", "&&", ";", "do", "sudo"].contains(&&*words[at - 1]);
            let rest = words[at..].iter();
            let command: Vec<&String> = rest.take_while(|it| !ends.contains(&&***it)).collect();
            match &**word {
                "cert-renew" if first => {
                    Cli::try_parse_from(command)
                        .map_err(|error| test_bench::Error::msg(error.to_string()))?;
                }
                "make" if first => {
                    for target in command[1..].iter().filter(|it| !it.contains('=')) {
                        ensure!(
                            makefile.contains(&format!("\n{target}:")),
                            "no target {target}"
                        );
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The words of a line of shell; a `;` at the end of one is a word.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        let word = words.last_mut().expect("there is one from the start");
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, ' ') => words.push(String::new()),
            (None, ';') => words.extend([";".to_owned(), String::new()]),
            (_, c) => word.push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Files for the config, for kustomize and for the API server are checked by their own readers: here, or as the tests
/// of `gitops` and `examples` have it.
fn yaml(text: &str) -> Result<()> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    for document in documents.iter().filter(|it| !it.is_null()) {
        let fields = document.as_object().context("no mapping")?;
        if fields.contains_key("apiVersion") {
            ensure!(fields.contains_key("kind"), "no kind");
            continue;
        }
        let is = |names: &[&str]| fields.keys().all(|key| names.contains(&&**key));
        if is(&["metadata"]) {
            of_a_secret(&document["metadata"])?;
        } else if is(&CONFIG) {
            let mut config = document.clone();
            if !fields.contains_key("issuers") {
                config["issuers"] = Value::Object(Default::default());
            }
            let text = serde_json::to_string(&config)?;
            Config::parse(&text).with_context(|| "as a config".to_owned())?;
        } else if !is(&VALUES)
            && !fields.contains_key("scrape_configs")
            && !fields.contains_key("route")
        {
            return Err(test_bench::Error::msg(
                "neither an object, nor a config, nor values",
            ));
        }
    }
    Ok(())
}

/// What a page shows of a Secret that is there: settings that can be read.
fn of_a_secret(metadata: &Value) -> Result<()> {
    let annotations: BTreeMap<String, String> =
        serde_json::from_value(metadata["annotations"].clone())?;
    let (_, problems) = Settings::read(&annotations, false, &NamespaceDefaults::default());
    ensure!(
        annotations.contains_key(ISSUER) && problems.is_empty(),
        "{problems:?}"
    );
    Ok(())
}

/// What a config may have at its top.
const CONFIG: [&str; 11] = [
    "issuers", "solvers", "defaults", "class", "rollout", "renewals", "retry", "dns", "watch",
    "routes", "metrics",
];

/// What the chart's values may have at their top: what its schema has.
const VALUES: [&str; 7] = [
    "image",
    "config",
    "addons",
    "admission",
    "monitoring",
    "networkPolicy",
    "scope",
];

/// The steps that log lines name are those of docs/command.md.
#[test]
fn every_step_of_the_log_is_documented() -> Result<()> {
    let stages = include_str!("../src/telemetry/stage.rs");
    let steps = stages.lines().filter_map(|line| {
        let (stage, name) = line.trim().split_once(" => \"")?;
        let name = name.strip_suffix("\",")?;
        stage.starts_with("Self::").then(|| name.to_owned())
    });
    let told: BTreeSet<String> = steps.collect();
    ensure!(told.len() > 10, "{told:?}");
    // A step beside those would be in no trace, and known to nobody.
    for file in files(&Path::new(ROOT).join("src"))? {
        let text = fs::read_to_string(&file).unwrap_or_default();
        ensure!(!text.contains("step = \""), "{}", file.display());
    }
    let page = include_str!("../docs/command.md");
    let line = page.lines().find(|it| it.contains("with the field `step`"));
    let line = line.context("no line about steps")?;
    let documented = line.split('`').skip(3).step_by(2);
    let documented: BTreeSet<String> = documented.map(ToOwned::to_owned).collect();
    ensure!(told == documented, "{told:?} {documented:?}");
    Ok(())
}

/// What a reader would paste: `cert-renew.io/key=value` in the commands of the guides.
#[test]
fn every_annotation_in_a_command_parses() -> Result<()> {
    let mut checked = 0;
    for (path, text) in documents()? {
        let blocks = blocks(&text).into_iter();
        for block in blocks.filter(|it| it.language == "sh" && it.mark("refused").is_none()) {
            for part in block.text.split("cert-renew.io/").skip(1) {
                let Some((key, rest)) = part.split_once('=') else {
                    continue;
                };
                let value = match rest.strip_prefix('\'') {
                    Some(quoted) => quoted.split('\'').next(),
                    None => rest.split_whitespace().next(),
                };
                if key.contains(char::is_whitespace) || key == "managed" {
                    continue;
                }
                let annotations = [("issuer", "x"), (key, value.unwrap_or_default())];
                let annotations = annotations
                    .map(|(key, value)| (format!("cert-renew.io/{key}"), value.to_owned()));
                let (_, problems) = Settings::read(&annotations.into(), false, &Default::default());
                assert_eq!(problems, [], "{}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked >= 8, "only {checked} annotations are shown");
    Ok(())
}

#[test]
fn the_config_of_the_installation_is_valid() -> Result<()> {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/install.md"))?;
    let configs: Vec<&str> = text
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .filter(|yaml| yaml.starts_with("issuers:"))
        .collect();
    assert_eq!(configs.len(), 1);
    let config = Config::parse(configs[0])?;
    assert_eq!(config.warnings(), [""; 0]);
    Ok(())
}

/// A dependency is a change of architecture: each has its reason, and no reason outlives its dependency.
#[test]
fn every_dependency_has_its_reason() -> Result<()> {
    let read = |manifest: &str| fs::read_to_string(Path::new(ROOT).join(manifest));
    let manifests = read("Cargo.toml")? + "\n" + &read("core/Cargo.toml")?;
    let mut used = Vec::new();
    for section in manifests.split("\n[").skip(1) {
        let (head, body) = section.split_once("]\n").context("no section")?;
        let is_ours = head == "dependencies" || head.ends_with(".dependencies");
        let lines = body
            .lines()
            .filter(|line| is_ours && !line.starts_with('#'));
        used.extend(lines.filter_map(|line| Some(line.split_once('=')?.0.trim())));
    }
    used.retain(|name| *name != "cert-renew-core");
    used.sort_unstable();
    used.dedup();
    let architecture = fs::read_to_string(Path::new(ROOT).join("ARCHITECTURE.md"))?;
    let table = architecture
        .split("\n## Dependencies\n")
        .nth(1)
        .context("no table")?;
    let mut reasoned = Vec::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert!(cells.len() == 2 && cells[1].len() > 5, "{row}");
        reasoned.extend(cells[0].split('`').skip(1).step_by(2));
    }
    reasoned.sort_unstable();
    assert_eq!(used, reasoned);
    Ok(())
}

/// What a workflow does runs anywhere; each action is pinned by its SHA.
#[test]
fn the_workflows_only_call_targets_of_make() -> Result<()> {
    let makefile = include_str!("../Makefile");
    let mut targets = BTreeSet::new();
    for file in files(&Path::new(ROOT).join(".github/workflows"))? {
        let workflow: Value = serde_saphyr::from_str(&fs::read_to_string(&file)?)?;
        ensure!(
            workflow["permissions"]["contents"] == "read",
            "{}: more rights than a step says that it needs",
            file.display()
        );
        let jobs = workflow["jobs"].as_object().context("no jobs")?;
        let steps = jobs.values().filter_map(|job| job["steps"].as_array());
        for step in steps.flatten() {
            if let Some(command) = step["run"].as_str() {
                let target = command
                    .strip_prefix("make ")
                    .context("not a target of make")?;
                let target = target.split(' ').next().unwrap_or_default();
                ensure!(
                    makefile.contains(&format!("\n{target}:")),
                    "no target {target}"
                );
                targets.insert(target.to_owned());
                continue;
            }
            let action = step["uses"].as_str().context("neither run nor uses")?;
            let (_, version) = action.split_once('@').context("no version")?;
            let pinned = version.len() == 40 && version.bytes().all(|b| b.is_ascii_hexdigit());
            ensure!(pinned, "{action} is not pinned");
        }
    }
    let expected = [
        "audit", "command", "docs", "msrv", "publish", "release", "test",
    ];
    assert_eq!(targets, expected.map(ToOwned::to_owned).into());
    Ok(())
}

/// The book leaves out what SUMMARY.md does not name.
#[test]
fn every_page_is_in_the_book() -> Result<()> {
    let docs = Path::new(ROOT).join("docs");
    let summary = include_str!("../docs/SUMMARY.md");
    for path in files(&docs)? {
        let page = path.strip_prefix(&docs)?.display().to_string();
        let is_page = page.ends_with(".md") && page != "SUMMARY.md";
        ensure!(!is_page || summary.contains(&format!("({page})")), "{page}");
    }
    Ok(())
}

//! The documents say what is: links lead somewhere, tests that are named exist, configs that are shown are valid.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cert_renew_core::config::Config;
use cert_renew_core::secret::settings::Settings;
use test_bench::{Context as _, Result, ensure};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The files below a directory of the repository.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
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

fn documents() -> Result<Vec<(PathBuf, String)>> {
    let root = fs::read_dir(ROOT)?.map(|entry| Ok(entry?.path()));
    let mut paths = root.collect::<Result<Vec<_>>>()?;
    paths.extend(files(&Path::new(ROOT).join("docs"))?);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    let read = |path: PathBuf| Ok((path.clone(), fs::read_to_string(path)?));
    paths.into_iter().map(read).collect()
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
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

/// What a document names by its path stands in the file of that module.
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
    // The innermost modules may stand in the file of an outer one.
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

fn is_test(path: &str) -> bool {
    // Attributes stand between the last blank line or brace and the function.
    before(path).is_some_and(|before| {
        let attributes = before.rsplit(['}', '{', ';']).next().unwrap_or_default();
        attributes.contains("#[test]") || attributes.contains("#[tokio::test")
    })
}

/// A line of the threat model that nothing shows is a hope.
#[test]
fn each_line_of_the_threat_model_has_its_test() -> Result<()> {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/threat-model.md"))?;
    let mut lines = 0;
    let mut in_table = false;
    for row in text.lines() {
        in_table = row.starts_with('|') && (in_table || row == "| wants | what stops it | test |");
        if !in_table || row.starts_with("|---") || row.starts_with("| wants ") {
            continue;
        }
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 3, "{row}");
        let tests: Vec<&str> = cells[2].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests {
            assert!(is_test(test), "no such test: {test}");
        }
        lines += 1;
    }
    assert!(lines > 30, "only {lines} lines");
    Ok(())
}

/// What a reader would paste: `cert-renew.io/key=value` in the commands of the guides.
/// The steps that log lines name are those of docs/command.md.
#[test]
fn every_step_of_the_log_is_documented() -> Result<()> {
    let mut told = BTreeSet::new();
    for file in files(&Path::new(ROOT).join("src"))? {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let steps = text.split("step = \"").skip(1);
        told.extend(steps.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
    }
    let page = include_str!("../docs/command.md");
    let line = page.lines().find(|it| it.contains("with the field `step`"));
    let line = line.context("no line about steps")?;
    let documented = line.split('`').skip(3).step_by(2);
    let documented: BTreeSet<String> = documented.map(ToOwned::to_owned).collect();
    ensure!(told == documented, "{told:?} {documented:?}");
    Ok(())
}

#[test]
fn every_annotation_in_a_command_parses() -> Result<()> {
    let mut checked = 0;
    for (path, text) in documents()? {
        for block in text.split("```sh\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            for part in block.split("cert-renew.io/").skip(1) {
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

//! What pages quote of the words of cert-renew where no block of commands prints them: it is what the program says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use cert_renew::cli::Cli;
use cert_renew_core::secret::settings::{NamespaceDefaults, Settings};
use cert_renew_core::testing::entries::{NOW, index};
use cert_renew_core::verdict::Verdict;
use clap::Parser as _;
use test_bench::{Context as _, Result, ensure};

use crate::command::said;
use crate::documents::{blocks, documents};

/// The block of a page that begins so, without the end of its last line.
fn quoted(page: &str, begin: &str) -> Result<String> {
    let blocks = blocks(page);
    let mut found = blocks.iter().filter(|it| it.text.starts_with(begin));
    let found = found.next().with_context(|| format!("no {begin}"))?;
    Ok(found.text.trim_end().to_owned())
}

#[test]
fn a_value_that_is_wrong_is_told_as_docs_annotations_md_says() -> Result<()> {
    let page = include_str!("../docs/annotations.md");
    let shown = quoted(page, "cert-renew.io/names: ")?;
    let written = [
        ("cert-renew.io/issuer", "letsencrypt"),
        ("cert-renew.io/names", "shop_example.com"),
    ];
    let written = written.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let written = BTreeMap::from(written);
    let (_, problems) = Settings::read(&written, false, &NamespaceDefaults::default());
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(told, [shown]);
    Ok(())
}

#[test]
fn a_fault_of_the_config_is_told_as_docs_configuration_md_says() -> Result<()> {
    let shown = quoted(include_str!("../docs/configuration.md"), "config.yaml:")?;
    let config = "issuers:
  letsencrypt:
    directory: https://acme-v02.api.letsencrypt.org/directory
    contact: ops@shop.example
    allow:
      - namespaces: [shop]
        names: [shop.example.com, \"*.*.example.com\"]
";
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quoted");
    fs::create_dir_all(&home)?;
    fs::write(home.join("config.yaml"), config)?;
    let checked = Command::new(env!("CARGO_BIN_EXE_cert-renew"))
        .args(["config", "check", "config.yaml"])
        .current_dir(&home)
        .output()?;
    let told = said(&checked);
    ensure!(
        checked.status.code() == Some(1) && told.trim_end() == format!("cert-renew: {shown}"),
        "{told}"
    );
    Ok(())
}

/// But for when that is.
#[test]
fn what_holds_a_renewal_up_is_told_as_docs_command_md_says() -> Result<()> {
    let shown = quoted(include_str!("../docs/command.md"), "shop/shop-tls: a new")?;
    let index = index();
    let mut verdicts = index
        .iter()
        .filter_map(|(row, _)| Verdict::of_row(NOW, &index, row, 0));
    let held = verdicts.find(|it| *it.name == *"held").context("no such")?;
    let held = held.held_up(NOW).context("it is held")?;
    let (told, until) = held.rsplit_once(' ').context("an instant")?;
    ensure!(until.ends_with('Z'), "{held}");
    let (shown, _) = shown.rsplit_once(' ').context("an instant")?;
    assert_eq!(shown, format!("shop/shop-tls: {told}"));
    Ok(())
}

/// The commands that stand in a line of text: what is between backticks outside of blocks.
fn commands_in_text(page: &str) -> Vec<String> {
    let mut inside = false;
    let lines = page.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        inside ^= is_fence;
        !inside && !is_fence
    });
    let spans = lines.flat_map(|line| line.split('`').skip(1).step_by(2));
    let spans = spans.map(|span| span.replace("\\|", "|"));
    // Three words and more: fewer name a command, and type none.
    let is_command = |span: &String| {
        let of_ours = ["cert-renew ", "helm ", "kubectl "];
        let begins = of_ours.iter().any(|program| span.starts_with(program));
        begins && span.split(' ').count() > 2 && !span.contains('…')
    };
    spans.filter(is_command).collect()
}

/// A command in a line of text or a table is as whole as one in a block: it parses, and Helm is told the namespace.
#[test]
fn every_command_in_a_line_of_text_can_be_typed() -> Result<()> {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (path, text) in documents()? {
        for command in commands_in_text(&text) {
            let first = command.split(" | ").next().unwrap_or_default();
            let words: Vec<&str> = first.split_whitespace().collect();
            let is_whole = match words[..] {
                ["helm", ..] => words.iter().any(|it| ["-n", "--namespace"].contains(it)),
                ["cert-renew", ..] => Cli::try_parse_from(&words).is_ok(),
                // As a plugin.
                ["kubectl", "cert-renew", ..] => Cli::try_parse_from(&words[1..]).is_ok(),
                _ => first.matches('\'').count() % 2 == 0 && first.matches('"').count() % 2 == 0,
            };
            if !is_whole {
                wrong.push(format!("{}: {command}", path.display()));
            }
            checked += 1;
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(checked > 100, "only {checked}");
    Ok(())
}

//! Ordinary words: on pages for users, in what the program says, in what is installed, and on the status page.

use std::fs;
use std::path::Path;

use cert_renew::cli::Cli;
use clap::CommandFactory as _;
use test_bench::{Result, ensure};

use super::{ROOT, pages};
use crate::documents::files;

/// Words that only this project has, or that nobody says, each with what is said instead.
const REFUSED: [(&str, &str); 40] = [
    ("ledger", "failure history"),
    ("bench", "test cluster"),
    ("benches", "test clusters"),
    ("seeds", "predecessors"),
    ("roll", "restart"),
    ("rolls", "restarts"),
    ("leaf", "certificate"),
    ("taken over", "reloaded"),
    ("way to the cluster", "connection"),
    ("budget", "limit"),
    ("budgets", "limits"),
    ("whoever", "anyone who, or the component"),
    ("anew", "again"),
    ("so many", "that many, or a figure"),
    ("but for", "except for"),
    ("meanwhile", "at the same time"),
    ("stands in", "is in"),
    ("stands there", "is there"),
    ("to be told", "must know, or is reported"),
    ("awaited", "waits for each"),
    ("life runs short", "the certificate is close to expiry"),
    ("while life is short", "close to expiry"),
    ("no circles", "must not be circular"),
    ("he", "they"),
    ("him", "them"),
    ("his", "their"),
    ("everything that holds the claims", "the full test suite"),
    ("belong to nobody", "standalone"),
    ("is all it may do", "all permissions are listed in"),
    ("the keys of others stay", "other data keys are kept"),
    ("what a ca limits is kept to", "by CA rate limits"),
    (
        "holds up only what it governs",
        "only the listed action is blocked",
    ),
    ("knows of each pod one of", "each pod gets one of"),
    ("the least that is a config", "a minimal config"),
    ("what is more waits", "excess requests wait"),
    ("follow what leads out of it", "CNAMEs may leave the zone"),
    ("what is no part of the file", "command line flags"),
    ("counted by the one that did it", "counters are per replica"),
    ("that nobody looked at", "was not handled"),
    ("live side by side", "can coexist"),
];
/// What holds one of these words and is Kubernetes' own, or plain.
const PLAIN: [&str; 5] = [
    "roll out",
    "rolls it out",
    "rolls out",
    "disruption budget",
    "disruption budgets",
];

/// Words in small letters with one blank between, and a dot where a thought ends.
fn words(text: &str) -> String {
    let kept = |c: char| match c {
        '\'' => c,
        c if c.is_alphanumeric() => c,
        '-' | '*' | '_' => ' ',
        c if c.is_whitespace() => ' ',
        _ => '.',
    };
    let spaced: String = text.chars().map(kept).collect();
    let spaced = spaced.to_lowercase().replace('.', " . ");
    let mut plain = format!(
        " {} ",
        spaced.split_whitespace().collect::<Vec<_>>().join(" ")
    );
    for phrase in PLAIN {
        plain = plain.replace(&format!(" {phrase} "), " . ");
    }
    plain
}

/// The words of a page, without its blocks, without code, and without where its links lead.
fn prose(page: &str) -> String {
    let mut inside = false;
    let mut said = String::new();
    for line in page.lines() {
        let is_fence = line.trim_start().starts_with("```");
        inside ^= is_fence;
        if inside || is_fence {
            continue;
        }
        let text = line.split('`').step_by(2).collect::<Vec<_>>().join(";");
        let mut parts = text.split("](");
        said += parts.next().unwrap_or_default();
        for part in parts {
            said += part.split_once(')').map_or("", |(_, rest)| rest);
        }
        said.push('\n');
        // Paragraphs and rows end; lines of one paragraph go on.
        if line.is_empty() || line.starts_with(['|', '#', '*', '-']) {
            said.push_str(".\n");
        }
    }
    words(&said)
}

/// The refused words that are in there, each with what is said instead.
fn refused(words: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    REFUSED
        .into_iter()
        .filter(move |(word, _)| words.contains(&format!(" {word} ")))
}

#[test]
fn the_pages_say_it_in_ordinary_words() -> Result<()> {
    let mut found = Vec::new();
    for (page, text) in pages()? {
        let words = prose(&text);
        found.extend(refused(&words).map(|it| format!("{page}: {it:?}")));
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    // The search itself.
    let bad = prose("The workloads, each\nawaited. It `rolls` out [the](leaf.md), and rolls them.");
    let bad: Vec<&str> = refused(&bad).map(|(word, _)| word).collect();
    assert_eq!(bad, ["rolls", "awaited"]);
    Ok(())
}

/// Errors, Events, log lines and metrics: the literals of the sources that are more than one word; and all help texts.
#[test]
fn what_the_program_says_is_in_ordinary_words() -> Result<()> {
    let root = Path::new(ROOT);
    let (mut found, mut read) = (Vec::new(), 0);
    for directory in ["src", "core/src"] {
        for file in files(&root.join(directory))? {
            let place = file.strip_prefix(root)?.display().to_string();
            if place.contains("test") || place.contains("fuzz") || !place.ends_with(".rs") {
                continue;
            }
            for literal in literals(&fs::read_to_string(&file)?) {
                if !literal.contains(' ') {
                    continue;
                }
                read += 1;
                // `leaf` is a value of annotations.
                let words = words(&literal);
                let refused = refused(&words).filter(|(word, _)| *word != "leaf");
                found.extend(refused.map(|it| format!("{place}: {it:?}: {literal}")));
            }
        }
    }
    let mut help = String::new();
    helps(&mut Cli::command(), &mut help);
    let help = words(&help);
    found.extend(refused(&help).map(|it| format!("help: {it:?}")));
    ensure!(found.is_empty(), "{}", found.join("\n"));
    ensure!(read > 1_000, "only {read} literals");
    assert_eq!(
        literals("f('\"', \"a \\\"b\\\"\") // \"c\"\n<'a> \"d\\n\" #[cfg(test)] \"e\""),
        ["a \\\"b\\\"", "d\\n"]
    );
    Ok(())
}

/// What is read on the way: values and notes of the chart, the config, the texts of alerts and panels; and each single word
/// of the status page, whose sentences are among the texts of the program.
#[test]
fn what_is_installed_and_the_status_page_are_in_ordinary_words() -> Result<()> {
    let root = Path::new(ROOT);
    let mut found = Vec::new();
    // `leaf` is a value of annotations.
    let told = |words: &str| {
        let refused = refused(words).map(|(word, _)| word);
        refused.filter(|word| *word != "leaf").collect::<Vec<_>>()
    };
    for file in [
        "deploy/helm/values.yaml",
        "deploy/helm/values.schema.json",
        "deploy/helm/templates/NOTES.txt",
        "deploy/helm/Chart.yaml",
        "deploy/config.yaml",
        "deploy/alerts.yaml",
        "deploy/monitoring/dashboard.json",
    ] {
        let text = installed(&fs::read_to_string(root.join(file))?);
        ensure!(text.len() > 200, "{file}: {text}");
        found.extend(told(&text).into_iter().map(|it| format!("{file}: {it}")));
    }
    let mut read = 0;
    for file in files(&root.join("src/net/metrics_port/page"))? {
        if file.extension().is_none_or(|it| it != "rs") {
            continue;
        }
        for literal in literals(&fs::read_to_string(&file)?) {
            read += 1;
            let said = told(&words(&literal));
            found.extend(
                said.into_iter()
                    .map(|it| format!("{}: {it}", file.display())),
            );
        }
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    ensure!(read > 200, "only {read} literals of the page");
    let bad = installed("# The {{ .Values.rolls }} is awaited: a\n# budget");
    assert_eq!(told(&bad), ["budget", "awaited"]);
    Ok(())
}

/// The words of a file, its comments too, without what its templates compute.
fn installed(text: &str) -> String {
    let fixed = { text.split("{{") }.map(|it| it.split_once("}}").map_or(it, |(_, rest)| rest));
    words(&fixed.collect::<Vec<_>>().join(";").replace('#', " "))
}

/// The help of a command and of all below it.
fn helps(command: &mut clap::Command, all: &mut String) {
    all.push_str(&command.render_long_help().to_string());
    for command in command.get_subcommands_mut() {
        helps(command, all);
    }
}

/// The texts in quotes of a source, without those of its unit tests.
fn literals(source: &str) -> Vec<String> {
    let (source, _) = source.split_once("#[cfg(test)]").unwrap_or((source, ""));
    let chars: Vec<char> = source.chars().collect();
    let until = |from: usize, end: char| {
        let rest = chars.iter().skip(from);
        from + rest.take_while(|it| **it != end).count()
    };
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let (second, third) = (chars.get(at + 1), chars.get(at + 2));
        match chars[at] {
            '/' if second == Some(&'/') => at = until(at, '\n'),
            // A character; a lifetime has no second quote.
            '\'' if second == Some(&'\\') => at = until(at + 3, '\''),
            '\'' if third == Some(&'\'') => at += 2,
            '"' => {
                let begin = at + 1;
                at = begin;
                while at < chars.len() && chars[at] != '"' {
                    at += if chars[at] == '\\' { 2 } else { 1 };
                }
                let end = at.min(chars.len());
                found.push(chars[begin..end].iter().collect());
            }
            _ => {}
        }
        at += 1;
    }
    found
}

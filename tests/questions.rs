//! The questions that a newcomer asks first: docs/README.md has a short answer to each, and where there is more.

use std::fs;
use std::path::Path;

use test_bench::{Context as _, Result, bail, ensure};

use crate::documents::anchor;

/// Lines of a page that one sees at once.
const SCREEN: usize = 30;

/// Words that are read in a second, and seconds for following a link.
const WORDS_A_SECOND: usize = 4;
const CLICK: usize = 4;

/// Who follows a question's link sees the answer before anything has to be scrolled. How long it takes from the first line
/// of the README on is printed.
#[test]
#[expect(clippy::print_stdout, reason = "the seconds to each answer")]
fn the_answer_to_each_question_stands_where_its_link_leads() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let index = fs::read_to_string(docs.join("README.md"))?;
    let readme = fs::read_to_string(docs.join("../README.md"))?;
    println!("README: {} words", words(&readme));
    let (way, _) =
        { readme.split_once("](docs/README.md)") }.context("no link to the questions")?;
    let rows = index.lines().filter(|line| line.starts_with("| "));
    let mut answered = 0;
    for row in rows.skip(1) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [question, answer, link] = cells[..] else {
            bail!("{row}");
        };
        let answer = answer.trim().trim_matches('`');
        let target = link.split(['(', ')']).nth(1).context("no link")?;
        let (page, fragment) = target.split_once('#').context("no section")?;
        let page = fs::read_to_string(docs.join(page))?;
        let is_it = |line: &&str| line.starts_with('#') && anchor(line) == fragment;
        let seen = page.lines().skip_while(|line| !is_it(line)).take(SCREEN);
        let seen: Vec<&str> = seen.collect();
        let at = { seen.iter().position(|line| line.contains(answer)) }
            .with_context(|| format!("{row}: {answer} is not near the top of {target}"))?;
        let (above, _) = index.split_once(row).context("no row")?;
        let read = words(way) + words(above) + words(row) + words(&seen[..=at].join(" "));
        let seconds = read / WORDS_A_SECOND + 2 * CLICK;
        println!("{seconds:4} s  {} ({target})", question.trim());
        answered += 1;
    }
    ensure!(answered == 13, "{answered} questions");
    Ok(())
}

/// Words of a page as one reads it: addresses of links and lines of tables and pictures are none.
fn words(text: &str) -> usize {
    let is_word = |word: &&str| word.chars().any(char::is_alphanumeric);
    text.split_whitespace().filter(is_word).count()
}

/// What a load balancer, our own NetworkPolicy, Google's metadata server or a second cluster asks for is said on the pages
/// where somebody whose self-check fails looks.
#[test]
fn what_surroundings_ask_for_stands_where_it_is_looked_for() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for (page, text) in [
        ("install.md", "/.well-known/acme-challenge/health"),
        ("solvers.md", "/.well-known/acme-challenge/health"),
        ("install.md", "#route-53"),
        ("how-to/wildcard.md", "port 988"),
        ("solvers.md", "the NetworkPolicy may be the cause"),
        (
            "troubleshooting.md",
            "[Open that port](install.md#more-ports)",
        ),
        ("solvers.md", "needs DNS-01 or a redirect"),
        ("how-to/many-clusters.md", "DNS-01"),
        // How the demo is kept, and where the command comes from.
        ("../README.md", "KEEP=1"),
        ("start/quick-start.md", "make build"),
    ] {
        let said = fs::read_to_string(docs.join(page))?;
        ensure!(said.contains(text), "{page} does not say: {text}");
    }
    Ok(())
}

//! The questions that a newcomer asks first: docs/README.md has a short answer to each, and where there is more.

use std::fs;
use std::path::Path;

use test_bench::{Context as _, Result, bail, ensure};

use crate::documents::anchor;

/// Lines of a page that one sees at once.
const SCREEN: usize = 30;

/// Who follows a question's link sees the answer before anything has to be scrolled.
#[test]
fn the_answer_to_each_question_stands_where_its_link_leads() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let index = fs::read_to_string(docs.join("README.md"))?;
    let rows = index.lines().filter(|line| line.starts_with("| "));
    let mut answered = 0;
    for row in rows.skip(1) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [_, answer, link] = cells[..] else {
            bail!("{row}");
        };
        let answer = answer.trim().trim_matches('`');
        let target = link.split(['(', ')']).nth(1).context("no link")?;
        let (page, fragment) = target.split_once('#').context("no section")?;
        let page = fs::read_to_string(docs.join(page))?;
        let is_it = |line: &&str| line.starts_with('#') && anchor(line) == fragment;
        let mut lines = page.lines().skip_while(|line| !is_it(line));
        ensure!(
            lines
                .by_ref()
                .take(SCREEN)
                .any(|line| line.contains(answer)),
            "{row}: {answer} is not near the top of {target}"
        );
        answered += 1;
    }
    ensure!(answered == 10, "{answered} questions");
    Ok(())
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
    ] {
        let said = fs::read_to_string(docs.join(page))?;
        ensure!(said.contains(text), "{page} does not say: {text}");
    }
    Ok(())
}

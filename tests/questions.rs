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

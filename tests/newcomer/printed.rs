//! Whether a command prints what a page shows below it: line by line, headings included. What differs from run to run
//! (instants, durations, fingerprints, addresses) counts as a placeholder; a line `…` stands for any lines.

use test_bench::{Result, ensure};

/// Stands for any lines.
const ANY: &str = "…";
/// Stands for what differs from run to run.
const VARIES: char = '#';
/// Fewest characters of a word of hexadecimal digits that is a number, although it may be all letters.
const HEX: usize = 6;

/// Compares line by line.
pub(super) fn shows(page: &str, output: &str) -> Result<()> {
    let lines = |text: &str| text.lines().map(lasting).collect::<Vec<_>>();
    let (wanted, found) = (lines(page), lines(output));
    ensure!(
        fits(&wanted, &found),
        "the page shows\n{page}\nand what is printed is\n{output}\ncompared as\n{}\nand\n{}",
        wanted.join("\n"),
        found.join("\n")
    );
    Ok(())
}

/// Whether the lines are those of the page.
fn fits(wanted: &[String], found: &[String]) -> bool {
    match (wanted.split_first(), found.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == ANY => {
            fits(rest, found) || !found.is_empty() && fits(wanted, &found[1..])
        }
        (Some((first, rest)), Some((line, others))) => first == line && fits(rest, others),
        _ => false,
    }
}

/// A line with a placeholder for each part that differs, and with single spaces.
fn lasting(line: &str) -> String {
    if line.trim() == ANY {
        return ANY.to_owned();
    }
    // The CA may have named its window by then, or not yet.
    let line = line.replace("by the CA's window (ARI)", "by its lifetime");
    let mut words: Vec<String> = line.split_whitespace().map(of_word).collect();
    // "in 89d 23h" is "in 90d" at another time.
    words.dedup_by(|one, other| one == other && one.chars().eq([VARIES]));
    words.join(" ")
}

fn of_word(word: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '…';
    let mut text = String::new();
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        if end == 0 {
            text.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (part, after) = rest.split_at(end);
        let is_hex = part.len() >= HEX && part.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hex || part.contains(|c: char| c.is_ascii_digit() || c == '…') {
            text.push(VARIES);
        } else {
            text.push_str(part);
        }
        rest = after;
    }
    if is_uuid(word.trim_matches(|c: char| !c.is_ascii_alphanumeric())) {
        return VARIES.to_string();
    }
    text
}

/// Some of a UUID's five parts may be all letters.
fn is_uuid(word: &str) -> bool {
    let lengths: Vec<usize> = word.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && word.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

#[test]
fn what_varies_is_passed_over_and_words_and_headings_are_not() {
    let page = "NAME  STATE  EXPIRES     PROBLEM\ntls   ok     in 89d 23h  -\n";
    let other = "NAME  STATE  EXPIRES  PROBLEM\ntls   ok     in 90d   -\n";
    assert!(shows(page, other).is_ok());
    for wrong in [
        other.replace("PROBLEM", "LAST ERROR"),
        other.replace("ok", "due"),
        format!("{other}one more\n"),
        other.lines().take(1).collect(),
    ] {
        assert!(shows(page, &wrong).is_err(), "{wrong}");
    }
    let page =
        "…\nleaf: acad053c… 2027-02-27T15:03:51Z bfb8d7d4-fc2e-4ec3-a238-bd2389fc9c05\nused\n…\n";
    let printed = "kind: Secret\nleaf: beefbeefbeef 2028-01-01T00:00:00Z abcdefab-abcd-abcd-abcd-abcdefabcdef\nused\n";
    assert!(shows(page, printed).is_ok());
    // A line that the page leaves out is missing in the middle, not at the end.
    let more = printed.replace("used", "with: 3\nused");
    assert!(shows(page, &more).is_err());
}

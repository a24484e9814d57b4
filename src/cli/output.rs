//! Output of commands: tables for people, JSON and YAML for programs. The commands print.
//!
//! On a terminal, long columns are cut so that a line fits; a pipe gets complete cells.

use std::borrow::Cow;
use std::io::{IsTerminal as _, stdout};

use cert_renew_core::secret::used_by::UsedBy;
use cert_renew_core::text::{holds_private_key, is_hidden, shown};
use cert_renew_core::verdict::State;
use clap::ValueEnum;
use serde::Serialize;

use super::Failure;
use crate::telemetry::log::wants_colours;

/// How it is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Table,
    /// The table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

impl Output {
    /// The text for a program; None for a table.
    pub(super) fn of_program<T: Serialize>(self, value: &T) -> Result<Option<String>, Failure> {
        match self {
            Self::Table | Self::Wide => Ok(None),
            Self::Json => serde_json::to_string_pretty(value)
                .map(|text| Some(text + "\n"))
                .map_err(|error| Failure::new("printing", &error)),
            Self::Yaml => serde_saphyr::to_string(value)
                .map(Some)
                .map_err(|error| Failure::new("printing", &error)),
        }
    }
}

/// Blanks between two columns.
const GAP: usize = 2;
/// Least width of a cut column, in characters: on a narrower terminal the line wraps.
const LEAST: usize = 12;

/// The capabilities of standard output; the default is a pipe.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Screen {
    /// Whether it supports colours.
    pub(super) colours: bool,
    /// Characters of a line; `None` if nothing needs to be cut.
    pub(super) columns: Option<usize>,
}

impl Screen {
    /// The present standard output.
    pub(super) fn of_stdout() -> Self {
        Self {
            colours: stdout().is_terminal() && wants_colours(|name| std::env::var_os(name)),
            columns: columns_of_stdout(),
        }
    }

    /// The same without cutting.
    pub(super) fn uncut(self) -> Self {
        Self {
            columns: None,
            ..self
        }
    }
}

/// The width of the terminal that standard output is.
#[cfg(unix)]
fn columns_of_stdout() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stdout()).ok()?;
    // A terminal that does not know its width reports 0.
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Unknown: tables are not cut.
#[cfg(not(unix))]
fn columns_of_stdout() -> Option<usize> {
    None
}

/// Foreign text for a terminal: as it is if it is one line of visible characters, otherwise quoted.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if text.contains(is_hidden) || holds_private_key(text) {
        shown(text).into()
    } else {
        text.into()
    }
}

/// The workloads that use a certificate, and what was proven of them.
pub(super) fn workloads(used_by: &UsedBy) -> String {
    let proven = used_by.proven.as_ref().map(|it| it.in_words());
    let parts = [used_by.in_words()].into_iter().chain(proven);
    parts.collect::<Vec<_>>().join("; ")
}

/// The escape sequence for a state: problems are highlighted on a terminal.
pub(super) fn colour(state: &str) -> Option<&'static str> {
    let known = State::ALL.into_iter().find(|it| it.as_str() == state)?;
    match known {
        State::Absent | State::Due | State::Held | State::Paused => Some("33"),
        known if known.is_trouble() => Some("31"),
        _ => None,
    }
}

/// The escape sequence that colours a word, if any.
pub(super) type Paint = fn(&str) -> Option<&'static str>;

/// A table with columns of the necessary width, one of which may be coloured.
#[derive(Debug)]
pub(super) struct Table {
    titles: Vec<&'static str>,
    widths: Vec<usize>,
    /// Longest cell of each column, in characters; longer ones are cut.
    most: Vec<usize>,
    painted: Option<(usize, Paint)>,
}

impl Table {
    /// A table wide enough for `lines`.
    pub(super) fn new(
        titles: &[&'static str],
        lines: &[Vec<String>],
        painted: Option<(usize, Paint)>,
    ) -> Self {
        let width = |(column, title): (usize, &&str)| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max();
            widest.unwrap_or(0).max(title.len())
        };
        Self {
            titles: titles.to_vec(),
            widths: titles.iter().enumerate().map(width).collect(),
            most: vec![usize::MAX; titles.len()],
            painted,
        }
    }

    /// Cuts a column at this number of characters, if the screen is a terminal.
    pub(super) fn at_most(mut self, screen: Screen, column: usize, most: usize) -> Self {
        if screen.columns.is_some() {
            self.widths[column] = self.widths[column].min(most);
            self.most[column] = most;
        }
        self
    }

    /// Narrows the columns in `may_be_cut`, the widest first, until a line fits the screen.
    pub(super) fn fit(mut self, screen: Screen, may_be_cut: &[usize]) -> Self {
        let Some(columns) = screen.columns else {
            return self;
        };
        let count = self.titles.len();
        let all = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * (count - 1);
        while all(&self.widths) > columns {
            let long = may_be_cut.iter().filter(|it| self.widths[**it] > LEAST);
            let Some(widest) = long.max_by_key(|it| self.widths[**it]) else {
                break;
            };
            self.widths[*widest] -= 1;
        }
        let left = columns.saturating_sub(all(&self.widths));
        for column in may_be_cut {
            // Later lines may be longer, and the last column needs no padding.
            let more = if column + 1 == count { left } else { 0 };
            self.most[*column] = (self.widths[*column] + more).max(LEAST);
        }
        self
    }

    /// The line of headings.
    pub(super) fn head(&self) -> String {
        let titles: Vec<String> = self.titles.iter().map(|it| (*it).to_owned()).collect();
        self.lay(&titles, None)
    }

    /// One line.
    pub(super) fn line(&self, cells: &[String]) -> String {
        let colour = self.painted.and_then(|(column, paint)| {
            let colour = paint(cells.get(column)?)?;
            Some((column, colour))
        });
        self.lay(cells, colour)
    }

    fn lay(&self, cells: &[String], colour: Option<(usize, &str)>) -> String {
        let mut out = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let width = if column + 1 == self.titles.len() {
                0
            } else {
                self.widths[column]
            };
            let cell = cut(cell, self.most[column]);
            let padded = format!("{cell:width$}");
            match colour {
                Some((painted, colour)) if painted == column => {
                    out.push_str(&format!("\u{1b}[{colour}m{padded}\u{1b}[0m"));
                }
                _ => out.push_str(&padded),
            }
            out.push_str(&" ".repeat(GAP));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }
}

/// A cell of at most this many characters; a longer one ends with an ellipsis.
fn cut(cell: &str, most: usize) -> Cow<'_, str> {
    if cell.chars().count() <= most {
        return cell.into();
    }
    let kept = cell.chars().take(most.saturating_sub(1));
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: Option<usize>) -> Vec<String> {
        let line =
            |name: &str, names: &str, error: &str| [name, names, error].map(str::to_owned).to_vec();
        let lines = [
            line("shop/a", "www.shop.example,shop.example", "-"),
            line(
                "shop/b",
                "ü.example",
                "the CA says no, and why in many words",
            ),
        ];
        let screen = Screen {
            columns,
            ..Screen::default()
        };
        let table = Table::new(&["SECRET", "NAMES", "LAST ERROR"], &lines, None);
        let table = table.fit(screen, &[1, 2]);
        let lines = lines.iter().map(|cells| table.line(cells));
        let lines = [table.head()].into_iter().chain(lines);
        lines.map(|line| line.trim_end().to_owned()).collect()
    }

    #[test]
    fn a_table_is_cut_to_the_terminal_and_to_nothing_else() {
        let wide = [
            "SECRET  NAMES                          LAST ERROR",
            "shop/a  www.shop.example,shop.example  -",
            "shop/b  ü.example                      the CA says no, and why in many words",
        ];
        assert_eq!(table(None), wide);
        assert_eq!(table(Some(76)), wide, "it fits to the character");
        assert_eq!(
            table(Some(48)),
            [
                "SECRET  NAMES                LAST ERROR",
                "shop/a  www.shop.example,s…  -",
                "shop/b  ü.example            the CA says no, an…",
            ]
        );
        // Cells that a user copies stay complete on the narrowest terminal.
        for line in table(Some(1)) {
            assert!(line.starts_with("shop/") || line.starts_with("SECRET"));
            assert!(line.chars().count() <= 6 + 2 * GAP + 2 * LEAST, "{line}");
        }
        for columns in 34..90 {
            let longest = table(Some(columns))
                .into_iter()
                .map(|it| it.chars().count());
            assert!(longest.max() <= Some(columns), "{columns}");
        }
    }

    #[test]
    fn foreign_text_is_quoted_only_where_a_terminal_would_not_show_it() {
        for (text, expected) in [
            ("the CA says \"no\": é", "the CA says \"no\": é"),
            ("a\u{1b}[2J", "\"a\\u{1b}[2J\""),
            ("a\u{202e}b", "\"a\\u{202e}b\""),
            ("-----BEGIN PRIVATE KEY-----", "a private key (not shown)"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }

    #[test]
    fn a_line_that_comes_later_is_cut_too() {
        let titles = ["NAME", "LAST ERROR"];
        let screen = Screen {
            columns: Some(30),
            ..Screen::default()
        };
        let first = [vec!["a".to_owned(), "-".to_owned()]];
        let table = Table::new(&titles, &first, None).fit(screen, &[1]);
        let later = table.line(&["b".into(), "x".repeat(100)]);
        assert_eq!(later.trim_end().chars().count(), 30, "{later}");
    }
}

//! Output of commands: tables for people, JSON and YAML for programs. The commands print.
//!
//! On a terminal, long columns are cut so that a line fits; a pipe gets complete cells.

use std::borrow::Cow;
use std::io::{IsTerminal as _, stdout};

use clap::ValueEnum;
use serde::Serialize;

use super::Failure;

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
        let size = rustix::termios::tcgetwinsize(stdout());
        let columns = size.ok().map(|size| usize::from(size.ws_col));
        Self {
            colours: stdout().is_terminal(),
            // A terminal that does not know its width reports 0.
            columns: columns.filter(|columns| *columns > 0),
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

/// The escape sequence that colours a word, if any.
pub(super) type Paint = fn(&str) -> Option<&'static str>;

/// A table with columns of the necessary width, one of which may be coloured.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    titles: [&'static str; N],
    widths: [usize; N],
    /// Longest cell of each column, in characters; longer ones are cut.
    most: [usize; N],
    painted: Option<(usize, Paint)>,
}

impl<const N: usize> Table<N> {
    /// A table wide enough for `lines`.
    pub(super) fn new(
        titles: [&'static str; N],
        lines: &[[String; N]],
        painted: Option<(usize, Paint)>,
    ) -> Self {
        let width = |column: usize| {
            let cells = lines.iter().map(|line| line[column].chars().count());
            cells.max().unwrap_or(0).max(titles[column].len())
        };
        Self {
            titles,
            widths: std::array::from_fn(width),
            most: [usize::MAX; N],
            painted,
        }
    }

    /// Narrows the columns in `may_be_cut`, the widest first, until a line fits the screen.
    pub(super) fn fit(mut self, screen: Screen, may_be_cut: &[usize]) -> Self {
        let Some(columns) = screen.columns else {
            return self;
        };
        let all = |widths: &[usize; N]| widths.iter().sum::<usize>() + GAP * (N - 1);
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
            let more = if column + 1 == N { left } else { 0 };
            self.most[*column] = (self.widths[*column] + more).max(LEAST);
        }
        self
    }

    /// The line of headings.
    pub(super) fn head(&self) -> String {
        self.lay(&self.titles.map(str::to_owned), None)
    }

    /// One line.
    pub(super) fn line(&self, cells: &[String; N]) -> String {
        let colour = self.painted.and_then(|(column, paint)| {
            let colour = paint(&cells[column])?;
            Some((column, colour))
        });
        self.lay(cells, colour)
    }

    fn lay(&self, cells: &[String; N], colour: Option<(usize, &str)>) -> String {
        let mut out = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let width = if column + 1 == N {
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
        let line = |name: &str, names: &str, error: &str| [name, names, error].map(str::to_owned);
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
        let table = Table::new(["SECRET", "NAMES", "LAST ERROR"], &lines, None);
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
    fn a_line_that_comes_later_is_cut_too() {
        let titles = ["NAME", "LAST ERROR"];
        let screen = Screen {
            columns: Some(30),
            ..Screen::default()
        };
        let first = [["a".to_owned(), "-".to_owned()]];
        let table = Table::new(titles, &first, None).fit(screen, &[1]);
        let later = table.line(&["b".into(), "x".repeat(100)]);
        assert_eq!(later.trim_end().chars().count(), 30, "{later}");
    }
}

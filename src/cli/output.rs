//! How commands print: tables for people, JSON and YAML for programs. Pure; the commands print.

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
    /// The text for a program; None where people read.
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

/// Which escape sequence colours a word, if any.
pub(super) type Paint = fn(&str) -> Option<&'static str>;

/// A table whose columns are as wide as they need to be, in which one column may be coloured.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    titles: [&'static str; N],
    widths: [usize; N],
    painted: Option<(usize, Paint)>,
}

impl<const N: usize> Table<N> {
    /// Wide enough for `lines`.
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
            painted,
        }
    }

    /// The line of titles.
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
            let padded = format!("{cell:width$}");
            match colour {
                Some((painted, colour)) if painted == column => {
                    out.push_str(&format!("\u{1b}[{colour}m{padded}\u{1b}[0m"));
                }
                _ => out.push_str(&padded),
            }
            out.push_str("  ");
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }
}

//! Figures: collected, shown as a table, written as JSON for comparisons.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The figures of one run.
#[derive(Debug)]
pub struct Report {
    name: String,
    command: String,
    figures: Vec<(String, f64, &'static str)>,
}

impl Report {
    /// Creates an empty report; `command` is what measures it.
    #[must_use]
    pub fn new(name: &str, command: &str) -> Self {
        Self {
            name: name.to_owned(),
            command: command.to_owned(),
            figures: Vec::new(),
        }
    }

    /// Adds a figure.
    pub fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push((name.into(), value, unit));
    }

    /// Adds a number of things.
    ///
    /// # Errors
    /// When there are more than 4 billion.
    pub fn count(
        &mut self,
        name: impl Into<String>,
        count: usize,
        unit: &'static str,
    ) -> Result<()> {
        self.add(name, f64::from(u32::try_from(count)?), unit);
        Ok(())
    }

    /// Writes `target/bench/<name>.json` and returns the table.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(self) -> Result<String> {
        let mut table = String::new();
        for (name, value, unit) in &self.figures {
            let shown = if *unit == "bytes" && *value >= 1e6 {
                format!("{:.1} MiB", value / f64::from(1 << 20))
            } else {
                format!("{:.3} {unit}", value)
            };
            writeln!(table, "{name:<52} {shown:>18}")?;
        }
        let list: Vec<Value> = self
            .figures
            .iter()
            .map(|(name, value, unit)| {
                json!({"name": name, "value": value, "unit": unit, "command": self.command})
            })
            .collect();
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
        std::fs::create_dir_all(&directory)?;
        let file = directory.join(format!("{}.json", self.name));
        std::fs::write(&file, format!("{:#}\n", Value::from(list)))
            .with_context(|| format!("writing {}", file.display()))?;
        Ok(table)
    }
}

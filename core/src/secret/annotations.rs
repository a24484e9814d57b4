//! Reading annotations one by one: bounded, total, and with a [`Problem`] for each invalid one.

use std::collections::BTreeMap;
use std::fmt;

use crate::secret::keys;
use crate::text::{holds_private_key, shown, similar};

/// Separators of list items: a YAML block has one item a line.
pub(super) const SEPARATORS: [char; 2] = [',', '\n'];
/// Most names, workloads or outputs of one annotation: Let's Encrypt's classic profile allows as many names.
pub const MAX_ITEMS: usize = 100;

/// Longest value that is parsed, in bytes: [`MAX_ITEMS`] names of full length.
const MAX_VALUE: usize = 32 * 1024;

/// Most problems kept of one Secret: an Event names a few, and 256 KiB of annotations hold thousands.
const MAX_PROBLEMS: usize = 20;

/// An invalid annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The annotation.
    pub key: Box<str>,
    /// Its value, or the item of its list, as [`shown`] quotes it.
    pub value: String,
    /// The expected value, beginning with "expected".
    pub expected: String,
    /// What waits until it is fixed, unless the certificate would expire first.
    pub blocks: Blocks,
}

/// What a [`Problem`] blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blocks {
    /// A warning.
    #[default]
    Nothing,
    /// Renewals.
    Issue,
    /// Rollouts.
    Rollout,
    /// Both.
    Both,
}

impl Blocks {
    /// What two problems block together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (old, Self::Nothing) => old,
            (Self::Nothing, new) => new,
            (old, new) if old == new => old,
            _ => Self::Both,
        }
    }

    /// Whether renewals wait.
    #[must_use]
    pub fn issue(self) -> bool {
        matches!(self, Self::Issue | Self::Both)
    }

    /// Whether rollouts wait.
    #[must_use]
    pub fn rollout(self) -> bool {
        matches!(self, Self::Rollout | Self::Both)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: {}",
            shown_key(&self.key),
            self.value,
            self.expected
        )
    }
}

/// The API server has checked its own keys; any other key is quoted like a value.
fn shown_key(key: &str) -> String {
    let plain = key.len() <= 317 && key.bytes().all(|b| b.is_ascii_graphic());
    if plain { key.to_string() } else { shown(key) }
}

/// What to do about an item that does not parse, where something else than a comma stands between two items, or after one;
/// the end of a message about it.
#[must_use]
pub fn separator_hint(item: &str) -> &'static str {
    if item.contains([';', '|']) || item.split_whitespace().count() > 1 {
        "; separate them by ','"
    } else {
        ""
    }
}

/// Reads annotations one by one, tracks the known keys, and collects problems.
pub(super) struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    known: Vec<&'static str>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(annotations: &'a BTreeMap<String, String>) -> Self {
        Self {
            annotations,
            known: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Whether any annotation that was read is present.
    pub(super) fn any_known(&self) -> bool {
        self.known
            .iter()
            .any(|key| self.annotations.contains_key(*key))
    }

    pub(super) fn problem(
        &mut self,
        key: &str,
        value: &str,
        expected: &dyn fmt::Display,
        blocks: Blocks,
    ) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem {
                key: key.into(),
                value: shown(value),
                expected: expected.to_string(),
                blocks,
            });
        } else if let Some(last) = self.problems.last_mut() {
            // A problem that is not kept must still block.
            last.blocks = last.blocks.and(blocks);
        }
    }

    /// The value of a known annotation, if it can be parsed at all.
    fn value(&mut self, key: &'static str, blocks: Blocks) -> Option<&'a str> {
        self.known.push(key);
        let value = self.annotations.get(key)?.trim();
        if holds_private_key(value) {
            // Refused before any parser can quote a part of it.
            self.problem(
                key,
                value,
                &"expected no private key in an annotation",
                blocks,
            );
            return None;
        }
        if value.len() > MAX_VALUE {
            self.problem(
                key,
                value,
                &format_args!("expected at most {MAX_VALUE} bytes"),
                blocks,
            );
            return None;
        }
        Some(value)
    }

    pub(super) fn one<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        blocks: Blocks,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.value(key, blocks)?;
        parse(value)
            .inspect_err(|error| self.problem(key, value, error, blocks))
            .ok()
    }

    /// Items between commas or line ends, without duplicates; `None` if absent or invalid.
    pub(super) fn list<T: PartialEq, E: fmt::Display>(
        &mut self,
        key: &'static str,
        blocks: Blocks,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let value = self.value(key, blocks)?;
        let mut list = Vec::new();
        let mut sound = true;
        let items = value
            .split(SEPARATORS)
            .map(str::trim)
            .filter(|item| !item.is_empty());
        for (i, item) in items.enumerate() {
            if i >= MAX_ITEMS {
                self.problem(
                    key,
                    value,
                    &format_args!("expected at most {MAX_ITEMS}"),
                    blocks,
                );
                return None;
            }
            match parse(item) {
                Ok(parsed) if list.contains(&parsed) => {}
                Ok(parsed) => list.push(parsed),
                Err(error) => {
                    let hint = separator_hint(item);
                    self.problem(key, item, &format_args!("{error}{hint}"), blocks);
                    sound = false;
                }
            }
        }
        if list.is_empty() && sound {
            self.problem(key, value, &"expected at least one", blocks);
        }
        (sound && !list.is_empty()).then_some(list)
    }

    /// Warns of unknown keys under our prefix: a misspelt setting would silently not apply.
    pub(super) fn check_unknown(&mut self) {
        let Self {
            annotations, known, ..
        } = &*self;
        let names: Vec<&str> = known
            .iter()
            .filter_map(|known| known.strip_prefix(keys::PREFIX))
            .collect();
        let list = format!("expected a known annotation ({})", names.join(", "));
        let unknown: Vec<_> = annotations
            .iter()
            .filter(|(key, _)| key.starts_with(keys::PREFIX) && !known.contains(&key.as_str()))
            .take(MAX_PROBLEMS)
            .collect();
        for (key, value) in unknown {
            let name = key.strip_prefix(keys::PREFIX).unwrap_or_default();
            let expected = if key == keys::MANAGED_LABEL {
                "expected it among the labels".to_owned()
            } else {
                let meant = similar::meant(name, names.iter().copied());
                let meant = meant.map(|it| format!("; did you mean {}{it}?", keys::PREFIX));
                format!("{list}{}", meant.unwrap_or_default())
            };
            self.problem(key, value, &expected, Blocks::Nothing);
        }
    }
}

//! Walks the tree of a config file and collects what is wrong, each with its line and path.
//!
//! A [`KeyPath`] is a position in the tree, present or not. Each way to read one yields a value, the default if the place
//! is empty or at fault, so that the walk continues to the next fault. A config is only built from a walk without any.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::faults::Fault;
use super::tree::{Node, Value};
use crate::text::{holds_private_key, shown, similar};
use crate::time::duration;

/// A position in the config file.
pub(super) struct KeyPath<'a> {
    faults: &'a RefCell<Vec<Fault>>,
    path: String,
    line: u64,
    value: &'a Value,
}

/// The entries of one mapping while it is read; those that were not read are unknown keys.
pub(super) struct Fields<'p, 'a> {
    place: &'p KeyPath<'a>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> KeyPath<'a> {
    pub(super) fn root(node: &'a Node, faults: &'a RefCell<Vec<Fault>>) -> Self {
        Self {
            faults,
            path: String::new(),
            line: node.line,
            value: &node.value,
        }
    }

    /// Whether there is no value; an empty value counts as none.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The place itself; a fault if it has no value.
    pub(super) fn present(self) -> Option<Self> {
        if self.is_absent() {
            self.fault("missing");
            return None;
        }
        Some(self)
    }

    pub(super) fn fault(&self, expected: impl Display) {
        let found = match self.value {
            Value::Null => None,
            Value::Flag(flag) => Some(flag.to_string()),
            Value::Number(number) => Some(number.clone()),
            Value::Text(text) => Some(shown(text)),
            Value::List(_) => Some("a list".to_string()),
            Value::Map(_) => Some("a mapping".to_string()),
        };
        self.report(found, expected);
    }

    /// As [`Self::fault`], for values that may be secrets.
    pub(super) fn fault_unseen(&self, expected: impl Display) {
        self.report(None, expected);
    }

    fn report(&self, found: Option<String>, expected: impl Display) {
        self.faults.borrow_mut().push(Fault {
            line: (self.line > 0).then_some(self.line),
            path: self.path.clone(),
            found,
            expected: expected.to_string(),
        });
    }

    /// The value of `key`, or an absent place.
    pub(super) fn child(&self, key: &str) -> Self {
        let node = self
            .map()
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node);
        KeyPath {
            faults: self.faults,
            path: join(&self.path, key),
            line: node.map_or(self.line, |node| node.line),
            value: node.map_or(&Value::Null, |node| &node.value),
        }
    }

    fn map(&self) -> &'a [(String, Node)] {
        match self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// A mapping with a fixed set of keys: those that `read` asks for.
    pub(super) fn fields<T>(&self, read: impl FnOnce(&Fields<'_, 'a>) -> T) -> T {
        let fields = Fields {
            place: self,
            asked: RefCell::default(),
        };
        let value = read(&fields);
        let asked = fields.asked.into_inner();
        if !matches!(self.value, Value::Map(_) | Value::Null) {
            self.fault_unseen(format_args!("expected a mapping with {}", asked.join(", ")));
        }
        for (key, _) in self
            .map()
            .iter()
            .filter(|(key, _)| !asked.contains(&key.as_str()))
        {
            self.child(key).fault_unseen(unknown(key, &asked));
        }
        value
    }

    /// A mapping whose keys the user chooses.
    pub(super) fn entries(&self) -> Vec<(&'a str, Self)> {
        self.entries_such_as("")
    }

    /// The same, with what one may look like for a user who writes something else.
    pub(super) fn entries_such_as(&self, example: &str) -> Vec<(&'a str, Self)> {
        if !matches!(self.value, Value::Map(_) | Value::Null) {
            self.fault(format_args!("expected a mapping{example}"));
        }
        self.map()
            .iter()
            .map(|(key, _)| (key.as_str(), self.child(key)))
            .collect()
    }

    /// A list; `read` takes each item and returns `None` for one at fault.
    pub(super) fn list<T>(&self, read: impl Fn(&Self) -> Option<T>) -> Vec<T> {
        let items = match self.value {
            Value::List(items) => items.as_slice(),
            Value::Null => &[],
            _ => {
                self.fault("expected a list");
                &[]
            }
        };
        let place = |(i, node): (usize, &'a Node)| KeyPath {
            faults: self.faults,
            path: format!("{}[{i}]", self.path),
            line: node.line,
            value: &node.value,
        };
        let present = items
            .iter()
            .enumerate()
            .filter_map(|item| place(item).present());
        present.filter_map(|item| read(&item)).collect()
    }

    /// A list, or a single item instead.
    pub(super) fn one_or_more<T>(&self, read: impl Fn(&Self) -> Option<T>) -> Vec<T> {
        match self.value {
            Value::Text(_) => read(self).into_iter().collect(),
            _ => self.list(read),
        }
    }

    /// Text that `parse` takes; its error says what was expected.
    pub(super) fn parse<T, E: Display>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match self.value {
            Value::Null => None,
            Value::Text(text) if holds_private_key(text) => {
                self.fault("expected no private key in the config file");
                None
            }
            Value::Text(text) => parse(text).map_err(|error| self.fault(error)).ok(),
            Value::Number(text) => {
                match parse(text) {
                    Ok(_) => self.fault("expected text, put it in quotes"),
                    Err(error) => self.fault(error),
                }
                None
            }
            Value::Flag(_) => {
                self.fault("expected text");
                None
            }
            Value::List(_) | Value::Map(_) => {
                self.fault("expected a single value");
                None
            }
        }
    }

    /// The text as it is, for a caller that must not show it.
    pub(super) fn text_unseen(&self) -> Option<&'a str> {
        match self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn flag(&self, default: bool) -> bool {
        match self.value {
            Value::Null => default,
            Value::Flag(flag) => *flag,
            _ => {
                self.fault("expected true or false");
                default
            }
        }
    }

    /// A whole number within `range`.
    pub(super) fn count(&self, range: RangeInclusive<u32>, default: u32) -> u32 {
        let number = match self.value {
            Value::Null => return default,
            Value::Number(number) => number.parse().ok().filter(|number| range.contains(number)),
            _ => None,
        };
        number.unwrap_or_else(|| {
            self.fault(format_args!(
                "expected a whole number from {} to {}",
                range.start(),
                range.end()
            ));
            default
        })
    }

    /// A duration within `range`.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>, default: Duration) -> Duration {
        self.parse(|text| match duration::parse(text) {
            Ok(found) if range.contains(&found) => Ok(found),
            Ok(_) => {
                let [least, most] =
                    [range.start(), range.end()].map(|bound| duration::human(*bound));
                Err(format!("expected a duration from {least} to {most}"))
            }
            Err(error) => Err(error.to_string()),
        })
        .unwrap_or(default)
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)], default: T) -> T {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.parse(|text| {
            let found = choices.iter().find(|(word, _)| *word == text);
            found
                .map(|(_, choice)| *choice)
                .ok_or_else(|| format!("expected {}", words.join(" or ")))
        })
        .unwrap_or(default)
    }
}

impl<'a> Fields<'_, 'a> {
    pub(super) fn get(&self, key: &'static str) -> KeyPath<'a> {
        self.asked.borrow_mut().push(key);
        self.place.child(key)
    }

    /// As [`Self::get`], and a fault if it is absent or an empty list.
    pub(super) fn required(&self, key: &'static str) -> KeyPath<'a> {
        let place = self.get(key);
        // A fault of the mapping itself is already reported.
        if place.is_absent() && matches!(self.place.value, Value::Map(_) | Value::Null) {
            place.fault("missing");
        }
        if matches!(place.value, Value::List(items) if items.is_empty()) {
            place.fault_unseen("expected at least one");
        }
        place
    }
}

/// What is said of a key that nobody reads.
pub(super) fn unknown(key: &str, known: &[&str]) -> String {
    let (list, meant) = (
        known.join(", "),
        similar::question(key, known.iter().copied()),
    );
    format!("unknown, expected one of {list}{meant}")
}

/// `path.key`, with a key that is not a plain word in quotes.
fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty()
        && key.len() <= 63
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let key = if plain { key.to_string() } else { shown(key) };
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

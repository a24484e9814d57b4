//! YAML text → a tree of values with their lines.
//!
//! serde would stop at the first fault, so the config file is not decoded into Rust types; [`super::reader`] walks the
//! tree and names all faults.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Spanned, budget, options};

/// Most levels of lists and maps: the deepest setting is at seven. The parser allows 64, and each takes tens of
/// kilobytes of a thread's stack in unoptimised builds.
const DEPTH: usize = 16;

/// A value and its first line, counted from 1.
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) value: Value,
}

/// What YAML's core schema (YAML 1.2.2, 10.3) makes of a node.
pub(super) enum Value {
    Null,
    Flag(bool),
    /// In its shortest form; no setting is a fraction, so nothing is lost.
    Number(String),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; the parser refuses a duplicate key.
    Map(Vec<(String, Node)>),
}

/// Reads one document.
///
/// # Errors
/// When the text is not YAML, has a key twice, or exceeds the parser's bounds on depth, size and aliases.
pub(super) fn parse(text: &str) -> Result<Node, serde_saphyr::Error> {
    let bounded = options! { budget: budget! { max_depth: DEPTH } };
    serde_saphyr::from_str_with_options(text, bounded)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Flag(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Value::Map(map))
    }
}

//! Lists and maps of an object of which only the relevant elements are kept.
//!
//! An object of a megabyte may have a hundred thousand variables of a few bytes, each of which would take a hundred
//! bytes in memory. Each irrelevant element is dropped before the next is read.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An element of a list that is read.
pub trait Matters {
    /// Whether the element is kept.
    fn matters(&self) -> bool;
}

/// The relevant elements of a list; `null` is an empty one.
#[derive(Clone, Debug)]
pub struct Kept<T>(Vec<T>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deref for Kept<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'de, T: DeserializeOwned + Matters> Deserialize<'de> for Kept<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T>(PhantomData<T>);

        impl<'de, T: DeserializeOwned + Matters> Visitor<'de> for Elements<T> {
            type Value = Kept<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Kept::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while let Some(element) = all.next_element::<T>()? {
                    if element.matters() {
                        kept.push(element);
                    }
                }
                Ok(Kept(kept))
            }
        }

        deserializer.deserialize_any(Elements(PhantomData))
    }
}

/// Most entries of each map and list of a [`Small`]; a label selector has a handful.
pub const MOST_ENTRIES: usize = 200;

/// A value that is small; `None` if it is not.
#[derive(Clone, Debug, Default)]
pub struct Small(pub Option<Value>);

impl<'de> Deserialize<'de> for Small {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything;

        impl<'de> Visitor<'de> for Anything {
            type Value = Small;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_bool<E>(self, it: bool) -> Result<Small, E> {
                Ok(Small(Some(it.into())))
            }

            fn visit_i64<E>(self, it: i64) -> Result<Small, E> {
                Ok(Small(Some(it.into())))
            }

            fn visit_u64<E>(self, it: u64) -> Result<Small, E> {
                Ok(Small(Some(it.into())))
            }

            fn visit_f64<E>(self, it: f64) -> Result<Small, E> {
                Ok(Small(Some(it.into())))
            }

            fn visit_str<E>(self, it: &str) -> Result<Small, E> {
                Ok(Small(Some(it.into())))
            }

            fn visit_unit<E>(self) -> Result<Small, E> {
                Ok(Small(Some(Value::Null)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Small, A::Error> {
                let mut list = Some(Vec::new());
                while let Some(Small(element)) = match &list {
                    Some(_) => all.next_element::<Small>()?,
                    None => all.next_element::<IgnoredAny>()?.map(|_| Small(None)),
                } {
                    list = list.zip(element).map(|(mut list, element)| {
                        list.push(element);
                        list
                    });
                    list = list.filter(|list| list.len() <= MOST_ENTRIES);
                }
                Ok(Small(list.map(Value::Array)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Small, A::Error> {
                let mut map = Some(serde_json::Map::new());
                while let Some(key) = all.next_key::<String>()? {
                    if map.is_none() {
                        all.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let Small(value) = all.next_value()?;
                    map = map.zip(value).map(|(mut map, value)| {
                        map.insert(key, value);
                        map
                    });
                    map = map.filter(|map| map.len() <= MOST_ENTRIES);
                }
                Ok(Small(map.map(Value::Object)))
            }
        }

        deserializer.deserialize_any(Anything)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_of_many_entries_is_left_out_wherever_they_are() {
        let many: Vec<usize> = (0..=MOST_ENTRIES).collect();
        let map: serde_json::Map<String, Value> = { many.iter() }
            .map(|it| (it.to_string(), 1.into()))
            .collect();
        for (value, expected) in [
            (
                json!({"matchLabels": {"app": "web"}, "matchExpressions": null}),
                true,
            ),
            (json!([1, -1, true, "x", null, 0.5]), true),
            (json!({"matchLabels": map}), false),
            (json!({"matchExpressions": [{"values": many}]}), false),
        ] {
            let text = value.to_string();
            let Small(read) = serde_json::from_str(&text).unwrap();
            assert_eq!(read, expected.then_some(value), "{text:.60}");
        }
    }
}

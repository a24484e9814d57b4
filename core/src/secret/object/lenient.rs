//! JSON decoding that no shape of the input can make fail.
//!
//! kube logs a whole response body at WARN when one object in it cannot be decoded, and serde's own
//! messages quote the value that did not fit. For Secrets either would put private keys into the log.
//! So a [`Shape`] takes what it understands and skips everything else unread: a number where a text was expected, a
//! list where an object was, a null. Only text that is not JSON is an error.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What a type takes from a JSON value; every method that it does not override skips its value without a copy.
pub trait Shape {
    /// The value is a text.
    fn text(&mut self, _text: &str) {}

    /// The value is true or false.
    fn truth(&mut self, _value: bool) {}

    /// One member of an object; its value must be taken from `map`.
    fn member<'de, A: MapAccess<'de>>(&mut self, _key: &str, map: &mut A) -> Result<(), A::Error> {
        map.next_value::<IgnoredAny>().map(drop)
    }

    /// The next element of a list, if there is one; it must be taken from `list`.
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<Option<()>, A::Error> {
        Ok(list.next_element::<IgnoredAny>()?.map(drop))
    }

    /// Adds it to the list of which it is an element. What may come in any number, and matters rarely, leaves itself out.
    fn add_to(self, list: &mut Vec<Self>)
    where
        Self: Sized,
    {
        list.push(self);
    }
}

impl Shape for Option<String> {
    fn text(&mut self, text: &str) {
        *self = Some(text.to_owned());
    }
}

impl Shape for bool {
    fn truth(&mut self, value: bool) {
        *self = value;
    }
}

/// Deserializes one JSON value into a shape.
pub struct Fill<'a, S>(pub &'a mut S);

impl<'de, S: Shape> DeserializeSeed<'de> for Fill<'_, S> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: Shape> Visitor<'de> for Fill<'_, S> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.text(text);
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.0.truth(value);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // One buffer for all keys of the object.
        let mut key = String::new();
        while map.next_key_seed(Key(&mut key))?.is_some() {
            self.0.member(&key, &mut map)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while self.0.element(&mut list)?.is_some() {}
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Reads the key of a member into a reused buffer.
struct Key<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the key of a member")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.clear();
        self.0.push_str(text);
        Ok(())
    }
}

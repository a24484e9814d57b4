//! Private keys in what leaves the operator: they are looked for in each line of the log, each request to the API server,
//! Events among them, and each request to the CA. The data of Secrets is the one place for them.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::objects::{Kind, SECRETS};
use crate::world::{State, World};

/// In the last line of a key's file.
const END: &str = "PRIVATE KEY-----";
/// Length of the lines of a key's file: whole ones are looked for.
const LINE: usize = 64;

/// The private keys that were seen in Secrets, by the lines of their files.
#[derive(Debug, Default)]
pub struct Keys(BTreeSet<String>);

impl Keys {
    fn learn(&mut self, file: &str) {
        if file.contains(END) {
            let lines = file.lines().map(str::trim);
            let lines = lines.filter(|line| line.len() == LINE);
            self.0.extend(lines.map(str::to_owned));
        }
    }

    fn is_in(&self, text: &str) -> bool {
        let is_base64 = |it: char| it.is_ascii_alphanumeric() || matches!(it, '+' | '/' | '=');
        let words = text.split(|it| !is_base64(it));
        let mut words = words.filter(|word| word.len() >= LINE);
        text.contains(END) || words.any(|word| self.0.contains(word) || is_encoded_key(word))
    }
}

/// Whether this is a key's file, encoded once more.
fn is_encoded_key(word: &str) -> bool {
    let file = BASE64_STANDARD.decode(word);
    file.is_ok_and(|file| String::from_utf8_lossy(&file).contains(END))
}

impl State {
    /// Looks at the body of a request to the API server.
    pub fn sent(&mut self, kind: &Kind, body: &Value) {
        let mut rest = body.clone();
        if kind == &SECRETS {
            let data = body["data"].as_object().into_iter().flatten();
            for value in data.filter_map(|(_, value)| value.as_str()) {
                let file = BASE64_STANDARD.decode(value).unwrap_or_default();
                self.keys.learn(&String::from_utf8_lossy(&file));
            }
            if let Some(fields) = rest.as_object_mut() {
                fields.remove("data");
            }
            if let Some(operations) = rest.as_array_mut() {
                let of_data = |it: &Value| {
                    let path = it["path"].as_str();
                    path.is_some_and(|path| path.starts_with("/data"))
                };
                operations.retain(|it| !of_data(it));
            }
        }
        self.left(
            format_args!("a request about {}", kind.plural),
            &rest.to_string(),
        );
    }

    /// Looks at a text that leaves the operator, which may be JSON.
    pub fn left(&mut self, by: impl fmt::Display, text: &str) {
        if self.keys.is_in(&text.replace("\\n", " ")) {
            self.violated(format!("a private key leaves by {by}"));
        }
    }
}

/// The operator's log: it is looked at and not kept.
pub struct Log(World);

impl Log {
    /// Of what happens in this world.
    #[must_use]
    pub fn of(world: &World) -> Self {
        Self(world.clone())
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_ours = metadata.target().starts_with("cert_renew");
        metadata.is_event() && is_ours && *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        // The world itself logs nothing while it is held.
        if let Some(mut now) = self.0.try_now() {
            now.left("the log", &line.0);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The values of a line.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_str(&mut self, _: &Field, value: &str) {
        self.0.push_str(value);
        self.0.push(' ');
    }

    fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
        // A string takes whatever is written.
        let _ = write!(self.0, "{value:?} ");
    }
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;

    use super::*;

    #[test]
    fn a_key_is_found_in_whatever_form_it_leaves() {
        let key = KeyPair::generate().expect("a key").serialize_pem();
        let mut keys = Keys::default();
        keys.learn(&key);
        let line = key.lines().nth(1).expect("a PEM file has lines");
        let encoded = BASE64_STANDARD.encode(&key);
        let quoted = format!("error: {line} is no key");
        for text in [key.as_str(), line, &encoded, &quoted] {
            assert!(keys.is_in(text), "{text}");
        }
        let other = "A".repeat(200);
        assert!(!keys.is_in(&other) && !keys.is_in(&BASE64_STANDARD.encode(&other)));
    }
}

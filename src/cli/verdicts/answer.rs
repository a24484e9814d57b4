//! The operator's answer as it may be shown.
//!
//! It comes from whatever answers behind the metrics Service, and much of it is what users write on Secrets: each text
//! becomes one line of visible characters, and no longer than a message is. Done here once, for tables, screens, JSON and
//! YAML, whatever a report has.

use cert_renew_core::text::{holds_private_key, is_hidden};
use cert_renew_core::verdict::Report;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Longest text, in characters; longer than any of an honest operator.
const LONGEST: usize = 4_096;

/// A report whose texts are plain.
#[derive(Debug)]
pub(in crate::cli) struct Answer(pub(in crate::cli) Report);

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        make_plain(&mut value);
        let report = serde_json::from_value(value);
        report.map(Self).map_err(D::Error::custom)
    }
}

fn make_plain(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(plain) = plain(text) {
                *text = plain;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(make_plain),
        Value::Object(fields) => fields.values_mut().for_each(make_plain),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The text with what is hidden escaped, and cut; None if it is plain already.
fn plain(text: &str) -> Option<String> {
    if holds_private_key(text) {
        return Some("a private key (not shown)".into());
    }
    let end = text.char_indices().nth(LONGEST).map(|(end, _)| end);
    if end.is_none() && !text.contains(is_hidden) {
        return None;
    }
    let mut plain = String::new();
    for character in text[..end.unwrap_or(text.len())].chars() {
        if is_hidden(character) {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
    }
    if end.is_some() {
        plain.push('…');
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_lying_operator_says_is_one_line_of_visible_characters() {
        let evil = "a\u{1b}[2J\nNext:\n  rm -rf /\u{202e}";
        let answer = json!({
            "version": evil, "class": evil, "replica": evil,
            "leader": {"name": evil, "silentSince": null},
            "asOf": "2023-11-14T22:13:20Z",
            "notices": [evil], "matching": 1, "leftOut": 0,
            "unmanaged": {"count": 1, "named": [{"namespace": evil, "name": evil, "why": evil, "text": evil}]},
            "certificates": [{
                "namespace": evil, "name": evil, "class": evil, "state": "ok", "reason": evil, "issuer": evil,
                "account": evil, "names": [evil], "moreNames": 0, "notBefore": null, "notAfter": null,
                "renews": null, "renewsWhy": evil, "rollout": "done", "servedUntil": null, "usedBy": null,
                "stalePods": 0, "failures": 0, "nextTry": null, "lastError": evil, "problems": [evil],
                "next": "x".repeat(1_000_000),
            }],
        });
        let Answer(report) = serde_json::from_value(answer).unwrap();
        let all = serde_json::to_value(&report).unwrap();
        let mut texts = 0;
        each(&all, &mut |text| {
            texts += 1;
            assert!(!text.contains(is_hidden), "{text:?}");
            assert!(text.chars().count() <= LONGEST + 1, "{}", text.len());
        });
        assert!(texts > 15, "{texts}");
        let reason = &report.certificates[0].reason;
        assert_eq!(&**reason, "a\\u{1b}[2J\\nNext:\\n  rm -rf /\\u{202e}");
    }

    fn each(value: &Value, look: &mut dyn FnMut(&str)) {
        match value {
            Value::String(text) => look(text),
            Value::Array(items) => items.iter().for_each(|it| each(it, look)),
            Value::Object(fields) => fields.values().for_each(|it| each(it, look)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(plain("ünïcode … \"quoted\" \\n"), None);
        let key = "-----BEGIN PRIVATE KEY-----";
        assert_eq!(plain(key).as_deref(), Some("a private key (not shown)"));
    }
}

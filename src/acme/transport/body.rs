//! Lenient access to members of a CA's JSON: one that is missing, null or of another type counts as absent, and unknown
//! ones are ignored. Only an indispensable member is an error.

use serde_json::Value;

/// The text of a member.
pub(in crate::acme) fn text(body: &Value, member: &str) -> Option<String> {
    body.get(member)?.as_str().map(ToOwned::to_owned)
}

/// The texts of a list, without entries of another type.
pub(in crate::acme) fn texts(body: &Value, member: &str) -> Vec<String> {
    let list = body.get(member).and_then(Value::as_array);
    let texts = { list.into_iter().flatten() }.filter_map(Value::as_str);
    texts.map(ToOwned::to_owned).collect()
}

/// A member that is present and not null.
pub(in crate::acme) fn any(body: &Value, member: &str) -> Option<Value> {
    body.get(member).filter(|it| !it.is_null()).cloned()
}

/// A member with one of a known set of values.
pub(in crate::acme) fn word<T: serde::de::DeserializeOwned>(
    body: &Value,
    member: &str,
) -> Option<T> {
    serde_json::from_value(any(body, member)?).ok()
}

/// Whether a member is true.
pub(in crate::acme) fn flag(body: &Value, member: &str) -> bool {
    body.get(member).and_then(Value::as_bool).unwrap_or(false)
}

//! Quoting of foreign text in logs, Events and errors.
//!
//! A user who can write an annotation can write anything into it: escape sequences for a terminal, a megabyte, a
//! private key pasted into the wrong place. Everything quoted in a message goes through [`shown`].

pub mod hash;
pub mod name;
pub mod similar;

/// Most characters of a foreign value that a message quotes.
const MAX_SHOWN: usize = 200;

/// The value in double quotes, cut to 200 characters, with control characters and invisible ones escaped.
/// Text that holds a private key is not shown at all.
#[must_use]
pub fn shown(value: &str) -> String {
    if holds_private_key(value) {
        return String::from("a private key (not shown)");
    }
    let cut = value
        .char_indices()
        .nth(MAX_SHOWN)
        .map_or(value.len(), |(end, _)| end);
    let dots = if cut < value.len() { "…" } else { "" };
    format!("{:?}", format!("{}{dots}", &value[..cut]))
}

/// Whether the text contains a PEM label of a private key (RFC 7468, 10 and 11, and the older ones). Call it before a
/// foreign text is split: its pieces no longer carry the label.
#[must_use]
pub fn holds_private_key(text: &str) -> bool {
    text.contains("PRIVATE KEY")
}

/// Whether a character is not seen as itself: a control character, an invisible one, or one that changes the direction of
/// the surrounding text.
#[must_use]
pub fn is_hidden(character: char) -> bool {
    let hidden = matches!(character, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
    character.is_control() || hidden
}

/// An error with its sources, each text once: `request failed: connection refused`.
#[must_use]
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cuts_and_escapes() {
        let long = "ä".repeat(250);
        for (value, expected) in [
            ("plain", "\"plain\""),
            ("a\nb\u{1b}[31m\u{202e}", "\"a\\nb\\u{1b}[31m\\u{202e}\""),
            ("it's \"hi\"", "\"it's \\\"hi\\\"\""),
            (&long, &format!("\"{}…\"", "ä".repeat(200))),
            (
                "-----BEGIN RSA PRIVATE KEY-----",
                "a private key (not shown)",
            ),
        ] {
            assert_eq!(shown(value), expected);
        }
    }
}

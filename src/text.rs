//! Foreign text as logs, Events and errors may show it.
//!
//! Whoever can write an annotation can write anything into it: escape sequences for a terminal, a megabyte, a private
//! key pasted into the wrong place. What is quoted in a message goes through [`shown`].

/// Most characters of a foreign value that a message quotes.
const MAX_SHOWN: usize = 200;

/// The value in double quotes, cut to 200 characters, with control characters and invisible ones escaped.
/// Text that holds a private key is not shown at all.
#[must_use]
pub fn shown(value: &str) -> String {
    if value.contains("PRIVATE KEY") {
        return String::from("a private key (not shown)");
    }
    let cut = value
        .char_indices()
        .nth(MAX_SHOWN)
        .map_or(value.len(), |(end, _)| end);
    let dots = if cut < value.len() { "…" } else { "" };
    format!("\"{}{dots}\"", value[..cut].escape_debug())
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
            ("say \"hi\"", "\"say \\\"hi\\\"\""),
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

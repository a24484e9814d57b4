//! Short digests of texts.

/// The first 64 bits of the SHA-256 of a text: enough to detect a change, not to identify what belongs to a user, see
/// [`digest`].
#[must_use]
pub fn hash(text: &str) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = digest(text);
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The first 128 bits of the SHA-256 of a text: nobody can find another text with the same bits, even with many to
/// choose from.
#[must_use]
pub fn digest(text: &str) -> [u8; 16] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let mut first = [0; 16];
    for (to, from) in first.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    first
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

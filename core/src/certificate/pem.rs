//! PEM as it occurs in practice: RFC 7468 and the ways in which files deviate from it.
//!
//! Input is any bytes.
//! The scanner only finds blocks and decodes nothing before [`Block::decode`], so that a caller that wants certificates
//! never holds the bytes of a key between them. It must never panic nor take more than linear time, whatever the input.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use memchr::memmem::find;
use memchr::{memchr3, memchr3_iter};
use thiserror::Error;
use zeroize::Zeroizing;

/// Accepts missing padding and stray bits at the end: OpenSSL and Go differ on them.
const FORGIVING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const BEGIN: &[u8] = b"-----BEGIN ";
const DASHES: &[u8] = b"-----";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Longest label, in bytes; the longest one in use, `ENCRYPTED PRIVATE KEY`, has 21.
const MAX_LABEL: usize = 64;

/// Characters a line (RFC 7468, 2).
const LINE: usize = 64;

/// One `-----BEGIN label-----` with what follows it.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// The text between `BEGIN` and the dashes, for example `CERTIFICATE`.
    pub label: &'a str,
    /// The text before the matching `END`; none if there is no such line.
    body: Option<&'a [u8]>,
}

/// Why a block cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// The file stops, or another block begins, before the matching `END` line.
    #[error("the END line that belongs to it is missing")]
    Truncated,
    /// The block contains something other than base64.
    #[error("it holds something else than base64")]
    Base64,
}

/// All blocks in the order of the file, whatever their label.
///
/// Accepted: CRLF and CR line ends, blanks at the end or the start of lines, a byte order mark,
/// any text before, between and after blocks, base64 of any line length, blocks that follow each
/// other on one line, a last line without its end. A `BEGIN` in the middle of a line of text, as in
/// a commented-out block, is text.
pub fn blocks(bytes: &[u8]) -> impl Iterator<Item = Block<'_>> {
    Blocks {
        bytes,
        at: 0,
        line: 0,
    }
}

/// One block in the form of RFC 7468: 64 columns, LF.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(STANDARD.encode(der));
    // Reserved in full: a string that grows would leave its old copy in memory.
    let size = base64.len() + base64.len() / LINE + 2 * label.len() + 64;
    let mut text = Zeroizing::new(String::with_capacity(size));
    for part in ["-----BEGIN ", label, "-----\n"] {
        text.push_str(part);
    }
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    for part in ["-----END ", label, "-----\n"] {
        text.push_str(part);
    }
    text
}

impl Block<'_> {
    /// The bytes that the block holds; cleared when dropped, since they may be a key.
    ///
    /// # Errors
    /// When the block has no end, or contains something other than base64.
    pub fn decode(&self) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let packed = Zeroizing::new(self.packed()?);
        let bytes = FORGIVING.decode(packed.as_slice());
        bytes.map(Zeroizing::new).map_err(|_| Fault::Base64)
    }

    /// [`Block::decode`] for public content: clearing memory takes longer than everything else about a certificate.
    ///
    /// # Errors
    /// As [`Block::decode`].
    pub fn decode_public(&self) -> Result<Vec<u8>, Fault> {
        FORGIVING.decode(self.packed()?).map_err(|_| Fault::Base64)
    }

    /// The base64 without blanks; reserved in full, so that no copy stays in memory.
    fn packed(&self) -> Result<Vec<u8>, Fault> {
        let body = self.body.ok_or(Fault::Truncated)?;
        let mut packed = Vec::with_capacity(body.len());
        let mut start = 0;
        for end in memchr3_iter(b'\n', b'\r', b' ', body) {
            packed.extend_from_slice(&body[start..end]);
            start = end + 1;
        }
        packed.extend_from_slice(&body[start..]);
        if memchr3(b'\t', 0x0b, 0x0c, &packed).is_some() {
            packed.retain(|byte| !is_blank(*byte));
        }
        Ok(packed)
    }

    /// Whether a passphrase is needed, as PKCS#8 labels it or the headers of RFC 1421 say it.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        let headed = self
            .body
            .is_some_and(|body| find(body, b"Proc-Type: 4,ENCRYPTED").is_some());
        self.label == "ENCRYPTED PRIVATE KEY" || headed
    }

    /// Whether the label is one of a private key, encrypted or not.
    #[must_use]
    pub fn is_private_key(&self) -> bool {
        self.label.ends_with("PRIVATE KEY")
    }
}

struct Blocks<'a> {
    bytes: &'a [u8],
    /// Where the search continues.
    at: usize,
    /// Where the last block ended; what follows counts as the start of a line.
    line: usize,
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        loop {
            let begin = self.at + find(&self.bytes[self.at..], BEGIN)?;
            self.at = begin + BEGIN.len();
            if !starts_line(&self.bytes[self.line..begin]) {
                continue;
            }
            let Some(label) = label(&self.bytes[self.at..]) else {
                continue;
            };
            let start = self.at + label.len() + DASHES.len();
            let content = &self.bytes[start..];
            // Base64 has no dash, so the next five dashes are the END line, or the block has none.
            let length = find(content, DASHES).unwrap_or(content.len());
            let end = ["-----END ", label, "-----"].concat();
            let ended = content[length..].starts_with(end.as_bytes());
            self.at = start + length + if ended { end.len() } else { 0 };
            self.line = self.at;
            return Some(Block {
                label,
                body: ended.then_some(&content[..length]),
            });
        }
    }
}

/// Whether only blanks precede this point on its line (or since the last block).
///
/// Looks back no further than the blanks reach, as a line may be as long as the file and full of `BEGIN`.
fn starts_line(before: &[u8]) -> bool {
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let is_text = |byte: &u8| is_end(byte) || !is_blank(*byte);
    let Some(last) = before.iter().rposition(is_text) else {
        return true;
    };
    let line = &before[..=last];
    let marked = line.strip_suffix(BYTE_ORDER_MARK);
    is_end(&line[last]) || marked.is_some_and(|line| line.last().is_none_or(is_end))
}

/// The label at the start of `after`, when its dashes follow on the same line.
fn label(after: &[u8]) -> Option<&str> {
    let near = &after[..after.len().min(MAX_LABEL + DASHES.len())];
    let text = str::from_utf8(&near[..find(near, DASHES)?]).ok()?;
    text.bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic())
        .then_some(text)
}

/// Characters around and within base64: RFC 7468 `WSP` and `eol`, and form feeds.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen = (String, Result<Vec<u8>, Fault>);

    fn read(text: &str) -> Vec<Seen> {
        blocks(text.as_bytes())
            .map(|block| {
                (
                    block.label.to_owned(),
                    block.decode().map(|der| der.to_vec()),
                )
            })
            .collect()
    }

    fn good(label: &str, content: &str) -> Seen {
        (label.to_owned(), Ok(content.as_bytes().to_vec()))
    }

    #[test]
    fn spellings_of_one_block_are_equal() {
        for text in [
            "-----BEGIN X-----\naGVsbG8=\n-----END X-----\n",
            "-----BEGIN X-----\r\naGVs\r\nbG8=\r\n-----END X-----\r\n",
            "-----BEGIN X-----\raGVsbG8=\r-----END X-----",
            "\u{feff}-----BEGIN X-----\naGVsbG8=\n-----END X-----",
            "  \t-----BEGIN X-----  \n  aGVsb\n  G8= \t\n  -----END X-----  ",
            "-----BEGIN X-----aGVsbG8-----END X-----",
            "Subject: somebody\n# -----BEGIN Y-----\n-----BEGIN X-----\n\na GVsbG8=\n\n-----END X-----\nbye",
            "-----BEGIN \u{1}-----\n-----BEGIN X-----\naGVsbG8=\n-----END X-----",
        ] {
            assert_eq!(read(text), [good("X", "hello")], "{text:?}");
        }
    }

    #[test]
    fn blocks_may_touch() {
        let text =
            "-----BEGIN A-----\nYQ==\n-----END A----------BEGIN B-----\nYg==\n-----END B-----";
        assert_eq!(read(text), [good("A", "a"), good("B", "b")]);
    }

    #[test]
    fn a_broken_block_does_not_hide_the_next() {
        let text = "-----BEGIN A-----\nYQ==\n-----BEGIN B-----\nYg==\n-----END B-----\n\
                    -----BEGIN C-----\nY\\nQ==\n-----END C-----\n-----BEGIN D-----\nYQ==\n-----END X-----";
        let seen = [
            ("A".to_owned(), Err(Fault::Truncated)),
            good("B", "b"),
            ("C".to_owned(), Err(Fault::Base64)),
            ("D".to_owned(), Err(Fault::Truncated)),
        ];
        assert_eq!(read(text), seen);
        assert_eq!(read("no block, -----BEGIN ever"), []);
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        for size in [0, 1, 47, 48, 49, 1000] {
            let der = vec![0xa5; size];
            let text = encode("CERTIFICATE", &der);
            assert!(text.lines().all(|line| line.len() <= LINE), "{size}");
            assert_eq!(read(&text), [("CERTIFICATE".to_owned(), Ok(der))], "{size}");
        }
    }
}

//! Whether servers can load a pair: how the readers of OpenSSL and of Go see the two files.
//!
//! Input is the bytes of a certificate file and of a key file.
//! [`crate::certificate::pem`] tolerates common mistakes, so that dates and names are known of every Secret. Servers do
//! not, and the two libraries tolerate different ones. This module follows their readers step by step: `PEM_read_bio`
//! as `SSL_CTX_use_certificate_chain_file` and `SSL_CTX_use_PrivateKey_file` call it, and `pem.Decode` as
//! `tls.X509KeyPair` does. It checks text and labels only, not whether the key fits or the curve is known. It takes
//! linear time and quotes nothing.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use memchr::memchr;
use memchr::memmem::{find, rfind};
use zeroize::Zeroizing;

use crate::certificate::pem;
use crate::certificate::x509::{self, Certificate};

/// Both libraries require the padding and ignore stray bits before it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// OpenSSL reads lines in pieces of this length (`LINESIZE` of its pem_lib.c, less the NUL).
const OPENSSL_LINE: usize = 254;
/// After headers, OpenSSL takes only lines of exactly this length, except for the last.
const OPENSSL_WRAPPED: usize = 64;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The library that a server reads its files with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loader {
    /// nginx, HAProxy, Apache, PostgreSQL and most programs in C or Python.
    OpenSsl,
    /// Traefik, Caddy and other programs in Go.
    Go,
}

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// `tls.crt`
    Certificate,
    /// `tls.key`
    Key,
}

/// What is wrong with the form of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// DER, or something else that is not PEM.
    Der,
    /// It begins with a byte order mark.
    ByteOrderMark,
    /// Lines end with a carriage return alone.
    CarriageReturns,
    /// A block begins on the line on which another ends.
    Glued,
    /// Lines begin with blanks.
    Indented,
    /// A `BEGIN` line has more than the label.
    BeginLine,
    /// The base64 contains form feeds or vertical tabs.
    ControlCharacters,
    /// The base64 contains empty lines.
    EmptyLines,
    /// `X509 CERTIFICATE` or `TRUSTED CERTIFICATE`.
    Label,
    /// The label of a key names another encoding than its block has.
    KeyLabel,
    /// More bytes follow the certificate in its block.
    MoreBytes,
    /// Something else.
    Other,
}

/// A file that at least one of the libraries does not load, or loads in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which libraries; never empty.
    pub loaders: Vec<Loader>,
    /// Which file.
    pub file: File,
    /// What is wrong.
    pub form: Form,
}

/// A library loads nothing of a file, or not all of it.
struct Refused;

/// A block as a library reads it.
struct Block<'a> {
    label: &'a [u8],
    der: Zeroizing<Vec<u8>>,
}

/// The first file that a library refuses; `None` if both load the whole pair.
///
/// Both files must be readable by [`crate::certificate::pem`]; a file without a certificate is not judged here.
#[must_use]
pub fn refusal(certificate: &[u8], key: &[u8]) -> Option<Refusal> {
    of_certificate(certificate).or_else(|| of_key(key))
}

/// What refuses a certificate file, or loads it in part.
#[must_use]
pub fn of_certificate(bytes: &[u8]) -> Option<Refusal> {
    let verdicts = [
        (Loader::OpenSsl, openssl_certificates(bytes)),
        (Loader::Go, go_certificates(bytes)),
    ];
    refused(File::Certificate, bytes, verdicts)
}

/// What refuses a key file.
#[must_use]
pub fn of_key(bytes: &[u8]) -> Option<Refusal> {
    let verdicts = [
        (Loader::OpenSsl, openssl_key(bytes)),
        (Loader::Go, go_key(bytes)),
    ];
    refused(File::Key, bytes, verdicts)
}

fn refused(
    file: File,
    bytes: &[u8],
    verdicts: [(Loader, Result<(), Refused>); 2],
) -> Option<Refusal> {
    let refuse = |(loader, verdict): (Loader, Result<(), Refused>)| verdict.err().map(|_| loader);
    let loaders: Vec<Loader> = verdicts.into_iter().filter_map(refuse).collect();
    (!loaders.is_empty()).then(|| Refusal {
        loaders,
        file,
        form: form(bytes, file),
    })
}

/// Number of certificates in a file.
fn count(bytes: &[u8]) -> usize {
    let all = pem::blocks(bytes);
    all.filter(|block| block.label.ends_with("CERTIFICATE"))
        .count()
}

// === OpenSSL ===

fn openssl_certificates(bytes: &[u8]) -> Result<(), Refused> {
    let mut lines = Lines { rest: bytes };
    let mut loaded = 0;
    while let Some(block) = lines.block()? {
        match block.label {
            b"CERTIFICATE" | b"X509 CERTIFICATE" => {}
            // Only the first may carry OpenSSL's trust information.
            b"TRUSTED CERTIFICATE" if loaded == 0 => {}
            _ => continue,
        }
        let certificate = Certificate::parse(&block.der).map_err(|_| Refused)?;
        let whole = certificate.der.len() == block.der.len();
        if loaded == 0 && !whole && block.label != b"TRUSTED CERTIFICATE" {
            return Err(Refused);
        }
        loaded += 1;
    }
    if loaded == 0 || loaded < count(bytes) {
        return Err(Refused);
    }
    Ok(())
}

fn openssl_key(bytes: &[u8]) -> Result<(), Refused> {
    let mut lines = Lines { rest: bytes };
    while let Some(block) = lines.block()? {
        // PKCS#8 is also accepted under the older labels.
        let fits: &[Encoding] = match block.label {
            b"PRIVATE KEY" => &[Encoding::Pkcs8],
            b"RSA PRIVATE KEY" => &[Encoding::Pkcs1, Encoding::Pkcs8],
            b"EC PRIVATE KEY" => &[Encoding::Sec1, Encoding::Pkcs8],
            label if label.ends_with(b"PRIVATE KEY") => return Ok(()),
            _ => continue,
        };
        return match Encoding::of(&block.der) {
            Some(encoding) if !fits.contains(&encoding) => Err(Refused),
            _ => Ok(()),
        };
    }
    Err(Refused)
}

/// The input that `BIO_gets` has not returned yet.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    /// A line or a piece of it, with its line end; none at the end of the file.
    fn line(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let near = &self.rest[..self.rest.len().min(OPENSSL_LINE)];
        let length = memchr(b'\n', near).map_or(near.len(), |at| at + 1);
        let (line, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(line)
    }

    /// `PEM_read_bio`: the next block, none where no line begins one.
    fn block(&mut self) -> Result<Option<Block<'a>>, Refused> {
        let mut first = true;
        let label = loop {
            let Some(line) = self.line() else {
                return Ok(None);
            };
            let line = match line.strip_prefix(BYTE_ORDER_MARK) {
                Some(after) if first && !after.is_empty() => after,
                _ => line,
            };
            first = false;
            let begun = stripped(line).strip_prefix(BEGIN);
            if let Some(label) = begun.and_then(|it| it.strip_suffix(DASHES)) {
                break label;
            }
        };
        let mut text = Zeroizing::new(Vec::new());
        let mut header = Header::Maybe;
        // A blank line ends the headers, if there were any.
        let mut headed = false;
        let (mut partial, mut short) = (false, false);
        loop {
            let line = self.line().ok_or(Refused)?;
            let was_partial = std::mem::replace(
                &mut partial,
                line.len() == OPENSSL_LINE && line.last() != Some(&b'\n'),
            );
            if header == Header::Maybe && memchr(b':', line).is_some() {
                header = Header::In;
            }
            let line = stripped(line);
            if line.is_empty() {
                if was_partial {
                    continue;
                }
                if header == Header::After {
                    return Err(Refused);
                }
                header = Header::After;
                headed = !text.is_empty() && !text.starts_with(b"Proc-Type:");
                text.clear();
                continue;
            }
            if let Some(end) = line.strip_prefix(END) {
                if !end
                    .strip_prefix(label)
                    .is_some_and(|end| end.starts_with(DASHES) && end.len() == DASHES.len())
                {
                    return Err(Refused);
                }
                break;
            }
            if short {
                return Err(Refused);
            }
            text.extend_from_slice(line);
            text.push(b'\n');
            if header == Header::After {
                if line.len() > OPENSSL_WRAPPED {
                    return Err(Refused);
                }
                short = line.len() < OPENSSL_WRAPPED;
            }
        }
        if headed || header == Header::In {
            return Err(Refused);
        }
        text.retain(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
        let der = BASE64.decode(&*text).map_err(|_| Refused)?;
        let der = Zeroizing::new(der);
        Ok(Some(Block { label, der }))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Header {
    Maybe,
    In,
    After,
}

/// Strips what OpenSSL takes for white space at the end of a line; its characters are signed.
fn stripped(line: &[u8]) -> &[u8] {
    let length = line.iter().rposition(|byte| (0x21..0x80).contains(byte));
    &line[..length.map_or(0, |at| at + 1)]
}

// === Go ===

fn go_certificates(bytes: &[u8]) -> Result<(), Refused> {
    let blocks = go_blocks(bytes);
    let loaded: Vec<_> = blocks
        .iter()
        .filter(|it| it.label == b"CERTIFICATE")
        .collect();
    let leaf = &loaded.first().ok_or(Refused)?.der;
    let parsed = Certificate::parse(leaf).map_err(|_| Refused)?;
    if parsed.der.len() < leaf.len() || loaded.len() < count(bytes) {
        return Err(Refused);
    }
    Ok(())
}

fn go_key(bytes: &[u8]) -> Result<(), Refused> {
    let is_key =
        |block: &Block<'_>| block.label == b"PRIVATE KEY" || block.label.ends_with(b" PRIVATE KEY");
    let key = go_blocks(bytes).into_iter().find(is_key);
    key.map(drop).ok_or(Refused)
}

/// A line without its end and the blanks before it, what follows, and how long the line was with all that.
fn go_line(bytes: &[u8]) -> (&[u8], &[u8], usize) {
    let (line, next) = match memchr(b'\n', bytes) {
        None => (bytes, bytes.len()),
        Some(at) => (
            bytes[..at].strip_suffix(b"\r").unwrap_or(&bytes[..at]),
            at + 1,
        ),
    };
    let end = line.iter().rposition(|byte| !matches!(byte, b' ' | b'\t'));
    (&line[..end.map_or(0, |at| at + 1)], &bytes[next..], next)
}

/// Repeats `pem.Decode` until it finds no more blocks; skips what does not decode.
fn go_blocks(bytes: &[u8]) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut rest = bytes;
    while let Some(end) = find(rest, b"\n-----END ") {
        let after = &rest[end + 1 + END.len()..];
        let begin = rfind(&rest[..end], BEGIN);
        let Some(begin) = begin.filter(|at| *at == 0 || rest[at - 1] == b'\n') else {
            rest = after;
            continue;
        };
        match go_block(&rest[begin + BEGIN.len()..], end - begin - BEGIN.len()) {
            Some((block, next)) => {
                blocks.push(block);
                rest = next;
            }
            None => rest = after,
        }
    }
    blocks
}

/// A block from its label on; its END line begins after the line end at `end`.
fn go_block(bytes: &[u8], end: usize) -> Option<(Block<'_>, &[u8])> {
    let (line, mut rest, mut read) = go_line(bytes);
    let label = line.strip_suffix(DASHES)?;
    let mut headed = false;
    loop {
        if rest.is_empty() {
            return None;
        }
        let (line, next, length) = go_line(rest);
        if memchr(b':', line).is_none() {
            break;
        }
        (headed, rest, read) = (true, next, read + length);
    }
    if headed && end < read {
        return None;
    }
    let tail = bytes[end + 1 + END.len()..].strip_prefix(label)?;
    let tail = tail.strip_prefix(DASHES)?;
    let (line, next, _) = go_line(tail);
    if !line.is_empty() {
        return None;
    }
    let body = if end > read { &bytes[read..end] } else { &[] };
    let mut text = Zeroizing::new(body.to_vec());
    text.retain(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    let der = Zeroizing::new(BASE64.decode(&*text).ok()?);
    Some((Block { label, der }, next))
}

// === what is wrong ===

/// How a private key is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Encoding {
    Pkcs8,
    Pkcs1,
    Sec1,
}

impl Encoding {
    /// By the second field: an algorithm, a modulus, or the key itself.
    fn of(der: &[u8]) -> Option<Self> {
        Some(match x509::second_tag(der)? {
            0x30 => Self::Pkcs8,
            0x02 => Self::Pkcs1,
            0x04 => Self::Sec1,
            _ => return None,
        })
    }
}

/// The first problem that a refused file has.
fn form(bytes: &[u8], file: File) -> Form {
    let lines = || bytes.split(|byte| *byte == b'\n');
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let ended = |line: &[u8]| find(line, END).is_some();
    if find(bytes, BEGIN).is_none() {
        return Form::Der;
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        return Form::ByteOrderMark;
    }
    let alone = |line: &[u8]| memchr(b'\r', line.strip_suffix(b"\r").unwrap_or(line)).is_some();
    if lines().any(alone) {
        return Form::CarriageReturns;
    }
    if lines().any(|line| find(line, END).is_some_and(|end| find(&line[end..], BEGIN).is_some())) {
        return Form::Glued;
    }
    // An END line after other text ends base64 that begins on the BEGIN line, or nearly so.
    let begun = |line: &[u8]| {
        let label = find(line, BEGIN).map(|at| &line[at + BEGIN.len()..]);
        label
            .and_then(|it| find(it, DASHES).map(|end| &it[end + DASHES.len()..]))
            .is_some_and(|it| !it.trim_ascii().is_empty())
            || find(line, END).is_some_and(|at| !line[..at].iter().all(is_blank))
    };
    if lines().any(begun) {
        return Form::BeginLine;
    }
    if lines().any(|line| line.first().is_some_and(is_blank) && !line.trim_ascii().is_empty()) {
        return Form::Indented;
    }
    if bytes.iter().any(|byte| matches!(byte, 0x0b | 0x0c)) {
        return Form::ControlCharacters;
    }
    let mut inside = false;
    for line in lines() {
        if inside && line.trim_ascii().is_empty() {
            return Form::EmptyLines;
        }
        inside = (inside || find(line, BEGIN).is_some()) && !ended(line);
    }
    let odd =
        |block: pem::Block<'_>| ["X509 CERTIFICATE", "TRUSTED CERTIFICATE"].contains(&block.label);
    if file == File::Certificate && pem::blocks(bytes).any(odd) {
        return Form::Label;
    }
    let more = |block: pem::Block<'_>| {
        let der = block.decode().ok();
        der.is_some_and(|der| Certificate::parse(&der).is_ok_and(|it| it.der.len() < der.len()))
    };
    match file {
        File::Certificate if pem::blocks(bytes).any(more) => Form::MoreBytes,
        File::Key if openssl_key(bytes).is_err() && go_key(bytes).is_ok() => Form::KeyLabel,
        _ => Form::Other,
    }
}

impl Loader {
    /// The library, with well-known servers that use it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenSsl => "OpenSSL (nginx, HAProxy, Apache)",
            Self::Go => "Go (Traefik, Caddy)",
        }
    }
}

impl Form {
    /// The problem, as a sentence.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Der => "it is DER and not PEM",
            Self::ByteOrderMark => "it begins with a byte order mark",
            Self::CarriageReturns => "lines end with a carriage return alone",
            Self::Glued => "a block begins on the line on which another ends",
            Self::Indented => "lines begin with blanks",
            Self::BeginLine => "base64 stands on the line of BEGIN or END",
            Self::ControlCharacters => "it has form feeds or vertical tabs",
            Self::EmptyLines => "its base64 has empty lines",
            Self::Label => "the label of a block is not CERTIFICATE",
            Self::KeyLabel => "the label of the key names another encoding than the block has",
            Self::MoreBytes => "more bytes follow the certificate in its block",
            Self::Other => "it is not in the form of RFC 7468",
        }
    }

    /// The command that makes `tls.pem` loadable by both libraries.
    #[must_use]
    pub fn command(self, file: File) -> &'static str {
        match (self, file) {
            (Self::Der, File::Certificate) => {
                "openssl x509 -inform DER -in tls.pem -out new.pem && mv new.pem tls.pem"
            }
            (Self::Der, File::Key) => {
                "openssl pkey -inform DER -in tls.pem -out new.pem && mv new.pem tls.pem"
            }
            (Self::ByteOrderMark, _) => r"sed -i '1s/^\xEF\xBB\xBF//' tls.pem",
            (Self::CarriageReturns, _) => r"sed -i -e 's/\r$//' -e 's/\r/\n/g' tls.pem",
            (Self::Glued, _) => r"sed -i -E 's/(-----END [A-Z0-9 ]+-----)/\1\n/g' tls.pem",
            (Self::Indented, _) => r"sed -i 's/^[ \t]*//' tls.pem",
            (Self::BeginLine, _) => {
                r"sed -i -E -e 's/(-----BEGIN [A-Z0-9 ]+-----) *(.)/\1\n\2/' -e 's/(.) *(-----END )/\1\n\2/' tls.pem"
            }
            (Self::ControlCharacters, _) => r"sed -i -e 's/[\f\v]//g' -e '/^$/d' tls.pem",
            (Self::EmptyLines, _) => r"sed -i '/^[[:space:]]*$/d' tls.pem",
            (Self::Label | Self::MoreBytes | Self::Other, File::Certificate) => {
                "openssl crl2pkcs7 -nocrl -certfile tls.pem | openssl pkcs7 -print_certs -out new.pem && mv new.pem tls.pem"
            }
            (Self::KeyLabel, _) => {
                "grep -v -e ----- tls.pem | base64 -d | openssl pkey -inform DER -out new.pem && mv new.pem tls.pem"
            }
            (Self::Label | Self::MoreBytes | Self::Other, File::Key) => {
                "openssl pkey -in tls.pem -out new.pem && mv new.pem tls.pem"
            }
        }
    }
}

impl Refusal {
    /// Which servers refuse the file, and why.
    #[must_use]
    pub fn reason(&self) -> String {
        let loaders: Vec<&str> = self.loaders.iter().map(|it| it.as_str()).collect();
        let file = match self.file {
            File::Certificate => "certificate",
            File::Key => "private key",
        };
        format!(
            "{} cannot load the {file}, or not all of it: {}",
            loaders.join(" and "),
            self.form.as_str()
        )
    }

    /// How to fix it.
    #[must_use]
    pub fn remedy(&self) -> String {
        let command = self.form.command(self.file);
        format!("to fix it, write it into a file tls.pem and run: {command}")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason(), self.remedy())
    }
}

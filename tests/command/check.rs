//! `cert-renew check` on what CAs and tools have made elsewhere, and its reader had trouble with: what it prints, all of
//! it, and its exit code.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use cert_renew_core::certificate::pem;
use cert_renew_core::testing::file;
use cert_renew_core::testing::forge::{
    self, Forged, alternative_names, common_name, extension, tlv,
};
use rcgen::{KeyPair, PublicKeyData as _};
use test_bench::{Context as _, Result, ensure};

/// Long enough for any file that the API server takes, and much shorter than a reader that looks back at each line needs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ed448, which the library does not know: whose signature it is cannot be told.
const UNKNOWN: &[u8] = b"\x06\x03\x2b\x65\x71";
const NAME: &[u8] = b"a.example";
const VALID: &str = "valid until 2049-01-01T00:00:00Z for";

/// Runs the command on its standard input: its exit code, and what it prints without the name of the file.
fn check(input: &[u8]) -> Result<(Option<i32>, String)> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cert-renew"))
        .args(["check", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let (pid, (sender, receiver)) = (child.id(), channel());
    let waiting = thread::spawn(move || sender.send(child.wait_with_output()));
    stdin.write_all(input)?;
    drop(stdin);
    let Ok(output) = receiver.recv_timeout(PATIENCE) else {
        Command::new("kill").arg(pid.to_string()).status()?;
        let _ = waiting.join();
        return Err(test_bench::Error::msg("it does not come to an end"));
    };
    let output = output?;
    let said = String::from_utf8_lossy(&output.stdout);
    let lines = said.lines().map(|line| line.trim_start_matches("-: "));
    let lines: Vec<&str> = lines.collect();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.is_empty(), "{error}");
    Ok((output.status.code(), lines.join("\n")))
}

/// Checks that a file gives this exit code and exactly these lines.
fn gives(what: &str, input: &[u8], code: i32, lines: &[&str]) -> Result<()> {
    let (found, said) = check(input).with_context(|| what.to_owned())?;
    ensure!(
        found == Some(code) && said == lines.join("\n"),
        "{what}: {found:?}\n{said}"
    );
    Ok(())
}

/// A certificate until 2049 with these alternative names, by a CA whose certificate would follow it.
fn leaf(names: &[(u8, &[u8])]) -> Forged {
    Forged {
        validity: [b"200101000000Z", b"490101000000Z"].map(|time| tlv(0x17, time)),
        algorithm: UNKNOWN.to_vec(),
        extensions: vec![alternative_names(names.iter().copied())],
        ..Forged::default()
    }
}

/// The certificate of that CA.
fn authority(leaf: &Forged) -> Forged {
    Forged {
        issuer: common_name(0x0c, b"Forged Root"),
        subject: leaf.issuer.clone(),
        extensions: vec![extension(19, b"\x30\x03\x01\x01\xff")],
        ..self::leaf(&[])
    }
}

/// Both in one file.
fn chain(leaf: &Forged) -> Vec<u8> {
    (leaf.pem() + &authority(leaf).pem()).into_bytes()
}

fn fine(names: &str, issuer: &str) -> String {
    format!("certificate: ok: {VALID} {names} (ecdsa-p256, issued by {issuer})")
}

/// One Secret of 264 kB kept everything else waiting for 40 seconds.
#[test]
fn a_file_full_of_beginnings_is_read_in_time() -> Result<()> {
    let nothing = "certificate: error: no certificate is in it, a block -----BEGIN CERTIFICATE----- was expected (put PEM \
                   here: the server certificate first, then its issuers)";
    for (what, input) in [
        ("one line", format!("x{}", "-----BEGIN ".repeat(95_000))),
        ("other labels", "-----BEGIN \u{1}-----".repeat(60_000)),
    ] {
        gives(what, input.as_bytes(), 2, &[nothing])?;
    }
    Ok(())
}

/// A name in Unicode was lost in silence where another one stood beside it, and so was what is no name.
#[test]
fn a_name_that_cannot_be_asked_for_is_named() -> Result<()> {
    let unicode = "b\u{fc}cher.example.com".as_bytes();
    let beside = leaf(&[(0x82, unicode), (0x82, b"ok.example.com")]);
    let both = fine("xn--bcher-kva.example.com, ok.example.com", "CN=Forged CA");
    gives("a name in Unicode", &chain(&beside), 0, &[&both])?;
    let alone = fine("xn--bcher-kva.example.com", "CN=Forged CA");
    gives("alone", &chain(&leaf(&[(0x82, unicode)])), 0, &[&alone])?;
    let odd = leaf(&[
        (0x82, b"ok.example.com"),
        (0x82, b"a.example,b.example"),
        (0x82, b"a b.example"),
        (0x82, b"nul.example\0"),
    ]);
    let ok = fine("ok.example.com", "CN=Forged CA");
    let lines = [
        &*ok,
        "certificate: warning: 3 entries of its subject alternative names are no names: \"a.example,b.example\", \"a \
         b.example\", \"nul.example\\0\" (name those to ask for in cert-renew.io/names: a renewal would lose them)",
    ];
    gives("what is no name", &chain(&odd), 1, &lines)
}

/// A right pair was said to be none.
#[test]
fn a_key_of_which_the_certificate_has_the_compressed_point_belongs_to_it() -> Result<()> {
    let (own, other) = (KeyPair::generate()?, KeyPair::generate()?);
    let point = own.der_bytes();
    let sign = 2 + (point.last().context("no point")? & 1);
    let compressed = [&[sign], &point[1..33]].concat();
    let certificate = Forged {
        key: forge::public_key(&compressed),
        ..leaf(&[(0x82, NAME)])
    };
    let with = |key: &KeyPair| [chain(&certificate), key.serialize_pem().into_bytes()].concat();
    let ok = fine("a.example", "CN=Forged CA");
    gives("its key", &with(&own), 0, &[&ok])?;
    let not = "private key: error: the private key is not the one of the certificate (put the key here that belongs to it)";
    gives("another key", &with(&other), 2, &[&ok, not])
}

/// "Not signed by the key of the one that follows it" was said of CAs whose keys the library does not take.
#[test]
fn a_signature_that_cannot_be_checked_is_not_said_to_be_wrong() -> Result<()> {
    let rsa = |bits: usize| {
        let modulus = [&[0, 0x80], &*vec![1; bits / 8 - 1]].concat();
        let key = tlv(
            0x30,
            &[tlv(0x02, &modulus), b"\x02\x03\x01\0\x01".to_vec()].concat(),
        );
        let algorithm = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\0";
        let key = tlv(0x03, &[b"\0", &*key].concat());
        tlv(0x30, &[algorithm.to_vec(), key].concat())
    };
    let ok = fine("a.example", "CN=Forged CA");
    let wrong = "certificate: error: certificate 1 of the chain is not signed by the key of the one that follows it (put the \
                 server certificate first, then its issuers, in order)";
    let (sha256, sha384) = (11, 12);
    for (bits, hash, lines) in [
        (512, sha256, vec![&*ok]),
        (16_384, sha256, vec![&*ok]),
        (1_024, sha384, vec![&*ok]),
        (2_048, sha256, vec![&*ok, wrong]),
    ] {
        let with_rsa = [
            b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01".as_slice(),
            &[hash],
            b"\x05\0",
        ];
        let leaf = Forged {
            algorithm: with_rsa.concat(),
            ..leaf(&[(0x82, NAME)])
        };
        let authority = Forged {
            key: rsa(bits),
            ..authority(&leaf)
        };
        let file = leaf.pem() + &authority.pem();
        let code = if lines.len() > 1 { 2 } else { 0 };
        gives(&format!("{bits} bits"), file.as_bytes(), code, &lines)?;
    }
    Ok(())
}

/// Nine public files were unreadable for their times.
#[test]
fn a_time_with_an_offset_or_a_fraction_is_read() -> Result<()> {
    for (from, to) in [
        (
            tlv(0x17, b"160810142728-0500"),
            tlv(0x17, b"481231190000-0500"),
        ),
        (
            tlv(0x18, b"20160810142728.5Z"),
            tlv(0x18, b"20490101000000.9Z"),
        ),
    ] {
        let leaf = Forged {
            validity: [from, to],
            ..leaf(&[(0x82, NAME)])
        };
        let ok = fine("a.example", "CN=Forged CA");
        gives("such a time", &chain(&leaf), 0, &[&ok])?;
    }
    Ok(())
}

/// "Put PEM here" was said of everything, and "for  (" where there was no name.
#[test]
fn what_stands_in_the_place_of_a_certificate_or_a_key_is_named() -> Result<()> {
    let pkcs7 = b"\x30\x0f\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02\xa0\x02\x30\0";
    let utf16 = "-----BEGIN CERTIFICATE-----".encode_utf16();
    let utf16: Vec<u8> = utf16.flat_map(u16::to_le_bytes).collect();
    let as_pem = "openssl pkcs7 -print_certs writes it as PEM (with -inform DER where it is DER)";
    for (what, input, remedy) in [
        ("PKCS#7", pkcs7.to_vec(), as_pem),
        (
            "PKCS#7",
            pem::encode("PKCS7", pkcs7).as_bytes().to_vec(),
            as_pem,
        ),
        (
            "a certificate request",
            file("broken-request.pem"),
            "send it to the CA, and put here what comes back",
        ),
        (
            "text in UTF-16",
            utf16,
            "write it as ASCII: iconv -f UTF-16 -t ASCII",
        ),
    ] {
        let line = format!("certificate: error: it is {what} and no certificate ({remedy})");
        gives(what, &input, 2, &[&line])?;
    }
    let damaged = "certificate: error: certificate 1 is not X.509: its outer SEQUENCE is missing or broken (it is damaged, or \
                   no certificate: take it again from where it came from)";
    gives("damaged", &file("broken-line-lost.pem"), 2, &[damaged])?;
    let ours = "cert-renew reads RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521) and Ed25519 (servers may well take it; \
                cert-renew cannot compare it with the certificate)";
    for (name, kind) in [
        ("rsa-1024.key", "RSA of 1024 bits"),
        ("ed448.key", "Ed448"),
        ("rsa-pss.key", "RSA-PSS"),
    ] {
        let certificate = chain(&leaf(&[(0x82, NAME)]));
        let input = [certificate, file(name)].concat();
        let key = format!("private key: error: the private key is {kind}, and {ours}");
        let ok = fine("a.example", "CN=Forged CA");
        gives(name, &input, 2, &[&ok, &key])?;
    }
    let nameless = Forged {
        issuer: tlv(0x30, b""),
        ..leaf(&[(0x81, b"a@b.example")])
    };
    let ok = fine("no name", "a CA without a name");
    let lines = [
        &*ok,
        "certificate: error: it is for no name (request one with subject alternative names)",
    ];
    gives("no names", &chain(&nameless), 2, &lines)
}

/// An issuer was shown as `2.5.4.3=#1e…`, and was not the one of that name in another type of string.
#[test]
fn the_name_of_an_issuer_is_readable_in_every_type_of_string() -> Result<()> {
    let ok = fine("a.example", "CN=T\u{fc}V");
    let (bmp, latin): (&[u8], &[u8]) = (b"\0T\0\xfc\0V", b"T\xfcV");
    for (tag, text) in [(0x1e, bmp), (0x14, latin), (0x0c, "T\u{fc}V".as_bytes())] {
        let leaf = Forged {
            issuer: common_name(tag, text),
            ..leaf(&[(0x82, NAME)])
        };
        let in_utf8 = Forged {
            issuer: common_name(0x0c, "T\u{fc}V".as_bytes()),
            ..self::leaf(&[])
        };
        let file = leaf.pem() + &authority(&in_utf8).pem();
        gives(&format!("type {tag:x}"), file.as_bytes(), 0, &[&ok])?;
    }
    Ok(())
}

/// The certificate that signed the first one ends before it: clients refuse it from then on.
#[test]
fn the_earliest_end_of_a_chain_is_told() -> Result<()> {
    let leaf = leaf(&[(0x82, NAME)]);
    let authority = Forged {
        validity: [b"200101000000Z", b"480101000000Z"].map(|time| tlv(0x17, time)),
        ..authority(&leaf)
    };
    let file = leaf.pem() + &authority.pem();
    let ok = fine("a.example", "CN=Forged CA");
    let lines = [
        &*ok,
        "certificate: warning: certificate 2 of the file ends at 2048-01-01T00:00:00Z, sooner than the server certificate (take \
         a chain from the CA that lasts as long as the certificate)",
    ];
    gives("a short chain", file.as_bytes(), 1, &lines)
}

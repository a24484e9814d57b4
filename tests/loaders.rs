//! What servers really load: the forms in which people write certificates and keys, each loaded by OpenSSL (in nginx) and
//! by Go, against what cert-renew says of it; and the command that it names, run.

#![expect(
    clippy::unwrap_used,
    reason = "a table of files: what is missing fails the test"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cert_renew_core::certificate::loader::{File, Loader, refusal};
use test_bench::Result;

/// A pair in some form, and what becomes of it: for OpenSSL and for Go `+` it is loaded, `-` refused, `~` loaded in part.
struct Row {
    name: &'static str,
    certificate: Vec<u8>,
    key: Vec<u8>,
    expected: &'static str,
}

/// Ten lines of Go: for each directory, how many certificates `tls.X509KeyPair` has loaded.
const GO: &str = r#"package main

import ("crypto/tls"; "fmt"; "os")

func main() {
	for _, dir := range os.Args[1:] {
		pair, err := tls.LoadX509KeyPair(dir+"/tls.crt", dir+"/tls.key")
		fmt.Println(len(pair.Certificate), err)
	}
}
"#;

fn file(name: &str) -> Vec<u8> {
    fs::read(format!("testdata/certificates/{name}")).unwrap()
}

fn text(name: &str) -> String {
    String::from_utf8(file(name)).unwrap()
}

fn der(pem: &str) -> Vec<u8> {
    let lines = pem.lines().filter(|line| !line.contains('-'));
    STANDARD.decode(lines.collect::<String>()).unwrap()
}

fn pem(label: &str, der: &[u8]) -> String {
    wrapped(label, der, 64)
}

fn wrapped(label: &str, der: &[u8], columns: usize) -> String {
    let base64 = STANDARD.encode(der);
    let lines = base64.as_bytes().chunks(columns);
    let body = lines.fold(String::new(), |mut body, line| {
        let _ = writeln!(body, "{}", std::str::from_utf8(line).unwrap());
        body
    });
    format!("-----BEGIN {label}-----\n{body}-----END {label}-----\n")
}

fn first_block(pem: &str) -> &str {
    let end = pem.find("-----END").unwrap();
    &pem[..end + pem[end..].find('\n').unwrap() + 1]
}

/// How many certificates a server has to load.
fn whole(row: &Row) -> usize {
    if row.name == "DER" || row.name.starts_with("RSA") {
        1
    } else {
        2
    }
}

fn rows() -> Vec<Row> {
    let (good, key) = (text("good.pem"), text("good.key"));
    let second = good.rfind("-----BEGIN").unwrap();
    let (leaf, issuer) = (&good[..second], &good[second..]);
    let key_der = der(&key);
    let mut rows = Vec::new();
    let mut add = |name, certificate: Vec<u8>, key: Vec<u8>, expected| {
        rows.push(Row {
            name,
            certificate,
            key,
            expected,
        });
    };
    let longer = |pem: &str| [der(pem), b"more".to_vec()].concat();
    let relabelled = |pem: &str, label: &str| pem.replace("CERTIFICATE", label);
    let each_line =
        |pem: &str, to: &dyn Fn(&str) -> String| -> String { pem.lines().map(to).collect() };
    let indented = |pem: &str| each_line(pem, &|line| format!("  {line}\n"));
    // Between the second and the third line of each block.
    let broken_by = |pem: &str, what: &str| {
        let body = each_line(pem, &|line| {
            if line.contains("BEGIN") {
                format!("{line}\n\u{0}")
            } else {
                format!("{line}\n")
            }
        });
        let parts = body.split('\u{0}').map(|part| match part.split_once('\n') {
            Some((first, rest)) if !part.starts_with("-----BEGIN") => {
                format!("{first}\n{what}{rest}")
            }
            _ => part.to_owned(),
        });
        parts.collect::<String>()
    };
    for (name, certificate, expected) in [
        ("as it should be", good.clone(), "++"),
        ("CRLF", good.replace('\n', "\r\n"), "++"),
        ("no last line end", good.trim_end().to_owned(), "++"),
        (
            "text around",
            format!("subject: x\n{leaf}\nissuer: y\n{issuer}bye"),
            "++",
        ),
        (
            "empty lines between blocks",
            format!("\n{leaf}\n\n{issuer}\n"),
            "++",
        ),
        (
            "a commented-out block first",
            format!("# {leaf}{good}"),
            "++",
        ),
        (
            "76 columns",
            wrapped("CERTIFICATE", &der(leaf), 76) + issuer,
            "++",
        ),
        (
            "one long line",
            wrapped("CERTIFICATE", &der(leaf), 9999) + issuer,
            "++",
        ),
        (
            "blanks at line ends",
            each_line(&good, &|line| format!("{line} \t\n")),
            "++",
        ),
        ("the key in it, first", format!("{key}{good}"), "++"),
        ("the key in it, last", format!("{good}{key}"), "++"),
        ("glued", format!("{}{issuer}", leaf.trim_end()), "--"),
        ("CR alone", good.replace('\n', "\r"), "--"),
        ("indented", indented(&good), "--"),
        (
            "the second indented",
            format!("{leaf}{}", indented(issuer)),
            "~~",
        ),
        (
            "indented base64",
            each_line(&good, &|line| {
                if line.contains('-') {
                    format!("{line}\n")
                } else {
                    format!(" {line}\n")
                }
            }),
            "++",
        ),
        (
            "base64 on the BEGIN line",
            good.replace("CERTIFICATE-----\nM", "CERTIFICATE-----M"),
            "--",
        ),
        (
            "the END line after base64",
            leaf.replace("\n-----END", "-----END") + issuer,
            "~-",
        ),
        ("a form feed", broken_by(&good, "\u{c}"), "--"),
        (
            "a form feed on a line of its own",
            broken_by(&good, "\u{c}\n"),
            "--",
        ),
        ("a vertical tab", broken_by(&good, "\u{b}"), "--"),
        (
            "a form feed in the second",
            format!("{leaf}{}", broken_by(issuer, "\u{c}")),
            "-~",
        ),
        ("empty lines in the base64", broken_by(&good, "\n"), "-+"),
        (
            "an empty line after BEGIN",
            good.replace("BEGIN CERTIFICATE-----\n", "BEGIN CERTIFICATE-----\n\n"),
            "++",
        ),
        (
            "an empty line after BEGIN, 76 columns",
            wrapped("CERTIFICATE", &der(leaf), 76).replacen("-----\n", "-----\n\n", 1) + issuer,
            "-+",
        ),
        ("a byte order mark", format!("\u{feff}{good}"), "+-"),
        (
            "bytes after the leaf",
            pem("CERTIFICATE", &longer(leaf)) + issuer,
            "--",
        ),
        (
            "bytes after the issuer",
            format!("{leaf}{}", pem("CERTIFICATE", &longer(issuer))),
            "++",
        ),
        (
            "X509 CERTIFICATE",
            relabelled(&good, "X509 CERTIFICATE"),
            "+-",
        ),
        (
            "the second X509 CERTIFICATE",
            format!("{leaf}{}", relabelled(issuer, "X509 CERTIFICATE")),
            "+~",
        ),
        ("TRUSTED CERTIFICATE", text("trusted.pem") + issuer, "+-"),
        (
            "the second TRUSTED CERTIFICATE",
            format!("{leaf}{}", relabelled(issuer, "TRUSTED CERTIFICATE")),
            "~~",
        ),
        (
            "a header",
            good.replace(
                "BEGIN CERTIFICATE-----\n",
                "BEGIN CERTIFICATE-----\nx: y\n\n",
            ),
            "-+",
        ),
        ("the padding lost", good.replace('=', ""), "--"),
        (
            "the second broken",
            format!("{leaf}{}", issuer.replace("\nM", "\n?")),
            "-~",
        ),
        (
            "the second without an end",
            format!("{leaf}{}", issuer.replace("-----END", "")),
            "-~",
        ),
        (
            "text on the END line",
            good.replace("END CERTIFICATE-----\n", "END CERTIFICATE----- x\n"),
            "--",
        ),
        ("a NUL in the base64", broken_by(&good, "\u{1}"), "--"),
    ] {
        add(
            name,
            certificate.into_bytes(),
            key.clone().into_bytes(),
            expected,
        );
    }
    add("DER", der(leaf), key.clone().into_bytes(), "--");
    let (rsa, sec1) = (text("pkcs1.key"), text("sec1.key"));
    for (name, key, expected) in [
        ("key: CRLF", key.replace('\n', "\r\n").into_bytes(), "++"),
        ("key: SEC1", sec1.clone().into_bytes(), "++"),
        (
            "key: SEC1 with parameters",
            format!("{}{sec1}", first_block(&text("ec-parameters.key"))).into_bytes(),
            "++",
        ),
        (
            "key: after certificates",
            format!("{good}{key}").into_bytes(),
            "++",
        ),
        ("key: DER", key_der.clone(), "--"),
        ("key: CR alone", key.replace('\n', "\r").into_bytes(), "--"),
        ("key: indented", indented(&key).into_bytes(), "--"),
        (
            "key: on the BEGIN line",
            key.replace("KEY-----\nM", "KEY-----M").into_bytes(),
            "--",
        ),
        (
            "key: a form feed",
            broken_by(&key, "\u{c}").into_bytes(),
            "--",
        ),
        (
            "key: a byte order mark",
            format!("\u{feff}{key}").into_bytes(),
            "+-",
        ),
        ("key: empty lines", broken_by(&key, "\n").into_bytes(), "-+"),
        (
            "key: PKCS#8 as EC",
            pem("EC PRIVATE KEY", &key_der).into_bytes(),
            "++",
        ),
        (
            "key: SEC1 as PKCS#8",
            pem("PRIVATE KEY", &der(&sec1)).into_bytes(),
            "-+",
        ),
        (
            "key: bytes after it",
            pem("PRIVATE KEY", &longer(&key)).into_bytes(),
            "++",
        ),
    ] {
        add(name, good.clone().into_bytes(), key, expected);
    }
    let rsa_leaf = text("rsa-2048.pem");
    for (name, key, expected) in [
        ("RSA: PKCS#1", rsa.clone(), "++"),
        (
            "RSA: PKCS#1 as PKCS#8",
            pem("PRIVATE KEY", &der(&rsa)),
            "-+",
        ),
        (
            "RSA: PKCS#8 as PKCS#1",
            pem("RSA PRIVATE KEY", &der(&text("rsa-2048.key"))),
            "++",
        ),
    ] {
        add(
            name,
            rsa_leaf.clone().into_bytes(),
            key.into_bytes(),
            expected,
        );
    }
    rows
}

fn write(root: &Path, at: usize, certificate: &[u8], key: &[u8]) {
    let place = root.join(at.to_string());
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("tls.crt"), certificate).unwrap();
    fs::write(place.join("tls.key"), key).unwrap();
}

/// What nginx says of the pair in `at`; none where it loads it.
fn openssl(nginx: &str, root: &Path, at: usize) -> Option<String> {
    let place = root.join(at.to_string());
    let place = place.display();
    // Its own directories for what clients and others send: those that it was compiled with may not be there.
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|of| format!("{of}_temp_path {place}/{of};"))
        .concat();
    let config = format!(
        "daemon off; pid {place}/pid; events {{}} http {{ access_log off; {paths} server {{ listen unix:{place}/socket ssl; \
         ssl_certificate {place}/tls.crt; ssl_certificate_key {place}/tls.key; }} }}"
    );
    let file = format!("{place}/nginx.conf");
    fs::write(&file, config).unwrap();
    let ran = Command::new(nginx)
        .args(["-t", "-e", "stderr", "-c", &file])
        .output()
        .unwrap();
    (!ran.status.success()).then(|| String::from_utf8_lossy(&ran.stderr).into_owned())
}

/// For each pair how many certificates Go has loaded, and what it says.
fn go(root: &Path, count: usize) -> Vec<String> {
    let program = root.join("load.go");
    fs::write(&program, GO).unwrap();
    let ran = Command::new("go")
        .arg("run")
        .arg(&program)
        .args((0..count).map(|at| root.join(at.to_string())))
        .current_dir(root)
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    String::from_utf8(ran.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn tool(name: &str) -> String {
    let ran = Command::new("tests/tools.sh").arg(name).output().unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    String::from_utf8(ran.stdout).unwrap().trim().to_owned()
}

#[test]
fn what_openssl_and_go_load_is_what_we_say_they_load() -> Result<()> {
    let (rows, nginx) = (rows(), tool("nginx"));
    let root = std::env::temp_dir().join(format!("cert-renew-loaders-{}", std::process::id()));
    for (at, row) in rows.iter().enumerate() {
        write(&root, at, &row.certificate, &row.key);
    }
    let loaded = go(&root, rows.len());
    let (mut table, mut wrong) = (String::new(), 0);
    for (at, row) in rows.iter().enumerate() {
        let by_openssl = openssl(&nginx, &root, at);
        let whole = format!("{} <nil>", whole(row));
        let by_go = match &loaded[at] {
            all if *all == whole => '+',
            part if part.ends_with("<nil>") => '~',
            _ => '-',
        };
        let ours = refusal(&row.certificate, &row.key);
        let says = |loader| ours.as_ref().is_some_and(|it| it.loaders.contains(&loader));
        let expected: Vec<char> = row.expected.chars().collect();
        let right = by_openssl.is_some() == (expected[0] == '-')
            && by_go == expected[1]
            && says(Loader::OpenSsl) == (expected[0] != '+')
            && says(Loader::Go) == (expected[1] != '+');
        wrong += usize::from(!right);
        let _ = writeln!(
            table,
            "{}{}: expected {}, OpenSSL {}, Go {by_go}, we {:?}\n{}{}",
            if right { "" } else { "WRONG " },
            row.name,
            row.expected,
            if by_openssl.is_some() { '-' } else { '+' },
            ours,
            if right {
                String::new()
            } else {
                by_openssl.unwrap_or_default()
            },
            if right { "" } else { &loaded[at] },
        );
    }
    fs::remove_dir_all(&root)?;
    assert_eq!(wrong, 0, "{table}");
    Ok(())
}

#[test]
fn the_command_that_we_name_mends_the_file() -> Result<()> {
    let (rows, nginx) = (rows(), tool("nginx"));
    let root = std::env::temp_dir().join(format!("cert-renew-mended-{}", std::process::id()));
    let mut mended = Vec::new();
    for row in &rows {
        let Some(refused) = refusal(&row.certificate, &row.key) else {
            continue;
        };
        // What is lost or broken no command brings back.
        if [
            "the padding lost",
            "the second broken",
            "the second without an end",
            "text on the END line",
            "a NUL in the base64",
            "a header",
        ]
        .contains(&row.name)
        {
            continue;
        }
        let (at, file) = (mended.len(), refused.file);
        let (mut certificate, mut key) = (row.certificate.clone(), row.key.clone());
        let broken = if file == File::Certificate {
            &mut certificate
        } else {
            &mut key
        };
        write(&root, at, broken, b"");
        let place = root.join(at.to_string());
        fs::copy(place.join("tls.crt"), place.join("tls.pem"))?;
        let command = refused.form.command(file);
        let ran = Command::new("sh")
            .args(["-c", command])
            .current_dir(&place)
            .output()?;
        assert!(ran.status.success(), "{}: {command}: {ran:?}", row.name);
        *broken = fs::read(place.join("tls.pem"))?;
        write(&root, at, &certificate, &key);
        assert_eq!(refusal(&certificate, &key), None, "{}: {command}", row.name);
        mended.push((row.name, whole(row)));
    }
    let loaded = go(&root, mended.len());
    for (at, (name, whole)) in mended.iter().enumerate() {
        assert_eq!(openssl(&nginx, &root, at), None, "{name}");
        assert_eq!(loaded[at], format!("{whole} <nil>"), "{name}");
    }
    assert!(mended.len() > 15, "{}", mended.len());
    fs::remove_dir_all(&root)?;
    Ok(())
}

use cert_renew_core::testing::file;

use super::*;

fn at(text: &str) -> UnixTime {
    text.parse().unwrap()
}

/// Exit code and complete output.
fn run(bytes: &[u8]) -> (u8, String) {
    let findings = check(bytes, at("2026-02-01T00:00:00Z"));
    let line = |finding: &Finding| {
        let Finding {
            place,
            message,
            remedy,
            ..
        } = finding;
        format!("{place}: {message}: {remedy}\n")
    };
    let worst = findings.iter().map(|finding| finding.severity).max();
    (exit_code(worst), findings.iter().map(line).collect())
}

#[test]
fn files_are_judged() {
    for (name, code, said) in [
        (
            "good.pem",
            0,
            "valid until 2026-04-01T00:00:00Z for shop.example.com",
        ),
        ("key-first.pem", 0, "valid until"),
        (
            "good.key",
            0,
            "a private key (ecdsa-p256) and no certificate",
        ),
        ("pkcs8.der", 2, "cannot load the private key"),
        ("bare.der", 2, "it is DER and not PEM"),
        ("glued.pem", 2, "OpenSSL (nginx, HAProxy, Apache) and Go"),
        ("broken-request.pem", 2, "it is a certificate request"),
        ("rsa-pss.key", 2, "the private key is RSA-PSS"),
        ("common-name-only.pem", 1, "only in the common name"),
        ("self-signed.pem", 1, "self-signed"),
        ("empty-san.pem", 2, "it is for no name"),
        (
            "years-1950-1960.pem",
            2,
            "it expired at 1960-12-31T23:59:59Z",
        ),
        (
            "years-2049-2049.pem",
            2,
            "it is not valid before 2049-01-01",
        ),
        ("broken-empty.pem", 2, "it is empty"),
        ("broken-backslash-n.pem", 2, "write real line ends"),
        ("broken-encoded-twice.pem", 2, "encoded twice"),
        ("broken-line-lost.pem", 2, "certificate 1 is not X.509"),
        ("second-broken.pem", 2, "certificate 2 is not X.509"),
        ("encrypted.key", 2, "is encrypted"),
    ] {
        let (seen, printed) = run(&file(name));
        assert_eq!(seen, code, "{name}: {printed}");
        assert!(printed.contains(said), "{name}: {printed}");
    }
    let mixed = [file("good.pem"), file("p384.key")].concat();
    assert_eq!(run(&mixed).0, 2);
    let reversed = [file("intermediate.pem"), file("x509-label.pem")].concat();
    assert!(
        run(&reversed)
            .1
            .contains("the server certificate is number 2 of the file")
    );
    let twice = [file("good.pem"), file("intermediate.pem")].concat();
    assert!(
        run(&twice)
            .1
            .contains("certificate 2 of the chain is issued by")
    );
    let late = check(&file("good.pem"), at("2026-03-20T00:00:00Z"));
    assert_eq!(
        late[0].message,
        "it expires at 2026-04-01T00:00:00Z, in 12d"
    );
}

fn manifest(kind: &str, metadata: &str, data: &[(&str, &str)], plain: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Secret\ntype: {kind}\nmetadata: {{name: a, namespace: b{metadata}}}\n"
    );
    for (key, file_name) in data {
        text += if text.contains("\ndata:") {
            ""
        } else {
            "data:\n"
        };
        text += &format!("  {key}: {}\n", STANDARD.encode(file(file_name)));
    }
    for (key, file_name) in plain {
        text += if text.contains("\nstringData:") {
            ""
        } else {
            "stringData:\n"
        };
        let body = String::from_utf8(file(file_name)).unwrap();
        text += &format!(
            "  {key}: |\n    {}\n",
            body.trim_end().replace('\n', "\n    ")
        );
    }
    text
}

#[test]
fn manifests_are_judged() {
    let good = [("tls.crt", "good.pem"), ("tls.key", "good.key")];
    let opaque = ", annotations: {cert-renew.io/outputs: all.pem=key+fullchain}";
    let label =
        ", labels: {cert-renew.io/managed: \"true\"}, annotations: {cert-renew.io/outputs: a=leaf}";
    let one = manifest(TLS_TYPE, "", &good, &[]);
    let item = one.replace('\n', "\n  ");
    for (text, code, said) in [
        (one.clone(), 0, "Secret b/a, tls.crt: valid until"),
        (manifest(TLS_TYPE, "", &[], &good), 0, "valid until"),
        (
            manifest(TLS_TYPE, "", &[("tls.crt", "broken-text.pem")], &good),
            0,
            "valid until",
        ),
        (
            manifest(TLS_TYPE, "", &[], &[]),
            0,
            "holds no certificate yet",
        ),
        (
            manifest(TLS_TYPE, "", &good[..1], &[]),
            2,
            "Secret b/a, tls.key: it is empty",
        ),
        (
            manifest(
                TLS_TYPE,
                "",
                &[("tls.crt", "good.pem"), ("tls.key", "p384.key")],
                &[],
            ),
            2,
            "not the one of the certificate",
        ),
        (
            manifest(
                TLS_TYPE,
                "",
                &[("tls.crt", "key-last.pem"), ("tls.key", "good.key")],
                &[],
            ),
            1,
            "holds a private key beside",
        ),
        (
            manifest("Opaque", opaque, &[("all.pem", "key-first.pem")], &[]),
            1,
            "add the label",
        ),
        (
            manifest(
                "Opaque",
                label,
                &[("a", "good.pem"), ("tls.key", "good.key")],
                &[],
            ),
            0,
            "valid",
        ),
        (
            format!(
                "immutable: true\n{}",
                manifest(
                    TLS_TYPE,
                    ", annotations: {cert-renew.io/issuer: le}",
                    &good,
                    &[]
                )
            ),
            1,
            "it is immutable",
        ),
        (
            format!(
                "immutable: true\n{}",
                manifest(
                    TLS_TYPE,
                    ", annotations: {cert-renew.io/issuer: external}",
                    &good,
                    &[]
                )
            ),
            0,
            "valid until",
        ),
        (
            format!("{one}---\n{}", one.replace("name: a", "name: c")),
            0,
            "Secret b/c, tls.crt: valid",
        ),
        (
            format!("kind: List\nitems:\n- {item}"),
            0,
            "Secret b/a, tls.crt: valid until",
        ),
        (
            format!(
                "kind: SecretList\nitems:\n- {}",
                item.replace("kind: Secret", "x: y")
            ),
            0,
            "valid",
        ),
        (one.replace("tls.crt: ", "tls.crt: '?"), 2, "at line"),
        (
            one.replace("tls.crt: ", "tls.crt: _"),
            2,
            "under data is not base64",
        ),
        ("kind: ConfigMap\n".to_owned(), 1, "no Secret"),
        (
            r#"{"kind":"Secret","metadata":{"name":"a"}}"#.to_owned(),
            0,
            "no certificate yet",
        ),
    ] {
        let (seen, printed) = run(text.as_bytes());
        assert_eq!(seen, code, "{text}\n{printed}");
        assert!(printed.contains(said), "{text}\n{printed}");
    }
}

/// Invariant 1: whatever is wrong with the file, the output does not contain the key.
#[test]
fn no_finding_quotes_a_key() {
    let pair = [("tls.crt", "key-first.pem"), ("tls.key", "good.key")];
    let canary = String::from_utf8(file("good.key"))
        .unwrap()
        .lines()
        .nth(1)
        .unwrap()
        .to_owned();
    for text in [
        manifest(TLS_TYPE, "", &pair, &[]),
        manifest(TLS_TYPE, "", &[], &pair),
    ] {
        let encoded = STANDARD.encode(file("good.key"))[60..100].to_owned();
        for at in (0..text.len()).step_by(7) {
            for broken in [
                &text[..at],
                &format!("{}\u{1}:{}", &text[..at], &text[at..]),
            ] {
                let (_, printed) = run(broken.as_bytes());
                assert!(
                    !printed.contains(&canary) && !printed.contains(&encoded),
                    "{printed}"
                );
            }
        }
    }
}

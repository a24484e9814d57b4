mod chain;

use der::Decode as _;

use super::*;
use crate::testing::file;
use crate::testing::forge;

fn names(leaf: &Leaf) -> String {
    leaf.names
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[test]
fn openssl_reads_the_same_in_every_file() {
    let table = String::from_utf8(file("facts.tsv")).unwrap();
    for line in table.lines() {
        let [name, fingerprint, from, until, serial, key] =
            line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let leaf = leaf(&file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(leaf.fingerprint, fingerprint.parse().unwrap(), "{name}");
        assert_eq!(leaf.not_before, from.parse().unwrap(), "{name}");
        assert_eq!(
            Fingerprint::of(&leaf.public_key),
            key.parse().unwrap(),
            "{name}"
        );
        // OpenSSL prints the number, we keep the octets; the test below has the difference.
        let octets = hex(&leaf.serial);
        assert!(
            octets.ends_with(serial) || serial == "-05",
            "{name}: {octets}"
        );
        // jiff reads no time of the last day of 9999.
        let until = until.parse().unwrap_or(UnixTime(253_402_300_799));
        assert_eq!(leaf.not_after, until, "{name}");
    }
    assert!(table.lines().count() > 40);
}

#[test]
fn the_text_around_it_does_not_matter() {
    let good = certificates(&file("good.pem")).unwrap();
    assert_eq!(good.len(), 2);
    for name in [
        "crlf",
        "trailing-blanks",
        "indented",
        "glued",
        "unwrapped",
        "columns-76",
        "no-last-newline",
        "with-text",
        "byte-order-mark",
        "key-first",
        "key-last",
    ] {
        assert_eq!(
            certificates(&file(&format!("{name}.pem"))).unwrap(),
            good,
            "{name}"
        );
    }
    for name in [
        "x509-label.pem",
        "trusted.pem",
        "bare.der",
        "commented-out.pem",
    ] {
        assert_eq!(certificates(&file(name)).unwrap(), good[..1], "{name}");
    }
}

#[test]
fn names_come_from_the_san() {
    for (name, expected) in [
        (
            "good",
            "shop.example.com *.shop.example.com 10.0.0.1 2001:db8::1",
        ),
        ("no-common-name", "only.example.com"),
        ("common-name-only", "old.example.com"),
        ("bmp-string", "bmp.example.com"),
        ("no-name", ""),
        ("empty-san", ""),
        ("broken-san", ""),
        ("unknown-critical", "critical.example.com"),
        ("other-names", "_sip.example.com last.example.com"),
    ] {
        assert_eq!(
            names(&leaf(&file(&format!("{name}.pem"))).unwrap()),
            expected,
            "{name}"
        );
    }
    assert_eq!(leaf(&file("many-names.pem")).unwrap().names.len(), 600);
}

#[test]
fn the_leaf_is_found_wherever_it_stands() {
    let good = leaf(&file("good.pem")).unwrap();
    assert_eq!(*good.remarks, []);
    let (alone, intermediate, root) = ("x509-label.pem", "intermediate.pem", "root.pem");
    for (parts, number) in [
        (vec![alone, intermediate, root], 1),
        (vec![intermediate, alone], 2),
        (vec![root, intermediate, alone], 3),
        (vec![intermediate, root, alone], 3),
        (vec![root, alone], 2),
        (vec![alone, alone, intermediate], 1),
    ] {
        let whole: Vec<u8> = parts.iter().flat_map(|name| file(name)).collect();
        let found = leaf(&whole).unwrap();
        assert_eq!(found.fingerprint, good.fingerprint, "{parts:?}");
        let expected = (number > 1).then_some(Remark::NotFirst { number });
        assert_eq!(found.remarks.first(), expected.as_ref(), "{parts:?}");
    }
    // If all are CAs, the leaf is one that has issued none of the others.
    for parts in [[root, intermediate], [intermediate, root]] {
        let whole: Vec<u8> = parts.iter().flat_map(|name| file(name)).collect();
        let found = leaf(&whole).unwrap();
        assert_eq!(
            found.fingerprint,
            leaf(&file(intermediate)).unwrap().fingerprint
        );
    }
}

#[test]
fn no_name_is_lost_without_a_word() {
    let of = |entries: &[(u8, &[u8])]| {
        let extensions = vec![forge::alternative_names(entries.iter().copied())];
        let forged = forge::Forged {
            extensions,
            ..forge::Forged::default()
        };
        leaf(forged.pem().as_bytes()).unwrap()
    };
    let unicode = "b\u{fc}cher.example.com".as_bytes();
    let leaf = of(&[(0x82, unicode), (0x82, b"ok.example.com")]);
    assert_eq!(names(&leaf), "xn--bcher-kva.example.com ok.example.com");
    assert_eq!(*leaf.remarks, []);
    let odd: [(u8, &[u8]); 6] = [
        (0x82, b"ok.example.com"),
        (0x82, b"a.example.com,b.example.com"),
        (0x82, b"a b.example.com"),
        (0x82, b"nul.example.com\0"),
        (0x87, b"\x0a\0\0"),
        // An email address is not used.
        (0x81, b"a@example.com"),
    ];
    let leaf = of(&odd);
    assert_eq!(names(&leaf), "ok.example.com");
    assert!(
        matches!(&*leaf.remarks, [Remark::OddNames { count: 4, shown }] if shown.contains("a.example.com,b")),
        "{:?}",
        leaf.remarks
    );
}

#[test]
fn what_a_renewal_loses_is_known() {
    let of = |purposes: Option<&[u8]>, entries: &[(u8, &[u8])]| {
        let mut extensions = vec![forge::alternative_names(entries.iter().copied())];
        extensions.extend(purposes.map(|list| forge::extension(37, &forge::tlv(0x30, list))));
        let forged = forge::Forged {
            extensions,
            ..forge::Forged::default()
        };
        leaf(forged.pem().as_bytes()).unwrap().abilities
    };
    let server = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01";
    let both = [&server[..], b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02"].concat();
    let dns: (u8, &[u8]) = (0x82, b"a.example");
    let plain = of(Some(server), &[dns]);
    let rich = of(
        Some(&both),
        &[dns, (0x86, b"spiffe://a/b"), (0x81, b"a@b.example")],
    );
    assert_eq!(
        rich.lost_in(plain),
        ["use by clients (clientAuth)", "addresses of mail", "URIs"]
    );
    assert_eq!(
        of(None, &[dns]).lost_in(plain),
        ["use by clients (clientAuth)"]
    );
    assert!(plain.lost_in(rich).is_empty() && rich.lost_in(rich).is_empty());
}

#[test]
fn times_with_an_offset_or_a_fraction_are_read() {
    for (tag, text, expected) in [
        (0x17, "160810142728-0500", Some("2016-08-10T19:27:28Z")),
        (0x17, "1608101427+0130", Some("2016-08-10T12:57:00Z")),
        (0x18, "20160810142728.5Z", Some("2016-08-10T14:27:28Z")),
        (
            0x18,
            "20160810142728,123+0000",
            Some("2016-08-10T14:27:28Z"),
        ),
        (0x18, "20160810142728", None),
        (0x18, "20160810142728.xZ", None),
        (0x17, "160810142728-05", None),
        (0x17, "+0500", None),
    ] {
        let forged = forge::Forged {
            validity: [
                forge::tlv(tag, text.as_bytes()),
                forge::tlv(0x17, b"490101000000Z"),
            ],
            ..forge::Forged::default()
        };
        let read = leaf(forged.pem().as_bytes())
            .map(|leaf| leaf.not_before)
            .ok();
        assert_eq!(read, expected.map(|it| it.parse().unwrap()), "{text}");
    }
}

#[test]
fn an_issuer_is_the_same_in_every_type_of_string() {
    let of = |tag: u8, text: &[u8]| {
        let issuer = forge::common_name(tag, text);
        let forged = forge::Forged {
            issuer,
            ..forge::Forged::default()
        };
        leaf(forged.pem().as_bytes()).unwrap().issuer
    };
    let utf8 = of(0x0c, "T\u{fc}V".as_bytes());
    assert_eq!(utf8.to_string(), "CN=T\u{fc}V");
    for (tag, text) in [(0x1e, b"\0T\0\xfc\0V".as_slice()), (0x14, b"T\xfcV")] {
        let other = of(tag, text);
        assert_eq!(other.to_string(), utf8.to_string(), "{tag:x}");
        assert_eq!(other, utf8, "{tag:x}");
    }
    let wide: Vec<u8> = "Pear (STAGING) X1"
        .encode_utf16()
        .flat_map(u16::to_be_bytes)
        .collect();
    for (tag, text) in [
        (0x0c, b"Pear (STAGING) X1".as_slice()),
        (0x13, b"Pear (STAGING) X1"),
        (0x14, b"Pear (STAGING) X1"),
        (0x1e, &wide),
    ] {
        let staging = of(tag, text);
        assert!(staging.mentions("(STAGING)"), "{tag:x}");
        assert!(!staging.mentions("(STAGED)"), "{tag:x}");
    }
}

#[test]
fn the_first_extension_of_a_kind_counts_and_none_behind_a_broken_one() {
    let of = |extensions: Vec<Vec<u8>>| {
        let forged = forge::Forged {
            extensions,
            ..forge::Forged::default()
        };
        leaf(forged.pem().as_bytes()).unwrap().names
    };
    let name = |text: &'static [u8]| forge::alternative_names([(0x82, text)]);
    let (one, other) = (name(b"one.example"), name(b"other.example"));
    assert_eq!(
        of(vec![one.clone(), other.clone()]),
        [Name::Dns("one.example".into())]
    );
    let unreadable = forge::tlv(0x30, b"\x06\x03\x55\x1d\x11\x05\x00");
    assert_eq!(
        of(vec![unreadable.clone(), one.clone()]),
        of(vec![unreadable])
    );
    let broken = forge::tlv(0x30, b"\x06\x09");
    assert_eq!(
        of(vec![one.clone(), broken.clone(), other]),
        of(vec![one.clone()])
    );
    assert_ne!(of(vec![broken, one.clone()]), of(vec![one]));
}

#[test]
fn an_issuer_without_a_name_is_told_as_one() {
    let forged = forge::Forged {
        issuer: forge::tlv(0x30, b""),
        ..forge::Forged::default()
    };
    let issuer = leaf(forged.pem().as_bytes()).unwrap().issuer;
    assert_eq!(issuer.to_string(), "a CA without a name");
}

/// A renewal holds its leaf for minutes.
#[test]
fn of_an_issuer_and_a_key_that_no_ca_makes_nothing_is_kept() {
    let of = |length: usize| {
        let forged = forge::Forged {
            issuer: forge::common_name(0x0c, &vec![b'x'; length]),
            key: forge::public_key(&vec![4; length]),
            ..forge::Forged::default()
        };
        let leaf = leaf(forged.pem().as_bytes()).unwrap();
        (leaf.issuer.size(), leaf.public_key.len())
    };
    let (issuer, key) = of(8_000);
    assert!(issuer > 8_000 && key > 8_000, "{issuer} {key}");
    assert_eq!(of(300_000), (0, 0));
}

/// The memory kept of each Secret is bounded.
#[test]
fn identifiers_that_no_ca_makes_are_not_kept() {
    let of = |length: usize| {
        let id = forge::tlv(0x30, &forge::tlv(0x80, &vec![1; length]));
        let forged = forge::Forged {
            serial: vec![1; length],
            extensions: vec![forge::extension(35, &id)],
            ..forge::Forged::default()
        };
        let leaf = leaf(forged.pem().as_bytes()).unwrap();
        (leaf.serial.len(), leaf.authority_key_id.map(|id| id.len()))
    };
    assert_eq!(of(64), (64, Some(64)));
    assert_eq!(of(65), (0, None));
    assert_eq!(of(300_000), (0, None));
}

#[test]
fn what_stands_in_the_place_of_a_certificate_is_named() {
    let pkcs7 = b"\x30\x0f\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02\xa0\x02\x30\0";
    let utf16: Vec<u8> = "-----BEGIN CERTIFICATE-----"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (bytes, what) in [
        (pkcs7.to_vec(), "PKCS#7"),
        (pem::encode("PKCS7", pkcs7).as_bytes().to_vec(), "PKCS#7"),
        (
            b"\x30\x08\x02\x01\x03\x30\x03\x02\x01\x01".to_vec(),
            "PKCS#12",
        ),
        (utf16, "text in UTF-16"),
    ] {
        assert_eq!(leaf(&bytes), Err(Unreadable::Other(what)));
    }
}

#[test]
fn a_serial_is_kept_as_encoded() {
    for (name, octets) in [
        ("negative", "FB"),
        ("zero", "00"),
        ("leading-zero", "008765"),
        ("20-bytes", "7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"),
        ("21-bytes", "00FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"),
    ] {
        assert_eq!(
            hex(&leaf(&file(&format!("serial-{name}.pem"))).unwrap().serial),
            octets,
            "{name}"
        );
    }
}

#[test]
fn key_types_and_signers_are_told_apart() {
    for (name, kind) in [
        ("good", Some(KeyType::EcdsaP256)),
        ("p384", Some(KeyType::EcdsaP384)),
        ("rsa-2048", Some(KeyType::Rsa2048)),
        ("rsa-3072", Some(KeyType::Rsa3072)),
        ("p521", None),
        ("ed25519", None),
        ("ed448", None),
        ("rsa-pss", None),
    ] {
        assert_eq!(
            leaf(&file(&format!("{name}.pem"))).unwrap().key_type,
            kind,
            "{name}"
        );
    }
    for (name, self_signed) in [
        ("self-signed", true),
        ("root", true),
        ("good", false),
        ("intermediate", false),
    ] {
        assert_eq!(
            leaf(&file(&format!("{name}.pem")))
                .unwrap()
                .self_signed
                .get(),
            self_signed,
            "{name}"
        );
    }
    let good = leaf(&file("good.pem")).unwrap();
    assert_eq!(good.issuer.to_string(), "CN=Test Intermediate,O=Test");
    assert_eq!(good.authority_key_id.map(|id| id.len()), Some(20));
    assert_eq!(
        good.not_after.since(good.not_before),
        Duration::from_secs(90 * 86_400)
    );
}

#[test]
fn x509_cert_reads_the_same_issuer_and_key_id() {
    use x509_cert::ext::pkix::AuthorityKeyIdentifier;
    for name in [
        "good.pem",
        "intermediate.pem",
        "rsa-2048.pem",
        "many-names.pem",
        "bmp-string.pem",
    ] {
        let bytes = file(name);
        let other = x509_cert::Certificate::from_der(&certificates(&bytes).unwrap()[0]).unwrap();
        let own = leaf(&bytes).unwrap();
        assert_eq!(
            own.issuer.to_string(),
            other.tbs_certificate().issuer().to_string(),
            "{name}"
        );
        let id = other
            .tbs_certificate()
            .get_extension::<AuthorityKeyIdentifier>()
            .unwrap();
        let id = id
            .and_then(|(_, id)| id.key_identifier)
            .map(|id| id.as_bytes().into());
        assert_eq!(own.authority_key_id, id, "{name}");
    }
}

#[test]
fn the_reason_says_what_is_wrong() {
    let pem = |fault| Unreadable::Pem { number: 1, fault };
    for (name, reason) in [
        ("broken-empty.pem", Unreadable::Empty),
        ("broken-blank.pem", Unreadable::Empty),
        ("broken-text.pem", Unreadable::NoCertificate),
        ("broken-only-key.pem", Unreadable::OnlyKey),
        ("broken-truncated.pem", pem(pem::Fault::Truncated)),
        ("broken-base64.pem", pem(pem::Fault::Base64)),
        ("broken-backslash-n.pem", pem(pem::Fault::Base64)),
        ("broken-encoded-twice.pem", Unreadable::NoCertificate),
        (
            "broken-request.pem",
            Unreadable::Other("a certificate request"),
        ),
        ("broken-cut.der", Unreadable::NoCertificate),
        ("pkcs8.der", Unreadable::NoCertificate),
    ] {
        assert_eq!(leaf(&file(name)), Err(reason), "{name}");
    }
    let lost = leaf(&file("broken-line-lost.pem"));
    assert!(
        matches!(lost, Err(Unreadable::X509 { number: 1, .. })),
        "{lost:?}"
    );
    let second = certificates(&file("second-broken.pem"));
    assert!(
        matches!(second, Err(Unreadable::X509 { number: 2, .. })),
        "{second:?}"
    );
    assert!(leaf(&file("second-broken.pem")).is_ok());
    let large = vec![b'a'; MAX_BYTES + 1];
    assert_eq!(leaf(&large), Err(Unreadable::TooLarge(MAX_BYTES + 1)));
}

/// Every byte changed, every length cut, and many bytes changed at once: any result is accepted.
#[test]
fn no_input_panics() {
    let mut seeds = vec![file("good.pem"), file("key-first.pem"), file("glued.pem")];
    for name in [
        "good",
        "rsa-2048",
        "other-names",
        "bmp-string",
        "self-signed",
        "ed25519",
    ] {
        seeds.extend(certificates(&file(&format!("{name}.pem"))).unwrap());
    }
    // A small linear generator: the same inputs in every run.
    let mut state = 1_u32;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for seed in seeds {
        for at in 0..seed.len() {
            let _ = leaf(&seed[..at]);
            let mut changed = seed.clone();
            for _ in 0..=random(4) {
                let byte = random(256) as u8;
                changed[random(seed.len())] = byte;
            }
            changed[at] = random(256) as u8;
            let _ = leaf(&changed).map(|leaf| leaf.lifetime());
        }
    }
}

#[test]
fn fingerprints_and_key_types_are_printed_and_parsed() {
    let print = Fingerprint::of(b"");
    let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(print.to_string(), text);
    assert_eq!(text.parse(), Ok(print));
    for bad in ["", "e3b0", &text.replace('e', "g"), &"é".repeat(32)] {
        assert_eq!(bad.parse::<Fingerprint>(), Err(NotAFingerprint), "{bad}");
    }
    for kind in KeyType::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert_eq!("rsa-1024".parse::<KeyType>(), Err(NotAKeyType));
}

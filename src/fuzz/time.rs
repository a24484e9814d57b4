//! Time against size: the time of a reader of foreign bytes for an input and for one of four times the length.
//!
//! A reader that is slower than linear lets one Secret stall all others, so each has its row here. A new reader needs
//! one line in [`READERS`], and a shape of its own only if none of those below fits its text. The processor time of
//! this thread is counted, which a busy machine does not lengthen; a ratio that is too large is measured again with
//! longer inputs before it counts.
//!
//! `cargo test` tries the known shapes until the time can be measured, and a second of random ones. `make fuzz` tries
//! all of them up to the size of the largest Secret, and goes on with random ones.

use cert_renew_core::declaration::Declaration;
use cert_renew_core::declaration::decide::Wanted;
use cert_renew_core::declaration::ingress::Ingress;
use cert_renew_core::declaration::mirror::Mirror;
use cert_renew_core::rollout::HaltNote;
use cert_renew_core::schedule::rate_limits;
use cert_renew_core::secret::data::data_keys::{DataKeys, TLS_TYPE};
use cert_renew_core::secret::declared;
use cert_renew_core::secret::object::thin::ObservedSecret;
use cert_renew_core::secret::parts::ChainAndCa;
use cert_renew_core::secret::state::IssuedBy;
use cert_renew_core::secret::stray;
use cert_renew_core::secret::used_by::UsedBy;
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::testing::{FACTOR, LENGTHS, forge, slower_than_linear, slower_than_linear_in};
use cert_renew_core::verdict::Report;

use super::*;
use crate::cli::offline::lint;
use crate::cluster::order_records;

/// A reader by its name.
pub(crate) type Reader = (&'static str, fn(&[u8]));

/// All readers of what a stranger may write.
pub(crate) const READERS: &[Reader] = &[
    ("pem::blocks", |input| {
        for block in pem::blocks(input) {
            let _ = (block.is_encrypted(), block.decode());
        }
    }),
    ("certificate::leaf", |input| drop(certificate::leaf(input))),
    ("above::above", |input| {
        let above = certificate::above::above(input);
        drop(above.map(|above| above.links("", UnixTime(0))));
    }),
    ("certificate::certificates", |input| {
        drop(certificate::certificates(input));
    }),
    ("Chain::check_order", |input| {
        let _ = pair::Chain::read(input).map(|chain| chain.check_order());
    }),
    ("PrivateKey::from_pem", |input| {
        drop(PrivateKey::from_pem(input));
    }),
    ("pair::check_pair", |input| {
        drop(pair::check_pair(input, input, UnixTime(1_800_000_000)));
    }),
    ("loader::refusal", |input| {
        let _ = (loader::of_certificate(input), loader::of_key(input));
    }),
    ("lint::check", |input| {
        drop(lint::check(input, UnixTime(1_800_000_000)));
    }),
    ("ThinSecret", |input| {
        let secret = serde_json::from_slice::<ThinSecret>(input);
        let _ = secret.map(|secret| secret.certificate());
    }),
    ("a Secret that is not managed", |input| {
        if let Ok(ObservedSecret(secret)) = serde_json::from_slice(input) {
            let key = SecretRef::new("b", "a");
            let _ = (stray::of(&key, &secret.head, "default"), secret.ca());
            drop(secret.above());
        }
    }),
    ("FullSecret", |input| {
        let _ = serde_json::from_slice::<FullSecret>(input)
            .map(|secret| (secret.kept_for(), secret.written()));
    }),
    ("Settings::read", |input| {
        let text = String::from_utf8_lossy(input);
        for key in keys::SETTINGS.into_iter().chain(["cert-renew.io/unknown"]) {
            let annotations = BTreeMap::from([
                (keys::ISSUER.to_owned(), "x".to_owned()),
                (key.to_owned(), text.clone().into_owned()),
            ]);
            let _ = Settings::read(&annotations, false, &NamespaceDefaults::default());
        }
    }),
    ("a ConfigMap that declares", |input| {
        let declaration = serde_json::from_slice(input)
            .ok()
            .and_then(|metadata| Declaration::of_config_map(&metadata, "default"));
        if let Some(declaration) = declaration {
            let (key, mut other) = (declaration.key("a"), declaration.clone());
            // The same in other words, so that all of it is in vain.
            other.source.name = "other".into();
            other
                .settings
                .values_mut()
                .for_each(|value| value.push('x'));
            let all = [declaration, other];
            if let Some(wanted) = Wanted::of(&key, &all) {
                for declaration in &all {
                    let in_vain = wanted.in_vain(&declaration.source);
                    let _ = Mirror::default().with(in_vain).digest();
                }
            }
        }
    }),
    ("an Ingress that declares", |input| {
        let ingress = serde_json::from_slice::<Ingress>(input).ok();
        let all = ingress.map(|ingress| Declaration::of_ingress(&ingress, "default"));
        for declaration in all.into_iter().flatten() {
            let key = declaration.key("a");
            drop(Wanted::of(&key, &[declaration]));
        }
    }),
    ("records of declarations", |input| {
        let key = SecretRef::new("a", "b");
        let text = String::from_utf8_lossy(input);
        drop(declared::DeclaredMark::parse(&key, &text));
    }),
    ("DataKeys::of", |input| {
        let text = String::from_utf8_lossy(input);
        let _ = DataKeys::of("Opaque", Some(&text));
    }),
    ("state annotations", |input| {
        let text = String::from_utf8_lossy(input);
        let _ = (text.parse::<RolledOut>(), text.parse::<UsedBy>());
        let _ = (text.parse::<HaltNote>(), text.parse::<ChainAndCa>());
        let note = BTreeMap::from([(
            "state.cert-renew.io/issued-by".to_owned(),
            text.into_owned(),
        )]);
        let _ = IssuedBy::read(&note);
    }),
    ("workloads and pods", crate::rollout::read),
    ("requests for the page", crate::net::metrics_port::read),
    ("the operator's answer", |input| {
        drop(serde_json::from_slice::<Report>(input));
    }),
    ("answers of a CA", crate::acme::fuzz::read),
    ("answers of DNS hosts", crate::solver::dns01::read),
    ("DNS messages", |input| {
        drop(hickory_proto::op::Message::from_vec(input));
    }),
    ("TXT records", crate::solver::dns_persist01::tests::read),
    ("CAA records", crate::solver::caa::tests::read),
    ("Config::parse", |input| {
        drop(Config::parse(&String::from_utf8_lossy(input)));
    }),
    ("order records and the ledger", |input| {
        drop(serde_json::from_slice::<order_records::Order>(input));
        drop(serde_json::from_slice::<rate_limits::IssuanceHistory>(
            input,
        ));
    }),
];

/// Makes an input of about the requested length.
type Shape = Box<dyn Fn(usize) -> Vec<u8>>;

/// `head`, `token` as often as fits, `tail`.
fn repeated(head: &[u8], token: &[u8], tail: &[u8]) -> Shape {
    let (head, token, tail) = (head.to_vec(), token.to_vec(), tail.to_vec());
    Box::new(move |length| {
        let times = length.saturating_sub(head.len() + tail.len()) / token.len().max(1);
        [&*head, &*token.repeat(times.max(1)), &*tail].concat()
    })
}

/// A Deployment whose container and whose volumes have many of these.
fn workload(field: &str, token: &str) -> Shape {
    let head = format!(
        r#"{{"metadata":{{"name":"a","namespace":"b"}},"spec":{{"template":{{"spec":{{"containers":[{{"name":"c","{field}":["#
    );
    repeated(head.as_bytes(), token.as_bytes(), b"{}]}]}}}}")
}

/// A Secret as an API server sends it.
fn secret(annotation: &str, certificate: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let data = base64::engine::general_purpose::STANDARD.encode(certificate);
    let annotations =
        serde_json::json!({"cert-renew.io/issuer": "x", "cert-renew.io/outputs": annotation});
    format!(
        r#"{{"kind":"Secret","metadata":{{"name":"a","namespace":"b","annotations":{annotations}}},"data":{{"tls.crt":"{data}"}},
        "type":"{TLS_TYPE}"}}"#
    )
    .into_bytes()
}

pub(super) fn shapes() -> Vec<(&'static str, Shape)> {
    let plain = |head: &[u8], token: &[u8], tail: &[u8]| repeated(head, token, tail);
    let block = forge::Forged::default().pem();
    let begin = b"-----BEGIN CERTIFICATE-----\n".as_slice();
    let mut all = vec![
        ("begins on one line", plain(b"x", b"-----BEGIN ", b"")),
        (
            "labels that are none",
            plain(b"", b"-----BEGIN \x01-----", b""),
        ),
        ("blanks before each", plain(b"x", b" -----BEGIN ", b"")),
        ("begins without an end", plain(b"", begin, b"")),
        ("dashes", plain(b"", b"-", b"")),
        ("blanks", plain(b"", b" ", b"x")),
        ("line ends", plain(b"", b"\r\n", b"x")),
        ("order marks", plain(b"", b"\xef\xbb\xbf", begin)),
        ("ends", plain(begin, b"-----END CERTIFICATE-----\n", b"")),
        (
            "long base64",
            plain(begin, b"QUJD", b"\n-----END CERTIFICATE-----\n"),
        ),
        (
            "headers",
            plain(begin, b"a: b\n", b"\n-----END CERTIFICATE-----\n"),
        ),
        ("many blocks", plain(b"", block.as_bytes(), b"")),
        (
            "many glued blocks",
            plain(b"", block.trim_end().as_bytes(), b""),
        ),
        ("deep DER", plain(b"", b"\x30\x80", b"")),
        // A question of a message whose name is a pointer, and records whose names point to it.
        (
            "DNS records",
            plain(
                b"\x00\x01\x84\x00\x00\x00\xff\xff\x00\x00\x00\x00",
                b"\x01a\xc0\x0c\x00\x10\x00\x01\x00\x00\x00\x00\x00\x02\x01b",
                b"",
            ),
        ),
        ("deep lists", plain(b"{\"data\":", b"[", b"")),
        ("deep objects", plain(b"", b"{\"metadata\":", b"")),
        (
            "members",
            plain(b"{\"metadata\":{", b"\"name\":\"a\",", b"\"name\":\"b\"}}"),
        ),
        (
            "data",
            plain(b"{\"data\":{", b"\"tls.crt\":\"QUJD\",", b"\"a\":\"b\"}}"),
        ),
        ("commas", plain(b"", b"a.example,", b"")),
        ("outputs", plain(b"", b"a=key+key,", b"")),
        ("windows", plain(b"", b"Mon-Sun 00:00-24:00 UTC;", b"")),
        ("variables", workload("env", r#"{"name":"a","value":"b"},"#)),
        (
            "variables of Secrets",
            workload(
                "env",
                r#"{"valueFrom":{"secretKeyRef":{"name":"tls","key":"ca.crt"}}},"#,
            ),
        ),
        (
            "mounts",
            workload("volumeMounts", r#"{"name":"a","subPath":"b"},"#),
        ),
        (
            "problems of a CA",
            plain(
                br#"{"type":"urn:ietf:params:acme:error:compound","subproblems":["#,
                br#"{"type":"x","detail":"no","identifier":{"type":"dns","value":"a.example"}},"#,
                br#"{}]}"#,
            ),
        ),
        (
            "authorizations",
            plain(
                br#"{"status":"pending","authorizations":["#,
                br#""https://ca.example/1","#,
                br#""x"]}"#,
            ),
        ),
        (
            "challenges",
            plain(
                br#"{"status":"pending","identifier":{"type":"dns","value":"a.example"},"challenges":["#,
                br#"{"type":"http-01","url":"https://ca/1","status":"pending","token":"t"},"#,
                br#"{}]}"#,
            ),
        ),
        ("links", plain(b"", b"</1>;rel=\"alternate\", ", b"")),
        ("parameters", plain(b"ca.example", b";accounturi=x", b"")),
        (
            "values",
            plain(b"ca.example;validationmethods=", b"x,", b"dns-01"),
        ),
        ("quotes", plain(b"{\"a\":\"", b"\\\"", b"\"}")),
        (
            "hosted zones",
            plain(b"", b"<HostedZone><Name>b.example.</Name></HostedZone>", b""),
        ),
        (
            "private zones",
            plain(
                br#"{"managedZones":["#,
                br#"{"name":"a","visibility":"private"},"#,
                br#"{}]}"#,
            ),
        ),
        (
            "TXT records of Azure",
            plain(
                br#"{"properties":{"TXTRecords":["#,
                br#"{"value":["a","b"]},"#,
                br#"{}]}}"#,
            ),
        ),
        (
            "names that a ConfigMap declares",
            plain(
                br#"{"name":"a","labels":{"cert-renew.io/certificate":"true"},"annotations":{"cert-renew.io/names":""#,
                b"*.b.example,",
                br#""}}"#,
            ),
        ),
        ("YAML documents", plain(b"", b"---\nkind: Secret\n", b"")),
        ("YAML lists", plain(b"kind: ", b"- ", b"x")),
    ];
    let names = |length: usize| {
        let names: Vec<String> = (0..length / 20)
            .map(|it| format!("n{it:09}.example"))
            .collect();
        let entries = names.iter().map(|name| (0x82, name.as_bytes()));
        forge::Forged {
            extensions: vec![forge::alternative_names(entries)],
            ..forge::Forged::default()
        }
        .pem()
        .into_bytes()
    };
    let odd = |length: usize| {
        let mut extensions = vec![forge::extension(1, b"x"); length / 14];
        extensions.push(forge::alternative_names([(0x82, b"a.example".as_slice())]));
        let odd = forge::Forged {
            extensions,
            ..forge::Forged::default()
        };
        odd.pem().into_bytes()
    };
    let subject = |length: usize| {
        let subject = forge::common_name(0x1e, &vec![0x30; length / 2 * 2]);
        let long = forge::Forged {
            issuer: subject.clone(),
            subject,
            ..forge::Forged::default()
        };
        long.pem().into_bytes()
    };
    // A chain in which none is the issuer of another.
    let strangers = |length: usize| {
        let one = |number: usize| {
            let name =
                |what: &str| forge::common_name(0x0c, format!("{what} {number:08}").as_bytes());
            let (issuer, subject) = (name("CA"), name("of"));
            let forged = forge::Forged {
                issuer,
                subject,
                ..forge::Forged::default()
            };
            forged.pem()
        };
        (0..length / 600).map(one).collect::<String>().into_bytes()
    };
    let attributes = |length: usize| {
        let attribute = |number: usize| {
            let text = forge::tlv(0x0c, format!("{number:08}").as_bytes());
            forge::tlv(0x30, &[b"\x06\x03\x55\x04\x0b", &*text].concat())
        };
        let many: Vec<u8> = (0..length / 40).flat_map(attribute).collect();
        let name = forge::tlv(0x30, &forge::tlv(0x31, &many));
        let forged = forge::Forged {
            issuer: name.clone(),
            subject: name,
            ..forge::Forged::default()
        };
        forged.pem().into_bytes()
    };
    let watched = move |length: usize| secret("", &names(length / 2));
    let outputs = |length: usize| secret(&"a=key+leaf,".repeat(length / 11), b"x");
    // None is like another, as a hostile CA would have it.
    let differing = |head: &'static str, each: fn(usize) -> String, tail: &'static str| -> Shape {
        Box::new(move |length| {
            let all = (0..length / 24).map(each).collect::<String>();
            format!("{head}{all}{tail}").into_bytes()
        })
    };
    all.push((
        "authorizations that differ",
        differing(
            r#"{"status":"pending","authorizations":["#,
            |number| format!(r#""https://ca/{number:08}","#),
            r#""x"]}"#,
        ),
    ));
    all.push((
        "links that differ",
        differing("", |number| format!("<{number:06}>;rel=alternate,"), ""),
    ));
    all.push((
        "settings that a ConfigMap declares",
        differing(
            r#"{"name":"a","labels":{"cert-renew.io/certificate":"true"},"annotations":{"#,
            |number| format!(r#""cert-renew.io/{number:06}":"x","#),
            r#""cert-renew.io/names":"a.example"}}"#,
        ),
    ));
    all.push((
        "Secrets of an Ingress",
        differing(
            r#"{"metadata":{"name":"a","annotations":{"cert-renew.io/issuer":"x"}},"spec":{"tls":["#,
            |number| format!(r#"{{"secretName":"s{number:06}","hosts":["a{number:06}.example"]}},"#),
            r#"{}]}}"#,
        ),
    ));
    all.push((
        "a record of many declarations",
        differing(
            r#"{"secret":"a/b","by":["#,
            |number| format!(r#""ConfigMap/{number:010}","#),
            r#""x"],"of":"00","given":{}}"#,
        ),
    ));
    all.push(("many names", Box::new(names)));
    all.push(("many extensions", Box::new(odd)));
    all.push(("a long name", Box::new(subject)));
    all.push(("certificates of strangers", Box::new(strangers)));
    all.push(("a name of many attributes", Box::new(attributes)));
    all.push(("a Secret with many names", Box::new(watched)));
    all.push(("a Secret with many outputs", Box::new(outputs)));
    all
}

/// Whether inputs grow to the size of the largest Secret, however short a reader takes for smaller ones.
fn up_to_the_largest() -> bool {
    std::env::var_os("FUZZ_SECONDS").is_some()
}

#[test]
fn no_reader_is_slower_than_linear_for_a_known_shape() {
    for (name, shape) in shapes() {
        // Made once for all readers: the input that is four times as long as one is the next.
        let lengths = LENGTHS
            .into_iter()
            .chain([FACTOR * LENGTHS[LENGTHS.len() - 1]]);
        let made: BTreeMap<usize, Vec<u8>> = lengths.map(|it| (it, shape(it))).collect();
        for (reader, read) in READERS {
            let shape = |length: usize| made[&length].clone();
            let slow = match up_to_the_largest() {
                true => slower_than_linear_in(shape, |input: &Vec<u8>| read(input)),
                false => slower_than_linear(shape, read),
            };
            assert_eq!(slow, None, "{reader}, {name}: slower than linear");
        }
    }
}

/// The measure itself: it finds what is quadratic, and accepts what is linear.
#[test]
fn a_quadratic_reader_is_found() {
    let quadratic = |input: &[u8]| {
        let all = input
            .iter()
            .map(|byte| input.iter().filter(|it| *it > byte).count());
        assert!(all.sum::<usize>() < usize::MAX);
    };
    let linear = |input: &[u8]| {
        let all = input
            .iter()
            .map(|byte| (0..200).filter(|it| it > byte).count());
        assert!(all.sum::<usize>() < usize::MAX);
    };
    let shape = |length| vec![b'a'; length];
    assert!(slower_than_linear(shape, quadratic).is_some());
    assert_eq!(slower_than_linear(shape, linear), None);
}

/// Random shapes: two or three tokens of the readers' own, the middle one repeated.
#[test]
fn inputs_grow_until_a_reader_is_slower_than_linear() {
    const TOKENS: [&[u8]; 24] = [
        b"-----BEGIN ",
        b"-----END ",
        b"-----",
        b"CERTIFICATE-----\n",
        b"PRIVATE KEY-----\n",
        b"\x01",
        b"\n",
        b"\r",
        b" ",
        b"\xef\xbb\xbf",
        b"QUJD",
        b"=",
        b"\x30\x80",
        b"\x30\x82\xff\xff",
        b"{\"data\":",
        b"\"metadata\":{",
        b"[",
        b"\"",
        b",",
        b"a=key+",
        b"*.",
        b"b\xc3\xbccher.",
        b"---\n",
        b": ",
    ];
    let seconds = std::env::var("FUZZ_SECONDS").ok();
    let seconds: f64 = seconds.and_then(|it| it.parse().ok()).unwrap_or(SECONDS);
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let (mut chance, mut tried) = (Chance(7), 0_u64);
    while Instant::now() < until || tried < 20 {
        let mut token = || -> Vec<u8> {
            let many = 1 + chance.below(3);
            (0..many)
                .flat_map(|_| chance.of(&TOKENS).to_vec())
                .collect()
        };
        let (head, middle, tail) = (token(), token(), token());
        let (name, read) = chance.of(READERS);
        let what = format!(
            "{name}, {} {} {}",
            head.escape_ascii(),
            middle.escape_ascii(),
            tail.escape_ascii()
        );
        let shape = repeated(&head, &middle, &tail);
        let slow = match up_to_the_largest() {
            true => slower_than_linear_in(shape, |input: &Vec<u8>| read(input)),
            false => slower_than_linear(shape, read),
        };
        assert_eq!(slow, None, "{what}: slower than linear");
        tried += 1;
    }
    // Shown only with --nocapture.
    eprintln!("fuzz time: {tried} shapes, none slower than linear");
}

//! Hostile input: feeds the readers of foreign bytes with random changes of the seeds in `testdata/`.
//!
//! Each target asserts what must hold for any input, so a run is a property test as well. `cargo test` gives each a
//! second, `make fuzz` longer; the executions are printed. It needs no nightly compiler, and is therefore not guided by
//! coverage; instead it uses a dictionary of the tokens that the readers look for.
//!
//! An input that fails is written to `target/fuzz/`; once put into `testdata/fuzz/<target>/` it is always tried first.

mod memory;
mod shapes;
pub(crate) mod time;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use cert_renew_core::certificate::key::PrivateKey;
use cert_renew_core::certificate::{self, Fingerprint, loader, pair, pem};
use cert_renew_core::config::{Config, Glob, NamePattern};
use cert_renew_core::secret::object::full::FullSecret;
use cert_renew_core::secret::object::thin::{CertificateState, ThinSecret};
use cert_renew_core::secret::settings::{NamespaceDefaults, Settings};
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::testing::files;
use cert_renew_core::text::name::Name;
use cert_renew_core::text::shown;
use cert_renew_core::time::change_window::ChangeWindow;
use cert_renew_core::time::{UnixTime, duration};

/// How long each target runs in `cargo test`, in seconds.
const SECONDS: f64 = 1.0;
/// Least number of inputs tried, however slow the machine is.
const LEAST: u64 = 200;
/// Longest time for one input, on the slowest machine and without optimisation; a slower one is a failure.
const SLOW: Duration = Duration::from_secs(5);
/// Longest input in bytes, so that many are tried.
const LONGEST: usize = 16 * 1024;
/// Text that no message may contain.
const CANARY: &str = "bm90IGZvciB5b3VyIGV5ZXM";

/// A linear congruential generator (Knuth's MMIX): the same inputs on every machine.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit.max(1)
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// A seed with some of it changed.
fn changed(chance: &mut Chance, seeds: &[Vec<u8>], dictionary: &[&[u8]]) -> Vec<u8> {
    const BYTES: [u8; 12] = [
        0, 0xff, 0x7f, 0x80, 0x81, 0x84, 0x30, b'\n', b'"', b'-', b'=', b' ',
    ];
    let mut input = chance.of(seeds).clone();
    for _ in 0..=chance.below(6) {
        let at = chance.below(input.len() + 1);
        let end = (at + chance.below(64)).min(input.len());
        match chance.below(8) {
            0 if at < input.len() => input[at] ^= 1 << chance.below(8),
            1 if at < input.len() => input[at] = *chance.of(&BYTES),
            2 => drop(input.drain(at..end)),
            3 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            4 => {
                let other = chance.of(seeds);
                let from = chance.below(other.len() + 1);
                let to = (from + chance.below(256)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            5 => input.truncate(at),
            6 if at < input.len() => input[at] = input[at].wrapping_add(1),
            _ => {
                let token = *chance.of(dictionary);
                input.splice(at..at, token.iter().copied());
            }
        }
    }
    input.truncate(LONGEST);
    input
}

/// Feeds a target for its time; fails with the input that makes it fail.
pub(crate) fn feed(target: &str, seeds: &[Vec<u8>], dictionary: &[&[u8]], check: impl Fn(&[u8])) {
    let seconds = std::env::var("FUZZ_SECONDS").ok();
    let seconds = seconds.and_then(|it| it.parse().ok()).unwrap_or(SECONDS);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let once = |input: &[u8]| {
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| check(input)));
        if result.is_err() || begun.elapsed() > SLOW {
            let directory = root.join("target/fuzz");
            let file = directory.join(format!("{target}-{}", Fingerprint::of(input)));
            let _ = fs::create_dir_all(&directory).and_then(|()| fs::write(&file, input));
            panic!(
                "{target}: {} fails, {:?}: {}",
                file.display(),
                begun.elapsed(),
                shown(&String::from_utf8_lossy(input))
            );
        }
    };
    for past in files(&format!("testdata/fuzz/{target}")) {
        once(&past);
    }
    seeds.iter().for_each(|seed| once(seed));
    let (mut chance, mut executions) = (
        Chance(Fingerprint::of(target.as_bytes()).0[0].into()),
        0_u64,
    );
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < until || executions < LEAST {
        once(&changed(&mut chance, seeds, dictionary));
        executions += 1;
    }
    // Shown only with --nocapture.
    eprintln!("fuzz {target}: {executions} executions, no failure");
}

pub(crate) fn texts(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Asserts that a text may be shown to a person: short, without control characters, without a key.
fn is_presentable(text: &str) {
    assert!(text.len() < 16 * 1024, "{} bytes", text.len());
    assert!(
        !text.chars().any(|c| c.is_control() && c != '\n'),
        "{text:?}"
    );
    assert!(!text.contains(CANARY), "{text:?}");
}

#[test]
fn certificates_and_keys() {
    let dictionary: [&[u8]; 12] = [
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----END CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----",
        b"-----",
        b"\r\n",
        b"\xef\xbb\xbf",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x80",
        b"\x06\x03\x55\x1d\x11",
        b"\x1e\x04\x00a\x00b",
        b"\x17\x0d500101000000Z",
        b"\x18\x0f99991231235959Z",
    ];
    feed(
        "pem",
        &files("testdata/certificates"),
        &dictionary,
        |input| {
            let facts = certificate::leaf(input);
            let above = certificate::above::above(input);
            drop(above.map(|above| above.links("", UnixTime(0))));
            match &facts {
                Ok(leaf) => {
                    assert!(leaf.lifetime() <= Duration::from_secs(10_000 * 366 * 86_400));
                    assert!(leaf.serial.len() <= input.len());
                    let _ = leaf.is_valid_at(UnixTime(0));
                    is_presentable(
                        &leaf
                            .names
                            .iter()
                            .map(ToString::to_string)
                            .take(100)
                            .collect::<Vec<_>>()
                            .join(","),
                    );
                }
                Err(why) => is_presentable(&why.to_string()),
            }
            // A read of all certificates includes the leaf.
            if let Ok(all) = certificate::certificates(input) {
                let is_among = |leaf: &certificate::Leaf| {
                    all.iter()
                        .any(|der| Fingerprint::of(der) == leaf.fingerprint)
                };
                assert!(facts.as_ref().is_ok_and(is_among));
            }
            let _ = (loader::of_certificate(input), loader::of_key(input));
            for block in pem::blocks(input) {
                if let Ok(der) = block.decode() {
                    let label = if block.is_private_key() {
                        "PRIVATE KEY"
                    } else {
                        "X"
                    };
                    let text = pem::encode(label, &der);
                    let again = pem::blocks(text.as_bytes()).next().expect("a block");
                    assert_eq!(again.decode().as_deref(), Ok(&*der));
                }
            }
            if let Err(why) = PrivateKey::from_pem(input) {
                is_presentable(&why.to_string());
            }
            if let Err(why) = pair::check_pair(input, input, UnixTime(1_800_000_000)) {
                is_presentable(&why.to_string());
            }
        },
    );
}

#[test]
fn der() {
    // The PEM armour lets few changes through; here they reach the DER reader itself.
    let seeds: Vec<Vec<u8>> = files("testdata/certificates")
        .iter()
        .flat_map(|file| certificate::certificates(file).unwrap_or_default())
        .collect();
    assert!(seeds.len() > 30);
    let dictionary: [&[u8]; 6] = [
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x80\x00\x00",
        b"\xa3\x82\xff\xff",
        b"\x02\x15",
        b"\x17\x0d500101000000Z",
        b"\x1e\x03\x00a\x00",
    ];
    feed("der", &seeds, &dictionary, |input| {
        if let Ok(leaf) = certificate::leaf(input) {
            assert!(leaf.names.len() <= input.len());
            let _ = (leaf.lifetime(), leaf.is_valid_at(UnixTime(0)));
        }
        let twice = [input, input].concat();
        let _ = certificate::certificates(&twice);
        if let Ok(chain) = pair::Chain::read(pem::encode("CERTIFICATE", input).as_bytes()) {
            let _ = chain.check_order();
        }
    });
}

#[test]
fn secrets_on_the_wire() {
    let secret = format!(
        r#"{{"apiVersion":"v1","kind":"Secret","type":"kubernetes.io/tls","metadata":{{"name":"a","namespace":"b","uid":"u",
        "resourceVersion":"7","annotations":{{"cert-renew.io/issuer":"x","cert-renew.io/outputs":"a.pem=leaf, k=key",
        "kubectl.kubernetes.io/last-applied-configuration":"{CANARY}"}},"labels":{{"cert-renew.io/managed":"true"}},
        "managedFields":[{{"manager":"m","operation":"Update","time":"2026-01-01T00:00:00Z","fieldsV1":{{"f:data":{{}}}}}}]}},
        "data":{{"tls.key":"{CANARY}","tls.crt":"LS0tLS1CRUdJTg==","ca.crt":"LS0tLS1CRUdJTg==","a.pem":"","k":"{CANARY}"}}}}"#
    );
    let seeds = [
        secret.into_bytes(),
        b"{}".to_vec(),
        b"{\"data\":null}".to_vec(),
    ];
    let dictionary: [&[u8]; 10] = [
        b"null",
        b"{}",
        b"[]",
        b"[[[[[[[[[[[[[[[[",
        b"\"data\":",
        b"\"metadata\":{",
        b"1e999",
        b"\\ud800",
        b"\"annotations\":[",
        b",",
    ];
    feed("secret", &seeds, &dictionary, |input| {
        // The decoding cannot fail: any JSON is a Secret, however strange, and nothing of it is shown.
        let json = serde_json::from_slice::<serde_json::Value>(input).is_ok();
        match serde_json::from_slice::<ThinSecret>(input) {
            Ok(secret) => {
                let _ = secret.certificate();
                assert!(
                    !format!("{secret:?}").contains(CANARY) || secret.head.place().contains(CANARY)
                );
            }
            Err(error) => {
                assert!(!json, "{error}");
                is_presentable(&error.to_string());
            }
        }
        if let Ok(secret) = serde_json::from_slice::<FullSecret>(input) {
            let _ = (secret.place(), secret.written(), secret.pair(), secret.ca());
        }
    });
}

/// `key=value` lines as the annotations of a Secret.
fn annotations(input: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(input);
    let pair = |line: &str| {
        let (key, value) = line.split_once('=')?;
        Some((format!("cert-renew.io/{key}"), value.replace('|', "\n")))
    };
    text.lines().filter_map(pair).collect()
}

#[test]
fn annotations_of_a_secret() {
    let seeds = texts(&[
        "issuer=letsencrypt\nnames=Shop.example.com, *.shop.example.com,|10.0.0.1\nrenew-before=33%\nprofile=tlsserver\nlifetime=1d12h",
        "issuer=external\nkey-rotation=never\nkey-type=rsa-3072\noutputs=fullchain.pem=fullchain, tls.pem=key+fullchain\nclass=edge",
        "issuer=x\nrollout=post:8080/-/reload\nworkloads=deployment/web, rc/legacy\nverify=web:443\npaused=true\nrenew-now=1",
        "issuer=x\nchange-window=Mon-Fri 02:00-04:00 Europe/Berlin; Sat 00:00-24:00 UTC\npkcs12-password-key=password",
        "issuer=x\nnames=-----BEGIN PRIVATE KEY-----bm90IGZvciB5b3VyIGV5ZXM",
    ]);
    let dictionary: [&[u8]; 10] = [
        b"names=",
        b"outputs=",
        b"issuer=",
        b", ",
        b"*.",
        "b\u{fc}cher.\u{202e}".as_bytes(),
        b"xn--",
        b"99999999999999999999",
        b"\x1b[31m",
        b"::ffff:",
    ];
    feed("annotations", &seeds, &dictionary, |input| {
        let annotations = annotations(input);
        let (settings, problems) =
            Settings::read(&annotations, false, &NamespaceDefaults::default());
        assert_eq!(
            settings.is_some(),
            annotations.contains_key("cert-renew.io/issuer")
        );
        assert!(problems.len() <= 20);
        for problem in problems {
            let text = problem.to_string();
            assert!(
                text.chars().count() < 2_000 && !text.chars().any(char::is_control),
                "{text:?}"
            );
            // A value that contains a key is not quoted at all; a name is, and no API server accepts one with spaces.
            let value = annotations.get(&*problem.key);
            let secret = value.is_some_and(|value| value.contains("PRIVATE KEY"));
            let named = problem.key.contains(CANARY);
            assert!(!secret || named || !text.contains(CANARY), "{text:?}");
        }
        for name in settings
            .and_then(|settings| settings.names)
            .unwrap_or_default()
        {
            assert_eq!(
                name.to_string().parse(),
                Ok(name.clone()),
                "a name reads as it is written"
            );
        }
        for value in annotations.values() {
            let _ = value.parse::<RolledOut>();
        }
    });
}

#[test]
fn config_files() {
    let mut seeds = files("testdata/config");
    seeds.extend(
        files("deploy")
            .into_iter()
            .filter(|file| file.len() < LONGEST),
    );
    let dictionary: [&[u8]; 12] = [
        b"\n  - ",
        b": ",
        b"&a [*a, *a]",
        b"*a",
        b"!!binary",
        b"{",
        b"[[[[[[[[",
        b"<<: ",
        b"---\n",
        b"issuers:\n",
        b"99999999999999999999",
        b"\t",
    ];
    feed("config", &seeds, &dictionary, |input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return;
        };
        match Config::parse(text) {
            Ok(config) => drop(config.warnings()),
            Err(faults) => {
                assert!(!faults.list.is_empty());
                assert!(
                    !faults
                        .to_string()
                        .chars()
                        .any(|c| c.is_control() && c != '\n')
                );
            }
        }
    });
}

#[test]
fn windows_durations_and_names() {
    let seeds = texts(&[
        "Mon-Fri 02:00-04:00 Europe/Berlin",
        "Mon,Wed 22:00-06:00 America/New_York; 02:00-02:30 UTC",
        "Sat-Sun 00:00-24:00 Australia/Lord_Howe",
        "1h30m",
        "30d",
        "*.shop.example.com",
        "fd00::/8",
        "**.b\u{fc}cher.example",
        "shop-*",
    ]);
    let dictionary: [&[u8]; 10] = [
        b"Sun",
        b"-",
        b",",
        b"24:00",
        b"02:30",
        b" Europe/Dublin",
        b" Africa/Casablanca",
        b"; ",
        b"18446744073709551615",
        b"d",
    ];
    let instants = [
        0,
        1_774_746_000,
        1_793_000_000,
        -9_999_999_999,
        253_402_300_799,
    ];
    feed("window", &seeds, &dictionary, |input| {
        let text = String::from_utf8_lossy(input);
        if let Ok(duration) = duration::parse(&text) {
            assert!(duration <= duration::MAX);
        }
        if let Ok(window) = text.parse::<ChangeWindow>() {
            assert_eq!(window.to_string().parse().as_ref(), Ok(&window));
            for now in instants.map(UnixTime) {
                let open = window.next_open(now);
                assert!(open >= now && (open == UnixTime::NEVER || window.contains(open)));
                let closes = window.closes(now);
                assert!(closes >= open && (closes == UnixTime::NEVER || !window.contains(closes)));
            }
        }
        if let Ok(name) = text.parse::<Name>() {
            assert_eq!(name.to_string().parse().as_ref(), Ok(&name));
            assert!(name.covers(&name));
            if let Ok(pattern) = text.trim().parse::<NamePattern>() {
                let _ = pattern.matches(&name);
            }
        }
        if let Ok(glob) = text.parse::<Glob>() {
            assert!(glob.matches(&text.replace('*', "")));
        }
        is_presentable(&shown(&text));
    });
}

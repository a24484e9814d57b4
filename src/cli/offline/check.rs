//! `cert-renew check FILE…`: prints what is wrong with certificate files and manifests.
//! `cert-renew check route HOST`: whether HTTP-01 requests for a host reach an operator.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cert_renew_core::config::Resolvers;
use cert_renew_core::text::name::Name;
use cert_renew_core::text::shown;
use cert_renew_core::time::UnixTime;
use clap::{Parser, Subcommand};
use reqwest::Url;
use serde::Serialize;

use zeroize::Zeroizing;

use super::lint::{self, Finding, Severity};
use crate::cli::output::{Output, Screen};
use crate::cli::{CommandResult, Failure, block_on};
use crate::solver::http01_self_check;

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(in crate::cli) struct Args {
    /// PEM, DER, YAML or JSON; - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask a host for `/.well-known/acme-challenge/health`, as a CA would
    Route {
        /// The host, as it is in the certificate, or a URL at it
        host: String,
        /// The resolver to ask, as `dns.nameservers` of the config has it; the system's where there is none
        #[arg(long = "nameserver")]
        nameservers: Vec<String>,
    },
}

/// A finding and its place.
#[derive(Serialize)]
struct Found {
    file: String,
    #[serde(flatten)]
    finding: Finding,
}

/// Exit code: 0 no problems, 1 it works for now, 2 it does not.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(in crate::cli) fn run(args: Args) -> CommandResult {
    if let Some(Command::Route { host, nameservers }) = &args.command {
        return route(host, nameservers);
    }
    let colours = Screen::of_stdout().colours;
    let mut files = Vec::new();
    for file in &args.files {
        let bytes = read(file).map_err(|error| unreadable(file, &error))?;
        files.push((file.display().to_string(), bytes));
    }
    let all = checked(&files, UnixTime::now());
    if let Some(text) = args.output.of_program(&all)? {
        print!("{text}");
    } else {
        for Found { file, finding } in &all {
            println!("{file}: {}", line(finding, colours));
        }
    }
    let worst = all.iter().map(|found| found.finding.severity).max();
    Ok(ExitCode::from(lint::exit_code(worst)))
}

/// The findings of each file; each key is compared with the certificates given with it.
fn checked(files: &[(String, Zeroizing<Vec<u8>>)], now: UnixTime) -> Vec<Found> {
    let of = |file: &str, findings: Vec<Finding>| {
        let found = move |finding| Found {
            file: file.to_owned(),
            finding,
        };
        findings.into_iter().map(found).collect::<Vec<_>>()
    };
    let each = files
        .iter()
        .map(|(file, bytes)| of(file, lint::check(bytes, now)));
    let mut all: Vec<Found> = each.flatten().collect();
    let certificates = { files.iter() }
        .filter(|(_, bytes)| lint::holds_certificate_alone(bytes))
        .map(|(file, bytes)| (&**file, bytes.as_slice()));
    let certificates: Vec<(&str, &[u8])> = certificates.collect();
    let keys = { files.iter() }.filter(|(_, bytes)| lint::holds_key_alone(bytes));
    for (file, key) in keys {
        all.extend(of(
            file,
            lint::pair(&certificates, key).into_iter().collect(),
        ));
    }
    all
}

/// A file that cannot be read; a word that is nearly a subcommand is taken for a mistyped one.
fn unreadable(file: &Path, error: &std::io::Error) -> Failure {
    let word = file.to_string_lossy();
    let nearly = error.kind() == std::io::ErrorKind::NotFound
        && !word.contains(['/', '.'])
        && is_nearly(&word, "route");
    let failure = Failure::new(&format!("reading {word}"), error);
    if word.contains("://") {
        return Failure(format!(
            "{}: expected a file, and this is a URL; cert-renew check route HOST asks a host whether a CA's requests reach \
             cert-renew",
            shown(&word)
        ));
    }
    if nearly {
        return Failure(format!(
            "{}; do you mean cert-renew check route HOST?",
            failure.0
        ));
    }
    failure
}

/// Whether one word becomes the other by one letter more, less or other, or by two that change places.
fn is_nearly(word: &str, known: &str) -> bool {
    let (one, other): (Vec<char>, Vec<char>) = (word.chars().collect(), known.chars().collect());
    let before = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    let (one, other) = (&one[before..], &other[before..]);
    let after = |one: &[char], other: &[char]| {
        let ends = one.iter().rev().zip(other.iter().rev());
        ends.take_while(|(a, b)| a == b).count()
    };
    let same = after(one, other);
    let (one, other) = (&one[..one.len() - same], &other[..other.len() - same]);
    match (one, other) {
        ([a, b], [c, d]) => a == d && b == c,
        _ => one.len() <= 1 && other.len() <= 1,
    }
}

/// The host of what the user named: a host, or a URL at it.
fn host_of(text: &str) -> Result<String, Failure> {
    let host = match text.split_once("://") {
        None => text.trim_end_matches('/').to_owned(),
        Some(("http" | "https", _)) => {
            let url = Url::parse(text).map_err(|error| Failure::new(text, &error))?;
            let host = url.host_str().unwrap_or_default();
            host.trim_matches(['[', ']']).to_owned()
        }
        Some(_) => String::new(),
    };
    match host.parse::<Name>() {
        Ok(Name::Dns(name)) if name.starts_with("*.") => Err(Failure(format!(
            "{text}: a wildcard has no route: CAs prove it by DNS-01 only, and ask no host"
        ))),
        Ok(name) => Ok(name.to_string()),
        Err(_) => Err(Failure(format!(
            "{}: expected a host such as shop.example.com, or a URL at it",
            shown(text)
        ))),
    }
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn route(host: &str, nameservers: &[String]) -> CommandResult {
    let parse = |text: &String| {
        text.parse()
            .map_err(|error| Failure(format!("{text}: {error}")))
    };
    let resolvers = Resolvers {
        addresses: nameservers.iter().map(parse).collect::<Result<_, _>>()?,
        ca_bundle: None,
    };
    let host = host_of(host)?;
    block_on(async {
        http01_self_check::check(&resolvers, &host)
            .await
            .map_err(|error| Failure(error.to_string()))?;
        println!("{host}: requests of a CA reach cert-renew");
        Ok(ExitCode::SUCCESS)
    })
}

/// It may hold a private key.
fn read(file: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    if file != Path::new("-") {
        return std::fs::read(file).map(Zeroizing::new);
    }
    let mut bytes = Zeroizing::new(Vec::new());
    std::io::stdin().read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn line(finding: &Finding, colours: bool) -> String {
    let Finding {
        severity,
        place,
        message,
        remedy,
    } = finding;
    let (word, colour) = match severity {
        Severity::Note => ("ok", "32"),
        Severity::Warning => ("warning", "33"),
        Severity::Error => ("error", "31"),
    };
    let word = if colours {
        format!("\u{1b}[{colour}m{word}\u{1b}[0m")
    } else {
        word.to_owned()
    };
    let remedy = if remedy.is_empty() {
        String::new()
    } else {
        format!(" ({remedy})")
    };
    format!("{place}: {word}: {message}{remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::golden;

    #[test]
    fn a_mistyped_route_is_guessed() {
        for word in ["rout", "routes", "rotue", "roure", "oute"] {
            assert!(is_nearly(word, "route"), "{word}");
        }
        for word in ["tls", "x", "routing", ""] {
            assert!(!is_nearly(word, "route"), "{word}");
        }
    }

    #[test]
    fn a_url_in_place_of_a_file_is_told_what_takes_one() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        let said = |word: &str| unreadable(Path::new(word), &missing).0;
        let url = said("https://shop.example.com/");
        assert!(url.contains("cert-renew check route HOST"), "{url}");
        assert!(!said("tls.crt").contains("route"));
    }

    #[test]
    fn a_host_may_be_named_by_a_url() {
        for (text, expected) in [
            ("shop.example.com", Ok("shop.example.com")),
            ("https://shop.example.com/cart?x", Ok("shop.example.com")),
            ("http://shop.example.com:8080", Ok("shop.example.com")),
            ("https://[2001:db8::1]/", Ok("2001:db8::1")),
            ("shop.example.com/", Ok("shop.example.com")),
            ("*.example.com", Err("DNS-01")),
            ("ftp://shop.example.com", Err("expected a host")),
            ("shop example", Err("expected a host")),
        ] {
            match (host_of(text), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(expected)) => assert!(found.0.contains(expected), "{}", found.0),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_certificate_and_a_key_side_by_side_are_compared() {
        let key = || rcgen::KeyPair::generate().unwrap();
        let (own, foreign) = (key(), key());
        let names = vec!["a.example".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap();
        let certificate = certificate.self_signed(&own).unwrap().pem();
        let file =
            |name: &str, text: &str| (name.to_owned(), Zeroizing::new(text.as_bytes().to_vec()));
        let said = |key: &str| {
            let files = [file("tls.crt", &certificate), file("tls.key", key)];
            let found = checked(&files, UnixTime::now());
            let lines = found
                .iter()
                .map(|it| format!("{}: {}", it.file, line(&it.finding, false)));
            lines.collect::<Vec<_>>().join("\n")
        };
        let foreign = said(&foreign.serialize_pem());
        assert!(
            foreign.contains(
                "tls.key: private key: error: it is not the key of the certificate in tls.crt"
            ),
            "{foreign}"
        );
        let own = said(&own.serialize_pem());
        assert!(
            own.contains("tls.key: private key: ok: it is the key of"),
            "{own}"
        );
    }

    #[test]
    fn several_certificates_and_keys_are_paired_by_their_public_keys() {
        let file =
            |name: &str, text: &str| (name.to_owned(), Zeroizing::new(text.as_bytes().to_vec()));
        let pair = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let names = vec!["a.example".to_owned()];
            let certificate = rcgen::CertificateParams::new(names).unwrap();
            let certificate = certificate.self_signed(&key).unwrap().pem();
            (certificate, key.serialize_pem())
        };
        let (one, other, third) = (pair(), pair(), pair());
        let files = [
            file("a.crt", &one.0),
            file("b.key", &other.1),
            file("b.crt", &other.0),
            file("a.key", &one.1),
            file("c.key", &third.1),
        ];
        let found = checked(&files, UnixTime::now());
        let compared = found
            .iter()
            .filter(|it| it.finding.message.contains("the key of"));
        let lines: Vec<String> = compared
            .map(|it| format!("{}: {}", it.file, line(&it.finding, false)))
            .collect();
        assert_eq!(
            lines,
            [
                "b.key: private key: ok: it is the key of the certificate in b.crt",
                "a.key: private key: ok: it is the key of the certificate in a.crt",
                "c.key: private key: error: it is the key of none of the certificates in a.crt and b.crt (put the key \
                 here that belongs to one of them)",
            ]
        );
    }

    /// Every certificate and key of `testdata/certificates`, as `check` sees it at one instant.
    #[test]
    fn what_is_said_of_each_file_is_as_the_golden_file_has_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
        let now: UnixTime = "2026-02-01T00:00:00Z".parse().unwrap();
        let files = std::fs::read_dir(root.join("certificates")).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|it| it != "tsv"));
        files.sort();
        let (mut said, mut all) = (String::new(), Vec::new());
        for file in files {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            for finding in lint::check(&std::fs::read(&file).unwrap(), now) {
                said += &format!("{name}: {}\n", line(&finding, false));
                let file = name.clone();
                all.push(Found { file, finding });
            }
        }
        golden("check.txt", &said);
        let json = Output::Json.of_program(&all).unwrap().unwrap();
        golden("check.json", &json);
        // The same facts as named fields.
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let json = json.as_array().unwrap();
        assert_eq!(said.lines().count(), json.len());
        for (line, found) in said.lines().zip(json) {
            for field in ["file", "place", "message", "remedy"] {
                let fact = found[field].as_str().unwrap_or_default();
                assert!(line.contains(fact), "{field} {fact}: {line}");
            }
        }
    }
}

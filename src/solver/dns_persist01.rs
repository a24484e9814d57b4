//! dns-persist-01 (draft-ietf-acme-dns-persist-01): a TXT record that names the CA and our account there. Experimental.
//!
//! ```text
//! _validation-persist.NAME TXT "issuer-domain-name; accounturi=URI[; policy=wildcard][; persistUntil=SECONDS]"
//! ```
//! The user sets it once; it proves the name for every renewal, and needs no credentials for DNS here. Nothing is
//! written to DNS. Before the CA is told to validate, every server of the zone that answers is asked for the record;
//! where it is missing or has another content, the error says what to set, and no validation is spent.
//!
//! A record for another account would let its owner issue for the name. So we only ever ask for a record with our own
//! account's URL, and only if that is on the CA's own host: no CA can make us ask for a record that is meant for
//! another CA.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use cert_renew_core::text::name::Name;
use cert_renew_core::text::shown;
use cert_renew_core::time::UnixTime;
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use reqwest::Url;
use thiserror::Error;

use crate::net::dns::{self, Authority, Resolver};
use crate::net::egress::Nearby;

/// Label below the name at which the CA looks (section 4 of the draft).
const LABEL: &str = "_validation-persist";
/// Most domain names of a CA (section 3.1).
const ISSUERS: usize = 10;
/// Longest account URL in bytes: the record has to contain it.
const ACCOUNT: usize = 500;
/// Longest string of a TXT record in bytes (RFC 1035, 3.3).
const STRING: usize = 255;
/// Most names of one order that are looked up at the same time.
const LOOKS: usize = 8;

/// Why the CA is not told to validate.
#[derive(Debug, Error)]
pub enum Error {
    /// DNS failed.
    #[error("dns-persist-01: {0}")]
    Dns(#[from] dns::Error),
    /// No server can be asked.
    #[error(
        "dns-persist-01: TXT {0}: no server of its zone answers; name others in servers, or leave it to the CA by \
         selfCheck: false"
    )]
    Silent(String),
    /// The faults of the records, a sentence each.
    #[error("dns-persist-01: {}", .0.join("; "))]
    Lacking(Vec<String>),
    /// The challenge must not be proven.
    #[error("dns-persist-01: {0}")]
    Challenge(String),
}

impl Error {
    /// Stable name for Events, logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Dns(_) | Self::Silent(_) => "DnsLookup",
            Self::Lacking(_) => "DnsRecord",
            Self::Challenge(_) => "Challenge",
        }
    }
}

/// A CA and our account there.
#[derive(Clone, Copy, Debug)]
pub struct Ca<'a> {
    /// Its domain names in records.
    pub issuers: &'a [String],
    /// Its directory, from the config.
    pub directory: &'a str,
    /// Our account's URL there.
    pub account: &'a str,
    /// The account that the challenge names, if it names one.
    pub named: Option<&'a str>,
}

/// The record that a name needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The name, without `*.`.
    name: String,
    wildcard: bool,
    issuers: Vec<String>,
    account: String,
    /// Servers to ask instead of those in the zone's NS records.
    servers: Vec<SocketAddr>,
}

/// The fault of a record; later variants are closer to a valid record.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    OtherCa,
    Malformed(&'static str),
    OtherAccount,
    NoWildcard,
    Over(i64),
}

impl Wanted {
    /// The record for this name. `servers` of its zone are asked for it instead of those that DNS names.
    ///
    /// # Errors
    /// When the CA's data cannot be trusted.
    pub fn new(name: &Name, ca: Ca<'_>, servers: &[SocketAddr]) -> Result<Self, Error> {
        let Ca {
            issuers,
            directory,
            account,
            named,
        } = ca;
        if !(1..=ISSUERS).contains(&issuers.len()) || !issuers.iter().all(|it| is_normalized(it)) {
            return Err(Error::Challenge(format!(
                "expected 1 to {ISSUERS} issuer-domain-names in lower case from the CA, found {}",
                shown(&issuers.join(", "))
            )));
        }
        let host = |url: &str| Some(Url::parse(url).ok()?.host_str()?.to_owned());
        if host(account).is_none() || host(account) != host(directory) || !is_parameter(account) {
            return Err(Error::Challenge(format!(
                "expected an account at the host of {directory}, found {}: no record may name it",
                shown(account)
            )));
        }
        if let Some(named) = named.filter(|it| *it != account) {
            return Err(Error::Challenge(format!(
                "the CA wants a record for the account {}, ours is {account}",
                shown(named)
            )));
        }
        let bare = name.to_string();
        Ok(Self {
            name: bare.strip_prefix("*.").unwrap_or(&bare).to_owned(),
            wildcard: name.is_wildcard(),
            issuers: issuers.to_vec(),
            account: account.to_owned(),
            servers: servers.to_vec(),
        })
    }

    /// The content of the record to set.
    fn value(&self) -> String {
        let policy = if self.wildcard {
            "; policy=wildcard"
        } else {
            ""
        };
        let issuer = &self.issuers[0];
        format!("{issuer}; accounturi={}{policy}", self.account)
    }

    /// Why a record does not prove the name, if it does not (RFC 8659, 4.2; section 4 of the draft).
    fn fault(&self, record: &str, now: UnixTime) -> Option<Fault> {
        let mut parts = record.split(';').map(|it| it.trim_matches([' ', '\t']));
        let issuer = parts.next().unwrap_or_default();
        if !self.issuers.iter().any(|it| it == issuer) {
            return Some(Fault::OtherCa);
        }
        let (mut seen, mut account, mut wildcard, mut over) = (BTreeSet::new(), None, false, None);
        for part in parts {
            let Some((tag, value)) = part.split_once('=') else {
                return Some(Fault::Malformed("expected tag=value after each semicolon"));
            };
            let tag = tag.trim_end_matches([' ', '\t']).to_ascii_lowercase();
            let value = value.trim_start_matches([' ', '\t']);
            if tag.is_empty() || !tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
                return Some(Fault::Malformed("expected letters and digits before ="));
            }
            if !value.bytes().all(|b| b.is_ascii_graphic() && b != b';') {
                return Some(Fault::Malformed("expected no blank and only ASCII after ="));
            }
            match tag.as_str() {
                "accounturi" => account = Some(value),
                "policy" => wildcard = value.eq_ignore_ascii_case("wildcard"),
                "persistuntil" => match value.parse::<i64>() {
                    Ok(until) => over = (now.0 > until).then_some(until),
                    Err(_) => {
                        return Some(Fault::Malformed("expected unix seconds in persistUntil"));
                    }
                },
                _ => {}
            }
            if !seen.insert(tag) {
                return Some(Fault::Malformed("expected each parameter once"));
            }
        }
        if account.is_none() {
            Some(Fault::Malformed("expected accounturi"))
        } else if account != Some(&self.account) {
            Some(Fault::OtherAccount)
        } else if self.wildcard && !wildcard {
            Some(Fault::NoWildcard)
        } else {
            over.map(Fault::Over)
        }
    }

    /// Why none of the existing records proves the name, if none does.
    fn lacking(&self, records: &[String], now: UnixTime) -> Option<String> {
        let mut closest = None;
        for record in records {
            let fault = self.fault(record, now)?;
            if closest.as_ref().is_none_or(|(it, _)| *it < fault) {
                closest = Some((fault, record));
            }
        }
        let Some((fault, record)) = closest else {
            return Some("there is none".to_owned());
        };
        let why = match fault {
            Fault::OtherCa => "it is for another CA".to_owned(),
            Fault::Malformed(expected) => expected.to_owned(),
            Fault::OtherAccount => "it names another account".to_owned(),
            Fault::NoWildcard => "a wildcard needs policy=wildcard".to_owned(),
            Fault::Over(until) => format!("it ended at {}", UnixTime(until)),
        };
        Some(format!("found {}: {why}", shown(record)))
    }

    async fn look(&self, nearby: Nearby, resolver: &Resolver, now: UnixTime) -> Result<(), Error> {
        let at = dns::name(&format!("{LABEL}.{}", self.name))?;
        let at = resolver.follow(&at).await?;
        let authorities = if self.servers.is_empty() {
            let zone = resolver.zone(&at).await?;
            resolver.authorities(nearby, &zone).await?
        } else {
            self.servers.iter().copied().map(Authority::at).collect()
        };
        let (owner, name) = (dns::text(&at), &at);
        let asked = authorities
            .iter()
            .map(|server| async move { Some((&server.name, server.texts(name).await?)) });
        let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        if answers.is_empty() {
            return Err(Error::Silent(owner));
        }
        for (server, records) in answers {
            if let Some(why) = self.lacking(&records, now) {
                let record = quoted(&self.value());
                return Err(Error::Lacking(vec![format!(
                    "TXT {owner} on {server}: {why}; to be set: {owner}. IN TXT {record}"
                )]));
            }
        }
        Ok(())
    }
}

/// Looks for all records, each by way of its resolver; records of the same name are looked up once.
///
/// # Errors
/// When one is missing or has faults, or DNS gives no answer.
pub async fn look(
    nearby: Nearby,
    mut wanted: Vec<(Wanted, Resolver)>,
    now: UnixTime,
) -> Result<(), Error> {
    // Of apex and wildcard, keep the wildcard, which needs more.
    wanted.sort_by(|(a, _), (b, _)| (&a.name, b.wildcard).cmp(&(&b.name, a.wildcard)));
    wanted.dedup_by(|(later, _), (kept, _)| later.name == kept.name);
    let looks = stream::iter(wanted)
        .map(|(record, resolver)| async move { record.look(nearby, &resolver, now).await });
    let looked: Vec<_> = looks.buffered(LOOKS).collect().await;
    let mut lacking = Vec::new();
    for result in looked {
        match result {
            Err(Error::Lacking(found)) => lacking.extend(found),
            result => result?,
        }
    }
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(Error::Lacking(lacking))
    }
}

/// The value in the notation of a zone file.
fn quoted(value: &str) -> String {
    let strings = value.as_bytes().chunks(STRING);
    let strings: Vec<String> = strings
        .map(|it| format!("\"{}\"", String::from_utf8_lossy(it)))
        .collect();
    strings.join(" ")
}

/// A domain name in lower-case A-labels without a dot at its end (section 3.1).
fn is_normalized(text: &str) -> bool {
    let name = text.parse::<Name>();
    name.is_ok_and(|name| matches!(&name, Name::Dns(dns) if **dns == *text) && !name.is_wildcard())
}

/// The bytes that a parameter may contain, and a zone file without escapes.
fn is_parameter(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_graphic() && !b";\"\\".contains(&b);
    text.len() <= ACCOUNT && text.bytes().all(allowed)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fuzz::{feed, texts};

    const ACCOUNT: &str = "https://ca.example/acct/1";
    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn wanted(name: &str) -> Wanted {
        let issuers = ["ca.example".to_owned(), "ca.example.net".to_owned()];
        let ca = Ca {
            issuers: &issuers,
            directory: "https://ca.example/dir",
            account: ACCOUNT,
            named: Some(ACCOUNT),
        };
        Wanted::new(&name.parse().unwrap(), ca, &[]).unwrap()
    }

    #[test]
    fn the_record_is_the_one_that_the_page_shows() {
        let issuers = ["ca.example".to_owned()];
        let ca = Ca {
            issuers: &issuers,
            directory: "https://ca.example/directory",
            account: "https://ca.example/acme/acct/123",
            named: None,
        };
        let name = "*.example.com".parse().unwrap();
        let wanted = Wanted::new(&name, ca, &[]).unwrap();
        let record = quoted(&wanted.value());
        let shown = format!("\n{LABEL}.{}. IN TXT {record}\n", wanted.name);
        assert!(
            include_str!("../../docs/solvers.md").contains(&shown),
            "{shown}"
        );
    }

    #[test]
    fn a_record_proves_the_name_or_its_fault_is_told() {
        for (record, apex, wildcard) in [
            ("ca.example; accounturi=URI", None, Some("policy=wildcard")),
            ("ca.example;accounturi=URI;policy=wildcard", None, None),
            (
                " ca.example.net\t; POLICY = WildCard ; AccountUri = URI ; new-tag=",
                None,
                None,
            ),
            (
                "ca.example; accounturi=URI; policy=wildcard; persistUntil=1800000000",
                None,
                None,
            ),
            (
                "ca.example; accounturi=URI; policy=wildcard; persistUntil=1799999999",
                Some("ended at 2027-01-15T07:59:59Z"),
                Some("ended at"),
            ),
            (
                "ca.example; accounturi=URI; policy=other",
                None,
                Some("policy=wildcard"),
            ),
            (
                "ca.example; accounturi=URI/2; policy=wildcard",
                Some("another account"),
                Some("another account"),
            ),
            (
                "CA.example; accounturi=URI; policy=wildcard",
                Some("another CA"),
                Some("another CA"),
            ),
            ("", Some("another CA"), Some("another CA")),
            ("ca.example", Some("accounturi"), Some("accounturi")),
            (
                "ca.example; policy=wildcard",
                Some("accounturi"),
                Some("accounturi"),
            ),
            ("ca.example; accounturi=URI;", Some("tag="), Some("tag=")),
            (
                "ca.example; accounturi=URI; AccountUri=URI",
                Some("once"),
                Some("once"),
            ),
            ("ca.example; accounturi=URI x", Some("blank"), Some("blank")),
            ("ca.example; =URI", Some("letters"), Some("letters")),
            (
                "ca.example; accounturi=URI; persistUntil=soon",
                Some("unix seconds"),
                Some("unix seconds"),
            ),
        ] {
            let record = vec![record.replace("URI", ACCOUNT)];
            for (name, expected) in [("a.example", apex), ("*.a.example", wildcard)] {
                let found = wanted(name).lacking(&record, NOW);
                let as_expected = match expected {
                    None => found.is_none(),
                    Some(part) => found.as_ref().is_some_and(|it| it.contains(part)),
                };
                assert!(as_expected, "{name}: {record:?}: {found:?}");
            }
        }
    }

    #[test]
    fn of_several_records_one_suffices_and_the_closest_is_told() {
        let records = |list: &[&str]| -> Vec<String> {
            list.iter().map(|it| it.replace("URI", ACCOUNT)).collect()
        };
        let wanted = wanted("*.a.example");
        let good = "ca.example; accounturi=URI; policy=wildcard";
        let near = "ca.example; accounturi=URI";
        let others = [
            "other.example; accounturi=x",
            "v=spf1 -all",
            near,
            "ca.example; x",
        ];
        assert_eq!(wanted.lacking(&records(&[others[0], good]), NOW), None);
        let told = wanted.lacking(&records(&others), NOW).unwrap();
        assert!(told.contains(&near.replace("URI", ACCOUNT)), "{told}");
        assert_eq!(wanted.lacking(&[], NOW).as_deref(), Some("there is none"));
    }

    /// A CA that would make the user set a record for another account.
    #[test]
    fn no_record_is_asked_for_that_could_be_meant_for_another_ca() {
        let name = "a.example".parse().unwrap();
        let long = format!("{ACCOUNT}{}", "1".repeat(500));
        for (issuer, account, named, told) in [
            ("ca.example", ACCOUNT, None, None),
            ("ca.example", ACCOUNT, Some(ACCOUNT), None),
            (
                "ca.example",
                ACCOUNT,
                Some("https://ca.example/acct/2"),
                Some("ours is"),
            ),
            (
                "ca.example",
                "https://other.example/acct/1",
                None,
                Some("at the host"),
            ),
            ("ca.example", "acct/1", None, Some("at the host")),
            (
                "ca.example",
                "https://ca.example/1;policy=wildcard",
                None,
                Some("at the host"),
            ),
            (
                "ca.example",
                "https://ca.example/1\"",
                None,
                Some("at the host"),
            ),
            ("ca.example", &long, None, Some("at the host")),
            ("CA.example", ACCOUNT, None, Some("lower case")),
            ("ca.example.", ACCOUNT, None, Some("lower case")),
            ("*.example", ACCOUNT, None, Some("lower case")),
            (
                "ca.example; accounturi=x",
                ACCOUNT,
                None,
                Some("lower case"),
            ),
            ("10.0.0.1", ACCOUNT, None, Some("lower case")),
        ] {
            let issuers = [issuer.to_owned()];
            let ca = Ca {
                issuers: &issuers,
                directory: "https://ca.example/dir",
                account,
                named,
            };
            let found = Wanted::new(&name, ca, &[]).map_err(|error| error.to_string());
            match told {
                None => assert!(found.is_ok(), "{found:?}"),
                Some(part) => assert!(found.clone().unwrap_err().contains(part), "{found:?}"),
            }
        }
        let too_many: Vec<String> = (0..=ISSUERS).map(|n| format!("n{n}.example")).collect();
        for issuers in [&[], too_many.as_slice()] {
            let ca = Ca {
                issuers,
                directory: ACCOUNT,
                account: ACCOUNT,
                named: None,
            };
            Wanted::new(&name, ca, &[]).unwrap_err();
        }
    }

    #[test]
    fn what_is_to_be_set_is_what_is_looked_for() {
        for name in ["a.example", "*.a.example"] {
            let mut wanted = wanted(name);
            assert_eq!(wanted.fault(&wanted.value(), NOW), None);
            wanted.account += &"1".repeat(250);
            let quoted = quoted(&wanted.value());
            let strings: Vec<&str> = quoted.trim_matches('"').split("\" \"").collect();
            assert_eq!(strings.concat(), wanted.value());
            assert!(strings.iter().all(|it| it.len() <= STRING), "{quoted}");
        }
    }

    /// Reads the record of a zone.
    pub(crate) fn read(input: &[u8]) {
        let record = [String::from_utf8_lossy(input).into_owned()];
        let _ = wanted("*.a.example").lacking(&record, NOW);
    }

    /// The owner of a zone may write anything into its records.
    #[test]
    fn hostile_records() {
        let seeds = texts(&[
            "ca.example; accounturi=https://ca.example/acct/1; policy=wildcard; persistUntil=1800000000",
            "ca.example.net;accounturi=https://ca.example/acct/1",
            "v=spf1 include:example.com -all",
        ]);
        let dictionary: [&[u8]; 8] = [
            b";",
            b"=",
            b"persistUntil=-9223372036854775808",
            b"persistUntil=18446744073709551616",
            b"policy=",
            b"ca.example;",
            b"\x1b[2J",
            b"-----BEGIN PRIVATE KEY-----",
        ];
        let (apex, wildcard) = (wanted("a.example"), wanted("*.a.example"));
        feed("dns-persist", &seeds, &dictionary, |input| {
            let record = [String::from_utf8_lossy(input).into_owned()];
            let told = [&apex, &wildcard].map(|it| it.lacking(&record, NOW));
            for told in told.iter().flatten() {
                assert!(told.len() < 4 * 1024, "{} bytes", told.len());
                assert!(!told.chars().any(char::is_control), "{told:?}");
            }
            // A record that proves the wildcard also proves the name itself, and nothing is proven without the account.
            assert!(told[1].is_some() || told[0].is_none(), "{record:?}");
            assert!(
                told[0].is_some() || record[0].contains(ACCOUNT),
                "{record:?}"
            );
        });
    }
}

//! CAA records (RFC 8659, RFC 8657): whether a CA will refuse before it has looked at any proof.
//!
//! A CA that is asked and refuses counts a failed validation; the check costs a few DNS questions. Only certain
//! refusals are reported: what cannot be looked up, or what a CA does not say of itself, is left to the CA.

use std::sync::atomic::{AtomicUsize, Ordering};

use cert_renew_core::text::name::Name;
use hickory_proto::rr::rdata::CAA;

use crate::net::dns::{self, RData, RecordType, Resolver};

/// The CA and account that ask, and how the name will be proven.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The CA's domain names in CAA records; nothing is forbidden where the CA names none.
    pub identities: &'a [String],
    /// The account's URL, if known.
    pub account: Option<&'a str>,
    /// `http-01`, `dns-01` or `dns-persist-01`.
    pub method: &'a str,
}

/// Why this CA may not issue a name to this account, if that is certain. Asks at most `left` questions.
pub async fn forbids(
    resolver: &Resolver,
    name: &Name,
    asker: Asker<'_>,
    left: &AtomicUsize,
) -> Option<String> {
    let Name::Dns(text) = name else { return None };
    if asker.identities.is_empty() {
        return None;
    }
    let bare = text.strip_prefix("*.").unwrap_or(text);
    let mut at = dns::name(bare).ok()?;
    while !at.is_root() {
        let one_less = |left: usize| left.checked_sub(1);
        let order = Ordering::Relaxed;
        left.fetch_update(order, order, one_less).ok()?;
        let answer = resolver.ask(&at, RecordType::CAA).await.ok()?;
        let records = answer.answers.into_iter();
        let records: Vec<CAA> = records
            .filter_map(|record| match record.data {
                RData::CAA(caa) => Some(caa),
                _ => None,
            })
            .collect();
        // RFC 8659, 3: only the nearest set of records counts.
        if !records.is_empty() {
            let why = judge(&records, name.is_wildcard(), asker)?;
            return Some(format!("CAA of {} forbids {name}: {why}", dns::text(&at)));
        }
        at = at.base_name();
    }
    None
}

fn judge(records: &[CAA], wildcard: bool, asker: Asker<'_>) -> Option<String> {
    let tagged = |tag: &str| -> Vec<String> {
        let records = records
            .iter()
            .filter(|caa| caa.tag.eq_ignore_ascii_case(tag));
        records
            .map(|caa| String::from_utf8_lossy(&caa.value).into_owned())
            .collect()
    };
    let known = [
        "issue",
        "issuewild",
        "iodef",
        "contactemail",
        "contactphone",
    ];
    let unknown = records.iter().find(|caa| {
        caa.issuer_critical && !known.iter().any(|tag| caa.tag.eq_ignore_ascii_case(tag))
    });
    if let Some(unknown) = unknown {
        let tag = cert_renew_core::text::shown(&unknown.tag);
        return Some(format!("a critical property {tag} that CAs do not know"));
    }
    let (issue, issue_wild) = (tagged("issue"), tagged("issuewild"));
    let relevant = if wildcard && !issue_wild.is_empty() {
        issue_wild
    } else {
        issue
    };
    if relevant.is_empty() || relevant.iter().any(|value| permits(value, asker)) {
        return None;
    }
    let found: Vec<String> = relevant
        .iter()
        .map(|it| cert_renew_core::text::shown(it))
        .collect();
    let account = asker.account.unwrap_or("unknown");
    Some(format!(
        "expected one for {} (account {account}, method {}), found {}",
        asker.identities.join(" or "),
        asker.method,
        found.join(", ")
    ))
}

/// Whether the value of one property names this CA, this account and this method.
fn permits(value: &str, asker: Asker<'_>) -> bool {
    let mut parts = value.split(';').map(str::trim);
    let issuer = parts.next().unwrap_or_default().trim_end_matches('.');
    let identities = asker.identities.iter();
    let mut ours = identities.filter(|it| it.trim_end_matches('.').eq_ignore_ascii_case(issuer));
    if ours.next().is_none() {
        return false;
    }
    parts
        .filter_map(|part| part.split_once('='))
        .all(|(key, value)| {
            let value = value.trim();
            match key.trim().to_ascii_lowercase().as_str() {
                "accounturi" => asker.account.is_none_or(|account| account == value),
                "validationmethods" => value.split(',').any(|it| it.trim() == asker.method),
                _ => true,
            }
        })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Reads the value of a record.
    pub(crate) fn read(input: &[u8]) {
        let asker = Asker {
            identities: &["ca.example".to_owned()],
            account: Some("https://ca.example/acct/1"),
            method: "dns-01",
        };
        permits(&String::from_utf8_lossy(input), asker);
    }

    /// Tag and value of each; a tag with `!` is critical.
    type Records = &'static [(&'static str, &'static str)];

    #[test]
    fn what_is_plainly_forbidden_is_told() {
        let identities = ["ca.example".to_owned()];
        let asker = Asker {
            identities: &identities,
            account: Some("https://ca.example/acct/1"),
            method: "http-01",
        };
        let caa = |(tag, value): &(&str, &str)| {
            let mut caa = CAA::new_issue(false, None, Vec::new());
            caa.tag = tag.trim_start_matches('!').to_owned();
            caa.issuer_critical = tag.starts_with('!');
            caa.value = value.as_bytes().to_vec();
            caa
        };
        let cases: [(Records, bool, bool); 13] = [
            (&[("issue", "ca.example")], false, true),
            (&[("issue", "CA.example.")], true, true),
            (&[("issue", "other.example")], false, false),
            (
                &[("issue", "other.example"), ("issue", "ca.example")],
                false,
                true,
            ),
            (&[("issue", ";")], false, false),
            (&[("iodef", "mailto:x@example.com")], false, true),
            (&[("issuewild", ";")], false, true),
            (&[("issue", "ca.example"), ("issuewild", ";")], true, false),
            (
                &[("issue", "ca.example; accounturi=https://ca.example/acct/1")],
                false,
                true,
            ),
            (
                &[("issue", "ca.example; accounturi=https://ca.example/acct/2")],
                false,
                false,
            ),
            (
                &[("issue", "ca.example;validationmethods=dns-01,http-01")],
                false,
                true,
            ),
            (
                &[("issue", "ca.example; validationmethods=dns-01")],
                false,
                false,
            ),
            (&[("issue", "ca.example"), ("!tbs", "x")], false, false),
        ];
        for (records, wildcard, allowed) in cases {
            let found: Vec<CAA> = records.iter().map(caa).collect();
            let why = judge(&found, wildcard, asker);
            assert_eq!(why.is_none(), allowed, "{records:?}: {why:?}");
        }
        let unknown = Asker {
            account: None,
            ..asker
        };
        assert!(permits(
            "ca.example; accounturi=https://ca.example/acct/2",
            unknown
        ));
    }
}

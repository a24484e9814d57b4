//! Limits of a CA on a domain or a name. They stop every set of names that contains one of those, for as long as the CA
//! said.
//!
//! The ledger keeps them. No list of public suffixes is needed: the CA names the domain, and all names that end in it
//! are under it. CAs do not count a renewal that names what it replaces (RFC 9773, section 5), so it goes on.

use std::time::Duration;

use cert_renew_core::certificate::Leaf;
use cert_renew_core::schedule::rate_limits::{self, AccountId, IssuanceHistory};
use cert_renew_core::text::name::Name;
use cert_renew_core::time::UnixTime;

use crate::acme::{Client, Limited};
use crate::cluster::events::Reason;
use crate::renewal::outcome::Outcome;
use crate::renewal::renewals::Renewal;
use crate::renewal::target::RenewalTarget;

/// Delay until a fallback is asked that was not tried yet.
const FALLBACK: Duration = Duration::from_secs(5);
/// Delay until a fallback is tried again that could not help.
const NO_FALLBACK: Duration = Duration::from_secs(5 * 60);

/// The ledger's account of a limit. Its text is not a name, so it never equals the account of a set of names.
pub(in crate::renewal) fn account(issuer: &str, directory: &str, limited: &Limited) -> AccountId {
    match limited {
        // A CA counts the certificates of a domain across all accounts.
        Limited::Under(domain) => AccountId::of(&format!("{directory}\n**.{domain}")),
        Limited::Only(name) => AccountId::of(&format!("{issuer}\n={name}")),
    }
}

/// The limits that would stop a name.
fn concerning(name: &Name) -> impl Iterator<Item = Limited> {
    let text = name.to_string();
    let bare = text.strip_prefix("*.").unwrap_or(&text).to_owned();
    let parent = |domain: &String| domain.split_once('.').map(|(_, parent)| parent.to_owned());
    let domains = std::iter::successors(Some(bare.clone()), parent);
    std::iter::once(Limited::Only(bare)).chain(domains.map(Limited::Under))
}

/// The limit that stops these names longest, if any does. `replaces`: the CA knows the order as a replacement.
fn stopped(
    now: UnixTime,
    names: &[Name],
    replaces: bool,
    of: impl Fn(&Limited) -> IssuanceHistory,
) -> Option<(UnixTime, Limited)> {
    let limits = names.iter().flat_map(concerning);
    let counted = limits.filter(|limit| !(replaces && matches!(limit, Limited::Under(_))));
    let ends = counted.filter_map(|limit| Some((of(&limit).limited_until(now)?, limit)));
    ends.max_by_key(|(until, _)| *until)
}

fn whom(limit: Limited) -> String {
    match limit {
        Limited::Under(domain) => format!("names under {domain}"),
        Limited::Only(name) => name,
    }
}

/// The limit of the CA that stops these names longest, and whom it is about; `of` is the issuer and its directory.
pub(super) fn told(
    now: UnixTime,
    (issuer, directory): (&str, &str),
    names: &[Name],
    get: impl Fn(AccountId) -> IssuanceHistory,
) -> Option<(UnixTime, String)> {
    let of = |limit: &Limited| get(account(issuer, directory, limit));
    let (until, limit) = stopped(now, names, false, of)?;
    Some((until, whom(limit)))
}

impl Renewal<'_> {
    /// The outcome of a renewal whose names the CA has limited; `None` where it may go on.
    pub(in crate::renewal) async fn held_by_the_ca(
        self,
        fresh: &RenewalTarget,
        client: &Client,
        names: &[Name],
    ) -> Option<Outcome> {
        let now = UnixTime::now();
        let (issuer, directory) = (&*fresh.issuer_name, &*fresh.issuer.directory);
        let of = |limit: &Limited| self.shared.ledger.get(account(issuer, directory, limit));
        stopped(now, names, false, of)?;
        let asked = client.directory().await;
        let replaces =
            fresh.replaced().is_some() && asked.is_ok_and(|it| it.renewal_info.is_some());
        let (until, limit) = stopped(now, names, replaces, of)?;
        let whom = whom(limit);
        let note = format!(
            "the CA has limited {whom}: issuer {issuer} is not asked for them before {until}"
        );
        let leaf = fresh.leaf();
        let fallback = fresh.issuer.fallback.is_some();
        let at = self
            .after_limit(fresh.assessment.account, leaf, fallback, until)
            .await;
        Some(self.not_now(fresh, (at, None), Reason::RenewalHeld, note))
    }

    /// When to retry a renewal that was not sent to the CA because of a limit: at its end, or, where there is a
    /// fallback, as soon as the certificate is close to expiry.
    pub(in crate::renewal) async fn after_limit(
        self,
        account: AccountId,
        leaf: Option<&Leaf>,
        has_fallback: bool,
        until: UnixTime,
    ) -> UnixTime {
        if !has_fallback {
            return until;
        }
        let now = UnixTime::now();
        let short_at = leaf.map_or(now, rate_limits::runs_short_at);
        let known = self.shared.ledger.get(account).unavailable_until >= Some(until.0);
        // If the fallback was already tried for this account, do not try it again soon.
        let again = if known { NO_FALLBACK } else { FALLBACK };
        let noted = self
            .shared
            .ledger
            .update(&self.key.namespace, account, |account| {
                account.unavailable_until = Some(until.0);
            });
        self.note_ledger(noted.await);
        until.min(short_at.max(now + again))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_stops_what_is_under_its_domain_and_nothing_else() {
        let now = UnixTime(1_800_000_000);
        let until = now + Duration::from_secs(60);
        let of = |limited: Limited| {
            move |asked: &Limited| IssuanceHistory {
                limited_until: (*asked == limited).then_some(until.0),
                ..IssuanceHistory::default()
            }
        };
        let stops = |limited: &Limited, text: &str, replaces| {
            let names: Vec<Name> = text.split(' ').map(|name| name.parse().unwrap()).collect();
            stopped(now, &names, replaces, of(limited.clone())).is_some()
        };
        let under = Limited::Under("one.co.example".into());
        let only = Limited::Only("a.one.co.example".into());
        for (text, by_under, by_only) in [
            ("one.co.example", true, false),
            ("*.one.co.example", true, false),
            ("a.one.co.example", true, true),
            ("*.a.one.co.example", true, true),
            ("two.example b.a.one.co.example", true, false),
            ("stone.co.example", false, false),
            ("co.example", false, false),
            ("one.co.example.net", false, false),
            ("10.0.0.1", false, false),
        ] {
            assert_eq!(stops(&under, text, false), by_under, "{text}");
            assert_eq!(stops(&only, text, false), by_only, "{text}");
            assert!(!stops(&under, text, true), "{text}");
            assert_eq!(stops(&only, text, true), by_only, "{text}");
        }
        let names = ["one.co.example".parse().unwrap()];
        assert!(stopped(until, &names, false, of(under.clone())).is_none());
        let at = |issuer, directory, limited| account(issuer, directory, limited);
        assert_eq!(at("a", "https://ca", &under), at("b", "https://ca", &under));
        assert_ne!(at("a", "https://ca", &only), at("b", "https://ca", &only));
    }
}

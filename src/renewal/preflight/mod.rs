//! Finds out what a CA will refuse before it is asked: an order that cannot succeed costs a failed validation.
//!
//! Reports only certain failures, and is skipped close to expiry: a false positive must never let a certificate expire.

mod public_ca;

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use cert_renew_core::certificate::KeyType;
use cert_renew_core::config::{Challenge, Config, Issuer};
use cert_renew_core::text::name::Name;
use futures::stream::{self, StreamExt as _};
use kube::Client as Kube;
use tokio::time::timeout;

use crate::acme::Directory;
use crate::net::dns::ResolverSet;
use crate::process::write_gate::WriteGate;
use crate::solver::caa::{self, Asker};
use crate::solver::dns01;

/// Most names whose CAA records are looked up at the same time.
const AT_ONCE: usize = 16;
/// Longest lookup for all names of an order: a zone's servers may take seconds for each answer.
const LONGEST: Duration = Duration::from_secs(10);
/// Most questions for all names of an order: a name may have a hundred labels, and an order a hundred names.
const QUESTIONS: usize = 500;

/// What is to be ordered.
pub struct PlannedOrder<'a> {
    /// The names, without those that a wildcard covers.
    pub names: &'a [Name],
    /// The profile that the Secret names.
    pub profile: Option<&'a str>,
    /// The lifetime that the Secret asks for.
    pub lifetime: Option<Duration>,
    /// The issuer in the config.
    pub issuer: &'a Issuer,
    /// The account's URL, where there is one.
    pub account: Option<&'a str>,
    /// The type of the certificate's key.
    pub key_type: Option<KeyType>,
}

/// Objections by the CA's directory and the config alone, a sentence each. Pure.
#[must_use]
pub fn static_checks(
    asked: &PlannedOrder<'_>,
    directory: &Directory,
    config: &Config,
) -> Vec<String> {
    let mut found = Vec::new();
    let meta = &directory.meta;
    if meta.external_account_required && asked.issuer.eab.is_none() && asked.account.is_none() {
        found.push("the CA wants an external account binding: the issuer has no eab".to_owned());
    }
    found.extend(by_profile(asked, directory));
    found.extend(by_the_ca(asked));
    for name in asked.names {
        if !config.solvers.is_empty() && config.solver(name).is_none() {
            found.push(format!("no solver of the config can prove {name}"));
        }
        let by_http = config.solvers.is_empty() && public_ca::is_public_ca(&asked.issuer.directory);
        if by_http && name.is_wildcard() {
            found.push(format!("{name}: a wildcard needs a dns01 solver"));
        }
    }
    found
}

/// Whether the CA lacks the profile that the Secret names. Pure.
#[must_use]
pub fn by_profile(asked: &PlannedOrder<'_>, directory: &Directory) -> Option<String> {
    let profiles = &directory.meta.profiles;
    let profile = asked.profile.filter(|it| !profiles.contains_key(*it))?;
    let offered: Vec<&str> = profiles.keys().map(String::as_str).collect();
    let offered = offered.join(", ");
    Some(format!(
        "the CA has no profile {profile}, expected one of: {offered}"
    ))
}

/// What the CA is known to refuse, whatever the config says of solvers. Pure.
#[must_use]
pub fn by_the_ca(asked: &PlannedOrder<'_>) -> Vec<String> {
    let PlannedOrder {
        names,
        profile,
        lifetime,
        issuer,
        key_type,
        ..
    } = *asked;
    let profile = profile.or(issuer.profile.as_deref());
    let mut found = public_ca::refuses(&issuer.directory, names, profile, key_type);
    if lifetime.is_some() {
        found.extend(public_ca::refuses_lifetimes(&issuer.directory));
    }
    found
}

/// What the CAA records of the names forbid.
pub async fn by_caa(
    asked: &PlannedOrder<'_>,
    directory: &Directory,
    config: &Config,
) -> Vec<String> {
    let mut found = Vec::new();
    if directory.meta.caa_identities.is_empty() {
        return found;
    }
    let resolvers = ResolverSet::default();
    let left = AtomicUsize::new(QUESTIONS);
    let look = |name| {
        let resolver = resolvers.get(config.resolvers(Some(name)));
        let asker = Asker {
            identities: &directory.meta.caa_identities,
            account: asked.account,
            method: match config.solver(name).map(|it| &it.challenge) {
                Some(Challenge::Dns01(_)) => "dns-01",
                Some(Challenge::DnsPersist01(_)) => "dns-persist-01",
                Some(Challenge::Http01(_)) | None => "http-01",
            },
        };
        let left = &left;
        // Without a resolver, the check is left to the CA.
        async move { caa::forbids(&resolver.ok()?, name, asker, left).await }
    };
    let looks: Vec<_> = asked.names.iter().map(look).collect();
    let mut looks = stream::iter(looks).buffered(AT_ONCE);
    let all = async {
        while let Some(forbidden) = looks.next().await {
            found.extend(forbidden);
        }
    };
    // What is not known by then is left to the CA.
    if timeout(LONGEST, all).await.is_err() {
        tracing::debug!("DNS answers late: not all CAA records are looked at");
    }
    found
}

/// Whether the credentials of the names' DNS-01 solvers exist and are well-formed.
pub async fn by_credentials(
    kube: &Kube,
    namespace: &str,
    names: &[Name],
    config: &Config,
) -> Vec<String> {
    let solver = dns01::Solver::new(kube.clone(), namespace.into(), WriteGate::open());
    let mut wanted = Vec::new();
    for name in names {
        if let Some(Challenge::Dns01(dns01)) = config.solver(name).map(|it| &it.challenge)
            && !wanted.contains(&dns01)
        {
            wanted.push(dns01);
        }
    }
    let mut found = Vec::new();
    for dns01 in wanted {
        if let Err(error) = solver.check(dns01).await {
            found.push(error.to_string());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use tokio::net::UdpSocket;

    use super::*;

    #[test]
    fn what_cannot_succeed_is_told() {
        let directory = |profiles: &str, eab: bool| -> Directory {
            let json = format!(
                r#"{{"newNonce": "", "newAccount": "", "newOrder": "",
                    "meta": {{"profiles": {profiles}, "externalAccountRequired": {eab}}}}}"#
            );
            serde_json::from_str(&json).unwrap()
        };
        let config = "issuers: {}\nsolvers: [{zones: [a.org], http01: {route: shared}}]";
        let config = Config::parse(config).unwrap();
        let issuer = Issuer {
            directory: "https://acme-v02.api.letsencrypt.org/directory".into(),
            ..Issuer::default()
        };
        let many: Vec<Name> = (0..26)
            .map(|n| format!("n{n}.a.org").parse().unwrap())
            .collect();
        let (offered, none) = (r#"{"tlsserver": "", "shortlived": ""}"#, "{}");
        let name = |text: &str| vec![text.parse::<Name>().unwrap()];
        for (names, profile, profiles, eab, account, told) in [
            (many.clone(), None, offered, false, None, ""),
            (many, Some("tlsserver"), offered, false, None, "at most 25"),
            (
                name("a.org"),
                Some("x"),
                offered,
                false,
                None,
                "no profile x",
            ),
            (name("a.org"), Some("x"), none, false, None, "no profile x"),
            (name("a.org"), None, none, true, None, "no eab"),
            (name("a.org"), None, none, true, Some("https://ca/1"), ""),
            (name("b.org"), None, none, false, None, "no solver"),
            (name("*.a.org"), None, offered, false, None, "no solver"),
        ] {
            let asked = PlannedOrder {
                names: &names,
                profile,
                lifetime: None,
                issuer: &issuer,
                account,
                key_type: None,
            };
            let found = static_checks(&asked, &directory(profiles, eab), &config).join("; ");
            assert!(
                found.contains(told) && (found.is_empty() == told.is_empty()),
                "{found}"
            );
        }
        let a_day = Some(Duration::from_secs(86_400));
        let asked = PlannedOrder {
            names: &name("a.org"),
            profile: None,
            lifetime: a_day,
            issuer: &issuer,
            account: None,
            key_type: None,
        };
        let found = static_checks(&asked, &directory(none, false), &config).join("; ");
        assert!(found.contains("takes no requested lifetime"), "{found}");
        let private = Issuer {
            directory: "https://ca.internal/directory".into(),
            ..Issuer::default()
        };
        let asked = PlannedOrder {
            issuer: &private,
            ..asked
        };
        let found = static_checks(&asked, &directory(none, false), &config);
        assert_eq!(found, [""; 0]);
    }

    #[tokio::test]
    async fn an_order_asks_for_a_bounded_number_of_caa_records() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        // Answers each question with nothing.
        let answers = tokio::spawn(async move {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                counted.fetch_add(1, Ordering::Relaxed);
                packet[2] |= 0x80;
                let _ = socket.send_to(&packet[..length], from).await;
            }
        });
        let directory: Directory = serde_json::from_str(
            r#"{"newNonce": "", "newAccount": "", "newOrder": "", "meta": {"caaIdentities": ["ca.example"]}}"#,
        )
        .unwrap();
        let config = format!("issuers: {{}}\ndns: {{nameservers: ['{server}']}}");
        let config = Config::parse(&config).unwrap();
        // A hundred names of sixty labels.
        let below = "a.".repeat(58);
        let names: Vec<Name> = (0..100)
            .map(|number| format!("n{number}.{below}example").parse().unwrap())
            .collect();
        let order = PlannedOrder {
            names: &names,
            profile: None,
            lifetime: None,
            issuer: &Issuer::default(),
            account: None,
            key_type: None,
        };
        assert_eq!(by_caa(&order, &directory, &config).await, [""; 0]);
        assert_eq!(asked.load(Ordering::Relaxed), QUESTIONS);
        answers.abort();
    }
}

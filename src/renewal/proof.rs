//! How the names of an order are proven: by which solver each, what the order record must know of it, and the way from
//! a pending order to one whose names the CA has seen proof of.
//!
//! What is put in place is in the record before it is put there, and is taken away before the record is.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use super::failure::Failure;
use super::known;
use crate::acme::{self, Authorization, ChallengeType};
use crate::cluster::events::Severity;
use crate::cluster::records::{self, Record, Txt};
use crate::config::{self, Config};
use crate::context::Context;
use crate::dns::Resolver;
use crate::index::Key;
use crate::name::Name;
use crate::solver::dns01;
use crate::time::UnixTime;

/// A CA validates in seconds; one that has not after this is asked again later, and the order stays.
const VALIDATION: Duration = Duration::from_secs(5 * 60);
/// So long a renewal keeps its place while it waits for a zone's servers; then it goes on from the record, later.
const PATIENCE: Duration = Duration::from_secs(30);
/// TXT records of one order that are changed at the same time; hosts limit requests to a few a second.
const CHANGES: usize = 4;

/// What an order record holds of the proofs.
#[derive(Default)]
pub(super) struct Proofs {
    /// Key authorizations by HTTP-01 token.
    pub(super) challenges: BTreeMap<String, String>,
    /// TXT records for DNS-01.
    pub(super) txt: Vec<Txt>,
}

/// How long a wait for DNS may last.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    /// For a while; then [`Failure::Waiting`], and the record stays.
    Briefly,
    /// As long as the config allows.
    ToTheEnd,
}

/// Chooses a solver for each name that is left to prove. Nothing is put in place yet.
///
/// # Errors
/// When there is none, or DNS does not say where a record belongs.
pub(super) async fn plan(
    context: &Context,
    authorizations: &[Authorization],
) -> Result<Proofs, Failure> {
    let config = context.config();
    let mut proofs = Proofs::default();
    for authorization in authorizations {
        match solver(&config, authorization)? {
            None => {
                let challenge = offered(authorization, &ChallengeType::Http01)?;
                let (token, proof) = (&challenge.token, &challenge.key_authorization);
                proofs.challenges.insert(token.clone(), proof.clone());
            }
            Some((name, solver)) => {
                let challenge = offered(authorization, &ChallengeType::Dns01)?;
                let resolver =
                    Resolver::new(&config.dns.nameservers).map_err(dns01::Error::from)?;
                let site = dns01::site(&resolver, &name).await;
                let (at, zone) = site.map_err(dns01::Error::from)?;
                proofs.txt.push(Txt {
                    of: authorization.name.clone(),
                    at,
                    zone,
                    value: dns01::value(&challenge.key_authorization),
                    solver: solver.clone(),
                });
            }
        }
    }
    Ok(proofs)
}

/// The solver of a name, where it is DNS-01; without any solver in the config HTTP-01 is taken to be routed to us.
fn solver<'a>(
    config: &'a Config,
    authorization: &Authorization,
) -> Result<Option<(Name, &'a config::Dns01)>, Failure> {
    let name: Name = authorization.name.parse().map_err(|_| {
        Failure::NoSolver(format!(
            "{}: not a name that a CA proves",
            authorization.name
        ))
    })?;
    if config.solvers.is_empty() {
        return Ok(None);
    }
    match config.solver(&name).map(|solver| &solver.challenge) {
        Some(config::Challenge::Http01(_)) => Ok(None),
        Some(config::Challenge::Dns01(dns01)) => Ok(Some((name, dns01))),
        None => Err(Failure::NoSolver(format!(
            "no solver of the config can prove {name}: a wildcard needs dns01, an address http01 without zones"
        ))),
    }
}

fn offered<'a>(
    authorization: &'a Authorization,
    kind: &ChallengeType,
) -> Result<&'a acme::Challenge, Failure> {
    let mut offered = authorization.challenges.iter();
    offered
        .find(|challenge| challenge.kind == *kind)
        .ok_or_else(|| {
            let name = &authorization.name;
            Failure::NoSolver(match kind {
                ChallengeType::Dns01 => format!("the CA offers no DNS-01 for {name}"),
                _ => {
                    format!("the CA offers no HTTP-01 for {name}: a wildcard needs a dns01 solver")
                }
            })
        })
}

/// Puts the proofs in place and waits until the CA has seen them.
pub(super) async fn prove(
    context: &Context,
    key: &Key,
    record: &Record,
    order: &mut acme::Order,
    wait: Wait,
) -> Result<(), Failure> {
    let name = records::record_name(key);
    known::answer(context, &name, record.challenges.clone());
    let authorizations = order.authorizations().await?;
    let is_pending = |txt: &&Txt| authorizations.iter().any(|it| it.name == txt.of);
    let pending: Vec<&Txt> = record.order.txt.iter().filter(is_pending).collect();
    place(context, key, &pending, UnixTime(record.order.created), wait).await?;
    for authorization in &authorizations {
        let by_dns = pending.iter().any(|txt| txt.of == authorization.name);
        let kind = if by_dns {
            ChallengeType::Dns01
        } else {
            ChallengeType::Http01
        };
        order.set_ready(offered(authorization, &kind)?).await?;
    }
    Ok(order.wait_validated(Instant::now() + VALIDATION).await?)
}

/// Sets the TXT records and waits until all servers of their zones have them.
async fn place(
    context: &Context,
    key: &Key,
    records: &[&Txt],
    since: UnixTime,
    wait: Wait,
) -> Result<(), Failure> {
    if records.is_empty() {
        return Ok(());
    }
    stream::iter(records.iter().map(Ok))
        .try_for_each_concurrent(CHANGES, |txt| context.dns01.add(txt))
        .await?;
    let resolver = Resolver::new(&context.config().dns.nameservers).map_err(dns01::Error::from)?;
    let started = Instant::now();
    let seen = records.iter().map(|txt| {
        let patience = match wait {
            Wait::Briefly => PATIENCE.min(txt.solver.propagation.timeout),
            Wait::ToTheEnd => txt.solver.propagation.timeout,
        };
        dns01::seen(&resolver, txt, started + patience)
    });
    match try_join_all(seen).await {
        Ok(_) => {
            tracing::info!(secret = %key, records = records.len(), "the TXT records are seen everywhere");
            Ok(())
        }
        Err(error @ dns01::Error::NotSeen { .. }) => {
            let timeouts = records.iter().map(|txt| txt.solver.propagation.timeout);
            let end = since + timeouts.max().unwrap_or_default();
            match wait {
                Wait::Briefly if UnixTime::now() < end => Err(Failure::Waiting(error)),
                _ => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes away what [`prove`] has put in place outside of the record. What cannot be taken away is told to the reader.
pub(super) async fn clear(context: &Context, record: &Record) {
    let subject = record.order.subject();
    stream::iter(&record.order.txt)
        .for_each_concurrent(CHANGES, |txt| {
            let subject = &subject;
            async move {
                let Err(error) = context.dns01.remove(txt).await else {
                    return;
                };
                let note = format!("{error}; remove it by hand: TXT {} {}", txt.at, txt.value);
                tracing::warn!(secret = %subject, note, "a TXT record is left behind");
                let uid = &record.order.uid;
                let (severity, reason) = (Severity::Warning, "TxtRecordLeft");
                context.events.secret(subject, uid, severity, reason, &note);
            }
        })
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_chooses_the_challenge() {
        let yaml = "issuers: {}\nsolvers: [{zones: [a.example], dns01: {provider: bunny}}, {zones: [b.example], http01: {route: shared}}]";
        let config = Config::parse(yaml).unwrap();
        let authorization = |name: &str| Authorization {
            url: String::new(),
            name: name.to_owned(),
            challenges: Vec::new(),
        };
        let by_dns = |config: &Config, name: &str| {
            solver(config, &authorization(name)).map(|it| it.is_some())
        };
        assert!(by_dns(&config, "*.a.example").unwrap());
        assert!(!by_dns(&config, "b.example").unwrap());
        for name in ["*.b.example", "c.example", "10.0.0.1"] {
            let error = by_dns(&config, name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("dns01"), "{error}");
        }
        let none = Config::parse("issuers: {}").unwrap();
        assert!(!by_dns(&none, "*.b.example").unwrap());
        let unoffered = authorization("*.b.example");
        let error = offered(&unoffered, &ChallengeType::Http01).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("dns01"), "{error}");
    }
}

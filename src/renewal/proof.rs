//! How the names of an order are proven: by which solver each, what the order record must know of it, and the way from
//! a pending order to one whose names the CA has seen proof of.
//!
//! What is put in place is in the record before it is put there, and is taken away before the record is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, sleep};

use super::failure::Failure;
use super::known;
use super::persist;
use crate::acme::{self, Authorization, ChallengeType};
use crate::cluster;
use crate::cluster::events::Reason;
use crate::cluster::records::{self, Record, Txt};
use crate::cluster::routes::{self, Routed, Standing};
use crate::config::{self, Config, Http01, PathType, Route};
use crate::context::Context;
use crate::dns::Resolver;
use crate::index::Key;
use crate::name::Name;
use crate::reach::Nearby;
use crate::solver::http01::PATH;
use crate::solver::{dns01, route};
use crate::time::UnixTime;

/// A CA validates in seconds; one that has not after this is asked again later, and the order stays.
const VALIDATION: Duration = Duration::from_secs(5 * 60);
/// So long a renewal keeps its place while it waits for a zone's servers; then it goes on from the record, later.
const PATIENCE: Duration = Duration::from_secs(30);
/// Load balancers of some clouds take minutes until a new route is in force.
const ROUTE: Duration = Duration::from_secs(10 * 60);
/// Between two looks at a route.
const LOOK: Duration = Duration::from_secs(1);
/// Hosts of one order that are looked at at the same time.
const LOOKS: usize = 16;
/// TXT records of one order that are changed at the same time; hosts limit requests to a few a second.
const CHANGES: usize = 4;

/// What an order record holds of the proofs.
#[derive(Default)]
pub(super) struct Proofs {
    /// Key authorizations by HTTP-01 token.
    pub(super) challenges: BTreeMap<String, String>,
    /// TXT records for DNS-01.
    pub(super) txt: Vec<Txt>,
    /// Ingresses and HTTPRoutes for HTTP-01.
    pub(super) routes: Vec<Routed>,
}

/// Who proves a name.
enum Way<'a> {
    /// HTTP-01; without any solver in the config the route is the user's affair alone.
    Http(Option<&'a Http01>),
    /// DNS-01.
    Dns(&'a config::Dns01),
    /// dns-persist-01: the user has, once for all orders.
    Persistent,
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
        let name = name_of(authorization)?;
        match way(&config, &name)? {
            Way::Http(solver) => {
                let challenge = offered(authorization, &ChallengeType::Http01)?;
                let (token, proof) = (&challenge.token, &challenge.key_authorization);
                proofs.challenges.insert(token.clone(), proof.clone());
                let routed = solver.and_then(|solver| routed(&name, token, solver));
                proofs.routes.extend(routed);
            }
            Way::Dns(solver) => {
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
            Way::Persistent => drop(offered(authorization, &acme::dns_persist_01())?),
        }
    }
    Ok(proofs)
}

pub(super) fn name_of(authorization: &Authorization) -> Result<Name, Failure> {
    let name = &authorization.name;
    let unknown = |_| Failure::NoSolver(format!("{name}: not a name that cert-renew can prove"));
    name.parse().map_err(unknown)
}

fn way<'a>(config: &'a Config, name: &Name) -> Result<Way<'a>, Failure> {
    if config.solvers.is_empty() {
        return Ok(Way::Http(None));
    }
    match config.solver(name).map(|solver| &solver.challenge) {
        Some(config::Challenge::Http01(http01)) => Ok(Way::Http(Some(http01))),
        Some(config::Challenge::Dns01(dns01)) => Ok(Way::Dns(dns01)),
        Some(config::Challenge::DnsPersist01(_)) => Ok(Way::Persistent),
        None => Err(Failure::NoSolver(format!(
            "no solver of the config can prove {name}: a wildcard needs dns01, an address http01 without zones"
        ))),
    }
}

/// The object that sends a host's challenges to us. There is none for an address: routes go by host names.
fn routed(name: &Name, token: &str, solver: &Http01) -> Option<Routed> {
    let path = match &solver.route {
        Route::Shared => return None,
        Route::Ingress { path_type, .. } if *path_type != PathType::Prefix => {
            format!("{PATH}{token}")
        }
        _ => PATH.trim_end_matches('/').to_owned(),
    };
    match name {
        Name::Dns(host) => Some(Routed {
            host: host.to_string(),
            path,
            solver: solver.clone(),
        }),
        Name::Ip(_) => None,
    }
}

pub(super) fn offered<'a>(
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
                ChallengeType::Http01 => {
                    format!("the CA offers no HTTP-01 for {name}: a wildcard needs a dns01 solver")
                }
                _ => format!("the CA offers no dns-persist-01 for {name}: it is a draft"),
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
    let by = |kind: ChallengeType| {
        let all = authorizations.iter();
        all.filter(move |it| chosen(record, it) == kind)
    };
    // The user's part first: nothing is put in place before it is done.
    persist::stand(context, order, by(acme::dns_persist_01())).await?;
    let is_pending = |txt: &&Txt| authorizations.iter().any(|it| it.name == txt.of);
    let pending: Vec<&Txt> = record.order.txt.iter().filter(is_pending).collect();
    let since = UnixTime(record.order.created);
    let manner = (order.nearby(), wait);
    place(context, key, &pending, since, manner).await?;
    open(context, key, record, by(ChallengeType::Http01), manner).await?;
    for authorization in &authorizations {
        let challenge = offered(authorization, &chosen(record, authorization))?;
        order.set_ready(challenge).await?;
    }
    Ok(order.wait_validated(Instant::now() + VALIDATION).await?)
}

/// The challenge that the record was made for: what was put in place for it is in there, and for dns-persist-01 that is
/// nothing.
fn chosen(record: &Record, authorization: &Authorization) -> ChallengeType {
    let is_answered = |it: &acme::Challenge| {
        it.kind == ChallengeType::Http01 && record.challenges.contains_key(&it.token)
    };
    let mut records = record.order.txt.iter();
    if records.any(|txt| txt.of == authorization.name) {
        ChallengeType::Dns01
    } else if authorization.challenges.iter().any(is_answered) {
        ChallengeType::Http01
    } else {
        acme::dns_persist_01()
    }
}

/// Sets the TXT records and waits until all servers of their zones have them.
async fn place(
    context: &Context,
    key: &Key,
    records: &[&Txt],
    since: UnixTime,
    (nearby, wait): (Nearby, Wait),
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
        dns01::seen(nearby, &resolver, txt, started + patience)
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
                Wait::Briefly if UnixTime::now() < end => Err(waiting(error.into())),
                _ => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

fn waiting(failure: Failure) -> Failure {
    Failure::Waiting(Box::new(failure))
}

/// Makes the routes, and waits until a request for each token would reach us.
async fn open<'a>(
    context: &Context,
    key: &Key,
    record: &Record,
    authorizations: impl Iterator<Item = &'a Authorization>,
    (nearby, wait): (Nearby, Wait),
) -> Result<(), Failure> {
    let config = context.config();
    for routed in &record.order.routes {
        context.routes.hold(&record.uid, &routed.name());
        routes::create(&context.client, &context.namespace, routed).await?;
    }
    let mut checks = Vec::new();
    for authorization in authorizations {
        let name = name_of(authorization)?;
        let Ok(Way::Http(Some(Http01 {
            self_check: true, ..
        }))) = way(&config, &name)
        else {
            continue;
        };
        let challenge = offered(authorization, &ChallengeType::Http01)?;
        checks.push((name.to_string(), challenge));
    }
    let started = Instant::now();
    let end = UnixTime(record.order.created) + ROUTE;
    let patience = match wait {
        Wait::Briefly => PATIENCE,
        Wait::ToTheEnd => ROUTE,
    };
    loop {
        for routed in &record.order.routes {
            let standing = routes::standing(&context.client, &context.namespace, routed);
            if let Standing::Refused(why) = standing.await? {
                return Err(Failure::RouteRefused(routed.host.clone(), why));
            }
        }
        let looks = stream::iter(checks.iter().map(Ok));
        let looked = looks.try_for_each_concurrent(LOOKS, |(host, challenge)| {
            let (token, proof) = (&challenge.token, &challenge.key_authorization);
            route::reaches_us(nearby, &config.dns.nameservers, host, token, proof)
        });
        let Err(error) = looked.await else { break };
        if started.elapsed() + LOOK > patience {
            let failure = Failure::Route(error);
            return match wait {
                Wait::Briefly if UnixTime::now() < end => Err(waiting(failure)),
                _ => Err(failure),
            };
        }
        sleep(LOOK).await;
    }
    if !checks.is_empty() {
        tracing::info!(secret = %key, hosts = checks.len(), "the route of each host leads to us");
    }
    Ok(())
}

/// Deletes the routes of orders that nobody knows any more.
pub async fn sweep(context: &Context) {
    let config = context.config();
    let kinds: Vec<&Route> = config
        .solvers
        .iter()
        .filter_map(|solver| match &solver.challenge {
            config::Challenge::Http01(http01) => Some(&http01.route),
            config::Challenge::Dns01(_) | config::Challenge::DnsPersist01(_) => None,
        })
        .filter(|route| **route != Route::Shared)
        .collect();
    if kinds.is_empty() {
        return;
    }
    let swept = async {
        // The routes first: each is made after its record.
        let (client, namespace) = (&context.client, &context.namespace);
        let standing = routes::list(client, namespace, &kinds).await?;
        let (records, _) = records::list(client, namespace).await?;
        let needed = records.iter().flat_map(|record| &record.order.routes);
        let needed: BTreeSet<String> = needed.map(Routed::name).collect();
        let mut swept = 0;
        for route in standing.iter().filter(|it| !needed.contains(it.name())) {
            route.delete(client, namespace).await?;
            swept += 1;
        }
        Ok::<_, cluster::Error>(swept)
    };
    match swept.await {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "routes of former orders are removed"),
        Err(error) => tracing::warn!(
            error = %cluster::chain(&error),
            "routes of former orders are not looked for; is the add-on role of the route installed?"
        ),
    }
}

/// Takes away what [`prove`] has put in place outside of the record. What cannot be taken away is told to the reader.
pub(super) async fn clear(context: &Context, record: &Record) {
    let subject = record.order.subject();
    for routed in &record.order.routes {
        if !context.routes.release(&record.uid, &routed.name()) {
            continue;
        }
        if let Err(error) = routes::delete(&context.client, &context.namespace, routed).await {
            let error = cluster::chain(&error);
            tracing::warn!(secret = %subject, error, "a route is left until the next start");
        }
    }
    stream::iter(&record.order.txt)
        .for_each_concurrent(CHANGES, |txt| {
            let subject = &subject;
            async move {
                let error = match context.dns01.remove(txt).await {
                    // The record stays too, and with it the next leader removes it.
                    Ok(()) | Err(dns01::Error::Closed(_)) => return,
                    Err(error) => error,
                };
                let note = format!("{error}; remove it by hand: TXT {} {}", txt.at, txt.value);
                tracing::warn!(secret = %subject, note, "a TXT record is left behind");
                let uid = &record.order.uid;
                context
                    .events
                    .secret(subject, uid, Reason::TxtRecordLeft, &note);
            }
        })
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_chooses_the_challenge() {
        let yaml = "issuers: {}\nsolvers: [{zones: [a.example], dns01: {provider: bunny}}, {zones: [b.example], http01: {route: shared}}, {zones: [d.example], dnsPersist01: {experimental: true}}]";
        let config = Config::parse(yaml).unwrap();
        let by_dns = |config: &Config, name: &str| {
            way(config, &name.parse().unwrap()).map(|way| matches!(way, Way::Dns(_)))
        };
        assert!(by_dns(&config, "*.a.example").unwrap());
        assert!(!by_dns(&config, "b.example").unwrap());
        for name in ["*.b.example", "c.example", "10.0.0.1"] {
            let error = by_dns(&config, name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("dns01"), "{error}");
        }
        let way_of = |name: &str| way(&config, &name.parse().unwrap());
        assert!(matches!(way_of("*.d.example"), Ok(Way::Persistent)));
        let none = Config::parse("issuers: {}").unwrap();
        assert!(!by_dns(&none, "*.b.example").unwrap());
        let authorization = |name: &str| Authorization {
            url: String::new(),
            name: name.to_owned(),
            challenges: Vec::new(),
        };
        let unoffered = authorization("*.b.example");
        let error = offered(&unoffered, &ChallengeType::Http01).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("dns01"), "{error}");
        let error = offered(&unoffered, &acme::dns_persist_01()).unwrap_err();
        assert!(error.to_string().contains("no dns-persist-01"), "{error}");
    }
}

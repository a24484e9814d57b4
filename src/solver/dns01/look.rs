//! Looks at the servers of a zone, until all that answer have the TXT record.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::{Error, LONGEST_PAUSE};
use crate::cluster::order_records::Txt;
use crate::net::dns::{self, Authority, Resolver, Sight};
use crate::net::egress::Nearby;

/// Shortest time between two looks at the zone's servers; it is short for the sake of quick ones.
const FIRST_LOOK: Duration = Duration::from_millis(500);
/// Longest wait for servers that do not answer once all others have the record: a dead one must not delay everything,
/// and a slow one may still answer.
const SILENCE: Duration = Duration::from_secs(20);
/// Most sockets that one order has for its looks at the same time: each look has one for each server of the zone, and a
/// server that does not answer holds it for ten seconds. Of a zone with four servers, 64 records are looked at at a time.
const SOCKETS: u32 = 256;

/// Places for the looks at the records of one order. A look has one for each server while it asks, and none while it waits
/// to ask again.
#[derive(Debug)]
pub struct LookPlaces(Semaphore);

impl Default for LookPlaces {
    fn default() -> Self {
        Self(Semaphore::new(SOCKETS as usize))
    }
}

/// Waits until `deadline` for every server of the zone to have the record, or every resolver where the servers cannot
/// be asked; `nearby` is where the CA is, which asks the same servers. Servers that do not answer are skipped after
/// a while, as long as another one has it. All records of an order share `places`; one that has waited for the first
/// place until after `deadline` is looked at once.
///
/// # Errors
/// When some do not have it by then, or the servers cannot be found.
pub async fn seen(
    (nearby, places): (Nearby, &LookPlaces),
    resolver: &Resolver,
    txt: &Txt,
    deadline: Instant,
) -> Result<(), Error> {
    let propagation = &txt.solver.propagation;
    if propagation.check {
        // It is never closed.
        let held = places.0.acquire().await;
        let started = Instant::now();
        let silence = SILENCE.min(deadline.duration_since(started) / 2);
        let mut authorities = authorities(nearby, resolver, txt).await?;
        drop(held);
        let at = dns::name(&txt.at)?;
        let mut pause = FIRST_LOOK;
        let mut has_any = false;
        loop {
            let sockets = u32::try_from(authorities.len()).unwrap_or(SOCKETS);
            let held = places.0.acquire_many(sockets.clamp(1, SOCKETS)).await;
            let found = dns::look(&authorities, &at, &txt.value).await;
            drop(held);
            let (mut lacking, mut silent) = (Vec::new(), Vec::new());
            for (name, sight) in found {
                match sight {
                    Sight::Has => has_any = true,
                    Sight::Lacks(what) => lacking.push((name, what)),
                    Sight::Silent(what) => silent.push((name, what)),
                }
            }
            if lacking.is_empty() && silent.is_empty() {
                break;
            }
            if lacking.is_empty() && has_any && started.elapsed() >= silence {
                let servers: Vec<&str> = silent.iter().map(|(name, _)| &**name).collect();
                let servers = servers.join(", ");
                tracing::warn!(
                    at = txt.at,
                    zone = txt.zone,
                    servers,
                    "servers of the zone do not answer for it and are skipped: all others have the TXT record"
                );
                break;
            }
            if Instant::now() + pause > deadline {
                return Err(Error::NotSeen {
                    at: txt.at.clone(),
                    lacking,
                    silent,
                });
            }
            let is_left = |name: &str| {
                let mut left = lacking.iter().chain(&silent);
                left.any(|(left, _)| *left == name)
            };
            authorities.retain(|it| is_left(&it.name));
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
    sleep(propagation.wait).await;
    Ok(())
}

/// Whether any server of the zone has the record.
///
/// # Errors
/// When none of them answers, or they cannot be found.
pub(super) async fn stands(nearby: Nearby, resolver: &Resolver, txt: &Txt) -> Result<bool, Error> {
    let authorities = authorities(nearby, resolver, txt).await?;
    let found = dns::look(&authorities, &dns::name(&txt.at)?, &txt.value).await;
    if { found.iter() }.all(|(_, sight)| matches!(sight, Sight::Silent(_))) {
        return Err(Error::NoAuthority(txt.zone.clone()));
    }
    Ok(found.iter().any(|(_, sight)| *sight == Sight::Has))
}

async fn authorities(
    nearby: Nearby,
    resolver: &Resolver,
    txt: &Txt,
) -> Result<Vec<Authority>, Error> {
    let named = &txt.solver.propagation.servers;
    if !named.is_empty() {
        return Ok(named.iter().copied().map(Authority::at).collect());
    }
    let found = resolver.authorities(nearby, &dns::name(&txt.zone)?).await?;
    if found.iter().all(|authority| authority.addresses.is_empty()) {
        return Err(Error::NoAuthority(txt.zone.clone()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use cert_renew_core::config::{Dns01, Propagation};
    use futures::future::try_join_all;
    use tokio::net::UdpSocket;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_records_of_an_order_are_looked_at_by_a_bounded_number_of_sockets() {
        let mut silent = Vec::new();
        for _ in 0..4 {
            silent.push(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        }
        let servers = silent.iter().map(|it| it.local_addr().unwrap());
        let servers: Vec<_> = servers.collect();
        let record = |number: usize| Txt {
            of: format!("n{number}.example"),
            at: format!("_acme-challenge.n{number}.example"),
            zone: "example".into(),
            value: "proof".into(),
            solver: Dns01 {
                provider: "webhook".into(),
                credentials: None,
                settings: Default::default(),
                propagation: Propagation {
                    servers: servers.clone(),
                    ..Propagation::default()
                },
            },
        };
        let records: Vec<Txt> = (0..100).map(record).collect();
        let resolver = Resolver::new(&servers[..1]).unwrap();
        let (places, until) = (LookPlaces::default(), Instant::now() + SILENCE);
        let looks = records
            .iter()
            .map(|txt| seen((Nearby::Open, &places), &resolver, txt, until));
        // Sooner than any of them asks again.
        let looked = timeout(Duration::from_millis(200), try_join_all(looks)).await;
        assert!(looked.is_err(), "nothing is answered");
        // Sockets of two servers may have the same port.
        let mut asked = HashSet::new();
        for (server, socket) in silent.iter().enumerate() {
            let mut packet = [0; 512];
            while let Ok((_, from)) = socket.try_recv_from(&mut packet) {
                asked.insert((server, from));
            }
        }
        // Of a question that is sent again, both count.
        let most = usize::try_from(SOCKETS).unwrap();
        assert!((most..=2 * most).contains(&asked.len()), "{}", asked.len());
    }
}

//! Removes what was put in place for an order: after it, with it, and what a former run has left.

use std::collections::BTreeSet;

use cert_renew_core::config::{self, Route};
use cert_renew_core::text::error_chain;
use futures::stream::{self, StreamExt as _};

use crate::cluster;
use crate::cluster::challenge_routes::{self, Routed};
use crate::cluster::events::Reason;
use crate::cluster::order_records::{self, Record};
use crate::net::dns::ResolverSet;
use crate::net::egress::Nearby;
use crate::renewal::renewals::Renewals;
use crate::solver::dns01;

/// Most TXT records of one order that are changed at the same time; hosts limit requests to a few a second.
pub(in crate::renewal) const CHANGES: usize = 4;

impl Renewals {
    /// Deletes the routes of orders that no longer exist.
    pub async fn sweep(&self) {
        let config = self.shared.config();
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
            // List the routes first: each is created after its record.
            let (client, namespace) = (&self.shared.client, &self.shared.namespace);
            let standing = challenge_routes::list(client, namespace, &kinds).await?;
            let mut needed: BTreeSet<String> = BTreeSet::new();
            order_records::each(client, namespace, |_, record| {
                let routes = record.iter().flat_map(|record| &record.order.routes);
                needed.extend(routes.map(Routed::name));
            })
            .await?;
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
                error = %error_chain(&error),
                "routes of former orders are not looked for; is the add-on role of the route installed?"
            ),
        }
    }

    /// Removes a route, unless another order needs it.
    pub(in crate::renewal) async fn close(
        &self,
        record: &Record,
        routed: &Routed,
    ) -> Result<(), cluster::Error> {
        if !self.routes.release(&record.uid, &routed.name()) {
            return Ok(());
        }
        challenge_routes::delete(&self.shared.client, &self.shared.namespace, routed).await
    }

    /// Removes what was put in place for an order outside of its record, and reports what cannot be removed.
    pub(in crate::renewal) async fn clear(&self, record: &Record) {
        let subject = record.order.subject();
        for routed in &record.order.routes {
            if let Err(error) = self.close(record, routed).await {
                let error = error_chain(&error);
                tracing::warn!(secret = %subject, error, "a route is left until the next start");
            }
        }
        let directory = record.order.directory.as_deref().unwrap_or_default();
        let (config, resolvers) = (self.shared.config(), ResolverSet::default());
        let nearby = Nearby::of(directory);
        stream::iter(&record.order.txt)
            .for_each_concurrent(CHANGES, |txt| {
                let subject = &subject;
                let resolver = resolvers.get(config.resolvers(txt.of.parse().ok().as_ref()));
                async move {
                    let asked = (resolver.as_ref().ok(), nearby);
                    let error = match self.dns01.remove(txt, asked).await {
                        // The record stays too, and the next leader removes both.
                        Ok(()) | Err(dns01::Error::Closed(_)) => return,
                        Err(error) => error,
                    };
                    let note = format!("{error}; remove it by hand: TXT {} {}", txt.at, txt.value);
                    tracing::warn!(secret = %subject, note, "a TXT record is left behind");
                    let uid = &record.order.uid;
                    self.shared
                        .events
                        .secret(subject, uid, Reason::TxtRecordLeft, &note);
                }
            })
            .await;
    }
}

//! Gives up an order and its record.

use std::time::Duration;

use cert_renew_core::schedule::rate_limits;
use tokio::time::timeout;

use crate::acme::{self, OrderStatus};
use crate::cluster;
use crate::cluster::order_records::{self, Record};
use crate::renewal::renewals::{Renewal, Renewals};

/// Longest time spent on returning an order to its CA: what is not returned expires by itself.
const GIVE_BACK: Duration = Duration::from_secs(30);

/// Returns an unwanted order to its CA, so that it does not count as pending.
pub(in crate::renewal) async fn give_back(order: &acme::Order) {
    if order.status() == OrderStatus::Pending
        && let Err(error) = order.abandon().await
    {
        tracing::debug!(order = order.url(), %error, "its authorizations are left to expire");
    }
}

impl Renewals {
    /// Gives up an order that is no longer wanted. Pending authorizations are returned to the CA where it can be asked,
    /// a certificate that was issued for it is counted, and the record is removed with all that was put in place.
    pub(in crate::renewal) async fn give_up(&self, record: &Record) -> Result<(), cluster::Error> {
        let given_back = async {
            let config = self.shared.config();
            let issuer = config.issuer(&record.order.issuer)?;
            if { record.order.directory.as_ref() }.is_some_and(|it| *it != issuer.directory) {
                return None;
            }
            let client = self.issuers.ready(&record.order.issuer, issuer).await;
            let order = client.ok()?.resume(&record.order.url, &[]).await.ok()?;
            give_back(&order).await;
            Some(order.status())
        };
        match timeout(GIVE_BACK, given_back).await.ok().flatten() {
            Some(OrderStatus::Valid | OrderStatus::Processing) => {
                let (key, order) = (record.order.subject(), &record.order);
                let account = rate_limits::account_of(&order.issuer, &order.names);
                self.of(&key).count_wasted(account, record, None).await;
            }
            Some(_) => {}
            None => tracing::debug!(
                order = record.order.url,
                "its authorizations are left to expire"
            ),
        }
        self.remove(record).await
    }
}

impl Renewals {
    /// Removes what was put in place for the order, then its record.
    pub(in crate::renewal) async fn remove(&self, record: &Record) -> Result<(), cluster::Error> {
        self.clear(record).await;
        let subject = record.order.subject();
        let name = &record.name;
        order_records::delete(
            &self.shared.client,
            &self.shared.namespace,
            name,
            &record.uid,
        )
        .await?;
        self.challenges.remove(name);
        self.running_orders.remove(&subject);
        Ok(())
    }
}

impl Renewal<'_> {
    /// Removes a record that this version cannot read: the next order replaces it.
    pub(in crate::renewal) async fn replace_record(
        self,
        (name, uid): (&str, &str),
    ) -> Result<(), cluster::Error> {
        tracing::warn!(
            secret = %self.key, record = name,
            "the record of an order cannot be read, as if another version had written it; it is removed and the order made \
             again. What it has put into DNS is left there"
        );
        order_records::delete(&self.shared.client, &self.shared.namespace, name, uid).await?;
        self.all.challenges.remove(name);
        self.all.running_orders.remove(self.key);
        Ok(())
    }
}

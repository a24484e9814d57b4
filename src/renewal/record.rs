//! Gives up an order and its record.

use std::time::Duration;

use cert_renew_core::schedule::rate_limits;
use cert_renew_core::secret::SecretRef;
use tokio::time::timeout;

use super::{cleanup, write};
use crate::acme::{self, OrderStatus};
use crate::cluster;
use crate::cluster::order_records::{self, Record};
use crate::context::Context;

/// Longest time spent on returning an order to its CA: what is not returned expires by itself.
const GIVE_BACK: Duration = Duration::from_secs(30);

/// Returns an unwanted order to its CA, so that it does not count as pending.
pub(super) async fn give_back(order: &acme::Order) {
    if order.status() == OrderStatus::Pending
        && let Err(error) = order.abandon().await
    {
        tracing::debug!(order = order.url(), %error, "its authorizations are left to expire");
    }
}

/// Gives up an order that is no longer wanted. Pending authorizations are returned to the CA where it can be asked, a
/// certificate that was issued for it is counted, and the record is removed with all that was put in place.
pub(super) async fn give_up(context: &Context, record: &Record) -> Result<(), cluster::Error> {
    let given_back = async {
        let config = context.config();
        let issuer = config.issuer(&record.order.issuer)?;
        if { record.order.directory.as_ref() }.is_some_and(|it| *it != issuer.directory) {
            return None;
        }
        let client = context.issuers.ready(&record.order.issuer, issuer).await;
        let order = client.ok()?.resume(&record.order.url, &[]).await.ok()?;
        give_back(&order).await;
        Some(order.status())
    };
    match timeout(GIVE_BACK, given_back).await.ok().flatten() {
        Some(OrderStatus::Valid | OrderStatus::Processing) => {
            let (key, order) = (record.order.subject(), &record.order);
            let account = rate_limits::account_of(&order.issuer, &order.names);
            write::count_wasted(context, &key, account, record, None).await;
        }
        Some(_) => {}
        None => tracing::debug!(
            order = record.order.url,
            "its authorizations are left to expire"
        ),
    }
    remove(context, record).await
}

/// Removes what was put in place for the order, then its record.
pub(super) async fn remove(context: &Context, record: &Record) -> Result<(), cluster::Error> {
    cleanup::clear(context, record).await;
    let subject = record.order.subject();
    let name = &record.name;
    order_records::delete(&context.client, &context.namespace, name, &record.uid).await?;
    context.challenges.remove(name);
    context.known.remove(&subject);
    Ok(())
}

/// Removes a record that this version cannot read: the next order replaces it.
pub(super) async fn replace(
    context: &Context,
    key: &SecretRef,
    (name, uid): (&str, &str),
) -> Result<(), cluster::Error> {
    tracing::warn!(
        secret = %key, record = name,
        "the record of an order cannot be read, as if another version had written it; it is removed and the order made \
         again. What it has put into DNS is left there"
    );
    order_records::delete(&context.client, &context.namespace, name, uid).await?;
    context.challenges.remove(name);
    context.known.remove(key);
    Ok(())
}

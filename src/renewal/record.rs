//! An order that is in hand: how long its steps take, and how it and its record are given up.

use std::time::Duration;

use tokio::time::Instant;

use super::proof;
use crate::acme::{self, OrderStatus};
use crate::cluster;
use crate::cluster::records::{self, Record};
use crate::context::Context;
use crate::metrics::RenewalStep;
use crate::time::UnixTime;

/// Notes how long a step took. A proof that takes several attempts counts from the order on: DNS may take an hour.
pub(super) fn took(context: &Context, record: &Record, step: RenewalStep, started: Instant) {
    let mut took = started.elapsed();
    if step == RenewalStep::Prove {
        // The record knows whole seconds: the one that may be too much is taken off.
        let since = UnixTime::now().since(UnixTime(record.order.created));
        took = took.max(since.saturating_sub(Duration::from_secs(1)));
    }
    context
        .metrics
        .renewal_step_took(&record.order.issuer, step, took);
}

/// Lets the CA forget an order that nobody will finish, so that it does not count as pending.
pub(super) async fn give_back(order: &acme::Order) {
    if order.status() == OrderStatus::Pending
        && let Err(error) = order.abandon().await
    {
        tracing::debug!(order = order.url(), %error, "its authorizations are left to expire");
    }
}

/// Takes away what was put in place for the order, then its record.
pub(super) async fn remove(context: &Context, record: &Record) -> Result<(), cluster::Error> {
    proof::clear(context, record).await;
    let subject = record.order.subject();
    let name = records::record_name(&subject);
    records::delete(&context.client, &context.namespace, &name, &record.uid).await?;
    context.challenges.remove(&name);
    context.known.remove(&subject);
    Ok(())
}

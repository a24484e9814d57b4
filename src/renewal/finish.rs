//! From the record of an order to the written Secret, whether the order was made a moment ago or by a former run.

use std::time::Duration;

use tokio::time::Instant;

use super::failure::Failure;
use super::fresh::Fresh;
use super::outcome::Outcome;
use super::proof::{self, Wait};
use super::record::{self, took};
use super::write;
use crate::acme::{self, OrderStatus, Preference};
use crate::cluster::records::Record;
use crate::config;
use crate::context::Context;
use crate::index::Key;
use crate::key::PrivateKey;
use crate::metrics::RenewalStep;
use crate::schedule::due::Reason;
use crate::secret::settings::KeyRotation;
use crate::time::UnixTime;

/// Some CAs take a minute from finalize to the certificate.
const ISSUE: Duration = Duration::from_secs(5 * 60);

/// Goes on with an order that a former run, or a former attempt, has begun.
pub(super) async fn resume(
    context: &Context,
    key: &Key,
    fresh: Fresh,
    record: Record,
) -> Result<Outcome, Failure> {
    let fresh = fresh.at(context, &record.order.issuer);
    let new_key = PrivateKey::from_pem(record.key.as_bytes());
    let written = match (&new_key, &fresh.assessment.leaf) {
        (Ok(new_key), Ok(leaf)) => *leaf.public_key == *new_key.public_key(),
        _ => false,
    };
    if written && fresh.assessment.settings.key_rotation == KeyRotation::Always {
        write::count_issue(context, key, &fresh, &record).await;
        record::remove(context, &record).await?;
        return Ok(Outcome::Tidied);
    }
    if new_key.is_err() || !fresh.still_wants(&record) {
        tracing::info!(secret = %key, order = record.order.url, "the order is given up: the Secret asks for something else");
        record::remove(context, &record).await?;
        return Ok(Outcome::Later(UnixTime::now(), None));
    }
    let ours = |error| Failure::from(error).about(&fresh);
    let client = context
        .issuers
        .ready(&fresh.issuer_name, &fresh.issuer)
        .await
        .map_err(ours)?;
    let order = match client.resume(&record.order.url).await {
        Ok(order) => order,
        Err(error) => {
            if error.is_gone() {
                record::remove(context, &record).await?;
            }
            return Err(Failure::from(error).about(&fresh));
        }
    };
    let _proving = context
        .validations
        .join(&fresh.issuer_name, &record.order.names);
    let (issuer, url) = (&fresh.issuer_name, &record.order.url);
    tracing::info!(
        secret = %key, step = "wait", %issuer, order = url, status = ?order.status(), "the order is taken up again"
    );
    let reason = fresh
        .assessment
        .renewal
        .map_or(Reason::Lifetime, |due| due.reason);
    proceed(context, key, fresh, record, order, reason).await
}

/// From the record to the written Secret. When it cannot succeed any more, the record goes; else it stays for a retry.
pub(super) async fn proceed(
    context: &Context,
    key: &Key,
    fresh: Fresh,
    record: Record,
    mut order: acme::Order,
    reason: Reason,
) -> Result<Outcome, Failure> {
    match finish(context, key, &record, &mut order, reason).await {
        Ok(outcome) => {
            record::remove(context, &record).await?;
            Ok(outcome)
        }
        Err(failure) => {
            if failure.ends_order(&order) {
                record::give_back(&order).await;
                record::remove(context, &record).await?;
            }
            Err(failure.about(&fresh).in_order(&record.order.url))
        }
    }
}

async fn finish(
    context: &Context,
    key: &Key,
    record: &Record,
    order: &mut acme::Order,
    reason: Reason,
) -> Result<Outcome, Failure> {
    let (issuer, url) = (&record.order.issuer, &record.order.url);
    let mut started = Instant::now();
    if order.status() == OrderStatus::Pending {
        proof::prove(context, key, record, order, Wait::Briefly).await?;
        took(context, record, RenewalStep::Prove, started);
        tracing::info!(secret = %key, step = "prove", %issuer, order = url, "validated");
    }
    if order.status() == OrderStatus::Ready {
        let now = UnixTime::now();
        let wanted = Fresh::read(context, key, now)
            .await?
            .is_some_and(|fresh| fresh.at(context, &record.order.issuer).still_wants(record));
        if !wanted {
            return Err(Failure::Unwanted);
        }
        let new_key = PrivateKey::from_pem(record.key.as_bytes())?;
        started = Instant::now();
        order.finalize(&new_key.csr(&record.order.names)?).await?;
    }
    if order.status() != OrderStatus::Valid {
        order.wait_issued(Instant::now() + ISSUE).await?;
        took(context, record, RenewalStep::Finalize, started);
        tracing::info!(secret = %key, step = "finalize", %issuer, order = url, "issued");
    }
    let config = context.config();
    let chain = config
        .issuer(&record.order.issuer)
        .and_then(|issuer| issuer.chain.as_ref());
    let preference = match chain {
        None => Preference::Default,
        Some(config::Chain::Root(name)) => Preference::Root(name.clone()),
        Some(config::Chain::Shortest) => Preference::Shortest,
    };
    started = Instant::now();
    let pem = order.certificate(&preference).await?;
    took(context, record, RenewalStep::Download, started);
    let written = write::write(context, key, record, &pem, reason).await;
    if matches!(written, Err(Failure::Unwanted)) {
        // The CA counts what nobody wants any more.
        write::count_unwanted(context, key, record).await;
    }
    written
}

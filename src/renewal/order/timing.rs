//! How long each step of a renewal took.

use std::time::Duration;

use cert_renew_core::time::UnixTime;
use tokio::time::Instant;

use crate::cluster::order_records::Record;
use crate::telemetry::metrics::{Metrics, RenewalStep};

/// Records how long a step took. A proof with several attempts counts from the order on: DNS may take an hour.
pub(in crate::renewal) fn took(
    metrics: &Metrics,
    record: &Record,
    step: RenewalStep,
    started: Instant,
) {
    let mut took = started.elapsed();
    if step == RenewalStep::Prove {
        // The record holds whole seconds: subtract the one that may be too much.
        let since = UnixTime::now().since(UnixTime(record.order.created));
        took = took.max(since.saturating_sub(Duration::from_secs(1)));
    }
    metrics.renewal_step_took(&record.order.issuer, step, took);
}

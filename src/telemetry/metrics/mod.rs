//! The metrics for Prometheus.
//!
//! Two kinds of series: events, counted here as they happen, and state, read from the index at each scrape.
//! The second kind costs no memory between scrapes, however many certificates there are.
//! No label ever holds a serial number, a fingerprint or an error's text: a renewal makes no new series.
//! `docs/metrics.md` lists all of them; a test holds that page equal to what is rendered here.

pub mod certificates;
mod part;
pub mod process;
mod reviewed;

pub use part::Part;
pub use reviewed::Reviewed;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::index::{Index, Observed};
use cert_renew_core::secret::workload::Kind;
use cert_renew_core::time::UnixTime;
use prometheus::core::Collector;
use prometheus::{
    Error, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// Buckets in seconds: a renewal takes seconds where the CA validates at once, and an hour where DNS is slow.
const RENEWAL_SECONDS: &[f64] = &[
    1., 2., 5., 10., 20., 30., 60., 120., 300., 600., 1_800., 3_600.,
];
/// Buckets in seconds: a step of a renewal takes one answer of the CA, or as long as a wait for DNS.
const STEP_SECONDS: &[f64] = &[0.1, 0.5, 1., 2.5, 5., 15., 60., 300., 1_800.];
/// Buckets in seconds: a rollout takes as long as its pods need to become ready.
const ROLLOUT_SECONDS: &[f64] = &[1., 5., 15., 30., 60., 120., 300., 600., 1_800., 3_600.];
/// Buckets in seconds: a CA answers within a second; past ten seconds our own deadline is near.
const REQUEST_SECONDS: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 30.];

/// How a renewal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalResult {
    /// The new pair is in the Secret.
    Renewed,
    /// It is not, and will be tried again.
    Failed,
}

/// The steps of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalStep {
    /// From the account to the order record: newOrder and its authorizations.
    Order,
    /// From the order record to names that the CA has validated.
    Prove,
    /// From the certificate request to an order that the CA has issued.
    Finalize,
    /// The chain, or the chains to choose from.
    Download,
    /// The checks, the patch on the Secret, and the ledger.
    Write,
}

impl RenewalStep {
    fn as_str(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Prove => "prove",
            Self::Finalize => "finalize",
            Self::Download => "download",
            Self::Write => "write",
        }
    }
}

/// How the rollout of one workload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RolloutResult {
    /// All its pods have the new leaf.
    Rolled,
    /// All its pods were asked to reload, and did.
    Reloaded,
    /// It had the new leaf already.
    Unchanged,
    /// It did not become available in time, or serves another leaf.
    Failed,
}

/// All counters and gauges. Shared by all tasks; every method is cheap and never fails.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    renewals: IntCounterVec,
    renewal_seconds: HistogramVec,
    step_seconds: HistogramVec,
    rollouts: IntCounterVec,
    rollout_seconds: HistogramVec,
    verified: IntCounterVec,
    acme_requests: IntCounterVec,
    acme_request_seconds: HistogramVec,
    api_requests: IntCounterVec,
    watch_up: IntGauge,
    watch_restarts: IntCounter,
    passed_over: IntGaugeVec,
    unmanaged: IntGaugeVec,
    task_panics: IntCounterVec,
    loop_lag_seconds: Gauge,
    config_rejected: IntGauge,
    config_taken_over: IntGauge,
    paused: IntGauge,
    leader: IntGauge,
    limited_until: IntGaugeVec,
    info_polls: IntCounterVec,
    info_answered: IntGaugeVec,
    info_moved: IntCounterVec,
    leader_terms: IntCounter,
    token_reviews: IntCounterVec,
}

impl Metrics {
    /// Creates a registry of its own, all counters at zero.
    ///
    /// # Errors
    /// When Prometheus does not allow a name, or it is used twice: a fault of this file, found by its tests.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let into = &registry;
        let metrics = Self {
            renewals: counters(
                into,
                "cert_renew_renewals_total",
                "Renewals that ended, by issuer, result and class of error",
                &["issuer", "result", "class"],
            )?,
            renewal_seconds: histograms(
                into,
                "cert_renew_renewal_duration_seconds",
                "From the start of a renewal to the new pair in the Secret",
                &["issuer"],
                RENEWAL_SECONDS,
            )?,
            step_seconds: histograms(
                into,
                "cert_renew_renewal_step_duration_seconds",
                "How long each step of a renewal took that succeeded",
                &["issuer", "step"],
                STEP_SECONDS,
            )?,
            rollouts: counters(
                into,
                "cert_renew_rollouts_total",
                "Workloads that a rollout came to, by kind and result",
                &["kind", "result"],
            )?,
            rollout_seconds: histograms(
                into,
                "cert_renew_rollout_duration_seconds",
                "From the restart of a workload to the availability of all its pods",
                &["kind"],
                ROLLOUT_SECONDS,
            )?,
            verified: counters(
                into,
                "cert_renew_verified_pods_total",
                "Pods that were asked over TLS what they serve after a rollout, by what came of it",
                &["result"],
            )?,
            acme_requests: counters(
                into,
                "cert_renew_acme_requests_total",
                "Requests to the CA, by host, action and HTTP status (error: no answer)",
                &["host", "action", "status"],
            )?,
            acme_request_seconds: histograms(
                into,
                "cert_renew_acme_request_duration_seconds",
                "How long the CA took to answer",
                &["host", "action"],
                REQUEST_SECONDS,
            )?,
            api_requests: counters(
                into,
                "cert_renew_api_requests_total",
                "Requests to the API server, by verb, resource and HTTP status (error: no answer)",
                &["verb", "resource", "status"],
            )?,
            watch_up: gauge(
                into,
                "cert_renew_watch_up",
                "1 while every watch on Secrets is connected or caught up, except for namespaces that are passed over",
            )?,
            watch_restarts: registered(
                into,
                IntCounter::new(
                    "cert_renew_watch_restarts_total",
                    "Times that a watch on Secrets broke and was restarted",
                )?,
            )?,
            passed_over: gauges(
                into,
                "cert_renew_namespace_passed_over",
                "1 for a namespace whose Secrets cannot be listed or watched, so that nothing is done there (empty: all)",
                &["namespace"],
            )?,
            unmanaged: gauges(
                into,
                "cert_renew_unmanaged_annotated_secrets",
                "1 for each Secret that seems to be meant for cert-renew and is not managed, by why",
                &["namespace", "secret", "why"],
            )?,
            task_panics: counters(
                into,
                "cert_renew_task_panics_total",
                "Tasks that panicked and were begun again",
                &["task"],
            )?,
            loop_lag_seconds: registered(
                into,
                Gauge::new(
                    "cert_renew_loop_lag_seconds",
                    "How much later than it had planned the controller's loop turned last",
                )?,
            )?,
            config_rejected: gauge(
                into,
                "cert_renew_config_rejected",
                "1 while the config file on disk is invalid and the one before it is in use",
            )?,
            config_taken_over: gauge(
                into,
                "cert_renew_config_taken_over_timestamp_seconds",
                "When the config in force was loaded",
            )?,
            paused: gauge(
                into,
                "cert_renew_paused",
                "1 while the config pauses everything: nothing is renewed, written or restarted",
            )?,
            leader: gauge(
                into,
                "cert_renew_leader",
                "1 on the replica that renews and restarts",
            )?,
            limited_until: gauges(
                into,
                "cert_renew_issuer_limited_until_timestamp_seconds",
                "Until when the CA asked for no request; the past means that it may be asked",
                &["issuer"],
            )?,
            info_polls: counters(
                into,
                "cert_renew_renewal_info_polls_total",
                "Questions for renewal information (ARI) by issuer and result",
                &["issuer", "result"],
            )?,
            info_answered: gauges(
                into,
                "cert_renew_renewal_info_answered_timestamp_seconds",
                "When the CA last answered with a renewal window",
                &["issuer"],
            )?,
            info_moved: counters(
                into,
                "cert_renew_renewal_info_windows_moved_total",
                "Renewal windows that a CA moved after it had named them",
                &["issuer"],
            )?,
            leader_terms: registered(
                into,
                IntCounter::new(
                    "cert_renew_leader_terms_total",
                    "Times that this replica has become the leader",
                )?,
            )?,
            token_reviews: counters(
                into,
                "cert_renew_token_reviews_total",
                "Tokens that were shown to see the metrics or the page, by what came of their review",
                &["result"],
            )?,
            registry: registry.clone(),
        };
        registered(
            into,
            IntGauge::with_opts(
                Opts::new(
                    "cert_renew_build_info",
                    "Which version runs; the value is always 1",
                )
                .const_label("version", env!("CARGO_PKG_VERSION")),
            )?,
        )?
        .set(1);
        for part in Part::ALL {
            metrics
                .task_panics
                .with_label_values(&[part.as_str()])
                .inc_by(0);
        }
        for result in Reviewed::ALL {
            let labels = [result.as_str()];
            metrics.token_reviews.with_label_values(&labels).inc_by(0);
        }
        Ok(metrics)
    }

    /// Counts the end of a renewal. `class` is the stable name of the error's class, empty where there was none.
    pub fn renewal(&self, issuer: &str, result: RenewalResult, class: &str) {
        let result = match result {
            RenewalResult::Renewed => "renewed",
            RenewalResult::Failed => "failed",
        };
        self.renewals
            .with_label_values(&[issuer, result, class])
            .inc();
    }

    /// Records how long a renewal that succeeded took.
    pub fn renewal_took(&self, issuer: &str, took: Duration) {
        self.renewal_seconds
            .with_label_values(&[issuer])
            .observe(took.as_secs_f64());
    }

    /// Records how long a step of a renewal took.
    pub fn renewal_step_took(&self, issuer: &str, step: RenewalStep, took: Duration) {
        self.step_seconds
            .with_label_values(&[issuer, step.as_str()])
            .observe(took.as_secs_f64());
    }

    /// Counts the end of one workload's rollout.
    pub fn rollout(&self, kind: Kind, result: RolloutResult) {
        let result = match result {
            RolloutResult::Rolled => "rolled",
            RolloutResult::Reloaded => "reloaded",
            RolloutResult::Unchanged => "unchanged",
            RolloutResult::Failed => "failed",
        };
        self.rollouts
            .with_label_values(&[kind.as_str(), result])
            .inc();
    }

    /// Counts the pods of a verified rollout: how many serve the leaf, an earlier one, or an unknown one.
    pub fn verified(&self, served: usize, stale: usize, unknown: usize) {
        for (result, pods) in [("served", served), ("stale", stale), ("unknown", unknown)] {
            self.verified
                .with_label_values(&[result])
                .inc_by(u64::try_from(pods).unwrap_or(u64::MAX));
        }
    }

    /// Records how long a workload that was restarted took to become available.
    pub fn rollout_took(&self, kind: Kind, took: Duration) {
        self.rollout_seconds
            .with_label_values(&[kind.as_str()])
            .observe(took.as_secs_f64());
    }

    /// Counts a request to a CA; without `status` no answer came.
    /// Each `host` makes series: it is that of a directory of the config, or `other`.
    pub fn acme_request(&self, host: &str, action: &str, status: Option<u16>, took: Duration) {
        self.acme_requests
            .with_label_values(&[host, action, &status_text(status)])
            .inc();
        self.acme_request_seconds
            .with_label_values(&[host, action])
            .observe(took.as_secs_f64());
    }

    /// Counts a request to the API server; without `status` no answer came.
    pub fn api_request(&self, verb: &str, resource: &str, status: Option<u16>) {
        self.api_requests
            .with_label_values(&[verb, resource, &status_text(status)])
            .inc();
    }

    /// Sets whether every watch on Secrets is up.
    pub fn watch_up(&self, up: bool) {
        self.watch_up.set(up.into());
    }

    /// Whether every watch on Secrets is up.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.watch_up.get() == 1
    }

    /// Whether the config file on disk is invalid.
    #[must_use]
    pub fn is_config_rejected(&self) -> bool {
        self.config_rejected.get() == 1
    }

    /// The issuers whose CA asked for no request before an instant that is still to come.
    #[must_use]
    pub fn limits(&self, now: UnixTime) -> Vec<(String, UnixTime)> {
        let families = self.limited_until.collect();
        let series = families.iter().flat_map(|family| family.get_metric());
        let limits = series.filter_map(|series| {
            let issuer = series.get_label().first()?.value().to_owned();
            #[expect(
                clippy::cast_possible_truncation,
                reason = "it was set from whole seconds"
            )]
            let until = UnixTime(series.get_gauge().get_value() as i64);
            (until > now).then_some((issuer, until))
        });
        limits.collect()
    }

    /// Counts the restart of a broken watch on Secrets.
    pub fn watch_restarted(&self) {
        self.watch_restarts.inc();
    }

    /// Sets the namespaces whose Secrets cannot be listed or watched now; `None` means all.
    pub fn passed_over(&self, namespaces: &BTreeSet<Option<Arc<str>>>) {
        self.passed_over.reset();
        for namespace in namespaces {
            let namespace = namespace.as_deref().unwrap_or_default();
            self.passed_over.with_label_values(&[namespace]).set(1);
        }
    }

    /// Sets whether a Secret that seems to be meant is not managed.
    pub fn unmanaged(&self, namespace: &str, secret: &str, why: &str, is_so: bool) {
        let labels = [namespace, secret, why];
        if is_so {
            self.unmanaged.with_label_values(&labels).set(1);
        } else {
            // It fails only if there is none.
            let _ = self.unmanaged.remove_label_values(&labels);
        }
    }

    /// Counts a token that somebody showed; an answer that is remembered does not count.
    pub fn token_reviewed(&self, result: Reviewed) {
        let labels = [result.as_str()];
        self.token_reviews.with_label_values(&labels).inc();
    }

    /// Counts a panic of a task.
    pub fn task_panicked(&self, part: Part) {
        self.task_panics.with_label_values(&[part.as_str()]).inc();
    }

    /// Records how much later than planned the controller's loop turned.
    pub fn loop_lag(&self, lag: Duration) {
        self.loop_lag_seconds.set(lag.as_secs_f64());
    }

    /// Sets whether the config file on disk is invalid.
    pub fn config_rejected(&self, rejected: bool) {
        self.config_rejected.set(rejected.into());
    }

    /// Sets whether the config pauses everything.
    pub fn paused(&self, paused: bool) {
        self.paused.set(paused.into());
    }

    /// Sets since when the config is in force.
    pub fn config_taken_over(&self, at: UnixTime) {
        self.config_taken_over.set(at.0);
    }

    /// Sets until when the CA asked for no request.
    pub fn limited_until(&self, issuer: &str, until: UnixTime) {
        self.limited_until.with_label_values(&[issuer]).set(until.0);
    }

    /// Counts a poll of renewal information; `answered` is when the CA named a window, if it did.
    pub fn renewal_info(&self, issuer: &str, answered: Option<UnixTime>) {
        let result = if answered.is_some() { "window" } else { "none" };
        self.info_polls.with_label_values(&[issuer, result]).inc();
        // Create the series at zero, so that none moved is visible.
        self.info_moved.with_label_values(&[issuer]).inc_by(0);
        if let Some(at) = answered {
            self.info_answered.with_label_values(&[issuer]).set(at.0);
        }
    }

    /// Counts that a CA moved the renewal window of a certificate.
    pub fn renewal_window_moved(&self, issuer: &str) {
        self.info_moved.with_label_values(&[issuer]).inc();
    }

    /// Sets whether this replica leads, and has read what it needs to work.
    pub fn leader(&self, works: bool) {
        self.leader.set(works.into());
    }

    /// Counts that this replica has become the leader.
    pub fn term_began(&self) {
        self.leader_terms.inc();
    }

    /// All series in Prometheus' text format, each family sorted by its labels.
    ///
    /// `failures` returns the failures in a row of a Secret.
    /// Without `per_certificate`, only certificates in trouble have a series of their own.
    #[must_use]
    pub fn render(
        &self,
        now: UnixTime,
        index: &Index,
        failures: &dyn Fn(&Observed) -> u32,
        per_certificate: bool,
    ) -> String {
        let mut out = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut out) {
            // It fails only on a family without a name or a sample; the index's series are still useful.
            tracing::error!(%error, "the counters could not be rendered");
        }
        certificates::write(&mut out, now, index, failures, per_certificate);
        out
    }
}

fn status_text(status: Option<u16>) -> String {
    status.map_or_else(|| "error".into(), |status| status.to_string())
}

fn registered<C: Collector + Clone + 'static>(into: &Registry, made: C) -> Result<C, Error> {
    into.register(Box::new(made.clone()))?;
    Ok(made)
}

fn gauge(into: &Registry, name: &str, help: &str) -> Result<IntGauge, Error> {
    registered(into, IntGauge::new(name, help)?)
}

fn gauges(into: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
    registered(into, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn counters(
    into: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, Error> {
    registered(into, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn histograms(
    into: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    bounds: &[f64],
) -> Result<HistogramVec, Error> {
    let opts = HistogramOpts::new(name, help).buckets(bounds.to_vec());
    registered(into, HistogramVec::new(opts, labels)?)
}

#[cfg(test)]
mod tests;

//! How the operator itself behaves: rollouts, back-off, DNS, what it watches, what it exports.

use std::path::PathBuf;
use std::time::Duration;

use super::issuer::{absolute, object_name};
use super::reader::KeyPath;
use super::resolver::ResolverAddress;
use crate::schedule::rate_limits::Backoff;
use crate::secret::keys::FIELD_MANAGER;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// Upper bound of any count of workloads or attempts.
const MAX_COUNT: u32 = 10_000;

/// How workloads are rolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutConfig {
    /// Most workloads that roll at the same time, in the whole cluster.
    pub concurrency: u32,
    /// Most workloads that roll at the same time in one namespace, so that none takes all.
    pub per_namespace: u32,
    /// Shortest time between two rollouts of one workload.
    pub per_workload_min_interval: Duration,
    /// Wait after a Secret changed, so that one rollout serves several Secrets.
    pub settle: Duration,
    /// Workloads of a Secret that go first, alone; 0 for none.
    pub canary_workloads: u32,
    /// How long canaries are observed before the others follow.
    pub canary_bake: Duration,
    /// Time without progress after which a rollout has failed.
    pub progress_timeout: Duration,
    /// How long `verify` retries before a pod counts as one that serves the old leaf.
    pub verify_grace: Duration,
    /// Time after which the kubelet has written a changed Secret into every pod, from the change.
    pub reload_wait: Duration,
    /// Time after which pods are asked to reload a second time if nothing verifies that they did.
    pub reload_again: Duration,
    /// Field manager of the writes to workloads.
    pub field_manager: Box<str>,
}

/// Which DNS servers are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Resolvers for self-checks, zones and CAA; the system's where empty.
    pub nameservers: Vec<ResolverAddress>,
    /// PEM file with roots for resolvers that are asked over TLS and HTTPS, beside the public ones; an absolute path.
    pub ca_bundle: Option<PathBuf>,
}

/// What is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchConfig {
    /// These namespaces only; all where empty.
    pub namespaces: Vec<String>,
    /// Which Secrets are watched.
    pub select: Select,
    /// Which Secrets have metrics.
    pub observe: Observe,
}

/// How routes that declare certificates are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutesConfig {
    /// How long what they say has to rest before a Secret that is made is changed by it.
    pub settle: Duration,
}

impl WatchConfig {
    /// Why the operator does not see a Secret of this namespace and type, if it does not.
    #[must_use]
    pub fn misses(&self, namespace: &str, is_tls: bool, has_label: bool) -> Option<Unseen> {
        let named = &self.namespaces;
        if !named.is_empty() && !named.iter().any(|it| it == namespace) {
            Some(Unseen::Namespace)
        } else if has_label {
            None
        } else if !is_tls {
            Some(Unseen::Type)
        } else {
            (self.select == Select::Label).then_some(Unseen::Label)
        }
    }
}

/// Why the operator does not see a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// Its namespace is not among those that are watched.
    Namespace,
    /// It is of another type than `kubernetes.io/tls`, and lacks the label.
    Type,
    /// It lacks the label, which all need.
    Label,
}

/// Which Secrets the API server sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// Those of type `kubernetes.io/tls`, and those of other types with the label.
    #[default]
    Type,
    /// Only those with the label `cert-renew.io/managed`.
    Label,
}

/// Which Secrets have metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Observe {
    /// Those that are annotated.
    #[default]
    Annotated,
    /// Every TLS Secret; those without annotations get nothing else.
    All,
}

/// What is exported, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Whether each certificate has its own series.
    pub per_certificate: bool,
    /// Whether the port shows the status page.
    pub page: bool,
    /// Who gets the metrics and the page.
    pub access: Access,
    /// Secret in the operator's namespace with the port's certificate and key. Without one the port does not speak TLS;
    /// with [`Access::Viewers`] there is one.
    pub tls: Option<Box<str>>,
}

/// Who gets the metrics and the page; probes are answered to anyone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everybody who reaches the port.
    #[default]
    Anyone,
    /// Those who show a token and have the right, over TLS.
    Viewers,
}

impl Default for RoutesConfig {
    fn default() -> Self {
        Self { settle: MINUTE }
    }
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            concurrency: 8,
            per_namespace: 2,
            per_workload_min_interval: 5 * MINUTE,
            settle: 10 * SECOND,
            canary_workloads: 1,
            canary_bake: Duration::ZERO,
            progress_timeout: 10 * MINUTE,
            verify_grace: 30 * SECOND,
            // The kubelet syncs each pod every 60 to 90 s; its watch brings a change at once.
            reload_wait: 90 * SECOND,
            // If the kubelet caches instead of watching, the change arrives a minute later.
            reload_again: 150 * SECOND,
            field_manager: FIELD_MANAGER.into(),
        }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            per_certificate: true,
            page: true,
            access: Access::default(),
            tls: None,
        }
    }
}

impl Backoff {
    pub(super) fn read(place: &KeyPath<'_>) -> Self {
        let default = Self::default();
        place.fields(|fields| {
            let base = fields.get("base").duration(SECOND..=DAY, default.base);
            let max = fields.get("max");
            Self {
                base,
                factor: fields.get("factor").count(1..=100, default.factor),
                max: max.duration(base..=30 * DAY, default.max.max(base)),
            }
        })
    }
}

/// How renewals are spread, for all issuers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenewalConfig {
    /// Most orders in flight. An order mostly waits, and holds no more than its key and two URLs.
    pub concurrency: u32,
}

impl Default for RenewalConfig {
    fn default() -> Self {
        Self { concurrency: 64 }
    }
}

impl RenewalConfig {
    pub(super) fn read(place: &KeyPath<'_>) -> Self {
        let default = Self::default();
        place.fields(|fields| Self {
            concurrency: fields
                .get("concurrency")
                .count(1..=MAX_COUNT, default.concurrency),
        })
    }
}

impl RolloutConfig {
    pub(super) fn read(place: &KeyPath<'_>) -> Self {
        let default = Self::default();
        place.fields(|fields| Self {
            concurrency: fields
                .get("concurrency")
                .count(1..=MAX_COUNT, default.concurrency),
            per_namespace: fields
                .get("perNamespace")
                .count(1..=MAX_COUNT, default.per_namespace),
            per_workload_min_interval: fields
                .get("perWorkloadMinInterval")
                .duration(Duration::ZERO..=DAY, default.per_workload_min_interval),
            settle: fields
                .get("settle")
                .duration(Duration::ZERO..=60 * MINUTE, default.settle),
            canary_workloads: fields
                .get("canaryWorkloads")
                .count(0..=MAX_COUNT, default.canary_workloads),
            canary_bake: fields
                .get("canaryBake")
                .duration(Duration::ZERO..=DAY, default.canary_bake),
            progress_timeout: fields
                .get("progressTimeout")
                .duration(SECOND..=7 * DAY, default.progress_timeout),
            verify_grace: fields
                .get("verifyGrace")
                .duration(SECOND..=10 * MINUTE, default.verify_grace),
            reload_wait: fields
                .get("reloadWait")
                .duration(Duration::ZERO..=10 * MINUTE, default.reload_wait),
            reload_again: fields
                .get("reloadAgain")
                .duration(Duration::ZERO..=10 * MINUTE, default.reload_again),
            field_manager: fields
                .get("fieldManager")
                .parse(field_manager)
                .unwrap_or(default.field_manager),
        })
    }
}

impl DnsConfig {
    pub(super) fn read(place: &KeyPath<'_>) -> Self {
        place.fields(|fields| Self {
            nameservers: fields
                .get("nameservers")
                .list(|item| item.parse(str::parse)),
            ca_bundle: fields.get("caBundle").parse(absolute),
        })
    }
}

impl RoutesConfig {
    pub(super) fn read(place: &KeyPath<'_>) -> Self {
        let default = Self::default();
        place.fields(|fields| Self {
            settle: fields
                .get("settle")
                .duration(Duration::ZERO..=DAY, default.settle),
        })
    }
}

impl WatchConfig {
    pub(super) fn read(place: &KeyPath<'_>) -> Self {
        place.fields(|fields| Self {
            namespaces: fields
                .get("namespaces")
                .list(|item| item.parse(super::namespace_name)),
            select: fields.get("select").choice(
                &[("type", Select::Type), ("label", Select::Label)],
                Select::default(),
            ),
            observe: fields.get("observe").choice(
                &[("annotated", Observe::Annotated), ("all", Observe::All)],
                Observe::default(),
            ),
        })
    }
}

impl MetricsConfig {
    pub(super) fn read(place: &KeyPath<'_>) -> Self {
        let default = Self::default();
        place.fields(|fields| {
            let access = fields.get("access").choice(
                &[("anyone", Access::Anyone), ("viewers", Access::Viewers)],
                default.access,
            );
            let tls = fields.get("tls");
            if access == Access::Viewers && tls.is_absent() {
                tls.fault("missing, with access: viewers no token is taken but over TLS");
            }
            Self {
                per_certificate: fields.get("perCertificate").flag(default.per_certificate),
                page: fields.get("page").flag(default.page),
                access,
                tls: (!tls.is_absent())
                    .then(|| tls.fields(|fields| object_name(fields, "secret").into())),
            }
        })
    }
}

/// As the API server requires: at most 128 bytes, all printable.
fn field_manager(text: &str) -> Result<Box<str>, &'static str> {
    let sound = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    sound
        .then(|| text.into())
        .ok_or("expected 1 to 128 printable characters, such as flux-client-side-apply")
}

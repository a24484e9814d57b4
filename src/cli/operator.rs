//! What a command learns of the operator from the cluster: its config, whether a replica leads, and its budgets.
//!
//! Each part is a read in the operator's namespace, with the user's own rights. A part that the user may not read is
//! unknown, never an error: most users have no rights there.

use std::collections::BTreeMap;
use std::time::Duration;

use cert_renew_core::config::Config;
use cert_renew_core::schedule::rate_limits::{Account, AccountId};
use cert_renew_core::time::UnixTime;
use cert_renew_core::time::duration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::Api;

use super::Failure;
use super::cluster_config;
use crate::cluster::{lease, ledger};

/// A leader renews its Lease several times within its duration. Ours and its clock may differ: it counts as silent
/// after this many durations, and after [`SILENT`] at least.
const DURATIONS: u32 = 4;
/// See [`DURATIONS`].
const SILENT: Duration = Duration::from_secs(120);

/// What is known of an operator.
#[derive(Debug)]
pub(super) struct Operator {
    /// Its namespace.
    pub(super) namespace: String,
    /// Its config, if it can be read and is valid.
    pub(super) config: Option<Config>,
    /// Whether a replica leads.
    pub(super) leader: Leader,
    /// Its ledger by account, if it can be read.
    ledger: Option<BTreeMap<String, String>>,
}

/// Whether a replica leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leader {
    /// One does.
    Leads,
    /// None does: for this long, where that is known.
    Nobody(Option<Duration>),
    /// There is no Lease: an operator without leader election, or none at all.
    NoLease,
    /// The Lease cannot be read.
    Unknown,
}

impl Operator {
    /// Reads what this user may read of the operator in `namespace`.
    pub(super) async fn look(client: &Client, namespace: &str) -> Result<Self, Failure> {
        let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let (config, lease, ledger) = tokio::join!(
            cluster_config::read_if_allowed(client, namespace),
            readable("reading the Lease", leases.get(lease::NAME)),
            readable("reading the ledger", maps.get(ledger::NAME)),
        );
        let now = UnixTime::now();
        Ok(Self {
            namespace: namespace.to_owned(),
            // The operator goes on with the version before one that has faults.
            config: config.ok().flatten(),
            leader: match lease? {
                Readable::Found(lease) => Leader::of(&lease, now),
                Readable::Missing => Leader::NoLease,
                Readable::Forbidden => Leader::Unknown,
            },
            ledger: match ledger? {
                Readable::Found(map) => Some(map.data.unwrap_or_default()),
                // It is made with the first entry.
                Readable::Missing => Some(BTreeMap::new()),
                Readable::Forbidden => None,
            },
        })
    }

    /// The history of an account; None if it cannot be read.
    pub(super) fn account(&self, id: AccountId) -> Option<Account> {
        let ledger = self.ledger.as_ref()?;
        let entry = [id, id.former()]
            .iter()
            .find_map(|id| ledger.get(&id.to_string()));
        let entry = entry.and_then(|json| serde_json::from_str(json).ok());
        Some(entry.unwrap_or_default())
    }

    /// Why nothing will be done for any Secret, if so.
    pub(super) fn out_of_action(&self) -> Option<String> {
        let namespace = &self.namespace;
        match self.leader {
            Leader::Nobody(None) => Some(format!(
                "no cert-renew leads in namespace {namespace}: Lease {} has no holder. Does the operator run?",
                lease::NAME
            )),
            Leader::Nobody(Some(silent)) => Some(format!(
                "no cert-renew leads in namespace {namespace}: Lease {} was last renewed {} ago. Does the operator run?",
                lease::NAME,
                duration::human(silent)
            )),
            Leader::NoLease if self.config.is_none() => Some(format!(
                "there is no cert-renew in namespace {namespace}, neither its Lease nor its config: name its namespace \
                 with --operator-namespace"
            )),
            Leader::NoLease | Leader::Leads | Leader::Unknown => None,
        }
    }
}

impl Leader {
    fn of(lease: &Lease, now: UnixTime) -> Self {
        let Some(spec) = &lease.spec else {
            return Self::Nobody(None);
        };
        if spec.holder_identity.as_deref().is_none_or(str::is_empty) {
            return Self::Nobody(None);
        }
        let duration = { spec.lease_duration_seconds }.and_then(|it| u64::try_from(it).ok());
        let duration = Duration::from_secs(duration.unwrap_or_default());
        let renewed = spec.renew_time.as_ref().map(|it| it.0.as_second());
        let silent = renewed.map(|at| now.since(UnixTime(at)));
        match silent {
            Some(silent) if silent > (duration * DURATIONS).max(SILENT) => {
                Self::Nobody(Some(silent))
            }
            _ => Self::Leads,
        }
    }
}

/// What came of a read that may be forbidden.
enum Readable<T> {
    Found(T),
    Missing,
    Forbidden,
}

async fn readable<T>(
    doing: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<Readable<T>, Failure> {
    match request.await {
        Ok(found) => Ok(Readable::Found(found)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Readable::Missing),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Readable::Forbidden),
        Err(error) => Err(Failure::new(doing, &error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_leads_is_read_from_the_lease() {
        let now: UnixTime = "2026-11-29T12:00:00Z".parse().unwrap();
        for (holder, renewed, expected) in [
            ("a", "2026-11-29T11:59:55.000000Z", Leader::Leads),
            // A clock that differs by a minute is no silence.
            ("a", "2026-11-29T11:59:00.000000Z", Leader::Leads),
            ("a", "2026-11-29T12:01:00.000000Z", Leader::Leads),
            (
                "a",
                "2026-11-29T11:50:00.000000Z",
                Leader::Nobody(Some(Duration::from_secs(600))),
            ),
            ("", "2026-11-29T11:59:55.000000Z", Leader::Nobody(None)),
        ] {
            let lease = json!({"metadata": {}, "spec": {"holderIdentity": holder,
                "leaseDurationSeconds": 15, "renewTime": renewed}});
            let lease = serde_json::from_value(lease).unwrap();
            assert_eq!(Leader::of(&lease, now), expected, "{holder} {renewed}");
        }
    }

    #[test]
    fn an_operator_that_cannot_act_says_why() {
        let operator = |leader, config| Operator {
            namespace: "ops".into(),
            config,
            leader,
            ledger: None,
        };
        let config = || Config::parse("issuers: {}").ok();
        for (leader, config, expected) in [
            (Leader::Leads, None, None),
            (Leader::Unknown, None, None),
            (Leader::NoLease, config(), None),
            (Leader::NoLease, None, Some("--operator-namespace")),
            (Leader::Nobody(None), config(), Some("has no holder")),
            (
                Leader::Nobody(Some(SILENT)),
                config(),
                Some("last renewed 2m"),
            ),
        ] {
            let said = operator(leader.clone(), config).out_of_action();
            let fits = match expected {
                None => said.is_none(),
                Some(part) => said.as_deref().is_some_and(|said| said.contains(part)),
            };
            assert!(fits, "{leader:?}: {said:?}");
        }
    }
}

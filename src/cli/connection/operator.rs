//! What a command learns of the operator from the cluster: its config, whether a replica leads, and its budgets.
//!
//! Each part is a read in the operator's namespace, with the user's own rights. A part that the user may not read is
//! unknown, never an error: most users have no rights there.

use std::collections::BTreeMap;
use std::time::Duration;

use cert_renew_core::config::Config;
use cert_renew_core::schedule::rate_limits::{AccountId, IssuanceHistory};
use cert_renew_core::time::{UnixTime, duration};
use cert_renew_core::verdict;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::Api;

use super::api_error::{is_forbidden, is_not_found};
use super::cluster_config;
use crate::cli::Failure;
use crate::cluster::{lease, ledger};

/// A leader renews its Lease several times within its duration. The clocks of this machine and the leader's may differ:
/// it counts as silent after this many durations, and after [`SILENT`] at least.
const DURATIONS: u32 = 4;
/// See [`DURATIONS`].
const SILENT: Duration = Duration::from_secs(60);
/// Longest wait for the Lease.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of an operator.
#[derive(Debug)]
pub(in crate::cli) struct Operator {
    /// Its namespace.
    pub(in crate::cli) namespace: String,
    /// Its config, if it can be read and is valid.
    pub(in crate::cli) config: Option<Config>,
    /// Whether a replica leads.
    pub(in crate::cli) leader: Leader,
    /// Its ledger by account, if it can be read.
    ledger: Option<BTreeMap<String, String>>,
}

/// Whether a replica leads, by the Lease: every command reads it here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Leader {
    /// This one does.
    Leads(String),
    /// None does; when one last did, if that is known.
    Nobody(Option<UnixTime>),
    /// There is no Lease: an operator without leader election, or none at all.
    NoLease,
    /// The Lease cannot be read.
    Unknown,
}

impl Operator {
    /// Reads what this user may read of the operator in `namespace`.
    pub(in crate::cli) async fn look(client: &Client, namespace: &str) -> Result<Self, Failure> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let (config, leader, ledger) = tokio::join!(
            cluster_config::read_if_allowed(client, namespace),
            Leader::look(client, namespace),
            readable("reading the failure history", maps.get(ledger::NAME)),
        );
        Ok(Self {
            namespace: namespace.to_owned(),
            // The operator goes on with the version before one that has faults.
            config: config.ok().flatten(),
            leader: leader?,
            ledger: match ledger? {
                Readable::Found(map) => Some(map.data.unwrap_or_default()),
                // It is made with the first entry.
                Readable::Missing => Some(BTreeMap::new()),
                Readable::Forbidden => None,
            },
        })
    }

    /// The history of an account; None if it cannot be read.
    pub(in crate::cli) fn account(&self, id: AccountId) -> Option<IssuanceHistory> {
        let ledger = self.ledger.as_ref()?;
        let entry = [id, id.former()]
            .iter()
            .find_map(|id| ledger.get(&id.to_string()));
        let entry = entry.and_then(|json| serde_json::from_str(json).ok());
        Some(entry.unwrap_or_default())
    }

    /// Why nothing will be done for any Secret, if so.
    pub(in crate::cli) fn out_of_action(&self) -> Option<String> {
        let namespace = &self.namespace;
        match &self.leader {
            Leader::NoLease if self.config.is_none() => Some(format!(
                "there is no cert-renew in namespace {namespace}, neither its Lease nor its config: name its namespace \
                 with --operator-namespace"
            )),
            leader => {
                let nobody = leader.nobody(UnixTime::now(), namespace)?;
                Some(format!("{nobody}. Does the operator run?"))
            }
        }
    }
}

impl Leader {
    /// Reads the Lease of the operator in `namespace`.
    ///
    /// # Errors
    /// When the API server does not answer, or has another reason than a missing right.
    pub(in crate::cli) async fn look(client: &Client, namespace: &str) -> Result<Self, Failure> {
        let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
        let read = readable("reading the Lease", leases.get(lease::NAME));
        let read = tokio::time::timeout(PATIENCE, read).await;
        let read = read.map_err(|_| Failure("reading the Lease: no answer in time".into()))?;
        Ok(match read? {
            Readable::Found(lease) => Self::of(&lease, UnixTime::now()),
            Readable::Missing => Self::NoLease,
            Readable::Forbidden => Self::Unknown,
        })
    }

    fn of(lease: &Lease, now: UnixTime) -> Self {
        let Some(spec) = &lease.spec else {
            return Self::Nobody(None);
        };
        let holder = spec.holder_identity.as_deref();
        let renewed = spec.renew_time.as_ref();
        let renewed = renewed.map(|it| UnixTime(it.0.as_second()));
        let Some(holder) = holder.filter(|holder| !holder.is_empty()) else {
            return Self::Nobody(None);
        };
        let duration = { spec.lease_duration_seconds }.and_then(|it| u64::try_from(it).ok());
        let duration = Duration::from_secs(duration.unwrap_or_default());
        let patience = (duration * DURATIONS).max(SILENT);
        match renewed {
            Some(at) if now.since(at) > patience => Self::Nobody(Some(at)),
            _ => Self::Leads(holder.to_owned()),
        }
    }

    /// That nobody leads, if so, in words.
    pub(in crate::cli) fn nobody(&self, now: UnixTime, namespace: &str) -> Option<String> {
        let lease = format!("Lease {namespace}/{}", lease::NAME);
        let how = match self {
            // Without a Lease there may be an operator that takes part in no election.
            Self::Leads(_) | Self::NoLease | Self::Unknown => return None,
            Self::Nobody(Some(since)) => {
                format!("silent for {}", duration::human(now.since(*since)))
            }
            Self::Nobody(None) => "has no holder".to_owned(),
        };
        Some(format!("no cert-renew leads: {lease} {how}"))
    }

    /// The same in a report.
    pub(in crate::cli) fn reported(&self) -> verdict::Leader {
        match self {
            Self::Leads(holder) => verdict::Leader::named(holder),
            Self::Nobody(since) => verdict::Leader {
                name: None,
                silent_since: *since,
            },
            Self::NoLease | Self::Unknown => verdict::Leader::default(),
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
        Err(error) if is_not_found(&error) => Ok(Readable::Missing),
        Err(error) if is_forbidden(&error) => Ok(Readable::Forbidden),
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
        let leads = || Leader::Leads("a".into());
        for (holder, renewed, expected) in [
            ("a", "2026-11-29T11:59:55.000000Z", leads()),
            // A clock that differs by a minute is no silence.
            ("a", "2026-11-29T11:59:00.000000Z", leads()),
            ("a", "2026-11-29T12:01:00.000000Z", leads()),
            (
                "a",
                "2026-11-29T11:50:00.000000Z",
                Leader::Nobody(Some(UnixTime(now.0 - 600))),
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
            (Leader::Leads("a".into()), None, None),
            (Leader::Unknown, None, None),
            (Leader::NoLease, config(), None),
            (Leader::NoLease, None, Some("--operator-namespace")),
            (Leader::Nobody(None), config(), Some("has no holder")),
            (
                Leader::Nobody(Some(UnixTime::now() - SILENT * 2)),
                config(),
                Some("Lease ops/cert-renew silent for 2m"),
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

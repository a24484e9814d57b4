//! Records on a Secret what its workloads have, where nothing is to be rolled.

use std::collections::BTreeMap;
use std::time::Duration;

use cert_renew_core::index::{Entry, Finished, Observed};
use cert_renew_core::rollout::Request;
use cert_renew_core::secret::object::head::Head;
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::state::RolledOut;
use cert_renew_core::secret::used_by::{Has, UsedBy};
use cert_renew_core::secret::workload::WorkloadRef;
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::state_line::Facts;
use futures::StreamExt as _;
use futures::stream;

use super::held::{Glance, Held};
use super::{AGAIN, AT_ONCE, notify};
use crate::cluster;
use crate::cluster::secrets::{self, Changes};
use crate::process::task::TaskHandle;
use crate::rollout::rollouts::Rollouts;
use crate::telemetry::stage::Stage;

impl Rollouts {
    /// Restores a lost or incomplete record of what the workloads have, before anything else: if we ended now, nobody
    /// would know it. The consequences are decided when the watch has brought the record.
    pub(super) async fn put_back(
        &self,
        looks: Vec<(TaskHandle, Glance)>,
    ) -> Vec<(TaskHandle, Glance)> {
        let (mut others, mut lost) = (Vec::new(), Vec::new());
        for (ticket, glance) in looks {
            match glance {
                Glance::Lost(entry, had) => lost.push((ticket, entry, had)),
                glance => others.push((ticket, glance)),
            }
        }
        let written = stream::iter(lost).for_each_concurrent(AT_ONCE, |(ticket, entry, had)| async move {
        let head = head_of(ticket.key(), &entry);
        let changes = Changes::of(had.written_for(head.uid()));
        let finished = written(secrets::patch(&self.shared.client, &head, &changes).await);
        if finished == Finished::Wrote {
            tracing::info!(secret = %ticket.key(), step = Stage::Recorded.name(), leaf = %had, "the record of what the workloads have was not whole: written");
        }
        ticket.finish(finished);
    });
        written.await;
        others
    }
}

/// The result of writing the record.
fn written(patched: Result<ThinSecret, cluster::Error>) -> Finished {
    let now = UnixTime::now();
    match patched {
        Ok(_) => Finished::Wrote,
        Err(cluster::Error::Conflict { .. } | cluster::Error::NotFound { .. }) => {
            Finished::Later(now + Duration::from_secs(1), None)
        }
        Err(error) => Finished::Later(now + AGAIN, Some(error.to_string().into())),
    }
}

/// The Secret as the watch has brought it.
fn head_of(key: &SecretRef, entry: &Entry) -> Head {
    let Observed {
        uid,
        resource_version,
        ..
    } = &entry.observed;
    let (uid, version) = (uid.to_string(), resource_version.to_string());
    Head::of(&key.namespace, &key.name, &uid, &version)
}

/// A request that the plan answers with a record, made from the watch's data.
pub(super) fn first_sight(key: &SecretRef, entry: &Entry) -> (Request, Held) {
    let observed = &entry.observed;
    let head = head_of(key, entry);
    let leaf = observed.leaf.ok();
    let request = Request::first_sight(&key.name, &observed.uid.to_string(), leaf);
    let held = Held {
        is_empty: leaf.is_none(),
        ..Held::of(&head)
    };
    (request, held)
}

impl Rollouts {
    /// Writes `rolled-out` where nothing is to be rolled.
    pub(super) async fn record(
        &self,
        (ticket, held): &(TaskHandle, Held),
        request: &Request,
        workloads: &[WorkloadRef],
    ) -> Finished {
        let head = &held.head;
        let value = if held.is_empty {
            RolledOut::None
        } else {
            value_of(request)
        };
        let users = workloads.iter();
        let users = users.map(|workload| (workload.clone(), Has::It)).collect();
        let used_by = UsedBy::new(UnixTime::now(), users, None);
        let mut annotations = vec![
            (keys::USED_BY, used_by.map(|used_by| used_by.to_string())),
            (keys::ROLLOUT_HALTED, None),
        ];
        annotations.extend(value.written_for(head.uid()));
        annotations.extend(
            self.shared
                .state_note(ticket.key(), |facts| has(facts, value)),
        );
        let changes = Changes::of(annotations);
        // Before the patch, since the watch may bring it back at once.
        let known = self
            .shared
            .entry(ticket.key())
            .and_then(|it| it.rolled_out());
        let patched = secrets::patch(&self.shared.client, head, &changes).await;
        if let Ok(secret) = &patched {
            tracing::info!(secret = %ticket.key(), step = Stage::Recorded.name(), leaf = %value, "recorded: nothing to restart");
            let is_new = known.is_none() && !has_other_notes(&secret.head, &changes);
            if is_new {
                notify::adopted(&self.shared, ticket.key(), secret, workloads);
            }
        }
        written(patched)
    }
}

/// Whether a Secret has annotations of ours beside those just written, so that it was seen before.
fn has_other_notes(head: &Head, written: &Changes<'_>) -> bool {
    let notes = head.annotations().into_iter().flat_map(BTreeMap::keys);
    let mut notes = notes.filter(|key| key.starts_with(keys::STATE_PREFIX));
    notes.any(|key| !written.annotations.iter().any(|(it, _)| it == key))
}

/// The facts after the workloads were recorded to have this.
pub(super) fn has(facts: &mut Facts, value: RolledOut) {
    facts.entry.observed.rolled_out = Some(value);
    facts.entry.observed.halted = false;
    facts.entry.rollout_error = None;
}

pub(super) fn value_of(request: &Request) -> RolledOut {
    RolledOut::Leaf {
        fingerprint: request.leaf,
        not_after: request.not_after,
        with: Some(request.with),
    }
}

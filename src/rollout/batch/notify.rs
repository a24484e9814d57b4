//! Reports a rollout to the user: Events on workloads and Secrets, log lines, metrics. Nothing waits for it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::assess;
use cert_renew_core::rollout::{Remark, Request, Step};
use cert_renew_core::secret::object::thin::ThinSecret;
use cert_renew_core::secret::workload::{Kind, WorkloadRef};
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::state_line;
use k8s_openapi::api::core::v1::ObjectReference;

use super::Open;
use super::held::Held;
use crate::cluster::events::Reason;
use crate::context::Shared;
use crate::rollout::listing::unmanaged::{ById, BySecret};
use crate::rollout::rollouts::Rollouts;
use crate::rollout::{self, Error, Happening, Turn};
use crate::telemetry::metrics::RolloutResult;
use crate::telemetry::stage::Stage;

/// A longer wait of a workload is reported by an Event.
const LONG: Duration = Duration::from_secs(30);
/// Most Secrets that the line of a workload names, at 254 bytes each.
const NAMED: usize = 50;

pub(super) fn happening(shared: &Shared, namespace: &str, happening: &Happening<'_>) {
    let what = match happening {
        Happening::Rolled(step, _)
        | Happening::Unavailable(step, _)
        | Happening::Incomplete(step, _) => step.changed().in_words(),
        _ => "certificate",
    };
    let (step, reason, note) = match happening {
        Happening::Waits(step, turn) => return waits(shared, namespace, step, *turn),
        Happening::Rolled(step, took) => {
            shared
                .metrics
                .rollout(step.workload.id.kind, RolloutResult::Rolled);
            shared.metrics.rollout_took(step.workload.id.kind, *took);
            let seconds = took.as_secs();
            (
                step,
                Reason::RolledOut,
                format!("available with the new {what} after {seconds} s"),
            )
        }
        Happening::Reloaded(step, pods) => {
            shared
                .metrics
                .rollout(step.workload.id.kind, RolloutResult::Reloaded);
            let note = match pods {
                1 => "1 pod was asked to reload, and did".to_owned(),
                _ => format!("{pods} pods were asked to reload, and did"),
            };
            (step, Reason::Reloaded, note)
        }
        Happening::Unchanged(step) => {
            shared
                .metrics
                .rollout(step.workload.id.kind, RolloutResult::Unchanged);
            return;
        }
        Happening::Unavailable(step, _) | Happening::Incomplete(step, _) if step.unwell => return,
        Happening::Unavailable(step, why) => {
            shared
                .metrics
                .rollout(step.workload.id.kind, RolloutResult::Failed);
            let note = format!("all its pods have the new {what}, and it is not well: {why}");
            (step, Reason::RolloutFailed, note)
        }
        Happening::Incomplete(step, why) => {
            shared
                .metrics
                .rollout(step.workload.id.kind, RolloutResult::Failed);
            let note = format!("not all its pods have the new {what}: {why}");
            (step, Reason::RolloutFailed, note)
        }
        Happening::Failed(step, why) => {
            shared
                .metrics
                .rollout(step.workload.id.kind, RolloutResult::Failed);
            (step, Reason::RolloutFailed, (*why).to_owned())
        }
    };
    // A workload may use thousands of Secrets. The traces read these names out of the line.
    let names = step.leaves.iter().map(|due| due.secret.to_string());
    let names: Vec<String> = names.collect();
    let secrets = &names[..names.len().min(NAMED)];
    let (took, error) = match happening {
        Happening::Rolled(_, took) => (u64::try_from(took.as_millis()).ok(), None),
        Happening::Failed(_, why)
        | Happening::Unavailable(_, why)
        | Happening::Incomplete(_, why) => (None, Some(*why)),
        _ => (None, None),
    };
    let workload = &step.workload.id;
    if reason == Reason::RolloutFailed {
        tracing::warn!(namespace, %workload, step = Stage::Workload.name(), ?secrets, note, error, "{reason}");
    } else {
        tracing::info!(
            namespace, %workload, step = Stage::Workload.name(), ?secrets, note, took_ms = took, "{reason}"
        );
    }
    let note = format!("{note} (Secret {})", rollout::some_of(&names));
    shared.events.on(reference(namespace, step), reason, &note);
}

/// Reports what a workload waits for; by an Event if the wait is long enough to be noticed.
fn waits(shared: &Shared, namespace: &str, step: &Step, turn: Turn) {
    let workload = &step.workload.id;
    let note = match turn {
        Turn::Place => "waits for a place: as many restart as the config allows".to_owned(),
        Turn::At(at) => {
            format!("waits until {at}: it was restarted a short while ago (perWorkloadMinInterval)")
        }
    };
    tracing::info!(namespace, %workload, step = Stage::Waits.name(), why = note, "not restarted yet");
    if let Turn::At(at) = turn
        && at.since(UnixTime::now()) >= LONG
    {
        let (on, reason) = (reference(namespace, step), Reason::RolloutWaits);
        shared.events.on(on, reason, &note);
    }
}

fn reference(namespace: &str, step: &Step) -> ObjectReference {
    let id = &step.workload.id;
    let (api_version, kind) = match id.kind {
        Kind::Deployment => ("apps/v1", "Deployment"),
        Kind::StatefulSet => ("apps/v1", "StatefulSet"),
        Kind::DaemonSet => ("apps/v1", "DaemonSet"),
        Kind::ReplicationController => ("v1", "ReplicationController"),
        Kind::ReplicaSet => ("apps/v1", "ReplicaSet"),
        Kind::Rollout => ("argoproj.io/v1alpha1", "Rollout"),
    };
    ObjectReference {
        api_version: Some(api_version.into()),
        kind: Some(kind.into()),
        namespace: Some(namespace.to_owned()),
        name: Some(id.name.to_string()),
        uid: Some(step.workload.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// Reports what overrules a change window.
pub(super) fn overruled(shared: &Shared, key: &SecretRef, uid: &str, opens: UnixTime) {
    let note = format!(
        "the workloads are rolled outside the change window, which opens at {opens}: the certificate that they have \
         is revoked, or would have less than a tenth of its lifetime left by then"
    );
    tracing::warn!(secret = %key, note, "the change window is overruled");
    let reason = Reason::WindowOverruled;
    shared.events.secret(key, uid, reason, &note);
}

/// Reports that the Secret holds an earlier certificate than its workloads have.
pub(super) fn older(shared: &Shared, key: &SecretRef, request: &Request, why: &str) {
    let renew = shared.command(&format!("cert-renew renew --force {key}"));
    let note = format!(
        "the Secret holds an earlier certificate than its workloads have, as after a backup was restored: it is valid until \
         {}, and {why}. The workloads are restarted for what the Secret holds. If that is not meant, put the later one \
         back, or have a new one issued: {renew}",
        request.not_after
    );
    tracing::warn!(secret = %key, note, "an earlier certificate is back");
    let reason = Reason::EarlierCertificate;
    shared.events.secret(key, &request.uid, reason, &note);
}

/// Reports a Secret that was seen for the first time: when it is renewed, and what a new certificate restarts.
pub(super) fn adopted(
    shared: &Shared,
    key: &SecretRef,
    secret: &ThinSecret,
    workloads: &[WorkloadRef],
) {
    let (now, config) = (UnixTime::now(), shared.config());
    let Some(assessment) = assess::of_thin(now, key, secret, &config) else {
        return;
    };
    let names: Vec<String> = workloads.iter().map(ToString::to_string).collect();
    let note = state_line::adopted(now, &assessment, &names);
    tracing::info!(secret = %key, note, "adopted");
    let (uid, reason) = (secret.head.uid(), Reason::Adopted);
    shared.events.secret(key, uid, reason, &note);
}

/// Reports what a user should know although no workload is rolled for it.
pub(super) fn remark(shared: &Shared, open: &Open, remark: &Remark) {
    let (Remark::Missing { secret, .. }
    | Remark::OptedOut { secret, .. }
    | Remark::Restarted { secret, .. }) = remark;
    let Some((ticket, Held { head, .. })) = open.get(secret) else {
        return;
    };
    tracing::info!(secret = %ticket.key(), "{remark}");
    if matches!(remark, Remark::Missing { .. }) {
        let note = format!(
            "{remark}, although the annotation {} names it",
            keys::WORKLOADS
        );
        shared
            .events
            .secret(ticket.key(), head.uid(), Reason::WorkloadMissing, &note);
    }
}

/// Reports the workloads that are restarted although their Secret says `post:`, in one Event for each Secret.
pub(super) fn restarted(shared: &Shared, open: &Open, remarks: &[Remark]) {
    let mut restarted: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for remark in remarks {
        if let Remark::Restarted { secret, .. } = remark {
            restarted
                .entry(secret)
                .or_default()
                .push(remark.to_string());
        }
    }
    for (secret, texts) in restarted {
        if let Some((ticket, held)) = open.get(secret) {
            let (key, uid, note) = (ticket.key(), held.head.uid(), rollout::some_of(&texts));
            shared.events.secret(key, uid, Reason::CannotReload, &note);
        }
    }
}

impl Rollouts {
    /// Reports the change window that the rollout waits for.
    pub fn tell_shut(&self, key: &SecretRef, uid: &str, opens: UnixTime) {
        let note = format!("the rollout waits for the change window, which opens at {opens}");
        tracing::info!(secret = %key, step = Stage::Waits.name(), note, "not restarted yet");
        let reason = Reason::RolloutWaits;
        self.shared.events.secret(key, uid, reason, &note);
    }
}

impl Rollouts {
    /// Reports the pods and Jobs that have an earlier leaf and keep it.
    pub(super) async fn left_behind(&self, namespace: &Arc<str>, mut requests: Vec<Request>) {
        // The others were reported at the first look.
        requests.retain(|request| request.unwell.is_empty());
        if requests.is_empty() {
            return;
        }
        let look = |requests: Arc<[Request]>| async move {
            self.look_for_left_behind(namespace, &requests).await
        };
        self.bystanders.look(namespace, requests, look).await;
    }

    async fn look_for_left_behind(
        &self,
        namespace: &Arc<str>,
        requests: &[Request],
    ) -> Result<(), Error> {
        let roller = self.roller();
        let mut all = roller.bystanders(namespace).await?;
        let secrets: HashSet<&str> = requests.iter().map(|it| &*it.secret).collect();
        all.retain(|bystander| bystander.refers_to_any(&secrets));
        if all.is_empty() {
            return Ok(());
        }
        // Listed again: the list of the plan is not held over the wait.
        let workloads = roller.list(namespace).await?;
        let (all, workloads) = (rollout::by_secret(&all), rollout::by_id(&workloads));
        for request in requests {
            let key = SecretRef::new(Arc::clone(namespace), &*request.secret);
            for note in notes(request, &all, &workloads) {
                tracing::info!(secret = %key, note, "left behind");
                let events = &self.shared.events;
                events.secret(&key, &request.uid, Reason::NobodyRestarts, &note);
            }
        }
        Ok(())
    }
}

/// What is said of those that keep an earlier leaf of this Secret. They may be tens of thousands.
fn notes(request: &Request, all: &BySecret<'_>, workloads: &ById<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    let names = rollout::left_behind(request, all);
    if !names.is_empty() {
        notes.push(format!(
            "nobody restarts {}: they have an earlier {} until they are restarted",
            rollout::some_of(&names),
            request.changed.in_words()
        ));
    }
    let names = rollout::unseen(request, all, workloads);
    if !names.is_empty() {
        notes.push(format!(
            "nobody restarts the pods of {}: they use the Secret although their template does not say so; the annotation {} may name their workload",
            rollout::some_of(&names),
            keys::WORKLOADS
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;
    use crate::rollout::Unmanaged;
    use crate::rollout::listing::unmanaged::{JobWire, UnmanagedPodWire};

    #[test]
    fn of_very_many_that_are_left_behind_three_are_named() {
        let spec = json!({"volumes": [{"name": "v", "secret": {"secretName": "tls"}}]});
        let job = |number: usize| -> Option<Unmanaged> {
            let metadata = json!({"name": format!("import-{number}")});
            let job = json!({"metadata": metadata, "spec": {"template": {"spec": spec}}});
            from_value::<JobWire>(job).unwrap().read()
        };
        let pod = |number: usize| -> Option<Unmanaged> {
            let name = format!("web-{number}");
            let owner = json!({"kind": "StatefulSet", "name": name, "controller": true});
            let metadata = json!({"name": name, "ownerReferences": [owner]});
            let pod = json!({"metadata": metadata, "spec": spec});
            from_value::<UnmanagedPodWire>(pod).unwrap().read()
        };
        let all = (0..2_000).flat_map(|number| [job(number), pod(number)]);
        let all: Vec<Unmanaged> = all.flatten().collect();
        let request = Request::first_sight("tls", "u", None);
        let notes = notes(&request, &rollout::by_secret(&all), &rollout::by_id(&[]));
        assert_eq!(notes.len(), 2);
        for (note, expected) in notes
            .iter()
            .zip(["import-2 and 1997 more", "and 1997 more"])
        {
            assert!(note.contains(expected) && note.len() < 300, "{note:.300}");
        }
    }
}

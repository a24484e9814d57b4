//! Names the pods and Jobs that nothing restarts, and that keep an earlier leaf. Nothing waits for it or depends on it.

use std::sync::Arc;

use cert_renew_core::rollout::{Request, Workload};
use cert_renew_core::secret::{SecretRef, keys};
use cert_renew_core::text::error_chain;

use super::room::Share;
use crate::cluster::events::Reason;
use crate::rollout;
use crate::rollout::listing::unmanaged::{ById, BySecret};
use crate::rollout::rollouts::Rollouts;

impl Rollouts {
    /// Reports the pods and Jobs that have an earlier leaf and keep it.
    pub(super) async fn left_behind(
        &self,
        namespace: &Arc<str>,
        requests: Vec<Request>,
        workloads: Vec<Workload>,
        room: &Share<'_>,
    ) {
        if requests.is_empty() {
            return;
        }
        let weight = workloads.iter().map(Workload::weight).sum::<usize>()
            + requests.iter().map(Request::weight).sum::<usize>();
        if !room.take_whole(weight) {
            tracing::info!(%namespace, "the pods and Jobs that nothing restarts are not looked for: the rollouts of the namespace already hold as much as they may");
            return;
        }
        // The pods of a namespace may be many.
        if let Ok(_place) = self.bystanders.acquire().await {
            self.look_for_left_behind(namespace, &requests, &workloads)
                .await;
        }
        drop((requests, workloads));
        room.give_back(weight);
    }

    async fn look_for_left_behind(
        &self,
        namespace: &Arc<str>,
        requests: &[Request],
        workloads: &[Workload],
    ) {
        let all = match self.roller().bystanders(namespace).await {
            Ok(all) => all,
            Err(error) => {
                let text = error_chain(&error);
                tracing::info!(%namespace, error = text, "the pods and Jobs that nothing restarts could not be listed");
                return;
            }
        };
        let (all, workloads) = (rollout::by_secret(&all), rollout::by_id(workloads));
        for request in requests {
            // They were reported at the first look.
            if !request.unwell.is_empty() {
                continue;
            }
            let key = SecretRef::new(Arc::clone(namespace), &*request.secret);
            for note in notes(request, &all, &workloads) {
                tracing::info!(secret = %key, note, "left behind");
                let events = &self.shared.events;
                events.secret(&key, &request.uid, Reason::NobodyRestarts, &note);
            }
        }
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
    use crate::rollout::listing::unmanaged::{JobWire, PodWire};

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
            from_value::<PodWire>(pod).unwrap().read()
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

//! Kubernetes Events on Secrets and workloads: only on transitions, and never blocking the work.
//!
//! Publishing goes through a bounded queue and one task; if the API server is slow, Events are lost, renewals are not.
//! Each namespace has a rate limit, so that none takes the queue and the API server's time from the others.

mod recent;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cert_renew_core::schedule::token_bucket::TokenBucket;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::text::hash::hash;
use cert_renew_core::time::UnixTime;
use cert_renew_core::verdict::detail::Told;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::Instant;

use super::Error;
use crate::cluster::events::recent::{Recent, told};
use crate::process::fair_queue::FairQueue;
use crate::process::supervise;
use crate::telemetry::metrics::{Metrics, Part};

/// Most Events that wait to be published; more than a burst of renewals makes.
const QUEUE: usize = 4_096;
/// Burst of Events in one namespace, then one a second; a renewal with its rollout makes three or four.
const AT_ONCE: u32 = 2_000;
/// Longest note in bytes; the API server refuses a longer one.
const LONGEST_NOTE: usize = 1_000;

/// The reporting controller; the operator's admission policy checks it.
const CONTROLLER: &str = "cert-renew.io/cert-renew";

/// The type of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Expected.
    Normal,
    /// Needs attention.
    Warning,
}

impl Severity {
    /// As in the Event.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// The reason of an Event: the complete list, as in `docs/events.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The Secret was seen for the first time.
    Adopted,
    /// The Secret has annotations of ours, or nearly so, and is not managed.
    NotManaged,
    /// The new pair is in the Secret.
    Renewed,
    /// The renewal failed, and will be tried again.
    RenewalFailed,
    /// The names could not be validated by the staging CA.
    RehearsalFailed,
    /// A budget delays the request to the CA.
    RenewalHeld,
    /// The proof for a name is not visible yet, or its route is not open.
    RenewalWaits,
    /// The new certificate ends sooner than the one that it replaces.
    EndsSooner,
    /// The CA has issued for another lifetime than requested.
    OtherLifetime,
    /// The Secret holds an earlier certificate than its workloads have.
    EarlierCertificate,
    /// Another program writes the Secret, so cert-renew does not.
    OwnedByAnother,
    /// The CA suggests another time for the renewal.
    RenewalWindowMoved,
    /// The workloads have the certificate; on a workload: this one has.
    RolledOut,
    /// The pair in the Secret cannot be rolled out.
    NotRolledOut,
    /// A workload did not become available with the certificate.
    RolloutFailed,
    /// The other workloads are left alone until a person has looked.
    RolloutHalted,
    /// Workloads that were unhealthy before, or hold pods back, do not have the certificate yet.
    RolloutIncomplete,
    /// A rollout needs an action of a person or another program.
    RolloutWaits,
    /// Workloads are rolled outside of their change window.
    WindowOverruled,
    /// Not every pod could be probed.
    NotVerified,
    /// A pod served an earlier certificate, so its workload was restarted once more.
    RestartedAgain,
    /// Pods serve an earlier certificate although every step finished.
    ServedCertificateStale,
    /// The pods of a workload were asked to reload.
    Reloaded,
    /// Workloads are restarted although their Secret asks for a reload.
    CannotReload,
    /// Unmanaged pods and Jobs use the certificate; nothing restarts them.
    NobodyRestarts,
    /// `workloads` names one that does not exist.
    WorkloadMissing,
    /// An annotation is unknown or invalid.
    InvalidAnnotation,
    /// The content of the Secret is not a certificate.
    UnreadableCertificate,
    /// The certificate in the Secret can be read, but has a problem.
    CertificateProblem,
    /// One of `outputs` could not be written.
    OutputLeftOut,
    /// A TXT record of a challenge could not be removed.
    TxtRecordLeft,
    /// The Secret of a declaration was made.
    Declared,
    /// A declaration is not followed, or not in all.
    DeclarationRefused,
    /// Nothing declares the Secret any more.
    Undeclared,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 34] = [
        Self::Adopted,
        Self::NotManaged,
        Self::Renewed,
        Self::RenewalFailed,
        Self::RehearsalFailed,
        Self::RenewalHeld,
        Self::RenewalWaits,
        Self::EndsSooner,
        Self::OtherLifetime,
        Self::EarlierCertificate,
        Self::OwnedByAnother,
        Self::RenewalWindowMoved,
        Self::RolledOut,
        Self::NotRolledOut,
        Self::RolloutFailed,
        Self::RolloutHalted,
        Self::RolloutIncomplete,
        Self::RolloutWaits,
        Self::WindowOverruled,
        Self::NotVerified,
        Self::RestartedAgain,
        Self::ServedCertificateStale,
        Self::Reloaded,
        Self::CannotReload,
        Self::NobodyRestarts,
        Self::WorkloadMissing,
        Self::InvalidAnnotation,
        Self::UnreadableCertificate,
        Self::CertificateProblem,
        Self::OutputLeftOut,
        Self::TxtRecordLeft,
        Self::Declared,
        Self::DeclarationRefused,
        Self::Undeclared,
    ];

    /// As in the Event.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Adopted => "Adopted",
            Self::NotManaged => "NotManaged",
            Self::Renewed => "Renewed",
            Self::RenewalFailed => "RenewalFailed",
            Self::RehearsalFailed => "RehearsalFailed",
            Self::RenewalHeld => "RenewalHeld",
            Self::RenewalWaits => "RenewalWaits",
            Self::EndsSooner => "EndsSooner",
            Self::OtherLifetime => "OtherLifetime",
            Self::EarlierCertificate => "EarlierCertificate",
            Self::OwnedByAnother => "OwnedByAnother",
            Self::RenewalWindowMoved => "RenewalWindowMoved",
            Self::RolledOut => "RolledOut",
            Self::NotRolledOut => "NotRolledOut",
            Self::RolloutFailed => "RolloutFailed",
            Self::RolloutHalted => "RolloutHalted",
            Self::RolloutIncomplete => "RolloutIncomplete",
            Self::RolloutWaits => "RolloutWaits",
            Self::WindowOverruled => "WindowOverruled",
            Self::NotVerified => "NotVerified",
            Self::RestartedAgain => "RestartedAgain",
            Self::ServedCertificateStale => "ServedCertificateStale",
            Self::Reloaded => "Reloaded",
            Self::CannotReload => "CannotReload",
            Self::NobodyRestarts => "NobodyRestarts",
            Self::WorkloadMissing => "WorkloadMissing",
            Self::InvalidAnnotation => "InvalidAnnotation",
            Self::UnreadableCertificate => "UnreadableCertificate",
            Self::CertificateProblem => "CertificateProblem",
            Self::OutputLeftOut => "OutputLeftOut",
            Self::TxtRecordLeft => "TxtRecordLeft",
            Self::Declared => "Declared",
            Self::DeclarationRefused => "DeclarationRefused",
            Self::Undeclared => "Undeclared",
        }
    }

    /// Whether the Event needs attention.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            Self::Adopted
            | Self::Declared
            | Self::Renewed
            | Self::RenewalWindowMoved
            | Self::RolledOut
            | Self::RolloutWaits
            | Self::Reloaded => Severity::Normal,
            _ => Severity::Warning,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

type Queue = FairQueue<(ObjectReference, Event)>;

/// Publishes Events, of several namespaces at once and of each in order.
async fn publish(recorder: Recorder, queue: Arc<Queue>) {
    let publish = |(on, event): (ObjectReference, Event)| {
        let recorder = &recorder;
        async move {
            let sent = tokio::time::timeout(super::DEADLINE, recorder.publish(&event, &on)).await;
            let trouble = match sent {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error_chain(&error),
                Err(_) => Error::Deadline {
                    what: "publishing".into(),
                }
                .to_string(),
            };
            tracing::debug!(reason = event.reason, error = %trouble, "an Event was not published");
        }
    };
    queue.each(publish).await;
}

/// Sends Events to the task that publishes them; cheap to clone.
#[derive(Clone)]
pub struct Events {
    queue: Arc<Queue>,
    allowance: Arc<Mutex<TokenBucket>>,
    recent: Arc<Mutex<Recent>>,
}

impl Events {
    /// Starts the publishing task.
    #[must_use]
    pub fn start(client: Client, instance: Option<String>, metrics: &Arc<Metrics>) -> Self {
        let reporter = Reporter {
            controller: CONTROLLER.into(),
            instance,
        };
        let recorder = Recorder::new(client, reporter);
        let queue = Arc::new(Queue::of_at_most(QUEUE));
        let waiting = Arc::clone(&queue);
        supervise::spawn(Part::Events, metrics, move || {
            publish(recorder.clone(), Arc::clone(&waiting))
        });
        Self {
            queue,
            allowance: Arc::new(Mutex::new(TokenBucket::new(AT_ONCE))),
            recent: Arc::default(),
        }
    }

    /// The last Events about a Secret that this process has sent, the latest last.
    #[must_use]
    pub fn of(&self, key: &SecretRef) -> Vec<Told> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.of(&key.namespace, &key.name)
    }

    /// Publishes an Event on a Secret. An Event with the same note within minutes is only counted.
    pub fn secret(&self, key: &SecretRef, uid: &str, reason: Reason, note: &str) {
        let on = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Secret".into()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        self.on(on, reason, note);
    }

    /// Publishes an Event on any object.
    pub fn on(&self, on: ObjectReference, reason: Reason, note: &str) {
        let namespace = on.namespace.as_deref().unwrap_or_default();
        if !self.may(namespace) {
            tracing::debug!(
                namespace,
                reason = reason.as_str(),
                "an Event was dropped: the namespace has too many"
            );
            return;
        }
        let severity = reason.severity();
        if on.kind.as_deref() == Some("Secret") {
            let place = (namespace, on.name.as_deref().unwrap_or_default());
            let told = told(UnixTime::now(), severity.as_str(), reason.as_str(), note);
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.add(place, told);
        }
        let event = Event {
            type_: match severity {
                Severity::Normal => EventType::Normal,
                Severity::Warning => EventType::Warning,
            },
            reason: reason.as_str().into(),
            note: Some(cut(note, LONGEST_NOTE).to_owned()),
            // The API server's aggregator ignores the note, so a new note would be dropped. Vary `action`, which is not
            // shown, to keep it.
            action: format!("{reason}-{:x}", hash(note)),
            secondary: None,
        };
        let namespace = on.namespace.clone().unwrap_or_default();
        if !self.queue.add(&namespace, (on, event)) {
            tracing::debug!(
                reason = reason.as_str(),
                "an Event was dropped: too many wait"
            );
        }
    }
}

impl Events {
    fn may(&self, namespace: &str) -> bool {
        let allowance = self.allowance.lock();
        let mut allowance = allowance.unwrap_or_else(PoisonError::into_inner);
        allowance.take(Instant::now().into_std(), namespace)
    }
}

/// The longest prefix of `text` within `bytes` bytes that ends at a character boundary.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_reason() {
        let page = include_str!("../../../docs/events.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows = rows.map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`')));
        let documented: Vec<(&str, &str)> = rows
            .filter_map(|mut cells| Some((cells.next()?, cells.next()?)))
            .collect();
        let known = Reason::ALL.map(|reason| (reason.as_str(), reason.severity().as_str()));
        assert_eq!(documented, known);
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("aä", 3), "aä");
    }
}

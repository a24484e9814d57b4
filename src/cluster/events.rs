//! Kubernetes Events on Secrets and workloads: on transitions only, never in the way of the work.
//!
//! Publishing goes through a bounded queue and one task; when the API server is slow, Events are lost, renewals are not.
//! Each namespace has an allowance, so that nobody takes the queue, and the API server's time, from all others.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cert_renew_core::schedule::token_bucket::TokenBucket;
use cert_renew_core::secret::SecretRef;
use cert_renew_core::text::error_chain;
use cert_renew_core::text::hash::hash;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use super::Error;
use crate::process::supervise;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::metrics::Part;

/// Events that wait to be published; more than a burst of renewals makes.
const QUEUE: usize = 4_096;
/// Events in one namespace at once; a renewal with its rollout makes three or four. Then one a second.
const AT_ONCE: u32 = 2_000;
/// The API server refuses a longer note.
const LONGEST_NOTE: usize = 1_000;

/// Who publishes them; the admission policy for the operator goes by it.
const CONTROLLER: &str = "cert-renew.io/cert-renew";

/// Whether an Event tells of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// What was expected.
    Normal,
    /// What somebody should look at.
    Warning,
}

/// Why there is an Event: the whole list, as `docs/events.md` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The new pair is in the Secret.
    Renewed,
    /// It is not, and will be tried again.
    RenewalFailed,
    /// The names could not be proven to the staging CA.
    RehearsalFailed,
    /// A budget keeps the CA from being asked.
    RenewalHeld,
    /// What was put in place to prove a name is not in force yet, or the way to it is not open.
    RenewalWaits,
    /// The new certificate ends sooner than the one that it replaces.
    EndsSooner,
    /// The CA has issued for another time than was asked for.
    OtherLifetime,
    /// The Secret holds an earlier certificate than its workloads have.
    EarlierCertificate,
    /// Another program writes the Secret, so that it is left to that.
    OwnedByAnother,
    /// The CA wants the certificate replaced at another time.
    RenewalWindowMoved,
    /// The workloads have the certificate; on a workload: it has.
    RolledOut,
    /// The pair in the Secret is none to roll onto.
    NotRolledOut,
    /// A workload did not come up with the certificate.
    RolloutFailed,
    /// The others are left alone until somebody has looked.
    RolloutHalted,
    /// Workloads that were not well before, or hold pods back, do not have the certificate yet.
    RolloutIncomplete,
    /// A rollout cannot go on until somebody else has done something.
    RolloutWaits,
    /// Workloads are rolled outside of their change window.
    WindowOverruled,
    /// Not every pod could be asked what it serves.
    NotVerified,
    /// A pod served an earlier certificate, so that its workload was restarted once more.
    RestartedAgain,
    /// Pods serve an earlier certificate although that was done.
    ServedCertificateStale,
    /// The pods of a workload were asked to reload.
    Reloaded,
    /// Workloads are restarted although their Secret asks for a reload.
    CannotReload,
    /// Pods and Jobs use the certificate that nobody can restart.
    NobodyRestarts,
    /// `workloads` names one that does not exist.
    WorkloadMissing,
    /// An annotation is unknown or cannot be followed.
    InvalidAnnotation,
    /// What is in the Secret is no certificate.
    UnreadableCertificate,
    /// What is in the Secret can be read, and is not as it should be.
    CertificateProblem,
    /// One of `outputs` could not be written.
    OutputLeftOut,
    /// A TXT record of a challenge could not be removed.
    TxtRecordLeft,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 29] = [
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
    ];

    /// As the Event has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
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
        }
    }

    /// Whether somebody should look.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            Self::Renewed
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

type Queue = mpsc::Receiver<(ObjectReference, Event)>;

/// Publishes what comes, for as long as something can come.
async fn publish(recorder: Recorder, queue: Arc<tokio::sync::Mutex<Queue>>) {
    let mut queue = queue.lock().await;
    while let Some((on, event)) = queue.recv().await {
        let reason = event.reason.clone();
        let sent = tokio::time::timeout(super::DEADLINE, recorder.publish(&event, &on)).await;
        let trouble = match sent {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error_chain(&error),
            Err(_) => Error::Deadline {
                what: "publishing".into(),
            }
            .to_string(),
        };
        tracing::debug!(%reason, error = %trouble, "an Event was not published");
    }
}

/// Hands Events to the task that publishes them; cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<(ObjectReference, Event)>,
    allowance: Arc<Mutex<TokenBucket>>,
}

impl Events {
    /// Starts the publishing task; it ends when the last handle is dropped.
    #[must_use]
    pub fn start(client: Client, instance: Option<String>, metrics: &Arc<Metrics>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let reporter = Reporter {
            controller: CONTROLLER.into(),
            instance,
        };
        let recorder = Recorder::new(client, reporter);
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        supervise::spawn(Part::Events, metrics, move || {
            publish(recorder.clone(), Arc::clone(&receiver))
        });
        Self {
            queue: sender,
            allowance: Arc::new(Mutex::new(TokenBucket::new(AT_ONCE))),
        }
    }

    /// Publishes an Event on a Secret. One with the same note within minutes is counted and is no Event of its own.
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
        let event = Event {
            type_: match reason.severity() {
                Severity::Normal => EventType::Normal,
                Severity::Warning => EventType::Warning,
            },
            reason: reason.as_str().into(),
            note: Some(cut(note, LONGEST_NOTE).to_owned()),
            // Whoever publishes counts Events that are alike but for their notes as one, with the first one's note. What
            // is new is to be read, so that the action, which nobody reads, differs with it.
            action: format!("{reason}-{:x}", hash(note)),
            secondary: None,
        };
        if self.queue.try_send((on, event)).is_err() {
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
        allowance.take(Instant::now(), namespace)
    }
}

/// The longest beginning of `text` within `bytes` bytes that ends at a character.
fn cut(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let end = (0..=bytes)
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_reason() {
        let page = include_str!("../../docs/events.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows = rows.map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`')));
        let documented: Vec<(&str, &str)> = rows
            .filter_map(|mut cells| Some((cells.next()?, cells.next()?)))
            .collect();
        let known = Reason::ALL.map(|reason| {
            let severity = match reason.severity() {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            };
            (reason.as_str(), severity)
        });
        assert_eq!(documented, known);
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("aä", 3), "aä");
    }
}

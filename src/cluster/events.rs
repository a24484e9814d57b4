//! Kubernetes Events on Secrets and workloads: on transitions only, never in the way of the work.
//!
//! Publishing goes through a bounded queue and one task; when the API server is slow, Events are lost, renewals are not.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use super::{Error, chain};
use crate::index::Key;

/// Events that wait to be published; more than a burst of renewals makes.
const QUEUE: usize = 4_096;
/// The API server refuses a longer note.
const LONGEST_NOTE: usize = 1_000;

/// Whether an Event tells of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// What was expected.
    Normal,
    /// What somebody should look at.
    Warning,
}

/// Hands Events to the task that publishes them; cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<(ObjectReference, Event)>);

impl Events {
    /// Starts the publishing task; it ends when the last handle is dropped.
    #[must_use]
    pub fn start(client: Client, instance: Option<String>) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(ObjectReference, Event)>(QUEUE);
        let reporter = Reporter {
            controller: "cert-renew.io/cert-renew".into(),
            instance,
        };
        let recorder = Recorder::new(client, reporter);
        tokio::spawn(async move {
            while let Some((on, event)) = receiver.recv().await {
                let reason = event.reason.clone();
                let sent =
                    tokio::time::timeout(super::DEADLINE, recorder.publish(&event, &on)).await;
                let trouble = match sent {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => chain(&error),
                    Err(_) => Error::Deadline {
                        what: "publishing".into(),
                    }
                    .to_string(),
                };
                tracing::debug!(%reason, error = %trouble, "an Event was not published");
            }
        });
        Self(sender)
    }

    /// Publishes an Event on a Secret.
    pub fn secret(
        &self,
        key: &Key,
        uid: &str,
        severity: Severity,
        reason: &'static str,
        note: &str,
    ) {
        let on = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Secret".into()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        self.on(on, severity, reason, note);
    }

    /// Publishes an Event on any object.
    pub fn on(&self, on: ObjectReference, severity: Severity, reason: &'static str, note: &str) {
        let event = Event {
            type_: match severity {
                Severity::Normal => EventType::Normal,
                Severity::Warning => EventType::Warning,
            },
            reason: reason.into(),
            note: Some(cut(note, LONGEST_NOTE).to_owned()),
            action: reason.into(),
            secondary: None,
        };
        if self.0.try_send((on, event)).is_err() {
            tracing::debug!(reason, "an Event was dropped: too many wait");
        }
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

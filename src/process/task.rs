//! Guards held by running tasks. Dropping one reports the task's result to the controller.

use std::sync::Arc;
use std::time::Duration;

use cert_renew_core::index::{Finished, Task};
use cert_renew_core::secret::SecretRef;
use cert_renew_core::time::UnixTime;
use tokio::sync::{mpsc, watch};

/// Delay until a task is tried again that ended without a result.
const AFTER_PANIC: Duration = Duration::from_secs(300);

/// What the tasks of a term report.
#[derive(Debug)]
pub enum Done {
    /// The state that former leaders left was read.
    Opened,
    /// The workloads of a namespace were listed; the next batch may start.
    Planned(Arc<str>),
    /// The rollouts of a namespace have waited for others to join them.
    Gathered(Arc<str>),
    /// The task of a Secret ended.
    Task(Task, SecretRef, Finished),
    /// The pair of a Secret was looked at; the reason if it is broken.
    Judged(SecretRef, Option<Box<str>>),
    /// The objects that the annotations of a Secret name were looked up: what is wrong with them.
    LookedUp(SecretRef, Vec<String>),
}

/// A guard held by a running task, which reports its result; a task that panics or is cancelled reports by dropping it.
#[derive(Debug)]
pub struct TaskHandle {
    task: Task,
    key: SecretRef,
    sender: mpsc::UnboundedSender<Done>,
    changed: watch::Receiver<()>,
    sent: bool,
}

/// A guard that reports a namespace's batch as planned when dropped.
#[derive(Debug)]
pub struct Planning {
    namespace: Arc<str>,
    sender: mpsc::UnboundedSender<Done>,
}

impl TaskHandle {
    /// Creates the guard of a task that is about to begin; [`TaskHandle::changed`] describes `changed`.
    #[must_use]
    pub fn new(
        task: Task,
        key: SecretRef,
        sender: mpsc::UnboundedSender<Done>,
        changed: watch::Receiver<()>,
    ) -> Self {
        Self {
            task,
            key,
            sender,
            changed,
            sent: false,
        }
    }

    /// Notifies when the Secret is gone, and a rollout also when the Secret holds another certificate.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.clone()
    }

    /// The Secret that the task is for.
    #[must_use]
    pub fn key(&self) -> &SecretRef {
        &self.key
    }

    /// Reports that the task ended.
    pub fn finish(mut self, finished: Finished) {
        self.sent = true;
        // The receiver is dropped only with the term, and then the result does not matter.
        let _ = self
            .sender
            .send(Done::Task(self.task, self.key.clone(), finished));
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        if !self.sent {
            let error = Some("the task ended without a result; this is a bug".into());
            let later = Finished::Later(UnixTime::now() + AFTER_PANIC, error);
            let _ = self
                .sender
                .send(Done::Task(self.task, self.key.clone(), later));
        }
    }
}

impl Planning {
    /// Creates the guard of a batch that is about to be planned.
    #[must_use]
    pub fn new(namespace: Arc<str>, sender: mpsc::UnboundedSender<Done>) -> Self {
        Self { namespace, sender }
    }

    /// The namespace whose workloads are planned.
    #[must_use]
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }
}

impl Drop for Planning {
    fn drop(&mut self) {
        let _ = self.sender.send(Done::Planned(Arc::clone(&self.namespace)));
    }
}
